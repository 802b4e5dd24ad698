"""Programs compiled before a run's first step: all that it meets, side by side, and interrupted."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from aha_lib import devices
from aha_lib.run import ahead
from aha_lib.run.programs import Program

WATCHED = Path(__file__).with_name("ahead_run.py")
SHORT = dict(
    prompts=2,
    group=8,
    completion_len=4,
    micro_batch=4,
    steps=2,
    eval_every=1,
    eval_puzzles=24,
    pass_k=2,
    checkpoint_every=1,
    compile_ahead="always",
)
RUNS = [
    (1, dict()),
    (1, dict(lora=2, dtype="bfloat16", kl=0.1)),
    (8, dict(lora=2, dtype="bfloat16", kl=0.1)),
    (8, dict(tp=2, kl=0.1, norm="sequence", importance_cap=2.0, gather=False)),
]
# Of one number or key each, and parts of a checkpoint that are written.
SMALL = {"add", "_rate", "_threefry_fold_in", "slice"}


@pytest.mark.slow
@pytest.mark.parametrize("count, changes", RUNS, ids=str)
def test_nothing_is_compiled_after_the_programs_that_were_compiled_ahead(count, changes, tmp_path):
    settings = [f"--set={name}={value}" for name, value in (SHORT | changes).items()]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    env = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    file = tmp_path / "found.json"
    command = [sys.executable, WATCHED, file, f"--out={tmp_path / 'run'}", *settings]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {"_prefill", "_decode", "_resize", "accumulate", "apply"} <= found["ahead"].keys()
    assert found["later"].keys() <= SMALL


# Side by side


def program(name, compile=lambda: None):
    """A program whose compilation is a function."""

    class Lowered:
        def compile(self):
            return compile()

    return Program(name, 0.0, Lowered)


def test_programs_are_compiled_side_by_side(capsys):
    both = threading.Barrier(2)
    # Each waits for the other: one after the other they would not come to an end.
    ahead.compile_all([program("one", lambda: both.wait(10))] * 2, workers=2)
    assert "compiling 2 of 2" in capsys.readouterr().err


def test_what_was_compiled_ahead_is_not_compiled_again():
    events = []
    listener = lambda name, seconds, **_: events.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    twice = jax.jit(lambda x: 2 * x + 1)
    shape = jax.ShapeDtypeStruct((3,), "float32")
    ahead.compile_all([Program("twice", 0.0, lambda: twice.lower(shape))])
    assert any("backend_compile" in name for name in events)
    x = devices.to_host(jax.numpy.ones(3, "float32"))
    events.clear()
    twice(x)
    assert not any("compile" in name for name in events)
    twice(x[:2])
    assert any("backend_compile" in name for name in events), "this test can fail"


def test_an_error_of_the_compiler_is_raised_at_once():
    def fail():
        raise ValueError("no such instruction")

    begun = []

    def take_long():
        begun.append(1)
        time.sleep(0.02)

    others = [program("other", take_long)] * 50
    with pytest.raises(ValueError, match="no such instruction"):
        ahead.compile_all([program("bad", fail), *others], workers=1)
    time.sleep(0.05)
    assert len(begun) < 50, "what waits is not begun any more"


def test_an_interrupt_does_not_wait_for_the_compiler():
    never, begun = threading.Event(), threading.Event()

    def compile():
        begun.set()
        never.wait(30)

    def lower():
        begun.wait(10)
        raise KeyboardInterrupt

    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ahead.compile_all([program("long", compile), Program("second", 0.0, lower)], workers=2)
    assert time.monotonic() - since < 5
    never.set()


STUBBORN = """
import os, signal, threading
import jax, jax.numpy as jnp
from aha_lib.run import ahead
from aha_lib.run.programs import Program

def long(x):
    for i in range(1500):
        x = jnp.sin(x @ x + i)
    return x

lowered = jax.jit(long).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
ahead.compile_all([Program("long", 0.0, lambda: lowered)] * 2)
"""


@pytest.mark.slow
def test_a_process_ends_while_the_compiler_is_at_work():
    """XLA's own: Python cannot stop it, and a process aborted that ended without a care."""
    env = os.environ | dict(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="0")
    done = subprocess.run([sys.executable, "-c", STUBBORN], env=env, capture_output=True, text=True)
    assert done.returncode == ahead.INTERRUPTED, done.stderr
    assert "KeyboardInterrupt" in done.stderr and "FATAL" not in done.stderr


def test_it_pays_where_there_is_an_accelerator(monkeypatch):
    assert [ahead.pays(wanted) for wanted in ("auto", "always", "never")] == [False, True, False]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert [ahead.pays(wanted) for wanted in ("auto", "always", "never")] == [True, True, False]
