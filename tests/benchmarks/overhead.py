"""What a run spends on anything but sampling and updating, as a share of its time.

    python tests/benchmarks/overhead.py --steps 60

Saving (what the loop waits for), logging, rewards, and a dashboard over the same folder, a line
every five seconds and figures for its share of the time, as `dashboard.watch` has them in another
process; evaluations by themselves. The first steps, which compile, are left out; what evaluations
compile was compiled by a run before. Taking traces apart goes on while the model learns: here only
the waiting for it would show.
"""

import argparse
import dataclasses
import inspect
import tempfile
import time
from collections import Counter
from pathlib import Path

from aha_lib.look import dashboard
from aha_lib.presets import SETTINGS
from aha_lib.run import checkpoints, folder, session, train

PARTS = {
    (checkpoints, "save"): "saving",
    (folder, "append"): "logging",
    (folder, "log"): "logging",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    settings, spent = dataclasses.replace(SETTINGS["tiny"], steps=steps), Counter()
    with tempfile.TemporaryDirectory() as folder:  # so that evaluations compile nothing below
        for _ in train.train(settings, folder):
            pass

    def timed(function, part):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    for (module, name), part in PARTS.items():
        setattr(module, name, timed(getattr(module, name), part))
    for name in ("any_host", "warnings"):
        setattr(session, name, timed(getattr(session, name), "logging"))
    train.evaluate = timed(train.evaluate, "evaluations")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for row in train.train(settings, out):
            if row["step"] == 5:
                spent.clear()
                began = time.perf_counter()
            if row["step"] == steps - 1:
                measured = spent.pop("evaluations", 0.0)
                whole = time.perf_counter() - began - measured
                break
            spent["rewards"] += row.get("reward_seconds", 0.0)
        began = time.perf_counter()
        dashboard.state(out)
        lines = time.perf_counter() - began
        dashboard.figures(out)
        drawn = time.perf_counter() - began - lines
        share = inspect.signature(dashboard.watch).parameters["share"].default
        spent["dashboard"] = lines * whole / 5 + share * whole
        print(f"a line takes {lines:.3f} s, figures {drawn:.3f} s: every {drawn / share:.0f} s")
    spent["together"] = sum(spent.values())
    for part, seconds in spent.items():
        print(f"{part:<10} {seconds:7.2f} s  {seconds / whole:6.2%}")
    print(f"of         {whole:7.2f} s for {steps - 6} steps")
    of_all = measured / (whole + measured)
    print(f"and {measured:.2f} s of evaluations beside them, {of_all:.2%} of all")


if __name__ == "__main__":
    main()
