# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Where am I, which chips, how fast, and what will fit?
#
# **Before anything is downloaded:** is there a TPU, does it keep its
# promises, and will the model fit into it?
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | about 1, most of it the TPU compiler's |
#
# You will see
#
# 1. the loop that all these notebooks are about, once as a picture;
# 2. what this machine is, and how its devices form a mesh;
# 3. how fast it calculates and moves data, and where on its roofline the
#    phases of a training step lie;
# 4. that writing tokens one by one is far slower than reading as many at
#    once, measured;
# 5. what a training step of Gemma needs on a TPU core, as the TPU's own
#    compiler says. It runs here, TPU or not.
#
# 2 to 5 have check cells.

# %% [markdown]
# ## What was run, what was compiled, what never was
# - **Run**, on CPUs: every notebook, the tests, the tiny model's training,
#   and a forward pass of the real Gemma 3 270M. Eight simulated CPU devices
#   stand in for eight TPU cores, two processes for two hosts. Notebooks 00
#   to 03, 05 and 06 also with the package versions of Colab's TPU image of
#   August 2026.
# - **Compiled** for TPUs by XLA's own compiler, not run: the programs of a
#   training step of every model in the last part of this notebook.
# - **Never run:** anything on a TPU, anything on the pages of Kaggle, Colab
#   or Google Cloud. The steps below are taken from those sites' documents,
#   as of November 2026; where they disagree, believe the sites.
#
# If you run it on a TPU before we do: the second cell's output and any error
# are what we would like to hear of.

# %% [markdown]
# ## Kaggle, free
# 1. In the account's settings verify your phone: without it there is no TPU
#    and no internet.
# 2. Bring the folder as a zip of your clone, about 6 MB (`README` tells how
#    to make `aha.zip`): *Create → New Dataset*, drop the file, name it
#    `aha`, *Create*. Kaggle unpacks it.
# 3. *Create → New Notebook → File → Import Notebook*, and upload an
#    `.ipynb` from the folder `notebooks`.
# 4. *Add Input → Your Work → aha*. The dataset is then somewhere below
#    `/kaggle/input`, read-only; runs are written to `/kaggle/working`.
# 5. *Settings → Accelerator → TPU v5e-8* (or v3-8, where it is still
#    offered), *Settings → Internet → on*.
# 6. *Run All*. The setup cell names what it installs (`tyro` at most, with
#    the list of Kaggle's TPU image of August 2026 as it resolved in November)
#    and ends with the chips: eight of them.
#
# That image puts an older libtpu beside JAX, 0.0.17, for torch's sake. If
# JAX cannot start the TPU with it, the setup cell says so: run
# `%pip install "jax[tpu]"` in a cell of its own, and restart.
#
# Models whose licence you accepted need no token there. A TPU session ends
# after 9 hours, and there is a weekly allowance; the page shows what is
# left of it.

# %% [markdown]
# ## Colab
# 1. *File → Upload notebook*, an `.ipynb` from the folder `notebooks`.
# 2. *Runtime → Change runtime type → v5e-1 TPU* (or v6e-1, where your
#    plan has it). One chip is good for the tiny model and for Gemma 3
#    270M. A CPU runtime is enough for the tiny model.
# 3. Drop `aha.zip` into the pane *Files* on the left; the setup cell unpacks
#    it. Or keep it in your Drive: put it into *My Drive* and mount that,
#    `from google.colab import drive; drive.mount("/content/drive")`.
# 4. *Runtime → Run all*. With Colab's package versions of August 2026 the
#    setup cell installs `jaxtyping` and `tyro` and leaves all else as it is.
# 5. For Gemma's weights: the key symbol on the left, a secret
#    `KAGGLE_API_TOKEN`, and let the notebook read it (notebook 01).
#
# A session's files go with it: set a run's `folder` to one in the mounted
# Drive to keep it.

