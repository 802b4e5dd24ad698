"""Where a search looks first: its first operations, beside those that chance would try.

With three numbers a search soon has tried all first operations; with four there are some thirty,
and what stands after each is a search of its own, so an answer has room for a few. Then it matters
which come first. Of Countdown's puzzles within the corpus's bound; knows nothing of models, files
or plots.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from aha_lib.look.measures import Share, chance_in_rounds, first_operation, share
from aha_lib.tasks import countdown, traces, worked

Operation = tuple[int, str, int]  # the larger number first


@dataclass(frozen=True)
class Looked:
    """How many answers try, among their first `tries` operations, one that can lead to the target;
    and the share that would, if they were tried in an order by chance."""

    tries: int
    found: Share
    shuffled: float  # every order as likely
    in_rounds: float  # the corpus's order from a random operation on


@lru_cache(maxsize=1 << 14)
def leading(puzzle: countdown.Puzzle, bound: int) -> dict[Operation, bool]:
    """The operations on two of the given numbers, in the rule's order: can each lead to the target,
    with every value an integer from 0 to the bound?"""
    found = {}
    for step in worked.steps(worked.given(puzzle), bound):
        left = tuple(sorted([step.value, *(piece.value for piece in step.rest)]))
        found[step.operation] = puzzle.target in countdown.reachable(left, bound)
    return found


def tried(trace: traces.Trace) -> list[Operation]:
    """The operations on two of the given numbers that an answer tries, each once, in order."""
    begun = [attempt for attempt in trace.attempts if not attempt.returned]
    found = [first_operation(attempt) for attempt in begun]
    return list(dict.fromkeys(operation for operation in found if operation is not None))


def looked(side: Iterable[traces.Trace], tries: int, bound: int) -> Looked:
    """Of the answers that try anything, on the same puzzles as the two orders by chance."""
    found, shuffled, in_rounds = [], [], []
    for trace in side:
        leads = leading(trace.puzzle, bound)
        operations = [operation for operation in tried(trace) if operation in leads]
        if not operations:
            continue
        found.append(any(leads[operation] for operation in operations[:tries]))
        shuffled.append(chance_shuffled([*leads.values()], tries))
        in_rounds.append(chance_in_rounds([*leads.values()], tries))
    mean = lambda of: sum(of) / len(of) if of else math.nan  # noqa: E731
    return Looked(tries, share(found), mean(shuffled), mean(in_rounds))


def chance_shuffled(leads: Sequence[bool], tries: int) -> float:
    """How likely one that leads is among the first, in a random order."""
    count, wrong = len(leads), leads.count(False)
    tries = min(tries, count)
    return 1 - math.comb(wrong, tries) / math.comb(count, tries)


def signs(side: Iterable[traces.Trace], bound: int) -> dict[str, tuple[float, float]]:
    """Of the first operation of the answers: the share of each sign, and the share it would have if
    each operation that the puzzle allows were as likely."""
    chosen, allowed = Counter(), Counter()
    for trace in side:
        leads = leading(trace.puzzle, bound)
        first = next((operation for operation in tried(trace) if operation in leads), None)
        if first is None:
            continue
        chosen[first[1]] += 1
        for _, sign, _ in leads:
            allowed[sign] += 1 / len(leads)
    count = max(1, chosen.total())
    return {sign: (chosen[sign] / count, allowed[sign] / count) for sign in "+-*/"}


def never_tried(sides: Sequence[Sequence[traces.Trace]], bound: int) -> Share:
    """Of the operations that can lead to a puzzle's target, those that none of its answers tries;
    `sides` has the answers of each puzzle."""
    missed = []
    for answers in sides:
        leads = leading(answers[0].puzzle, bound)
        seen = {operation for trace in answers for operation in tried(trace)}
        missed += [operation not in seen for operation, can in leads.items() if can]
    return share(missed)


def needs_product(puzzle: countdown.Puzzle, bound: int) -> bool:
    """Whether every solution within the bound multiplies or divides."""
    solutions = countdown.solve(puzzle, bound)
    return all("*" in solution or "/" in solution for solution in solutions)
