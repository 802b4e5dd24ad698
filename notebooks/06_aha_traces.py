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
# answers, what was there before, and is the length the cause or a symptom?
#
# The notebook reads the folder of a run: its metrics and the held-out panel's
# completions at every evaluation. Without a run of yours it takes the record
# of the tiny run that comes with the package. It trains nothing.
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | any, no accelerator needed | reads and draws: under a minute |
#
# You will see, each with a check cell:
#
# 1. every behaviour of the trained model is there at step 0, seldom;
# 2. the gain split, exactly, into *more searching* and *better searching*;
# 3. trained model and base compared at an equal number of tokens;
# 4. where counting words misleads, and how often our own rules err.

# %% tags=["setup"]
# Setup, the same in every notebook: find aha_lib and what it needs.
import glob
import pathlib
import shutil
import sys

drive, data = "/content/drive/MyDrive", "/kaggle/input"
places = [".", "..", "*", drive, f"{drive}/*"]
places += [data + "/*" * depth for depth in range(1, 5)]
found = [p for place in places for p in glob.glob(f"{place}/aha_lib")]
if not found:
    zips = [z for place in places for z in glob.glob(f"{place}/aha*.zip")]
    for file in zips[:1]:
        shutil.unpack_archive(file)
    found = glob.glob("aha*/aha_lib")
sys.path[:0] = [str(pathlib.Path(p).parent.resolve()) for p in found[:1]]
try:
    from aha_lib import install
except ImportError:
    raise SystemExit("aha_lib is not here: bring its whole folder or its "
                     "zip, as notebook 00 says, beside this one.") from None
install.complete()  # says what it installs; what will do is left alone

import jax

from aha_lib import runtime

runtime.start_distributed()  # only where there are several hosts
kind = runtime.devices()[0].device_kind
print(f"JAX {jax.__version__} on {jax.device_count()} x {kind}")

# %% tags=["parameters"]
preset = "tiny"
folder = f"runs/{preset}"  # a run's folder, as 05_train leaves it

# %% [markdown]
# ## The record
# `metrics.jsonl` has a row for every step, `rollouts.jsonl` one for every
# evaluation: what the model wrote for each puzzle of the held-out panel, once
# sampled and once greedily. The panel is the same for every run.

# %%
import gzip
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

import aha_lib
from aha_lib import countdown, show, traces, train
from aha_lib.presets import PUZZLES, Settings

shipped = pathlib.Path(aha_lib.__file__).parent / "data" / "run"
mine = pathlib.Path(folder)
record = mine if (mine / "rollouts.jsonl").exists() else shipped / "seed0"


def rows_of(path: pathlib.Path) -> list[dict]:
    """The rows of a JSON-lines file, or of its gzipped twin."""
    if path.exists():
        return train.read_rows(path)
    with gzip.open(f"{path}.gz", "rt") as file:
        return [json.loads(line) for line in file]


# %%
settings = Settings(**json.loads((record / "settings.json").read_text()))
rows = rows_of(record / "metrics.jsonl")
history = rows_of(record / "rollouts.jsonl")
panel = train.puzzles(settings, 0)
steps = [kept["step"] for kept in history]
measured = [row for row in rows if "heldout_accuracy" in row]
learnt = steps[-1] >= 40  # fewer steps promise nothing
source = "your run" if record == mine else "the record in the package"
print(f"{source}: {len(panel)} puzzles at steps {steps}")

# %% [markdown]
# Every completion is parsed once: attempts, sums with their truth, verdicts
# (`aha_lib/traces.py`). `before` and `after` are the sampled ones of the base
# and of the last step.

# %%
parsed = {
    kind: [[traces.parse(text, puzzle)
            for text, puzzle in zip(kept[kind], panel, strict=True)]
           for kept in history]
    for kind in ("sampled", "greedy")
}  # fmt: skip
before, after = parsed["sampled"][0], parsed["sampled"][-1]