# %% [markdown]
# ## A Cloud TPU VM, paid by the second
# `gcloud compute tpus` below belongs to the Cloud TPU API, of which Google
# now says that it is no longer developed and gets fixes alone; TPU7x and
# later come only by Compute Engine or GKE
# ([Cloud TPU in Compute
# Engine](https://docs.cloud.google.com/tpu/docs/tpus-in-compute-engine),
# read in November 2026). For a single v5e machine it is still the short
# way: Compute Engine's list of TPU machines (v5p, v6e, TPU7x) had no v5e,
# and GKE needs a cluster first (last part of this notebook). For v6e take
# `gcloud compute instances create` as that page says; from the second block
# below on nothing changes.
#
# **A project with quota.** A new project may have no v5e at all: in the
# console under *IAM & Admin → Quotas*, search for "TPU v5 lite", and ask
# for 8 chips in one zone; "preemptible" is a quota of its own, and is what
# `--spot` uses.
#
# ```sh
# gcloud config set project YOUR_PROJECT
# gcloud services enable tpu.googleapis.com
# # queued: it is made as soon as there is one. --spot is far cheaper, and
# # taken away at any moment; a run that was cut off resumes from its last
# # checkpoint, if that lies in a bucket
# gcloud compute tpus queued-resources create aha-queue --node-id=aha \
#   --zone=us-central1-a --accelerator-type=v5litepod-8 \
#   --runtime-version=v2-alpha-tpuv5-lite --spot
# gcloud compute tpus queued-resources describe aha-queue \
#   --zone=us-central1-a            # until it says ACTIVE
# # or on demand: now or not at all
# gcloud compute tpus tpu-vm create aha --zone=us-central1-a \
#   --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite
# ```
#
# **Go there**, with the zip and a tunnel for Jupyter. The image is Ubuntu
# 22.04 with Python 3.10, which is too old; `uv` brings a newer one. `tmux`
# lives on when the connection breaks: `tmux attach -t aha` brings it back.
#
# ```sh
# gcloud compute tpus tpu-vm scp aha.zip aha: --zone=us-central1-a
# gcloud compute tpus tpu-vm ssh aha --zone=us-central1-a -- \
#   -L 8888:localhost:8888
# # there:
# tmux new -s aha
# python3 -m zipfile -e aha.zip . && cd aha
# curl -LsSf https://astral.sh/uv/install.sh | sh && . ~/.local/bin/env
# uv venv --python 3.12 --seed && . .venv/bin/activate
# uv pip install -e ".[tpu]" notebook
# export KAGGLE_API_TOKEN=...       # Colab's secrets do not reach this VM
# jupyter notebook --no-browser --port=8888 --ServerApp.port_retries=0 \
#   --ServerApp.allow_origin=https://colab.research.google.com \
#   --ServerApp.allow_credentials=True
# ```
#
# In Colab choose *Connect → Connect to a local runtime* and paste the
# address with its token. Without Colab, open that address in a browser.
#
# **One kernel holds the TPU.** Shut it down (*Kernel → Shut Down Kernel*)
# before you start the next notebook, or that one's setup cell says that
# another process has the chips. A long run is better off without Jupyter,
# in `tmux`: `python notebooks/05_train.py --preset gemma3-1b --out runs/1b`.
#
# **When you are done, delete it.** An idle chip costs what a busy one does,
# and a queued request lives on after its machine:
#
# ```sh
# gcloud compute tpus queued-resources delete aha-queue \
#   --zone=us-central1-a --force              # and its machine
# gcloud compute tpus tpu-vm delete aha --zone=us-central1-a
# gcloud compute tpus tpu-vm list --zone=us-central1-a   # nothing left?
# ```
#
# **Vertex AI** offers the same chips to training jobs: put this folder in a
# container whose command is the headless run of notebook 05, and ask for
# machine type `ct5lp-hightpu-8t`. Its Workbench notebooks have no TPU of
# their own; use them as the browser end of the tunnel.

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
# `chip` is the machine you ask the compiler about in the last part; it need
# not be the one you sit at.

