"""What a run looked like: its curve, a live dashboard, and its traces taken apart, to look at.

Functions of rows of metrics, of counts and of completions; they give a Matplotlib figure, HTML or
Markdown. Knows nothing of JAX, models, tokens or files; for notebooks alone.
"""

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from aha_lib.tasks import countdown, traces

# Which puzzles the explorer lists: of the traces at the first and at the second checkpoint chosen.
FILTERS = {
    "all puzzles": lambda before, after: True,
    "solved after but not before": lambda before, after: after.right and not before.right,
    "solved before but not after": lambda before, after: before.right and not after.right,
    "found then abandoned": lambda before, after: after.found_then_abandoned,
    "a false sum": lambda before, after: after.slips > 0,
}
GREEN, RED, BLUE, ORANGE, GREY = "#2a9d5c", "#d1495b", "#2f6db3", "#e08e2b", "#8a8f98"
COLOURS = {
    "jump": GREY,
    "check": ORANGE,
    "search": BLUE,
    "right": GREEN,
    "slipped": RED,
    "claimed": ORANGE,
    "gave up": GREY,
    "cut off": "#4a4e69",
}
# Of each panel: title, then (name in a row, label, colour) of its lines, the main one first.
PANELS = (
    (
        "Accuracy on held-out puzzles",
        ("heldout_accuracy", "sampled", BLUE),
        ("heldout_greedy", "greedy", ORANGE),
    ),
    ("Tokens in a response", ("heldout_length", "held-out", BLUE), ("length", "training", GREY)),
    (
        "Backtracks in a response",
        ("heldout_backtracks", "held-out", BLUE),
        ("backtracks", "training", GREY),
    ),
    ("Entropy of the next token, nats", ("entropy", "training", GREY)),
    ("Mean reward", ("reward", "training", GREY)),
    ("Groups without signal", ("zero_variance_groups", "training", GREY)),
    ("KL divergence from the base, nats", ("kl", "training", GREY)),
    ("Clipped tokens, share", ("clip_fraction", "training", GREY)),
    (
        "Tokens per second",
        ("sample_tokens_per_second", "sampling", BLUE),
        ("update_tokens_per_second", "update", ORANGE),
    ),
)


def curve(*runs: Sequence[dict], panels: int = 3) -> Figure:
    """Accuracy, response length and backtracks over the steps of one run, or of several seeds.

    Args:
      runs: rows of metrics as `train.train` yields them. Of several runs each has a thin line and
        their mean a thick one; the dotted line is what the base does (step 0, held-out puzzles).
      panels: 4 adds the entropy, 9 reward, groups without signal, KL, clipping and speed, in
        rows of three.
    """
    wide = 3 if panels > 4 else panels
    high = -(-panels // wide)
    figure, axes = plt.subplots(
        high, wide, figsize=(3.7 * wide, 3.1 * high), squeeze=False, layout="constrained"
    )
    for axis, (title, *lines) in zip(axes.flat, PANELS, strict=False):
        for name, label, colour in reversed(lines):
            drawn = [_line(rows, name) for rows in runs]
            if not any(len(steps) for steps, _ in drawn):
                continue
            many, dense = len(runs) > 1, colour == GREY
            for steps, values in drawn:
                axis.plot(
                    steps,
                    values,
                    color=colour,
                    lw=0.8 if many or dense else 2,
                    alpha=0.4 if many else 0.7 if dense else 1,
                    marker=None if many or dense else "o",
                    ms=4,
                    label=None if many else label,
                )
            if many:
                shared = sorted(set.intersection(*(set(steps) for steps, _ in drawn)))
                mean = np.mean(
                    [[dict(zip(*line, strict=True))[step] for step in shared] for line in drawn],
                    axis=0,
                )
                axis.plot(
                    shared,
                    mean,
                    color=colour,
                    lw=1.2 if dense else 2.4,
                    label=f"{label}, mean of {len(runs)} seeds",
                )
            base = [values[0] for steps, values in drawn if len(steps) and steps[0] == 0]
            if name == lines[0][0] and base:
                axis.axhline(np.mean(base), color="black", lw=1, ls=":", label="base, step 0")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlabel("GRPO step")
        axis.set_ylim(0, 1.03 if title.startswith("Accuracy") else None)
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))
    plt.close(figure)  # shown by whoever asked for it, not once more at the end of the cell
    return figure


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
    """Follow a run with a figure that is drawn anew at most every few seconds; gives all rows.

    `before` are the rows that the run's folder already had: a resumed run overwrites some.
    """
    rows = {row["step"]: row for row in before}
    handle, drawn = display(Markdown("Compiling …"), display_id=True), 0.0
    for row in run:
        rows[row["step"]] = row
        if time.monotonic() - drawn > seconds:
            handle.update(curve([*rows.values()], panels=4))
            drawn = time.monotonic()
    handle.update(curve([*rows.values()], panels=4))
    return [*rows.values()]


