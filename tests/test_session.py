"""How a run ends before its time: signals, and hosts that vanish. Jobs as their user starts them.

CPU devices stand in for TPU cores, processes for hosts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aha_lib import session

JOB = Path(__file__).parent.parent / "notebooks" / "05_train.py"
SETTINGS = dict(
    steps=300, prompts=2, group=4, completion_len=16, micro_batch=8, eval_every=1, eval_puzzles=2,
    pass_k=1, checkpoint_every=100,
)  # fmt: skip


def start(out, address, *, hosts=1, this=0, devices=1):
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(hosts),
        "JAX_PROCESS_ID": str(this),
    }
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, JOB, f"--out={out}", *settings]
    return subprocess.Popen(command, env=environ, cwd=JOB.parent.parent, **pipes)


def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def steps(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def until(out, count, *jobs):
    """Wait for so many rows, while all jobs go on."""
    while len(steps(out)) < count:
        gone = [job for job in jobs if job.poll() is not None]
        assert not gone, gone[0].communicate()[0]
        time.sleep(0.1)


def test_sigterm_under_jax_distributed(tmp_path):
    """Which is on where a single TPU VM is, too, and takes SIGTERM for itself."""
    job = start(tmp_path, address())
    until(tmp_path, 2, job)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 128 + signal.SIGTERM, said
    last = steps(tmp_path)[-1]
    assert f"Stopped: step {last} of 300 is saved. The same command, or cell, goes on" in said
    assert "Traceback" not in said and (tmp_path / "checkpoints" / str(last)).is_dir()


def test_two_hosts_and_one_is_killed(tmp_path):
    """They evaluate, and one of them draws; when the other is gone it ends, with a sentence."""
    where = address()
    jobs = [start(tmp_path, where, hosts=2, this=i, devices=2) for i in range(2)]
    until(tmp_path, 4, *jobs)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    jobs[1].kill()
    jobs[1].communicate()
    said, _ = jobs[0].communicate(timeout=300)  # one that waits for ever
    assert jobs[0].returncode == 1
    assert "Host 0: Another host has ended, and this one cannot go on alone." in said
    assert "Traceback" not in said


# Signals


def test_the_second_signal_does_what_signals_do():
    with pytest.raises(KeyboardInterrupt), session.signals() as seen:
        signal.raise_signal(signal.SIGINT)
        assert seen == {signal.SIGINT}
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_threads_get_no_signals():
    failed = []

    def other():
        try:
            with session.signals() as seen:
                assert seen == set()
        except BaseException as error:
            failed.append(error)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not failed and signal.getsignal(signal.SIGTERM) is before


def test_one_host_asks_itself():
    assert session.any_host(True, "", 3) == [True, False, True]
