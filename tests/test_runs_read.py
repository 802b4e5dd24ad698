"""Notebook 06 reads any run: of each preset, of two steps, one that solves nothing, or none.

The folders are written here, not trained: a run's rows and texts are all that the notebook reads.
"""

import dataclasses
import re
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from aha_lib.presets import SETTINGS
from aha_lib.run import folder
from aha_lib.tasks import task as tasks
from aha_lib.tasks.rollout import held_out_panel

NOTEBOOK = Path(__file__).parents[1] / "notebooks/06_aha_traces.py"
NONSENSE = "12*x ) no <answer>", "", "yes </answer> 3", "<answer>1+1</answer>"
TRIED = "5 + 5 = 10 , 10 + 1 = 11 no <answer> ( 5 + 5 ) + 1 </answer>"


def write_run(out: Path, preset: str, texts: tuple[str, ...], steps: tuple[int, ...], **changes):
    """A run whose answers are all wrong: `texts` over and over."""
    s = dataclasses.replace(SETTINGS[preset], eval_puzzles=12, **changes)
    panel = held_out_panel(tasks.load(s), s)
    answers = [texts[i % len(texts)] for i in range(len(panel))]
    base = out / "base"  # a cold start has rows of its own
    base.mkdir(parents=True)
    (base / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    folder.write_settings(out, s)
    for step in steps:
        row = {"step": step, "heldout_accuracy": 0.0, "heldout_greedy": 0.0}
        row |= {"heldout_length": 9.0, "heldout_backtracks": 0.0}
        folder.append(out / "metrics.jsonl", row)
        kept = {"step": step, "sampled": answers, "greedy": answers}
        folder.append(out / "rollouts.jsonl", kept)


def outputs(preset: str, place: Path) -> list[dict]:
    """What the notebook shows with this preset, started in a folder."""
    notebook = jupytext.read(NOTEBOOK)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = cell.source.replace('preset = "tiny"', f'preset = "{preset}"')
    where = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    return [output for c in notebook.cells for output in c.get("outputs", [])]


def printed(shown: list[dict]) -> str:
    return "".join(output.get("text", "") for output in shown)


def warnings(shown: list[dict]) -> list[str]:
    """Lines such as `RuntimeWarning: Mean of empty slice`."""
    told = "".join(output.get("text", "") for output in shown if output.get("name") == "stderr")
    return re.findall(r".*Warning:.*", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "texts", "steps"),
    [
        ("gemma3-270m-short", NONSENSE, (0, 1, 2)),
        ("gemma3-270m", NONSENSE, (0, 25)),  # TinyZero's puzzles: three numbers, or four
        ("tiny", (TRIED,), (0, 2)),  # attempts, and no second one
        ("tiny", ("",), (0,)),  # nothing but the base has been measured
    ],
)
def test_a_run_that_solves_nothing_is_read(preset, texts, steps, tmp_path):
    write_run(tmp_path / "runs" / preset, preset, texts, steps)
    shown = outputs(preset, tmp_path)
    assert not warnings(shown)
    assert f"{preset}: 12 puzzles each" in printed(shown)
    assert "Not so in this run: more by ten standard errors" in printed(shown)


@pytest.mark.slow
def test_a_run_of_another_task_is_not_taken_for_countdown(tmp_path):
    task = "aha_lib.tasks.last_first:LastFirst"
    write_run(tmp_path / "runs/tiny", "tiny", (TRIED,), (0,), task=task)
    shown = outputs("tiny", tmp_path)
    assert "only Countdown is read" in printed(shown) and "seed2" in printed(shown)


@pytest.mark.slow
def test_without_a_run_the_recorded_ones_are_read_and_the_reader_is_told(tmp_path):
    (tmp_path / "runs/gemma3-1b/base").mkdir(parents=True)  # its cold start goes on
    shown = outputs("gemma3-1b", tmp_path)
    assert "No run of yours in runs/gemma3-1b" in printed(shown)
    assert "Not so" not in printed(shown) and not warnings(shown)
