"""Trackers in the place of the real ones: which run they are told, and what a user is told."""

import sys
from types import SimpleNamespace

import pytest

from aha_lib.presets import Settings
from aha_lib.run import tracker

WANDB = Settings(tracker="wandb")


@pytest.fixture
def begun(monkeypatch):
    """What wandb.init was called with, and what was logged."""
    calls, logged = [], []

    def init(**keywords):
        calls.append(keywords)
        return SimpleNamespace(log=lambda values, step: logged.append((values, step)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return calls, logged


def test_runs_of_the_same_name_stay_apart(begun, tmp_path):
    """`one/seed0` and `two/seed0` are two runs; each goes on as itself."""
    calls, logged = begun
    for place in ("one", "two", "one"):
        (tmp_path / place / "seed0").mkdir(parents=True, exist_ok=True)
        track = tracker.start(WANDB, tmp_path / place / "seed0")
    names = [call["id"] for call in calls]
    assert names[0] != names[1] and names[0] == names[2]
    assert {call["name"] for call in calls} == {"seed0"}
    track({"step": 3, "reward": 0.5, "styles": {"jump": 2}}, 3)
    assert logged == [({"step": 3}, 3), ({"reward": 0.5}, 3)]


def test_no_key_is_a_sentence(monkeypatch, tmp_path):
    class UsageError(Exception):
        pass

    def init(**keywords):
        raise UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(ValueError, match="wandb does not start .api_key not configured.* log in"):
        tracker.start(WANDB, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_tracker_tracks_nothing(tmp_path):
    tracker.start(Settings(), tmp_path)({"step": 0}, 0)
    assert not list(tmp_path.iterdir())
