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
# A right answer earns 1, a wrong one that is well-formed 0.1, and one that is
# malformed or cut off by the limit of tokens 0. No term of the reward is for a
# check, a "no" or a second try. Length is not rewarded either, and it has a
# price: whoever writes too long is cut off and earns nothing. The effect is
# the one of [DeepSeek-R1-Zero](https://arxiv.org/abs/2501.12948), made small
# by [TinyZero](https://github.com/Jiayi-Pan/TinyZero).
# ([Glossary](../docs/glossary.md))
#
# **As in notebook 04,** the run takes *one* update from every
# batch and no KL term. So every ratio is 1 when it is used, no clip ever
# acts (`clip_fraction` is 0 in every row), and the loss
# is REINFORCE with advantages from the group, divided by its deviation and
# averaged over all tokens of the batch. It is none of notebook 09's recipes.
# (TinyZero's runs, the last presets below, have a small KL term.)
# Runs with more updates, where the clip acts, are at the end.
#
# This notebook is also the headless main job: the same file as a script,
# `python notebooks/05_train.py --out runs/mine --steps 100`, trains,
# writes `metrics.jsonl`, `curve.png` and checkpoints into the folder, and
# goes on from the last checkpoint when it is called again.
#
# | preset | machine | what it does |
# |---|---|---|
# | `tiny` | two CPU cores | about three minutes to the whole curve |
# | `gemma3-270m-cpu` | two CPU cores | Gemma 3 270M: a cold start, then GRPO |
# | `gemma3-270m-short` | an accelerator | the same, 512 answers a step |
# | `tinyzero-small` | two CPU cores | TinyZero's own task, about an hour |
# | `tinyzero-270m`, `-1b`, `-2b` | a TPU | the same, by a cold start |
# | `gemma3-270m`, `gemma3-1b`, `gemma2-2b` | a TPU | TinyZero's zero run |
#
# TinyZero's task is three or four numbers from 1 to 99. The small model for it
# has 1.46 million parameters and comes with the package, as the tiny one does.
#
# A **cold start** is supervised training on worked puzzles before the first
# reward. The presets that have one do it below, as the first part of the
# run. The last three have none: they reward the base as it is, and first
# sample a step's answers. If no group of them has both right and wrong ones,
# the run ends there with a sentence, for it would learn nothing. That is to be
# expected of `gemma3-270m`: its recorded run without a cold start has no right
# answer (notebook 07).
#
# You will see (the last two by the tiny model, whatever the preset is):
#
# 1. held-out accuracy rises far above the base's;
# 2. responses get longer and try again more often, though the reward has no
#    term for either;
# 3. traces that search, rare at first, become the usual ones;
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
# `Settings` hold all that determines a run. In a notebook they come from the
# cell above; as a script, from the command line: `--out DIR`, `--preset` and
# a flag for each of the fields printed below (`--help` says what each is).
# There the next cell but one does it all, by the same steps as the notebook
# below: it prints a line at every evaluation, keeps `curve.png` up to date,
# and ends the program. What the reader can put right (a folder with another
# run in it, an unknown model) is told in one line. Ctrl-C and SIGTERM finish
# and save the step first.

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
# Is there a cold start? It has settings of its own, from `PRETRAINING`;
# `overrides` may set its length, `{"cold_start_steps": 200}`.

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
# A few numbers to reach a target, each used exactly once. The held-out panel
# is the same for every run and shares no set of numbers with the training
# puzzles.

# %%
print(PUZZLES[settings.puzzles])
panel = held_out_panel(Countdown.from_settings(settings), settings)
for puzzle in panel[:3]:
    print(puzzle, " for example ", countdown.solve(puzzle)[0])

# %% [markdown]
# ## The run, live
# A cold start, if there is one, comes first, and its loss is drawn. Then step
# 0 measures the base, and every step samples `group` completions of
# `prompts` puzzles, pays them, and updates the weights once (notebook 04 has
# it in slow motion). Watch accuracy, length and the number of further attempts
# leave their dotted base lines together. (A *backtrack*, as the metrics call
# it, is here an attempt after the first: the model tries again.) If the folder
# already has a run, it goes on where that
# stopped, also in the middle of a cold start. Interrupt the kernel and the
# step is finished and saved; run the cell again and it goes on. So it does
# where the session's time was up.

# %%
before = train.rows_so_far(out)
with closing(train.train(settings, out)) as run:
    rows = show.watch(run, before)
commands.draw_curve(out)
if not rows:
    sys.exit(f"There is nothing to look at yet. {why_stopped(out)}")

# %% [markdown]
# The same as numbers, at every evaluation:

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
# What is asked holds for the presets whose runs are recorded. Learning takes
# some steps, and a base that is right now and then: a run of fewer than 40
# steps, or from a base that solves next to nothing, is not asked. Then the
# cell says so.

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
# The accuracies above are the loop's own. Here they are computed once more
# from the texts that it has kept, by Python's own arithmetic instead of the
# verifier's: an answer counts if its numbers are the puzzle's and its value
# is the target. (The verifier also takes × ÷ − and a tail "= 42".)

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
# *searches* (several). `traces.style` finds out by rules. Their shares in the
# corpus that the base has learnt from, and in the sampled held-out
# completions before and after:

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
# The tiny base, and a Gemma after its cold start, have all three, the search
# rarely: the corpus was written that way. In the recorded runs GRPO has made
# the rare one the usual one: a search is right more often, and so it earns
# more. (The border between "check" and "search" depends on luck: a search that
# hits at once counts as a check. Notebook 06 measures without it.)

