# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · One direction
#
# **The question:** GRPO changed all 0.6 million numbers of the tiny model. Is
# there *one direction* in the model's activations that turns the searching up
# and down, and did the base have it all along?
# ([Glossary](../docs/glossary.md))
#
# A transformer's layers add to one running sum, the *residual stream*: a
# vector of 128 numbers for every token. If searching is a direction of that
# space, one can find it, add some of it to a model that never searches, and
# take it from one that always does. (Activation addition,
# [2308.10248](https://arxiv.org/abs/2308.10248); Venhoff et al. found such
# directions in R1's distilled models,
# [2506.18167](https://arxiv.org/abs/2506.18167).) Here it can be seen end to
# end, on a model whose searching you have watched appear.
#
# Whatever the preset is, this notebook pushes the tiny base that comes with
# the package: only there can all of it be seen within minutes. What was
# measured on a Gemma is in a record, near the end.
#
# | preset | machine | what it does |
# |---|---|---|
# | any | any, no accelerator needed | finds and pushes live, reads three seeds: two minutes |
#
# You will see:
#
# 1. where the base decides whether to try, its activations do not predict what
#    it will do: the sampler draws;
# 2. that it *is searching*, they do tell: it is the axis along which they vary
#    most, with labels or without, and GRPO moves the model the same way;
# 3. one vector, added to the base, does most of what GRPO did, and more than
#    random ones; one that GRPO trains does nearly all of it. After the last
#    layer such a vector is a constant shift of the logits, against `<answer>`;
# 4. so one number, the shift of that one logit, is trained too, and does as
#    much as the vector;
# 5. it is no switch: the trained model is not untrained by taking it away.

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

# %% [markdown]
# ## Where a decision falls
# An answer has two kinds of crossroads: its start, where the model jumps or
# makes an attempt, and every "no", after which it answers all the same or
# goes on. `steering.decisions` finds them by notebook 06's rules. Sample some
# answers of the base:

# %%
import json
import pathlib
from dataclasses import replace

import ipywidgets as widgets
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib.look import show, steering
from aha_lib.model import weights
from aha_lib.presets import PUZZLES, SETTINGS
from aha_lib.tasks import countdown
from aha_lib.tasks.rollout import Policy, held_out_panel, rollout
from aha_lib.tasks.task import Countdown

# %%
devices.compilation_cache()
settings = replace(SETTINGS["tiny"], prompts=128, group=2)
model, tokenizer, _ = weights.load(settings.model, dtype=jnp.float32)
puzzles = [
    countdown.generate(1000, i, PUZZLES[settings.puzzles]) for i in range(512)
]
policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
out = rollout(policy, puzzles, jax.random.key(100), group=2, temperature=1.0)
at = steering.decisions(out, tokenizer)
print(f"{len(out.texts)} answers, {len(at.row)} decisions")

# %%
ids = np.concatenate([out.prompts, out.completions.tokens], axis=1)
refused = [
    np.flatnonzero((at.noes > 0) & (at.tries == went_on))[:3]
    for went_on in (True, False)
]
for i in np.concatenate(refused):
    row, token = ids[at.row[i]], at.token[i]
    print(
        f"{tokenizer.decode(row[: token + 1]):>62} ⟶ ",
        tokenizer.decode(row[token + 1 : token + 4]),
        "…",
    )

# %% [markdown]
# How often does an attempt follow? At the start, and after a first "no", in
# three answers of ten; after a second one nearly always. That is no wonder:
# in the corpus only searches have two.

# %%
show.table(
    ["noes so far", "decisions", "an attempt follows"],
    [
        [
            noes,
            int((at.noes == noes).sum()),
            float(at.tries[at.noes == noes].mean()),
        ]
        for noes in range(at.noes.max() + 1)
    ],
)

# %% [markdown]
# ## Chance, or a plan?
# Read the residual stream at these tokens, after each of the four layers
# (`steering.activations`). Does it say what will follow? Find a direction in
# every second answer, score the others along it, and count how often an
# attempt scores above an answer: 1/2 is chance, 1 is perfect. Two ways to a
# direction: the *difference of means*, and Fisher's linear discriminant, a
# *probe* that also knows how the activations spread.

