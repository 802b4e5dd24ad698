"""A task of one's own: found by name, learnt by the loop alone and by a whole run."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from aha_lib.loop import learn
from aha_lib.model import weights
from aha_lib.presets import Settings
from aha_lib.run import train
from aha_lib.tasks import last_first, task
from aha_lib.tasks.last_first import LastFirst
from aha_lib.tasks.rollout import Policy, rollout

NAME = "aha_lib.tasks.last_first:LastFirst"
SETTINGS = Settings(task=NAME, steps=35, completion_len=2, learning_rate=2e-3, micro_batch=8)


def test_puzzles_and_reward():
    own = LastFirst()
    assert own.reward("5 + 7", [7, 12, 5]) == 1
    assert own.reward("12 - 5", [7, 12, 5]) == own.reward("", [7, 12, 5]) == 0
    assert own.puzzle(0, 3, held_out=False) == own.puzzle(0, 3, held_out=False)
    kept = {tuple(own.puzzle(0, i, held_out=True)) for i in range(300)}
    drawn = {tuple(own.puzzle(s, i, held_out=False)) for s in range(3) for i in range(300)}
    assert len(kept) > 200 and not kept & drawn


@pytest.mark.parametrize("page", ["README.md", "docs/tasks.md"])
def test_the_example_of_a_page_is_a_task(page, tmp_path):
    text = (Path(__file__).parents[2] / page).read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "class Largest" in c]
    imports = "import random\nfrom aha_lib.tasks.task import Task\n"
    (tmp_path / "largest.py").write_text(imports + code)
    own = task.load(Settings(task=f"{tmp_path / 'largest.py'}:Largest"))
    kept = {tuple(own.puzzle(0, i, held_out=True)) for i in range(200)}
    drawn = {tuple(own.puzzle(0, i, held_out=False)) for i in range(200)}
    assert len(kept) > 50 and not kept & drawn
    assert own.prompt([3, 9, 5]) == "3 9 5 = 50 :"
    assert own.reward("9 + 3", [3, 9, 5]) == 1 and own.reward("", [3, 9, 5]) == 0
    assert len(own.longest()) == 3


def test_the_example_of_a_tool_is_asked(tmp_path):
    """Its reply stands behind every call, and the loop learns from such rows."""
    page = (Path(__file__).parents[2] / "docs/tools.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 5 and "by five lines" in page
    (tmp_path / "own_tool.py").write_text(code)
    name = f"{tmp_path / 'own_tool.py'}:AskFirst"
    settings = dataclasses.replace(SETTINGS, task=name, steps=2, completion_len=32, turns=2)
    own = task.load(settings)
    model, tokenizer, _ = weights.load("tiny")
    rows = list(learn(model, tokenizer, own, settings))
    assert all(row["replies"] > 0 for row in rows) and rows[0]["failed_replies"] >= 0
    policy = Policy(model, tokenizer, own, settings)
    out = rollout(policy, [[5, 3, 9]] * 4, jax.random.key(0), group=8, temperature=1.0)
    asked = [text for text in out.texts if "no" in text.split()]
    assert asked and all("no 9" in text for text in asked)


@pytest.mark.parametrize("name", [NAME, f"{last_first.__file__}:LastFirst"])
def test_a_task_is_found_by_its_name(name):
    found = task.load(Settings(task=name))
    assert type(found).__name__ == "LastFirst" and task.name_of(found) == name


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("chess", "it has to be countdown, FILE.py:NAME, MODULE:NAME or gym:NAME"),
        ("nowhere.py:Chess", "There is no file .*nowhere.py"),
        ("no_such_module:Chess", "There is no module no_such_module"),
        ("aha_lib.tasks.last_first:Chess", "has no class Chess that is a Task"),
        ("aha_lib.tasks.last_first:random", "has no class random that is a Task"),
        ("__main__:Chess", "pass it as task="),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        task.load(Settings(task=name))


@pytest.mark.slow
def test_the_loop_alone_learns_it():
    model, tokenizer, _ = weights.load("tiny")
    metrics = list(learn(model, tokenizer, LastFirst(), SETTINGS))
    rewards = [row["reward"] for row in metrics]
    assert np.mean(rewards[:3]) < 0.1
    assert np.mean(rewards[-5:]) > 0.9


# A data set of reasoning-gym in the tiny model's words, as a file of one's own.
SUMS = """
from aha_lib.tasks.gym import Gym


class Sums(Gym):
    def __init__(self):
        super().__init__("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)

    def prompt(self, puzzle):
        return puzzle["metadata"]["expression"] + " ="
"""


@pytest.mark.slow
def test_a_killed_gym_run_goes_on(tmp_path):
    """Killed after step 2; the same command then gives the rows of a run that was left alone."""
    pytest.importorskip("reasoning_gym")
    (tmp_path / "sums.py").write_text(SUMS)
    s = dataclasses.replace(
        SETTINGS,
        task=f"{tmp_path / 'sums.py'}:Sums",
        completion_len=1,
        steps=5,
        eval_every=5,
        eval_puzzles=16,
        pass_k=1,
        checkpoint_every=1,
    )
    program = (
        "import json, sys\nfrom aha_lib.presets import Settings\nfrom aha_lib.run import train\n"
        "for _ in train.train(Settings(**json.loads(sys.argv[1])), sys.argv[2]): pass"
    )

    def start(name):
        said = json.dumps(dataclasses.asdict(s))
        return subprocess.Popen([sys.executable, "-c", program, said, str(tmp_path / name)])

    assert start("whole").wait(600) == 0
    killed = start("killed")
    while len(train.read_rows(tmp_path / "killed" / "metrics.jsonl")) < 3:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").wait(600) == 0
    both = [train.read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [row["step"] for row in both[1]] == list(range(6))
    for ours, theirs in zip(*both, strict=True):
        timed = "seconds", "per_second"
        same = {k: v for k, v in ours.items() if not k.endswith(timed)}
        assert same == {k: v for k, v in theirs.items() if not k.endswith(timed)}


@pytest.mark.slow
def test_a_run_keeps_resumes_and_remembers_it(tmp_path):
    """Stopped after step 2 and gone on: the rows of a run that was not stopped."""
    s = dataclasses.replace(SETTINGS, steps=4, eval_every=2, eval_puzzles=32, pass_k=1)
    whole = list(train.train(s, tmp_path / "whole"))
    run = train.train(s, tmp_path / "parts")
    for row in run:
        if row["step"] == 2:
            (tmp_path / "parts" / "stop").touch()
    parts = train.read_rows(tmp_path / "parts" / "metrics.jsonl")
    assert [row["step"] for row in parts] == [0, 1, 2, 3]
    list(train.train(s, tmp_path / "parts", LastFirst()))
    parts = train.read_rows(tmp_path / "parts" / "metrics.jsonl")
    timed = "seconds", "per_second"
    for ours, theirs in zip(whole, parts, strict=True):
        same = {k: v for k, v in ours.items() if not k.endswith(timed)}
        assert same == {k: v for k, v in theirs.items() if not k.endswith(timed)}
    said = json.loads((tmp_path / "parts" / "settings.json").read_text())
    assert said["task"] == NAME
    assert "backtracks" not in whole[-1], "Countdown's own measures are Countdown's alone"
    with pytest.raises(ValueError, match="task: .*LastFirst -> countdown"):
        next(train.train(dataclasses.replace(s, task="countdown"), tmp_path / "parts"))
