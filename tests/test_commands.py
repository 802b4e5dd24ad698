"""The command `aha`: a table of mistakes, each a line and a status; and a run from end to end."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from aha_lib import commands, devices, presets
from aha_lib.model import lora, weights
from aha_lib.presets import Settings
from aha_lib.run import pretrain, session, train

SMALL = "--steps 0 --prompts 2 --group 2 --eval_puzzles 4 --pass_k 1 --completion_len 32".split()

# What is typed -> the line that comes back. The status is 2, and nothing is written. Mistakes in
# settings are in run/test_cli.py, those of a notebook in test_presets.py, what a machine lacks in
# test_devices.py and test_install.py.
MISTAKES = {
    "fly": "There is no command 'fly': it has to be one of train, pretrain,",
    "train": "--out is missing, or has no value.",
    "train --out {new} --lora 1000000000": "lora is 1000000000: it has to be a whole number from",
    "train --out {file}": "{file} is a file, or lies in one: a run needs a folder.",
    "train --out {new} --task {new}.py:Mine": "There is no file {new}.py.",
    "train --out {new} --task Mine": "task is 'Mine': it has to be countdown, FILE.py:NAME",
    "pretrain --out {new} --rows 1000000000": "rows is 1000000000: it has to be a whole number",
    "pretrain --out {new} --lora 8": "lora is 8: adapters need a model to stand on.",
    "pretrain --out {new} --cut True": "cut=True needs a model: the tiny vocabulary has nothing",
    "pretrain --out {new} --preset gemma3-1b": "preset is 'gemma3-1b': it has to be one of tiny,",
    "plan --model tiny": "the following arguments are required: --chip.",
    "plan --model tiny --chip v9": "argument --chip: invalid choice: 'v9' (choose from",
    "plan --model tiny --chip v3-8 --group 1": "group is 1: it has to be a whole number from 2",
    "plan --model tiny --chip v3-8 --grop 1": "Unrecognized options: --grop, 1",
    "watch {new}": "{new} holds no run.",
    "record {new} {new}2": "{new} holds no whole run",
    "export {new} {new}2": "{new} is no folder, no preset and no handle of Kaggle.",
    "ask {new} hello": "{new} is no folder, no preset and no handle of Kaggle.",
    "ask {new}": "the following arguments are required: prompt.",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(typed, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    names = {"new": str(tmp_path / "new"), "file": str(file)}
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(commands.main([word.format(**names) for word in typed.split()]))
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.count("\n") == 1, told
    assert told.startswith(MISTAKES[typed].format(**names))
    assert not (tmp_path / "new2").exists()


def test_help_lists_the_commands(capsys):
    assert commands.main(["--help"]) == commands.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in commands.COMMANDS.items():
        assert f"  {name:<9}{commands.summary(command)}" in lines


def test_help_and_mistakes_load_no_jax():
    """They are told at once: JAX takes seconds."""
    program = (
        "import sys; from aha_lib import commands\n"
        "try: commands.main(['train', '--steps', 'many', '--out', 'x'])\n"
        "except SystemExit as stopped: assert stopped.code == 2\n"
        "commands.main(['--help']); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("steps is 'many'"), done.stderr


def test_python_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "aha_lib"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: aha COMMAND")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of no step: the base, measured and saved."""
    out = tmp_path_factory.mktemp("commands") / "run"
    assert commands.main(["train", "--out", str(out), *SMALL]) == 0
    return out


