# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · The Countdown environment
#
# **What is the task, and what exactly earns a reward?** Reinforcement
# learning gets what it pays for, not what we meant. So before any model is
# trained, this notebook takes the game and its referee apart, and then tries
# to cheat. Words of the field are explained in the
# [Glossary](../docs/glossary.md).
#
# | preset | machine | minutes |
# |---|---|---|
# | `tiny` | two CPU cores | under 1 |
# | any other | the same: no model is loaded here | under 1 |
#
# **You will see**
#
# 1. that the solver finds as many solutions as brute force;
# 2. why four numbers are much harder than three;
# 3. that no held-out puzzle shares its numbers with a training puzzle;
# 4. what a reward for the form of an answer teaches;
# 5. that a well-known scorer pays in full for some answers that break the
#    rules and misses some right ones, and that ours judges the same answers
#    as the rules say.

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
# One word chooses between a laptop and a TPU. Here it chooses which puzzles
# are drawn and how they are worded.

# %% tags=["parameters"]
preset = "tiny"
overrides = {}

# %%
import dataclasses

from aha_lib.presets import PUZZLES, SETTINGS

settings = dataclasses.replace(SETTINGS[preset], **overrides)
ranges = PUZZLES[settings.puzzles]
print("puzzles: ", settings.puzzles, ranges)
print("template:", settings.template)

# %% [markdown]
# `numbers` is how many numbers a puzzle has, `low` to `high` where they come
# from. With a `bound` a puzzle has a solution whose every step is a whole
# number from 0 to that bound. A small model can write such arithmetic.
#
# ## 1. One puzzle, by hand
#
# Take 20, 16 and 4. Make 40 from them, using each exactly once, with
# `+ - * /` and parentheses. Try it before you look.

# %%
from aha_lib.tasks.countdown import Puzzle, solve

puzzle = Puzzle((20, 16, 4), 40)
solve(puzzle)

# %% [markdown]
# Three ways of adding them up, and no other way. `a + b` and `b + a` count
# as one solution, but `(20 + 16) + 4` and `(20 + 4) + 16` are two: they are
# different *paths* to the target, and a model that searches walks paths.
#
# Now the corner cases. What does the solver return for a puzzle that cannot
# be solved, for one whose numbers repeat, and for one whose only path leaves
# the whole numbers?

# %%
for corner in (
    Puzzle((1, 1, 1), 50),
    Puzzle((7, 7, 7), 7),
    Puzzle((3, 3, 8, 8), 24),
):
    print(corner, "->", solve(corner))

# %% [markdown]
# The last one is a classic: `8 / 3` is no whole number, and still the end
# result is exactly 24. Exactly? Ask the computer's usual arithmetic:

# %%
from fractions import Fraction

print("floating point:", 8 / (3 - 8 / 3))
print("fractions:     ", Fraction(8) / (3 - Fraction(8, 3)))

# %% [markdown]
# A referee that computes in floating point needs a tolerance, and every
# tolerance is too wide for some answers or too narrow for others. The solver
# and the verifier here compute with exact fractions, so they need none.
#
# ### Check: the solver against brute force
#
# With three numbers there are 3! orders, 4 x 4 signs and two ways to set the
# parentheses: 192 expressions. The cells below write them all. Of those that
# differ only by a swap under `+` or `*` they keep one. The puzzles are those
# of the tiny preset, whatever yours is.

# %%
import itertools
import operator

SIGNS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def join(left, sign, right):
    """Two (expression, value) pairs joined; None divides by zero."""
    if left is None or right is None or (sign == "/" and right[1] == 0):
        return None
    sides = [left[0], right[0]]
    if sign in "+*":
        sides.sort(key=str)  # the two orders become the same
    return (sign, *sides), SIGNS[sign](left[1], right[1])


# %%
def brute_force(puzzle):
    """All different expressions of three numbers that hit the target."""
    found = set()
    for order in itertools.permutations(puzzle.numbers):
        a, b, c = ((n, Fraction(n)) for n in order)
        for s, t in itertools.product(SIGNS, repeat=2):
            found.add(join(join(a, s, b), t, c))
            found.add(join(a, s, join(b, t, c)))
    return {e[0] for e in found - {None} if e[1] == puzzle.target}


