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
#
# The notebook reads the folder of a run: its metrics and the held-out panel's
# completions at every evaluation. Without a run of yours it takes the records
# of three tiny runs, seeds 0 to 2, that come with the package. It trains
# nothing.
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | any, no accelerator needed | reads and draws: under a minute |
#
# You will see, each with a check cell:
#
# 1. everything that the trained model does, the base does too, in fewer of
#    its answers;
# 2. what has grown is the *will* to search: to try before answering, and to
#    go on after a "no". How often an attempt hits has hardly changed;
# 3. most answers that are still wrong are loops, cut off by the limit;
# 4. trained model and base with as many draws as you like, and a base that
#    is made to search, without any training;
# 5. where counting words misleads, and how often our own rules err.

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
# sampled and once greedily. The panel is the same for every run.

# %%
import json
from collections import Counter
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib.look import record, show
from aha_lib.presets import PUZZLES
from aha_lib.run import train
from aha_lib.tasks import countdown, traces

# %%
shipped = record.DATA / "run"
mine = pathlib.Path(folder)
own = (mine / "rollouts.jsonl").exists()
places = [mine] if own else sorted(shipped.glob("seed*"))


# %% [markdown]
# Every completion is parsed once: attempts, sums with their truth, verdicts
# (`aha_lib/tasks/traces.py`).


# %%
def parsed(run: record.Record) -> SimpleNamespace:
    """The run, and its completions taken apart, a list a checkpoint."""
    sides = {
        kind: [
            [
                traces.parse(*pair)
                for pair in zip(row[kind], run.panel, strict=True)
            ]
            for row in run.kept
        ]
        for kind in ("sampled", "greedy")
    }
    return SimpleNamespace(**vars(run), panel=run.panel, **sides)


# %%
runs = [parsed(record.read(place)) for place in places]
settings = runs[0].settings
panel = runs[0].panel
steps = [row["step"] for row in runs[0].kept]
learnt = steps[-1] >= 40  # fewer steps promise nothing
print(f"{', '.join(run.name for run in runs)}: {len(panel)} puzzles each,")
print(f"at steps {steps}")

# %% [markdown]
# ### Check
# Do texts, puzzles and metrics belong together? The loop wrote its accuracies
# while it ran; here they come out of the texts again. (At step 0 each puzzle
# was answered 16 times and one of them is kept, so there the greedy ones have
# to do.)

# %%
for run in runs:
    measured = [row for row in run.rows if "heldout_accuracy" in row]
    for i, row in enumerate(measured):
        right = [
            np.mean([t.right for t in side[i]])
            for side in (run.greedy, run.sampled)
        ]
        assert row["heldout_greedy"] == right[0]
        assert row["heldout_accuracy"] == right[1] or i == 0
print("All accuracies come out of the texts again.")

# %% [markdown]
# ## What rose
# Each run is a thin line, their mean a thick one; one seed would be an
# anecdote. The dotted line is the control: what the base does on the same
# puzzles, each answered 16 times.

# %%
show.curve(*[run.rows for run in runs])

# %%
names = "accuracy", "length", "backtracks"
ends = [[r for r in run.rows if "heldout_accuracy" in r] for run in runs]
show.table(
    ["run", "step", *names],
    [
        [run.name, row["step"], *(row[f"heldout_{n}"] for n in names)]
        for run, rows in zip(runs, ends, strict=True)
        for row in (rows[0], rows[-1])
    ],
)

# %% [markdown]
# ### Check
# In every run all three rise. Of a share measured on n puzzles the standard
# error is at most $\sqrt{0.25/n}$: the smallest gain in accuracy is many of
# these.

# %%
first, last = (
    np.array([[rows[i][f"heldout_{n}"] for n in names] for rows in ends])
    for i in (0, -1)
)
error = np.sqrt(0.25 / len(panel))
if learnt:
    assert (last[:, 0] - first[:, 0]).min() > 6 * error
    assert (last[:, 1:] > 2 * first[:, 1:]).all()