# %% tags=["parameters"]
preset = "tiny"
chip = "v5e-8"

# %% [markdown]
# ## The loop
# A puzzle goes to the model, which writes a **group** of answers to it. A
# referee pays each. What an answer earned above its group's mean is its
# **advantage**; it becomes a weight on each of its tokens, and the update
# makes tokens with a positive weight likelier. That is **GRPO**,
# group-relative policy optimisation. Then the next puzzles.

# %%
from aha_lib.look import show

STATIONS = [  # what, the example, the notebook
    ("puzzle", "20 16 4 → 40", "02"),
    ("group", "16 answers", "03"),
    ("reward", "0, 0.1 or 1", "02"),
    ("advantage", "minus the mean", "04"),
    ("token weights", "one a token", "04"),
    ("update", "Adam", "04"),
]
show.cycle(STATIONS, "the changed model writes the next group (05)")

# %% [markdown]
# ## This machine
# Look at the second line: is it the accelerator that you chose? If JAX sees
# a CPU on a TPU machine, the setup cell above has already said why.

# %%
print(devices.describe())

# %% [markdown]
# Free sessions end by the clock. `train` writes checkpoints so that an end
# costs minutes, but it is better to know.

# %%
left = devices.time_left()
print("no limit here" if left is None else f"{left / 3600:.1f} h left")

# %% [markdown]
# Devices form a grid, the mesh. Its axis `fsdp` shares out the rows of a
# batch and the parameters; `tp` splits each matrix among devices and is 1
# unless you ask. One device is a mesh too, and nothing else changes.

# %%
import jax

from aha_lib.presets import MODELS, SETTINGS, shape

settings = SETTINGS[preset]
mesh = devices.make_mesh(tp=settings.tp)
print(dict(mesh.shape), mesh.devices.tolist())

# %% [markdown]
# ### Check
# All devices are in the mesh, each once.

# %%
assert mesh.size == jax.device_count()
assert set(mesh.devices.flat) == set(jax.devices())

# %% [markdown]
# ## How fast?
# Three measurements, in half a minute. Each compiles first, then takes the
# median of some runs; `block_until_ready` waits for the device, which
# otherwise answers before it has worked.

# %%
import statistics
import time

import jax.numpy as jnp
import numpy as np

kind = devices.available()[0].device_kind
cpu = jax.default_backend() == "cpu"
dtype, _ = devices.dtypes()


# %%
def seconds(f, *args, runs=7):
    def once():
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        return time.perf_counter() - start

    once()  # compiles
    return statistics.median(once() for _ in range(runs))


# %% [markdown]
# **Arithmetic.** The product of two n × n matrices takes 2n³ operations: n
# products and n sums for each of n² entries.

# %%
n = 2048 if cpu else 8192
a = jnp.ones((n, n), dtype)
product = jax.jit(lambda a: a @ a)
flops = 2 * n**3 / seconds(product, a)
print(f"{flops / 1e12:.3f} TFLOP/s, {dtype} on one {kind}")

# %% [markdown]
# **Memory.** Changing the sign of a long vector reads and writes every byte
# and does one operation for each number. The result takes the vector's
# place (`donate`): fresh memory has to be asked for first, and on a CPU that
# takes several times as long as filling it.

# %%
v = jnp.ones(2**26 if cpu else 2**29, dtype)
negative = jax.jit(lambda v: -v, donate_argnames="v")


def again():
    global v
    v = negative(v)
    return v


# %%
bandwidth = 2 * v.nbytes / seconds(again)
print(f"{bandwidth / 1e9:.1f} GB/s")

# %% [markdown]
# **Between devices.** `fsdp` keeps a slice of every matrix on each device
# and puts it together when it is needed. How fast does a device get the
# slices of the others?