# %%
stream = steering.activations(model, out, at)
print(stream.shape, "layers, decisions, width")

# %%
benchmarks = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"
stored = benchmarks / "backtracking.json"
record = json.loads(stored.read_text()) if stored.exists() else []
if not record:
    print(f"{stored.name} is not here, so its figures below stay empty.")
layers = range(model.config.layers)
even = at.row % 2 == 0

# %%
crossroads = {
    "start": at.noes == 0,
    "first no": at.noes == 1,
    "every no": at.noes > 0,
}
ways = {"difference": steering.difference, "probe": steering.probe}
live = {
    (when, how): steering.separation_in_other_half(
        stream[:, here], at.tries[here], even[here], find
    )
    for when, here in crossroads.items()
    for how, find in ways.items()
}
show.table(
    ["where", "found by", "decisions", *(f"layer {k}" for k in layers)],
    [
        [when, how, int(crossroads[when].sum()), *values]
        for (when, how), values in live.items()
    ],
)

# %% [markdown]
# The three seeds of the record (`python tests/benchmarks/backtracking.py`
# makes it, from the runs of `habits.py`; each draws its own answers):

# %%
figure, axes = plt.subplots(
    1, 3, figsize=(10, 2.8), sharey=True, layout="constrained"
)
for axis, when in zip(axes, crossroads, strict=True):
    for seed in record:
        for told in seed["told"]:
            if told["when"] == when:
                colour = "C0" if told["how"] == "difference" else "C1"
                axis.plot(
                    layers,
                    told["separation"],
                    colour,
                    marker="o",
                    ms=4,
                    lw=1,
                    label=told["how"],
                )
    axis.axhline(0.5, color="0.6", ls=":")
    axis.set(title=f"{when}", xlabel="after layer", xticks=layers)
handles, names = axes[0].get_legend_handles_labels()
axes[0].legend(handles[:2], names[:2], frameon=False)
axes[0].set(ylabel="pairs in the right order", ylim=(0.3, 1.02))
plt.show()

# %% [markdown]
# At the start, and after a first "no", nothing tells them apart: the base has
# no plan. It gives the attempt a probability of three in ten, and the sampler
# draws; the outcome is in the next token, not in the activation before it.
# Over all noes it is another matter: an answer with two "no" goes on, and the
# activations predict it. They encode that this is a search.
#
# The last layer's difference of means, found in one half and tried on the
# other, in every seed of the record: near 1/2 at the start and at a first
# "no", far from it over all noes.

# %%
for seed in record:
    ends = {
        told["when"]: told["separation"][-1]
        for told in seed["told"]
        if told["how"] == "difference"
    }
    print(seed["seed"], {when: round(end, 2) for when, end in ends.items()})

# %% [markdown]
# ## The direction of a search
# So take the last of the three: the mean over noes that are followed by an
# attempt, less the mean over those that an answer follows. It is read from the
# *base's* own answers. Beside it stand two others. The first principal
# component of the same activations needs no labels: it is the axis along which
# they vary most. And what GRPO did: the mean change of the activations from
# the base to the trained model, on the same text.
#
# In 128 dimensions two random directions have a cosine of 0, give or take
# 0.09.


# %%
def cosine(x, y) -> float:
    return float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


found = {
    name: np.array([seed["directions"][name] for seed in record])
    for name in ("difference", "learnt")
}
ours = steering.difference(stream[:, at.noes > 0], at.tries[at.noes > 0])
component, varied = steering.principal(stream[:, at.noes > 0])
pairs = {
    "difference and learnt, same seed": [
        ("difference", i, "learnt", i) for i in range(len(record))
    ],
    "difference, two seeds": [
        ("difference", 0, "difference", i) for i in range(1, len(record))
    ],
    "learnt, two seeds": [
        ("learnt", 0, "learnt", i) for i in range(1, len(record))
    ],
}

