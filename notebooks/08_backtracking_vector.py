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
# space, one can find it, add it to a model that rarely searches, and subtract
# it from one that always does. (Activation addition,
# [2308.10248](https://arxiv.org/abs/2308.10248); Venhoff et al. found such
# directions in R1's distilled models,
# [2506.18167](https://arxiv.org/abs/2506.18167).) Here all steps can be seen,
# on the model whose searching grew in notebook 05.
#
# Whatever the preset is, this notebook pushes the tiny base that comes with
# the package, since only there all steps take minutes. The record of the same
# steps on a Gemma is near the end.
#
# | preset | machine | what it does |
# |---|---|---|
# | any | any, no accelerator needed | finds and pushes live, reads three seeds: two minutes |
#
# You will see:
#
# 1. where the base decides whether to try, neither of two linear directions
#    in its activations predicts what it will do;
# 2. that an answer *is* a search, the activations do tell. They vary most
#    along this direction, and GRPO moves them nearly the same way;
# 3. this direction, added to the base after the last layer, gives about three
#    quarters of GRPO's gain in accuracy, more than random ones do. A vector
#    that GRPO trains gives nearly all of it. After the last layer a vector is
#    a constant shift of the logits, mainly against `<answer>`;
# 4. so one number, the shift of that one logit, is trained too, and gives as
#    much as the vector;
# 5. the direction is no switch: subtracting it from the trained model does
#    not bring the base back.

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
# goes on. `steering.decisions` finds them by notebook 06's rules. The next
# two cells sample answers of the base and print six decisions after a "no":
# three that an attempt follows, and three that an answer follows.

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
# about three answers of ten; after a second "no" nearly always. This is as in
# the corpus, where only searches have two.

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
# (`steering.activations`). Does it predict what will follow? Find a direction
# in every second answer, and score the decisions of the others along it. Then
# take pairs of a decision that an attempt follows and one that an answer
# follows, and count how often the first scores higher: 1/2 is chance, 1 is
# perfect. There are two ways to find a direction: the *difference of means*,
# and Fisher's linear discriminant, a *probe* that also takes into account how
# the activations spread.

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
# The same for the three seeds of the record, each with answers of its own;
# the dotted line is chance. (`python tests/benchmarks/backtracking.py` makes
# the record, from the runs of `habits.py`.)

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
# At the start, and after a first "no", neither direction tells the two kinds
# apart in any layer. This is what one expects if the base has no plan: it
# gives the attempt a probability of about three in ten whatever the puzzle
# is, and the sampler draws. Over all noes the result is different: an answer
# with two "no" goes on, and the activations predict that. They encode that
# this is a search.
#
# In numbers, the last layer's difference of means in every seed of the record
# should be near 1/2 at the start and at a first "no", and far from it over
# all noes:

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
# So take the difference of means over all noes: the mean over those that an
# attempt follows, less the mean over those that an answer follows. This
# direction, called *difference* below, is read from the *base's* own answers.
# Compare it with two others. The first principal component of the same
# activations needs no labels: it is the axis along which they vary most. The
# direction called *learnt* is what GRPO did: the mean change of the
# activations from the base to the trained model, on the same text.
#
# In the table look for cosines near 1. In 128 dimensions two random
# directions have a cosine of 0, give or take 0.09.


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
# In every layer the difference of means should be nearly the first principal
# component.

# %%
for k in layers:
    assert abs(cosine(ours[k], component[k])) > 0.95

# %% [markdown]
# The base had the direction before any reward: along it its own few searches
# differ from its other answers. No labels are needed to find it, since the
# difference of means is nearly the first principal component, which has about
# half of the variance. GRPO has moved the activations nearly the same way,
# with a cosine of 0.86 or more. (The noes of a search also stand later in
# their texts, and the direction may encode a little of that too. But GRPO's
# change is taken at all crossroads alike.)
#
# ## Push
# Add α times the direction to the stream of every token, after one layer
# (`steering.steer`). At α = 1 the push is as long as the two means are apart.
# The cells show one puzzle and one random key at six strengths. Look where
# attempts begin, and where the language breaks down:

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
# With a running kernel, move the slider or take another puzzle: the answer is
# sampled anew.

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
# The figure has the held-out panel, 256 puzzles with one sample each. A thin
# line is a seed, and a thick one is the mean of three; a thin line's accuracy
# has a standard error of up to 0.03. The dotted lines are the base and the
# model that GRPO has trained: how near does a push come to the upper one?


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
# A push of moderate strength raises accuracy, further attempts and length
# together, as GRPO did. With more than that the language breaks down and
# accuracy falls to 0. At −½ and −1 the base's few attempts go, and jumps are
# left; at −2 the language breaks down too.
#
# The next figure has every layer, on 128 *other* puzzles a seed. Each dot is
# the best of four strengths on these puzzles, so it is a little too good. On
# the whole a later push gives more:

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
# The controls are directions of the same length: four random ones a seed; the
# difference of means after the labels were shuffled; and the probe, which
# tells searches apart as well as the difference does. A dot is one direction
# of one seed at one strength. Look how high the grey dots, the random
# directions, come.

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
# After layer 1, where two more layers read the stream, random pushes by ½
# leave accuracy about where the base has it, and ours double it. After the
# last layer a random direction can help: one of twelve more than doubles
# accuracy, too. A shuffled one even reaches 0.7. The probe tells searches
# apart as well as the difference does, but a push along it gives much less:
# it points where the two clouds of activations are told apart best, not from
# one mean to the other.
#
# Why can shuffled labels work? Their difference of means is a random sum of
# the activations. So it leans to where these vary most, to the first
# principal component, and that is nearly the direction of searching.
#
# ### Check
# After layer 1, our two directions at ½ should lie above all random ones at
# ±½, in every seed.

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
# The same after the last layer. A cell of the table has accuracy, further
# attempts and tokens, each the mean over the seeds:


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
# After the last layer nothing reads the stream but the output: there a push
# is a constant added to each token's logit (the direction times the
# embedding, up to the final norm). So one number of a direction may be all
# that counts: how much it lowers `<answer>` against the numbers, with which
# an attempt begins. The figure has this number on the horizontal axis, for
# all pushes by ±½. Do the dots lie on one curve?

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
# All dots lie near one curve, ours at its ends. So after the last layer the
# direction of searching is mainly the direction *against answering*, and
# other vectors work as far as they have a part of it.
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
# Now subtract the same directions from the model that GRPO has trained. If
# they were the switch, α = −1 would give the base back: an accuracy of 0.20,
# 0.2 further attempts, 16 tokens.

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
# They do not. At −½ along our directions little happens. At −1, after the
# last layer, answers are about a quarter shorter, and accuracy falls to 0.65
# (learnt) or 0.42 (difference). But the model still makes about seven times
# as many further attempts as the base. After layer 1 it makes even *more*
# than before, and solves less. At −1½ the language breaks down. A random
# direction harms as much, or more. So one direction does not undo what GRPO
# has changed in all the weights.

