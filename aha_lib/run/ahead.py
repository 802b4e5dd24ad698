"""A run's programs compiled before its first step, side by side, under a bar.

XLA takes minutes for a program of a real model on a TPU, and one thread for each; a TPU's host has
a hundred cores. All shapes that a run can meet are known before it begins, so its programs are
lowered here, and compiled in threads. JAX finds them again when the functions are called: their
arguments have the same shapes, dtypes and shardings. Knows nothing of what the programs compute.
"""

import atexit
import os
import queue
import sys
import threading
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.loop import ROOM
from aha_lib.rl import grpo
from aha_lib.run import programs, session
from aha_lib.run.programs import Program
from aha_lib.tasks.rollout import Policy

# Status of a process that ends while XLA is still at work, as `aha train` has them.
INTERRUPTED = 130
FAULT = 2


@devices.memory_errors(ROOM)
def compile_ahead(
    policy: Policy, opt_state: grpo.OptState, reference: nnx.State | None, mesh: Mesh
) -> None:
    """Compile all that a run can meet, where that pays; call it with the mesh in use.

    Raises MemoryError where a program does not fit a device, as the step would that meets it.
    """
    if pays(policy.settings.compile_ahead):
        run = programs.present(policy, opt_state, reference, mesh)
        compile_all(list(programs.every(run)))


def pays(wanted: str) -> bool:
    """Whether to compile ahead: as the setting of that name says; "auto": not on a CPU.

    There a program takes a second or two, a run meets half of those that it could meet, and few
    cores are idle: the tiny preset would begin later, and end no sooner.
    """
    if wanted == "auto":
        return jax.default_backend() != "cpu"
    return wanted == "always"


def compile_all(found: Sequence[Program], workers: int | None = None) -> None:
    """Compile programs in so many threads (by default a core each), under a bar.

    An error of the compiler is raised once met. Ctrl-C ends the wait at once: what is being
    compiled is left to threads that nobody waits for.
    """
    if not found:
        return
    lowered, done = queue.SimpleQueue(), queue.SimpleQueue()
    count = min(workers or _workers(), len(found))
    # Daemons: Python does not wait for them at its end, as it does for a pool's threads.
    work = dict(target=_work, args=(lowered, done), daemon=True)
    threads = [threading.Thread(**work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        with _bar(len(found)) as bar:
            for program in found:
                # Tracing is Python's, and goes on here while others are compiled.
                lowered.put(program.lower())
                _count(bar, done, wait=False)
            while bar.n < bar.total:
                _count(bar, done, wait=True)
    except BaseException as error:
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAULT
        atexit.register(_leave, threads, status)
        raise
    finally:
        _drop(lowered)
        for _ in range(count):
            lowered.put(None)


def _workers() -> int:
    """Programs that are compiled at a time: as many as there are cores.

    Of several hosts with GPUs one at a time: they agree on how a program is tuned, in turn.
    """
    if jax.process_count() > 1 and jax.default_backend() == "gpu":
        return 1
    return os.cpu_count() or 1


def _work(lowered: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
    """Compile what comes, until None comes; what went wrong is handed on."""
    while (one := lowered.get()) is not None:
        error = None
        try:
            one.compile()
        except Exception as caught:  # XLA's have many kinds
            error = caught
        done.put(error)


def _leave(threads: Sequence[threading.Thread], status: int) -> None:
    """At Python's end: end the process, where XLA is still at work in threads.

    They cannot be stopped, and would abort a process whose Python is gone.
    """
    if any(thread.is_alive() for thread in threads):
        with session.forgive_closed_output():
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _bar(total: int) -> tqdm:
    """ "compiling 7 of 12", on the first host."""
    with session.forgive_closed_output():
        return tqdm(
            total=total,
            bar_format="compiling {n_fmt} of {total_fmt} |{bar}| {elapsed}",
            disable=jax.process_index() > 0,
        )


def _count(bar: tqdm, done: queue.SimpleQueue, *, wait: bool) -> None:
    """Move the bar by what is done; wait for one if asked. Raises what went wrong."""
    while wait or not done.empty():
        error = done.get()
        wait = False
        if error is not None:
            raise error
        with session.forgive_closed_output():
            bar.update()


def _drop(waiting: queue.SimpleQueue) -> None:
    """Nothing is begun any more."""
    while not waiting.empty():
        try:
            waiting.get_nowait()
        except queue.Empty:  # a thread was faster
            return
