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
# expectation can be computed exactly, go on to seven published losses side
# by side on one batch of the tiny model, and take one step of the preset's
# own model, by hand and by the package.
#
# (GRPO is from DeepSeekMath, and
# [DeepSeek-R1](https://arxiv.org/abs/2501.12948) made it known;
# [TinyZero](https://github.com/Jiayi-Pan/TinyZero) showed the same effect on
# this game of numbers.)
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | about 1 |
#
# Sections 1 to 7, 9 and 10 show what needs no model, or what only the tiny
# model can show in a minute: a batch with right answers, and fourteen whole
# gradients side by side. They are the same for every preset, with the tiny
# preset's settings (groups of 16). Section 8 is about the preset's model.
#
# **You will see**
#
# 1. that a baseline from the group keeps the gradient's direction and takes
#    away the noise that comes from the rewards' level;
# 2. that with rewards 0 and 1, GRPO pulls right and wrong answers apart with
#    a weight that depends on the success rate p alone, where p goes from
#    there, and which tiny reward this blows up;
# 3. that the mean over each sequence makes wrong answers longer, with nobody
#    paying for length;
# 4. that all the variants are one sum over tokens with different weights:
#    some of them are the same gradient until the batch is used a second
#    time.

# %% tags=["setup"]
# Setup, the same in every notebook: find aha_lib and what it needs.
import pathlib
import sys

here = pathlib.Path(globals().get("__file__", "notebook")).absolute().parent
drive = pathlib.Path("/content/drive/MyDrive")
data = pathlib.Path("/kaggle/input")  # how deep below is Kaggle's choice
places = [here, here.parent, here / "aha", drive, drive / "aha"]
places += [p for depth in range(1, 5) for p in data.glob("*/" * depth)]
found = [str(p) for p in places if (p / "aha_lib/install.py").exists()]
if not found and "__file__" not in globals():  # a notebook, not a script
    zips = [z for p in places for z in p.glob("aha.zip")]
    zips += [z for p in places for z in p.glob("aha ([0-9]).zip")]
    newest = sorted(zips, key=lambda z: z.stat().st_mtime)[-1:]
    found = [f"{z}/aha" for z in newest]
sys.path[:0] = found[:1]
try:
    from aha_lib import install
except ImportError:
    sys.exit("aha_lib is not here: bring aha.zip, as notebook 00 says.")
install.complete()  # says what it installs; what will do is left alone

from aha_lib import devices

devices.start()  # joins other hosts, and says which chips there are

# %% tags=["parameters"]
preset = "tiny"
overrides = {}  # settings that are to be others: {"completion_len": 64}

# %%
import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from aha_lib.presets import SETTINGS, VARIANTS

# %%
from aha_lib.rl import grpo, objectives

settings = dataclasses.replace(SETTINGS[preset], **overrides)  # section 8
tiny = SETTINGS["tiny"]  # all other sections
mesh = devices.make_mesh(tp=settings.tp)
if mesh.size > 1:
    jax.set_mesh(mesh)  # from here on weights and rows are spread over it
rng = np.random.default_rng(0)

# %% [markdown]
# ## The objective
#
# For a puzzle, the policy $\pi_\text{old}$ writes a group of $G$ answers.
# Answer $i$ has $L_i$ tokens and the reward $r_i$. GRPO (group-relative
# policy optimisation) maximises, here with a mean over all tokens,
#
# $$\frac{1}{\sum_i L_i} \sum_{i,t}
# \min\big(\rho_{it} A_i,\ \mathrm{clip}(\rho_{it}, 1-\varepsilon_\text{low},
# 1+\varepsilon_\text{high})\,A_i\big) - \beta\, k_{it}$$
#
# $$A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)} \qquad
# \rho_{it} = \frac{\pi(y_{it})}{\pi_\text{old}(y_{it})}$$
#
# with $k$ an estimate of the divergence from the base model. Where it comes
# from, in six lines:
#
# 1. Wanted is a high expected reward $J = \mathbb{E}_{y \sim \pi}[r(y)]$.
# 2. As $\nabla \pi = \pi\,\nabla \log \pi$, its gradient is
#    $\mathbb{E}[r(y)\,\nabla \log \pi(y)]$: a mean over samples.
# 3. $\log \pi(y)$ is a sum over tokens, so each token of an answer gets the
#    answer's reward.
# 4. $\mathbb{E}[\nabla \log \pi] = 0$, so a constant may be taken off the
#    reward: the group's mean. That lowers the noise.
# 5. The division by the group's deviation gives all puzzles one scale.
# 6. If another policy wrote the batch, each sample is weighted by the ratio
#    of the two. The exact weight of an answer is the product of its tokens'
#    ratios, which explodes with the length; PPO takes each token's own. That
#    is no longer exact, and the clip keeps it from going far.
#
# **One update per batch is what every preset does.** In that update the two
# policies are the same, all ratios are 1 up to rounding, and the clip never
# acts. Sections 2 and 7 use a batch more than once, to see what it does.
#
# ## 1. REINFORCE on one puzzle
#
# A language model is a distribution over answers. Take it literally: one
# puzzle, five answers that the model might give, five logits. The referee of
# notebook 02 says what each is worth.

# %%
from aha_lib.tasks.countdown import Puzzle, reward

puzzle = Puzzle((20, 16, 4), 40)
answers = [
    "( 20 + 16 ) + 4",
    "( 20 * 4 ) - 16",
    "( 20 - 16 ) * 4",
    "20 * 4",
    "twenty",
]
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
# A model has far too many answers to sum over. REINFORCE
# ([Williams 1992](https://doi.org/10.1007/BF00992696)) replaces the sum by
# samples $y \sim \pi$:
#
# $$\nabla J = \mathbb{E}_y\big[(r(y) - b)\,\nabla \log \pi(y)\big]$$
#
# for *any* baseline $b$ that does not depend on $y$, because
# $\mathbb{E}[\nabla \log \pi] = 0$. The baseline changes the noise, not the
# mean. GRPO samples a **group** of
# answers to the same puzzle and takes its mean as the baseline. What is left
# of a reward is the **advantage**. No second network has to learn how good a
# puzzle's answers are on average.

# %%
exact = policy * (values - policy @ values)
G = tiny.group
draws = rng.choice(5, size=(20_000, G), p=policy)  # groups of answers
score = np.eye(5)[draws] - policy  # gradient of log pi for each draw
earned = values[draws]


def against_others(rewards):
    """The baseline is the mean of the others in the group."""
    return grpo.advantages(rewards, scale_by_std=False, leave_one_out=True)


# %%
KINDS = {
    "no baseline": lambda rewards: rewards,
    "no baseline, rewards + 10": lambda rewards: rewards + 10,
    "group mean": lambda rewards: grpo.advantages(rewards, scale_by_std=False),
    "leave one out": against_others,
}

# %%
estimates = {
    name: (kind(earned)[..., None] * score).mean(1)
    for name, kind in KINDS.items()
}
means = {name: e.mean(0) for name, e in estimates.items()}
noise = {
    name: np.sqrt(e.var(0).sum() / (means[name] ** 2).sum())
    for name, e in estimates.items()
}
print(f"{'exact':26}", exact.round(3))
for name in KINDS:
    print(f"{name:26}", means[name].round(3), f" noise {noise[name]:.2f}")

# %% [markdown]
# *Noise* is the spread of one group's estimate in units of the length of the
# mean estimate. All means point the same way. Adding 10 to every reward
# changes nothing about the task, yet drowns the estimate; a baseline does not
# even see it. The same as a picture: each dot is one group's estimate of two
# of the five components, the cross is the exact gradient. (The first panel's
# axes are ten times as long.)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
shown = {
    "no baseline, rewards + 10": 2.5,
    "no baseline": 0.25,
    "leave one out": 0.25,
}
for axis, (name, reach) in zip(axes, shown.items(), strict=True):
    axis.plot(*estimates[name][:400, :2].T, ".", ms=4, alpha=0.4)
    axis.plot(*exact[:2], "kx", ms=9, mew=2)
    axis.set_title(f"{name}: noise {noise[name]:.2f}", fontsize=9)
    axis.set(xlabel="right answer", xlim=(-reach, reach), ylim=(-reach, reach))
