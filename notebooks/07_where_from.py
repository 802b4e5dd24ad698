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
# Gemma? ([Glossary](../docs/glossary.md))
#
# There are two experiments. In the first, three tiny bases are pre-trained on
# texts that differ in one thing, the habits they show, and then get the same
# reward. In the second, Gemma 3 270M first sees some thousand worked puzzles
# (a *cold start*, in the words of
# [DeepSeek-R1](https://arxiv.org/abs/2501.12948)) and is then trained by GRPO
# as the tiny model is. The cold start has searches in some runs and none in
# others; one run has no cold start at all. All of these runs are recorded.
# The notebook draws the records, whatever the preset is, and trains nothing.
#
# | preset | machine | what it does |
# |---|---|---|
# | any | any, no accelerator needed | reads and draws: two minutes |
#
# You will see:
#
# 1. under the same reward, and within the steps of these runs, a base without
#    the habit does not get it;
# 2. Gemma learns: in ten steps held-out accuracy, searches and length rise
#    together. Later, on a GPU, accuracy goes on to 0.90 while answers get
#    shorter: Gemma finishes more of the operations that can lead to the
#    target;
# 3. after a cold start without searches Gemma never goes on after a "no", in
#    20 steps or in 100. Without a cold start no answer is right, so there is
#    nothing to learn from;
# 4. no reward is for a true sum. In the runs at the lower rate sums stay as
#    true as they were; in the 100 steps without searches nearly all become
#    false.

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
# (`aha_lib/tasks/corpus.py`). Most of its traces *jump* to an answer, some
# *check* one attempt, a tenth *search*: they go on after a "no". One puzzle in
# all three styles:

# %%
import json
import random

import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib.look import measures, record, show
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
# ## The same reward
# Each base then gets notebook 05's run, three seeds: `python
# tests/benchmarks/habits.py FOLDER` pre-trains, runs, and leaves a row for
# every run. A thin line is a seed, and a thick one is the mean of three. Look
# how far the first base leaves the two others behind. (On the right their
# lines lie on each other, at zero.)

# %%
benchmarks = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"
stored = benchmarks / "habits.json"
runs = json.loads(stored.read_text()) if stored.exists() else []
by_base = {
    name: [run for run in runs if run["base"] == name] for name in bases
}
if not runs:
    print(f"{stored.name} is not here: it comes with a clone of the project.")

# %%
kinds = {
    "accuracy": "accuracy on held-out puzzles",
    "length": "tokens in a response",
    "backtracks": "further attempts",
}


