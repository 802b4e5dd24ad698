"""A run watched by its folder, wherever it goes on; its end asked for; its model put to the test.

For notebooks, and for a terminal: `python -m aha_lib.look.dashboard runs/tiny`. Knows nothing of
how
a run is trained; reads the files that it leaves, and leaves it the file `stop`.
"""

import argparse
import io
import re
import threading
import time
from pathlib import Path

import ipywidgets as widgets
import jax
from IPython.display import HTML

from aha_lib.look import record, show
from aha_lib.presets import Settings
from aha_lib.run import session
from aha_lib.tasks import countdown
from aha_lib.tasks.rollout import Policy, rollout
from aha_lib.tasks.task import Countdown


def state(out: Path, dollars: float = 0.0) -> tuple[str, bool]:
    """How far the run in a folder is, in a line, and whether it is over: finished or stopped.

    `dollars` is the machine's price an hour.
    """
    run = record.read(out)
    rows, steps = run.rows, run.settings.steps
    if (out / "stopped.txt").exists():
        return (out / "stopped.txt").read_text().strip(), True
    line = f"step {len(rows) - 1} of {steps}, {session.outlook(rows, steps, dollars)}"
    for row in run.measured[-1:]:
        line += f"; held-out accuracy {row['heldout_accuracy']:.3f}"
    return line, len(rows) > steps


def newest(out: Path, count: int = 3) -> str:
    """HTML of the last evaluation's first completions beside those of the base, sums coloured."""
    run = record.read(out)
    ends = run.kept[:1] + run.kept[-1:]
    views = [
        show.side_by_side(puzzle, {f"step {row['step']}": row["sampled"][i] for row in ends})
        for i, puzzle in enumerate(run.panel[: count * bool(ends)])
    ]
    return "<br>".join(view.data for view in views)


def figures(out: Path) -> tuple[bytes, str]:
    """The run's curves as a PNG, and its newest completions as HTML."""
    drawn = io.BytesIO()
    show.curve(record.read(out).rows, panels=9).savefig(drawn, format="png")
    return drawn.getvalue(), newest(out)


def watch(
    out: str | Path, *, seconds: float = 5.0, share: float = 0.02, dollars: float = 0.0
) -> widgets.Widget:
    """Figures, newest completions and a stop button of a run, until the run is over.

    A line is renewed every few seconds, the figures as often as takes a `share` of a core's time.
    From a thread: the cell is done at once, so that the button answers. The run saves the step
    that it is at, and stops; the same command goes on from there.
    """
    out, picture, completions = Path(out), widgets.Image(format="png"), widgets.HTML()
    line, button = widgets.Label(), widgets.Button(description="Stop", icon="stop")

    def ask(_) -> None:
        (out / "stop").touch()
        button.description = "Stopping …"

    def follow() -> None:
        over, due = False, 0.0
        while not over:
            line.value, over = state(out, dollars)
            began = time.monotonic()
            if over or began >= due:
                picture.value, completions.value = figures(out)
                due = began + (time.monotonic() - began) / share
            time.sleep(0 if over else seconds)
        button.disabled = True

    button.on_click(ask)
    threading.Thread(target=follow, daemon=True).start()
    return widgets.VBox([widgets.HBox([button, line]), picture, completions])


def answer(model, tokenizer, settings: Settings, text: str) -> HTML:
    """What a model writes for the puzzle `20 16 4 = 40`, greedily, its sums coloured.

    ValueError for a text that is no puzzle, or too long a one.
    """
    *numbers, target = map(int, re.findall(r"\d+", text) or [0])
    if len(numbers) < 2:
        raise ValueError("A puzzle is some numbers and a target: 20 16 4 = 40")
    puzzle = countdown.Puzzle(tuple(numbers), target)
    policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
    out = rollout(policy, [puzzle], jax.random.key(0), group=1, temperature=0.0)
    return show.side_by_side(puzzle, {"answer": out.texts[0]})


def main() -> None:
    """Print how far a run is, or ask it to stop."""
    parser = argparse.ArgumentParser(description="How far is a run?")
    parser.add_argument("out", type=Path, help="the run's folder")
    parser.add_argument("--stop", action="store_true", help="after the step, which is saved")
    args = parser.parse_args()
    if not (args.out / "settings.json").exists():
        parser.exit(2, f"{args.out} holds no run.\n")
    if args.stop:
        (args.out / "stop").touch()
    print(state(args.out)[0])


if __name__ == "__main__":
    main()