# %%
from aha_lib.tasks.countdown import generate

three = dataclasses.replace(PUZZLES["tiny"], bound=None)
some = [generate(1, i, three) for i in range(300)]
some += [Puzzle((7, 7, 7), 7), Puzzle((1, 1, 1), 50), Puzzle((6, 6, 2), 3)]
assert [len(solve(p)) for p in some] == [len(brute_force(p)) for p in some]
print(f"{len(some)} puzzles: as many solutions as by brute force")

# %% [markdown]
# ## 2. An endless supply
#
# `generate(seed, index)` computes puzzle number `index` on demand; nothing
# is stored. The same seed and index give the same puzzle, on every machine.
# A training run needs no data files. To draw its puzzles, a run that is
# resumed at step 57 needs only its seed and that number.

# %%
for index in range(4):
    train = generate(0, index, ranges)
    test = generate(0, index, ranges, held_out=True)
    print(f"train: {str(train):38} held out: {test}")

print("puzzle 3 once more:", generate(0, 3, ranges) == train)

# %% [markdown]
# The target is drawn among those that the numbers *can* reach, so there is
# always a solution. Look at what comes out: which targets are common, and
# how many solutions does a puzzle have?

# %%
import matplotlib.pyplot as plt
import numpy as np

panel = [generate(0, i, ranges, held_out=True) for i in range(1000)]
counts = [len(solve(p, ranges.bound)) for p in panel[:500]]
values, frequencies = np.unique(counts, return_counts=True)

# %%
fig, (a, b) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
a.hist([p.target for p in panel], bins=range(10, 105, 5), rwidth=0.9)
a.set(xlabel="target", ylabel="puzzles", title="1,000 puzzles' targets")
b.bar(range(len(values)), frequencies / len(counts))
b.set_xticks(range(len(values)), values)
b.set(
    xlabel="solutions of the puzzle",
    ylabel="share of puzzles",
    title="How many ways lead to the target",
)
plt.show()

# %% [markdown]
# With the tiny preset small targets are more common than large ones, and
# most puzzles have one to three solutions. How far does *guessing* get? The
# next cell draws two numbers and a sign at random, until one number is left.
# What share of such blind guesses is right?

# %%
import random


def guess(puzzle, rng, bound=None):
    """A random expression of all numbers, values kept in bounds."""
    parts = [(str(n), Fraction(n)) for n in puzzle.numbers]
    while len(parts) > 1:
        (x, a), (y, b) = pair = rng.sample(parts, 2)
        sign = rng.choice("+-*/")
        value = SIGNS[sign](a, b) if b or sign != "/" else None
        legal = value is not None and (
            bound is None or value in range(bound + 1)
        )
        if legal:
            for part in pair:
                parts.remove(part)
            parts.append((f"( {x} {sign} {y} )", value))
    return parts[0]


# %%
rng = random.Random(0)
bound = ranges.bound
chance = [
    np.mean([guess(p, rng, bound)[1] == p.target for _ in range(100)])
    for p in panel[:300]
]
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.hist(chance, bins=np.arange(0, 0.62, 0.02), rwidth=0.9)
mean = np.mean(chance)
plt.axvline(mean, color="C1", label=f"mean {mean:.2f}")
plt.xlabel("chance that a random expression is right")
plt.ylabel("puzzles")
plt.legend()
plt.show()

# %% [markdown]
# That mean is the score of a player who never looks at the target. A model
# that merely *writes* well-formed answers starts here. Whatever it scores
# above that has to be earned by arithmetic and search.
#
# ## 3. What makes four numbers hard
#
# The task of TinyZero has three or four numbers up to 99. One number more
# does not sound like much. Count, whatever the preset is: how many different
# expressions are there, how many of them hit, and how many attempts does a
# search take that goes through them in a fixed order and never repeats one?
#
# Values stay whole numbers from 0 to 200. (The last rows say how many
# puzzles, drawn without a bound, have a solution within one.) The search is
# the one that the package writes into its training texts
# (`aha_lib/tasks/worked.py`): it goes depth-first through the operations,
# begins at a random one, and chooses the last one of an attempt so that it
# comes closest to the target.

