# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · The sampler
#
# **How does a model write, and how fast could it?** GRPO (group-relative
# policy optimisation) needs hundreds of completions at every step;
# writing them takes two fifths of the tiny run's time. This notebook builds a
# sampler three times: without a cache in five lines, with a cache in ten,
# and then looks into the one of the library, which shares one prefill among a
# group (the completions of one puzzle) and drops what is finished.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | 1 |
#
# Any other preset in `presets.SETTINGS` runs the same cells. That was not
# timed; it takes a download and is meant for an accelerator.
#
# **You will see**
#
# 1. that sampling with a **KV cache** (the keys and values of earlier tokens,
#    kept instead of computed again) writes the very same tokens as without;
# 2. that one uniform random number per token draws from the model's
#    distribution, in steps of 2⁻²³;
# 3. that the log-probabilities it returns are those which training computes;
# 4. that dropping finished rows changes no token and saves much of the work.

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

# %%
import jax.numpy as jnp
import numpy as np

from aha_lib.model import weights
from aha_lib.presets import PUZZLES, SETTINGS

settings = SETTINGS[preset]
model, tokenizer, config = weights.load(settings.model)
print(f"Gemma {config.generation}, {config.parameters:,} parameters,")
print(f"{config.layers} layers of width {config.width}")

# %% [markdown]
# All of this runs on *one* device and in float32, so that two ways to the
# same number can be compared closely. Of a larger model one device holds
# fewer rows:

# %%
tiny = preset == "tiny"
P, G, draws = (16, 16, 4096) if tiny else (4, 4, 64)
batches = (1, 8, 64, 256) if tiny else (1, 4, 16, 64)
repeats = 10 if tiny else 1  # of a timing

# %% [markdown]
# ## 1. One token at a time
#
# A language model does one thing: given a text, it tells how likely each
# token is to come next. Give it the puzzle and look.

# %%
from aha_lib.tasks import countdown

ranges = PUZZLES[settings.puzzles]
puzzles = [countdown.generate(0, i, ranges, held_out=True) for i in range(256)]
texts = [countdown.prompt(p, settings.template) for p in puzzles]
prompts = [tokenizer.encode(text) for text in texts]
print(texts[0])
print(prompts[0])

# %%
import jax
from flax import nnx


