"""A GRPO step of this package, of TRL and of Tunix, measured in turn on this machine.

    python tests/benchmarks/peers.py FOLDER

makes an environment for each of the two in FOLDER, runs every program in its own process, three
rounds in turn, and writes peers.json beside this file. Keep the machine quiet. Two works:

- fixed: the tiny Gemma 3, 16 puzzles x 16 completions x 120 tokens, nothing stops early;
- real: the preset "tiny", from the shipped base, its puzzles, reward and hyper-parameters (TRL too;
  Tunix reads no such checkpoint). The round is the seed. Ours evaluates every ten steps, TRL never.

A round's figures are medians over its steps but the first three, which compile. Our compiled
programs are kept for the rounds after the first, as the headless job keeps them: `loop` and the
seconds to 0.9 of the first round hold compilation, those of the others do not.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import replace
from datetime import date
from pathlib import Path

from aha_lib.presets import MODELS, SETTINGS
from aha_lib.tpu import chips

HERE = Path(__file__).parent
PROJECT, RECORD = HERE.parent.parent, HERE / "peers.json"
PACKAGES = {
    "ours": ["jax", "flax", "optax"],
    "trl": ["torch", "transformers", "trl", "datasets", "accelerate", "sentencepiece", "protobuf"],
    "tunix": ["google-tunix"],
}
PROGRAMS = {"ours": "ours.py", "trl": "with_trl.py", "tunix": "with_tunix.py"}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(PROJECT),
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
WARM = 3  # steps left out


def python(folder: Path, who: str) -> str:
    """The Python of a peer's own environment, made if it is not there."""
    if who == "ours":
        return sys.executable
    place = folder / who
    if not (place / "bin/python").exists():
        venv.create(place, with_pip=True)
        subprocess.run([place / "bin/pip", "install", "-q", *PACKAGES[who]], check=True)
    return str(place / "bin/python")


def measure(folder: Path, who: str, work: str, steps: int, seed: int) -> dict:
    """One process: its medians, in seconds, and what it says of the whole."""
    start = time.perf_counter()
    done = subprocess.run(
        [python(folder, who), HERE / "peer_steps" / PROGRAMS[who], work, str(steps), str(seed)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"')]
    rows = [row for row in lines if "step" in row]
    if len(rows) < WARM + 2:
        sys.exit(done.stderr)
    middle = {
        part: statistics.median(row[part] for row in rows[WARM:])
        for part in ("step", "sample", "update")
    }
    more = {} if "step" in lines[0] else lines[0]  # ours begins with the machine's matmul rate
    if work == "real":
        more |= {"steps": len(rows), "loop": rows[-1]["loop"], "outside": wall - rows[-1]["loop"]}
        for key, name in (("accuracy", "training_accuracy_0.9"), ("heldout", "heldout_0.9")):
            more[name] = next((x["loop"] for x in rows if (x.get(key) or 0) >= 0.9), None)
    figures = {k: v and round(v, 3) for k, v in (middle | more).items()}
    return {"who": who, "work": work, "seed": seed, **figures}


def versions(folder: Path, who: str, names: list[str]) -> dict[str, str]:
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    said = subprocess.run([python(folder, who), "-c", code, *names], capture_output=True, text=True)
    return dict(zip(names, said.stdout.split(), strict=True))


def reached(run: dict) -> float:
    """Our update's operations a second as a share of the matmul rate of the same process."""
    here = chips.Chip("", 1, 0, run["matmul"] * 1e9, math.inf, math.inf, 0)
    settings = replace(SETTINGS["tiny"], completion_len=120)
    return chips.estimate(MODELS["tiny"], settings, here)["update"] / run["update"]


def rounds(runs: list[dict], work: str, who: str) -> list[dict]:
    return [run for run in runs if (run["work"], run["who"]) == (work, who)]


def table(runs: list[dict]) -> None:
    parts = "step", "sample", "update"
    print(f"{'work':<8}{'who':<8}{'step':>8}{'sample':>8}{'update':>8}   seconds, a round each")
    for work, who in dict.fromkeys((run["work"], run["who"]) for run in runs):
        of = rounds(runs, work, who)
        middle = "".join(f"{statistics.median(run[k] for run in of):>8.2f}" for k in parts)
        print(f"{work:<8}{who:<8}{middle}   " + "  ".join(f"{run['step']:.2f}" for run in of))
    shares = (f"{reached(run):.0%}" for run in rounds(runs, "fixed", "ours"))
    print("our update, of the matmul rate:", *shares)
    learnt = (run["heldout_0.9"] for run in rounds(runs, "real", "ours"))
    print("our loop's seconds to 0.9 held-out, the first with compilation:", *learnt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9, help="of the fixed work")
    parser.add_argument("--real-steps", type=int, default=25, help="of the real work")
    args = parser.parse_args()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    runs = []
    for turn in range(args.rounds):
        for work, steps, who in (
            ("fixed", args.steps, [*PROGRAMS]),
            ("real", args.real_steps, ["ours", "trl"]),
        ):
            for name in who if turn % 2 == 0 else reversed(who):
                runs.append(measure(args.folder, name, work, steps, turn))
                print(runs[-1], flush=True)
    about = {
        "date": str(date.today()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **{who: versions(args.folder, who, names) for who, names in PACKAGES.items()},
    }
    lines = ",\n".join(map(json.dumps, runs))
    RECORD.write_text(f'{{"about": {json.dumps(about)},\n"runs": [\n{lines}\n]}}\n')
    table(runs)


if __name__ == "__main__":
    main()
