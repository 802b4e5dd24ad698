# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The full run: a small Gemma learns to search
#
# **The question:** what happens to the answers of a language model that is
# rewarded for being right, and for little else?
#
# A right answer earns 1. A wrong but well-formed one earns 0.1. A malformed
# answer earns 0, and so does one that the limit of tokens cuts off. The
# reward has no term for a check, a "no" or a second try. It has no term for
# length either, but an answer that is too long is cut off and earns nothing.
# [DeepSeek-R1-Zero](https://arxiv.org/abs/2501.12948) reported that under
# such a reward answers grow longer and check themselves;
# [TinyZero](https://github.com/Jiayi-Pan/TinyZero) showed it on Countdown
# with small models. ([Glossary](../docs/glossary.md))
#
# **The algorithm** is notebook 04's: *one* update from every batch, and no KL
# term. So every ratio is 1 when it is used, and the clip never acts
# (`clip_fraction` is 0 in every row). The gradient is then that of REINFORCE:
# each token's log-probability times its answer's advantage, averaged over all
# tokens of the batch. The advantage is the reward less the group's mean,
# divided by the group's deviation. None of notebook 09's published recipes is
# exactly this. The last three presets below add a small KL term, as TinyZero
# does. Runs with more updates, where the clip acts, are near the end.
#
# The same file is also a script. `python notebooks/05_train.py --out
# runs/mine --steps 100` trains without a browser and writes `metrics.jsonl`,
# `curve.png` and checkpoints into the folder. Called again, it goes on from
# the last checkpoint.
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | two CPU cores | about three minutes to the whole curve |
# | `gemma3-270m-cpu` | two CPU cores | Gemma 3 270M: a cold start, then GRPO |
# | `gemma3-270m-short` | an accelerator | the same, 512 answers a step |
# | `tinyzero-small` | two CPU cores | TinyZero's own task, about an hour |
# | `tinyzero-270m`, `-1b`, `-2b` | a TPU | that task, after a cold start |
# | `gemma3-270m`, `gemma3-1b`, `gemma2-2b` | a TPU | that task, GRPO alone |
#
# TinyZero's task is three or four numbers from 1 to 99. The small model for it
# has 1.46 million parameters and comes with the package, as the tiny one does.
#
# A **cold start** is supervised training on worked puzzles before the first
# reward. The presets that have one do it below, as the first part of the run.
# The last three presets have none: they reward the base as it is. They first
# sample the answers of one step. If no group has both right and wrong
# answers, the run ends there with a message, since it could learn nothing but
# the form. Expect that of `gemma3-270m`: its recorded run without a cold
# start has no right answer (notebook 07).
#
# With the preset `tiny` you will see (the last two are shown with the tiny
# model whatever the preset is):
#
# 1. held-out accuracy rises far above the base's;
# 2. responses get longer and try again more often, though the reward has no
#    term for either;
# 3. searches, which are answers that go on after a "no", are rare at first
#    and become the usual answers;
# 4. a run that was stopped goes on as if it had not been;
# 5. what the clip does when a batch is used more than once.

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
folder = f"runs/{preset}"  # an old run is resumed; another needs another

# %% [markdown]
# ## What is to be run
# `Settings` hold everything that determines a run. In the notebook they come
# from the cell above. The script reads them from the command line: `--out
# DIR`, `--preset` and a flag for each of the fields printed below (`--help`
# explains each).
#
# The script ends in the next cell but one. There it trains as the notebook
# does below, prints a line at every evaluation and keeps `curve.png` up to
# date. It reports in one line what you can put right: a folder with another
# run in it, an unknown model. On Ctrl-C or SIGTERM it finishes and saves the
# step first.

# %%
import dataclasses
from contextlib import closing

from aha_lib import commands, devices
from aha_lib.look import show
from aha_lib.presets import PUZZLES, SETTINGS
from aha_lib.run import cli, cold_start, train
from aha_lib.run.folder import why_stopped
from aha_lib.tasks import countdown
from aha_lib.tasks.rollout import held_out_panel
from aha_lib.tasks.task import Countdown

# %%
devices.compilation_cache()  # a second run does not compile anew
if "get_ipython" not in globals():  # a script
    settings, out = cli.parse(sys.argv[1:])
    sys.exit(commands.run_to_the_end(settings, out))