@nnx.jit
def forward(model, tokens):
    """Hidden states of whole rows, nothing padded: [B, T] -> [B, T, D]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.hidden(tokens, positions, jnp.ones_like(tokens))


# %%
hidden = forward(model, jnp.array(prompts[:1]))
logits = model.logits(hidden[0, -1])
print("hidden", hidden.shape, "-> logits", logits.shape)

# %% [markdown]
# The last position's logits become probabilities by a softmax. Dividing
# them by a *temperature* T first makes the distribution sharper (T < 1) or
# flatter (T > 1).

# %%
import matplotlib.pyplot as plt

top = np.argsort(-np.asarray(logits))[:7]
labels = [tokenizer.decode([i]) or "?" for i in top]
x = np.arange(len(top))
plt.figure(figsize=(8, 2.8), layout="constrained")
for shift, T in ((-0.27, 0.5), (0, 1.0), (0.27, 2.0)):
    probs = np.asarray(jax.nn.softmax(logits / T))
    plt.bar(x + shift, probs[top], 0.27, label=f"T = {T}")
plt.xticks(x, labels)
plt.ylabel("probability")
plt.title(f"What comes after   {texts[0][-40:]}")
plt.legend()
plt.show()

# %% [markdown]
# At T = 0 only the likeliest token is left: *greedy* decoding. RL samples, as
# a rule at T = 1: that is where exploration comes from. Another temperature
# will do as well, as long as the loss computes its probabilities at the same
# one. Section 5 checks two of them, and shows what happens otherwise.
#
# ### Without a cache
#
# The simplest sampler: run the model on the whole text, take the last
# position's choice, append it, repeat. To keep a single compiled shape the
# text lies in a row of its final length. What lies to the right has no
# influence, because attention only looks to the left.


# %%
def naive(ids, length):
    """Greedy completion; the whole row is computed for every token."""
    row = np.full((1, len(ids) + length), tokenizer.pad_id)
    row[0, : len(ids)] = ids
    for n in range(len(ids), row.shape[1]):
        row[0, n] = model.logits(forward(model, row)[0, n - 1]).argmax()
        if row[0, n] in tokenizer.stop_ids:
            break
    return row[0, len(ids) : n + 1].tolist()


# %%
length = min(settings.completion_len, 64)
written = naive(prompts[0], length)
print(texts[0], tokenizer.decode(written))
print(countdown.reward(tokenizer.decode(written), puzzles[0]))

# %% [markdown]
# ## 2. Prefill, cache, decode
#
# Each of these forward passes repeats nearly all work of the one before. Is
# that necessary? The hidden states of earlier tokens cannot depend on later
# ones. So when a text grows, nothing about its beginning changes:

# %%
longer = jnp.array([prompts[0] + written])
n = len(prompts[0])
change = jnp.abs(forward(model, longer)[:, :n] - hidden).max()
print(f"largest change in {hidden.size:,} numbers: {change:.1e}")

# %% [markdown]
# Of the earlier tokens, attention needs their *keys* and *values* only. Keep
# those and compute the new token alone. That makes two kinds of work:
# **prefill** reads the whole prompt in one call and fills the cache,
# **decode** reads one token, with one more slot of the cache filled.

# %%
steps, total = 16, n + 16
without = np.tril(np.ones((steps, total)), n - 1)
cached = np.eye(steps, total, n - 1)
cached[0, :n] = 1

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, work, name in zip(
    axes, (without, cached), ("without a cache", "with a cache"), strict=True
):
    ax.imshow(work, cmap="Blues", vmax=1.4, aspect="auto")
    ax.axvline(n - 0.5, color="C1", ls="--")
    ax.set(
        title=f"{name}: {work.sum():.0f} tokens through the model",
        xlabel="token (dashed: the prompt ends)",
        ylabel="step",
    )
plt.show()

# %% [markdown]
# Work without a cache grows with the square of the length. Now by hand:
# `Gemma.extend` reads tokens into a cache, from a given slot on. The cache
# holds, for every layer and row, a key and a value per slot. *Local* layers,
# which look no further back than their window, have arrays of their own:
# section 7 says why.


# %%
@nnx.jit
def read(model, tokens, positions, cache, slot):
    """Next-token logits after reading `tokens`, and the longer cache."""
    hidden, cache = model.extend(tokens, positions, cache, slot)
    return model.logits(hidden[:, -1]), cache


# %%
def cached_greedy(ids, length):
    """Greedy completion; one prefill, then one token at a time."""
    cache = model.empty_cache(1, len(ids) + length)
    new, positions, slot, out = [ids], [range(len(ids))], 0, []
    while True:
        arrays = jnp.array(new), jnp.array(positions)
        logits, cache = read(model, *arrays, cache, slot)
        out.append(int(logits[0].argmax()))
        if out[-1] in tokenizer.stop_ids or len(out) == length:
            return out
        slot = len(ids) + len(out) - 1
        new, positions = [out[-1:]], [[slot]]


# %%
cache = model.empty_cache(1, len(prompts[0]) + length)
for name, array in cache._asdict().items():
    print(f"{name:8}", array.shape)
print(
    "= layers, rows, KV heads, slots, size;",
    f"{sum(x.nbytes for x in cache) / 2**20:.2f} MiB for one row",
)

# %% [markdown]
# ### Check: the cache changes nothing
#
# Three ways to the same greedy tokens: without a cache, with the loop above,
# and with the library's sampler, which runs the loop on the device. (On an
# accelerator, multiplications are asked for in full precision, so that
# rounding does not decide between two nearly equal logits. What `stages`
# are comes in section 6.)

# %%
from aha_lib.rl import sampler

padded, valid = sampler.pad_left(
    prompts, max(map(len, prompts)), tokenizer.pad_id
)
plain = dict(stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, stages=1)
key = jax.random.key(2)
with jax.default_matmul_precision("float32"):
    greedy = sampler.sample(
        model,
        padded[:8],
        valid[:8],
        key,
        sampler.Sampling(group=1, length=length, temperature=0, **plain),
    )
    for ids, tokens, mask in zip(prompts[:8], *greedy[::2], strict=True):
        ours = tokens[mask].tolist()
        assert ours == cached_greedy(ids, length) == naive(ids, length)
print("equal, token for token, for", len(greedy.tokens), "prompts")

# %% [markdown]
# ## 3. Many rows at once
#
# Rows of different lengths share arrays by *padding*. Prompts are padded on
# the **left**, so that all of them end in the same slot, and from then on
# every row writes its next token into the same slot as all others: one
# slice, not a scatter. GRPO wants a group of completions for each prompt.
# They share the prefill: it is computed once and repeated in memory.

# %%
from aha_lib.tasks.countdown import Puzzle

toy = [Puzzle((20, 16, 4), 40), Puzzle((9, 8), 72)]
ids = [tokenizer.encode(countdown.prompt(p, "tiny")) for p in toy]
slots = max(map(len, ids)) + 1
toy_tokens, toy_valid = sampler.pad_left(ids, slots, tokenizer.pad_id)
print(toy_tokens)
print(toy_valid.astype(int))

# %% [markdown]
# Positions, by contrast, are counted from a row's own first token. A row
# must not notice how much padding lies to its left.

# %%
group, new = 3, 24
out = sampler.sample(
    model,
    toy_tokens,
    toy_valid,
    key,
    sampler.Sampling(group=group, length=new, **plain),
)
prefill = np.where(toy_valid, 1, 0)
empty = np.full((len(toy), new), 3)
pictures = {"after prefill: a row per prompt": np.hstack([prefill, empty])}
rows = np.repeat(prefill, group, axis=0)
for n, name in (
    (0, "repeated for each group"),
    (8, "after 8 tokens"),
    (new, f"after {new} tokens"),
):
    late = np.arange(new) >= n
    part = np.where(late, 3, np.where(out.mask, 2, 0))
    pictures[name] = np.hstack([rows, part])

# %%
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

colors = ["#d9d9d9", "C0", "C1", "white"]
kinds = ["nothing to see (padding)", "prompt", "written", "free"]
fig, axes = plt.subplots(2, 2, figsize=(9, 3.6), layout="constrained")
for ax, (name, filled) in zip(axes.flat, pictures.items(), strict=True):
    ax.pcolormesh(
        filled,
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=3,
        edgecolors="#888",
        linewidth=0.4,
    )
    ax.invert_yaxis()
    ax.set_title(name, fontsize=10)
    ax.set(xticks=[], yticks=[], ylabel="rows", xlabel="slots")
patches = [
    Patch(fc=c, ec="#888", label=k) for c, k in zip(colors, kinds, strict=True)
]
fig.legend(handles=patches, ncols=4, loc="outside lower center", frameon=False)
plt.show()

# %% [markdown]
# The blue part is computed once per prompt and then only copied: it is the
# same for the whole group. The orange part grows by one slot per step, in
# all rows at once. Where a row has finished, what lies in its slots is
# marked as invalid, like padding, and nobody attends to it.
#
# ### Check: a row is on its own
#
# A row's tokens must depend neither on its padding nor on its neighbours:
# each row has its own random key, folded with the position of each token.
# And another key must give other completions, or each step of training
# would see the same luck again.

# %%
few = dict(group=4, length=32, **plain)
wide, wide_valid = sampler.pad_left(
    prompts[:2], len(padded[0]) + 5, tokenizer.pad_id
)
four = sampler.sample(
    model, padded[:4], valid[:4], key, sampler.Sampling(**few)
)
two = sampler.sample(model, wide, wide_valid, key, sampler.Sampling(**few))
new_key = jax.random.key(1)
other = sampler.sample(
    model, padded[:4], valid[:4], new_key, sampler.Sampling(**few)
)
assert (four.tokens[:8] == two.tokens).all()
assert (four.tokens != other.tokens).any()
print(
    len({tuple(row) for row in four.tokens[:4]}),
    "different completions in the first group of 4",
)

# %% [markdown]
# ## 4. Drawing a token
#
# How is a token drawn from a distribution? Lay the probabilities side by
# side, on a line from 0 to 1. Throw a dart. The token that it hits is drawn,
# and a wider one is hit more often: *inverting the cumulative distribution*.
# It takes one random number per row. (The more usual Gumbel trick takes one
# for every entry of the vocabulary, 262,144 in Gemma 3.) The dart is a
# float32 and lands on one of 2²³ points, a little over eight million: a token
# whose piece is thinner than the step between two of them is hit somewhat too
# often or too rarely: one of probability one in a million by at most an
# eighth.


# %%
def draw(probs, u):
    """The token whose piece of [0, 1) holds each u."""
    return np.searchsorted(np.cumsum(probs), u, side="right")


toy_probs = np.array([0.5, 0.0, 0.3, 0.2])
print(draw(toy_probs, [0.0, 0.49, 0.5, 0.79, 0.8, 0.999]))

# %% [markdown]
# Token 1 has no width and is never hit, not even at the boundary. And the
# darts of JAX do lie on that grid:

# %%
thrown = np.asarray(jax.random.uniform(jax.random.key(0), (10_000,)))
steps = thrown.astype(np.float64) * 2**23
assert (steps == np.round(steps)).all() and len(set(steps)) > 9_900
print(f"10,000 darts, {len(set(steps)):,} different ones, all on the grid")

# %% [markdown]
# Now the distribution from above, at T = 2, where more tokens have a chance:

# %%
probs = np.asarray(jax.nn.softmax(logits / 2), np.float64)
probs /= probs.sum()
sums = np.cumsum(probs)
darts = np.array([0.08, 0.36, 0.62, 0.91])

# %%
fig, ax = plt.subplots(figsize=(8, 1.9), layout="constrained")
ax.barh(0, 1, left=0, fc="#9cc3e0")  # all the thin ones
for i in np.flatnonzero(probs > 0.04):
    ax.barh(0, probs[i], left=sums[i] - probs[i], fc="C0", ec="white")
    ax.text(
        sums[i] - probs[i] / 2,
        0,
        tokenizer.decode([i]),
        ha="center",
        va="center",
        color="white",
    )
ax.plot(darts, np.full(len(darts), 0.62), "C1v", ms=10, clip_on=False)
for u, token in zip(darts, draw(probs, darts), strict=True):
    name = tokenizer.decode([token])
    ax.text(u, 0.85, f"u = {u}: {name}", ha="center", color="C1")
ax.set(xlim=(0, 1), ylim=(-0.4, 1.1), yticks=[], xlabel="u")
ax.spines[["left", "right", "top"]].set_visible(False)
plt.show()

# %% [markdown]
# Tokens lie in the order of their ids. The pale parts are all the others,
# each too thin to be drawn: one of them is hit now and then, and that is as
# it should be.
#
# ### Check: draws against probabilities
#
# First without luck: of darts on an even grid, each token must be hit by
# just its share. Then the library's sampler with thousands of draws of a
# first token: the counts may differ from the expected ones by chance only.

# %%
grid = (np.arange(100_000) + 0.5) / 100_000
share = np.bincount(draw(probs, grid), minlength=len(probs)) / len(grid)
assert np.abs(share - probs).max() < 2e-5

first = sampler.sample(
    model,
    padded[:1],
    valid[:1],
    key,
    sampler.Sampling(group=draws, length=1, temperature=2.0, **plain),
)
counts = np.bincount(first.tokens[:, 0], minlength=len(probs))
sigma = np.sqrt(draws * probs * (1 - probs))
assert (np.abs(counts - draws * probs) < 5 * sigma + 1).all()

# %%
plt.figure(figsize=(8, 2.6), layout="constrained")
x = np.arange(len(top))
plt.bar(x, draws * probs[top], color="#bbb", label="expected")
plt.errorbar(
    x,
    counts[top],
    2 * sigma[top],
    fmt="C1o",
    capsize=4,
    label="drawn, with two standard deviations",
)
plt.yscale("log")
plt.xticks(x, labels)
plt.ylabel(f"of {draws:,} draws")
plt.legend()
plt.show()

# %% [markdown]
# ## 5. Log-probabilities, twice
#
# GRPO's loss compares how likely a token is *now* with how likely it was
# *when it was sampled*. The sampler therefore returns the log-probability of
# each token it draws. Training computes it anew, in one pass over the whole
# row instead of token by token. Both must agree, or the ratio of the two
# would carry an error that nobody sees.


# %%
def training_logprobs(padded, valid, out, temperature=1.0):
    """Log-probabilities of a batch's completions by a full forward."""
    G = len(out.tokens) // len(padded)
    tokens = np.hstack([np.repeat(padded, G, axis=0), out.tokens])
    real = np.hstack([np.repeat(valid, G, axis=0), out.mask])
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    hidden = model.hidden(tokens, positions, real.astype(int))
    targets = jnp.array(tokens[:, 1:])
    logprobs, _ = model.logprobs(
        hidden[:, :-1], targets, temperature=temperature
    )
    return np.where(out.mask, logprobs[:, padded.shape[1] - 1 :], 0)


