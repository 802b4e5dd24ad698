"""A run that begins with supervised training: one call, one folder, however often it is ended."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from aha_lib import commands, presets
from aha_lib.look import dashboard, show
from aha_lib.model import export, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, SETTINGS, Settings
from aha_lib.run import cold_start, folder, pretrain, session, train

# Adapters on a very small model of the tiny vocabulary, in a handful of steps.
SMALL = dict(preset="small", model="x", rows=3, row_len=96, steps=4, warmup=1, lora=2)
SMALL |= dict(checkpoint_every=2, learning_rate=1e-2)
RUN = dict(cold_start="small", prompts=2, group=2, completion_len=4, micro_batch=4, steps=1)
RUN |= dict(eval_every=1, eval_puzzles=2, pass_k=1, checkpoint_every=1, lora=2, warmup=1)
COLD = {"phase": "cold start"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of random weights."""
    shape = dict(layers=2, width=32, heads=2, head_dim=16, ff=48, window=16)
    path = tmp_path_factory.mktemp("model")
    gemma = Gemma(dataclasses.replace(MODELS["tiny"], **shape), rngs=nnx.Rngs(0))
    export.save_hf(gemma, path, Tokenizer(tiny_model()))
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The preset of a cold start that takes a second."""
    monkeypatch.setitem(PRETRAINING, "small", presets.Pretraining(**SMALL))


@pytest.fixture
def settings(model):
    return Settings(model=str(model), **RUN)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The folder of a run that nothing has disturbed, and what it yielded."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRETRAINING, "small", presets.Pretraining(**SMALL))
        return out, list(train.train(Settings(model=str(model), **RUN), out))


def untimed(rows):
    """Rows as JSON has them, without what a clock measured."""
    rows = json.loads(json.dumps(rows))
    return [{k: v for k, v in r.items() if not k.endswith(("seconds", "_second"))} for r in rows]


def test_one_call_from_an_empty_folder(whole, settings):
    """Supervised steps, then GRPO from what they have trained; each has rows of its own."""
    out, rows = whole
    phases = [(row.get("phase"), row["step"]) for row in rows]
    assert phases == [*(("cold start", step) for step in (1, 2, 3, 4)), (None, 0), (None, 1)]
    assert [row["step"] for row in train.read_rows(out / "metrics.jsonl")] == [0, 1]
    assert untimed(train.rows_so_far(out)) == untimed(rows)
    base, before = (weights.load(x)[0].layers.q[...] for x in (out / "base", settings.model))
    trained, _, said = train.trained(out)
    np.testing.assert_array_equal(trained.layers.q[...], base)
    assert np.abs(np.asarray(base) - np.asarray(before)).max() > 1e-4
    assert said.model == settings.model and said.cold_start == "small"
    assert folder.read_json(out / "base.json")["model"] == str(out / "base")


def test_a_finished_run_does_nothing_twice(whole, settings):
    out, _ = whole
    kept = {path: path.stat().st_mtime_ns for path in (out / "base").rglob("*")}
    assert list(train.train(settings, out)) == []
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "base").rglob("*")}


def test_a_finished_run_compiles_nothing_ahead(whole, settings, monkeypatch):
    out, _ = whole
    monkeypatch.setattr(
        train.ahead, "compile_ahead", lambda *_: pytest.fail("it has no steps left")
    )
    assert list(train.train(settings, out)) == []


def ended_by_stop(out):
    (out / "stop").touch()


def ended_by_ctrl_c(out):
    signal.raise_signal(signal.SIGINT)


def ended_by_sigterm(out):
    signal.raise_signal(signal.SIGTERM)


def slow(end):
    return pytest.param(end, marks=pytest.mark.slow)


@pytest.mark.parametrize("end", [ended_by_stop, slow(ended_by_ctrl_c), slow(ended_by_sigterm)])
def test_a_cold_start_that_was_stopped_goes_on(whole, settings, tmp_path, end):
    """It saves the step at which it is; the next call gives the rows that are left."""
    out, rows = tmp_path / "run", []
    expected = {ended_by_ctrl_c: KeyboardInterrupt, ended_by_sigterm: SystemExit}.get(end)
    try:
        for row in train.train(settings, out):
            rows.append(row)
            if row["step"] == 2:
                end(out)
        ended = None
    except (KeyboardInterrupt, SystemExit) as error:
        ended = type(error)
    assert ended is expected and [row["step"] for row in rows] == [1, 2, 3]
    told = (
        "Stopped: supervised step 3 of 4 is saved. The same command, or cell, goes on from there."
    )
    assert folder.why_stopped(out) == folder.why_stopped(out / "base") == told
    assert dashboard.state(out) == (told, True) and not (out / "stop").exists()
    rows += train.train(settings, out)
    assert untimed(rows) == untimed(whole[1])
    assert folder.why_stopped(out) is folder.why_stopped(out / "base") is None


def test_the_clock_ends_it_too(whole, settings, tmp_path):
    """Between its steps, and between its last one and GRPO."""
    short = dataclasses.replace(settings, hours=1e-6)
    rows = []
    for step in (1, 2, 3):
        rows += train.train(short, tmp_path)
        assert rows[-1]["step"] == step
        assert folder.why_stopped(tmp_path).startswith(f"0 minutes left: supervised step {step} of")
    rows += train.train(short, tmp_path)
    assert folder.why_stopped(tmp_path).startswith("0 minutes left: the cold start, 4 supervised")
    assert pretrain.is_finished(tmp_path / "base")
    assert not (tmp_path / "metrics.jsonl").exists()
    base = weights.load(tmp_path / "base")[0].layers.q[...]
    np.testing.assert_array_equal(commands.opened(tmp_path)[0].layers.q[...], base)
    rows += train.train(settings, tmp_path)
    assert untimed(rows) == untimed(whole[1])


BEGIN = """
import os, signal, sys
from aha_lib import devices, presets
from aha_lib.run import pretrain, train

