"""What a run looked like: its curve, a live dashboard, and its traces taken apart, to look at.

Functions of rows of metrics, of counts and of completions; they give a Matplotlib figure, HTML or
Markdown. Knows nothing of JAX, models, tokens or files; for notebooks alone.
"""

import functools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from aha_lib.tasks import countdown, traces
from aha_lib.tasks.task import Task, who_wrote

# Which puzzles the explorer lists: of the traces at the first and at the second checkpoint chosen.
FILTERS = {
    "all puzzles": lambda before, after: True,
    "solved after but not before": lambda before, after: after.right and not before.right,
    "solved before but not after": lambda before, after: before.right and not after.right,
    "found then abandoned": lambda before, after: after.found_then_abandoned,
    "a false sum": lambda before, after: after.slips > 0,
}
EVERY_TASKS = [*FILTERS][:3]  # those that ask no more than whether an answer is right
BLUE = "#2f6db3"
ORANGE = "#e08e2b"
GREY = "#8a8f98"
# Blue and red can be told apart by the colour-blind too, green and red cannot.
RIGHT = BLUE
WRONG = "#c2303f"
# Of lines and bars, in this order in every notebook: the palette of Okabe and Ito, which the
# colour-blind can tell apart too (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#333333", "#BBBBBB")
plt.rc("axes", prop_cycle=plt.cycler(color=COLOURS))


@dataclass(frozen=True)
class Line:
    """A line of a panel: what it is called in a row of metrics, and how it is drawn."""

    name: str
    label: str
    colour: str
    thin: bool = False  # for what has a value at every step, and jumps about


@dataclass(frozen=True)
class Panel:
    """One of the axes of `curve`; its main line, the first, is compared with the base."""

    title: str
    lines: tuple[Line, ...]


def _training(name: str) -> Line:
    return Line(name, "training", GREY, thin=True)


def _with_held_out(title: str, name: str) -> Panel:
    """What is measured in training and, under another name, on the held-out puzzles."""
    return Panel(title, (Line(f"heldout_{name}", "held-out", BLUE), _training(name)))


ACCURACY = Panel(
    "Accuracy on held-out puzzles",
    (Line("heldout_accuracy", "sampled", BLUE), Line("heldout_greedy", "greedy", ORANGE)),
)
LENGTH = _with_held_out("Tokens in a response", "length")
BACKTRACKS = _with_held_out("Further attempts in a response", "backtracks")
LATER_PANELS = (
    Panel("Entropy of the next token, nats", (_training("entropy"),)),
    Panel("Mean reward", (_training("reward"),)),
    Panel("Groups without signal", (_training("zero_variance_groups"),)),
    Panel("KL divergence from the base, nats", (_training("kl"),)),
    Panel("Clipped tokens, share", (_training("clip_fraction"),)),
    Panel(
        "Tokens per second",
        (
            Line("sample_tokens_per_second", "sampling", BLUE),
            Line("update_tokens_per_second", "update", ORANGE),
        ),
    ),
)


