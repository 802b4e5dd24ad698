"""The corpus by a grammar of its own, in both languages, and how it is packed into rows."""

import ast
import dataclasses
import operator
import re
from collections import Counter

import numpy as np
import pytest

from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import PRETRAINING
from aha_lib.tasks import corpus, countdown, traces

TOKENIZER = Tokenizer(tiny_model())
COUNT = 3000  # documents looked at
TINY = PRETRAINING["tiny"]
SHORT = PRETRAINING["gemma3-270m-cpu"]
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
FACT = r"(\d+) ([-+*/]) (\d+) = (\d+)"
ATTEMPT = rf"{FACT} , {FACT} (no|yes)"
TRACE = re.compile(rf"((?:{ATTEMPT} )*)<answer> ([-+*/()\d ]+) </answer>")


@pytest.fixture(scope="module")
def documents():
    return [corpus.document(TINY, index) for index in range(COUNT)]


def text_of(document):
    return " ".join(text for text, _ in document)


def check_fact(a, sign, b, result):
    """True arithmetic, larger operand first, every value an integer from 0 to 100."""
    a, b, result = int(a), int(b), int(result)
    assert 100 >= a >= b >= 0 and 0 <= result <= 100
    assert SIGNS[sign](a, b) == result
    return a, b, result


def evaluate(expression):
    """Value and numbers of an expression, by Python's parser."""
    numbers = []

    def value(node):
        if isinstance(node, ast.Constant):
            numbers.append(node.value)
            return node.value
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
        return SIGNS[sign](value(node.left), value(node.right))

    return value(ast.parse(expression, mode="eval").body), sorted(numbers)


def test_traces_are_grammatical_and_true(documents):
    for document in documents:
        if ":" not in document[0][0]:
            continue  # a drill
        (prompt, learn_prompt), (trace, learn_trace) = document
        assert learn_trace and not learn_prompt
        *numbers, target = map(int, re.fullmatch(r"(\d+) (\d+) (\d+) = (\d+) :", prompt).groups())
        assert numbers == sorted(numbers, reverse=True)
        match = TRACE.fullmatch(trace)
        assert match, trace
        made, used = evaluate(match.groups()[-1])
        assert used == sorted(numbers), "the answer uses every number once"
        attempts = re.findall(ATTEMPT, match[1])
        firsts = set()
        for *first_and_second, verdict in attempts:
            a, b, first = check_fact(*first_and_second[:4])
            c, d, second = check_fact(*first_and_second[4:])
            left = list(numbers)
            left.remove(a)
            left.remove(b)
            assert sorted([c, d]) == sorted([first, *left]), "goes on with the result and the rest"
            assert verdict == ("yes" if second == target else "no")
            firsts.add(tuple(first_and_second[:4]))
        assert len(firsts) == len(attempts), "no first operation is tried twice"
        assert [a[-1] for a in attempts[:-1]] == ["no"] * (len(attempts) - 1), "a yes ends it"
        if attempts:
            assert made == int(attempts[-1][7]), "the answer is the last attempt"


def test_an_answer_is_that_of_a_verdict_that_is_true(documents):
    """The verifier agrees with the trace: right exactly where it says yes."""
    seen = Counter()
    for document in documents:
        if ":" in document[0][0] and "=" in document[1][0]:
            *numbers, target = map(int, re.findall(r"\d+", document[0][0]))
            puzzle = countdown.Puzzle(tuple(numbers), target)
            right = countdown.reward(document[1][0], puzzle).value == 1
            assert right == document[1][0].split(" <answer>")[0].endswith("yes")
            seen[right] += 1
    assert min(seen[True], seen[False]) > 20


def test_drills_are_true_and_only_their_results_are_learnt(documents):
    drills = [d for d in documents if ":" not in d[0][0]]
    signs = Counter()
    for document in drills:
        assert [learn for _, learn in document] == [False, True] * corpus.DRILL
        facts = text_of(document).split(" , ")
        for fact in facts:
            a, sign, b, result = re.fullmatch(FACT, fact).groups()
            check_fact(a, sign, b, result)
            signs[sign] += 1
        assert [r.split(" = ")[1] for r in facts] == [text for text, learn in document if learn]
    assert set(signs) == set("+-*/")


