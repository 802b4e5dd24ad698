"""Worked Countdown text to learn from: drills, and traces that jump, check or search.

It plays the part of the text in which a pre-trained base has seen people work: most traces jump to
an answer, some check one attempt, a small share search: try, compute, compare, say no, try again.
The tiny model reads it in a language of its own, Gemma as compact text. Knows nothing of models or
training; gives packed rows of token ids.
"""

import functools
import hashlib
import itertools
import random
import re
import zlib
from collections.abc import Iterator

import numpy as np

from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PUZZLES, Pretraining
from aha_lib.tasks import countdown

BOUND = 100  # every value in the traces is an integer from 0 to this
DRILL = 6  # facts in a drill
MAX_LEFT_OUT = 1_000  # documents in a row that are longer than a row: then none will ever fit


def operations(a: int, b: int) -> list[tuple[str, int]]:
    """Every legal operation on two numbers as (text, value): `20 - 16 = 4`, larger first."""
    if a < b:
        a, b = b, a
    values = {"+": a + b, "-": a - b, "*": a * b}
    if b and a % b == 0:
        values["/"] = a // b
    within = {sign: value for sign, value in values.items() if value <= BOUND}
    return [(f"{a} {sign} {b} = {value}", value) for sign, value in within.items()]


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
    rng = random.Random(f"{settings.seed} {index}")
    shares = settings.shares
    (style,) = rng.choices(list(shares), shares.values())
    while True:
        prompt = []
        if style == "drill":
            pieces = _drill(rng)
        else:
            puzzle = countdown.generate(settings.seed, rng.getrandbits(48), PUZZLES["tiny"])
            prompt = [(countdown.prompt(puzzle, settings.template), False)]
            pieces = [(trace(puzzle, style, rng), True)]
        shown = _facts(" ".join(text for text, _ in pieces))
        if not any(is_held_out_fact(fact) for fact in shown):
            break
    if settings.template == "short":
        pieces = [(compact(text), is_learnt) for text, is_learnt in pieces]
    return prompt + pieces


def _drill(rng: random.Random) -> list[tuple[str, bool]]:
    """A list of random facts in pieces: each is asked, then answered; the answers are learnt."""
    pieces = []
    # Sums and differences are many and have to be derived, products and quotients are few.
    for facts in rng.choices(_facts_by_sign(), [4, 4, 1, 1], k=DRILL):
        question, result = rng.choice(facts).rsplit(" ", 1)
        separator = ", " if pieces else ""
        pieces += [(separator + question, False), (result, True)]
    return pieces


def trace(puzzle: countdown.Puzzle, style: str, rng: random.Random) -> str:
    """A worked solution in one of the three styles; only "search" goes on after a no.

    It goes through the first operations in a fixed order from a random one on, round and round,
    and for each tries the second operation that comes closest to the target.
    """
    lines = []
    for first, value, rest in _first_operations(puzzle.numbers, rng):
        seconds = operations(value, rest)
        rng.shuffle(seconds)
        if style != "jump":  # a jump does not look at the target, the others try the closest
            seconds.sort(key=lambda second: abs(second[1] - puzzle.target))
        second, result = seconds[0]
        hit = result == puzzle.target
        lines += [first, ",", second, "yes" if hit else "no"]
        if style != "search" or hit:
            break
    answer = f"<answer> {_nested(first, value, second)} </answer>"
    return answer if style == "jump" else " ".join([*lines, answer])


def _first_operations(numbers: tuple[int, ...], rng: random.Random) -> list[tuple[str, int, int]]:
    """All first operations on two of three numbers: text, value, and the number that is left.

    Their order is fixed, but begins at a random one and goes round.
    """
    a, b, c = sorted(numbers, reverse=True)
    found = []
    for x, y, rest in ((a, b, c), (a, c, b), (b, c, a)):
        found += [(fact, value, rest) for fact, value in operations(x, y)]
    found = list(dict.fromkeys(found))  # of equal numbers the same operation comes twice
    start = rng.randrange(len(found))
    return found[start:] + found[:start]


def _nested(first: str, value: int, second: str) -> str:
    """The second operation, with the first in brackets where its value stands."""
    inner = f"( {first.split(' = ')[0]} )"
    left, sign, right = second.split(" = ")[0].split()
    if left == str(value):
        return f"{inner} {sign} {right}"
    return f"{left} {sign} {inner}"


