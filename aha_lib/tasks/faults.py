"""Where a worked search first leaves its rule: the grammar of `worked`, read word by word.

Independent of how `worked` writes: it keeps its own books of numbers left and operations tried.
Strings and integers; knows nothing of tokens or models.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from aha_lib.tasks.countdown import Puzzle, reward
from aha_lib.tasks.worked import Rule, operations

# All that `first_fault` may name.
KINDS = {
    "none": "the answer is right",
    "cut off": "the limit of tokens came first",
    "gave up": "an answer after a no, though something is left to try",
    "used up": "an answer after a no, and nothing is left to try",
    "form": "words that the grammar does not have there",
    "false sum": "a result that is wrong",
    "not at hand": "an operation on a number that is not left, or one that is not legal",
    "false list": "the numbers that are stated as left are not those that are left",
    "repeat": "an operation that was tried on these numbers before",
    "left early": "gone back though something is left to try",
    "stays": "no way back though all is used up",
    "not closest": "a last operation that is not the one closest to the target",
    "false verdict": "a yes for a no, or a no for a yes",
    "false answer": "an answer that is not the attempt that hit",
}


@dataclass(frozen=True)
class Reading:
    """A search read up to its first fault."""

    fault: str  # a key of KINDS
    attempts: int  # with a verdict, before the fault
    sums: int  # true ones, before the fault
    in_order: int  # operations that are the next in the rule's round, and …
    out_of_order: int  # … those that are not, of those that are not the first on their numbers
    where: str  # the words around the fault


@dataclass
class _List:
    """Numbers left, and what was tried on them."""

    numbers: list[int]
    bound: int
    tried: list[str] = field(default_factory=list)

    @property
    def facts(self) -> list[str]:
        """All operations on two of the numbers, in the rule's order."""
        found = []
        ordered = sorted(self.numbers, reverse=True)
        for i, a in enumerate(ordered):
            for b in ordered[i + 1 :]:
                found += [fact for fact, _ in operations(a, b, self.bound)]
        return list(dict.fromkeys(found))

    @property
    def is_used_up(self) -> bool:
        return set(self.facts) <= set(self.tried)

    def without(self, fact: str) -> list[int]:
        """What an operation leaves, its result included."""
        a, _, b, _, result = fact.split()
        left = Counter(self.numbers) - Counter([int(a), int(b)])
        return sorted([*left.elements(), int(result)], reverse=True)


class _Fault(Exception):
    """Raised with a key of KINDS."""


class _Reader:
    def __init__(self, completion: str, puzzle: Puzzle, rule: Rule):
        self.words = completion.split()
        self.at = 0
        self.puzzle = puzzle
        self.rule = rule
        self.lists = [_List(sorted(puzzle.numbers, reverse=True), rule.bound)]
        self.attempts = self.sums = self.in_order = self.out_of_order = 0

    def read(self) -> None:
        """Read to the end; raises _Fault."""
        verdict = ""
        while self._peek() != "<answer>":
            if verdict == "yes":
                raise _Fault("form")
            while self._peek() == "back":
                self._go_back()
            first = self._operation(self.lists[-1])
            if len(self.lists[-1].numbers) > 3:
                self._smaller_puzzle(first)
            else:
                verdict = self._attempt(first)
        if verdict == "no":
            root_is_used_up = all(each.is_used_up for each in self.lists)
            raise _Fault("used up" if root_is_used_up else "gave up")
        if "</answer>" not in self.words[self.at :]:
            raise _Fault("cut off")
        if reward(" ".join(self.words), self.puzzle).value != 1:
            raise _Fault("false answer")

    def _peek(self) -> str:
        if self.at == len(self.words):
            raise _Fault("cut off")
        return self.words[self.at]

    def _take(self) -> str:
        word = self._peek()
        self.at += 1
        return word

    def _expect(self, *words: str) -> None:
        for word in words:
            if self._take() != word:
                raise _Fault("form")

    def _go_back(self) -> None:
        self._take()
        if len(self.lists) == 1:
            raise _Fault("form")
        left = self.lists.pop()
        if not left.is_used_up and not self.rule.leave:
            raise _Fault("left early")
        self._state(self.lists[-1].numbers)

    def _state(self, numbers: list[int]) -> None:
        """A puzzle as its prompt states it."""
        stated = []
        while self._peek() != "=":
            word = self._take()
            if not word.isdecimal():
                raise _Fault("form")
            stated.append(int(word))
        self._expect("=")
        if stated != numbers or self._take() != str(self.puzzle.target):
            raise _Fault("false list")
        self._expect(":")

    def _smaller_puzzle(self, fact: str) -> None:
        self._expect(";")
        left = self.lists[-1].without(fact)
        self._state(left)
        self.lists.append(_List(left, self.rule.bound))

    def _attempt(self, first: str) -> str:
        """The last operation and the verdict of an attempt."""
        self._expect(",")
        two = _List(self.lists[-1].without(first), self.rule.bound)
        last = self._operation(two)
        target = self.puzzle.target
        distances = [abs(int(fact.split()[-1]) - target) for fact in two.facts]
        distance = abs(int(last.split()[-1]) - target)
        if distance > min(distances):
            raise _Fault("not closest")
        verdict = self._take()
        if verdict not in ("yes", "no"):
            raise _Fault("form")
        if (verdict == "yes") != (distance == 0):
            raise _Fault("false verdict")
        self.attempts += 1
        return verdict

    def _operation(self, numbers: _List) -> str:
        """A legal operation on two of the numbers that was not tried before."""
        fact = " ".join(self._take() for _ in range(5))
        parts = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", fact)
        if not parts:
            raise _Fault("form")
        same = [legal for legal in numbers.facts if legal.startswith(fact.rsplit(" ", 1)[0] + " ")]
        if not same:
            is_sum = numbers.is_used_up and len(numbers.numbers) == 3 and len(self.lists) > 1
            raise _Fault("stays" if is_sum else "not at hand")
        if same[0] != fact:
            raise _Fault("false sum")
        if fact in numbers.tried:
            raise _Fault("stays" if numbers.is_used_up else "repeat")
        if numbers.tried:
            facts = numbers.facts
            expected = facts[(facts.index(numbers.tried[-1]) + 1) % len(facts)]
            self.in_order += fact == expected
            self.out_of_order += fact != expected
        numbers.tried.append(fact)
        self.sums += 1
        return fact


def first_fault(completion: str, puzzle: Puzzle, rule: Rule) -> Reading:
    """Read a search, a check or the like in the tiny language; a jump has no fault but its answer.

    A search without a fault ends in a right answer. Operations may come in any order.
    """
    reader = _Reader(completion, puzzle, rule)
    try:
        reader.read()
        fault = "none"
    except _Fault as found:
        fault = str(found)
    return Reading(
        fault=fault,
        attempts=reader.attempts,
        sums=reader.sums,
        in_order=reader.in_order,
        out_of_order=reader.out_of_order,
        where=" ".join(reader.words[max(0, reader.at - 12) : reader.at + 3]),
    )