def panels(draw) -> None:
    """A panel for each kind of curve, which `draw` puts there."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, (kind, title) in zip(axes, kinds.items(), strict=True):
        draw(axis, kind)
        axis.set(title=title, xlabel="GRPO step", ylim=(0, None))
        axis.grid(axis="y", alpha=0.25)
    if axes[0].lines:
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
    [
        "habits of the base",
        "seed",
        "accuracy",
        "tokens",
        "further attempts",
        "search",
    ],
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
# The base that has seen searches learns to search, and solves nearly all
# puzzles. The base that has not seen them learns, in as many steps, what its
# habits can give: it jumps less and checks more, until it checks nearly every
# time. But it does not learn to go on after a "no": at the end there is at
# most one further attempt in 256 answers. One attempt is right about one time
# in four (notebook 06), and so is this model. The base that has only seen
# jumps goes on jumping, in ten tokens; it hardly guesses better than before.
#
# ### Check
# Two things would refute this: a base without searches that tries again, or
# one that comes near the first in accuracy. Per seed, at the last evaluation:

# %%
ends = {
    name: {kind: np.array([run[kind][-1] for run in of]) for kind in kinds}
    for name, of in by_base.items()
}
with_it, without, jumps = (ends[name] for name in bases)
if runs:
    print(
        "further attempts without searches in the corpus:",
        without["backtracks"],
        "with:",
        with_it["backtracks"],
    )
    assert without["accuracy"].max() < 0.5 < 0.9 < with_it["accuracy"].min()

# %% [markdown]
# The next lines are what the second base writes at the end, for the first
# puzzles of the panel. Most answers make one attempt. After a "no" the answer
# is the one that has just been called wrong.

# %%
for run in by_base["tiny-no-search"][:1]:
    for text in run["texts"][-1][:6]:
        print(text)

# %% [markdown]
# ## A real Gemma
# Now the base model Gemma 3 270M. Asked for Countdown as it is, it was never
# right ("From zero", below), so the reward had nothing to find. It therefore
# gets a cold start first: supervised training on some thousand worked
# puzzles, as short text. One command does both, and leaves the cold start in
# `runs/gemma/base`:
#
# ```sh
# aha train --preset gemma3-270m-cpu --steps 20 --out runs/gemma
# ```
#
# Three caveats hold for all that follows. The **cold start** teaches Gemma
# the habits, so this is no R1-Zero. The **vocabulary is cut** to the pieces
# that the task uses (`aha_lib/model/vocabulary.py`): all other pieces are
# forbidden, and a step takes a third of the time. The **weights** were
# quantised to 4 bits and turned back; they are not Google's bfloat16 ones.
#
# One document of each kind from the cold start, and the shares of the kinds:

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

# %%
print(cold.shares)

# %% [markdown]
# ## From there, GRPO
# The loop is the tiny model's, and trains adapters of rank 16. Look at the
# first ten steps. A puzzle has three numbers up to 20; the held-out panel is
# 128 of them. The last column is the standard error of the accuracy, over
# sets of numbers (`measures.accuracy_error`): puzzles of the same numbers are
# not independent. Further attempts are counted from the kept texts.


# %%
def further(side: list) -> float:
    """Attempts after the first, the mean over some completions."""
    return float(np.mean([trace.backtracks for trace in side]))


# %%
gemma = [record.read(folder) for folder in sorted(place.glob("seed*"))]
sides = [measures.take_apart(run) for run in gemma]
names = "accuracy", "greedy", "length"
shown = "accuracy", "greedy", "tokens", "further attempts"
show.table(
    ["run", "step", *shown, "error"],
    [
        [
            run.name,
            row["step"],
            *(row[f"heldout_{n}"] for n in names),
            further(side),
            measures.accuracy_error(side),
        ]
        for run, of_run in zip(gemma, sides, strict=True)
        for row, side in zip(run.measured, of_run, strict=True)
    ],
)

# %% [markdown]
# ## Will, skill, and the truth of the sums
# Notebook 06 has three measures that do not depend on how an answer ends: is
# there any attempt, does it go on after its first "no", how often does an
# attempt hit? For Gemma a fourth matters: are its sums true? It could
# calculate before, but with errors. No reward is for a sum, but a false sum
# may spoil the answer. (`measures.will_and_skill` counts all four.)

# %%
four = "any attempt", "goes on after a no", "hits per attempt", "true sums"


def in_four(side: list) -> list[measures.Share]:
    found = measures.will_and_skill(side)
    return [found[name] for name in four]


show.table(
    ["run", "step", *four],
    [
        [run.name, row["step"], *in_four(side)]
        for run, of_run in zip(gemma, sides, strict=True)
        for row, side in zip(run.kept, of_run, strict=True)
    ],
)

# %% [markdown]
# Within ten steps, as in the tiny model, the habit has changed: nearly every
# answer makes an attempt and goes on after its first "no". An attempt hits no
# more often than before. Fewer sums are true at step 10, when the searches
# have become long, and more again at step 20. (A false sum on a branch that
# is left costs nothing. One on the branch that leads to the target costs the
# answer.)

# %% [markdown]
# ## The same cold start, without searches
# The control of the first experiment, now for Gemma: in its cold start the
# documents that would search jump instead (`aha pretrain` with `--search 0
# --jump 0.56`). All else is the same: GRPO has the same settings, puzzles and
# seed.

# %%
alone = record.read(place / "no_search")

# %%
show.table(
    ["no searches, step", *shown, *four],
    [
        [
            row["step"],
            *(row[f"heldout_{n}"] for n in names),
            further(side),
            *in_four(side),
        ]
        for row, side in zip(
            alone.measured, measures.take_apart(alone), strict=True
        )
    ],
)

# %%
for text in alone.kept[-1]["sampled"][:5]:
    print(text, end="\n\n")

# %% [markdown]
# This is what the tiny model did. In 20 steps Gemma learns to check one
# attempt nearly every time (32 of 128 answers before, 125 after), and solves
# twice as many puzzles, as one attempt can. But it never goes on after its
# "no", and at the end it solves fewer puzzles than the runs with searches did
# before their first step.

# %% [markdown]
# ## More steps, on an accelerator
# Twenty steps of 64 answers are few. The preset for accelerators,
# `gemma3-270m-short`, takes 512 answers a step, with up to 400 tokens each,
# and a panel of 512 puzzles. Its learning rate begins at half that of the
# runs above, and falls to a tenth. On a GPU (an NVIDIA H100), from the same
# cold start:
#
# ```sh
# aha train --preset gemma3-270m-short --model runs/gemma/base --out runs/gpu
# ```
#
# Seed 0 ran all of its 110 steps, in seven and a half minutes. For seed 1
# there was time for 56, and its last evaluation is that of step 50, where its
# rate was still 0.66e-4 of 1e-4. The panel of 512 has 405 different puzzles,
# of 139 sets of numbers: the last column is the error over these sets. What
# grows in the first ten steps, and what after them?


# %%
def read_all(folder: str) -> list[tuple[record.Record, list]]:
    """The runs recorded in a folder, each with its completions taken apart."""
    runs = [record.read(path) for path in sorted((place / folder).iterdir())]
    return [(run, measures.take_apart(run)) for run in runs]


def evaluations(runs: list[tuple[record.Record, list]]):
    """A table of such runs, a line for each evaluation."""
    return show.table(
        ["run", "step", *shown, *four, "error"],
        [
            [
                run.name,
                row["step"],
                *(row[f"heldout_{n}"] for n in names),
                further(side),
                *(found.value for found in in_four(side)),
                measures.accuracy_error(side),
            ]
            for run, of_run in runs
            for row, side in zip(run.measured, of_run, strict=True)
        ],
    )


far = read_all("h100")
evaluations(far)

# %% [markdown]
# In ten steps the habit is there: further attempts rise from about 1.4 an
# answer to 7.4, and accuracy from about 0.26 to 0.77 and 0.73. Then accuracy
# goes on to 0.90 (seed 1: to 0.89 in 50 steps), and that of greedy answers to
# 0.94. Yet answers become *shorter*, from 150 tokens to 111. What has become
# better?
#
# Hits per attempt could mislead here, since an easy puzzle is left after few
# attempts and a hard one gets many. Two measures avoid this. The first counts
# the puzzles that are solved within so many attempts, beside the corpus's
# rule followed without a mistake (the black line). The second takes the
# attempt in which an answer for the first time tries an operation that can
# lead to the target: does that attempt *finish*, that is, reach the target
# (`measures.finished`)?

# %%
panel = far[0][0].panel
by_rule = measures.rule_reaches(panel, 24)
within = {
    run.name: {
        f"step {run.kept[at]['step']}": measures.solved_within(of_run[at], 24)
        for at in (0, 1, -1)
    }
    for run, of_run in far
}
show.against_rule({run.name: run.rows for run, _ in far}, within, by_rule)

# %% [markdown]
# The same as numbers: how many of those operations are finished, and which
# share of the puzzles is solved within 1, 4 and 8 attempts:

# %%
counts = 1, 4, 8
rows = [["the rule", "", "", "", *(float(by_rule[n - 1]) for n in counts)]]
for run, of_run in far:
    for at in (0, 1, -1):
        side = of_run[at]
        solved = [measures.reached_within(side, n).value for n in counts]
        true = in_four(side)[-1].value
        done = measures.finished(side)
        rows.append([run.name, run.kept[at]["step"], done, true, *solved])
show.table(
    ["run", "step", "finished", "true sums", *(f"within {n}" for n in counts)],
    rows,
)

# %% [markdown]
# The will to go on grows first. Then, more slowly, comes a gain in skill. Of
# the operations that can lead to the target about seven in ten are finished
# at step 10, and more than four fifths at the end, in both runs. At the end
# sums are as true as at the start (and a little truer than at step 10).
# Within eight attempts three quarters of the puzzles are solved instead of
# two thirds. The rule followed without a mistake solves more, 0.96: the model
# has come nearer to the rule of its corpus, and has not gone beyond it.
#
# ### Check
# In both runs the share that finishes should rise after step 10, by more than
# three standard errors.

# %%
for _, of_run in far:
    early, late = (measures.finished(of_run[i]) for i in (1, -1))
    error = np.hypot(*(measures.finished_error(of_run[i]) for i in (1, -1)))
    print(f"finished: {early} → {late}, standard error {error:.2f}")
    assert late.value - early.value > 3 * error

# %% [markdown]
# The adapters that seed 0 ended with come with a clone of this project. On
# two CPU cores they give the greedy answers of the GPU, word for word, to the
# 128 puzzles that both panels share (`tests/look/test_claims.py`).

# %% [markdown]
# ## Twice the rate, and no searches
# Before these runs there were others on that GPU, at twice the rate, which
# did not fall (`--learning_rate 2e-4 --decay 1`). One is the control: 100
# steps from the cold start without searches. Four have searches: three of 12
# steps and one of 24, of three seeds, so that seed 0 was run twice. Their
# last evaluations are those of step 10 and 20. Look at the true sums of the
# control, and at its "goes on after a no".

# %%
faster = read_all("h100_2e-4")
evaluations(faster)

# %%
(control, of_control), *searching = faster
assert control.name == "no_search"

# %% [markdown]
# With searches accuracy is 0.73 to 0.76 at step 10, as above. It is no higher
# at step 20 in the one run that got there, where those above are at 0.79 and
# 0.82. (The two runs of seed 0 differ: on a GPU the same keys need not give
# the same run, since its kernels are chosen by their speed at the start.)
#
# The control has been paid for 51,200 answers by the end, and in the panel it
# never goes on after its first "no". Its accuracy rises, from 0.10 to 0.27.
# But its sums do not stay true. Read what it writes about the first puzzle of
# the panel and the first two that it solves at the end:

# %%
solved = [i for i, t in enumerate(of_control[-1]) if t.right]
for i in (0, *solved[:2]):
    for row in (control.kept[1], control.kept[-1]):
        text = row["sampled"][i].replace("\n", "   ")
        print(f"{control.panel[i]}  step {row['step']}:  {text}")

# %% [markdown]
# Three curves over the same run: the share of its sums that are true, the
# share of its right answers whose attempt was called "yes", and accuracy.

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
steps = [row["step"] for row in control.measured]
truth = [in_four(side)[-1].value for side in of_control]
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
axis.plot(steps, truth, "C0", label="sums that are true")
axis.plot(steps, called, "C1", ls="--", label='right answers below a "yes"')
axis.plot(
    steps,
    [row["heldout_accuracy"] for row in control.measured],
    "k:",
    label="answers that are right",
)
axis.set(xlabel="GRPO step", ylim=(0, 1), title="without searches, 100 steps")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The sums become false: 85 % of them are true at the start, and 6 % at the
# end. The verdicts become constant: at the end each right answer stands below
# a "no", as in the lines above. Does the line above the answer still tell
# what the answer will be? Compare its two operations with the two of the
# answer:

# %%
import re

LINE = re.compile(r"(\d+)([-+*/])(\d+)=(\d+),(\d+)([-+*/])(\d+)=")
INNER = re.compile(r"\((\d+)([-+*/])(\d+)\)")


def plan_kept(text: str) -> tuple[bool, bool, bool] | None:
    """Is the first operation of the line the answer's, and the second? Has
    the first result a single digit? None without a line and an answer."""
    above, _, answer = text.partition("<answer>")
    line, inner = LINE.match(above), INNER.search(answer)
    if line is None or inner is None:
        return None
    first = line.group(1, 2, 3) == inner.groups()
    sign = re.escape(line[6])
    near = "|".join((line[5], line[7]))
    second = re.search(rf"\){sign}({near})\b|\b({near}){sign}\(", answer)
    return first, second is not None, len(line[4]) == 1


# %%
kept = []
for row in control.kept:
    found = map(plan_kept, row["sampled"])
    kept.append(np.mean([plan for plan in found if plan], axis=0))
show.table(
    ["step", "first operation kept", "second one", "result of one digit"],
    [
        [row["step"], *map(float, shares)]
        for row, shares in zip(control.kept, kept, strict=True)
    ],
)

# %% [markdown]
# At the end the first operation is still the answer's in nine lines of ten,
# and the second one in fewer than half. Nearly all first results are a single
# digit. So the line has kept a part of its meaning: it still tells the first
# operation, but its results and its verdict tell nothing true. A count of
# "checks" alone would have shown reasoning rise from a quarter of the answers
# to nearly all of them.
#
# Whether those digits still carry something for the model itself cannot be
# read off the text, and was not tried. This is one run of one seed. Its
# constant rate of 2e-4 may be the cause: at that rate the sums of the runs
# with searches get worse too. (The row of step 100 in this run's
# `metrics.jsonl` counts 0.15 further attempts. The parser of that day took a
# line with a false result for two attempts. Read again, there are none.)

# %% [markdown]
# What do the runs with searches fail on? Most of their wrong answers are cut
# off at 400 tokens, after many attempts, and many attempts are repeated. But
# three numbers allow at most 12 first operations. So compare with the
# corpus's rule, run on for as many attempts at the same puzzles, as in
# notebook 06:

# %%
long = []
for run, of_run in far + searching:
    texts = run.kept[-1]["sampled"]
    for trace, text in zip(of_run[-1], texts, strict=True):
        if "</answer>" not in text:
            long.append(trace)
by_rule_run_on = [
    measures.rule_run_on(t.puzzle, len(t.attempts), start)
    for start, t in enumerate(long)
]
theirs, its = map(measures.repeated, (long, by_rule_run_on))
tried = measures.finished(long).of
attempts = theirs.of / len(long)
print(f"{len(long)} answers are cut off, with {attempts:.0f} attempts")
print(f"repeated: {theirs}; by the rule: {its}")
print(f"{tried} of them had tried an operation that can lead to the target")

# %% [markdown]
# So these answers repeat less than the rule would; after so many attempts
# there is little new left to try. Most of them had tried an operation that
# can lead to the target, and the attempt failed by a false sum or by the
# wrong second operation.

# %% [markdown]
# ## From zero
# R1-Zero had no cold start. So here is Gemma 3 270M as it comes, with all its
# 262,144 pieces allowed and TinyZero's prompt. Puzzles, reward, adapters and
# learning rate are those of the first runs above; an answer has up to 96
# tokens. On two cores such a step takes minutes, so there are five steps of
# 32 answers, and a panel of 32:
#
# ```sh
# aha train --preset gemma3-270m \
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
# reward is the 0.1 for a well-formed expression, which one to four of 32
# answers earn in a step. In the panel 1 of 32 is well-formed before and 5 are
# after, too few to exclude chance. The text shows where they may come from:
# the prompt's example, `(1 + 2) / 3`, comes back among many closing tags.
# Where a base cannot do the task, the form is all that GRPO can raise.
# (`preflight`, which that command switches off, ends such a run before its
# first step.)

# %% [markdown]
# ## Do the rules read this text?
# Notebook 06's rules were tuned on other text. So 60 completions, 20 of each
# checkpoint, were drawn at random and labelled by a second reader: a small
# program that knows this language's lines alone and shares nothing with the
# rules. The author of the rules then read the labelled texts once. How often
# is a behaviour that the rules find there (precision), and how often do they
# find one that is there (recall)?

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
# The rules miss no behaviour in these texts and invent none. The number of
# attempts is the same too:

# %%
same = sum(
    a["attempts"] == b["attempts"]
    for a, b in zip(found, labelled, strict=True)
)
print(f"the same number of attempts in {same} of {len(labelled)}")

# %% [markdown]
# ## How it fails now
# The held-out answers, counted by the kinds of notebook 06, at the first and
# at the last evaluation of each run:

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
# Most answers that are wrong at the end are not finished: the limit of tokens
# came first. Do they fail because more of their sums are false? A comparison
# with right answers cannot tell. An answer whose sums are true on the branch
# that leads to the target is right and ends there. So the two groups are
# *selected* by the truth of their sums, and the shares have to differ,
# whatever the cause.

# %% [markdown]
# ## The same puzzle, before and after
# Four puzzles of seed 0 on the GPU: two that it has learnt to solve, and two
# that it fails at the end. True sums are blue, false ones red.

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
# The table has the machines of the records, and median seconds of a step.
# Start-up, compilation and evaluations come on top: on the GPU most of the
# time of the first ten steps is compilation.

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
# - **Shown, for the tiny model:** the reward finds the habit, it does not
#   make it. If the documents that search (a twelfth of all) jump instead, the
#   same run ends where one attempt ends. If those that check jump too, it
#   ends near where a guess does. There are three seeds of each run, and one
#   base of each kind.
# - **Shown, for a real Gemma:** after a cold start that has the habit, ten
#   steps of the reward make the habit the usual one, and about two to three
#   times as many answers are right. After a cold start without the habit, the
#   reward does not make it. In the steps that follow on the GPU the runs with
#   searches finish more of what they begin well, and accuracy goes from 0.77
#   and 0.73 to 0.90 and 0.89.
# - **Shown, by one run of 100 steps:** where an answer is rewarded and its
#   sums are not, results can become false and verdicts constant while the
#   shape of a check stays. So a count of checks, or of "no", does not measure
#   reasoning.
# - **Not shown:** what made the difference between 0.71 at step 20 and 0.79
#   and 0.82: the lower rate, its fall, or chance. Nor what the control would
#   do at the lower rate. Nor whether a second cold start would do the same:
#   all runs with searches come from one. That nothing is learnt from zero
#   holds for five steps, a model of this size and answers of 96 tokens.
# - Gandhi et al. ([2503.01307](https://arxiv.org/abs/2503.01307)) primed
#   Llama 3.2 3B with such habits and found that it then learnt as Qwen did,
#   which shows them without priming. What is found here is of the same kind,
#   on smaller models and a smaller task.
#
# ## Exercises
# 1. Which of the three measures, will, skill and truth, would a reward for
#    every true sum change first? What could a model do to earn it?
#
# <details><summary>Answer</summary>
#
# Truth, and cheating would be cheap: `1*1=1` is true, and can be written as
# often as the limit allows. The answer's reward has no such hole, since an
# answer has to use each number once.
#
# </details>
#
# 2. Without searches, accuracy doubles all the same. Where does that come
#    from, if not from going on? Look at the table of that run.
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
# `aha_lib/run/pretrain.py`, the cut in `aha_lib/model/vocabulary.py`, the
# adapters in `aha_lib/model/lora.py`, and records of runs in
# `aha_lib/look/record.py`. Next: **08_backtracking_vector** looks for the
# habit in the tiny model's activations.
