# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Where does the searching come from?
#
# **The question:** does the reward *make* a model search, or does it *find* a
# habit that is there? And does what the tiny model shows hold for a real
# Gemma?
#
# Two experiments. In the first, three tiny bases are pre-trained alike but for
# one thing, their habits, and then get the same reward. In the second, Gemma 3
# 270M sees some thousand worked puzzles (a *cold start*, in the words of
# [DeepSeek-R1](https://arxiv.org/abs/2501.12948)) and is then trained by GRPO
# as the tiny one is; once with searches in the cold start, once without, and
# once with no cold start at all. The notebook draws their records; it trains
# nothing.
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | any, no accelerator needed | reads and draws: under a minute |
#
# You will see, each with a check cell:
#
# 1. under the same reward, a base without the habit never gets it;
# 2. real Gemma learns: held-out accuracy, searches and length rise together,
#    and then, on one GPU, accuracy goes on to 0.90 with shorter searches;
# 3. after a cold start without searches it does not, not in 100 steps either:
#    its checks become an empty form; and from zero there is nothing to learn
#    from;
# 4. what the reward does to its sums, which nobody pays for one by one.

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
# ## Three bases
# The tiny base has learnt from worked text that we wrote
# (`aha_lib/tasks/corpus.py`). Most of its traces *jump* to an answer, some *check*
# one attempt, a tenth *search*: they go on after a "no". One puzzle in all
# three styles:

# %%
import json
import random

import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib.look import record, show
from aha_lib.presets import PRETRAINING
from aha_lib.run import train
from aha_lib.tasks import corpus, countdown, traces

# %%
puzzle = countdown.Puzzle((16, 16, 13), 48)
styles = "jump", "check", "search"
for style in styles:
    print(f"{style:8}", corpus.trace(puzzle, style, random.Random(1)))

# %% [markdown]
# A second base has another corpus: the traces that would search jump instead.
# In the corpus of a third, those that would check jump too. Everything else is
# the same: the seed, the drills in arithmetic, the number of documents, the
# steps. (`aha pretrain --preset tiny-no-search --out FOLDER`, or
# `tiny-jumps`, makes such a base in about 40 minutes.) The shares:

# %%
bases = {
    "tiny": "jump, check, search",
    "tiny-no-search": "jump, check",
    "tiny-jumps": "jump",
}
show.table(
    ["preset", "habits", "drill", *styles],
    [
        [name, habits, *PRETRAINING[name].shares.values()]
        for name, habits in bases.items()
    ],
)

# %% [markdown]
# ### Check
# Do the corpora hold what their names say? A trace with two verdicts has
# gone on after a "no".


# %%
def verdicts(name: str, count: int = 500) -> np.ndarray:
    """How many "no" and "yes" each trace of a corpus has; no drills."""
    texts = [
        "".join(text for text, _ in corpus.document(PRETRAINING[name], i))
        for i in range(count)
    ]
    return np.array(
        [
            sum(text.split().count(word) for word in ("no", "yes"))
            for text in texts
            if "<answer>" in text
        ]
    )


# %%
said = {name: verdicts(name) for name in bases}
assert said["tiny"].max() > 1 and said["tiny-no-search"].max() == 1
assert said["tiny-jumps"].max() == 0

# %% [markdown]
# ## The same reward
# Each base then gets notebook 05's run, three seeds:
# `python tests/benchmarks/habits.py FOLDER` pre-trains, runs, and leaves a
# row for every run. A thin line is a seed, the thick one their mean.

# %%
benchmarks = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"
stored = benchmarks / "habits.json"
runs = json.loads(stored.read_text()) if stored.exists() else []
by_base = {
    name: [run for run in runs if run["base"] == name] for name in bases
}

# %%
kinds = {
    "accuracy": "accuracy on held-out puzzles",
    "length": "tokens in a response",
    "backtracks": "backtracks in a response",
}


