"""Whether a run takes another step, and what it leaves behind where it does not.

The same for GRPO and for supervised training: the clock, a file `stop`, Ctrl-C and SIGTERM end a
run after a step, which is saved first. Knows nothing of what a step does, nor of checkpoints.
"""

import enum
import math
import signal
import time
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import jax

from aha_lib.run import folder, session

GO_ON = "The same command, or cell, goes on from there."


class Stop(enum.Enum):
    """Why a run ends after a step."""

    NOT = "it goes on"
    FINISHED = "the last step is done"
    INTERRUPTED = "Ctrl-C"
    TERMINATED = "SIGTERM"
    ASKED = "the folder has a file `stop`"
    LATE = "the session ends"


@dataclass
class Watch:
    """What ends a run early: its clock, its folders' file `stop`, and signals."""

    folders: tuple[Path, ...]  # the run's, and that of its cold start while that goes on
    deadline: float = math.inf  # time.monotonic() at which it has to have stopped
    slowest: float = 0.0  # seconds of the longest step so far

    def took(self, seconds: float) -> None:
        """Note how long a step took: there has to be time for two of the longest."""
        self.slowest = max(self.slowest, seconds)

    def reason(self, number: int, last: int, seen: Set[signal.Signals] = frozenset()) -> Stop:
        """Whether the run ends after this step, of which `last` is the last; as on every host.

        `seen` are the signals that have come, see `session.catch_signals`.
        """
        left = self.deadline - time.monotonic()
        interrupted, terminated, asked, late = session.any_host(
            signal.SIGINT in seen,
            signal.SIGTERM in seen or session.preempted(),
            any((out / "stop").exists() for out in self.folders),
            left < 60 + 2 * self.slowest,
        )
        if interrupted:
            return Stop.INTERRUPTED
        if terminated:
            return Stop.TERMINATED
        if number == last:
            return Stop.FINISHED
        if late:
            return Stop.LATE
        return Stop.ASKED if asked else Stop.NOT

    def tell(self, reason: Stop, where: str) -> None:
        """Once the last step of this time is on the disk: say why there is no next one.

        `where` is how far the run is, such as "step 3 of 60". Says nothing of a finished one.
        """
        if reason is Stop.NOT:
            return
        if jax.process_index() == 0:
            for out in self.folders:
                (out / "stop").unlink(missing_ok=True)
        if reason is Stop.FINISHED:
            return
        why = "Stopped"
        if reason is Stop.LATE:
            minutes = max(self.deadline - time.monotonic(), 0) / 60
            why = f"{minutes:.0f} minutes left"
        line = f"{why}: {where} is saved. {GO_ON}"
        for out in self.folders[1:]:
            folder.write(out / "stopped.txt", line + "\n")
        folder.mark_stopped(self.folders[0], line)  # which also tells it
        session.any_host(True)  # the other hosts wait: from here on they see the files


def leave(reason: Stop) -> None:
    """Do what a signal asked for, once its step is saved: KeyboardInterrupt, or SystemExit."""
    if reason is Stop.INTERRUPTED:
        raise KeyboardInterrupt
    if reason is Stop.TERMINATED:
        raise SystemExit(128 + signal.SIGTERM)
