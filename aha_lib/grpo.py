"""Rewards to advantages, to the loss, to the update: group-relative policy optimisation.

GRPO as in DeepSeekMath (2402.03300, eq. 3-4), with DAPO's token-level normalisation and higher
upper clip (2503.14476, eq. 8) by default. Knows nothing of Countdown or of text; takes token ids,
rewards and the log-probabilities that the sampler returned.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aha_lib.presets import Settings
from aha_lib.runtime import shard_batch

BUCKETS = 4  # lengths to which micro-batches are padded: multiples of completion_len / BUCKETS


class Batch(NamedTuple):
    """Rows to learn from: prompts padded on the left, completions on the right."""

    prompts: Int[Array, "B Tp"]
    valid: Bool[Array, "B Tp"]  # prompt tokens that are not padding
    completions: Int[Array, "B T"]
    mask: Bool[Array, "B T"]  # sampled tokens, the stop token included: those that are trained
    logprobs: Float[Array, "B T"]  # nats, when they were sampled
    advantages: Float[Array, " B"]


class TrainState(NamedTuple):
    """What a step changes; the step's number is `opt_state`'s own count."""

    params: nnx.State
    opt_state: optax.OptState


def advantages(rewards: Float[np.ndarray, "P G"], *, scale_by_std: bool = True):
    """Each reward against its group's mean, in units of the group's standard deviation.

    GRPO's eq. in section 4.1.2 of 2402.03300; without the division it is Dr. GRPO's
    (2503.20783). A group whose rewards are all equal has no signal: advantages 0.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if not scale_by_std:
        return centred
    std = rewards.std(axis=1, keepdims=True)
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 1e-6)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; linear warm-up, then cosine to `decay`."""
    s = settings
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, s.learning_rate, s.warmup, max(s.steps, s.warmup + 1), s.decay * s.learning_rate
    )
    return optax.chain(
        optax.clip_by_global_norm(s.max_grad_norm),
        optax.adamw(schedule, b2=0.95, weight_decay=s.weight_decay),
    )


def completion_logprobs(model, batch: Batch, temperature: float):
    """Log-probabilities [B, T] of the completions' tokens and entropies [B, T], in nats.

    The hidden state before each completion token predicts it: the last prompt token predicts the
    first, and no prompt token is ever a target.
    """
    tokens = jnp.concatenate([batch.prompts, batch.completions], axis=1)
    segments = jnp.concatenate([batch.valid, batch.mask], axis=1).astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    hidden = model.hidden(tokens, positions, segments)[:, batch.prompts.shape[1] - 1 : -1]
    return model.logprobs(hidden, batch.completions, temperature=temperature)


def loss(model, reference, batch: Batch, settings: Settings):
    """Sum over tokens of the clipped objective, negated, and sums of what is worth watching.

    PPO's clip (1707.06347, eq. 7) of the ratio to the sampling policy, plus `settings.kl` times
    the k3 estimate of the KL divergence from the reference (http://joschu.net/blog/kl-approx.html).
    Divide by the number of trained tokens of the whole batch for the token-level mean.
    """
    s, mask = settings, batch.mask
    logprobs, entropy = completion_logprobs(model, batch, s.temperature)
    ratio = jnp.exp(jnp.where(mask, logprobs - batch.logprobs, 0.0))
    gain = batch.advantages[:, None]
    clipped = jnp.clip(ratio, 1 - s.clip_low, 1 + s.clip_high)
    objective = jnp.minimum(ratio * gain, clipped * gain)
    kl = jnp.zeros_like(logprobs)
    if s.kl:
        base, _ = completion_logprobs(reference, batch, s.temperature)
        gap = jnp.where(mask, jax.lax.stop_gradient(base) - logprobs, 0.0)
        kl = jnp.exp(gap) - gap - 1
    total = lambda x: jnp.sum(jnp.where(mask, x, 0.0))  # noqa: E731
    sums = {
        "entropy": total(entropy),
        "kl": total(kl),
        "clip_fraction": total(clipped * gain < ratio * gain),
        "tokens": total(jnp.ones_like(ratio)),
    }
    return total(s.kl * kl - objective), sums


@functools.partial(jax.jit, static_argnames=("graph", "settings"), donate_argnames="grads")
def accumulate(graph, params, reference, grads, batch: Batch, tokens, settings: Settings):
    """Add the gradient of one micro-batch, whose batch trains `tokens` tokens in all."""

    def scaled(params):
        model = nnx.merge(graph, params)
        base = nnx.merge(graph, reference) if settings.kl else None
        value, sums = loss(model, base, shard_batch(batch), settings)
        return value / tokens, sums

    new, sums = jax.grad(scaled, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, new), sums


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def apply(state: TrainState, grads, settings: Settings):
    """One optimizer step; gives the new state and the gradient's norm before clipping."""
    updates, opt_state = optimizer(settings).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state), optax.global_norm(grads)


def micro_batches(batch: Batch, rows: int, *, all_rows: bool):
    """Cut a batch on the host into micro-batches of `rows` rows of like length.

    Rows are sorted by length and each micro-batch is cut to the shortest bucket that holds it, so
    that the update does not pay for padding. Rows with no advantage add nothing to the gradient
    and are left out unless `all_rows` (a KL term learns from them too). The last micro-batch is
    filled with rows that have nothing to train.
    """
    lengths = batch.mask.sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    order = order[(lengths[order] > 0) & (all_rows | (batch.advantages[order] != 0))]
    bucket = -(-batch.mask.shape[1] // BUCKETS)
    for start in range(0, len(order), rows):
        index = order[start : start + rows]
        length = min(-(-lengths[index].max() // bucket) * bucket, batch.mask.shape[1])
        full = np.resize(index, rows)
        micro = Batch(*(x[full] for x in batch))
        mask = micro.mask & (np.arange(rows) < len(index))[:, None]
        micro = micro._replace(mask=mask)
        yield micro._replace(**{
            name: getattr(micro, name)[:, :length] for name in ("completions", "mask", "logprobs")
        })  # fmt: skip


def train_step(graph, state: TrainState, reference, batch: Batch, settings: Settings):
    """One GRPO step on a whole batch (host arrays); gives the new state and the metrics.

    Gradients add up over the micro-batches and are those of the whole batch at once. `state` is
    donated. Metrics are means over the tokens trained: `entropy`, `kl`, `clip_fraction`; and
    `grad_norm`.
    """
    grads = jax.tree.map(jnp.zeros_like, state.params)
    tokens, sums = float(max(batch.mask.sum(), 1)), []
    for micro in micro_batches(batch, settings.micro_batch, all_rows=settings.kl > 0):
        grads, watched = accumulate(graph, state.params, reference, grads, micro, tokens, settings)
        sums.append(watched)
    state, grad_norm = apply(state, grads, settings)
    totals = {k: float(sum(s[k] for s in sums)) for k in ("entropy", "kl", "clip_fraction")}
    trained = max(sum(float(s["tokens"]) for s in sums), 1)
    return state, {k: v / trained for k, v in totals.items()} | {"grad_norm": float(grad_norm)}