def curve(*runs: Sequence[dict], panels: int = 3) -> Figure:
    """Accuracy, response length and further attempts over the steps of one run, or more.

    Another task than Countdown has its own measures, if any, in the place of the attempts.

    Args:
      runs: rows of metrics as `train.train` yields them. Of several runs each has a thin line and
        their mean a thick one; the dotted line is what the base does (step 0, held-out puzzles).
      panels: 4 adds the entropy, 9 reward, groups without signal, KL, clipping and speed, in
        rows of three.
    """
    columns = 3 if panels > 4 else panels
    lines = math.ceil(panels / columns)
    size = (3.7 * columns, 3.1 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    chosen = [ACCURACY, LENGTH, *_own_panels(runs), *LATER_PANELS][:panels]
    for axis, panel in zip(axes.flat, chosen, strict=False):
        _draw_panel(axis, panel, runs)
    for axis in axes.flat[len(chosen) :]:
        axis.set_axis_off()
    plt.close(figure)  # shown by whoever asked for it, not once more at the end of the cell
    return figure


def _own_panels(runs: Sequence[Sequence[dict]]) -> list[Panel]:
    """A panel for each of the task's own measures; before any is measured, Countdown's."""
    names = {}  # in the order in which the rows have them
    for rows in runs:
        for row in rows:
            names |= dict.fromkeys(row)
    if "heldout_accuracy" not in names:
        return [BACKTRACKS]
    every_task_s = {line.name for panel in (ACCURACY, LENGTH) for line in panel.lines}
    own = [name for name in names if name.startswith("heldout_") and name not in every_task_s]
    found = []
    for name in own:
        measure = name.removeprefix("heldout_")
        title = measure.replace("_", " ").capitalize()
        is_known = measure == "backtracks"
        found.append(BACKTRACKS if is_known else _with_held_out(title, measure))
    return found


def _draw_panel(axis, panel: Panel, runs: Sequence[Sequence[dict]]) -> None:
    for line in reversed(panel.lines):  # the main one last, and so on top
        drawn = [_steps_and_values(rows, line.name) for rows in runs]
        if not any(steps for steps, _ in drawn):
            continue
        if len(runs) > 1:
            _draw_seeds(axis, line, drawn)
        else:
            _draw_one(axis, line, *drawn[0])
    _draw_base(axis, [_steps_and_values(rows, panel.lines[0].name) for rows in runs])
    axis.set_title(panel.title, loc="left", fontsize=11)
    axis.set_xlabel("GRPO step")
    axis.set_ylim(0, 1.03 if panel is ACCURACY else None)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))


def _draw_one(axis, line: Line, steps: list, values: list) -> None:
    """The line of a single run, with a dot at each evaluation."""
    if line.thin:
        axis.plot(steps, values, color=line.colour, lw=0.8, alpha=0.7, label=line.label)
    else:
        axis.plot(steps, values, color=line.colour, lw=2, marker="o", ms=4, label=line.label)


def _draw_seeds(axis, line: Line, drawn: Sequence[tuple[list, list]]) -> None:
    """A faint line for each run, and their mean over the steps that all of them have."""
    for steps, values in drawn:
        axis.plot(steps, values, color=line.colour, lw=0.8, alpha=0.4)
    value_at = [dict(zip(steps, values, strict=True)) for steps, values in drawn]
    shared = sorted(set.intersection(*map(set, value_at)))
    mean = [np.mean([values[step] for values in value_at]) for step in shared]
    label = f"{line.label}, mean of {len(drawn)} seeds"
    axis.plot(shared, mean, color=line.colour, lw=1.2 if line.thin else 2.4, label=label)


def _draw_base(axis, drawn: Sequence[tuple[list, list]]) -> None:
    """A dotted level where the runs began, if they were measured at step 0."""
    base = [values[0] for steps, values in drawn if steps and steps[0] == 0]
    if base:
        axis.axhline(np.mean(base), color="black", lw=1, ls=":", label="base, step 0")


def _steps_and_values(rows: Sequence[dict], name: str) -> tuple[list, list]:
    """The steps whose rows have a value of that name, and these values."""
    has = [row for row in rows if name in row]
    return [row["step"] for row in has], [row[name] for row in has]