def test_a_run_from_end_to_end(run, tmp_path, capsys):
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "settings.json").read_text())["completion_len"] == 32
    assert commands.main(["ask", str(run), "20 16 4 = 40"]) == 0
    asked = capsys.readouterr().out
    assert "</answer>" in asked and asked.count("\n") == 1

    assert commands.main(["export", str(run), str(tmp_path / "hf")]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    weights.load(tmp_path / "hf")
    # A folder without a run has no task: the prompt is what the model sees.
    assert commands.main(["ask", str(tmp_path / "hf"), "20 16 4 = 40 :"]) == 0
    assert capsys.readouterr().out == asked

    assert commands.main(["watch", str(run)]) == 0
    assert "held-out accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged_in_an_export(dtype, monkeypatch, tmp_path, capsys):
    """In float32, where nothing is lost; on wish in bfloat16, and a line says what that loses."""
    model, tokenizer, _ = weights.load("tiny")
    lora.add(model, 2, rngs=nnx.Rngs(0))
    model.layers.down_b[...] = model.layers.down_b[...] + 1e-4
    monkeypatch.setattr(commands, "opened", lambda run: (model, tokenizer, Settings()))
    wish = ["--bfloat16"] * (dtype == "bfloat16")
    assert commands.main(["export", "x", str(tmp_path), *wish]) == 0
    line = re.match(
        rf"Rounding to {dtype} loses (\S+) of the adapters' update", capsys.readouterr().out
    )
    assert (float(line[1]) < 0.01) == (dtype == "float32")
    saved = weights.load(tmp_path, param_dtype=dtype)[0].layers.down[...]
    np.testing.assert_array_equal(saved, lora.merge(model, dtype).layers.down[...])


def test_a_run_that_stopped_early_has_its_own_status(run, monkeypatch, capsys):
    def stops(settings, out):
        (out / "stopped.txt").write_text("Stopped: step 0 of 5 is saved.\n")
        yield {"step": 0}

    monkeypatch.setattr(train, "train", stops)
    status = commands.run_to_the_end(Settings(), run)
    (run / "stopped.txt").unlink()
    assert status == session.UNFINISHED == 75
    assert capsys.readouterr().out == f"To go on: the same command, with --out {run}\n"
    monkeypatch.setattr(train, "train", lambda settings, out: (row for row in ()))
    assert commands.run_to_the_end(Settings(), run) == 0


@pytest.mark.parametrize("fault", [OSError("The disk is full."), KeyboardInterrupt()])
def test_what_ends_a_run_while_its_curve_is_drawn(run, monkeypatch, capsys, fault):
    """The last drawing too: a full disk is a line, Ctrl-C its status."""

    def fails(out):
        raise fault

    monkeypatch.setattr(train, "train", lambda settings, out: (row for row in ()))
    monkeypatch.setattr(commands, "draw_curve", fails)
    if isinstance(fault, KeyboardInterrupt):
        assert commands.run_to_the_end(Settings(), run) == 130
    else:
        with pytest.raises(SystemExit) as stopped:
            commands.run_to_the_end(Settings(), run)
        assert stopped.value.code == 2 and capsys.readouterr().err == "The disk is full.\n"


def test_a_damaged_run_is_one_line(tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"group": 1')
    for typed in (["ask", str(tmp_path), "hello"], ["export", str(tmp_path), str(tmp_path / "x")]):
        with pytest.raises(SystemExit) as stopped:
            commands.main(typed)
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1
        assert told.startswith(f"{tmp_path / 'settings.json'} is damaged")


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "To go on: the same command, with --out x\n"),
        (FloatingPointError("The loss is NaN."), 2, "The loss is NaN.\n"),
        (MemoryError("A device has too little memory."), 2, "A device has too little memory.\n"),
    ],
)
def test_what_ends_pretraining(monkeypatch, capsys, fault, status, told):
    def fails(settings, out):
        yield {"step": 1}
        raise fault

    monkeypatch.setattr(pretrain, "pretrain", fails)
    monkeypatch.setattr(devices, "keep_memory", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        commands.main(["pretrain", "--out", "x"])
    assert stopped.value.code == status and capsys.readouterr().err == told


def test_a_reader_who_left_does_not_end_the_run(monkeypatch):
    """`2>&1 | tee log`: Ctrl-C ends tee first, and then no line can be written."""
    reading, writing = os.pipe()
    os.close(reading)
    gone = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", gone)
    session.show_line("a line that nobody reads")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        gone.close()


def test_an_evaluation_in_a_line():
    row = dict(step=10, heldout_accuracy=0.5, heldout_greedy=0.25, heldout_length=31.25)
    told = commands.evaluation(row | dict(heldout_backtracks=1.5, outcomes={"right": 1}))
    assert told == "step   10  held-out accuracy 0.500 (greedy 0.250)  length 31.2  backtracks 1.50"


def test_the_script_is_installed():
    pyproject = (commands.Path(presets.__file__).parents[1] / "pyproject.toml").read_text()
    assert '[project.scripts]\naha = "aha_lib.commands:main"\n' in pyproject