axes[0].set_ylabel("a wrong answer")
plt.show()

# %% [markdown]
# The group's mean contains the answer's own reward, which shrinks the
# estimate by the factor $(G-1)/G$. RLOO (Ahmadian et al.,
# [2402.14740](https://arxiv.org/abs/2402.14740)) leaves the answer out of its
# own baseline and so removes this shrinkage: its advantage is the group-mean
# advantage times $G/(G-1)$.
#
# ### Check: baselines

# %%
spread = estimates["no baseline"].std(0).max()
error = 4 * spread / np.sqrt(len(draws))
assert np.abs(means["no baseline"] - exact).max() < error
assert np.abs(means["leave one out"] - exact).max() < error
shrunk = exact * (G - 1) / G
assert np.abs(means["group mean"] - shrunk).max() < error
factor = G / (G - 1)
assert np.allclose(means["leave one out"], means["group mean"] * factor)
assert noise["group mean"] < 0.9 * noise["no baseline"]
assert noise["group mean"] < 0.05 * noise["no baseline, rewards + 10"]
few = earned[:50]
assert np.allclose(grpo.advantages(few), grpo.advantages(few + 10))

# %% [markdown]
# Does it matter when learning? Four hundred runs of plain gradient ascent
# from the same start, with groups of 4. Lines are means, bands hold the
# middle half of the runs.


# %%
def ascend(kind, steps=60, rate=1.0, group=4, runs=400):
    """Probability of the right answer at each step, [runs, steps]."""
    theta, path = np.tile(np.log(policy), (runs, 1)), []
    for _ in range(steps):
        pi = np.exp(theta) / np.exp(theta).sum(1, keepdims=True)
        path.append(pi[:, 0])
        uniform = rng.random((runs, group, 1))
        y = (pi.cumsum(1)[:, None] < uniform).sum(-1).clip(max=4)
        grads = kind(values[y])[..., None] * (np.eye(5)[y] - pi[:, None])
        theta = theta + rate * grads.mean(1)
    return np.array(path).T


# %%
paths = {name: ascend(kind) for name, kind in KINDS.items()}

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, path in paths.items():
    low, high = np.percentile(path, (25, 75), axis=0)
    axis.fill_between(range(path.shape[1]), low, high, alpha=0.15)
    axis.plot(path.mean(0), lw=2, label=name)
axis.set(xlabel="step", ylabel="probability of\nthe right answer")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()
at_20 = {name: path[:, 20].mean() for name, path in paths.items()}
print("at step 20:", {name: f"{x:.2f}" for name, x in at_20.items()})

# %% [markdown]
# With 10 added to every reward, whatever happens to be sampled is pulled up
# ten times harder, and the runs end wherever chance took them; with a
# baseline the shift cancels. Of the other three, leaving one out is the
# quickest. The group's mean, *the same estimate times three quarters*, is the
# slowest: with plain gradient ascent a smaller gradient is a smaller step.
# (Adam, which the package uses, takes such a factor out again.) With rewards
# near zero, as ours are, no baseline comes close to the best. A baseline is
# an insurance against the level of the rewards.

# %%
last = {name: path[:, -1].mean() for name, path in paths.items()}
order = sorted(at_20, key=at_20.get)
assert order[0] == "no baseline, rewards + 10"
assert order[1] == "group mean" and order[-1] == "leave one out"
assert last["no baseline, rewards + 10"] < 0.5 < 0.9 < last["group mean"]

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
# DAPO's *clip-higher*
# ([2503.14476](https://arxiv.org/abs/2503.14476)) uses a larger
# $\varepsilon_\text{high}$, so that rare
# tokens have room to grow. CISPO clips the weight and keeps the gradient.
# On the left the objective, on the right what matters: the slope by
# $\log \pi$, which is the weight the token's gradient gets.

# %%
log_ratio = jnp.linspace(-1, 1, 401)[None]
LOW, HIGH = tiny.clip_low, tiny.clip_high


def ppo(x, gain):
    """PPO's objective of a token, as the sum that jax.grad wants."""
    return objectives.clipped(x, gain, LOW, HIGH)[0].sum()


# %%
def cispo(x, gain):
    """CISPO's, bounded above only; here, to be seen, at PPO's place."""
    return objectives.cispo(x, x, gain, 1.0, HIGH)[0].sum()


slopes = {
    gain: (
        jax.grad(ppo)(log_ratio, gain)[0],
        jax.grad(cispo)(log_ratio, gain)[0],
    )
    for gain in (1.0, -1.0)
}

# %%
ratio = np.exp(log_ratio[0])
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for gain, color in ((1.0, "C0"), (-1.0, "C1")):
    value = objectives.clipped(log_ratio, gain, LOW, HIGH)[0][0]
    axes[0].plot(ratio, value, color=color, label=f"A = {gain:+.0f}")
    name = f"A = {gain:+.0f}"
    axes[1].plot(ratio, slopes[gain][0], color=color, label=f"clip, {name}")
    axes[1].plot(
        ratio, slopes[gain][1], "--", color=color, label=f"CISPO, {name}"
    )
for axis, title in zip(axes, ("objective", "slope by log π"), strict=True):
    axis.axvspan(1 - LOW, 1 + HIGH, color="0.9", label="inside the clip")
    axis.set(title=title, xlabel="ratio", ylim=(-3, 4))
    axis.legend(
        fontsize=8,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        frameon=False,
    )
plt.show()

# %% [markdown]
# Follow the blue solid line on the right: a good token that has already
# become 1.28 times likelier gets no gradient at all. The dashed one levels
# off instead. And note where the orange line is *not* cut: a bad token that
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
# $x = \log \pi_\text{ref} - \log \pi$, Schulman's
# [three estimators](http://joschu.net/blog/kl-approx.html) are
#
# $$k_1 = -x \qquad k_2 = \tfrac12 x^2 \qquad k_3 = e^x - x - 1$$

# %%
FORMS = {
    "k1": lambda x: -x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: jnp.expm1(x) - x,
}
x = np.linspace(-2, 2, 201)
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for name, form in FORMS.items():
    axis.plot(x, form(x), label=name)
axis.axhline(0, color="black", lw=0.8)
axis.set(
    xlabel="x: left, likelier now; right, likelier in the base",
    ylabel="estimate of a token",
)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# The first has the right mean and is noisy: for every token that has become
# less likely it is negative, though no divergence is. The third adds
# $e^x - 1$, whose mean is 0: the same mean, and never negative. The second is
# never negative either, but its mean is another.


# %%
def softmax(x):
    """Probabilities of a vocabulary, the last axis."""
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


dice = np.random.default_rng(0)
logits, shift = dice.normal(0, 2, (2, 100))
table = {}
for size in (0.02, 0.1, 0.4):
    pi, pi_ref = softmax(logits), softmax(logits + size * shift)
    kl = pi @ np.log(pi / pi_ref)
    x = np.log(pi_ref / pi)[dice.choice(100, size=400_000, p=pi)]
    k = np.stack([form(x) for form in FORMS.values()]).astype(float)
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
def held_fixed(theta, form):
    """Mean of an estimator under samples that do not move with theta."""
    return jnp.array(pi) @ form(jnp.log(pi_ref) - jax.nn.log_softmax(theta))


def divergence(theta, reverse):
    """KL(pi || ref), or KL(ref || pi) if reverse."""
    logs, ref_logs = jax.nn.log_softmax(theta), jnp.log(pi_ref)
    forward = jnp.exp(logs) @ (logs - ref_logs)
    return jnp.array(pi_ref) @ (ref_logs - logs) if reverse else forward