# %%
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

whole = jnp.ones((jax.device_count() * 1024, 4096), dtype)
if jax.device_count() > 1:
    shared = jax.device_put(whole, NamedSharding(mesh, P(mesh.axis_names)))
    everywhere = NamedSharding(mesh, P())
    gather = jax.jit(lambda x: x, out_shardings=everywhere)
    others = whole.nbytes * (1 - 1 / mesh.size)
    speed = others / seconds(gather, shared)
    print(f"{speed / 1e9:.1f} GB/s into each of {mesh.size} devices")
else:
    print("one device: nothing to gather")

# %% [markdown]
# Against the datasheet. A good part of it is what to expect of such simple
# code; a tenth of it means that something is wrong: another process on the
# chip, or a slower chip than you asked for.

# %%
from aha_lib.tpu import plan

NAMES = {"TPU v3": "v3-8", "TPU v5 lite": "v5e-1", "TPU v6 lite": "v6e-1"}
sheet = plan.CHIPS.get(NAMES.get(kind))
if sheet:
    share = flops / sheet.flops, bandwidth / sheet.bandwidth
    print(f"arithmetic {share[0]:.0%} of {sheet.flops / 1e12:g} TFLOP/s")
    print(f"memory {share[1]:.0%} of {sheet.bandwidth / 1e9:g} GB/s")
else:
    print(f"no datasheet for {kind}: the measured values serve as its peaks")

# %% [markdown]
# ### Check
# Are the counts right? XLA counts the operations of a compiled program too.

# %%
counted = product.lower(a).compile().cost_analysis()["flops"]
assert abs(counted / (2 * n**3) - 1) < 0.01
counted = negative.lower(v).compile().cost_analysis()["flops"]
assert abs(counted / v.size - 1) < 0.01
print("XLA counts the same")

# %% [markdown]
# ## The roofline
# A chip does at most `flops` operations and moves at most `bandwidth` bytes
# a second. A program that does I operations per byte (its *intensity*) can
# reach min(flops, I · bandwidth): a roof with a slope and a flat part. They
# meet at the **ridge**. Left of it the memory decides, right of it the
# arithmetic.
#
# The three phases of a step on each device, for N parameters of b bytes (the
# [JAX scaling book](https://jax-ml.github.io/scaling-book/), chapters
# *Roofline*, *Transformers* and *Inference*; attention is left out, it is
# small at these lengths). The devices share out the rows of a batch; each of
# them needs all weights.
#
# - **prefill**, reading T prompt tokens at once: 2NT operations, the weights
#   read once, Nb bytes. Intensity 2T/b.
# - **decode**, writing one token for each of R rows: 2NR operations, and the
#   weights *and* each row's **KV cache** (what the model keeps of the tokens
#   so far; notebook 03) of K bytes: Nb + RK. At most 2R/b.
# - **training** on T tokens: 8NT operations (forward, forward again because
#   activations were thrown away, and backward twice), the weights read for
#   each of these passes and the gradient written: 4Nb + Nb bytes.


# %%
def cache(s, b):
    """Bytes of a row's KV cache, half of the completion written.

    Local layers keep no more than their window.
    """
    c, held = shape(s.preset), s.prompt_len + s.completion_len / 2
    return 2 * c.kv_heads * c.head_dim * b * c.slots(held)


def batches(s, devices):
    """Tokens that each device has in one call of each phase."""
    rows = {
        "prefill": s.prompts * s.prompt_len,
        "decode": s.prompts * s.group,
        "training": s.micro_batch * (s.prompt_len + s.completion_len),
    }
    return {name: count / devices for name, count in rows.items()}


# %%
def intensities(s, devices, b):
    """Operations per byte of each phase, on each of the devices."""
    N, count = shape(s.preset).parameters, batches(s, devices)
    read = N * b + count["decode"] * cache(s, b)
    return {
        "prefill": 2 * N * count["prefill"] / (N * b),
        "decode": 2 * N * count["decode"] / read,
        "training": 8 * N * count["training"] / (5 * N * b),
    }


