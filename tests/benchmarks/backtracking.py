"""One direction of the tiny model's residual stream: found, pushed along, trained alone.

`python tests/benchmarks/backtracking.py RUNS`, with the folder in which habits.py has left the
tiny base's three runs. Each seed draws its own answers to find the directions in, its own random
ones and its own samples; it goes on where it was stopped. Rows go into backtracking.json beside
this file, and a table is printed.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from aha_lib import devices, loop
from aha_lib.look import steering
from aha_lib.model import weights
from aha_lib.presets import PUZZLES, SETTINGS, Settings
from aha_lib.rl import grpo
from aha_lib.run import folder, train
from aha_lib.tasks import countdown, traces
from aha_lib.tasks.rollout import Policy, held_out_panel, rollout
from aha_lib.tasks.task import Countdown

RECORD = Path(__file__).with_suffix(".json")
SEEDS = 0, 1, 2
TINY = dataclasses.replace(SETTINGS["tiny"], prompts=128, group=2)
LAST = 3  # where the direction that is trained alone is added
LAYERS = 1, LAST  # where directions are compared: in the middle, and where nothing reads them
BY_LAYER = 0.5, 0.75, 1.0, 1.25
STRENGTHS = -2.0, -1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0
FEW = -1.0, -0.5, 0.5, 1.0  # of the controls
TAKEN = -1.5, -1.0, -0.5  # from the trained model
OURS = "difference", "learnt"
RANDOM = [f"random {i}" for i in range(4)]
ALONE = dataclasses.replace(SETTINGS["tiny"], lora=1, learning_rate=0.2)


def drawn(seed: int, first: int, count: int) -> list[countdown.Puzzle]:
    """Puzzles that no GRPO run has seen, and that are not of the held-out panel."""
    return [countdown.generate(1000 + seed, first + i, PUZZLES["tiny"]) for i in range(count)]


def measured(model, tokenizer, puzzles, seed: int, settings: Settings = TINY) -> dict:
    """What the model, as it is pushed now, does with some puzzles: one sample each."""
    policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
    out = rollout(policy, puzzles, jax.random.key(seed), group=1, temperature=1.0)
    parsed = [traces.parse(*pair) for pair in zip(out.texts, out.puzzles, strict=True)]
    refused = [t for t in parsed if t.attempts and t.attempts[0].verdict == "no"]
    return {
        "n": len(parsed),
        "accuracy": float(np.mean([t.right for t in parsed])),
        "backtracks": float(np.mean([t.backtracks for t in parsed])),
        "length": float(out.completions.mask.sum(1).mean()),
        "tried": sum(len(t.attempts) > 0 for t in parsed),
        "refused": len(refused),
        "went_on": sum(len(t.attempts) > 1 for t in refused),
    }


def directions(base, trained, tokenizer, seed: int) -> tuple[dict[str, np.ndarray], dict]:
    """Directions [L, D] by name; decisions by noes, and how well they are told apart.

    All but "learnt" have the length of "difference" in each layer.
    """
    policy = Policy(base, tokenizer, Countdown(), TINY)
    key = jax.random.key(100 + seed)
    out = rollout(policy, drawn(seed, 0, 512), key, group=2, temperature=1.0)
    at = steering.decisions(out, tokenizer)
    before, after = (steering.activations(model, out, at) for model in (base, trained))
    rng, here = np.random.default_rng(seed), at.noes > 0
    stream, tries = before[:, here], at.tries[here]
    found = {"difference": steering.difference(stream, tries), "learnt": (after - before).mean(1)}
    size = np.linalg.norm(found["difference"], axis=1, keepdims=True)
    controls = {
        "probe": steering.probe(stream, tries),
        "shuffled": steering.difference(stream, rng.permutation(tries)),
        **{name: rng.normal(size=found["learnt"].shape) for name in RANDOM},
    }
    for name, x in controls.items():
        found[name] = resized(x, size)
    return found, {"noes": np.bincount(at.noes).tolist(), "told": told(before, at)}


def resized(x: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Directions [L, D] with the lengths [L, 1]."""
    return x / np.linalg.norm(x, axis=1, keepdims=True) * size


def told(before: np.ndarray, at: steering.Decisions) -> list[dict]:
    """Directions found in the even rows, and how they separate the odd ones, layer by layer."""
    cases = {"start": at.noes == 0, "first no": at.noes == 1, "every no": at.noes > 0}
    even, rows = at.row % 2 == 0, []
    for when, here in cases.items():
        for how in (steering.difference, steering.probe):
            tries = at.tries[here]
            apart = steering.separation_in_other_half(before[:, here], tries, even[here], how)
            rows.append(
                {
                    "when": when,
                    "how": how.__name__,
                    "n": int(here.sum()),
                    "tries": float(tries.mean()),
                    "separation": apart,
                }
            )
    return rows


