# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · What is done here, on which machine, and will it fit?
#
# **Before anything is downloaded:** what does a training step do, how fast
# are the chips of this machine, and what will a run cost in memory and in
# minutes?
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | 5 to 9, most of them the TPU's compiler |
# | a Gemma | the same; no weights are loaded here | the same |
#
# The compiler's answers are kept: a second run takes a minute or two. Words
# such as *rollout* or *KV cache* are explained in the
# [Glossary](../docs/glossary.md).
#
# You will see
#
# 1. the loop that all these notebooks are about, in five steps;
# 2. five ideas of JAX, a cell for each;
# 3. how fast this machine calculates, how much of that speed the phases of
#    a training step reach, and which operations take their time, all
#    measured;
# 4. what a training step of Gemma needs on a TPU core, as the TPU's own
#    compiler says, with a TPU or without;
# 5. what a run of your preset will take, phase by phase, and whether to
#    start it.

# %% [markdown]
# ## Where to run it
#
# | place | what you bring | what you get |
# |---|---|---|
# | this computer | a clone | the tiny model, by two CPU cores |
# | Kaggle | `aha.zip`, as a dataset | a TPU v5e-8, free, 9 hours a session |
# | Colab | `aha.zip`, dropped into *Files* | one v5e or v6e chip, by plan |
# | Cloud TPU VM, pods, GKE, Slurm | `aha.zip` | eight chips and more, paid |
#
# [docs/clouds.md](../docs/clouds.md) has the steps for each place, numbered,
# with what you see after each, and the one command that makes `aha.zip`.
#
# **What was run, and what was not.** All notebooks were run on CPUs, with
# eight simulated devices in the place of eight TPU cores. The programs of a
# training step were compiled for TPUs by XLA's own compiler. Nothing has run
# on a TPU yet. If you are the first: the output of this notebook, and any
# error, are what we would like to see.

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
# `preset` names the model and its run. `chip` is the machine that the last
# two parts ask about; it need not be the one you sit at. `overrides` changes
# single settings, such as `{"prompts": 64}`.

# %% tags=["parameters"]
preset = "tiny"
chip = "v5e-8"
overrides = {}

# %%
import dataclasses

from aha_lib.presets import MODELS, SETTINGS, shape

settings = dataclasses.replace(SETTINGS[preset], **overrides)

# %% [markdown]
# ## 1. The loop
# A puzzle goes to the model, which writes a **group** of answers to it. A
# referee gives each answer a **reward**. An answer's **advantage** is its
# reward minus the mean of its group. The **update** makes the tokens of
# answers with a positive advantage likelier, and those of the others less
# likely. Then the next puzzles come. This is **GRPO**, group-relative policy
# optimisation.

# %%
from aha_lib.look import show

STATIONS = [  # what, an example, its notebook
    ("1 puzzle", "20 16 4 → 40", "02"),
    ("2 group", "16 answers", "03"),
    ("3 reward", "0, 0.1 or 1", "02"),
    ("4 advantage", "minus the mean", "04"),
    ("5 update", "by Adam", "04"),
]
show.cycle(STATIONS, "the changed model writes the next group (05)")

# %% [markdown]
# The next cell does steps 3 and 4 for a group of four answers to one puzzle,
# with the package's own functions. Look at the signs of the advantages. (In
# a run the advantages are also divided by the group's standard deviation;
# notebook 04.)

# %%
import numpy as np

from aha_lib.rl import grpo
from aha_lib.tasks.countdown import Puzzle, reward

puzzle = Puzzle((20, 16, 4), 40)
answers = ["20 + 16 + 4", "20 + 16 - 4", "20 + 20", "I give up"]
rewards = [reward(f"<answer> {a} </answer>", puzzle).value for a in answers]
advantages = grpo.advantages(np.array([rewards]), scale_by_std=False)[0]
show.table(
    ["answer", "reward", "advantage"],
    zip(answers, rewards, advantages.tolist(), strict=True),
)

