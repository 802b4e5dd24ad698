"""Where the searching comes from: one reward, tiny bases that differ in nothing but their habits.

`python tests/benchmarks/habits.py OUT` pre-trains a base without searches in its corpus, and one
without searches and checks (their share goes to jumps; seed, sizes, steps and drills stay), then
trains the shipped base and these two by the main run's GRPO, three seeds each. It goes on where it
was stopped. Each finished run is a row of habits.json beside this file; the table is printed.
"""

import argparse
import dataclasses
import json
from contextlib import closing
from pathlib import Path

from aha_lib import checkpoints, pretrain, runtime, train
from aha_lib.presets import PRETRAINING, SETTINGS

RECORD = Path(__file__).with_suffix(".json")
SEEDS = 0, 1, 2
TINY = PRETRAINING["tiny"]
BASES = {
    "jump, check, search": TINY,
    "jump, check": dataclasses.replace(TINY, jump=TINY.jump + TINY.search, search=0.0),
    "jump": dataclasses.replace(
        TINY, jump=TINY.jump + TINY.check + TINY.search, check=0.0, search=0.0
    ),
}
KEPT = "accuracy", "greedy", "length", "backtracks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of bases and runs")
    parser.add_argument("--steps", type=int, default=SETTINGS["tiny"].steps)
    chosen = parser.parse_args()
    runtime.compilation_cache()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for habits, settings in BASES.items():
        model = "tiny"  # the shipped base
        if settings != TINY:
            model = str(chosen.out / "bases" / habits.replace(", ", "_"))
            with closing(pretrain.pretrain(settings, model)) as run:
                for _ in run:
                    pass
        for seed in SEEDS:
            key = {"habits": habits, "seed": seed, "steps": chosen.steps}
            if not any(key.items() <= row.items() for row in record):
                changes = dict(model=model, seed=seed, steps=chosen.steps)
                record.append(key | trained(dataclasses.replace(SETTINGS["tiny"], **changes),
                                            chosen.out / habits / str(seed)))  # fmt: skip
                checkpoints.write(RECORD, json.dumps(record, indent=1) + "\n")
    table(record)


def trained(settings, out: Path) -> dict:
    """Run GRPO, or go on with it; the held-out figures of its evaluations."""
    with closing(train.train(settings, out)) as run:
        for _ in run:
            pass
    rows = [r for r in checkpoints.read_rows(out / "metrics.jsonl") if "heldout_accuracy" in r]
    curves = {name: [row[f"heldout_{name}"] for row in rows] for name in KEPT}
    return {"evaluated": [row["step"] for row in rows], **curves,
            "styles": [row["styles"] for row in rows],
            "outcomes": [row["outcomes"] for row in rows]}  # fmt: skip


def table(record: list[dict]) -> None:
    print(f"{'base':<22}{'seed':>5}" + "".join(f"{name:>18}" for name in KEPT))
    for row in record:
        ends = (f"{row[name][0]:.3f} -> {row[name][-1]:.3f}" for name in KEPT)
        print(f"{row['habits']:<22}{row['seed']:>5}" + "".join(f"{end:>18}" for end in ends))


if __name__ == "__main__":
    main()