settings = dataclasses.replace(SETTINGS[preset], **overrides)
out = pathlib.Path(folder)

# %%
shown = ("model", "puzzles", "seed", "steps", "prompts", "group")
shown += ("completion_len", "learning_rate", "updates", "kl")
rarely = dataclasses.asdict(settings)
often = {name: rarely.pop(name) for name in shown}
show.table(["setting", "value"], often.items())

# %% [markdown]
# A **group** is the completions of one puzzle, which are compared with each
# other. The rest of the settings, folded:

# %%
from IPython.display import HTML

lines = "".join(
    f"<tr><td style='text-align:left'>{name}</td>"
    f"<td style='text-align:left'>{value}</td></tr>"
    for name, value in rarely.items()
)
HTML(
    f"<details><summary>{len(rarely)} more settings</summary>"
    f"<table>{lines}</table></details>"
)

# %% [markdown]
# Does this preset begin with a cold start? A cold start has settings of its
# own, in `PRETRAINING`. `overrides` may change its length:
# `{"cold_start_steps": 200}`.

# %%
cold = cold_start.planned(cold_start.without_a_second(settings))
if cold is None:
    print(f"No cold start: GRPO begins from {settings.model} as it is.")
else:
    start = cold.model or "a random model"
    print(f"Cold start of {start}, in {out}/base, before GRPO:")
    weights_ = f"adapters of rank {cold.lora}" if cold.lora else "all weights"
    print(f"{cold.steps} supervised steps of {cold.rows} rows; {weights_}.")

# %% [markdown]
# A puzzle is a few numbers and a target; an answer has to use each number
# exactly once. Accuracy is measured on the *held-out panel*, a fixed list of
# puzzles. It is the same for every run of a preset, and it shares no set of
# numbers with the training puzzles. Its first three puzzles:

# %%
print(PUZZLES[settings.puzzles])
panel = held_out_panel(Countdown.from_settings(settings), settings)
for puzzle in panel[:3]:
    print(puzzle, " for example ", countdown.solve(puzzle)[0])

# %% [markdown]
# ## The run, live
# A cold start, if there is one, comes first, and its loss is drawn. Step 0
# then measures the base. Every later step samples `group` completions for
# each of `prompts` puzzles, computes their rewards, and updates the weights
# once (notebook 04 takes such a step apart). Watch whether accuracy, length
# and the number of further attempts leave their dotted base lines together.
# (A *further attempt* is one after the first: the model tries again. The
# metrics call it a *backtrack*.)
#
# If the folder already has a run, the cell resumes it, also in the middle of
# a cold start. If you interrupt the kernel, the step is finished and saved
# first. Run the cell again to go on; do the same after a session whose time
# was up.

# %%
before = train.rows_so_far(out)
with closing(train.train(settings, out)) as run:
    rows = show.watch(run, before)
commands.draw_curve(out)
if not rows:
    sys.exit(f"There is nothing to look at yet. {why_stopped(out)}")

# %% [markdown]
# The same as numbers, at every evaluation. *Greedy* is the accuracy of
# answers that take the likeliest token each time; all else is of sampled
# answers.

# %%
measured = [row for row in rows if "heldout_accuracy" in row]
base, end = measured[0], measured[-1]
names = "accuracy", "greedy", "length", "backtracks"
show.table(
    ["step", "accuracy", "greedy", "tokens", "further attempts"],
    [[r["step"], *(r[f"heldout_{n}"] for n in names)] for r in measured],
)

# %% [markdown]
# ### Check
# Accuracy should have risen by more than 0.3. The cell asks this only of
# presets whose runs are recorded, of runs of 40 steps or more, and of bases
# that solve more than one puzzle in twenty. Of other runs it asks nothing and
# prints why.

# %%
recorded = preset in ("tiny", "gemma3-270m-cpu", "gemma3-270m-short")
solves = base["heldout_accuracy"] > 0.05
if recorded and solves and end["step"] >= 40:
    assert end["heldout_accuracy"] > base["heldout_accuracy"] + 0.3
elif not recorded:
    print(f"No run of {preset} is recorded: nothing is asked of it.")
