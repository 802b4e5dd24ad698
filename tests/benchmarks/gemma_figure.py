"""Draws notebooks/gemma.png: `python tests/benchmarks/gemma_figure.py`.

Both runs of Gemma 3 270M on the GPU at the falling rate: held-out accuracy, length, and how many
puzzles are solved within so many attempts, with the corpus's rule as what is to be reached.
"""

from pathlib import Path

import run_tables
from matplotlib.figure import Figure

from aha_lib.look import measures, show

PICTURE = Path(__file__).resolve().parents[2] / "notebooks/gemma.png"
ATTEMPTS = 24  # on the axis, at most


def figure() -> Figure:
    """The figure, from the records: the first evaluation, that of step 10 and the last one."""
    rows, within = {}, {}
    for folder in sorted(run_tables.GPU.glob("seed*")):
        run = run_tables.read(folder)
        name = f"seed {run.settings.seed}"
        rows[name] = run.rows
        within[name] = {}
        for i in (0, 1, -1):
            solved = measures.solved_within(run_tables.answers(folder, i), ATTEMPTS)
            within[name][f"step {run.kept[i]['step']}"] = solved
    return show.against_rule(rows, within, measures.rule_reaches(run.panel, ATTEMPTS))


if __name__ == "__main__":
    figure().savefig(PICTURE, dpi=100)