print("gains:", (last - first).round(2).tolist())

# %% [markdown]
# ## One search, drawn
# An attempt is a row, a sum is a box. Green reaches the target, red would be
# a false sum, and grey is a row that was written before, word for word. What
# the numbers above count is rows.

# %%
after = runs[0].sampled[-1]


def comes_back(trace) -> bool:
    rows = [tuple(c.text.strip() for c in a.claims) for a in trace.attempts]
    return trace.right and len(set(rows)) < len(rows)


found = sorted(filter(comes_back, after), key=lambda t: len(t.attempts))
show.tree((found or after)[0])

# %% [markdown]
# ## Was it there before?
# Gandhi et al. ([2503.01307](https://arxiv.org/abs/2503.01307)) argue that RL
# needs something to amplify. So look at the base first, with rules.
# *Backtracking* is an attempt left for another one. Beside it, the naive way:
# counting words such as "no" and "again".
#
# (Their *verification*, a verdict that agrees with its number, adds nothing
# here: a trained trace in this language has one verdict per attempt, so it is
# backtracking plus one.)


# %%
def mean_of(count, sides) -> list[float]:
    """Mean backtracks per completion, a number a checkpoint."""
    return [
        float(np.mean([count(x).backtracking for x in side])) for side in sides
    ]


# %%
ruled = np.array([mean_of(traces.behaviours, run.sampled) for run in runs])
worded = np.array(
    [
        mean_of(traces.keyword_counts, [row["sampled"] for row in run.kept])
        for run in runs
    ]
)

# %%
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for counts, label, color in ((ruled, "rules", "C0"), (worded, "words", "C1")):
    axis.plot(steps, counts.T, color=color, lw=0.8, alpha=0.5)
    axis.plot(steps, counts.mean(0), "o-", color=color, label=label)
axis.set(
    title="backtracking",
    xlabel="GRPO step",
    ylim=(0, None),
    ylabel="per completion",
)
axis.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# It does not start at zero. And words mislead: a "no" that is followed by an
# answer all the same is no backtracking, but the words count it. They flatter
# the base and so make the amplification look smaller than it is.
#
# ### Check

# %%
assert (worded[:, 0] > ruled[:, 0]).all()  # "no", and an answer anyway
assert (ruled[:, 0] > 0).all()  # it was there before
grown = {
    "rules": ruled[:, -1] / ruled[:, 0],
    "words": worded[:, -1] / worded[:, 0],
}
if learnt:
    assert (grown["rules"] > grown["words"]).all()
for how, times in grown.items():
    print(f"Backtracking by {how} has grown", times.round(1), "times.")

# %% [markdown]
# How deep did the base search? Attempts in a completion, as shares of all:

# %%
sides = {"base": 0, "trained": -1}
made = {
    name: [len(t.attempts) for run in runs for t in run.sampled[i]]
    for name, i in sides.items()
}
depth = {
    name: np.bincount(counts, minlength=1 + max(map(max, made.values())))
    / len(counts)
    for name, counts in made.items()
}
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for shift, (name, share) in zip((-0.2, 0.2), depth.items(), strict=True):
    axis.bar(np.arange(len(share)) + shift, share, 0.4, label=name)
axis.set(xlabel="attempts in a completion", ylabel="share")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Check
# Amplification, not emergence: the base searches too, in some of its answers.

# %%
searched = {name: float(share[2:].sum()) for name, share in depth.items()}
assert searched["base"] > 0
if learnt:
    assert searched["trained"] > 2 * searched["base"]
print("Searches: {base:.1%} before, {trained:.1%} after".format(**searched))

# %% [markdown]
# ## More searching, or better searching?
# A tempting way to answer this is to sort the answers by style and look at
# the accuracy within each. It is a trap:


