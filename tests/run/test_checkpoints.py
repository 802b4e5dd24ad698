"""A run's folder: what it refuses and takes over, what a damaged checkpoint does, torn rows."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aha_lib.presets import Settings
from aha_lib.run import checkpoints


def tree(number):
    """A state of several arrays, one of them too large for a single chunk's header."""
    key = jax.random.key(number)
    return {"params": {"w": jax.random.normal(key, (64, 32)), "b": jnp.full(3, number, jnp.int32)}}


def shapes():
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return jax.tree.map(like, tree(0))


def equal(one, other):
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    return all(jax.tree.leaves(same))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("run")
    with checkpoints.manager(out) as manager:
        for step in (2, 4):
            checkpoints.save(manager, step, tree(step), {"step": step, "heldout_accuracy": 0.5})
    return out


def restored(out):
    with checkpoints.manager(out) as manager:
        return checkpoints.restore(manager, shapes(), out)


# Settings


def test_a_folder_holds_one_run(tmp_path):
    settings = Settings()
    assert checkpoints.claim(tmp_path, settings) == checkpoints.claim(tmp_path, settings) == []
    told = r"other settings \(seed: 0 -> 3, kl: 0.0 -> 0.1\): choose another folder, or "
    with pytest.raises(ValueError, match=told):
        checkpoints.claim(tmp_path, dataclasses.replace(settings, seed=3, kl=0.1))
    other = dataclasses.replace(settings, steps=90, micro_batch=8, eval_every=5)
    taken = ["steps: 60 -> 90", "micro_batch: 32 -> 8", "eval_every: 10 -> 5"]
    assert checkpoints.claim(tmp_path, other) == taken
    assert checkpoints.claim(tmp_path, other) == [], "those are the run's now"


@pytest.mark.parametrize("changes", [{"decay": 0.5}, {"refills": 1}], ids=str)
def test_steps_are_fixed_where_they_change_what_is_learned(changes, tmp_path):
    """The learning rate falls to the last step; a step's further puzzles lie behind the last's."""
    settings = Settings(**changes)
    checkpoints.claim(tmp_path, settings)
    with pytest.raises(ValueError, match="steps: 60 -> 61"):
        checkpoints.claim(tmp_path, dataclasses.replace(settings, steps=61))


@pytest.mark.parametrize("name", ["file", "file/within"])
def test_a_file_is_no_folder(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, or lies in one: a run needs a folder"):
        checkpoints.claim(tmp_path / name, Settings())


# Rows


def test_a_row_half_written_is_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert checkpoints.read_rows(path) == []
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert checkpoints.read_rows(path) == [{"step": 0}, {"step": 1}]
    assert checkpoints.cut(path, 0) == [{"step": 0}]
    checkpoints.append(path, {"step": 1})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


# Checkpoints


def test_the_last_two_and_the_best_are_kept(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        for step, accuracy in enumerate((0.1, 0.7, 0.9, 0.3, None, 0.2, None)):
            row = {"step": step} | ({} if accuracy is None else {"heldout_accuracy": accuracy})
            checkpoints.save(manager, step, tree(step), row)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]
    found, step = restored(tmp_path)
    assert step == 6 and equal(found, tree(6))


def test_damage_to_any_file_of_the_newest_is_found(kept, tmp_path, capsys):
    """Each is told and set aside, and the one before is used; else its arrays are unharmed."""
    files = [p.relative_to(kept) for p in (kept / "checkpoints" / "4").rglob("*") if p.is_file()]
    harm = {
        "gone": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "one bit": lambda path: path.write_bytes(flipped(path.read_bytes())),
    }
    found = set()
    cases = [(file, *list(harm.items())[i % len(harm)]) for i, file in enumerate(files)]
    largest = max(files, key=lambda file: (kept / file).stat().st_size)
    cases += [(largest, name, damage) for name, damage in harm.items()]
    for i, (file, name, damage) in enumerate(cases):
        out = tmp_path / str(i)
        shutil.copytree(kept, out)
        damage(out / file)
        state, step = restored(out)
        assert equal(state, tree(step)) and step in (2, 4), (file, name)
        if step == 2:
            found.add(name)
            assert (out / "damaged" / "4").is_dir() and not (out / "checkpoints" / "4").exists()
            assert "The checkpoint of step 4 is damaged (" in capsys.readouterr().out
            assert "step 4 is damaged" in (out / "log.txt").read_text()
    assert found == set(harm)


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def test_no_whole_checkpoint(kept, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    for path in (out / "checkpoints").glob("*/*/*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert restored(out) == (None, -1)
    assert restored(tmp_path / "none") == (None, -1)


def test_checksum_sees_any_bit():
    whole = tree(0)
    w = np.array(whole["params"]["w"])
    w.view(np.uint32)[5, 7] ^= 1
    assert checkpoints.checksum(whole) == checkpoints.checksum(tree(0))
    other = {"params": whole["params"] | {"w": jnp.asarray(w)}}
    assert checkpoints.checksum(whole) != checkpoints.checksum(other)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole)
    assert checkpoints.checksum(halves) > 0
