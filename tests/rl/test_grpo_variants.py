"""Loss variants: hand-computed numbers, and a plain loop's finite differences on two tokens."""

import dataclasses
from math import exp, log
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aha_lib.model.gemma import Gemma
from aha_lib.presets import VARIANTS, ModelConfig, Settings
from aha_lib.rl import grpo, objectives
from aha_lib.tasks import countdown
from aha_lib.tasks.countdown import Puzzle
from aha_lib.tasks.rollout import training_puzzles
from aha_lib.tasks.task import Countdown

CONFIG = ModelConfig(vocab=12, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ff=16)
THETA = np.array([[0.3, -0.4], [-0.2, 0.5]])  # logits of the next token after token 0, after 1
BASE_THETA = np.array([[0.0, 0.2], [0.1, -0.3]])
# Rows of 3, 2 and 1 tokens after a prompt of one; ratios on both sides of every clip.
LENGTHS, GAINS = [3, 2, 1], [1.5, -0.7, 0.4]
PROMPTS, TOKENS = [0, 1, 1], [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
GROUPS = (slice(0, 4), slice(4, 8))  # of a batch of two groups
RATIOS = [[1.5, 0.6, 1.1], [0.5, 1.6, 1.0], [0.9, 1.0, 1.0]]


def logprob(theta, before, token):
    return theta[before][token] - log(sum(map(exp, theta[before])))


def rows(theta):
    """The log-probabilities of each row's tokens under theta, and their distributions' entropy."""
    for prompt, tokens, length in zip(PROMPTS, TOKENS, LENGTHS, strict=True):
        before = [prompt, *tokens][:length]
        logs = [logprob(theta, b, t) for b, t in zip(before, tokens, strict=False)]
        both = [[logprob(theta, b, t) for t in (0, 1)] for b in before]
        yield logs, [-sum(exp(x) * x for x in pair) for pair in both]


OLD = [
    [x - log(r) for x, r in zip(logs, ratios, strict=False)]
    for (logs, _), ratios in zip(rows(THETA), RATIOS, strict=True)
]


def plain(theta, s):
    """The loss as the papers write it: row by row, token by token; what they freeze is at THETA."""
    terms = []
    every = zip(rows(theta), rows(THETA), rows(BASE_THETA), OLD, GAINS, strict=True)
    for (logs, entropy), (frozen, _), (base, _), old, gain in every:
        logs_ratio = [x - y for x, y in zip(logs, old, strict=True)]
        bound = lambda r: min(max(r, 1 - s.clip_low), 1 + s.clip_high)  # noqa: E731
        low = lambda r: min(r * gain, bound(r) * gain)  # noqa: B023, E731
        if s.objective == "clip":
            row = [low(exp(x)) for x in logs_ratio]
        elif s.objective == "sequence_clip":
            row = [low(exp(sum(logs_ratio) / len(logs)))] * len(logs)
        elif s.objective == "cispo":
            weights = [bound(exp(x - y)) for x, y in zip(frozen, old, strict=True)]
            row = [w * gain * x for w, x in zip(weights, logs, strict=True)]
        elif s.objective == "reinforce":
            row = [gain * x for x in logs]
        else:
            whole = sum(logs_ratio)
            squared = (gain - s.tau * whole) ** 2 - gain**2
            row = [-squared / (2 * s.tau) / len(logs)] * len(logs)
        gaps = [x - y for x, y in zip(base, logs, strict=True)]
        extra = [
            s.entropy_bonus * e - s.kl * (exp(g) - g - 1)
            for e, g in zip(entropy, gaps, strict=True)
        ]
        terms.append([-a - b for a, b in zip(row, extra, strict=True)])
    if s.norm == "token" or s.norm == "group":  # here all rows are one group
        return sum(map(sum, terms)) / sum(LENGTHS)
    if s.norm == "sequence":
        return sum(sum(row) / len(row) for row in terms) / len(terms)
    return sum(map(sum, terms)) / (len(terms) * max(LENGTHS))


def two_token_model(theta):
    """Something with Gemma's two methods, whose next token depends on the last one alone."""

    def logprobs(hidden, targets, *, temperature):
        logs = jax.nn.log_softmax(hidden / temperature)
        chosen = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        return chosen, -jnp.sum(jnp.exp(logs) * logs, axis=-1)

    return SimpleNamespace(hidden=lambda tokens, *_: theta[tokens], logprobs=logprobs)


def two_token_batch(norm):
    mask = np.arange(3) < np.array(LENGTHS)[:, None]
    old = np.zeros((3, 3))
    old[mask] = sum(OLD, [])
    prompts = np.array(PROMPTS)[:, None]
    weights = None
    if norm != "token":
        weights = objectives.token_weights(mask, norm, 3).astype(np.float64)
    return grpo.Batch(
        prompts, np.ones_like(prompts, bool), np.array(TOKENS), mask, old, np.array(GAINS), weights
    )


EXTRAS = {
    "kl": dict(kl=0.3),
    "entropy": dict(entropy_bonus=0.2),
    "tau": dict(VARIANTS["kimi"], tau=0.7),
    "both": dict(VARIANTS["gspo"], kl=0.3, entropy_bonus=0.2),
}


@pytest.mark.parametrize("name", [*VARIANTS, *EXTRAS])
def test_loss_and_gradient(name):
    s = dataclasses.replace(Settings(), **(VARIANTS | EXTRAS)[name])
    where = jax if hasattr(jax, "enable_x64") else jax.experimental  # JAX 0.7 has it there
    with where.enable_x64(True):
        batch = jax.tree.map(jnp.asarray, two_token_batch(s.norm))
        base = two_token_model(jnp.asarray(BASE_THETA))

        def mean(theta):
            value, sums = grpo.loss(two_token_model(theta), base, batch, s)
            return value / sum(LENGTHS), sums

        (value, sums), slope = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(THETA))
        value, slope = float(value), np.asarray(slope)
    np.testing.assert_allclose(value, plain(THETA, s), rtol=1e-6)
    for index in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[index] = 1e-5
        finite = (plain(THETA + step, s) - plain(THETA - step, s)) / 2e-5
        assert slope[index] == pytest.approx(finite, rel=1e-5, abs=1e-8)
    assert np.abs(slope).max() > 1e-3 and float(sums["tokens"]) == 6