# %%
theta = jnp.log(pi)
grads = {name: jax.grad(held_fixed)(theta, f) for name, f in FORMS.items()}
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
# A batch's loss is a mean, and three are common. (A fourth, DAPO's, is the
# token mean of each group.) With the mean over tokens as the unit,
# `objectives.token_weights` says what a token counts in each.
# Two completions, of 4 and of 12 tokens:

# %%
mask = np.arange(12) < np.array([[4], [12]])
for norm in ("token", "sequence", "constant"):
    each = objectives.token_weights(mask, norm)[:, 0]
    print(
        "{:9} short one's token {:.2f}, long one's {:.2f}".format(norm, *each)
    )

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
plt.legend(loc="center right")
plt.show()

# %% [markdown]
# With the mean per sequence, wrong answers get longer and longer while
# accuracy rises, and nobody paid for length: the long ramble's one decision
# was divided by 40, the short guess's by 5. That is the bias which Dr. GRPO
# removes by dividing by a constant, and DAPO by the number of tokens. (For
# right answers it works the other way round: short ones are pulled harder.)
# So before "it thinks longer" is called an aha, look at the denominator.
#
# ### Check: length

# %%
assert tracks["sequence"][-1, 1] > 30
assert np.allclose(tracks["token"][:, 1], 22.5)
counts_as = objectives.token_weights(mask, "sequence")
loss = rng.normal(size=mask.shape)
by_rows = np.mean([loss[0, :4].mean(), loss[1].mean()])
assert np.isclose((counts_as * loss).sum() / mask.sum(), by_rows)

# %% [markdown]
# ## 5. Rewards of 0 and 1: GRPO as a contrastive loss
#
# Let a puzzle's success rate be $p$. Were a group's rewards to have just the
# mean $p$ and the standard deviation $\sqrt{p(1-p)}$, then
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
# depends on $p$ alone
# (Mroueh, [2503.06639](https://arxiv.org/abs/2503.06639)). Without the
# division by the standard deviation the weight is $p(1-p)$, and that is the
# true gradient of the success rate. To divide it by $\sqrt{p(1-p)}$ is to
# climb another hill: $2\arcsin\sqrt{p}$, whose slope is $1/\sqrt{p(1-p)}$.
# (Liu et al., [2503.20783](https://arxiv.org/abs/2503.20783), call the
# difference a bias and leave the division out: Dr. GRPO.)
#
# All that is for the true $p$. A group of $G$ gives an *estimate* of it, and
# for rare successes most groups have none. The mean weight over such groups
# is a sum over the binomial distribution:

# %%
solved = np.arange(1, G)  # right answers in a group that has signal
groups = (np.arange(G) < solved[:, None]).astype(float)
scaled = grpo.advantages(groups)
rates = np.linspace(0.02, 0.98, 193)
ways = np.array([math.comb(G, k) for k in solved])[:, None]
chance = ways * rates ** solved[:, None] * (1 - rates) ** (G - solved[:, None])
by_group = np.sqrt(solved / G * (1 - solved / G)) @ chance

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
odds = np.sqrt((1 - rates) / rates)
axes[0].plot(rates, odds, color="C0", label="right: √((1-p)/p)")
axes[0].plot(rates, -1 / odds, color="C1", label="wrong: -√(p/(1-p))")
axes[0].plot(solved / G, scaled[:, 0], "k.", label="the code")
axes[0].plot(solved / G, scaled[:, -1], "k.")
axes[0].set(
    title="advantage", xlabel=f"right ones in a group of {G}", ylim=(-5, 5)
)
axes[1].plot(rates, np.sqrt(rates * (1 - rates)), ":", label="√(p(1-p))")
axes[1].plot(rates, by_group, label=f"GRPO, groups of {G}")
axes[1].plot(rates, rates * (1 - rates), label="p(1-p), the true gradient")
axes[1].plot(rates, chance.sum(0), "--", color="0.6", label="chance of signal")
axes[1].set(title="weight of the puzzle", xlabel="true success rate p")
for axis in axes:
    axis.legend(
        fontsize=8,
        loc="upper center",
        ncols=2,
        bbox_to_anchor=(0.5, -0.2),
        frameon=False,
    )
plt.show()
print(
    f"p = 0.02: the formula {np.sqrt(0.02 * 0.98):.2f},",
    f"groups of {G} {by_group[0]:.2f}",
)

# %% [markdown]
# A rare success is a strong signal: at one right answer of 16 it has an
# advantage of almost 4. But it has to be seen. At $p = 0.02$ three groups of
# four see nothing, and the mean weight is half of what the formula says. And
# a group that is all right or all wrong is sampled for nothing. That is what
# DAPO's *dynamic sampling* refills:

# %%
all_alike = np.array([[0.0] * G, [1.0] * G])
print("all wrong:", grpo.advantages(all_alike)[0, :4], "...")
print("all right:", grpo.advantages(all_alike)[1, :4], "...")
print("signal:   ", grpo.has_signal(all_alike))

# %% [markdown]
# Now a group to be wary of. Our rewards are not 0 and 1: a wrong answer that
# is well-formed gets 0.1 (the setting `form_reward`), and one that was cut
# off gets 0. Here nobody is right; fifteen are wrong, one is malformed:

# %%
one_malformed = np.full((1, G), tiny.form_reward)
one_malformed[0, 0] = 0.0
for divide in (True, False):
    advantage = grpo.advantages(one_malformed, scale_by_std=divide)[0, :2]
    print(
        f"divided by the deviation: {divide!s:5}  malformed",
        "{:+.3f}, each of the others {:+.3f}".format(*advantage),
    )

# %% [markdown]
# The division takes out the size of the reward. What was meant as a tenth
# pushes with $-3.87$, as hard as one failure among fifteen successes. Without
# the division it stays a tenth. So "paid for nothing but being right" is not
# quite what GRPO does here; notebook 05 has a run with `form_reward=0`.
#
# ### Check: the code against the formula
#
# The left side from the code's own loss and its gradient by each
# log-probability, the right side from the formula. And the slope of
# $2\arcsin\sqrt{p}$, by finite differences.

# %%
from types import SimpleNamespace

on_policy = dataclasses.replace(tiny, norm="token", kl=0.0)
zero = np.zeros((G, 1))  # each completion has one token


def total_loss(logprobs, batch):
    return grpo.surrogate(logprobs, zero, None, batch, on_policy)[0]


# %%
for k in solved:
    batch = SimpleNamespace(
        mask=zero == 0,
        logprobs=zero - 2,
        weights=None,
        advantages=scaled[k - 1],
    )
    slope = -jax.grad(total_loss)(jnp.array(zero - 2), batch)[:, 0] / G
    root = np.sqrt(k / G * (1 - k / G))
    contrast = np.where(np.arange(G) < k, root / k, -root / (G - k))
    np.testing.assert_allclose(slope, contrast, rtol=1e-5)
assert (grpo.advantages(all_alike) == 0).all()
hill = np.gradient(2 * np.arcsin(np.sqrt(rates)), rates)[1:-1]
climbed = np.sqrt(rates * (1 - rates))[1:-1]
np.testing.assert_allclose(hill * climbed, 1, rtol=0.02)
assert np.isclose(grpo.advantages(one_malformed)[0, 0], -np.sqrt(G - 1))

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
# The exponent is smallest ($2/\beta$) at one half and grows without bound
# towards 0 and 1. Start at $p_0 = p_\text{ref}$ and iterate. If the leash
# moves along, so that each step is held near the *previous* policy, as by a
# clip, then $p_\text{ref}$ becomes $p_{n-1}$ (dashed).


# %%
def next_p(p, p_ref, beta):
    """The success rate after one step to the optimum."""
    gap = 1 / (beta * np.sqrt(p * (1 - p)))
    return 1 / (1 + (1 - p_ref) / p_ref * np.exp(-gap))


