"""Worked Countdown text to learn from: drills, and traces that jump, check or search.

It plays the part of the text in which a pre-trained base has seen people work: most traces jump to
an answer, some check one attempt, a small share search: try, compute, compare, say no, try again.
The tiny model reads it in a language of its own, Gemma as compact text. Knows nothing of models or
training; gives packed rows of token ids.
"""

import functools
import hashlib
import random
import re
import zlib

import numpy as np

from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PUZZLES, Pretraining
from aha_lib.tasks import countdown

BOUND = 100  # every value in the traces is an integer from 0 to this
DRILL = 6  # facts in a drill


def operations(a: int, b: int) -> list[tuple[str, int]]:
    """Every legal operation on two numbers as (text, value): `20 - 16 = 4`, larger first."""
    a, b = max(a, b), min(a, b)
    values = {"+": a + b, "-": a - b, "*": a * b}
    if b and a % b == 0:
        values["/"] = a // b
    return [(f"{a} {op} {b} = {v}", v) for op, v in values.items() if v <= BOUND]


def is_held_out_fact(fact: str) -> bool:
    """Whether the corpus never shows this sum or difference: one in 32 of all of them.

    Products and quotients within 0..100 are a small table that has to be known, not derived.
    """
    return any(op in fact for op in "+-") and zlib.crc32(fact.encode()) % 32 == 0


def document(settings: Pretraining, index: int) -> list[tuple[str, bool]]:
    """Text number `index` of the corpus that the settings name: pieces, and whether to learn each.

    A drill is a list of facts of which only the results are learnt, a trace is a prompt (not
    learnt) and a worked solution.
    """
    s, rng = settings, random.Random(f"{settings.seed} {index}")
    style = rng.choices(list(s.shares), s.shares.values())[0]
    while True:
        prompt = []
        if style == "drill":
            kinds = rng.choices(_drills(), [4, 4, 1, 1], k=DRILL)
            facts = [rng.choice(kind).rsplit(" ", 1) for kind in kinds]
            pieces = [p for left, value in facts for p in ((f", {left}", False), (value, True))]
            pieces[0] = (facts[0][0], False)
        else:
            puzzle = countdown.generate(s.seed, rng.getrandbits(48), **PUZZLES["tiny"])
            prompt = [(countdown.prompt(puzzle, s.template), False)]
            pieces = [(trace(puzzle, style, rng), True)]
        if not any(map(is_held_out_fact, _facts(" ".join(text for text, _ in pieces)))):
            break
    if s.template == "short":
        pieces = [(compact(text), learn) for text, learn in pieces]
    return prompt + pieces


def trace(puzzle: countdown.Puzzle, style: str, rng: random.Random) -> str:
    """A worked solution in one of the three styles; only "search" goes on after a no.

    It goes through the first operations in a fixed order from a random one on, round and round,
    and for each tries the second operation that comes closest to the target.
    """
    a, b, c = sorted(puzzle.numbers, reverse=True)
    firsts = [
        (fact, value, rest)
        for x, y, rest in ((a, b, c), (a, c, b), (b, c, a))
        for fact, value in operations(x, y)
    ]
    firsts = list(dict.fromkeys(firsts))
    start = rng.randrange(len(firsts))
    firsts = firsts[start:] + firsts[:start]
    lines = []
    for first, value, rest in firsts:
        seconds = operations(value, rest)
        rng.shuffle(seconds)
        if style != "jump":  # a jump does not look at the target, the others try the closest
            seconds.sort(key=lambda second: abs(second[1] - puzzle.target))
        second, result = seconds[0]
        lines += [first, ",", second, "yes" if result == puzzle.target else "no"]
        if style != "search" or result == puzzle.target:
            break
    # The last operation of the answer, with the first in the place of its value.
    left, op, right = second.split(" = ")[0].split()
    nested = f"( {first.split(' = ')[0]} )"
    left, right = (nested, right) if left == str(value) else (left, nested)
    answer = f"<answer> {left} {op} {right} </answer>"
    return answer if style == "jump" else " ".join([*lines, answer])


def compact(words: str) -> str:
    """The tiny language as Gemma's text: `20-16=4,4+4=8 no`, a line for each attempt.

    A blank is a token, and so is a digit: sums are written without blanks.
    """
    words = re.sub(r"^, ", "\n", words)  # the next fact of a drill
    words = re.sub(r" (no|yes) ", r" \1\n", words)
    return re.sub(r" ?([-+*/=,()]) ?| ?(</?answer>) ?", r"\1\2", words)


@functools.cache
def _drills() -> list[list[str]]:
    """All facts that the traces' arithmetic has, a list for each operation."""
    facts = [fact for a in range(BOUND + 1) for b in range(a + 1) for fact, _ in operations(a, b)]
    return [[fact for fact in facts if op in fact] for op in "+-*/"]


def _facts(text: str) -> list[str]:
    """All `a op b = c` of a text, in order."""
    words = text.split()
    return [
        " ".join(words[i - 3 : i + 2])
        for i, word in enumerate(words)
        if word == "=" and i >= 3 and words[i - 2] in "+-*/"
    ]


def rows(
    settings: Pretraining, start: int, count: int, tokenizer: Tokenizer
) -> tuple[dict[str, np.ndarray], int]:
    """`count` packed rows of the corpus from document `start` on, and the next document's index.

    Returns arrays [count, row_len]: `tokens`, `positions` in the document, `segments` (1, 2, … for
    the documents of a row, 0 for padding) and `weights` (1 where a token is to be predicted).
    Documents longer than a row are left out.
    """
    length = settings.row_len
    out = {k: np.zeros((count, length), np.int32) for k in ("tokens", "positions", "segments")}
    out["weights"] = np.zeros((count, length), np.float32)
    index = start
    for row in range(count):
        filled, segment = 0, 0
        while True:
            pieces = [
                (tokenizer.encode(text, bos=False), learn)
                for text, learn in document(settings, index)
            ]
            pieces = [([tokenizer.bos_id], False), *pieces, ([tokenizer.eos_id], True)]
            ids = [token for tokens, _ in pieces for token in tokens]
            if filled + len(ids) > length and len(ids) <= length:
                break  # it opens the next row
            index += 1
            if len(ids) > length:
                continue
            segment += 1
            here = slice(filled, filled + len(ids))
            out["tokens"][row, here], out["segments"][row, here] = ids, segment
            out["positions"][row, here] = np.arange(len(ids))
            out["weights"][row, here] = [learn for tokens, learn in pieces for _ in tokens]
            filled = here.stop
    return out, index


def pieces_used(settings: Pretraining, tokenizer: Tokenizer, count: int = 2_000) -> list[int]:
    """Ids of the tokens that the corpus's first documents use, ascending."""
    documents = (document(settings, index) for index in range(count))
    return sorted({i for pieces in documents for text, _ in pieces for i in tokenizer.encode(text)})


def fingerprint(settings: Pretraining, count: int = 500) -> str:
    """SHA-256 of the corpus's first documents: a base belongs to the code that made its corpus."""
    documents = (document(settings, i) for i in range(count))
    text = "\n".join(" ".join(text for text, _ in pieces) for pieces in documents)
    return hashlib.sha256(text.encode()).hexdigest()