elif not solves:
    print("The base solves next to nothing: nothing is asked of the run.")
else:
    print(f"{end['step']} steps: too few to expect that it learns.")

# %% [markdown]
# The training loop computed the accuracies above. The next cells compute them
# again from the kept texts, by Python's own arithmetic instead of the
# verifier's. An answer counts if its numbers are the puzzle's and its value
# is the target. (As in the verifier, the signs × ÷ − are allowed, and so is
# the target repeated at the end, as in "= 42".)

# %%
import ast
import operator
import re
from fractions import Fraction

SIGNS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


PLAIN = str.maketrans("×÷−", "*/-")


def value(node):
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    return SIGNS[type(node.op)](value(node.left), value(node.right))


# %%
def truly_right(text, puzzle) -> bool:
    complete = text.rpartition("</answer>")[0]
    _, tag, answer = complete.rpartition("<answer>")
    plain = answer.partition("</answer>")[0].translate(PLAIN)
    plain = re.sub(rf"=\s*{puzzle.target}\s*$", "", plain)
    given = sorted(map(str, puzzle.numbers))
    if not tag or sorted(re.findall(r"\d+", plain)) != given:
        return False
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
        return value(tree) == puzzle.target
    except (SyntaxError, ZeroDivisionError, KeyError, AttributeError):
        return False


# %%
history = train.read_rows(out / "rollouts.jsonl")
same = []
for row, kept in zip(measured, history, strict=True):
    for name, kind in (("accuracy", "sampled"), ("greedy", "greedy")):
        right = list(map(truly_right, kept[kind], panel))
        # Of several samples of a puzzle, at step 0, one is kept.
        if row["step"] or kind == "greedy" or settings.pass_k == 1:
            same.append(row[f"heldout_{name}"] == sum(right) / len(panel))
print(f"{sum(same)} of {len(same)} accuracies recomputed are the same.")

# %% [markdown]
# ## What rose with it: the style of the answers
# A trace *jumps* (no attempt before the answer), *checks* (one attempt) or
# *searches* (several). `traces.style` tells them apart by rules. The table
# has the shares of the three styles in the corpus that the base has learnt
# from, and in the sampled held-out completions before and after. Look at the
# last column.

# %%
from aha_lib.presets import PRETRAINING

styles = "jump", "check", "search"
taught = cold or (PRETRAINING["tiny"] if preset == "tiny" else None)
lines = []
if taught:  # else its habits are its own
    worked = sum(taught.shares[style] for style in styles)
    corpus = [taught.shares[style] / worked for style in styles]
    name = "the cold start" if cold else "the tiny base"
    lines.append([f"corpus of {name}", *corpus])
for r in (base, end):
    lines.append([f"step {r['step']}", *show.shares(r["styles"], styles)])
show.table(["", *styles], lines)

# %% [markdown]
# The tiny base, and a Gemma after its cold start, use all three styles but
# rarely search, because we wrote their corpus that way. In the recorded runs
# that start from such a base, GRPO has made the rare style the usual one. An
# answer that goes on after a "no" has more chances to be right, and so to be
# paid. (The border between "check" and "search" depends on luck: a search
# that hits at once counts as a check. Notebook 06 measures without this
# border.)

# %% [markdown]
# ## The wrong answers
# A wrong answer fails in one of four ways. *Cut off*: the limit came before
# an answer. *Slipped*: a false sum decided it. *Claimed*: it says "yes" to a
# value that is not the target. *Gave up*: it claims no success, as in an
# honest failure or a guess. Look at "claimed": a reward for right answers
# could teach a model to say "yes" whatever it has found. The table has
# counts, since few failures are left in a run that has learnt. At step 0 it
# counts `pass_k` answers to each puzzle, later one.

# %%
fates = "right", "cut off", "slipped", "claimed", "gave up"
show.table(
    ["step", "completions", *fates],
    [
        [
            r["step"],
            sum(r["outcomes"].values()),
            *(r["outcomes"].get(fate, 0) for fate in fates),
        ]
        for r in (base, end)
    ],
)

