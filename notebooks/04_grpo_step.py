# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · One GRPO step
#
# **What does a reward do to a model, and what do the many variants of GRPO
# change about it?** We start with five answers to one puzzle, where every
# expectation can be computed exactly, and end with seven published losses
# side by side on one batch of a real model.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | about 1 |
#
# **You will see**
#
# 1. that the group's mean as a baseline keeps the gradient's direction and
#    takes away the noise that comes from the rewards' level;
# 2. that with rewards 0 and 1, GRPO pulls right answers and pushes wrong
#    ones apart with a weight that depends on the success rate p alone, and
#    where p goes from there;
# 3. that the mean over each sequence makes wrong answers longer, with nobody
#    paying for length;
# 4. that all the variants are one sum over tokens with different weights:
#    some of them are the same gradient until the batch is used a second
#    time.

# %% tags=["setup"]
# Setup, the same in every notebook: find aha_lib and what it needs.
import glob
import pathlib
import shutil
import sys

drive, data = "/content/drive/MyDrive", "/kaggle/input"
places = [".", "..", "*", drive, f"{drive}/*"]
places += [data + "/*" * depth for depth in range(1, 5)]
found = [p for place in places for p in glob.glob(f"{place}/aha_lib")]
if not found:
    zips = [z for place in places for z in glob.glob(f"{place}/aha*.zip")]
    for file in zips[:1]:
        shutil.unpack_archive(file)
    found = glob.glob("aha*/aha_lib")
sys.path[:0] = [str(pathlib.Path(p).parent.resolve()) for p in found[:1]]
try:
    from aha_lib import install
except ImportError:
    raise SystemExit("aha_lib is not here: bring its whole folder or its "
                     "zip, as notebook 00 says, beside this one.") from None
install.complete()  # says what it installs; what will do is left alone

import jax

from aha_lib import runtime

runtime.start_distributed()  # only where there are several hosts
kind = runtime.devices()[0].device_kind
print(f"JAX {jax.__version__} on {jax.device_count()} x {kind}")

# %% tags=["parameters"]
preset = "tiny"

# %%
import dataclasses

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from aha_lib import grpo
from aha_lib.presets import SETTINGS, VARIANTS

settings = SETTINGS[preset]
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. REINFORCE on one puzzle
#
# A language model is a distribution over answers. Take it literally: one
# puzzle, five answers that the model might give, five logits. The referee of
# notebook 02 says what each is worth.

# %%
from aha_lib.countdown import Puzzle, reward

puzzle = Puzzle((20, 16, 4), 40)
answers = ["( 20 + 16 ) + 4", "( 20 * 4 ) - 16", "( 20 - 16 ) * 4",
           "20 * 4", "twenty"]  # fmt: skip
tags = [f"<answer> {a} </answer>" for a in answers]
values = np.array([reward(tag, puzzle).value for tag in tags])
policy = np.array([0.1, 0.3, 0.3, 0.2, 0.1])
for row in zip(answers, policy, values, strict=True):
    print("{:16} probability {:.1f}   reward {:.1f}".format(*row))

# %% [markdown]
# We want to raise the expected reward $J = \sum_y \pi(y)\, r(y)$. Its
# gradient by the logit of answer $k$ is exact here, and short:
# $\partial J / \partial \theta_k = \pi_k\,(r_k - J)$.
#
# A model has far too many answers to sum over. REINFORCE (Williams 1992)
# replaces the sum by samples $y \sim \pi$:
#
# $$\nabla J = \mathbb{E}_y\big[(r(y) - b)\,\nabla \log \pi(y)\big]$$
#
# for *any* baseline $b$ that does not depend on $y$, because
# $\mathbb{E}[\nabla \log \pi] = 0$. The baseline changes the noise, not the
# mean. GRPO's idea: sample a **group** of answers to the same puzzle and let
# its mean be the baseline. No value network needed.

# %%
exact = policy * (values - policy @ values)
G = settings.group
draws = rng.choice(5, size=(20_000, G), p=policy)  # groups of answers
score = np.eye(5)[draws] - policy  # gradient of log pi for each draw


def estimates(advantages):
    """One estimate of the gradient per group: [groups, 5]."""
    return (advantages[..., None] * score).mean(1)


# %%
rewards = values[draws]
kinds = {
    "no baseline": rewards,
    "same, rewards + 10": rewards + 10,
    "group mean": grpo.advantages(rewards, scale_by_std=False),
    "leave one out": grpo.advantages(
        rewards, scale_by_std=False, leave_one_out=True),
}  # fmt: skip
means = {name: estimates(a).mean(0) for name, a in kinds.items()}
noise = {name: estimates(a).std(0).sum() for name, a in kinds.items()}
print(f"{'exact':19}", exact.round(3))
for name in kinds:
    print(f"{name:19}", means[name].round(3), f" noise {noise[name]:.3f}")

# %% [markdown]
# All point the same way. Adding 10 to every reward changes nothing about the
# task, yet it drowns the estimate in noise; a baseline does not even see it.
# The group's mean contains the answer's own
# reward, so it is a little too timid: by exactly $(G-1)/G$. Leaving the
# answer itself out of its baseline (RLOO, Ahmadian et al. 2024) removes even
# that, and is otherwise the same thing.
#
# ### Check: baselines

# %%
error = 4 * noise["no baseline"] / np.sqrt(len(draws))
assert np.abs(means["no baseline"] - exact).max() < error
assert np.abs(means["leave one out"] - exact).max() < error
shrunk = exact * (G - 1) / G
assert np.abs(means["group mean"] - shrunk).max() < error
factor = G / (G - 1)
assert np.allclose(means["leave one out"], means["group mean"] * factor)
assert noise["group mean"] < 0.9 * noise["no baseline"]
assert noise["group mean"] < 0.05 * noise["same, rewards + 10"]

