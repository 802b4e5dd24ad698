"""A run watched by its folder, wherever it goes on; its end asked for; its model put to the test.

For notebooks, and for a terminal: `aha watch runs/tiny`. Knows nothing of how a run is trained;
reads the files that it leaves, and leaves it the file `stop`.
"""

import io
import re
import threading
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import ipywidgets as widgets
import jax
from IPython.display import HTML

from aha_lib.look import record, show
from aha_lib.presets import Pretraining, Settings
from aha_lib.run import cli, cold_start, folder, pretrain, session
from aha_lib.tasks import countdown
from aha_lib.tasks import task as tasks
from aha_lib.tasks.rollout import Policy, held_out_panel, rollout
from aha_lib.tasks.task import Countdown


def state(out: Path, dollars: float = 0.0) -> tuple[str, bool]:
    """How far the run in a folder is, in a line, and whether it is over: finished or stopped.

    `dollars` is the machine's price an hour. Changes nothing. Raises ValueError, with the file and
    the line, where the run's files are damaged.
    """
    held = folder.is_held(out)  # first: what a dead run's files say stays so
    stopped = folder.why_stopped(out)
    if stopped:
        return stopped, True
    supervised = _supervised_folder(out)
    if supervised:
        return _supervised_state(supervised, held, dollars)
    if not (out / "settings.json").exists():
        begins = "A run begins here" if held else f"No run in {out} yet"
        return f"{begins}: there is nothing to see before its first step.", False
    run = record.read(out)
    rows, steps = run.rows, run.settings.steps
    last = rows[-1]["step"] if rows else -1
    measured = run.measured
    accuracy = f"; held-out accuracy {measured[-1]['heldout_accuracy']:.3f}" if measured else ""
    if last >= steps:
        saving = ", saving" if held else ""
        return f"finished: step {last} of {steps}{saving}{accuracy}", not saving
    left = session.estimate_time_left(rows, steps, dollars)
    return _on_its_way(f"step {last} of {steps}", held, left, accuracy)


def _supervised_folder(out: Path) -> Path | None:
    """Where supervised training is what a folder's run is at; None where that is GRPO.

    `base` in the folder of a run that is at its cold start, or a folder of `aha pretrain`.
    """
    if cold_start.is_going_on(out):
        return cold_start.base_of(out)
    file = out / "settings.json"
    is_supervised = file.exists() and "row_len" in folder.read_json(file)
    return out if is_supervised else None


def _supervised_state(out: Path, held: bool | None, dollars: float) -> tuple[str, bool]:
    """As `state`, of supervised training in `out`, in whose run's folder somebody is at work."""
    rows = folder.read_rows(out / "metrics.jsonl")
    steps = folder.read_settings(out, Pretraining).steps
    last = rows[-1]["step"] if rows else 0
    loss = f"; loss {rows[-1]['loss']:.3f}" if rows else ""
    if pretrain.is_finished(out):
        return f"finished: supervised step {last} of {steps}{loss}", True
    left = session.estimate_time_left(rows, steps, dollars)
    return _on_its_way(f"supervised step {last} of {steps}", held, left, loss)


def _on_its_way(where: str, held: bool | None, left: str, note: str) -> tuple[str, bool]:
    """As `state`, of training that is not finished; `note` is how well it does."""
    if held is False:
        return (
            f"stopped without a word (killed?) at {where}: the same command goes on from its last "
            f"checkpoint{note}",
            True,
        )
    return f"{where}, {left}{note}", False


def newest(out: Path, count: int = 3) -> str:
    """HTML of the last evaluation's first completions beside those of the base.

    Countdown's sums are coloured; those of another task have their rewards.
    """
    run = record.read(out)
    if not run.kept:
        return ""
    try:
        task = tasks.load(run.settings)
    except ValueError as error:  # one that was made in another notebook
        return escape(f"The completions cannot be shown: {error}")
    ends = [run.kept[0], run.kept[-1]]
    views = []
    for i, puzzle in enumerate(held_out_panel(task, run.settings)[:count]):
        completions = {f"step {row['step']}": row["sampled"][i] for row in ends}
        views.append(show.answers(task, puzzle, completions).data)
    return "<br>".join(views)


