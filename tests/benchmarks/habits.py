"""Where the searching comes from: one reward, tiny bases that differ in nothing but their habits.

`python tests/benchmarks/habits.py OUT` pre-trains a base without searches in its corpus, and one
without searches and checks (presets of `aha_lib.run.pretrain`; seed, sizes, steps and drills are
the same), then trains the shipped base and these two by the main run's GRPO, three seeds each. It
goes on where it was stopped. Each finished run is a row of habits.json beside this file; the table
is printed.
"""

import argparse
import dataclasses
import json
from contextlib import closing
from pathlib import Path

from aha_lib import devices
from aha_lib.look import record
from aha_lib.presets import PRETRAINING, SETTINGS
from aha_lib.run import folder, pretrain, train

RECORD = Path(__file__).with_suffix(".json")
SEEDS = 0, 1, 2
BASES = "tiny", "tiny-no-search", "tiny-jumps"  # presets of their pre-training
KEPT = "accuracy", "greedy", "length", "backtracks"
TEXTS = 16  # answers to the first held-out puzzles, before and after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of bases and runs")
    parser.add_argument("--steps", type=int, default=SETTINGS["tiny"].steps)
    chosen = parser.parse_args()
    devices.compilation_cache()
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for base in BASES:
        here = [row for row in rows if (row["base"], row["steps"]) == (base, chosen.steps)]
        missing = sorted(set(SEEDS) - {row["seed"] for row in here})
        model = base if base == "tiny" else str(chosen.out / base / "base")
        if missing and base != "tiny":  # that one is shipped
            with closing(pretrain.pretrain(PRETRAINING[base], model)) as run:
                for _ in run:
                    pass
        for seed in missing:
            changes = dict(model=model, seed=seed, steps=chosen.steps)
            got = trained(
                dataclasses.replace(SETTINGS["tiny"], **changes), chosen.out / base / str(seed)
            )
            rows.append({"base": base, "seed": seed, "steps": chosen.steps} | got)
            lines = ",\n".join(map(json.dumps, rows))  # a line a run
            folder.write(RECORD, f"[\n{lines}\n]\n")
    table(rows)


def trained(settings, out: Path) -> dict:
    """Run GRPO, or go on with it; the held-out figures of its evaluations, and some texts."""
    with closing(train.train(settings, out)) as run:
        for _ in run:
            pass
    run = record.read(out)
    curves = {name: [row[f"heldout_{name}"] for row in run.measured] for name in KEPT}
    return {
        "evaluated": [row["step"] for row in run.measured],
        **curves,
        "styles": [row["styles"] for row in run.measured],
        "outcomes": [row["outcomes"] for row in run.measured],
        "texts": [run.kept[i]["sampled"][:TEXTS] for i in (0, -1)],
    }


def table(rows: list[dict]) -> None:
    print(f"{'base':<22}{'seed':>5}" + "".join(f"{name:>18}" for name in KEPT))
    for row in rows:
        ends = (f"{row[name][0]:.3f} -> {row[name][-1]:.3f}" for name in KEPT)
        print(f"{row['base']:<22}{row['seed']:>5}" + "".join(f"{end:>18}" for end in ends))


if __name__ == "__main__":
    main()