# %% [markdown]
# Does it matter when learning? Thirty runs of plain gradient ascent from the
# same start, with groups of 4:


# %%
def ascend(baseline, steps=60, rate=1.0, group=4, runs=30):
    """Probability of the right answer at each step, [runs, steps]."""
    theta, path = np.tile(np.log(policy), (runs, 1)), []
    for _ in range(steps):
        pi = np.exp(theta) / np.exp(theta).sum(1, keepdims=True)
        path.append(pi[:, 0])
        uniform = rng.random((runs, group, 1))
        y = (pi.cumsum(1)[:, None] < uniform).sum(-1).clip(max=4)
        r = 10 + values[y] if baseline == "shifted" else values[y]
        a = r
        if baseline is True:
            a = grpo.advantages(r, scale_by_std=False)
        grads = a[..., None] * (np.eye(5)[y] - pi[:, None])
        theta = theta + rate * grads.mean(1)
    return np.array(path).T


# %%
cases = {"group mean": True, "no baseline": False,
         "no baseline, rewards + 10": "shifted"}  # fmt: skip
paths = {name: ascend(kind) for name, kind in cases.items()}
plt.figure(figsize=(7, 3), layout="constrained")
for (name, path), color in zip(paths.items(), "bgr", strict=True):
    plt.plot(path.T, color=color, lw=0.4, alpha=0.4)
    plt.plot(path.mean(0), color=color, lw=2.5, label=name)
plt.xlabel("step")
plt.ylabel("probability of\nthe right answer")
plt.legend()
plt.show()

# %% [markdown]
# The red curves solve the *same* problem, with 10 added to every reward.
# Whatever happens to be sampled is pulled up ten times harder, and the runs
# end wherever chance took them; with a baseline the shift cancels. With
# rewards that happen to sit near zero, as ours do, doing without a baseline
# works too: here it is even the quicker one, as a small group's mean is timid
# (three quarters, for 4) and says nothing where all four are alike. The
# baseline is an insurance against the level of the rewards.

# %%
last = {name: path[:, -1].mean() for name, path in paths.items()}
assert last["group mean"] > 0.8 and last["no baseline"] > 0.8
assert last["no baseline, rewards + 10"] < 0.5
some = values[draws[:50]]
assert np.allclose(grpo.advantages(some), grpo.advantages(some + 10))

# %% [markdown]
# ## 2. The ratio and the clip
#
# A batch is expensive to sample, so one may want more than one update out of
# it. After the first, the model is no longer the one that wrote the batch,
# and each token gets a weight: the importance ratio
# $r_t = \pi(y_t) / \pi_\text{old}(y_t)$. Ratios can explode, so PPO (and
# GRPO) stop paying for a token that has moved far enough in the direction
# it was pushed:
#
# $$\min\big(r_t A,\ \mathrm{clip}(r_t, 1-\varepsilon_\text{low},
# 1+\varepsilon_\text{high})\,A\big)$$
#
# DAPO's *clip-higher* uses a larger $\varepsilon_\text{high}$, so that rare
# tokens have room to grow. CISPO clips the weight and keeps the gradient.
# On the left the objective, on the right what matters: the slope by
# $\log \pi$, which is the weight the token's gradient gets.

# %%
import jax

log_ratio = jnp.linspace(-1, 1, 401)[None]
LOW, HIGH = settings.clip_low, settings.clip_high


def ppo(x, gain):
    """PPO's objective of a token, as the sum that jax.grad wants."""
    return grpo.clipped(x, gain, LOW, HIGH)[0].sum()


def cispo(x, gain):
    """CISPO's; with no lower clip, as published."""
    return grpo.cispo(x, x, gain, 1.0, HIGH)[0].sum()


slopes = {gain: (jax.grad(ppo)(log_ratio, gain)[0],
                 jax.grad(cispo)(log_ratio, gain)[0])
          for gain in (1.0, -1.0)}  # fmt: skip

# %%
ratio = np.exp(log_ratio[0])
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for gain, color in ((1.0, "tab:green"), (-1.0, "tab:red")):
    value = grpo.clipped(log_ratio, gain, LOW, HIGH)[0][0]
    axes[0].plot(ratio, value, color=color, label=f"A = {gain:+.0f}")
    name = f"A = {gain:+.0f}"
    axes[1].plot(ratio, slopes[gain][0], color=color, label=f"clip, {name}")
    axes[1].plot(ratio, slopes[gain][1], "--", color=color,
                 label=f"CISPO, {name}")  # fmt: skip
for axis, title in zip(axes, ("objective", "slope by log π"), strict=True):
    axis.axvspan(1 - LOW, 1 + HIGH, color="0.9", label="inside the clip")
    axis.set(title=title, xlabel="ratio", ylim=(-3, 4))
    axis.legend(fontsize=8, ncols=2, loc="upper center")
plt.show()

# %% [markdown]
# Follow the green solid line on the right: a good token that has already
# become 1.28 times likelier gets no gradient at all. The dashed one levels
# off instead. And note where the red line is *not* cut: a bad token that
# became *likelier* (ratio above 1.28) still gets its full push down. The
# clip is one-sided, on purpose.
#
# ### Check: where the gradient vanishes

