"""One program on one device, on eight, and on two hosts of four: the same run, token for token.

CPU devices stand in for TPU cores, processes for hosts. Each run is a subprocess.
"""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from aha_lib.model import weights
from aha_lib.presets import MODELS
from aha_lib.run import train

SETTINGS = dict(
    steps=2,
    prompts=8,
    group=4,
    completion_len=16,
    micro_batch=16,
    kl=0.1,
    eval_every=2,
    eval_puzzles=32,
    pass_k=1,
    checkpoint_every=1,
    warmup=0,
    learning_rate=1e-2,
)
PROGRAM = """
import sys
from contextlib import closing

import jax

from aha_lib import devices
from aha_lib.run import cli, train

devices.start_distributed()
last = int(sys.argv[1])
with closing(train.train(*cli.parse(sys.argv[2:]))) as run:
    for row in run:
        assert jax.sharding.get_abstract_mesh().empty, "the mesh is set for the run alone"
        if row["step"] == last:
            break
"""
WATCHED = (Path(__file__).parent / "watched_run.py").read_text()


def start(out, devices, *, last=2, environ=(), program=PROGRAM, **changes):
    settings = [f"--set={name}={value}" for name, value in (SETTINGS | changes).items()]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | dict(environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    command = [sys.executable, "-c", program, str(last), f"--out={out}", *settings]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=env, **pipes)


