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
# This notebook opens all three, computes the model once more in NumPy to be
# sure, and shows which device holds what.
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | under 1 |
#
# Any other preset in `presets.SETTINGS` runs the same cells with a real
# Gemma. That was not timed here; it takes a download.
#
# **You will see**
#
# 1. that the tokenizer gives every text back as it was;
# 2. that more than half of the smallest Gemma is its vocabulary;
# 3. that fifty lines of NumPy, reading the file on their own, compute the
#    same numbers as the sharded model;
# 4. that a model saved and loaded again is the same to the last bit.

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
# `tiny` is a Gemma-shaped model that comes with the package: nothing to
# download and no account. It is the only line to change for a real one.

# %% tags=["parameters"]
preset = "tiny"

# %% [markdown]
# ## 1. Where the weights come from
#
# Google publishes Gemma on Kaggle, under a licence that you accept there,
# once, with a click. Then a *token* of your account lets a program download
# it. Each published model has a handle:

# %%
from aha_lib.look import show
from aha_lib.model import export, weights
from aha_lib.presets import MODELS, SETTINGS

show.table(
    ["preset", "Kaggle handle", "parameters"],
    [
        [name, f"`{handle}`", f"{MODELS[name].parameters / 1e9:.2f} G"]
        for name, handle in weights.HANDLES.items()
    ],
)

# %% [markdown]
# With `-it` at the end they are the instruct variants. We start from the
# base models: what reinforcement learning adds should be seen from zero.
#
# To get a real one:
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
# Is there a token here? The cell only says yes or no; nothing in this
# project prints one.

# %%
import kagglehub

known = kagglehub.config.get_kaggle_credentials() is not None
print(
    "Kaggle knows who you are."
    if known
    else "No Kaggle token here: only what is on this machine can be loaded."
)

# %% [markdown]
# If you have a folder with a Gemma already, in Kaggle's layout or in Hugging
# Face's, give its path here or set `AHA_MODEL`, and run the notebook from
# here on. Left empty, the preset decides.

# %%
import os

import ipywidgets

where = ipywidgets.Text(
    value=os.environ.get("AHA_MODEL", ""),
    placeholder="path of a folder",
    description="folder",
)
where

# %% [markdown]
# ## 2. Loading
#
# The tensors go from the disk straight to where they will stay, a layer at
# a time; a bar shows how far, if it takes more than two seconds. Which
# device holds which part is said by a *mesh*: here all devices in one row.

# %%
from aha_lib import devices

mesh = devices.make_mesh()
source = where.value or SETTINGS[preset].model
print("devices:", mesh.size)
print("source: ", "your folder" if where.value else source)

# %%
try:
    model, tokenizer, config = weights.load(source, mesh=mesh)
except (OSError, ValueError) as problem:
    print(f"{problem}\nGoing on with the tiny model.")
    source = "tiny"
    model, tokenizer, config = weights.load(source, mesh=mesh)
print(f"Gemma {config.generation}, {config.parameters:,} parameters")

# %% [markdown]
# Whatever goes wrong there is one sentence that says what to do: the licence
# not accepted, no token, no network, a full disk, half a download, a file
# cut off, a model that is no Gemma. Try some:

# %%
import tempfile
from pathlib import Path

small, small_tokenizer, _ = weights.load("tiny", mesh=mesh)
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
# A model reads numbers. The tokenizer cuts a text into pieces of its
# vocabulary; a piece that starts with `▁` starts a new word.


# %%
def pieces(text):
    """Ids of a text, each with the text that it stands for."""
    ids = tokenizer.encode(text)
    return show.table(
        ["id", *ids],
        [
            [
                "text",
                *map(lambda i: f"`{tokenizer.decode([i]) or 'special'}`", ids),
            ]
        ],
    )


text = "20 - 16 = 4 yes" if source == "tiny" else "Gemma counts: 20 - 16"
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
# ### Check: nothing is lost
#
# Texts come back as they were, whole and streamed. For the tiny vocabulary
# they are drawn from its words.

# %%
import random

from aha_lib.model.tokenizer import TINY_WORDS

words = [*TINY_WORDS]
if source != "tiny":
    words += ["Größe", "🦜", "\n"]
for seed in range(500):
    sample = " ".join(random.Random(seed).choices(words, k=seed % 20 + 1))
    ids = tokenizer.encode(sample)
    assert tokenizer.decode(ids) == sample
    assert "".join(tokenizer.stream(ids)) == sample
    assert ids.count(tokenizer.bos_id) == 1
print("500 texts came back.")