# %%
def accuracy_of_checks(side: list) -> str:
    checks = [t.right for t in side if traces.style(t) == "check"]
    return f"{np.mean(checks):.0%} of {len(checks)}"


show.table(
    ["accuracy of answers with one attempt", "before", "after"],
    [
        [run.name, *(accuracy_of_checks(run.sampled[i]) for i in (0, -1))]
        for run in runs
    ],
)

# %% [markdown]
# Has "checking" become better? No: the style *depends on the outcome*. A
# trained model stops after one attempt only if that attempt was right; where
# it was wrong it goes on, and the answer counts as a search. The base gives up
# after a "no", and the answer counts as a check. So measure what does not
# depend on how the answer ends:
#
# - does it make **any attempt** before it answers?
# - does it **go on** after its first "no"?
# - how often does an **attempt hit** the target?


# %%
def will_and_skill(side: list) -> list[tuple[int, int]]:
    """Of completions, of first noes, of attempts: how many, of how many."""
    tried = [t for t in side if t.attempts]
    refused = [t for t in tried if t.attempts[0].verdict == "no"]
    attempts = [a for t in tried for a in t.attempts]
    return [
        (len(tried), len(side)),
        (sum(len(t.attempts) > 1 for t in refused), len(refused)),
        (sum(a.reached for a in attempts), len(attempts)),
    ]


# %%
measures = "any attempt", "goes on after a no", "hits per attempt"
found = {
    (run.name, when): will_and_skill(run.sampled[i])
    for run in runs
    for when, i in (("before", 0), ("after", -1))
}
show.table(
    ["run", "", *measures],
    [
        [*key, *(f"{a}/{b} = {a / max(b, 1):.2f}" for a, b in pairs)]
        for key, pairs in found.items()
    ],
)

# %% [markdown]
# ### Check
# The first two go from a minority to all; of the third, the runs together
# show no change that is larger than its error.

# %%
both = {
    when: np.sum([found[run.name, when] for run in runs], axis=0)
    for when in ("before", "after")
}
shares = {when: counts[:, 0] / counts[:, 1] for when, counts in both.items()}
errors = {
    when: np.sqrt(shares[when] * (1 - shares[when]) / counts[:, 1])
    for when, counts in both.items()
}
change = shares["after"] - shares["before"]
spread = np.hypot(errors["after"], errors["before"])
for name, x, error in zip(measures, change, spread, strict=True):
    print(f"{name:20} {x:+.2f}, standard error {error:.2f}")
if learnt:
    assert (change[:2] > 10 * spread[:2]).all()
    assert shares["after"][:2].min() > 0.95

# %% [markdown]
# So the gain is *will*: to try at all, and to try again. With some four
# attempts a puzzle instead of less than one, an unchanged skill is enough.
# (The errors here take attempts as independent. Attempts on one puzzle are
# not, and hard puzzles take many of them: a trained model meets them again
# and again. The next measure takes both away.)
#
# ### The first attempt alone, with many draws
# `python tests/benchmarks/reach.py` has drawn each held-out puzzle many times,
# from the base and from the trained model of seed 0. Does the *first* attempt
# at a puzzle hit more often? And the second, the third?

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
# What should one expect? The corpus of the base has a rule (`corpus.trace`): a
# first operation at random, then the second one that comes closest to the
# target. Whoever follows it hits at the first attempt with a chance that can
# be counted out, without any model:

# %%
from aha_lib.tasks import corpus


def chance_by_rule(puzzle) -> float:
    """Share of the first operations after which one more can hit."""
    a, b, c = sorted(puzzle.numbers, reverse=True)
    firsts = {
        (value, rest) + (fact,)
        for x, y, rest in ((a, b, c), (a, c, b), (b, c, a))
        for fact, value in corpus.operations(x, y)
    }
    return float(
        np.mean(
            [
                any(
                    last == puzzle.target
                    for _, last in corpus.operations(value, rest)
                )
                for value, rest, _ in firsts
            ]
        )
    )