def test_shares_of_styles(documents):
    seen = Counter()
    for document in documents:
        attempts = len(re.findall(ATTEMPT, text_of(document)))
        drill = ":" not in document[0][0]
        seen["drill" if drill else ("jump", "looks")[min(attempts, 1)]] += 1
        seen["search"] += attempts > 1
    share = {style: count / COUNT for style, count in seen.items()}
    assert sum(TINY.shares.values()) == pytest.approx(1)
    assert share["drill"] == pytest.approx(TINY.shares["drill"], abs=0.03)
    assert share["jump"] == pytest.approx(TINY.shares["jump"], abs=0.035)
    looks = TINY.shares["check"] + TINY.shares["search"]
    assert share["looks"] == pytest.approx(looks, abs=0.03)
    # A search that is right at once shows no second attempt.
    assert 0.5 * TINY.shares["search"] < share["search"] < TINY.shares["search"] + 0.02


def every_fact():
    for a in range(101):
        for b in range(a + 1):
            for sign in "+-*":
                if SIGNS[sign](a, b) <= 100:
                    yield f"{a} {sign} {b} = {SIGNS[sign](a, b)}"
            if b and a % b == 0:
                yield f"{a} / {b} = {a // b}"


def test_held_out_facts_are_never_shown(documents):
    held_out = {fact for fact in every_fact() if corpus.is_held_out_fact(fact)}
    sums = [fact for fact in every_fact() if "+" in fact or "-" in fact]
    assert held_out <= set(sums) and len(held_out) == pytest.approx(len(sums) / 32, rel=0.25)
    shown = Counter(m[0] for d in documents for m in re.finditer(FACT, text_of(d)))
    assert not held_out & set(shown)
    assert len(set(shown) & set(sums)) > len(sums) / 5, "the others are shown"


def test_no_held_out_puzzle_is_shown(documents):
    for document in documents:
        if ":" in document[0][0]:
            *numbers, _ = map(int, re.findall(r"\d+", document[0][0]))
            assert not countdown.is_held_out(tuple(numbers))


def test_documents_depend_on_seed_and_index_alone(documents):
    assert corpus.document(TINY, 17) == documents[17]
    seed1 = dataclasses.replace(TINY, seed=1)
    other = [corpus.document(seed1, index) for index in range(50)]
    assert sum(a == b for a, b in zip(other, documents, strict=False)) < 3
    assert len({text_of(document) for document in documents[:500]}) > 400


def test_packed_rows(documents):
    """Row by row, the segments are the documents in order, whole, each learnt where it says."""
    rows, end = corpus.rows(TINY, 0, 40, TOKENIZER)
    assert {name: x.shape for name, x in rows.items()} == dict.fromkeys(rows, (40, TINY.row_len))
    index, filled = 0, 0
    for row in range(40):
        segments = rows["segments"][row]
        count = segments.max()
        length = (segments > 0).sum()
        assert (segments[:length] > 0).all() and (np.diff(segments[:length]) >= 0).all()
        for name in ("tokens", "positions", "weights"):
            assert (rows[name][row, length:] == 0).all(), "padding is not learnt"
        for segment in range(1, count + 1):
            here = segments == segment
            ids, learn = [TOKENIZER.bos_id], [0]
            while True:
                for text, is_learnt in documents[index]:
                    piece = TOKENIZER.encode(text, bos=False)
                    ids += piece
                    learn += [int(is_learnt)] * len(piece)
                index += 1
                if len(ids) < TINY.row_len:
                    break
                ids, learn = [TOKENIZER.bos_id], [0]  # too long for any row: left out
            assert rows["tokens"][row, here].tolist() == [*ids, TOKENIZER.eos_id]
            assert rows["weights"][row, here].tolist() == [*learn, 1], "EOS is learnt, once"
            assert rows["positions"][row, here].tolist() == list(range(here.sum()))
        filled += length
    assert index == end
    assert filled > 0.75 * 40 * TINY.row_len, "little is wasted"
    assert not (rows["weights"][rows["tokens"] == TOKENIZER.bos_id]).any()
    first, middle = corpus.rows(TINY, 0, 15, TOKENIZER)
    second, last = corpus.rows(TINY, middle, 25, TOKENIZER)
    assert last == end
    for name, whole in rows.items():
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), whole)


