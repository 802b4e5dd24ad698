"""GRPO on one number of the tiny base: what is added to the logit of `<answer>`.

`python tests/benchmarks/one_scalar.py`. The main run's settings, but 20 steps of 64 answers and
a learning rate of its own, which falls; three seeds. The model's own parameters stay as they are.
Beside what GRPO finds, the number is set by hand to several values. A row for each seed goes into
one_scalar.json beside this file, after each part, so that a run that was stopped goes on; a table
is printed. Notebook 08 shows it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from backtracking import ALONE, SEEDS, measured
from flax import nnx
from tqdm.auto import tqdm

from aha_lib import devices, loop
from aha_lib.look import steering
from aha_lib.model import weights
from aha_lib.presets import Settings
from aha_lib.rl import grpo
from aha_lib.run import folder
from aha_lib.tasks.rollout import Policy, held_out_panel
from aha_lib.tasks.task import Countdown

RECORD = Path(__file__).with_suffix(".json")
# One number has far to go and little to find: a high rate, which falls so that it comes to rest.
SCALAR = dataclasses.replace(ALONE, steps=20, prompts=8, group=8, learning_rate=0.5, decay=0.1)
BY_HAND = -2.0, -4.0, -6.0, -8.0, -12.0


def biased() -> tuple[steering.WithTokenBias, object]:
    """The tiny base with a bias of 0 on the logit of `<answer>`, and its tokenizer."""
    model, tokenizer, _ = weights.load("tiny", dtype=jnp.float32)
    return steering.WithTokenBias(model, tokenizer.piece_id("▁<answer>")), tokenizer


def trained(seed: int) -> dict:
    """The bias as GRPO moves it, step by step, and what the last one does on the panel."""
    settings: Settings = dataclasses.replace(SCALAR, seed=seed)
    model, tokenizer = biased()
    policy = Policy(model, tokenizer, Countdown(), settings)
    (adapter, _) = grpo.trainable(nnx.state(model), settings.lora)
    opt_state = grpo.optimizer(settings).init(adapter)
    key = jax.random.key(seed)
    curve = []
    for number in tqdm(range(1, settings.steps + 1), unit="step"):
        opt_state, row = loop.step(policy, opt_state, None, number, key)
        kept = {name: row[name] for name in ("step", "train_accuracy", "length")}
        curve.append(kept | {"bias": float(model.bias[...][0])})
        tqdm.write(str(curve[-1]))
    return {
        "learning_rate": settings.learning_rate,
        "decay": settings.decay,
        "answers": settings.prompts * settings.group,  # a step
        "curve": curve,
    }


def on_the_panel(bias: float, seed: int) -> dict:
    """What the base with this bias does on the held-out panel, one sample a puzzle."""
    model, tokenizer = biased()
    model.bias[...] = jnp.full(1, bias)
    panel = held_out_panel(Countdown(), SCALAR)
    return {"bias": bias} | measured(model, tokenizer, panel, seed)


def fill(row: dict, save) -> None:
    """Measure what the row of a seed lacks."""
    seed = row["seed"]
    if "trained" not in row:
        row["trained"] = trained(seed)
        save()
    if "held_out" not in row:
        last = row["trained"]["curve"][-1]["bias"]
        row["held_out"] = on_the_panel(last, seed)
        save()
    if "by_hand" not in row:
        row["by_hand"] = [on_the_panel(bias, seed) for bias in BY_HAND]
        save()


def main() -> None:
    devices.compilation_cache()
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []

    def save() -> None:
        lines = ",\n".join(map(json.dumps, rows))  # a line a seed
        folder.write(RECORD, f"[\n{lines}\n]\n")

    for seed in SEEDS:
        row = next((row for row in rows if row["seed"] == seed), None)
        if row is None:
            row = {"seed": seed}
            rows.append(row)
        fill(row, save)
    table(rows)


def table(rows: list[dict]) -> None:
    """Bias, accuracy, backtracks and tokens of each seed, by GRPO and by hand."""
    for row in rows:
        for who, found in [("GRPO", row["held_out"]), *(("hand", x) for x in row["by_hand"])]:
            figures = " ".join(f"{found[k]:8.3f}" for k in ("accuracy", "backtracks", "length"))
            print(f"seed {row['seed']} {who} {found['bias']:7.2f} {figures}")


if __name__ == "__main__":
    main()
