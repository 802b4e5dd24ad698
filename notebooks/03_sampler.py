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
# **How does a model write, and what does it take to write fast?** GRPO
# (group-relative policy optimisation) needs hundreds of completions at every
# step. Writing them takes about two fifths of the tiny run's time. This
# notebook builds a sampler twice, without a cache and with one, in about ten
# lines each. Then it looks into the library's sampler, which shares one
# prefill among a group (the completions of one puzzle) and drops finished
# rows.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | 2 to 5 |
# | any other | an accelerator | not timed; its download comes first |
#
# Words of the field are explained in the [Glossary](../docs/glossary.md).
#
# **You will see**
#
# 1. that sampling with a **KV cache** (the keys and values of earlier tokens,
#    kept instead of computed again) writes the same tokens as without;
# 2. what a row of a padded batch sees, and what it does not;
# 3. how one uniform random number draws a token;
# 4. that the log-probabilities that a sampler returns are those which
#    training computes;
# 5. that dropping finished rows changes no token and saves much of the work.

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

import jax
import jax.numpy as jnp
import numpy as np

from aha_lib.look import show
from aha_lib.model import weights
from aha_lib.presets import PUZZLES, SETTINGS

settings = dataclasses.replace(SETTINGS[preset], **overrides)
mesh = devices.make_mesh(tp=settings.tp)
if mesh.size > 1:
    jax.set_mesh(mesh)  # from here on weights and rows are spread over it
model, tokenizer, config = weights.load(settings.model, mesh=mesh)
print(f"Gemma {config.generation}, {config.parameters:,} parameters,")
print(f"{config.layers} layers of width {config.width}")

# %% [markdown]
# The weights lie on all devices together, a share on each. Sections 1 to 6
# compute the same numbers in two ways and compare them. So they work in
# float32, and ask for full precision where an accelerator would multiply in
# bfloat16. Section 7 measures speed, and computes as a run does.

# %%
jax.config.update("jax_default_matmul_precision", "float32")

# %% [markdown]
# ## 1. One token at a time
#
# A language model does one thing: given a text, it tells how likely each
# token is to come next. Give it a puzzle and look at the likeliest ones.

# %%
from aha_lib.tasks import countdown

ranges = PUZZLES[settings.puzzles]
puzzles = [countdown.generate(0, i, ranges, held_out=True) for i in range(256)]
texts = [countdown.prompt(p, settings.template) for p in puzzles]
prompts = [tokenizer.encode(text) for text in texts]
print(texts[0])
print(prompts[0])

# %%
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


def word(token):
    """A token in a picture: its number where the font may lack its text."""
    text = tokenizer.decode([token])
    shown = repr(text)[1:-1].replace("$", r"\$")
    return shown if text.isascii() and text else f"#{token}"


top = np.argsort(-np.asarray(logits))[:7]
labels = [word(i) for i in top]

# %%
x = np.arange(len(top))
plt.figure(figsize=(8, 2.8), layout="constrained")
for shift, T in ((-0.27, 0.5), (0, 1.0), (0.27, 2.0)):
    probs = np.asarray(jax.nn.softmax(logits / T))
    plt.bar(x + shift, probs[top], 0.27, label=f"T = {T}")
plt.xticks(x, labels)
plt.ylabel("probability")
plt.title(f"What comes after   {texts[0][-40:]!r}")
plt.legend()
plt.show()

# %% [markdown]
# At T = 0 only the likeliest token is left: *greedy* decoding. RL samples,
# as a rule at T = 1, because it can only reward what was tried. Another
# temperature will do as well, as long as the loss computes its probabilities
# at the same temperature. Section 5 checks this for two temperatures, and
# shows what happens otherwise.
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
# ones. So when a text grows, nothing about its beginning should change,
# except for rounding:

# %%
longer = jnp.array([prompts[0] + written])
n = len(prompts[0])
change = jnp.abs(forward(model, longer)[:, :n] - hidden).max()
print(f"largest change in {hidden.size:,} numbers: {change:.1e}")

# %% [markdown]
# Of the earlier tokens, attention needs their *keys* and *values* only. Keep
# those and compute the new token alone. That makes two kinds of work:
# **prefill** reads the whole prompt in one call and fills the cache,
# **decode** reads one token at a time and fills one more slot of the cache.
# In the pictures a blue square is a token that goes through the model at a
# step. Compare the two totals.

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
# and with the library's sampler, which runs the loop on the device. (What
# `stages` are comes in section 6.) Rounding may decide between two tokens
# whose logits are nearly equal, and then the ways part. So what is checked
# is that the logit of no written token lies more than a thousandth below the
# highest.

