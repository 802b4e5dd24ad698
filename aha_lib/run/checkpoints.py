"""A run's folder: its settings, its rows, its checkpoints, and how a run goes on from them.

Of several hosts, which share the folder, the first writes the files and all write the
checkpoints. A kill between any two writes loses nothing: what a checkpoint does not cover is
written again. Knows nothing of models, puzzles or rewards; takes rows and pytrees of arrays.
"""

import contextlib
import dataclasses
import importlib
import json
import logging
import math
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from tqdm.auto import tqdm

from aha_lib.presets import Pretraining, Settings
from aha_lib.run.session import any_host

KEPT = 3  # checkpoints: the last two and the best


def claim(out: Path, settings: Settings | Pretraining) -> list[str]:
    """Make `out` this run's folder, or see that it is; gives the settings that have changed.

    Raises ValueError if it is a file, or holds a run that these settings would not continue.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{out} is a file, or lies in one: a run needs a folder.") from None
    path, new = out / "settings.json", dataclasses.asdict(settings)
    old = json.loads(path.read_text()) if path.exists() else new
    old = {field.name: field.default for field in dataclasses.fields(settings)} | old
    changed = [name for name in new if old[name] != new[name]]
    told = [f"{name}: {old[name]} -> {new[name]}" for name in changed]
    if not settings.changeable.issuperset(changed):
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(told)}): choose another folder, "
            "or the same settings to resume it."
        )
    write(path, json.dumps(new, indent=2) + "\n")
    if jax.process_index() == 0:
        for name in ("stop", "stopped.txt"):  # of the time before
            (out / name).unlink(missing_ok=True)
    return told


def manager(out: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Of the folder's checkpoints: written while the run goes on, the last two and the best kept.

    The best has the highest held-out accuracy of those saved with one. `read_only` for a folder
    whose run may be going on elsewhere.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it writes
    accuracy = operator.itemgetter("heldout_accuracy")
    best = BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(KEPT - 1), best]),
        cleanup_tmp_directories=not read_only,  # of a save that was killed
        read_only=read_only,
    )
    return ocp.CheckpointManager((out / "checkpoints").resolve(), options=options)


def check_room(out: Path, tree) -> None:
    """Raise OSError if the disk has no room for all checkpoints of `tree` that a run holds."""
    need = (KEPT + 1) * sum(x.nbytes for x in jax.tree.leaves(tree))  # one is being written
    there = sum(x.stat().st_size for x in (out / "checkpoints").rglob("*") if x.is_file())
    free = shutil.disk_usage(out).free + there
    if free < need:
        raise OSError(
            f"{out} has {free / 2**30:.3g} GiB of disk, and the checkpoints may take "
            f"{need / 2**30:.3g} ({KEPT} are kept, one is written): choose another folder, or set "
            "lora=16."
        )


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """The error of a full disk, whoever met it, as an OSError with a sentence."""
    try:
        yield
    except Exception as error:
        if not re.search(r"No space left|ENOSPC|Disk quota", f"{error} {error.__cause__}"):
            raise
        raise OSError(
            f"The disk is full: make room in {out}, and the same command goes on from the last "
            "checkpoint, which is whole."
        ) from error


def save(manager: ocp.CheckpointManager, step: int, tree: dict, row: dict) -> None:
    """Begin to write `tree`, with its checksum, as the checkpoint of a step with these metrics."""
    metrics = {name: row[name] for name in ("heldout_accuracy",) if name in row}
    # Waited for: on several hosts its collectives must not run beside those of the save.
    kept = ocp.args.StandardSave(tree | {"checksum": jax.block_until_ready(checksum(tree))})
    manager.save(step, args=kept, metrics=metrics or None)


def restore(
    manager: ocp.CheckpointManager, shapes: dict, out: Path, upto: int | float = math.inf
) -> tuple[dict | None, int]:
    """The newest checkpoint that is whole, as `shapes` says (with shardings), and its step.

    Of those up to a step; None and -1 if there is none. A damaged one is told, and moved to
    `damaged`.
    """
    shapes = ocp.args.StandardRestore(shapes | {"checksum": jax.ShapeDtypeStruct((), jnp.uint32)})
    for step in sorted((n for n in manager.all_steps() if n <= upto), reverse=True):
        try:
            tree = manager.restore(step, args=shapes)
            bad = int(tree.pop("checksum")) != int(checksum(tree)) and "its checksum is another"
        except Exception as error:  # Orbax and TensorStore have many kinds
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            tree, bad = None, type(error).__name__
        if any_host(bad) == [False]:
            return tree, step
        say(out, f"The checkpoint of step {step} is damaged ({bad}): moved to {out / 'damaged'}.")
        if jax.process_index() == 0:
            (out / "damaged").mkdir(exist_ok=True)
            shutil.rmtree(out / "damaged" / str(step), ignore_errors=True)
            (out / "checkpoints" / str(step)).rename(out / "damaged" / str(step))
        sync_global_devices("set aside")
        manager.reload()
    return None, -1


def shapes(tree):
    """What `restore` needs to know of a tree of arrays, which may then be let go."""
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return jax.tree.map(like, tree)


@jax.jit
def checksum(tree) -> jax.Array:
    """The sum, modulo 2³², of the words that arrays are made of, however they are sharded."""

    def words(x):
        kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(x, kind).sum(dtype=jnp.uint32)

    return sum(map(words, jax.tree.leaves(tree)))


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, none if there is no file; a torn last line is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut(path: Path, step: int) -> list[dict]:
    """The rows of a file up to a step; those after it are taken out of the file."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def append(path: Path, row: dict) -> None:
    """Add a row to a JSON-lines file, and have it on the disk."""
    if jax.process_index() == 0:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write(path: Path, text: str) -> None:
    """Write a file by way of another: a kill in between loses nothing."""
    if jax.process_index() == 0:
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)


def say(out: Path, line: str) -> None:
    """A line for the reader, above the progress bar and in the folder's `log.txt`."""
    if jax.process_index() == 0:
        tqdm.write(line)
        with (out / "log.txt").open("a") as file:
            file.write(line + "\n")


def stopped(out: Path, line: str) -> None:
    """Say that the run has stopped, and leave it in `stopped.txt`."""
    say(out, line)
    write(out / "stopped.txt", line + "\n")


def tracker(settings: Settings, out: Path) -> Callable[[str, float, int], None] | None:
    """What takes a name, a value and a step to TensorBoard's or Weights & Biases' own writer.

    None if the settings ask for neither. Raises ValueError where the writer's package is missing.
    """
    name, said = settings.tracker, dataclasses.asdict(settings)
    if name == "none" or jax.process_index() > 0:
        return None
    try:
        if name == "tensorboard":
            return importlib.import_module("tensorboard.summary").Writer(str(out / name)).add_scalar
        run = importlib.import_module(name).init(
            project="aha", dir=out, id=out.resolve().name, resume="allow", config=said
        )
        return lambda key, value, step: run.log({key: value}, step=step)
    except ImportError:
        raise ValueError(f"tracker={name} needs its package: pip install {name}") from None
