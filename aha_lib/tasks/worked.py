"""Worked solutions of Countdown for any count of numbers: a search, written down as it goes.

With three numbers an attempt is a first operation, a comma, the last one and a verdict. With more,
what a first operation leaves is a smaller puzzle, written as the prompt of it is, and worked in the
same way; where it is used up, `back` returns to the puzzle before, which is written again:

    44 35 19 7 = 91 : 44 - 19 = 25 ; 35 25 7 = 91 : 35 + 25 = 60 , 60 + 7 = 67 no 35 - 25 = 10 ,
    10 + 7 = 17 no … no back 44 35 19 7 = 91 : 44 + 35 = 79 ; 79 19 7 = 91 : 79 + 19 = 98 ,
    98 - 7 = 91 yes <answer> ( ( 44 + 35 ) + 19 ) - 7 </answer>

So a step depends on what stands a list of attempts before it at most, however long the search.
Strings and integers; knows nothing of tokens, models or shares.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from aha_lib.tasks.countdown import Puzzle, prompt

BOUND = 100  # every value in the tiny model's traces is an integer from 0 to this
BACK = "back"  # leaves a puzzle for the one before it


@dataclass(frozen=True)
class Rule:
    """How a search goes through the operations on the numbers at hand.

    Their order is fixed: by pairs, larger numbers first, and + - * / for each. It begins at a
    random operation and goes round, unless it is `shuffled`. Each operation is written once.
    """

    bound: int = BOUND  # every value is an integer from 0 to this
    # Chance, after each no, to go back though operations are left. 0: depth-first. 1: every
    # attempt starts from the given numbers. What was left is gone on with when its turn comes.
    leave: float = 0.0
    shuffled: bool = False


DEPTH_FIRST = Rule()


@dataclass(frozen=True)
class Piece:
    """A number at hand, and the expression it stands for: the number, or one in brackets."""

    value: int
    made: str


@dataclass(frozen=True)
class Step:
    """An operation on two of the pieces."""

    fact: str  # `44 - 19 = 25`
    value: int
    a: Piece
    b: Piece
    rest: tuple[Piece, ...]  # the other pieces

    @property
    def sign(self) -> str:
        return self.fact.split()[1]

    @property
    def operation(self) -> tuple[int, str, int]:
        """What is done, without its result; the larger number first."""
        return self.a.value, self.sign, self.b.value

    @property
    def result(self) -> Piece:
        return Piece(self.value, f"( {self.a.made} {self.sign} {self.b.made} )")


class Branch:
    """The numbers left after some operations, and the operations on them that are not used up."""

    def __init__(self, pieces: Sequence[Piece], rng: random.Random, rule: Rule):
        self.pieces = sorted(pieces, key=lambda piece: -piece.value)
        self.untried = deque(_arranged(steps(self.pieces, rule.bound), rng, rule))
        self._rng = rng
        self._rule = rule
        self._branches: dict[str, Branch] = {}  # by the fact that leads there

    def after(self, step: Step) -> "Branch":
        """The branch that a step leads to: the same one each time."""
        if step.fact not in self._branches:
            left = [step.result, *step.rest]
            self._branches[step.fact] = Branch(left, self._rng, self._rule)
        return self._branches[step.fact]

    def stated(self, target: int) -> str:
        """The puzzle that is left, as its prompt states it."""
        return prompt(Puzzle(tuple(piece.value for piece in self.pieces), target))


def operations(a: int, b: int, bound: int = BOUND) -> list[tuple[str, int]]:
    """Every legal operation on two numbers as (text, value): `20 - 16 = 4`, larger first."""
    if a < b:
        a, b = b, a
    values = {"+": a + b, "-": a - b, "*": a * b}
    if b and a % b == 0:
        values["/"] = a // b
    within = {sign: value for sign, value in values.items() if value <= bound}
    return [(f"{a} {sign} {b} = {value}", value) for sign, value in within.items()]


def given(puzzle: Puzzle) -> list[Piece]:
    """The numbers of a puzzle, the largest first."""
    return [Piece(number, str(number)) for number in sorted(puzzle.numbers, reverse=True)]


def steps(pieces: Sequence[Piece], bound: int = BOUND) -> list[Step]:
    """All operations on two of the pieces, in the rule's order; of equal numbers each one once.

    The pieces stand with the largest first.
    """
    found: dict[str, Step] = {}
    for i, j in combinations(range(len(pieces)), 2):
        a, b = pieces[i], pieces[j]
        rest = tuple(piece for k, piece in enumerate(pieces) if k not in (i, j))
        for fact, value in operations(a.value, b.value, bound):
            found.setdefault(fact, Step(fact, value, a, b, rest))
    return list(found.values())


def trace(puzzle: Puzzle, style: str, rng: random.Random, rule: Rule = DEPTH_FIRST) -> str:
    """A worked solution in one of three styles: "jump", "check" or "search".

    A search goes on after a no until it hits, or all is used up; a check ends after one attempt; a
    jump only answers. The last operation of an attempt is the one that comes closest to the target;
    a jump does not look at the target and takes any.
    """
    lists = [Branch(given(puzzle), rng, rule)]  # the numbers at hand, and those they came from
    aim = None if style == "jump" else puzzle.target
    words: list[str] = []
    while True:
        branch = lists[-1]
        if not branch.untried:
            if len(lists) == 1:
                break
            _go_back(lists, words, puzzle.target)
            lists[-1].untried.popleft()
            continue
        step = branch.untried[0]
        words.append(step.fact)
        if len(step.rest) > 1:
            lists.append(branch.after(step))
            words += [";", lists[-1].stated(puzzle.target)]
            continue
        branch.untried.popleft()
        last = _last_step(step, aim, rng, rule)
        answer = last.result.made
        is_hit = last.value == puzzle.target
        words += [",", last.fact, "yes" if is_hit else "no"]
        if is_hit or style != "search":
            break
        while _is_left_early(lists, rng, rule):
            _go_back(lists, words, puzzle.target)
            lists[-1].untried.rotate(-1)
    while words[-2] == BACK:  # all is used up
        words = words[:-2]
    tagged = f"<answer> {answer[2:-2]} </answer>"
    return tagged if style == "jump" else " ".join([*words, tagged])


def _is_left_early(lists: list[Branch], rng: random.Random, rule: Rule) -> bool:
    """Whether to go back, by the rule's chance, from a branch that still has something to try."""
    if not rule.leave or len(lists) == 1 or not lists[-1].untried:
        return False
    return rng.random() < rule.leave


def _go_back(lists: list[Branch], words: list[str], target: int) -> None:
    lists.pop()
    words += [BACK, lists[-1].stated(target)]


def _arranged(steps: list[Step], rng: random.Random, rule: Rule) -> list[Step]:
    """The steps in the order in which they are tried."""
    if rule.shuffled:
        return rng.sample(steps, len(steps))
    start = rng.randrange(len(steps))
    return steps[start:] + steps[:start]


def _last_step(step: Step, target: int | None, rng: random.Random, rule: Rule) -> Step:
    """The operation on the two numbers left that comes closest to the target; None: any."""
    a, b = step.result, step.rest[0]
    if a.value < b.value:
        a, b = b, a
    found = operations(a.value, b.value, rule.bound)
    rng.shuffle(found)
    if target is not None:
        found.sort(key=lambda operation: abs(operation[1] - target))
    fact, value = found[0]
    return Step(fact, value, a, b, ())