# %%
by_rule = {p: chance_by_rule(p) for p in panel} if preset == "tiny" else {}
if by_rule:
    print(
        f"first attempts by the rule hit: {np.mean([*by_rule.values()]):.3f}"
    )

# %% [markdown]
# ### Check
# The first attempts of each of them hit as often as the rule's, to within a
# few points: about one in four.

# %%
for who, n in deep.items() if by_rule else ():
    rate = n["hits at 1"] / n["attempt 1"]
    error = np.sqrt(rate * (1 - rate) / n["attempt 1"])
    print(f"{who:28} {rate:.3f}, standard error {error:.3f}")
    assert abs(rate - np.mean([*by_rule.values()])) < 0.03

# %% [markdown]
# So reward has hardly taught it to *choose* better; it has taught it to choose
# at all, and again. (The third player is explained below.) Look at the last
# two columns as well: a longer search repeats itself more, and its sums are
# no truer than the base's.
#
# ## The styles over the steps
# One run. The border between "check" and "search" says how often the first
# attempt happened to hit; the one between "jump" and the rest says more.

# %%
measured = [row for row in runs[0].rows if "styles" in row]
show.areas(measured, "styles", ("jump", "check", "search"))

# %% [markdown]
# ## Length, right and wrong apart
# "It thinks longer" is an average over two kinds of answers. In this
# language a word is a token, and the end is one more, unless the limit came
# first. (With another tokenizer, words are a fair stand-in.)


# %%
limit = settings.completion_len


def tokens(texts: list[str]) -> np.ndarray:
    return np.minimum([len(text.split()) + 1 for text in texts], limit)


# %%
lengths = np.array(
    [[tokens(row["sampled"]) for row in run.kept] for run in runs]
)  # runs, checkpoints, puzzles
right = np.array(
    [[[t.right for t in side] for side in run.sampled] for run in runs]
)
cut = np.array(
    [
        [[t.answer is None for t in side] for side in run.sampled]
        for run in runs
    ]
) & (lengths == limit)


# %%
def average(values, of) -> float:
    return float(values[of].mean()) if of.any() else float("nan")


