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
# **How does a reward become a change of a model's weights?** This notebook
# writes the objective down, programs its loss and one update in 25 lines,
# compares them with the package, and looks at what the update did to text.
#
# GRPO (group-relative policy optimisation) is from DeepSeekMath
# ([2402.03300](https://arxiv.org/abs/2402.03300)). You need from the
# notebooks before: a model gives each token a probability (01), a referee
# pays an answer between 0 and 1 (02), and a sampler writes a *group* of
# answers to one puzzle (03). Words of the field:
# [Glossary](../docs/glossary.md).
#
# ## The objective
#
# The policy $\pi_\text{old}$ writes $G$ answers to a puzzle. Answer $i$ has
# $L_i$ tokens $y_{i1}, y_{i2}, \dots$ and the reward $r_i$. The policy $\pi$
# is the one that is trained. A step maximises
#
# $$\frac{1}{\sum_i L_i} \sum_i \sum_t \Big[
# \min\big(\rho_{it} A_i,\ \mathrm{clip}(\rho_{it}, 1-\varepsilon_\text{low},
# 1+\varepsilon_\text{high})\,A_i\big) - \beta\, k_{it} \Big]$$
#
# $$A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)} \qquad
# \rho_{it} = \frac{\pi(y_{it})}{\pi_\text{old}(y_{it})}$$
#
# - $A_i$ is the **advantage**: how much better the answer is than its group.
#   All tokens of an answer share it.
# - $\rho_{it}$ is the **ratio**: how much likelier the token has become since
#   it was written. The **clip** stops the push on a token that went far.
# - $k_{it}$ estimates the divergence from the base model. Its weight $\beta$
#   is 0 in most presets here.
# - The sums run over all answers of all puzzles. This is a mean over tokens;
#   the paper takes the mean of each answer first (notebook 09).
#
# **Every preset makes one update per batch.** During that update $\pi$ is
# still $\pi_\text{old}$, all ratios are 1 up to rounding, and the clip never
# acts. Section 6 makes more updates, to see the clip act.
#
# ## Where it comes from, in six lines
#
# 1. Wanted: a high expected reward, $J = \mathbb{E}_{y \sim \pi}[r(y)]$.
# 2. $\nabla \pi = \pi\,\nabla \log \pi$, so
#    $\nabla J = \mathbb{E}[r(y)\,\nabla \log \pi(y)]$: a mean over samples.
# 3. $\log \pi(y) = \sum_t \log \pi(y_t)$, so every token of an answer is
#    weighted by the answer's reward.
# 4. $\mathbb{E}[\nabla \log \pi] = 0$, so a constant may be taken off the
#    reward without changing the mean. The group's mean lowers the noise.
# 5. The group's standard deviation divides, so that the advantages of every
#    group have the deviation 1. This changes the objective (section 4).
# 6. $\nabla \rho_t = \nabla \log \pi(y_t)$ where $\rho_t = 1$. So
#    $\sum_t \rho_t A$ has the same gradient, and the ratio accounts for a
#    batch that an older policy wrote.
#
# **Why a ratio for each token?** After an update the batch is from another
# policy. Its exact correction is one weight per answer,
# $\pi(y)/\pi_\text{old}(y)$: the product of the tokens' ratios. A product of
# 500 factors of 1.02 is 20,000, and of 0.98 it is 0.00004, so a few answers
# would drown all others. PPO ([1707.06347](https://arxiv.org/abs/1707.06347))
# takes each token's own ratio. That correction is no longer exact; the clip
# keeps the policy close to the one that wrote, where the error is small.
#
# **Why (r − mean)/std?** The mean turns "paid" into "paid more than the other
# answers to this puzzle": it takes out how easy the puzzle is. The deviation
# raises the weight of puzzles that are seldom solved, or nearly always.
# Sections 3 and 4 show both.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | about 1 |
#
# **You will see**
#
# 1. the loss and the update of 25 lines give the package's gradient;
# 2. the loss itself tells nothing about the model, and need not fall;
# 3. all tokens of an answer get the same advantage, the mistaken one and the
#    others, and yet some move much and others not at all;
# 4. the mean takes noise away, and the deviation sets a puzzle's weight;
# 5. the clip does nothing at the first update, and acts from the second on.
#
# Sections 1, 3 and 4 need no model. Sections 2, 5 and 6 use your preset's.

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
from flax import nnx