# %% [markdown]
# ## The wrong answers
# How an answer fails tells more than that it fails. *Cut off*: the limit came
# before an answer. *Claimed*: it says "yes" to a value that is not the
# target. *Slipped*: a wrong sum decided it. *Gave up*: no claim of success;
# an honest failure, or a guess. A reward for right answers could teach a
# model to say "yes" whatever it has found: this table is where one would see
# it. Counts, not shares: of a run that has learnt, few are left at the end.

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
# The same held-out puzzles, first as the base answered them, then as the
# trained model does: two that it has learnt, if there are any, and one that it
# fails. Sums are blue if they are true and red if not.


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
# Seconds of a step, split. Steps that meet a new length of completions
# compile, hence medians; the first is left out.

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
# A group whose completions all earn the same has no advantage and teaches
# nothing. Their share grows as the puzzles become easy: the run starves of
# signal before it is perfect. (Of a base that solves nothing all groups are
# such ones, from the first step on.) DAPO's dynamic sampling (notebook 09)
# refills them.

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
# A step is a function of the state and its number: puzzles and random keys
# are folded from the seed and the number. So a run that is stopped and goes
# on gives the same rows as one that never stopped. A small run of the tiny
# model, whatever the preset is, shows it: two steps, stop, two more, against
# four at once.

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
# Sampling is dear, so one would like to use a batch again. Then the ratios
# leave 1 and the clip has something to do. Short runs of the tiny model with
# 1, 2, 4 and 8 updates, each with the clip and without it, are made by
# `python tests/benchmarks/variants.py updates`; where it has been run, a table
# of them follows.

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
# What to look for: does the clip act (*clipped*, of all tokens trained), and
# does accuracy without it fall behind as a batch is used more often? With so
# few seeds a difference within the reach from lowest to highest is none.
#
# With one update the two are the same run, to the last digit. With two both
# lose, and the clip makes no difference that three seeds could show: in one of
# them much, in two next to none. With four it does, in each: at least 0.41
# with it, at most 0.17 without. With eight both end below the base. So the
# clip does hold the model back from running away, and is not enough: at this
# learning rate, 1e-3, chosen for one update, a second one is no bargain.

# %% [markdown]
# The record of three runs of the tiny preset, and below it, where
# `python tests/benchmarks/variants.py exercises` has made them, runs with one
# change each: those of the exercises at the end.

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
# A long run is better off as a script: it outlives this page. Whatever ends
# it (the session's last minutes, Ctrl-C, a machine that is taken away) costs
# at most the steps since its last checkpoint. From any notebook,
# `dashboard.watch(folder)` draws it while it goes on, with the newest answers
# and a button that stops it at the next step. In a terminal,
# `aha watch runs/tiny` says in a line how far it is. The
# run above is over, so here the picture stands still.

# %%
from aha_lib.look import dashboard

print(dashboard.state(out)[0])
dashboard.watch(out)

# %% [markdown]
# ## Take it with you
# The trained model, adapters merged, as a folder in Hugging Face's layout;
# `export.save_kaggle` writes Kaggle's. Either can be loaded here again, by
# giving the folder as `model`. It takes as much disk as the weights take
# memory.

# %%
from aha_lib.model import export, weights

model, tokenizer, trained_with = train.trained(out, merged=True)
export.save_hf(model, out / "model", tokenizer)
sorted(path.name for path in (out / "model").iterdir())

# %% [markdown]
# To publish it, with your own name in the handle and a Kaggle token (Gemma's
# terms go with a model that was made from Gemma):
#
# ```python
# import kagglehub
#
# kagglehub.model_upload("you/aha/flax/tiny", str(out / "model"))
# ```
#
# Now a puzzle of your own. The tiny model, and a Gemma after its cold start,
# know three numbers from 1 to 20 and targets from 10 to 99; outside of that,
# see what they make of it.

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
# What was exported is what was trained: loaded again onto the same devices, in
# the same dtypes, it writes the same answer. First the other one goes: a chip
# may have no room for two.

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
# The tiny model is a stand-in for a pre-trained base, and its pre-training is
# rigged in the open: `aha_lib/tasks/corpus.py` writes the text, and a tenth of
# its worked traces search. A cold start gives a Gemma the same corpus in
# another spelling, a fifth of it searches. A large base has such behaviours
# from the text of the world; these have them from us.
#
# - **Shown:** a reward for right answers makes a behaviour frequent that the
#   base has and rarely uses, and answers become longer with it.
# - **Not shown:** that RL creates a behaviour from nothing. Notebook 07 has
#   the control: a base that has not seen searches does not learn to search.
#   Nor does this say how a large model would come by it.
# - Three numbers within 1–20 are an easy world. The held-out numbers are new
#   sets, not harder ones.
#
# ## Exercises
# 1. Pay nothing for a well-formed wrong answer: `{"form_reward": 0.0}` and
#    another folder. Does the tiny model need the 0.1?
#
# <details><summary>Answer</summary>
#
# No: the run "form 0" above (seed 0) ends at 0.957 with 56 tokens an answer,
# the unchanged one at 0.957 with 55. To think about: the base writes
# well-formed answers nearly always, so almost all completions of a group get
# the 0.1, and the advantage, which subtracts the group's mean, does not see
# it. What it does see is the rare malformed or cut-off answer among wrong ones
# (notebook 04, section 4).
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
# search to amplify. Done with three seeds (notebook 07): accuracy goes from
# 0.10 to between 0.12 and 0.15, and all 256 answers still jump, in ten tokens.
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
# with 56 tokens, as the one without does with 55. The reward outweighs the
# pull. Try a weight at which it does not.
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
