# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · A tool: several turns, and a reward at the end
#
# **The question:** can a model learn to use a tool if only its last answer is
# rewarded?
#
# Until now a model wrote alone. Here it may *ask*: it writes a call, a program
# replies, and it goes on with the reply in its context. DeepSeek-R1's recipe
# does not change. The reward still sees the answer, and nothing rewards the
# asking. Two things are new, and both are in the sampler and the loss: a row
# has to **wait** for its reply, and the words of the reply are **not the
# model's**, so it must not be trained to write them.
# ([Glossary](../docs/glossary.md))
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | two CPU cores | about a minute: a small model finds out a tool |
# | `look-up-270m` | two CPU cores | Gemma 3 270M: a cold start, then GRPO |
#
# With any other preset this notebook does what it does with `tiny`. Its model
# has a language of its own and comes with the package.
#
# You will see:
#
# 1. a rollout in slow motion, with who wrote which token;
# 2. sampler and trainer agree on the log-probabilities of rows with replies,
#    and the replies get no gradient;
# 3. accuracy rises from below a quarter to most questions, and calls with it;
# 4. in three controls accuracy stays that of a guess: a tool that knows
#    nothing, one that tells facts of another world, and a base that has never
#    seen a call;
# 5. what a price on every call does;
# 6. a second tool that helps, and that the reward does not find.

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
overrides = {}  # of the run's settings, for example {"seed": 1}

# %%
import dataclasses
import json
from contextlib import closing

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import aha_lib
from aha_lib.look import record, show
from aha_lib.model import weights
from aha_lib.presets import SETTINGS
from aha_lib.rl import grpo
from aha_lib.run import train
from aha_lib.tasks import task as tasks
from aha_lib.tasks.look_up import LookUp
from aha_lib.tasks.rollout import Policy, rollout

is_mine = "look_up" in SETTINGS[preset].task
settings = dataclasses.replace(
    SETTINGS[preset if is_mine else "look-up"], **overrides
)
folder = pathlib.Path(f"runs/{settings.preset}")  # an old run is resumed
if not is_mine and preset != "tiny":
    print(f"This notebook runs look it up: not {preset}, but its small model.")

# %% [markdown]
# ## A question that cannot be known by heart
# Every question has a small world of its own. In it numbers stand for people,
# and eight words for relations: each leads from a number to another. The
# question `7 lives works :` asks where relation after relation leads: first
# where 7 `lives`, then where that one `works`. The facts are drawn anew for
# each question. So no training can put them into the weights, and only asking
# helps.
#
# The model calls with `<ask> 7 lives </ask>`. Look at the three kinds of
# reply: the fact, `nothing`, and a fact *beside the point*, about another
# number. The third kind comes at most once in a question, and asking again
# helps.

# %%
task = LookUp()
puzzle = next(
    p
    for p in (task.puzzle(0, i, held_out=True) for i in range(99))
    if len(p.relations) == 2 and p.miss == 1
)
print("question:", task.prompt(puzzle), "  the way:", puzzle.chain)
first = f"<ask> {puzzle.start} {puzzle.relations[0]} </ask>"
print(first, "→", task.reply(first, puzzle))
again = f"{first} {task.reply(first, puzzle)} {first}"
print(first, "→", task.reply(again, puzzle))
print(
    "<ask> lives lives </ask> →",
    task.reply("<ask> lives lives </ask>", puzzle),
)

# %% [markdown]
# A task with a tool has two members more than another: `turn_end`, the piece
# after which a row waits, and `reply`, a function from the text so far to the
# reply. Nothing in the text is executed; `reply` reads two words of it.

# %% [markdown]
# ## One rollout in slow motion
# The base has read worked questions. Most of them guess, a quarter ask once
# and answer what they were told, and 0.15 follow the whole question. Below are
# the longest of 32 answers of the base to one question. Look for orange: the
# tool wrote that, and the model all else.

# %%
base, tokenizer, _ = weights.load("look-up")
small = SETTINGS["look-up"]
policy = Policy(base, tokenizer, task, small)
key = jax.random.key(3)
out = rollout(policy, [puzzle], key, group=32, temperature=1.0)
asking = np.argsort(-out.completions.written.sum(axis=1), kind="stable")


def coloured(tokens, mask, written) -> str:
    """The tokens of a completion, the tool's in orange."""
    pairs = zip(tokens[written], mask[written], strict=True)
    parts = [(tokenizer.decode([t]) + " ", not own) for t, own in pairs]
    return show.turns(parts)