# %%
show.table(
    ["cosine of", *(f"layer {k}" for k in layers)],
    [
        [
            name,
            *(
                ", ".join(
                    f"{cosine(found[a][i][k], found[b][j][k]):.2f}"
                    for a, i, b, j in each
                )
                for k in layers
            ),
        ]
        for name, each in pairs.items()
    ]
    + [
        [
            "difference and principal component",
            *(f"{abs(cosine(ours[k], component[k])):.2f}" for k in layers),
        ],
        ["variance along the component", *(f"{x:.0%}" for x in varied)],
        [
            "difference, this layer and the next",
            *(f"{cosine(ours[k], ours[k + 1]):.2f}" for k in layers[:-1]),
            "",
        ],
    ],
)

# %% [markdown]
# ### Check

# %%
for k in layers:
    assert abs(cosine(ours[k], component[k])) > 0.95

# %% [markdown]
# The base had the direction before any reward: it is how its own few searches
# differ from its other answers. That takes no labels to find: the difference
# of means is the first principal component, which holds about half of the
# variance. GRPO has moved the whole model along it. (The noes of a search also
# stand later in their texts, and the direction may say a little of that too;
# but GRPO's change is taken at all crossroads alike.)
#
# ## Push
# Add α times the direction to the stream of every token, after one layer
# (`steering.steer`). At α = 1 the push is as long as the two means are apart.
# One puzzle, one random key, six strengths:

# %%
steering.add(model)


def answer(puzzle, strength: float, layer: int = 3, key: int = 0) -> str:
    """What the pushed base says to a puzzle."""
    steering.steer(model, ours[layer], layer, strength)
    key = jax.random.key(key)
    one = rollout(policy, [puzzle], key, group=1, temperature=1.0)
    steering.steer(model, ours[layer], layer, 0.0)
    return one.texts[0]


# %%
panel = held_out_panel(policy.task, settings)
for strength in (-2.0, -0.5, 0.0, 0.5, 1.0, 2.0):
    text = answer(panel[3], strength)
    display(show.side_by_side(panel[3], {f"α = {strength}": text}))

# %% [markdown]
# Move the slider, or take another puzzle: every answer is sampled as you
# look.

# %%
slider = widgets.FloatSlider(
    value=0.5,
    min=-2,
    max=2,
    step=0.25,
    description="α",
    continuous_update=False,
)
which = widgets.IntSlider(
    value=3, max=len(panel) - 1, description="puzzle", continuous_update=False
)
after = widgets.Dropdown(options=[*layers], value=3, description="layer")
view = widgets.HTML()


def redraw(_=None) -> None:
    puzzle = panel[which.value]
    text = answer(puzzle, slider.value, after.value)
    heads = {f"α = {slider.value}, after layer {after.value}": text}
    view.value = show.side_by_side(puzzle, heads).data


for control in (slider, which, after):
    control.observe(redraw, "value")
redraw()
widgets.VBox([slider, which, after, view])

# %% [markdown]
# ## How much is it worth?
# On the held-out panel, 256 puzzles, one sample each, three seeds (thin; the
# mean thick); a thin line's accuracy has a standard error of up to 0.03.
# Dotted lines: the base, and the model that GRPO has trained.


# %%
def line(part: str, direction: str, layer: int, kind: str):
    """Strengths, and a row of values for each seed."""
    here = [
        [
            x
            for x in seed[part]
            if (x["direction"], x["layer"]) == (direction, layer)
        ]
        for seed in record
    ]
    strengths = [x["strength"] for x in here[0]]
    return strengths, np.array([[x[kind] for x in row] for row in here])


# %%
kinds = {
    "accuracy": "accuracy",
    "backtracks": "further attempts",
    "length": "tokens in an answer",
}
figure, axes = plt.subplots(
    2, 3, figsize=(11, 5.6), sharex=True, layout="constrained"
)
for row, layer in zip(axes, (1, 3) if record else (), strict=False):
    for axis, (kind, title) in zip(row, kinds.items(), strict=True):
        for colour, name in enumerate(("difference", "learnt")):
            strengths, values = line("pushed", name, layer, kind)
            axis.plot(strengths, values.T, f"C{colour}", lw=0.7, alpha=0.5)
            axis.plot(
                strengths, values.mean(0), f"C{colour}", lw=2.2, label=name
            )
        for who in ("base", "trained"):
            level = np.mean([seed[who][kind] for seed in record])
            axis.axhline(level, color="black", ls=":", lw=1)
        axis.set(title=f"{title}, layer {layer}", ylim=(0, None))
        axis.grid(alpha=0.25)