# %% [markdown]
# ### Check
# Do texts, puzzles and metrics belong together? The loop wrote its accuracies
# while it ran; here they come out of the texts again.

# %%
for row, greedy in zip(measured, parsed["greedy"], strict=True):
    assert row["heldout_greedy"] == np.mean([t.right for t in greedy])
for row, sampled in list(zip(measured, parsed["sampled"], strict=True))[1:]:
    assert row["heldout_accuracy"] == np.mean([t.right for t in sampled])
print("All accuracies come out of the texts again.")

# %% [markdown]
# ## What rose
# The dotted line is the control: what the base does on the same puzzles. At
# step 0 every puzzle is answered 16 times, which makes that line the surest
# of all points.

# %%
show.curve(rows)

# %% [markdown]
# One seed is an anecdote. The record has the metrics of others; each is a
# thin line here and their mean a thick one.

# %%
others = sorted(shipped.glob("seed*/metrics.jsonl"))
seeds = [train.read_rows(path) for path in others]
show.curve(*seeds)

# %%
ends = [[r for r in seed if "heldout_accuracy" in r] for seed in seeds]
names = "heldout_accuracy", "heldout_length", "heldout_backtracks"
show.table(
    ["seed", "step", *(n.removeprefix("heldout_") for n in names)],
    [[path.parent.name, row["step"], *(row[n] for n in names)]
     for path, seed in zip(others, ends, strict=True)
     for row in (seed[0], seed[-1])],
)  # fmt: skip

# %% [markdown]
# ### Check
# In every seed all three rise, and by far more than seeds differ.

# %%
gains = np.array([[seed[-1][n] - seed[0][n] for n in names]
                  for seed in ends])  # fmt: skip
assert (gains > 0).all()
if len(seeds) > 1:
    assert (gains.min(0) > gains.std(0)).all()
print(f"{len(seeds)} seeds, smallest gains:", gains.min(0).round(2))

# %% [markdown]
# ## One search, drawn
# An attempt is a row, a sum is a box; red is false, green reaches the target.
# Attempts that begin alike share their first box. This is what the numbers
# above count.

# %%
long = [t for t in after if t.right and 4 <= len(t.attempts) <= 8] or after
show.tree(long[0])

# %% [markdown]
# ## Was it there before?
# Gandhi et al. (arXiv 2503.01307) argue that RL needs something to amplify.
# So look at the base first, with rules: *verification* is a verdict that
# agrees with the number it is about, *backtracking* an attempt left for
# another. Beside them, the naive way: counting words such as "no" and "yes".

# %%
kinds = "verification", "backtracking"


def per_completion(found: list) -> list[float]:
    return [float(np.mean([getattr(f, kind) for f in found]))
            for kind in kinds]  # fmt: skip


ruled = [per_completion([traces.behaviours(t) for t in checkpoint])
         for checkpoint in parsed["sampled"]]  # fmt: skip
worded = [per_completion([traces.keyword_counts(text)
                          for text in kept["sampled"]])
          for kept in history]  # fmt: skip
show.table(
    ["per completion", *(f"{k}, {how}" for how in ("rules", "words")
                         for k in kinds)],
    [[f"step {step}", *r, *w]
     for step, r, w in zip(steps, ruled, worded, strict=True)],
)  # fmt: skip

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for i, (axis, kind) in enumerate(zip(axes, kinds, strict=True)):
    axis.plot(steps, [r[i] for r in ruled], "o-", label="rules")
    axis.plot(steps, [w[i] for w in worded], "s--", label="words")
    axis.axhline(ruled[0][i], color="black", ls=":", lw=1, label="base")
    axis.set(title=kind, xlabel="GRPO step", ylim=(0, None))
    axis.legend(frameon=False)
axes[0].set_ylabel("per completion")
plt.show()

