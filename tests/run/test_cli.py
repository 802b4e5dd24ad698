"""Settings from a command line, and what is said of bad ones."""

import dataclasses

import pytest

from aha_lib.presets import PRETRAINING, SETTINGS, Pretraining, Settings
from aha_lib.run import cli


def test_settings_from_the_command_line(tmp_path):
    line = f"--out {tmp_path} --steps 20 --seed=1 --kl 0.01 --scale_by_std False --steps 30"
    settings, out = cli.parse(line.split())
    assert out == tmp_path
    changes = dict(steps=30, seed=1, kl=0.01, scale_by_std=False)
    assert settings == dataclasses.replace(SETTINGS["tiny"], **changes)
    assert cli.parse(["--out", "x"])[0] == SETTINGS["tiny"]
    assert cli.parse(["--out", "x", "--learning-rate", "1e-4"])[0].learning_rate == 1e-4


def test_a_preset_gives_the_other_settings():
    line = "--steps 5 --preset gemma3-1b --out x"
    settings, _ = cli.parse(line.split())
    assert settings == dataclasses.replace(SETTINGS["gemma3-1b"], steps=5)
    settings, _ = cli.parse("--out x --preset tiny-jumps --rows 3".split(), PRETRAINING)
    assert settings == dataclasses.replace(PRETRAINING["tiny-jumps"], rows=3)


def test_commands_of_before_there_were_flags_still_work():
    old = "--out x --set steps=3 --set=kl=0.5 --set model=a=b"
    new = "--out x --steps 3 --kl 0.5 --model a=b"
    assert cli.parse(old.split()) == cli.parse(new.split())


def test_changes_are_what_is_named():
    """Also where it is named with the value that it has."""
    preset = SETTINGS["tiny"]
    assert cli.changes(["--group=16", "--micro-batch", "4"], preset) == {
        "group": 16,
        "micro_batch": 4,
    }
    assert cli.changes([], preset) == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--stepz 20", "Unrecognized options: --stepz, 20; perhaps you meant --steps INT."),
        ("extra", "Unrecognized options: extra."),
        ("--steps", "steps has no value: it has to be a whole number from 0 to 1000000000."),
        ("--steps 1.5", "steps is '1.5': it has to be a whole number from 0 to 1000000000."),
        ("--steps=-1", "steps is -1: it has to be a whole number from 0 to 1000000000."),
        ("--warmup 1" + 20 * "0", "warmup is 100000000000000000000: it has to be a whole number"),
        ("--lora 1000000000", "lora is 1000000000: it has to be a whole number from 0 to 4096."),
        ("--group 1", "group is 1: it has to be a whole number from 2 to 65536."),
        ("--eval_every 0", "eval_every is 0: it has to be a whole number from 1 to 1000000000."),
        ("--kl little", "kl is 'little': it has to be a number from 0 up."),
        ("--learning_rate nan", "learning_rate is nan: it has to be a number from 0 up."),
        ("--remat yes", "remat is 'yes': it has to be True or False."),
        (
            "--puzzles sudoku",
            "puzzles is 'sudoku': it has to be one of tiny, tinyzero,",
        ),
        ("--overlong 1000", "overlong is 1000: it has to be within completion_len, which is 144."),
        ("--preset gemma", "preset is 'gemma': it has to be one of tiny, tinyzero-small,"),
        ("--set stepz=20", "Unrecognized options: --stepz=20"),
        ("--set steps", "steps has no value: it has to be a whole number from 0 to 1000000000."),
        ("--out", "--out is missing, or has no value."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["--out", "x", *words.split()])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(told) and error.count("\n") == 1 and error.endswith(".\n")


def test_a_folder_is_asked_for(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["--steps", "3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "--out is missing, or has no value.\n"


@pytest.mark.parametrize("presets", [SETTINGS, PRETRAINING])
def test_help_has_a_line_for_every_setting(presets, capsys):
    """With its default, the preset's, and with what it may be."""
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["--help"], presets, "aha train")
    assert not stopped.value.code
    lines = [line.strip("│| ") for line in capsys.readouterr().out.splitlines()]
    shown = " ".join(" ".join(lines).split())
    assert shown.startswith("usage: aha train ") and all(name in shown for name in presets)
    preset = presets["tiny"]
    for one in dataclasses.fields(preset):
        value = getattr(preset, one.name)
        kind = "{True,False}" if one.type is bool else one.type.__name__.upper()
        default = f"(default: {value})" if value != "" else "(default:"
        assert f"--{one.name} {kind} {one.metadata['help']} {default}" in shown


def test_every_setting_is_a_flag():
    for kind, presets in ((Settings, SETTINGS), (Pretraining, PRETRAINING)):
        for one in dataclasses.fields(kind):
            if one.name not in ("preset", "adapters", "lora", "cut"):  # need others beside them
                line = ["--out", "x", f"--{one.name}", str(one.default)]
                settings, _ = cli.parse(line, presets)
                assert getattr(settings, one.name) == one.default