# %%
again = training_logprobs(toy_tokens, toy_valid, out)
print("sampled: ", out.logprobs[0, :6].round(4))
print("training:", again[0, :6].round(4))

# %% [markdown]
# The slice starts at the *last* prompt token, whose hidden state predicts
# the first written one: an off-by-one here would train the prompt. The stop
# token is part of the mask: a model that is not trained on it never learns
# when to stop.
#
# ### Check: the two agree

# %%
four_rows = dict(group=4, length=length, **plain)
with jax.default_matmul_precision("float32"):
    for T in (1.0, 0.7):
        batch = sampler.sample(
            model,
            padded[:4],
            valid[:4],
            key,
            sampler.Sampling(temperature=T, **four_rows),
        )
        again = training_logprobs(padded[:4], valid[:4], batch, T)
        gap = np.abs(again - batch.logprobs).max()
        print(f"T = {T}: largest difference {gap:.1e}")
        assert gap < 1e-3
for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
    assert tokens[mask][-1] in tokenizer.stop_ids or mask.all()

# %% [markdown]
# What if training assumed another temperature than the sampler's? `batch`
# was sampled at 0.7. The ratio of the two probabilities should be 1 for
# every token before the first update.

# %%
assumed = training_logprobs(padded[:4], valid[:4], batch, 1.0)
ratio = np.exp(assumed - batch.logprobs)[batch.mask]
outside = np.mean((ratio < 0.8) | (ratio > 1.28))
print(
    f"ratio: from {ratio.min():.2f} to {ratio.max():.2f},",
    f"{outside:.0%} outside the clip",
)

