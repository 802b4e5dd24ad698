"""What is kept of a run when its checkpoints go: settings, rows, held-out completions, adapters.

The records that come with the package lie in `data/run` and `data/gemma3-270m`; notebooks 06 and 07
read them. `python -m aha_lib.look.record runs/tiny FOLDER` keeps one more. Knows nothing of how a
run is trained, nor of what its completions say.
"""

import argparse
import gzip
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from aha_lib.model import lora
from aha_lib.presets import Settings
from aha_lib.run import train
from aha_lib.run.checkpoints import read_rows
from aha_lib.tasks import task as tasks
from aha_lib.tasks.rollout import held_out_panel

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Record:
    """A run of GRPO, as its folder or a record of it tells."""

    name: str  # of the folder
    settings: Settings
    rows: list[dict]  # of metrics, one for each step
    kept: list[dict]  # for each evaluation "step", and "sampled" and "greedy": a text a puzzle

    @property
    def panel(self) -> list:
        """The held-out puzzles that the kept texts answer."""
        return held_out_panel(tasks.load(self.settings), self.settings)

    @property
    def measured(self) -> list[dict]:
        """The rows of the evaluations."""
        return [row for row in self.rows if "heldout_accuracy" in row]


def read(folder: str | Path) -> Record:
    """The run in a folder, going on, finished or kept; FileNotFoundError if there is none."""
    folder = Path(folder)
    packed = folder / "rollouts.jsonl.gz"
    if packed.exists():
        kept = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    else:
        kept = read_rows(folder / "rollouts.jsonl")
    settings = Settings(**json.loads((folder / "settings.json").read_text()))
    return Record(folder.name, settings, read_rows(folder / "metrics.jsonl"), kept)


def keep(run: str | Path, folder: str | Path) -> None:
    """Write the record of the run in `run` to `folder`, and the machine that this is.

    Of a run on adapters also these, at its newest checkpoint. Raises FileNotFoundError if there
    is no run.
    """
    run, folder = Path(run), Path(folder)
    settings = read(run).settings
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("settings.json", "metrics.jsonl"):
        shutil.copy(run / name, folder / name)
    texts = (run / "rollouts.jsonl").read_bytes()
    (folder / "rollouts.jsonl.gz").write_bytes(gzip.compress(texts, mtime=0))
    (folder / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    if settings.lora:
        model, *_ = train.trained(run)
        lora.save(model, folder / "adapters.safetensors")


def machine() -> dict:
    """What a figure is to be read with: processor, accelerators, versions."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.exists() else []
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m aha_lib.look.record", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, as notebook 05 leaves it")
    parser.add_argument("folder", type=Path, help="where its record goes")
    args = parser.parse_args(argv)
    try:
        keep(args.run, args.folder)
    except FileNotFoundError as error:
        parser.exit(2, f"{args.run} holds no whole run: {error}\n")


if __name__ == "__main__":
    main()
