"""What a run looked like: its curve, a live dashboard, and its traces taken apart, to look at.

Functions of rows of metrics, of counts and of completions; they give a Matplotlib figure, HTML or
Markdown. Knows nothing of JAX, models, tokens or files; for notebooks alone.
"""

import time
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from aha_lib import countdown, traces

GREEN, RED, BLUE, ORANGE, GREY = "#2a9d5c", "#d1495b", "#2f6db3", "#e08e2b", "#8a8f98"
# Of each panel: title, then (name in a row, label, colour) of its lines, the main one first.
PANELS = (
    ("Accuracy on held-out puzzles",
     ("heldout_accuracy", "sampled", BLUE), ("heldout_greedy", "greedy", ORANGE)),
    ("Tokens in a response", ("heldout_length", "held-out", BLUE), ("length", "training", GREY)),
    ("Backtracks in a response",
     ("heldout_backtracks", "held-out", BLUE), ("backtracks", "training", GREY)),
    ("Entropy of the next token, nats", ("entropy", "training", GREY)),
)  # fmt: skip


def curve(*runs: Sequence[dict], panels: int = 3) -> Figure:
    """Accuracy, response length and backtracks over the steps of one run, or of several seeds.

    Args:
      runs: rows of metrics as `train.train` yields them. Of several runs each has a thin line and
        their mean a thick one; the dotted line is what the base does (step 0, held-out puzzles).
      panels: 4 adds the entropy.
    """
    figure, axes = plt.subplots(1, panels, figsize=(3.7 * panels, 3.1), layout="constrained")
    for axis, (title, *lines) in zip(axes, PANELS, strict=False):
        for name, label, colour in reversed(lines):
            drawn = [_line(rows, name) for rows in runs]
            if not any(len(steps) for steps, _ in drawn):
                continue
            many, dense = len(runs) > 1, colour == GREY
            for steps, values in drawn:
                axis.plot(steps, values, color=colour, lw=0.8 if many or dense else 2,
                          alpha=0.4 if many else 0.7 if dense else 1,
                          marker=None if many or dense else "o", ms=4,
                          label=None if many else label)  # fmt: skip
            if many:
                shared = sorted(set.intersection(*(set(steps) for steps, _ in drawn)))
                mean = np.mean([[dict(zip(*line, strict=True))[step] for step in shared]
                                for line in drawn], axis=0)  # fmt: skip
                axis.plot(shared, mean, color=colour, lw=1.2 if dense else 2.4,
                          label=f"{label}, mean of {len(runs)} seeds")  # fmt: skip
            base = [values[0] for steps, values in drawn if len(steps) and steps[0] == 0]
            if name == lines[0][0] and base:
                axis.axhline(np.mean(base), color="black", lw=1, ls=":", label="base, step 0")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlabel("GRPO step")
        axis.set_ylim(0, 1 if title.startswith("Accuracy") else None)
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    plt.close(figure)  # shown by whoever asked for it, not once more at the end of the cell
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
            handle.update(curve(_ordered(rows), panels=4))
            drawn = time.monotonic()
    handle.update(curve(_ordered(rows), panels=4))
    return _ordered(rows)


def table(header: Sequence[str], rows: Iterable[Sequence]) -> Markdown:
    """A Markdown table; floats are written with three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


def shares(counts: dict[str, int], order: Sequence[str]) -> list[float]:
    """The share of each name of `order` in the counts; names that do not occur have 0."""
    return [counts.get(name, 0) / sum(counts.values()) for name in order]


def areas(rows: Sequence[dict], key: str, order: Sequence[str]) -> Figure:
    """Stacked shares of the counts in `row[key]` ("styles" or "outcomes") over the steps."""
    steps, counts = _line(rows, key)
    figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
    colours = (BLUE, ORANGE, GREEN, GREY)[: len(order)]
    axis.stackplot(steps, np.transpose([shares(c, order) for c in counts]), labels=order,
                   colors=colours, alpha=0.85)  # fmt: skip
    axis.set(xlim=(steps[0], steps[-1] or 1), ylim=(0, 1), xlabel="GRPO step", ylabel="share")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
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
    """A puzzle and completions of it, each with its heading, marked and judged below."""
    style = f"vertical-align:top;text-align:left;padding:4px 12px;width:{95 // len(completions)}%"
    cells = "".join(
        f'<td style="{style}">'
        f"<b>{escape(heading)}</b><br>{marked(text, puzzle)}<br>"
        f"<small>{traces.outcome(text, puzzle)}: "
        f"{escape(countdown.reward(text, puzzle).reason)}</small></td>"
        for heading, text in completions.items()
    )
    numbers = " ".join(map(str, puzzle.numbers))
    return HTML(
        f'<table style="width:100%;font-family:monospace"><caption style="text-align:left">'
        f"<b>{numbers} → {puzzle.target}</b></caption><tr>{cells}</tr></table>"
    )


def _span(text: str, colour: str, title: str, weight: str = "normal") -> str:
    style = f"color:{colour};font-weight:{weight}"
    return f'<span style="{style}" title="{escape(title)}">{escape(text)}</span>'


def _line(rows: Sequence[dict], name: str) -> tuple[list, list]:
    has = [row for row in rows if name in row]
    return [row["step"] for row in has], [row[name] for row in has]


def _ordered(rows: dict[int, dict]) -> list[dict]:
    return [rows[step] for step in sorted(rows)]