# %% [markdown]
# Wrong before anything was learnt. Top-k and top-p have the same fault: they
# sample from a distribution that the loss does not know. The library's
# sampler has neither.
#
# The log-probabilities are also a way to look at how a model writes. Where
# is it sure, where does it choose?

# %%
row = int(four.mask.sum(1).argmax())
tokens = four.tokens[row][four.mask[row]][:32]
sure = np.exp(four.logprobs[row, : len(tokens)])
names = [tokenizer.decode([t]) or "end" for t in tokens]
plt.figure(figsize=(10, 2.6), layout="constrained")
plt.bar(
    range(len(sure)), sure, color=["C1" if v < 0.7 else "C0" for v in sure]
)
plt.xticks(range(len(sure)), names, rotation=90, fontsize=8)
plt.ylabel("probability")
plt.title(f"One completion of   {texts[row // 4][-40:]}", fontsize=10)
plt.show()

# %% [markdown]
# Orange tokens were choices: which numbers to take, which sign, whether to
# go on. The rest follows from them. Only at a choice can two completions of
# a group part, and only there has RL something to prefer.

# %% [markdown]
# ## 6. Not everybody writes as long
#
# A batch is done when its longest row is done. How long are the rows of one
# training step?

# %%
length = min(settings.completion_len, 256)