def panels(draw) -> None:
    """A panel for each kind of curve, which `draw` puts there."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, (kind, title) in zip(axes, kinds.items(), strict=True):
        draw(axis, kind)
        axis.set(title=title, xlabel="GRPO step", ylim=(0, None))
        axis.grid(axis="y", alpha=0.25)
    axes[0].legend(frameon=False, title="habits of the base", fontsize=8)
    plt.show()


# %%
def of_tiny(axis, kind: str) -> None:
    for colour, (name, of) in enumerate(by_base.items()):
        for run in of:
            axis.plot(
                run["evaluated"], run[kind], f"C{colour}", lw=0.8, alpha=0.5
            )
        if of:
            axis.plot(
                of[0]["evaluated"],
                np.mean([r[kind] for r in of], 0),
                f"C{colour}",
                lw=2.4,
                label=bases[name],
            )


panels(of_tiny)

# %%
show.table(
    ["habits of the base", "seed", *kinds, "search"],
    [
        [
            bases[run["base"]],
            run["seed"],
            *(f"{run[kind][0]:.3g} → {run[kind][-1]:.3g}" for kind in kinds),
            " → ".join(
                f"{show.shares(run['styles'][i], styles)[2]:.0%}"
                for i in (0, -1)
            ),
        ]
        for of in by_base.values()
        for run in of
    ],
)

# %% [markdown]
# One reward, three models. The base that has seen searches learns to search,
# and solves nearly all. The base that has not seen them learns, in as many
# steps, what its habits can give: it jumps less and checks more, until it
# checks nearly every time. But it does not go on after a "no", and one attempt
# is right about one time in four (notebook 06). And the base that has only seen
# jumps goes on jumping, in ten tokens, before and after; it hardly guesses
# better than it did.
#
# ### Check
# What would refute it: a base without searches whose backtracks grow, one
# without checks that checks, or either of them near the first in accuracy. Per
# seed, at the last evaluation:

# %%
ends = {
    name: {kind: np.array([run[kind][-1] for run in of]) for kind in kinds}
    for name, of in by_base.items()
}
with_it, without, jumps = (ends[name] for name in bases)
assert (without["backtracks"] < 0.05).all() and len(without["backtracks"]) > 2
assert (with_it["backtracks"] > 1).all()
assert without["accuracy"].max() < 0.5 < 0.9 < with_it["accuracy"].min()
assert all(run["styles"][-1] == {"jump": 256} for run in by_base["tiny-jumps"])
assert jumps["accuracy"].max() < without["accuracy"].min()

# %% [markdown]
# Do jumps get better at all? All three seeds end a little above where they
# began, on the panel of 256 (at the start 16 answers to each puzzle, so that
# the end has nearly all of the error). Together:

# %%
begun = np.mean([run["accuracy"][0] for run in by_base["tiny-jumps"]])
gain = jumps["accuracy"].mean() - begun
error = np.sqrt(begun * (1 - begun) / (256 * len(jumps["accuracy"])))
print(f"{begun:.3f} → {begun + gain:.3f}: {gain / error:.1f} standard errors")

# %% [markdown]
# What the second one writes at the end, for the first puzzles of the panel:
# mostly one attempt, a "no", and the answer that it has just called wrong.

# %%
alone = by_base["tiny-no-search"][0]
for text in alone["texts"][-1][:6]:
    print(text)

# %% [markdown]
# ## A real Gemma
# Now Gemma 3 270M, the base model. Asked for Countdown as it is, it is never
# right (0 of 1,024 answers, `tests/benchmarks/base_rate.py`): there is nothing
# for a reward to find. So it gets a cold start first: supervised training on
# some thousand worked puzzles, as short text. The commands:
#
# ```sh
# aha pretrain --preset gemma3-270m-cpu --model WEIGHTS \
#     --out runs/gemma3-270m-cpu/base
# python notebooks/05_train.py --preset gemma3-270m-cpu --out runs/gemma
# ```
#
# Three things to know of the figures below. The **cold start** teaches it the
# habits, so this is no R1-Zero. Its **vocabulary is cut** to the pieces that
# the task uses (`aha_lib/model/vocabulary.py`): all other pieces are forbidden, and
# a step takes a third of the time. And its **weights** were 4-bit ones,
# dequantised, not Google's bfloat16 ones.

# %%
place = record.DATA / "gemma3-270m"
cold = PRETRAINING["gemma3-270m-cpu"]
shown = {}  # one document of each kind, by its number of verdicts
for index in range(100):
    text = "".join(text for text, _ in corpus.document(cold, index))
    count = text.count(" no\n") + text.count(" yes\n")
    shown.setdefault(min(count, 2) if "Make" in text else "drill", text)
for text in shown.values():
    print(text, end="\n\n")

# %% [markdown]
# Shares of the documents, and the loss while it learns them. The loss cannot
# go to zero: which sum to try first is drawn at random, and nobody can
# predict it.

# %%
losses = [
    row["loss"] for row in train.read_rows(place / "cold_start/metrics.jsonl")
]
wide = 10
smooth = np.convolve(losses, np.ones(wide) / wide, "valid")
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
axis.plot(losses, lw=0.6, alpha=0.5)
axis.plot(np.arange(len(smooth)) + wide - 1, smooth, "C0", lw=2)
axis.set(
    xlabel="step of the cold start", ylabel="loss, nats a token", ylim=(0, 1)
)
plt.show()
print(cold.shares)

# %% [markdown]
# ## From there, GRPO
# The same loop as the tiny model's, on adapters of rank 16. A puzzle has
# three numbers up to 20; the held-out panel is 128 of them, so a share on it
# has a standard error of up to 0.044.

# %%
gemma = [record.read(folder) for folder in sorted(place.glob("seed*"))]
show.curve(*[run.rows for run in gemma])

# %%
names = "accuracy", "greedy", "length", "backtracks"
show.table(
    ["run", "step", *names],
    [
        [run.name, row["step"], *(row[f"heldout_{n}"] for n in names)]
        for run in gemma
        for row in run.measured
    ],
)

# %% [markdown]
# ### Check
# The accuracies once more, out of the kept texts.


# %%
def parsed(run: record.Record, kind: str = "sampled") -> list[list]:
    """The completions of a run taken apart, a list a checkpoint."""
    return [
        [
            traces.parse(*pair)
            for pair in zip(row[kind], run.panel, strict=True)
        ]
        for row in run.kept
    ]


# %%
sides = [parsed(run) for run in gemma]
for run, of_run in zip(gemma, sides, strict=True):
    for row, side in zip(run.measured, of_run, strict=True):
        assert row["heldout_accuracy"] == np.mean([t.right for t in side])

# %% [markdown]
# ## Will, skill, and the truth of the sums
# Notebook 06 has three measures that do not depend on how an answer ends: is
# there any attempt, does it go on after its first "no", how often does an
# attempt hit? For Gemma a fourth matters: are its sums true? It could add
# before, but not without fail, and nobody pays for a sum: only an answer that
# is right, and a false sum may spoil it.


# %%
def measures(side: list) -> list[tuple[int, int]]:
    """Of completions, first noes, attempts, sums: how many, of how many."""
    tried = [t for t in side if t.attempts]
    refused = [t for t in tried if t.attempts[0].verdict == "no"]
    attempts = [a for t in tried for a in t.attempts]
    truths = [c.true for t in side for c in t.claims if c.true is not None]
    return [
        (len(tried), len(side)),
        (sum(len(t.attempts) > 1 for t in refused), len(refused)),
        (sum(a.reached for a in attempts), len(attempts)),
        (sum(truths), len(truths)),
    ]


# %%
four = "any attempt", "goes on after a no", "attempts that hit", "true sums"
show.table(
    ["run", "step", *four],
    [
        [
            run.name,
            row["step"],
            *(f"{a}/{b} = {a / max(b, 1):.2f}" for a, b in measures(side)),
        ]
        for run, of_run in zip(gemma, sides, strict=True)
        for row, side in zip(run.kept, of_run, strict=True)
    ],
)

# %% [markdown]
# The habit goes first, within ten steps, as in the tiny model: to try at all,
# and to go on after a "no". An attempt hits no more often than before. Of the
# sums fewer are true at step 10, when the searches have become long, and more
# again at step 20: a false sum on a branch that is left costs nothing, but
# one on the branch that leads to the target costs the answer.
#
# ### Check
# Standard errors take completions, attempts and sums as independent, which
# those of one answer are not: take the last two as too small. The first two
# have to be many of them, for every run.

# %%
for run, of_run in zip(gemma, sides, strict=True):
    (first, last) = (np.array(measures(of_run[i]), float) for i in (0, -1))
    share = np.array([first[:, 0] / first[:, 1], last[:, 0] / last[:, 1]])
    error = np.sqrt((share * (1 - share) / [first[:, 1], last[:, 1]]).sum(0))
    change = (share[1] - share[0]) / error
    for name, x, e in zip(four, share[1] - share[0], error, strict=True):
        print(f"{run.name}  {name:20} {x:+.2f}, standard error {e:.2f}")
    assert (change[:2] > 5).all()

# %% [markdown]
# ### Check
# Held-out accuracy is many standard errors above where it began. (Where it
# began is the same model in both runs; its two samples of 128 differ by
# chance.)

# %%
gains = []
for run in gemma:
    before, after = (run.measured[i]["heldout_accuracy"] for i in (0, -1))
    error = np.sqrt(0.25 / len(run.panel) * 2)
    print(f"{run.name}: {before:.3f} → {after:.3f}, error {error:.3f} at most")
    gains.append(after - before)
    assert after > 0.6 and gains[-1] > 4 * error
assert np.mean(gains) > 6 * error / np.sqrt(len(gains))

# %% [markdown]
# ## The same cold start, without searches
# The control of the first experiment, now for Gemma: the documents that would
# search jump instead (`--search 0 --jump 0.56`), all else is the same,
# and then GRPO with the same settings, puzzles and seed.

# %%
alone = record.read(place / "no_search")


def of_gemma(axis, kind: str) -> None:
    for colour, (habits, of) in enumerate(
        {"jump, check, search": gemma, "jump, check": [alone]}.items()
    ):
        for i, run in enumerate(of):
            axis.plot(
                [row["step"] for row in run.measured],
                [row[f"heldout_{kind}"] for row in run.measured],
                f"C{colour}",
                marker="o",
                ms=4,
                label="" if i else habits,
            )


panels(of_gemma)

# %%
show.table(
    ["no searches, step", *names, *four],
    [
        [
            row["step"],
            *(row[f"heldout_{n}"] for n in names),
            *(f"{a}/{b} = {a / max(b, 1):.2f}" for a, b in measures(side)),
        ]
        for row, side in zip(alone.measured, parsed(alone), strict=True)
    ],
)

# %%
for text in alone.kept[-1]["sampled"][:5]:
    print(text, end="\n\n")

# %% [markdown]
# The same as with the tiny model. In 20 steps it learns to check one attempt
# nearly every time (32 of 128 answers before, 125 after) and doubles what it
# solves, as one attempt can; but it never once goes on after its "no", and so
# it ends where the other begins. What reward has to work with is the habit.
#
# ### Check

# %%
end = alone.measured[-1]
assert end["heldout_backtracks"] < 0.1
lowest = min(run.measured[-1]["heldout_accuracy"] for run in gemma)
error = np.sqrt(0.25 / len(alone.panel) * 2)
print(f"{end['heldout_accuracy']:.3f} without, {lowest:.3f} at least with")
assert lowest - end["heldout_accuracy"] > 3 * error

# %% [markdown]
# ## More steps, on an accelerator
# Twenty steps of 64 answers are little. The preset for accelerators,
# `gemma3-270m-short`, takes 512 a step, with up to 400 tokens an answer, half
# the learning rate, which falls to a tenth, and a panel of 512 puzzles. On a
# GPU (an NVIDIA H100), from the same cold start:
#
# ```sh
# python notebooks/05_train.py --preset gemma3-270m-short \
#     --model runs/gemma3-270m-cpu/base
# ```
#
# Seed 0 ran all of its 110 steps, in seven and a half minutes; for seed 1 there
# was time for 56. What grows in the first ten steps, and what after them?


# %%
def read_all(folder: str) -> list[tuple[record.Record, list]]:
    """The runs recorded in a folder, each with its completions taken apart."""
    runs = [record.read(path) for path in sorted((place / folder).iterdir())]
    return [(run, parsed(run)) for run in runs]


def evaluations(runs: list[tuple[record.Record, list]]):
    """A table of such runs, a line for each evaluation."""
    return show.table(
        ["run", "step", *names, *four],
        [
            [
                run.name,
                row["step"],
                *(row[f"heldout_{n}"] for n in names),
                *(f"{a / max(b, 1):.2f}" for a, b in measures(side)),
            ]
            for run, of_run in runs
            for row, side in zip(run.measured, of_run, strict=True)
        ],
    )


far = read_all("h100")
evaluations(far)

# %% [markdown]
# In ten steps the habit is there: from 1.5 backtracks an answer to 7.5, from
# 0.25 right to 0.77 and 0.73. Then something else grows. Accuracy goes on to
# 0.90 (seed 1: to 0.89 in 50 steps), that of greedy answers to 0.94, yet
# answers become *shorter*, from 150 tokens to 111. Attempts must have become
# better. Hits per attempt could deceive, since easy puzzles are left early; so
# ask how many puzzles are solved within so many attempts.


# %%
def within(side: list, most: int) -> list[bool]:
    """Which completions reach the target in their first attempts."""
    return [any(a.reached for a in t.attempts[:most]) for t in side]


figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
for i, (run, of_run) in enumerate(far):
    for axis, kind in zip(axes, ("accuracy", "length"), strict=False):
        axis.plot(
            [row["step"] for row in run.measured],
            [row[f"heldout_{kind}"] for row in run.measured],
            f"C{i}",
            marker="o",
            ms=3,
            label=f"seed {i}",
        )
    for at, style in ((0, ":"), (1, "--"), (-1, "-")):
        axes[2].plot(
            range(1, 25),
            [np.mean(within(of_run[at], n)) for n in range(1, 25)],
            f"C{i}",
            ls=style,
            label=f"step {run.kept[at]['step']}",
        )
axes[0].set(title="held-out accuracy", xlabel="GRPO step", ylim=(0, 1))
axes[1].set(title="tokens in a response", xlabel="GRPO step", ylim=(0, None))
axes[2].set(title="solved within so many", xlabel="attempts", ylim=(0, 1))
for axis in axes[::2]:
    axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Within eight attempts two thirds are solved at step 10 and three quarters at
# the end, in both runs. So the reward first finds the will to go on and then,
# more slowly, better attempts. The sums are as true at the end as at the start.
#
# ### Check

# %%
for run, of_run in far:
    ten, last = run.measured[1], run.measured[-1]
    assert ten["step"] == 10
    error = np.sqrt(0.25 / len(run.panel) * 2)
    assert last["heldout_accuracy"] - ten["heldout_accuracy"] > 3 * error
    assert last["heldout_length"] < 0.8 * ten["heldout_length"]
    early, late = (np.mean(within(of_run[i], 8)) for i in (1, -1))
    print(
        f"within eight: {early:.2f}, {late:.2f}, three errors {3 * error:.2f}"
    )
    assert late - early > 3 * error
    true, stated = measures(of_run[-1])[-1]
    assert true / stated > 0.8

# %% [markdown]
# The adapters that seed 0 ended with come with a clone of this project. Is it
# what they hold? README's last command for Gemma makes a model of them,
# `runs/trained`, and this one asked it on two CPU cores:
#
# ```sh
# python notebooks/05_train.py --preset gemma3-270m-cpu \
#     --model runs/trained --steps 0 --completion_len 400
# ```
#
# ### Check
# To the 128 puzzles that both panels share it gives the greedy answers that it
# gave on the GPU, word for word.

# %%
asked, run = record.read(place / "asked"), far[0][0]
on_gpu = dict(zip(run.panel, run.kept[-1]["greedy"], strict=True))
same = [
    text == on_gpu.get(puzzle)
    for puzzle, text in zip(asked.panel, asked.kept[0]["greedy"], strict=True)
]
print(f"{sum(same)} of {len(same)} are the same")
assert all(same)

# %% [markdown]
# ## Twice the rate, and no searches
# Before these runs there were others on that GPU, at twice the rate, which did
# not fall (`--learning_rate 2e-4 --decay 1`): the control from the cold
# start without searches, for 100 steps, and four runs with searches, of 12 steps
# (three seeds, side by side) or 24 (seed 0 once more, by itself).

# %%
faster = read_all("h100_2e-4")
evaluations(faster)

# %%
(control, of_control), *searching = faster
assert control.name == "no_search"

# %% [markdown]
# With searches: 0.73 to 0.76 at step 10, as above, and no more at step 20 in the
# one run that got there, where those above are at 0.79 and 0.82. (The two runs
# of seed 0 differ: on a GPU the same keys need not give the same run, since its
# kernels are chosen by their speed at the start.)
#
# The control has written 51,200 answers by the end, and in the panel it never
# once goes on after its first "no". It does get better, 0.10 to 0.27. But look
# at the last two columns, and at what it writes (the first puzzle of the panel
# and the first two that it solves at the end):

# %%
solved = [i for i, t in enumerate(of_control[-1]) if t.right]
for i in (0, *solved[:2]):
    for row in (control.kept[1], control.kept[-1]):
        text = row["sampled"][i].replace("\n", "   ")
        print(f"{control.panel[i]}  step {row['step']}:  {text}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
steps = [row["step"] for row in control.measured]
truth = [a / b for *_, (a, b) in map(measures, of_control)]
called = [
    np.mean(
        [
            t.attempts[-1].verdict == "yes"
            for t in side
            if t.right and t.attempts
        ]
    )
    for side in of_control
]
axis.plot(steps, truth, "C3", label="sums that are true")
axis.plot(steps, called, "C1", label='right answers below a "yes"')
axis.plot(
    steps,
    [row["heldout_accuracy"] for row in control.measured],
    "C0",
    label="answers that are right",
)
axis.set(xlabel="GRPO step", ylim=(0, 1), title="without searches, 100 steps")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The sums rot. At the start 85 % of them are true, at the end 6 %: `12*5=6`.
# The verdict goes too: every attempt is called "no", also the one that is then
# given as the answer and is right. What remains is the shape of a check, and
# below it more right answers than before. What is paid is the answer, so what
# is not needed for it goes, its meaning first and its form last. Whoever had
# counted "checks" alone would have seen reasoning go from a quarter of the
# answers to all of them.
#
# Whether those digits still carry something for the model itself cannot be
# read off the text, and was not tried. It is one run of one seed.
#
# ### Check

# %%
ends = [measures(side)[1] for side in of_control]
assert sum(went_on for went_on, _ in ends) == 0
assert truth[-1] < 0.2 < 0.8 < truth[0] and called[-1] < 0.2 < 0.8 < called[0]
error = np.sqrt(0.25 / len(control.panel) * 2)
accuracies = [row["heldout_accuracy"] for row in control.measured]
assert accuracies[-1] - accuracies[0] > 3 * error
for run, _ in searching:
    ten = run.measured[1]
    assert ten["step"] == 10
    assert ten["heldout_accuracy"] - max(accuracies) > 10 * error

# %% [markdown]
# And what do the runs with searches fail on? Most of their wrong answers are
# cut off at 400 tokens. But it is not the limit that stops them:

# %%
laps = []
for run, of_run in far + searching:
    laps += [
        [a.expression for a in trace.attempts]
        for trace, text in zip(
            of_run[-1], run.kept[-1]["sampled"], strict=True
        )
        if "</answer>" not in text
    ]
attempts = np.mean([len(lap) for lap in laps])
different = np.mean([len(set(lap)) / len(lap) for lap in laps])
print(
    f"{len(laps)} answers are cut off, with {attempts:.0f} attempts,",
    f"{different:.0%} of them different ones",
)
assert attempts > 20 and different < 0.7

# %% [markdown]
# They go round in circles.

# %% [markdown]
# ## From zero
# R1-Zero had no cold start. Here is Gemma 3 270M as it comes, all its 262,144
# pieces allowed, TinyZero's prompt, the same puzzles and reward, the same
# adapters and learning rate; 96 tokens an answer. On two cores such a step
# takes minutes, so there are five, of 32 answers, and a panel of 32:
#
# ```sh
# python notebooks/05_train.py --preset gemma3-270m --model WEIGHTS \
#     --dtype float32 --puzzles tiny --prompts 4 --group 8 \
#     --completion_len 96 --prompt_len 144 --kl 0 --lora 16 \
#     --learning_rate 2e-4 --micro_batch 4 --steps 5 \
#     --preflight False --eval_every 5 --eval_puzzles 32 \
#     --pass_k 1 --checkpoint_every 5 --out runs/zero
# ```

# %%
zero = record.read(place / "zero")
show.table(
    ["step", "mean reward", "groups without signal", "tokens"],
    [
        [
            row["step"],
            row["reward"],
            row["zero_variance_groups"],
            row["length"],
        ]
        for row in zero.rows
        if row["step"]
    ],
)

# %%
for kept in (zero.kept[0], zero.kept[-1]):
    print(f"--- step {kept['step']}")
    for text in kept["sampled"][:3]:
        print(repr(text[:300]))

# %%
show.table(
    ["step", f"right, of {len(zero.panel)}", "well-formed", "tokens"],
    [
        [
            row["step"],
            row["outcomes"].get("right", 0),
            sum(
                countdown.reward(*pair).value > 0
                for pair in zip(kept["sampled"], zero.panel, strict=True)
            ),
            row["heldout_length"],
        ]
        for row, kept in zip(zero.measured, zero.kept, strict=True)
    ],
)

# %% [markdown]
# No answer is right, before or after, in the panel or in training. The only
# reward there ever is is the 0.1 for a well-formed expression, of one to four
# in 32, and the five steps go after that: 1 of 32 well-formed, then 5. Look at
# how. The prompt's example, `(1 + 2) / 3`, comes back, in a rain of closing
# tags. This is what GRPO does where a base cannot do the task: it finds what is
# paid for. (`preflight`, which that command switches off, says so beforehand:
# no group with a right answer, no go.)
#
# ### Check

# %%
assert not any("right" in row["outcomes"] for row in zero.measured)
assert not any(row["train_accuracy"] for row in zero.rows if row["step"])

# %% [markdown]
# ## Do the rules read this text?
# Notebook 06's rules were tuned on other text. So 60 completions, 20 of each
# checkpoint, drawn at random, were labelled by a second reader: a small
# program that knows this language's lines alone and shares nothing with the
# rules. Its texts were then read through once, by whom the rules are too. How
# often is a behaviour that the rules find there (precision), and how often do
# they find one that is there (recall)?

# %%
labelled = train.read_rows(place / "labelled.jsonl")
found = []
for row in labelled:
    puzzle = countdown.Puzzle(tuple(row["numbers"]), row["target"])
    trace = traces.parse(row["completion"], puzzle)
    seen = traces.behaviours(trace)
    found.append(
        {
            "verification": seen.verification > 0,
            "backtracking": seen.backtracking > 0,
            "slip": trace.slips > 0,
            "attempts": len(trace.attempts),
        }
    )

# %%
flags = "verification", "backtracking", "slip"
hits = {
    name: [(a[name], b[name]) for a, b in zip(found, labelled, strict=True)]
    for name in flags
}
show.table(
    ["of 60 completions", "precision", "recall"],
    [
        [
            name,
            *(
                f"{sum(a and b for a, b in pairs)}/{sum(p[k] for p in pairs)}"
                for k in (0, 1)
            ),
        ]
        for name, pairs in hits.items()
    ],
)

# %% [markdown]
# ### Check
# No behaviour is missed or made up in more than one of them; the number of
# attempts is the same in nearly all. (It differs where an attempt uses a
# number that nobody gave.)

# %%
for name, pairs in hits.items():
    assert sum(a != b for a, b in pairs) <= 1, name
same = sum(
    a["attempts"] == b["attempts"]
    for a, b in zip(found, labelled, strict=True)
)
print(f"the same number of attempts in {same} of {len(labelled)}")
assert same >= 57

# %% [markdown]
# ## How it fails now

# %%
kinds = "right", "cut off", "slipped", "claimed", "gave up"
show.table(
    ["answers a step", "seed", "step", *kinds],
    [
        [
            run.settings.prompts * run.settings.group,
            run.settings.seed,
            row["step"],
            *(row["outcomes"].get(k, 0) for k in kinds),
        ]
        for run in (*gemma, *(run for run, _ in far))
        for row in (run.measured[0], run.measured[-1])
    ],
)

# %% [markdown]
# Most answers that are wrong are not finished: the limit of tokens came
# first. Do they loop because a sum that should have hit was false? Wrong
# answers are longer, so it does not do to ask whether there is a false sum in
# them; ask what share of their sums is false.

# %%
gaps = []
for machine, of_runs in (("two cores", sides), ("GPU", [x for _, x in far])):
    of_end = [trace for of_run in of_runs for trace in of_run[-1]]
    rates, spread = {}, 0.0
    for name in ("right", "wrong"):
        of = [t for t in of_end if t.right == (name == "right")]
        again = [a.repeated for t in of for a in t.attempts]
        true, count = measures(of)[-1]
        rates[name] = 1 - true / count
        spread += rates[name] * (1 - rates[name]) / count
        print(
            f"{machine}, {name}: {len(of)} answers, {rates[name]:.0%} of",
            f"{count} sums false, {np.mean(again):.0%} of attempts repeated",
        )
    gaps.append((rates["wrong"] - rates["right"]) / np.sqrt(spread))

# %% [markdown]
# ### Check

# %%
assert min(gaps) > 3, gaps

# %% [markdown]
# So it goes with false sums, as one would expect if they spoil the attempt
# that should have hit; what is cause and what effect this does not tell.

# %% [markdown]
# ## The same puzzle, before and after
# Of seed 0 on the GPU two that it has learnt, and two that it fails at the end.
# True sums are green, false ones red.

# %%
run, of_run = far[0]
right = [[t.right for t in of_run[i]] for i in (0, -1)]
gained = [i for i, (a, b) in enumerate(zip(*right, strict=True)) if b > a]
failed = [i for i, ok in enumerate(right[1]) if not ok]
for i in gained[:2] + failed[:2]:
    display(
        show.side_by_side(
            run.panel[i],
            {
                f"step {row['step']}": row["sampled"][i]
                for row in (run.kept[0], run.kept[-1])
            },
        )
    )

# %% [markdown]
# All of them, in notebook 06's explorer:

# %%
show.explorer(run.panel, run.kept)

# %% [markdown]
# ## What it took
# On the machines of the records; the seconds are medians. Start-up,
# compilation and evaluations come on top: on the GPU most of the first ten
# steps is compilation.

# %%
parts = {"sampling": "sample", "update": "update"}
rows = []
for run, folder in ((gemma[0], "seed0"), (far[0][0], "h100/seed0")):
    about = json.loads((place / folder / "machine.json").read_text())
    stepped = [row for row in run.rows if row["step"]]
    for name, key in parts.items():
        medians = [
            float(np.median([row[f"{key}_{of}"] for row in stepped]))
            for of in ("seconds", "tokens_per_second")
        ]
        answers = run.settings.prompts * run.settings.group
        rows.append([about["devices"][0], answers, name, *medians])
show.table(
    ["device", "answers a step", "", "seconds a step", "tokens a second"], rows
)

# %% [markdown]
# ## What is shown here, and what is not
# - **Shown, for the tiny model:** the reward finds the habit, it does not make
#   it. Take a twelfth of the documents away, those that search, and the same
#   run ends where one attempt ends; take those that check too, and it ends
#   where a guess does. Three seeds each, of one base each.
# - **Shown, for a real Gemma:** after a cold start that has the habit, the
#   reward makes the habit the rule within ten steps, which more than doubles
#   the right answers; after one that has it not, it does not make it. In the
#   hundred steps that follow attempts get better, from 0.75 to 0.90 right.
# - **Shown, by one run of 100 steps:** where an answer is paid and its reasons
#   are not, the reasons can go and their shape can stay. A count of checks, or
#   of "no", is no measure of reasoning by itself.
# - **Not shown:** what made the difference between 0.71 at step 20 and 0.79 and
#   0.82: the lower rate, its fall, or chance. What the control would do at the
#   lower rate. Whether a second cold start would do the same: all runs with
#   searches come from one. That nothing comes from zero is said of five steps,
#   of a model of this size, and of answers of 96 tokens.
# - Gandhi et al. ([2503.01307](https://arxiv.org/abs/2503.01307)) primed Llama
#   3.2 3B with such habits and found that it then learnt as Qwen did, which
#   has them by nature. What is found here is of the same kind, on smaller
#   models and a smaller task.
#
# ## Exercises
# 1. Which of the three measures, will, skill and truth, would a reward for
#    every true sum change first? What could a model do to earn it?
#
# <details><summary>Answer</summary>
#
# Truth, and it would be cheap to cheat: `1*1=1` is true, and can be written
# as often as the limit allows. The answer's reward has no such hole: an
# answer has to use each number once.
#
# </details>
#
# 2. Without searches, accuracy doubles all the same. Where does that come from,
#    if not from going on? Look at the table of that run.
#
# <details><summary>Answer</summary>
#
# From checking. Before, 96 of 128 answers jump, of which 6 are right; after,
# 125 try a sum first, of which 24 are right (`traces.style` over
# `alone.kept`). An attempt of the corpus tries the operation that comes
# closest to the target, a jump does not. The attempts themselves hit as often
# as before: 4 of 32, and 18 of 125.
#
# </details>
#
# ## Summary
# Corpora live in `aha_lib/tasks/corpus.py`, supervised training in
# `aha_lib/run/pretrain.py`, the cut in `aha_lib/model/vocabulary.py`, the adapters in
# `aha_lib/model/lora.py`, and records of runs in `aha_lib/look/record.py`.