rows = [[x[i] for x in out.completions] for i in asking]
shown = [
    coloured(tokens, mask, written) for tokens, _, mask, written in rows[:6]
]
HTML("<br>".join(shown))

# %% [markdown]
# The same as a picture of all rows, each from left to right. In the sampler
# they run side by side. A row that has written `</ask>` stands still until all
# others have come to a `</ask>` too, or to their end, at the latest for a
# quarter of the longest completion. Then the host asks the task for the
# replies, and the replies' tokens are *forced*: they go through the same
# decode loop as sampled tokens, in the place of these. Before the rows go on,
# their KV caches are moved so that all rows end at the same slot again. So
# there is no second prefill.

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws who wrote what
written = out.completions.written[asking].astype(int)
who = written + (written & ~out.completions.mask[asking])
width = written.sum(axis=1).max()
colours = plt.matplotlib.colors.ListedColormap(
    ["white", show.BLUE, show.ORANGE]
)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.imshow(who[:, :width], cmap=colours, vmin=0, vmax=2, aspect="auto")
for name, colour in (("the model", show.BLUE), ("the tool", show.ORANGE)):
    axis.bar(0, 0, color=colour, label=name)
axis.set(xlabel="token of the completion", ylabel="completion", yticks=[])
axis.legend(frameon=False, loc="lower right", title="written by")
plt.show()

# %% [markdown]
# ## What the loss sees
# GRPO's gradient is a sum over tokens. With a tool every token $t$ of
# completion $i$ has a mask $m_{i,t}$, which is 1 where the model sampled it
# and 0 where the tool wrote it:
#
# $$\nabla J = \frac{1}{\sum_{i,t} m_{i,t}} \sum_{i,t} m_{i,t}\, A_i\,
# \nabla \log \pi(o_{i,t} \mid q, o_{i,<t})$$
#
# The replies are still in the context $o_{i,<t}$: the model reads them. It is
# not pushed to write them. Lengths, entropy and the KL term count with the
# same mask. One row as the loss sees it. The last column is what of the token
# goes into the gradient:

# %%
row = asking[0]
tokens, logprobs, mask, was_written = (x[row] for x in out.completions)
show.table(
    ["token", "written by", "mask", "log-probability", "gradient"],
    [
        [
            f"`{tokenizer.decode([token])}`" if token > 3 else "`<eos>`",
            "the model" if own else "the tool",
            int(own),
            f"{logprob:.2f}" if own else "",
            "A × its own" if own else "none",
        ]
        for token, logprob, own in zip(
            tokens[was_written],
            logprobs[was_written],
            mask[was_written],
            strict=True,
        )
    ],
)

# %% [markdown]
# ### Check
# The trainer reads the finished rows in one pass, without a cache and without
# waiting. It has to find the log-probabilities that the sampler found turn by
# turn. And the gradient with respect to each token's log-probability has to be
# zero at the replies, for any advantages.

# %%
gain = np.linspace(-1, 1, 32).astype(np.float32)
batch = grpo.Batch(
    out.prompts, out.valid, *(out.completions[i] for i in (0, 2, 1)), gain
)
batch = jax.tree.map(
    jnp.asarray, batch._replace(written=out.completions.written)
)
trainers, _ = grpo.completion_logprobs(base, batch, small.temperature)
gap = jnp.where(batch.mask, trainers - batch.logprobs, 0)
print(f"largest difference of {int(batch.mask.sum())}: {abs(gap).max():.1e}")
assert abs(gap).max() < 1e-4


def loss(logprobs):
    return grpo.surrogate(logprobs, 0 * logprobs, None, batch, small)[0]


slope = jax.grad(loss)(trainers)
replies = batch.written & ~batch.mask
print(
    f"{int(replies.sum())} tokens of replies; gradients there: "
    f"{set(slope[replies].tolist())}"
)
assert not slope[replies].any()

# %% [markdown]
# ## The run
# Sixteen questions a step, sixteen answers each. Watch the accuracy and, at
# the right, the calls in an answer: no term of the reward is for them. The run
# can be stopped and goes on where it was.

# %%
with closing(train.train(settings, folder)) as run:
    rows = show.watch(run, train.rows_so_far(folder))

# %% [markdown]
# The same by the number of hops. A guess is right in one of fifty.