def finish(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said


def rows(out, name="metrics"):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def same(one, other):
    """Rows of metrics: counts and texts to the letter, float32 sums to their rounding."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float) and "second" not in name:
                np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=1e-6, err_msg=name)
            elif "second" not in name:
                assert a[name] == b[name], name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run on a single device."""
    out = tmp_path_factory.mktemp("runs") / "one"
    finish(start(out, 1))
    return out


@pytest.mark.slow
def test_the_run_moves(one):
    metrics, texts = rows(one), rows(one, "rollouts")
    assert metrics[2]["kl"] > 1e-5 and metrics[1]["grad_norm"] > 1e-3
    assert texts[0]["sampled"] != texts[1]["sampled"]


def test_eight_devices_in_short(tmp_path):
    """One step between two evaluations, of answers of two tokens."""
    short = dict(steps=1, completion_len=2, kl=0.0, eval_every=1, eval_puzzles=8)
    each = {devices: tmp_path / str(devices) for devices in (1, 8)}
    finish(*(start(out, devices, last=1, **short) for devices, out in each.items()))
    same(rows(each[1]), rows(each[8]))
    assert rows(each[1], "rollouts") == rows(each[8], "rollouts")
    assert [row["step"] for row in rows(each[8])] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_eight_devices(one, tmp_path, tp):
    finish(start(tmp_path / "run", 8, tp=tp))
    same(rows(one), rows(tmp_path / "run"))
    assert rows(one, "rollouts") == rows(tmp_path / "run", "rollouts")
    before = files(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, *_ = train.trained(tmp_path / "run")  # on the one device of this process
    base, *_ = weights.load("tiny")
    moved = np.abs(np.asarray(model.layers.q[...]) - np.asarray(base.layers.q[...])).max()
    assert moved > 1e-3 and files(tmp_path / "run") == before


@pytest.mark.slow
def test_eight_devices_take_turns_with_a_tool(tmp_path):
    """Which rows wait for which is the same, and so is what they then write."""
    asks = dict(model="look-up", task="aha_lib.tasks.look_up:LookUp", kl=0.0, completion_len=24)
    each = {devices: tmp_path / str(devices) for devices in (1, 8)}
    for devices, out in each.items():
        finish(start(out, devices, **asks))
    same(rows(each[1]), rows(each[8]))
    assert rows(each[1], "rollouts") == rows(each[8], "rollouts")
    assert rows(each[8])[-1]["replies"] > 0.1


def files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def untouched(out):
    """No checkpoint counted as damaged: its steps were not taken twice."""
    return not (out / "damaged").exists()


@pytest.mark.slow
def test_two_hosts_and_then_one(one, tmp_path):
    """Two processes of four devices stop after step 1; one process of eight goes on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    out = tmp_path / "run"
    finish(*(start(out, 4, last=1, environ=hosts | {"JAX_PROCESS_ID": i}) for i in "01"))
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["0", "1"]
    same(rows(one)[:2], rows(out))
    finish(start(out, 8))
    assert untouched(out)
    same(rows(one), rows(out))
    assert rows(one, "rollouts") == rows(out, "rollouts")


# Nothing here divides by eight, but for what the run itself makes of it.
ODD = dict(
    prompts=9,
    group=5,
    completion_len=32,
    micro_batch=12,
    eval_puzzles=21,
    pass_k=2,
    importance_cap=2.0,
)


@pytest.fixture(scope="module", params=[dict(), dict(lora=2, tp=2, norm="sequence")], ids=str)
def odd(request, tmp_path_factory):
    """A run of odd numbers on eight devices: its folder, what was found there, its settings."""
    folder, settings = tmp_path_factory.mktemp("odd"), ODD | request.param
    finish(start(folder / "run", 8, last=folder / "found.json", program=WATCHED, **settings))
    return folder / "run", json.loads((folder / "found.json").read_text()), settings


@pytest.mark.slow
def test_odd_numbers_of_rows_give_the_same_run(odd, tmp_path):
    folder, _, settings = odd
    finish(start(tmp_path / "run", 1, **settings | {"tp": 1}))
    same(rows(tmp_path / "run"), rows(folder))
    assert rows(tmp_path / "run", "rollouts") == rows(folder, "rollouts")


@pytest.mark.slow
def test_no_array_of_rows_is_whole_on_every_device(odd):
    _, found, settings = odd
    assert found["whole"] == []
    fsdp = 8 // settings.get("tp", 1)
    for stage in (lie for stages in found["stages"] for lie in stages):
        assert stage["rows"] % 8 == 0 and max(stage["each"]) <= stage["rows"] // fsdp
    sizes = {stage["rows"] for stage, _ in found["stages"]}
    assert {48, 24} <= sizes, "all rows were written, and half of them were dropped"


@pytest.mark.slow
def test_the_plan_knows_every_program_of_a_run(odd):
    """What it does not know handles one array at a time, and perhaps a layer of it."""
    _, found, settings = odd
    planned = {}
    for _, module, size, _ in found["planned"]:
        planned[module] = max(size, planned.get(module, 0))
    compiled = {module for module, _ in found["compiled"]}
    assert planned.keys() <= compiled, "the plan has programs that no run executes"
    c = MODELS["tiny"]
    parameter = (c.layers + 1) * c.width * c.ff + 8
    assert c.layers * 48 * c.kv_heads * 40 * c.head_dim > parameter, "a cache is larger than that"
    for module, size in found["compiled"]:
        assert size <= planned.get(module, parameter), f"{module}: the plan has to know it"
    names = [name for name, *_ in found["planned"]]
    assert len(names) == len(set(names)) == 11


@pytest.mark.slow
def test_the_plan_knows_what_the_rows_take(odd):
    _, found, settings = odd
    c, cores = MODELS["tiny"], 8 // settings.get("tp", 1)
    decode = next(size for name, *_, size in found["planned"] if name == "sample: decode")
    for lie in (lie for stages in found["stages"] for lie in stages):
        keys = c.layers * lie["rows"] // cores * c.kv_heads * lie["slots"] * c.head_dim
        assert lie["GiB"] < 1.1 * 2 * keys * 4 / 2**30, "and a tenth for what is no key or value"
        assert lie["GiB"] < decode


@pytest.mark.slow
def test_one_device_then_eight_then_one(one, tmp_path):
    """A checkpoint is of no number of devices: each takes a step of the same run."""
    out = tmp_path / "run"
    for last, devices in enumerate((1, 8, 1)):
        finish(start(out, devices, last=last))
        assert untouched(out)
    same(rows(one), rows(out))
    assert rows(one, "rollouts") == rows(out, "rollouts")


@pytest.mark.slow
def test_sizes_that_eight_does_not_divide(tmp_path):
    odd = dict(
        steps=1,
        prompts=3,
        group=5,
        micro_batch=7,
        eval_puzzles=5,
        temperature=0.7,
        refills=2,
        kl=0.0,
    )
    for devices in (1, 8):
        finish(start(tmp_path / str(devices), devices, last=1, **odd))
    same(rows(tmp_path / "1"), rows(tmp_path / "8"))
