"""Where searches look first, beside orders by chance."""

import random
import re
from itertools import permutations

import pytest

from aha_lib.look import order
from aha_lib.tasks import countdown, traces, worked

PUZZLE = countdown.Puzzle((44, 35, 19, 7), 91)
BOUND = 200


def text(puzzle, seed, **rule):
    return worked.trace(puzzle, "search", random.Random(seed), worked.Rule(bound=BOUND, **rule))


def parsed(puzzle, seed, **rule):
    return traces.parse(text(puzzle, seed, **rule), puzzle)


def test_an_operation_leads_where_a_solution_begins_with_it():
    """Against the solver's solutions: an operation leads if one of them has it in brackets."""
    leads = order.leading(PUZZLE, BOUND)
    solutions = countdown.solve(PUZZLE, BOUND)
    for a, sign, b in leads:
        ways = {f"( {a} {sign} {b} )", f"( {b} {sign} {a} )"}
        begins = any(way in solution for way in ways for solution in solutions)
        assert leads[a, sign, b] == begins, (a, sign, b)
    assert 0 < sum(leads.values()) < len(leads)


def test_what_was_tried_is_in_the_order_of_the_text():
    puzzle = countdown.Puzzle((90, 77, 53, 31), 10)
    words = text(puzzle, 0)
    found = order.tried(traces.parse(words, puzzle))
    begins = re.findall(r"(?:^|back 90 77 53 31 = 10 : )(\d+ . \d+) =", words)
    assert len(begins) > 2
    assert [f"{a} {sign} {b}" for a, sign, b in found] == begins


def test_chances_are_those_of_all_orders():
    leads = [False, True, False, False, True]
    for tries in range(1, 5):
        hits = [any(way[:tries]) for way in permutations(leads)]
        assert order.chance_shuffled(leads, tries) == pytest.approx(sum(hits) / len(hits))
    assert order.chance_in_rounds(leads, 1) == pytest.approx(2 / 5)
    assert order.chance_in_rounds(leads, 2) == pytest.approx(4 / 5)
    assert order.chance_in_rounds(leads, 9) == order.chance_shuffled(leads, 9) == 1


def test_the_corpus_looks_where_chance_does():
    """The rule's own searches find as its round does; those that begin with what leads, always."""
    puzzles = [PUZZLE, countdown.Puzzle((50, 9, 8, 3), 60)]
    side = [parsed(puzzle, seed) for puzzle in puzzles for seed in range(30)]
    found = order.looked(side, 1, BOUND)
    assert found.found.of == 60 and 0.2 < found.in_rounds < 0.8
    assert found.found.value == pytest.approx(found.in_rounds, abs=0.15)
    assert found.in_rounds == pytest.approx(found.shuffled)  # one try: the same
    best = [trace for trace in side if order.leading(trace.puzzle, BOUND)[order.tried(trace)[0]]]
    assert order.looked(best, 1, BOUND).found.value == 1
    for chosen, allowed in order.signs(side, BOUND).values():
        assert chosen == pytest.approx(allowed, abs=0.15)


def test_an_answer_without_an_attempt_is_not_counted():
    jump = traces.parse("<answer> 44 + 35 + 19 - 7 </answer>", PUZZLE)
    assert order.looked([jump], 1, BOUND).found.of == 0


def test_never_tried():
    leads = order.leading(PUZZLE, BOUND)
    (a, sign, b), *others = [operation for operation, can in leads.items() if can]
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
    trace = traces.parse(f"{a} {sign} {b} = {value} , {value} + 1 = {value + 1} no", PUZZLE)
    assert order.never_tried([[trace]], BOUND).count == len(others)


def test_what_needs_a_product():
    assert order.needs_product(countdown.Puzzle((3, 5, 7), 22), BOUND)  # 3 * 5 + 7
    assert not order.needs_product(countdown.Puzzle((3, 5, 7), 15), BOUND)
