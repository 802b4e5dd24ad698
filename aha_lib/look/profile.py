"""Where the time of one compiled program goes: JAX's profiler, read into a small table.

Runs the program once under `jax.profiler` and adds up the operations of its trace. Knows nothing
of models; what an operation is called comes from the compiled program.
"""

import contextlib
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileEvent

# Operations that run others: their time is that of the others once more.
CONTAINERS = re.compile(r"(while|call|conditional)(\.|$)")
# Products whose name in JAX gets lost: on a CPU they are libraries' fusions.
PRODUCTS = re.compile(r"(dot|ynn_fusion|cublas|gemm)")


@dataclass(frozen=True)
class Profile:
    """One run of a program. Seconds of operations are added up over threads and devices."""

    wall: float  # seconds from the call to the result
    seconds: dict[str, float]  # by kind of operation, the longest first
    calls: dict[str, int]

    @property
    def total(self) -> float:
        """Seconds of all operations."""
        return sum(self.seconds.values())

    def rows(self, most: int) -> list[list[str]]:
        """Kind, calls, milliseconds and share of the kinds that take longest, to print."""
        found = []
        for kind, seconds in list(self.seconds.items())[:most]:
            share = seconds / self.total
            found.append([kind, f"{self.calls[kind]}", f"{1000 * seconds:.2f}", f"{share:.0%}"])
        return found


def profile(program, *arguments) -> Profile:
    """Run a jitted function once under the profiler, after it has compiled and warmed up.

    A kind is the name of the JAX primitive that an operation was made from, such as `dot_general`,
    the matrix product, or XLA's own name where it was made from none, such as `copy`.
    """
    compiled = program.lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        with _quiet(), jax.profiler.trace(folder):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            wall = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(file))
        return _added_up(data, wall, primitives(compiled.as_text()))


def primitives(hlo: str) -> dict[str, str]:
    """The JAX primitive of each operation of a compiled program's text that was made from one."""
    paths = re.findall(r'%?([\w.-]+) = [^\n]*op_name="([^"]*)"', hlo)
    last = {name: path.rpartition("/")[2] for name, path in paths}
    # A whole function's name says less than XLA's own for what was added around it.
    return {name: primitive for name, primitive in last.items() if primitive != "closed_call"}


def kind_of(operation: str, made_from: dict[str, str]) -> str:
    """What an operation of the trace does, in a word."""
    if operation in made_from:
        return made_from[operation]
    return "dot_general" if PRODUCTS.match(operation) else operation.partition(".")[0]


def _added_up(data: ProfileData, wall: float, made_from: dict[str, str]) -> Profile:
    seconds, calls = Counter(), Counter()
    for event in _operations(data):
        operation = event.name.lstrip("%").partition(" ")[0]
        if CONTAINERS.match(operation):
            continue
        kind = kind_of(operation, made_from)
        seconds[kind] += event.duration_ns / 1e9
        calls[kind] += 1
    return Profile(wall, dict(seconds.most_common()), dict(calls))


def _operations(data: ProfileData) -> Iterator[ProfileEvent]:
    """The events of a trace that are operations of a program, among those of threads and Python.

    Events of CPUs and GPUs name their operation; a TPU's lie on a line of their own.
    """
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if line.name == "XLA Ops" or "hlo_op" in dict(event.stats):
                    yield event


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard error goes nowhere: libtpu logs there that it has no TPU to profile."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
