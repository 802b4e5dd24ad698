# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · The aha, taken apart
#
# **The question:** the curve has risen. What has changed *inside* the
# answers, what was there before, and what can still go wrong?
# ([Glossary](../docs/glossary.md))
#
# The notebook reads the folder of a run: its metrics and the held-out panel's
# completions at every evaluation. It trains nothing. Without a run of yours
# it takes the records of three tiny runs, seeds 0 to 2, that come with the
# package. The text describes the results of these three. With a run of yours
# the same cells measure that run, and each check prints whether its statement
# holds for it too.
#
# | preset | machine | what it does |
# |---|---|---|
# | any | any, no accelerator needed | reads and draws: under a minute |
#
# You will see, in the three records:
#
# 1. the base searches too, in a few of its answers;
# 2. what has grown is the *will* to search: to try before answering, and to
#    go on after a "no". How often an attempt hits has hardly changed;
# 3. most answers that are still wrong are cut off by the limit. They repeat
#    attempts, about as often as the corpus's own rule would at that length;
# 4. with 64 draws a puzzle the base solves as many puzzles as the trained
#    model. A base that may not answer before a "yes" solves as many as the
#    trained model with a single draw, without any training.

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
folder = f"runs/{preset}"  # a run's folder, as 05_train leaves it

# %% [markdown]
# ## The record
# `metrics.jsonl` has a row for every step, `rollouts.jsonl` one for every
# evaluation: what the model wrote for each puzzle of the held-out panel, once
# sampled and once greedily. The panel is the same for every run of a preset.

# %%
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib.look import measures, record, show
from aha_lib.presets import PUZZLES
from aha_lib.run import train
from aha_lib.tasks import countdown, traces

# %%
shipped = [
    record.read(path) for path in sorted((record.DATA / "run").glob("seed*"))
]
mine = record.read_evaluated(folder)
if mine and mine.settings.task != "countdown":
    print(
        f"{folder} learns {mine.settings.task}: here only Countdown is read."
    )
    mine = None
runs = [mine] if mine else shipped
if not mine:
    print(f"No run of yours in {folder}: the records of the tiny preset.")

# %% [markdown]
# Every completion is parsed once into its attempts, its sums (true or false)
# and its verdicts, "yes" or "no" (`aha_lib/tasks/traces.py`).

# %%
sampled = [measures.take_apart(run) for run in runs]
greedy = [measures.take_apart(run, "greedy") for run in runs]
settings = runs[0].settings
panel = runs[0].panel
steps = [row["step"] for row in runs[0].kept]
print(f"{', '.join(run.name for run in runs)}: {len(panel)} puzzles each,")
print(f"at steps {steps}")


# %%
def check(statement: str, holds: bool) -> None:
    """Tell whether a statement holds; of the recorded runs it has to."""
    print("It holds:" if holds else "Not so in this run:", statement)
    assert holds or mine, statement


# %% [markdown]
# ## What rose
# Each run is a thin line, and their mean is a thick one. The dotted line is
# what the base does on the same puzzles. Look how near the seeds are to each
# other, and how far they are from the base.

# %%
show.curve(*[run.rows for run in runs])

# %%
names = "accuracy", "length", "backtracks"
show.table(
    ["run", "step", "accuracy", "tokens", "further attempts"],
    [
        [run.name, row["step"], *(row[f"heldout_{n}"] for n in names)]
        for run in runs
        for row in (run.measured[0], run.measured[-1])
    ],
)

# %% [markdown]
# How sure is a gain? Several puzzles of the panel share a set of numbers, and
# a model that solves one of them is likelier to solve the others. So the
# standard error takes the puzzles of a set together
# (`measures.accuracy_error`):

