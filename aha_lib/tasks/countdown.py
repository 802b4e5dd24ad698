"""Countdown: reach a target from a few numbers with + - * / , each number used exactly once.

Puzzles, an exact solver, the prompts, and the verifier that turns a completion into a reward.
Knows nothing of JAX, tokens or models: strings and integers in, strings and numbers out.
"""

import hashlib
import operator
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import gcd

from aha_lib.presets import PUZZLES, PuzzleRange

TINYZERO = PUZZLES["tinyzero"]
MAX_NUMBERS = 5  # the solver is exhaustive: one more number costs about fifty times as much
MAX_DRAWS = 1_000  # after so many draws without a puzzle, `generate` calls the range impossible
MAX_COMPLETION = 1_000_000  # characters, from the end, that are searched for an answer
MAX_ANSWER = 300  # characters of an answer; a longer one is not read

Ratio = tuple[int, int]  # numerator and denominator (above 0), in lowest terms

EXACT = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

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


@dataclass(frozen=True)
class Reward:
    """What a completion earns, its answer as written, and why, for a person to read."""

    value: float
    expression: str
    reason: str


def is_held_out(numbers: tuple[int, ...]) -> bool:
    """Whether this multiset of numbers belongs to the held-out tenth (order does not matter)."""
    key = " ".join(str(number) for number in sorted(numbers))
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 == 0


def generate(
    seed: int, index: int, ranges: PuzzleRange = TINYZERO, *, held_out: bool = False
) -> Puzzle:
    """The solvable puzzle number `index` of the endless list that `seed` names.

    Deterministic in (seed, index, held_out) and the ranges, on every platform. Numbers are drawn
    uniformly with replacement; the held-out multisets appear with `held_out=True` only, the others
    without it only. The target is uniform among those that the numbers reach, or, where
    `ranges.targets` is "uniform", in its range.

    Raises:
      ValueError: the ranges contradict each other, or 1,000 draws held no puzzle.
    """
    _check_ranges(ranges)
    # random() after seeding with a string is the one sequence that Python promises to keep.
    rng = random.Random(f"{seed} {index} {bool(held_out)}")
    target, draws = None, MAX_DRAWS
    if ranges.targets == "uniform":
        draws *= 100  # few numbers reach a target that is drawn before them
        # Three numbers reach a target more rarely than four: the mix is kept if it comes first.
        ranges = replace(ranges, numbers=_draw_count(rng, ranges))
        target = ranges.target_low + int(
            rng.random() * (ranges.target_high - ranges.target_low + 1)
        )
    for _ in range(draws):
        drawn = _draw_numbers(rng, ranges)
        if is_held_out(drawn) != bool(held_out):
            continue
        targets = _targets(
            tuple(sorted(drawn)), ranges.bound, ranges.target_low, ranges.target_high
        )
        if target in targets:
            return Puzzle(drawn, target)
        if targets and target is None:
            return Puzzle(drawn, targets[int(rng.random() * len(targets))])
    raise ValueError(
        f"No {'held-out' if held_out else 'training'} puzzle in {draws} draws of "
        f"{ranges.numbers} numbers from {ranges.low}..{ranges.high} with targets "
        f"{ranges.target_low}..{ranges.target_high} and bound {ranges.bound}: widen a range or "
        "raise the bound."
    )


def _check_ranges(ranges: PuzzleRange) -> None:
    """Raises ValueError where no puzzle could be drawn."""
    if not ranges.counts or not all(2 <= count <= MAX_NUMBERS for count in ranges.counts):
        raise ValueError(
            f"numbers={ranges.numbers!r}: give a count from 2 to {MAX_NUMBERS}, or several."
        )
    numbers_fit = 0 <= ranges.low <= ranges.high
    targets_fit = 0 <= ranges.target_low <= ranges.target_high
    if not (numbers_fit and targets_fit):
        raise ValueError(
            f"Numbers {ranges.low}..{ranges.high}, targets {ranges.target_low}.."
            f"{ranges.target_high}: let each range start at 0 or more and end no earlier than it "
            "starts."
        )
    if ranges.targets not in ("reached", "uniform"):
        raise ValueError(f'targets is {ranges.targets!r}: it has to be "reached" or "uniform".')
    if ranges.targets == "uniform" and ranges.bound is not None:
        if ranges.target_high > ranges.bound:
            raise ValueError(
                f"Targets to {ranges.target_high} cannot be reached within {ranges.bound}: raise "
                "the bound."
            )


