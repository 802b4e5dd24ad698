"""Gemma 3 270M after its cold start, pushed along the direction of its own searches.

`python tests/benchmarks/backtracking_gemma.py BASE`, with the folder of the cold start; the trained
model is the base with the adapters of `aha_lib/data/gemma3-270m/seed0`. One seed; what
backtracking.py does for the tiny model with three. Rows go into backtracking_gemma.json beside
this file. Ten minutes on two cores.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import backtracking
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.look import record, steering
from aha_lib.model import lora, weights
from aha_lib.presets import SETTINGS
from aha_lib.run import folder
from aha_lib.tasks.rollout import Policy, rollout
from aha_lib.tasks.task import Countdown

RECORD = Path(__file__).with_suffix(".json")
GEMMA = dataclasses.replace(SETTINGS["gemma3-270m-cpu"], prompts=16, group=4)
LAST = 17
PLAN = [
    *(("difference", strength) for strength in (0.5, 1.0, 0.25, 0.75, -0.5)),
    *((name, 0.5) for name in ("learnt", "random 0", "random 1")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="folder of the cold start")
    chosen = parser.parse_args()
    devices.compilation_cache()
    base, tokenizer, _ = weights.load(chosen.base, dtype=jnp.float32)
    after = weights.load(chosen.base, dtype=jnp.float32)[0]
    lora.load(after, record.DATA / "gemma3-270m/seed0/adapters.safetensors")
    after = lora.merge(after)
    policy = Policy(base, tokenizer, Countdown.from_settings(GEMMA), GEMMA)
    puzzles = backtracking.drawn(0, 0, 32)
    out = rollout(policy, puzzles, jax.random.key(100), group=4, temperature=1.0)
    at = steering.decisions(out, tokenizer)
    before, learnt = (steering.activations(model, out, at) for model in (base, after))
    here = at.noes > 0
    found = {
        "difference": steering.difference(before[:, here], at.tries[here]),
        "learnt": (learnt - before).mean(1),
    }
    size, rng = np.linalg.norm(found["difference"], axis=1, keepdims=True), np.random.default_rng(0)
    for name in ("random 0", "random 1"):
        found[name] = backtracking.resized(rng.normal(size=before[:, 0].shape), size)
    cosine = np.sum(found["difference"] * found["learnt"], axis=1) / (
        size[:, 0] * np.linalg.norm(found["learnt"], axis=1)
    )
    row = {
        "noes": np.bincount(at.noes).tolist(),
        "tries": [float(at.tries[at.noes == n].mean()) for n in range(3)],
        "told": backtracking.told(before, at),
        "cosine": cosine.tolist(),
        "size": size[:, 0].tolist(),
        "base_size": np.linalg.norm(before[:, here], axis=2).mean(1).tolist(),
        "pushed": [],
    }
    puzzles = backtracking.drawn(0, 512, 64)
    row["base"] = backtracking.measured(base, tokenizer, puzzles, 0, GEMMA)
    steering.add(base)
    for name, strength in tqdm(PLAN, unit="push"):
        steering.steer(base, found[name][LAST], LAST, strength)
        got = backtracking.measured(base, tokenizer, puzzles, 0, GEMMA)
        row["pushed"].append({"direction": name, "layer": LAST, "strength": strength} | got)
        folder.write(RECORD, json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