show.table(
    ["step", "right", "tokens", "wrong", "tokens", "of these cut off"],
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
# All runs together. At the end the wrong answers are few, and most of them
# are not answers at all: they were **cut off** at the limit. Right answers
# are shorter *because* a search ends when it hits; a hard puzzle makes length
# and failure together. So neither "longer is better" nor the opposite can be
# read off such a table.
#
# ### What a failure looks like
# Read some. The first three of the last checkpoint that were cut off:

# %%
cut_off = [
    (run, i)
    for run in runs
    for i, t in enumerate(run.sampled[-1])
    if t.answer is None
]
for run, i in cut_off[:3]:
    display(
        show.side_by_side(
            panel[i],
            {f"{run.name}, step {steps[-1]}": run.kept[-1]["sampled"][i]},
        )
    )

# %% [markdown]
# They are loops: attempts come back that were made already. (*Repeated* below
# is the same calculation in whatever order, so that `16 - 7 + 4` repeats
# `16 + 4 - 7`.) Is it the loop or the limit that fails? Let the same answers
# go on, to twice the length:

# %%
more = next((line for line in lines if "became" in line), None)
if more:
    print(
        f"{more['cut off']} of {more['puzzles']} cut off;",
        f"with {more['limit']} tokens they become",
        more["became"],
    )
    print("accuracy {:.3f} -> {:.3f}".format(*more["accuracy"]))
repeats = [
    np.mean([a.repeated for a in run.sampled[-1][i].attempts])
    for run, i in cut_off
]
others = [
    a.repeated
    for run in runs
    for t in run.sampled[-1]
    if t.right
    for a in t.attempts
]
print(
    f"attempts repeated: {np.mean(repeats or [0]):.0%} in these,"
    f" {np.mean(others):.0%} in right answers"
)

# %% [markdown]
# ### Check

# %%
assert (lengths <= limit).all()
for of_run, rows in zip(lengths, ends, strict=True):
    if preset == "tiny":  # a word is a token: the loop counted the same
        assert [n.mean() for n in of_run[1:]] == [
            row["heldout_length"] for row in rows[1:]
        ]
if learnt:
    assert np.mean(repeats) > 2 * np.mean(others)

# %% [markdown]
# The loop. Of the nine of seed 0 none gets there with more room: six go on in
# circles, two give up, one slips. And where they go beyond the lengths that
# the model has ever seen, its language may come apart. The end of one:

# %%
if more:
    print(more["texts"][0][0], "...", more["texts"][0][1][-180:])

# %% [markdown]
# ## The length confound
# A trained answer costs more tokens. Would the base do as well if it could
# spend as many? Give it the most generous use of them: draw it k times and
# let an oracle pick a right answer if there is one (*pass@k*). To be fair,
# the trained model gets the same, at its own cost.
#
# First pass@k itself, from n draws of which some are right, without bias
# (Chen et al., [2107.03374](https://arxiv.org/abs/2107.03374), eq. 1),
# against brute force over all subsets.
#
# ### Check

# %%
from itertools import combinations

drawn = np.random.default_rng(0).random((5, 6)) < 0.3
for k in (1, 2, 4):
    brute = np.mean(
        [
            [any(draws[list(some)]) for some in combinations(range(6), k)]
            for draws in drawn
        ]
    )
    assert np.isclose(train.pass_at_k(drawn, k), brute), k

# %% [markdown]
# Every k from 1 to the number of draws, of `reach.json`. A third player helps
# to tell *will* from *skill*: the base that may not write `<answer>` before
# it has written `yes`. Nothing was trained. It keeps its own probabilities,
# with this one token barred, and so it has to search.


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
    title="each dot is one more draw",
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
# Three things to see. With *one* draw the trained model is far ahead of the
# base at the same cost: the base's next k that costs at least as much is in
# the check below. With *many* draws the base draws level, at 64 with one
# puzzle more than the trained model: it was within its reach; RL has made it
# likely, not possible. And the base that had to search, without any training,
# is at one draw where the trained model is, at the same length. What GRPO has
# taught this model is one thing: not to answer before the "yes". (On text of
# the world no such bar exists to put up: one token tells neither that a
# search is needed nor that it has ended well.)
#
# ### Check
# Between two k there is nothing: no line is drawn through them, and the
# trained model's one answer is compared with the base's next k that costs
# *more*.

# %%
if {"base", "trained"} <= set(curves) and learnt:
    (cost, passed), (price, once) = curves["base"], curves["trained"]
    enough = int(np.searchsorted(cost, price[0]))
    print(
        f"trained: {price[0]:.0f} tokens, {once[0]:.3f}; base, best of"
        f" {enough + 1}: {cost[enough]:.0f} tokens, {passed[enough]:.3f}"
    )
    assert cost[enough] >= price[0] and once[0] > passed[enough]
    assert passed[-1] > 0.99  # within its reach
    if min(len(passed), len(once)) >= 64:  # 1 / 256 is a puzzle
        assert abs(passed[63] - once[63]) < 0.01
    made = curves.get("base, no answer before a yes")
    assert made is None or abs(made[1][0] - once[0]) < 0.03
    assert made is None or abs(made[0][0] / price[0] - 1) < 0.1

# %% [markdown]
# ## Puzzle by puzzle
# Rows are the puzzles of one run, sorted by the step at which they are first
# solved greedily. Look for rows that go light again: a solved puzzle is not
# solved for good.

# %%
from matplotlib.patches import Patch

solved = np.array([[t.right for t in side] for side in runs[0].greedy]).T
at = np.where(solved.any(1), solved.argmax(1), len(steps))
order = np.lexsort((-solved.sum(1), at))
figure, axis = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
axis.imshow(
    solved[order],
    aspect="auto",
    cmap="Blues",
    vmin=0,
    vmax=1.3,
    interpolation="nearest",
)
axis.set_xticks(range(len(steps)), steps)
axis.set(xlabel="GRPO step", ylabel="held-out puzzles")
shades = plt.get_cmap("Blues")
axis.legend(
    handles=[
        Patch(fc=shades(1 / 1.3), label="solved greedily"),
        Patch(fc=shades(0.0), ec="0.6", label="not solved"),
    ],
    loc="center left",
    bbox_to_anchor=(1, 0.5),
    frameon=False,
)
plt.show()

# %%
when = Counter(at.tolist())
lost = (solved[:, :-1] & ~solved[:, 1:]).any(1)
show.table(
    ["first solved at step", "puzzles"],
    [[steps[i] if i < len(steps) else "never", when[i]] for i in sorted(when)]
    + [["solved, and lost later", int(lost.sum())]],
)

# %% [markdown]
# ## Which puzzles?
# One measure of difficulty knows no model: in how many ways the puzzle can
# be solved (`countdown.solve`). A jump succeeds in proportion to the ways; a
# search should depend on them less. All runs together:

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
# ## How it fails
# *Cut off*: the limit came first. *Slipped*: a false sum decided it.
# *Claimed*: "yes" to a wrong value. *Gave up*: an answer without a claim of
# success. A verifier that pays for right answers alone also pays for a slip
# that happens to end well, so watch the truth of the sums.

# %%
kinds = "gave up", "cut off", "claimed", "slipped", "right"
fates = [
    {
        "step": step,
        "outcomes": Counter(
            traces.outcome(t, not c)
            for run, c_run in zip(runs, cut, strict=True)
            for t, c in zip(run.sampled[i], c_run[i], strict=True)
        ),
    }
    for i, step in enumerate(steps)
]
show.areas(fates, "outcomes", kinds)


# %%
def faults(side: list) -> list:
    truths = [c.true for t in side for c in t.claims if c.true is not None]
    tried = [a for t in side for a in t.attempts]
    return [
        len(truths),
        float(np.mean(np.logical_not(truths))),
        len(tried),
        float(np.mean([a.repeated for a in tried])),
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
            *faults([t for run in runs for t in run.sampled[i]]),
        ]
        for i, row in enumerate(fates)
    ],
)