def _draw_count(rng: random.Random, ranges: PuzzleRange) -> int:
    return ranges.counts[int(rng.random() * len(ranges.counts))]


def _draw_numbers(rng: random.Random, ranges: PuzzleRange) -> tuple[int, ...]:
    """Some numbers of the range, with replacement, in the order in which they are shown."""
    count = _draw_count(rng, ranges)
    width = ranges.high - ranges.low + 1
    return tuple(ranges.low + int(rng.random() * width) for _ in range(count))


def prompt(puzzle: Puzzle, template: str = "tiny") -> str:
    """The text before the completion.

    "tiny" is the tiny model's language, numbers largest first: `20 16 4 = 40 :`. "short" is a line
    for a model that has learnt the task from worked examples: `Make 40 from 4, 20, 16.`. "base" is
    for a pre-trained model without a chat format, after the idea of TinyZero's base template; it
    ends with `<think>`. Any other template raises a ValueError.
    """
    if template == "tiny":
        ordered = sorted(puzzle.numbers, reverse=True)
        return f"{' '.join(map(str, ordered))} = {puzzle.target} :"
    if template == "base":
        return _BASE_PROMPT.format(numbers=list(puzzle.numbers), target=puzzle.target)
    if template == "short":
        return f"Make {puzzle.target} from {', '.join(map(str, puzzle.numbers))}.\n"
    raise ValueError(f'Unknown template {template!r}: use "tiny", "short" or "base".')


def solve(puzzle: Puzzle, bound: int | None = None) -> list[str]:
    """All solutions, sorted, written like `( 20 + 4 ) + 16`: no brackets around the whole.

    Solutions that differ only by a + b = b + a, by a * b = b * a, or by which of two equal
    numbers stands where, are one; + and * are written with the larger operand first.

    Args:
      bound: None allows any rational intermediate value; otherwise the tiny model's arithmetic:
        every operation has its larger operand first and every value is an integer in 0..bound.

    Raises:
      ValueError: fewer than 2 or more than 5 numbers.
    """
    if not 2 <= len(puzzle.numbers) <= MAX_NUMBERS:
        raise ValueError(f"{len(puzzle.numbers)} numbers: the solver takes 2 to {MAX_NUMBERS}.")
    found = _expressions(tuple(sorted(puzzle.numbers)), bound)
    return sorted(text[2:-2] for text in found.get(puzzle.target, ()))


def reward(
    completion: str, puzzle: Puzzle, *, forgiving: bool = False, form: float = 0.1
) -> Reward:
    """Judge the last complete `<answer>...</answer>` of a completion, exactly.

    1.0: a well-formed expression that uses every number exactly once and equals the target.
    0.1, or whatever `form` is: a well-formed expression, but its numbers, its value or its tail are
    wrong.
    0.0: no complete answer, or one that is not a well-formed expression.

    Well-formed: integers without leading zeros, + - * / (also × ÷ −), parentheses and blanks, at
    most 300 characters, and perhaps a tail `= integer`; so no `**`, `//`, signs, decimals or names.
    The three values are TinyZero's, but TinyZero pays 0.1 for any text in the tag; here junk earns
    nothing, so that the 0.1 takes an expression. Any string is judged, without raising, in a
    millisecond or two: only the last 1,000,000 characters are searched.

    Args:
      completion: the text after the prompt.
      forgiving: each number *at most* once is enough (the letter of TinyZero's prompt).
    """
    text = _last_answer(completion)
    if text is None:
        return Reward(0.0, "", "holds no complete <answer> ... </answer>")
    if len(text) > MAX_ANSWER:
        return Reward(0.0, "", f"has an answer of more than {MAX_ANSWER} characters")
    text = text.strip()
    try:
        postfix, tail = to_postfix(text)
    except ValueError as error:
        return Reward(0.0, text, f"is not well-formed: {error}")
    used, given = Counter(n for n in postfix if isinstance(n, int)), Counter(puzzle.numbers)
    if used != given and not (forgiving and used <= given):
        return Reward(form, text, f"uses {_miscount(used, given)}")
    try:
        value = _evaluate(postfix)
    except ZeroDivisionError:
        return Reward(form, text, "divides by zero")
    if value != puzzle.target:
        return Reward(form, text, f"equals {value}, not {puzzle.target}")
    if tail not in (None, puzzle.target):
        return Reward(form, text, f"equals {value}, but claims to equal {tail}")
    return Reward(1.0, text, f"equals {value}, as asked")


