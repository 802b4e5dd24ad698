"""Supervised training: its loss, the shipped base against the code, cold starts of a Gemma."""

import dataclasses
import itertools
import json
import operator
import re
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib import corpus, countdown, pretrain, sampler, weights
from aha_lib.gemma import Gemma
from aha_lib.presets import MODELS, PRETRAINING, PUZZLES, Pretraining
from aha_lib.tokenizer import Tokenizer, tiny_model

TOKENIZER = Tokenizer(tiny_model())
TINY = PRETRAINING["tiny"]
SHIPPED = Path(corpus.__file__).parent / "data" / "tiny"
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
FACT = r"(\d+) ([-+*/]) (\d+) = (\d+)"


@pytest.fixture(scope="module")
def base():
    return weights.load("tiny")[0]


def every_fact():
    for a in range(101):
        for b in range(a + 1):
            for sign in "+-*":
                if SIGNS[sign](a, b) <= 100:
                    yield f"{a} {sign} {b} = {SIGNS[sign](a, b)}"
            if b and a % b == 0:
                yield f"{a} / {b} = {a // b}"


def test_the_loss_is_each_documents_own():
    """Packed rows against every document alone: a document does not see its neighbours."""
    small = dataclasses.replace(MODELS["tiny"], layers=2, width=32, heads=2, head_dim=16, ff=48)
    model = Gemma(small, rngs=nnx.Rngs(0))

    @nnx.jit
    def forward(model, tokens):
        hidden = model.hidden(tokens, jnp.arange(TINY.row_len)[None], jnp.ones_like(tokens))
        return model.logits(hidden)

    batch, _ = corpus.rows(TINY, 0, 2, TOKENIZER)
    total, count = 0.0, 0
    for row in range(2):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            tokens, learn = batch["tokens"][row, here], batch["weights"][row, here]
            padded = jnp.array(np.pad(tokens, (0, TINY.row_len - len(tokens)))[None])
            logits = np.asarray(forward(model, padded)[0], np.float64)
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total -= sum(logs[t - 1, tokens[t]] for t in range(1, len(tokens)) if learn[t])
            count += learn.sum()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    moments = pretrain.optimizer(TINY).init(params)
    _, _, loss = pretrain.train_step(graph, params, rest, moments, **batch, settings=TINY)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_the_shipped_base_is_this_codes(tmp_path):
    """Corpus, shape, vocabulary, and the losses of the run's first steps, run again."""
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    assert record["corpus"] == corpus.fingerprint(TINY)
    assert Pretraining(**record["settings"]) == TINY
    assert weights.load("tiny")[2] == MODELS["tiny"]
    assert (SHIPPED / "tokenizer.model").read_bytes() == tiny_model()
    with closing(pretrain.pretrain(TINY, tmp_path)) as run:
        losses = [row["loss"] for row in itertools.islice(run, 6)]
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
    held_out = np.array([corpus.is_held_out_fact(fact) for fact in facts])
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


def small_gemma(folder, tokenizer):
    """A Gemma 3 270M in all but its sizes, at random, with a tokenizer of the tiny words' kind."""
    shape = dict(layers=3, width=48, heads=2, head_dim=16, ff=64, window=12, vocab=400)
    config = dataclasses.replace(MODELS["gemma3-270m"], **shape)
    weights.save_hf(Gemma(config, rngs=nnx.Rngs(0)), folder, tokenizer)
    return str(folder)