# %%
distinct = len({tuple(sorted(p.numbers)) for p in panel})
print(f"{len(panel)} puzzles of {distinct} sets of numbers")
for run, sides in zip(runs, sampled, strict=True):
    ends = run.measured[0], run.measured[-1]
    gain = ends[1]["heldout_accuracy"] - ends[0]["heldout_accuracy"]
    error = np.hypot(*(measures.accuracy_error(sides[i]) for i in (0, -1)))
    print(f"{run.name}: gain {gain:.2f}, standard error {error:.2f}")

# %% [markdown]
# ## One search, drawn
# An attempt is a row, a sum is a box. Blue reaches the target, red would be a
# false sum, and grey is a row that was written before, word for word. The
# further attempts are the rows after the first.

# %%
after = sampled[0][-1]


def comes_back(trace) -> bool:
    rows = [tuple(c.text.strip() for c in a.claims) for a in trace.attempts]
    return trace.right and len(set(rows)) < len(rows)


with_attempts = [t for t in after if t.attempts]
found = sorted(filter(comes_back, after), key=lambda t: len(t.attempts))
if with_attempts:
    display(show.tree((found or with_attempts)[0]))
else:
    print("No answer of this run makes an attempt: there is nothing to draw.")

# %% [markdown]
# ## Was it there before?
# Gandhi et al. ([2503.01307](https://arxiv.org/abs/2503.01307)) argue that RL
# needs something to amplify. They count four behaviours, backtracking among
# them. In our text for three numbers a search takes first operations in a
# fixed order, and begins anew with each. So we say that it *goes on*, or
# *tries again*. Backtracking in the strict sense returns to a partial result,
# and only depth-first traces do that (`tasks/worked.py`). The metric named
# "backtracks" counts all attempts after the first.
#
# The figure shows how many attempts the completions make. Look from two
# attempts on: does the base have such completions?

# %%
made = {
    name: [len(t.attempts) for sides in sampled for t in sides[i]]
    for name, i in (("base", 0), ("trained", -1))
}
most = max(max(counts) for counts in made.values())
depth = {
    name: np.bincount(counts, minlength=most + 1) / len(counts)
    for name, counts in made.items()
}
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for shift, (name, share) in zip((-0.2, 0.2), depth.items(), strict=True):
    axis.bar(np.arange(len(share)) + shift, share, 0.4, label=name)
axis.set(xlabel="attempts in a completion", ylabel="share")
axis.legend(frameon=False)
plt.show()

# %%
searched = {name: float(share[2:].sum()) for name, share in depth.items()}
print("Searches: {base:.1%} before, {trained:.1%} after".format(**searched))

# %% [markdown]
# The base searches too, in some of its answers. The trained model does often
# what the base does rarely.

# %% [markdown]
# ## More searching, or better searching?
# It is tempting to sort the answers by style and to compare the accuracy
# within a style. The next table does so for answers with one attempt:


# %%
def accuracy_of_checks(side: list) -> measures.Share:
    return measures.share(t.right for t in side if traces.style(t) == "check")


show.table(
    ["accuracy of answers with one attempt", "before", "after"],
    [
        [run.name, *(accuracy_of_checks(sides[i]) for i in (0, -1))]
        for run, sides in zip(runs, sampled, strict=True)
    ],
)

# %% [markdown]
# Has "checking" become better? The table cannot show that, because the style
# *depends on the outcome*. The trained model stops after one attempt almost
# only if that attempt was right. Where it was wrong the model goes on, and
# the answer counts as a search. The base mostly gives up after a "no", and
# then the answer counts as a check. So measure what does not depend on how
# the answer ends:
#
# - does it make **any attempt** before it answers?
# - does it **go on** after its first "no"?
# - how often does an **attempt hit** the target?
#
# `measures.will_and_skill` counts all three. Compare "before" and "after" in
# each column:

# %%
three = "any attempt", "goes on after a no", "hits per attempt"
found = {
    (run.name, when): measures.will_and_skill(sides[i])
    for run, sides in zip(runs, sampled, strict=True)
    for when, i in (("before", 0), ("after", -1))
}
show.table(
    ["run", "", *three],
    [
        [*key, *(shares[name] for name in three)]
        for key, shares in found.items()
    ],
)

