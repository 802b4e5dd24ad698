"""Checkpoints: written while a run goes on, checked when they are read, damaged ones set aside.

All hosts write their part. Only a wrong checksum or a missing or torn part counts as damage; any
other error of reading ends the run with a sentence. Knows nothing of models, puzzles or rewards;
takes pytrees of arrays and a run's folder.
"""

import contextlib
import json
import logging
import math
import operator
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from aha_lib.run import folder
from aha_lib.run.session import any_host

KEPT = 3  # checkpoints: the last two and the best
LOOKS = 4  # at a checkpoint that a run may be deleting, before it counts as damaged
PAUSE = 0.2  # seconds between them
VANISHED = "it was deleted"

# What reading says of files that are not what was written. TensorStore's codes begin its messages;
# the kinds of error are those of Orbax's own files, which are JSON.
TORN = re.compile(r"DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION: Error reading")
TORN_KINDS = (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError)
TORN_KINDS = (*TORN_KINDS, NotImplementedError)  # of a sharding whose name is misspelt
# But not where the operating system could not read (EIO, EACCES); "not found" is a missing part.
OS_ERROR = re.compile(r"\[OS error (?!2:)|Errno (?!2\])")


# Writing


def manager(out: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Of the folder's checkpoints: written while the run goes on, the last two and the best kept.

    The best has the highest held-out accuracy of those saved with one. `read_only` for a folder
    whose run may be going on elsewhere.
    """
    # Orbax tells every file it writes, and of an error, which it raises, hundreds of lines.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    accuracy = operator.itemgetter("heldout_accuracy")
    best = BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(KEPT - 1), best]),
        cleanup_tmp_directories=not read_only,  # of a save that was killed
        read_only=read_only,
    )
    return ocp.CheckpointManager((out / "checkpoints").resolve(), options=options)


def check_room(out: Path, tree, model: int = 0) -> None:
    """Raise OSError if the disk has no room for all checkpoints of `tree` that a run holds.

    Nor for a model of so many bytes, which it writes at its end.
    """
    need = model + (KEPT + 1) * sum(x.nbytes for x in jax.tree.leaves(tree))  # one is being written
    there = sum(x.stat().st_size for x in (out / "checkpoints").rglob("*") if x.is_file())
    free = shutil.disk_usage(out).free + there
    if free < need:
        also = ", and the model" if model else ""
        raise OSError(
            f"{out} has {free / 2**30:.3g} GiB of disk, and the checkpoints may take "
            f"{need / 2**30:.3g} ({KEPT} are kept, one is written{also}): choose another folder, "
            "or set lora=16."
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


# Reading


class Found(NamedTuple):
    """The newest checkpoint that is whole (None and -1: none is), and why newer ones are not."""

    tree: dict | None
    step: int
    damaged: dict[int, str]  # step -> reason


class _Vanished(Exception):
    """A checkpoint was deleted by the run that goes on, while it was being read."""


def newest(manager: ocp.CheckpointManager, shapes: dict, upto: int | float = math.inf) -> Found:
    """The newest whole checkpoint up to a step, as `shapes` says (with shardings).

    Changes nothing. Raises OSError where one cannot be read, which does not mean that it is
    damaged.
    """
    return _newest(manager, shapes, upto, _read)


def _newest(manager, shapes: dict, upto: int | float, read: Callable) -> Found:
    damaged = {}
    for step in sorted((n for n in manager.all_steps() if n <= upto), reverse=True):
        tree, why = read(manager, step, shapes)
        bad, vanished = any_host(why, why == VANISHED)  # on any host: all have to agree
        if vanished:
            raise _Vanished
        if not bad:
            return Found(tree, step, damaged)
        del tree  # the next one needs its memory
        damaged[step] = why or "another host cannot read its part"
    return Found(None, -1, damaged)


def _read(manager: ocp.CheckpointManager, step: int, shapes: dict) -> tuple[dict | None, str]:
    """What a checkpoint holds, and why it is damaged ("" if it is not)."""
    if not (manager.directory / str(step) / "default").is_dir():
        return None, "its arrays are gone"
    of_sum = jax.ShapeDtypeStruct((), jnp.uint32, sharding=_replicated(shapes))
    wanted = ocp.args.StandardRestore(shapes | {"checksum": of_sum})
    try:
        tree = manager.restore(step, args=wanted)
    except (jax.errors.JaxRuntimeError, MemoryError):  # of the devices, not of the files
        raise
    except Exception as error:  # Orbax and TensorStore have many kinds
        if not is_damage(error):
            raise OSError(
                f"The checkpoint of step {step} in {manager.directory} cannot be read, which need "
                f"not mean that it is damaged; nothing was changed. {type(error).__name__}: "
                f"{str(error)[:500]}"
            ) from error
        return None, type(error).__name__
    if int(tree.pop("checksum")) != int(checksum(tree)):
        return None, "its checksum is another"
    return tree, ""


def _replicated(shapes: dict) -> jax.sharding.Sharding:
    """Whole on each of the devices that `shapes` names: a run may go on on other ones."""
    sharding = jax.tree.leaves(shapes)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading tells that files are missing, torn or altered."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    words = " ".join(map(str, causes))
    if OS_ERROR.search(words):
        return False
    return any(isinstance(cause, TORN_KINDS) for cause in causes) or bool(TORN.search(words))


def restore(
    manager: ocp.CheckpointManager, shapes: dict, out: Path, first: int = 0
) -> tuple[dict | None, int]:
    """For the run that trains in `out`: its newest whole checkpoint, and the step of it.

    Damaged ones that are newer are told, and moved to `damaged`. None and -1 where none was ever
    written: there are no rows after step `first`, which has the first checkpoint. Raises ValueError
    where there were checkpoints and none can be used: nothing begins anew over what has been.
    """
    tree, step, damaged = newest(manager, shapes)
    if tree is None:
        check_nothing_is_lost(out, damaged, first)
        return None, -1
    for bad, why in damaged.items():
        folder.log(
            out, f"The checkpoint of step {bad} is damaged ({why}): moved to {out / 'damaged'}."
        )
        if jax.process_index() == 0:
            (out / "damaged").mkdir(exist_ok=True)
            shutil.rmtree(out / "damaged" / str(bad), ignore_errors=True)
            (out / "checkpoints" / str(bad)).rename(out / "damaged" / str(bad))
    if damaged:
        sync_global_devices("set aside")
        manager.reload()
    return tree, step


def check_nothing_is_lost(out: Path, damaged: dict[int, str], first: int = 0) -> None:
    """ValueError where a run would begin at 0 although it has been further."""
    last = folder.last_step(out)
    if damaged:
        found = ", ".join(f"step {step}: {why}" for step, why in damaged.items())
        problem = f"No checkpoint in {out / 'checkpoints'} is whole ({found})"
    elif last > first:
        problem = f"{out} has rows up to step {last}, and no checkpoint to go on from"
    else:
        return
    raise ValueError(
        f"{problem}. Nothing was changed. Put a whole checkpoint back, choose another folder, or "
        f"move metrics.jsonl, rollouts.jsonl and checkpoints out of {out} to begin anew."
    )


def look(out: Path, shapes: dict, upto: int | float = math.inf) -> Found:
    """For one who looks at a folder, whose run may be going on: as `newest`.

    Changes nothing. What is deleted while it is read is no damage: the next newest is read. A
    warning where the newest checkpoint is damaged and an older one is opened.
    """
    found = None
    while found is None:
        with contextlib.suppress(_Vanished), _open_to_look(out) as there:
            found = _newest(there, shapes, upto, _read_while_it_lasts)
    if found.damaged and found.tree is not None:
        bad = ", ".join(map(str, found.damaged))
        warnings.warn(
            f"Damaged checkpoints in {out}: of step {bad}. That of step {found.step} is opened.",
            stacklevel=2,
        )
    return found


def _open_to_look(out: Path) -> ocp.CheckpointManager:
    """A manager that changes nothing. Orbax fails where a checkpoint goes while it lists them."""
    for left in reversed(range(LOOKS)):
        try:
            return manager(out, read_only=True)
        except FileNotFoundError:
            if not left:
                raise
            time.sleep(PAUSE)


def _read_while_it_lasts(manager, step: int, shapes: dict) -> tuple[dict | None, str]:
    """As `_read`; a checkpoint that is on its way out is VANISHED instead of damaged."""
    for left in reversed(range(LOOKS)):
        problem = None
        try:
            tree, why = _read(manager, step, shapes)
        except OSError as error:
            tree, why, problem = None, str(error), error
        if not why:
            return tree, why
        time.sleep(PAUSE)  # it is deleted file by file
        if not (manager.directory / str(step)).exists():
            return None, VANISHED
        if problem and not left:
            raise problem
    return None, why


def shapes(tree):
    """What `restore` needs to know of a tree of arrays, which may then be let go."""
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return jax.tree.map(like, tree)


# What is kept, in one number


@jax.jit
def checksum(tree) -> jax.Array:
    """The sum, modulo 2³², of the words that arrays are made of, however they are sharded."""

    def words(x):
        kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(x, kind).sum(dtype=jnp.uint32)

    return sum(map(words, jax.tree.leaves(tree)))


@jax.jit
def _weights_checksum(x: jax.Array) -> jax.Array:
    """That of an array in bfloat16, which is what every place can make of a weight.

    What is next to nothing counts as 0: not every device tells such numbers from it.
    """
    return checksum(jnp.where(jnp.abs(x) < 1e-30, 0, x).astype(jnp.bfloat16))


def check_base(out: Path, base, name: str) -> int:
    """The checksum of the weights that a run starts from.

    ValueError if the folder's run began with others: what it has learnt does not fit these. `name`
    is the model's, for the sentence.
    """
    found = sum(int(_weights_checksum(x)) for x in jax.tree.leaves(base)) % 2**32
    path = out / "base.json"
    if path.exists() and folder.has_begun(out) and folder.read_json(path)["checksum"] != found:
        raise ValueError(
            f"{name} has other weights now than when the run in {out} began: put those back, or "
            "choose another folder."
        )
    return found


def keep_base(out: Path, base, name: str) -> None:
    """Write down which weights the run in a folder starts from. Raises what `check_base` does."""
    found = check_base(out, base, name)
    folder.write(out / "base.json", json.dumps({"model": name, "checksum": found}) + "\n")