devices.start_distributed()
out, kill_at = sys.argv[1], int(sys.argv[2])
small = presets.Pretraining(**{small})
presets.PRETRAINING["small"] = small
"""
RUN_IT = """
for row in train.train(presets.Settings(**{run}), out):
    if row.get("phase") and row["step"] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""
LEARN_ALONE = """
assert len(list(pretrain.pretrain(small, out))) == small.steps
"""


def start(model, out, kill_at=-1, *, program=RUN_IT, devices=1, environ=(), small=()):
    """A run in a process of its own, which SIGKILL ends after a step of the cold start."""
    small, run = SMALL | {"model": str(model)} | dict(small), RUN | {"model": str(model)}
    program = (BEGIN + program).format(small=small, run=run)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(out), str(kill_at)],
        env=os.environ | dict(environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_cold_start_that_was_killed_goes_on(whole, settings, tmp_path, capsys):
    """From its last checkpoint, and gives the rows of an undisturbed run; watching tells it."""
    killed = start(settings.model, tmp_path, kill_at=3)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    line, over = dashboard.state(tmp_path)
    assert over and line.startswith("stopped without a word (killed?) at supervised step 3 of 4")
    assert dashboard.figures(tmp_path)[0].startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="is at its cold start"):
        train.trained(tmp_path)
    with pytest.raises(SystemExit):
        commands.main(["export", str(tmp_path), str(tmp_path / "model")])
    assert "is at its cold start" in capsys.readouterr().err
    rows = list(train.train(settings, tmp_path))
    assert [row["step"] for row in rows] == [3, 4, 0, 1]
    assert untimed(rows) == untimed(whole[1][2:])
    assert untimed(train.rows_so_far(tmp_path)) == untimed(whole[1])