def rollout(stages, length=length, stop=True):
    """One step's completions, in so many stages."""
    stop_ids = tokenizer.stop_ids if stop else ()
    return sampler.sample(
        model,
        padded[:P],
        valid[:P],
        key,
        sampler.Sampling(
            group=G,
            length=length,
            stop_ids=stop_ids,
            pad_id=tokenizer.pad_id,
            stages=stages,
        ),
    )


# %%
STAGES = 8
once, staged = rollout(1), rollout(STAGES)
lengths = once.mask.sum(1)
print(
    f"{len(lengths)} rows: median {np.median(lengths):.0f} tokens,",
    f"mean {lengths.mean():.0f}, longest {lengths.max()}",
)

# %% [markdown]
# The library decodes in *stages*. Between two stages, the host looks at
# which rows are finished, halves the batch while the unfinished ones fit,
# and makes the cache longer for the next stage only. Halving, and not just
# dropping, because each new shape has to be compiled once.

# %%
steps, last = np.arange(length + 1), lengths.max()
alive = (lengths[:, None] > steps).sum(0)
bounds = [round(length * i / STAGES) for i in range(STAGES + 1)]
kept, size = [], P * G
for start in bounds[:-1]:
    while size > P * G // 8 and size % 2 == 0 and alive[start] <= size // 2:
        size //= 2
    kept.append(size if alive[start] else 0)

# %%
plt.figure(figsize=(8, 2.8), layout="constrained")
plt.fill_between([0, last], P * G, color="#ddd", label="one stage")
plt.stairs(
    kept,
    np.minimum(bounds, last),
    fill=True,
    color="C0",
    alpha=0.5,
    label=f"{STAGES} stages",
)
plt.plot(
    steps[: last + 1], alive[: last + 1], "C1", lw=2, label="rows not finished"
)
plt.xlabel("token")
plt.ylabel("rows computed")
plt.legend(loc="upper right")
plt.show()

# %% [markdown]
# Areas are work. Orange is what is needed, grey what one loop computes that
# runs until its longest row is finished, blue what stages do.
#
# ### Check: the same tokens, for less work
#
# Checked are tokens and work. The time is printed beside them: it moves with
# the machine and with what else it does, so both versions are timed in turn
# in the same run, and it is the ratio that counts.

