"""Do the presets of TinyZero's task fit eight TPU cores, as XLA's compiler says, and how long?

`python tests/benchmarks/tinyzero_fits.py` compiles supervised training, sampling and update of each
preset for each chip and writes a row of tinyzero_fits.json: GiB per core of each program, and the
minutes that `tpu.forecast` estimates. Needs no TPU; minutes a row. Rows that are there are kept.
"""

import json
import time
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
PRESETS = "tinyzero-270m", "tinyzero-1b", "tinyzero-2b"
CHIPS = "v5e-8", "v3-8"


def row(preset: str, chip: str) -> dict:
    """One row of the table, compiled in this process."""
    from aha_lib.tpu import plan

    began = time.monotonic()
    answer = plan.plan(preset, chip)
    minutes = answer.forecast
    return {
        "preset": preset,
        "chip": chip,
        "fits": answer.fits,
        "GiB": {program.name: round(program.total, 2) for program in answer.programs},
        "GiB available": plan.CHIPS[chip].hbm,
        "minutes": minutes and round(minutes.minutes, 1),
        "seconds of compilation here": round(time.monotonic() - began),
    }


def main() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for preset in PRESETS:
        for chip in CHIPS:
            if not any((one["preset"], one["chip"]) == (preset, chip) for one in rows):
                rows.append(row(preset, chip))
                RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