# %%
import math

from aha_lib.tasks import worked

hard = PUZZLES["tinyzero-200"]


def expressions(pieces):
    """All different expressions of some numbers, values kept in bounds."""
    if len(pieces) == 1:
        return {pieces[0].made}
    ordered = sorted(pieces, key=lambda piece: -piece.value)
    found = set()
    for step in worked.steps(ordered, hard.bound):
        found |= expressions([step.result, *step.rest])
    return found


def search(p, rng):
    """Attempts and tokens of a search that makes no mistake."""
    rule = worked.Rule(bound=hard.bound)
    words = worked.trace(p, "search", rng, rule).split()
    attempts = words.count("no") + words.count("yes")
    return attempts, len(words) + 1  # a token a word, and the end


# %%
def draw(name, count, puzzles=150):
    """Held-out puzzles of a range, with so many numbers."""
    kind = dataclasses.replace(PUZZLES[name], numbers=count)
    return [generate(0, i, kind, held_out=True) for i in range(puzzles)]


def facts(count):
    """Rows of the table, of puzzles with so many numbers."""
    some, free = draw("tinyzero-200", count), draw("tinyzero", count)
    rng = random.Random(0)
    attempts = np.array([search(p, rng)[0] for p in some])
    different = [len(expressions(worked.given(p))) for p in some]
    solutions = [len(solve(p, hard.bound)) for p in some]
    found = {
        "multisets of numbers": f"{math.comb(98 + count, count):,}",
        "different expressions, mean": f"{np.mean(different):.0f}",
        "solutions, mean": f"{np.mean(solutions):.1f}",
        "hit by the first attempt": f"{np.mean(attempts == 1):.2f}",
        "attempts to the hit, mean": f"{attempts.mean():.0f}",
        "a tenth needs more than": f"{np.quantile(attempts, 0.9):.0f}",
    }
    for bound in (100, 200, 500, 1000):
        share = np.mean([bool(solve(p, bound)) for p in free])
        found[f"solvable within 0 to {bound:,}"] = f"{share:.2f}"
    return found


# %%
from aha_lib.look import show

of_three, of_four = facts(3), facts(4)
show.table(
    ["of 150 puzzles", "3 numbers", "4 numbers"],
    [[name, of_three[name], of_four[name]] for name in of_three],
)

# %% [markdown]
# A fourth number multiplies the expressions by about ten and the solutions
# by less than three. The rest follows. With three numbers four attempts are
# enough for nine puzzles of ten, so *going on* after a miss is most of what
# a model that calculates has to learn. With four, a search takes more than
# twenty attempts on average, and *where to look first* begins to matter.
#
# A model also has a limit of tokens. How many puzzles does the search solve
# within it? A word is a token here, as in the language of the small models.

# %% _kg_hide-input=true cellView="form" jupyter={"source_hidden": true}
# @title Draws the puzzles solved within so many tokens
plt.figure(figsize=(8, 3), layout="constrained")
rng = random.Random(0)
for count, style in ((3, "C0-"), (4, "C1--")):
    tokens = [search(p, rng)[1] for p in draw("tinyzero-200", count, 300)]
    shares = np.arange(1, len(tokens) + 1) / len(tokens)
    plt.step(np.sort(tokens), shares, style, label=f"{count} numbers")
for limit in (200, 400, 1024):
    plt.axvline(limit, color="black", lw=0.8, ls=":")
    plt.text(limit, 0.02, f" {limit:,}", fontsize=8)
plt.xscale("log")
plt.xlabel("limit of tokens")
plt.ylabel("share of puzzles solved")
plt.legend(loc="upper left")
plt.show()

# %% [markdown]
# On 512 held-out puzzles with four numbers this search, carried out without
# a mistake, solves 0.50 within 200 tokens, 0.68 within 400 and 0.93 within
# 1,024; with three numbers it solves all within 200. (Recorded in
# `tests/benchmarks/nulls.json`.) These are the numbers to compare a trained
# model with. A model that solves more within the same limit looks in a
# better order, or spends fewer tokens on an attempt. A search that starts
# from the given numbers at each attempt, without going back to a partial
# result, solves 0.43, 0.56 and 0.73.
#
# ## 4. What is held out
#
# To know whether a model learnt to search, it has to be tested on numbers
# it has never trained on. An ordinary random split does not give that for
# the tiny puzzles: the same three numbers come up again and again with
# another target, and a model can remember what they make. With numbers up to
# 99 it is rarer.