def test_a_base_made_by_hand_is_taken(settings, tmp_path, capsys):
    """`aha pretrain --out RUN/base` with settings of one's own; but not another model's base."""
    own = dataclasses.replace(PRETRAINING["small"], model=settings.model, steps=0)
    assert list(pretrain.pretrain(own, tmp_path / "base")) == []
    no_step = dataclasses.replace(settings, steps=0)
    assert [row["step"] for row in train.train(no_step, tmp_path)] == [0]
    assert "base is there already (preset small, steps 0): it is taken" in capsys.readouterr().out
    other = dataclasses.replace(settings, model="tiny", steps=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "checkpoints").rename(tmp_path / "before")
    with pytest.raises(ValueError, match=f"was trained from {settings.model}, and model is tiny"):
        next(train.train(other, tmp_path))


def test_a_base_that_is_gone_is_not_made_anew(whole, settings, tmp_path):
    """What GRPO has learnt belongs to the model that it began with."""
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "base")
    with pytest.raises(ValueError, match="has begun from .*base, and that model is gone"):
        next(train.train(settings, out))
    assert not (out / "base").exists()


def test_a_model_that_has_had_its_cold_start_gets_no_second(whole, settings, tmp_path):
    """As runs were begun before: by `aha pretrain --out X`, then `--model X`."""
    again = dataclasses.replace(settings, model=str(whole[0] / "base"), steps=0)
    assert [row.get("phase") for row in train.train(again, tmp_path)] == [None]
    said = folder.read_settings(tmp_path)
    assert said.cold_start == "" and said.model == again.model
    assert not (tmp_path / "base").exists()
    # A folder of before does not know the setting.
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({k: v for k, v in vars(said).items() if "cold_start" not in k}))
    assert list(train.train(again, tmp_path)) == []
    assert train.trained(tmp_path)[2].cold_start == ""


def test_what_is_drawn_of_it(whole):
    """The loss while it goes on, then the usual panels; GRPO's rows are given back."""
    out, rows = whole
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        handle = SimpleNamespace(update=drawn.append)
        patch.setattr(show, "display", lambda *_, **__: handle)
        kept = show.watch(iter(rows[2:]), rows[:2], seconds=0.0)
    titles = [[axis.get_title(loc="left") for axis in figure.axes] for figure in drawn]
    assert titles[0] == titles[1] == ["Cold start: loss of the next token, nats"]
    assert all(title[0] == "Accuracy on held-out puzzles" for title in titles[2:])
    assert list(drawn[1].axes[0].lines[0].get_xdata()) == [1, 2, 3, 4]
    assert kept == rows[4:]
    line, over = dashboard.state(out / "base")
    assert over and re.fullmatch(r"finished: supervised step 4 of 4; loss \d\.\d{3}", line)


def test_its_arrays_are_gone_when_grpo_begins(settings, monkeypatch, tmp_path):
    """A device has no room for both."""

    def begin(*_):
        raise InterruptedError(sum(x.nbytes for x in jax.live_arrays()))

    monkeypatch.setattr(train, "resume_or_start", begin)
    before = sum(x.nbytes for x in jax.live_arrays())
    with pytest.raises(InterruptedError) as ended:
        list(train.train(settings, tmp_path))
    model = sum(x.nbytes for x in jax.tree.leaves(nnx.state(weights.load(settings.model)[0])))
    assert ended.value.args[0] - before < model / 10


def test_supervised_training_alone_stops_as_a_run_does(settings, tmp_path, capsys):
    typed = f"--preset small --model {settings.model} --out {tmp_path}".split()
    with pytest.raises(SystemExit) as ended:
        pretrain.main([*typed, "--hours", "1e-6"])
    assert ended.value.code == session.UNFINISHED
    assert f"the same command, with --out {tmp_path}" in capsys.readouterr().err
    assert folder.why_stopped(tmp_path).startswith(
        "0 minutes left: supervised step 1 of 4 is saved"
    )
    pretrain.main([*typed, "--hours", "1"])
    assert folder.why_stopped(tmp_path) is None and pretrain.is_finished(tmp_path)


