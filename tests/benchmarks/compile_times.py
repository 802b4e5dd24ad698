"""What XLA's TPU compiler takes for the programs of a run: writes compile_times.json.

`python tests/benchmarks/compile_times.py PRESET CHIP [--largest] [--side-by-side]`; needs libtpu
and no TPU. One program after the other: seconds of a processor, and GiB of a core. What
the file has is kept, so that it can be ended and started again. `--largest`: of each name only the
largest program, the others are counted. `--side-by-side`: then also all of them as a run compiles
them, in a thread for each core. The record is read by `aha_lib.tpu.forecast`.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import time

import jax

from aha_lib.presets import SETTINGS, shape
from aha_lib.run import ahead, programs
from aha_lib.tpu import forecast, plan


def found(preset: str, chip: str):
    """All programs of a preset's run on a chip, and the mesh that they are for."""
    settings = SETTINGS[preset]
    mesh = plan._mesh_of_absent_tpu(plan.CHIPS[chip], settings.tp)
    with jax.set_mesh(mesh):
        return list(programs.every(programs.absent(shape(preset), settings, mesh))), mesh


def measure(program: programs.Program, mesh) -> dict:
    """A program, compiled: seconds of lowering and of XLA, and memory.

    Seconds are the processor's, not the clock's: other work on the machine adds nothing.
    """
    start = time.process_time()
    with jax.set_mesh(mesh):
        lowered = program.lower()
    middle = time.process_time()
    arguments, temporaries, _ = plan._ask_compiler(lowered)
    return {
        "seconds": round(time.process_time() - middle, 1),
        "lowering": round(middle - start, 1),
        "GiB": round(arguments + temporaries + program.resident, 2),
    }


def write(record: dict) -> None:
    forecast.RECORD.write_text(json.dumps(record, indent=1) + "\n")


def of_run(record: dict, preset: str, chip: str) -> dict:
    """The part of the record that is about a run; an empty one if it is new."""
    for run in record["runs"]:
        if (run["preset"], run["chip"]) == (preset, chip):
            return run
    record["runs"].append({"preset": preset, "chip": chip, "programs": []})
    return record["runs"][-1]


def one_by_one(record: dict, run: dict, *, largest: bool) -> None:
    """Fill in what the run's record lacks."""
    each, mesh = found(run["preset"], run["chip"])
    each.sort(key=lambda program: -program.size)
    known = {(p["name"], p["size"]): p for p in run["programs"]}
    run["programs"] = []
    for program in each:
        key = program.name, program.size
        run["programs"].append(known.get(key, {"name": program.name, "size": program.size}))
    write(record)
    first_of_name = set()
    for program, row in zip(each, run["programs"], strict=True):
        wanted = not largest or program.name not in first_of_name
        first_of_name.add(program.name)
        if ("seconds" not in row or "by" in row) and wanted:
            row.pop("by", None)  # a figure from elsewhere, until it is timed here
            row |= measure(program, mesh)
            print(row, flush=True)
            write(record)


def side_by_side(run: dict) -> None:
    """All programs as `run.ahead` compiles them."""
    each, mesh = found(run["preset"], run["chip"])
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        ahead.compile_all(each)
    run["side by side"] = {
        "seconds": round(time.perf_counter() - start),
        "cores": os.cpu_count(),
    }


def about() -> dict:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return versions | {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=list(SETTINGS))
    parser.add_argument("chip", choices=list(plan.CHIPS))
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--side-by-side", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", None)
    record = {"runs": []}
    with contextlib.suppress(FileNotFoundError):
        record = json.loads(forecast.RECORD.read_text())
    record["about"] = about()
    run = of_run(record, args.preset, args.chip)
    one_by_one(record, run, largest=args.largest)
    if args.side_by_side:
        side_by_side(run)
        write(record)
    took = [p["seconds"] for p in run["programs"] if "seconds" in p]
    print(f"{len(run['programs'])} programs, {len(took)} timed: {sum(took):.0f} s, {max(took)} s")
