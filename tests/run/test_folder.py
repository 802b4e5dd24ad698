"""A run's folder: who may train there, what it refuses and takes over, torn and damaged files."""

import dataclasses
import fcntl
import os
import subprocess
import sys

import pytest

from aha_lib.presets import Settings
from aha_lib.run import folder

ROWS = '{"step": 0}\n{"step": 1}\n'


# Settings


def begun(out, settings):
    """A folder with settings, and rows of two steps."""
    folder.write_settings(out, settings)
    (out / "metrics.jsonl").write_text(ROWS)


def test_a_folder_holds_one_run(tmp_path):
    settings = Settings()
    begun(tmp_path, settings)
    assert folder.changed_settings(tmp_path, settings) == []
    told = r"other settings \(seed: 0 -> 3, kl: 0.0 -> 0.1\): choose another folder, or "
    with pytest.raises(ValueError, match=told):
        folder.changed_settings(tmp_path, dataclasses.replace(settings, seed=3, kl=0.1))
    other = dataclasses.replace(settings, steps=90, micro_batch=8, eval_every=5)
    taken = ["steps: 60 -> 90", "micro_batch: 32 -> 8", "eval_every: 10 -> 5"]
    assert folder.changed_settings(tmp_path, other) == taken
    assert folder.read_settings(tmp_path) == settings, "they have not proved to be possible"
    folder.write_settings(tmp_path, other)
    assert folder.changed_settings(tmp_path, other) == [], "those are the run's now"


def test_settings_are_free_until_there_are_rows_or_checkpoints(tmp_path):
    folder.write_settings(tmp_path, Settings(model="a typo"))
    assert folder.changed_settings(tmp_path, Settings(seed=3)) == []
    (tmp_path / "checkpoints").mkdir()
    assert folder.changed_settings(tmp_path, Settings(seed=3)) == []
    (tmp_path / "checkpoints" / "0").mkdir()
    with pytest.raises(ValueError, match="model: a typo -> tiny, seed: 0 -> 3"):
        folder.changed_settings(tmp_path, Settings(seed=3))


@pytest.mark.parametrize("changes", [{"decay": 0.5}, {"refills": 1}], ids=str)
def test_steps_are_fixed_where_they_change_what_is_learned(changes, tmp_path):
    """The learning rate falls to the last step; a step's further puzzles lie behind the last's."""
    settings = Settings(**changes)
    begun(tmp_path, settings)
    with pytest.raises(ValueError, match="steps: 60 -> 61"):
        folder.changed_settings(tmp_path, dataclasses.replace(settings, steps=61))


