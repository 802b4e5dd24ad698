"""When a run has to stop: the session's clock, signals, and what all hosts agree on.

Knows nothing of models, steps or checkpoints; tells the loop, which saves and ends.
"""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, reached_preemption_sync_point

LOST = re.compile(r"(?i)gloo|connection|unavailable")  # in what JAX says of a host that is gone


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
            why = ("Another host has ended, and this one cannot go on alone. Start all of them "
                   "again: the same command goes on from the last checkpoint.")  # fmt: skip
        print(f"Host {jax.process_index()}: {why}", file=sys.stderr, flush=True)
        os._exit(1)
