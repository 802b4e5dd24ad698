"""Shares that do not depend on how an answer ends, and what the rule would reach."""

import dataclasses
import math
import random

import pytest

from aha_lib.look import measures, record
from aha_lib.look.measures import Share
from aha_lib.presets import PUZZLES
from aha_lib.tasks import corpus, countdown, traces

PUZZLE = countdown.Puzzle((16, 16, 13), 48)  # 16 * 16 is above 100: ( 16 - 13 ) * 16 alone hits


def trace(text: str, puzzle=PUZZLE) -> traces.Trace:
    return traces.parse(text, puzzle)


JUMP = trace("<answer> ( 16 - 13 ) * 16 </answer>")
GIVES_UP = trace("16 + 16 = 32 , 32 + 13 = 45 no <answer> ( 16 + 16 ) + 13 </answer>")
GOES_ON = trace(
    "16 + 16 = 32 , 32 + 13 = 45 no 16 - 13 = 3 , 3 * 16 = 48 yes "
    "<answer> ( 16 - 13 ) * 16 </answer>"
)
FUMBLES = trace("16 - 13 = 3 , 16 + 3 = 20 no 16 - 13 = 3 , 3 * 16 = 48 yes")


def test_shares_of_something_and_of_nothing():
    quarter = Share(1, 4)
    assert quarter.value == 0.25 and str(quarter) == "1/4 = 0.25"
    assert quarter.error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert quarter + Share(2, 4) == Share(3, 8)
    nothing = Share(0, 0)
    assert math.isnan(nothing.value) and math.isnan(nothing.error) and str(nothing) == "none"


def test_an_error_by_sets_of_numbers():
    one, other, third = ((1, 2, 3), 6), ((3, 2, 1), 7), ((4, 5, 6), 15)
    alone = [countdown.Puzzle((n, n, n + 1), 50) for n in range(1, 9)]
    values = [1, 0, 1, 1, 0, 1, 1, 1]
    simple = math.sqrt(0.75 * 0.25 / 7)  # with n - 1, as each puzzle is a set of its own
    assert measures.clustered_error(values, alone) == pytest.approx(simple)
    twice = measures.clustered_error(2 * values, 2 * alone)
    assert twice == pytest.approx(simple), "the same puzzles once more are no new ones"
    same = [countdown.Puzzle(*puzzle) for puzzle in (one, other)]
    assert math.isnan(measures.clustered_error([1, 0], same)), "one set, whatever the order"
    three = [*same, countdown.Puzzle(*third)]
    # Sums of (value - 2/3): 2/3 of the first set, -2/3 of the other.
    assert measures.clustered_error([1, 1, 0], three) == pytest.approx(math.sqrt(2 * 8 / 9) / 3)
    with pytest.raises(ValueError, match="one each"):
        measures.clustered_error([1, 0], three)


def test_the_error_of_a_recorded_panel():
    """512 held-out puzzles are fewer: its error is larger than that of as many draws."""
    run = record.read(record.DATA / "gemma3-270m/h100/seed0")
    panel = run.panel
    puzzles = {(tuple(sorted(puzzle.numbers)), puzzle.target) for puzzle in panel}
    sets = {numbers for numbers, _ in puzzles}
    assert (len(panel), len(puzzles), len(sets)) == (512, 405, 139)
    right = [
        countdown.reward(text, puzzle).value == 1
        for text, puzzle in zip(run.kept[-1]["sampled"], panel, strict=True)
    ]
    error = measures.clustered_error(right, panel)
    assert error == pytest.approx(0.017, abs=5e-4)
    assert error > 1.2 * measures.share(right).error


def test_will_and_skill_of_four_answers():
    found = measures.will_and_skill([JUMP, GIVES_UP, GOES_ON, FUMBLES])
    assert found == {
        "any attempt": Share(3, 4),
        "goes on after a no": Share(2, 3),
        "hits per attempt": Share(2, 5),
        "true sums": Share(9, 10),
    }


@pytest.mark.parametrize("side", [[], [trace("")], [trace("no yes no <answer>")], [JUMP]])
def test_answers_without_an_attempt_are_no_division_by_zero(side):
    """As those of a base that does not know the task."""
    found = measures.will_and_skill(side)
    assert found.pop("any attempt") == Share(0, len(side))
    assert [*found.values()] == [Share(0, 0)] * 3
    assert measures.repeated(side) == measures.finished(side) == Share(0, 0)
    assert measures.reached_within(side, 8) == Share(0, len(side))