@lru_cache(maxsize=1 << 14)
def _targets(numbers: tuple[int, ...], bound: int | None, low: int, high: int) -> tuple[int, ...]:
    """The integers of low..high that the sorted `numbers` reach, ascending."""
    combine = _integer_results if bound is None else _bounded_results
    found = set()
    for left, right in _partitions(numbers):
        for a, b in product(reachable(left, bound), reachable(right, bound)):
            found.update(combine(a, b))
    most = high if bound is None else min(high, bound)
    return tuple(sorted(value for value in found if low <= value <= most))


@lru_cache(maxsize=1 << 14)
def reachable(numbers: tuple[int, ...], bound: int | None) -> frozenset:
    """Every value made from all the sorted `numbers`; without the expressions, hence fast.

    With a bound the values are integers, otherwise pairs of numerator and denominator in lowest
    terms, which Python adds and multiplies several times faster than `Fraction`s.
    """
    if len(numbers) == 1:
        (number,) = numbers
        if bound is None:
            return frozenset({(number, 1)})
        return frozenset({number} if number <= bound else ())
    found = set()
    for left, right in _partitions(numbers):
        for a, b in product(reachable(left, bound), reachable(right, bound)):
            if bound is None:
                found.update(_rational_results(a, b))
            else:
                found.update(value for value in _bounded_results(a, b) if value <= bound)
    return frozenset(found)