# %%
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
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
fine = np.concatenate([rates, 1 - np.geomspace(0.02, 1e-4, 60)])
axes[0].plot(fine, fine, ":k", label="no change")
for beta, color in zip(
    (0.7, 2.0, 4.0, 8.0), "C9 C0 C1 C4".split(), strict=True
):
    look = dict(color=color, label=f"β = {beta:g}")
    axes[0].plot(fine, next_p(fine, 0.1, beta), **look)
    axes[1].plot(iterate(0.1, beta), "o-", ms=3, **look)
    axes[1].plot(iterate(0.1, beta, mirror=True), "--", color=color)
axes[1].axhline(0.1, ls=":", color="k", label="base")
axes[0].set(
    title="one step, base at p = 0.1", xlabel="p before", ylabel="p after"
)
axes[1].set(title="step after step", xlabel="step", ylabel="p")
for axis in axes:
    axis.legend(
        fontsize=8,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        frameon=False,
    )
plt.show()


# %%
def crossings(beta, p_ref=0.1):
    """Where a step changes nothing, from below and from above."""
    grid = 1 / (1 + np.exp(-np.linspace(-8, 14, 400_001)))
    sign = np.sign(next_p(grid, p_ref, beta) - grid)
    return grid[:-1][np.diff(sign) != 0]


for beta in (0.7, 0.8, 2.0, 4.0, 8.0):
    print(
        f"β = {beta:3}  crossings",
        crossings(beta).round(4),
        f" from 0.1 it ends at {iterate(0.1, beta, 500)[-1]:.4f}",
    )

# %% [markdown]
# A coloured curve crosses the dotted diagonal *twice*. At the lower crossing
# success stays: it lies above the base's rate, the step amplifies what the
# base can do, and a weaker leash (small β) amplifies more. The upper crossing
# is unstable (it hides in the corner: 0.9957 for β = 2): a policy that is
# above it runs away to 1. With a weak leash the first step from 0.1 already
# leaps over it, and β = 0.7 ends at 1. If the leash moves along, success goes
# all the way to 1 for every β. From $p = 0$ neither can start: the base
# decides.
#
# Mind two idealisations: endless groups, and no ε added to the deviation.
# They make $p = 0.001$ look like the easiest start of all, since the exponent
# is so large there. But of groups of 16, 98 in 100 would see no success and
# give no gradient at all.
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


# %%
climb = jax.jit(jax.grad(held_back))
for beta in (2.0, 4.0):
    pi = ref = jnp.array(policy)
    for wanted in iterate(0.1, beta, steps=3)[1:]:
        theta = jnp.log(pi)
        for _ in range(1500):
            theta = theta + 0.5 * climb(theta, pi, ref, beta)
        pi = jax.nn.softmax(theta)
        assert abs(float(pi[0]) - wanted) < 2e-3

# %% [markdown]
# And where it ends: at the lower crossing from below and from between the
# two, at 1 from above the upper one, and at 1 for a weak leash.

# %%
for beta in (2.0, 4.0, 8.0):
    low, high = crossings(beta)
    between = 0.5 * (low + high)
    for start, end in ((0.1, low), (between, low), (high + 1e-4, 1)):
        p = start
        for _ in range(500):
            p = min(next_p(p, 0.1, beta), 1 - 1e-9)
        assert abs(p - end) < 1e-3, (beta, start, p)
assert abs(crossings(2.0)[1] - 0.9957) < 1e-4
assert iterate(0.1, 0.7, 500)[-1] > 1 - 1e-6
assert iterate(0.1, 8.0, 200, mirror=True)[-1] > 0.99

# %% [markdown]
# ## 7. A real batch, frozen
#
# Now the tiny base model writes, whatever the preset is: 8 puzzles, 16
# completions each. This section happens on this one batch. It compares
# gradients, so it asks for multiplications in full float32, which an
# accelerator would otherwise round to bfloat16.

# %%
from aha_lib.loop import to_batch
from aha_lib.model import weights
from aha_lib.tasks.rollout import Policy, rollout, score, training_puzzles
from aha_lib.tasks.task import Countdown

jax.config.update("jax_default_matmul_precision", "float32")
model, tokenizer, _ = weights.load("tiny", mesh=mesh)
short = dataclasses.replace(tiny, prompts=8, seed=4, completion_len=96)
task = Countdown.from_settings(short)
policy = Policy(model, tokenizer, task, short)
puzzles, key = training_puzzles(task, short, 1), jax.random.key(4)
out = rollout(policy, puzzles, key, group=G, temperature=1.0)
paid = score(task, out, G)
frozen = to_batch(out, paid, short)
is_right = (paid == 1).reshape(-1)
print("right in each group of", G, ":", (paid == 1).sum(1))
print(f"tokens a completion: {frozen.mask.sum(1).mean():.1f}")

# %% [markdown]
# First the sampler's log-probabilities against the trainer's. They are
# computed by two different programs (a cache, token by token; whole rows at
# once), and GRPO's ratio silently assumes that they agree. Where they do not
# (a bfloat16 sampler, another inference engine), `importance_cap` weights
# tokens by $\min(\pi_\text{trainer}/\pi_\text{sampler}, C)$.

# %%
from flax import nnx

graph, params = nnx.split(model)
again = grpo.rescore(
    graph, params, frozen, dataclasses.replace(short, importance_cap=2.0)
)
gap = np.abs(again.logprobs - frozen.logprobs)[frozen.mask]
print(f"largest difference {gap.max():.1e} nats")
assert gap.max() < 1e-3
assert np.abs(again.weights[frozen.mask] - 1).max() < 2e-3

# %% [markdown]
# ### All variants are token weights
#
# By the chain rule, the gradient of any of these losses is
#
# $$-\nabla L = \sum_t w_t\,\nabla \log \pi(y_t), \qquad
# w_t = -\frac{\partial L}{\partial \log \pi(y_t)}$$
#
# The model's part, $\nabla \log \pi$, is the same for all. So a variant *is*
# its table of weights $w$, one number per token. What each paper prescribes,
# what `presets.VARIANTS` has, and why where the two differ:
#
# - **GRPO** ([2402.03300](https://arxiv.org/abs/2402.03300)): the mean over
#   each sequence, the group's deviation, a clip, KL 0.04. Here: the same,
#   clip 0.2; the paper does not print its clip.
# - **Dr. GRPO** ([2503.20783](https://arxiv.org/abs/2503.20783)): the sum
#   over the generation budget, no deviation. Here: the same; the budget is
#   B · `completion_len`.
# - **DAPO** ([2503.14476](https://arxiv.org/abs/2503.14476)): the mean over
#   each group's tokens; clip 0.2, 0.28; new draws until 0 < right < G in all
#   groups; a penalty for overlong answers. Here: the same, with 8 more draws
#   at most, because a run has to end; the penalty falls on the last 24
#   tokens, the paper's 4,096 of 20,480 to scale.
# - **RLOO** ([2402.14740](https://arxiv.org/abs/2402.14740)): REINFORCE on
#   whole answers, the others' mean as baseline, no ratio, no clip, KL in the
#   reward. Here: the same without KL, to compare baselines, not leashes.
# - **GSPO** ([2507.18071](https://arxiv.org/abs/2507.18071)): a ratio for
#   the whole sequence, clip 3e-4, 4e-4. Here: clip 0.09, 0.12, for short
#   answers (see below).
# - **CISPO** ([2506.13585](https://arxiv.org/abs/2506.13585)): the ratio
#   bounded above only, its gradient stopped; the mean over each group's
#   tokens. Here: a ratio up to 5; the paper prints no bound, and ScaleRL
#   ([2510.13786](https://arxiv.org/abs/2510.13786)) uses 4 to 8.
# - **Kimi k1.5** ([2501.12599](https://arxiv.org/abs/2501.12599)): the
#   squared distance to mirror descent's optimum, and a reward for length.
#   Here: τ 0.1, the length's reward × 0.1; the paper prints neither weight.
#
# As functions:


