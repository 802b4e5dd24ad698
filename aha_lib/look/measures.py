"""What completions do, counted so that the count does not depend on how an answer ends.

To sort answers by style and compare their accuracies is a trap: the style depends on the outcome.
Here stand shares that can be compared before and after training, and what Countdown's rule of the
corpus (`worked.trace`) would reach if it were followed without a mistake. For runs whose puzzles
are Countdown's. Knows nothing of models, files or plots.
"""

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aha_lib.look.record import Record
from aha_lib.tasks import countdown, traces, worked

ONE_OPERATION = re.compile(r"(\d+) ?([-+*/]) ?(\d+)", re.ASCII)


@dataclass(frozen=True)
class Share:
    """So many of so many; of nothing it has no value."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """From 0 to 1; not a number where it is a share of nothing."""
        return self.count / self.of if self.of else math.nan

    @property
    def error(self) -> float:
        """The standard error, as if all of them were independent; not a number of nothing."""
        return math.sqrt(self.value * (1 - self.value) / self.of) if self.of else math.nan

    def __add__(self, other: "Share") -> "Share":
        return Share(self.count + other.count, self.of + other.of)

    def __str__(self) -> str:
        return f"{self.count}/{self.of} = {self.value:.2f}" if self.of else "none"


def share(flags: Iterable[bool]) -> Share:
    """How many of the flags are true."""
    flags = list(flags)
    return Share(sum(map(bool, flags)), len(flags))


def clustered_error(
    values: Sequence[bool | int | float], puzzles: Sequence[countdown.Puzzle]
) -> float:
    """The standard error of the values' mean, where puzzles of the same numbers are no two draws.

    A value a puzzle. Held-out puzzles share sets of numbers, and whoever solves one of a set is
    likelier to solve another, so the panel is a sample of sets: the error is that of a sum over
    independent sets (Liang and Zeger, 1986, with the usual G / (G - 1) for G sets). Not a number
    where there are fewer than two sets.
    """
    if len(values) != len(puzzles):
        raise ValueError(f"{len(values)} values of {len(puzzles)} puzzles: one each is needed.")
    sets = [tuple(sorted(puzzle.numbers)) for puzzle in puzzles]
    count = len(set(sets))
    if count < 2:
        return math.nan
    mean = sum(values) / len(values)
    off = dict.fromkeys(sets, 0.0)  # of each set the sum of how far its values are off the mean
    for numbers, value in zip(sets, values, strict=True):
        off[numbers] += value - mean
    squares = sum(sum_off**2 for sum_off in off.values())
    return math.sqrt(count / (count - 1) * squares) / len(values)


def accuracy_error(side: Sequence[traces.Trace]) -> float:
    """The standard error of the share that is right, by sets of numbers: `clustered_error`."""
    return clustered_error([trace.right for trace in side], [trace.puzzle for trace in side])


def take_apart(run: Record, kind: str = "sampled") -> list[list[traces.Trace]]:
    """The completions of a run, "sampled" or "greedy": for each checkpoint a trace a puzzle."""
    sides = []
    for row in run.kept:
        pairs = zip(row[kind], run.panel, strict=True)
        sides.append([traces.parse(text, puzzle) for text, puzzle in pairs])
    return sides


def will_and_skill(side: Sequence[traces.Trace]) -> dict[str, Share]:
    """Of completions, of first noes, of attempts, of sums with a result."""
    tried = [trace for trace in side if trace.attempts]
    refused = [trace for trace in tried if trace.attempts[0].verdict == "no"]
    stated = [c.true for trace in side for c in trace.claims if c.true is not None]
    return {
        "any attempt": Share(len(tried), len(side)),
        "goes on after a no": share(len(trace.attempts) > 1 for trace in refused),
        "hits per attempt": share(a.reached for trace in tried for a in trace.attempts),
        "true sums": share(stated),
    }


def repeated(side: Iterable[traces.Trace]) -> Share:
    """Of the attempts, those that make a calculation of an earlier one, in whatever order."""
    return share(a.repeated for trace in side for a in trace.attempts)


def reached_within(side: Sequence[traces.Trace], most: int) -> Share:
    """Of the completions, those that reach the target in their first attempts."""
    return share(any(a.reached for a in trace.attempts[:most]) for trace in side)


def solved_within(side: Sequence[traces.Trace], most: int) -> list[float]:
    """The share that reaches the target within one attempt, two, and so on up to `most`."""
    return [reached_within(side, attempts).value for attempts in range(1, most + 1)]


def finished(side: Iterable[traces.Trace]) -> Share:
    """Of the answers that try an operation that can lead to the target: is the target reached when
    the answer tries such an operation for the first time?

    For puzzles of three numbers, where such an operation is the first of two.
    """
    return share(reached for reached, _ in _first_promising_tries(side))


def finished_error(side: Iterable[traces.Trace]) -> float:
    """The standard error of what `finished` gives, by sets of numbers: `clustered_error`."""
    tries = _first_promising_tries(side)
    return clustered_error([reached for reached, _ in tries], [puzzle for _, puzzle in tries])


def _first_promising_tries(
    side: Iterable[traces.Trace],
) -> list[tuple[bool, countdown.Puzzle]]:
    """Of each answer that has one: does its first try of what can lead to the target reach it?"""
    outcomes = []
    for trace in side:
        promising = promising_firsts(trace.puzzle)
        first_tries = (a for a in trace.attempts if first_operation(a) in promising)
        attempt = next(first_tries, None)
        if attempt is not None:
            outcomes.append((attempt.reached, trace.puzzle))
    return outcomes


def first_operation(attempt: traces.Attempt) -> tuple[int, str, int] | None:
    """What the attempt does first, the larger number first; None for more than an operation."""
    match = ONE_OPERATION.fullmatch(attempt.claims[0].expression)
    if match is None:
        return None
    a, sign, b = match.groups()
    return _ordered(int(a), sign, int(b))


def _ordered(a: int, sign: str, b: int) -> tuple[int, str, int]:
    return (b, sign, a) if sign in "+*" and a < b else (a, sign, b)


@functools.cache  # asked for again with each count of attempts
def _in_order(puzzle: countdown.Puzzle) -> dict[worked.Step, bool]:
    """The first operations in the rule's order, and whether one more can then hit the target.

    ValueError for a puzzle that does not have three numbers, for which there is no such rule.
    """
    if len(puzzle.numbers) != 3:
        raise ValueError(f"The rule is for three numbers: {puzzle} has {len(puzzle.numbers)}.")
    found = {}
    for step in worked.steps(worked.given(puzzle)):
        found[step] = puzzle.target in [value for _, value in _seconds(step)]
    return found


def _seconds(step: worked.Step) -> list[tuple[str, int]]:
    """All operations on the two numbers that a first operation leaves."""
    (rest,) = step.rest
    return worked.operations(step.value, rest.value)


def promising_firsts(puzzle: countdown.Puzzle) -> set[tuple[int, str, int]]:
    """The first operations after which one more can hit the target."""
    leading = [step for step, can_hit in _in_order(puzzle).items() if can_hit]
    return {step.operation for step in leading}


def chance_by_rule(puzzle: countdown.Puzzle, most: int = 1) -> float:
    """How likely the rule hits in its first attempts, whatever operation it begins with."""
    return chance_in_rounds([*_in_order(puzzle).values()], most)


def chance_in_rounds(leads: Sequence[bool], tries: int) -> float:
    """How likely one that leads is among the first, in the given order from a random one on."""
    starts = range(len(leads))
    hits = [any((*leads[start:], *leads[:start])[:tries]) for start in starts]
    return sum(hits) / len(hits)


def rule_within(panel: Sequence[countdown.Puzzle], most: int) -> float:
    """Of a panel the share that the rule solves in its first attempts."""
    chances = [chance_by_rule(puzzle, most) for puzzle in panel]
    return sum(chances) / len(chances)


def rule_reaches(panel: Sequence[countdown.Puzzle], most: int) -> list[float]:
    """Of a panel the share that the rule solves within one attempt, two, and so on up to `most`."""
    return [rule_within(panel, attempts) for attempts in range(1, most + 1)]


def rule_run_on(puzzle: countdown.Puzzle, attempts: int, start: int = 0) -> traces.Trace:
    """What the rule writes if it goes round for so many attempts and nothing stops it.

    The comparison for answers that repeat themselves: the rule has as few operations to try.
    """
    firsts = [*_in_order(puzzle)]
    lines = []
    for turn in range(attempts):
        step = firsts[(start + turn) % len(firsts)]
        second, _ = min(_seconds(step), key=lambda second: abs(second[1] - puzzle.target))
        lines.append(f"{step.fact} , {second} no")
    return traces.parse(" ".join(lines), puzzle)