# %% [markdown]
# ## 4. Three generations in one table
#
# Gemma 1, 2 and 3 are one architecture with a few switches. The package has
# one transformer; these numbers are all that differs.

# %%
import dataclasses

chosen = ["tiny", "gemma-2b", "gemma2-2b", "gemma3-270m", "gemma3-1b"]
show.table(
    ["", *chosen],
    [
        [
            field.name,
            *(f"{getattr(MODELS[name], field.name):,}" for name in chosen),
        ]
        for field in dataclasses.fields(MODELS["tiny"])
    ],
)

# %% [markdown]
# What to look for: Gemma 2 brought norms after each block and a cap on the
# logits; every second layer sees only a window. Gemma 3 dropped the caps,
# normalises queries and keys instead, and only each sixth layer looks at
# everything, with a slower rotation (`rope_base`).
#
# ## 5. Where the parameters live
#
# How much of a model is vocabulary, attention, feed-forward? No weights are
# needed to count: `nnx.eval_shape` builds a model of shapes alone.

# %%
from flax import nnx

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
import matplotlib.pyplot as plt

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
# Gemma 3 270M is mostly a dictionary: 168 million of its parameters say
# what the 262,144 pieces mean, 100 million do the thinking. The same table
# serves at both ends, for reading and for writing. That is why training
# code has to be careful with *logits*: one row of them is as long as the
# vocabulary.
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
assert count(c)["vocabulary"] == 262_144 * 640
assert count(c)["vocabulary"] > total / 2
print(f"{total:,}")

# %% [markdown]
# ## 6. What lies where
#
# Each parameter names its axes, and one table in `runtime` says which mesh
# axis splits which of them. The layers are stacked: one array holds, say,
# the query weights of all layers.

# %%
layers = nnx.state(model)["layers"]
show.table(
    ["parameter", "shape", "axes", "a device holds"],
    [
        [
            name,
            p.shape,
            ", ".join(map(str, p.get_metadata()["axes"])),
            p.sharding.shard_shape(p.shape),
        ]
        for name, p in [("embed", model.embed), *layers.items()]
    ],
)

# %% [markdown]
# A single device holds everything. On a TPU with eight cores it would be an
# eighth of each large array; what is small, such as the norms, is on all of
# them. A mesh need not exist to be asked:

# %%
import jax

eight = jax.sharding.AbstractMesh((8, 1), ("fsdp", "tp"))
for name, p in [("embed", model.embed), *layers.items()]:
    axes = p.get_metadata()["axes"]
    split = jax.sharding.NamedSharding(
        eight, devices.spec(p.shape, axes, eight)
    )
    print(f"{name:<15}{p.shape!s:>18} -> {split.shard_shape(p.shape)}")

# %% [markdown]
# The embedding is split along its vocabulary if that divides by eight, else
# along its width, as here; the layers are split along their width. And how
# much memory is it, on each device of this machine?

# %%
held = dict.fromkeys(mesh.devices.flat, 0)
for array in jax.tree.leaves(nnx.state(model)):
    for shard in array.addressable_shards:
        held[shard.device] += shard.data.nbytes
for device, size in held.items():
    has = (device.memory_stats() or {}).get("bytes_limit", 0) / 2**20
    print(
        f"{device}: {size / 2**20:.1f} MiB of parameters",
        f"of {has:,.0f} MiB" * bool(has),
    )

# %% [markdown]
# ### Check: the arithmetic
#
# Four bytes for each parameter, and nothing is on a device twice.

# %%
whole = 4 * config.parameters
assert whole <= sum(held.values()) < 1.1 * whole
print(f"{whole:,} bytes expected")

# %% [markdown]
# ## 7. What it says
#
# The model turns tokens into the probabilities of the next one.

# %%
import jax.numpy as jnp
import numpy as np

prompt = "20 16 4 = 40 :" if source == "tiny" else "The capital of France is"