# %% [markdown]
# ## One vector, trained
# The difference of means was not chosen for the reward. So let GRPO choose:
# settings and puzzles are the main run's, but only one vector of 128 numbers
# after the last layer is trained, from zero, at a learning rate of its own.
# As above, all that the vector can do there is to shift each logit by a
# constant. (It is an adapter like those of LoRA: notebook 05's update trains
# it as it is.) Sinii et al. ([2509.06608](https://arxiv.org/abs/2509.06608))
# trained such vectors in much larger models.

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
# How much of GRPO's gain does one vector give, on the held-out panel? The
# table has the two directions that were found, pushed after the last layer at
# the strength that was best on *other* puzzles (`by_layer` in the record),
# and the trained vector. In brackets is the share of the way from the base to
# the trained model.


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

# %% [markdown]
# Where does the trained vector point? The next lines have its cosines with the
# two directions, and the logits by which it raises the numbers above
# `<answer>`.

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
# In every seed the trained vector should give more than 85 % of GRPO's gain.

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
# $-8$, so $b$ need not be found precisely; at $-12$ a third of the accuracy
# is lost. A constant cannot tell *when* an answer is due: it lowers
# `<answer>` as much after a "yes" as before one. Answers come after a "yes"
# all the same, because there the base's own logits outweigh a moderate bias.
# A bias that is too strong outweighs them.

# %% [markdown]
# ## And a real Gemma?
# Gemma 3 270M after its cold start (notebook 07) has 18 layers of 640
# numbers. The same steps, from the record of one run: `python
# tests/benchmarks/backtracking_gemma.py BASE`. Directions come from 128
# answers of the base; *learnt* is the change by notebook 07's seed 0. Compare
# the figure with those above: is a decision predicted, and do the two
# directions agree?

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
# Again every layer tells that an answer is a search. The decision at the
# start is not predicted. That after a first "no" is, if at all, in the last
# layers, up to 0.74; these are 46 decisions, so the lines wander. The base's
# own direction and the learnt one agree only towards the end, so in between
# GRPO's adapters have also moved other things.
#
# Half of the difference, added after the last layer, takes the base from one
# answer right in four to more than half, with answers three times as long.
# Half of what GRPO has changed there takes it to where GRPO took it (0.65 on
# another panel). At −½ it nearly always jumps. Two random directions of that
# length ruin the language, so in Gemma's stream a random direction is no fair
# control. This is one run, of 64 puzzles; an accuracy has an error of 0.06.

# %% [markdown]
# ## What a direction shows, and what it does not
# - **Shown:** in this model searching is, to a good part, one direction. The
#   base has it, and its own few searches are enough to find it. A push along
#   it gives about three quarters of GRPO's gain. A vector of 128 numbers that
#   GRPO trains gives nearly all of it, and so does a single number, the shift
#   of the logit of `<answer>`. This fits notebook 06: what grows is the will,
#   not the skill.
# - **What it is, after the last layer:** a bias against `<answer>`. The model
#   itself still has to know when to stop: it does answer after "yes", since
#   there its own logits are stronger than the push.
# - **Not shown:** that it is *the* cause in the trained model. Taking it away
#   spoils much and restores nothing.
# - **Failures on the way:** single decisions give no direction that predicts
#   them. Shuffled labels give one that may work, with either sign, because
#   these activations vary most along the direction of searching; so one
#   shuffled control is not enough. A push as long as the means are apart is
#   mostly too long.
# - One task, two models, and both learnt to search from our own worked text,
#   in one language. R1's distilled models (Venhoff et al.) have many such
#   behaviours, and their directions were found from labelled texts. For Gemma
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
