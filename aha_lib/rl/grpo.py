"""Rewards to advantages, to the loss, to the update: group-relative policy optimisation.

GRPO as in DeepSeekMath (2402.03300, eq. 3-4), by default with a mean over all tokens of the batch
and DAPO's higher upper clip (2503.14476, eq. 8). Each variant is a pure function of arrays and a
flag in `Settings`; `presets.VARIANTS` puts the flags together. Knows nothing of Countdown or of
text; takes token ids, rewards and the log-probabilities that the sampler returned.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aha_lib.devices import in_lanes, lanes, shard_batch, to_host, whole_shares
from aha_lib.presets import Settings
from aha_lib.rl import objectives, packing


class Batch(NamedTuple):
    """Rows to learn from: prompts padded on the left, completions on the right.

    With a `layout` the model reads that, not the first three: the completions are then M a row.
    """

    prompts: Int[Array, "B Tp"]
    valid: Bool[Array, "B Tp"]  # prompt tokens that are not padding
    completions: Int[Array, "B T"]
    mask: Bool[Array, "B T"]  # sampled tokens, the stop token included: those that are trained
    logprobs: Float[Array, "B T"]  # nats, when they were sampled
    advantages: Float[Array, " B"]
    weights: Float[Array, "B T"] | None = None  # of tokens in the mean; None: all are 1
    layout: packing.Layout | None = None


class TrainState(NamedTuple):
    """What a step changes; the step's number is `opt_state`'s own count."""

    params: nnx.State
    opt_state: optax.OptState


def shaped(
    rewards: Float[np.ndarray, "P G"], lengths: Int[np.ndarray, "P G"], settings: Settings
) -> Float[np.ndarray, "P G"]:
    """Rewards plus the terms for length (in tokens) that the settings ask for; 1.0 means right."""
    s, right = settings, rewards == 1
    if s.overlong:
        rewards = rewards + overlong_penalty(lengths, s.completion_len, s.overlong)
    if s.length_reward:
        rewards = rewards + s.length_reward * length_reward(lengths, right)
    return rewards


def overlong_penalty(lengths: Int[np.ndarray, "P G"], longest: int, buffer: int):
    """DAPO's soft overlong punishment (2503.14476, eq. 13): linear over the last `buffer` tokens,
    from 0 to -1 at `longest`, where completions are cut."""
    return np.clip((longest - buffer - lengths) / buffer, -1.0, 0.0)


def length_reward(lengths: Int[np.ndarray, "P G"], right: Bool[np.ndarray, "P G"]):
    """Kimi k1.5's length reward (2501.12599, section 2.3.3): 1/2 for the shortest of the group,
    -1/2 for the longest, linear between; for wrong answers at most 0. 0 if all are of one length.
    """
    shortest, longest = lengths.min(1, keepdims=True), lengths.max(1, keepdims=True)
    share = (lengths - shortest) / np.maximum(longest - shortest, 1)
    bonus = np.where(longest > shortest, 0.5 - share, 0.0)
    return np.where(right, bonus, np.minimum(bonus, 0.0))


def advantages(
    rewards: Float[np.ndarray, "P G"], *, scale_by_std: bool = True, leave_one_out: bool = False
) -> Float[np.ndarray, "P G"]:
    """Each reward against its group's mean, in units of the group's standard deviation.

    GRPO's eq. in section 4.1.2 of 2402.03300; without the division it is Dr. GRPO's
    (2503.20783). `leave_one_out`: against the mean of the others, RLOO's baseline (2402.14740),
    G / (G - 1) times as much; ValueError if there are none. Equal rewards give advantages 0.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if leave_one_out:
        if rewards.shape[1] < 2:
            raise ValueError("Leaving one out of a group of one leaves none: use group >= 2.")
        centred = centred * (rewards.shape[1] / (rewards.shape[1] - 1))
    std = rewards.std(axis=1, keepdims=True) if scale_by_std else 1.0
    differ = has_signal(rewards)[:, None]  # equal ones differ from their mean by its rounding
    return np.divide(centred, std, out=np.zeros_like(centred), where=differ)


