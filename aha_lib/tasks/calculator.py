"""Countdown with a calculator: `44 - 19 = ?` asks, and the tool writes `25` behind it.

The model may as well write a sum's result itself, `44 - 19 = 25`; the calculator is never wrong.
Rewards are Countdown's, less what calls cost, and read a text without its question marks. Also the
worked text in which a base sees sums asked, and seldom. Strings and integers; knows nothing of JAX,
tokens or models.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aha_lib.presets import PUZZLES
from aha_lib.tasks import countdown
from aha_lib.tasks.task import Countdown
from aha_lib.tasks.worked import BOUND

ASK = "?"
NOTHING = "no"  # the reply to what has no result: in the vocabulary, and read as a verdict
ASKED = 0.15  # of the sums in the corpus
SMALL = 20  # the largest number, result included, in a small sum
KINDS = ("small", "large", "times")  # of sums: + and - with small numbers; other + and -; * and /

# One operation on two numbers, all of its words parted by blanks, that is not the end of a longer
# one; then a result or a question.
_SUM = re.compile(r"(?<!\S)(?<![-+*/] )([0-9]{1,3}) ([-+*/]) ([0-9]{1,3}) = (\?|[0-9]{1,3})(?!\S)")


@dataclass(frozen=True)
class Sum:
    """An operation as a text has it: with a result of the model's own, or asked."""

    a: int
    sign: str
    b: int
    stated: int | None  # the result that the model wrote; None: it asked

    @property
    def asked(self) -> bool:
        return self.stated is None

    @property
    def true(self) -> bool:
        """Whether the stated result is right; False of a sum that was asked."""
        return self.stated is not None and self.stated == result(self.a, self.sign, self.b)

    @property
    def kind(self) -> str:
        """One of KINDS, by the numbers and the true result, not by what is stated."""
        if self.sign in "*/":
            return "times"
        numbers = (self.a, self.b, result(self.a, self.sign, self.b))
        is_small = None not in numbers and max(numbers) <= SMALL
        return "small" if is_small else "large"


def result(a: int, sign: str, b: int) -> int | None:
    """Of an operation on whole numbers; None where it is no whole number, or below 0."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    value = countdown.EXACT[sign](a, b)
    return value if value >= 0 else None


def sums(text: str) -> list[Sum]:
    """All sums of a text in the tiny language, in order."""
    found = []
    for a, sign, b, stated in _SUM.findall(text):
        found.append(Sum(int(a), sign, int(b), None if stated == ASK else int(stated)))
    return found


def without_calls(text: str) -> str:
    """The text as if the model had written every result itself: without its question marks."""
    return re.sub(r" ?\?", "", text)


@dataclass(frozen=True)
class Calculator(Countdown):
    """Countdown in the tiny language, with a tool for its sums."""

    price: float = 0.0  # of a call, taken off the reward; the accuracy is then the measure "right"

    name = ""  # that of the module and the class, not Countdown's
    turn_end = ASK

    @property
    def bound(self) -> int:
        """The largest result that the tool writes: that of the puzzles' arithmetic."""
        return PUZZLES[self.puzzles].bound or BOUND

    def reply(self, text: str, puzzle: countdown.Puzzle) -> str:
        """The result of the sum that the text ends with, `44 - 19 = ?`.

        "no" where it is no sum of two numbers, or its result is no whole number from 0 to `bound`.
        """
        text = text.rstrip()
        ending = [match for match in _SUM.finditer(text) if match.end() == len(text)]
        if not ending or ending[0][4] != ASK:
            return NOTHING
        a, sign, b, _ = ending[0].groups()
        found = result(int(a), sign, int(b))
        return NOTHING if found is None or found > self.bound else str(found)

    def reward(self, text: str, puzzle: countdown.Puzzle) -> float:
        """Countdown's, of the text without its question marks, less what they cost."""
        return super().reward(without_calls(text), puzzle) - self.price * text.count(ASK)

    def measures(
        self,
        texts: Sequence[str],
        puzzles: Sequence[countdown.Puzzle],
        ended: Sequence[bool],
    ) -> dict[str, float | dict[str, int]]:
        """Countdown's, and what becomes of the sums.

        right: the accuracy, whatever a call costs. calls: question marks of a completion. asked:
        the share of the sums that are asked; true: of the others, the share whose result is right.
        asked_small, true_small, …: the same for each of KINDS. A share of nothing is left out.
        """
        plain = [without_calls(text) for text in texts]
        found = super().measures(plain, puzzles, ended)
        right = [
            super(Calculator, self).reward(text, puzzle) == 1
            for text, puzzle in zip(plain, puzzles, strict=True)
        ]
        found["right"] = sum(right) / len(right)
        found["calls"] = sum(text.count(ASK) for text in texts) / len(texts)
        every = [one for text in texts for one in sums(text)]
        return found | shares(every)


def shares(every: Sequence[Sum]) -> dict[str, float]:
    """How many of some sums are asked, and how many of the others are true; also by kind."""
    found = {}
    for kind in (None, *KINDS):
        those = [one for one in every if kind is None or one.kind == kind]
        own = [one for one in those if not one.asked]
        end = f"_{kind}" if kind else ""
        if those:
            found[f"asked{end}"] = 1 - len(own) / len(those)
        if own:
            found[f"true{end}"] = sum(one.true for one in own) / len(own)
    return found


@dataclass(frozen=True)
class Cheap(Calculator):
    """The same task where a call costs a hundredth of a right answer."""

    price: float = 0.01


@dataclass(frozen=True)
class Dear(Calculator):
    """The same task where a call costs a twentieth of a right answer."""

    price: float = 0.05


def with_calls(
    pieces: Sequence[tuple[str, float]], rng: random.Random, share: float = ASKED
) -> list[tuple[str, float]]:
    """Pieces of a document, text and weight, in which some of the sums are asked.

    The results of these are the tool's: they have weight 0, and are never learnt. A sum that is
    parted already, as in a drill, stays as it is.
    """
    found = []
    for text, weight in pieces:
        start = 0
        for match in _SUM.finditer(text):
            if rng.random() >= share:
                continue
            asks = text[start : match.start(4)]
            found += [(f"{asks}{ASK}", weight), (match[4], 0.0)]
            start = match.end() + 1  # and the blank behind it
        if start < len(text):
            found.append((text[start:], weight))
    return found