# %% [markdown]
# ### Check
# The first two shares go from a minority to all. The third changes little:
# over all runs together, by hardly more than its standard error.


# %%
def together(name: str, when: str) -> measures.Share:
    """The share over all runs."""
    each = [found[run.name, when][name] for run in runs]
    return sum(each, start=measures.Share(0, 0))


# A share of nothing is not a number, and no statement about it holds.
for name in three:
    before, after = together(name, "before"), together(name, "after")
    change = after.value - before.value
    spread = np.hypot(after.error, before.error)
    print(f"{name}: {before} → {after}, standard error {spread:.2f}")
    if name != "hits per attempt":
        check("more by ten standard errors", change > 10 * spread)
        check("in nearly all of them", after.value > 0.95)

# %% [markdown]
# So the gain of the recorded runs is mainly *will*: to try at all, and to try
# again. The trained models make nearly four attempts a puzzle, the base half
# of one, and an attempt hits about as often as before. (The errors here treat
# attempts as independent. Attempts at one puzzle are not, and hard puzzles
# take many of them. The next measure avoids the second problem: it looks at
# first, second and third attempts apart.)
#
# ### The first attempt alone, with many draws
# `python tests/benchmarks/reach.py` has drawn each held-out puzzle many
# times, from the tiny base and from the model that the recorded run of seed 0
# has trained. (Such draws exist for the tiny preset alone, so they are shown
# here whatever the preset is.) Does the *first* attempt at a puzzle hit more
# often after training? And the second, the third? (The player in the last row
# is a base that may not answer before it has written "yes"; the section "The
# length confound" explains it.)

# %%
benchmarks = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"
stored = benchmarks / "reach.json"
lines = json.loads(stored.read_text()) if stored.exists() else []
players = {line["who"]: line for line in lines}
deep = {
    who: player["counts"] for who, player in players.items() if player.get("n")
}
show.table(
    [
        "",
        "completions",
        "any attempt",
        "goes on",
        *(f"attempt {i} hits" for i in (1, 2, 3)),
        "repeats",
        "false sums",
    ],
    [
        [
            who,
            n["draws"],
            n["any attempt"] / n["draws"],
            n["went on"] / n["first no"],
            *(n[f"hits at {i}"] / n[f"attempt {i}"] for i in (1, 2, 3)),
            n["repeats"] / n["attempts"],
            n.get("slips", 0) / n["sums"],
        ]
        for who, n in deep.items()
    ],
)

# %% [markdown]
# What should one expect? The corpus of the base follows a rule
# (`corpus.trace`). The first attempt takes a first operation at random, and
# then the second one that comes closest to the target. Each further attempt
# takes the next first operation in a fixed order, round and round. If the
# rule is followed without a mistake, its chance to hit within 1, 4, 8 and 12
# attempts can be counted out without any model:

# %%
drawn_on = shipped[0].panel  # of the tiny preset
by_rule = {
    most: float(np.mean([measures.chance_by_rule(p, most) for p in drawn_on]))
    for most in (1, 4, 8, 12)
}
print({most: round(chance, 3) for most, chance in by_rule.items()})

# %% [markdown]
# The next cell compares first attempts with the rule's. Those of all three
# players hit about as often as the rule's: one in four.

# %%
for who, n in deep.items():
    rate = measures.Share(n["hits at 1"], n["attempt 1"])
    print(f"{who:28} {rate.value:.3f}; the rule: {by_rule[1]:.3f}")

# %% [markdown]
# So the reward has hardly taught the model to *choose* better. It has taught
# the model to try at all, and to try again. The last two columns of the table
# above say more: a longer search repeats more of its attempts, and its sums
# are no truer than the base's.

# %% [markdown]
# ## Length, right and wrong apart
# A mean length mixes right and wrong answers. The table keeps them apart;
# compare how the two lengths change. In the language of the tiny preset a
# word is a token, and the end is one more, unless the limit came first. With
# another tokenizer the cells count words, and an answer counts as cut off if
# it is not complete.