# %%
for name in ("tiny", "tinyzero"):
    drawn = random.Random(0)
    span = range(PUZZLES[name].low, PUZZLES[name].high + 1)
    rows = [tuple(sorted(drawn.choices(span, k=3))) for _ in range(1856)]
    naive_train, naive_test = set(rows[:1600]), rows[1600:]
    shared = np.mean([row in naive_train for row in naive_test])
    print(f"{name}: {math.comb(len(span) + 2, 3):,} multisets of three;")
    print(f"  {shared:.0%} of a random test split's are in its training")

# %% [markdown]
# So the split goes by the *multiset*: the sorted numbers are hashed, a tenth
# of all hashes is held out, and neither order nor target matter.

# %%
from aha_lib.tasks.countdown import is_held_out

print(is_held_out((20, 16, 4)), is_held_out((4, 20, 16)))
every = list(itertools.combinations_with_replacement(range(1, 21), 3))
held = [is_held_out(numbers) for numbers in every]
print(f"{np.mean(held):.1%} of the {len(every):,} triples of 1 to 20")

# %% [markdown]
# ### Check: nothing leaks
#
# Puzzles of two seeds: does any multiset occur in both splits?


# %%
def multisets(**kind):
    """Sorted numbers of 3,000 puzzles: another seed for each split."""
    return {
        tuple(sorted(generate(seed, i, ranges, **kind).numbers))
        for seed in (0, 1)
        for i in range(1500)
    }


# %%
in_train, in_test = multisets(held_out=False), multisets(held_out=True)
assert not in_train & in_test
print(f"{len(in_train)} and {len(in_test)} multisets, none in common")

# %% [markdown]
# ## 5. How the question is put
#
# The rules are the same for every model, the wording is not. The tiny model
# knows 114 words, of which 101 are the integers from 0 to 100, so its prompt
# is a formula. A Gemma that was pre-trained on the web gets a page that looks
# like the beginning of a conversation.

# %%
import html

from IPython.display import HTML, display

from aha_lib.tasks.countdown import prompt

# %%
cells = "".join(
    f"<td style='vertical-align:top;text-align:left'><b>{name}</b>"
    "<pre style='white-space:pre-wrap;max-width:30em'>"
    f"{html.escape(prompt(puzzle, name))}</pre></td>"
    for name in ("tiny", "base")
)
display(HTML(f"<table><tr>{cells}</tr></table>"))

# %% [markdown]
# The base prompt ends in an open `<think>`. Thinking is the likely
# continuation of such a text. Beyond "step by step" the prompt does not tell
# the model *how* to think. The example answer `(1 + 2) / 3` stands in the
# prompt and not in the completion, and only the completion is judged.
#
# In the tiny language each number is one token, so that arithmetic is about
# numbers and not about spelling them:

# %%
from aha_lib.model.tokenizer import Tokenizer, tiny_model

tokenizer = Tokenizer(tiny_model())
text = prompt(puzzle, "tiny")
ids = tokenizer.encode(text)
print(ids, "<-", text)

# %% [markdown]
# ## 6. The verifier, step by step
#
# A completion goes down a ladder and stops at the first rung that breaks:
#
# 1. Is there a complete `<answer> ... </answer>`? The *last* one counts.
#    Else 0.
# 2. Is what is in it a well-formed expression? Else 0.
# 3. Does it use every number exactly once? Else 0.1.
# 4. Does it equal the target? Else 0.1; if so, 1.
#
# Each line below gets at least as far as the one before.

# %%
from aha_lib.tasks.countdown import reward

ladder = [
    "20 + 16 + 4 = 40 yes",
    "<answer> I give up </answer>",
    "<answer> ( 20 + 16 </answer>",
    "<answer> 20 + 20 </answer>",
    "<answer> 20 + 16 - 4 </answer>",
    "<answer> 20 + 16 - 4 </answer> no <answer> 20 + 16 + 4 </answer>",
]
for completion in ladder:
    judged = reward(completion, puzzle)
    print(f"{judged.value}  {completion}\n     {judged.reason}")

