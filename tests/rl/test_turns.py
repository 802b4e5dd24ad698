"""Rows that wait for a tool's replies, against forward passes of each row alone: no cache."""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib.model import weights
from aha_lib.model.gemma import Gemma
from aha_lib.presets import SETTINGS, ModelConfig
from aha_lib.rl import grpo, objectives, sampler
from aha_lib.tasks import rollout
from aha_lib.tasks.rollout import Policy
from aha_lib.tasks.task import Task

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
PAD, STOP, ASKS = 0, 1, (5, 7, 11)
GROUP, LENGTH = 8, 48
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def model():
    model = Gemma(CONFIG, rngs=nnx.Rngs(0))
    for name in ("post_attn_norm", "post_ff_norm"):
        norm = getattr(model.layers, name)
        norm[...] = norm[...] + 1.5
    return model


def reply(row, tokens):
    """Of another length for each row and turn, from none to more than a stage has columns."""
    turn = sum(token in ASKS for token in tokens)
    if turn == 6:
        return None
    length = (0, 3, 17)[(row + turn) % 3]
    return [(7 * row + turn + k) % 20 + 4 for k in range(length)]


def sample(model, *, prompts=PROMPTS, answer=reply, key=KEY, width=8, **changes):
    tokens, valid = sampler.pad_left(prompts, width, PAD)
    how = dict(group=GROUP, length=LENGTH, stop_ids={STOP}, pad_id=PAD, turn_ends=ASKS)
    sampling = sampler.Sampling(**how | changes, reply=answer)
    return sampler.sample(model, tokens, valid, key, sampling)


@pytest.fixture(scope="module")
def out(model):
    return sample(model)


def asked(out):
    """Where the model ended a turn."""
    return np.isin(out.tokens, ASKS) & out.mask


def batch_of(out, prompts=PROMPTS) -> grpo.Batch:
    tokens, valid = sampler.pad_left(prompts, 8, PAD)
    tokens, valid = np.repeat(tokens, GROUP, axis=0), np.repeat(valid, GROUP, axis=0)
    gain = np.linspace(-1, 1, len(tokens)).astype(np.float32)
    batch = grpo.Batch(tokens, valid, out.tokens, out.mask, out.logprobs, gain)
    return batch._replace(written=out.written)


def logprobs_alone(model, prompt, tokens):
    """Of each token of a completion, by a forward pass over all before it, one at a time."""
    forward = nnx.jit(lambda model, ids, positions: model.hidden(ids, positions, ids * 0 + 1))
    found = []
    for end in range(len(tokens)):
        before = np.array([*prompt, *tokens[:end]])
        padded = np.zeros((1, 8 + LENGTH), int)  # one shape; what comes later is not seen
        padded[0, : len(before)] = before
        hidden = forward(model, padded, np.arange(padded.shape[1])[None])
        logs = jax.nn.log_softmax(model.logits(hidden[0, len(before) - 1]))
        found.append(float(logs[tokens[end]]))
    return np.array(found)


def test_turns_are_as_they_should_be(out):
    """Else the other tests here would look at too little."""
    asks = asked(out).sum(axis=1)
    assert (asks >= 3).sum() >= 4, "rows with several turns"
    assert (out.written & ~out.mask).sum(axis=1).max() > 17
    ends = out.written.sum(axis=1)
    for row, end in enumerate(ends):
        assert out.written[row, :end].all() and not out.written[row, end:].any(), "no gaps"
        last = out.tokens[row, end - 1]
        refused = reply(row, out.tokens[row, :end].tolist()) is None and asks[row]
        assert end == LENGTH or refused or (last == STOP and out.mask[row, end - 1])
    assert not out.logprobs[~out.mask].any()
    in_a_reply = (ends == LENGTH) & ~out.mask[np.arange(len(ends)), -1]
    assert in_a_reply.any(), "a row that is cut in the middle of a reply"


def test_each_reply_stands_behind_its_call(out):
    for row, (tokens, mask) in enumerate(zip(out.tokens, out.mask, strict=True)):
        end = out.written[row].sum()
        for at in np.flatnonzero(asked(out)[row]):
            answer = reply(row, tokens[: at + 1].tolist()) or []
            here = slice(at + 1, min(at + 1 + len(answer), end))
            assert tokens[here].tolist() == answer[: here.stop - here.start]
            assert not mask[here].any()
            assert here.stop == end or mask[here.stop], "then the model goes on"


