"""The tiny base's corpus by a grammar of its own, and the shipped base against the code."""

import ast
import dataclasses
import json
import operator
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aha_lib import countdown, sampler, tiny, weights
from aha_lib.gemma import Gemma
from aha_lib.presets import MODELS, PUZZLES
from aha_lib.tokenizer import Tokenizer, tiny_model

TOKENIZER = Tokenizer(tiny_model())
COUNT = 3000  # documents looked at
SHIPPED = Path(tiny.__file__).parent / "data" / "tiny"
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
FACT = r"(\d+) ([-+*/]) (\d+) = (\d+)"
ATTEMPT = rf"{FACT} , {FACT} (no|yes)"
TRACE = re.compile(rf"((?:{ATTEMPT} )*)<answer> ([-+*/()\d ]+) </answer>")


@pytest.fixture(scope="module")
def corpus():
    return [tiny.document(0, index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def base():
    return weights.load("tiny")[0]


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


def test_traces_are_grammatical_and_true(corpus):
    for document in corpus:
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


def test_an_answer_is_that_of_a_verdict_that_is_true(corpus):
    """The verifier agrees with the trace: right exactly where it says yes."""
    seen = Counter()
    for document in corpus:
        if ":" in document[0][0] and "=" in document[1][0]:
            *numbers, target = map(int, re.findall(r"\d+", document[0][0]))
            puzzle = countdown.Puzzle(tuple(numbers), target)
            right = countdown.reward(document[1][0], puzzle).value == 1
            assert right == document[1][0].split(" <answer>")[0].endswith("yes")
            seen[right] += 1
    assert min(seen[True], seen[False]) > 20


def test_drills_are_true_and_only_their_results_are_learnt(corpus):
    drills = [d for d in corpus if ":" not in d[0][0]]
    signs = Counter()
    for document in drills:
        assert [learn for _, learn in document] == [False, True] * tiny.DRILL
        facts = text_of(document).split(" , ")
        for fact in facts:
            a, sign, b, result = re.fullmatch(FACT, fact).groups()
            check_fact(a, sign, b, result)
            signs[sign] += 1
        assert [r.split(" = ")[1] for r in facts] == [text for text, learn in document if learn]
    assert set(signs) == set("+-*/")


def test_shares_of_styles(corpus):
    seen = Counter()
    for document in corpus:
        attempts = len(re.findall(ATTEMPT, text_of(document)))
        drill = ":" not in document[0][0]
        seen["drill" if drill else ("jump", "looks")[min(attempts, 1)]] += 1
        seen["search"] += attempts > 1
    share = {style: count / COUNT for style, count in seen.items()}
    assert sum(tiny.STYLES.values()) == pytest.approx(1)
    assert share["drill"] == pytest.approx(tiny.STYLES["drill"], abs=0.03)
    assert share["jump"] == pytest.approx(tiny.STYLES["jump"], abs=0.035)
    looks = tiny.STYLES["check"] + tiny.STYLES["search"]
    assert share["looks"] == pytest.approx(looks, abs=0.03)
    # A search that is right at once shows no second attempt.
    assert 0.5 * tiny.STYLES["search"] < share["search"] < tiny.STYLES["search"] + 0.02


def every_fact():
    for a in range(101):
        for b in range(a + 1):
            for sign in "+-*":
                if SIGNS[sign](a, b) <= 100:
                    yield f"{a} {sign} {b} = {SIGNS[sign](a, b)}"
            if b and a % b == 0:
                yield f"{a} / {b} = {a // b}"


def test_held_out_facts_are_never_shown(corpus):
    held_out = {fact for fact in every_fact() if tiny.is_held_out_fact(fact)}
    sums = [fact for fact in every_fact() if "+" in fact or "-" in fact]
    assert held_out <= set(sums) and len(held_out) == pytest.approx(len(sums) / 32, rel=0.25)
    shown = Counter(m[0] for d in corpus for m in re.finditer(FACT, text_of(d)))
    assert not held_out & set(shown)
    assert len(set(shown) & set(sums)) > len(sums) / 5, "the others are shown"


def test_no_held_out_puzzle_is_shown(corpus):
    for document in corpus:
        if ":" in document[0][0]:
            *numbers, _ = map(int, re.findall(r"\d+", document[0][0]))
            assert not countdown.is_held_out(tuple(numbers))


def test_documents_depend_on_seed_and_index_alone(corpus):
    assert tiny.document(0, 17) == corpus[17]
    other = [tiny.document(1, index) for index in range(50)]
    assert sum(a == b for a, b in zip(other, corpus, strict=False)) < 3
    assert len({text_of(document) for document in corpus[:500]}) > 400


def test_packed_rows(corpus):
    """Row by row, the segments are the documents in order, whole, each learnt where it says."""
    rows, end = tiny.rows(0, 0, 40, TOKENIZER)
    assert {name: x.shape for name, x in rows.items()} == dict.fromkeys(rows, (40, tiny.ROW))
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
                for text, is_learnt in corpus[index]:
                    piece = TOKENIZER.encode(text, bos=False)
                    ids += piece
                    learn += [int(is_learnt)] * len(piece)
                index += 1
                if len(ids) < tiny.ROW:
                    break
                ids, learn = [TOKENIZER.bos_id], [0]  # too long for any row: left out
            assert rows["tokens"][row, here].tolist() == [*ids, TOKENIZER.eos_id]
            assert rows["weights"][row, here].tolist() == [*learn, 1], "EOS is learnt, once"
            assert rows["positions"][row, here].tolist() == list(range(here.sum()))
        filled += length
    assert index == end
    assert filled > 0.75 * 40 * tiny.ROW, "little is wasted"
    assert not (rows["weights"][rows["tokens"] == TOKENIZER.bos_id]).any()
    first, middle = tiny.rows(0, 0, 15, TOKENIZER)
    second, last = tiny.rows(0, middle, 25, TOKENIZER)
    assert last == end
    for name, whole in rows.items():
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), whole)