# %%
import time


def seconds(function, repeats):
    """The shortest of so many timings."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


# %%
assert (once.tokens == staged.tokens).all()
np.testing.assert_allclose(once.logprobs, staged.logprobs, atol=1e-3)
work = P * G * last, np.diff(np.minimum(bounds, last)) @ kept
assert lengths.sum() <= work[1] < work[0]
a, b = np.min(
    [
        [seconds(lambda n=n: rollout(n), 1) for n in (1, STAGES)]
        for _ in range(repeats)
    ],
    axis=0,
)
print(
    f"one stage: {work[0] / work[1]:.1f} times the work of {STAGES},",
    f"{a / b:.1f} times the time",
)

# %% [markdown]
# Time and work need not agree. Work here counts rows, whatever they cost,
# and the early stages also read a shorter cache for each row.
#
# ## 7. How fast could it be?
#
# A decode step does two things: it *moves* data (all weights once, and every
# row's cache) and *computes* (two operations per weight and row, plus
# attention). Whichever takes longer on a machine sets the pace. Count both.


# %%
def decode_work(config, rows, slots, bytes_per_number=4):
    """FLOPs and bytes of one decode step over a cache of `slots`."""
    c = config
    attention = 4 * c.layers * c.heads * c.head_dim * slots
    flops = rows * (2 * c.parameters + attention)
    cache = rows * 2 * c.layers * c.kv_heads * c.head_dim * slots
    return flops, bytes_per_number * (c.parameters + cache)


# %%
for rows in (1, 16, 256):
    flops, moved = decode_work(config, rows, 64)
    print(
        f"{rows:3} rows: {flops / 1e6:6.1f} MFLOP {moved / 1e6:5.1f} MB,"
        f" {flops / moved:5.1f} FLOP per byte"
    )

# %% [markdown]
# With one row, every weight is fetched to be used once. With many rows it is
# fetched once for all of them. FLOP per byte, the *arithmetic intensity*,
# is what a batch buys.
#
# ### Check: the count against the compiler's
#
# XLA counts the operations of the program it builds. It counts the body of a
# loop over layers only once, so the check uses a single layer, of the same
# shape. The parameters are counted from the arrays themselves.

# %%
import dataclasses

from aha_lib.model.gemma import Gemma

arrays = jax.tree.leaves(nnx.state(model))
assert sum(a.size for a in arrays) == config.parameters

one = dataclasses.replace(config, layers=1)


def one_layer():
    return Gemma(one, rngs=nnx.Rngs(0))


graph, state = nnx.split(nnx.eval_shape(one_layer))


def one_step(state, tokens, cache):
    model = nnx.merge(graph, state)
    hidden, cache = model.extend(tokens, tokens, cache, 40)
    return model.logits(hidden), cache


# %%
ints = jax.ShapeDtypeStruct((64, 1), jnp.int32)
cache = jax.eval_shape(lambda: one_layer().empty_cache(64, 64))
counted = jax.jit(one_step).lower(state, ints, cache).compile()
ratio = counted.cost_analysis()["flops"] / decode_work(one, 64, 64)[0]
print(f"XLA counts {ratio:.2f} times our operations")
assert 0.9 < ratio < 1.25

# %% [markdown]
# XLA also counts norms, rotations and the softmax, so it finds a little more.
# Now the machine: how many operations per second does it reach in a large
# matrix product, and how many bytes per second can it move? The latter
# depends on how many they are: few may lie in a processor's cache, but are
# not worth sharing out among its cores; many come from memory, through all.

# %%
side = 512 if tiny else 4096
square = jnp.ones((side, side))
matmul = jax.jit(lambda a: a @ a)
matmul(square).block_until_ready()
peak = 2 * side**3 / seconds(lambda: matmul(square), 300)


def bandwidth(megabytes):
    """Bytes per second read by a sum over so much data."""
    data = jnp.ones(megabytes * 250_000)
    total = jax.jit(lambda a: a.sum())
    total(data).block_until_ready()
    return data.nbytes / seconds(lambda: total(data), 50)


# %%
near = bandwidth(max(1, round(4 * config.parameters / 1e6)))
far = bandwidth(256)
print(
    f"{peak / 1e9:.0f} GFLOP/s, {near / 1e9:.0f} GB/s for as much as the",
    f"weights,\n{far / 1e9:.0f} GB/s for a large array",
)

# %% [markdown]
# These two numbers are the machine's **roofline**: at a low intensity the
# memory sets the pace, at a high one the multipliers do, and where the two
# meet is the **ridge**. Measure where
# decode lies, for batches from 1 to 256 rows. Nothing stops early here, so
# that the number of tokens is known. (A machine that is busy with other
# things gives lower and less regular figures; run these cells again when it
# is quiet.)

# %%
many, measured = 32, []
for rows in batches:

    def run(rows=rows):
        return sampler.sample(
            model,
            padded[:1],
            valid[:1],
            key,
            sampler.Sampling(
                group=rows,
                length=many,
                stop_ids=(-1,),
                pad_id=tokenizer.pad_id,
                stages=1,
            ),
        )

    run()
    measured.append(rows * many / seconds(run, repeats))
slots = padded.shape[1] + many
work = [decode_work(config, rows, slots) for rows in batches]

# %%
flops, moved = np.array(work).T
rows, measured = np.array(batches), np.array(measured)
roof = rows / np.maximum(flops / peak, moved / near)
for line in zip(rows, measured, measured / roof, strict=True):
    print("{:3} rows: {:7,.0f} tokens/s, {:.1%} of the roof".format(*line))

# %%
fig, (left, right) = plt.subplots(
    1, 2, figsize=(10, 3.8), layout="constrained"
)
x = np.geomspace(0.2, 200, 100)
for speed, name, style in ((near, "few", "C0-"), (far, "many", "C0--")):
    left.loglog(
        x,
        np.minimum(peak, speed * x) / 1e9,
        style,
        label=f"roof, {name} bytes at a time",
    )
reached = measured * flops / rows / 1e9
left.loglog(flops / moved, reached, "C1o-", label="decode, measured")
for n, u, v in zip(rows, flops / moved, reached, strict=True):
    left.annotate(n, (u, v), (6, -10), textcoords="offset points")
left.set(
    xlabel="FLOP per byte",
    ylabel="GFLOP/s",
    title="Roofline; numbers are rows",
)
right.loglog(rows, roof, "C0-", label="roof")
right.loglog(rows, measured, "C1o-", label="measured")
right.set(xlabel="rows", ylabel="tokens per second", title="Throughput")
right.set_xticks(rows, rows)
right.minorticks_off()
for ax in (left, right):  # whole decades, so that the axis has labels
    low, high = np.log10(ax.get_ylim())
    ax.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# A roof leaves things out. The tiny model's matrices are 128 wide, so that
# starting an operation may cost as much as doing it, and exponentials,
# norms, copies and the drawing of tokens are not counted. What holds
# everywhere is the slope: as long as memory sets the pace, more rows are
# nearly free.
#
# ### Two programs side by side
#
# One cost of starting can be seen. XLA shares each operation out among a
# CPU's cores and waits for the last of them; the tiny model's operations are
# over in a fraction of a millisecond, and the waiting takes about as long as
# the second core saves. So on a CPU `sample` shares out the *puzzles*, if the
# model is small: as many threads as cores, a whole program in each, that
# wait for nobody. A single puzzle cannot be shared out. Compare 256 rows of
# one puzzle with the same number of eight:


# %%
def rate(puzzles, rows=256, new_tokens=32):
    """Tokens a second for so many rows, of so many puzzles."""
    return (
        rows
        * new_tokens
        / seconds(
            lambda: sampler.sample(
                model,
                padded[:puzzles],
                valid[:puzzles],
                key,
                sampler.Sampling(
                    group=rows // puzzles,
                    length=new_tokens,
                    stop_ids=(-1,),
                    pad_id=tokenizer.pad_id,
                ),
            ),
            repeats,
        )
    )


threads = devices.cpu_threads(nnx.state(model))
print(
    f"one puzzle {rate(1):,.0f} tokens/s, eight {rate(8):,.0f}, the latter",
    f"in {threads} thread(s)",
)

# %% [markdown]
# On an accelerator, and for a large model, it is one thread for both, and the
# two rates differ little: there the operations are long.
#
# ### A cache that forgets
#
# Where is that ridge for the Gemmas? With the published figures of one TPU
# v5e chip (197 TFLOP/s in bfloat16, 819 GB/s), two bytes per number and
# 1,024 slots of cache. A local layer of Gemma 2 or 3 never looks further back
# than its window. So its part of the sampler's cache is a **ring**: once it
# is full, the newest token takes the place of the one that has just gone out
# of sight. The first table is of a cache that kept everything, the second of
# one that forgets, as this library's does.

# %%
from aha_lib.presets import MODELS


def slots_seen(c, slots):
    """The mean over layers of the slots that a layer can see."""
    return c.slots(slots) / c.layers


# %%
def roof_of(c, rows, slots):
    """Tokens per second that one v5e chip's roofline allows."""
    flops, moved = decode_work(c, rows, slots, 2)
    return rows / max(flops / 197e12, moved / 819e9)