from aha_lib.loop import reference_params, to_batch
from aha_lib.model import lora, weights
from aha_lib.presets import SETTINGS
from aha_lib.rl import grpo, objectives
from aha_lib.tasks.rollout import Policy, rollout, score, training_puzzles
from aha_lib.tasks.task import Countdown

# %%
settings = dataclasses.replace(SETTINGS[preset], **overrides)
mesh = devices.make_mesh(tp=settings.tp)
if mesh.size > 1:
    jax.set_mesh(mesh)  # from here on weights and rows are spread over it

# %% [markdown]
# ## 1. Advantages by hand
#
# One puzzle and a group of four answers. The referee of notebook 02 pays 1
# for a right answer, 0.1 for a wrong one that is well-formed, and 0 for a
# malformed one. Look at the signs: which answers are above the mean?

# %%
from aha_lib.tasks.countdown import Puzzle, reward

puzzle = Puzzle((20, 16, 4), 40)
answers = ["( 20 + 16 ) + 4", "( 20 * 4 ) - 16", "( 20 - 16 ) * 4", "twenty"]
tags = [f"<answer> {answer} </answer>" for answer in answers]
r = np.array([reward(tag, puzzle).value for tag in tags])
A = (r - r.mean()) / r.std()
for answer, paid, advantage in zip(answers, r, A, strict=True):
    print(f"{answer:16} reward {paid:.1f}  advantage {advantage:+.2f}")
print("the package:", grpo.advantages(r[None])[0].round(2))

# %% [markdown]
# Only the right answer is above the mean, and the four advantages sum to
# zero. When all answers of a group are paid the same, the deviation is 0. The
# package then gives the advantage 0, and the group teaches nothing:

# %%
for name, paid in (("all wrong", 0.1), ("all right", 1.0)):
    print(name, grpo.advantages(np.full((1, 4), paid))[0])

# %% [markdown]
# ## 2. A loss and an update in 25 lines
#
# Now your preset's model, with all that a run has: weights spread over the
# devices, adapters if the setting `lora` gives them a rank, a copy of the
# base if there is a KL term, and the dtype of a run. Only the puzzles are
# fewer and the answers shorter.

# %%
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
print(f"{config.parameters:,} parameters; {count:,} numbers are trained")

# %% [markdown]
# The model writes a group for each puzzle. A base that solves nothing gets
# equal rewards, advantages of 0, and a step that teaches nothing. To have a
# step to look at, in that case every second answer counts as right.

# %%
task = Countdown.from_settings(one)
policy = Policy(model, tokenizer, task, one)
puzzles, key = training_puzzles(task, one, 1), jax.random.key(8)
out = rollout(policy, puzzles, key, group=one.group, temperature=1.0)
paid = score(task, out, one.group)
print("right in each group of", one.group, ":", (paid == 1).sum(1))
if not grpo.has_signal(paid).any():
    print("None has signal: from here on every second answer is right.")
    paid = np.indices(paid.shape)[1] % 2.0
batch = to_batch(out, paid, one)
lengths = batch.mask.sum(1)
print("tokens in an answer:", lengths.min(), "to", lengths.max())

# %% [markdown]
# `batch` holds prompts, completions, `mask` (True at tokens that were
# written), their log-probabilities as the sampler saw them, and the
# advantages. Below is the objective from the top of the page, term by term,
# and one step of AdamW on it. The estimate $k$ is $e^x - x - 1$ with
# $x = \log \pi_\text{ref} - \log \pi$: never negative, and 0 at the base.


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
    """Loss, gradient, and what a step of AdamW adds to the weights."""
    value, grads = jax.value_and_grad(loss)(trained, rest, base_logs, batch)
    adam = grpo.optimizer(one)
    return value, grads, adam.update(grads, adam.init(trained), trained)[0]


# %%
read = jax.jit(logs_of)
before = read(params, batch)  # the base's too: no step was made
value, by_hand, change = step(trained, rest, before, batch)
gap = np.abs(np.asarray(before) - batch.logprobs)[batch.mask]
print(f"sampler and trainer differ by {gap.mean():.1e} nats ({dtype})")

# %% [markdown]
# The sampler (a cache, token by token) and the trainer (whole rows) are two
# programs. The ratio takes for granted that they agree. In float32 they
# agree to about a millionth of a nat; in bfloat16 single tokens differ by up
# to a tenth.
#
# ### The loss tells nothing about the model
#
# At ratio 1 the clip does nothing and the KL term is 0. What is left of the
# loss is $-\sum_i A_i L_i / \sum_i L_i$: how advantage and length go
# together. No probability of the model is in it. Compare the two numbers.