# %%
tpu = plan.CHIPS["v5e-8"]
print(
    "preset             tokens in a call: prefill, decode, training;",
    "operations per byte",
)
on_tpus = {k: s for k, s in SETTINGS.items() if not k.endswith("-cpu")}
for name, s in on_tpus.items():
    devices, b = (mesh.size, dtype.itemsize) if name == "tiny" else (8, 2)
    counts = [f"{v:,.0f}" for v in batches(s, devices).values()]
    each = [f"{v:,.0f}" for v in intensities(s, devices, b).values()]
    print(f"{name:<18} {', '.join(counts):28} {', '.join(each)}")

# %% [markdown]
# Two roofs: on the left this machine with the preset, on the right one core
# of a v5e-8 with a Gemma, as its datasheet promises (bfloat16, eight cores).
# Look on which side of the dotted ridge each phase lies.


# %%
def roofline(ax, peak, bandwidth, phases, title):
    """A roof, its ridge, and the phases where they touch it."""
    ridge = peak / bandwidth
    ends = [ridge, *phases.values()]
    x = np.array([min(ends) / 5, ridge, max(ends) * 5])
    ax.loglog(x, np.minimum(peak, x * bandwidth) / 1e9, color="black")
    ax.axvline(ridge, color="gray", ls=":", label=f"ridge, {ridge:.0f}")
    for (name, i), mark in zip(phases.items(), ("s", "o", "x"), strict=True):
        ax.plot(
            i,
            min(peak, i * bandwidth) / 1e9,
            mark,
            ms=8,
            label=f"{name}, {i:,.0f}",
        )
    ax.set(xlabel="operations per byte", title=title)
    ax.legend(fontsize=8, frameon=False, loc="lower right")


# %%
import matplotlib.pyplot as plt

local = (sheet.flops, sheet.bandwidth) if sheet else (flops, bandwidth)
there = "gemma2-2b" if preset == "tiny" else preset
phases = {
    "here": intensities(settings, mesh.size, dtype.itemsize),
    "v5e": intensities(SETTINGS[there], tpu.cores, 2),
}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
roofline(axes[0], *local, phases["here"], f"{preset} on one {kind}")
roofline(axes[1], tpu.flops, tpu.bandwidth, phases["v5e"], f"{there} on a v5e")
axes[0].set_ylabel("10⁹ operations a second")
plt.show()

# %% [markdown]
# On the TPU decode lies on the slope: for every token it reads all weights
# and all caches, and does little with them. That is why the sampler writes
# many rows at once, why a group shares its prompt, and why notebook 03 is
# about the KV cache. Prefill and training lie far to the right, on the flat
# part. A CPU's ridge lies so far to the left that even the tiny model's
# decode, with its 256 rows, may be near it or beyond. (And what a roof leaves
# out, the cost of starting each small operation, weighs most for a tiny
# model.)
#
# More rows raise decode's intensity, but never above 2N/K, where the caches
# are all that is read:

# %%
N, K = shape(settings.preset).parameters, cache(settings, dtype.itemsize)
more = [2 * N * r / (N * dtype.itemsize + r * K) for r in (1, 8, 64, 512)]
print([f"{i:.1f}" for i in more], f"limit {2 * N / K:.1f}")

# %% [markdown]
# ### Check
# Decode is the leftmost phase of every preset. And on a v5e no Gemma's decode
# reaches the ridge, while its training does.

# %%
ridge = tpu.flops / tpu.bandwidth
for name, s in on_tpus.items():
    each = intensities(s, 1 if name == "tiny" else tpu.cores, 2)
    assert min(each, key=each.get) == "decode"
    assert name == "tiny" or each["decode"] < ridge < each["training"]