# %%
measured = [row for row in rows if "heldout_accuracy" in row]
names = "accuracy", "accuracy_1", "accuracy_2", "accuracy_3", "calls", "again"
show.table(
    ["step", "accuracy", "1 hop", "2 hops", "3 hops", "calls", "asks again"],
    [
        [row["step"], *(row.get(f"heldout_{name}") for name in names)]
        for row in measured
    ],
)

# %% [markdown]
# The last column: of the replies beside the point, the share after which the
# model asked the same once more. In the worked text those who follow the whole
# question always did. So asking again is a habit that was there, as the call
# itself was, and the reward makes it the usual one.
#
# One question before and after, with the tool in orange:

# %%
mine = record.read(folder)
asked = tasks.load(settings)
first, last = mine.kept[0], mine.kept[-1]
solved = [
    i
    for i, p in enumerate(mine.panel)
    if asked.reward(last["sampled"][i], p) == 1
    and asked.reward(first["sampled"][i], p) < 1
]
if solved:  # the one with the longest answer
    i = max(solved, key=lambda i: len(last["sampled"][i]))
    texts = {f"step {row['step']}": row["sampled"][i] for row in (first, last)}
    display(show.answers(asked, mine.panel[i], texts))

# %% [markdown]
# All of them, to look through:

# %%
show.explorer(mine.panel, mine.kept, asked)

# %% [markdown]
# ## Does it use the tool, or something else?
# Three controls, three seeds each (`python tests/benchmarks/look_up.py OUT`):
#
# - **An empty tool:** the base and the reward are the same, but the reply is
#   always `nothing`. If accuracy rose here, it would not come from what the
#   tool says.
# - **Facts of another world:** the replies look as they should, and are wrong.
# - **A base that never saw a call:** its worked text had guesses alone. If
#   this base asked in the end, the reward would have invented the call.

# %%
benchmarks = pathlib.Path(aha_lib.__file__).parents[1] / "tests/benchmarks"


def stored(name: str) -> list[dict]:
    """The runs that a benchmark has left, none if it has not run yet."""
    path = benchmarks / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


runs = stored("look_up")
controls = [
    "tool",
    "empty tool",
    "facts of another world",
    "no asking in the corpus",
]
by_case = {
    case: [run for run in runs if run["case"] == case] for case in controls
}

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the runs and their controls
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, name in zip(axes, ("right", "calls"), strict=True):
    for i, (case, of) in enumerate(by_case.items()):
        for run in of:
            axis.plot(run["evaluated"], run[name], f"C{i}")
        axis.plot([], [], f"C{i}", label=f"{case} ({len(of)} seeds)")
    axis.set(xlabel="step")
axes[0].set_title("Accuracy on held-out questions")
axes[1].set_title("Calls in an answer")
axes[1].legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.4))
plt.show()

# %%
kept = "right", "accuracy_1", "accuracy_2", "accuracy_3", "calls"
show.table(
    ["case", "seed", "accuracy", "1 hop", "2 hops", "3 hops", "calls"],
    [
        [
            case,
            run["seed"],
            *(f"{run[name][0]:.2f} → {run[name][-1]:.2f}" for name in kept),
        ]
        for case, of in by_case.items()
        for run in of
    ],
)

# %% [markdown]
# With the tool accuracy rises in all three seeds, for each number of hops.
# Where the tool knows nothing, or tells the wrong facts, accuracy stays that
# of a guess and the *calls die out*. The base that never saw a call never
# wrote one, so there was none to reward. So the reward does with the tool what
# it did with searching in notebook 07: it makes a rare habit the rule, where
# the habit pays.
#
# ### Check
# The statements above, asked of the recorded runs.

# %%
for case, of in by_case.items():
    ends = [run["right"][-1] for run in of]
    calls = [run["calls"][-1] for run in of]
    print(f"{case}: accuracy {ends}, calls {calls}")
    if case == "tool":
        assert min(ends) >= 0.85 and min(calls) > 2
    else:
        assert max(ends) < 0.1
        assert max(calls) < 0.1

# %% [markdown]
# ## What is a call worth?
# Calls were free so far. Now each call takes a *price* off the reward: an
# answer that is right after three calls at 0.1 earns 0.7. Where does asking
# die out? A guess earns 0.02 on average. The whole way earns 1 minus the price
# of about two and a half calls. So on average it pays up to a price of about
# 0.4, and for questions of one hop beyond that.