# %%
of_lengths = -(batch.advantages * lengths).sum() / lengths.sum()
print(f"loss {value:+.5f}, from advantages and lengths {of_lengths:+.5f}")

# %% [markdown]
# ### Check: the loss before an update
#
# A negative loss means that better answers are longer, a positive one that
# they are shorter. (With the mean over each answer first, as in the paper, it
# would be 0.) So a GRPO loss that does not fall is no bad sign: watch the
# reward.

# %%
assert abs(value - of_lengths) < (1e-4 if dtype == jnp.float32 else 0.02)

# %% [markdown]
# ### Check: the package's gradient and update
#
# The package reads the same batch in another way: answers lie side by side in
# packed rows, in micro-batches (notebook 09 draws them). So rounding differs,
# above all in bfloat16. Adam's first step is $\pm$ the learning rate for
# almost every weight, whatever its gradient's size; where the gradient is
# rounding, so is the sign. So we compare directions: a cosine of 1 is the
# same direction.


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
clipped = [metrics["clip_fraction"]]
print(f"updates: cosine {cosine:.4f}, clipped tokens: {clipped[0]:.2%}")
assert cosine > 0.9 and metrics["skipped_updates"] == 0
del change, new

# %% [markdown]
# Twenty-five lines and the package agree: their gradients have the same
# direction and length, and their updates the same direction. (In float32 no
# token is clipped; in bfloat16 a few are, by rounding.)
#
# ### What one step did to the text
#
# A right answer should have become likelier, a wrong one less likely. Each
# square is a token of an answer; its colour is the change of the token's
# log-probability by this one step. Look whether single tokens stand out: the
# step knows only that the *answer* was wrong, not where.

# %%
moved = np.asarray(read(state.params, batch) - before)
better = batch.advantages > 0