def compact(words: str) -> str:
    """The tiny language as Gemma's text: `20-16=4,4+4=8 no`, a line for each attempt.

    A blank is a token, and so is a digit: sums are written without blanks.
    """
    words = re.sub(r"^, ", "\n", words)  # the next fact of a drill
    words = re.sub(r" (no|yes) ", r" \1\n", words)
    return re.sub(r" ?([-+*/=,()]) ?| ?(</?answer>) ?", r"\1\2", words)


@functools.cache
def _facts_by_sign() -> list[list[str]]:
    """All facts that the traces' arithmetic has, a list for each of + - * /."""
    by_sign = {sign: [] for sign in "+-*/"}
    for a in range(BOUND + 1):
        for b in range(a + 1):
            for fact, _ in operations(a, b):
                sign = fact.split()[1]
                by_sign[sign].append(fact)
    return list(by_sign.values())


def _facts(text: str) -> list[str]:
    """All `a op b = c` of a text, in order."""
    words = text.split()
    found = []
    for i, word in enumerate(words):
        if word == "=" and i >= 3 and words[i - 2] in "+-*/":
            found.append(" ".join(words[i - 3 : i + 2]))
    return found


def rows(
    settings: Pretraining, start: int, count: int, tokenizer: Tokenizer
) -> tuple[dict[str, np.ndarray], int]:
    """`count` packed rows of the corpus from document `start` on, and the next document's index.

    Returns arrays [count, row_len]: `tokens`, `positions` in the document, `segments` (1, 2, … for
    the documents of a row, 0 for padding) and `weights` (1 where a token is to be predicted).
    Documents longer than a row are left out. Raises ValueError where 1,000 in a row are.
    """
    shape = count, settings.row_len
    out = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    out["weights"] = np.zeros(shape, np.float32)
    documents = _documents_that_fit(settings, start, tokenizer)
    ids, is_learnt, index = next(documents)
    for row in range(count):
        filled, segment = 0, 0
        while filled + len(ids) <= settings.row_len:
            segment += 1
            here = slice(filled, filled + len(ids))
            out["tokens"][row, here] = ids
            out["positions"][row, here] = np.arange(len(ids))
            out["segments"][row, here] = segment
            out["weights"][row, here] = is_learnt
            filled = here.stop
            ids, is_learnt, index = next(documents)
        # The document that did not fit any more opens the next row.
    return out, index


def _documents_that_fit(
    settings: Pretraining, start: int, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[bool], int]]:
    """The documents from `start` on that are no longer than a row: ids, which to learn, index."""
    left_out: list[int] = []  # lengths of the last documents, if they were all too long
    for index in itertools.count(start):
        ids, is_learnt = [tokenizer.bos_id], [False]
        for text, piece_is_learnt in document(settings, index):
            tokens = tokenizer.encode(text, bos=False)
            ids += tokens
            is_learnt += [piece_is_learnt] * len(tokens)
        ids.append(tokenizer.eos_id)
        is_learnt.append(True)
        if len(ids) <= settings.row_len:
            left_out.clear()
            yield ids, is_learnt, index
            continue
        left_out.append(len(ids))
        if len(left_out) == MAX_LEFT_OUT:
            raise ValueError(
                f"row_len is {settings.row_len} tokens, but {MAX_LEFT_OUT} documents in a row are "
                f"longer, the shortest of {min(left_out)}: raise row_len; {max(left_out)} holds "
                "them all."
            )


def pieces_used(settings: Pretraining, tokenizer: Tokenizer, count: int = 2_000) -> list[int]:
    """Ids of the tokens that the corpus's first documents use, ascending."""
    used = set()
    for index in range(count):
        for text, _ in document(settings, index):
            used.update(tokenizer.encode(text))
    return sorted(used)


def fingerprint(settings: Pretraining, count: int = 500) -> str:
    """SHA-256 of the corpus's first documents: a base belongs to the code that made its corpus."""
    documents = []
    for index in range(count):
        documents.append(" ".join(text for text, _ in document(settings, index)))
    return hashlib.sha256("\n".join(documents).encode()).hexdigest()