def cycle(stations: Sequence[tuple[str, str, str]], back: str) -> Figure:
    """A loop as a row of boxes: of each station its name, an example, and its notebook's number.

    `back` stands at the arrow that leads from the last station to the first.
    """
    figure, axis = plt.subplots(figsize=(9, 2.1), layout="constrained")
    last = len(stations) - 1
    forth = dict(arrowstyle="->", color="C0")
    for at, (name, example, notebook) in enumerate(stations):
        axis.text(
            at,
            0,
            f"{name}\n{example}",
            ha="center",
            va="center",
            fontsize=9,
            bbox=dict(boxstyle="round,pad=0.5", fc="white", ec="C0"),
        )
        axis.text(at, -0.62, f"notebook {notebook}", ha="center", fontsize=7)
        if at < last:
            axis.annotate("", (at + 0.58, 0), (at + 0.42, 0), arrowprops=forth)
    round_again = forth | {"connectionstyle": "arc3,rad=0.12"}
    axis.annotate("", (0, 0.4), (last, 0.4), arrowprops=round_again)
    axis.text(last / 2, 1.1, back, ha="center", fontsize=8)
    axis.set(xlim=(-0.6, last + 0.6), ylim=(-0.8, 1.4))
    axis.axis("off")
    plt.close(figure)
    return figure


def watch(run: Iterable[dict], before: Iterable[dict] = (), *, seconds: float = 3.0) -> list[dict]:
    """Follow a run with a figure that is drawn anew at most every few seconds; gives GRPO's rows.

    While a cold start goes on the figure is its loss. `before` are the rows that the run's folder
    already had: a resumed run overwrites some.
    """
    cold: dict[int, dict] = {}
    rows: dict[int, dict] = {}

    def keep(row: dict) -> None:
        phase = cold if is_of_cold_start(row) else rows
        phase[row["step"]] = row

    def drawing() -> Figure:
        if cold and not rows:
            return losses([*cold.values()])
        return curve([*rows.values()], panels=4)

    for row in before:
        keep(row)
    handle = display(Markdown("Compiling …"), display_id=True)
    drawn = 0.0
    for row in run:
        keep(row)
        if time.monotonic() - drawn > seconds:
            handle.update(drawing())
            drawn = time.monotonic()
    handle.update(drawing())
    return [*rows.values()]


def is_of_cold_start(row: dict) -> bool:
    """Whether a row is one of supervised training before GRPO, as `train.train` yields it."""
    return row.get("phase") == "cold start"


def losses(rows: Sequence[dict]) -> Figure:
    """The loss of supervised training over its steps: thin, and its mean over the last ten steps.

    `rows` have "step" and "loss", in nats.
    """
    steps, values = _steps_and_values(rows, "loss")
    means = [np.mean(values[max(0, at - 9) : at + 1]) for at in range(len(values))]
    figure, axis = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    axis.plot(steps, values, color=GREY, lw=0.8, alpha=0.7, label="each step")
    axis.plot(steps, means, color=BLUE, lw=2, label="mean of the last ten")
    axis.set_title("Cold start: loss of the next token, nats", loc="left", fontsize=11)
    axis.set(xlabel="supervised step", ylim=(0, None))
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    plt.close(figure)
    return figure


def table(header: Sequence[str], rows: Iterable[Sequence]) -> Markdown:
    """A Markdown table; floats are written with three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join(_table_line(line) for line in lines))


def _table_line(values: Sequence) -> str:
    cells = []
    for value in values:
        # Adding 0 turns -0.0 into 0.0.
        cells.append(f"{value + 0.0:.3g}" if isinstance(value, float) else str(value))
    return f"| {' | '.join(cells)} |"


def shares(counts: dict[str, int], order: Sequence[str]) -> list[float]:
    """The share of each name of `order` in the counts; names that do not occur have 0."""
    return [counts.get(name, 0) / sum(counts.values()) for name in order]


def against_rule(
    runs: dict[str, Sequence[dict]],
    within: dict[str, dict[str, Sequence[float]]],
    rule: Sequence[float],
) -> Figure:
    """Held-out accuracy and length of some runs, and how many attempts their answers need.

    Args:
      runs: by a run's name, its rows of metrics.
      within: by a run's name and by a checkpoint's, the share of the puzzles that are solved
        within one attempt, two, and so on. Dotted the first checkpoint, then dashed, then whole.
      rule: the same shares of the corpus's rule, followed without a mistake.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    counts = range(1, len(rule) + 1)
    for colour, (name, rows) in zip((BLUE, ORANGE), runs.items(), strict=True):
        for axis, measure in zip(axes, ("accuracy", "length"), strict=False):
            steps, values = _steps_and_values(rows, f"heldout_{measure}")
            axis.plot(steps, values, color=colour, marker="o", ms=3, label=name)
        for (checkpoint, shares), style in zip(
            within[name].items(), (":", "--", "-"), strict=False
        ):
            label = f"{name}, {checkpoint}"
            axes[2].plot(counts, shares, color=colour, ls=style, label=label)
    axes[2].plot(counts, rule, color="black", lw=1, label="the rule, no mistake")
    axes[0].set(title="Accuracy on held-out puzzles", xlabel="GRPO step", ylim=(0, 1.03))
    axes[1].set(title="Tokens in a response", xlabel="GRPO step", ylim=(0, None))
    axes[2].set(title="Solved within so many attempts", xlabel="attempts", ylim=(0, 1.03))
    for axis in axes:
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))
    plt.close(figure)
    return figure