# %% [markdown]
# Nothing here starts at zero. And words mislead twice. "Yes" is only half of
# checking: a "no" to a wrong value is as good a verdict, and the count of
# words misses it. A "no" followed by an answer all the same is no
# backtracking, but words count it: they flatter the base and so make the
# amplification look smaller than it is.
#
# ### Check

# %%
assert worded[0][1] > ruled[0][1]  # "no", and then an answer anyway
growth = {how: counts[-1][1] / counts[0][1]
          for how, counts in (("rules", ruled), ("words", worded))}
if learnt:
    assert growth["rules"] > growth["words"]
print("Backtracking has grown by",
      ", ".join(f"{x:.1f} ({how})" for how, x in growth.items()))

# %% [markdown]
# How deep did the base search? Attempts in a completion, as shares of all:

# %%
deepest = max(len(t.attempts) for t in before + after)
depth = [np.bincount([len(t.attempts) for t in side], minlength=deepest + 1)
         / len(panel) for side in (before, after)]  # fmt: skip
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for i, (share, label) in enumerate(zip(depth, ("base", "trained"),
                                       strict=True)):  # fmt: skip
    at = np.arange(deepest + 1) + 0.4 * i - 0.2
    axis.bar(at, share, 0.4, label=label)
axis.set(xlabel="attempts in a completion", ylabel="share")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Check
# Amplification, not emergence: what the trained model does often, the base
# does too, in some of its answers.

# %%
assert all(share > 0 for share in ruled[0])
assert depth[0][2:].sum() > 0  # the base searches
if learnt:
    assert depth[1][2:].sum() > 2 * depth[0][2:].sum()
searched = [share[2:].sum() for share in depth]
print("Searches: {:.0%} before, {:.0%} after".format(*searched))

# %% [markdown]
# ## More searching, or better searching?
# Accuracy is a sum over styles: share × accuracy within the style. So the
# gain splits exactly into what the *mix* brought (shares changed, each style
# as good as in the base) and what got better *within* styles.

# %%
styles = "jump", "check", "search"


def split(side: list) -> tuple[np.ndarray, np.ndarray]:
    """Of each style its share and its accuracy (0 if it does not occur)."""
    kind = np.array([traces.style(t) for t in side])
    right = np.array([t.right for t in side])
    share = np.array([(kind == style).mean() for style in styles])
    good = [right[kind == style].sum() / max(1, (kind == style).sum())
            for style in styles]  # fmt: skip
    return share, np.array(good)


(share0, good0), (share1, good1) = split(before), split(after)
mix, within = ((share1 - share0) * good0, share1 * (good1 - good0))
show.table(
    ["style", "share before", "after", "accuracy before", "after",
     "gain by mix", "gain within"],
    list(zip(styles, *(x.tolist() for x in (
        share0, share1, good0, good1, mix, within)), strict=True))
    + [["all", "", "", float(share0 @ good0), float(share1 @ good1),
        float(mix.sum()), float(within.sum())]],
)  # fmt: skip

# %% [markdown]
# Mind the word *check*. A trace with one attempt may have stopped because
# the attempt was right (a search that was lucky at once), or have answered
# anyway after a "no". The share of checks that ended in a "yes" tells which.

# %%
for name, side in (("before", before), ("after", after)):
    checks = [t for t in side if traces.style(t) == "check"]
    agreed = np.mean([t.attempts[0].verdict == "yes" for t in checks])
    print(f"{name}: {len(checks)} checks, {agreed:.0%} of them end in yes")

# %% [markdown]
# ### Check
# The two parts add up to the whole gain. (The base's searches are few among
# one sample of each puzzle: their accuracy is a rough number.)

# %%
mean = [np.mean([t.right for t in side]) for side in (before, after)]
gain = mean[1] - mean[0]
assert np.isclose(mix.sum() + within.sum(), gain)
few = round(share0[2] * len(panel))
print(f"gain {gain:.2f} = mix {mix.sum():.2f} + within {within.sum():.2f};"
      f" {few} searches in the base's sample")  # fmt: skip