def table(header: Sequence[str], rows: Iterable[Sequence]) -> Markdown:
    """A Markdown table; floats are written with three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[f"{x + 0.0:.3g}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


def shares(counts: dict[str, int], order: Sequence[str]) -> list[float]:
    """The share of each name of `order` in the counts; names that do not occur have 0."""
    return [counts.get(name, 0) / sum(counts.values()) for name in order]


def areas(rows: Sequence[dict], key: str, order: Sequence[str]) -> Figure:
    """Stacked shares of the counts in `row[key]` ("styles" or "outcomes") over the steps."""
    steps, counts = _line(rows, key)
    figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
    axis.stackplot(
        steps,
        np.transpose([shares(c, order) for c in counts]),
        labels=order,
        colors=[COLOURS[name] for name in order],
        alpha=0.85,
    )
    axis.set(xlim=(steps[0], steps[-1] or 1), ylim=(0, 1), xlabel="GRPO step", ylabel="share")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, reverse=True)
    plt.close(figure)
    return figure


def marked(completion: str, puzzle: countdown.Puzzle) -> str:
    """HTML of a completion: each claim green if true, red if false, its value told on hover."""
    trace, judged = traces.parse(completion, puzzle), countdown.reward(completion, puzzle)
    parts, at = [], 0
    for claim in trace.claims:
        parts.append(escape(trace.text[at : claim.start]))
        said = f"{claim.expression} is {claim.value}"
        colour = GREY if claim.true is None else GREEN if claim.true else RED
        parts.append(_span(trace.text[claim.start : claim.end], colour, said))
        at = claim.end
    parts.append(escape(trace.text[at:]))
    rest = completion[len(trace.text) :]
    parts.append(_span(rest, GREEN if trace.right else RED, f"the answer {judged.reason}", "bold"))
    return "".join(parts)


def side_by_side(puzzle: countdown.Puzzle, completions: dict[str, str]) -> HTML:
    """A puzzle and completions of it by heading, marked, and judged below."""
    style = f"vertical-align:top;text-align:left;padding:4px 12px;width:{95 // len(completions)}%"
    cells = ""
    for heading, text in completions.items():
        trace = traces.parse(text, puzzle)
        truths = [claim.true for claim in trace.claims if claim.true is not None]
        fate = traces.outcome(trace) if trace.answer else "no answer"
        verdict = (
            f"{fate}; it {countdown.reward(text, puzzle).reason}; "
            f"{sum(truths)} of {len(truths)} sums true"
        )
        cells += (
            f'<td style="{style}"><b>{escape(heading)}</b><br>{marked(text, puzzle)}<br>'
            f"<small>{escape(verdict)}</small></td>"
        )
    return HTML(
        '<table style="width:100%;table-layout:fixed;font-family:monospace">'
        f'<caption style="text-align:left"><b>{_task(puzzle)}</b></caption><tr>{cells}</tr></table>'
    )


def select(panel, before: Sequence[str], after: Sequence[str], name: str) -> list[int]:
    """Indices of the panel's puzzles whose two completions pass the filter of that name."""
    rows = enumerate(zip(panel, before, after, strict=True))
    return [
        i
        for i, (puzzle, *texts) in rows
        if FILTERS[name](*(traces.parse(text, puzzle) for text in texts))
    ]


def page(title: str, views: Iterable[HTML]) -> str:
    """A whole HTML page of views, to keep or to send."""
    body = "<hr>".join(view.data for view in views)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<h1>{escape(title)}</h1>{body}</html>\n"
    )


