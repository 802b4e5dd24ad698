"""Settings from a command line, and what is said of bad ones."""

import dataclasses

import pytest

from aha_lib.presets import PRETRAINING, SETTINGS
from aha_lib.run import cli


def test_settings_from_the_command_line(tmp_path):
    line = [
        "--out",
        str(tmp_path),
        "--set",
        "steps=20",
        "--set",
        "seed=1",
        "--set",
        "kl=0.01",
        "--set",
        "scale_by_std=false",
        "--set",
        "steps=30",
    ]
    settings, out = cli.parse(line)
    assert out == tmp_path
    changes = dict(steps=30, seed=1, kl=0.01, scale_by_std=False)
    assert settings == dataclasses.replace(SETTINGS["tiny"], **changes)
    assert cli.parse(["--out", "x"])[0] == SETTINGS["tiny"]


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("stepz=20", "No setting is called 'stepz'"),
        ("steps", "steps takes int, not ''"),
        ("=3", "No setting is called ''"),
        ("preset=gemma", "No setting is called 'preset'"),
        ("steps=1.5", "steps takes int, not '1.5'"),
        ("kl=little", "kl takes float, not 'little'"),
        ("scale_by_std=yes", "scale_by_std takes bool, not 'yes'"),
        ("steps=-1", "steps"),
        ("group=1", "group"),
        ("eval_every=0", "eval_every"),
        ("learning_rate=nan", "learning_rate"),
        ("puzzles=sudoku", "puzzles"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_status_2(assignment, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["--out", "x", "--set", assignment])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told in error and error.count("\n") == 1 and error.endswith(".\n")


def test_of_another_table():
    settings, _ = cli.parse(
        ["--out", "x", "--preset", "tiny-jumps", "--set", "rows=3"], PRETRAINING
    )
    assert (settings.preset, settings.rows) == ("tiny-jumps", 3)