def marked(completion: str, puzzle: countdown.Puzzle) -> str:
    """HTML of a completion: each claim blue if true, red if false, its value told on hover."""
    trace = traces.parse(completion, puzzle)
    parts = []
    at = 0  # up to where the text is in the parts
    for claim in trace.claims:
        parts.append(escape(trace.text[at : claim.start]))
        parts.append(_claim_span(trace.text[claim.start : claim.end], claim))
        at = claim.end
    parts.append(escape(trace.text[at:]))
    answer = completion[len(trace.text) :]
    judged = countdown.reward(completion, puzzle)
    colour = RIGHT if trace.right else WRONG
    parts.append(_span(answer, colour, f"the answer {judged.reason}", "bold"))
    return "".join(parts)


def _claim_span(text: str, claim: traces.Claim) -> str:
    if claim.true is None:
        colour = GREY
    else:
        colour = RIGHT if claim.true else WRONG
    return _span(text, colour, f"{claim.expression} is {claim.value}")


def side_by_side(puzzle: countdown.Puzzle, completions: dict[str, str]) -> HTML:
    """A puzzle and completions of it by heading, marked, and judged below."""
    columns = []
    for heading, text in completions.items():
        columns.append((heading, marked(text, puzzle), _verdict(text, puzzle)))
    return _columns(_as_text(puzzle), columns)


def answers(task: Task, puzzle, completions: dict[str, str]) -> HTML:
    """A puzzle of any task and completions of it by heading, each with its reward.

    Countdown's are marked, as `side_by_side` does. What a tool replied is orange.
    """
    if isinstance(puzzle, countdown.Puzzle) and not task.turn_end:
        return side_by_side(puzzle, completions)
    columns = []
    for heading, text in completions.items():
        parts = who_wrote(task, text, puzzle)
        replies = sum(is_reply for _, is_reply in parts)
        note = f"{replies} replies; " if task.turn_end else ""
        judged = f"{note}reward {task.reward(text, puzzle):.3g}"
        columns.append((heading, turns(parts), judged))
    return _columns(task.prompt(puzzle), columns)


def turns(parts: Iterable[tuple[str, bool]]) -> str:
    """HTML of texts, each with whether a tool wrote it: then it is orange."""
    shown = []
    for text, is_reply in parts:
        html = _span(text, ORANGE, "the tool wrote this", "bold") if is_reply else escape(text)
        shown.append(html.replace("\n", "<br>"))
    return "".join(shown)


def _verdict(text: str, puzzle: countdown.Puzzle) -> str:
    """How an attempt ended, what its answer is worth, and how many of its sums are true."""
    trace = traces.parse(text, puzzle)
    truths = [claim.true for claim in trace.claims if claim.true is not None]
    fate = traces.outcome(trace) if trace.answer else "no answer"
    reason = countdown.reward(text, puzzle).reason
    return f"{fate}; it {reason}; {sum(truths)} of {len(truths)} sums true"


