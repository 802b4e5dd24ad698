"""The example of a task of one's own learns, by the package's own sampler and update."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import last_first


def test_reward():
    numbers = [7, 12, 5]
    assert last_first.reward("5 + 7", numbers) == 1
    assert last_first.reward("12 - 5", numbers) == last_first.reward("", numbers) == 0
    assert last_first.generate(0, 3) == last_first.generate(0, 3)


def test_it_learns():
    rewards = list(last_first.learn(last_first.SETTINGS))
    assert np.mean(rewards[:3]) < 0.1
    assert np.mean(rewards[-5:]) > 0.9