def middling(rows):
    """Of some rows the one of middle length, shown by up to 30 tokens."""
    rows = np.flatnonzero(rows & (lengths > 1))
    return rows[np.argsort(lengths[rows], kind="stable")[len(rows) // 2]]


def painted(axis, row, reach):
    """The change of each token's log-probability in one answer."""
    length = min(lengths[row], 30)
    ids = batch.completions[row, :length]
    words = [(tokenizer.decode([i]) or "end").replace("$", "") for i in ids]
    style = dict(cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
    image = axis.imshow(moved[row, :length][None], **style)
    axis.set_xticks(range(length), words, fontsize=8, rotation=60)
    axis.set_yticks([])
    sort = "better" if better[row] else "worse"
    axis.set_title(
        f"{sort} than its group: advantage {batch.advantages[row]:+.2f}",
        fontsize=9,
    )
    return image


# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 3.6), layout="constrained")
better_one, worse_one = middling(better), middling(~better)
pair = (better_one, worse_one)
reach = max(np.abs(moved[row, : lengths[row]]).max() for row in pair)
for axis, row in zip(axes, pair, strict=True):
    image = painted(axis, row, reach)
figure.colorbar(image, ax=axes, label="change, nats")
plt.show()
for name, rows in (("better", better), ("worse", ~better)):
    mean = moved[rows][batch.mask[rows]].mean()
    print(f"all answers {name} than their group: {mean:+.1e} nats a token")

# %% [markdown]
# Purple is likelier, orange less likely. The step moves tokens where the
# model has a choice, such as the first one. A token that was certain before
# can hardly change, and stays white. All tokens of an answer are pushed with
# the same advantage: credit for a single good token comes only from
# averaging over answers that share it. So a token of a worse answer may
# become likelier, if better answers use it, too: with the tiny preset the
# sign `*` does.
#
# With a learning rate of 1e-6, as for Gemma's whole weights, one step is
# hardly seen. The trained weights are float32 for that reason: in bfloat16
# the neighbours of 0.02 are 0.0001 apart, and the step would be lost.
#
# ## 3. Why the mean is taken off
#
# A language model is a distribution over answers. Take it literally: one
# puzzle, five answers, five logits $\theta_k$. Now the gradient of the
# expected reward $J$ is exact: $\partial J / \partial \theta_k =
# \pi_k\,(r_k - J)$. Groups of answers estimate it, line 2 of the derivation:
#
# $$\nabla J = \mathbb{E}_y\big[(r(y) - b)\,\nabla \log \pi(y)\big]$$
#
# for *any* baseline $b$ that does not depend on $y$. We compare three: rewards
# with 10 added to each, rewards as they are, and rewards minus the group's
# mean. Look at the last column.

# %%
values = np.array([1.0, 0.1, 0.1, 0.1, 0.0])
pi = np.array([0.1, 0.3, 0.3, 0.2, 0.1])
exact = pi * (values - pi @ values)
G = SETTINGS["tiny"].group
draws = np.random.default_rng(0).choice(5, size=(20_000, G), p=pi)
score_of = np.eye(5)[draws] - pi  # gradient of log pi for each draw
earned = values[draws]
gains = {
    "rewards + 10": earned + 10,
    "rewards": earned,
    "minus the group's mean": earned - earned.mean(1, keepdims=True),
}

# %%
print(f"{'exact':22}", exact.round(3))
estimates, noise = {}, {}
for name, gain in gains.items():
    estimates[name] = (gain[..., None] * score_of).mean(1)
    mean = estimates[name].mean(0)
    spread = np.sqrt(estimates[name].var(0).sum())
    noise[name] = spread / np.linalg.norm(mean)
    print(f"{name:22}", mean.round(3), f" noise {noise[name]:.2f}")

# %% [markdown]
# *Noise* is the spread of one group's estimate in units of the mean
# estimate's length. All three means estimate the same direction. (With 10
# added, even the mean over 20,000 groups is still noisy.) Each dot below is
# one group's estimate of two of the five components; the cross is the exact
# gradient. The first panel's axes are ten times as long.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
for axis, (name, estimate) in zip(axes, estimates.items(), strict=True):
    reach = 2.5 if name == "rewards + 10" else 0.25
    axis.plot(*estimate[:400, :2].T, ".", ms=4, alpha=0.4)
    axis.plot(*exact[:2], "kx", ms=9, mew=2)
    axis.set_title(f"{name}: noise {noise[name]:.2f}", fontsize=9)
    axis.set(xlabel="right answer", xlim=(-reach, reach), ylim=(-reach, reach))
axes[0].set_ylabel("a wrong answer")
plt.show()

# %% [markdown]
# Adding 10 to every reward changes nothing about the task, but the estimate
# drowns in noise. The group's mean removes the shift, and needs no second
# network that learns how good a puzzle's answers are on average. With
# rewards near 0, as ours are, an estimate without a baseline has only a
# little more noise: a baseline guards against the level of the rewards. (The
# mean contains the answer's own reward, which shrinks the estimate by
# $(G-1)/G$, here 15/16. RLOO, in notebook 09, leaves the answer out.)
#
# ## 4. What the deviation does
#
# Let rewards be 0 or 1 and a share $p$ of the group be right. Then
#
# $$A_\text{right} = \frac{1-p}{\sqrt{p(1-p)}} = \sqrt{\frac{1-p}{p}}
# \qquad A_\text{wrong} = \frac{-p}{\sqrt{p(1-p)}} = -\sqrt{\frac{p}{1-p}}$$
#
# Put both into the objective, with $\bar\ell$ the mean log-probability of the
# right answers, and of the wrong ones:
#
# $$p\,A_\text{right}\,\bar\ell_\text{right}
# + (1-p)\,A_\text{wrong}\,\bar\ell_\text{wrong}
# = \sqrt{p(1-p)}\;\big(\bar\ell_\text{right} - \bar\ell_\text{wrong}\big)$$
#
# GRPO pulls right and wrong answers apart, with a weight that depends on $p$
# alone (Mroueh, [2503.06639](https://arxiv.org/abs/2503.06639)). Without the
# division the weight is $p(1-p)$, the true gradient of the success rate. On
# the right below, compare the curves at a small $p$. The dotted one is the
# formula. A real group of 16 often sees no success there: the solid blue
# curve is the mean over such groups. The orange one is the weight without
# the division.

# %%
solved = np.arange(1, G)  # right answers in a group that has signal
groups = (np.arange(G) < solved[:, None]).astype(float)
scaled = grpo.advantages(groups)
rates = np.linspace(0.02, 0.98, 193)
ways = np.array([math.comb(G, k) for k in solved])[:, None]
chance = ways * rates ** solved[:, None] * (1 - rates) ** (G - solved[:, None])
by_group = np.sqrt(solved / G * (1 - solved / G)) @ chance

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
odds = np.sqrt((1 - rates) / rates)
axes[0].plot(rates, odds, color="C0", label="right: √((1-p)/p)")
axes[0].plot(rates, -1 / odds, color="C1", label="wrong: -√(p/(1-p))")
axes[0].plot(solved / G, scaled[:, 0], "k.", label="the code")
axes[0].plot(solved / G, scaled[:, -1], "k.")
axes[0].set(title="advantage", xlabel="share of right answers", ylim=(-5, 5))
axes[1].plot(rates, np.sqrt(rates * (1 - rates)), "C0:", label="√(p(1-p))")
axes[1].plot(rates, by_group, "C0", label=f"the same, groups of {G}")
axes[1].plot(rates, rates * (1 - rates), "C1", label="not divided: p(1-p)")
axes[1].set(title="weight of the puzzle", xlabel="success rate p")
for axis in axes:
    axis.legend(fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# A rare success is a strong signal: one right answer of 16 has an advantage
# of almost 4. At $p = 0.02$ three groups of four see no success and push
# nothing, so the mean weight is half of the formula's. It is still more than
# three times the weight without the division.
#
# The division also takes out the *size* of a reward. Our wrong answers get
# 0.1 when they are well-formed (the setting `form_reward`). Here nobody is
# right: fifteen answers are wrong, and one is malformed.

# %%
one_malformed = np.full((1, G), 0.1)
one_malformed[0, 0] = 0.0
for divide in (True, False):
    advantage = grpo.advantages(one_malformed, scale_by_std=divide)[0, :2]
    print(
        f"divided: {divide!s:5}  malformed {advantage[0]:+.3f},",
        f"each of the others {advantage[1]:+.3f}",
    )

# %% [markdown]
# A tenth of reward pushes with $-3.87$, as hard as one failure among fifteen
# successes. So the reward of 0.1 for the form can push as hard as the reward
# of 1 for being right. Set `form_reward=0` in notebook 05 to take this push
# away.
#
# ## 5. A wrong, a low and a high advantage
#
# What does a mistake in the advantages do to text? The batch of section 2
# again, with its advantages changed, and one update from the same weights:
#
# - *ten times*: every advantage is ten times as large;
# - *all zero*: no answer is better than its group;
# - *sign turned*: the referee confuses right and wrong;
# - *one at 30*: the referee pays one wrong answer far too much.
#
# One step of a run hardly changes a text. Adam's step is proportional to the
# learning rate, so we take its change times `BOOST`: the same step at a
# higher rate. The same puzzles are then answered again. Compare the numbers
# of the first two rows, and read the texts.


# %%
def at_30(advantages):
    """One answer, a worse one than its group, gets the advantage 30."""
    return np.where(np.arange(len(advantages)) == worse_one, 30, advantages)


CASES = {
    "as they are": lambda advantages: advantages,
    "ten times": lambda advantages: 10 * advantages,
    "all zero": lambda advantages: 0 * advantages,
    "sign turned": lambda advantages: -advantages,
    "one at 30": at_30,
}
BOOST = 5


# %%
def pushed(case):
    """The parameters after one long step with changed advantages."""
    gain = case(batch.advantages).astype(np.float32)
    changed = batch._replace(advantages=gain)
    _, _, change = step(trained, rest, before, changed)
    longer = jax.tree.map(lambda x, dx: x + BOOST * dx, trained, change)
    return nnx.merge_state(longer, rest)


def mean_change(now, rows):
    """Of the log-probabilities of some rows' tokens, in nats."""
    moved = np.asarray(read(now, batch) - before)[rows]
    return moved[batch.mask[rows]].mean()


# %%
texts = {}
print("nats a token:    better    worse  the one       right   writes")
for name, case in CASES.items():
    now = pushed(case)
    rows = (better, ~better, [worse_one])
    sides = " ".join(f"{mean_change(now, each):+8.2f}" for each in rows)
    changed = dataclasses.replace(policy, model=nnx.merge(graph, now))
    again = rollout(changed, puzzles, key, group=one.group, temperature=1.0)
    right = (score(task, again, one.group) == 1).mean()
    texts[name] = again.texts
    written = again.completions.mask.sum(1).mean()
    print(f"{name:13} {sides} {right:11.0%} {written:5.0f} tokens")

# %%
for name in CASES:
    print(f"{name:12} {texts[name][0][:62]}")

# %% [markdown]
# With the tiny preset:
#
# - *As they are*: better answers gain, worse ones lose, and 45 % of the new
#   answers to the same four puzzles are right instead of 12 %. They are
#   twice as long: in this batch the better answers are the longer ones (the
#   loss was negative).
# - *Ten times* makes the same update: the bound on the gradient's norm and
#   Adam take a common factor out. Only an advantage's size beside the others
#   of the batch matters.
# - *All zero* changes nothing. The texts are the base's.
# - *Sign turned* unlearns what was right: only 5 % of the new answers are.
# - *One at 30*: the tokens of that one wrong answer gain 0.26 nats each, and
#   better answers gain nothing. One mistake of the referee takes over the
#   step, and 22 % of the new answers are right, half as many as without it.
#
# ## 6. The clip, from the second update on
#
# Sampling a batch is expensive, so one may want more than one update from it
# (GRPO's $\mu$, the setting `updates`). After the first update the ratios
# differ from 1. On the left is the objective of one token, on the right its
# slope by $\log \pi$, which is the weight of the token's gradient. Follow
# each line to the point where its slope becomes 0.

# %%
log_ratio = jnp.linspace(-1, 1, 401)[None]
LOW, HIGH = one.clip_low, one.clip_high


def objective(x, gain):
    """PPO's objective of a token, as the sum that jax.grad wants."""
    return objectives.clipped(x, gain, LOW, HIGH)[0].sum()


# %%
ratio = np.exp(log_ratio[0])
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for gain, color in ((1.0, "C0"), (-1.0, "C1")):
    value = objectives.clipped(log_ratio, gain, LOW, HIGH)[0][0]
    slope = jax.grad(objective)(log_ratio, gain)[0]
    axes[0].plot(ratio, value, color=color, label=f"A = {gain:+.0f}")
    axes[1].plot(ratio, slope, color=color, label=f"A = {gain:+.0f}")
for axis, title in zip(axes, ("objective", "slope by log π"), strict=True):
    axis.axvspan(1 - LOW, 1 + HIGH, color="0.9", label="inside the clip")
    axis.set(title=title, xlabel="ratio", ylim=(-3, 2))
    axis.legend(fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# A good token that has already become 1.28 times likelier gets no gradient,
# nor does a bad one that has fallen to 0.8. The clip is one-sided: a bad
# token that became *likelier* still gets its full push down. The upper bound
# lies further from 1 than the lower one (DAPO's *clip-higher*,
# [2503.14476](https://arxiv.org/abs/2503.14476)), so that rare tokens have
# room to grow.
#
# Now the model of section 2, which has made one update, makes three more on
# the same batch. The share of clipped tokens, update by update:

# %%
for _ in range(3):
    state, metrics = grpo.train_step(graph, state, reference, batch, one)
    clipped.append(metrics["clip_fraction"])
print("clipped:", ", ".join(f"{share:.1%}" for share in clipped))
drift = np.asarray(read(state.params, batch)) - batch.logprobs
low, high = np.exp(np.percentile(drift[batch.mask], (1, 99)))
print(f"after four updates 98 of 100 ratios: {low:.2f} to {high:.2f}")
del state, reference, params, trained, rest, model, policy

# %% [markdown]
# The first number is 0: before the first update every ratio is 1. From then on
# more and more tokens reach the bounds, with the tiny preset 8 % at the fourth
# update. A run with one update per batch stays at the first number.
#
# ## Exercises
#
# **1.** In section 4, which puzzles would get the most weight if advantages
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
# **2.** Set `overrides = {"kl": 0.04}`. Does the first update change? And
# what does it cost?
#
# <details><summary>Answer</summary>
#
# It does not change. At the base $x = \log \pi_\text{ref} - \log \pi$ is
# 0, and so is the slope of $e^x - x - 1$ there. It costs a second model in
# memory (with adapters the base is still there), and one more forward pass
# over the batch at every update.
#
# </details>
#
# ## Summary
#
# A GRPO step is: a group of answers per puzzle, $(r - \mathrm{mean})/
# \mathrm{std}$ as the advantage of all tokens of an answer, one gradient, one
# update. The ratio and the clip matter when a batch is used again.
# All of this lives in [`aha_lib/rl/grpo.py`](../aha_lib/rl/grpo.py).
#
# **Next:** [05_train](05_train.ipynb) takes as many of these steps as the
# preset says, sixty with the tiny one. [09_objectives](09_objectives.ipynb)
# changes the objective: DAPO, Dr. GRPO, RLOO, GSPO, CISPO and Kimi's, on one
# batch.