def test_clip_by_hand():
    ratio = np.array([[1.5, 0.5, 1.5, 0.5, 1.25]])
    gain = np.array([[2.0, 2.0, -1.0, -1.0, 2.0]])
    value, outside = objectives.clipped(jnp.log(ratio), gain, 0.2, 0.28)
    np.testing.assert_allclose(value, [[2.56, 1.0, -1.5, -0.8, 2.5]], rtol=1e-6)
    assert outside.tolist() == [[True, False, False, True, False]]
    _, outside = objectives.clipped(jnp.log(ratio), gain, 0.2, 0.2)
    assert outside.tolist() == [[True, False, False, True, True]], "clip-higher lets 1.25 pass"


def test_sequence_ratio_by_hand():
    log_ratio = np.log([[2.0, 0.5, 8.0, 1.0], [3.0, 1.0, 1.0, 1.0]])
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    shared = np.exp(objectives.sequence_mean(log_ratio, mask))
    np.testing.assert_allclose(shared, [[2, 2, 2, 1], [3, 1, 1, 1]], rtol=1e-6)  # 8 ** (1/3) = 2


def test_cispo_by_hand():
    logprobs, log_ratio = np.array([[-2.0, -1.0]]), np.log([[1.5, 0.1]])
    value, outside = objectives.cispo(logprobs, log_ratio, 0.5, 1.0, 0.28)
    np.testing.assert_allclose(value, [[1.28 * 0.5 * -2, 0.1 * 0.5 * -1]], rtol=1e-6)
    assert outside.tolist() == [[True, False]]


def test_mirror_descent_by_hand():
    mask = np.array([[True, True, False]])
    value, _ = objectives.mirror_descent(np.array([[0.2, 0.3, 0.0]]), np.ones((1, 1)), mask, 0.1)
    np.testing.assert_allclose(value.sum(), (1 - (1 - 0.1 * 0.5) ** 2) / 0.2, rtol=1e-6)  # 0.4875


def test_unknown_names():
    with pytest.raises(ValueError, match="token"):
        objectives.token_weights(np.ones((1, 1), bool), "row")
    s = dataclasses.replace(Settings(), objective="clip")
    object.__setattr__(s, "objective", "ppo")
    with pytest.raises(ValueError, match="ppo"):
        grpo.surrogate(np.zeros((3, 3)), np.zeros((3, 3)), None, two_token_batch("token"), s)


def test_advantages_by_hand():
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    rloo = grpo.advantages(rewards, scale_by_std=False, leave_one_out=True)
    np.testing.assert_allclose(rloo, [[1, -1 / 3, -1 / 3, -1 / 3], [0] * 4], atol=1e-12)
    with pytest.raises(ValueError, match="group >= 2"):
        grpo.advantages(np.ones((2, 1)), leave_one_out=True)


