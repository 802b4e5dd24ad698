"""A run's rows to TensorBoard or Weights & Biases, by their own writers.

Knows nothing of what the rows say.
"""

import dataclasses
import importlib
import secrets
from collections.abc import Callable
from pathlib import Path

import jax

from aha_lib.presets import Settings
from aha_lib.run import folder

Tracker = Callable[[dict, int], None]  # takes a row and its step


def start(settings: Settings, out: Path) -> Tracker:
    """What takes the rows of a run; does nothing where the settings ask for no tracker.

    Raises ValueError where the writer's package is missing, or will not start.
    """
    name = settings.tracker
    if name == "none" or jax.process_index() > 0:
        return lambda row, step: None
    try:
        if name == "tensorboard":
            write = _tensorboard(out)
        else:
            write = _wandb(settings, out)
    except ImportError:
        raise ValueError(f"tracker={name} needs its package: pip install {name}") from None
    except Exception as error:  # no key, no network: each writer has kinds of its own
        raise ValueError(
            f"tracker={name} does not start ({error}). For W&B, log in (`wandb login`) or set "
            "WANDB_API_KEY, or set WANDB_MODE=offline; or leave tracker out."
        ) from error

    def track(row: dict, step: int) -> None:
        for key, value in row.items():
            if isinstance(value, int | float):
                write(key, value, step)

    return track


def _tensorboard(out: Path) -> Callable[[str, float, int], None]:
    writer = importlib.import_module("tensorboard.summary").Writer(str(out / "tensorboard"))
    return writer.add_scalar


def _wandb(settings: Settings, out: Path) -> Callable[[str, float, int], None]:
    """The folder's run there, by a random id that the folder keeps: names of folders repeat."""
    path = out / "wandb_id.txt"
    name = path.read_text().strip() if path.exists() else secrets.token_hex(8)
    run = importlib.import_module("wandb").init(
        project="aha",
        dir=out,
        id=name,
        name=out.resolve().name,
        resume="allow",
        config=dataclasses.asdict(settings),
    )
    folder.write(path, name + "\n")
    return lambda key, value, step: run.log({key: value}, step=step)
