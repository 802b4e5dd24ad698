"""The sampler against full forward passes of each row alone, without a cache."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib.model.gemma import Cache, Gemma
from aha_lib.presets import ModelConfig
from aha_lib.rl import sampler

CONFIG = ModelConfig(
    vocab=24,
    layers=2,
    width=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ff=48,
    global_every=2,
    window=6,
    qk_norm=True,
    post_norms=True,
)
PROMPTS = [[2, 9, 4, 7, 11], [2, 5], [2, 9, 4, 7, 6, 6, 13]]
PAD, STOPS = 0, {1, 3, 17}
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def model():
    """A small random Gemma whose layers outweigh the input, so that it doesn't just repeat it."""
    model = Gemma(CONFIG, rngs=nnx.Rngs(0))
    for name in ("post_attn_norm", "post_ff_norm"):
        norm = getattr(model.layers, name)
        norm[...] = norm[...] + 1.5
    return model


@pytest.fixture
def one_thread(monkeypatch):
    """All rows in one thread, for tests that look at what happens inside."""
    monkeypatch.setattr(sampler, "cpu_threads", lambda params: 1)


def sample(model, key=KEY, *, prompts=PROMPTS, width=8, **changes):
    tokens, valid = sampler.pad_left(prompts, width, PAD)
    how = dict(group=16, length=20, stop_ids=STOPS, pad_id=PAD, stages=2) | changes
    return sampler.sample(model, tokens, valid, key, sampler.Sampling(**how))


@nnx.jit
def forward(model, tokens):
    hidden = model.hidden(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
    return model.logits(hidden)


def full_logits(model, tokens):
    """Logits after every token of one row, from one full forward pass, float64.

    The row starts at the first column; what fills it up comes later and is seen by none.
    """
    row = jnp.array([tokens + [0] * (28 - len(tokens))])
    return np.asarray(forward(model, row)[0, : len(tokens)], np.float64)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def rows_of(out, prompts=PROMPTS):
    """(prompt, tokens written, their log-probabilities) of each row."""
    group = len(out.tokens) // len(prompts)
    for i, mask in enumerate(out.mask):
        yield prompts[i // group], out.tokens[i][mask].tolist(), out.logprobs[i][mask]


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7, 0.0])
def test_logprobs_are_those_of_the_full_forward_pass(model, monkeypatch, one_thread, temperature):
    moves, move = [], sampler._resize
    monkeypatch.setattr(sampler, "_resize", lambda *args: moves.append(args[1:]) or move(*args))
    out = sample(model, temperature=temperature)
    first = dict(zip(Cache._fields, moves[:4], strict=True))
    assert len(first["k"][0]) == 48, "every row starts with its prompt's cache"
    assert (first["k"][1], first["local_k"][1]) == (18, 6), "a local layer keeps its window"
    order, slots = zip(*moves[4:], strict=True)
    if order[0] is None:  # the likeliest tokens need not stop
        assert slots == (28, 28), "a window that is full, and whose rows all go on, is not copied"
    else:
        assert len(order[0]) < 48, "rows that are done are dropped"
        assert slots == (28, 28, 6, 6)
    assert temperature == 0 or order[0] is not None
    for prompt, tokens, logprobs in rows_of(out):
        logits = full_logits(model, prompt + tokens)[len(prompt) - 1 : -1]
        if temperature == 0:
            assert tokens == logits.argmax(-1).tolist()
        expected = log_softmax(logits / (temperature or 1.0))[range(len(tokens)), tokens]
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)


@pytest.mark.slow
def test_lengthening_never_holds_two_whole_caches(model, monkeypatch, one_thread):
    real, shorter = sampler._resize, []

    def move(x, order, slots):
        assert all(old.is_deleted() for old in shorter), "the array before this one is freed"
        shorter.append(x)
        return real(x, order, slots)

    monkeypatch.setattr(sampler, "_resize", move)
    sample(model)
    assert len(shorter) > 3 and all(old.is_deleted() for old in shorter)