# %%
word_is_token = settings.template == "tiny"
limit = settings.completion_len
lengths = np.array(
    [
        [
            [len(text.split()) + 1 for text in row["sampled"]]
            for row in run.kept
        ]
        for run in runs
    ]
)  # runs, checkpoints, puzzles
if word_is_token:
    lengths = np.minimum(lengths, limit)


# %%
def flags(of) -> np.ndarray:
    """A flag for each trace: runs, checkpoints, puzzles."""
    return np.array(
        [[[of(t) for t in side] for side in sides] for sides in sampled]
    )


right = flags(lambda t: t.right)
cut = flags(lambda t: t.answer is None)
if word_is_token:
    cut &= lengths == limit


# %%
def average(values, of) -> float:
    return float(values[of].mean()) if of.any() else float("nan")


unit = "tokens" if word_is_token else "words"
show.table(
    ["step", "right", unit, "wrong", unit, "of these cut off"],
    [
        [
            step,
            int(r.sum()),
            average(n, r),
            int((~r).sum()),
            average(n, ~r),
            int(c.sum()),
        ]
        for step, n, r, c in zip(
            steps,
            lengths.swapaxes(0, 1),
            right.swapaxes(0, 1),
            cut.swapaxes(0, 1),
            strict=True,
        )
    ],
)

# %% [markdown]
# The table takes all runs together. At step 0 right answers are the longer
# ones, since most wrong ones jump. At the end it is the other way round: the
# few wrong answers are long, and most of them were **cut off** at the limit.
# A search ends when it hits, so right answers are short. A hard puzzle makes
# an answer long and likely to fail. So the table does not show that longer
# answers are better, nor the opposite.
#
# ### What a failure looks like
# The first three answers of the last checkpoint that were cut off. Look for
# attempts that come back:

# %%
cut_off = [
    (run, i, sides[-1][i])
    for run, sides in zip(runs, sampled, strict=True)
    for i in range(len(panel))
    if sides[-1][i].answer is None
]
for run, i, _ in cut_off[:3]:
    heading = f"{run.name}, step {steps[-1]}"
    text = run.kept[-1]["sampled"][i]
    display(show.side_by_side(panel[i], {heading: text}))
if not cut_off:
    print("None was cut off at the last checkpoint.")

# %% [markdown]
# The answers repeat attempts that they have made before. (An attempt counts
# as *repeated* below if it is the same calculation in whatever order, so that
# `16 - 7 + 4` repeats `16 + 4 - 7`.) Is this a fault of its own? Three
# numbers allow at most 12 first operations, so a long answer has to repeat
# some. Compare the first row with the last: the corpus's rule, run on for as
# many attempts at the same puzzles (`measures.rule_run_on`).

# %%
long = [t for *_, t in cut_off if t.attempts]
correct = [t for sides in sampled for t in sides[-1] if t.right]
repeats = {
    "answers cut off": measures.repeated(long),
    "right answers": measures.repeated(correct),
    "right answers, 8 attempts or more": measures.repeated(
        t for t in correct if len(t.attempts) >= 8
    ),
}
if all(len(p.numbers) == 3 for p in panel):
    repeats["the rule, as long as those cut off"] = measures.repeated(
        measures.rule_run_on(t.puzzle, len(t.attempts), start)
        for start, t in enumerate(long)
    )
    tried = measures.finished(long).of
    print(f"{tried} of {len(cut_off)} cut off had tried a way that leads on")
show.table(["attempts that are repeated", "share"], [*repeats.items()])

# %% [markdown]
# ### Check
# Repetition comes with length. Long answers that were right repeat attempts
# too, and the rule, run on as long, repeats as many as the answers that
# failed.

# %%
shares = [repeated.value for repeated in repeats.values()]
check(
    "answers cut off repeat themselves as the rule does, to within 0.06",
    len(shares) == 4 and abs(shares[0] - shares[3]) < 0.06,
)