def figures(out: Path) -> tuple[bytes, str]:
    """The run's curves as a PNG, and its newest completions as HTML; of a cold start its loss."""
    drawn = io.BytesIO()
    supervised = _supervised_folder(out)
    if supervised:
        show.losses(folder.read_rows(supervised / "metrics.jsonl")).savefig(drawn, format="png")
        return drawn.getvalue(), ""
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
    seen = _Watched(Path(out), dollars)
    threading.Thread(target=seen.follow, args=(seconds, share), daemon=True).start()
    return seen.box


class _Watched:
    """The widgets of `watch`."""

    def __init__(self, out: Path, dollars: float):
        self.out = out
        self.dollars = dollars
        self.over = False
        self.button = widgets.Button(description="Stop", icon="stop")
        self.line = widgets.Label()
        self.picture = widgets.Image(format="png")
        self.completions = widgets.HTML()
        self.button.on_click(self.ask_to_stop)

    @property
    def box(self) -> widgets.Widget:
        return widgets.VBox(
            [widgets.HBox([self.button, self.line]), self.picture, self.completions]
        )

    def has_rows(self) -> bool:
        """Whether there is something to draw."""
        seen = _supervised_folder(self.out) or self.out
        return (seen / "metrics.jsonl").exists()

    def ask_to_stop(self, _) -> None:
        try:
            (self.out / "stop").touch()
        except OSError as error:  # the folder is not there yet, or may not be written
            self.line.value = f"The run cannot be asked to stop: {error.strerror}."
        else:
            self.button.description = "Stopping …"

    def follow(self, seconds: float, share: float) -> None:
        """Renew the line every so many seconds, and the figures when they are due."""
        due = 0.0
        while not self.over:
            try:
                self.line.value, self.over = state(self.out, self.dollars)
                began = time.monotonic()
                is_time = self.over or began >= due
                if is_time and self.has_rows():
                    self.picture.value, self.completions.value = figures(self.out)
                    took = time.monotonic() - began
                    due = began + took / share
            except Exception as error:  # nobody sees how a thread ends: say it, and look again
                self.line.value = f"{type(error).__name__}: {error}"
            time.sleep(0 if self.over else seconds)
        self.button.disabled = True


def answer(model, tokenizer, settings: Settings, text: str) -> HTML:
    """What a model writes for the puzzle `20 16 4 = 40`, greedily, its sums coloured.

    ValueError for a text that is no puzzle, or too long a one.
    """
    puzzle = read_puzzle(text)
    policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
    out = rollout(policy, [puzzle], jax.random.key(0), group=1, temperature=0.0)
    return show.side_by_side(puzzle, {"answer": out.texts[0]})


def read_puzzle(text: str) -> countdown.Puzzle:
    """The puzzle `20 16 4 = 40`; ValueError for a text that is none."""
    found = [int(digits) for digits in re.findall(r"\d+", text)]
    if len(found) < 3:
        raise ValueError("A puzzle is some numbers and a target: 20 16 4 = 40")
    *numbers, target = found
    return countdown.Puzzle(tuple(numbers), target)


def main(argv: Sequence[str] | None = None) -> None:
    """Print how far a run is, or ask it to stop."""
    parser = cli.Parser(prog="aha watch", description="How far is a run?")
    parser.add_argument("out", type=Path, help="the run's folder")
    parser.add_argument("--stop", action="store_true", help="after the step, which is saved")
    args = parser.parse_args(argv)
    begun = (args.out / "settings.json").exists() or cold_start.is_going_on(args.out)
    if not begun and not folder.is_held(args.out):
        parser.exit(2, f"{args.out} holds no run.\n")
    try:
        line, over = state(args.out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    if args.stop and over:
        line = f"There is nothing to stop. {line}"
    elif args.stop:
        (args.out / "stop").touch()
    print(line)


if __name__ == "__main__":
    main()
