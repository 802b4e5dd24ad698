"""Whether a run is to begin, to go on or to stop: by its rewards, its numbers, clock and signals.

And what several hosts agree on. Knows nothing of models, puzzles or checkpoints; tells the loop,
which saves and ends.
"""

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, reached_preemption_sync_point
from jaxtyping import Float

from aha_lib import devices

BAD_STEPS = 3  # in a row, whose gradients are not finite: then the run stops
LOST = re.compile(r"(?i)gloo|connection|unavailable")  # in what JAX says of a host that is gone


def verdict(rewards: Float[np.ndarray, "P G"], seconds: float) -> str:
    """What the base's rewards promise, in a sentence; ValueError where they teach nothing.

    They teach where some answers of a group are right (1) and some are not. `seconds` is the time
    that sampling them took.
    """
    right, memory = rewards == 1, jax.local_devices()[0].memory_stats()
    mixed = right.any(1) & ~right.all(1)
    told = (
        f"Preflight: of {right.size} answers {right.mean():.1%} are right and "
        f"{(rewards > 0).mean():.1%} have the format; {mixed.mean():.0%} of the groups have right "
        f"and wrong ones. Sampled in {seconds:.0f} s, compilation included."
    )
    if memory:
        free = memory["bytes_limit"] - memory["peak_bytes_in_use"]
        told += f" {free / 2**30:.1f} GiB of a device stayed free."
    if mixed.any():
        return f"{told} Go."
    why = "No group has both: reward amplifies what a model sometimes does, and this one does not"
    if right.all():
        why = "All are right: there is nothing to learn"
    raise ValueError(
        f"{told} No go. {why}. Choose another model or other puzzles, or set "
        "preflight=False to go on all the same."
    )


def signs(rows: Sequence[dict], wide: int = 5) -> set[str]:
    """What is going wrong, by the means of the last `wide` steps against earlier ones."""
    reward, entropy = (
        np.array([row[name] for row in rows if name in row]) for name in ("reward", "entropy")
    )
    if len(reward) < 2 * wide:
        return set()
    means, found = np.convolve(reward, np.full(wide, 1 / wide), "valid"), set()
    if means[-1] < means.max() / 2:
        found.add(
            "the reward has collapsed to less than half of its best. Lower learning_rate, "
            "or set kl."
        )
    if means[-1] < 0.5 and entropy[-wide:].mean() < entropy[:wide].mean() / 10:
        found.add(
            "the entropy has collapsed to a tenth, and most answers are wrong. Set "
            "entropy_bonus, or raise clip_high."
        )
    return found


def outlook(rows: Sequence[dict], steps: int, dollars: float = 0.0) -> str:
    """Seconds a step (median of the last 20), hours to go, and the price at dollars an hour.

    Evaluations are left out.
    """
    took = [sum(row[name] for name in row if name.endswith("_seconds")) for row in rows[-20:]]
    typical = float(np.median(took)) if took else 0.0
    hours = typical * (steps - rows[-1]["step"]) / 3600 if rows else 0.0
    price = f" and ${hours * dollars:.2f}" if dollars else ""
    return f"{typical:.2g} s a step, {hours:.2g} h{price} to go"


def check_finite(rows: Sequence[dict]) -> None:
    """FloatingPointError after so many steps in a row with updates that were skipped."""
    if len(rows) >= BAD_STEPS and all(row.get("skipped_updates") for row in rows[-BAD_STEPS:]):
        raise FloatingPointError(
            f"Step {rows[-1]['step']}: gradients were not finite in {BAD_STEPS} steps in a row. "
            "None was applied, and the last checkpoint is good. Start again in another folder "
            "with a lower learning_rate or max_grad_norm; if activations are bfloat16, look for "
            "an overflow there."
        )


@contextlib.contextmanager
def signals() -> Iterator[set[signal.Signals]]:
    """Ctrl-C and SIGTERM as members of a set; a second one does what it does elsewhere.

    Under `jax.distributed` JAX keeps SIGTERM to itself, see `preempted`. Threads other than the
    main one get no signals.
    """
    seen, before = set(), {}

    def note(number, frame):
        if seen:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        seen.add(signal.Signals(number))
        os.write(2, b"\nThe step is finished and saved first. Once more ends it now.\n")

    wanted = [signal.SIGINT] + [signal.SIGTERM] * (not jax.distributed.is_initialized())
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deadline(hours: float = 0.0) -> float:
    """`time.monotonic()` at which the session is over: in so many hours (0: not said), or earlier
    where the place ends it."""
    left = [3600 * hours] * (hours > 0) + [devices.time_left()]
    return time.monotonic() + min(x for x in [*left, math.inf] if x is not None)


def preempted(step: int) -> bool:
    """Whether JAX was sent a SIGTERM, on any host; all hosts ask, once after every step."""
    return jax.distributed.is_initialized() and reached_preemption_sync_point(step)


def any_host(*flags) -> list[bool]:
    """Of each flag, whether it is true on any host. All hosts have to ask."""
    found = np.array([bool(flag) for flag in flags])
    if jax.process_count() > 1:
        found = process_allgather(found).any(axis=0)
    return found.tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Of several hosts, an error ends this one at once: then the others' collectives fail too.

    Each says why in a line. They would otherwise wait for one another, at the next collective or
    at the end of the program. A kill loses nothing, so there is nothing to put in order.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(why):
            why = (
                "Another host has ended, and this one cannot go on alone. Start all of them "
                "again: the same command goes on from the last checkpoint."
            )
        print(f"Host {jax.process_index()}: {why}", file=sys.stderr, flush=True)
        os._exit(1)