# %% [markdown]
# ## Before and after
# Three held-out puzzles, answered by the base and by the trained model: two
# that the trained model has learnt to solve, if there are any, and one that
# it fails. Sums are blue if they are true and red if not.


# %%
def judged(kept):
    return [truly_right(*x) for x in zip(kept["sampled"], panel, strict=True)]


first, last = judged(history[0]), judged(history[-1])
learnt_now = [i for i in range(len(panel)) if last[i] and not first[i]][:2]
failed = [i for i in range(len(panel)) if not last[i]][:1]
for i in learnt_now + failed:
    display(
        show.side_by_side(
            panel[i],
            {
                f"step {kept['step']}": kept["sampled"][i]
                for kept in (history[0], history[-1])
            },
        )
    )

# %% [markdown]
# ## Where the time goes
# The table splits the seconds of a step into sampling, computing rewards and
# updating. Which part takes longest? A step that meets a new length of
# completions also compiles, so the table has medians, and leaves out the
# first step.

# %%
import numpy as np

parts = "sample", "reward", "update"
stepped = [row for row in rows if row["step"] > 1] or rows[1:]
seconds = {
    p: float(np.median([row[f"{p}_seconds"] for row in stepped]))
    for p in parts
}
speed = {
    p: np.median([row[f"{p}_tokens_per_second"] for row in stepped])
    for p in ("sample", "update")
}
show.table(
    ["part", "seconds (median)", "share", "tokens/s (median)"],
    [
        [
            p,
            seconds[p],
            f"{seconds[p] / sum(seconds.values()):.0%}",
            f"{speed[p]:,.0f}" if p in speed else "",
        ]
        for p in parts
    ],
)

# %% [markdown]
# ## Is there still something to learn from?
# A group whose completions all earn the same has only advantages of 0, and
# teaches nothing. Compare the share of such groups in the first rows with
# that in the last: it grows as the puzzles become easy for the model, so less
# and less is left to learn from. (Of a base that solves nothing, most groups
# are like that from the first step on.) DAPO's dynamic sampling (notebook 09)
# draws other puzzles in their place.

