"""Whether a run is to begin, to go on or to stop: by its rewards, its numbers, clock and signals.

Also what several hosts agree on, and output that nobody reads any more. Knows nothing of models,
puzzles or checkpoints; tells the loop, which saves and ends.
"""

import contextlib
import itertools
import math
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, reached_preemption_sync_point
from jaxtyping import Float
from tqdm.auto import tqdm

from aha_lib import devices

BAD_STEPS = 3  # in a row, whose gradients are not finite: then the run stops
LOST = re.compile(r"(?i)gloo|connection|unavailable")  # in what JAX says of a host that is gone
UNFINISHED = os.EX_TEMPFAIL  # exit status (75) of a run that was saved and stopped before its end


# Is it worth beginning?


def verdict(rewards: Float[np.ndarray, "P G"], seconds: float) -> str:
    """What the base's rewards promise, in a sentence; ValueError where they teach nothing.

    They teach where some answers of a group are right (1) and some are not. `seconds` is the time
    that sampling them took.
    """
    right = rewards == 1
    mixed = right.any(1) & ~right.all(1)
    found = (
        f"Preflight: of {right.size} answers {right.mean():.1%} are right and "
        f"{(rewards > 0).mean():.1%} have the format; {mixed.mean():.0%} of the groups have right "
        f"and wrong ones. Sampled in {seconds:.0f} s, compilation included."
    )
    memory = jax.local_devices()[0].memory_stats()
    if memory:
        free = memory["bytes_limit"] - memory["peak_bytes_in_use"]
        found += f" {free / 2**30:.1f} GiB of a device stayed free."
    if mixed.any():
        return f"{found} Go."
    why = "No group has both: reward amplifies what a model sometimes does, and this one does not"
    if right.all():
        why = "All are right: there is nothing to learn"
    raise ValueError(
        f"{found} No go. {why}. Choose another model or other puzzles, or set "
        "preflight=False to go on all the same."
    )


# Is it going well?


def warnings(rows: Sequence[dict], width: int = 5) -> set[str]:
    """What is going wrong, by the means of the last `width` steps against earlier ones."""
    reward = np.array([row["reward"] for row in rows if "reward" in row])
    entropy = np.array([row["entropy"] for row in rows if "entropy" in row])
    if len(reward) < 2 * width:
        return set()
    means = np.convolve(reward, np.full(width, 1 / width), "valid")
    found = set()
    if means[-1] < means.max() / 2:
        found.add(
            "the reward has collapsed to less than half of its best. Lower learning_rate, "
            "or set kl."
        )
    if means[-1] < 0.5 and entropy[-width:].mean() < entropy[:width].mean() / 10:
        found.add(
            "the entropy has collapsed to a tenth, and most answers are wrong. Set "
            "entropy_bonus, or raise clip_high."
        )
    return found


def check_finite(rows: Sequence[dict]) -> None:
    """FloatingPointError after so many steps in a row with updates that were skipped."""
    if len(rows) >= BAD_STEPS and all(row.get("skipped_updates") for row in rows[-BAD_STEPS:]):
        raise FloatingPointError(
            f"Step {rows[-1]['step']}: gradients were not finite in {BAD_STEPS} steps in a row. "
            "None was applied, and the last checkpoint is good. Start again in another folder "
            "with a lower learning_rate or max_grad_norm; if activations are bfloat16, look for "
            "an overflow there."
        )


# How long has it?


def seconds_of(row: dict) -> float:
    """How long a step took: the sum of its parts, without the evaluation."""
    parts = [value for name, value in row.items() if name.endswith("_seconds")]
    return float(sum(parts))


def estimate_time_left(rows: Sequence[dict], steps: int, dollars: float = 0.0) -> str:
    """Seconds a step (median of the last 20), hours to go, and the price at dollars an hour.

    Evaluations are left out.
    """
    recent = [seconds_of(row) for row in rows[-20:]]
    typical = float(np.median(recent)) if recent else 0.0
    hours = typical * (steps - rows[-1]["step"]) / 3600 if rows else 0.0
    price = f" and ${hours * dollars:.2f}" if dollars else ""
    return f"{typical:.2g} s a step, {hours:.2g} h{price} to go"