# %% [markdown]
# How is an expression read without handing it to Python? By Dijkstra's
# *shunting yard*, one pass with two lists (`to_postfix` in the package
# explains it). Nothing that a model has written is ever run. Answers are
# limited to 300 characters, so that none can be slow. Values are exact
# fractions. Tests compare the verifier with Python's own parser on valid,
# mutated and random answers, and throw strings of all Unicode at it: it
# raises no exception, and pays in full only what is right.
#
# ### What does the 0.1 teach?
#
# DeepSeek's R1-Zero, the model behind this line of work, has a reward of two
# parts: one for a right result, and one for the form, the thinking between
# `<think>` and `</think>`. Both are rules; no trained model judges, since
# such a judge can be deceived. Neither part says how to think. TinyZero pays
# 0.1 for the form and 1 for a right answer, and so do we.
#
# The 0.1 changes what is learnt, as three groups of four answers show. An
# update sees no rewards but *advantages*: the reward minus the group's mean,
# divided by the group's standard deviation (notebook 04).

# %%
GROUPS = {
    "none right, half in form": [0.1, 0.1, 0, 0],
    "none right, all in form": [0.1, 0.1, 0.1, 0.1],
    "one right, one without form": [1, 0.1, 0.1, 0],
}


def advantages(rewards):
    rewards = np.array(rewards, float)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def line(values):
    return "  ".join(f"{v:.1f}" for v in values)


rows = []
for name, rewards in GROUPS.items():
    without = [r if r == 1 else 0 for r in rewards]
    both = line(advantages(rewards)), line(advantages(without))
    rows.append([name, line(rewards), *both])
show.table(["group", "reward", "advantage", "without the 0.1"], rows)

# %% [markdown]
# Where no answer is right, all would earn the same without the 0.1, and the
# model would learn nothing. With it, the form is learnt first. Look at the
# size, too: in the first group a difference of 0.1 is pushed as hard as a
# difference of 1 would be, because the group's own spread is the unit. So a
# small reward can be a large push. Once all answers have the form the 0.1
# teaches nothing more, as in the second group. The third shows the 0.1
# beside a right answer: there 0.1 and 0 have nearly the same advantage.
#
# So a form reward matters for a base that does not have the form. The tiny
# base has it: a recorded run of one seed without the 0.1 ends at the same
# accuracy, 0.96.

# %% [markdown]
# ## 7. How to cheat it
#
# [TinyZero](https://github.com/Jiayi-Pan/TinyZero) made this task popular.
# Its models learnt with its scorer. The scorer also has holes, and they
# teach what a verifier has to be. The cells below rebuild its behaviour
# *safely*: the original hands the model's text to Python's `eval`; they walk
# the syntax tree instead.

# %%
import ast

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


# %%
def python_value(node):
    """What Python makes of an arithmetic expression, without running it."""
    value = getattr(node, "value", None)
    if isinstance(value, int | float):
        return value
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](python_value(node.operand))
    if not isinstance(node, ast.BinOp):
        raise ValueError("not arithmetic")
    left, right = python_value(node.left), python_value(node.right)
    if isinstance(node.op, ast.Pow):
        if abs(right) * math.log2(abs(left) + 1) > 10_000:
            raise OverflowError("power too large")
    return OPERATORS[type(node.op)](left, right)


# %%
import re


def tinyzero(completion, puzzle):
    """What TinyZero's `compute_score` pays, quirks included.

    Answers over 300 characters and powers over 10,000 bits, which could
    hang the original, get 0.1.
    """
    last_line = completion.split("\n")[-1]
    tags = [
        part
        for part in last_line.split("</answer>")[:-1]
        if "<answer>" in part
    ]
    if not tags:
        return 0.0
    text = tags[-1].partition("<answer>")[2].strip()
    if len(text) > 300 or not re.fullmatch(r"[\d+\-*/().\s]+", text):
        return 0.1
    used = sorted(map(int, re.findall(r"\d+", text)))
    if used != sorted(puzzle.numbers):
        return 0.1
    try:
        value = python_value(ast.parse(text, mode="eval").body)
        return 1.0 if abs(value - puzzle.target) < 1e-5 else 0.1
    except Exception:  # as in the original: whatever Python stumbles over
        return 0.1


