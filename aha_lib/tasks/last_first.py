"""A task of your own, in forty lines: of three numbers, write the last one first.

    python notebooks/05_train.py --task aha_lib.tasks.last_first:LastFirst --out runs/last

The tiny base was never asked for that, and hardly ever does it. Copy this file, change the four
methods, and give its path with `:` and the class's name. Knows nothing of Countdown.
"""

import random

from aha_lib.tasks.task import Task


class LastFirst(Task[list[int]]):
    """Of three numbers, write the last one first."""

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> list[int]:
        """Three numbers from 1 to 20; a held-out puzzle's are even in sum, the others' odd."""
        # A seed for every case, so that the same arguments always give the same numbers.
        rng = random.Random(f"{seed} {index} {held_out}")
        while True:
            numbers = rng.sample(range(1, 21), 3)
            if (sum(numbers) % 2 == 0) == held_out:
                return numbers

    def prompt(self, puzzle: list[int]) -> str:
        """In the words that the model knows: the tiny one's are numbers to 100 and a few signs."""
        return " ".join(map(str, puzzle)) + " = 50 :"

    def reward(self, text: str, puzzle: list[int]) -> float:
        """1 for the last number at the beginning, else 0."""
        return float(text.split()[:1] == [str(puzzle[-1])])

    def longest(self) -> list[int]:
        """All prompts have as many tokens."""
        return [20, 19, 18]