# %% [markdown]
# A false sum, as it looks on the page (red; hover over it for its value):

# %%
false = [
    (run, i)
    for run in runs
    for i, t in enumerate(run.sampled[-1])
    if t.slips and not t.right
]
for run, i in false[:2]:
    display(
        show.side_by_side(
            panel[i],
            {f"{run.name}, step {steps[-1]}": run.kept[-1]["sampled"][i]},
        )
    )

# %% [markdown]
# ## Where words mislead
# Rules err too, and one should know how often. Traces of the tiny language,
# of free text and of Gemma's own were labelled by hand. The rules were tuned
# on most of them; what counts is the part that was set aside. *Precision*:
# how many of those found are there. *Recall*: how many of those there are
# found. (The set lies with the tests, so these cells need a checkout.)

# %%
where = pathlib.Path(aha_lib.__file__).parent.parent / "tests" / "data"
labelled = train.read_rows(where / "labelled_traces.jsonl")
aside = [row for row in labelled if not row["tuned"]]
print(len(labelled), "labelled, of which", len(aside), "set aside")


# %%
def ruled_of(row):
    puzzle = countdown.Puzzle(tuple(row["numbers"]), row["target"])
    return traces.behaviours(traces.parse(row["completion"], puzzle))


def worded_of(row):
    return traces.keyword_counts(row["completion"])