def _columns(title: str, columns: Sequence[tuple[str, str, str]]) -> HTML:
    """A table of one row: of each column a heading, HTML, and a small line of text below."""
    style = f"vertical-align:top;text-align:left;padding:4px 12px;width:{95 // len(columns)}%"
    cells = ""
    for heading, body, verdict in columns:
        cells += (
            f'<td style="{style}"><b>{escape(heading)}</b><br>{body}<br>'
            f"<small>{escape(verdict)}</small></td>"
        )
    return HTML(
        '<table style="width:100%;table-layout:fixed;font-family:monospace">'
        f'<caption style="text-align:left"><b>{escape(title)}</b></caption>'
        f"<tr>{cells}</tr></table>"
    )


def select(
    panel, before: Sequence[str], after: Sequence[str], name: str, task: Task | None = None
) -> list[int]:
    """Indices of the panel's puzzles whose two completions pass the filter of that name."""
    passes = FILTERS[name]
    judge = traces.parse if task is None else functools.partial(_Judged.by, task)
    found = []
    for i, (puzzle, earlier, later) in enumerate(zip(panel, before, after, strict=True)):
        if passes(judge(earlier, puzzle), judge(later, puzzle)):
            found.append(i)
    return found


@dataclass(frozen=True)
class _Judged:
    """What the filters ask of a completion of another task than Countdown."""

    right: bool

    @classmethod
    def by(cls, task: Task, text: str, puzzle) -> "_Judged":
        return cls(task.reward(text, puzzle) == 1)


def page(title: str, views: Iterable[HTML]) -> str:
    """A whole HTML page of views, to keep or to send."""
    body = "<hr>".join(view.data for view in views)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<h1>{escape(title)}</h1>{body}</html>\n"
    )


def explorer(panel: Sequence, history: Sequence[dict], task: Task | None = None) -> widgets.Widget:
    """Choose two checkpoints, a filter and a puzzle; see its two completions side by side.

    `history` has a row for each checkpoint: "step", and a list of texts, one for each puzzle of
    the panel, under "sampled" and "greedy". The button writes the list to `traces.html`. Another
    task than Countdown has to be given.
    """
    return _Explorer(panel, history, task).box


class _Explorer:
    """The controls of `explorer` and what they show."""

    def __init__(self, panel: Sequence, history: Sequence[dict], task: Task | None):
        self.panel = panel
        self.task = task
        self.rows = {row["step"]: row for row in history}
        steps = [*self.rows]
        self.kind = widgets.Dropdown(options=["sampled", "greedy"], description="drawn")
        self.first = widgets.Dropdown(options=steps, value=min(steps), description="step")
        self.second = widgets.Dropdown(options=steps, value=max(steps), description="and step")
        filters = [*FILTERS] if task is None else EVERY_TASKS
        self.chosen = widgets.Dropdown(options=filters, description="show")
        self.puzzle = widgets.Dropdown(description="puzzle")
        self.export = widgets.Button(description="Export HTML")
        self.note = widgets.Label()
        self.view = widgets.HTML()
        for control in (self.kind, self.first, self.second, self.chosen):
            control.observe(self.list_puzzles, "value")
        self.puzzle.observe(self.draw, "value")
        self.export.on_click(self.write)
        self.list_puzzles()

    @property
    def box(self) -> widgets.Widget:
        lines = (  # a line has room for three
            widgets.HBox([self.kind, self.first, self.second]),
            widgets.HBox([self.chosen, self.puzzle]),
            widgets.HBox([self.export, self.note]),
        )
        return widgets.VBox([*lines, self.view])

    def texts(self) -> list[Sequence[str]]:
        """The completions of the two steps, each a list in the panel's order."""
        return [self.rows[step.value][self.kind.value] for step in (self.first, self.second)]

    def pair(self, i: int) -> HTML:
        """Puzzle number `i` and its two completions."""
        earlier, later = self.texts()
        # The blank keeps two columns when both steps are the same.
        headings = (f"step {self.first.value}", f"step {self.second.value} ")
        completions = dict(zip(headings, (earlier[i], later[i]), strict=True))
        if self.task is None:
            return side_by_side(self.panel[i], completions)
        return answers(self.task, self.panel[i], completions)

    def name(self, i: int) -> str:
        """What puzzle number `i` is called in the list."""
        puzzle = self.panel[i]
        return _as_text(puzzle) if self.task is None else self.task.prompt(puzzle)

    def list_puzzles(self, _=None) -> None:
        """Offer the puzzles that pass the filter, and show the first one."""
        found = select(self.panel, *self.texts(), self.chosen.value, self.task)
        self.note.value = f"{len(found)} of {len(self.panel)} puzzles"
        self.puzzle.options = [(self.name(i), i) for i in found]
        self.puzzle.index = 0 if found else None
        self.draw()

    def draw(self, _=None) -> None:
        i = self.puzzle.value
        self.view.value = "" if i is None else self.pair(i).data

    def write(self, _) -> None:
        steps = f"steps {self.first.value} and {self.second.value}"
        title = f"{self.chosen.value}: {steps}, {self.kind.value}"
        views = [self.pair(i) for _, i in self.puzzle.options]
        Path("traces.html").write_text(page(title, views))
        self.note.value = f"{len(views)} puzzles written to traces.html"