# %% [markdown]
# Only the right answer has a positive advantage: it becomes likelier, the
# other three less likely. The advantages add up to zero. If all four had
# earned the same, all would be zero, and the model would learn nothing from
# this puzzle. The whole step is one page of code,
# [`aha_lib/loop.py`](../aha_lib/loop.py); its headings:

# %%
import inspect

from aha_lib import loop

for line in inspect.getsource(loop.step).splitlines():
    if line.strip().startswith(("# 1", "# 2", "# 3", "# 4")):
        print(line.strip(" #"))

# %% [markdown]
# ## 2. Five ideas of JAX
# All later notebooks use them. If you know JAX, go on to part 3.
#
# **`jit` compiles a function once for each shape.** Python runs the function
# a single time, with placeholders for the numbers, and JAX records what
# happens to them. XLA compiles the record. Look at when `print` runs.

# %%
import jax
import jax.numpy as jnp


@jax.jit
def mean_square(x):
    print("Python runs, for shape", x.shape)
    return jnp.mean(x * x)


for x in (jnp.ones(4), 2 * jnp.ones(4), jnp.ones(8)):
    print("    result", mean_square(x))

# %% [markdown]
# The second call used the compiled program. The third had another shape and
# was compiled anew. For Gemma a TPU's compiler takes seconds to minutes for
# each program (part 5), so a run has few shapes, and all are known
# beforehand.
#
# **Donation reuses an argument's memory for the result.** Without it the old
# and the new weights would be in memory together.


# %%
def descend(weights, gradient):
    return weights - 0.1 * gradient


update = jax.jit(descend, donate_argnames="weights")
weights, gradient = jnp.ones(1000), jnp.ones(1000)
new = update(weights, gradient)
print("the old weights are", "gone" if weights.is_deleted() else "there")
print("the gradient is", "gone" if gradient.is_deleted() else "there")

# %% [markdown]
# **`nnx.split` takes a model apart, `nnx.merge` puts it together.** A Flax
# `nnx` model is a Python object, easy to print and to change. A compiled
# function takes arrays. `split` gives both sides: the graph (names and
# configuration, fixed when compiling) and the state (the arrays).

# %%
import functools

from flax import nnx

from aha_lib.model.gemma import Gemma

small = Gemma(MODELS["tiny"], rngs=nnx.Rngs(0))
graph, state = nnx.split(small)


@functools.partial(jax.jit, static_argnames="graph")
def next_logits(graph, state, ids):
    """Logits after the last token of each row [B, T]."""
    model = nnx.merge(graph, state)
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden = model.hidden(ids, places, jnp.ones_like(ids))
    return model.logits(hidden[:, -1])


print(len(jax.tree.leaves(state)), "arrays in the state")
ids = jnp.array([[2, 24, 20, 8]])
print("logits", next_logits(graph, state, ids).shape)

# %% [markdown]
# The graph is static: another graph is another program. The state is an
# argument like any other. If the function took the arrays from a global
# variable instead, they would be compiled in as constants and could not be
# donated.
#
# **`eval_shape` runs a function without numbers.** It gives the shapes of
# the result and makes no array. So a model that is far too large for this
# machine can be counted here.

# %%
large = nnx.eval_shape(lambda: Gemma(MODELS["gemma2-9b"], rngs=nnx.Rngs(0)))
print("query weights of all layers:", large.layers.q.shape)
sizes = [x.size for x in jax.tree.leaves(nnx.state(large))]
print(
    f"{sum(sizes):,} parameters, {4 * sum(sizes) / 2**30:.0f} GiB in float32"
)

# %% [markdown]
# **A sharded array is one array in the program and has a part on each
# device.** The devices form a grid, the *mesh*. Its axis `fsdp` shares out
# the rows of a batch and the parameters; `tp` splits each matrix further and
# is 1 unless you ask. One device is a mesh too.

