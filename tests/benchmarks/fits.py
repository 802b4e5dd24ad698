"""What fits on eight cores of TPU v3, v5e and v6e, as XLA's compiler says: writes fits.json.

`python tests/benchmarks/fits.py [MODEL ...]`, an hour for all models; needs no TPU. Each row is
a model, a chip and a way of training, with the largest number of prompts of which 8 completions of
256 + 1,024 tokens each fit, and GiB per core of each program at that size. Rows that fits.json has
are kept.
"""

import json
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
WAYS = {
    "all weights": {"kl": 0.0},
    "all weights, KL": {"kl": 0.001},
    "adapters": {"kl": 0.0, "lora": 16},
    "adapters, KL": {"kl": 0.001, "lora": 16},
}
SPREAD = "adapters, KL, layers gathered one at a time"
CHIPS = ("v3-8", "v5e-8", "v6e-8")
# The last two are asked for one thing: whether they can be trained at all.
MODELS = dict.fromkeys(("gemma3-270m", "gemma3-1b", "gemma2-2b"), list(WAYS))
WAYS[SPREAD] = WAYS["adapters, KL"] | {"gather": False}
MODELS |= dict.fromkeys(("gemma3-4b", "gemma2-9b"), ["adapters, KL", SPREAD])


def row(model: str, chip: str, way: str) -> dict:
    """One row of the table, compiled in this process."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from aha_lib import plan

    same = dict(WAYS[way], prompt_len=256, completion_len=1024, group=8)
    if model not in plan.SETTINGS:
        same["micro_batch"] = 8  # as for gemma2-2b
    prompts = plan.largest("prompts", model, chip, **same)
    answer = plan.plan(model, chip, **same, prompts=prompts or plan.CHIPS[chip].cores)
    return {
        "model": model, "chip": chip, "way": way, "prompts": prompts,
        "micro_batch": answer.settings.micro_batch,
        "GiB": {p.name: round(p.total, 2) for p in answer.programs},
        "GiB available": plan.CHIPS[chip].hbm,
        "compile seconds": round(sum(p.seconds for p in answer.programs)),
        "host GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }  # fmt: skip


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown: a line for a model and a way, a column for each chip."""
    at = {(r["model"], r["way"], r["chip"]): r for r in rows}
    granted = {r["chip"]: r["GiB available"] for r in rows}
    heads = [f"{chip}, {granted[chip]:g} GiB" for chip in CHIPS]
    lines = [f"| model | trained | {' | '.join(heads)} | compile s | host GiB |", "|---" * 7 + "|"]
    for model, way in dict.fromkeys(key[:2] for key in at):
        own = [at[model, way, chip] for chip in CHIPS]
        cells = [_cell(r) for r in own]
        seconds, host = (max(r[name] for r in own) for name in ("compile seconds", "host GiB"))
        lines.append(f"| {model} | {way} | {' | '.join(cells)} | {seconds} | {host} |")
    return lines


def _cell(r: dict) -> str:
    sample, update = (max(gib for name, gib in r["GiB"].items() if name.startswith(kind))
                      for kind in ("sample", "update"))  # fmt: skip
    return f"{r['prompts'] or 'not even 8'} ({sample:.1f}, {update:.1f})"


if __name__ == "__main__":
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    wanted = sys.argv[1:] or list(MODELS)
    for case in [(m, c, w) for c in CHIPS for m in wanted for w in MODELS[m]]:
        if case in [(r["model"], r["chip"], r["way"]) for r in rows]:
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # to tell its memory alone
            rows.append(fresh.submit(row, *case).result())
        print(rows[-1], flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(*table(rows), sep="\n")
