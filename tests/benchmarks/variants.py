"""Short runs of the loss variants, several seeds each: `python tests/benchmarks/variants.py`.

Writes `variants.json` beside itself, the figures that notebook 04 draws. A run that is in the
file already is not repeated, so a stopped benchmark goes on. Ends with a table.
"""

import argparse
import dataclasses
import json
import platform
import tempfile
from pathlib import Path

import jax
import numpy as np

from aha_lib import train
from aha_lib.presets import SETTINGS, VARIANTS

FILE = Path(__file__).with_suffix(".json")
SHORT = dict(prompts=8, updates=2, learning_rate=1e-3, eval_puzzles=128, pass_k=1)
KEPT = {"accuracy": "train_accuracy", "length": "length", "entropy": "entropy"}


def run(variant: str, seed: int, steps: int, model: str) -> dict:
    """One short run: its curves per step, and the held-out accuracy before and after."""
    changes = SHORT | VARIANTS[variant] | dict(seed=seed, steps=steps, model=model)
    settings = dataclasses.replace(
        SETTINGS["tiny"], **changes, eval_every=steps, checkpoint_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = list(train.train(settings, folder))
    curves = {name: [round(row[key], 3) for row in rows[1:]] for name, key in KEPT.items()}
    heldout = [round(rows[i]["heldout_accuracy"], 3) for i in (0, -1)]
    return {"variant": variant, "seed": seed, "heldout": heldout, **curves}


def write(file: Path, about: dict, runs: list[dict]) -> None:
    """A line a run, so that a difference between two files can be read."""
    lines = ",\n".join(json.dumps(run) for run in runs)
    file.write_text(f'{{"about": {json.dumps(about)},\n"runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny", help="as weights.load takes it")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # seeds share programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    about = {"machine": platform.machine(), "jax": jax.__version__, "steps": args.steps, **SHORT}
    old = json.loads(args.out.read_text()) if args.out.exists() else {"about": about, "runs": []}
    if old["about"] != about:
        parser.exit(2, f"{args.out} holds runs of another kind: move it away first.\n")
    runs, done = old["runs"], {(run["variant"], run["seed"]) for run in old["runs"]}
    for seed in range(args.seeds):
        for variant in VARIANTS:
            if (variant, seed) not in done:
                runs.append(run(variant, seed, args.steps, args.model))
                write(args.out, about, runs)
    for variant in VARIANTS:
        ends = np.array([run["heldout"][1] for run in runs if run["variant"] == variant])
        print(f"{variant:8} held out {ends.mean():.2f} ({ends.min():.2f} to {ends.max():.2f})")
