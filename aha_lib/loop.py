"""GRPO on one page: puzzles, completions, rewards, advantages, an update.

    for metrics in learn(model, tokenizer, task, settings):
        print(metrics["step"], metrics["reward"])

`step` is the algorithm, from top to bottom. Its puzzles and random keys follow from the run's seed
and the step's number, so a resumed run is the same run. `run.train` wraps these functions with
evaluation, checkpoints and a clock. Knows nothing of files, signals or plots, nor of what a task's
puzzles are.
"""

from collections.abc import Iterator
from concurrent import futures

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from aha_lib.devices import Stopwatch, memory_errors, random_key
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import Settings
from aha_lib.rl import grpo, sampler
from aha_lib.tasks.rollout import Policy, Rollout, rollout, score, training_puzzles
from aha_lib.tasks.task import Task

ROOM = "sampling, lower prompts or set gather=False; updating, lower micro_batch; or set lora=16"


def learn(
    model: Gemma, tokenizer: Tokenizer, task: Task, settings: Settings
) -> Iterator[dict[str, float | int]]:
    """Train `model` in place on a task; yields each step's metrics."""
    policy = Policy(model, tokenizer, task, settings)
    reference = reference_params(model, settings)
    trained, _ = grpo.trainable(nnx.state(model), settings.lora)
    opt_state = grpo.optimizer(settings).init(trained)
    for number in range(1, settings.steps + 1):
        opt_state, metrics = step(policy, opt_state, reference, number, training_key(settings))
        yield metrics


@memory_errors(ROOM)
def step(
    policy: Policy, opt_state: grpo.OptState, reference, number: int, key: Key[Array, ""]
) -> tuple[grpo.OptState, dict[str, float | int]]:
    """GRPO step `number`, from 1: updates the model; gives the optimizer's state and the metrics.

    `reference` is what `reference_params` gave at the start of the run. The metrics are those of
    the first draw of puzzles, whatever replaces it in the update.
    """
    task, s, clock = policy.task, policy.settings, Stopwatch()
    key = jax.random.fold_in(key, number)

    # 1. Sample: a group of completions for each of the step's puzzles.
    puzzles = training_puzzles(task, s, number)
    out = rollout(policy, puzzles, key, group=s.group, temperature=s.temperature)
    clock.lap("sample_seconds")

    # 2. Reward: the task judges every completion; 1.0 means right.
    rewards = score(task, out, s.group)

    # 3. Advantages: how much better each completion is than its group.
    batch = to_batch(out, rewards, s)
    clock.lap("reward_seconds")
    # Groups whose answers are all right, or all wrong, teach nothing: others may take their place.
    batch, draws = refill(policy, batch, rewards, number, key)
    clock.lap("refill_seconds")

    # 4. Update: make the better completions likelier, the others less likely.
    graph, params = nnx.split(policy.model)
    state = grpo.TrainState(params, opt_state)
    with futures.ThreadPoolExecutor(1) as beside:  # Python counts while the devices learn
        ended = out.completions.ended.tolist()
        counting = beside.submit(task.measures, out.texts, out.puzzles, ended)
        state, updated = grpo.train_step(graph, state, reference, batch, s)
        measured = counting.result()
    nnx.update(policy.model, state.params)
    clock.lap("update_seconds")

    written = int(out.completions.mask.sum())
    return state.opt_state, {
        "step": number,
        "reward": float(rewards.mean()),
        "train_accuracy": float((rewards == 1).mean()),
        "length": float(out.completions.mask.sum(1).mean()),
        **out.replies,
        **{name: mean for name, mean in measured.items() if not isinstance(mean, dict)},
        "draws": draws,  # of puzzles, refills included
        "zero_variance_groups": float((~grpo.has_signal(rewards)).mean()),
        **updated,
        # An estimate over all that was written; the update sees only groups with signal.
        "entropy": -float(out.completions.logprobs.sum() / written),
        **clock.laps,
        "sample_tokens_per_second": written / clock.laps["sample_seconds"],
        "update_tokens_per_second": int(batch.mask.sum()) / clock.laps["update_seconds"],
    }


def reference_params(model: Gemma, settings: Settings) -> nnx.State | None:
    """A copy of the base's parameters for the KL term, in the dtype of activations.

    None without a KL term, and with adapters: the base is still there under them.
    """
    if not settings.kl or settings.lora:
        return None
    params = sampler.prepare_weights(nnx.state(model), model.dtype)
    return jax.tree.map(lambda x: x.copy(), params)


def training_key(settings: Settings) -> Key[Array, ""]:
    """The key from which all training steps of a run draw."""
    return random_key(settings.seed, "training")


def to_batch(out: Rollout, rewards: Float[np.ndarray, "P G"], settings: Settings) -> grpo.Batch:
    """A rollout with its advantages, to learn from."""
    s = settings
    tokens, logprobs, mask, written = out.completions
    shaped = grpo.shape_rewards(rewards, mask.sum(1).reshape(rewards.shape), s)
    gain = grpo.advantages(shaped, scale_by_std=s.scale_by_std, leave_one_out=s.leave_one_out)
    gain = gain.reshape(-1).astype(np.float32)
    batch = grpo.Batch(out.prompts, out.valid, tokens, mask, logprobs, gain)
    return batch._replace(written=written) if out.replies else batch


def refill(
    policy: Policy, batch: grpo.Batch, rewards: Float[np.ndarray, "P G"], number: int, key
) -> tuple[grpo.Batch, int]:
    """Replace groups without signal by further draws, `settings.refills` at most.

    DAPO's dynamic sampling (2503.14476, eq. 11). Gives the batch and the number of draws made.
    """
    s, draws = policy.settings, 1
    right = (rewards == 1).astype(float)
    while draws <= s.refills and not grpo.has_signal(right).all():
        puzzles = training_puzzles(policy.task, s, number, draws)
        again = jax.random.fold_in(key, draws)
        out = rollout(policy, puzzles, again, group=s.group, temperature=s.temperature)
        more = score(policy.task, out, s.group)
        more_right = (more == 1).astype(float)
        batch, right = grpo.refill(batch, right, to_batch(out, more, s), more_right)
        draws += 1
    return batch, draws
