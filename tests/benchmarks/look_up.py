"""A tool found by reward alone, and the controls that say why: runs of the task *look it up*.

`python tests/benchmarks/look_up.py OUT` trains the shipped base with the tool, with one that never
knows anything, with one that tells facts of another world, with a price on every call; and a base
that has never seen a call, which it pre-trains; three seeds each. It goes on where it was stopped.
Each finished run is a row of look_up.json beside this file; the table is printed.
"""

import argparse
import dataclasses
import json
from contextlib import closing
from pathlib import Path

from aha_lib import devices
from aha_lib.look import record
from aha_lib.presets import PRETRAINING, SETTINGS, Settings
from aha_lib.run import folder, pretrain, train
from aha_lib.tasks.look_up import LookUp

RECORD = Path(__file__).with_suffix(".json")
SEEDS = 0, 1, 2
PRICES = 0.02, 0.05, 0.1, 0.2, 0.4
WITHOUT = "look-up-no-asking"  # a preset of pre-training
CASES = {
    "tool": LookUp(),
    "empty tool": LookUp(empty=True),
    "facts of another world": LookUp(elsewhere=True),
    "no asking in the corpus": LookUp(),
    **{f"a call costs {price}": LookUp(price=price) for price in PRICES},
}
KEPT = "right", "calls", "length", "accuracy_1", "accuracy_2", "accuracy_3", "again"
TEXTS = 16  # answers to the first held-out questions, before and after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of bases and runs")
    out = parser.parse_args().out
    devices.compilation_cache()
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for case, task in CASES.items():
        for seed in SEEDS:
            if any((row["case"], row["seed"]) == (case, seed) for row in rows):
                continue
            settings = dataclasses.replace(SETTINGS["look-up"], seed=seed)
            if case == "no asking in the corpus":
                settings = dataclasses.replace(settings, model=str(base_without(out)))
            got = trained(settings, task, out / case.replace(" ", "_") / str(seed))
            rows.append({"case": case, "seed": seed, "price": task.price} | got)
            lines = ",\n".join(map(json.dumps, rows))  # a line a run
            folder.write(RECORD, f"[\n{lines}\n]\n")
    table(rows)


def base_without(out: Path) -> Path:
    """The base that has never seen a call, trained where it is not there yet."""
    base = out / WITHOUT
    if not pretrain.is_finished(base):
        with closing(pretrain.pretrain(PRETRAINING[WITHOUT], base)) as run:
            for _ in run:
                pass
    return base


def trained(settings: Settings, task: LookUp, out: Path) -> dict:
    """Run GRPO, or go on with it; the held-out figures of its evaluations, and some texts."""
    with closing(train.train(settings, out, task)) as run:
        for _ in run:
            pass
    run = record.read(out)
    # Where nothing is asked, no reply is beside the point: then there is no share of them.
    curves = {name: [row.get(f"heldout_{name}") for row in run.measured] for name in KEPT}
    return {
        "evaluated": [row["step"] for row in run.measured],
        **curves,
        "styles": [row["styles"] for row in run.measured],
        "outcomes": [row["outcomes"] for row in run.measured],
        "texts": [run.kept[i]["sampled"][:TEXTS] for i in (0, -1)],
        "seconds": sum(row["sample_seconds"] + row["update_seconds"] for row in run.rows[1:]),
    }


def table(rows: list[dict]) -> None:
    print(f"{'case':<26}{'seed':>5}" + "".join(f"{name:>18}" for name in KEPT))
    for row in rows:
        ends = (f"{number(row[name][0])} -> {number(row[name][-1])}" for name in KEPT)
        print(f"{row['case']:<26}{row['seed']:>5}" + "".join(f"{end:>18}" for end in ends))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
