# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Loading Gemma
#
# **What is in a Gemma checkpoint, and how does it get onto the chips?** A
# language model is a tokenizer, a configuration and a folder of numbers.
# This notebook first computes the tiny model's output from its three files,
# in sixty lines of NumPy. Then it goes through those lines again, part by
# part, with the library and with your preset's model.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | under 1 |
# | a Gemma | any with room for its weights | 2 for 270M, and its download |
#
# Words of the field are explained in the [Glossary](../docs/glossary.md).
#
# **You will see**
#
# 1. all that Gemma 3 computes, from a file to the next token, and that the
#    library computes the same;
# 2. that more than half of the smallest Gemma is its vocabulary;
# 3. how a model is shared out among devices;
# 4. that a model saved and loaded again is the same to the last bit.
#
# Parts 1 and 8, and the broken files of part 2, use the tiny model, whatever
# the preset is. The tokenizer, the sharding and the first words are those of
# your preset's model.

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

# %% [markdown]
# `tiny` is a Gemma-shaped model that comes with the package, without a
# download or an account. For a real Gemma change the word `preset`.
# `overrides` changes single settings: `{"model": "runs/x/model"}` loads a
# Gemma from a folder of yours, in Kaggle's layout or in Hugging Face's.

# %% tags=["parameters"]
preset = "tiny"
overrides = {}

# %% [markdown]
# ## 1. A Gemma in sixty lines of NumPy
#
# Here is everything between the files and the next token's probabilities, in
# plain NumPy and float64: one row, no cache, no sharding. Of the library it
# uses the tokenizer only. It reads the three files of the tiny model:
#
# | file | what it is | looked at again in |
# |---|---|---|
# | `tokenizer.model` | text to numbers, and back | part 3 |
# | `config.json` | the sizes: `SHAPE` below | part 4 |
# | `model.safetensors` | the parameters: `get` below | parts 5 and 6 |
#
# A larger Gemma 3 has more layers and wider ones. From 4B on the positions
# of global layers are divided by 8. No other step is added.

# %%
import dataclasses
import json

import numpy as np
from safetensors.numpy import load_file

from aha_lib.model import weights
from aha_lib.model.tokenizer import Tokenizer

words = (weights.SHIPPED["tiny"] / "tokenizer.model").read_bytes()
small_tokenizer = Tokenizer(words)
FILE = load_file(weights.SHIPPED["tiny"] / "model.safetensors")
SHAPE = json.loads((weights.SHIPPED["tiny"] / "config.json").read_text())


def get(name):
    return FILE[f"model.{name}.weight"].astype(np.float64)


# %% [markdown]
# **The embedding.** The tokenizer turns a text into ids. Each id picks a row
# of a table, and the row is scaled by the square root of its width.

# %%
ids = small_tokenizer.encode("20 16 4 = 40 : 20 - 16 = 4 , 4 + 4 = 8 no")
x = get("embed_tokens")[ids] * SHAPE["hidden_size"] ** 0.5
print(len(ids), "tokens, each a row of", x.shape[1], "numbers")

# %% [markdown]
# **The norm** divides a row by its root mean square, then multiplies each
# column by `1 + w`. Most other models store the whole factor. Gemma stores
# `w`, its difference from 1, for two reasons: a new model can start from
# zeros, and bfloat16 has finer steps near 0 than near 1. A program that
# reads the file as a Llama's and multiplies by `w` alone gives nonsense
# without an error.


# %%
def norm(x, name):
    mean = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean + SHAPE["rms_norm_eps"]) * (1 + get(name))


w = get("norm")
print(f"w of the last norm: from {w.min():.2f} to {w.max():.2f}")

# %% [markdown]
# **The rotation** (RoPE) tells a head where a token stands. It turns pairs
# of a head's numbers by an angle that is the position times the pair's own
# speed. The product of a query and a key then depends on the distance
# between them, and on nothing else of their positions.