# %% [markdown]
# ## The styles over the steps

# %%
show.areas(measured, "styles", styles)

# %% [markdown]
# ## Length, right and wrong apart
# "It thinks longer" is an average over two kinds of answers. In this
# language a word is a token, so length is the number of words, plus one for
# the end. (With another tokenizer, words are a fair stand-in.)

# %%
def tokens(kept: dict) -> np.ndarray:
    return np.array([len(text.split()) + 1 for text in kept["sampled"]])


lengths = [tokens(kept) for kept in history]
rights = [np.array([t.right for t in side]) for side in parsed["sampled"]]
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for wanted, label in ((True, "right"), (False, "wrong")):
    axis.plot(steps, [n[r == wanted].mean() if (r == wanted).any() else
                      np.nan for n, r in zip(lengths, rights, strict=True)],
              "o-", label=label)  # fmt: skip
axis.axhline(lengths[0].mean(), color="black", ls=":", lw=1, label="base")
axis.set(xlabel="GRPO step", ylabel="tokens", ylim=(0, None))
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# A wrong answer is long because a search that fails goes on to the end; a
# hard puzzle makes length and failure together. So "longer is better" cannot
# be read off such a plot, in either direction.

# %% [markdown]
# ## The length confound
# A trained answer costs more tokens. Would the base do as well if it could
# spend as many? Give it the most generous use of them: draw it k times and
# let an oracle pick a right answer if there is one (*pass@k*). The trained
# model gets one answer and no oracle.
#
# First pass@k itself, from n draws of which some are right, without bias
# (Chen et al., 2107.03374, eq. 1), against brute force over all subsets.

# %% [markdown]
# ### Check

# %%
from itertools import combinations

drawn = np.random.default_rng(0).random((5, 6)) < 0.3
for k in (1, 2, 4):
    brute = np.mean([[any(draws[list(some)]) for some in
                      combinations(range(6), k)] for draws in drawn])
    assert np.isclose(train.pass_at_k(drawn, k), brute), k
base = measured[0]
assert np.isclose(base["pass_at"]["1"], base["heldout_accuracy"])

# %% [markdown]
# On the budget axis: k draws of the base cost k times its mean length. The
# trained model at a budget of n tokens: the share of puzzles that it has
# solved with an answer of at most n tokens; longer ones count as wrong, as
# if they had been cut off there.

# %%
ks = np.array([int(k) for k in base["pass_at"]])
pass_at = np.array([*base["pass_at"].values()])
cost = ks * base["heldout_length"]
solved = np.sort(lengths[-1][rights[-1]])
share = np.arange(1, len(solved) + 1) / len(panel)
trained = rights[-1].mean(), lengths[-1].mean()
figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
axis.plot(cost, pass_at, "o-", label="base, best of k by an oracle")
axis.step(solved, share, where="post", label="trained, one answer cut at n")
axis.plot(trained[1], trained[0], "*", ms=13, color="black",
          label="trained, one answer, its mean length")  # fmt: skip
axis.set(xlabel="tokens for a puzzle", ylabel="puzzles solved",
         xlim=(0, 1.03 * max(cost)), ylim=(0, 1.03))  # fmt: skip
axis.legend(frameon=False, loc="lower right")
plt.show()

# %%
equal = trained[1] / base["heldout_length"]  # draws for the same tokens
rounded = ks[ks >= equal].min(initial=ks.max())
show.table(
    ["", "tokens for a puzzle", "puzzles solved"],
    [["base, one answer", cost[0], pass_at[0]],
     [f"base, best of {equal:.1f} (between the measured k)", trained[1],
      float(np.interp(equal, ks, pass_at))],
     [f"base, best of {rounded}: more tokens than the trained",
      float(rounded * cost[0]), float(pass_at[ks == rounded][0])],
     ["trained, one answer", float(trained[1]), float(trained[0])],
     [f"base, best of {ks[-1]}", cost[-1], pass_at[-1]]],
)  # fmt: skip