def test_token_weights_by_hand():
    mask = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], bool)
    expected = {"token": (1, 1), "sequence": (2, 2 / 3), "constant": (0.5, 0.5)}
    for norm, (short, long) in expected.items():
        weights = objectives.token_weights(mask, norm)
        np.testing.assert_allclose(weights[0], [short, 0, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(weights[1], [long] * 3 + [0], rtol=1e-6)
    two = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)  # groups of 3 and 6 tokens
    weights = objectives.token_weights(two, "group", group=2)
    assert weights[:2].sum() == pytest.approx(weights[2:].sum()) == pytest.approx(9 / 2)
    np.testing.assert_allclose([weights[1, 0], weights[2, 0]], [1.5, 0.75], rtol=1e-6)


def test_rewards_for_length_by_hand():
    lengths = np.array([[10, 16, 18, 20]])
    np.testing.assert_allclose(grpo.overlong_penalty(lengths, 20, 4), [[0, 0, -0.5, -1]])
    right = np.array([[False, True, True, False]])
    expected = [[0, 0.5 - 0.6, 0.5 - 0.8, -0.5]]
    np.testing.assert_allclose(grpo.length_reward(lengths, right), expected, atol=1e-12)
    same = np.full((1, 4), 7)
    assert (grpo.length_reward(same, right) == 0).all()
    rewards = np.array([[0.1, 1.0, 1.0, 0.0]])
    assert (grpo.shape_rewards(rewards, lengths, Settings()) == rewards).all()
    s = Settings(completion_len=20, overlong=4, length_reward=2.0)
    np.testing.assert_allclose(grpo.shape_rewards(rewards, lengths, s), [[0.1, 0.8, -0.1, -2.0]])


def on_policy_loss(logs, batch, s):
    """Mean of the loss over the tokens, of log-probabilities that are still the sampler's."""
    counts_as = objectives.token_weights(batch.mask, s.norm, s.group)
    value, _ = grpo.surrogate(logs, 0 * logs, logs, batch._replace(weights=counts_as), s)
    return float(value) / batch.mask.sum()


@pytest.mark.parametrize("name", ["grpo", "gspo", "dr_grpo", "dapo", "token"])
def test_only_the_mean_over_answers_makes_the_loss_on_policy_zero(name):
    """Other means give minus the sum of A times L: how advantage and length go together."""
    s = dataclasses.replace(Settings(group=4), **VARIANTS.get(name, {}))
    lengths = np.array([2, 6, 3, 1, 5, 2, 4, 6])
    rewards = np.array([[1.0, 0.0, 0.1, 0.1], [0.0, 1.0, 0.1, 0.1]])
    gain = grpo.advantages(rewards, scale_by_std=s.scale_by_std).reshape(-1)
    mask = np.arange(8) < lengths[:, None]
    logs = jnp.asarray(np.random.default_rng(0).normal(-2, 1, mask.shape) * mask)
    batch = grpo.Batch(None, None, None, mask, logs, gain)
    expected = {
        "sequence": 0.0,
        "token": -(gain * lengths).sum() / lengths.sum(),
        "group": -np.mean([gain[g] @ lengths[g] / lengths[g].sum() for g in GROUPS]),
        "constant": -(gain * lengths).sum() / mask.size,
    }
    got = on_policy_loss(logs, batch, s)
    assert got == pytest.approx(expected[s.norm], abs=1e-6)
    assert (abs(got) > 0.01) == (s.norm != "sequence")


@pytest.mark.parametrize("right", [1, 3, 15])
def test_rewards_of_0_and_1_pull_right_and_wrong_apart(right):
    """By sqrt(p (1 - p)) times the difference of their mean log-probabilities (2503.06639)."""
    rewards = (np.arange(16) < right).astype(float)[None]
    gain = grpo.advantages(rewards)[0]
    one_token = np.ones((16, 1), bool)
    batch = grpo.Batch(None, None, None, one_token, np.full((16, 1), -2.0), gain)

    def mean(logs):
        return grpo.surrogate(logs, 0 * logs, None, batch, Settings())[0] / 16

    slope = -jax.grad(mean)(jnp.full((16, 1), -2.0))[:, 0]
    root = np.sqrt(right / 16 * (1 - right / 16))
    expected = np.where(rewards[0] == 1, root / right, -root / (16 - right))
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_the_gradient_of_the_kl_term_is_that_of_the_reverse_divergence():
    """In expectation over the policy, with the samples held fixed: KL(reference || policy)."""
    rng = np.random.default_rng(0)
    theta, base = jnp.asarray(rng.normal(0, 1, (2, 9)))
    pi, base_logs = jax.nn.softmax(theta), jax.nn.log_softmax(base)
    column = np.ones((9, 1), bool)  # each token once, weighed with its probability
    old = jnp.log(pi)[:, None]
    batch = grpo.Batch(None, None, None, column, old, np.zeros(9), pi[:, None])
    s = Settings(kl=1.0)

    def held_fixed(theta):
        logs = jax.nn.log_softmax(theta)[:, None]
        return grpo.surrogate(logs, 0 * logs, base_logs[:, None], batch, s)[0]

    def reverse(theta):
        return jnp.exp(base_logs) @ (base_logs - jax.nn.log_softmax(theta))

    got, expected = jax.grad(held_fixed)(theta), jax.grad(reverse)(theta)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_refill_takes_groups_with_signal_in_order():
    def batch(first):
        ids = np.arange(first, first + 6)
        wide = np.tile(ids[:, None], 2)
        return grpo.Batch(wide, wide > -1, wide, wide > -1, wide * 1.0, ids * 1.0)

    rewards = np.array([[1.0, 1], [0, 1], [0, 0]])
    more = np.array([[1.0, 1], [1, 0], [0.1, 0.1]])
    got, kept = grpo.refill(batch(0), rewards, batch(10), more)
    assert got.advantages.tolist() == [12, 13, 2, 3, 4, 5] and got.weights is None
    assert got.completions[:, 1].tolist() == [12, 13, 2, 3, 4, 5]
    assert kept.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert grpo.has_signal(kept).tolist() == [True, True, False]


def test_draws_of_a_step_share_no_puzzle_with_any_other(monkeypatch):
    fake = lambda seed, index, *_, **__: Puzzle((index,), 0)  # noqa: E731
    monkeypatch.setattr(countdown, "generate", fake)
    s, task = Settings(steps=5, prompts=4, refills=2), Countdown()
    draws = [(step, draw) for step in range(1, 6) for draw in range(3)]
    drawn = [p for each in draws for p in training_puzzles(task, s, *each)]
    assert len(set(drawn)) == len(drawn) == 5 * 3 * 4
    assert [puzzle.numbers[0] for puzzle in training_puzzles(task, s, 2)] == [4, 5, 6, 7]


def random_batch():
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.array([6, 3, 4, 1])[:, None]
    ids = rng.integers(2, 12, (4, 9)).astype(np.int32)
    old = np.where(mask, rng.normal(-2.4, 0.3, (4, 6)), 0).astype(np.float32)
    gain = np.array([1.0, -1.0, 0.5, 0.0], np.float32)
    return grpo.Batch(ids[:, :3], np.ones((4, 3), bool), ids[:, 3:], mask, old, gain)


@pytest.mark.slow
def test_two_updates_reuse_the_old_logprobs():
    graph, params = nnx.split(Gemma(CONFIG, rngs=nnx.Rngs(0)))
    copy = lambda: jax.tree.map(jnp.copy, params)  # noqa: E731
    one = Settings(warmup=0, micro_batch=4, norm="sequence")
    two = dataclasses.replace(one, updates=2)
    state = grpo.TrainState(copy(), grpo.optimizer(one).init(params))
    for _ in range(2):
        state, _ = grpo.train_step(graph, state, None, random_batch(), one)
    both = grpo.TrainState(copy(), grpo.optimizer(two).init(params))
    both, _ = grpo.train_step(graph, both, None, random_batch(), two)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(both.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_schedule_counts_steps_whatever_the_updates():
    rates = []
    for updates in (1, 3):
        s = Settings(steps=10, warmup=2, decay=0.1, updates=updates, max_grad_norm=1e9)
        optimizer, w = grpo.optimizer(s), jnp.ones(1)
        state = optimizer.init(w)
        moves = []
        for _ in range(10 * updates):
            update, state = optimizer.update(jnp.ones(1), state, w)
            moves.append(-float(update[0]))
        rates.append(moves[::updates])
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-3)
    assert rates[0][:2] == pytest.approx([3e-4, 6e-4], rel=1e-3) and max(rates[0]) == rates[0][1]


@pytest.mark.slow
def test_rescored_weights_are_truncated():
    graph, params = nnx.split(Gemma(CONFIG, rngs=nnx.Rngs(0)))
    batch, s = random_batch(), Settings(micro_batch=3, importance_cap=1.2)
    new = grpo.rescore(graph, params, batch, s)
    arrays = jax.tree.map(jnp.asarray, batch)
    ours, _ = grpo.completion_logprobs(nnx.merge(graph, params), arrays, 1.0)
    ours = np.where(batch.mask, ours, 0)
    np.testing.assert_allclose(new.logprobs, ours, atol=1e-5)
    expected = np.minimum(np.exp(ours - batch.logprobs), 1.2)
    np.testing.assert_allclose(new.weights[batch.mask], expected[batch.mask], rtol=1e-4)
    weighed = grpo.rescore(graph, params, batch._replace(weights=2 * np.ones((4, 6))), s)
    np.testing.assert_allclose(weighed.weights, 2 * new.weights, rtol=1e-5)
    assert (expected[batch.mask] == 1.2).any() and (expected[batch.mask] < 1.2).any()