# %%
def angles(positions, base):
    """Of each position and pair: fast pairs first, slow ones last."""
    half = SHAPE["head_dim"] // 2
    return positions[:, None] * base ** (-np.arange(half) / half)


def rotate(x, base):
    """Turn the pairs (i, i + half) of rows [T, heads, head_dim]."""
    angle = angles(np.arange(len(x)), base)[:, None]
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# %% [markdown]
# Left, the cosines of three pairs: the first turns fast and tells neighbours
# apart, the last hardly moves in 64 tokens. Right, the product of one and
# the same query and key, put at every pair of positions. The product is
# constant along each diagonal: only the distance counts.

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the rotation
import matplotlib.pyplot as plt

T, half = 64, SHAPE["head_dim"] // 2
base = SHAPE["rope_theta"]
of = angles(np.arange(T), base)
same = rotate(np.ones((T, 1, 2 * half)), base)[:, 0]
figure, (a, b) = plt.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
for pair, style in ((0, "-"), (half // 4, "--"), (half - 1, ":")):
    a.plot(np.cos(of[:, pair]), style, label=f"pair {pair}")
a.set(title="cosine of the angle", xlabel="position")
a.legend(fontsize=8, loc="lower left")
image = b.imshow(same @ same.T / (2 * half), cmap="Blues")
b.set(title="query · key", xlabel="key's position", ylabel="query's position")
figure.colorbar(image, ax=b, label="product, largest 1")
plt.show()

# %% [markdown]
# **Attention** mixes, for each position, its own value and those of
# positions before it. A mask says which ones a position sees. A *global*
# layer sees all of them: its mask is causal. A *local* layer sees only the
# last few, a window that slides along, and so does less work for a long
# text.


# %%
def visible(T, window):
    """Which positions [T] (columns) each position (rows) sees."""
    ago = np.arange(T)[:, None] - np.arange(T)
    return (ago >= 0) & (ago < window)


# %% [markdown]
# Both masks for 24 tokens, blue where a position sees another. (The window
# is 6 here, to be seen; the tiny model's is 128.)

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the masks
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
masks = {"global layer: causal": 24, "local layer: sliding window": 6}
for axis, (title, window) in zip(axes, masks.items(), strict=True):
    axis.imshow(visible(24, window), cmap="Blues", vmax=1.4)
    axis.set(title=title, xlabel="position seen", ylabel="position")
plt.show()

# %% [markdown]
# How much of each value is mixed in? The *share* of a position is the
# softmax of query times key. Query, key and value are three projections of a
# row, cut into *heads* that each attend on their own.
#
# Queries are **grouped**: several query heads share one head of keys and
# values. The tiny model has four query heads and one shared head. Keys and
# values are what a sampler keeps of every earlier token (the KV cache of
# notebook 03), and it reads all of them for each new one. A quarter of the
# heads is a quarter of that memory and of that reading. The authors of the
# method measured little loss of quality
# ([2305.13245](https://arxiv.org/abs/2305.13245)). `np.repeat` gives each
# query head its copy.


# %%
def attention(x, layer, kind):
    """The mixed values [T, width], and the shares [heads, T, T]."""
    T, h = len(x), SHAPE["head_dim"]
    base = SHAPE["rope_parameters"][kind]["rope_theta"]
    q, k, v = (
        (x @ get(f"{layer}.{n}_proj").T).reshape(T, -1, h) for n in "qkv"
    )
    q = rotate(norm(q, f"{layer}.q_norm"), base)
    k = rotate(norm(k, f"{layer}.k_norm"), base)
    k, v = (np.repeat(z, q.shape[1] // z.shape[1], axis=1) for z in (k, v))
    scores = np.einsum("qnh,knh->nqk", q, k)
    scores /= SHAPE["query_pre_attn_scalar"] ** 0.5
    local = kind == "sliding_attention"
    seen = visible(T, SHAPE["sliding_window"] if local else T)
    e = np.exp(np.where(seen, scores, -np.inf))
    share = e / e.sum(-1, keepdims=True)
    mixed = np.einsum("nqk,knh->qnh", share, v).reshape(T, -1)
    return mixed @ get(f"{layer}.o_proj").T, share


# %% [markdown]
# **The feed-forward** works on each position alone: two projections up, one
# of them through a smooth switch (GELU), their product, and one down. **A
# layer** is attention and feed-forward, each with a norm before and after,
# and each added to what was there.


# %%
def feed_forward(x, layer):
    gate, up = (x @ get(f"{layer}.{n}_proj").T for n in ("gate", "up"))
    cube = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    return gate / 2 * (1 + np.tanh(cube)) * up @ get(f"{layer}.down_proj").T


def numpy_gemma(ids):
    """Logits after each token of a row, and the last layer's shares."""
    x = get("embed_tokens")[ids] * SHAPE["hidden_size"] ** 0.5
    for i, kind in enumerate(SHAPE["layer_types"]):
        p = f"layers.{i}"
        y = norm(x, f"{p}.input_layernorm")
        y, share = attention(y, f"{p}.self_attn", kind)
        x = x + norm(y, f"{p}.post_attention_layernorm")
        y = norm(x, f"{p}.pre_feedforward_layernorm")
        y = feed_forward(y, f"{p}.mlp")
        x = x + norm(y, f"{p}.post_feedforward_layernorm")
    return norm(x, "norm") @ get("embed_tokens").T, share


# %% [markdown]
# Where does the last layer look? Two of its four heads, a row for each
# token, a column for each token that it sees. Dark means a large share. Look
# at the row of `8`, the last result.

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the last layer's attention
by_hand, share = numpy_gemma(ids)
names = [small_tokenizer.decode([i]) or "bos" for i in ids]
figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
for head, axis in enumerate(axes):
    image = axis.imshow(share[head], cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(ids)), names, fontsize=7)
    axis.set_yticks(range(len(ids)), names, fontsize=7)
    axis.set_title(f"last layer, head {head}")
figure.colorbar(image, ax=axes, label="share")
plt.show()

# %% [markdown]
# In the row of `8` head 1 looks mostly at `40`, the target. The token after
# `8` should be `yes` if the two are equal and `no` if not, so this head
# looks at what the model has to compare. (One text is an example, no proof.)
#
# ### Check: the library computes the same
#
# The library's model is written another way: layers stacked and scanned,
# float32, and spread over all devices that are here. `forward` runs it.
# The two agree up to the rounding of float32.


# %%
import jax
import jax.numpy as jnp
from flax import nnx

from aha_lib.look import show
from aha_lib.presets import MODELS, SETTINGS

settings = dataclasses.replace(SETTINGS[preset], **overrides)
mesh = devices.make_mesh(tp=settings.tp)
small, _, _ = weights.load("tiny", mesh=mesh)


@nnx.jit
def forward(model, tokens):
    """Logits after every token of whole rows: [B, T] -> [B, T, V]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
    return model.logits(hidden)


with jax.default_matmul_precision("highest"):  # a TPU's is bfloat16
    ours = devices.to_host(forward(small, jnp.array([ids])))[0]
difference = np.abs(ours - by_hand).max()
assert difference < 1e-4
print(f"on {mesh.size} device(s): logits up to {np.abs(ours).max():.1f},")
print(f"largest difference {difference:.0e}")

# %% [markdown]
# ## 2. Loading yours
#
# Google publishes Gemma on Kaggle, under a licence that you accept there,
# once, with a click. Then a *token* of your account lets a program download
# it. Each published model has a handle:

# %%
show.table(
    ["preset", "Kaggle handle", "parameters"],
    [
        [name, f"`{handle}`", f"{MODELS[name].parameters / 1e9:.2f} G"]
        for name, handle in weights.HANDLES.items()
    ],
)

# %% [markdown]
# A handle with `-it` at its end is that of the instruct variant. We start
# from the base models, which have had no reinforcement learning, so that all
# of what it adds can be seen.
#
# To get a real Gemma:
#
# 1. open the model's page and accept the licence there, once for each;
#    the page's name is the beginning of the handle,
#    <https://www.kaggle.com/models/google/gemma-3> for `gemma3-…`,
#    <https://www.kaggle.com/models/google/gemma-2> for `gemma2-…`;
# 2. in a Kaggle notebook that is all. Elsewhere make a token, on Kaggle
#    under *Settings → API*. On Colab it becomes the secret
#    `KAGGLE_API_TOKEN` (the key symbol on the left; let the notebook read
#    it): `KAGGLE_USERNAME` and `KAGGLE_KEY` alone are not found there. A
#    machine that you attach to Colab sees no secret of Colab's. On it, and
#    anywhere else, the token is the environment variable
#    `KAGGLE_API_TOKEN` or the file `~/.kaggle/access_token`.
#
# **From Hugging Face instead**: `overrides = {"model":
# "hf:google/gemma-3-1b-pt"}` with any preset of that model. Accept the
# licence on the model's page there, put a token of your account into
# `HF_TOKEN` (an environment variable, or a secret of Kaggle or Colab), and
# `%pip install huggingface_hub` where it is missing.
#
# Is there a token of Kaggle here? The cell only says yes or no; nothing in
# this project prints one.

# %%
import kagglehub

known = kagglehub.config.get_kaggle_credentials() is not None
print(
    "Kaggle knows who you are."
    if known
    else "No Kaggle token here: only what is on this machine can be loaded."
)

# %% [markdown]
# `weights.load` does what `get` did, for a folder of Kaggle's or of Hugging
# Face's, of generation 1, 2 or 3. The tensors go from the disk straight to
# where they will stay, a layer at a time. A bar appears if that takes more
# than two seconds. Which device holds which part follows from a *mesh*, as
# in notebook 00. Parameters are float32; `dtype` is that of the arithmetic,
# bfloat16 on accelerators.

# %%
dtype, _ = devices.dtypes(settings.dtype)
source = settings.model
print("devices:", mesh.size)
print("source: ", source if source in MODELS else "your folder or handle")

# %%
try:
    model, tokenizer, config = weights.load(source, mesh=mesh, dtype=dtype)
except (OSError, ValueError) as problem:
    print(f"{problem}\nGoing on with the tiny model.")
    model, tokenizer, config = weights.load("tiny", mesh=mesh)
print(f"Gemma {config.generation}, {config.parameters:,} parameters")

# %% [markdown]
# Whatever goes wrong while loading, the error is a sentence that says what
# to do: the licence not accepted, no token, no network, a full disk, half a
# download, a file cut off, a model that is no Gemma. The next cell breaks a
# copy of the tiny model in three ways and prints the errors.

# %%
import tempfile
from pathlib import Path

from aha_lib.model import export

broken = Path(tempfile.mkdtemp()) / "broken"
export.save_hf(small, broken)
for step in ("no tokenizer", "a llama", "half a file"):
    if step == "a llama":
        small_tokenizer.save(broken / "tokenizer.model")
        file = broken / "config.json"
        said = file.read_text()
        file.write_text(said.replace("gemma3_text", "llama"))
    if step == "half a file":
        file = broken / "model.safetensors"
        file.write_bytes(file.read_bytes()[:100_000])
    try:
        weights.load(broken)
    except (OSError, ValueError) as problem:
        print(str(problem).replace(str(broken), "the folder"), "\n")

# %% [markdown]
# ## 3. The tokenizer, token by token
#
# This is the line `ids = small_tokenizer.encode(…)` of part 1, for your
# preset's model. The tokenizer cuts a text into pieces of its vocabulary. In
# the vocabulary a piece that begins a new word starts with `▁`, which is
# shown as a space or left out below.


# %%
def knows(text):
    """Whether the vocabulary has all of a text: a cut or tiny one may not."""
    return tokenizer.decode(tokenizer.encode(text)) == text


def pieces(text):
    """Ids of a text, each with the text that it stands for."""
    ids = tokenizer.encode(text)
    texts = [f"`{tokenizer.decode([i]) or 'special'}`" for i in ids]
    return show.table(["id", *ids], [["text", *texts]])


text = next(filter(knows, ("Gemma counts: 20 - 16", "20 - 16 = 4", "20")))
print(f"{tokenizer.vocab_size:,} pieces")
pieces(text)

# %% [markdown]
# The first id is `<bos>`, the beginning of a text: a Gemma has never read
# one without it. In the tiny vocabulary every word and every integer up to
# 100 is a single token. Gemma 3 writes `20` as two, digit by digit; its
# 262,144 pieces hold words of many languages, and single bytes for the rest.
#
# The special ids are found by their names, never by number:

# %%
for name in ("pad_id", "bos_id", "eos_id", "stop_ids"):
    print(f"{name:<9}", getattr(tokenizer, name))

# %% [markdown]
# `stop_ids` are what ends a completion. An instruct variant ends its turn by
# `<end_of_turn>` and not by `<eos>`: a sampler that waits for `<eos>` alone
# writes on and on.
#
# While a text is being written, the last character may still lack bytes.
# `stream` shows only what is complete:

# %%
" | ".join(tokenizer.stream(tokenizer.encode(text)))

# %% [markdown]
# ## 4. The configuration of three generations
#
# Gemma 1, 2 and 3 are one architecture with a few switches. `config.json`
# has two dozen entries. These eight decide how large a model is and what
# its layers see; in the NumPy version they are the entries of `SHAPE` and
# the shapes of the arrays that `get` returns.

# %%
chosen = ["tiny", "gemma-2b", "gemma2-2b", "gemma3-270m", "gemma3-1b"]
FIELDS = {
    "vocab": "pieces of the vocabulary",
    "layers": "layers",
    "width": "numbers for each token",
    "heads": "query heads",
    "kv_heads": "heads of keys and values",
    "head_dim": "numbers of a head",
    "ff": "width of the feed-forward",
}


def reach(c):
    """What the layers of a model see, in words."""
    local = f"{c.window:,}; 1 layer in {c.global_every}: all"
    return local if c.window else "all"


show.table(
    ["", *chosen],
    [
        *(
            [meaning, *(f"{getattr(MODELS[m], field):,}" for m in chosen)]
            for field, meaning in FIELDS.items()
        ),
        ["tokens that a layer sees", *(reach(MODELS[m]) for m in chosen)],
    ],
)

# %% [markdown]
# Three things to see. All of them share keys and values among query heads,
# Gemma 1 2B the most. In generation 2 every second layer sees a window only,
# in generation 3 five layers of six. And within a generation a small Gemma
# has as large a vocabulary as a large one. What the table leaves out: Gemma
# 2 brought norms after each block and a cap on the logits; Gemma 3 dropped
# the caps and normalises queries and keys instead.
#
# ## 5. Where the parameters live
#
# How large are the arrays that `get` read: how much of a model is
# vocabulary, attention, feed-forward? No weights are needed to count:
# `nnx.eval_shape` builds a model of shapes alone.

# %%
from aha_lib.model.gemma import Gemma

PARTS = {
    "vocabulary": ["embed"],
    "attention": ["q", "k", "v", "o"],
    "feed-forward": ["gate", "up", "down"],
}


def count(config):
    """Parameters of each part of a model; the norms are what is left."""
    shapes = nnx.eval_shape(lambda: Gemma(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(shapes))
    params |= params.pop("layers")
    return {
        part: sum(params[name].size for name in names)
        for part, names in PARTS.items()
    }


# %%
names = [*chosen[1:], "tiny"]
counts = [count(MODELS[name]) for name in names]
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
left = [0.0] * len(names)
for part in PARTS:
    shares = [
        100 * c[part] / MODELS[name].parameters
        for c, name in zip(counts, names, strict=True)
    ]
    bars = axis.barh(names, shares, left=left, label=part)
    axis.bar_label(bars, fmt="%.0f", label_type="center")
    left = [a + b for a, b in zip(left, shares, strict=True)]
axis.set(xlim=(0, 100), xlabel="share of all parameters (%)")
axis.invert_yaxis()
axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
plt.show()

# %% [markdown]
# Gemma 3 270M is mostly vocabulary: 168 million of its parameters are the
# rows of its 262,144 pieces, 100 million are in the layers. The same table
# serves at both ends, for reading and for writing. That is why training
# code has to be careful with *logits*: each token has one for every piece of
# the vocabulary.
#
# ### Check: the same by hand
#
# Widths times heights, from the table above.

# %%
c = MODELS["gemma3-270m"]
per_layer = (
    c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)  # q, o, k, v
    + 3 * c.width * c.ff  # gate, up, down
    + 4 * c.width
    + 2 * c.head_dim  # norms
)
total = c.vocab * c.width + c.layers * per_layer + c.width
assert total == c.parameters == 268_098_176
print(f"{total:,}, of which the vocabulary {c.vocab * c.width / total:.0%}")

# %% [markdown]
# ## 6. What lies where
#
# The NumPy version had each array in one place. In the library each
# parameter names its axes, and one table, `devices.RULES`, says which mesh
# axis splits which of them. The layers are stacked: one array holds, say,
# the query weights of all layers. What would one of eight devices hold? No
# such devices are needed to ask: an abstract mesh will do.

# %%
eight = jax.sharding.AbstractMesh((8, 1), ("fsdp", "tp"))
layers = nnx.state(model)["layers"]
rows = []
for name, p in [("embed", model.embed), *layers.items()]:
    axes = p.get_metadata()["axes"]
    split = jax.sharding.NamedSharding(
        eight, devices.spec(p.shape, axes, eight)
    )
    here, of_eight = (x.shard_shape(p.shape) for x in (p.sharding, split))
    rows.append([name, p.shape, ", ".join(map(str, axes)), here, of_eight])
show.table(
    ["parameter", "shape", "axes", "here a device has", "of eight, one has"],
    rows,
)

# %% [markdown]
# The layers are split along their width, `embed`. The embedding is split
# along its vocabulary if the number of devices divides it, else along its
# width, as with the tiny preset. What is small, such as the norms, is on all
# devices. Drawn for the embedding and for one layer's `gate`:

# %%
from aha_lib.look import placement

gate = model.layers.gate[...][0]
drawn = {"embed": model.embed[...], "gate of layer 0": gate}
for name, array in drawn.items():
    print(name, array.shape)
    jax.debug.visualize_array_sharding(array, use_color=False)

# %%
if mesh.size == 1:
    print("One device has it all. Eight (simulated) devices:\n")
    axes = [("vocab", "embed"), ("embed", "ff")]
    shapes = [array.shape for array in drawn.values()]
    named = zip(drawn, zip(shapes, axes, strict=True), strict=True)
    print(placement.simulated(dict(named)))

# %% [markdown]
# How much memory do the parameters take, on each device of this machine?

# %%
held = dict.fromkeys(mesh.local_devices, 0)
once = 0  # bytes of what is on several devices, counted once
for array in jax.tree.leaves(nnx.state(model)):
    for shard in array.addressable_shards:
        held[shard.device] += shard.data.nbytes
        once += shard.data.nbytes * (shard.replica_id == 0)
for device, size in held.items():
    has = (device.memory_stats() or {}).get("bytes_limit", 0) / 2**20
    print(
        f"{device}: {size / 2**20:.1f} MiB of parameters",
        f"of {has:,.0f} MiB" * bool(has),
    )
more = sum(held.values()) / once - 1
print(f"4 bytes for each parameter: {4 * config.parameters:,} bytes.")
print(f"Here there are {once:,}; copies on several devices add {more:.1%}.")

# %% [markdown]
# ## 7. What it says
#
# The last line of the NumPy version returns logits: a number for each piece
# of the vocabulary, at each position. A softmax of the last row gives the
# probabilities of the next token. The next two cells do that with the model
# of your preset. Look at the likeliest token.

# %%
prompt = next(filter(knows, ("The capital of France is", "20 16 4 = 40 :")))
prompt_ids = tokenizer.encode(prompt)
logits = devices.to_host(forward(model, jnp.array([prompt_ids])))[0]
logits.shape

# %%
probs = np.asarray(jax.nn.softmax(logits[-1]))
top = np.argsort(-probs)[:10]
names = [ascii(tokenizer.decode([i]))[1:-1] or "end" for i in top]
plt.figure(figsize=(8, 2.6), layout="constrained")
plt.bar(range(10), probs[top])
plt.xticks(range(10), names, parse_math=False)
plt.ylabel("probability")
plt.title(f"What comes after   {prompt}")
plt.show()

# %% [markdown]
# *Greedy* decoding takes the likeliest token each time. The library's
# sampler does so at temperature 0. How it works is the subject of notebook
# 03.

# %%
from aha_lib.rl import sampler

rows, valid = sampler.pad_left([prompt_ids], len(prompt_ids), tokenizer.pad_id)
greedy = sampler.Sampling(
    group=1,
    length=32,
    temperature=0,
    stop_ids=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
    gather=False,  # for one row no device needs the whole model
)
with devices.use(mesh):
    out = sampler.sample(model, rows, valid, jax.random.key(0), greedy)
print(prompt, "|", tokenizer.decode(out.tokens[0]))

# %% [markdown]
# With the tiny preset the base answers at once, and here wrongly. In most of
# the texts that it was pre-trained on, an answer comes at once and is a
# random expression: such texts show how an answer looks, not which one is
# right. The other notebooks change that. A real Gemma continues its
# sentence.
#
# A large model is not needed any more. Its memory is free once no name
# refers to it.

# %%
del model, layers, gate, drawn, array, shard, p

# %% [markdown]
# ## 8. Out again
#
# A trained model should be of use to other programs. `save_hf` writes what
# the `transformers` library opens, `save_kaggle` the Orbax layout in which
# Gemma is published. Here it is done with the tiny model; after a run,
# notebook 05 does it with yours.

# %%
out = Path(tempfile.mkdtemp())
export.save_hf(small, out / "hf", small_tokenizer)
export.save_kaggle(small, out / "kaggle", small_tokenizer)
for path in sorted(out.glob("*/*")):
    print(path.relative_to(out))

# %% [markdown]
# ### Check: the same to the last bit

# %%
for layout in ("hf", "kaggle"):
    again, _, _ = weights.load(out / layout)
    before, after = (jax.tree.leaves(nnx.state(m)) for m in (small, again))
    for a, b in zip(before, after, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
print(len(before), "arrays, each the same in both layouts.")

# %% [markdown]
# ## Exercises
#
# 1. Gemma's `embed` table is used twice, for reading and for writing. How
#    many parameters would Gemma 3 1B have if it were not?
# 2. In the NumPy version, set the sliding window to 4 and compare with the
#    model again. From which position on do the logits differ, and why not
#    earlier?
#
# <details><summary>Answers</summary>
#
# 1. One more table of 262,144 x 1152: 302 million, almost a third more.
# 2. From the fifth token on: the first four positions have at most four
#    tokens to look at, themselves included.
#
# </details>
#
# ## Summary
#
# Loading and the table of handles live in `aha_lib/model/weights.py`, saving
# in `aha_lib/model/export.py`, the transformer in `aha_lib/model/gemma.py`,
# its shapes in `aha_lib/presets.py`, the mesh and the rules of sharding in
# `aha_lib/devices.py`. Adapters that leave the base as it is (LoRA) are in
# `aha_lib/model/lora.py`.
#
# Next: `02_countdown_env`, the game that the model will learn.
