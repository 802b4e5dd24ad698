"""A folder as a run leaves it: what is told of it, drawn, and asked of it."""

import dataclasses
import json
import sys
import time

import ipywidgets as widgets
import pytest

from aha_lib.look import dashboard
from aha_lib.model import weights
from aha_lib.presets import Settings
from aha_lib.run import folder

SETTINGS = Settings(steps=3, eval_puzzles=4)
RIGHT = "<answer> 1 + 2 </answer>"


def row(step):
    return {"step": step, "reward": 0.1 * step, "sample_seconds": 1.0, "update_seconds": 2.0}


@pytest.fixture
def left(tmp_path):
    """The folder of a run of three steps after its first, with nobody at work there."""
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    rows = [{"step": 0, "heldout_accuracy": 0.25}, row(1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    texts = {"step": 0, "sampled": [RIGHT] * 4, "greedy": [RIGHT] * 4}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(texts) + "\n")
    return tmp_path


@pytest.fixture
def out(left):
    """The same, while the run goes on."""
    with folder.hold(left):
        yield left


def add(out, step):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(step)) + "\n")


def test_state(out):
    told, over = dashboard.state(out, dollars=3600.0)
    assert told == "step 1 of 3, 1.5 s a step, 0.00083 h and $3.00 to go; held-out accuracy 0.250"
    assert not over
    add(out, 2)
    (out / "stopped.txt").write_text("Stopped: step 2 of 3 is saved.\n")
    assert dashboard.state(out) == ("Stopped: step 2 of 3 is saved.", True)
    (out / "stopped.txt").unlink()
    add(out, 3)
    finished = "finished: step 3 of 3{}; held-out accuracy 0.250"
    assert dashboard.state(out) == (finished.format(", saving"), False)
    (out / "lock").unlink()
    assert dashboard.state(out) == (finished.format(""), True)


def test_a_killed_run_is_told_from_a_living_one(left):
    told = "stopped without a word (killed?) at step 1 of 3: the same command goes on from its last"
    line, over = dashboard.state(left)
    assert line.startswith(told) and over
    with folder.hold(left):
        assert dashboard.state(left)[0].startswith("step 1 of 3, ")
    assert dashboard.state(left) == (line, over)


def test_before_the_run_and_at_its_beginning(tmp_path):
    """Nothing is there yet, then its lock; what keeps it from beginning is told."""
    out = tmp_path / "run"
    assert dashboard.state(out) == (f"No run in {out} yet: {NOTHING}", False)
    out.mkdir()
    with folder.hold(out):
        assert dashboard.state(out) == (f"A run begins here: {NOTHING}", False)
    (out / "stopped.txt").write_text("Ended by an error. ValueError: No such model.\n")
    assert dashboard.state(out) == ("Ended by an error. ValueError: No such model.", True)


NOTHING = "there is nothing to see before its first step."


def test_watch_before_the_first_write(out):
    """And over a line that is being put right: it goes on, and says what it sees."""
    later = {path: path.read_bytes() for path in out.iterdir() if path.name != "lock"}
    for path in later:
        path.unlink()
    (button, line), *_ = (
        getattr(child, "children", child)
        for child in dashboard.watch(out, seconds=0.01, share=1.0).children
    )
    until(lambda: line.value.startswith("A run begins here"))
    (out / "settings.json").write_text("{")
    until(lambda: "settings.json is damaged (" in line.value)
    for path, text in later.items():
        path.write_bytes(text)
    until(lambda: line.value.startswith("step 1 of 3"))
    (out / "stopped.txt").write_text("Stopped.\n")
    until(lambda: button.disabled)


def test_a_run_that_is_not_there_cannot_be_stopped(tmp_path):
    """The button says so; it makes no folder."""
    (button, line), *_ = (
        getattr(child, "children", child)
        for child in dashboard.watch(tmp_path / "none", seconds=60.0).children
    )
    until(lambda: line.value)
    button.click()
    assert line.value.startswith("The run cannot be asked to stop: ")
    assert button.description == "Stop" and not (tmp_path / "none").exists()


def test_looking_changes_nothing(left):
    (left / "metrics.jsonl").write_bytes(b"\0" + (left / "metrics.jsonl").read_bytes())
    before = {path: path.read_bytes() for path in left.iterdir()}
    with pytest.raises(ValueError, match="metrics.jsonl, line 1: damaged"):
        dashboard.state(left)
    assert before == {path: path.read_bytes() for path in left.iterdir()}