# %%
def answer(text):
    return f"<answer> {text} </answer>"


# %% [markdown]
# TinyZero's scorer takes the runs of digits for the numbers, and lets Python
# decide what the text means. The tricks below use the difference between
# these two readings. Compare the two columns of rewards.

# %%
EXPLOITS = [  # answer, numbers, target, the trick
    ("2.50*2", (2, 50, 2), 5, "2.50 counts as the numbers 2 and 50"),
    ("1/.5", (1, 5), 2, "a half for the number 5"),
    ("2**3", (2, 3), 8, "a power: not one of the four signs"),
    ("7//2", (7, 2), 3, "division that drops the remainder"),
    ("--1+2*3", (1, 2, 3), 7, "signs in front: -(-1)"),
    ("2 + 3", (2, 3), 5, "(an honest answer)"),
]
print(f"{'answer':10} {'target':>6} {'TinyZero':>9} {'ours':>5}  trick")
for text, numbers, target, trick in EXPLOITS:
    p, said = Puzzle(numbers, target), answer(text)
    theirs, ours = tinyzero(said, p), reward(said, p).value
    print(f"{text:10} {target:6} {theirs:9} {ours:5}  {trick}")

# %% [markdown]
# All five tricks are paid in full by TinyZero's scorer. A model under RL may
# find such tricks, because each pays for a puzzle that the model cannot
# solve. There are errors in the other direction too. Of the answers below
# the first four are right and the others are not.

# %%
said = "20 + 16 + 4"
MISSES = [
    (answer(said), "right"),
    (answer(said) + "\n", "right, then a newline"),
    (f"<answer>\n{said}\n</answer>", "right, tag over three lines"),
    (answer(said + " = 40"), "right, with the result"),
    (answer("20 + 16 + 4 = 41"), "right, but claims another result"),
    (answer("dunno"), "junk in the tag"),
    (answer("50**60**70"), "a number too long to compute"),
]
print("TinyZero  ours")
for completion, kind in MISSES:
    theirs = tinyzero(completion, puzzle)
    print(f"{theirs:8} {reward(completion, puzzle).value:5}  {kind}")

# %% [markdown]
# TinyZero's scorer pays nothing, or only 0.1, for three of the right
# answers, and 0.1 for junk. The last answer was stopped by the numbers it
# used. Had the puzzle been (50, 60, 70), the original would have asked
# Python to compute it. How long would the result be?

# %%
exponent = 60**70
digits = exponent * math.log10(50)
print(f"50**60**70 has about {digits:.0e} digits")
bomb = Puzzle((50, 60, 70), 50)
print("ours:", reward(answer("50**60**70"), bomb).reason)

# %% [markdown]
# ### What would a lazy policy earn?
#
# To see what a reward invites, let it pay *players* who do not solve
# anything, and one who does. Which of them earn more than they should?


# %%
def policies(p, rng):
    """Completions for a puzzle by players of various kinds."""
    sure = guess(p, rng)[0]
    return {
        "says nothing": "",
        "junk in the tag": answer("?"),
        "copies the example": answer("( 1 + 2 ) / 3"),
        "adds everything": answer(" + ".join(map(str, p.numbers))),
        "one random guess": answer(sure),
        "20 guesses, 20 tags": " ".join(
            answer(guess(p, rng)[0]) for _ in range(20)
        ),
        "20 guesses, one tag": answer(
            " or ".join(guess(p, rng)[0] for _ in range(20))
        ),
        "solves it": answer(solve(p)[0]),
    }


# %%
shoppers = [(p, policies(p, rng)) for p in panel[:200]]
names = list(shoppers[0][1])
theirs = [np.mean([tinyzero(c[n], p) for p, c in shoppers]) for n in names]
ours = [np.mean([reward(c[n], p).value for p, c in shoppers]) for n in names]

# %%
fig, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
y = np.arange(len(names))
for shift, pay, label in ((-0.2, theirs, "TinyZero"), (0.2, ours, "ours")):
    bars = axes.barh(y + shift, pay, 0.4, label=label)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