# %% [markdown]
# About half of the recorded answers that were cut off had tried a first
# operation that can lead to the target, and fumbled it by a false sum or by
# the wrong second operation. The others had not tried one. Would more room
# help? Here are the same answers of the tiny preset's seed 0, continued to
# twice the length:

# %%
more = next((line for line in lines if "became" in line), None)
if more:
    print(
        f"{more['cut off']} of {more['puzzles']} cut off;",
        f"with {more['limit']} tokens they become",
        more["became"],
    )
    print("accuracy {:.3f} -> {:.3f}".format(*more["accuracy"]))

# %% [markdown]
# None of them gets there: six are cut off again, two give up, and one slips.
# Beyond the lengths that the model has ever seen, its language may break
# down. The end of one of them:

# %%
if more:
    print(more["texts"][0][0], "...", more["texts"][0][1][-180:])

# %% [markdown]
# ## The length confound
# A trained answer costs more tokens. Would the base do as well if it could
# spend as many? Give the base the most generous use of them: draw k answers,
# and let an oracle pick a right one if there is one (*pass@k*). To be fair,
# the trained model gets the same, at its own cost. (Again the draws of the
# tiny preset, whatever the preset is.) `train.pass_at_k` estimates it from n
# draws, of which some are right, without bias (Chen et al.,
# [2107.03374](https://arxiv.org/abs/2107.03374), eq. 1).
#
# The figure has every k from 1 to the number of draws. A third player helps
# to tell *will* from *skill*: the base that may not write `<answer>` before
# it has written `yes`. Nothing was trained. It keeps its own probabilities,
# with this one token barred, and so it has to search. In the figure, compare
# the heights above the same number of tokens.


