"""Rewards to advantages, to the loss, to the update: group-relative policy optimisation.

GRPO as in DeepSeekMath (2402.03300, eq. 3-4), by default with a mean over all tokens of the batch
and DAPO's higher upper clip (2503.14476, eq. 8). Each variant is a pure function of arrays and a
flag in `Settings`; `presets.VARIANTS` puts the flags together. Knows nothing of Countdown or of
text; takes token ids, rewards and the log-probabilities that the sampler returned.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aha_lib.devices import cpu_threads, run_in_threads, shard_batch, to_host, whole_shares
from aha_lib.presets import Settings
from aha_lib.rl import objectives, packing

# A pytree, as optax.OptState says in a way that the checkers of annotations do not all understand.
OptState = Any


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
    total: Float[Array, ""] | float | None = (
        None  # trained tokens of the batch that this is a part of
    )
    # What the model reads of a completion: `mask` and the tokens of replies. None: `mask` alone.
    written: Bool[Array, "B T"] | None = None

    @property
    def read(self) -> Bool[Array | np.ndarray, "B T"]:
        return self.mask if self.written is None else self.written


class Weights(NamedTuple):
    """What a gradient reads: the policy's parameters, and the reference's where there is a KL term.

    With adapters there is no reference: the base is the policy with adapters of zeros.
    """

    params: nnx.State
    reference: nnx.State | None


class TrainState(NamedTuple):
    """What a step changes; the step's number is `opt_state`'s own count."""

    params: nnx.State
    opt_state: OptState


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The fields of `Settings` that the loss reads: its program is compiled anew for others."""

    objective: str
    clip_low: float
    clip_high: float
    tau: float
    kl: float
    entropy_bonus: float
    temperature: float
    adapters: bool  # they alone are trained

    @classmethod
    def of(cls, settings: Settings) -> "LossSettings":
        s = settings
        return cls(
            objective=s.objective,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            tau=s.tau,
            kl=s.kl,
            entropy_bonus=s.entropy_bonus,
            temperature=s.temperature,
            adapters=s.lora > 0,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The fields of `Settings` that an update's program is compiled for.

    The learning rate is none of them: it is an argument of each update.
    """

    max_grad_norm: float
    weight_decay: float
    adapters: bool

    @classmethod
    def of(cls, settings: Settings) -> "OptimizerSettings":
        s = settings
        return cls(s.max_grad_norm, s.weight_decay, adapters=s.lora > 0)

    def optimizer(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """AdamW after clipping by the global norm."""
        adam = optax.adamw(rate, b2=0.95, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam)


def shape_rewards(
    rewards: Float[np.ndarray, "P G"], lengths: Int[np.ndarray, "P G"], settings: Settings
) -> Float[np.ndarray, "P G"]:
    """Rewards plus the terms for length (in tokens) that the settings ask for; 1.0 means right."""
    s = settings
    right = rewards == 1
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
    shortest = lengths.min(1, keepdims=True)
    longest = lengths.max(1, keepdims=True)
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


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """The learning rate of an update, by its number from 0: an `optax.Schedule`.

    Step k (from 1) of a warm-up of n steps has k / n of the peak, so that the first learns too; a
    cosine to `decay` of the peak follows.
    """

    peak: float
    warmup: int  # steps
    steps: int
    decay: float
    updates: int  # of a step

    @classmethod
    def of(cls, settings: Settings) -> "LearningRate":
        s = settings
        return cls(s.learning_rate, max(s.warmup, 1), s.steps, s.decay, s.updates)

    def __call__(self, count):
        of_step = optax.warmup_cosine_decay_schedule(
            init_value=self.peak / self.warmup,
            peak_value=self.peak,
            warmup_steps=self.warmup - 1,
            decay_steps=max(self.steps, self.warmup),
            end_value=self.decay * self.peak,
        )
        return of_step(count // self.updates)


@functools.partial(jax.jit, static_argnums=0)
def _rate(schedule: LearningRate, count):
    """A program of one number: the only one that is compiled anew for other `steps`."""
    return schedule(count)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm, with the settings' `LearningRate`."""
    return OptimizerSettings.of(settings).optimizer(LearningRate.of(settings))


def updates_done(opt_state: OptState) -> Int[Array, ""] | jax.ShapeDtypeStruct:
    """How many updates an optimizer's state has seen; of a state of shapes the count's shape."""

    def is_schedule(x):
        return isinstance(x, optax.ScaleByScheduleState)

    leaves = jax.tree.leaves(opt_state, is_leaf=is_schedule)
    return next(leaf.count for leaf in leaves if is_schedule(leaf))


def join_rows(prompts, valid, completions, written):
    """Prompts [B, Tp] and their completions [B, T] as `Gemma.hidden` takes rows: tokens, positions
    and segments, [B, Tp + T]."""
    tokens = jnp.concatenate([prompts, completions], axis=1)
    segments = jnp.concatenate([valid, written], axis=1).astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    return tokens, positions, segments


def completion_logprobs(model, batch: Batch, temperature: float):
    """Log-probabilities [B, T] of the completions' tokens and entropies [B, T], in nats.

    The hidden state before each completion token predicts it: the last prompt token predicts the
    first, and no prompt token is ever a target.
    """
    if batch.layout is not None:
        return _packed_logprobs(model, batch, temperature)
    rows = join_rows(batch.prompts, batch.valid, batch.completions, batch.read)
    hidden = model.hidden(*rows)[:, batch.prompts.shape[1] - 1 : -1]
    return model.logprobs(hidden, batch.completions, temperature=temperature)


def _packed_logprobs(model, batch: Batch, temperature: float):
    """As `completion_logprobs`, of completions that lie side by side in the layout's rows."""
    x = batch.layout
    T = batch.mask.shape[1]
    hidden = model.hidden(x.tokens, x.positions, x.segments, x.prefixes)
    hidden = jnp.take_along_axis(hidden, x.before[..., None], axis=1)
    of_places = model.logprobs(hidden, x.targets, temperature=temperature)
    # Each completion gets the T places from its first one on; what lies behind its end is masked.
    places = jnp.minimum(x.starts[..., None] + jnp.arange(T), T - 1).reshape(len(x.starts), -1)
    return tuple(jnp.take_along_axis(y, places, axis=1).reshape(-1, T) for y in of_places)


def surrogate(logprobs, entropy, base, batch: Batch, settings: LossSettings | Settings):
    """Sum over tokens of the objective, negated, and sums of what is worth watching.

    `settings.objective` of the log-probabilities [B, T], minus `settings.kl` times the k3 estimate
    of the KL divergence from the `base` ones (http://joschu.net/blog/kl-approx.html), plus
    `settings.entropy_bonus` times the entropy; tokens count as `batch.weights` says. Divide by the
    whole batch's trained tokens for the mean. An unknown objective raises ValueError.
    """
    s, mask = settings, batch.mask
    objective, outside = _objective(logprobs, batch, settings)
    kl = jnp.zeros_like(logprobs)
    if s.kl:
        gap = jnp.where(mask, jax.lax.stop_gradient(base) - logprobs, 0.0)
        kl = jnp.exp(gap) - gap - 1
    value = s.kl * kl - objective
    if s.entropy_bonus:
        value = value - s.entropy_bonus * entropy
    if batch.weights is not None:
        value = batch.weights * value

    def total(x):
        return jnp.sum(jnp.where(mask, x, 0.0))

    sums = {
        "entropy": total(entropy),
        "kl": total(kl),
        "clip_fraction": total(outside),
        "tokens": total(jnp.ones_like(logprobs)),
    }
    return total(value), sums


def _objective(logprobs, batch: Batch, settings: LossSettings | Settings):
    """What `settings.objective` gives for each token, and where it is clipped: both [B, T]."""
    s, mask, gain = settings, batch.mask, batch.advantages[:, None]
    log_ratio = jnp.where(mask, logprobs - batch.logprobs, 0.0)
    if s.objective == "clip":
        return objectives.clipped(log_ratio, gain, s.clip_low, s.clip_high)
    if s.objective == "sequence_clip":
        shared = objectives.sequence_mean(log_ratio, mask)
        return objectives.clipped(shared, gain, s.clip_low, s.clip_high)
    if s.objective == "cispo":
        return objectives.cispo(logprobs, log_ratio, gain, s.clip_low, s.clip_high)
    if s.objective == "reinforce":  # RLOO's (2402.14740, eq. 7): no ratio, so no clip
        return gain * logprobs, jnp.zeros_like(mask)
    if s.objective == "kimi":
        return objectives.mirror_descent(log_ratio, gain, mask, s.tau)
    raise ValueError(f"No objective is called {s.objective!r}: see presets.Settings.")


def loss(model, reference, batch: Batch, settings: LossSettings | Settings):
    """`surrogate` of a model; `reference` is the base model, None if `settings.kl` is 0."""
    logprobs, entropy = completion_logprobs(model, batch, settings.temperature)
    base = None
    if settings.kl:
        base, _ = completion_logprobs(reference, batch, settings.temperature)
    return surrogate(logprobs, entropy, base, batch, settings)


def trainable(params: nnx.State, adapters: bool | int) -> tuple[nnx.State, nnx.State]:
    """The parameters that are trained and the others.

    With `adapters` (their rank, or whether there are some) these are trained alone, else all are.
    """
    if not adapters:
        return params, nnx.State({})
    return nnx.split_state(params, nnx.LoRAParam, ...)


@functools.partial(jax.jit, static_argnames=("graph", "settings"), donate_argnames="grads")
def accumulate(graph, weights: Weights, grads, batch: Batch, settings: LossSettings):
    """Add the gradient of one micro-batch to `grads`, which is donated; also gives its sums.

    The loss is the sum over the micro-batch's tokens divided by `batch.total`, by its own number
    where that is None.
    """
    params, rest = trainable(weights.params, settings.adapters)
    reference = weights.reference
    if settings.adapters:
        reference = nnx.merge_state(jax.tree.map(jnp.zeros_like, params), rest)
    total = jnp.maximum(batch.mask.sum(), 1) if batch.total is None else batch.total

    def scaled(params):
        model = nnx.merge(graph, params, rest)
        base = nnx.merge(graph, reference) if settings.kl else None
        value, sums = loss(model, base, shard_batch(batch._replace(total=None)), settings)
        return value / total, sums

    (value, sums), new = jax.value_and_grad(scaled, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, new), sums | {"loss": value}


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def apply(
    state: TrainState,
    grads,
    rate: Float[Array, ""] | float,
    loss: Float[Array, ""] | float,
    settings: OptimizerSettings,
):
    """One optimizer step at a learning rate, none if loss or gradient is not finite.

    Gives the new state and the gradient's norm before clipping.
    """
    params, rest = trainable(state.params, settings.adapters)
    adam = settings.optimizer(lambda count: rate)
    updates, opt_state = adam.update(grads, state.opt_state, params)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    new = optax.apply_updates(params, updates), opt_state
    old = params, state.opt_state
    params, opt_state = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
    return TrainState(nnx.merge_state(params, rest), opt_state), norm


def micro_batches(batch: Batch, rows: int, *, all_rows: bool):
    """Cut a batch on the host into micro-batches of `rows` packed rows, all of one shape.

    Completions with no advantage add nothing to the gradient and are left out unless `all_rows` (a
    KL term learns from them too). `rows` is rounded up to what the mesh spreads evenly.
    """
    kept = batch.mask.any(axis=1) & (all_rows | (batch.advantages != 0))
    batch = jax.tree.map(lambda x: x[kept], batch)
    of_rows = batch.prompts, batch.valid, batch.completions, batch.read
    for layout, index in packing.pack(*of_rows, whole_shares(rows, "rows")):
        micro = jax.tree.map(lambda x: x[index], batch)  # noqa: B023
        yield micro._replace(mask=micro.mask & (index >= 0)[:, None], layout=layout)


@functools.partial(jax.jit, static_argnames=("graph", "temperature"))
def _logprobs(graph, params, batch: Batch, temperature: float):
    return completion_logprobs(nnx.merge(graph, params), shard_batch(batch), temperature)[0]


def rescore(graph, params, batch: Batch, settings: Settings) -> Batch:
    """The batch with the trainer's log-probabilities, its tokens weighted for the mismatch."""
    count = len(batch.mask)
    rows = whole_shares(settings.micro_batch, "rows")
    parts = []
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

    Micro-batches one after the other; in several threads where `devices.cpu_threads` has them.
    """
    s = settings
    weights = Weights(params, reference)
    total = float(max(batch.mask.sum(), 1))
    # These learn from rows without an advantage too.
    all_rows = s.kl > 0 or s.entropy_bonus != 0 or s.objective == "kimi"
    micros = list(micro_batches(batch, s.micro_batch, all_rows=all_rows))

    def add(share):
        grads = jax.tree.map(jnp.zeros_like, trainable(params, s.lora)[0])
        sums = []
        for micro in share:
            micro = micro._replace(total=total)
            grads, new = accumulate(graph, weights, grads, micro, LossSettings.of(s))
            sums.append(new)
        return grads, sums

    threads = max(1, min(cpu_threads(params), len(micros)))
    done = run_in_threads(add, [micros[i::threads] for i in range(threads)])
    grads = functools.reduce(_added, [grads for grads, _ in done])
    return grads, [each for _, sums in done for each in sums]


def train_step(graph, state: TrainState, reference, batch: Batch, settings: Settings):
    """One GRPO step on a whole batch (host arrays); gives the new state and the metrics.

    `settings.updates` optimizer steps (GRPO's μ), the log-probabilities of the batch staying
    those of the old policy. `state` is donated. Metrics: means over the tokens trained, `entropy`,
    `kl`, `clip_fraction`; the last `grad_norm`; `skipped_updates`, those that were not finite.
    """
    s = settings
    sums, skipped = [], 0
    if s.norm != "token":
        batch = batch._replace(weights=objectives.token_weights(batch.mask, s.norm, s.group))
    if s.importance_cap:
        batch = rescore(graph, state.params, batch, s)
    for _ in range(s.updates):
        grads, new = gradient(graph, state.params, reference, batch, s)
        # An argument of the update, not a constant in it: runs of other lengths share its program.
        rate = _rate(LearningRate.of(s), updates_done(state.opt_state))
        # Without signal there is no loss: 0, on the devices where a loss would be.
        nothing = jnp.zeros_like(rate, dtype=jnp.float32)
        value = sum((x["loss"] for x in new), nothing)
        state, grad_norm = apply(state, grads, rate, value, OptimizerSettings.of(s))
        skipped += not np.isfinite(float(grad_norm + value))
        sums += new
    trained = max(sum(float(x["tokens"]) for x in sums), 1)
    means = {
        name: float(sum(x[name] for x in sums)) / trained
        for name in ("entropy", "kl", "clip_fraction")
    }
    return state, means | {"grad_norm": float(grad_norm), "skipped_updates": skipped}