def explorer(panel: Sequence[countdown.Puzzle], history: Sequence[dict]) -> widgets.Widget:
    """Choose two checkpoints, a filter and a puzzle; see its two completions side by side.

    `history` has a row for each checkpoint: "step", and a list of texts, one for each puzzle of
    the panel, under "sampled" and "greedy". The button writes the list to `traces.html`.
    """
    rows = {row["step"]: row for row in history}
    kind = widgets.Dropdown(options=["sampled", "greedy"], description="drawn")
    first = widgets.Dropdown(options=[*rows], value=min(rows), description="step")
    second = widgets.Dropdown(options=[*rows], value=max(rows), description="and step")
    chosen = widgets.Dropdown(options=[*FILTERS], description="show")
    puzzle = widgets.Dropdown(description="puzzle")
    export, view, note = widgets.Button(description="Export HTML"), widgets.HTML(), widgets.Label()

    def texts() -> list[Sequence[str]]:
        return [rows[step.value][kind.value] for step in (first, second)]

    def pair(i: int) -> HTML:
        columns = zip((first, second), texts(), strict=True)
        # The blank keeps two columns when both steps are the same.
        heads = [(f"step {step.value}" + " " * n, t[i]) for n, (step, t) in enumerate(columns)]
        return side_by_side(panel[i], dict(heads))

    def relist(_=None) -> None:
        found = select(panel, *texts(), chosen.value)
        names = [_task(panel[i]) for i in found]
        note.value = f"{len(found)} of {len(panel)} puzzles"
        puzzle.options = list(zip(names, found, strict=True))
        puzzle.index = 0 if found else None
        redraw()

    def redraw(_=None) -> None:
        view.value = "" if puzzle.value is None else pair(puzzle.value).data

    def write(_) -> None:
        title = f"{chosen.value}: steps {first.value} and {second.value}, {kind.value}"
        Path("traces.html").write_text(page(title, [pair(i) for _, i in puzzle.options]))
        note.value = f"{len(puzzle.options)} puzzles written to traces.html"

    for control in (kind, first, second, chosen):
        control.observe(relist, "value")
    puzzle.observe(redraw, "value")
    export.on_click(write)
    relist()
    lines = [kind, first, second], [chosen, puzzle], [export, note]  # a line has room for three
    return widgets.VBox([*map(widgets.HBox, lines), view])


def tree(trace: traces.Trace) -> Figure:
    """The search of one trace: a row for each attempt, in order, a box for each of its claims.

    An attempt that starts with the same claim as an earlier one branches off from there. Red: the
    claim is false. Green: the attempt reaches the target. Grey: nothing in it is new.
    """
    wide = max((len(attempt.claims) for attempt in trace.attempts), default=0)
    size = 2.2 * (wide + 2), 0.42 * max(len(trace.attempts), 1) + 0.5
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    boxes = {(): (0, 0)}  # the texts of the claims up to a box, where it is
    _box(axis, 0, 0, _task(trace.puzzle), "black")
    for row, attempt in enumerate(trace.attempts):
        path, new = (), False
        for column, claim in enumerate(attempt.claims, 1):
            x, y = boxes[path]
            path += (claim.text.strip(),)
            if path not in boxes:
                boxes[path], new = (column, -row), True
                axis.plot([x, column], [y, -row], color=GREY, lw=1, zorder=0)
                good = GREEN if attempt.reached else "black"
                _box(axis, column, -row, path[-1], RED if claim.true is False else good)
        if not new:
            _box(axis, wide / 2 + 0.5, -row, "again " + " , ".join(path), GREY)
        off = "reaches it" if attempt.reached else f"off by {attempt.distance}"
        axis.text(wide + 0.6, -row, f"{attempt.verdict or '–'}: {off}", va="center", fontsize=8)
    axis.set(xlim=(-0.5, wide + 1.4), ylim=(-max(len(trace.attempts), 1) + 0.4, 0.6))
    axis.axis("off")
    plt.close(figure)
    return figure


def _task(puzzle: countdown.Puzzle) -> str:
    return f"{' '.join(map(str, puzzle.numbers))} → {puzzle.target}"


def _box(axis, x: int | float, y: int, text: str, colour: str) -> None:
    frame = dict(boxstyle="round", fc="white", ec=colour)
    axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, bbox=frame)


def _span(text: str, colour: str, title: str, weight: str = "normal") -> str:
    style = f"color:{colour};font-weight:{weight}"
    return f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>'


def _line(rows: Sequence[dict], name: str) -> tuple[list, list]:
    has = [row for row in rows if name in row]
    return [row["step"] for row in has], [row[name] for row in has]
