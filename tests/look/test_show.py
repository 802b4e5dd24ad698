"""Figures and views hold what they are given: data of lines, text of pages, lists."""

import html
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from aha_lib.look import show
from aha_lib.tasks import traces
from aha_lib.tasks.countdown import Puzzle
from aha_lib.tasks.last_first import LastFirst
from aha_lib.tasks.look_up import LookUp, Question
from aha_lib.tasks.task import Countdown, who_wrote

PUZZLE = Puzzle((20, 16, 4), 40)
JUMP = "<answer> ( 20 - 4 ) + 16 </answer>"
SEARCH = (
    "20 - 16 = 4 , 4 + 4 = 8 no 20 + 4 = 24 , 24 + 16 = 40 yes <answer> ( 20 + 4 ) + 16 </answer>"
)
SLIP = "20 - 4 = 24 , 24 + 16 = 40 yes <answer> ( 20 - 4 ) * 16 </answer>"
LEFT = "20 + 4 = 24 , 24 + 16 = 40 no <answer> ( 20 - 4 ) + 16 </answer>"


def run(*accuracies: float) -> list[dict]:
    """Rows of metrics of a run that is evaluated at every second step."""
    rows = []
    for step in range(2 * len(accuracies) - 1):
        row = {"step": step}
        if step:
            row |= {"length": 10.0 + step, "backtracks": 0.1 * step, "entropy": 1 / step}
        if step % 2 == 0:
            accuracy = accuracies[step // 2]
            row |= {
                "heldout_accuracy": accuracy,
                "heldout_greedy": accuracy / 2,
                "heldout_length": 10.0 + step,
                "heldout_backtracks": 0.2 * step,
            }
        rows.append(row)
    return rows


def lines_of(axis) -> dict:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def plain(markup: str) -> str:
    """The text that a reader of the HTML sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_curve_of_one_run():
    figure = show.curve(run(0.2, 0.5, 0.9), panels=4)
    accuracy, length, backtracks, entropy = map(lines_of, figure.axes)
    assert accuracy["sampled"] == [[0, 0.2], [2, 0.5], [4, 0.9]]
    assert accuracy["greedy"] == [[0, 0.1], [2, 0.25], [4, 0.45]]
    assert [y for _, y in accuracy["base, step 0"]] == [0.2, 0.2]
    assert length["training"] == [[step, 10 + step] for step in (1, 2, 3, 4)]
    assert [y for _, y in length["base, step 0"]] == [10, 10]
    assert backtracks["held-out"][-1] == [4, 0.8]
    assert entropy["training"][0] == [1, 1] and "base, step 0" not in entropy
    assert len(show.curve(run(0.2)).axes) == 3
    axes = show.curve(run(0.2, 0.5), panels=9).axes
    nine = {axis.get_title("left"): lines_of(axis) for axis in axes}
    assert len(nine) == 9 and nine["Mean reward"] == {}


def test_curve_of_seeds_has_their_mean():
    longer, shorter = run(0.2, 0.4, 0.9), run(0.4, 0.8)
    lines = lines_of(show.curve(longer, shorter).axes[0])
    mean = lines["sampled, mean of 2 seeds"]
    assert np.allclose(mean, [[0, 0.3], [2, 0.6]])  # the steps that all have
    assert np.allclose([y for _, y in lines["base, step 0"]], 0.3)


@pytest.mark.parametrize("own", [{}, {"heldout_turns": 1.5}])
def test_curve_of_another_task_has_its_own_measures(own):
    """In the place of Countdown's backtracks; of a task without any, one panel less."""
    rows = [{"step": 0, "heldout_accuracy": 0.1, "heldout_length": 2.0} | own]
    rows.append({"step": 1, "turns": 2.0, "length": 2.0, "entropy": 0.5})
    axes = {axis.get_title("left"): lines_of(axis) for axis in show.curve(rows, panels=4).axes}
    assert show.BACKTRACKS.title not in axes
    assert ("Turns" in axes) == bool(own) and "Entropy of the next token, nats" in axes
    if own:
        assert axes["Turns"]["held-out"] == [[0, 1.5]] and axes["Turns"]["training"] == [[1, 2.0]]
    drawn = [axis for axis in show.curve(rows, panels=9).axes if axis.axison]
    assert len(drawn) == 8 + bool(own)


def test_curve_is_a_picture_without_a_screen(tmp_path):
    show.curve([{"step": 0}], run(0.1, 0.2)).savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seconds, drawn", [(math.inf, 1), (-1.0, 4)])
def test_watch_keeps_all_rows_and_draws_seldom(monkeypatch, seconds, drawn):
    updates = []

    class Handle:
        update = updates.append

    monkeypatch.setattr(show, "display", lambda *_, **__: Handle)
    old, new = run(0.2, 0.3, 0.4), run(0.2, 0.5, 0.9)
    rows = show.watch(iter(new[2:]), old, seconds=seconds)
    assert rows == old[:2] + new[2:]
    assert len(updates) == drawn
    assert lines_of(updates[-1].axes[0])["sampled"] == [[0, 0.2], [2, 0.5], [4, 0.9]]


def test_table_and_shares():
    table = show.table(["a", "b"], [[1, 0.12345], ["x", 2.0]]).data
    assert table == "| a | b |\n| --- | --- |\n| 1 | 0.123 |\n| x | 2 |"
    assert show.shares({"jump": 3, "search": 1}, ("jump", "check", "search")) == [0.75, 0, 0.25]


def test_runs_against_the_rule():
    runs = {"seed 0": run(0.2, 0.9), "seed 1": run(0.4, 0.8)}
    shares = {"step 0": [0.1, 0.2], "step 2": [0.3, 0.6]}
    figure = show.against_rule(runs, {"seed 0": shares, "seed 1": shares}, [0.3, 0.9])
    accuracy, _, attempts = (lines_of(axis) for axis in figure.axes)
    assert accuracy["seed 1"] == [[0, 0.4], [2, 0.8]]
    assert attempts["the rule, no mistake"] == [[1, 0.3], [2, 0.9]]
    assert attempts["seed 0, step 2"] == [[1, 0.3], [2, 0.6]] and len(attempts) == 5


def test_marked_tells_true_from_false():
    spans = re.findall(r"color:(\S+);.*?title=\"(.*?)\">(.*?)</span>", show.marked(SLIP, PUZZLE))
    assert spans[0] == (show.WRONG, "20 - 4 is 16", "20 - 4 = 24")
    assert spans[1] == (show.RIGHT, "24 + 16 is 40", "24 + 16 = 40")
    assert spans[2][:2] == (show.WRONG, "the answer equals 256, not 40")
    assert show.WRONG not in show.marked(SEARCH, PUZZLE)


@given(st.text() | st.text(alphabet="<>&\"' 0123456789=+-*/()answer").map(lambda t: SEARCH + t))
def test_marked_loses_and_adds_nothing(text):
    bare = re.sub(r"<span style=[^>]*>|</span>", "", show.marked(text, PUZZLE))
    assert html.unescape(bare) == text


def test_side_by_side():
    seen = plain(show.side_by_side(PUZZLE, {"step 0": JUMP, "step <9>": SLIP}).data)
    assert seen.startswith("20 16 4 → 40step 0<answer> ( 20 - 4 ) + 16 </answer>gave up; ")
    assert "it equals 32, not 40; 0 of 0 sums true" in seen
    assert "step <9>" + SLIP + "slipped; it equals 256, not 40; 1 of 2 sums true" in seen


def test_answers_of_any_task():
    seen = show.answers(LastFirst(), [3, 2, 9], {"step 0": "<b> 3", "step 9": "9"}).data
    assert plain(seen) == "3 2 9 = 50 :step 0<b> 3reward 0step 99reward 1"
    coloured = show.answers(Countdown(), PUZZLE, {"step 0": SLIP})
    assert coloured.data == show.side_by_side(PUZZLE, {"step 0": SLIP}).data


QUESTION = Question(world=5, start=7, relations=("lives", "works"))
FIRST = LookUp().reply("<ask> 7 lives </ask>", QUESTION)
ASKED = f"<ask> 7 lives </ask> {FIRST} <ask> {FIRST} </ask> nothing <answer> 3 </answer>"


def test_who_wrote_tells_the_replies_from_the_rest():
    parts = who_wrote(LookUp(), ASKED, QUESTION)
    assert "".join(text for text, _ in parts) == ASKED
    assert [text for text, is_reply in parts if is_reply] == [FIRST, "nothing"]
    # A row that was cut off before its reply, and a model that writes what a tool might say.
    assert who_wrote(LookUp(), "<ask> 7 lives </ask>", QUESTION) == [
        ("<ask> 7 lives </ask>", False)
    ]
    assert who_wrote(LookUp(), FIRST, QUESTION) == [(FIRST, False)]
    assert who_wrote(Countdown(), SEARCH, PUZZLE) == [(SEARCH, False)]


def test_answers_show_the_turns():
    seen = show.answers(LookUp(), QUESTION, {"step 9": ASKED}).data
    assert seen.count(show.ORANGE) == 2 and "2 replies; reward 0" in plain(seen)
    assert ASKED in plain(seen)
    hostile = show.turns([("<b>\n", False), ("<script>", True)])
    assert "<b>" not in hostile and "<script>" not in hostile
    assert html.unescape(plain(hostile)) == "<b><script>"


def test_explorer_of_another_task():
    right = f"<answer> {QUESTION.answer} </answer>"
    history = [{"step": 0, "sampled": [ASKED]}, {"step": 10, "sampled": [right]}]
    box = show.explorer([QUESTION], history, LookUp())
    _, (chosen, puzzle), _, view = (getattr(each, "children", each) for each in box.children)
    assert [*chosen.options] == show.EVERY_TASKS
    assert [name for name, _ in puzzle.options] == [LookUp().prompt(QUESTION)]
    assert show.ORANGE in view.value and "reward 1" in plain(view.value)
    chosen.value = "solved before but not after"
    assert puzzle.options == ()
    chosen.value = "solved after but not before"
    assert len(puzzle.options) == 1


def test_select_and_filters():
    before, after = [JUMP, SEARCH, JUMP, SEARCH], [SEARCH, SEARCH, LEFT, SLIP]
    found = {name: show.select([PUZZLE] * 4, before, after, name) for name in show.FILTERS}
    assert found == {
        "all puzzles": [0, 1, 2, 3],
        "solved after but not before": [0],
        "solved before but not after": [3],
        "found then abandoned": [2],
        "a false sum": [3],
    }


def test_tree_branches_where_attempts_do():
    text = "20 - 16 = 4 , 4 + 4 = 8 no 20 - 16 = 4 , 4 * 4 = 16 no 20 + 4 = 25 , 25 + 16 = 41 no"
    figure = show.tree(traces.parse(text, PUZZLE))
    boxes = [t for t in figure.axes[0].texts if t.get_bbox_patch()]
    assert [t.get_text() for t in boxes] == [
        "20 16 4 → 40",
        "20 - 16 = 4",
        "4 + 4 = 8",
        "4 * 4 = 16",
        "20 + 4 = 25",
        "25 + 16 = 41",
    ]
    assert [to_hex(t.get_color()) for t in boxes].count(show.WRONG) == 1
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert [[1, 0], [2, -1]] in lines and len(lines) == 5
    twice = show.tree(traces.parse("20 - 16 = 4 , 4 + 4 = 8 no " * 2, PUZZLE)).axes[0]
    grey = [t.get_text() for t in twice.texts if to_hex(t.get_color()) == show.GREY]
    assert grey == ["again 20 - 16 = 4 , 4 + 4 = 8"]
    assert show.tree(traces.parse(JUMP, PUZZLE)).axes[0].texts[0].get_text() == "20 16 4 → 40"


def test_explorer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = Puzzle((19, 3, 2), 40)
    history = [
        {"step": 0, "sampled": [JUMP, JUMP], "greedy": [SLIP, JUMP]},
        {"step": 10, "sampled": [SEARCH, JUMP], "greedy": [SEARCH, SEARCH]},
    ]
    (kind, first, second), (chosen, puzzle), (export, note), view = (
        getattr(box, "children", box) for box in show.explorer([PUZZLE, other], history).children
    )
    assert [name for name, _ in puzzle.options] == ["20 16 4 → 40", "19 3 2 → 40"]
    assert JUMP in plain(view.value) and SEARCH in plain(view.value)
    chosen.value = "solved after but not before"
    assert [name for name, _ in puzzle.options] == ["20 16 4 → 40"]
    export.click()
    page = (tmp_path / "traces.html").read_text()
    assert page.startswith("<!doctype html>") and plain(page).count(SEARCH) == 1
    assert "19 3 2" not in page and note.value.startswith("1 puzzle")
    kind.value = "greedy"
    assert SLIP in plain(view.value)
    first.value = 10
    assert plain(view.value).count(SEARCH) == 2 or view.value == ""
    chosen.value = "found then abandoned"
    assert puzzle.options == () and view.value == ""


def headless(out, *assignments: str, **env: str) -> subprocess.CompletedProcess:
    job = Path(__file__).parents[2] / "notebooks" / "05_train.py"
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    command = [sys.executable, job, "--out", out, *sets]
    env = os.environ | env
    return subprocess.run(command, capture_output=True, text=True, cwd=job.parent.parent, env=env)


def test_main_job_draws_its_curve_and_resumes(tmp_path):
    small = ("steps=1", "prompts=2", "group=2", "eval_puzzles=4", "pass_k=1", "completion_len=2")
    first = headless(tmp_path / "run", *small)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("held-out accuracy") == 2  # steps 0 and 1
    rows = (tmp_path / "run/metrics.jsonl").read_text()
    (tmp_path / "run/curve.png").unlink()
    again = headless(tmp_path / "run", *small)
    assert again.returncode == 0 and "held-out accuracy" not in again.stdout
    assert (tmp_path / "run/curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run/metrics.jsonl").read_text() == rows
    other = headless(tmp_path / "run", *small, "seed=1")
    assert other.returncode == 2 and "seed: 0 -> 1" in other.stderr.splitlines()[-1]


MORE = [pytest.param(wrong, marks=pytest.mark.slow) for wrong in ("steps=many", "steps=-1")]


@pytest.mark.parametrize("wrong", ["stepz=20", *MORE])
def test_main_job_says_in_a_line_what_is_wrong(tmp_path, wrong):
    done = headless(tmp_path / "run", wrong)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert wrong.partition("=")[0] in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_main_job_says_in_a_line_what_the_machine_refuses(tmp_path):
    (tmp_path / "run").touch()
    done = headless(tmp_path / "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is a file, or lies in one: a run needs a folder." in done.stderr


@pytest.mark.slow
def test_main_job_says_in_a_line_why_a_download_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://localhost:9")  # where nobody answers
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    done = headless(tmp_path / "run", "model=google/gemma-3/flax/none")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].endswith(".")