# %%
gemmas = {name: c for name, c in MODELS.items() if name != "tiny"}
for forgets in (False, True):
    print(
        "tokens/s at:    1 row  32 rows  256 rows",
        "   window forgotten" if forgets else "   all slots kept",
    )
    for name, c in gemmas.items():
        slots = slots_seen(c, 1024) if forgets else 1024
        print(
            f"{name:12}"
            + "".join(
                f"{roof_of(c, rows, slots):9,.0f}" for rows in (1, 32, 256)
            )
        )

# %% [markdown]
# Neither table is a promise: both are roofs. Of Gemma 3 1B's 26 layers 22 see
# 512 tokens only, and at 256 rows forgetting the rest allows half as many
# tokens again. (The windows of Gemma 2, 4,096, and of 4B,
# 1,024, are not exceeded here.) What matters shows in both. From one row to
# 32, throughput grows 16 to 29 times. From 32 to 256 it depends on the
# cache: `gemma-2b` keeps a single KV head and still gains 4.6 times,
# `gemma-7b` keeps 16 of them in more layers and gains less than 2.
#
# ### Check: layers, and which side of the ridge

# %%
one_b = MODELS["gemma3-1b"]
assert slots_seen(one_b, 1024) == (22 * 512 + 4 * 1024) / 26
assert slots_seen(MODELS["gemma2-2b"], 1024) == 1024
gain = {
    name: roof_of(c, 256, slots_seen(c, 1024)) / roof_of(c, 256, 1024)
    for name, c in gemmas.items()
}
print(
    "gained by forgetting, 256 rows:",
    ", ".join(f"{name} {x:.2f}" for name, x in gain.items()),
)
more = [roof_of(c, 32, 1024) / roof_of(c, 1, 1024) for c in gemmas.values()]
assert 15.5 < min(more) and max(more) < 29.5
caches = {
    name: decode_work(c, 256, 1024, 2)[1] - 2 * c.parameters
    for name, c in gemmas.items()
}
assert [
    name for name, c in gemmas.items() if caches[name] < 2 * c.parameters
] == ["gemma-2b"]