def test_a_row_that_no_document_fits_is_a_sentence():
    """It used to look for one for ever."""
    short = dataclasses.replace(TINY, row_len=64, drill=0.0, check=0.0, search=0.0)
    object.__setattr__(short, "row_len", 16)  # below the least that settings take
    with pytest.raises(ValueError, match="row_len is 16 tokens, .* raise row_len; 17 holds"):
        corpus.rows(short, 0, 1, TOKENIZER)


@pytest.mark.parametrize("settings", [TINY, SHORT], ids=["tiny", "short"])
@pytest.mark.parametrize("style", ["drill", "jump", "check", "search"])
def test_the_least_row_holds_documents_of_every_style(settings, style):
    """In the tiny language, and in Gemma's, whose digits and blanks are a token each."""
    with pytest.raises(ValueError, match="row_len is 63: it has to be"):
        dataclasses.replace(settings, row_len=63)
    only = dict.fromkeys(settings.shares, 0.0) | {style: 1.0}
    least = dataclasses.replace(settings, row_len=64, **only)
    lengths = []
    for index in range(20):
        if settings is TINY:
            pieces = [
                TOKENIZER.encode(text, bos=False) for text, _ in corpus.document(least, index)
            ]
        else:
            # `Make`, `from`, `answer`, `yes`, `no` are pieces of Gemma's; the rest are characters.
            pieces = [
                re.findall(r"[a-z]+|[^a-z]", t, re.I) for t, _ in corpus.document(least, index)
            ]
        lengths.append(sum(map(len, pieces)) + 2)  # and BOS, EOS
    assert min(lengths) <= 64


def test_few_documents_are_too_long(documents):
    long = sum(len(TOKENIZER.encode(text_of(d))) + 1 > TINY.row_len for d in documents)
    assert long < 0.03 * COUNT


def test_short_text_says_the_same(documents):
    """Compact text, read again by the traces' grammar, has the attempts of the tiny language."""
    tiny_shares = dataclasses.replace(SHORT, **TINY.shares)
    kinds = Counter()
    for index in range(600):
        (first, _), *rest = corpus.document(tiny_shares, index)
        if not first.startswith("Make"):
            assert "".join([first, *(text for text, _ in rest)]).count("\n") == corpus.DRILL - 1
            continue
        ((text, learn),) = rest
        target, *numbers = map(int, re.findall(r"\d+", first))
        puzzle = countdown.Puzzle(tuple(numbers), target)
        assert first == countdown.prompt(puzzle, "short") and learn
        trace = traces.parse(text, puzzle)
        spaced = [t for t, _ in documents[index]][1]
        told = re.findall(ATTEMPT, spaced)
        assert [a.verdict for a in trace.attempts] == [t[-1] for t in told]
        assert not trace.slips and not any(a.illegal for a in trace.attempts)
        assert text == spaced.replace(" no ", " no\n").replace(" yes ", " yes\n").replace(
            " no\n", "~"
        ).replace(" yes\n", "^").replace(" ", "").replace("~", " no\n").replace("^", " yes\n")
        kinds[traces.style(trace)] += 1
    assert min(kinds.values()) > 20 and len(kinds) == 3


def test_shares_are_weights():
    only = dataclasses.replace(SHORT, drill=0.0, jump=0.0, check=0.0, search=2.5)
    assert all(len(corpus.document(only, i)) == 2 for i in range(50))
    with pytest.raises(ValueError, match="nothing to learn"):
        dataclasses.replace(only, search=0.0)
    with pytest.raises(ValueError, match="search is -1"):
        dataclasses.replace(only, search=-1.0)
    with pytest.raises(ValueError, match="nothing to cut"):
        dataclasses.replace(TINY, cut=True)