@pytest.mark.parametrize(
    "pad", [PAD, pytest.param(1, marks=pytest.mark.slow)], ids=["pad", "pad is a stop token"]
)
def test_a_row_ends_with_its_first_stop_token_and_counts_it(model, pad):
    out = sample(model, pad_id=pad)
    ends = set()
    for tokens, logprobs, mask in zip(*out[:3], strict=True):
        count = mask.sum()
        assert mask[:count].all() and not mask[count:].any()
        assert not STOPS & set(tokens[: count - 1].tolist()), "nothing is written after the end"
        if count < len(mask):
            assert tokens[count - 1] in STOPS
        assert (logprobs[:count] < 0).all()
        assert (logprobs[count:] == 0).all() and (tokens[count:] == pad).all()
        ends.add(int(tokens[count - 1]))
    assert STOPS < ends, "every stop token ended a row, and some row was not ended by one"
    again = sample(model)
    np.testing.assert_array_equal(out.mask, again.mask)
    np.testing.assert_array_equal(out.tokens[out.mask], again.tokens[out.mask])


@pytest.mark.slow
def test_a_row_depends_on_its_prompt_and_its_key_alone(model):
    out = sample(model)
    others = sample(model, prompts=[PROMPTS[0], [2, 1, 1, 3], [2, 8]])
    np.testing.assert_array_equal(out.tokens[:16], others.tokens[:16])
    assert (out.tokens[16:] != others.tokens[16:]).any()
    padded = sample(model, width=13, stages=1)
    np.testing.assert_array_equal(out.tokens, padded.tokens)
    np.testing.assert_allclose(out.logprobs, padded.logprobs, atol=2e-5)


@pytest.mark.parametrize("stages", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stages_do_not_show(model, stages):
    out, staged = sample(model), sample(model, stages=stages)
    np.testing.assert_array_equal(out.tokens, staged.tokens)
    np.testing.assert_array_equal(out.mask, staged.mask)
    np.testing.assert_allclose(out.logprobs, staged.logprobs, atol=2e-5)


@pytest.mark.parametrize(
    "threads", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_threads_do_not_show(model, monkeypatch, threads):
    real, together = sampler._write, threading.Barrier(min(threads, len(PROMPTS)), timeout=60)

    def watched(*args, **kwargs):
        together.wait()  # fails unless each share has a thread, and a prompt at least
        return real(*args, **kwargs)

    outs = []
    for count in (1, threads):
        monkeypatch.setattr(sampler, "cpu_threads", lambda params, count=count: count)
        outs.append(sample(model))
        monkeypatch.setattr(sampler, "_write", watched)
    np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)
    np.testing.assert_array_equal(outs[0].mask, outs[1].mask)
    np.testing.assert_allclose(outs[0].logprobs, outs[1].logprobs, atol=2e-5)


def test_a_completion_of_fewer_tokens_than_stages(model):
    out, longer = sample(model, length=1, stages=4), sample(model)
    np.testing.assert_array_equal(out.tokens, longer.tokens[:, :1])


def test_weights_that_are_prepared_are_not_copied(model):
    params = nnx.state(model)
    whole, half = (
        sampler.prepare_weights(params, jnp.dtype(kind)) for kind in ("float32", "bfloat16")
    )
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (params, whole)), strict=True))
    assert half["final_norm"][...] is params["final_norm"][...]
    np.testing.assert_array_equal(half["embed"][...], params["embed"][...].astype(jnp.bfloat16))