# %%
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aha_lib.look import placement

mesh = devices.make_mesh(tp=settings.tp)
size, axes = (1024, 4096), ("embed", "ff")
parts = NamedSharding(mesh, devices.spec(size, axes, mesh))
matrix = jax.device_put(jnp.ones(size), parts)
print(f"mesh {dict(mesh.shape)}; each device holds", parts.shard_shape(size))
jax.debug.visualize_array_sharding(matrix, use_color=False)
if mesh.size == 1:
    print("Here one device holds it all. With eight (simulated) devices:")
    print(placement.simulated({"matrix": (size, axes)}))

# %% [markdown]
# The code that uses `matrix` is the same on one device and on eight: XLA
# adds the communication. Notebook 01 draws the parameters of a model in the
# same way.

# %% [markdown]
# ## 3. This machine
# Look at the second line: is it the accelerator that you chose? If JAX sees
# a CPU on a TPU machine, the setup cell above has already said why.

# %%
print(devices.describe())

# %% [markdown]
# A free session ends after a fixed time. A run has to stop and save before
# that, which takes minutes. How much time is left?

# %%
left = devices.time_left()
print("no limit here" if left is None else f"{left / 3600:.1f} h left")

# %% [markdown]
# Three speeds decide how long a step takes. For each, a program is compiled
# and then run for about two seconds, at most 40 times. The fastest time
# counts, because other programs on the machine can only slow it down.
# `block_until_ready` waits for the device, which otherwise answers before
# the work is done.

# %%
import time

kind = devices.available()[0].device_kind
cpu = jax.default_backend() == "cpu"
dtype, _ = devices.dtypes()


def seconds(f, *args, patience=2.0, runs=40):
    """The shortest of as many runs as so many seconds allow, at least 3."""

    def once():
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        return time.perf_counter() - start

    once()  # compiles
    times = [once() for _ in range(3)]
    while sum(times) < patience and len(times) < runs:
        times.append(once())
    return min(times)


# %% [markdown]
# **Arithmetic.** The product of two n × n matrices takes 2n³ operations: n
# products and n sums for each of n² entries.

# %%
n = 512 if cpu else 8192
a = jnp.ones((n, n), dtype)
product = jax.jit(lambda a: a @ a)
flops = 2 * n**3 / seconds(product, a)
print(f"{flops / 1e12:.3f} TFLOP/s, {dtype} on one {kind}")

# %% [markdown]
# **Memory.** Changing the sign of a long vector reads and writes every byte,
# and does one operation for each number. The vector is donated. Without
# that, each call would get fresh memory, which on a CPU takes several times
# as long as filling it.

# %%
v = jnp.ones(2**25 if cpu else 2**29, dtype)
negative = jax.jit(lambda v: -v, donate_argnames="v")


def again():
    global v
    v = negative(v)
    return v


bandwidth = 2 * v.nbytes / seconds(again)
print(f"{bandwidth / 1e9:.1f} GB/s")
del v, a

# %% [markdown]
# **Between devices.** `fsdp` keeps a part of every matrix on each device and
# puts the parts together when they are needed. How fast does a device get
# the parts of the others?

# %%
if mesh.size > 1:
    whole = jnp.ones((mesh.size * 1024, 4096), dtype)
    shared = jax.device_put(whole, NamedSharding(mesh, P(mesh.axis_names)))
    everywhere = NamedSharding(mesh, P())
    gather = jax.jit(lambda x: x, out_shardings=everywhere)
    others = whole.nbytes * (1 - 1 / mesh.size)
    speed = others / seconds(gather, shared)
    print(f"{speed / 1e9:.1f} GB/s into each of {mesh.size} devices")
    del whole, shared
else:
    print("one device: nothing to gather")

