"""GRPO's step against NumPy on full logits, and against one plain gradient of the whole batch."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib.model.gemma import Gemma
from aha_lib.presets import ModelConfig, Settings
from aha_lib.rl import grpo, sampler

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
BASE = Settings(prompts=2, group=4, completion_len=8, micro_batch=3, warmup=0, steps=10)
PAD, EOS = 0, 1


def make_model(seed):
    model = Gemma(CONFIG, rngs=nnx.Rngs(seed))
    for name in ("post_attn_norm", "post_ff_norm"):
        norm = getattr(model.layers, name)
        norm[...] = norm[...] + 1.0
    return model


@pytest.fixture(scope="module")
def model():
    return make_model(0)


@pytest.fixture(scope="module")
def reference():
    return make_model(1)


@pytest.fixture(scope="module")
def batch(model):
    """Sampled completions of several lengths, off-policy enough that both clips are met."""
    rng = np.random.default_rng(0)
    prompts, valid = sampler.pad_left([[2, 9, 4, 7], [2, 5]], 5, PAD)
    out = sampler.sample(
        model,
        prompts,
        valid,
        jax.random.key(3),
        sampler.Sampling(group=4, length=8, stop_ids={EOS, 3, 17, 20}, pad_id=PAD, stages=1),
    )
    old = np.where(out.mask, out.logprobs + rng.normal(0, 0.3, out.mask.shape), 0)
    gain = rng.normal(0, 1, 8)
    gain[[1, 6]] = 0.0  # rows without signal
    assert 2 < len(set(out.mask.sum(1))), "rows of several lengths"
    return grpo.Batch(
        np.repeat(prompts, 4, 0),
        np.repeat(valid, 4, 0),
        out.tokens,
        out.mask,
        old.astype(np.float32),
        gain.astype(np.float32),
    )


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, params, rows):
    """Logits of rows that start at the first column; what fills them up is seen by none."""
    model = nnx.merge(graph, params)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    hidden = model.hidden(rows, positions, jnp.ones_like(rows))
    return model.logits(hidden)


def row_logits(graph, params, batch):
    """For each row, the logits that predict each of its trained tokens."""
    written = [
        np.concatenate([prompt[valid], tokens[mask]])
        for prompt, valid, tokens, mask in zip(*batch[:4], strict=True)
    ]
    rows = jnp.array([np.pad(row, (0, 13 - len(row))) for row in written])
    logits = forward(graph, params, rows)
    starts = batch.valid.sum(1) - 1
    ends = zip(starts, batch.mask.sum(1), strict=True)
    return [logits[i, s : s + n] for i, (s, n) in enumerate(ends)]


def numpy_rows(model, batch, temperature):
    """Log-probabilities and entropies of the trained tokens, row by row, in float64."""
    rows = row_logits(*nnx.split(model), batch)
    for i, mask in enumerate(batch.mask):
        logits = np.asarray(rows[i], np.float64) / temperature
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        yield logs[range(mask.sum()), batch.completions[i][mask]], -(np.exp(logs) * logs).sum(-1)


def gradient(monkeypatch, model, batch, settings, reference=None):
    """The gradient that a whole train_step hands to the optimizer, and its metrics."""
    graph, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    state = grpo.TrainState(params, grpo.optimizer(settings).init(params))
    seen, apply = [], grpo.apply

    def spy(state, grads, *rest):
        seen.append(jax.tree.map(np.asarray, grads))
        return apply(state, grads, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(grpo, "apply", spy)
        base = nnx.split(reference)[1] if reference else None
        _, metrics = grpo.train_step(graph, state, base, batch, settings)
    return seen[0], metrics


def assert_same(ours, theirs, atol=1e-6):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_loss_is_what_numpy_says(model, reference, batch, temperature):
    settings = dataclasses.replace(BASE, temperature=temperature, kl=0.3)
    value, sums = grpo.loss(model, reference, on_device(batch), settings)
    expected = dict.fromkeys(("value", "entropy", "kl", "clip_fraction", "tokens"), 0.0)
    ours, theirs = (list(numpy_rows(m, batch, temperature)) for m in (model, reference))
    for i, mask in enumerate(batch.mask):
        (logprobs, entropy), (base, _) = ours[i], theirs[i]
        for t, logprob in enumerate(logprobs):
            ratio, gain = np.exp(logprob - batch.logprobs[i][mask][t]), batch.advantages[i]
            kept = gain * min(max(ratio, 0.8), 1.28)  # clip_low 0.2, clip_high 0.28
            gap = base[t] - logprob
            k3 = np.exp(gap) - gap - 1
            expected["value"] += 0.3 * k3 - min(gain * ratio, kept)
            expected["entropy"] += entropy[t]
            expected["kl"] += k3
            expected["clip_fraction"] += kept < gain * ratio
            expected["tokens"] += 1
    assert float(value) == pytest.approx(expected.pop("value"), rel=1e-4)
    assert expected["clip_fraction"] > 3, "the clip is met"
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(expected, rel=1e-4)


def test_hand_computed_clip():
    """Four tokens with ratios 1.5 and 0.5 and advantages 2 and -2: only two are clipped."""
    ratios = np.array([[1.5, 0.5], [1.5, 0.5]], np.float32)
    readout = SimpleNamespace(
        hidden=lambda tokens, positions, segments: jnp.zeros((2, 3, 1)),
        logprobs=lambda hidden, targets, temperature: (jnp.log(ratios) - 1, jnp.zeros((2, 2))),
    )
    batch = grpo.Batch(
        np.ones((2, 1), int),
        np.ones((2, 1), bool),
        np.ones((2, 2), int),
        np.ones((2, 2), bool),
        np.full((2, 2), -1.0, np.float32),
        np.array([2.0, -2.0], np.float32),
    )
    value, sums = grpo.loss(readout, None, on_device(batch), BASE)
    # 1.28 · 2 (clipped) + 0.5 · 2; 1.5 · -2 + 0.8 · -2 (clipped)
    assert float(value) == pytest.approx(-(2.56 + 1.0 - 3.0 - 1.6), rel=1e-5)
    assert float(sums["clip_fraction"]) == 2


def test_on_policy_ratio_is_one_at_the_temperature_of_the_sampler(model, batch):
    """Sampled at 0.7 and trained at 0.7: the trainer's log-probabilities are the sampler's."""
    for temperature in (0.7, 1.0):
        out = sampler.sample(
            model,
            batch.prompts[::4],
            batch.valid[::4],
            jax.random.key(9),
            sampler.Sampling(
                group=4,
                length=8,
                stop_ids={EOS, 3, 17, 20},
                pad_id=PAD,
                temperature=temperature,
                stages=1,
            ),
        )
        fresh = on_device(
            grpo.Batch(
                batch.prompts, batch.valid, out.tokens, out.mask, out.logprobs, batch.advantages
            )
        )
        ours, _ = grpo.completion_logprobs(model, fresh, temperature)
        np.testing.assert_allclose(np.asarray(ours)[out.mask], out.logprobs[out.mask], atol=2e-5)
        settings = dataclasses.replace(BASE, temperature=temperature, kl=0.1)
        value, sums = grpo.loss(model, model, fresh, settings)
        expected = -(out.mask.sum(1) * batch.advantages).sum()
        assert float(value) == pytest.approx(expected, abs=1e-3)
        assert float(sums["clip_fraction"]) == 0 and abs(float(sums["kl"])) < 1e-6


def test_no_prompt_token_is_a_target_and_each_end_is_one(model, batch):
    """The loss depends on the states that predict sampled tokens, EOS included, on no other."""
    hidden = model.hidden(
        jnp.concatenate([batch.prompts, batch.completions], 1),
        jnp.zeros((8, 13), int),
        jnp.ones((8, 13), int),
    )

    def value(hidden):
        readout = SimpleNamespace(hidden=lambda *tokens: hidden, logprobs=model.logprobs)
        return grpo.loss(readout, None, on_policy, BASE)[0]

    # On-policy, nothing is clipped; every row has an advantage.
    logs, _ = model.logprobs(hidden[:, 4:-1], jnp.array(batch.completions))
    on_policy = on_device(batch._replace(logprobs=logs, advantages=np.ones(8, np.float32)))
    moved = np.abs(np.asarray(jax.grad(value)(hidden))).sum(-1) > 0
    trained = np.zeros((8, 13), bool)
    trained[:, 4:-1] = batch.mask  # the last prompt token, in column 4, predicts the first one
    np.testing.assert_array_equal(moved, trained)
    ends = {int(row[mask][-1]) for row, mask in zip(batch.completions, batch.mask, strict=True)}
    assert ends & {EOS, 3, 17, 20}, "a stop token is among what is trained"


@pytest.mark.slow
def test_what_stands_after_the_end_is_nothing(monkeypatch, model, batch):
    """Padding may be any token, EOS too (pad id = EOS id)."""
    for pad in (EOS, 23):
        other = batch._replace(completions=np.where(batch.mask, batch.completions, pad))
        first, _ = gradient(monkeypatch, model, batch, BASE)
        assert_same(first, gradient(monkeypatch, model, other, BASE)[0])
    other = batch._replace(prompts=np.where(batch.valid, batch.prompts, EOS))
    assert_same(first, gradient(monkeypatch, model, other, BASE)[0])


@pytest.mark.parametrize("kl", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_gradient_is_that_of_the_mean_over_tokens(monkeypatch, model, reference, batch, kl):
    """Micro-batches, buckets, left-out rows and filling rows against one plain gradient."""
    settings = dataclasses.replace(BASE, kl=kl)
    bases = row_logits(*nnx.split(reference), batch)
    graph, params = nnx.split(model)

    def pick(logits, tokens):
        return jax.nn.log_softmax(logits)[np.arange(len(tokens)), tokens]

    def whole(params):
        rows, total = row_logits(graph, params, batch), 0.0
        for i, mask in enumerate(batch.mask):
            tokens, gain = batch.completions[i][mask], batch.advantages[i]
            logprobs = pick(rows[i], tokens)
            ratio = jnp.exp(logprobs - batch.logprobs[i][mask])
            gap = pick(bases[i], tokens) - logprobs
            kept = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.28) * gain)
            total += jnp.sum(kl * (jnp.exp(gap) - gap - 1) - kept)
        return total / batch.mask.sum()

    expected = jax.tree.map(np.asarray, jax.jit(jax.grad(whole))(params))
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(expected)))
    for rows in (8, 3) if kl else (3,):  # at once; in parts, the last one with filling rows
        settings = dataclasses.replace(settings, micro_batch=rows)
        grads, metrics = gradient(monkeypatch, model, batch, settings, reference)
        assert_same(grads, expected)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_threads_do_not_show(monkeypatch, model, reference, batch):
    """Micro-batches in threads side by side: the same gradient and the same metrics."""
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(grpo, "cpu_threads", lambda params, count=count: count)
        found.append(gradient(monkeypatch, model, batch, BASE, reference))
    for grads, metrics in found[1:]:
        assert_same(grads, found[0][0])
        assert metrics == pytest.approx(found[0][1], rel=1e-5)


@pytest.mark.parametrize("everything", [False, True])
def test_micro_batches_hold_every_row_with_signal_once(batch, everything):
    seen = []
    for micro in grpo.micro_batches(batch, 3, all_rows=everything):
        assert micro.layout.tokens.shape == (3, 13) and micro.layout.targets.shape == (3, 8)
        for tokens, mask in zip(micro.completions, micro.mask, strict=True):
            if mask.any():
                seen.append(tuple(tokens[mask].tolist()))
    rows = range(8) if everything else np.flatnonzero(batch.advantages)
    assert sorted(seen) == sorted(tuple(batch.completions[i][batch.mask[i]].tolist()) for i in rows)


def test_packed_rows_give_what_rows_of_their_own_give(model, batch):
    """Log-probabilities and entropies, where completions share prompts and layers have a window."""
    plain = [np.asarray(x) for x in grpo.completion_logprobs(model, on_device(batch), 0.7)]
    (micro,) = grpo.micro_batches(batch, 8, all_rows=True)
    layout = micro.layout
    shared = (np.diff(layout.segments, axis=1) > 0).sum(1).max()
    assert shared >= 2, "some prompt has several completions in a row"
    packed = [np.asarray(x) for x in grpo.completion_logprobs(model, on_device(micro), 0.7)]
    where = [
        int(np.flatnonzero((micro.logprobs == old).all(1) & micro.mask.any(1))[0])
        for old in batch.logprobs
    ]
    for ours, theirs in zip(packed, plain, strict=True):
        np.testing.assert_allclose(ours[where][batch.mask], theirs[batch.mask], atol=1e-5)
    blind = micro._replace(layout=layout._replace(prefixes=layout.segments))
    other = np.asarray(grpo.completion_logprobs(model, on_device(blind), 0.7)[0])
    assert np.abs(other[where] - plain[0])[batch.mask].max() > 0.1, "without the prompt it shows"


def test_metrics_are_means_over_the_tokens_trained(monkeypatch, model, reference, batch):
    settings = dataclasses.replace(BASE, kl=0.2)
    _, metrics = gradient(monkeypatch, model, batch, settings, reference)
    _, sums = grpo.loss(model, reference, on_device(batch), settings)
    for name in ("entropy", "kl", "clip_fraction"):
        expected = float(sums[name]) / batch.mask.sum()
        assert metrics[name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.slow
def test_groups_without_signal_do_not_change_the_direction(monkeypatch, model, batch):
    """Their advantage is 0; alone they leave the gradient at 0 and the metrics finite."""
    rewards = np.array([[1.0, 0.1, 0.0, 0.1], [0.1, 0.1, 0.1, 0.1]])
    gain = grpo.advantages(rewards).reshape(-1).astype(np.float32)
    assert (gain[4:] == 0).all() and (gain[:4] != 0).all()
    some = batch._replace(advantages=gain)
    grads, _ = gradient(monkeypatch, model, some, BASE)
    kept = grpo.Batch(*(None if x is None else x[:4] for x in some))
    alone, _ = gradient(monkeypatch, model, kept, BASE)
    share = kept.mask.sum() / some.mask.sum()  # their tokens do count in the mean
    assert_same(grads, jax.tree.map(lambda x: x * share, alone))
    nothing, metrics = gradient(monkeypatch, model, batch._replace(advantages=gain * 0), BASE)
    assert not any(x.any() for x in jax.tree.leaves(nothing))
    assert metrics["grad_norm"] == 0 and all(np.isfinite(list(metrics.values())))


def test_advantages():
    rewards = np.array([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, 0.1, 1.0, 0.1]])
    root = 3**0.5
    expected = [[root, -1 / root, -1 / root, -1 / root], [0, 0, 0, 0], [1, -1, 1, -1]]
    np.testing.assert_allclose(grpo.advantages(rewards), expected, atol=1e-12)
    centred = [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [0.45, -0.45, 0.45, -0.45]]
    np.testing.assert_allclose(grpo.advantages(rewards, scale_by_std=False), centred, atol=1e-12)
    for group, scale, others in itertools.product((4, 6, 8, 16, 48), (True, False), (True, False)):
        gain = grpo.advantages(np.full((1, group), 0.1), scale_by_std=scale, leave_one_out=others)
        assert (gain == 0).all(), "rounding is no signal"


def test_the_step_raises_what_was_rewarded_and_donates_its_state(model, batch):
    fresh = batch._replace(advantages=np.array([1, 1, 1, 1, -1, -1, -1, -1], np.float32))
    logprobs, _ = grpo.completion_logprobs(model, on_device(fresh), 1.0)
    fresh = fresh._replace(logprobs=np.asarray(logprobs))
    graph, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    state = grpo.TrainState(params, grpo.optimizer(BASE).init(params))
    new, _ = grpo.train_step(graph, state, None, fresh, BASE)
    arrays = [x for x in jax.tree.leaves(state) if x.size > 1]
    assert all(x.is_deleted() for x in arrays), "the old state's memory is used again"
    after, _ = grpo.completion_logprobs(nnx.merge(graph, new.params), on_device(fresh), 1.0)
    change = np.where(fresh.mask, np.asarray(after) - fresh.logprobs, 0).sum(1)
    assert change[:4].sum() > 0 > change[4:].sum()


@pytest.mark.slow
def test_other_seeds_and_lengths_of_a_run_compile_nothing(model, batch):
    """What the loss and the update do not read is no part of their programs."""

    def one_step(settings):
        graph, params = nnx.split(model)
        params = jax.tree.map(jnp.copy, params)
        state = grpo.TrainState(params, grpo.optimizer(settings).init(params))
        grpo.train_step(graph, state, None, batch, settings)

    one_step(BASE)
    before = grpo.accumulate._cache_size(), grpo.apply._cache_size()
    others = dict(seed=5, hours=1.0, steps=77, learning_rate=1e-3, decay=0.5, eval_every=3)
    for name, value in others.items():
        one_step(dataclasses.replace(BASE, **{name: value}))
        assert (grpo.accumulate._cache_size(), grpo.apply._cache_size()) == before, name
    one_step(dataclasses.replace(BASE, clip_low=0.1, max_grad_norm=0.5))
    after = grpo.accumulate._cache_size(), grpo.apply._cache_size()
    assert all(a > b for a, b in zip(after, before, strict=True)), "this test can fail"


def test_learning_rate_warms_up_then_falls_to_its_share():
    settings = Settings(steps=20, warmup=4, learning_rate=1e-2, decay=0.1, weight_decay=0.0)
    params = {"w": jnp.zeros(3)}
    optimizer = grpo.optimizer(settings)
    moments, rates, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(21):  # Adam's step on a constant gradient is the learning rate
        updates, moments = update({"w": jnp.full(3, 0.1)}, moments, params)
        rates.append(-float(updates["w"][0]))
    np.testing.assert_allclose(rates[:4], [0.25e-2, 0.5e-2, 0.75e-2, 1e-2], rtol=1e-3)
    assert all(np.diff(rates[3:]) < 0)
    np.testing.assert_allclose(rates[20], 1e-3, rtol=1e-3)