# %%
signal = [row for row in rows if "zero_variance_groups" in row]
wide = max(1, len(signal) // 5)
show.table(
    ["steps", "groups without signal", "training accuracy"],
    [
        [
            f"{part[0]['step']}–{part[-1]['step']}",
            *(
                float(np.mean([r[name] for r in part]))
                for name in ("zero_variance_groups", "train_accuracy")
            ),
        ]
        for part in (signal[i : i + wide] for i in range(0, len(signal), wide))
    ],
)

# %% [markdown]
# ## Stopped and resumed
# A step is a function of the model's state and the step's number: its puzzles
# and random keys are derived from the run's seed and that number. So a
# resumed run should give the same rows as one that never stopped, all but the
# seconds. The check compares two small runs of the tiny model, whatever the
# preset is: two steps, a stop and two more steps, against four steps at once.

# %% [markdown]
# ### Check

# %%
import itertools
import tempfile

small = dataclasses.replace(
    SETTINGS["tiny"],
    steps=4,
    prompts=2,
    group=4,
    eval_puzzles=8,
    eval_every=4,
    checkpoint_every=1,
    pass_k=1,
)
with tempfile.TemporaryDirectory() as place:
    whole = list(train.train(small, f"{place}/whole"))
    with closing(train.train(small, f"{place}/parts")) as run:
        parts_ = list(itertools.islice(run, 3))  # steps 0, 1, 2; then stop
    parts_ += train.train(small, f"{place}/parts")

# %%
timed = "seconds", "second"


def untimed(row):
    return {k: v for k, v in row.items() if not k.endswith(timed)}


for one, other in zip(whole, parts_, strict=True):
    assert untimed(one) == untimed(other), one["step"]
print("Steps", [row["step"] for row in parts_], "agree to the last digit.")

# %% [markdown]
# ## More than one update from a batch
# Sampling is expensive, so it would pay to use a batch for several updates.
# After the first of them the ratios leave 1, and the clip can act. The table
# has short runs of the tiny model with 1, 2, 4 and 8 updates a batch, each
# with the clip and without it. (`python tests/benchmarks/variants.py updates`
# makes them; without them the table is empty.)
#
# Look for two things. How large is the share of the trained tokens on which
# the clip acts (*clipped*, of all steps and of the last five)? And does
# accuracy without the clip fall behind as a batch is used more often? With so
# few seeds, a difference shows nothing if the ranges from lowest to highest
# overlap or nearly touch.

# %%
import json

import aha_lib

benchmarks = pathlib.Path(aha_lib.__file__).parent.parent / "tests/benchmarks"


def stored(name):
    """The runs that a benchmark has left, none if it has not run yet."""
    path = benchmarks / f"{name}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


# %%
def by_case(runs):
    """For each case: seeds, held-out accuracies, tokens, share clipped."""
    return {
        case: [r for r in runs if r["case"] == case]
        for case in dict.fromkeys(r["case"] for r in runs)
    }


# %%
def accuracies(of):
    return [r["heldout"]["accuracy"][1] for r in of]


again = by_case(stored("updates"))
show.table(
    [
        "updates x clip",
        "seeds",
        "accuracy: mean",
        "lowest",
        "highest",
        "clipped",
        "of the last steps",
    ],
    [
        [
            case,
            len(of),
            float(np.mean(accuracies(of))),
            min(accuracies(of)),
            max(accuracies(of)),
            float(np.mean([r["clip_fraction"] for r in of])),
            float(np.mean([r["clip_fraction"][-5:] for r in of])),
        ]
        for case, of in again.items()
    ],
)

# %% [markdown]
# With one update the two are the same run, to the last digit. With two
# updates accuracy is lower, with the clip and without. Three seeds do not
# show that the clip helps there: in one seed the run with the clip is far
# ahead, in the two others hardly. With four updates the clip helps in every
# seed: accuracy is at least 0.41 with it, and at most 0.17 without. With
# eight both end below the base, which solves 0.22. So the clip limits the
# damage of several updates, and does not prevent it. The learning rate, 1e-3,
# was chosen for one update; at this rate even a second update costs accuracy.

# %% [markdown]
# The package has the records of three runs of the tiny preset. Below them
# stand runs with one setting changed, for the exercises at the end (`python
# tests/benchmarks/variants.py exercises` makes them). The records were made
# with other random keys than the code has today, so `seed0` is not the run
# above.

# %%
shipped = sorted(
    (pathlib.Path(aha_lib.__file__).parent / "data/run").glob(
        "seed*/metrics.jsonl"
    )
)
figures = ("heldout_accuracy", "heldout_length", "heldout_backtracks")
unchanged = []
for path in shipped:
    last = train.read_rows(path)[-1]
    unchanged.append([path.parent.name, "", *(last[name] for name in figures)])
changed = []
for run in stored("exercises"):
    ends = [
        run["heldout"][name.removeprefix("heldout_")][1] for name in figures
    ]
    changed.append([run["case"], run["seed"], *ends])
show.table(
    ["run", "seed", "accuracy", "tokens", "further attempts"],
    unchanged + changed,
)

# %% [markdown]
# ## A run to leave alone
# Start a long run as a script: it goes on when this page is closed. Whatever
# ends it (the session's last minutes, Ctrl-C, a machine that is taken away)
# costs at most the steps since its last checkpoint. `dashboard.watch(folder)`
# draws the run in any notebook while it goes on, with the newest answers and
# a button that stops it at the next step. In a terminal, `aha watch
# runs/tiny` prints in one line how far it is. The run above is over, so here
# the picture stands still.

# %%
from aha_lib.look import dashboard

print(dashboard.state(out)[0])
dashboard.watch(out)

# %% [markdown]
# ## Take it with you
# `export.save_hf` writes the trained model, its adapters merged, as a folder
# in Hugging Face's layout; `export.save_kaggle` writes Kaggle's. The setting
# `model` takes either folder. A folder needs as much disk as the weights need
# memory.

# %%
from aha_lib.model import export, weights

model, tokenizer, trained_with = train.trained(out, merged=True)
export.save_hf(model, out / "model", tokenizer)
sorted(path.name for path in (out / "model").iterdir())

# %% [markdown]
# The next lines publish it. They need your own name in the handle and a
# Kaggle token. (A model that was made from Gemma stays under Gemma's terms.)
#
# ```python
# import kagglehub
#
# kagglehub.model_upload("you/aha/flax/tiny", str(out / "model"))
# ```
#
# Now a puzzle of your own. The presets `tiny`, `gemma3-270m-cpu` and
# `gemma3-270m-short` train on three numbers from 1 to 20 and targets from 10
# to 99. Their models have learnt nothing about other puzzles.

# %%
answer = dashboard.answer(model, tokenizer, trained_with, "20 16 4 = 40")
answer

# %%
import ipywidgets

box = ipywidgets.interact_manual(
    lambda puzzle: dashboard.answer(model, tokenizer, trained_with, puzzle),
    puzzle="19 7 3 = 36",
)

# %% [markdown]
# ### Check
# The exported model, loaded again onto the same devices in the same dtypes,
# should write the same answer. The trained model is deleted first: a chip may
# have no room for two.

# %%
mesh, param_dtype = model.embed[...].sharding.mesh, model.embed.dtype
of_activations = model.dtype
del model
again, words, _ = weights.load(
    out / "model", mesh=mesh, dtype=of_activations, param_dtype=param_dtype
)
written = dashboard.answer(again, words, trained_with, "20 16 4 = 40")
assert written.data == answer.data
model = again  # for the box above

# %% [markdown]
# ## What this stands for, and what it does not
# The tiny model stands in for a pre-trained base. We wrote its pre-training
# text (`aha_lib/tasks/corpus.py`), and a tenth of its worked traces search. A
# cold start gives a Gemma such worked traces in another spelling; a fifth of
# them search. A large base may have such behaviours from ordinary text. These
# models have them from us.
#
# - **Shown, with the tiny preset:** a reward for right answers makes frequent
#   a behaviour that the base has but rarely uses, and answers become longer
#   with it.
# - **Not shown:** that RL creates a behaviour from nothing. Notebook 07 has
#   the control: a base that has not seen searches does not learn to search.
#   Nor is it shown how a large model would acquire such a behaviour.
# - Three numbers from 1 to 20 are an easy task. The held-out puzzles have new
#   sets of numbers, not harder ones.
#
# ## Exercises
# 1. Pay nothing for a well-formed wrong answer: `{"form_reward": 0.0}` and
#    another folder. Does the tiny model need the 0.1?
#
# <details><summary>Answer</summary>
#
# No: the run "form 0" above (seed 0) ends at 0.957 with 56 tokens an answer,
# the unchanged one at 0.957 with 55. Why: the base nearly always writes
# well-formed answers. In a group of such answers the rewards are 1 and 0.1
# instead of 1 and 0. The advantages are the same, since the group's mean is
# subtracted and its deviation divided out. The 0.1 changes them only where a
# group has a malformed or cut-off answer (notebook 04, section 4).
#
# </details>
#
# 2. Pre-train a base that only ever jumps, `aha pretrain --preset
#    tiny-jumps --out runs/jump`, and run this notebook with
#    `{"model": "runs/jump"}`. What do you expect?
#
# <details><summary>Answer</summary>
#
# It can learn to guess better, within what one jump can do, but there is no
# search to amplify. Notebook 07 has three seeds of this run: accuracy goes
# from 0.10 to between 0.12 and 0.15, and all 256 answers still jump, in ten
# tokens.
#
# </details>
#
# 3. Run with `{"kl": 0.05}` and another folder. What do you expect of the
#    length?
#
# <details><summary>Answer</summary>
#
# The KL term pulls towards the base, which jumps, so one may expect shorter
# answers. Not at this weight: the run "kl 0.05" above (seed 0) ends at 0.957
# with 56 tokens, as the one without does with 55. At this weight the reward
# outweighs the pull. Try a larger weight.
#
# </details>
#
# ## Summary
# The loop lives in `aha_lib/run/train.py`, the cold start in
# `aha_lib/run/pretrain.py`, what stops them in `aha_lib/run/stop.py`, the
# run's folder in `aha_lib/run/checkpoints.py`, the figures in
# `aha_lib/look/show.py` and `aha_lib/look/dashboard.py`. Next:
# **06_aha_traces** takes the answers apart, puzzle by puzzle, and
# **07_where_from** asks where the habit came from.
