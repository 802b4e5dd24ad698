"""What a run spends on anything but sampling and updating, as a share of its time.

    python tests/benchmarks/overhead.py --steps 60

Saving (what the loop waits for), logging, rewards, and a dashboard over the same folder that draws
every five seconds, as `dashboard.watch` does in another process. Evaluations and the first five
steps, which compile, are left out.
"""

import argparse
import dataclasses
import io
import tempfile
import time
from collections import Counter
from pathlib import Path

from aha_lib import checkpoints, dashboard, session, show, train
from aha_lib.presets import SETTINGS

PARTS = {"save": "saving", "append": "logging", "say": "logging"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    settings = dataclasses.replace(SETTINGS["tiny"], steps=steps, eval_every=steps)
    spent = Counter()

    def timed(function, part):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    for name, part in PARTS.items():
        setattr(checkpoints, name, timed(getattr(checkpoints, name), part))
    for name in ("any_host", "signs"):
        setattr(session, name, timed(getattr(session, name), "logging"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for row in train.train(settings, out):
            if row["step"] == 5:
                spent.clear()
                began = time.perf_counter()
            if row["step"] == steps - 1:
                whole = time.perf_counter() - began
                break
            spent["rewards"] += row.get("reward_seconds", 0.0)
        began = time.perf_counter()
        rows = train.read_rows(out / "metrics.jsonl")
        show.curve(rows, panels=9).savefig(io.BytesIO(), format="png")
        dashboard.state(out), dashboard.newest(out)
        spent["dashboard"] = (time.perf_counter() - began) * whole / 5
    spent["together"] = sum(spent.values())
    for part, seconds in spent.items():
        print(f"{part:<10} {seconds:7.2f} s  {seconds / whole:6.2%}")
    print(f"of         {whole:7.2f} s for {steps - 6} steps")


if __name__ == "__main__":
    main()