# %%
from aha_lib.rl import sampler

padded, valid = sampler.pad_left(
    prompts, max(map(len, prompts)), tokenizer.pad_id
)
plain = dict(stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, stages=1)
key = jax.random.key(2)
greedy = sampler.sample(
    model,
    padded[:4],
    valid[:4],
    key,
    sampler.Sampling(group=1, length=length, temperature=0, **plain),
)


# %%
def shortfall(ids, written):
    """How far the logits of written tokens lie below the highest, at most."""
    row = jnp.array([ids + written])
    hidden = forward(model, row)[0, len(ids) - 1 : -1]
    logits = model.logits(hidden)
    return (logits.max(-1) - logits[np.arange(len(written)), written]).max()


# %%
equal, short = 0, []
for ids, tokens, mask in zip(prompts[:4], *greedy[::2], strict=True):
    ways = [naive(ids, length), cached_greedy(ids, length)]
    ways.append(tokens[mask].tolist())
    equal += ways[0] == ways[1] == ways[2]
    short += [float(shortfall(ids, written)) for written in ways]
assert max(short) < 1e-3
print(f"equal, token for token, for {equal} of {len(greedy.tokens)} prompts;")
print(f"no logit is more than {max(short):.1e} below the highest")

# %% [markdown]
# ## 3. Many rows at once
#
# Rows of different lengths share arrays by *padding*. Prompts are padded on
# the **left**, so that all of them end in the same slot, and from then on
# every row writes its next token into the same slot as all others: one slice
# of the array, not a place of its own for each row. GRPO wants a group of
# completions for each prompt. They share the prefill: it is computed once
# and repeated in memory.

# %%
from aha_lib.tasks.countdown import Puzzle

toy = [Puzzle((20, 16, 4), 40), Puzzle((9, 8), 72)]  # prompts of a line
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
# all rows at once. What a finished row still writes is marked as invalid, and
# no loss counts it.
#
# ### What a row sees while it decodes
#
# The cache of a row also has slots of padding. A new token must not see
# them. The library needs no mask in memory for this: a token at position p
# has p tokens before it, so it sees the p slots before its own, and its own.
# Whatever lies further back is padding. Here is what the first eight new
# tokens of each prompt see.

# %%
there = np.arange(slots + 8)  # slots of the cache
own = slots + np.arange(8)  # the slots of eight new tokens
seen = []
for count in toy_valid.sum(axis=1):  # tokens of a prompt
    position = count + np.arange(8)
    back = own[:, None] - there  # how far a slot lies behind
    seen.append((back >= 0) & (back <= position[:, None]))

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the masks of two rows
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
colors = ["#d9d9d9", "white", "C0", "C1"]
names = ["padding, not seen", "later, not seen"]
names += ["prompt, seen", "written, seen"]
for ax, mask, real, p in zip(axes, seen, toy_valid, toy, strict=True):
    padding = there < slots - real.sum()
    kind = np.where(mask, np.where(there < slots, 2, 3), 1 - padding)
    grid = dict(edgecolors="#888", linewidth=0.4)
    ax.pcolormesh(kind, cmap=ListedColormap(colors), vmin=0, vmax=3, **grid)
    ax.invert_yaxis()
    ax.set_title(f"the row of {p.numbers} → {p.target}", fontsize=10)
    ax.set(xlabel="slot of the cache", ylabel="new token")
    ax.set_yticks(np.arange(8) + 0.5, range(1, 9))
patches = [
    Patch(fc=c, ec="#888", label=k) for c, k in zip(colors, names, strict=True)
]
fig.legend(handles=patches, ncols=4, loc="outside lower center", frameon=False)
plt.show()

# %% [markdown]
# The second prompt is shorter, so it has more padding on its left. A local
# layer sees less still: of these slots the last `window` ones.
#
# ### Rows over devices
#
# Rows do not see each other, so they can be shared out. The library does that
# wherever there is more than one device: each device keeps a share of every
# weight, takes its own rows of a batch, and fetches the other shares of a
# layer's weights when it needs them. XLA can act as if a CPU were eight
# devices, if it is told so before JAX starts. So another process samples from
# the tiny model (whatever the preset is) on one device and on eight, and
# draws where the rows of tokens lie on the eight:

# %%
import os
import subprocess