def test_repeats_and_what_is_reached_within_so_many_attempts():
    again = trace("16 + 16 = 32 , 32 + 13 = 45 no 16 + 13 = 29 , 29 + 16 = 45 no")
    assert measures.repeated([again, GOES_ON]) == Share(1, 4), "the same sum in another order"
    assert measures.reached_within([GOES_ON, GIVES_UP], 1) == Share(0, 2)
    assert measures.reached_within([GOES_ON, GIVES_UP], 2) == Share(1, 2)
    assert measures.solved_within([GOES_ON, GIVES_UP], 2) == [0, 0.5]


def test_finished_is_the_first_try_of_what_can_lead_to_the_target():
    assert measures.promising_firsts(PUZZLE) == {(16, "-", 13)}
    assert measures.finished([JUMP, GIVES_UP]) == Share(0, 0), "it was not tried"
    assert measures.finished([GOES_ON, FUMBLES]) == Share(1, 2), "the second try does not count"
    turned = countdown.Puzzle((2, 3, 10), 50)
    assert measures.promising_firsts(turned) == {(3, "+", 2)}
    added = trace("2+3=5,10*5=50 yes", turned)
    assert measures.finished([added]) == Share(1, 1)
    # Off the mean of 2/3 by 2/3 - 1 = -1/3 in all in the one set, by 1/3 in the other.
    error = measures.finished_error([GOES_ON, JUMP, FUMBLES, added])
    assert error == pytest.approx(math.sqrt(2 * 2 / 9) / 3)


def test_what_can_lead_to_the_target_is_what_the_solver_finds():
    for index in range(60):
        puzzle = countdown.generate(5, index, PUZZLES["tiny"])
        assert measures.promising_firsts(puzzle), puzzle
        assert measures.chance_by_rule(puzzle, 12) == 1.0, "no puzzle has more first operations"
        impossible = dataclasses.replace(puzzle, target=9_999)
        assert not measures.promising_firsts(impossible)
        assert measures.chance_by_rule(impossible, 12) == 0.0


@pytest.mark.parametrize("most", [1, 3])
def test_the_rules_chance_is_that_of_the_corpus(most):
    rng = random.Random(0)
    texts = [corpus.trace(PUZZLE, "search", rng) for _ in range(150)]
    within = measures.reached_within([trace(text) for text in texts], most)
    assert measures.chance_by_rule(PUZZLE, most) == pytest.approx(within.value, abs=0.12)
    of_panel = measures.rule_reaches([PUZZLE, PUZZLE], most)
    assert len(of_panel) == most and of_panel[-1] == measures.chance_by_rule(PUZZLE, most)


def test_the_rule_run_on_goes_round():
    once = measures.rule_run_on(PUZZLE, 3)
    assert len(once.attempts) == 3 and once.slips == 0
    assert [a.verdict for a in once.attempts] == ["no"] * 3
    count = len({c.text for a in measures.rule_run_on(PUZZLE, 50).attempts for c in a.claims[:1]})
    assert count == len(measures._in_order(PUZZLE)), "nothing new after a round"
    assert measures.repeated([measures.rule_run_on(PUZZLE, 50)]).value > 0.8


def test_the_rule_is_for_three_numbers():
    with pytest.raises(ValueError, match="has 4"):
        measures.chance_by_rule(countdown.Puzzle((1, 2, 3, 4), 10))


def test_the_recorded_runs_repeat_themselves_as_the_rule_does():
    """Answers that were cut off repeat much because they are long, see notebook 06."""
    cut_off = []
    for folder in sorted((record.DATA / "run").glob("seed*")):
        run = record.read(folder)
        for text, puzzle in zip(run.kept[-1]["sampled"], run.panel, strict=True):
            if "</answer>" not in text:
                cut_off.append(trace(text, puzzle))
    by_rule = []
    for start, long in enumerate(cut_off):
        by_rule.append(measures.rule_run_on(long.puzzle, len(long.attempts), start))
    assert len(cut_off) > 15
    found = measures.repeated(cut_off)
    assert measures.repeated(by_rule).value == pytest.approx(found.value, abs=0.06)