# %%
priced = [run for run in runs if run["case"] not in controls[1:]]

prices = sorted({run["price"] for run in priced})

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws accuracy and calls against the price
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axis, name in zip(axes, ("right", "calls"), strict=True):
    for run in priced:
        axis.plot(run["price"], run[name][-1], "C0o", ms=5, alpha=0.7)
    means = [
        np.mean([r[name][-1] for r in priced if r["price"] == price])
        for price in prices
    ]
    axis.plot(prices, means, "C0", lw=1, label="mean")
    axis.set(xlabel="price of a call", ylim=(0, 1.1 * max(means)))
axes[0].set_title("Accuracy at the end")
axes[1].set_title("Calls in an answer at the end")
plt.show()

# %%
show.table(
    ["price", "seed", "accuracy", "1 hop", "2 hops", "3 hops", "calls"],
    [
        [run["price"], run["seed"], *(round(run[n][-1], 2) for n in kept)]
        for run in priced
    ],
)

# %% [markdown]
# Up to a price of 0.2 the model asks nearly as often as without one. (Accuracy
# is lowest in seed 1, at 0.05 and 0.1, and does not follow the price.) At 0.4
# the asking dies out, for all questions. Does it pay the base to ask? What its
# asking answers earn, by the number of hops:

# %%
questions = [task.puzzle(0, i, held_out=True) for i in range(120)]
tried = rollout(policy, questions, key, group=8, temperature=1.0)
rows = []
for hops in (1, 2, 3):
    logs = [
        task.log(text, q)
        for text, q in zip(tried.texts, tried.puzzles, strict=True)
        if len(q.relations) == hops
    ]
    asks = [log for log in logs if log.calls]
    right = np.mean([log.right for log in asks])
    calls = np.mean([len(log.calls) for log in asks])
    earned = [right - price * calls for price in (0.2, 0.4)]
    guessed = np.mean([log.right for log in logs if not log.calls])
    rows.append([hops, len(asks), right, calls, *earned, guessed])
show.table(
    ["hops", "answers", "right", "calls", "at 0.2", "at 0.4", "a guess"],
    rows,
)

# %% [markdown]
# At 0.4 a call pays the base for one hop, and for two and three it costs more
# than it brings. These are two thirds of the questions. The asking dies out
# for all of them: in 40 steps the model does not learn to ask by the number of
# hops. (Seed 1 begins to: its one-hop questions come back at the end.)
#
# ## A Gemma that searches text
# The same task in English, for Gemma 3 270M on two cores: 300 short passages
# are drawn anew for every question, and the tool searches them by BM25
# (`bm25s`, the extra `search`). A call is a line, `ask: where Mark Hall
# lives`, and so `turn_end` is a newline. The reply is the best passage, which
# may be about another Hall. The preset `look-up-270m` begins with a cold
# start: 200 supervised steps on worked questions, of which half guess, 0.3 ask
# once, and 0.2 follow the whole question.

# %%
found = sorted((record.DATA / "look-up-270m").glob("seed*"))
gemma = [record.read(path) for path in found]
names = "accuracy", "greedy", "accuracy_1", "accuracy_2", "accuracy_3", "calls"
show.table(
    ["step", "accuracy", "greedy", "1 hop", "2 hops", "3 hops", "calls"],
    [
        [row["step"], *(row.get(f"heldout_{n}") for n in names)]
        for run in gemma
        for row in run.measured
    ],
)

# %%
if gemma:
    run = gemma[0]
    english = tasks.load(run.settings)
    last = run.kept[-1]["sampled"]
    right = [
        i for i, p in enumerate(run.panel) if english.reward(last[i], p) == 1
    ]
    i = max(right, key=lambda i: last[i].count("ask:"))
    texts = {
        f"step {row['step']}": row["sampled"][i]
        for row in (run.kept[0], run.kept[-1])
    }
    display(show.answers(english, run.panel[i], texts))