# %% [markdown]
# Compare with the datasheet. Such simple code should reach a good part of
# its peaks. If it reaches a tenth, something is wrong: another process uses
# the chip, or the chip is slower than the one you asked for.

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
# ## 4. The roofline
# A chip does at most `flops` operations and moves at most `bandwidth` bytes
# a second. A program that does I operations for each byte (its *intensity*)
# reaches at most min(flops, I · bandwidth): a roof with a slope and a flat
# part. They meet at the **ridge**. Left of the ridge the memory decides,
# right of it the arithmetic.
#
# A training step has three phases. Let N be the parameters, V those of the
# vocabulary's table among them, b the bytes of a number, and K the bytes of
# a row's **KV cache** (what the model keeps of the tokens so far; notebook
# 03):
#
# | phase | operations | bytes |
# |---|---|---|
# | **prefill** reads R prompts of T tokens | 2(N − V)RT + 2VR | Nb |
# | **decode** writes a token for each of R rows | 2NR | Nb + RK |
# | **training** on T tokens, forward and backward | 6NT | 4Nb |
#
# A prompt needs logits at its last token alone, so V counts once for each
# row. For Gemma 3 270M, whose table holds 63 % of the parameters, counting V
# at every token of a prompt would give 2.7 times too much. Training reads
# the weights three times and writes a gradient. Where layers are computed
# again to save memory (`remat`), operations are a third more and bytes a
# quarter. Attention is left out. (Source: the [JAX scaling
# book](https://jax-ml.github.io/scaling-book/), chapters *Roofline*,
# *Transformers* and *Inference*.)


# %%
@dataclasses.dataclass(frozen=True)
class Call:
    """What a program reads: rows of new tokens, and slots of the cache."""

    rows: float
    tokens: float
    slots: float = 0
    passes: int = 1  # to train 3, or 4 with remat: then all tokens are scored

    def operations(self, c):
        table = c.vocab * c.width
        scored = self.rows * (self.tokens if self.passes > 1 else 1)
        layers = (c.parameters - table) * self.rows * self.tokens
        return 2 * self.passes * (layers + table * scored)

    def bytes(self, c, b):
        copies = self.passes + (self.passes > 1)  # the gradient is written
        cache = 2 * c.kv_heads * c.head_dim * c.slots(self.slots)
        return b * (copies * c.parameters + self.rows * cache)


# %% [markdown]
# ### Check
# Are the operations counted right? XLA counts those of a compiled program,
# here of reading prompts with a large vocabulary. It should count a few per
# cent more, since the formulas leave out attention.

# %%
wide = dataclasses.replace(MODELS["tiny"], vocab=2**15)
shapes = nnx.eval_shape(lambda: Gemma(wide, rngs=nnx.Rngs(0)))
shapes.remat = False  # layers side by side: XLA counts a loop's body once
prompts = jax.ShapeDtypeStruct((16, 32), jnp.int32)
compiled = next_logits.lower(*nnx.split(shapes), prompts).compile()
more = compiled.cost_analysis()["flops"] / Call(16, 32).operations(wide)
print(f"XLA counts {more - 1:.0%} more")
assert 0.95 < more < 1.15 or not cpu  # other compilers count otherwise

# %% [markdown]
# **Measured.** The tiny model (whatever the preset: nothing is downloaded)
# runs each phase on one device. Intensities are counted by the formulas
# above; speeds are measured.

# %%
c, length = MODELS["tiny"], 128


@jax.jit
def read(state, tokens, positions):
    """Logits after tokens [R, T], read into an empty cache."""
    model = nnx.merge(graph, state)
    R, T = tokens.shape
    cache = model.empty_cache(R, length)
    hidden, _ = model.extend(tokens, positions, cache, length - T)
    return model.logits(hidden[:, -1])


@jax.jit
def train(state, tokens, positions):
    """The gradient of the mean log-probability of tokens [R, T]."""

    def loss(state):
        model = nnx.merge(graph, state)
        model.remat = False
        hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
        return model.logprobs(hidden[:, :-1], tokens[:, 1:])[0].mean()

    return jax.grad(loss)(state)


