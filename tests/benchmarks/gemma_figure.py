"""Draws notebooks/gemma.png: `python tests/benchmarks/gemma_figure.py`.

Both runs of Gemma 3 270M on the GPU at the falling rate: held-out accuracy, length, and how many
puzzles are solved within so many attempts, with the corpus's rule as what is to be reached.
"""

from pathlib import Path

from matplotlib.figure import Figure

from aha_lib.look import measures, record, show
from aha_lib.tasks import traces

PICTURE = Path(__file__).resolve().parents[2] / "notebooks/gemma.png"
RUNS = record.DATA / "gemma3-270m/h100"
ATTEMPTS = 24  # on the axis, at most


def figure() -> Figure:
    """The figure, from the records: the first evaluation, that of step 10 and the last one."""
    rows, within = {}, {}
    for folder in sorted(RUNS.glob("seed*")):
        run = record.read(folder)
        name = f"seed {run.settings.seed}"
        rows[name] = run.rows
        within[name] = {}
        for kept in (run.kept[0], run.kept[1], run.kept[-1]):
            pairs = zip(kept["sampled"], run.panel, strict=True)
            side = [traces.parse(*pair) for pair in pairs]
            within[name][f"step {kept['step']}"] = measures.solved_within(side, ATTEMPTS)
    return show.against_rule(rows, within, measures.rule_reaches(run.panel, ATTEMPTS))


if __name__ == "__main__":
    figure().savefig(PICTURE, dpi=100)
