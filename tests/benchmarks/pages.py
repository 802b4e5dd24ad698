"""Writes tables into pages, from what was measured: `python tests/benchmarks/pages.py`.

What fits, from fits.json: all rows into notebooks/what_fits.md, the first row of each of four
models into README.md. The tiny model's runs and Gemma's, from their records: a table each into
README.md, curve.png and gemma.png.
Seconds a step, of this package and its peers, from peers.json: a table into README.md. Each goes
between the lines that mark its place. Measures nothing itself.
"""

import itertools
import json
import re
import statistics
from pathlib import Path

import fits
import peers

from aha_lib.look import record, show
from aha_lib.tasks import traces

ROOT = Path(__file__).resolve().parent.parent.parent
ACCELERATOR = Path(__file__).with_name("accelerator.json")
FEW = 4
TINY, GEMMA = record.DATA / "run", record.DATA / "gemma3-270m"
GPU = GEMMA / "h100"
COLD = {"seed": "with searches", "no_search": "without", "zero": "none"}  # by the folder's name
PEERS = {"trl": "trl", "tunix": "google-tunix"}  # and their packages
WORKS = {"fixed": "16 × 16 completions of 120 tokens", "real": "the preset `tiny`, steps 4 to 25"}
KINDS = {"greedy": 3, "length": 1, "backtracks": 2}  # and their digits


def pages() -> dict[Path, str]:
    """The two pages with the tables as they should be."""
    lines = fits.table(json.loads(fits.RESULTS.read_text()))
    head, rule, *rows = ["|".join([*line.split("|")[: 3 + len(fits.CHIPS)], ""]) for line in lines]
    first = {row.split("|")[1]: row for row in reversed(rows)}  # of each model
    few = [row for row in rows if row in first.values()][:FEW]
    tables = {"README.md": few, "notebooks/what_fits.md": rows}
    texts = {
        ROOT / page: written((ROOT / page).read_text(), "what fits", [head, rule, *lines])
        for page, lines in tables.items()
    }
    readme = ROOT / "README.md"
    text = written(texts[readme], "the tiny model's runs", tiny_runs())
    text = written(text, "Gemma's runs", gemma_runs())
    text = written(text, "on a GPU", accelerator())
    return texts | {readme: written(text, "seconds a step", steps())}


def written(text: str, name: str, lines: list[str]) -> str:
    """A page's text with these lines in their place; ValueError where it has none."""
    place = f"(?<=<!-- {name}, by tests/benchmarks/pages.py -->\n).*?(?=<!-- end -->)"
    text, places = re.subn(place, "\n".join(["", *lines, "", ""]), text, flags=re.S)
    if places != 1:
        raise ValueError(f"There are {places} places for the table of {name}.")
    return text


def gemma_runs() -> list[str]:
    """A row for each recorded run of Gemma 3 270M, with its accuracy at the start, after 10 and 20
    steps and at the end."""
    lines = [
        "| cold start | seed | steps × answers | rate | accuracy | greedy | tokens "
        "| backtracks | true sums |",
        "|---" * 9 + "|",
    ]
    for place, kind in itertools.product((GPU, GEMMA, GEMMA / "h100_2e-4"), COLD):
        for folder in sorted(place.glob(f"{kind}*")):
            run = record.read(folder)
            ends = [run.measured[i] for i in (0, -1)]
            shown = [row for row in run.measured if row["step"] in (0, 10, 20) or row is ends[1]]
            accuracy = " → ".join(f"{row['heldout_accuracy']:.3f}" for row in shown)
            others = [
                " → ".join(f"{row[f'heldout_{of}']:.{digits}f}" for row in ends)
                for of, digits in KINDS.items()
            ]
            sums = " → ".join(true_sums(run, i) for i in (0, -1))
            size = f"{ends[1]['step']} × {run.settings.prompts * run.settings.group}"
            rate = f"{run.settings.learning_rate:.0e}" + " falling" * (run.settings.decay < 1)
            cells = COLD[kind], run.settings.seed, size, rate, accuracy, *others, sums
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def tiny_runs() -> list[str]:
    """The held-out panel's figures of each shipped run, before and after and on the way."""
    lines = [
        "| seed | accuracy, base | step 10 | step 20 | step 60 | greedy, step 60 | tokens "
        "| backtracks |",
        "|---" * 8 + "|",
    ]
    for folder in sorted(TINY.glob("seed*")):
        run = record.read(folder)
        at = {row["step"]: row for row in run.measured}
        cells = [
            str(run.settings.seed),
            *(f"{at[n]['heldout_accuracy']:.3f}" for n in (0, 10, 20, 60)),
        ]
        cells.append(f"{at[60]['heldout_greedy']:.3f}")
        cells += [
            " → ".join(f"{at[n][f'heldout_{of}']:.{digits}f}" for n in (0, 60))
            for of, digits in KINDS.items()
            if of != "greedy"
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def steps() -> list[str]:
    """Seconds a step of each work of peers.json: the rounds' median, least and most."""
    stored = json.loads(peers.RECORD.read_text())
    trl, tunix = (stored["about"][who][PEERS[who]] for who in PEERS)
    lines = [f"| work | this project | TRL {trl} | Tunix {tunix} |", "|---|---|---|---|"]
    for work, name in WORKS.items():
        cells = []
        for who in ("ours", *PEERS):
            of = [run["step"] for run in peers.rounds(stored["runs"], work, who)]
            ends = of and f"{statistics.median(of):.1f} ({min(of):.1f} to {max(of):.1f})"
            cells.append(ends or "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def accelerator() -> list[str]:
    """A row for each case of accelerator.json."""
    stored = json.loads(ACCELERATOR.read_text())
    lines = [
        f"| {stored['device'].removeprefix('1 x ')} | sampling | update | mean gap, nats |",
        "|---|---|---|---|",
    ]
    for row in stored["rows"]:
        name = f"{row['rows']} × {row['length']} tokens of {row['model']}"
        both = zip(("sample", "update"), row["share"], strict=True)
        parts = [f"{row[part]:.2f} s ({share:.0%})" for part, share in both]
        lines.append(f"| {' | '.join([name, *parts, str(row['mismatch'][0])])} |")
    return lines


def true_sums(run: record.Record, evaluation: int) -> str:
    """The share of true ones among the sums that the sampled answers state, if they are many."""
    pairs = zip(run.kept[evaluation]["sampled"], run.panel, strict=True)
    truths = [claim.true for pair in pairs for claim in traces.parse(*pair).claims]
    truths = [true for true in truths if true is not None]
    return f"{sum(truths) / len(truths):.2f}" if len(truths) > 50 else "–"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
    for name, folders in (("curve", sorted(TINY.glob("seed*"))), ("gemma", [GPU / "seed0"])):
        seeds = [record.read(folder).rows for folder in folders]
        show.curve(*seeds).savefig(ROOT / f"notebooks/{name}.png", dpi=100)
