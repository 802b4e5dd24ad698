"""What notebooks 05 to 08 say of recorded runs, held to the records.

A notebook shows at most three checks, those that teach; here are the others, by notebook.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aha_lib.look import measures, record
from aha_lib.tasks import countdown, traces

STORED = Path(__file__).parents[1] / "benchmarks"
TINY = sorted((record.DATA / "run").glob("seed*"))
GEMMA = record.DATA / "gemma3-270m"
GPU = sorted((GEMMA / "h100").iterdir())
ROTTEN = GEMMA / "h100_2e-4/no_search"


def stored(name: str):
    return json.loads((STORED / name).read_text())


def side(run: record.Record, evaluation: int, kind: str = "sampled") -> list[traces.Trace]:
    pairs = zip(run.kept[evaluation][kind], run.panel, strict=True)
    return [traces.parse(*pair) for pair in pairs]


def right(texts, panel) -> list[bool]:
    pairs = zip(texts, panel, strict=True)
    return [countdown.reward(*pair).value == 1 for pair in pairs]


# 05


def test_what_the_clip_does_when_a_batch_is_used_again():
    """With one update it never acts; from four on it helps; two are worse than one."""
    ends, clipped = {}, {}
    for run in stored("updates.json")["runs"]:
        ends.setdefault(run["case"], []).append(run["heldout"]["accuracy"][1])
        clipped.setdefault(run["case"], []).append(np.mean(run["clip_fraction"]))
    for case, shares in clipped.items():
        never = case.startswith("1 ") or case.endswith("no clip")
        assert (np.mean(shares) == 0) == never, case
    assert ends["1 x clip"] == ends["1 x no clip"]
    assert min(ends["1 x clip"]) > max(ends["2 x clip"] + ends["2 x no clip"])
    assert min(ends["4 x clip"]) > 0.4 and max(ends["4 x no clip"]) < 0.2
    assert max(ends["8 x clip"] + ends["8 x no clip"]) < 0.2


@pytest.mark.parametrize("folder", TINY, ids=lambda path: path.name)
def test_the_tiny_runs_search_rarely_before_and_usually_after(folder):
    rows = record.read(folder).measured
    shares = [row["styles"]["search"] / sum(row["styles"].values()) for row in (rows[0], rows[-1])]
    assert shares[0] < 0.1 and shares[1] > 0.6
    assert rows[-1]["heldout_length"] > 2 * rows[0]["heldout_length"]
    assert rows[-1]["heldout_backtracks"] > rows[0]["heldout_backtracks"] + 2
    assert all(row["clip_fraction"] == 0 for row in record.read(folder).rows[1:])


# 06


@pytest.mark.parametrize("folder", [*TINY, *GPU, ROTTEN], ids=lambda path: str(path)[-12:])
def test_accuracies_come_out_of_the_texts_again(folder):
    run = record.read(folder)
    for row, kept in zip(run.measured, run.kept, strict=True):
        assert row["heldout_greedy"] == np.mean(right(kept["greedy"], run.panel))
        if row["step"] or run.settings.pass_k == 1:  # else one of several samples is kept
            assert row["heldout_accuracy"] == np.mean(right(kept["sampled"], run.panel))


def test_draws_of_base_trained_model_and_the_base_that_has_to_search():
    players = {line["who"]: line for line in stored("reach.json") if line.get("n")}
    panel = record.read(TINY[0]).panel
    rule = measures.rule_reaches(panel, 1)[0]
    for player in players.values():
        counts = player["counts"]
        assert counts["hits at 1"] / counts["attempt 1"] == pytest.approx(rule, abs=0.03)
    base, trained, made = players.values()
    once = {who: np.mean(x["right"]) / x["n"] for who, x in players.items()}
    assert once["trained"] > 0.9 > 0.3 > once["base"]
    assert once[made["who"]] == pytest.approx(once["trained"], abs=0.03)
    costs = [x["counts"]["tokens"] / x["counts"]["draws"] for x in (trained, made)]
    assert costs[1] == pytest.approx(costs[0], rel=0.1)
    assert sum(count > 0 for count in base["right"]) > 0.99 * len(base["right"])


# 07


def test_three_bases_under_one_reward():
    runs = stored("habits.json")
    ends = {}
    for run in runs:
        ends.setdefault(run["base"], []).append(run)
    searching, checking, jumping = (ends[f"tiny{x}"] for x in ("", "-no-search", "-jumps"))
    assert [len(of) for of in (searching, checking, jumping)] == [3, 3, 3]
    assert all(run["backtracks"][-1] > 1 for run in searching)
    assert all(run["backtracks"][-1] < 0.05 for run in checking)
    assert all(run["styles"][-1] == {"jump": 256} for run in jumping)
    highest = max(run["accuracy"][-1] for run in jumping)
    assert highest < min(run["accuracy"][-1] for run in checking)


@pytest.mark.parametrize("name", ["seed0", "seed1"])
def test_gemma_on_two_cores_gets_the_will(name):
    run = record.read(GEMMA / name)
    before, after = (measures.will_and_skill(side(run, i)) for i in (0, -1))
    for kind in ("any attempt", "goes on after a no"):
        error = np.hypot(before[kind].error, after[kind].error)
        assert after[kind].value - before[kind].value > 5 * error
    gain = run.measured[-1]["heldout_accuracy"] - run.measured[0]["heldout_accuracy"]
    ends = (side(run, i) for i in (0, -1))
    assert gain > 4 * np.hypot(*map(measures.accuracy_error, ends))


def test_after_a_cold_start_without_searches_it_checks_and_does_not_go_on():
    run = record.read(GEMMA / "no_search")
    last = measures.will_and_skill(side(run, -1))
    assert last["goes on after a no"].count == 0 and last["any attempt"].count == 125
    assert run.measured[-1]["heldout_accuracy"] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("folder", GPU, ids=lambda path: path.name)
def test_what_the_runs_on_the_gpu_gain_after_ten_steps(folder):
    """They finish more of what can lead to the target, in fewer tokens; sums are as true."""
    run = record.read(folder)
    ten, last = run.measured[1], run.measured[-1]
    assert ten["step"] == 10 and last["heldout_length"] < 0.8 * ten["heldout_length"]
    early, late = side(run, 1), side(run, -1)
    error = np.hypot(measures.accuracy_error(early), measures.accuracy_error(late))
    assert last["heldout_accuracy"] - ten["heldout_accuracy"] > 3 * error
    done = [measures.finished(of) for of in (early, late)]
    assert 0.6 < done[0].value < 0.75 and 0.8 < done[1].value < 0.9
    within = [measures.reached_within(of, 8).value for of in (early, late)]
    assert within[0] < 0.69 and within[1] > 0.72
    assert within[1] < measures.rule_reaches(run.panel, 8)[-1]
    start = measures.will_and_skill(side(run, 0))["true sums"].value
    assert measures.will_and_skill(late)["true sums"].value == pytest.approx(start, abs=0.03)


def test_the_length_and_the_rate_of_the_run_that_was_cut_short():
    """Seed 1 ran 56 of 110 steps; its last evaluation is of step 50, its rate had not fallen."""
    run = record.read(GEMMA / "h100/seed1")
    assert run.rows[-1]["step"] == 56 and run.measured[-1]["step"] == 50
    from aha_lib.rl.grpo import LearningRate

    assert float(LearningRate.of(run.settings)(49)) == pytest.approx(0.656e-4, abs=0.005e-4)


def test_the_adapters_answer_as_on_the_gpu():
    """The 128 puzzles that both panels share, greedily, word for word, on two cores."""
    asked, run = record.read(GEMMA / "asked"), record.read(GPU[0])
    on_gpu = dict(zip(run.panel, run.kept[-1]["greedy"], strict=True))
    assert len(asked.panel) == 128
    for puzzle, text in zip(asked.panel, asked.kept[0]["greedy"], strict=True):
        assert on_gpu[puzzle] == text


LINE = re.compile(r"(\d+)([-+*/])(\d+)=(\d+),")
INNER = re.compile(r"\((\d+)([-+*/])(\d+)\)")


def test_the_control_s_sums_rot():
    run = record.read(ROTTEN)
    first, last = (measures.will_and_skill(side(run, i)) for i in (0, -1))
    assert first["true sums"].value > 0.8 and last["true sums"].value < 0.1
    assert last["goes on after a no"] == measures.Share(0, 510)
    accuracies = [row["heldout_accuracy"] for row in run.measured]
    assert accuracies[0] < 0.1 < 0.25 < accuracies[-1] < 0.3
    kept, digits = [], []
    for text in run.kept[-1]["sampled"]:
        above, _, answer = text.partition("<answer>")
        line, inner = LINE.match(above), INNER.search(answer)
        if line and inner:
            kept.append(line.group(1, 2, 3) == inner.groups())
            digits.append(len(line[4]) == 1)
    assert len(kept) > 500 and 0.85 < np.mean(kept) < 0.97 and np.mean(digits) > 0.95


def test_from_zero_nothing_is_right():
    run = record.read(GEMMA / "zero")
    assert not any("right" in row["outcomes"] for row in run.measured)
    assert not any(row["train_accuracy"] for row in run.rows if row["step"])


# 08


def cosine(x, y) -> float:
    return float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def test_what_can_be_read_at_a_crossroads_and_where_grpo_goes():
    for seed in stored("backtracking.json"):
        told = {x["when"]: x for x in seed["told"] if x["how"] == "difference"}
        for when in ("start", "first no"):
            n = told[when]["n"]
            assert abs(told[when]["separation"][-1] - 0.5) < 5 / np.sqrt(n)  # 3 standard errors
        assert told["every no"]["separation"][-1] > 0.75
        ours, learnt = seed["directions"]["difference"], seed["directions"]["learnt"]
        assert all(cosine(*pair) > 0.6 for pair in zip(ours, learnt, strict=True))


def test_what_pushes_give_back_of_grpo_s_gain():
    for seed in stored("backtracking.json"):
        base, trained = seed["base"]["accuracy"], seed["trained"]["accuracy"]
        for name, least in (("difference", 0.6), ("learnt", 0.8)):
            tried = [x for x in seed["by_layer"] if (x["direction"], x["layer"]) == (name, 3)]
            strength = max(tried, key=lambda x: x["accuracy"])["strength"]
            (push,) = (
                x
                for x in seed["pushed"]
                if (x["direction"], x["layer"], x["strength"]) == (name, 3, strength)
            )
            assert (push["accuracy"] - base) / (trained - base) > least


def test_half_a_push_of_gemma():
    gemma = stored("backtracking_gemma.json")
    base = gemma["base"]
    for push in gemma["pushed"]:
        if push["direction"] in ("difference", "learnt") and push["strength"] == 0.5:
            assert push["accuracy"] - base["accuracy"] > 3 * np.sqrt(2 * 0.25 / base["n"])
            assert push["backtracks"] > 3 * base["backtracks"]