# %%
def variant(name, **changes):
    """The frozen batch as a variant sees it, and its settings."""
    s = dataclasses.replace(short, **VARIANTS[name] | changes)
    batch = to_batch(out, paid, s)
    counts_as = objectives.token_weights(batch.mask, s.norm, s.group)
    return batch._replace(weights=counts_as), s


# %%
def token_slopes(name, logprobs, **changes):
    """Loss, the weights w [B, T], and the share of clipped tokens."""
    batch, s = variant(name, **changes)

    def mean(logprobs):
        value, sums = grpo.surrogate(
            logprobs, 0 * logprobs, base_logs, batch, s
        )
        share = sums["clip_fraction"] / sums["tokens"]
        return value / batch.mask.sum(), share

    (value, share), slope = jax.value_and_grad(mean, has_aux=True)(logprobs)
    return float(value), -slope, float(share)


# %% [markdown]
# And the model's part, once and for all: a vector-Jacobian product from token
# weights to a gradient of all 0.6 million parameters, as one long vector.


# %%
@jax.jit
def logs_with(params, batch):
    """Log-probabilities [B, T] of a batch's completions."""
    model = nnx.merge(graph, params)
    return grpo.completion_logprobs(model, batch, 1.0)[0]


@jax.jit
def gradient_with(params, batch, w):
    """The sum of weights times the gradients of log-probabilities."""
    pull_back = jax.vjp(lambda p: logs_with(p, batch), params)[1]
    (tree,) = pull_back(w)
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def logprobs_of(params):
    return logs_with(params, frozen)


def to_gradient(params, w):
    return gradient_with(params, frozen, w)


# %%
base_logs = logprobs_of(params)  # for the KL term of GRPO

# %% [markdown]
# We look twice: **on policy**, before any update, when all ratios are 1; and
# **stale**, after four updates on this same batch (GRPO's μ, `updates=4`).

# %%
four = dataclasses.replace(short, updates=4, warmup=0, micro_batch=64)
copy = jax.tree.map(jnp.copy, params)
state = grpo.TrainState(copy, grpo.optimizer(four).init(params))
state, metrics = grpo.train_step(graph, state, None, frozen, four)
models = {"on policy": params, "stale": state.params}
logs = {when: logprobs_of(each) for when, each in models.items()}
drift_of = (np.asarray(logs["stale"]) - frozen.logprobs) * frozen.mask
print(
    "stale ratios: 1st, 50th and 99th percentile",
    np.exp(np.percentile(drift_of[frozen.mask], (1, 50, 99))).round(2),
)
print("clipped over the four updates:", round(metrics["clip_fraction"], 3))

# %% [markdown]
# Why not GSPO's own clip? Its ratio is the exponential of a *mean* of
# log-ratios over the answer. Over thousands of tokens that mean is tiny; over
# fifteen it is not, and a clip made for the one silences the other:

# %%
whole = drift_of.sum(1) / frozen.mask.sum(1)
print(f"mean log-ratio of an answer: spread {whole.std():.3f}")
for low, high in ((3e-4, 4e-4), (0.03, 0.04), (0.09, 0.12)):
    share = token_slopes("gspo", logs["stale"], clip_low=low, clip_high=high)[
        2
    ]
    print(f"clip {low:g}, {high:g}: {share:.0%} of the tokens silenced")

# %%
names, results, vectors = list(VARIANTS), {}, {}
for when, each in models.items():
    for name in names:
        value, w, share = token_slopes(name, logs[when])
        vectors[when, name] = np.asarray(to_gradient(each, w))
        results[when, name] = value, w, share
print("          on policy: loss, gradient norm   stale: the same, clipped")
for name in names:
    cells = [
        (results[when, name][0], np.linalg.norm(vectors[when, name]))
        for when in models
    ]
    print(
        f"{name:8}  {cells[0][0]:+10.4f} {cells[0][1]:10.4f}"
        f"          {cells[1][0]:+10.4f} {cells[1][1]:10.4f}"
        f" {results['stale', name][2]:8.3f}"
    )

# %% [markdown]
# The losses themselves tell next to nothing about the model. On policy, with
# the mean over each sequence, the loss is zero *whatever* the model does,
# since the advantages of a group sum to zero (GRPO, GSPO). With a mean over
# tokens it is $-\sum_i A_i L_i / \sum_i L_i$: how advantage and length go
# together (DAPO, whose penalty makes long answers worse; Dr. GRPO up to a
# factor). Do not watch a GRPO loss fall. And norms differ by large factors,
# which Adam takes out again. So compare directions:


# %%
def cosines(when):
    """Cosine between the gradients of every two variants."""
    rows = np.stack([vectors[when, name] for name in names])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
ticks = dict(
    xticks=range(7), yticks=range(7), xticklabels=names, yticklabels=names
)
for axis, when in zip(axes, models, strict=True):
    image = axis.imshow(cosines(when), vmin=-1, vmax=1, cmap="PuOr")
    axis.set(title=f"gradient cosine, {when}", **ticks)
    axis.tick_params(axis="x", rotation=45)
    for (i, j), c in np.ndenumerate(cosines(when)):
        axis.text(
            j,
            i,
            f"{c:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if abs(c) > 0.7 else "black",
        )
figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
plt.show()

# %% [markdown]
# **On policy** there are few different gradients among the seven. GRPO and
# GSPO are *the same*: a sequence ratio of 1 is a ratio of 1, and at the base
# the KL term is flat. DAPO without its penalty for overlong answers is CISPO;
# Dr. GRPO is RLOO up to a factor, and so is Kimi's without its length reward.
# What is left: over what the mean is taken, the deviation, and what is
# rewarded. The ratios and clips come in only when the batch is **stale**.
#
# ### Check: one gradient or two


# %%
def same(a, b):
    """Are two gradients the same, up to rounding?"""
    return np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)


def first(name, **changes):
    """A variant's gradient on policy, with some flags changed."""
    w = token_slopes(name, logs["on policy"], **changes)[1]
    return np.asarray(to_gradient(params, w))


# %%
assert same(first("grpo"), first("gspo"))
assert same(first("dapo", overlong=0), first("cispo"))
assert same(first("dr_grpo") * G / (G - 1), first("rloo"))
assert same(first("kimi", length_reward=0.0), first("dr_grpo"))
assert not same(first("grpo"), first("cispo"))
assert not same(first("grpo"), first("dr_grpo"))
assert not same(vectors["stale", "grpo"], vectors["stale", "gspo"])
assert not same(
    vectors["stale", "dr_grpo"] * G / (G - 1), vectors["stale", "rloo"]
)

# %% [markdown]
# ### How long does a gradient keep its direction?
#
# One batch and four first steps of Adam are no law. So the same was done for
# several batches, after 1, 2, 4 and 8 updates, at the base and, with Adam's
# averages as a run has them, after ten steps of training
# (`python tests/benchmarks/stale.py`). Lines are means over the batches,
# bands run from the lowest to the highest.

# %%
import json
import pathlib

import aha_lib

folder = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"