def test_logprobs_are_those_of_the_tokens_alone(model, out):
    """In a window of 6 tokens, over turns of up to 17: what a row waits for leaves no trace."""
    asks = asked(out).sum(axis=1)
    for row in np.argsort(-asks)[:3]:
        end = out.written[row].sum()
        alone = logprobs_alone(model, PROMPTS[row // GROUP], out.tokens[row, :end])
        mask = out.mask[row, :end]
        np.testing.assert_allclose(out.logprobs[row, :end][mask], alone[mask], atol=1e-4)


def test_trainer_and_sampler_agree(model, out):
    batch = batch_of(out)
    plain, _ = grpo.completion_logprobs(model, jax.tree.map(jnp.asarray, batch), 1.0)
    np.testing.assert_allclose(np.where(out.mask, plain, 0), out.logprobs, atol=1e-4)
    seen = 0
    for micro in grpo.micro_batches(batch, 4, all_rows=True):
        packed, _ = grpo.completion_logprobs(model, jax.tree.map(jnp.asarray, micro), 1.0)
        packed = np.where(micro.mask, packed, 0)
        np.testing.assert_allclose(packed, np.where(micro.mask, micro.logprobs, 0), atol=1e-4)
        seen += micro.mask.sum()
    assert seen == out.mask.sum()


def test_a_row_depends_on_no_other(model, out):
    """With fewer stages, and alone: who waits for whom is another story then."""
    again = sample(model, stages=2)
    np.testing.assert_array_equal(again.tokens, out.tokens)
    alone = sample(model, prompts=PROMPTS[:1])
    np.testing.assert_array_equal(alone.tokens, out.tokens[:GROUP])
    np.testing.assert_array_equal(alone.mask, out.mask[:GROUP])


def test_more_padding_than_a_ring_has_room_for(model, out):
    """Local layers then keep fewer slots than the prompts have: 6 + 12 of 24."""
    wide = sample(model, width=24)
    np.testing.assert_array_equal(wide.tokens, out.tokens)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show(model, out, threads, monkeypatch):
    monkeypatch.setattr(sampler, "cpu_threads", lambda params: threads)
    again = sample(model)
    np.testing.assert_array_equal(again.tokens, out.tokens)
    np.testing.assert_array_equal(again.mask, out.mask)


def test_replies_without_a_word_change_nothing(model):
    silent = sample(model, answer=lambda row, tokens: [])
    without = sample(model, answer=None)
    for one, other in zip(silent, without, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert asked(without).sum() > 10


def test_without_a_tool_no_turn_is_compiled(model, monkeypatch):
    calls = []
    decode = sampler._decode
    monkeypatch.setattr(sampler, "_decode", lambda *args: calls.append(args) or decode(*args))
    sample(model, answer=None)
    assert calls and all(call.turn is None for _, _, _, call, _ in calls)
    graph, params, rows, call, stage = calls[0]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)  # it is donated
    lowered = decode.lower(graph, params, shapes, call, stage)
    assert len(jax.tree.leaves(lowered.args_info)) == len(jax.tree.leaves((params, rows))) + 1


def test_no_reply_gives_no_row_of_its_end(model):
    """A call whose reply is None is a row's last token; the others go on."""
    out = sample(model, answer=lambda row, tokens: None)
    for calls, written in zip(asked(out), out.written, strict=True):
        (at,) = np.flatnonzero(calls) if calls.any() else [None]
        assert at is None or at == written.sum() - 1


@pytest.mark.parametrize("objective", ["clip", "sequence_clip", "cispo", "reinforce", "kimi"])
def test_a_replys_tokens_are_no_targets(model, out, objective):
    """What the loss is told of them changes neither it nor its gradient, token by token."""
    settings = dataclasses.replace(SETTINGS["tiny"], objective=objective, entropy_bonus=0.1, kl=0.1)
    batch = batch_of(out)
    weights = objectives.token_weights(batch.mask, "sequence", GROUP)
    batch = batch._replace(weights=weights.astype(np.float32))
    rng = np.random.default_rng(0)
    logprobs = batch.logprobs + rng.normal(0, 0.1, batch.mask.shape)

    def value(logprobs):
        return grpo.surrogate(logprobs, 0.5 - logprobs, logprobs * 0.9, batch, settings)[0]

    forced = batch.written & ~batch.mask
    slope = jax.grad(value)(jnp.asarray(logprobs))
    assert forced.sum() > 50 and not slope[forced].any()
    assert (slope[batch.mask] != 0).mean() > 0.9
    changed = np.where(forced, logprobs - rng.uniform(0, 3, forced.shape), logprobs)
    assert float(value(changed)) == float(value(logprobs))


def test_another_target_in_a_reply_is_not_seen(model, out):
    """The gradient of the weights stays as it is to the bit: the reply is read, never predicted."""
    (micro, *_) = grpo.micro_batches(batch_of(out), 32, all_rows=True)
    graph, params = nnx.split(model)
    settings = dataclasses.replace(SETTINGS["tiny"], kl=0.0)

    def gradient(micro):
        zeros = jax.tree.map(jnp.zeros_like, params)
        how = grpo.LossSettings.of(settings)
        return grpo.accumulate(graph, grpo.Weights(params, None), zeros, micro, how)[0]

    targets = micro.layout.targets.copy()
    is_reply = np.zeros_like(targets, bool)
    starts = micro.layout.starts.reshape(-1)
    for i, (mask, written) in enumerate(zip(micro.mask, micro.written, strict=True)):
        if mask.any():
            row = i // micro.layout.starts.shape[1]
            is_reply[row, starts[i] + np.flatnonzero(written & ~mask)] = True
    assert is_reply.sum() == (micro.written & ~micro.mask)[micro.mask.any(axis=1)].sum() > 50
    other = micro._replace(layout=micro.layout._replace(targets=(targets + is_reply) % 24))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), gradient(micro), gradient(other))
    assert all(jax.tree.leaves(same))
    wrong = micro._replace(layout=micro.layout._replace(targets=(targets + ~is_reply) % 24))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), gradient(micro), gradient(wrong))
    assert not any(jax.tree.leaves(same))