if record:
    axes[0, 0].legend(frameon=False)
for axis in axes[1]:
    axis.set(xlabel="strength α")
plt.show()

# %% [markdown]
# A little of it raises accuracy, further attempts and length together, as GRPO
# did.
# With too much the language comes apart: no "yes" any more, and then no sum.
# Below zero the base's few attempts go, and what is left is jumps.
#
# Every layer, on 128 *other* puzzles a seed; for each the best of four
# strengths. The later the push, the more it gives:

# %%
figure, axis = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for colour, name in enumerate(("difference", "learnt")):
    peaks = [
        line("by_layer", name, k, "accuracy")[1].max(1)
        for k in layers
        if record
    ]
    axis.plot(
        layers[: len(peaks)], peaks, f"C{colour}", marker="o", ms=4, lw=1
    )
    axis.plot([], [], f"C{colour}", label=name)
axis.set(
    xlabel="pushed after layer",
    xticks=layers,
    ylim=(0, 1),
    ylabel="accuracy, best strength",
)
axis.legend(frameon=False)
axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# ## What would any direction do?
# The controls, of the same length: four random directions a seed; the
# difference of means after the labels were shuffled; and the probe, which
# separates as well. A dot is one direction of one seed at one strength; look
# how high the grey ones come.

# %%
groups = {
    "difference": "C0",
    "learnt": "C1",
    "probe": "#cc79a7",
    "shuffled": "black",
    "random": "0.6",
}


def draw_pushes(axis, layer, rows):
    """A dot for each push after the layer, the groups side by side."""
    for x in rows:
        group = x["direction"].split()[0]
        if x["layer"] == layer and abs(x["strength"]) in (0.5, 1.0):
            offset = list(groups).index(group) * 0.05 - 0.1
            axis.plot(
                x["strength"] + offset,
                x["accuracy"],
                "o",
                ms=4,
                color=groups[group],
                alpha=0.8,
            )


# %%
figure, axes = plt.subplots(
    1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained"
)
for axis, layer in zip(axes, (1, 3) if record else (), strict=False):
    for seed in record:
        draw_pushes(axis, layer, seed["pushed"] + seed["controls"])
    base_rates = [seed["base"]["accuracy"] for seed in record]
    axis.axhline(np.mean(base_rates), color="black", ls=":", lw=1)
    axis.set(
        title=f"pushed after layer {layer}",
        xlabel="strength α",
        xticks=[-1, -0.5, 0.5, 1],
    )
for name, colour in groups.items():
    axes[0].plot([], [], "o", color=colour, label=name)
axes[0].legend(frameon=False, fontsize=8)
axes[0].set(ylabel="accuracy", ylim=(0, 1))
plt.show()

# %% [markdown]
# After layer 1, where two more layers read the stream, the random directions
# leave the base where it is; ours double it. After the last layer chance can
# do something: one of twelve random directions more than doubles accuracy,
# too. A shuffled one even reaches 0.7; why, comes in a moment. And the
# probe, which reads a search as well as the difference does, writes it badly:
# it points where the two clouds are told apart best, not from one to
# the other.
#
# Why do shuffled labels ever work? Their difference of means is a random sum
# of the activations, and so it leans to where these vary most: to the first
# principal component, which is the search itself.
#
# ### Check
# After layer 1, at ±½: ours above all of the random ones in every seed, and
# those where the base is.

# %%
for seed in record:
    half = {
        x["direction"]: x["accuracy"]
        for x in seed["pushed"] + seed["controls"]
        if x["layer"] == 1 and x["strength"] == 0.5
    }
    others = [
        x["accuracy"]
        for x in seed["controls"]
        if x["layer"] == 1
        and abs(x["strength"]) == 0.5
        and "random" in x["direction"]
    ]
    print(
        f"seed {seed['seed']}: base {seed['base']['accuracy']:.2f}, ours "
        f"{half['difference']:.2f}, {half['learnt']:.2f}; random "
        f"{min(others):.2f} to {max(others):.2f}"
    )
    assert min(half["difference"], half["learnt"]) > max(others) + 0.1