# %%
def pass_curve(player: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens spent on a puzzle, and pass@k, for every k."""
    n = player["n"]
    draws = np.arange(n) < np.array(player["right"])[:, None]
    mean = player["counts"]["tokens"] / player["counts"]["draws"]
    ks = np.arange(1, n + 1)
    return mean * ks, np.array([train.pass_at_k(draws, k) for k in ks])


# %%
curves = {
    who: pass_curve(player)
    for who, player in players.items()
    if player.get("n")
}

# %%
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (who, (cost, passed)), mark in zip(curves.items(), ".x+", strict=False):
    axis.semilogx(cost, passed, mark, ms=6, label=who)
axis.set(
    xlabel="tokens for a puzzle (k draws)",
    ylim=(0, 1.03),
    ylabel="pass@k",
    title="each mark is one more draw",
)
axis.grid(alpha=0.25)
if curves:
    axis.legend(frameon=False, loc="lower right")
plt.show()

# %%
chosen = (1, 2, 3, 4, 8, 16, 64, 256)
show.table(
    ["pass@k", "tokens a draw", *(f"k = {k}" for k in chosen)],
    [
        [
            who,
            float(cost[0]),
            *(
                float(passed[k - 1]) if k <= len(passed) else ""
                for k in chosen
            ),
        ]
        for who, (cost, passed) in curves.items()
    ],
)

# %% [markdown]
# The figure and the table have three results. First, with *one* draw the
# trained model is far ahead of the base at the same cost (the check below).
# Second, with *many* draws the base catches up; with 64 it solves one puzzle
# more than the trained model. So RL has made right answers likely that were
# possible before. Third, the base that had to search solves with one draw as
# many puzzles as the trained model, at the same length and without any
# training. So one decision, not to answer before the "yes", is enough for
# nearly all that GRPO has gained in this model. (On ordinary text there is no
# such bar: no single token says that a search is needed, or that it has ended
# well.)
#
# ### Check
# The trained model's one answer is compared with the base at the smallest k
# that costs as much or *more*. (No line joins the dots of the figure, since
# there is nothing between two k.)

# %%
if {"base", "trained"} <= set(curves):
    (cost, passed), (price, once) = curves["base"], curves["trained"]
    enough = int(np.searchsorted(cost, price[0]))
    print(
        f"trained: {price[0]:.0f} tokens, {once[0]:.3f}; base, best of"
        f" {enough + 1}: {cost[enough]:.0f} tokens, {passed[enough]:.3f}"
    )
    assert cost[enough] >= price[0] and once[0] > passed[enough]

# %% [markdown]
# ## Which puzzles?
# One measure of difficulty needs no model: in how many ways the puzzle can be
# solved (`countdown.solve`). A guess should succeed more often if there are
# more ways; a search should depend on them less. All runs together:

# %%
bound = PUZZLES[settings.puzzles].bound
ways = np.array([len(countdown.solve(p, bound)) for p in panel])
groups = {
    "1": ways == 1,
    "2": ways == 2,
    "3–4": (ways > 2) & (ways < 5),
    "5 or more": ways > 4,
}
show.table(
    ["solutions", "puzzles", "solved before", "solved after"],
    [
        [
            name,
            int(of.sum()),
            *(float(right[:, i][:, of].mean()) for i in (0, -1)),
        ]
        for name, of in groups.items()
        if of.any()
    ],
)

# %% [markdown]
# The base solves puzzles with more solutions more often. The trained model
# solves nearly all, and the few that it misses have one or two solutions.

# %% [markdown]
# ## How it fails
# The kinds are those of notebook 05. *Cut off*: the limit came first.
# *Slipped*: a false sum decided it. *Claimed*: "yes" to a wrong value. *Gave
# up*: an answer without a claim of success. A reward for right answers also
# pays for a false sum that happens to end well, so look at the share of false
# sums too.

# %%
kinds = "gave up", "cut off", "claimed", "slipped", "right"
fates = [
    {
        "step": step,
        "outcomes": Counter(
            traces.outcome(t, not c)
            for sides, c_run in zip(sampled, cut, strict=True)
            for t, c in zip(sides[i], c_run[i], strict=True)
        ),
    }
    for i, step in enumerate(steps)
]


# %%
def faults(side: list) -> list:
    true = measures.will_and_skill(side)["true sums"]
    again = measures.repeated(side)
    return [
        true.of,
        1 - true.value,
        again.of,
        again.value,
        sum(t.found_then_abandoned for t in side),
    ]


# %%
show.table(
    [
        "step",
        *kinds,
        "sums",
        "false",
        "attempts",
        "repeated",
        "found, then abandoned",
    ],
    [
        [
            row["step"],
            *(row["outcomes"][kind] for kind in kinds),
            *faults([t for sides in sampled for t in sides[i]]),
        ]
        for i, row in enumerate(fates)
    ],
)

# %% [markdown]
# At every checkpoint about one sum in a hundred is false. A false sum, as it
# looks on the page (red; hover over it for its value):

# %%
false = [
    (run, i)
    for run, sides in zip(runs, sampled, strict=True)
    for i, t in enumerate(sides[-1])
    if t.slips and not t.right
]
if not false:
    print("No wrong answer of the last checkpoint holds a false sum.")
for run, i in false[:2]:
    display(
        show.side_by_side(
            panel[i],
            {f"{run.name}, step {steps[-1]}": run.kept[-1]["sampled"][i]},
        )
    )

# %% [markdown]
# ## How often the rules err
# The counts above come from rules, and rules err. Traces of the tiny
# language, of free text and of Gemma's own were labelled by hand. The rules
# were tuned on most of them, so only the part that was set aside counts.
# *Precision*: of the cases that the rules find, how many are there? *Recall*:
# of the cases that are there, how many do the rules find? The four behaviours
# are those of Gandhi et al.; *backward* is working backward from the target.
# (The set lies with the tests, so these cells need a checkout.)

# %%
where = pathlib.Path(aha_lib.__file__).parent.parent / "tests" / "data"
labelled = train.read_rows(where / "labelled_traces.jsonl")
aside = [row for row in labelled if not row["tuned"]]
print(len(labelled), "labelled, of which", len(aside), "set aside")


# %%
def ruled_of(row):
    puzzle = countdown.Puzzle(tuple(row["numbers"]), row["target"])
    return traces.behaviours(traces.parse(row["completion"], puzzle))


def score(name: str) -> list[str]:
    """Precision and recall of a behaviour, as counts."""
    seen = np.array([getattr(ruled_of(row), name) > 0 for row in aside])
    there = np.array([row[name] for row in aside])
    hits = int((seen & there).sum())
    return [f"{hits}/{seen.sum()}", f"{hits}/{there.sum()}"]


# %%
four = "verification", "backtracking", "subgoals", "backward"
show.table(
    ["of the set aside", "precision", "recall"],
    [[name, *score(name)] for name in four if aside],
)

# %% [markdown]
# The first two, on which this notebook rests, are found well. Of the last two
# there are only a handful, so their figures show little. The rule for working
# backward misses more than it finds.

# %% [markdown]
# ## Read them
# Shares do not show whether an answer makes sense, so read some. Here are two
# puzzles that the trained model solves and the base does not, and one that it
# fails. Hover over a sum for its value.

# %%
texts = runs[0].kept[0]["sampled"], runs[0].kept[-1]["sampled"]


def view(i: int):
    return show.side_by_side(
        panel[i],
        {f"step {steps[0]}": texts[0][i], f"step {steps[-1]}": texts[1][i]},
    )


# %%
gained = show.select(panel, *texts, "solved after but not before")
missed = [i for i, t in enumerate(sampled[0][-1]) if not t.right]
if not gained:
    print("No puzzle is solved at the end that was not at the start.")
for i in gained[:2] + missed[-1:]:
    display(view(i))

# %% [markdown]
# The explorer lets you choose: checkpoints, a filter, a puzzle. The button
# writes all puzzles of the filter to `traces.html`, to keep or to send. (It
# needs a running kernel; on a page of GitHub you see only its name.)

# %%
show.explorer(panel, runs[0].kept)

# %% [markdown]
# ## What is shown here, and what is not
# - **Shown, with the tiny preset:** a reward for right answers made a rare
#   behaviour the usual one, in every run. What has grown is how often the
#   model tries and goes on. Most failures at the end are searches that the
#   limit cuts off after many attempts.
# - **Not shown:** that RL invents behaviours. Every one was in the base, and
#   was in its corpus because we put it there (notebook 05).
# - The runs share the base and the panel: the spread over them is that of
#   training alone. The many draws are of one run.
# - The rules see words and structure alone. Whether a "no" in the text stands
#   for anything else in the model, they cannot tell.
#
# ## Exercises
# 1. Do "any attempt" and "goes on" for the greedy completions instead of the
#    sampled ones. What does the tiny preset's base do?
#
# <details><summary>Answer</summary>
#
# `measures.will_and_skill(greedy[0][0])` gives 0 of 256 completions: the
# greedy base always jumps. Its searches are in its samples alone. So a
# behaviour of a few percent is there for RL to reward, although greedy
# answers do not show it. (After training, all 256 make an attempt.)
#
# </details>
#
# 2. Filter "found then abandoned" in the explorer, or count it: in which
#    completions does an attempt reach the target, and the answer does not?
#
# <details><summary>Answer</summary>
#
# Of the recorded samples of seed 0, in three at all steps together. One says
# "yes" and is cut off right there by the limit; two write another expression
# than the one they have found, with a number or a sign exchanged: errors of
# copying.
#
# </details>
#
# ## Summary
# The rules live in `aha_lib/tasks/traces.py`, the shares in
# `aha_lib/look/measures.py`, the figures in `aha_lib/look/show.py`, records of
# runs in `aha_lib/look/record.py`. Next: **07_where_from** takes away
# the habit that the reward found, and looks at a real Gemma.