# %%
up, down = slopes[1.0][0], slopes[-1.0][0]
assert (up[ratio > 1 + HIGH] == 0).all()
assert (down[ratio < 1 - LOW] == 0).all()
inside = (ratio > 0.81) & (ratio < 1.27)
np.testing.assert_allclose(up[inside], ratio[inside], rtol=1e-5)
np.testing.assert_allclose(down[inside], -ratio[inside], rtol=1e-5)
assert (down[ratio > 1 + HIGH] < -1.28).all()  # one-sided

# %% [markdown]
# ## 3. Three ways to measure the distance to the base model
#
# A penalty $\beta\,\mathrm{KL}(\pi \| \pi_\text{ref})$ keeps the model near
# where it started. Per sampled token, with
# $x = \log \pi_\text{ref} - \log \pi$, Schulman's three estimators are
#
# $$k_1 = -x \qquad k_2 = \tfrac12 x^2 \qquad k_3 = e^x - x - 1$$
#
# The first has the right mean and is noisy, even negative. The third adds
# $e^x - 1$, whose mean is 0: the same mean, and never negative.


# %%
def softmax(x):
    """Probabilities of a vocabulary, the last axis."""
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


logits, shift = rng.normal(0, 2, (2, 100))
table = {}
for size in (0.02, 0.1, 0.4):
    now, ref = softmax(logits), softmax(logits + size * shift)
    kl = now @ np.log(now / ref)
    x = np.log(ref / now)[rng.choice(100, size=400_000, p=now)]
    k = np.stack([-x, x**2 / 2, np.exp(x) - x - 1])
    table[size] = kl, k.mean(1) / kl - 1, k.std(1) / kl, len(x)
    print(f"KL {kl:.5f}", end="")
    print("   bias / KL:", *(f"{v:+7.3f}" for v in table[size][1]), end="")
    print("   std / KL:", *(f"{v:6.2f}" for v in table[size][2]))

# %% [markdown]
# Each row lists k1, k2, k3. Near the base (first row) k1 is many times noisier
# than the other two; far from it, k2 shows its bias. `grpo.py` uses k3.
#
# A warning that is easy to miss: these are estimates of the *value*. What
# trains is the gradient, and it is taken through the formula with the
# samples held fixed. In expectation over $\pi$, k1 then gives **zero**, k2
# the gradient of $\mathrm{KL}(\pi\|\pi_\text{ref})$, and k3 that of the
# *other* one, $\mathrm{KL}(\pi_\text{ref}\|\pi)$. With the whole
# distribution at hand the expectations are sums:

# %%
weight, base = jnp.array(now), jnp.array(ref)
forms = {"k1": lambda x: -x, "k2": lambda x: x**2 / 2,
         "k3": lambda x: jnp.exp(x) - x - 1}  # fmt: skip


def frozen(theta, form):
    """Mean of an estimator under samples that do not move with theta."""
    return weight @ form(jnp.log(base) - jax.nn.log_softmax(theta))


def divergence(theta, reverse):
    """KL(pi || ref), or KL(ref || pi) if reverse."""
    logs, base_logs = jax.nn.log_softmax(theta), jnp.log(base)
    forward = jnp.exp(logs) @ (logs - base_logs)
    return base @ (base_logs - logs) if reverse else forward


theta = jnp.log(weight)
grads = {name: jax.grad(frozen)(theta, f) for name, f in forms.items()}
for name, g in grads.items():
    print(f"gradient through {name}: norm {np.linalg.norm(g):.4f}")

# %% [markdown]
# ### Check: bias, noise and gradients of the estimators

# %%
for _, bias, std, count in table.values():
    assert abs(bias[0]) < 5 * std[0] / np.sqrt(count)
    assert abs(bias[2]) < 5 * std[2] / np.sqrt(count)
assert table[0.02][2][0] > 10 * table[0.02][2][2] and abs(bias[1]) > 0.1
close = dict(atol=1e-5)
np.testing.assert_allclose(grads["k1"], 0, **close)
both = [jax.grad(divergence)(theta, reverse) for reverse in (False, True)]
np.testing.assert_allclose(grads["k2"], both[0], **close)
np.testing.assert_allclose(grads["k3"], both[1], **close)

# %% [markdown]
# ## 4. A mean over what? Tokens, sequences, and length
#
# A batch's loss is a mean, and there are three in use. With the mean over
# tokens as the unit, `grpo.token_weights` says what a token counts in each.
# Two completions, of 4 and of 12 tokens:

# %%
mask = np.arange(12) < np.array([[4], [12]])
for norm in ("token", "sequence", "constant"):
    short, long = grpo.token_weights(mask, norm)[:, 0]
    print(f"{norm:9} short one's token {short:.2f}, long one's {long:.2f}")

# %% [markdown]
# GRPO as published takes each sequence's mean first: a token of the long
# completion counts a third as much. That has a direction. Suppose that the
# model first decides *how* to answer: right in 10 tokens, wrong in 5, or
# wrong in 40 (a long ramble). The decision falls at the first token. Which
# of the wrong ways is punished more?


# %%
def drift(norm, steps=150, rate=0.5):
    """Expected updates: success rate and mean length of wrong answers."""
    lengths, right = np.array([10, 5, 40]), np.array([1.0, 0, 0])
    pi, out = np.array([0.2, 0.4, 0.4]), []
    for _ in range(steps):
        out.append((pi[0], pi[1:] @ lengths[1:] / pi[1:].sum()))
        gain = right - pi @ right
        count = 1 / lengths if norm == "sequence" else 1 / (pi @ lengths)
        push = pi * gain * count
        theta = np.log(pi) + rate * 10 * (push - pi * push.sum())
        pi = softmax(theta)
    return np.array(out)


# %%
plt.figure(figsize=(7, 3), layout="constrained")
tracks = {norm: drift(norm) for norm in ("token", "sequence")}
for norm, track in tracks.items():
    plt.plot(*track.T, label=f"mean over each {norm}")