# %% [markdown]
# The table, after the last layer: means over the seeds of accuracy, further
# attempts and tokens.


# %%
def means(rows: list) -> str:
    """Accuracy, backtracks and tokens, each the mean over some rows."""
    if not rows:
        return ""
    three = [np.mean([x[kind] for x in rows]) for kind in kinds]
    return "{:.2f}, {:.1f}, {:.0f}".format(*three)


def pushes(group: str, strength: float) -> list:
    """The rows of a group's directions after the last layer, all seeds."""
    return [
        x
        for seed in record
        for x in seed["pushed"] + seed["controls"]
        if x["direction"].startswith(group)
        and x["layer"] == 3
        and x["strength"] == strength
    ]


# %%
every = sorted({x["strength"] for seed in record for x in seed["pushed"]})
show.table(
    ["α", *groups],
    [
        [strength, *(means(pushes(group, strength)) for group in groups)]
        for strength in every
    ],
)

# %% [markdown]
# ## What is a direction after the last layer?
# After the last layer nothing reads the stream but the output: there a push is
# a constant added to each token's logit (the direction times the embedding, up
# to the final norm). So one number of a direction may be all that counts: how
# much it lowers `<answer>` against the numbers, with which an attempt begins.

# %%
table = np.asarray(model.embed[...]) * (1 + np.asarray(model.final_norm[...]))
stop = tokenizer.piece_id("▁<answer>")
numbers = [tokenizer.piece_id(f"▁{n}") for n in range(1, 21)]
scale = np.sqrt(np.mean(stream[-1] ** 2))  # by which the final norm divides


def lean(direction) -> float:
    """How much a push by 1 raises the numbers' logits above <answer>'s."""
    logits = table @ np.asarray(direction) / scale
    return float(logits[numbers].mean() - logits[stop])


# %%
dots = {name: [] for name in groups}
for seed in record:
    for x in seed["pushed"] + seed["controls"]:
        if x["layer"] == 3 and abs(x["strength"]) == 0.5:
            tilt = lean(seed["last"][x["direction"]]) * x["strength"]
            dots[x["direction"].split()[0]].append(
                (tilt, x["tried"] / x["n"], x["accuracy"])
            )

# %%
figure, axes = plt.subplots(
    1, 2, figsize=(9.5, 3.2), sharex=True, layout="constrained"
)
for axis, column, title in zip(
    axes, (1, 2), ("any attempt", "accuracy"), strict=True
):
    for name, of in dots.items():
        if of:
            axis.plot(
                *np.array(of)[:, [0, column]].T,
                "o",
                ms=5,
                alpha=0.8,
                color=groups[name],
                label=name,
            )
    axis.set(
        title=title,
        ylim=(0, 1.03),
        xlabel="logits: numbers above <answer>, at ±½",
    )
    axis.grid(alpha=0.25)
if record:
    axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %%
show.table(
    ["pushed after layer 3 by ±½", "n", "any attempt", "best accuracy"],
    [
        [
            name,
            len(of),
            f"{min(x[1] for x in of):.2f} to {max(x[1] for x in of):.2f}",
            max(x[2] for x in of),
        ]
        for name, of in dots.items()
        if of
    ],
)

# %% [markdown]
# All lie on one curve, ours at its end. After the last layer the direction of
# searching is the direction that is *against answering*, and any vector does
# as much as it has of that.
#
# Order all these pushes by that number, by how many answers make an attempt,
# and by accuracy: how near are the orders to being the same (Spearman's
# correlation of ranks)?

# %%
if record:
    tilts = np.array([x for of in dots.values() for x in of])
    ranks = tilts.argsort(0).argsort(0)
    print(
        "rank correlations with any attempt, and with accuracy:",
        np.corrcoef(ranks.T)[0, 1:].round(2),
    )

# %% [markdown]
# ## Take it away
# The same direction, subtracted from the model that GRPO has trained. If it
# were the switch, α = −1 would give the base back: 0.20, 0.2 further attempts,
# 16 tokens.