def test_lengths_and_means_are_of_what_the_model_wrote(model, out):
    """Token weights, and rewards for length, count sampled tokens alone."""
    sums = objectives.token_weights(out.mask, "sequence", GROUP)
    lengths = out.mask.sum(axis=1)
    for row, count in enumerate(lengths):
        one = sums[row][out.mask[row]]
        np.testing.assert_allclose(one * count, one[0] * count)
    assert (lengths < out.written.sum(axis=1)).sum() > 10


class Echo(Task[int]):
    """A tool that does what the puzzle says."""

    turn_end = "no"

    def reply(self, text, puzzle):
        kinds = {0: "7", 1: "", 2: None, 3: "1 " * 99}
        if puzzle == 4:
            time.sleep(5)
        if puzzle == 5:
            raise TimeoutError("the tool is down")  # its own
        if puzzle == 6:
            sys.exit("the tool ends")
        if puzzle == 7:
            return 3  # no text
        return kinds.get(puzzle)


def tool(**changes) -> rollout.Tool:
    model, tokenizer, _ = weights.load("tiny")
    settings = dataclasses.replace(SETTINGS["tiny"], reply_seconds=0.2, turns=2, **changes)
    return rollout.Tool(Policy(model, tokenizer, Echo(), settings), list(range(8)), group=1)


def test_a_tool_that_fails_ends_the_row_and_is_counted():
    asked = tool()
    tokenizer = asked.policy.tokenizer
    so_far = tokenizer.encode("5 - 3 = 2 no", bos=False)
    seven = tokenizer.encode("7", bos=False)
    answers = [asked.answer(row, so_far) for row in range(8)]
    assert answers == [seven, [], None, None, None, None, None, None]
    assert [asked.failed.pop(row) for row in (6, 7)] == ["error", "error"]
    assert asked.failed == {3: "too long", 4: "late", 5: "error"}
    assert asked.answer(0, so_far) == seven
    assert asked.answer(0, so_far) is None, "the third reply, of two that a row may have"
    assert asked.failed[0] == "too many"
    assert asked.measures() == {"replies": 2 / 8, "failed_replies": 4 / 8}


def test_a_turn_ends_with_one_piece():
    class Long(Echo):
        turn_end = "no no"

    policy = dataclasses.replace(tool().policy, task=Long())
    with pytest.raises(ValueError, match="writes in 2 pieces: choose one"):
        rollout._turn_ends(policy)
