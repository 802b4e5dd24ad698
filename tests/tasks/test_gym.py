"""A data set of reasoning-gym as a task: its questions and scores, and what is refused."""

import warnings

import pytest

from aha_lib.presets import Settings
from aha_lib.tasks import gym, task

# Its extra is not part of the quick tests' installation; .ci/run brings it for the slow ones.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def reasoning_gym():
    with warnings.catch_warnings():  # of cellpylib, which reasoning-gym imports
        warnings.simplefilter("ignore")
        return pytest.importorskip("reasoning_gym")


def sums(**config):
    return gym.Gym("chain_sum", min_terms=3, max_terms=3, min_digits=1, max_digits=1, **config)


def test_a_data_set_is_found_by_its_name():
    found = task.load(Settings(task="gym:chain_sum"))
    assert task.name_of(found) == "gym:chain_sum"
    puzzle = found.puzzle(0, 0, held_out=False)
    assert puzzle["question"] in found.prompt(puzzle)
    right = puzzle["answer"]
    assert found.reward(f"so <answer> {right} </answer>", puzzle) == 1
    assert found.reward(right, puzzle) == 1
    assert found.reward(f"<answer>{right}</answer> <answer>{right}0</answer>", puzzle) < 1
    assert found.reward("", puzzle) < 1


def test_questions_are_the_same_each_time_and_held_out_ones_are_apart():
    own, other = sums(), sums()
    assert own.puzzle(4, 2, held_out=True) == other.puzzle(4, 2, held_out=True)
    kept = {own.puzzle(0, i, held_out=True)["question"] for i in range(100)}
    drawn = {own.puzzle(0, i, held_out=False)["question"] for i in range(300)}
    assert not kept & drawn and len(kept) > 50
    assert drawn != {own.puzzle(1, i, held_out=False)["question"] for i in range(300)}


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("gym:no_such_thing", "reasoning-gym has no data set no_such_thing"),
        ("gym:countdown", "evaluates expressions as Python code"),
        ("gym:", "it has to be countdown"),
    ],
)
def test_what_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        task.load(Settings(task=name))