# %% [markdown]
# So it is not merely the tokens: the trained model *uses* them better than
# blind redrawing does, even with an oracle to pick. A search seldom tries the
# same thing again, and sees for itself when it is done. But look to the left
# too: where an answer is cut off early, redrawing short ones is no worse. And
# to the right: with enough draws the base gets to most right answers. They
# were within its reach; RL has made them likely, not possible.
#
# ### Check
# Between the measured k, pass@k is taken as straight lines.

# %%
redrawn = float(np.interp(equal, ks, pass_at))
print(f"At {trained[1]:.0f} tokens: trained {trained[0]:.2f}, "
      f"base {redrawn:.2f}, best of {ks[-1]} {pass_at[-1]:.2f}")
assert (np.diff(pass_at) > 0).all()
if learnt:
    assert trained[0] > pass_at[ks == rounded][0] > redrawn
    assert (solved <= cost[0]).sum() / len(panel) < pass_at[0]
    assert pass_at[-1] > 0.8 * trained[0]

# %% [markdown]
# ## Puzzle by puzzle
# Blue: solved greedily at that checkpoint. Rows are sorted by the step at
# which a puzzle is first solved. Look for rows that go dark and light again:
# a solved puzzle is not solved for good.

# %%
grid = np.array([[t.right for t in side] for side in parsed["greedy"]]).T
first = np.where(grid.any(1), grid.argmax(1), len(steps))
order = np.lexsort((-grid.sum(1), first))
figure, axis = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
axis.imshow(grid[order], aspect="auto", cmap="Blues", vmax=1.3,
            interpolation="nearest")  # fmt: skip
axis.set_xticks(range(len(steps)), steps)
axis.set(xlabel="GRPO step", ylabel="held-out puzzles")
plt.show()

# %%
when = Counter(first.tolist())
lost = (grid[:, :-1] & ~grid[:, 1:]).any(1)
show.table(
    ["first solved at step", "puzzles"],
    [[steps[i] if i < len(steps) else "never", when[i]]
     for i in sorted(when)] + [["solved, and lost later", int(lost.sum())]],
)  # fmt: skip

# %% [markdown]
# ## Which puzzles?
# Difficulty has a measure that knows no model: in how many ways the puzzle
# can be solved (`countdown.solve`). A jump succeeds in proportion to the
# ways; a search should depend less on them.

# %%
bound = PUZZLES[settings.puzzles].get("bound")
ways = np.array([len(countdown.solve(p, bound)) for p in panel])
groups = {"1": ways == 1, "2": ways == 2, "3–4": (ways > 2) & (ways < 5),
          "5 or more": ways > 4}  # fmt: skip
show.table(
    ["solutions", "puzzles", "solved before", "solved after"],
    [[name, int(of.sum()), float(rights[0][of].mean()),
      float(rights[-1][of].mean())]
     for name, of in groups.items() if of.any()],
)  # fmt: skip

# %% [markdown]
# ## How it fails
# *Slipped*: a false sum decided it. *Claimed*: "yes" to a wrong value. *Gave
# up*: no claim of success. A verifier that pays for right answers alone also
# pays for a slip that happens to end well, so watch the truth of the sums.

# %%
show.areas(measured, "outcomes", ("gave up", "claimed", "slipped", "right"))

# %%
def faults(side: list) -> list:
    truths = [c.true for t in side for c in t.claims if c.true is not None]
    tried = [a for t in side for a in t.attempts]
    return [len(truths), float(np.mean(np.logical_not(truths))),
            float(np.mean([a.repeated for a in tried])),
            sum(t.found_then_abandoned for t in side)]  # fmt: skip


show.table(
    ["step", "sums", "false", "attempts repeated", "found, then abandoned"],
    [[step, *faults(side)]
     for step, side in zip(steps, parsed["sampled"], strict=True)],
)  # fmt: skip