# %%
CALLS = {
    "decode, 1 row": Call(1, 1, slots=length),
    "decode, 128 rows": Call(128, 1, slots=length),
    "prefill, 16 x 128": Call(16, length),
    "training, 16 x 128": Call(16, length, passes=3),
}


def program(call):
    """The jitted function of a call, and its arguments."""
    ids = jnp.ones((call.rows, call.tokens), jnp.int32)
    first = length - 1 if call.slots else 0
    places = jnp.broadcast_to(first + jnp.arange(call.tokens), ids.shape)
    return (train if call.passes > 1 else read), (state, ids, places)


# %%
points, rows = {}, []
for name, call in CALLS.items():
    function, arguments = program(call)
    took = seconds(function, *arguments)
    done = call.operations(c)
    intensity, reached = done / call.bytes(c, 4), done / took
    points[name] = intensity, reached
    roof = min(flops, intensity * bandwidth)
    speed = call.rows * call.tokens / took
    numbers = f"{intensity:.1f}", f"{speed:,.0f}", f"{reached / roof:.0%}"
    rows.append([name, *numbers])
show.table(["", "operations per byte", "tokens/s", "of the roof"], rows)

# %% [markdown]
# The same points under the roof that part 3 measured. Look for two things:
# how far below the roof is each point, and on which side of the dotted
# ridge?

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the roof and the measured points
import matplotlib.pyplot as plt

ridge = flops / bandwidth
ends = [ridge, *(i for i, _ in points.values())]
x = np.array([min(ends) / 5, ridge, max(ends) * 5])
fig, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
roof = np.minimum(flops, x * bandwidth)
ax.loglog(x, roof / 1e9, "k", label="roof, measured")
ax.axvline(ridge, color="black", ls=":", label=f"ridge, {ridge:,.0f}")
styles = ("C0s", "C1v", "C2o", "C3D")
for (name, (i, reached)), style in zip(points.items(), styles, strict=True):
    ax.plot(i, reached / 1e9, style, ms=7, label=name)
ax.set(xlabel="operations per byte", ylabel="10⁹ operations a second")
ax.set_title(f"tiny on one {kind}")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Decode of one row is the slowest: each call reads all weights, and starts
# every operation, for a single token. Decode of many rows shares that among
# the rows, and prefill reads many tokens in one call. (A point may lie above
# the slope if its weights fit into the processor's own cache, which is
# faster than the memory that part 3 timed.)
#
# **What keeps a point below the roof?** A profiler records when each
# operation of a program begins and ends. `jax.profiler` writes such a trace,
# and `profile` adds up its events by kind: `dot_general` is the matrix
# product, the other names are JAX's primitives, or XLA's own for what it
# added (`copy`). The next cell does this for the smallest of the four
# programs and for the largest. Look at which operation leads in each.

# %%
from aha_lib.look.profile import profile

for name in ("decode, 1 row", "training, 16 x 128"):
    function, arguments = program(CALLS[name])
    trace = profile(function, *arguments)
    count = sum(trace.calls.values())
    print(f"{name}: {1e3 * trace.wall:.1f} ms from call to result,")
    print(f"  {1e3 * trace.total:.1f} ms in {count} operations, ", end="")
    print("added up over threads\n")
    for operation, calls, spent, share in trace.rows(6):
        print(f"  {operation:28}{calls:>5} calls {spent:>8} ms {share:>5}")
    print()