def stored(name):
    """A record that a benchmark has left, None if it has not run yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# %%
turned = stored("stale") or []
by_start = {
    start: [row for row in turned if row["start"] == start]
    for start in (0, 10)
}
print("batches:", {start: len(rows) for start, rows in by_start.items()})

# %%
figure, axes = plt.subplots(
    1, 2, figsize=(10, 3.4), sharey=True, layout="constrained"
)
for axis, (start, rows) in zip(axes, by_start.items(), strict=True):
    cosine = np.array([row["cosine"] for row in rows])  # rows, updates, names
    for i, name in enumerate(names if rows else ()):
        updates, values_at = rows[0]["updates"], cosine[:, :, i]
        axis.fill_between(
            updates, values_at.min(0), values_at.max(0), alpha=0.08
        )
        axis.plot(updates, values_at.mean(0), "o-", ms=3, label=name)
    axis.axhline(0, color="black", lw=0.8)
    axis.set(
        title=f"after {start} steps of training",
        xlabel="updates",
        ylim=(-1.05, 1.05),
    )
axes[0].set_ylabel("cosine with the first gradient")
if turned:
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %%
print("updates, clipped on average:", *(f"{name:>8}" for name in names))
for start, rows in by_start.items():
    for u, shares in enumerate(
        np.mean([r["clipped"] for r in rows], axis=0) if rows else ()
    ):
        print(
            f"step {start:2}, {rows[0]['updates'][u]} updates          ",
            *(f"{share:8.1%}" for share in shares),
        )

# %% [markdown]
# Two families part, at the base and, a little later, in the course of
# training too. The losses with PPO's clip on each token (GRPO, Dr. GRPO,
# DAPO) lose their first direction within a few updates: tokens that went far
# the way they were pushed are silent, and of the rest many went the other way
# and are being pulled back. The clip is a brake. RLOO and CISPO silence
# nobody and go on; Kimi's squared term turns it more slowly, GSPO's clip acts
# on whole answers. The number printed above says on how many batches this
# rests, all of this one model.
#
# ### Check: two families
# On every batch, after four updates: each loss with the clip on tokens is
# further from where it began than each one that silences nobody.

# %%
for row in turned:
    after_four = dict(zip(row["variants"], row["cosine"][2], strict=True))
    with_clip = [after_four[n] for n in ("grpo", "dr_grpo", "dapo")]
    without = [after_four[n] for n in ("rloo", "cispo", "kimi")]
    assert max(with_clip) < min(without), (row["seed"], row["start"])

# %% [markdown]
# ### Check: the training step's own gradient
#
# The same gradient once more from the training step's own code, and its
# length from finite differences of the loss along it.

# %%
zeros = jax.tree.map(jnp.zeros_like, params)
batch, s = variant("grpo")
count = float(batch.mask.sum())
policy_and_base = grpo.Weights(params, reference=params)
terms = grpo.LossSettings.of(s)
tree, _ = grpo.accumulate(graph, policy_and_base, zeros, batch, terms)
ours = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
length = np.linalg.norm(ours)
assert np.linalg.norm(ours + first("grpo")) < 1e-3 * length

# %%
leaves, shape = jax.tree.flatten(params)
cuts = np.cumsum([x.size for x in leaves])[:-1]
parts = np.split(ours / length * 0.02, cuts)
moves = [d.reshape(x.shape) for x, d in zip(leaves, parts, strict=True)]
sides = [
    jax.tree.unflatten(shape, list(map(op, leaves, moves)))
    for op in (np.add, np.subtract)
]
up, down = (token_slopes("grpo", logprobs_of(side))[0] for side in sides)
slope = (up - down) / 0.04
print(f"slope along the gradient: {slope:.4f}, its norm {length:.4f}")
assert abs(slope / length - 1) < 0.05

# %% [markdown]
# ### The rows that the step reads
#
# This gradient came from one row per answer, with its prompt in front and
# padding behind. The training step reads less: answers lie side by side. A
# row has a prompt once (black), then several of its answers (a colour each);
# an answer sees its prompt and itself, and not its neighbours. Without a KL
# term, answers that have no advantage are left out, too.

# %%
from matplotlib.colors import ListedColormap

packed = list(grpo.micro_batches(batch, 8, all_rows=s.kl > 0))
segments = np.concatenate([micro.layout.segments for micro in packed])
prefixes = np.concatenate([micro.layout.prefixes for micro in packed])
used = (segments > 0).any(axis=1)
shade = np.where(segments == prefixes, 0, 1 + segments % 7.0)
shade[segments == 0] = np.nan
colours = ListedColormap(["black", *plt.get_cmap("Set2").colors[:7]])
plt.figure(figsize=(9, 3), layout="constrained")
plt.imshow(
    shade[used],
    aspect="auto",
    cmap=colours,
    vmin=0,
    vmax=7,
    interpolation="none",
)
plt.gca().set(xlabel="slot", ylabel="row")
plt.show()
alone = len(batch.mask) * (batch.prompts.shape[1] + batch.mask.shape[1])
print(f"slots read: {segments.size:,}, with a row per answer {alone:,}")

# %% [markdown]
# ### Check: packing does not show
# The same gradient, summed over the packed rows.

# %%
tree = jax.tree.map(jnp.zeros_like, params)
for micro in packed:
    micro = micro._replace(total=count)
    tree, _ = grpo.accumulate(graph, policy_and_base, tree, micro, terms)
both = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
assert same(both, ours) and segments.size < alone

# %% [markdown]
# ### The weights on the text
#
# One right and one wrong answer to the same puzzle, token by token. Blue is
# pulled up, red pushed down; each variant in units of its own largest
# weight in the two, on the stale batch.

# %%
lengths = frozen.mask.sum(1)


def longest(group, hit, most=34):
    """Of a group's answers that are right (or not), the longest shown."""
    rows = [
        i
        for i in range(group * G, group * G + G)
        if is_right[i] == hit and lengths[i] <= most
    ]
    return max(rows, key=lambda i: lengths[i], default=None)


# %%
pairs = [(longest(g, True), longest(g, False)) for g in range(short.prompts)]
pair = max(
    (both for both in pairs if None not in both),
    key=lambda both: lengths[list(both)].sum(),
)
for i in pair:
    print("right:" if is_right[i] else "wrong:", out.texts[i])


# %%
def painted(axis, row):
    """Every variant's weights on the tokens of one completion."""
    words = [
        tokenizer.decode([i]) or "end"
        for i in frozen.completions[row, : lengths[row]]
    ]
    w = np.stack([results["stale", name][1] for name in names])
    largest = np.abs(w[:, list(pair)]).max((1, 2))[:, None]
    shade = w[:, row, : lengths[row]] / np.maximum(largest, 1e-12)
    image = axis.imshow(shade, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xticks(
        range(len(words)),
        words,
        fontsize=8,
        rotation=60,
        ha="left",
        rotation_mode="anchor",
    )
    axis.xaxis.tick_top()
    return image


# %%
figure, axes = plt.subplots(2, 1, figsize=(11, 5.5), layout="constrained")
for axis, row in zip(axes, pair, strict=True):
    image = painted(axis, row)
    axis.set_xlabel("right" if is_right[row] else "wrong", fontsize=10)
figure.colorbar(image, ax=axes, shrink=0.7, label="share of the largest")
plt.show()

# %% [markdown]
# Within a completion nearly all tokens get the same weight: nobody tells the
# model *which* of its tokens was the mistake. Credit comes only from
# averaging over many completions that share the good tokens and differ in
# the bad ones. Pale cells are tokens that a clip has silenced, or whose ratio
# has fallen. GSPO's clip works on whole sequences: a completion is in or out
# as one. RLOO knows no ratio: its weights are those of the first update.

# %%
for row in pair:
    for name in ("gspo", "rloo"):
        w = np.asarray(results["stale", name][1])[row, : lengths[row]]
        assert np.ptp(w) <= 1e-4 * max(np.abs(w).max(), 1e-9)
for row, sign in zip(pair, (1, -1), strict=True):
    w = np.asarray(results["on policy", "grpo"][1])[row, : lengths[row]]
    assert (sign * w > 0).all()

# %% [markdown]
# ## 8. One step of the preset's model
#
# Now the preset's model, with all that a run of it has: weights spread over
# all devices, adapters where the setting `lora` is their rank, a copy of the
# base where there is a KL term (with adapters the base is still there under
# them), and the dtype and precision of a run. Only the puzzles are fewer and
# the answers shorter. First the model, without any copy on the host:

# %%
from aha_lib.loop import reference_params
from aha_lib.model import lora

jax.config.update("jax_default_matmul_precision", None)
dtype, param_dtype = devices.dtypes(settings.dtype)
model, tokenizer, config = weights.load(
    settings.model,
    mesh=mesh,
    dtype=dtype,
    param_dtype=dtype if settings.lora else param_dtype,
)
if settings.lora:
    lora.add(model, settings.lora, rngs=nnx.Rngs(0))
model.remat = settings.remat

# %%
one = dataclasses.replace(
    settings,
    prompts=min(settings.prompts, 4),
    completion_len=min(settings.completion_len, 128),
    objective="clip",
    norm="token",
    entropy_bonus=0.0,
    overlong=0,
    updates=1,
    warmup=0,
)
reference = reference_params(model, one)
graph, params = nnx.split(model)
trained, rest = grpo.trainable(params, one.lora)
count = sum(x.size for x in jax.tree.leaves(trained))
here = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params)
)
print(f"{config.parameters:,} parameters and {count:,} trained numbers;")
print(f"{here / 2**20:,.1f} MiB of weights on the first device")