# %%
taken = {}
for seed in record:
    for x in seed["taken"]:
        key = x["layer"], x["direction"], x["strength"]
        taken.setdefault(key, []).append(x)
strengths = sorted({key[2] for key in taken}, reverse=True)
print(
    "accuracy, further attempts, tokens; untouched:",
    means([seed["trained"] for seed in record]) if record else "",
)
show.table(
    ["layer", "direction", *(f"α = {x}" for x in strengths)],
    [
        [layer, name, *(means(taken[layer, name, x]) for x in strengths)]
        for layer, name in dict.fromkeys(key[:2] for key in taken)
    ],
)

# %% [markdown]
# It does not. At −½ little happens. At −1, after the last layer, answers are a
# quarter shorter and a third to a half of the accuracy is lost, but the model
# goes on searching, seven times as much as the base; after layer 1 it searches
# even *more*, and finds less. At −1½ the language is gone. A random direction
# harms as much, or more. All 0.6 million numbers have learnt to search, and
# one direction does not take it back.

# %% [markdown]
# ## One vector, trained
# The difference of means was never asked what it does for the reward. So let
# GRPO choose: the main run's settings and puzzles, but nothing is trained
# except one direction of 128 numbers after the last layer, from zero, at a
# learning rate of its own. As above, all that it can do there is to shift each
# logit by a constant. (It is an adapter like those of LoRA: notebook
# 05's update trains it as it is.) Sinii et al.
# ([2509.06608](https://arxiv.org/abs/2509.06608)) trained such vectors in
# much larger models.

# %%
figure, axis = plt.subplots(figsize=(6.5, 2.9), layout="constrained")
for seed in record:
    curve = seed["alone"]["curve"]
    axis.plot(
        [x["step"] for x in curve],
        [x["train_accuracy"] for x in curve],
        "C2",
        lw=1,
        alpha=0.7,
    )
    axis.axhline(seed["trained"]["accuracy"], color="black", ls=":", lw=1)
axis.set(
    xlabel="GRPO step",
    ylabel="training accuracy",
    ylim=(0, 1.02),
    title="one vector alone, three seeds; dotted: all weights, held out",
)
axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# How much of GRPO's gain does one vector give back, on the held-out panel?
# Of the two found directions, at the strength that was best on *other*
# puzzles (`by_layer` in the record), after the last layer. The bracket has
# the share of the way from the base to the trained model.


# %%
def best(seed: dict, name: str) -> dict:
    """The push of the panel, its strength chosen on other puzzles."""
    tried = [
        x
        for x in seed["by_layer"]
        if (x["direction"], x["layer"]) == (name, 3)
    ]
    strength = max(tried, key=lambda x: x["accuracy"])["strength"]
    (push,) = [
        x
        for x in seed["pushed"]
        if (x["direction"], x["layer"], x["strength"]) == (name, 3, strength)
    ]
    return push


def share(seed: dict, accuracy: float) -> float:
    base, trained = (seed[who]["accuracy"] for who in ("base", "trained"))
    return (accuracy - base) / (trained - base)


# %%
players = {
    "base": lambda seed: seed["base"],
    "difference of means": lambda seed: best(seed, "difference"),
    "learnt": lambda seed: best(seed, "learnt"),
    "trained alone": lambda seed: seed["alone"],
    "all weights": lambda seed: seed["trained"],
}
lines = []
for name, take in players.items() if record else ():
    runs = [take(seed) for seed in record]
    accuracies = [
        f"{run['accuracy']:.3f} ({share(seed, run['accuracy']):.0%})"
        for seed, run in zip(record, runs, strict=True)
    ]
    backtracks = float(np.mean([run["backtracks"] for run in runs]))
    tokens = float(np.mean([run["length"] for run in runs]))
    lines.append([name, *accuracies, backtracks, tokens])
seeds = [f"seed {seed['seed']}" for seed in record]
show.table(["accuracy, n = 256", *seeds, "further attempts", "tokens"], lines)