def tree(trace: traces.Trace) -> Figure:
    """The search of one trace: a row for each attempt, in order, a box for each of its claims.

    An attempt that starts with the same claim as an earlier one branches off from there. Red: the
    claim is false. Blue: the attempt reaches the target. Grey: nothing in it is new.
    """
    columns = max((len(attempt.claims) for attempt in trace.attempts), default=0)
    rows = max(len(trace.attempts), 1)
    size = (2.2 * (columns + 2), 0.42 * rows + 0.5)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    _box(axis, 0, 0, _as_text(trace.puzzle), "black")
    boxes = {(): (0, 0)}  # the texts of the claims up to a box, where it is
    for row, attempt in enumerate(trace.attempts):
        path, is_new = _draw_claims(axis, attempt, -row, boxes)
        if not is_new:
            _box(axis, columns / 2 + 0.5, -row, "again " + " , ".join(path), GREY)
        off = "reaches it" if attempt.reached else f"off by {attempt.distance}"
        axis.text(columns + 0.6, -row, f"{attempt.verdict or '–'}: {off}", va="center", fontsize=8)
    axis.set(xlim=(-0.5, columns + 1.4), ylim=(-rows + 0.4, 0.6))
    axis.axis("off")
    plt.close(figure)
    return figure


def _draw_claims(
    axis, attempt: traces.Attempt, y: int, boxes: dict[tuple, tuple[int, int]]
) -> tuple[tuple[str, ...], bool]:
    """Draw an attempt's claims that no earlier one began with, and add them to the boxes.

    Gives the texts of all its claims, and whether any was drawn.
    """
    path = ()
    is_new = False
    for column, claim in enumerate(attempt.claims, 1):
        before = boxes[path]
        path += (claim.text.strip(),)
        if path in boxes:
            continue
        boxes[path] = (column, y)
        is_new = True
        axis.plot([before[0], column], [before[1], y], color=GREY, lw=1, zorder=0)
        colour = RIGHT if attempt.reached else "black"
        _box(axis, column, y, path[-1], WRONG if claim.true is False else colour)
    return path, is_new


def _as_text(puzzle: countdown.Puzzle) -> str:
    return f"{' '.join(map(str, puzzle.numbers))} → {puzzle.target}"


def _box(axis, x: int | float, y: int, text: str, colour: str) -> None:
    frame = dict(boxstyle="round", fc="white", ec=colour)
    axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, bbox=frame)


def _span(text: str, colour: str, title: str, weight: str = "normal") -> str:
    style = f"color:{colour};font-weight:{weight}"
    return f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>'