def test_same_key_same_tokens_other_key_others(model):
    first, again, other = (sample(model, jax.random.key(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any(axis=1).mean() > 0.9


def test_a_group_shares_its_prefill_and_differs(model, monkeypatch, one_thread):
    shapes, extend = [], Gemma.extend

    def spy(self, tokens, *rest):
        shapes.append(tokens.shape)
        return extend(self, tokens, *rest)

    monkeypatch.setattr(Gemma, "extend", spy)
    out = sample(model, width=9, group=11, length=21, stages=1)  # new shapes are traced
    assert shapes[0] == (3, 9), "the prompts are read once each"
    assert set(shapes[1:]) == {(33, 1)}
    written = [tuple(tokens) for _, tokens, _ in rows_of(out)]
    for start in (0, 11, 22):
        assert len(set(written[start : start + 11])) > 8


def chi_square(drawn, probabilities):
    """Pearson's statistic and its degrees of freedom, rare tokens (expected < 5) in one bin."""
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = probabilities * len(drawn)
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    return ((counts - expected) ** 2 / expected).sum(), len(counts) - 1


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_frequencies_are_the_softmax(model, temperature):
    first = sample(model, prompts=PROMPTS[:1], group=4000, length=1, temperature=temperature)
    logits = full_logits(model, PROMPTS[0])[-1]
    statistic, freedom = chi_square(first.tokens[:, 0], np.exp(log_softmax(logits / temperature)))
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    other = np.exp(log_softmax(logits / (1.7 - temperature)))
    assert chi_square(first.tokens[:, 0], other)[0] > 10 * freedom, "this test can fail"


def test_draw_inverts_the_distribution():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(20_000))
    weights = np.array([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    logs = jnp.broadcast_to(jnp.log(jnp.array(weights)), (20_000, 7))
    columns = [np.asarray(sampler._draw(logs, keys, jnp.full(20_000, p))) for p in (7, 8)]
    for drawn in columns:
        assert weights[drawn].all(), "a token of probability 0 is never drawn"
        statistic, freedom = chi_square(drawn, weights)
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    pairs = columns[0] * 7 + columns[1]  # positions are drawn independently of one another
    statistic, freedom = chi_square(pairs, np.outer(weights, weights).ravel())
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_draw_from_a_wide_vocabulary():
    rng = np.random.default_rng(0)
    weights = np.append(rng.dirichlet(np.full(8, 1.0)) * 0.9, np.full(9992, 0.1 / 9992))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(1000))
    logs = jnp.broadcast_to(jnp.log(jnp.array(weights)), (1000, 10_000))
    drawn = np.asarray(sampler._draw(logs, keys, jnp.zeros(1000, int)))
    statistic, freedom = chi_square(drawn, weights)
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.slow
def test_the_generator_of_keys_does_not_show(model, monkeypatch):
    """rbg draws other numbers for another batch: with it, two threads gave other tokens than one.

    And what its key has in common with threefry's gives the same tokens.
    """
    outs = [sample(model)]
    for count in (1, 2):
        monkeypatch.setattr(sampler, "cpu_threads", lambda params, count=count: count)
        with jax.default_prng_impl("rbg"):
            outs.append(sample(model, jax.random.key(5)))
    for out in outs[1:]:
        np.testing.assert_array_equal(out.tokens, outs[0].tokens)


def test_shapes_of_the_decode_programs_are_known(model, monkeypatch, one_thread):
    met, decode = set(), sampler._decode

    def spy(graph, params, rows, temperature, stage):
        met.add((len(rows.done), rows.cache.k.shape[3], stage.length))
        return decode(graph, params, rows, temperature, stage)

    monkeypatch.setattr(sampler, "_decode", spy)
    for number in range(4):
        sample(model, jax.random.key(number), temperature=0.5 + number)
    sampling = sampler.Sampling(group=16, length=20, stop_ids=STOPS, pad_id=PAD, stages=2)
    known = sampler.decode_shapes(3, 8, sampling)
    assert known == [(48, 28, 10), (48, 18, 10), (24, 28, 10), (12, 28, 10), (6, 28, 10)]
    assert len(met) > 2 and met <= set(known)
    shares = sampler.decode_shapes(3, 8, sampling, threads=2)  # of two prompts, and of one
    assert {rows for rows, *_ in shares} == {32, 16, 8, 4, 2}


def test_a_last_call_takes_the_programs_of_the_others(model, monkeypatch, one_thread):
    """Filled up to three prompts, two are written with the very shapes of three, and as alone."""
    met, decode, prefill = [], sampler._decode, sampler._prefill

    def spy(graph, params, rows, temperature, stage):
        met.append(sampler.DecodeShape(len(rows.done), rows.cache.k.shape[3], stage.length))
        return decode(graph, params, rows, temperature, stage)

    def begin(graph, params, prompts, valid, wanted):
        met.append(sampler.PrefillShape(len(prompts), len(wanted.prompt)))
        return prefill(graph, params, prompts, valid, wanted)

    monkeypatch.setattr(sampler, "_decode", spy)
    monkeypatch.setattr(sampler, "_prefill", begin)
    alone = sample(model, prompts=PROMPTS[:2])
    assert (2, 32) in met
    met.clear()
    filled = sample(model, prompts=PROMPTS[:2], fill=3)
    sampling = sampler.Sampling(group=16, length=20, stop_ids=STOPS, pad_id=PAD, stages=2)
    known = sampler.shapes(3, 8, sampling)
    assert met[0] in known.prefills and {*met[1:]} <= known.decodes
    np.testing.assert_array_equal(filled.tokens, alone.tokens)
    np.testing.assert_array_equal(filled.mask, alone.mask)
    np.testing.assert_allclose(filled.logprobs, alone.logprobs, atol=1e-5)
    monkeypatch.setattr(sampler, "cpu_threads", lambda params: 2)
    np.testing.assert_array_equal(sample(model, prompts=PROMPTS[:2], fill=3).tokens, alone.tokens)


def test_the_moves_of_the_cache_are_known(model, monkeypatch, one_thread):
    met, resize = set(), sampler._resize

    def spy(x, order, slots):
        if x.shape[0] == 1 and slots > 6:  # of the global layer
            kept = x.shape[1] if order is None else len(order)
            met.add((x.shape[1], x.shape[3], kept, slots))
        return resize(x, order, slots)

    monkeypatch.setattr(sampler, "_resize", spy)
    for number in range(3):
        sample(model, jax.random.key(number), temperature=0.5 + number)
    sampling = sampler.Sampling(group=16, length=20, stop_ids=STOPS, pad_id=PAD, stages=2)
    known = {move[:4] for move in sampler.shapes(3, 8, sampling).moves}
    assert len(met) > 1 and met <= known
    assert known == {(3, 8, 48, 18), *((48, 18, kept, 28) for kept in (48, 24, 12, 6))}


def test_accelerators_halve_less_far(monkeypatch):
    """There a program takes a minute, and a few rows take as long as some more."""
    assert sampler._halvings(64, sampler._fewest(64)) == [64, 32, 16, 8]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert sampler._halvings(64, sampler._fewest(64)) == [64, 32, 16]


def test_no_prompts_are_a_sentence(model):
    with pytest.raises(ValueError, match="There are no prompts"):
        sampler.pad_left([], 8, PAD)
    none = np.zeros((0, 8), np.int32)
    with pytest.raises(ValueError, match="There are no prompts to sample from"):
        sampler.sample(model, none, none > 0, KEY, sampler.Sampling(2, 8, STOPS, PAD))


def test_pad_left():
    tokens, valid = sampler.pad_left([[5, 6, 7], [8]], 4, 9)
    assert tokens.tolist() == [[9, 5, 6, 7], [9, 9, 9, 8]]
    assert valid.tolist() == [[False, True, True, True], [False, False, False, True]]
    with pytest.raises(ValueError, match="3 tokens: raise prompt_len above 2"):
        sampler.pad_left([[5, 6, 7], [8]], 2, 9)