def has_signal(rewards: Float[np.ndarray, "P G"]) -> Bool[np.ndarray, " P"]:
    """Groups whose rewards differ: the others teach nothing."""
    return rewards.std(axis=1) > 1e-6


def refill(batch: Batch, rewards: Float[np.ndarray, "P G"], more: Batch, more_rewards):
    """One round of DAPO's dynamic sampling (2503.14476, eq. 11, with rewards 1 for right, else 0):
    groups without signal give way to those of `more` that have it. Gives batch and rewards."""
    P, G = rewards.shape
    fresh = np.flatnonzero(has_signal(more_rewards))
    slots = np.flatnonzero(~has_signal(rewards))[: len(fresh)]
    pick = np.arange(P)
    pick[slots] = P + fresh[: len(slots)]
    rows = (pick[:, None] * G + np.arange(G)).reshape(-1)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b])[rows], batch, more)
    return joined, np.concatenate([rewards, more_rewards])[pick]


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm. Step k (from 1) of a warm-up of n has k / n of the
    learning rate, so that the first learns too; a cosine to `decay` of it follows."""
    s, n = settings, max(settings.warmup, 1)
    rate = optax.warmup_cosine_decay_schedule(
        s.learning_rate / n, s.learning_rate, n - 1, max(s.steps, n), s.decay * s.learning_rate
    )
    of_update = lambda count: rate(count // s.updates)  # noqa: E731
    adam = optax.adamw(of_update, b2=0.95, weight_decay=s.weight_decay)
    return optax.chain(optax.clip_by_global_norm(s.max_grad_norm), adam)


def whole_rows(prompts, valid, completions, mask):
    """Prompts [B, Tp] and their completions [B, T] as `Gemma.hidden` takes rows: tokens, positions
    and segments, [B, Tp + T]."""
    tokens = jnp.concatenate([prompts, completions], axis=1)
    segments = jnp.concatenate([valid, mask], axis=1).astype(jnp.int32)
    return tokens, jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0), segments


def completion_logprobs(model, batch: Batch, temperature: float):
    """Log-probabilities [B, T] of the completions' tokens and entropies [B, T], in nats.

    The hidden state before each completion token predicts it: the last prompt token predicts the
    first, and no prompt token is ever a target.
    """
    x, T = batch.layout, batch.mask.shape[1]
    if x is None:
        rows = whole_rows(batch.prompts, batch.valid, batch.completions, batch.mask)
        hidden = model.hidden(*rows)[:, batch.prompts.shape[1] - 1 : -1]
        return model.logprobs(hidden, batch.completions, temperature=temperature)
    hidden = model.hidden(x.tokens, x.positions, x.segments, x.prefixes)
    hidden = jnp.take_along_axis(hidden, x.before[..., None], axis=1)
    both = model.logprobs(hidden, x.targets, temperature=temperature)
    spots = jnp.minimum(x.starts[..., None] + jnp.arange(T), T - 1).reshape(len(x.starts), -1)
    return tuple(jnp.take_along_axis(y, spots, axis=1).reshape(-1, T) for y in both)


def surrogate(logprobs, entropy, base, batch: Batch, settings: Settings):
    """Sum over tokens of the objective, negated, and sums of what is worth watching.

    `settings.objective` of the log-probabilities [B, T], minus `settings.kl` times the k3 estimate
    of the KL divergence from the `base` ones (http://joschu.net/blog/kl-approx.html), plus
    `settings.entropy_bonus` times the entropy; tokens count as `batch.weights` says. Divide by the
    whole batch's trained tokens for the mean. An unknown objective raises ValueError.
    """
    s, mask, gain = settings, batch.mask, batch.advantages[:, None]
    log_ratio = jnp.where(mask, logprobs - batch.logprobs, 0.0)
    if s.objective == "clip":
        objective, outside = objectives.clipped(log_ratio, gain, s.clip_low, s.clip_high)
    elif s.objective == "sequence_clip":
        shared = objectives.sequence_mean(log_ratio, mask)
        objective, outside = objectives.clipped(shared, gain, s.clip_low, s.clip_high)
    elif s.objective == "cispo":
        objective, outside = objectives.cispo(logprobs, log_ratio, gain, s.clip_low, s.clip_high)
    elif s.objective == "reinforce":  # RLOO's (2402.14740, eq. 7): no ratio, so no clip
        objective, outside = gain * logprobs, jnp.zeros_like(mask)
    elif s.objective == "kimi":
        objective, outside = objectives.mirror_descent(log_ratio, gain, mask, s.tau)
    else:
        raise ValueError(f"No objective is called {s.objective!r}: see presets.Settings.")
    kl = jnp.zeros_like(logprobs)
    if s.kl:
        gap = jnp.where(mask, jax.lax.stop_gradient(base) - logprobs, 0.0)
        kl = jnp.exp(gap) - gap - 1
    value = s.kl * kl - objective
    if s.entropy_bonus:
        value = value - s.entropy_bonus * entropy
    if batch.weights is not None:
        value = batch.weights * value
    total = lambda x: jnp.sum(jnp.where(mask, x, 0.0))  # noqa: E731
    sums = {
        "entropy": total(entropy),
        "kl": total(kl),
        "clip_fraction": total(outside),
        "tokens": total(jnp.ones_like(logprobs)),
    }
    return total(value), sums


def loss(model, reference, batch: Batch, settings: Settings):
    """`surrogate` of a model; `reference` is the base model, None if `settings.kl` is 0."""
    logprobs, entropy = completion_logprobs(model, batch, settings.temperature)
    base = completion_logprobs(reference, batch, settings.temperature)[0] if settings.kl else None
    return surrogate(logprobs, entropy, base, batch, settings)


def learned(params: nnx.State, settings: Settings) -> tuple[nnx.State, nnx.State]:
    """The parameters that are trained, the adapters if there are any, and the others."""
    if not settings.lora:
        return params, nnx.State({})
    return nnx.split_state(params, nnx.LoRAParam, ...)


@functools.partial(jax.jit, static_argnames=("graph", "settings"), donate_argnames="grads")
def accumulate(graph, params, reference, grads, batch: Batch, tokens, settings: Settings):
    """Add the gradient of one micro-batch, whose batch trains `tokens` tokens in all.

    With adapters `reference` is None: the base model is this one with adapters of zeros.
    """
    params, rest = learned(params, settings)
    if settings.lora:
        reference = nnx.merge_state(jax.tree.map(jnp.zeros_like, params), rest)

    def scaled(params):
        model = nnx.merge(graph, params, rest)
        base = nnx.merge(graph, reference) if settings.kl else None
        value, sums = loss(model, base, shard_batch(batch), settings)
        return value / tokens, sums

    (value, sums), new = jax.value_and_grad(scaled, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, new), sums | {"loss": value}


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def apply(state: TrainState, grads, settings: Settings, loss: float | Float[Array, ""] = 0.0):
    """One optimizer step, none if loss or gradient is not finite; and the norm before clipping."""
    params, rest = learned(state.params, settings)
    updates, opt_state = optimizer(settings).update(grads, state.opt_state, params)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    new, old = (optax.apply_updates(params, updates), opt_state), (params, state.opt_state)
    params, opt_state = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
    return TrainState(nnx.merge_state(params, rest), opt_state), norm


def micro_batches(batch: Batch, rows: int, *, all_rows: bool):
    """Cut a batch on the host into micro-batches of `rows` packed rows, all of one shape.

    Completions with no advantage add nothing to the gradient and are left out unless `all_rows` (a
    KL term learns from them too). `rows` is rounded up to what the mesh spreads evenly.
    """
    kept = batch.mask.any(axis=1) & (all_rows | (batch.advantages != 0))
    batch = jax.tree.map(lambda x: x[kept], batch)
    for layout, index in packing.pack(*batch[:4], whole_shares(rows, "rows")):
        micro = jax.tree.map(lambda x: x[index], batch)  # noqa: B023
        yield micro._replace(mask=micro.mask & (index >= 0)[:, None], layout=layout)


@functools.partial(jax.jit, static_argnames=("graph", "temperature"))
def _logprobs(graph, params, batch: Batch, temperature: float):
    return completion_logprobs(nnx.merge(graph, params), shard_batch(batch), temperature)[0]


def rescored(graph, params, batch: Batch, settings: Settings) -> Batch:
    """The batch with the trainer's log-probabilities, its tokens weighted for the mismatch."""
    count, rows, parts = len(batch.mask), whole_shares(settings.micro_batch, "rows"), []
    for start in range(0, count, rows):
        index = np.arange(start, start + rows) % count  # the last one goes round: one shape
        micro = jax.tree.map(lambda x: x[index], batch)  # noqa: B023
        parts.append(to_host(_logprobs(graph, params, micro, settings.temperature)))
    ours = np.where(batch.mask, np.concatenate(parts)[:count], 0.0).astype(np.float32)
    weights = objectives.truncated_weights(ours, batch.logprobs, settings.importance_cap)
    if batch.weights is not None:
        weights = weights * batch.weights
    return batch._replace(logprobs=ours, weights=weights.astype(np.float32))


@functools.partial(jax.jit, donate_argnums=0)
def _added(grads, more):
    return jax.tree.map(jnp.add, grads, more)


def gradient(graph, params: nnx.State, reference, batch: Batch, settings: Settings):
    """The gradient of the mean over a batch's trained tokens, and each micro-batch's sums.

    Micro-batches one after the other; in several threads where `devices.lanes` has them.
    """
    s, tokens = settings, float(max(batch.mask.sum(), 1))
    # These learn from rows without an advantage too.
    all_rows = s.kl > 0 or s.entropy_bonus != 0 or s.objective == "kimi"
    micros = list(micro_batches(batch, s.micro_batch, all_rows=all_rows))
    count = max(1, min(lanes(params), len(micros)))

    def add(share):
        grads, sums = jax.tree.map(jnp.zeros_like, learned(params, s)[0]), []
        for micro in share:
            grads, new = accumulate(graph, params, reference, grads, micro, tokens, s)
            sums.append(new)
        return grads, sums

    grads, sums = zip(*in_lanes(add, [micros[i::count] for i in range(count)]), strict=True)
    return functools.reduce(_added, grads), [x for of_lane in sums for x in of_lane]


def train_step(graph, state: TrainState, reference, batch: Batch, settings: Settings):
    """One GRPO step on a whole batch (host arrays); gives the new state and the metrics.

    `settings.updates` optimizer steps (GRPO's μ), the log-probabilities of the batch staying
    those of the old policy. `state` is donated. Metrics: means over the tokens trained, `entropy`,
    `kl`, `clip_fraction`; the last `grad_norm`; `skipped_updates`, those that were not finite.
    """
    s, sums, skipped = settings, [], 0
    if s.norm != "token":
        batch = batch._replace(weights=objectives.token_weights(batch.mask, s.norm, s.group))
    if s.importance_cap:
        batch = rescored(graph, state.params, batch, s)
    for _ in range(s.updates):
        grads, new = gradient(graph, state.params, reference, batch, s)
        value = sum((x["loss"] for x in new), jnp.float32(0))
        state, grad_norm = apply(state, grads, s, value)
        skipped += not np.isfinite(float(grad_norm + value))
        sums += new
    trained = max(sum(float(x["tokens"]) for x in sums), 1)
    watch = "entropy", "kl", "clip_fraction"
    means = {k: float(sum(x[k] for x in sums)) / trained for k in watch}
    return state, means | {"grad_norm": float(grad_norm), "skipped_updates": skipped}
