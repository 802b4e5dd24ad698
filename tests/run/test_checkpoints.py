"""Checkpoints: which are kept, what counts as damage, who may change them, where they open."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


# Checkpoints


def test_the_last_two_and_the_best_are_kept(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        for step, accuracy in enumerate((0.1, 0.7, 0.9, 0.3, None, 0.2, None)):
            row = {"step": step} | ({} if accuracy is None else {"heldout_accuracy": accuracy})
            checkpoints.save(manager, step, tree(step), row)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]
    found, step = restored(tmp_path)
    assert step == 6 and equal(found, tree(6))


def test_a_full_disk_is_a_sentence_and_no_more(tmp_path, caplog):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    large = {"w": jax.random.normal(jax.random.key(0), (400, 400))}
    try:
        with (
            pytest.raises(OSError, match="The disk is full: make room in"),
            checkpoints.disk_errors(tmp_path),
            checkpoints.manager(tmp_path) as manager,
        ):
            for step in range(3):
                checkpoints.save(manager, step, large, {"step": step})
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert not [record for record in caplog.records if record.name == "absl"]


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
    """Then nothing begins anew by itself, and nothing is moved."""
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    for path in (out / "checkpoints").glob("*/*/*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = listing(out)
    with pytest.raises(ValueError, match=r"No checkpoint in .* is whole \(step 4: .*step 2: .*\)"):
        restored(out)
    assert listing(out) == before
    assert restored(tmp_path / "none") == (None, -1)


def test_rows_without_a_checkpoint(tmp_path):
    """That of step 0 is written before its checkpoint is; later ones had one, which is gone."""
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 0}\n')
    assert restored(tmp_path) == (None, -1)
    rows.write_text('{"step": 0}\n{"step": 1}\n')
    with pytest.raises(ValueError, match="rows up to step 1, and no checkpoint to go on from"):
        restored(tmp_path)
    assert rows.read_text() == '{"step": 0}\n{"step": 1}\n'


def listing(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        ValueError("UNKNOWN: Error reading local file [OS error 5: EIO Input/output error]"),
        ValueError("NOT_FOUND: no such thing [OS error 116: ESTALE Stale file handle]"),
        ValueError("Topology mismatch"),
    ],
    ids=lambda error: str(error)[-20:],
)
def test_an_error_of_reading_is_no_damage(kept, tmp_path, monkeypatch, error):
    """The checkpoint stays where it is, and the run does not go on from an older one."""
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    before = listing(out)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "restore", fail)
    with pytest.raises(OSError, match="step 4 .* cannot be read, .* nothing was changed"):
        restored(out)
    monkeypatch.setattr(checkpoints, "PAUSE", 0)
    with pytest.raises(OSError, match="step 4 .* cannot be read"):
        checkpoints.look(out, shapes())
    assert listing(out) == before


def test_who_looks_changes_nothing(kept, tmp_path, monkeypatch):
    """A damaged checkpoint is passed over with a warning; it stays, and nothing is written."""
    monkeypatch.setattr(checkpoints, "PAUSE", 0)
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    (out / "checkpoints/4/default/manifest.ocdbt").write_bytes(b"")
    before = listing(out)
    with pytest.warns(UserWarning, match="of step 4. That of step 2 is opened"):
        found = checkpoints.look(out, shapes())
    assert found.step == 2 and equal(found.tree, tree(2)) and [*found.damaged] == [4]
    assert listing(out) == before
    assert checkpoints.look(tmp_path / "none", shapes()).step == -1
    assert not (tmp_path / "none").exists()


def test_a_live_run_and_one_who_looks(tmp_path):
    """Checkpoints come and go under the reader; each of his looks finds a whole one."""
    like = shapes()

    def train():
        with checkpoints.manager(tmp_path) as manager:
            for step in range(30):
                checkpoints.save(manager, step, tree(step), {"step": step})

    seen = []
    with futures.ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = pool.submit(train)
        while not writer.done():
            found = checkpoints.look(tmp_path, like)
            if found.tree is not None:
                assert equal(found.tree, tree(found.step))
                seen.append(found.step)
        writer.result()
    assert len(set(seen)) > 3 and seen == sorted(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["28", "29"]


def test_what_is_deleted_while_it_is_read_is_no_damage(kept, tmp_path, monkeypatch):
    """The newest loses a file, and then goes: the one before is read, without a warning."""
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    newest = out / "checkpoints" / "4"
    read = checkpoints._read

    def going(manager, step, shapes):
        if newest.exists():
            (newest / "default/manifest.ocdbt").unlink()
            found = read(manager, step, shapes)
            shutil.rmtree(newest)
            return found
        return read(manager, step, shapes)

    monkeypatch.setattr(checkpoints, "_read", going)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoints.look(out, shapes())
    assert found.step == 2 and not found.damaged and equal(found.tree, tree(2))


# Devices

DEVICES = """
import json, sys, warnings
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from aha_lib.run import checkpoints