# %% [markdown]
# The panel has 64 questions, so a standard error is about 0.05. First the
# calls rise, up to where the limit of six replies ends a quarter of the
# answers. Then they fall, and accuracy rises, greedily before sampled. It has
# not come to its end after these steps. This is one seed of 64 answers a step,
# and it has no control.
#
# ## A tool that helps, and is not found
# The second tool is a calculator, for Countdown with three numbers up to 99.
# The model may write the result of a sum itself, `44 - 19 = 25`, or ask for
# it: after `44 - 19 = ?` the tool writes `25`. The base was trained briefly,
# so that fewer than half of its own sums are true, and it asks for one sum in
# five. The reward sees the answer alone, as ever. Four ways of the same run
# (`python tests/benchmarks/calculator.py`): the model chooses whether to
# ask; it chooses and a call costs 0.05; it has no question mark; the question
# mark is written for it, at every sum. Look at accuracy, and at the share of
# sums that is asked.

# %%
WAYS = {
    "free": "it chooses",
    "dear": "it chooses, a call costs 0.05",
    "barred": "it cannot ask",
    "always": "every sum is asked for it",
}
sums = [run for run in stored("calculator") if run["way"] in WAYS]
sums.sort(key=lambda run: ([*WAYS].index(run["way"]), run["seed"]))


def ends(run: dict, name: str) -> str:
    both = (run[when].get(name) for when in ("before", "after"))
    return " → ".join("–" if x is None else f"{x:.2f}" for x in both)


show.table(
    ["", "seed", "accuracy", "sums asked", "own sums true"],
    [
        [
            WAYS[run["way"]],
            run["seed"],
            *(ends(run, name) for name in ("right", "asked", "true")),
        ]
        for run in sums
    ],
)

# %% [markdown]
# The tool helps: where every sum is asked, accuracy ends highest. But a model
# that may choose asks a *smaller* share of its sums in the end, with a price
# and without one, and does no better than one that cannot ask, as far as two
# seeds can tell. And its own sums become false, as those of notebook 07's
# control did: an answer can be right after false sums, and the reward sees
# only the answer.
#
# Why is this tool not found? Compare what asking is worth to each model,
# before and after: the accuracy of 512 answers without a call, and of 512 with
# every sum asked for it.

# %%
show.table(
    ["trained while", "seed", "", "without a call", "every sum asked"],
    [
        [WAYS[run["way"]], run["seed"], when, at["never"], at.get("always")]
        for run in sums
        for when, at in (("before", run["before"]), ("after", run["after"]))
        if run["way"] in ("free", "always")
    ],
)

# %% [markdown]
# (Standard errors are about 0.02, and the first lines of one seed are the same
# base.) To the base the tool is worth nothing that these figures can show, and
# so it is to a model that was trained while it chose. Only the models that
# were trained on true results use them. So a call earned nothing on the way:
# the model would have had to change first what it does with results. In *look
# it up* the first call pays at once. (The two differ in more than that: the
# model, the task, the learning rate.)
#
# ## Exercises
#
# **1.** Let the loss see the tool's words too: after the check, compute
# `slope` once more with `batch._replace(mask=batch.written)`. What would the
# model be trained to do?
#
# <details><summary>Answer</summary>
#
# To write replies itself. In answers with a positive advantage every token of
# a reply gets likelier, as if the model had chosen it: it learns to expect
# facts that were drawn anew and will never come again. The sampler's
# log-probability of a forced token is set to 0, so the ratio of such a token
# would mean nothing either.
#
# </details>
#
# **2.** A wrong answer after three calls at a price of 0.1 is worth 0 - 0.3.
# What does GRPO make of a group in which all answers are wrong, but some asked
# more than others?
#
# <details><summary>Answer</summary>
#
# In such a group the rewards differ by the calls alone, so the advantages push
# towards fewer calls. Divided by the group's standard deviation they are as
# large as if right answers were at stake. That could end the asking early. In
# the runs above it did not, up to a price of 0.2.
#
# </details>
#
# ## Summary
#
# - A row with a tool is a row with gaps in its mask: the model's tokens are
#   trained on, the tool's are only read.
# - A tool needs no second sampler: rows wait, and replies are forced through
#   the same decode loop.
# - In these runs the reward makes the usual habit of what was a rare one,
#   if the tool helps. With an empty tool the asking dies out, and a base
#   that never saw a call does not begin to ask. A calculator that helps only
#   models trained on its replies is not found either.
#
# The sampler's turns are in
# [`aha_lib/rl/sampler.py`](../aha_lib/rl/sampler.py), the task is
# [`aha_lib/tasks/look_up.py`](../aha_lib/tasks/look_up.py). For a tool of
# your own, and for how other libraries do it, see
# [docs/tools.md](../docs/tools.md).