def deadline(hours: float = 0.0) -> float:
    """`time.monotonic()` at which the run has to have stopped.

    In so many hours, if they are given (not 0): who gives them knows his session. Otherwise where
    the place ends its sessions; one that is older than that has another limit, which is not known.
    """
    left = 3600 * hours if hours > 0 else devices.time_left()
    if left is None or left <= 0:
        return math.inf
    return time.monotonic() + left


# Who stops it?


@contextlib.contextmanager
def catch_signals() -> Iterator[set[signal.Signals]]:
    """Ctrl-C and SIGTERM as members of a set; a second one does what it does elsewhere.

    Under `jax.distributed` JAX keeps SIGTERM to itself, see `preempted`. Threads other than the
    main one get no signals.
    """
    seen: set[signal.Signals] = set()
    before = {}

    def note(number, frame):
        if seen:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        seen.add(signal.Signals(number))
        # Ctrl-C reaches `tee` too, which is gone by now: an error here would lose the step.
        with contextlib.suppress(OSError):
            os.write(2, b"\nThe step is finished and saved first. Once more ends it now.\n")

    wanted = [signal.SIGINT]
    if not jax.distributed.is_initialized():
        wanted.append(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_asked = itertools.count()  # a number that no two steps of a process share, of whatever kind


def preempted() -> bool:
    """Whether JAX was sent a SIGTERM, on any host; all hosts ask, once after every step."""
    return jax.distributed.is_initialized() and reached_preemption_sync_point(next(_asked))


# Output that nobody may read any more


@contextlib.contextmanager
def forgive_closed_output() -> Iterator[None]:
    """An error of writing to a pipe or a terminal that is gone is forgotten.

    What is written there later goes nowhere, the rest of Python's buffers at its end included. For
    statements that do nothing but write.
    """
    try:
        yield
    except (OSError, ValueError):  # a broken pipe, a terminal that hung up, a closed file
        _discard_closed_output()


def _discard_closed_output() -> None:
    """Put /dev/null in the place of standard output and error where their reader is gone."""
    for descriptor in (1, 2):
        asked = select.poll()
        asked.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def show_line(line: str) -> None:
    """Print a line above the progress bar, on the first host."""
    if jax.process_index() == 0:
        with forgive_closed_output():
            tqdm.write(line)


class Progress:
    """tqdm's bar over `total` steps, of which `done` are done; shown by the first host."""

    def __init__(self, done: int, total: int, name: str | None = None):
        self._bar = tqdm(disable=True)
        with forgive_closed_output():
            self._bar = tqdm(
                desc=name,
                initial=done,
                total=total,
                unit="step",
                disable=jax.process_index() > 0,
            )

    def advance(self, note: str = "") -> None:
        """One step more; the note, if there is one, stays until the next."""
        with forgive_closed_output():
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def close(self) -> None:
        with forgive_closed_output():
            self._bar.close()


# Several hosts


def any_host(*flags) -> list[bool]:
    """Of each flag, whether it is true on any host. All hosts have to ask."""
    found = np.array([bool(flag) for flag in flags])
    if jax.process_count() > 1:
        found = process_allgather(found).any(axis=0)
    return found.tolist()


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Of several hosts, an error ends this one at once: then the others' collectives fail too.

    Each says why in a line. They would otherwise wait for one another, at the next collective or
    at the end of the program. A kill loses nothing, so there is nothing to put in order.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        with forgive_closed_output():
            why = explain_failure(error)
            print(f"Host {jax.process_index()}: {why}", file=sys.stderr, flush=True)
        os._exit(1)


def explain_failure(error: Exception) -> str:
    """An error in a sentence: of a host that is gone, what that means for this one."""
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(why):
        return (
            "Another host has ended, and this one cannot go on alone. Start all of them "
            "again: the same command goes on from the last checkpoint."
        )
    return why
