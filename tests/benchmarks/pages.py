"""Writes tables into pages, from what was measured: `python tests/benchmarks/pages.py`.

Each table goes between the two comments that mark its place: those of runs (run_tables.py) into
README.md and docs/results.md; what fits (fits.json), the GPU's figures (accelerator.json) and
seconds a step (peers.json) into docs/machines.md; the modules' first sentences into
docs/package.md. Draws curve.png. Measures nothing itself.
"""

import ast
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import fits
import peers
import run_tables

from aha_lib.look import record, show

ROOT = Path(__file__).resolve().parent.parent.parent
ACCELERATOR = Path(__file__).with_name("accelerator.json")
PEERS = {"trl": "trl", "tunix": "google-tunix"}  # and their packages
WORKS = {"fixed": "16 × 16 completions of 120 tokens", "real": "the preset `tiny`, steps 4 to 25"}


def page(name: str) -> str:
    """The text of a page of `TABLES`, with its tables as they should be."""
    text = (ROOT / name).read_text()
    for place, lines in TABLES[name].items():
        text = written(text, place, lines())
    return text


def written(text: str, name: str, lines: list[str]) -> str:
    """A page's text with these lines in their place; ValueError where it has none."""
    place = f"(?<=<!-- {name}, by tests/benchmarks/pages.py -->\n).*?(?=<!-- end -->)"
    text, places = re.subn(place, "\n".join(["", *lines, "", ""]), text, flags=re.S)
    if places != 1:
        raise ValueError(f"There are {places} places for the table of {name}.")
    return text


def what_fits() -> list[str]:
    """A row for each model and way of training."""
    lines = fits.table(json.loads(fits.RESULTS.read_text()))
    return ["|".join([*line.split("|")[: 3 + len(fits.CHIPS)], ""]) for line in lines]


def steps() -> list[str]:
    """Seconds a step of each work of peers.json: the rounds' median, least and most."""
    stored = json.loads(peers.RECORD.read_text())
    trl, tunix = (stored["about"][who][PEERS[who]] for who in PEERS)
    rows = []
    for work, name in WORKS.items():
        cells = []
        for who in ("ours", *PEERS):
            of = [run["step"] for run in peers.rounds(stored["runs"], work, who)]
            ends = of and f"{statistics.median(of):.1f} ({min(of):.1f} to {max(of):.1f})"
            cells.append(ends or "–")
        rows.append([name, *cells])
    return run_tables.table(["work", "this project", f"TRL {trl}", f"Tunix {tunix}"], rows)


def accelerator() -> list[str]:
    """A row for each case of accelerator.json."""
    stored = json.loads(ACCELERATOR.read_text())
    rows = []
    for row in stored["rows"]:
        name = f"{row['rows']} × {row['length']} tokens of {row['model']}"
        both = zip(("sample", "update"), row["share"], strict=True)
        parts = [f"{row[part]:.2f} s ({share:.0%})" for part, share in both]
        rows.append([name, *parts, row["mismatch"][0]])
    device = stored["device"].removeprefix("1 x ")
    return run_tables.table([device, "sampling", "update", "mean gap, nats"], rows)


def modules() -> list[str]:
    """A row for each module: its path, and what it is, as its docstring begins."""
    package = ROOT / "aha_lib"
    paths = sorted(package.rglob("*.py"), key=lambda path: (len(path.parts), path))
    rows = []
    for path in paths:
        if path.name.startswith("__"):
            continue
        name = path.relative_to(package).as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        what = " ".join(docstring.partition("\n\n")[0].split())
        rows.append([f"[{name}](../aha_lib/{name})", what])
    return run_tables.table(["module", "what it is"], rows)


TABLES: dict[str, dict[str, Callable[[], list[str]]]] = {
    "README.md": {"results": run_tables.results},
    "docs/results.md": {
        "the tiny model's runs": run_tables.tiny_runs,
        "three bases": run_tables.bases,
        "TinyZero's task": run_tables.tinyzero_runs,
        "TinyZero's presets": run_tables.tinyzero_fits,
        "a tool": run_tables.tool_runs,
        "a tool for Gemma": run_tables.tool_gemma,
        "a calculator": run_tables.calculator_runs,
        "Gemma's runs": run_tables.gemma_runs,
        "will and skill": run_tables.growth,
    },
    "docs/machines.md": {
        "what fits": what_fits,
        "on a GPU": accelerator,
        "seconds a step": steps,
    },
    "docs/package.md": {"the modules": modules},
}


def draw() -> None:
    """The curve of the tiny model's three seeds."""
    seeds = [record.read(folder).rows for folder in sorted(run_tables.TINY.glob("seed*"))]
    show.curve(*seeds).savefig(ROOT / "notebooks/curve.png", dpi=100)


if __name__ == "__main__":
    for name in TABLES:
        (ROOT / name).write_text(page(name))
    draw()
