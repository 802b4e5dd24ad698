"""Runs of the tiny model that differ in one thing, several seeds each.

`python tests/benchmarks/variants.py SET` with a name in SETS writes `SET.json` beside itself, which
notebooks 04 and 05 read, and prints a table. A run that is in the file already is not repeated, so
a stopped benchmark goes on. Seed by seed the cases are pairs: all of them start from the same base,
with the same puzzles and the same random keys.
"""

import argparse
import dataclasses
import json
import platform
import tempfile
from pathlib import Path

import jax
import numpy as np

from aha_lib import devices
from aha_lib.presets import SETTINGS, VARIANTS
from aha_lib.run import train

SHORT = dict(steps=30, prompts=8, learning_rate=1e-3, eval_puzzles=1024, pass_k=1)
CLIPS = {"clip": {}, "no clip": dict(clip_low=1.0, clip_high=1e6)}
UPDATES = {
    f"{count} x {clip}": dict(updates=count) | changes
    for count in (1, 2, 4, 8)
    for clip, changes in CLIPS.items()
}
SETS = {  # name: what all of its runs share, its cases, and how many seeds
    "variants": (SHORT | dict(updates=2), VARIANTS, 8),
    "updates": (SHORT, UPDATES, 3),
    "exercises": ({}, {"form 0": dict(form_reward=0.0), "kl 0.05": dict(kl=0.05)}, 1),
}
CURVES = ("train_accuracy", "length", "entropy", "clip_fraction", "draws")
HELD_OUT = ("accuracy", "length", "backtracks")


def run(case: str, seed: int, settings: dict) -> dict:
    """One run: its curves by step, and what it does on held-out puzzles before and after."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(train.train(dataclasses.replace(SETTINGS["tiny"], **settings), folder))
    ends = {name: [round(rows[i][f"heldout_{name}"], 4) for i in (0, -1)] for name in HELD_OUT}
    curves = {name: [round(row[name], 3) for row in rows[1:]] for name in CURVES}
    return {"case": case, "seed": seed, "heldout": ends, **curves}


def write(file: Path, about: dict, runs: list[dict]) -> None:
    """A line a run, so that a difference between two files can be read."""
    lines = ",\n".join(json.dumps(run) for run in runs)
    file.write_text(f'{{"about": {json.dumps(about)},\n"runs": [\n{lines}\n]}}\n')


def table(runs: list[dict]) -> list[str]:
    """For each case its seeds, its held-out accuracy after, and the puzzles drawn for one of it."""
    lines = []
    for case in dict.fromkeys(run["case"] for run in runs):
        of = [run for run in runs if run["case"] == case]
        ends = np.array([run["heldout"]["accuracy"][1] for run in of])
        draws = np.mean([run["draws"] for run in of])
        clipped = np.mean([run["clip_fraction"] for run in of])
        ends = f"{ends.mean():.3f} ({ends.min():.3f} to {ends.max():.3f})"
        lines.append(
            f"{case:12} {len(of)} seeds: {ends}, {draws:.2f} draws a step, {clipped:.1%} clipped"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--seeds", type=int, help="how many; else as SETS has it")
    parser.add_argument("--steps", type=int, help="of a run; else as SETS has it")
    parser.add_argument("--out", type=Path, help="the file; else SET.json beside this one")
    args = parser.parse_args()
    devices.keep_memory()
    shared, cases, seeds = SETS[args.set]
    shared = shared | (dict(steps=args.steps) if args.steps else {})
    every = dict(eval_every=shared.get("steps", 60), checkpoint_every=shared.get("steps", 60))
    file = args.out or Path(__file__).with_name(f"{args.set}.json")
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # seeds share programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    about = {"machine": platform.machine(), "jax": jax.__version__, **shared}
    old = json.loads(file.read_text()) if file.exists() else {"about": about, "runs": []}
    if old["about"] != about:
        parser.exit(2, f"{file} holds runs of another kind: move it away first.\n")
    runs, done = old["runs"], {(run["case"], run["seed"]) for run in old["runs"]}
    for seed in range(args.seeds or seeds):
        for case, changes in cases.items():
            if (case, seed) not in done:
                runs.append(run(case, seed, shared | changes | every | dict(seed=seed)))
                write(file, about, runs)
                jax.clear_caches()  # else programs of all settings stay: there are many
    print(*table(runs), sep="\n")