# %% [markdown]
# ## Reading and writing, measured
# The same number of tokens through the same model, on one device: read in one
# call (prefill), and written one by one for one row or for many (decode).

# %%
from flax import nnx

from aha_lib.model.gemma import Gemma

one = MODELS["tiny"]
graph, state = nnx.split(Gemma(one, rngs=nnx.Rngs(0)))
length = 128


@jax.jit
def read(state, tokens, positions, filled):
    """Logits after reading tokens [R, T] from slot `filled` of a cache."""
    model = nnx.merge(graph, state)
    R, T = tokens.shape
    empty = model.empty_cache(R, length)
    hidden, _ = model.extend(tokens, positions, empty, filled)
    return model.logits(hidden[:, -1])


# %%
def tokens_per_second(rows, count):
    """Of one call that takes `count` tokens in each of the rows."""
    ids = jnp.ones((rows, count), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(count), ids.shape)
    return rows * count / seconds(read, state, ids, places, 0, runs=21)


# %%
speeds = {
    "prefill, 1 row x 128 tokens": tokens_per_second(1, length),
    "decode, 1 row": tokens_per_second(1, 1),
    "decode, 128 rows": tokens_per_second(length, 1),
}
for name, speed in speeds.items():
    print(f"{name:28} {speed:12,.0f} tokens/s")

# %% [markdown]
# ### Check
# The order, not the speed: one by one is slowest, whatever the machine does.

# %%
prefill, alone, together = speeds.values()
assert prefill > 1.5 * alone and together > 1.5 * alone

# %% [markdown]
# ## What will fit
# The TPU compiler is a library and needs no TPU. `plan` hands it the very
# programs of a training step and adds up what a core would hold: the
# arguments of the running program, its temporaries, and what waits in memory
# meanwhile. A model that takes a minute to plan takes no minute of a paid
# machine. The line at the end is no measurement: it is what the datasheet's
# peaks allow, in seconds, hours and dollars.
#
# What to look for: the column `free`. First the preset of this notebook.

# %%
try:
    answer = plan.plan(settings.model, chip)
    print(answer)
except RuntimeError as error:  # no compiler here
    answer = None
    print(error)

# %% [markdown]
# The tiny model is a speck on a TPU core. The smallest Gemma is not; its
# largest program takes half a minute to compile on two cores, once.

# %%
small = "gemma3-270m" if preset == "tiny" else preset
if answer:
    answer = plan.plan(small, chip)
    print(answer)

# %% [markdown]
# The fullest program decides. Often it is one of the sampler's, whose caches
# grow with the rows; `update: apply` depends on the model alone.
#
# ### Check
# It fits, and the parameters are where we think: with Adam's two moments and
# the gradient they take 16 bytes each, an equal share on every core.

# %%
if answer:
    assert answer.fits or small != "gemma3-270m"
if answer and answer.fits and not answer.settings.lora:
    apply = next(p for p in answer.programs if p.name == "update: apply")
    share = 16 * MODELS[small].parameters / plan.CHIPS[chip].cores / 2**30
    print(f"update: apply {apply.total:.2f} GiB, the arithmetic {share:.2f}")
    assert 0.9 < apply.total / share < 1.3

# %% [markdown]
# And what does not fit? Ask for far more puzzles at once. The answer names
# the program and the setting to change.

# %%
if answer:
    greedy = plan.plan(small, chip, prompts=2048)
    print(greedy)
    assert not greedy.fits or chip != "v5e-8"

# %% [markdown]
# From a shell it is `aha plan --model gemma3-1b --chip v5e-8`,
# with `--NAME VALUE` for any setting and `--largest prompts` to search
# for the most that fits.