# %% [markdown]
# The last line: at 256 rows all models but `gemma-2b` move more cache than
# weights.
#
# ## Exercises
#
# **1.** Padding is masked by `valid`. What happens to the completions of
# `toy` if it is not, that is, with `np.ones_like(toy_valid)`? Does it also
# happen to the first row?
#
# <details><summary>Answer</summary>
#
# ```python
# bad = sampler.sample(model, toy_tokens, np.ones_like(toy_valid), key,
#                      group=group, length=new, **plain)
# (bad.tokens == out.tokens).all(axis=1)
# ```
#
# `[False False False False False False]`: both groups change, as both have
# padding; the second prompt is shorter and has more of it. The model now
# reads `<pad>`, which it never saw in training, as the beginning of the text.
# Nothing fails and nothing warns: what it writes still looks like an answer.
#
# </details>
#
# **2.** At which number of rows does decoding `gemma2-2b` on a v5e chip
# become limited by computing and no longer by memory, with 64 slots of
# cache? And with 256?
#
# <details><summary>Answer</summary>
#
# ```python
# print("ridge:", 197e12 / 819e9)
# for slots in (64, 256):
#     for rows in (128, 256, 350, 512, 4096, 10**6):
#         flops, moved = decode_work(MODELS["gemma2-2b"], rows, slots, 2)
#         print(slots, rows, flops / moved)
# ```
#
# With 64 slots at about 350 rows. With 256 never: each row brings its own
# cache to be read, and the FLOP per byte approach 194, below the ridge at
# 241, however many rows there are.
#
# </details>
#
# ## Summary
#
# - Prefill reads the prompt once per group; decode adds one token to a
#   cache that is updated in place.
# - One uniform number draws a token, and the log-probability returned is the
#   one that training recomputes.
# - Finished rows are dropped between stages: the same tokens for less work.
# - A batch is what makes decode efficient: weights are moved once for all
#   rows.
#
# All of this lives in [`aha_lib/rl/sampler.py`](../aha_lib/rl/sampler.py). Next:
# [04_grpo_step](04_grpo_step.ipynb), where the completions are rewarded and
# the model learns from them.