# %% [markdown]
# It writes a group for each puzzle. A base may solve nothing at all. Then all
# rewards of a group are equal, its advantages are 0, and a step teaches
# nothing: that is why a run asks for a base that solves something now and
# then. To have a step to look at, every second answer then counts as right.

# %%
task = Countdown.from_settings(one)
policy = Policy(model, tokenizer, task, one)
puzzles, key = training_puzzles(task, one, 1), jax.random.key(8)
out = rollout(policy, puzzles, key, group=one.group, temperature=1.0)
paid = score(task, out, one.group)
print("right in each group of", one.group, ":", (paid == 1).sum(1))
print("groups with signal:", grpo.has_signal(paid))
if not grpo.has_signal(paid).any():
    print("None has signal: from here on every second answer is right.")
    paid = np.indices(paid.shape)[1] % 2.0
batch = to_batch(out, paid, one)
print("the first one's end:", repr(out.texts[0][-60:]))

# %% [markdown]
# The sampler's log-probabilities against the trainer's again. In float32
# they agree to a thousandth. In bfloat16, with 8 bits for a number, single
# tokens differ by a tenth of a nat or more, and what matters is the mean.

# %%
capped = dataclasses.replace(one, importance_cap=2.0)
again = grpo.rescore(graph, params, batch, capped)
gap = np.abs(again.logprobs - batch.logprobs)[batch.mask]
print(f"{dtype}: mean difference {gap.mean():.1e} nats, max {gap.max():.1e}")
assert gap.mean() < 0.05

# %% [markdown]
# ### Loss and update in 25 lines
#
# This is the objective from the top of the page, written down once more, and
# one step of AdamW on it. It reads one row per answer.


# %%
def logs_of(params, batch):
    """Log-probabilities [B, T] of the completions' tokens."""
    model = nnx.merge(graph, params)
    batch = devices.shard_batch(batch)
    rows = grpo.join_rows(*batch[:4])
    hidden = model.hidden(*rows)[:, batch.prompts.shape[1] - 1 : -1]
    T = one.temperature
    return model.logprobs(hidden, batch.completions, temperature=T)[0]


def loss(trained, rest, base_logs, batch):
    """The negated objective: a mean over all tokens that were written."""
    logs = logs_of(nnx.merge_state(trained, rest), batch)
    ratio = jnp.exp(logs - batch.logprobs)
    inside = jnp.clip(ratio, 1 - one.clip_low, 1 + one.clip_high)
    A = batch.advantages[:, None]
    value = jnp.minimum(ratio * A, inside * A)
    x = base_logs - logs
    value = value - one.kl * (jnp.expm1(x) - x)
    return -jnp.where(batch.mask, value, 0).sum() / batch.mask.sum()


@jax.jit
def step(trained, rest, base_logs, batch):
    """The gradient, and what one step of AdamW adds to the weights."""
    grads = jax.grad(loss)(trained, rest, base_logs, batch)
    adam = grpo.optimizer(one)
    return grads, adam.update(grads, adam.init(trained), trained)[0]


# %%
before = jax.jit(logs_of)(params, batch)  # the base's too: no step was made
by_hand, change = step(trained, rest, before, batch)

# %% [markdown]
# ### Check: the package's gradient and update
#
# The package packs answers side by side, in micro-batches, and reads its
# reference where there is a KL term. Rounding differs, above all in bfloat16.
# And Adam's first step is $\pm$ the learning rate for almost every weight, so
# that a weight whose gradient is nothing but rounding goes either way. So
# directions are compared.


# %%
def dot(a, b):
    """The sum of the products of two trees' numbers."""
    products = jax.tree.map(lambda x, y: (x * y).sum(), a, b)
    return sum(jax.tree.leaves(products))


@jax.jit
def compare(a, b):
    """Cosine of two trees, and the ratio of their lengths."""
    lengths = jnp.sqrt(dot(a, a)), jnp.sqrt(dot(b, b))
    return dot(a, b) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]


# %%
gradient, _ = grpo.gradient(graph, params, reference, batch, one)
cosine, ratio = compare(by_hand, gradient)
print(f"gradients: cosine {cosine:.4f}, ratio of lengths {ratio:.3f}")
assert cosine > 0.98 and abs(ratio - 1) < 0.05
del by_hand, gradient  # each as large as what is trained

# %%
copy = jax.tree.map(jnp.copy, params)
state = grpo.TrainState(copy, grpo.optimizer(one).init(trained))
state = jax.device_put(state, devices.shardings(state, mesh))
del copy  # the step is given its arrays
state, metrics = grpo.train_step(graph, state, reference, batch, one)
new, _ = grpo.trainable(state.params, one.lora)
cosine, _ = compare(change, jax.tree.map(jnp.subtract, new, trained))
print(f"updates: cosine {cosine:.4f}")
assert cosine > 0.9 and metrics["skipped_updates"] == 0
assert metrics["clip_fraction"] < 0.05  # of rounding at most
del change, new

# %% [markdown]
# What did one step do? Better answers than their group's mean should have
# become likelier, the others less likely, at a token by so much:

# %%
moved = np.asarray(jax.jit(logs_of)(state.params, batch) - before)
better = batch.advantages[:, None] > 0
for name, rows in (("better", better), ("worse", ~better)):
    mean = moved[batch.mask & rows].mean()
    print(f"answers {name} than the mean: {mean:+.1e} nats a token")
weighted = (moved * batch.advantages[:, None])[batch.mask].mean()
print(f"weighted by the advantage: {weighted:+.1e}")
assert weighted > 0 or dtype != jnp.float32
del state, reference, params, trained, rest, model, policy

# %% [markdown]
# With a learning rate of 1e-6, as for Gemma's whole weights, one step is
# hardly seen, in bfloat16 perhaps not at all: the neighbours of 0.02 there
# are 0.0001 apart. The parameters are float32 for that reason: in them steps
# add up until the rounded weights move. With adapters, and with the tiny
# preset, the rate is a hundred times as high or more.
#
# ## 9. Paying for length, on purpose
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
    [0, -0.5, -1]
]
three = np.array([[10, 29, 48]])
assert grpo.length_reward(three, three > 0).tolist() == [[0.5, 0, -0.5]]
assert grpo.length_reward(three, three < 0).tolist() == [[0, 0, -0.5]]

# %% [markdown]
# In Countdown length *is* search. A reward for brevity works against the aha
# that the next notebook is about; it is here to be understood and tried.
#
# ## 10. Does it matter? Short runs, paired seeds
#
# The frozen batch says how the variants differ at one moment, not where they
# end. These are short runs of the tiny model, all with the same learning rate
# and two updates a batch, measured on 1,024 held-out puzzles. A seed gives
# every variant the same puzzles and random keys. They were made by
# `python tests/benchmarks/variants.py variants` and are only drawn here,
# where it has been run.

# %%
record = stored("variants") or {"about": {}, "runs": []}
runs = record["runs"]
print(", ".join(f"{key} {value}" for key, value in record["about"].items()))
cases = [name for name in names if any(r["case"] == name for r in runs)]
seeds = [
    seed
    for seed in sorted({r["seed"] for r in runs})
    if all(
        any((r["case"], r["seed"]) == (name, seed) for r in runs)
        for name in cases
    )
]
at = {(r["case"], r["seed"]): r for r in runs}
ends = np.array(
    [
        [at[name, seed]["heldout"]["accuracy"][1] for name in cases]
        for seed in seeds
    ]
)  # seeds, variants
print(f"{len(cases)} variants, {len(seeds)} paired seeds")

