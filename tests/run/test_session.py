"""What stops a run: signals, hosts that vanish, numbers. Some are jobs as their user starts them.

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

import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel

from aha_lib.look import dashboard
from aha_lib.run import folder, session

JOB = Path(__file__).parents[2] / "notebooks" / "05_train.py"
DATA = JOB.parent.parent / "aha_lib" / "data"
SETTINGS = dict(
    steps=300,
    prompts=2,
    group=4,
    completion_len=16,
    micro_batch=8,
    eval_every=1,
    eval_puzzles=2,
    pass_k=1,
    checkpoint_every=100,
)


def start(out, address, *, hosts=1, this=0, devices=1, **changes):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(hosts),
        "JAX_PROCESS_ID": str(this),
    }
    settings = [f"--set={name}={value}" for name, value in (SETTINGS | changes).items()]
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
    """Wait for so many rows, while all jobs go on; not for ever."""
    end = time.monotonic() + 300
    while len(steps(out)) < count:
        assert time.monotonic() < end, f"{out} has {len(steps(out))} rows"
        gone = [job for job in jobs if job.poll() is not None]
        assert not gone, gone[0].communicate()[0]
        time.sleep(0.1)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_ctrl_c_in_a_cell(tmp_path):
    """The interrupted cell has saved its step, and run again it goes on."""
    manager, client = start_new_kernel(cwd=str(JOB.parent.parent))
    cell = (
        "from aha_lib.run import train\nfrom aha_lib.presets import Settings\n"
        f"for row in train.train(Settings(**{SETTINGS}), {str(tmp_path)!r}):\n    pass"
    )
    try:
        sent = client.execute(cell, stop_on_error=False)  # which drops what comes soon after
        until(tmp_path, 2)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=300))["parent_header"]["msg_id"] != sent:
            pass
        assert reply["content"].get("ename") == "KeyboardInterrupt", reply
        last = steps(tmp_path)[-1]
        assert f"step {last} of 300 is saved" in (tmp_path / "stopped.txt").read_text()
        client.execute(cell)
        until(tmp_path, last + 3)
        assert steps(tmp_path)[: last + 2] == list(range(last + 2))
    finally:
        manager.shutdown_kernel(now=True)


# Signals


def test_the_second_signal_does_what_signals_do():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), session.catch_signals() as seen:
        signal.raise_signal(signal.SIGINT)
        assert seen == {signal.SIGINT}
        signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_other_threads_get_no_signals():
    failed = []

    def other():
        try:
            with session.catch_signals() as seen:
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


# Numbers


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_gives_no_warnings(seed):
    rows = folder.read_rows(DATA / f"run/seed{seed}/metrics.jsonl")
    assert not set().union(*(session.warnings(rows[:n]) for n in range(len(rows) + 1)))


def test_warnings_of_collapse():
    entropy = [0.5] * 10 + [0.01] * 10
    fallen = [{"reward": r, "entropy": 0.5} for r in [0.1] * 5 + [0.6] * 5 + [0.05] * 5]
    assert [bool(session.warnings(fallen[:n])) for n in (9, 10, 12, 15)] == [
        False,
        False,
        False,
        True,
    ]
    assert any("reward has collapsed" in sign for sign in session.warnings(fallen))
    stiff = [{"reward": 0.3, "entropy": e} for e in entropy]
    assert any("entropy has collapsed" in sign for sign in session.warnings(stiff))
    right = [{"reward": 0.9, "entropy": e} for e in entropy]
    assert not session.warnings(right), "a model that is right may be sure of it"


def test_verdict():
    rewards = np.full((4, 8), 0.1)
    with pytest.raises(ValueError, match="0.0% are right and 100.0% have the format.* No go."):
        session.verdict(rewards, 3.0)
    with pytest.raises(ValueError, match="All are right: there is nothing to learn"):
        session.verdict(np.ones((4, 8)), 3.0)
    rewards[1, 2] = 1
    told = session.verdict(rewards, 3.0)
    assert "of 32 answers 3.1% are right" in told and "; 25% of the groups" in told
    assert told.endswith("Go.")


def test_estimate_time_left():
    rows = [{"step": 0}] + [
        {"step": n, "sample_seconds": 1.0, "update_seconds": 3.0, "sample_tokens_per_second": 9.0}
        for n in range(1, 11)
    ]
    assert session.estimate_time_left(rows, 910) == "4 s a step, 1 h to go"
    assert session.estimate_time_left(rows, 910, dollars=8.8) == "4 s a step, 1 h and $8.80 to go"
    assert session.estimate_time_left([], 10) == "0 s a step, 0 h to go"


def test_deadline(monkeypatch):
    """Hours that are given count; else those of the place, unless the session is older already."""
    left = lambda: session.deadline() - time.monotonic()  # noqa: E731
    monkeypatch.setattr(session.devices, "time_left", lambda: None)
    assert session.deadline() == float("inf")
    assert session.deadline(1.0) - time.monotonic() == pytest.approx(3600, abs=60)
    monkeypatch.setattr(session.devices, "time_left", lambda: 100.0)
    assert left() == pytest.approx(100, abs=60)
    assert session.deadline(1.0) - time.monotonic() == pytest.approx(3600, abs=60)
    monkeypatch.setattr(session.devices, "time_left", lambda: -3600.0)
    assert left() == float("inf"), "a session of 13 hours is not one of 12"
    assert session.deadline(1.0) - time.monotonic() == pytest.approx(3600, abs=60)


@pytest.mark.slow
def test_one_run_at_a_time_and_how_they_end(tmp_path):
    """The second is refused in a line; a killed one is told from a living; a stop is no finish."""
    first = start(tmp_path, address())
    until(tmp_path, 2, first)
    said, _ = (second := start(tmp_path, address())).communicate(timeout=300)
    assert second.returncode == 2 and "Traceback" not in said
    assert f"is being trained by process {first.pid} on" in said
    assert first.poll() is None and not dashboard.state(tmp_path)[1]
    first.kill()
    first.communicate()
    line, over = dashboard.state(tmp_path)
    assert over and line.startswith(
        f"stopped without a word (killed?) at step {steps(tmp_path)[-1]}"
    )
    said, _ = (third := start(tmp_path, address(), hours=1e-6)).communicate(timeout=300)
    assert third.returncode == session.UNFINISHED == 75
    assert "0 minutes left: step " in said and "The run is in" not in said


@pytest.mark.slow
def test_ctrl_c_before_tee(tmp_path):
    """`2>&1 | tee log` gets Ctrl-C first: nobody reads what the run writes from then on."""
    job = start(tmp_path, address())
    until(tmp_path, 2, job)
    job.stdout.close()
    job.send_signal(signal.SIGINT)
    assert job.wait(300) == 130
    last = steps(tmp_path)[-1]
    assert f"step {last} of 300 is saved" in (tmp_path / "stopped.txt").read_text()
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