# %% [markdown]
# One row of decode is some two hundred operations of a few microseconds
# each. On two CPU cores `dynamic_slice` leads. It calculates nothing: it
# takes a layer's weights and cache out of the arrays that hold all layers.
# Starting so many short operations takes time too. The roofline has a term
# for neither. (Nor for the profiler: recording each operation makes this
# call longer than the tokens a second above say.) In training the matrix
# products lead. The rest is what the roofline leaves out: element-wise work,
# sums and copies, which move many bytes and do little with them. (For a
# trace as a timeline, give `jax.profiler.trace` a folder and open that in
# [XProf](https://openxla.org/xprof) or Perfetto.)
#
# **A Gemma on a TPU.** There each operation is longer, and the roofline
# should be a better guide. Nothing was measured there yet, so the table has
# intensities only. Compare each with the ridge of a v5e.


# %%
def on_v5e(s):
    """Operations per byte of a preset's phases on a core of a v5e-8."""
    c, rows = shape(s.preset), s.prompts * s.group / 8
    half = s.prompt_len + s.completion_len / 2  # of the completion written
    width = s.prompt_len + s.completion_len
    phases = {
        "decode": Call(rows, 1, slots=half),
        "prefill": Call(s.prompts / 8, s.prompt_len),
        "training": Call(s.micro_batch / 8, width, passes=3 + s.remat),
    }
    return {k: x.operations(c) / x.bytes(c, 2) for k, x in phases.items()}


tpu = plan.CHIPS["v5e-8"]
ridge = tpu.flops / tpu.bandwidth
gemmas = {k: s for k, s in SETTINGS.items() if s.preset[:5] == "gemma"}
show.table(
    ["preset", "decode", "prefill", "training", "ridge of a v5e"],
    [
        [k, *(f"{i:,.0f}" for i in on_v5e(s).values()), f"{ridge:.0f}"]
        for k, s in gemmas.items()
        if not k.endswith("-cpu")
    ],
)

# %% [markdown]
# Decode lies on the slope: for each token it reads all weights and all
# caches, and does little with them. That is why the sampler writes many rows
# at once, and why a group shares its prompt. Training lies on the flat part.
# Prefill does too, except where prompts are few and short
# (`gemma3-270m-short`).

# %% [markdown]
# ## 5. What will fit
# The TPU compiler is a library and needs no TPU. `plan` gives it the very
# programs of a training step and adds up what a core would hold: the
# arguments of the running program, its temporaries (activations, logits,
# copies), and what waits in memory meanwhile. The compiler's answers are
# kept, so that a second run of this notebook is quick. The tiny model needs
# next to nothing of a TPU core, so with the preset `tiny` the compiler is
# asked about the smallest Gemma.
#
# What to look for: the column `free`.

# %%
planned = "gemma3-270m" if preset == "tiny" else preset
changes = {} if preset == "tiny" else overrides
try:
    answer = plan.plan(planned, chip, **changes)
    print(answer)
except RuntimeError as error:  # no compiler here
    answer = None
    print(error)

# %% [markdown]
# The fullest program decides. What is the memory for? The large arrays can
# be counted by hand: float32 weights (with adapters, the frozen weights are
# in the dtype of the arithmetic), two moments of Adam and a gradient for
# each trained number, a copy of the base for the KL term, the sampler's own
# copy of the layers, the KV cache, and the logits: one for each piece of the
# vocabulary at each scored token. (Training computes no more than 2²⁸ of
# them at a time.) A core has its share of an array, or all of it where
# nothing splits it. `eval_shape` and the table of shardings tell which.


# %%
import math

from aha_lib.model import lora