def test_before_the_first_row(out):
    (out / "metrics.jsonl").unlink()
    (out / "rollouts.jsonl").unlink()
    assert dashboard.state(out) == ("step -1 of 3, 0 s a step, 0 h to go", False)
    assert dashboard.newest(out) == ""


def test_newest_beside_the_base(out):
    add(out, 2)  # texts count once their evaluation's row is there
    (out / "rollouts.jsonl").open("a").write(
        json.dumps({"step": 2, "sampled": ["3 + 3 = 7 no"] * 4}) + "\n"
    )
    seen = dashboard.newest(out)
    assert seen.count("step 0") == seen.count("step 2") == 3 and "3 + 3 = 7" in seen


def test_newest_of_another_task(out):
    """Its answers with their rewards; a sentence where the task is not to be found."""
    own = dataclasses.replace(SETTINGS, task="aha_lib.tasks.last_first:LastFirst")
    (out / "settings.json").write_text(json.dumps(dataclasses.asdict(own)))
    assert dashboard.newest(out).count("reward 0") == 3
    gone = dataclasses.replace(SETTINGS, task="__main__:Mine")
    (out / "settings.json").write_text(json.dumps(dataclasses.asdict(gone)))
    assert "cannot be shown" in dashboard.newest(out)


def test_figures_take_no_more_than_their_share(out, monkeypatch):
    drawn, curve = [], dashboard.show.curve
    monkeypatch.setattr(dashboard.show, "curve", lambda *a, **k: drawn.append(1) or curve(*a, **k))
    (button, line), *_ = (
        getattr(child, "children", child)
        for child in dashboard.watch(out, seconds=0.01, share=1e-9).children
    )
    until(lambda: drawn)
    add(out, 2)
    until(lambda: line.value.startswith("step 2 of 3"))
    assert len(drawn) == 1, "the line goes on without them"
    (out / "stopped.txt").write_text("Stopped.\n")
    until(lambda: button.disabled)
    assert len(drawn) == 2, "the last figures are those of the end"


def test_watch_redraws_until_the_run_is_over_and_asks_it_to_stop(out):
    (button, line), picture, completions = (
        getattr(child, "children", child)
        for child in dashboard.watch(out, seconds=0.01, share=1.0).children
    )
    assert isinstance(picture, widgets.Image)
    until(lambda: completions.value)
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG") and line.value.startswith("step 1 of 3")
    button.click()
    assert (out / "stop").exists() and button.description == "Stopping …"
    add(out, 2)
    until(lambda: bytes(picture.value) != first)
    (out / "stopped.txt").write_text("Stopped: step 2 of 3 is saved.\n")
    until(lambda: button.disabled)
    assert line.value == "Stopped: step 2 of 3 is saved."


def until(happened):
    """Wait for what another thread does."""
    while not happened():
        time.sleep(0.01)


def test_in_a_terminal(out, monkeypatch, capsys):
    def ask(*words):
        monkeypatch.setattr(sys, "argv", ["dashboard", *map(str, words)])
        dashboard.main()
        return capsys.readouterr().out

    assert ask(out).startswith("step 1 of 3, ") and not (out / "stop").exists()
    assert ask(out, "--stop").startswith("step 1 of 3, ") and (out / "stop").exists()
    (out / "stop").unlink()
    (out / "stopped.txt").write_text("Stopped: step 1 of 3 is saved.\n")
    assert ask(out, "--stop") == "There is nothing to stop. Stopped: step 1 of 3 is saved.\n"
    assert not (out / "stop").exists()
    (out / "stopped.txt").unlink()
    (out / "metrics.jsonl").write_text("\0\n")
    with pytest.raises(SystemExit) as ended:
        ask(out)
    assert ended.value.code == 2 and "metrics.jsonl, line 1: damaged" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        ask(out / "none")
    assert ended.value.code == 2 and capsys.readouterr().err.endswith("none holds no run.\n")


def test_a_puzzle_of_ones_own():
    model, tokenizer, _ = weights.load("tiny")
    seen = dashboard.answer(model, tokenizer, SETTINGS, "20 16 4 = 40").data
    assert "20 16 4 → 40" in seen and "answer" in seen
    wrong = {"": "some numbers and a target", "1 2 3 4 5 6 7 = 9": "raise prompt_len"}
    for text, told in wrong.items():
        with pytest.raises(ValueError, match=told):
            dashboard.answer(model, tokenizer, SETTINGS, text)
