"""What is kept of a run when its checkpoints go: settings, rows, held-out completions, adapters.

The records that come with the package lie in `data/run` and `data/gemma3-270m`; notebooks 06 and 07
read them. `aha record runs/tiny FOLDER` keeps one more. Knows nothing of how a
run is trained, nor of what its completions say.
"""

import gzip
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from aha_lib.model import lora
from aha_lib.presets import Settings
from aha_lib.run import cli, train
from aha_lib.run import folder as run_folder
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
    """The run in a folder, going on, finished or kept, up to its last row. Changes nothing.

    FileNotFoundError if there is none; ValueError, with the file and the line, if it is damaged.
    """
    folder = Path(folder)
    settings = run_folder.read_settings(folder)
    rows = run_folder.read_rows(folder / "metrics.jsonl")
    packed = folder / "rollouts.jsonl.gz"
    if packed.exists():
        kept, damaged = run_folder.parse_lines(_unpack(packed))
        if damaged:
            raise ValueError(f"{packed}, line {damaged[0]}: damaged.")
    else:
        kept = run_folder.read_rows(folder / "rollouts.jsonl")
    # A run that goes on writes the texts of an evaluation before its row.
    last = rows[-1]["step"] if rows else -1
    return Record(folder.name, settings, rows, [texts for texts in kept if texts["step"] <= last])


def read_evaluated(folder: str | Path) -> Record | None:
    """The run in a folder, if it has been measured at least once; else None.

    So None where there is no folder, or where a cold start is all that there is yet. ValueError,
    with the file and the line, if it is damaged.
    """
    if not (Path(folder) / "settings.json").exists():
        return None
    run = read(folder)
    return run if run.kept else None


def _unpack(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged, perhaps cut off ({error}).") from None


def keep(run: str | Path, folder: str | Path) -> None:
    """Write the record of the run in `run`, which may be going on, to `folder`.

    With the machine that this is; of a run on adapters also with these, at its newest checkpoint.
    Raises FileNotFoundError if there is no run; ValueError if `folder` is the run's own, or that
    of another run, or the run is damaged.
    """
    run, folder = Path(run), Path(folder)
    found = read(run)
    texts = (run / "rollouts.jsonl").read_bytes()
    if folder.resolve() == run.resolve():
        raise ValueError(f"{run} is the run's own folder: choose another one for its record.")
    if (folder / "lock").exists() or (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds a run: choose another folder for the record.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "settings.json", folder / "settings.json")
    metrics = "".join(json.dumps(row) + "\n" for row in found.rows)
    (folder / "metrics.jsonl").write_text(metrics)
    kept = texts.splitlines(keepends=True)[: len(found.kept)]
    (folder / "rollouts.jsonl.gz").write_bytes(gzip.compress(b"".join(kept), mtime=0))
    (folder / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    if found.settings.lora:
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
    parser = cli.Parser(prog="aha record", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, as notebook 05 leaves it")
    parser.add_argument("folder", type=Path, help="where its record goes")
    args = parser.parse_args(argv)
    try:
        keep(args.run, args.folder)
    except FileNotFoundError as error:
        parser.exit(2, f"{args.run} holds no whole run: {error}\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