# %% [markdown]
# ## Where words mislead
# Rules err too, and one should know how often. Traces of the tiny language,
# of free text and of Gemma's own were labelled by hand. *Precision*: how many
# of those found are there. *Recall*: how many of those there are found. The
# set lies with the tests, so this cell needs a checkout.

# %%
where = pathlib.Path(aha_lib.__file__).parent.parent / "tests" / "data"
labelled = train.read_rows(where / "labelled_traces.jsonl")


def score(find, name: str) -> list[float]:
    """Precision and recall of a way to find the behaviour `name`."""
    seen = np.array([getattr(find(row), name) > 0 for row in labelled])
    there = np.array([row[name] for row in labelled])
    hits = (seen & there).sum()
    return [float(hits / max(1, seen.sum())), float(hits / there.sum())]


def ruled_of(row):
    puzzle = countdown.Puzzle(tuple(row["numbers"]), row["target"])
    return traces.behaviours(traces.parse(row["completion"], puzzle))


def worded_of(row):
    return traces.keyword_counts(row["completion"])


# %%
four = "verification", "backtracking", "subgoals", "backward"
scores = {name: score(ruled_of, name) + score(worded_of, name)
          for name in four if labelled}  # fmt: skip
show.table(
    ["", "rules: precision", "recall", "words: precision", "recall"],
    [[name, *found] for name, found in scores.items()],
)

# %% [markdown]
# ### Check

# %%
# The weakest rule is that of working backward: it misses much.
for name, (*rules, right, found) in scores.items():
    assert rules[0] > right and rules[1] > found, name
    assert rules[0] > 0.8, name
print(f"{len(labelled)} labelled traces: the rules are ahead of the words.")

# %% [markdown]
# ## Read them
# Numbers can hide nonsense; the texts cannot. Three puzzles that the trained
# model solves and the base does not. Hover over a sum for its value.

# %%
texts = history[0]["sampled"], history[-1]["sampled"]
found = show.select(panel, *texts, "solved after but not before")
views = [show.side_by_side(panel[i], {
    f"step {steps[0]}": texts[0][i], f"step {steps[-1]}": texts[1][i],
}) for i in found]  # fmt: skip
display(*views[:3])

# %% [markdown]
# The explorer lets you choose: checkpoints, a filter, a puzzle. The button
# writes all puzzles of the filter to `traces.html`, to keep or to send. (It
# needs a running kernel; on a page of GitHub you see only its name.)

# %%
show.explorer(panel, history)

# %% [markdown]
# ## What is shown here, and what is not
# - **Shown:** a reward for right answers made a seldom behaviour usual, in
#   every seed; the gain splits into mix and skill as in the table; at equal
#   tokens the comparison came out as printed above.
# - **Not shown:** that RL invents behaviours. Every one was in the base, and
#   was in its corpus because we put it there (notebook 05).
# - The base's searches are few; the split depends on their accuracy, and so
#   it has an error of several points. Seeds share the base and the panel: the
#   spread over seeds is that of training alone.
# - Rules look at words and structure, not at thoughts. A "no" on the page is
#   not a doubt in the machine.
#
# ## Exercises
# 1. Compare `greedy` instead of `sampled` in the split of the gain. What
#    happens to the part of the mix?
#
# <details><summary>Answer</summary>
#
# The greedy base nearly always jumps: the searches' accuracy before is 0 by
# convention, so nearly all of the gain moves into "within". The split is
# only as good as the samples of the rarest style.
# </details>
#
# 2. Filter "found then abandoned" in the explorer. What do you find?
#
# <details><summary>Answer</summary>
#
# Attempts that reach the target, and an answer that is another expression:
# an error of copying. Or none, because the limit of tokens cut it off.
# </details>
#
# ## Summary
# The rules live in `aha_lib/traces.py`, the figures in `aha_lib/show.py`.
# This was the last notebook: change `preset` and run them with Gemma.