# %% [markdown]
# ## More than one machine
# A v5e-16 slice is four hosts with four chips each. Every host runs the same
# program; `devices.start_distributed`, in every setup cell, finds the others
# and the mesh spans all chips. Only the run folder has to be one that all
# hosts see, for example a bucket mounted by `gcsfuse`:
#
# ```sh
# gcloud compute tpus tpu-vm create aha16 --zone=us-central1-a \
#   --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
# gcloud compute tpus tpu-vm scp aha.zip aha16: --worker=all \
#   --zone=us-central1-a
# # Kaggle's token has to be on every host that downloads the weights
# gcloud compute tpus tpu-vm ssh aha16 --zone=us-central1-a --worker=all \
#   --command='mkdir -p ~/.kaggle'
# gcloud compute tpus tpu-vm scp ~/.kaggle/access_token aha16:.kaggle/ \
#   --worker=all --zone=us-central1-a
# gcloud compute tpus tpu-vm ssh aha16 --zone=us-central1-a --worker=all \
#   --command='python3 -m zipfile -e aha.zip . && cd aha &&
#              curl -LsSf https://astral.sh/uv/install.sh | sh &&
#              ~/.local/bin/uv venv --python 3.12 --seed &&
#              ~/.local/bin/uv pip install -e ".[tpu]" && mkdir -p runs &&
#              gcsfuse --implicit-dirs YOUR_BUCKET runs'
# gcloud compute tpus tpu-vm ssh aha16 --zone=us-central1-a --worker=all \
#   --command='cd aha && .venv/bin/python notebooks/05_train.py \
#              --preset gemma2-2b --out runs/first'
# gcloud compute tpus tpu-vm delete aha16 --zone=us-central1-a
# ```
#
# On GKE, [XPK](https://github.com/AI-Hypercomputer/xpk) makes the cluster
# and starts the same command on every host. The image has to hold this
# folder and its packages; the bucket is mounted by `xpk storage`:
#
# ```sh
# pip install xpk
# xpk cluster create --cluster=aha --tpu-type=v5litepod-16 \
#   --num-slices=1 --zone=us-west4-a --spot
# xpk storage attach aha-runs --type=gcsfuse --cluster=aha \
#   --zone=us-west4-a --bucket=YOUR_BUCKET --mount-point=/runs \
#   --readonly=false --size=1 --auto-mount=true
# xpk workload create --cluster=aha --workload=first \
#   --tpu-type=v5litepod-16 --zone=us-west4-a --docker-image=YOUR_IMAGE \
#   --command="python3 notebooks/05_train.py --preset gemma2-2b \
#              --out /runs/first"
# xpk cluster delete --cluster=aha --zone=us-west4-a
# ```
#
# None of these commands could be tried while this was written. What was
# tried, and is a test: two processes with four devices each give the tokens
# and the metrics of one process with eight, one of them writes the files,
# and one process goes on from their checkpoint.

# %% [markdown]
# ## Exercises
# 1. Set `preset = "gemma2-2b"` and run the roofline again. How many rows
#    would decode need on a v5e to leave the slope?
#
# <details><summary>answer</summary>
#
# The ridge of a v5e is 197e12 / 819e9, about 240 operations per byte.
# Without the caches decode does 2R/b = R operations per byte in bfloat16,
# so about 240 rows on each core. With them more rows are needed, and 2N/K,
# the limit in the check above, lies below the ridge (64 for Gemma 2 2B in
# bfloat16 at the preset's lengths): no number of rows is enough.
#
# </details>
#
# 2. 2,048 puzzles at once are too many for Gemma 3 270M on a v5e-8. What is
#    the largest power of two that fits, and what is full first?
#
# <details><summary>answer</summary>
#
# `plan.largest("prompts", "gemma3-270m", "v5e-8")` says 1024. The caches are
# full first: `sample: lengthen` copies each of their arrays into a longer
# one, and for that moment both are there.
#
# </details>
#
# ## Where this lives
# Detection, mesh and shardings are in `aha_lib/devices.py`, the questions to
# the compiler in `aha_lib/tpu/plan.py`. Next: **01 · Loading Gemma**.