ON_EIGHT = """
import jax, numpy as np
from aha_lib import devices
from aha_lib.model import weights
from aha_lib.rl import sampler

how = sampler.Sampling(2, 16, stop_ids=(1,), pad_id=0, stages=1)
prompts = 20 + np.arange(64).reshape(8, 8)
found = []
for count in (1, 8):
    mesh = devices.make_mesh(jax.devices()[:count])
    model = weights.load("tiny", mesh=mesh)[0]
    with devices.use(mesh):
        tokens = np.repeat(prompts, 2, axis=0)
        spread = jax.jit(devices.shard_batch)(tokens)
        key = jax.random.key(0)
        found.append(sampler.sample(model, prompts, prompts > 0, key, how))
jax.debug.visualize_array_sharding(spread)
same = (found[0].tokens == found[1].tokens).all(axis=1)
print(f"tokens equal on one device and on eight: {same.sum()} of 16 rows")
"""

# %%
flag = "--xla_force_host_platform_device_count=8"
path = os.pathsep.join(filter(None, sys.path))
asked = dict(XLA_FLAGS=flag, JAX_PLATFORMS="cpu", PYTHONPATH=path)
plain_text = {k: v for k, v in os.environ.items() if "COLOR" not in k}
child = subprocess.run(
    [sys.executable, "-c", ON_EIGHT],
    env=plain_text | asked,
    capture_output=True,
    text=True,
)
print(child.stdout or child.stderr[-500:])

# %% [markdown]
# Eight devices write what one writes, because a row's random numbers depend
# on the number of the row and not on the place where it lies. Together with
# the masks above this means that a row's tokens depend neither on its
# padding nor on its neighbours. (With a large vocabulary a random number may
# fall so close to the border between two tokens that rounding decides
# between them. Such a row then goes on differently.)

# %% [markdown]
# ## 4. Drawing a token
#
# How is a token drawn from a distribution? Lay the probabilities side by
# side, on a line from 0 to 1. Throw a dart. The token that it hits is drawn,
# and a wider one is hit more often: *inverting the cumulative distribution*.
# This takes one random number per row. (The more usual Gumbel trick takes
# one for every entry of the vocabulary, 262,144 in Gemma 3.) The dart is a
# float32 and lands on one of 2²³ points, a little over eight million. A
# token whose piece is thinner than the step between two points is hit
# somewhat too often or too rarely: one of probability one in a million by at
# most an eighth.


# %%
def draw(probs, u):
    """The token whose piece of [0, 1) holds each u."""
    return np.searchsorted(np.cumsum(probs), u, side="right")


toy_probs = np.array([0.5, 0.0, 0.3, 0.2])
print(draw(toy_probs, [0.0, 0.49, 0.5, 0.79, 0.8, 0.999]))

# %% [markdown]
# Token 1 has no width and is never hit, not even at the boundary. Now the
# distribution from above, at T = 2, where more tokens have a chance:

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
        word(i),
        ha="center",
        va="center",
        color="white",
    )
ax.plot(darts, np.full(len(darts), 0.62), "C1v", ms=10, clip_on=False)
for u, token in zip(darts, draw(probs, darts), strict=True):
    ax.text(u, 0.85, f"u = {u}: {word(token)}", ha="center", color="C1")
ax.set(xlim=(0, 1), ylim=(-0.4, 1.1), yticks=[], xlabel="u")
ax.spines[["left", "right", "top"]].set_visible(False)
plt.show()

# %% [markdown]
# Tokens lie in the order of their ids. The pale parts are all those of
# probability below 0.04, too thin for a label. One of them is hit now and
# then, as often as its probability says.
#
# Does the library's sampler draw in this way? Let it draw a first token many
# times (fewer where the vocabulary is large, since each draw takes a row of
# logits). The counts should differ from the expected ones by chance only:
# about one in twenty by more than two standard deviations.