def test_few_documents_are_too_long(corpus):
    long = sum(len(TOKENIZER.encode(text_of(d))) + 1 > tiny.ROW for d in corpus)
    assert long < 0.03 * COUNT


def test_the_loss_is_each_documents_own():
    """Packed rows against every document alone: a document does not see its neighbours."""
    small = dataclasses.replace(MODELS["tiny"], layers=2, width=32, heads=2, head_dim=16, ff=48)
    model = Gemma(small, rngs=nnx.Rngs(0))

    @nnx.jit
    def forward(model, tokens):
        hidden = model.hidden(tokens, jnp.arange(tiny.ROW)[None], jnp.ones_like(tokens))
        return model.logits(hidden)

    batch, _ = tiny.rows(0, 0, 2, TOKENIZER)
    total, count = 0.0, 0
    for row in range(2):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            tokens, learn = batch["tokens"][row, here], batch["weights"][row, here]
            padded = jnp.array(np.pad(tokens, (0, tiny.ROW - len(tokens)))[None])
            logits = np.asarray(forward(model, padded)[0], np.float64)
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total -= sum(logs[t - 1, tokens[t]] for t in range(1, len(tokens)) if learn[t])
            count += learn.sum()
    graph, params = nnx.split(model)
    optimizer = optax.sgd(0.0)
    _, _, loss = tiny.train_step(graph, optimizer, params, optimizer.init(params), **batch)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_the_shipped_base_is_this_codes():
    """Corpus, shape, vocabulary, and the losses of the run's first steps, run again."""
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    assert record["corpus"] == tiny.corpus_hash(record["seed"])
    assert record["steps"] == tiny.STEPS
    assert weights.load("tiny")[2] == MODELS["tiny"]
    assert (SHIPPED / "tokenizer.model").read_bytes() == tiny_model()
    _, losses = tiny.pretrain(record["seed"], record["steps"], stop=6)
    np.testing.assert_allclose(losses, record["first_losses"][:6], rtol=1e-3)
    assert record["last_loss"] < 0.3 < losses[-1]


def test_the_shipped_base_adds(base):
    """Next token after `a op b =`: at least 99.5 % right on all facts, on the held-out ones too."""
    facts = list(every_fact())
    tokens = np.array([TOKENIZER.encode(fact) for fact in facts])
    assert tokens.shape[1] == 6

    @nnx.jit
    def guesses(model, tokens):
        positions = jnp.broadcast_to(jnp.arange(5), tokens.shape)
        hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
        return model.logits(hidden[:, -1]).argmax(-1)

    right = np.asarray(guesses(base, tokens[:, :-1])) == tokens[:, -1]
    held_out = np.array([tiny.is_held_out_fact(fact) for fact in facts])
    assert right[~held_out].mean() >= 0.995
    assert right[held_out].mean() >= 0.995, np.array(facts)[held_out & ~right]


def test_the_shipped_base_is_a_beginner(base):
    """Sampled on held-out puzzles: now and then right, mostly a jump, its sums true."""
    puzzles = [countdown.generate(0, i, **PUZZLES["tiny"], held_out=True) for i in range(256)]
    ids = [TOKENIZER.encode(countdown.prompt(puzzle)) for puzzle in puzzles]
    out = sampler.sample(
        base, *sampler.pad_left(ids, 8, TOKENIZER.pad_id), jax.random.key(0), group=1, length=96,
        stop_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id, stages=2,
    )  # fmt: skip
    texts = [TOKENIZER.decode(t[m]) for t, m in zip(out.tokens, out.mask, strict=True)]
    right = [countdown.reward(t, p).value == 1 for t, p in zip(texts, puzzles, strict=True)]
    assert 0.05 <= np.mean(right) <= 0.25
    assert 0.6 < np.mean([text.startswith("<answer>") for text in texts]) < 0.85
    assert 0.03 < np.mean([text.count(" no ") > 1 for text in texts]) < 0.2
    facts = [re.fullmatch(FACT, m[0]).groups() for t in texts for m in re.finditer(FACT, t)]
    true = [SIGNS[s](int(a), int(b)) == int(c) for a, s, b, c in facts if (s, b) != ("/", "0")]
    assert len(true) > 200 and np.mean(true) > 0.98
