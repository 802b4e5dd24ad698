"""A run's folder: who is at work in it, its settings, rows, log, and why it has stopped.

Of several hosts, which share the folder, the first writes. A kill between any two writes loses
nothing. Who only looks calls functions that write nothing. Knows nothing of models, puzzles,
rewards or checkpoints; takes settings and rows.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from aha_lib.presets import Pretraining, Settings
from aha_lib.run import session

LOCK_SECONDS = 1.0  # for which a lock is asked for again: one who looks holds it for a moment


# Who is at work


def make(out: Path) -> None:
    """Make the folder of a run. ValueError for a file, or an address of what is not mounted."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(out)):
        raise ValueError(
            f"{out} is an address, and a run needs a folder: mount the bucket (gcsfuse, rclone "
            "mount) and give the folder it is mounted on."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{out} is a file, or lies in one: a run needs a folder.") from None


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Be the only run in a folder: ValueError where another process is at work there.

    A lock of the operating system on the file `lock`: it ends with its process, however that
    ends. The first of several hosts holds it for all. A warning where the file system has no
    locks.
    """
    file, refusal = None, ""
    if jax.process_index() == 0:
        file = (out / "lock").open("a+")
        refusal = _take(file, out)
    (refused,) = session.any_host(refusal)
    if refused:
        if file:
            file.close()
        raise ValueError(refusal or f"{out} was refused to the first host, which says why.")
    try:
        yield
    finally:
        if file:
            file.close()


def _take(file, out: Path) -> str:
    """Lock a file and write into it who has it; otherwise a sentence that says who does."""
    patience = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > patience:
                return _refusal(file, out)
            time.sleep(0.05)
        except OSError as error:
            log(
                out,
                f"{out} is on a file system without locks ({error.strerror}): see to it yourself "
                "that no second process trains there.",
            )
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return ""


def _refusal(file, out: Path) -> str:
    file.seek(0)
    holder = file.read().strip() or "another process"
    if holder == f"process {os.getpid()} on {socket.gethostname()}":
        return (
            f"{out} is being trained by this very process: close the earlier run (its close()), "
            "or restart Python."
        )
    return f"{out} is being trained by {holder}: wait for it, stop it, or choose another folder."


def is_held(out: Path) -> bool | None:
    """Whether a process trains in a folder now; None where the file system cannot tell."""
    try:
        file = (out / "lock").open()
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
    return False


# Settings


def read_settings(out: Path, kind: type = Settings) -> Settings | Pretraining:
    """The settings of the run in a folder.

    FileNotFoundError if there is no run; ValueError, with the file's name, if they are damaged.
    """
    path = out / "settings.json"
    found = read_json(path)
    unknown = found.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(
            f"{path} has settings that are not known here: {', '.join(sorted(unknown))}."
        )
    return kind(**found)


def changed_settings(out: Path, settings: Settings | Pretraining) -> list[str]:
    """What is to change of the run in a folder, as `name: before -> after`.

    Nothing, while it has no rows. ValueError if these settings would not continue it.
    """
    if not has_begun(out):
        return []
    try:
        before = read_json(out / "settings.json")
    except (ValueError, FileNotFoundError) as error:
        log(out, f"{error} The settings of this command are taken for the run's.")
        return []
    told = []
    if isinstance(settings, Settings) and "task" not in before:
        told.append("random keys: those of before 28 November 2026 -> today's")
    # A run of an earlier version lacks the fields that have come since.
    before = {field.name: field.default for field in dataclasses.fields(settings)} | before
    now = dataclasses.asdict(settings)
    changed = [name for name in now if before[name] != now[name]]
    told += [f"{name}: {before[name]} -> {now[name]}" for name in changed]
    if not settings.changeable.issuperset(changed):
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(told)}): choose another folder, "
            "or the same settings to resume it."
        )
    return told


def write_settings(out: Path, settings: Settings | Pretraining) -> None:
    """Make the settings the run's, once they have proved to be possible."""
    write(out / "settings.json", json.dumps(dataclasses.asdict(settings), indent=2) + "\n")


def read_json(path: Path) -> dict:
    """The names and values in a file; ValueError, with its name, if it is damaged."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{path} is damaged ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (no names and values in it).")
    return found


# Rows


def has_begun(out: Path) -> bool:
    """Whether a folder has rows, or checkpoints."""
    steps = (path for path in (out / "checkpoints").glob("*") if path.name.isdigit())
    return last_step(out) >= 0 or any(steps)


def last_step(out: Path) -> int:
    """The last step that the folder has a row of; -1 if there is none."""
    rows, _ = _parse(out / "metrics.jsonl")
    return max((row.get("step", -1) for row in rows), default=-1)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, none if there is no file; a torn last line is left out.

    ValueError, with the file and the line, where another line is damaged.
    """
    rows, damaged = _parse(path)
    if damaged:
        raise ValueError(
            f"{path}, line {damaged[0]}: damaged. The command that trains there goes on without "
            "it, if the run has a whole checkpoint; or take the line out."
        )
    return rows


def parse_lines(text: bytes) -> tuple[list[dict], list[int]]:
    """The rows of JSON lines, and the numbers of the lines (from 1) that are damaged.

    A last line without its end is being written, or was when the process was killed: neither.
    """
    rows, damaged = [], []
    *lines, _ = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def _parse(path: Path) -> tuple[list[dict], list[int]]:
    return parse_lines(path.read_bytes() if path.exists() else b"")


def truncate_after(path: Path, step: int) -> list[dict]:
    """The rows of a file up to a step; those after it are taken out of the file.

    Damaged lines too, which is told; the file as it was is then kept in `damaged`.
    """
    rows, damaged = _parse(path)
    if damaged and jax.process_index() == 0:
        (path.parent / "damaged").mkdir(exist_ok=True)
        shutil.copy(path, path.parent / "damaged" / path.name)
    if damaged:
        lines = ", ".join(map(str, damaged))
        log(path.parent, f"{path}: damaged lines ({lines}) are left out; the run goes on.")
    kept = [row for row in rows if row.get("step", step + 1) <= step]
    write(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


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


# What the run says


def log(out: Path, line: str) -> None:
    """A line in the folder's `log.txt`, and for the reader, above the progress bar."""
    if jax.process_index() == 0:
        with (out / "log.txt").open("a") as file:
            file.write(line + "\n")
    session.show_line(line)


def remove_marks(out: Path) -> None:
    """Take away what an earlier time left: that it was to stop, and that it has stopped."""
    if jax.process_index() == 0:
        for name in ("stop", "stopped.txt"):
            (out / name).unlink(missing_ok=True)


def mark_stopped(out: Path, line: str) -> None:
    """Leave in `stopped.txt` why the run has stopped, then tell it."""
    write(out / "stopped.txt", line + "\n")
    log(out, line)


def why_stopped(out: Path) -> str | None:
    """Why the run in a folder stopped before its end; None if it goes on, or is finished."""
    try:
        return (out / "stopped.txt").read_text().strip()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def keep_reason(out: Path, steps: int | float = math.inf) -> Iterator[None]:
    """Whatever ends the block before its end is written into `stopped.txt`, and goes on its way.

    Not that a caller closes a run of which he has seen the last of so many steps.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, GeneratorExit) and last_step(out) >= steps:
            raise
        with contextlib.suppress(OSError):  # of a full disk, for example
            # The first host to fail knows why; and a stop in good order has written its own.
            with (out / "stopped.txt").open("x") as file:
                file.write(_reason(error, out) + "\n")
        raise


def _reason(error: BaseException, out: Path) -> str:
    again = "The same command goes on from the last checkpoint."
    last = last_step(out)
    if last >= 0:  # else it was at its cold start, or at its beginning
        again = f"The last row is that of step {last}; {again.lower()}"
    if isinstance(error, GeneratorExit):
        return f"Closed by its caller. {again}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"Interrupted at once. {again}"
    return f"Ended by an error. {session.explain_failure(error)}"
