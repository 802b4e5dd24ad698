"""What notebook 09 tells of the stored runs of seven objectives holds for the records it draws.

Knows nothing of the notebook's own code: the test by shuffled names is written once more.
"""

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
STALE = json.loads((BENCHMARKS / "stale.json").read_text())
RUNS = json.loads((BENCHMARKS / "variants.json").read_text())["runs"]
NAMES = sorted({run["case"] for run in RUNS})
SEEDS = sorted({run["seed"] for run in RUNS})
AT = {(run["case"], run["seed"]): run for run in RUNS}


def final_accuracies() -> np.ndarray:
    """Held-out accuracies after the runs: a row a seed, a column a name."""
    rows = [[AT[name, seed]["heldout"]["accuracy"][1] for name in NAMES] for seed in SEEDS]
    return np.array(rows)


def pairs_apart(ends: np.ndarray, names: list[str]) -> set[tuple[str, str]]:
    """(better, worse) whose means are further apart than shuffled names seldom are (1 in 40)."""
    rng = np.random.default_rng(1)
    ranges = []
    for _ in range(4000):
        shuffled = rng.permuted(ends, axis=1).mean(axis=0)
        ranges.append(shuffled.max() - shuffled.min())
    limit = np.quantile(ranges, 0.975)
    means = dict(zip(names, ends.mean(axis=0), strict=True))
    return {(a, b) for a in names for b in names if means[a] - means[b] > limit}


def test_rloo_is_below_all_and_grpo_and_dapo_above_cispo():
    ends = final_accuracies()
    others = [name for name in NAMES if name != "rloo"]
    assert len(SEEDS) >= 5 and len(others) == 6
    assert pairs_apart(ends, NAMES) == {(name, "rloo") for name in others}
    kept = [NAMES.index(name) for name in others]
    assert pairs_apart(ends[:, kept], others) == {("grpo", "cispo"), ("dapo", "cispo")}


@pytest.mark.parametrize("name", NAMES)
def test_rloo_learns_and_falls_apart_where_others_stay(name):
    curves = np.mean([AT[name, seed]["train_accuracy"] for seed in SEEDS], axis=0)
    assert curves.max() > 0.9
    lost = curves.max() - curves[-5:].mean()
    if name == "rloo":
        assert lost > 0.3
    elif name != "cispo":
        assert lost < 0.1


def test_dapo_has_drawn_three_times_as_many_puzzles():
    def drawn(name):
        return np.mean([AT[name, seed]["draws"] for seed in SEEDS])

    assert 2.5 < drawn("dapo") / drawn("grpo") < 3.5


@pytest.mark.parametrize("row", STALE, ids=lambda row: f"seed{row['seed']}-step{row['start']}")
def test_losses_that_clip_tokens_turn_more_than_those_that_silence_nobody(row):
    """After four updates on one batch, by the cosine with the first gradient."""
    four = row["updates"].index(4)
    after = dict(zip(row["variants"], row["cosine"][four], strict=True))
    with_clip = [after[name] for name in ("grpo", "dr_grpo", "dapo")]
    without = [after[name] for name in ("rloo", "cispo", "kimi")]
    assert max(with_clip) < min(without)