@nnx.jit
def forward(model, tokens):
    """Logits after every token of whole rows: [B, T] -> [B, T, V]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
    return model.logits(hidden)


ids = tokenizer.encode(prompt)
logits = np.asarray(forward(model, jnp.array([ids])))[0]
logits.shape

# %%
probs = np.asarray(jax.nn.softmax(logits[-1]))
top = np.argsort(-probs)[:10]
plt.figure(figsize=(8, 2.6), layout="constrained")
plt.bar(range(10), probs[top])
plt.xticks(range(10), [tokenizer.decode([i]) or "end" for i in top])
plt.ylabel("probability")
plt.title(f"What comes after   {prompt}")
plt.show()

# %% [markdown]
# Always the likeliest token, one after the other, is *greedy* decoding. The
# library's sampler does it at temperature 0; how it works is the subject of
# notebook 03.

# %%
from aha_lib.rl import sampler

rows, valid = sampler.pad_left([ids], len(ids), tokenizer.pad_id)
out = sampler.sample(
    model,
    rows,
    valid,
    jax.random.key(0),
    sampler.Sampling(
        group=1,
        length=32,
        temperature=0,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
    ),
)
print(prompt, "|", tokenizer.decode(out.tokens[0]))

# %% [markdown]
# The tiny base answers at once, and here wrongly: it has seen how answers
# look, not what earns a reward. To change that is what the other notebooks
# are for. A real Gemma continues its sentence.
#
# ### Check: Gemma in NumPy
#
# Everything between the file and the probabilities, written a second time:
# plain NumPy in float64, one row, no cache, no sharding, no shared code. It
# reads `model.safetensors` of the tiny model by its published names and is
# compared with the sharded one.

# %%
import json

from safetensors.numpy import load_file

FILE = load_file(weights.TINY / "model.safetensors")
SHAPE = json.loads((weights.TINY / "config.json").read_text())


def get(name):
    return FILE[f"model.{name}.weight"].astype(np.float64)


def norm(x, name):
    mean = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean + SHAPE["rms_norm_eps"]) * (1 + get(name))


def rotate(x, base):
    """Turn pairs of numbers by angles that grow with the position."""
    half = x.shape[-1] // 2
    speed = base ** (-np.arange(half) / half)
    angle = np.arange(len(x))[:, None, None] * speed
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [
            a * np.cos(angle) - b * np.sin(angle),
            b * np.cos(angle) + a * np.sin(angle),
        ],
        -1,
    )


# %% [markdown]
# A layer is two steps, each with a norm before and after: look around
# (attention), then think about it (feed-forward).


# %%
def attention(x, layer, kind):
    """Each position mixes values of those before it, by similarity."""
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
    ago = np.arange(T)[:, None] - np.arange(T)
    seen = (ago >= 0) & (
        ago < SHAPE["sliding_window"]
        if kind == "sliding_attention"
        else ago >= 0
    )
    e = np.exp(np.where(seen, scores, -np.inf))
    mixed = np.einsum("nqk,knh->qnh", e / e.sum(-1, keepdims=True), v)
    return mixed.reshape(T, -1) @ get(f"{layer}.o_proj").T


# %%
def feed_forward(x, layer):
    gate, up = (x @ get(f"{layer}.{n}_proj").T for n in ("gate", "up"))
    cube = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    return gate / 2 * (1 + np.tanh(cube)) * up @ get(f"{layer}.down_proj").T


def numpy_gemma(ids):
    """Logits after each token of one row."""
    x = get("embed_tokens")[ids] * SHAPE["hidden_size"] ** 0.5
    for i, kind in enumerate(SHAPE["layer_types"]):
        p = f"layers.{i}"
        y = norm(x, f"{p}.input_layernorm")
        y = attention(y, f"{p}.self_attn", kind)
        x = x + norm(y, f"{p}.post_attention_layernorm")
        y = norm(x, f"{p}.pre_feedforward_layernorm")
        y = feed_forward(y, f"{p}.mlp")
        x = x + norm(y, f"{p}.post_feedforward_layernorm")
    return norm(x, "norm") @ get("embed_tokens").T


# %%
text = "20 16 4 = 40 : 20 - 16 = 4 , 4 + 4 = 8 no 20 + 4 = 24"
ids = small_tokenizer.encode(text)
with jax.default_matmul_precision("highest"):  # a TPU's is bfloat16
    ours = np.asarray(forward(small, jnp.array([ids])))[0]
difference = np.abs(ours - numpy_gemma(ids)).max()
assert difference < 1e-4
print(
    f"logits up to {np.abs(ours).max():.1f}, largest difference"
    f" {difference:.0e}"
)

# %% [markdown]
# ## 8. Out again
#
# A trained model should not be a prisoner of the code that trained it.
# `save_hf` writes what the `transformers` library opens, `save_kaggle` the
# Orbax layout in which Gemma is published.

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
# Loading and the table of handles live in `aha_lib/model/weights.py`, saving in
# `aha_lib/model/export.py`, the
# transformer in `aha_lib/model/gemma.py`, its shapes in `aha_lib/presets.py`, the
# mesh and the rules of sharding in `aha_lib/devices.py`. Adapters that leave
# the base as it is (LoRA) are in `aha_lib/model/lora.py`.
#
# Next: `02_countdown_env`, the game that the model will learn.
