"""What fits on eight cores of TPU v3, v5e and v6e, as XLA's compiler says: writes fits.json.

`python tests/benchmarks/fits.py [MODEL ...]`, more than an hour for all models; needs no TPU. Each
row is a model, a chip and a way of training, with the largest number of prompts of which 8
completions of 256 + 1,024 tokens each fit, and GiB per core of each program at that size. Rows that
fits.json has are kept, programs once compiled too.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
WAYS = {
    "all weights, KL": {"kl": 0.001},
    "adapters, KL": {"kl": 0.001, "lora": 16},
    "adapters, KL, layers gathered one at a time": {"kl": 0.001, "lora": 16, "gather": False},
}
CHIPS = ("v3-8", "v5e-8", "v6e-8")
# Where the search begins on a v3-8: it finds the same from anywhere.
START = {"gemma3-270m": 256, "gemma3-1b": 256, "gemma2-2b": 32, "gemma3-4b": 32, "gemma2-9b": 16}
CASES = [(model, way) for model in START for way in list(WAYS)[:2]][:6]
CASES += [(model, list(WAYS)[2]) for model in list(START)[3:]]


def row(model: str, chip: str, way: str) -> dict:
    """One row of the table, compiled in this process."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from aha_lib.tpu import plan

    same = dict(WAYS[way], prompt_len=256, completion_len=1024, group=8)
    if model not in plan.SETTINGS:
        same["micro_batch"] = 8  # as for gemma2-2b
    start = START[model] * (2 if chip == "v6e-8" else 1)
    prompts = plan.largest("prompts", model, chip, start=start, **same)
    answer = plan.plan(model, chip, **same, prompts=prompts or plan.CHIPS[chip].cores)
    return {
        "model": model,
        "chip": chip,
        "way": way,
        "prompts": prompts,
        "micro_batch": answer.settings.micro_batch,
        "GiB": {p.name: round(p.total, 2) for p in answer.programs},
        "GiB available": plan.CHIPS[chip].hbm,
    }


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown: a line for a model and a way, a column for each chip."""
    at = {(r["model"], r["way"], r["chip"]): _cell(r) for r in rows}
    granted = {r["chip"]: f"{r['chip']}, {r['GiB available']:g} GiB" for r in rows}
    heads = [granted.get(chip, chip) for chip in CHIPS]
    lines = [f"| model | trained | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for case in CASES:
        cells = [at.get((*case, chip), "not asked") for chip in CHIPS]
        lines.append(f"| {' | '.join((*case, *cells))} |")
    return lines


def _cell(r: dict) -> str:
    sample, update = (
        max(gib for name, gib in r["GiB"].items() if name.startswith(kind))
        for kind in ("sample", "update")
    )
    return f"{r['prompts'] or 'not even 8'} ({sample:.1f}, {update:.1f})"


if __name__ == "__main__":
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    wanted = sys.argv[1:] or list(START)
    for case in [(m, c, w) for c in CHIPS for x in wanted for m, w in CASES if m == x]:
        if case in [(r["model"], r["chip"], r["way"]) for r in rows]:
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # its memory is given back
            rows.append(fresh.submit(row, *case).result())
        print(rows[-1], flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(*table(rows), sep="\n")