# %%
def score(find, name: str, labels: list) -> tuple[int, int, int]:
    """Hits, those found, those there are."""
    seen = np.array([getattr(find(row), name) > 0 for row in labels])
    there = np.array([row[name] for row in labels])
    return int((seen & there).sum()), int(seen.sum()), int(there.sum())


# %%
four = "verification", "backtracking", "subgoals", "backward"
scores = {
    (name, how): score(find, name, aside)
    for name in four
    for how, find in (("rules", ruled_of), ("words", worded_of))
    if aside
}
show.table(
    ["set aside", "by", "precision", "recall"],
    [
        [*key, f"{hits}/{seen}", f"{hits}/{there}"]
        for key, (hits, seen, there) in scores.items()
    ],
)

# %% [markdown]
# Of the last two behaviours there are only a handful, so their figures say
# little. The rule for working backward misses more than it finds.
#
# ### Check

# %%
for name in ("verification", "backtracking") if aside else ():
    (a, seen, there), (b, b_seen, _) = (
        scores[name, how] for how in ("rules", "words")
    )
    assert a / seen > 0.9 and a / there > 0.85, name
    assert a / seen > b / b_seen and a > b, name
print("On traces they were not tuned on, the rules are ahead of the words.")

# %% [markdown]
# ## Read them
# Numbers can hide nonsense; the texts cannot. Two puzzles that the trained
# model solves and the base does not, and one that it loses. Hover over a sum
# for its value.

# %%
texts = runs[0].kept[0]["sampled"], runs[0].kept[-1]["sampled"]


def view(i: int):
    return show.side_by_side(
        panel[i],
        {f"step {steps[0]}": texts[0][i], f"step {steps[-1]}": texts[1][i]},
    )


# %%
gained = show.select(panel, *texts, "solved after but not before")
missed = [i for i, t in enumerate(runs[0].sampled[-1]) if not t.right]
display(*map(view, gained[:2] + missed[-1:]))

# %% [markdown]
# The explorer lets you choose: checkpoints, a filter, a puzzle. The button
# writes all puzzles of the filter to `traces.html`, to keep or to send. (It
# needs a running kernel; on a page of GitHub you see only its name.)

# %%
show.explorer(panel, runs[0].kept)

# %% [markdown]
# ## What is shown here, and what is not
# - **Shown:** a reward for right answers made a rare behaviour the rule, in
#   every run; what has grown is how often the model tries and goes on; most
#   failures at the end are loops.
# - **Not shown:** that RL invents behaviours. Every one was in the base, and
#   was in its corpus because we put it there (notebook 05).
# - The runs share the base and the panel: the spread over them is that of
#   training alone. The many draws are of one run.
# - Rules look at words and structure, not at thoughts. A "no" on the page is
#   not a doubt in the machine.
#
# ## Exercises
# 1. Do "any attempt" and "goes on" for the greedy completions instead of the
#    sampled ones. What does the base do?
#
# <details><summary>Answer</summary>
#
# `will_and_skill(runs[0].greedy[0])` gives 0 attempts in 256 completions: the
# greedy base always jumps. So of its searches nothing is seen in its
# likeliest answers, and all in its samples: a behaviour of some percent is
# there for RL, and invisible to a greedy look. (After training, all 256 make
# an attempt.)
#
# </details>
#
# 2. Filter "found then abandoned" in the explorer, or count it: in which
#    completions does an attempt reach the target, and the answer does not?
#
# <details><summary>Answer</summary>
#
# Of the samples of seed 0, in three at all steps together. One says "yes" and
# is cut off right there by the limit; two write another expression than the
# one they have found, with a number or a sign exchanged: errors of copying.
#
# </details>
#
# ## Summary
# The rules live in `aha_lib/tasks/traces.py`, the figures in `aha_lib/look/show.py`,
# records of runs in `aha_lib/look/record.py`. Next: **07_where_from** takes away
# the habit that the reward found, and looks at a real Gemma.
