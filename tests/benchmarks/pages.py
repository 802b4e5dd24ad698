"""Writes the tables of what fits from fits.json: `python tests/benchmarks/pages.py`.

All rows into notebooks/what_fits.md, the first row of each of four models into README.md, between
the lines that mark the place. Measures nothing itself: fits.py does.
"""

import json
import re
from pathlib import Path

import fits

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "<!-- what fits, by tests/benchmarks/pages.py -->\n"
PLACE = re.compile(f"(?<={MARK}).*?(?=<!-- end -->)", re.S)
FEW = 4


def pages() -> dict[Path, str]:
    """The two pages with the tables as they should be."""
    lines = fits.table(json.loads(fits.RESULTS.read_text()))
    head, rule, *rows = ["|".join([*line.split("|")[: 3 + len(fits.CHIPS)], ""]) for line in lines]
    first = {row.split("|")[1]: row for row in reversed(rows)}  # of each model
    few = [row for row in rows if row in first.values()][:FEW]
    tables = {"README.md": few, "notebooks/what_fits.md": rows}
    return {ROOT / page: written(ROOT / page, [head, rule, *lines])
            for page, lines in tables.items()}  # fmt: skip


def written(page: Path, lines: list[str]) -> str:
    """The page's text with these lines in their place; ValueError where it has none."""
    text, places = PLACE.subn("\n".join(["", *lines, "", ""]), page.read_text())
    if places != 1:
        raise ValueError(f"{page} has {places} places for the table of what fits.")
    return text


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