@pytest.mark.slow
def test_another_seed_length_rate_or_corpus_compiles_nothing(whole, settings, tmp_path):
    """Of a step's program: it has what it needs of the settings as arguments."""
    compiled = pretrain.train_step._cache_size()
    others = dict(seed=1, steps=1, learning_rate=1e-4, warmup=0, weight_decay=0.3, search=0.5)
    small = dataclasses.replace(PRETRAINING["small"], model=settings.model, **others)
    assert len(list(pretrain.pretrain(small, tmp_path / "other"))) == 1
    assert pretrain.train_step._cache_size() == compiled
    wider = dataclasses.replace(small, rows=4)
    assert len(list(pretrain.pretrain(wider, tmp_path / "wider"))) == 1
    assert pretrain.train_step._cache_size() == compiled + 1, "the test sees what is compiled"


def test_the_presets_name_theirs():
    """And start from a model that is there: no folder that another command has to make."""
    for name, settings in SETTINGS.items():
        assert settings.model in ("", *weights.SHIPPED, *weights.HANDLES), name
        cold = cold_start.planned(settings)
        if cold is None:
            continue
        assert cold.model == settings.model and cold.template == settings.template, name
        fewer = dataclasses.replace(settings, cold_start_steps=7, model="somewhere")
        assert cold_start.planned(fewer) == dataclasses.replace(cold, steps=7, model="somewhere")
    with pytest.raises(ValueError, match="^cold_start is 'x': it has to be one of tiny, tiny-no"):
        Settings(cold_start="x")
    with pytest.raises(ValueError, match="^model is empty: a random model needs a cold_start"):
        Settings(model="")
    with pytest.raises(ValueError, match="^template is 'base', and the cold start tiny has"):
        Settings(cold_start="tiny", template="base")


# Several devices and hosts


def losses(base):
    return [row["loss"] for row in train.read_rows(base / "metrics.jsonl")]


def finish(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("lora", [2, 0], ids=["adapters", "all weights"])
def test_eight_devices_learn_the_same(model, tmp_path, lora):
    """Three rows on one device and on eight: the same losses, and the same model."""
    small, bases = dict(lora=lora, learning_rate=1e-3), [tmp_path / "1", tmp_path / "8"]
    for base in bases:
        count = int(base.name)
        finish(start(model, base, program=LEARN_ALONE, devices=count, small=small))
    one, eight = map(losses, bases)
    assert len(one) == 4 and one[0] != one[-1]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    before = weights.load(model)[0].layers.q[...]
    learnt = [weights.load(base)[0].layers.q[...] - before for base in bases]
    moved = np.abs(learnt[0]).max()
    assert moved > 1e-5
    np.testing.assert_allclose(learnt[1], learnt[0], rtol=0, atol=moved / 20)


@pytest.mark.slow
def test_killed_on_eight_devices_it_goes_on_with_one(whole, settings, tmp_path):
    killed = start(settings.model, tmp_path, kill_at=3, devices=8)
    killed.communicate(timeout=900)
    assert killed.returncode == -signal.SIGKILL
    rows = list(train.train(settings, tmp_path))
    assert [row["step"] for row in rows] == [3, 4, 0, 1]
    np.testing.assert_allclose(losses(tmp_path / "base"), losses(whole[0] / "base"), rtol=1e-4)


@pytest.mark.slow
def test_two_hosts_of_four_devices(model, whole, tmp_path):
    """They share the folder: each takes its rows, and the first writes the model."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    each = [hosts | {"JAX_PROCESS_ID": number} for number in "01"]
    finish(*(start(model, tmp_path, devices=4, environ=environ) for environ in each))
    np.testing.assert_allclose(losses(tmp_path / "base"), losses(whole[0] / "base"), rtol=1e-4)
    assert [row["step"] for row in train.read_rows(tmp_path / "metrics.jsonl")] == [0, 1]