# %% [markdown]
# With seven variants there are 21 pairs. Call a pair different when one is
# ahead on all of three seeds without overlap, and chance alone gives about
# two such pairs. So ask it the other way round: how far apart would the best
# and the worst of these means be, if the names meant nothing? Shuffle the
# names within each seed, many times, and take a high percentile of that
# range. Only a pair that is further apart is called different (Tukey's
# procedure, by permutation).
#
# A variant that differs from all others widens the yardstick for the rest. So
# there is a second look, without it. Each look errs in one set of comparisons
# of forty, both together in one of twenty.


# %%
def least_difference(ends, level=0.975, shuffles=10_000):
    """The range of means that shuffled names seldom exceed."""
    shuffled = np.random.default_rng(0).permuted(
        np.repeat(ends[None], shuffles, axis=0), axis=2
    )
    return np.quantile(np.ptp(shuffled.mean(1), axis=1), level)


# %%
def look(which):
    """The least difference, and the pairs of these variants beyond it."""
    some, mean = ends[:, which], ends.mean(0)
    limit = least_difference(some)
    apart = [
        (cases[a], cases[b])
        for a in which
        for b in which
        if mean[a] - mean[b] > limit
    ]
    print(
        f"{len(which)} variants: means differ if {limit:.3f} apart:",
        ", ".join(f"{a} > {b}" for a, b in apart) or "no difference is shown",
    )
    return limit, apart


# %%
enough = len(seeds) >= 5 and len(cases) > 1
every, limit = list(range(len(cases))), 0
if enough:
    limit, apart = look(every)
    rest = [
        i
        for i in every
        if sum(cases[i] in pair for pair in apart) < len(cases) - 1
    ]
    if len(rest) < len(cases):
        limit, apart = look(rest)
else:
    print("fewer than five paired seeds: nothing can be said yet")


# %%
def dots():
    """A dot for each seed, and for each variant its mean and half `limit`."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for i in every:
        axis.plot(ends[:, i], np.full(len(seeds), i), "o", color="0.6", ms=4)
        axis.errorbar(
            ends[:, i].mean(),
            i,
            xerr=limit / 2,
            fmt="|",
            color="C0",
            ms=12,
            capsize=4,
        )
    axis.set_yticks(range(len(cases)), cases)
    axis.invert_yaxis()
    axis.set(
        xlabel="held-out accuracy after the run",
        title="dots: seeds. Means differ where bars do not overlap",
    )
    axis.grid(axis="x", alpha=0.3)
    plt.show()


if enough:
    dots()

# %%
print("variant   before   after: mean, sd     puzzles drawn    clipped")
for i, name in enumerate(cases if seeds else ()):
    of = [at[name, seed] for seed in seeds]
    before = np.mean([r["heldout"]["accuracy"][0] for r in of])
    drawn = np.sum([r["draws"] for r in of]) * record["about"]["prompts"]
    clipped = np.mean([r["clip_fraction"] for r in of])
    print(
        f"{name:8} {before:8.3f} {ends[:, i].mean():12.3f}"
        f" {ends[:, i].std(ddof=1) if enough else 0:7.3f}"
        f" {drawn / len(seeds):11.0f} a run {clipped:10.1%}"
    )

# %% [markdown]
# RLOO stands apart, below all others. Does it not learn? Look at its training
# accuracy, step by step:


# %%
def curves(axis, name):
    """Training accuracy of each seed."""
    for run in (at[name, seed] for seed in seeds):
        axis.plot(run["train_accuracy"], color="C0", lw=0.8, alpha=0.6)
    axis.set(title=name, xlabel="step", ylim=(0, 1))
    axis.grid(alpha=0.3)


if enough:
    figure, axes = plt.subplots(
        1, 3, figsize=(9, 2.6), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, ("rloo", "cispo", "grpo"), strict=True):
        curves(axis, name)
    plt.show()

# %% [markdown]
# It learns as fast as any, and then falls apart. It is the one variant here
# whose loss has nothing that holds it back, neither a clip nor a KL term, and
# its advantages are not divided by anything, so that the learning rate, the
# same for all and tuned for none, may simply be too high for it. That is a
# guess: these runs do not take the causes apart.
#
# Of the others GRPO and DAPO end above CISPO. No other pair is shown to
# differ, whatever the order of the dots. And mind what is *not* equal: DAPO
# draws again until its groups have signal, so it has seen three times as many
# puzzles as the others for the same number of updates.
#
# ### Check: what was said
# If the runs are made anew, the sentences above may no longer hold.

# %%
if enough and len(cases) == 7:
    best = {
        name: max(
            np.mean([at[name, seed]["train_accuracy"][i] for seed in seeds])
            for i in range(30)
        )
        for name in cases
    }
    last = {
        name: np.mean(
            [at[name, seed]["train_accuracy"][-5:] for seed in seeds]
        )
        for name in cases
    }
    print({name: f"{best[name]:.2f}, then {last[name]:.2f}" for name in cases})
    assert best["rloo"] > 0.9 and last["rloo"] < best["rloo"] - 0.3
    assert all(
        last[name] > best[name] - 0.1
        for name in cases
        if name not in ("rloo", "cispo")
    )
    assert set(cases) - {cases[i] for i in rest} == {"rloo"}
    assert set(apart) == {("grpo", "cispo"), ("dapo", "cispo")}

# %% [markdown]
# ### Check: the procedure itself
#
# On numbers of which we know that no name matters, it may find a difference
# in about one set of twenty; and it has to find one that is there.

# %%
fake = np.random.default_rng(1).normal(size=(200, 8, 7))
found = [np.ptp(x.mean(0)) > least_difference(x, 0.95, 400) for x in fake]
print(f"a difference where there is none: {np.mean(found):.1%} of 200 sets")
assert 0.005 < np.mean(found) < 0.12
fake[0, :, 2] += 5
assert np.ptp(fake[0].mean(0)) > least_difference(fake[0])

# %% [markdown]
# ## Exercises
#
# **1.** In section 5, which puzzles would get the most weight if advantages
# were divided by the *variance* instead of the standard deviation? Work it
# out, then try it on `groups`.
#
# <details><summary>Answer</summary>
#
# The weight is $p(1-p)/(p(1-p)) = 1$ for every group that has signal, at
# any $p$. In code, the weight of a group is the sum of its positive
# advantages over $G$: with
# `by_variance = grpo.advantages(groups, scale_by_std=False) /
# groups.var(1, keepdims=True)`, `by_variance.clip(0).sum(1) / G` is 1
# fifteen times. A puzzle solved once in 16 tries would pull as hard as one at
# one half, and with it the luck of that one try.
#
# </details>
#
# **2.** In section 4, let the model have two *right* ways, in 5 and in 40
# tokens, and one wrong way in 10, with probabilities 0.3, 0.3 and 0.4. Which
# of the right ways wins under the sequence mean?
#
# <details><summary>Answer</summary>
#
# The short one: its decision is divided by 5 and pulled eight times harder.
# With `lengths, right = np.array([5, 40, 10]), np.array([1.0, 1, 0])` and
# `pi = np.array([0.3, 0.3, 0.4])` in `drift`, the two end at 0.93 and 0.06
# under the sequence mean, and at 0.49 and 0.49 under the token mean. So the
# same denominator makes right answers shorter and wrong ones longer.
#
# </details>
#
# ## Summary
#
# A GRPO step is: a group per puzzle, its mean as the baseline, one weight
# per token, one gradient. All of this lives in `aha_lib/rl/grpo.py`, each
# variant a function of a few lines with its paper; the flags are fields of
# `presets.Settings`. **Next:** `05_train` takes sixty of these steps.
