"""The transformer against two other implementations, and its two ways against each other."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib.model import vocabulary, weights
from aha_lib.model.gemma import Gemma
from aha_lib.presets import MODELS

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WORDS = GOLDEN.parent / "golden_tokenizer.model"  # the tiny vocabulary, and words up to 160
each = pytest.mark.parametrize("name", ["hf_gemma1", "hf_gemma2", "hf_gemma3"])


@functools.cache
def case(name):
    """A model and its golden and greedy data."""
    model, _, _ = weights.load(GOLDEN / name, tokenizer=WORDS)
    return model, *(dict(np.load(GOLDEN / name / f"{data}.npz")) for data in ("golden", "greedy"))


@nnx.jit
def forward(model, tokens, positions, segments):
    return model.logits(model.hidden(tokens, positions, segments))


@nnx.jit
def extend(model, tokens, positions, cache, slot):
    hidden, cache = model.extend(tokens, positions, cache, slot)
    return model.logits(hidden), cache


def full(model, tokens):
    tokens = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(forward(model, tokens, positions, jnp.ones_like(tokens)))


def decode(model, rows, lengths, slots):
    """Logits at each row's tokens: its first `lengths[i]` by one prefill, the others one by one.

    Rows are left-padded with a token that would be seen if padding were not masked.
    """
    width = max(lengths)
    tokens = np.full((len(rows), width), 77)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        tokens[i, width - n :] = row[:n]
    positions = np.arange(width) - (width - np.array(lengths))[:, None]
    cache = model.empty_cache(len(rows), slots)
    logits, cache = extend(model, tokens, np.maximum(positions, 0), cache, 0)
    found = [[*logits[i, width - n :]] for i, n in enumerate(lengths)]
    for t in range(min(len(row) - n for row, n in zip(rows, lengths, strict=True))):
        new = np.array([[row[n + t]] for row, n in zip(rows, lengths, strict=True)])
        at = np.array(lengths)[:, None] + t
        logits, cache = extend(model, new, at, cache, width + t)
        for i, row in enumerate(logits[:, 0]):
            found[i].append(row)
    return [np.array(row) for row in found]


@each
def test_logits_of_transformers(name):
    model, golden, _ = case(name)
    np.testing.assert_allclose(full(model, golden["tokens"]), golden["logits"], rtol=0, atol=1e-4)


@each
def test_prefill_and_decode_are_the_full_pass(name):
    """Unequal prompts, left-padded, and rows three times as long as the sliding window."""
    model, golden, _ = case(name)
    tokens, logits = golden["tokens"], golden["logits"]
    for row, found in enumerate(decode(model, tokens, [13, 5], slots=40)):
        np.testing.assert_allclose(found, logits[row, : len(found)], rtol=0, atol=1e-4)
        assert len(found) >= 16


@each
def test_greedy_continuation(name):
    model, _, greedy = case(name)
    prompt, expected = greedy["prompt"], greedy["tokens"]
    B, T = prompt.shape
    cache = model.empty_cache(B, expected.shape[1])
    at = np.broadcast_to(np.arange(T), (B, T))
    logits, cache = extend(model, prompt, at, cache, 0)
    rows, over = [prompt], np.zeros(B, bool)
    for t in range(T, expected.shape[1]):
        new = np.where(over, 0, np.argmax(logits[:, -1], axis=-1))
        over |= new == 1
        rows.append(new[:, None])
        at = np.full((B, 1), t)
        logits, cache = extend(model, new[:, None], at, cache, t)
    assert (np.concatenate(rows, axis=1) == expected).all()


@each
def test_segments_do_not_see_each_other(name):
    model, golden, _ = case(name)
    first, second = golden["tokens"]
    packed = np.concatenate([first[:10], second[:14]])[None]
    positions = np.concatenate([np.arange(10), np.arange(14)])[None]
    segments = np.array([[1] * 10 + [2] * 14])
    logits = np.asarray(forward(model, packed, positions, segments))[0]
    expected = np.concatenate([golden["logits"][0, :10], golden["logits"][1, :14]])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 2**28])
def test_logprobs_and_entropy(chunk):
    model, golden, _ = case("hf_gemma2")
    tokens, temperature = jnp.asarray(golden["tokens"]), 0.7
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
    targets = jnp.roll(tokens, -1, axis=1)
    found, entropy = model.logprobs(hidden, targets, temperature=temperature, chunk=chunk)
    logits = golden["logits"].astype(np.float64) / temperature
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(logs, np.asarray(targets)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-4)
    np.testing.assert_allclose(entropy, -(np.exp(logs) * logs).sum(-1), rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", MODELS)
def test_presets_count_their_parameters(name):
    model = nnx.eval_shape(lambda: Gemma(MODELS[name], rngs=nnx.Rngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    assert count == MODELS[name].parameters
    published = {
        "gemma-2b": 2.5e9,
        "gemma-7b": 8.5e9,
        "gemma2-2b": 2.6e9,
        "gemma2-9b": 9.2e9,
        "gemma3-270m": 268e6,
        "gemma3-1b": 1.0e9,
        "gemma3-4b": 3.9e9,
    }
    assert count == pytest.approx(published.get(name, count), rel=0.02)


def test_waves_in_numbers():
    """Rows of numbers keep their length; near numbers are near, and equal ends are alike."""
    model = Gemma(MODELS["small"], rngs=nnx.Rngs(0))
    before = np.asarray(model.embed[...])
    numbers = {n: n + 4 for n in range(201)}
    vocabulary.add_waves(model, numbers)
    after = np.asarray(model.embed[...])
    waves = 2 * len(vocabulary.PERIODS)
    rows = after[4:205, :waves]
    np.testing.assert_allclose((rows**2).sum(1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(after[4:205, waves:], before[4:205, waves:] * 0.5**0.5, rtol=1e-6)
    assert (np.delete(after, range(4, 205), 0) == np.delete(before, range(4, 205), 0)).all()
    alike = rows @ rows.T
    assert alike[50, 51] > alike[50, 57], "near numbers"
    assert alike[50, 60] > alike[50, 57], "the same last digit"
