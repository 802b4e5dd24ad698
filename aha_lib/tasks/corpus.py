"""Worked Countdown text to learn from: drills, and traces that jump, check or search.

It plays the part of the text in which a pre-trained base has seen people work: most traces jump to
an answer, some check one attempt, a small share search: try, compute, compare, say no, try again.
The tiny model reads it in a language of its own, Gemma as compact text. A lesson other than
Countdown has its documents from its task's own file. Knows nothing of models or training; gives
packed rows of token ids.
"""

import functools
import hashlib
import itertools
import random
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PUZZLES, Pretraining
from aha_lib.tasks import calculator, countdown, look_up, look_up_text
from aha_lib.tasks.worked import BOUND, Rule, operations, trace

DRILL = 6  # facts in a drill
MAX_LEFT_OUT = 1_000  # documents in a row that are longer than a row: then none will ever fit


def is_held_out_fact(fact: str) -> bool:
    """Whether the corpus never shows this sum or difference: one in 32 of all of them.

    Products and quotients within the bound are a small table that has to be known, not derived.
    """
    return any(op in fact for op in "+-") and zlib.crc32(fact.encode()) % 32 == 0


def document(settings: Pretraining, index: int) -> list[tuple[str, float]]:
    """Text number `index` of the corpus that the settings name, in pieces.

    Each piece comes with its weight in the loss: 0 is not learnt.
    """
    if settings.lesson == "look-up":
        return look_up.document(settings, index)
    if settings.lesson == "look-up-text":
        return look_up_text.document(settings, index)
    if settings.lesson == "calculator":
        rng = random.Random(f"{settings.seed} {index} asks")
        return calculator.with_calls(_countdown_document(settings, index), rng)
    return _countdown_document(settings, index)


def _countdown_document(settings: Pretraining, index: int) -> list[tuple[str, float]]:
    """A drill, or a worked puzzle of Countdown.

    A drill is a list of facts, of which only the results are learnt; a trace is a prompt, not
    learnt, and a worked solution.
    Held-out facts are not learnt: documents that show one are left out. Of searches with four
    numbers that would leave few; in a corpus with such the result of a held-out fact has weight 0.
    """
    rng = random.Random(f"{settings.seed} {index}")
    shares = settings.shares
    (style,) = rng.choices(list(shares), shares.values())
    while True:
        prompt = []
        if style == "drill":
            pieces = _drill(rng, settings)
        else:
            puzzle = _puzzle(settings, rng)
            prompt = [(countdown.prompt(puzzle, settings.template), 0.0)]
            pieces = [(trace(puzzle, style, rng, rule(settings)), 1.0)]
        shown = _facts(" ".join(text for text, _ in pieces))
        if not any(is_held_out_fact(fact) for fact in shown):
            break
        if style != "drill" and is_deep(settings):
            pieces = _without_held_out_results(pieces[0][0])
            break
    if settings.template == "short" and style == "drill":
        pieces = [(compact(text), weight) for text, weight in pieces]
    elif settings.template == "short":
        pieces = _compacted(pieces)
    return prompt + pieces


def rule(settings: Pretraining) -> Rule:
    """How the searches of this corpus go."""
    return Rule(bound=PUZZLES[settings.puzzles].bound or BOUND, leave=settings.leave)


def is_deep(settings: Pretraining) -> bool:
    """Whether there are searches that return to a partial result: with four numbers or more."""
    return max(PUZZLES[settings.puzzles].counts) > 3


def _puzzle(settings: Pretraining, rng: random.Random) -> countdown.Puzzle:
    return countdown.generate(settings.seed, rng.getrandbits(48), PUZZLES[settings.puzzles])


def _without_held_out_results(text: str) -> list[tuple[str, float]]:
    """The text in pieces, of which the results of held-out facts are not to be learnt."""
    words = text.split()
    pieces = []
    start = 0
    for at, fact in _results(words):
        if is_held_out_fact(fact):
            pieces += [(" ".join(words[start:at]), 1.0), (words[at], 0.0)]
            start = at + 1
    pieces.append((" ".join(words[start:]), 1.0))
    return [piece for piece in pieces if piece[0]]