def on_a_core(s, cores):
    """Numbers that a core has: of all parameters, and of the trained ones."""

    def build():
        model = Gemma(shape(s.preset), rngs=nnx.Rngs(0))
        if s.lora:
            lora.add(model, s.lora, rngs=nnx.Rngs(0))
        return model

    names = ("fsdp", "tp")
    grid = jax.sharding.AbstractMesh((cores // s.tp, s.tp), names)

    def count(params):
        arrays = jax.tree.leaves(params)
        where = jax.tree.leaves(devices.shardings(params, grid))
        pairs = zip(arrays, where, strict=True)
        return sum(math.prod(w.shard_shape(x.shape)) for x, w in pairs)

    params = nnx.state(nnx.eval_shape(build))
    return count(params), count(grpo.trainable(params, s.lora)[0])


# %%
def by_hand(s, cores):
    """Bytes of a core, by what they are for."""
    c, (numbers, trained) = shape(s.preset), on_a_core(s, cores)
    table = c.vocab * c.width
    layers = c.parameters - table
    b = 4 if s.dtype == "float32" else 2  # of the arithmetic's numbers
    # The sampler's layers are whole on each core, converted and gathered.
    copied = layers if s.gather and cores > 1 else layers / cores
    converted = 0 if s.lora or b == 4 else table / cores
    slots = c.slots(s.prompt_len + s.completion_len)
    rows = s.prompts * s.group / cores
    return {
        "weights": b * (numbers - trained) + 4 * trained,
        "Adam": 8 * trained,
        "gradient": 4 * trained,
        "base for KL": 2 * numbers if s.kl and not s.lora else 0,
        "sampler's copy": b * (copied + converted),
        "KV cache": 2 * c.kv_heads * c.head_dim * b * slots * rows,
    }


# %%
def logits(s, cores):
    """Bytes of a core's logits in each program, float32."""
    scored = s.micro_batch * (s.prompt_len + s.completion_len)
    vocab = shape(s.preset).vocab
    return {
        "sample: decode": 4 * vocab * s.prompts * s.group / cores,
        "update: gradient": 4 * min(scored * vocab, 2**28) / cores,
        "update: apply": 0,
    }


# %% [markdown]
# What is left of the compiler's total is activations: what the layers keep
# for the backward pass, and copies. Look for the largest part of each bar.

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Splits the programs' memory into parts
IDLE = {  # by hand, but not there while this program runs
    "sample: decode": ["gradient"],
    "update: gradient": ["sampler's copy", "KV cache"],
    "update: apply": ["sampler's copy", "KV cache"],
}


def split(answer):
    """GiB of three programs, by what they are for."""
    cores = plan.CHIPS[answer.chip].cores
    total = {p.name: p.total for p in answer.programs}
    large = by_hand(answer.settings, cores)
    scores = logits(answer.settings, cores)
    found = {}
    for name, idle in IDLE.items():
        sizes = large | dict.fromkeys(idle, 0) | {"logits": scores[name]}
        sizes = {k: size / 2**30 for k, size in sizes.items()}
        rest = max(0, total[name] - sum(sizes.values()))
        found[name] = sizes | {"activations": rest}
    return found


# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the bars
def bars(parts):
    """A stacked bar for each program."""
    fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    left = np.zeros(len(parts))
    for part in parts["update: apply"]:
        sizes = [of[part] for of in parts.values()]
        ax.barh([*parts], sizes, left=left, label=part)
        left += sizes
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    ax.invert_yaxis()
    return ax


# %%
if answer:
    parts = split(answer)
    ax = bars(parts)
    ax.set(xlabel=f"GiB; a core of {chip} has {plan.CHIPS[chip].hbm:g}")
    plt.show()

# %% [markdown]
# ### Check
# The program `update: apply` has hardly any activations. So the count by
# hand alone should give the compiler's total.

# %%
if answer and answer.fits:
    total = {p.name: p.total for p in answer.programs}["update: apply"]
    named = parts["update: apply"]
    counted = sum(named.values()) - named["activations"]
    print(f"compiler {total:.2f} GiB, by hand {counted:.2f} GiB")
    assert 0.9 < total / counted < 1.3

# %% [markdown]
# And what does not fit? Ask for far more puzzles at once. For each program
# that is too large the answer names the setting to change.

# %%
if answer:
    many = plan.plan(planned, chip, **(changes | {"prompts": 2048}))
    advice = [x for x in str(many).splitlines() if " needs " in x]
    print("\n".join(advice) or "Even 2,048 puzzles at once fit.")

# %% [markdown]
# From a shell the same question is
# `aha plan --model gemma3-1b --chip v5e-8`, with `--NAME VALUE` for any
# setting and `--largest prompts` to search for the most that fits.
#
# ## 6. What will happen
# How many minutes will a run of your preset take on `chip`, and does it end
# within the session? `forecast` estimates this before anything is started,
# in four parts: download, compilation, cold start and the run itself. Beside
# each part it names what the estimate comes from. No TPU was timed: the
# run's minutes assume that a TPU reaches the share of its peaks that a GPU
# reached of its own. So they are a guess.

# %%
from aha_lib.tpu.forecast import forecast

known = {}
if answer and planned == preset:  # the compiler has been asked above
    full = ", ".join(p.name for p in answer.too_large)
    known["seconds"] = {p.name: p.seconds for p in answer.programs}
    known["too_large"] = full and f"{full} does not fit."
hours = None if left is None else left / 3600
print(forecast(preset, chip, hours=hours, **known, **overrides))

# %% [markdown]
# The tiny preset is made for a CPU, and its forecast for a TPU is mostly
# compilation. What did it take on two CPU cores? The recorded runs kept
# their times. A first start also compiles, for about a minute more.

# %%
from aha_lib.look import record
from aha_lib.run import train as runs

for folder in sorted((record.DATA / "run").glob("seed*")):
    rows = runs.read_rows(folder / "metrics.jsonl")
    spent = [v for r in rows for k, v in r.items() if k.endswith("_seconds")]
    print(f"tiny, {folder.name}: {sum(spent) / 60:.1f} minutes of steps")

# %% [markdown]
# The next table and figure have the forecast of every preset on this chip.
# Use them to choose a preset by its minutes.

# %%
every = {k: s for k, s in SETTINGS.items() if not k.endswith("-cpu")}
forecasts = {name: forecast(name, chip, hours=hours) for name in every}
PARTS = ("download", "compilation", "cold start", "run")
rows = []
for name, f in forecasts.items():
    minutes = [f"{f.parts[part].minutes:.0f}" for part in PARTS]
    verdict = "go" if f.go else "no go"
    rows.append([name, *minutes, f"{f.minutes:.0f}", verdict])
show.table(["preset", *PARTS, "minutes in all", "in a session"], rows)

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the minutes of each preset
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
start = np.zeros(len(forecasts))
for part, hatch in zip(PARTS, ("", "//", "..", ""), strict=True):
    minutes = [f.parts[part].minutes for f in forecasts.values()]
    ax.barh([*forecasts], minutes, left=start, label=part, hatch=hatch)
    start += minutes
session = next(iter(forecasts.values())).session
if session:
    ax.axvline(session, color="black", label="the session ends")
ax.set(xlabel="minutes", title=f"forecast on {chip}")
ax.invert_yaxis()
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# *No go* means: not in one session. A run saves and stops before the session
# ends and goes on in the next, so it is a question of patience. What does
# not fit into memory is a no go that only other settings change.

# %% [markdown]
# ## Exercises
# 1. How many rows would decode of Gemma 2 2B need on a core of a v5e to
#    leave the slope?
#
# <details><summary>answer</summary>
#
# The ridge of a v5e is 197e12 / 819e9, about 240 operations per byte.
# Without the caches decode does 2R/b = R operations per byte in bfloat16,
# so about 240 rows on each core. With them the intensity never exceeds
# 2N/K, however many rows there are. That limit is 64 for Gemma 2 2B at the
# preset's lengths, below the ridge: no number of rows is enough.
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
# the compiler in `aha_lib/tpu/plan.py`, the minutes in
# `aha_lib/tpu/forecast.py`, the drawing of shards in
# `aha_lib/look/placement.py`. Next: **01 · Loading Gemma**.