@pytest.mark.parametrize("text", ["", "{", "\0\0\0", "[]"])
def test_damaged_settings_are_named_and_taken_from_the_command(text, tmp_path, capsys):
    """The checkpoints do not depend on them; who only looks is told which file it is."""
    begun(tmp_path, Settings())
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings.json is damaged \("):
        folder.read_settings(tmp_path)
    assert folder.changed_settings(tmp_path, Settings(seed=3)) == []
    assert "settings.json is damaged (" in (tmp_path / "log.txt").read_text()


def test_settings_of_another_version(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": 3, "colour": "red"}')
    with pytest.raises(ValueError, match="settings.json has settings .* not known here: colour"):
        folder.read_settings(tmp_path)


@pytest.mark.parametrize("name", ["file", "file/within"])
def test_a_file_is_no_folder(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, or lies in one: a run needs a folder"):
        folder.make(tmp_path / name)


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is an address, .* mount the bucket"):
        folder.make(folder.Path(address))
    assert not list(tmp_path.iterdir())


# One run at a time


OTHER = """
import fcntl, os, socket, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on {socket.gethostname()}")
file.flush()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_one_processs(tmp_path):
    """The second is refused in a line that names the first; a kill frees the folder."""
    assert folder.is_held(tmp_path) is False
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path / "lock")], **pipes)
    assert other.stdout.readline() == "ready\n"
    assert folder.is_held(tmp_path) is True
    line = f"is being trained by process {other.pid} on .*: wait for it, stop it, or choose another"
    with pytest.raises(ValueError, match=line), folder.hold(tmp_path):
        pass
    assert folder.is_held(tmp_path) is True
    other.kill()
    other.communicate()
    assert folder.is_held(tmp_path) is False
    with folder.hold(tmp_path):
        with pytest.raises(ValueError, match="by this very process"), folder.hold(tmp_path):
            pass
        assert folder.is_held(tmp_path) is True
    assert folder.is_held(tmp_path) is False


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    """A warning, and the run goes on; who looks cannot tell."""

    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder.hold(tmp_path):
        assert folder.is_held(tmp_path) is None
    assert "without locks (Operation not supported): see to it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error, told",
    [
        (ValueError("No good."), "Ended by an error. ValueError: No good."),
        (KeyboardInterrupt(), "Interrupted at once. The last row is that of step 1; the same"),
        (GeneratorExit(), "Closed by its caller. The last row is that of step 1; the same"),
    ],
    ids=["error", "interrupt", "close"],
)
def test_what_ends_a_run_is_in_its_folder(error, told, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(ROWS)
    with pytest.raises(type(error)), folder.keep_reason(tmp_path, steps=2):
        raise error
    assert folder.why_stopped(tmp_path).startswith(told)
    folder.remove_marks(tmp_path)
    with pytest.raises(KeyboardInterrupt), folder.keep_reason(tmp_path, steps=2):
        folder.mark_stopped(tmp_path, "Stopped: step 1 is saved.")
        raise KeyboardInterrupt
    assert folder.why_stopped(tmp_path) == "Stopped: step 1 is saved."
    folder.remove_marks(tmp_path)
    with pytest.raises(GeneratorExit), folder.keep_reason(tmp_path, steps=1):
        raise GeneratorExit
    assert folder.why_stopped(tmp_path) is None, "its caller has seen all of it"


# Rows


def test_a_row_half_written_is_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert folder.read_rows(path) == []
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert folder.read_rows(path) == [{"step": 0}, {"step": 1}]
    assert folder.truncate_after(path, 0) == [{"step": 0}]
    folder.append(path, {"step": 1})
    assert path.read_text() == ROWS


DAMAGE = {
    "torn": b'{"step": 0}\n{"st{"step": 1}\n{"step": 2}\n',
    "NUL": b'{"step": 0}\n\0\0\0\0{"step": 1}\n{"step": 2}\n',
    "bytes": b'{"step": 0}\n{"text": "\xff\xfe"}\n{"step": 2}\n',
    "number": b'{"step": 0}\n17\n{"step": 2}\n',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_named_and_left_out(name, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(DAMAGE[name])
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: damaged"):
        folder.read_rows(path)
    assert folder.last_step(tmp_path) == 2
    assert folder.truncate_after(path, 2) == [{"step": 0}, {"step": 2}]
    assert "metrics.jsonl: damaged lines (2) are left out" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "metrics.jsonl").read_bytes() == DAMAGE[name]
    assert folder.read_rows(path) == [{"step": 0}, {"step": 2}]


def test_a_blank_line_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n\n{"step": 1}\n')
    assert folder.read_rows(path) == [{"step": 0}, {"step": 1}]


# Output that nobody reads

UNREAD = """
import os, signal, sys
from pathlib import Path

from aha_lib.run import folder, session

out = Path(sys.argv[1])
bar = session.Progress(0, 6)
with session.catch_signals() as seen:
    signal.raise_signal(signal.SIGINT)
    bar.advance("seen")
    folder.mark_stopped(out, "Stopped: step 1 of 5 is saved.")
bar.close()
print("and this", flush=True)
(out / "end").touch()
"""


def test_output_that_nobody_reads_ends_nothing(tmp_path):
    """As after Ctrl-C with `2>&1 | tee log`, where `tee` is the first to go."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", UNREAD, str(tmp_path)]
    done = subprocess.run(command, stdout=writer, stderr=writer, timeout=120)
    os.close(writer)
    assert folder.why_stopped(tmp_path) == "Stopped: step 1 of 5 is saved."
    assert (tmp_path / "end").exists() and done.returncode == 0