plt.xlabel("success rate, as training goes on")
plt.ylabel("mean length of\nwrong answers")
plt.legend()
plt.show()

# %% [markdown]
# With the mean per sequence, wrong answers get longer and longer while
# accuracy rises, and nobody paid for length: the long ramble's one decision
# was divided by 40, the short guess's by 5. That is the bias which Dr. GRPO
# (Liu et al. 2025) removes by dividing by a constant, and DAPO by the number
# of tokens in the batch. (For right answers it works the other way round:
# short ones are pulled harder.) So before "it thinks longer" is called an
# aha, look at the denominator.
#
# ### Check: length

# %%
assert tracks["sequence"][-1, 1] > 30
assert np.allclose(tracks["token"][:, 1], 22.5)
weights = grpo.token_weights(mask, "sequence")
loss = rng.normal(size=mask.shape)
by_rows = np.mean([loss[0, :4].mean(), loss[1].mean()])
assert np.isclose((weights * loss).sum() / mask.sum(), by_rows)

# %% [markdown]
# ## 5. Rewards of 0 and 1: GRPO as a contrastive loss
#
# Let a puzzle's success rate be $p$. A group's rewards have the mean $p$ and
# the standard deviation $\sqrt{p(1-p)}$, so that
#
# $$A_\text{right} = \frac{1-p}{\sqrt{p(1-p)}} = \sqrt{\frac{1-p}{p}}
# \qquad A_\text{wrong} = \frac{-p}{\sqrt{p(1-p)}} = -\sqrt{\frac{p}{1-p}}$$
#
# A share $p$ of the group is right and $1-p$ wrong. Put both into the
# objective, with $\ell$ the log-probability (its mean over the right ones,
# and over the wrong ones), and the same factor comes out twice:
#
# $$p\,A_\text{right}\,\bar\ell_\text{right}
# + (1-p)\,A_\text{wrong}\,\bar\ell_\text{wrong}
# = \sqrt{p(1-p)}\;\big(\bar\ell_\text{right} - \bar\ell_\text{wrong}\big)$$
#
# Likelier what was right, unlikelier what was wrong, with a weight that
# depends on $p$ alone (Mroueh 2025). Without the division by the standard
# deviation (Dr. GRPO) the weight is $p(1-p)$ instead.

# %%
p = np.arange(1, G) / G
groups = (np.arange(G) < np.arange(1, G)[:, None]).astype(float)
scaled = grpo.advantages(groups)
plain = grpo.advantages(groups, scale_by_std=False)
curve = np.linspace(0.02, 0.98, 200)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
odds = np.sqrt((1 - curve) / curve)
axes[0].plot(curve, odds, color="tab:green", label="right: √((1-p)/p)")
axes[0].plot(curve, -1 / odds, color="tab:red",
             label="wrong: -√(p/(1-p))")  # fmt: skip
axes[0].plot(p, scaled[:, 0], "k.", label=f"the code, groups of {G}")
axes[0].plot(p, scaled[:, -1], "k.")
axes[0].set(title="advantage", xlabel="success rate p", ylim=(-5, 5))
spread = curve * (1 - curve)
axes[1].plot(curve, np.sqrt(spread), label="GRPO: √(p(1-p))")
axes[1].plot(curve, spread, label="Dr. GRPO: p(1-p)")
axes[1].plot(curve, 1 - curve**G - (1 - curve) ** G, ":k",
             label="chance that a group has signal")  # fmt: skip
axes[1].set(title="weight of the puzzle", xlabel="success rate p",
            ylim=(0, 1.7))  # fmt: skip
