"""Numbers that stand in a notebook's text, held to the records they are from."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NULLS = json.loads((ROOT / "tests/benchmarks/nulls.json").read_text())["nulls"]
REHEARSED = json.loads((ROOT / "tests/rehearsal/record.json").read_text())["tiny"]
EXERCISES = json.loads((ROOT / "tests/benchmarks/exercises.json").read_text())["runs"]


def text(name: str) -> str:
    """A notebook's words, each line break a blank."""
    lines = (ROOT / f"notebooks/{name}.py").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


@pytest.fixture(scope="module")
def words():
    return text("02_countdown_env")


def solved(rule: str, count: int, limits: tuple[str, ...]) -> list[float]:
    shares = NULLS[f"{count} numbers, P, {rule}"]["solved"]
    return [round(shares[limit], 2) for limit in limits]


def test_what_a_perfect_search_solves(words):
    """02, of four numbers within 200, 400 and 1,024 tokens, and of three within 200."""
    said = re.search(
        r"solves (\S+) within 200 tokens, (\S+) within 400 and (\S+) within 1,024", words
    )
    assert [*map(float, said.groups())] == solved("depth-first, round", 4, ("200", "400", "1024"))
    assert "with three numbers it solves all within 200" in words
    assert solved("depth-first, round", 3, ("200",)) == [1.0]


def test_what_a_flat_search_solves(words):
    said = re.search(
        r"without going back to a partial result, solves (\S+), (\S+) and (\S+)\. ", words
    )
    assert [*map(float, said.groups())] == solved("flat, round", 4, ("200", "400", "1024"))


def test_the_tiny_base_needs_no_reward_for_form(words):
    said = re.search(r"without the 0\.1 ends at the same accuracy, (\S+)\. ", words)
    (without,) = [run for run in EXERCISES if run["case"] == "form 0" and run["seed"] == 0]
    rows = (ROOT / "aha_lib/data/run/seed0/metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])["heldout_accuracy"]
    accuracies = last, without["heldout"]["accuracy"][-1]
    assert [round(a, 2) for a in accuracies] == [float(said[1])] * 2


@pytest.mark.parametrize(
    "name", ["00_setup_tpu", "01_load_gemma", "02_countdown_env", "03_sampler"]
)
def test_minutes_with_the_tiny_preset(name):
    """As rehearsed on two cores: by the clock, to which other work adds, or as computed."""
    said = re.search(r"\| `tiny` \| [^|]*\| (?:(under) )?(\d+)(?: to (\d+))?", text(name))
    under, first, last = said.groups()
    least, most = (0, int(first)) if under else (int(first), int(last))
    (row,) = [row for row in REHEARSED if row["notebook"] == name]
    assert any(least <= row[kind] <= most for kind in ("minutes", "processor_minutes"))