# %%
for seed in record:
    alone = seed["alone"]["direction"]
    print(
        f"seed {seed['seed']}: the trained vector and the learnt direction,"
        f" cosine {cosine(alone, seed['last']['learnt']):.2f}; and the"
        f" difference, {cosine(alone, seed['last']['difference']):.2f};"
        f" it raises the numbers above <answer> by {lean(alone):.1f}"
    )

# %% [markdown]
# ### Check

# %%
for seed in record:
    assert share(seed, seed["alone"]["accuracy"]) > 0.85

# %% [markdown]
# ## One number, trained
# The trained vector raises the numbers above `<answer>` by five, and all that
# it can do is to shift each logit. How much does a *single* number do, added
# to the logit of `<answer>` at every token, with everything else as in the
# base (`steering.WithTokenBias`)? Its score is
#
# $$z'_{\text{<answer>}} = z_{\text{<answer>}} + b.$$
#
# The same GRPO trains $b$ alone, from 0, with 64 answers a step
# (`python tests/benchmarks/one_scalar.py`). Beside it, $b$ set by hand:

# %%
stored = benchmarks / "one_scalar.json"
scalar = json.loads(stored.read_text()) if stored.exists() else []
figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
for i, seed in enumerate(scalar):
    curve = seed["trained"]["curve"]
    axes[0].plot(
        [x["step"] for x in curve],
        [x["bias"] for x in curve],
        f"C{i}",
        label=f"seed {seed['seed']}",
    )
    hand = seed["by_hand"]
    axes[1].plot(
        [x["bias"] for x in hand],
        [x["accuracy"] for x in hand],
        f"C{i}",
        marker="o",
        ms=3,
    )
    end = seed["held_out"]
    axes[1].plot(end["bias"], end["accuracy"], f"C{i}", marker="*", ms=13)
axes[0].set(title="b, by GRPO", xlabel="GRPO step", ylabel="nats")
axes[1].set(
    title="held-out accuracy; a star: GRPO's b", xlabel="b", ylim=(0, 1.02)
)
if scalar:
    axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %%
show.table(
    [
        "seed",
        "b",
        "accuracy, n = 256",
        "of GRPO's gain",
        "further attempts",
        "tokens",
    ],
    [
        [
            one["seed"],
            one["held_out"]["bias"],
            one["held_out"]["accuracy"],
            f"{share(seed, one['held_out']['accuracy']):.0%}",
            one["held_out"]["backtracks"],
            one["held_out"]["length"],
        ]
        for one, seed in zip(scalar, record, strict=False)
    ],
)

# %% [markdown]
# GRPO takes $b$ to about $-4.9$ in each seed, and one number does what the
# vector of 128 does. The curve on the right has a broad top from $-5$ to
# $-8$, so it need not be found precisely; at $-12$ a third of the answers is
# lost. A constant cannot know *when* an answer is due: it delays the
# answer after a "yes" as much as before one. That answers come after a "yes"
# all the same is the base's doing, whose own logits outweigh a moderate bias
# there; a bias that is too strong keeps it from answering at all.

# %% [markdown]
# ## And a real Gemma?
# Gemma 3 270M after its cold start (notebook 07) has 18 layers of 640 numbers.
# The same steps, from the record of one run:
# `python tests/benchmarks/backtracking_gemma.py BASE`. Directions come from
# 128 answers of the base; *learnt* is the change by notebook 07's seed 0.

# %%
stored = benchmarks / "backtracking_gemma.json"
gemma = json.loads(stored.read_text()) if stored.exists() else {}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
for colour, when in enumerate(crossroads):
    for told in gemma.get("told", []):
        if (told["when"], told["how"]) == (when, "difference"):
            axes[0].plot(
                told["separation"],
                f"C{colour}",
                marker="o",
                ms=3,
                label=f"{when}, n = {told['n']}",
            )
axes[0].axhline(0.5, color="0.6", ls=":")
axes[0].set(
    title="pairs in the right order", xlabel="after layer", ylim=(0.3, 1.02)
)
if gemma:
    axes[0].legend(frameon=False, fontsize=8)