warnings.simplefilter("error")
there, made = Path(sys.argv[1]), json.loads(sys.argv[2])


def state(fsdp, tp):
    if fsdp * tp == 1:
        put = lambda x, spec: jax.device_put(x, jax.devices()[0])
    else:
        devices = jax.devices()[: fsdp * tp]
        mesh = jax.make_mesh((fsdp, tp), ("fsdp", "tp"), (AxisType.Auto,) * 2, devices=devices)
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    w = jnp.arange(64 * 16, dtype=jnp.float32).reshape(64, 16)
    return {"params": {"w": put(w, P("fsdp", "tp")), "b": put(jnp.arange(3), P())}}


meshes = [(f, t) for f, t in ((1, 1), (2, 1), (4, 2), (8, 1)) if f * t <= jax.device_count()]
for name, mesh in made.items():
    with checkpoints.manager(there / name) as manager:
        checkpoints.save(manager, 3, state(*mesh), {"step": 3})
for out in sorted(there.iterdir()):
    for mesh in meshes:
        like = checkpoints.shapes(state(*mesh))
        assert checkpoints.look(out, like).step == 3, (out, mesh)
        with checkpoints.manager(out) as manager:
            tree, step = checkpoints.restore(manager, like, out)
        assert step == 3 and float(tree["params"]["w"].sum()) == 1023 * 512, (out, mesh)
        assert not (out / "damaged").exists() and not (out / "log.txt").exists(), (out, mesh)
"""


def with_devices(count, there, **made):
    flags = f"--xla_force_host_platform_device_count={count}"
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", DEVICES, str(there), json.dumps(made)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_checkpoints_of_eight_devices_open_on_one(tmp_path):
    with_devices(8, tmp_path, eight=(8, 1), split=(4, 2), two=(2, 1), one=(1, 1))
    with_devices(1, tmp_path)


@pytest.mark.slow
def test_checkpoints_open_on_any_number_of_devices(tmp_path):
    with_devices(1, tmp_path, one=(1, 1))
    with_devices(2, tmp_path, two=(2, 1))
    with_devices(8, tmp_path, eight=(8, 1), split=(4, 2))
    for count in (1, 2, 8):
        with_devices(count, tmp_path)


# Checksums


def test_checksum_sees_any_bit():
    whole = tree(0)
    w = np.array(whole["params"]["w"])
    w.view(np.uint32)[5, 7] ^= 1
    assert checkpoints.checksum(whole) == checkpoints.checksum(tree(0))
    other = {"params": whole["params"] | {"w": jnp.asarray(w)}}
    assert checkpoints.checksum(whole) != checkpoints.checksum(other)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole)
    assert checkpoints.checksum(halves) > 0


def test_another_base_is_refused(tmp_path):
    """Whatever the dtype it is read in; a folder of before, which does not say, takes any."""
    base = jax.random.normal(jax.random.key(0), (32, 16))
    other = {"w": base.at[3, 4].multiply(1.1)}
    checkpoints.keep_base(tmp_path, other, "mine")
    checkpoints.keep_base(tmp_path, {"w": base}, "mine")  # nothing has begun
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    same = {"w": base.astype(jnp.bfloat16)}
    before = listing(tmp_path)
    assert (
        checkpoints.check_base(tmp_path, same, "mine")
        == json.loads((tmp_path / "base.json").read_text())["checksum"]
    )
    with pytest.raises(ValueError, match="mine has other weights now than when the run in "):
        checkpoints.keep_base(tmp_path, other, "mine")
    assert listing(tmp_path) == before
    (tmp_path / "base.json").unlink()
    checkpoints.check_base(tmp_path, other, "mine")