def _compacted(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The pieces of a trace such that, joined, they are the compact text of the whole."""
    found = []
    words, done = "", ""
    for text, weight in pieces:
        words = f"{words} {text}".strip()
        whole = compact(words)
        found.append((whole[len(done) :], weight))
        done = whole
    return found


def _drill(rng: random.Random, settings: Pretraining) -> list[tuple[str, float]]:
    """A list of random facts in pieces: each is asked, then answered; the answers are learnt."""
    facts_by_sign = _facts_by_sign(rule(settings).bound)
    pieces = []
    # Sums and differences are many and have to be derived, products and quotients are few.
    for facts in rng.choices(facts_by_sign, [4, 4, 1, 1], k=DRILL):
        question, result = rng.choice(facts).rsplit(" ", 1)
        separator = ", " if pieces else ""
        pieces += [(separator + question, 0.0), (result, settings.drill_weight)]
    return pieces


def compact(words: str) -> str:
    """The tiny language as Gemma's text: `20-16=4,4+4=8 no`, a line for each attempt.

    A blank is a token, and so is a digit: sums are written without blanks.
    """
    words = re.sub(r"^, ", "\n", words)  # the next fact of a drill
    words = re.sub(r" (no|yes) ", r" \1\n", words)
    return re.sub(r" ?([-+*/=,;:()]) ?| ?(</?answer>) ?", r"\1\2", words)


@functools.cache
def _facts_by_sign(bound: int = BOUND) -> list[list[str]]:
    """All facts that the traces' arithmetic has, a list for each of + - * /."""
    by_sign = {sign: [] for sign in "+-*/"}
    for a in range(bound + 1):
        for b in range(a + 1):
            for fact, _ in operations(a, b, bound):
                sign = fact.split()[1]
                by_sign[sign].append(fact)
    return list(by_sign.values())


def _facts(text: str) -> list[str]:
    """All `a op b = c` of a text, in order."""
    return [fact for _, fact in _results(text.split())]


def _results(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The places in some words where the results of facts stand, each with its fact."""
    for at in range(4, len(words)):
        if words[at - 1] == "=" and words[at - 3] in "+-*/":
            yield at, " ".join(words[at - 4 : at + 1])


def rows(
    settings: Pretraining, start: int, count: int, tokenizer: Tokenizer
) -> tuple[dict[str, np.ndarray], int]:
    """`count` packed rows of the corpus from document `start` on, and the next document's index.

    Returns arrays [count, row_len]: `tokens`, `positions` in the document, `segments` (1, 2, … for
    the documents of a row, 0 for padding) and `weights` in the loss.
    Documents longer than a row are left out; ValueError where 1,000 in a row are. Where there are
    searches that return to partial results nothing is left out: the last document of a row is cut.
    Without its long searches a corpus would teach that searches are short.
    """
    shape = count, settings.row_len
    out = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    out["weights"] = np.zeros(shape, np.float32)
    documents = _documents_to_pack(settings, start, tokenizer)
    ids, weights, index = next(documents)
    for row in range(count):
        filled, segment = 0, 0
        while filled < settings.row_len:
            room = settings.row_len - filled
            if len(ids) > room and not is_deep(settings):
                break  # this document opens the next row
            ids, weights = ids[:room], weights[:room]
            segment += 1
            here = slice(filled, filled + len(ids))
            out["tokens"][row, here] = ids
            out["positions"][row, here] = np.arange(len(ids))
            out["segments"][row, here] = segment
            out["weights"][row, here] = weights
            filled = here.stop
            ids, weights, index = next(documents)
    return out, index


def _documents_to_pack(
    settings: Pretraining, start: int, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[float], int]]:
    """The documents from `start` on that are not left out: ids, their weights, index."""
    left_out: list[int] = []  # lengths of the last documents, if they were all too long
    for index in itertools.count(start):
        ids, weights = [tokenizer.bos_id], [0.0]
        for text, weight in document(settings, index):
            tokens = tokenizer.encode(text, bos=False)
            ids += tokens
            weights += [weight] * len(tokens)
        ids.append(tokenizer.eos_id)
        weights.append(1.0)
        if len(ids) <= settings.row_len or is_deep(settings):
            left_out.clear()
            yield ids, weights, index
            continue
        left_out.append(len(ids))
        if len(left_out) == MAX_LEFT_OUT:
            raise ValueError(
                f"row_len is {settings.row_len} tokens, but {MAX_LEFT_OUT} documents in a row are "
                f"longer, the shortest of {min(left_out)}: raise row_len; {max(left_out)} holds "
                "them all."
            )


def pieces_used(settings: Pretraining, tokenizer: Tokenizer, count: int = 2_000) -> list[int]:
    """Ids of the tokens that the corpus's first documents use, ascending.

    And those of what its tool can say, which the documents show but a part of.
    """
    used = set()
    if settings.lesson == "look-up-text":
        for text in look_up_text.sentences():
            used.update(tokenizer.encode(text))
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