axes[1].plot(gemma.get("cosine", []), "C0", marker="o", ms=3)
axes[1].axhline(0, color="0.6", ls=":")
axes[1].set(
    title="cosine of difference and learnt", xlabel="after layer", ylim=(-1, 1)
)
plt.show()

# %%
if gemma:
    pushes = [{"direction": "none", "strength": 0.0} | gemma["base"]]
    pushes += sorted(
        gemma["pushed"], key=lambda x: (x["direction"], x["strength"])
    )
    display(
        show.table(
            [
                "pushed after layer 17",
                "α",
                "n",
                "accuracy",
                "further attempts",
                "tokens",
                "any attempt",
            ],
            [
                [
                    x["direction"],
                    x["strength"],
                    x["n"],
                    x["accuracy"],
                    x["backtracks"],
                    x["length"],
                    x["tried"] / x["n"],
                ]
                for x in pushes
            ],
        )
    )

# %% [markdown]
# Again the single decision can hardly be predicted (few decisions, so the
# lines wander), and that it is searching can be read in every layer. The
# base's own direction and the learnt one agree only towards the end: in
# between GRPO's adapters have moved other things too. Half of the difference,
# added after the last layer, takes the base from one answer right in four to
# more than half, with answers three times as long; half of what GRPO has
# changed there takes it to where GRPO took it (0.65 on another panel). Below
# zero it only jumps. Two random directions of that length ruin the language:
# in Gemma's stream a random direction is no fair control. One run, 64 puzzles:
# an error of 0.06.

# %% [markdown]
# ## What a direction shows, and what it does not
# - **Shown:** in this model searching is, to a good part, one direction. The
#   base has it, and its own few searches are enough to find it. A push along
#   it gives back three quarters of GRPO's gain, and a vector of 128 numbers
#   that GRPO trains nearly all of it. That fits notebook 06: what grows is the
#   will, not the skill. How much a single number does, the logit of
#   `<answer>`, is measured above.
# - **What it is, after the last layer:** a bias against `<answer>`. The model
#   itself still has to know when to stop: it does answer after "yes", since
#   there its own logits are stronger than the push.
# - **Not shown:** that it is *the* cause in the trained model. Taking it away
#   spoils much and restores nothing.
# - **Failures on the way:** single decisions give no direction, for there is
#   none to find: the sampler decides. Shuffled labels give one that may work,
#   with either sign, because searching is also the axis along which these
#   activations vary most; a control is worth what its worst case is. And a
#   push as long as the means are apart is a long one, and mostly too long.
# - One task, two models, and both learnt to search from our own worked text,
#   in one language. R1's distilled models (Venhoff et al.) have many such
#   behaviours, and their directions were found by a reader's labels. For Gemma
#   one run and the last layer alone were measured.
#
# ## Exercises
# 1. Find the direction from the *first* decision instead, or from the first
#    "no" alone (`at.noes == 0`, `at.noes == 1`), and push along it, scaled to
#    the length of ours. Does it work?
#
# <details><summary>Answer</summary>
#
# No. In three seeds their difference of means is 0.4 to 5 % as long as ours
# (first decision), or 7 to 13 % (first "no"), with cosines to ours between
# −0.4 and 0.3: noise. Scaled up, at ±½, they give an
# accuracy of 0.13 to 0.21 after layer 1 (base: 0.20) and of 0.20 to 0.32 after
# layer 3, whatever the sign, as random ones do.
#
# </details>
#
# 2. Where does the vector have to act: at all tokens, or at the crossroads
#    alone? What would you have to change in `gemma.Gemma.extend`?
#
# <details><summary>Answer</summary>
#
# `push` would need a row for each token of the batch: multiply it by a mask
# [B, T, 1], such as "the last token was `no` or `:`". After the last layer no
# other token can matter for the first decision, as nothing else reads the
# push; after earlier layers it may. (Not measured here.)
#
# </details>
#
# ## Summary
# Activations come from `Gemma.residuals`; finding, scoring and pushing live in
# `aha_lib/look/steering.py`; the record is made by
# `tests/benchmarks/backtracking.py`.
#
# **Next:** [09_objectives](09_objectives.ipynb) changes the objective of
# notebook 04, and nothing else.