axes.set_yticks(y, names)
axes.invert_yaxis()
axes.set(xlabel="mean reward over 200 puzzles", xlim=(0, 1.1))
axes.legend()
plt.show()

# %% [markdown]
# - Junk in the tag earns nothing from our scorer: the 0.1 is paid for an
#   expression only.
# - Twenty guesses in twenty tags pay no better than one guess: the last tag
#   counts. If *any* right tag were enough, this would be the best policy for
#   a model that cannot calculate.
# - Adding everything is right now and then, and so is a guess. That is luck,
#   and both scorers pay for it alike.
# - Solving is worth several times as much as any way of not solving.
#
# ### Check: cheats are not paid, right answers are

# %%
cheats = [(answer(t), Puzzle(n, target)) for t, n, target, _ in EXPLOITS[:-1]]
honest = [(completion, puzzle) for completion, _ in MISSES[:4]]
judges = {"TinyZero": tinyzero, "ours": lambda c, p: reward(c, p).value}
paid = {
    name: [[judge(c, p) for c, p in side] for side in (cheats, honest)]
    for name, judge in judges.items()
}
assert paid["ours"] == [[0.0] * 5, [1.0] * 4]
print("paid to cheats, and to right answers:", paid)

# %% [markdown]
# ## 8. Strict or forgiving?
#
# TinyZero's prompt says that each number "can only be used once", but its
# scorer demands all of them. Our prompt says "exactly once", and our scorer
# demands that. With `forgiving=True` it judges by the letter of TinyZero's
# wording: *at most* once.

# %%
shorter = Puzzle((20, 16, 4), 36)
said = answer("20 + 16")
strict, lax = (reward(said, shorter, forgiving=f) for f in (False, True))
print("strict:   ", strict.value, strict.reason)
print("forgiving:", lax.value, lax.reason)

# %% [markdown]
# Does it matter? Count the puzzles that can be solved with a number left
# over: they become easier without the model getting any better.


# %%
def easy(p):
    """Whether some, but not all, of the numbers reach the target."""
    if p.target in p.numbers:  # a bare number is an expression too
        return True
    some = [
        c
        for k in range(2, len(p.numbers))
        for c in itertools.combinations(p.numbers, k)
    ]
    return any(solve(Puzzle(c, p.target)) for c in some)


# %%
easier = [p for p in panel[:500] if easy(p)]
print(f"{len(easier) / 500:.1%} of the puzzles")

# %% [markdown]
# Training and evaluation in this project are strict throughout. When you
# compare figures from different projects, ask first which of the two rules
# each follows.
#
# ## Exercises
#
# **1.** With the numbers 2, 3 and 7 and the target 1, find three answers
# that TinyZero pays in full and we do not. Is there an honest one?
#
# <details><summary>Answer</summary>
#
# `7 // 2 // 3`, `7 - 2 * +3` and `7. - 2 * 3` will do: remainders dropped,
# a sign in front of a number, a decimal point. The honest one is
# `7 - 2 * 3`. Try them with `tinyzero(answer(...), Puzzle((2, 3, 7), 1))`.
#
# </details>
#
# **2.** Which held-out puzzles are hard even for somebody who can calculate?
# List those of `panel[:300]` that have a single solution and whose `chance`
# is 0 in the hundred guesses above.
#
# <details><summary>Answer</summary>
#
# ```python
# [(p, solve(p, bound)) for p, c in zip(panel, chance)
#  if c == 0 and len(solve(p, bound)) == 1]
# ```
#
# With the tiny puzzles three are left, `( 19 - 10 ) * 7` = 63 among them:
# each needs a product or a quotient at just the right place.
#
# </details>
#
# ## Summary
#
# - A puzzle is a function of a seed and an index; a tenth of the multisets
#   of numbers is never trained on.
# - The verifier parses and never runs; it is exact, bounded and total.
# - Training can deliver whatever the reward pays for, so the reward is
#   tested before any model is trained.
#
# All of this lives in
# [`aha_lib/tasks/countdown.py`](../aha_lib/tasks/countdown.py), in pure
# Python. Next: [03_sampler](03_sampler.ipynb), in which a model answers.