def pushed(model, tokenizer, found: dict, puzzles, seed: int, plan: list[tuple]) -> list[dict]:
    """Measure a model that has a direction for every (name, layer, strength) of the plan."""
    rows = []
    for name, layer, strength in tqdm(plan, unit="push"):
        steering.steer(model, found[name][layer], layer, strength)
        got = measured(model, tokenizer, puzzles, seed)
        rows.append({"direction": name, "layer": layer, "strength": strength} | got)
    steering.steer(model, found[name][0], 0, 0.0)
    return rows


def alone(tokenizer, panel, seed: int) -> dict:
    """One direction trained by the main run's GRPO, everything else as in the base."""
    s = dataclasses.replace(ALONE, seed=seed)
    model = weights.load("tiny", dtype=jnp.float32)[0]
    steering.add(model)
    steering.steer(model, np.zeros(model.config.width), LAST, 1.0)
    policy = Policy(model, tokenizer, Countdown(), s)
    opt_state = grpo.optimizer(s).init(grpo.trainable(nnx.state(model), s.lora)[0])
    curve = []
    for number in tqdm(range(1, s.steps + 1), unit="step"):
        opt_state, row = loop.step(policy, opt_state, None, number, jax.random.key(seed))
        curve.append({name: row[name] for name in ("step", "train_accuracy", "backtracks")})
    direction = np.asarray(model.layers.direction[...])
    return {
        "learning_rate": s.learning_rate,
        "curve": curve,
        "direction": direction.tolist(),
        **measured(model, tokenizer, panel, seed),
    }


def fill(row: dict, runs: Path, save) -> None:
    """Measure what the row of a seed lacks, and save after each part."""
    seed, panel = row["seed"], held_out_panel(Countdown(), TINY)
    base, tokenizer, _ = weights.load("tiny", dtype=jnp.float32)
    after = train.trained(runs / "tiny" / str(seed))[0]
    found, said = directions(base, after, tokenizer, seed)
    kept = {name: np.round(x, 4).tolist() for name, x in found.items()}
    row |= said | {
        "directions": {name: kept[name] for name in OURS},
        "last": {name: x[LAST] for name, x in kept.items()},
    }
    row |= {
        "base": measured(base, tokenizer, panel, seed),
        "trained": measured(after, tokenizer, panel, seed),
    }
    steering.add(base)
    steering.add(after)
    every, away = range(base.config.layers), [*OURS, *RANDOM[:2]]
    controls = [name for name in found if name not in OURS]
    plans = {
        # Other puzzles than the panel's: by these a layer may be chosen.
        "by_layer": (base, drawn(seed, 512, 128), itertools.product(OURS, every, BY_LAYER)),
        "pushed": (base, panel, itertools.product(OURS, LAYERS, STRENGTHS)),
        "controls": (base, panel, itertools.product(controls, LAYERS, FEW)),
        "taken": (after, panel, itertools.product(away, LAYERS, TAKEN)),
    }
    for part, (model, puzzles, plan) in plans.items():
        if part not in row:
            row[part] = pushed(model, tokenizer, found, puzzles, seed, [*plan])
            save()
    if "alone" not in row:
        row["alone"] = alone(tokenizer, panel, seed)
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of habits.py")
    chosen = parser.parse_args()
    devices.compilation_cache()
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []

    def save() -> None:
        lines = ",\n".join(map(json.dumps, rows))  # a line a seed
        folder.write(RECORD, f"[\n{lines}\n]\n")

    for seed in SEEDS:
        row = next((row for row in rows if row["seed"] == seed), {"seed": seed})
        rows += [row] * (row not in rows)
        fill(row, chosen.runs, save)
    table(rows)


def table(rows: list[dict]) -> None:
    kinds = "accuracy", "backtracks", "length"
    print(f"{'':<34}" + "".join(f"{'seed':>20} {row['seed']} " for row in rows))
    lines = {who: [row[who] for row in rows] for who in ("base", "trained", "alone")}
    for part in ("by_layer", "pushed", "controls", "taken"):
        for each in zip(*(row[part] for row in rows), strict=True):
            first = each[0]
            lines[f"{part} {first['direction']} {first['layer']} x {first['strength']}"] = each
    for name, each in lines.items():
        figures = (" ".join(f"{x[kind]:7.3f}" for kind in kinds) for x in each)
        print(f"{name:<34}" + "".join(figures))


if __name__ == "__main__":
    main()