# %%
draws = min(4096, 2**26 // config.vocab)  # 256 MiB of logits at most
first = sampler.sample(
    model,
    padded[:1],
    valid[:1],
    key,
    sampler.Sampling(group=draws, length=1, temperature=2.0, **plain),
)
counts = np.bincount(first.tokens[:, 0], minlength=len(probs))
sigma = np.sqrt(draws * probs * (1 - probs))

# %%
plt.figure(figsize=(8, 2.6), layout="constrained")
x = np.arange(len(top))
plt.bar(x, draws * probs[top], color="#9cc3e0", label="expected")
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
# the first written one. An off-by-one here would give each token its
# neighbour's log-probability. The stop token is part of the mask: a model
# that is not trained on it never learns when to stop.
#
# ### Check: the two agree

# %%
sampled = {}
for T in (1.0, 0.7):
    how = sampler.Sampling(temperature=T, group=4, length=length, **plain)
    sampled[T] = sampler.sample(model, padded[:4], valid[:4], key, how)
    again = training_logprobs(padded[:4], valid[:4], sampled[T], T)
    gap = np.abs(again - sampled[T].logprobs).max()
    print(f"T = {T}: largest difference {gap:.1e}")
    assert gap < 1e-3

# %% [markdown]
# What if training assumed another temperature than the sampler's? Take what
# was sampled at 0.7 and compute at 1. The ratio of the two probabilities
# should be 1 for every token before the first update. (The *clip* in the
# output is the bound on this ratio, from 0.8 to 1.28; notebook 04.)

# %%
batch = sampled[0.7]
assumed = training_logprobs(padded[:4], valid[:4], batch, 1.0)
ratio = np.exp(assumed - batch.logprobs)[batch.mask]
outside = np.mean((ratio < 0.8) | (ratio > 1.28))
print(
    f"ratio: from {ratio.min():.2f} to {ratio.max():.2f},",
    f"{outside:.0%} outside the clip",
)

# %% [markdown]
# The ratio is wrong before anything was learnt. Top-k and top-p have the same
# fault: they sample from a distribution that the loss does not know. The
# library's sampler has neither.
#
# The log-probabilities are also a way to look at how a model writes. Where
# is it sure, where does it choose?

# %%
batch = sampled[1.0]
row = int(batch.mask.sum(1).argmax())
tokens = batch.tokens[row][batch.mask[row]][:32]
sure = np.exp(batch.logprobs[row, : len(tokens)])
names = [word(t) if t not in tokenizer.stop_ids else "end" for t in tokens]
slots = np.arange(len(sure))
plt.figure(figsize=(10, 2.6), layout="constrained")
for choice, color, name in (
    (sure >= 0.7, "C0", "0.7 or more"),
    (sure < 0.7, "C1", "less: a choice"),
):
    plt.bar(slots[choice], sure[choice], color=color, label=name)
plt.xticks(slots, names, rotation=90, fontsize=8)
plt.ylabel("probability")
plt.title(f"One completion of   {texts[row // 4][-40:]!r}", fontsize=10)
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# Orange tokens were choices. With the tiny preset they decide which numbers
# to take, which sign, and whether to go on after a `no`. The rest mostly
# follows from them. Where a token was written with probability p, another
# completion of the group writes a different one with probability 1 − p. So
# completions part at any token, rarely at a sure one and often at a choice.
# Two completions of a group can earn different rewards only because of what
# they write from there on.

# %% [markdown]
# ## 6. Rows end at different lengths
#
# A batch is done when its longest row is done. How long are the rows of one
# training step? The rows here are as many as the settings have, but no more
# than 256, and no more than have room for their cache in a GiB of each
# device.

# %%
length = min(settings.completion_len, 256)


def rows_that_fit(slots, most=256, gib=1):
    """Rows, a power of two, whose cache takes so much of a device at most."""
    numbers = 2 * config.kv_heads * config.head_dim * config.slots(slots)
    bytes_of_row = numbers * model.dtype.itemsize
    rows = min(most, gib * 2**30 * mesh.size / bytes_of_row)
    return 2 ** int(np.log2(max(rows, 1)))


# %%
room = rows_that_fit(padded.shape[1] + length)
G = min(settings.group, 16, room)
P = max(1, min(settings.prompts, 16, room // G))


def rollout(stages):
    """One step's completions, in so many stages."""
    return sampler.sample(
        model,
        padded[:P],
        valid[:P],
        key,
        sampler.Sampling(
            group=G,
            length=length,
            **plain | {"stages": stages},
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
# and makes the cache longer for the next stage only. It halves the batch
# instead of dropping just the finished rows, because each new shape has to
# be compiled once.

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
plt.fill_between([0, last], P * G, color="#f0d9b5", label="one stage")
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
# An area is an amount of work. The area under the line is the work that is
# needed. The pale area is what one loop computes that runs until its longest
# row is finished, and the blue area is what stages compute. If more than
# half of the rows reach the limit, as with a base that does not end its
# answers, there is nothing to halve, and the two areas are the same.
#
# ### Check: the same tokens, for less work

# %%
alike = (once.tokens == staged.tokens).all(axis=1)
assert alike.mean() >= (1 if preset == "tiny" else 7 / 8)
work = P * G * last, np.diff(np.minimum(bounds, last)) @ kept
print(f"{alike.sum()} of {P * G} rows have the same tokens in both;")
print(f"one stage does {work[0] / work[1]:.1f} times the work of {STAGES}")

# %% [markdown]
# Work is counted here in rows times tokens, as if all cost the same. In fact
# the early stages are cheaper still, since they read a shorter cache for
# each row.
#
# ## 7. What many rows buy
#
# Notebook 00 explains with a roofline why decoding is slow: for each token
# it moves all weights and does little with them. With many rows, the weights
# are moved once for all. How much faster does that make it? Nothing stops
# early here, so that the number of tokens is known. The arithmetic is in the
# run's own dtype and precision.

# %%
import time

jax.config.update("jax_default_matmul_precision", None)
model.dtype, _ = devices.dtypes(settings.dtype)
many = 32
most = rows_that_fit(padded.shape[1] + many)
batches = [n for n in (1, 8, 64, 256) if n % mesh.size == 0 and n <= most]
batches = batches or [mesh.size]  # a row on each device, at least


def decode(rows):
    """So many rows of one puzzle, none of which ends before `many` tokens."""
    how = dict(stop_ids=(-1,), pad_id=tokenizer.pad_id, stages=1)
    how = sampler.Sampling(group=rows, length=many, **how)
    return sampler.sample(model, padded[:1], valid[:1], key, how)


def seconds(rows):
    """The shorter of two timings, after compiling."""
    decode(rows)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        decode(rows)
        times.append(time.perf_counter() - start)
    return min(times)


# %%
rates = [rows * many / seconds(rows) for rows in batches]
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.loglog(batches, rates, "C0o-", label="measured")
ax.loglog(
    batches,
    [rates[0] * rows / batches[0] for rows in batches],
    "C1--",
    label="if each row cost nothing more",
)
ax.set_xticks(batches, batches)
ax.minorticks_off()
ax.set(xlabel="rows at a time", ylabel="tokens a second, all rows")
ax.legend()
plt.show()

# %% [markdown]
# The first rows are cheap: there the measured line rises nearly as steeply
# as the dashed one. Later rows cost more, since each row has its own cache
# to be read and its own arithmetic. On a CPU the library also runs the
# puzzles of a small model side by side, a thread for each core, because its
# operations are too short to be shared out among cores.
#
# ### A cache that forgets
#
# What limits the number of rows is the cache. A local layer of Gemma 2 or 3
# never looks further back than its window. So its part of the cache is a
# **ring**: once it is full, the newest token takes the place of the one that
# has just gone out of sight. The table has the MiB of one row of 4,096
# tokens in bfloat16: first with all slots kept, then with local layers that
# keep only their window.

# %%
from aha_lib.presets import MODELS

rows = []
for name, c in MODELS.items():
    if name.startswith("gemma"):
        slot = 2 * c.kv_heads * c.head_dim * 2 / 2**20
        sizes = slot * c.layers * 4096, slot * c.slots(4096)
        rows.append([name, *(f"{size:,.0f}" for size in sizes)])
show.table(["model", "all slots kept", "only the window kept"], rows)

# %% [markdown]
# Gemma 3 gains most: five of its six layers see 512 or 1,024 tokens only.
# The window of Gemma 2 is 4,096, just not exceeded here. The number of KV
# heads counts, too: `gemma-7b` has sixteen, and a row of it takes 25 times
# the room of one of `gemma-2b`, which has one.
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
# how = sampler.Sampling(group=group, length=new, **plain)
# bad = sampler.sample(model, toy_tokens, np.ones_like(toy_valid), key, how)
# (bad.tokens == out.tokens).all(axis=1)
# ```
#
# With the tiny preset `[False False False False False False]`: both groups
# change, as both have padding. The model now reads `<pad>`, which it never
# saw in training, as the beginning of the text. No error and no warning
# tells of it: what the model writes still looks like an answer.
#
# </details>
#
# **2.** At how many rows of 1,024 tokens has the cache of `gemma2-2b` as many
# bytes as its weights, both in bfloat16? And that of `gemma-2b`?
#
# <details><summary>Answer</summary>
#
# ```python
# for name in ("gemma2-2b", "gemma-2b"):
#     c = MODELS[name]
#     print(name, c.parameters / (2 * c.kv_heads * c.head_dim * c.slots(1024)))
# ```
#
# At 48 rows, and at 266. Beyond that a decode step reads more cache than
# weights, and further rows add less and less speed.
#
# </details>
#
# ## Summary
#
# - Prefill reads the prompt once per group; decode adds one token to a
#   cache that is updated in place.
# - A row sees its own tokens and no padding, whoever its neighbours are.
# - One uniform number draws a token, and the log-probability returned is the
#   one that training recomputes.
# - Finished rows are dropped between stages: the same tokens for less work.
# - A batch is what makes decode efficient: weights are moved once for all
#   rows.
#
# All of this lives in
# [`aha_lib/rl/sampler.py`](../aha_lib/rl/sampler.py). Next:
# [04_grpo_step](04_grpo_step.ipynb), where the completions are rewarded and
# the model learns from them.
