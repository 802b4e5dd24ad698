"""Countdown: reach a target from a few numbers with + - * / , each number used exactly once.

Puzzles, an exact solver and the prompts.
Knows nothing of JAX, tokens or models: strings and integers in, strings and numbers out.
"""

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

MAX_NUMBERS = 5  # the solver is exhaustive: one more number costs about fifty times as much
MAX_DRAWS = 1_000  # after so many draws without a puzzle, `generate` calls the range impossible

_BASE_PROMPT = """\
A conversation between User and Assistant. The User poses a problem and the Assistant solves it: \
the Assistant first thinks it through, step by step, and then gives the answer.
User: Find an expression that equals {target}, made from the numbers {numbers}. Only + - * / and \
parentheses are allowed, and every number must be used exactly once. Write your thoughts in \
<think> </think> tags and the final expression in <answer> </answer> tags, for example \
<answer> (1 + 2) / 3 </answer>.
Assistant: Let me solve this step by step.
<think>"""


@dataclass(frozen=True)
class Puzzle:
    """Numbers to combine (in the order shown; repeats allowed) and the target to reach."""

    numbers: tuple[int, ...]
    target: int


def is_held_out(numbers: tuple[int, ...]) -> bool:
    """Whether this multiset of numbers belongs to the held-out tenth (order does not matter)."""
    key = " ".join(str(number) for number in sorted(numbers))
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 == 0


def generate(
    seed: int,
    index: int,
    *,
    numbers: int | tuple[int, ...] = 3,
    low: int = 1,
    high: int = 99,
    target_low: int = 10,
    target_high: int = 100,
    bound: int | None = None,
    held_out: bool = False,
) -> Puzzle:
    """The solvable puzzle number `index` of the endless list that `seed` names.

    Deterministic in (seed, index, held_out) and the settings, on every platform. Numbers are drawn
    uniformly from low..high with replacement; a tenth of all multisets (`is_held_out`) appears
    only with `held_out=True`, the others only without. The target is uniform among the integers
    of target_low..target_high that the numbers reach.

    Args:
      seed, index: which list, and which puzzle in it.
      numbers: how many numbers, 2 to 5; a tuple such as (3, 4) means one of these at random.
      low, high: smallest and largest number.
      target_low, target_high: smallest and largest target.
      bound: None allows any rational intermediate value; otherwise the puzzle has a solution
        whose numbers, intermediate values and target are all integers within 0..bound.
      held_out: draw from the held-out tenth.

    Raises:
      ValueError: the settings contradict each other, or no puzzle was found in 1,000 draws.
    """
    counts = (numbers,) if isinstance(numbers, int) else numbers
    if not counts or not all(2 <= count <= MAX_NUMBERS for count in counts):
        raise ValueError(f"numbers is {numbers!r}: give a count from 2 to {MAX_NUMBERS}, or some.")
    if not (0 <= low <= high and 0 <= target_low <= target_high):
        raise ValueError(
            f"ranges {low}..{high} (numbers) and {target_low}..{target_high} (targets): "
            "each must start at 0 or more and not end before it starts."
        )
    # random() of a string-seeded generator is the one sequence that Python promises to keep.
    rng = random.Random(f"{seed} {index} {bool(held_out)}")
    for _ in range(MAX_DRAWS):
        count = counts[int(rng.random() * len(counts))]
        drawn = tuple(low + int(rng.random() * (high - low + 1)) for _ in range(count))
        if is_held_out(drawn) != bool(held_out):
            continue
        targets = _targets(tuple(sorted(drawn)), bound, target_low, target_high)
        if targets:
            return Puzzle(drawn, targets[int(rng.random() * len(targets))])
    raise ValueError(
        f"no {'held-out' if held_out else 'training'} puzzle found in {MAX_DRAWS} draws of "
        f"{numbers} numbers from {low}..{high} with targets {target_low}..{target_high} and bound "
        f"{bound}: widen a range or raise the bound."
    )


def prompt(puzzle: Puzzle, template: str = "tiny") -> str:
    """The text before the completion.

    "tiny" is the tiny model's language, numbers largest first: `20 16 4 = 40 :`. "base" is for a
    pre-trained model that follows no chat format, in the spirit of TinyZero's base template
    (https://github.com/Jiayi-Pan/TinyZero); it ends with `<think>`.

    Raises:
      ValueError: unknown template.
    """
    if template == "tiny":
        ordered = sorted(puzzle.numbers, reverse=True)
        return f"{' '.join(map(str, ordered))} = {puzzle.target} :"
    if template == "base":
        return _BASE_PROMPT.format(numbers=list(puzzle.numbers), target=puzzle.target)
    raise ValueError(f'unknown template {template!r}: use "tiny" or "base".')


@lru_cache(maxsize=1 << 14)
def _targets(
    numbers: tuple[int, ...], bound: int | None, target_low: int, target_high: int
) -> tuple[int, ...]:
    """The integers of target_low..target_high that the sorted `numbers` reach, ascending."""
    reached = _expressions(numbers, bound)
    return tuple(target for target in range(target_low, target_high + 1) if target in reached)


def _expressions(
    numbers: tuple[int, ...], bound: int | None
) -> dict[int | Fraction, set[str]]:
    """Every value that uses all of `numbers`, with all its expressions (outer brackets kept)."""
    if len(numbers) == 1:
        return {numbers[0]: {str(numbers[0])}} if bound is None or numbers[0] <= bound else {}
    found = defaultdict(set)
    for left, right in _splits(numbers):
        pairs = product(_expressions(left, bound).items(), _expressions(right, bound).items())
        for one, other in pairs:
            for (a, xs), (b, ys) in ((one, other), (other, one)):
                for sign, value in _operations(a, b, bound):
                    # Equal operands of + and * come in both orders: keep one of them.
                    ordered = a != b or sign in "-/"
                    found[value].update(
                        f"( {x} {sign} {y} )" for x in xs for y in ys if ordered or x >= y
                    )
    return found


def _splits(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part a multiset in two, neither part empty, the first number on the left."""
    splits = set()
    for mask in range(2 ** (len(numbers) - 1) - 1):
        sides = [0] + [1 - (mask >> i & 1) for i in range(len(numbers) - 1)]
        parts = [tuple(n for n, s in zip(numbers, sides, strict=True) if s == p) for p in (0, 1)]
        splits.add((parts[0], parts[1]))
    return splits


def _operations(
    a: int | Fraction, b: int | Fraction, bound: int | None
) -> list[tuple[str, int | Fraction]]:
    """Sign and value of each operation `a sign b`; + and * only with the larger operand first."""
    results = [("+", a + b), ("*", a * b)] if a >= b else []
    if bound is None:
        results.append(("-", a - b))
        if b:
            results.append(("/", Fraction(a, b)))
        return results
    if a >= b:
        results.append(("-", a - b))
        if b and a % b == 0:
            results.append(("/", a // b))
    return [(sign, value) for sign, value in results if value <= bound]
