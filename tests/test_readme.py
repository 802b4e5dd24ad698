"""The figures in the README are those of the runs and measurements that are kept here."""

import json
import re
from pathlib import Path

import pytest

from aha_lib import train

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_runs(seed):
    rows = train.read_rows(ROOT / f"aha_lib/data/run/seed{seed}/metrics.jsonl")
    at = {row["step"]: row for row in rows}
    line = next(x for x in (ROOT / "README.md").read_text().splitlines() if f"| {seed} |" in x[:5])
    figures = [float(x) for x in re.findall(r"\d+\.\d+", line)]
    first, last = at[0], at[60]
    assert figures == pytest.approx(
        [first["heldout_accuracy"], at[10]["heldout_accuracy"], at[20]["heldout_accuracy"],
         last["heldout_accuracy"], last["heldout_greedy"], first["heldout_length"],
         last["heldout_length"], first["heldout_backtracks"], last["heldout_backtracks"]],
        abs=0.051,
    )  # fmt: skip
    assert figures[:5] == pytest.approx(
        [first["heldout_accuracy"], at[10]["heldout_accuracy"], at[20]["heldout_accuracy"],
         last["heldout_accuracy"], last["heldout_greedy"]], abs=0.00051,
    )  # fmt: skip


def test_shares_in_the_text():
    """How often the base searches, and what it solves where it may not answer early."""
    text, found = " ".join((ROOT / "README.md").read_text().split()), []
    for seed in range(3):
        styles = train.read_rows(ROOT / f"aha_lib/data/run/seed{seed}/metrics.jsonl")[0]["styles"]
        found.append(styles["search"] / sum(styles.values()))
    assert f"in {sum(found) / 3:.0%} of its answers, searches".replace("%", " %") in text
    players = json.loads((ROOT / "tests/benchmarks/reach.json").read_text())
    (made,) = [row for row in players if row["who"] == "base, no answer before a yes"]
    solved = sum(made["right"]) / made["n"] / len(made["right"])
    assert f"solves as many ({solved:.2f}; notebook 06)" in text


def test_the_table_of_what_fits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import fits

    rows = json.loads(fits.RESULTS.read_text())
    assert len(rows) == 3 * sum(map(len, fits.MODELS.values()))
    assert "\n".join(fits.table(rows)) in (ROOT / "README.md").read_text()


def test_everything_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