for axis in axes:
    axis.legend(fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# A rare success is a strong signal: at $p = 1/16$ the one right answer has
# an advantage of almost 4. Dividing by the standard deviation keeps hard and
# easy puzzles in play (0.24 against 0.06 at $p = 1/16$, in units where the
# hardest fought puzzle, $p = 1/2$, has 0.5 and 0.25). And at $p = 0$ or $1$
# there is nothing: a group that is all right or all wrong is sampled for
# nothing. That is what DAPO's *dynamic sampling* refills:

# %%
all_alike = np.array([[0.0] * G, [1.0] * G])
print("all wrong:", grpo.advantages(all_alike)[0, :4], "...")
print("all right:", grpo.advantages(all_alike)[1, :4], "...")
print("signal:   ", grpo.has_signal(all_alike))

# %% [markdown]
# ### Check: the code against the formula
#
# The left side from the code's own loss and its gradient by each
# log-probability, the right side from the formula.

# %%
from types import SimpleNamespace

on_policy = dataclasses.replace(settings, norm="token", kl=0.0)
zero = np.zeros((G, 1))  # each completion has one token


def total_loss(logprobs, batch):
    return grpo.surrogate(logprobs, zero, None, batch, on_policy)[0]


for k in range(1, G):
    batch = SimpleNamespace(mask=zero == 0, logprobs=zero - 2, weights=None,
                            advantages=scaled[k - 1])  # fmt: skip
    slope = -jax.grad(total_loss)(jnp.array(zero - 2), batch)[:, 0] / G
    right, root = np.arange(G) < k, np.sqrt(k / G * (1 - k / G))
    contrast = np.where(right, root / k, -root / (G - k))
    np.testing.assert_allclose(slope, contrast, rtol=1e-5)
assert (grpo.advantages(all_alike) == 0).all()

# %% [markdown]
# ## 6. Where the success rate goes
#
# How far does one step go? Suppose that each step finds the best policy for
# its advantages, held back by $\beta\,\mathrm{KL}(\pi \| \pi_\text{ref})$.
# That optimum is known: $\pi_n(y) \propto \pi_\text{ref}(y)\,
# e^{A_n(y)/\beta}$. Right and wrong answers differ in their advantage by
# $1/\sqrt{p(1-p)}$, so the *odds* of success are multiplied:
#
# $$\frac{p_n}{1-p_n} = \frac{p_\text{ref}}{1-p_\text{ref}}\;
# \exp\frac{1}{\beta\sqrt{p_{n-1}(1-p_{n-1})}}$$
#
# The exponent is largest for a very low or very high $p$, smallest
# ($2/\beta$) at one half. Start at $p_0 = p_\text{ref}$ and iterate. Without
# a penalty it is the clip that holds each step back, near the *previous*
# policy; then $p_\text{ref}$ becomes $p_{n-1}$ (dashed).


# %%
def next_p(p, p_ref, beta):
    """The success rate after one step to the optimum."""
    gap = 1 / (beta * np.sqrt(p * (1 - p)))
    return 1 / (1 + (1 - p_ref) / p_ref * np.exp(-gap))


def iterate(p_0, beta, steps=12, mirror=False):
    """The success rates from p_0 on; the leash ends there, or moves along.

    Kept off 1, where all is silent.
    """
    path = [p_0]
    for _ in range(steps):
        p = path[-1]
        path.append(min(next_p(p, p if mirror else p_0, beta), 1 - 1e-9))
    return np.array(path)


# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
axes[0].plot(curve, curve, ":k", label="no change")
for beta, color in zip((2.0, 4.0, 8.0), ("C0", "C1", "C3"), strict=True):
    look = dict(color=color, label=f"β = {beta:g}")
    axes[0].plot(curve, next_p(curve, 0.1, beta), **look)
    axes[1].plot(iterate(0.1, beta), "o-", ms=3, **look)
    axes[1].plot(iterate(0.1, beta, mirror=True), "--", color=color)
axes[1].axhline(0.1, ls=":", color="k", label="base")
axes[0].set(title="one step, base at p = 0.1", xlabel="p before",
            ylabel="p after")  # fmt: skip
axes[1].set(title="step after step", xlabel="step", ylabel="p")
for axis in axes:
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# Where a coloured curve crosses the dotted diagonal, success stays. It always
# lies above the base's rate: the step amplifies what the base can do, and a
# weaker leash (small β) amplifies more. If the leash moves along, success
# goes all the way to 1, faster the weaker it is. From $p = 0$ neither can
# start: the base decides.
#
# ### Check: the recurrence against plain optimisation
#
# Our five-answer policy again, with rewards 0 and 1: climb
# $\mathbb{E}[A] - \beta\,\mathrm{KL}$ by gradient ascent, and look whether
# its success rate lands where the formula says.

# %%
target = jnp.array((values == 1).astype(float))


def held_back(theta, start, ref, beta):
    """Expected advantage under theta minus beta times the KL from ref."""
    p = start @ target
    gain = (target - p) / jnp.sqrt(p * (1 - p))
    logs = jax.nn.log_softmax(theta)
    return jnp.exp(logs) @ (gain - beta * (logs - jnp.log(ref)))


climb = jax.jit(jax.grad(held_back))
for beta in (2.0, 4.0):
    pi = ref = jnp.array(policy)
    for wanted in iterate(0.1, beta, steps=3)[1:]:
        theta = jnp.log(pi)
        for _ in range(1500):
            theta = theta + 0.5 * climb(theta, pi, ref, beta)
        pi = jax.nn.softmax(theta)
        assert abs(float(pi[0]) - wanted) < 2e-3
    assert iterate(0.1, beta, 200)[-1] > 0.1
    assert iterate(0.1, beta, 200, mirror=True)[-1] > 0.99

# %% [markdown]
# ## 7. A real batch, frozen
#
# Now the tiny base model writes: 8 puzzles, 16 completions each. Everything
# below happens on this one batch.

# %%
from aha_lib import train, weights

model, tokenizer, _ = weights.load(settings.model)
short = dataclasses.replace(settings, prompts=8, seed=4, completion_len=96)
out = train.rollout(model, tokenizer, train.puzzles(short, 1),
                    jax.random.key(4), short, group=G, temperature=1.0)  # fmt: skip
frozen_batch, rewards, _ = train.scored(out, short)
right = (rewards == 1).reshape(-1)
print("right in each group of", G, ":", (rewards == 1).sum(1))
print(f"tokens a completion: {frozen_batch.mask.sum(1).mean():.1f}")

# %% [markdown]
# First the sampler's log-probabilities against the trainer's. They are
# computed by two different programs (a cache, token by token; whole rows at
# once), and GRPO's ratio silently assumes that they agree. Where they do not
# (a bfloat16 sampler, another inference engine), `importance_cap` weights
# tokens by $\min(\pi_\text{trainer}/\pi_\text{sampler}, C)$.

# %%
from flax import nnx

graph, params = nnx.split(model)
again = grpo.rescored(graph, params, frozen_batch,
                      dataclasses.replace(short, importance_cap=2.0))  # fmt: skip
gap = np.abs(again.logprobs - frozen_batch.logprobs)[frozen_batch.mask]
print(f"largest difference {gap.max():.1e} nats")
assert gap.max() < 1e-3
assert np.abs(again.weights[frozen_batch.mask] - 1).max() < 2e-3

# %% [markdown]
# ### All variants are token weights
#
# By the chain rule, the gradient of any of these losses is
#
# $$-\nabla L = \sum_t w_t\,\nabla \log \pi(y_t), \qquad
# w_t = -\frac{\partial L}{\partial \log \pi(y_t)}$$
#
# The model's part, $\nabla \log \pi$, is the same for all. So a variant *is*
# its table of weights $w$, one number per token. The function below gives
# it; `VARIANTS` holds the flags as published:

# %%
for name, flags in VARIANTS.items():
    print(f"{name:8}", *(f"{k}={v}" for k, v in flags.items()), sep="  ")


# %%
def variant(name, **changes):
    """The frozen batch as a variant sees it, and its settings."""
    s = dataclasses.replace(short, **VARIANTS[name] | changes)
    batch, _, _ = train.scored(out, s)
    return batch._replace(weights=grpo.token_weights(batch.mask, s.norm)), s


def token_slopes(name, logprobs, **changes):
    """Loss, the weights w [B, T], and the share of clipped tokens."""
    batch, s = variant(name, **changes)

    def mean(logprobs):
        value, sums = grpo.surrogate(logprobs, 0 * logprobs, None, batch, s)
        share = sums["clip_fraction"] / sums["tokens"]
        return value / batch.mask.sum(), share

    (value, share), slope = jax.value_and_grad(mean, has_aux=True)(logprobs)
    return float(value), -slope, float(share)


# %% [markdown]
# And the model's part, once for all: a vector-Jacobian product from token
# weights to a gradient of all 0.6 million parameters, as one long vector.


# %%
@jax.jit
def logprobs_of(params):
    """Log-probabilities [B, T] of the frozen completions."""
    model = nnx.merge(graph, params)
    batch = jax.tree.map(jnp.asarray, frozen_batch)
    return grpo.completion_logprobs(model, batch, 1.0)[0]


@jax.jit
def to_gradient(params, weights):
    """The sum of weights times the gradients of log-probabilities."""
    (tree,) = jax.vjp(logprobs_of, params)[1](weights)
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


# %% [markdown]
# We look twice: **on policy**, before any update, when all ratios are 1; and
# **stale**, after four updates on this same batch (GRPO's μ, `updates=4`).

# %%
four = dataclasses.replace(short, updates=4, warmup=0, micro_batch=64)
copy = jax.tree.map(jnp.copy, params)
state = grpo.TrainState(copy, grpo.optimizer(four).init(params))
state, metrics = grpo.train_step(graph, state, None, frozen_batch, four)
moved = {"on policy": params, "stale": state.params}
logs = {when: logprobs_of(p) for when, p in moved.items()}
ratios = np.exp(logs["stale"] - frozen_batch.logprobs)[frozen_batch.mask]
print("stale ratios: 1st, 50th and 99th percentile",
      np.percentile(ratios, (1, 50, 99)).round(2))  # fmt: skip
print("clipped over the four updates:", round(metrics["clip_fraction"], 3))

# %%
names, results, vectors = list(VARIANTS), {}, {}
for when, p in moved.items():
    for name in names:
        value, w, share = token_slopes(name, logs[when])
        vectors[when, name] = np.asarray(to_gradient(p, w))
        results[when, name] = value, w, share
print("          on policy: loss, gradient norm   stale: the same, clipped")
for name in names:
    cells = [(results[w, name][0], np.linalg.norm(vectors[w, name]))
             for w in moved]  # fmt: skip
    print(f"{name:8}  {cells[0][0]:+10.4f} {cells[0][1]:10.4f}"
          f"          {cells[1][0]:+10.4f} {cells[1][1]:10.4f}"
          f" {results['stale', name][2]:8.3f}")

# %% [markdown]
# The losses themselves say next to nothing: on policy most of them are about
# zero *whatever* the model does (the advantages of a group sum to zero). Do
# not watch a GRPO loss fall. And norms differ by large factors, which Adam
# takes out again. So compare directions:


# %%
def cosines(when):
    """Cosine between the gradients of every two variants."""
    rows = np.stack([vectors[when, name] for name in names])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
ticks = dict(xticks=range(7), yticks=range(7), xticklabels=names,
             yticklabels=names)  # fmt: skip
for axis, when in zip(axes, moved, strict=True):
    axis.imshow(cosines(when), vmin=-1, vmax=1, cmap="PuOr")
    axis.set(title=f"gradient cosine, {when}", **ticks)
    axis.tick_params(axis="x", rotation=45)
    for (i, j), c in np.ndenumerate(cosines(when)):
        axis.text(j, i, f"{c:.2f}", ha="center", va="center", fontsize=8,
                  color="white" if abs(c) > 0.7 else "black")  # fmt: skip
plt.show()

# %% [markdown]
# **On policy** there are few different gradients among the seven. GRPO and
# GSPO are *the same* (a sequence ratio of 1 is a ratio of 1). DAPO without
# its penalty for overlong answers is CISPO; Dr. GRPO is RLOO up to a factor,
# and so is Kimi's without its length reward. What is left: whether the mean
# is over tokens or sequences, the standard deviation, and what is rewarded.
# The famous clips come in only when the batch is **stale**. Does each loss
# then still push where it pushed at first?

# %%
size = np.linalg.norm
now, later = ({name: vectors[when, name] for name in names} for when in moved)
for name in names:
    turn = now[name] @ later[name] / size(now[name]) / size(later[name])
    print(f"{name:8} cosine of its stale with its first gradient {turn:+.2f}")

# %% [markdown]
# The sign tells two families apart. Split GRPO's stale gradient into the part
# of tokens that moved the way they were pushed and the part of those that
# moved against it (the parameters are shared: pushing one answer moves
# others), each as a share of the whole:

# %%
push = variant("grpo")[0].advantages[:, None]
drifted = push * (np.asarray(logs["stale"]) - frozen_batch.logprobs)
against = (drifted < 0) & frozen_batch.mask
part, total = {}, {}
for name in ("grpo", "cispo"):
    w = results["stale", name][1]
    whole = later[name]
    part[name] = np.asarray(to_gradient(state.params, w * against))
    total[name] = part[name] @ whole / (whole @ whole)
    print(f"{name:6} moved against their push: {total[name]:+.2f}"
          f"   moved as pushed: {1 - total[name]:+.2f}")  # fmt: skip

# %% [markdown]
# Under the clip, tokens that went far the way they were pushed are silent,
# and the gradient that is left is mostly that of tokens which went the wrong
# way and are being pulled back. CISPO (and Kimi's loss) silence nobody and
# go on. The clip is a brake, and on a batch that has been used four times it
# brakes.
#
# ### Check: one gradient or two


# %%
def same(a, b):
    """Are two gradients the same, up to rounding?"""
    return size(a - b) < 2e-3 * size(b)


def without(name, **changes):
    """A variant's first gradient with some flags off."""
    return to_gradient(params, token_slopes(name, logs["on policy"], **changes)[1])


assert same(now["grpo"], now["gspo"])
assert same(without("dapo", overlong=0), now["cispo"])
assert same(now["dr_grpo"] * G / (G - 1), now["rloo"])
assert same(without("kimi", length_reward=0.0), now["dr_grpo"])
assert not same(now["grpo"], now["cispo"])
assert not same(now["grpo"], now["dr_grpo"])
apart = size(later["grpo"] - later["gspo"]) / size(later["grpo"])
print(f"GRPO and GSPO, stale: apart by {apart:.0%} of the gradient")
assert apart > 0.02 and total["grpo"] > 0.5 > total["cispo"]

# %% [markdown]
# The same gradient once more from the training step's own code, and its
# length from finite differences of the loss along it.

# %%
zeros = jax.tree.map(jnp.zeros_like, params)
batch, s = variant("grpo")
tokens = float(batch.mask.sum())
tree, _ = grpo.accumulate(graph, params, None, zeros, batch, tokens, s)
ours = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
assert size(ours + now["grpo"]) < 1e-3 * size(ours)

scaled_up = ours / size(ours)
leaves, shape = jax.tree.flatten(params)
cuts = np.cumsum([x.size for x in leaves])[:-1]
parts = np.split(scaled_up * 0.02, cuts)
moves = [d.reshape(x.shape) for x, d in zip(leaves, parts, strict=True)]
sides = [jax.tree.unflatten(shape, list(map(op, leaves, moves)))
         for op in (np.add, np.subtract)]  # fmt: skip
up, down = (token_slopes("grpo", logprobs_of(p))[0] for p in sides)
slope = (up - down) / 0.04
print(f"slope along the gradient: {slope:.4f}, its norm {size(ours):.4f}")
assert abs(slope / size(ours) - 1) < 0.05

# %% [markdown]
# ### The weights on the text
#
# One right and one wrong answer to the same puzzle, token by token. Green is
# pulled up, red pushed down; each variant in units of its own largest
# weight in the two, on the stale batch.

# %%
lengths = frozen_batch.mask.sum(1)
mixed = np.flatnonzero(grpo.has_signal((rewards == 1).astype(float)))
rows = [g * G + np.arange(G) for g in mixed]
fits = lambda i, hit: lengths[i] <= 34 and right[i] == hit  # noqa: E731
pairs = [[max((i for i in r if fits(i, hit)), key=lambda i: lengths[i],
              default=None) for hit in (True, False)] for r in rows]  # fmt: skip
pair = max((q for q in pairs if None not in q),
           key=lambda q: lengths[q].sum())  # fmt: skip
for i in pair:
    print("right:" if right[i] else "wrong:", out.texts[i])


# %%
def painted(axis, row):
    """Every variant's weights on the tokens of one completion."""
    count = lengths[row]
    ids = frozen_batch.completions[row, :count]
    words = [tokenizer.decode([i]) or "end" for i in ids]
    w = np.stack([results["stale", n][1][row, :count] for n in names])
    both = np.array(pair)
    largest = [np.abs(results["stale", n][1][both]).max() for n in names]
    w = w / np.maximum(largest, 1e-12)[:, None]
    axis.imshow(w, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xticks(range(count), words, fontsize=8, rotation=60, ha="left",
                    rotation_mode="anchor")  # fmt: skip
    axis.xaxis.tick_top()


figure, axes = plt.subplots(2, 1, figsize=(11, 5.5), layout="constrained")
for axis, row in zip(axes, pair, strict=True):
    painted(axis, row)
    axis.set_xlabel("right" if right[row] else "wrong", fontsize=10)
plt.show()

# %% [markdown]
# Within a completion nearly all tokens get the same weight: nobody tells the
# model *which* of its tokens was the mistake. Credit comes only from
# averaging over many completions that share the good tokens and differ in
# the bad ones. Pale cells are tokens that a clip has silenced, or whose ratio
# has fallen. Look which ones went silent here: the decisions, such as how to
# begin and what to do after `no`. They are what an update moves most, and so
# what a clip meets first. GSPO's clip is narrow and works on whole sequences:
# a completion is in or out as one.

# %%
w = np.asarray(results["stale", "gspo"][1])
for row in pair:
    inside = w[row, : lengths[row]]
    assert np.ptp(inside) <= 1e-4 * max(np.abs(inside).max(), 1e-9)
for hit, sign in zip(pair, (1, -1), strict=True):
    row = np.asarray(results["on policy", "grpo"][1])[hit, : lengths[hit]]
    assert (sign * row > 0).all()

# %% [markdown]
# ## 8. Paying for length, on purpose
#
# Two of the recipes change the reward. DAPO's *soft overlong punishment*
# falls from 0 to -1 over the last tokens before the limit, so that a
# completion about to be cut off is warned. Kimi's length reward compares
# within the group: among right answers, shorter is better; a wrong one is
# never rewarded for being short.

# %%
written = np.arange(10, 49)[None]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(written[0], grpo.overlong_penalty(written, 48, 16)[0])
axes[0].set(title="soft overlong penalty, limit 48, buffer 16")
for hit, label in ((True, "right"), (False, "wrong")):
    bonus = grpo.length_reward(written, np.full(written.shape, hit))[0]
    axes[1].plot(written[0], bonus, label=label)
axes[1].set(title="Kimi's length reward, group of 10 to 48")
axes[1].legend()
for axis in axes:
    axis.set(xlabel="tokens")
plt.show()

# %%
assert grpo.overlong_penalty(np.array([[32, 40, 48]]), 48, 16).tolist() == [
    [0, -0.5, -1]]  # fmt: skip
three = np.array([[10, 29, 48]])
assert grpo.length_reward(three, three > 0).tolist() == [[0.5, 0, -0.5]]
assert grpo.length_reward(three, three < 0).tolist() == [[0, 0, -0.5]]

# %% [markdown]
# In Countdown length *is* search. A reward for brevity works against the aha
# that the next notebook is about; it is here to be understood and tried.
#
# ## 9. Does it matter? Short runs, several seeds
#
# The frozen batch says how the variants differ at one moment, not where they
# end. These are short runs of the tiny model, one line a seed, all with the
# same learning rate and two updates a batch. They were made by
# `python tests/benchmarks/variants.py` and are only drawn here.

# %%
import json
import pathlib

import aha_lib

folder = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"
stored = json.loads((folder / "variants.json").read_text())
runs, about = stored["runs"], stored["about"]
print(", ".join(f"{key} {value}" for key, value in about.items()))
drawn = [n for n in names if any(r["variant"] == n for r in runs)]
by_name = {n: [r for r in runs if r["variant"] == n] for n in drawn}

# %%
figure, axes = plt.subplots(2, len(drawn), figsize=(1.7 * len(drawn), 4.2),
                            sharex=True, sharey="row", squeeze=False,
                            layout="constrained")  # fmt: skip
grey = {k: np.mean([r[k] for r in runs], 0) for k in ("accuracy", "length")}
for column, name in zip(axes.T, drawn, strict=True):
    for axis, key in zip(column, grey, strict=True):
        curves = np.array([r[key] for r in by_name[name]])
        x = np.arange(1, curves.shape[1] + 1)
        axis.fill_between(x, curves.min(0), curves.max(0), alpha=0.25)
        axis.plot(x, curves.mean(0), lw=2)
        axis.plot(x, grey[key], color="0.6", lw=1, ls="--")
    column[0].set(title=name)
    column[1].set(xlabel="step")
axes[0, 0].set(ylabel="training accuracy")
axes[1, 0].set(ylabel="tokens")
plt.show()

# %% [markdown]
# The line is the mean of the seeds, the band runs from the lowest to the
# highest, and the dashed grey line is the mean of all variants. Held-out
# puzzles, before and after:

# %%
print("variant   seeds   before   after: mean, lowest, highest")
ends = {}
for name, group in by_name.items():
    first, last = np.array([r["heldout"] for r in group]).T
    ends[name] = last
    print(f"{name:8} {len(group):5} {first.mean():8.2f} {last.mean():9.2f}"
          f" {last.min():9.2f} {last.max():8.2f}")  # fmt: skip

# %% [markdown]
# ### Check: what these runs show, and what not
#
# Every variant that was run learns. Which of two is better can be said only
# where their bands do not overlap, and of variants with three seeds at least:
# that is the least one should ask. (The command adds the runs that are not in
# the file yet.)

# %%
for group in by_name.values():
    first, last = np.array([r["heldout"] for r in group]).T
    assert last.mean() > first.mean() + 0.05
enough = [n for n in ends if len({r["seed"] for r in by_name[n]}) >= 3]
print(len(enough), "variants have three seeds or more")
for a in enough:
    worse = [b for b in enough if ends[a].min() > ends[b].max()]
    print(f"{a:8} better on every seed than:", ", ".join(worse) or "none")

# %% [markdown]
# ## Exercises
#
# **1.** In section 5, which puzzles would get the most weight if advantages
# were divided by the *variance* instead of the standard deviation? Work it
# out, then try it on `groups`.
#
# <details><summary>Answer</summary>
#
# The weight is $p(1-p)/(p(1-p)) = 1$ for every puzzle that has signal, at
# any $p$: `plain / groups.var(1, keepdims=True)`. A puzzle solved once in 16
# tries would pull as hard as one at one half, and with it the luck of that
# one try.
#
# </details>
#
# **2.** In section 4, let the model have two *right* ways, in 5 and in 40
# tokens, and one wrong way. Which of them wins under the sequence mean?
#
# <details><summary>Answer</summary>
#
# The short one: its decision is divided by 5 and pulled eight times harder.
# So the same denominator makes right answers shorter and wrong ones longer.
#
# </details>
#
# ## Summary
#
# A GRPO step is: a group per puzzle, its mean as the baseline, one weight
# per token, one gradient. All of this lives in `aha_lib/grpo.py`, each
# variant a function of a few lines with its paper; the flags are fields of
# `presets.Settings`. **Next:** `05_train` takes a hundred of these steps.