def _partitions(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part the multiset in two, neither empty; the first number stays on the left."""
    first, *rest = numbers
    found = set()
    for mask in range(2 ** len(rest) - 1):
        left, right = [first], []
        for i, number in enumerate(rest):
            side = left if mask >> i & 1 else right
            side.append(number)
        found.add((tuple(left), tuple(right)))
    return found


def _bounded_results(a: int, b: int) -> list[int]:
    """What the tiny model's operations make of two integers: larger first, no remainder."""
    larger, smaller = max(a, b), min(a, b)
    results = [larger + smaller, larger - smaller, larger * smaller]
    if smaller and larger % smaller == 0:
        results.append(larger // smaller)
    return results


def _rational_results(a: Ratio, b: Ratio) -> list[Ratio]:
    """What all operations make of two rational numbers, in either order."""
    (p, q), (r, s) = a, b
    results = [
        _lowest_terms(p * s + r * q, q * s),
        _lowest_terms(p * s - r * q, q * s),
        _lowest_terms(r * q - p * s, q * s),
        _lowest_terms(p * r, q * s),
    ]
    if r:
        results.append(_lowest_terms(p * s, q * r))
    if p:
        results.append(_lowest_terms(r * q, s * p))
    return results


def _integer_results(a: Ratio, b: Ratio) -> list[int]:
    """The integers among `_rational_results`, without reducing the others: most are none."""
    (p, q), (r, s) = a, b
    results = []
    # Fractions in lowest terms add up to an integer only if their denominators agree.
    if q == s:
        if (p + r) % q == 0:
            results.append((p + r) // q)
        if (p - r) % q == 0:
            results += [(p - r) // q, (r - p) // q]
    if p * r % (q * s) == 0:
        results.append(p * r // (q * s))
    if r and p * s % (q * r) == 0:
        results.append(p * s // (q * r))
    if p and r * q % (s * p) == 0:
        results.append(r * q // (s * p))
    return results


def _lowest_terms(numerator: int, denominator: int) -> Ratio:
    divisor = gcd(numerator, denominator)
    if denominator < 0:
        divisor = -divisor
    return numerator // divisor, denominator // divisor


def _expressions(numbers: tuple[int, ...], bound: int | None) -> dict[int | Fraction, set[str]]:
    """Every value made from all the sorted `numbers`, with its expressions in outer brackets."""
    if len(numbers) == 1:
        (number,) = numbers
        return {number: {str(number)}} if bound is None or number <= bound else {}
    found = defaultdict(set)
    for parts in _partitions(numbers):
        one, other = (_expressions(part, bound) for part in parts)
        for left, right in ((one, other), (other, one)):
            for (a, xs), (b, ys) in product(left.items(), right.items()):
                for sign, value in _operations(a, b, bound):
                    found[value] |= _joined(xs, sign, ys, equal=a == b)
    return found


def _joined(lefts: set[str], sign: str, rights: set[str], *, equal: bool) -> set[str]:
    """`( left sign right )` for all pairs, whose values are `equal` or not."""
    pairs = product(lefts, rights)
    if equal and sign in "+*":
        # Equal operands come in both orders: keep one of the two.
        pairs = [(left, right) for left, right in pairs if left >= right]
    return {f"( {left} {sign} {right} )" for left, right in pairs}


def _operations(
    a: int | Fraction, b: int | Fraction, bound: int | None
) -> list[tuple[str, int | Fraction]]:
    """Sign and value of each operation `a sign b`; + and * only with the larger operand first."""
    results = []
    if a >= b:
        results += [("+", a + b), ("*", a * b)]
    if a >= b or bound is None:
        results.append(("-", a - b))
        divides = b != 0 and a % b == 0
        if divides:
            results.append(("/", a // b))
        elif b and bound is None:
            results.append(("/", Fraction(a, b)))
    return [(sign, value) for sign, value in results if bound is None or value <= bound]


def _last_answer(completion: str) -> str | None:
    """What the last complete answer tag encloses, or None; three linear searches."""
    start = max(0, len(completion) - MAX_COMPLETION)
    opened = completion.rfind("<answer>", start, max(0, completion.rfind("</answer>", start)))
    if opened < 0:
        return None
    return completion[opened + len("<answer>") : completion.index("</answer>", opened)]


def to_postfix(text: str) -> tuple[list[int | str], int | None]:
    """Expression in postfix order, and the integer after `=`, if any (Dijkstra's shunting yard).

    Raises:
      ValueError: not well-formed; the message says why.
    """
    text, tail = _without_tail(text)
    postfix: list[int | str] = []
    waiting: list[str] = []  # signs and brackets whose right side is not complete
    operand_next = True
    for token in re.findall(r"[0-9]+|\S", text):
        if operand_next != (token == "(" or token.isdigit()):
            raise ValueError(f"{token} is out of place")
        if token.isdigit():
            postfix.append(int(token))
            operand_next = False
        elif token == "(":
            waiting.append(token)
        else:
            # What binds at least as tightly is complete; ")" completes all up to its "(".
            binds = {")": "+-*/", "*": "*/", "/": "*/"}.get(token, "+-*/")
            while waiting and waiting[-1] in binds:
                postfix.append(waiting.pop())
            if token != ")":
                waiting.append(token)
                operand_next = True
            elif waiting:
                waiting.pop()  # its "("
            else:
                raise ValueError(") without (")
    if operand_next or "(" in waiting:
        raise ValueError("it is not complete")
    return postfix + waiting[::-1], tail


def _without_tail(text: str) -> tuple[str, int | None]:
    """An answer's expression, its signs in ASCII, and the integer after `=`, if any.

    Raises:
      ValueError: it has other characters, or something else after `=`.
    """
    text = text.replace("×", "*").replace("÷", "/").replace("−", "-")
    if junk := re.search(r"[^0-9+\-*/()=\s]|(?<![0-9])0[0-9]", text, re.ASCII):
        raise ValueError(f"{junk[0]!r} is not allowed")
    expression, equals, tail = text.partition("=")
    if not equals:
        return expression, None
    if not tail.strip().isdigit():
        raise ValueError("after = an integer is expected")
    return expression, int(tail)


def _evaluate(postfix: list[int | str]) -> Fraction:
    """Exact value of a postfix expression; raises ZeroDivisionError."""
    stack = []
    for item in postfix:
        if isinstance(item, int):
            stack.append(Fraction(item))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(EXACT[item](left, right))
    return stack[0]


def _miscount(used: Counter, given: Counter) -> str:
    """How the numbers used differ from those given, in words."""
    times = {0: "not at all", 1: "once", 2: "twice"}
    faults = [f"{n} {times.get(used[n], f'{used[n]} times')}" for n in given if used[n] != given[n]]
    if strangers := [str(n) for n in used if n not in given]:
        faults.append(f"{', '.join(strangers)} from outside the puzzle")
    return " and ".join(faults)
