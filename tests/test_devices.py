"""Where we run: told from files and environment, explained where JAX cannot start, laid out."""

import errno
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from aha_lib import devices

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No notebook service, no TPU, no other host, whatever machine the tests run on."""
    for name in (
        "KAGGLE_KERNEL_RUN_TYPE",
        "COLAB_RELEASE_TAG",
        "JAX_COORDINATOR_ADDRESS",
        "TPU_WORKER_HOSTNAMES",
        "SLURM_NTASKS",
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_tpu_files", list)


FAULTS = """
import resource, sys
import numpy as np
from aha_lib import devices
if sys.argv[1] == "keep":
    devices.keep_memory()
for n in range(12):
    np.ones(2**25)
    if n == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc")
def test_freed_memory_is_kept():
    """Pages that the kernel has to clear while ten large arrays come and go."""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True
            ).stdout
        )
        for how in ("leave", "keep")
    }
    assert faults["keep"] < 10 < 100 < faults["leave"]


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(devices, "_tpu_files", lambda: ["/dev/accel0"])


@pytest.fixture
def on_kaggle(monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")


@pytest.fixture
def on_colab(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")


# Where


def test_this_computer():
    assert devices.place() == "this computer"


def test_kaggle(on_kaggle, tpu):
    assert devices.place() == "Kaggle"


def test_colab(on_colab):
    assert devices.place() == "Colab"


@pytest.mark.parametrize(
    "command, place",
    [
        ("jupyter\0notebook\0--no-browser", "Cloud TPU VM"),
        (
            "jupyter\0--ServerApp.allow_origin=https://colab.research.google.com",
            "Cloud TPU VM, through Colab",
        ),
    ],
)
def test_cloud_tpu_vm(tpu, monkeypatch, tmp_path, command, place):
    file = tmp_path / "cmdline"
    file.write_text(command)
    monkeypatch.setattr(devices, "Path", lambda name: file)
    assert devices.place() == place


def test_describe():
    lines = dict(line.split(maxsplit=1) for line in devices.describe().splitlines())
    assert list(lines) == ["where", "chip", "HBM", "host", "versions"]
    assert lines["where"] == "this computer" and "CPU cores, on 1 host(s)" in lines["chip"]
    assert f"jax {jax.__version__}" in lines["versions"]
    ram, disk = (float(part.split()[0]) for part in lines["host"].split(", "))
    assert ram > 0 and disk > 0


# What JAX says when it cannot start

HELD = "The TPU is already in use by process with pid 1234. Not attempting to load libtpu.so"
LOCKED = (
    "Unable to initialize backend 'tpu': ABORTED: Internal error when accessing libtpu "
    'multi-process lockfile. Run "$ sudo rm /tmp/libtpu_lockfile".'
)
# A v5e or v6e whose chip another process has, as in google/gvisor's issue 11545.
BUSY = (
    "Unable to initialize backend 'tpu': UNKNOWN: TPU initialization failed: open(/dev/vfio/1): "
    "Device or resource busy: Device or resource busy; Couldn't open iommu group /dev/vfio/1"
)


@pytest.mark.parametrize(
    "error, advice",
    [
        (HELD, "Another process holds the TPU"),
        (LOCKED, "delete /tmp/libtpu_lockfile"),
        ("Unable to initialize backend 'tpu': TPU v2 is not supported", "may be too old for it"),
        ("Unable to initialize backend 'tpu': UNAVAILABLE: No TPU", "session's accelerator is one"),
        (BUSY, "Another process holds the TPU"),
        ("something else", "something else"),
    ],
)
def test_explain(monkeypatch, error, advice):
    for name in ("tensorflow", "torch_xla"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert advice in devices.explain(error)


@pytest.mark.parametrize("name", ["tensorflow", "torch_xla"])
def test_another_framework_holds_the_chips(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert devices.explain(HELD).startswith(f"{name} was imported and holds the TPU: restart")
    assert devices.explain("something else") == "something else"


def test_devices_explains(monkeypatch):
    def fails():
        raise RuntimeError(HELD)

    monkeypatch.setattr(jax, "devices", fails)
    with pytest.raises(RuntimeError, match="Another process holds the TPU"):
        devices.available()


def test_a_jax_for_cpus_on_a_tpu_machine(tpu, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(RuntimeError, match=r'sees no TPU here: run pip install "jax\[tpu\]"'):
        devices.available()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.available() == jax.devices()


def test_a_platform_that_is_not_here(monkeypatch):
    def fails():
        raise RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE: No TPU\nand more")

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(RuntimeError) as error:
        devices.available()
    told = str(error.value)
    assert told.startswith("JAX_PLATFORMS is 'tpu', and JAX cannot start that here (Unable to ini")
    assert "\n" not in told


def test_cuda_without_one_is_a_line():
    """In a process of its own: of "cuda" without its plugin JAX only says AssertionError."""
    done = alone("from aha_lib import devices; devices.start()", JAX_PLATFORMS="cuda")
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("JAX_PLATFORMS is 'cuda', and JAX cannot start that here: unset")


def test_a_machine_without_a_tpu_is_no_alarm():
    """With libtpu installed, which complains of a TPU that is not there when it is loaded."""
    done = alone("from aha_lib import devices; devices.start()", JAX_PLATFORMS=None)
    assert done.returncode == 0 and done.stdout.startswith(f"JAX {jax.__version__} on 1 x ")
    assert not done.stderr


def alone(program: str, **changes: str | None) -> subprocess.CompletedProcess:
    """Run a program in a process with a changed environment; None takes a variable out."""
    env = os.environ | changes
    env = {name: value for name, value in env.items() if value is not None}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True)


# What JAX says when memory is short


@pytest.mark.parametrize(
    "error, figures",
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G.",
            "Used 21.95G of 15.48G",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1073741824 bytes.",
            "allocate 1073741824 bytes",
        ),
        ("RESOURCE_EXHAUSTED: no figures", "RESOURCE_EXHAUSTED"),
    ],
)
def test_memory_errors(error, figures):
    with pytest.raises(MemoryError) as caught, devices.memory_errors("lower micro_batch"):
        raise jax.errors.JaxRuntimeError(error)
    assert f"({figures}): lower micro_batch. `aha plan`" in str(caught.value)


def test_other_errors_stay():
    with pytest.raises(jax.errors.JaxRuntimeError), devices.memory_errors("lower micro_batch"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


# Clock and secrets


def test_time_left(on_kaggle):
    assert devices.time_left(elapsed=3600.0) == 11 * 3600
    assert devices.time_left(limit_hours=2.0, elapsed=3600.0) == 3600


def test_age_of_the_session():
    assert 0 < devices._session_age() < 1000 * 24 * 3600


def test_a_session_older_than_its_limit_has_another(on_colab):
    """Colab's paid plans go on for 24 hours: a deadline in the past would stop a run at once."""
    assert devices.time_left(elapsed=13 * 3600.0) is None
    assert devices.time_left(limit_hours=12.0, elapsed=13 * 3600.0) == -3600


def test_time_left_on_kaggles_tpu(on_kaggle, tpu):
    assert devices.time_left(elapsed=3600.0) == 8 * 3600


def test_time_left_on_colab(on_colab):
    assert devices.time_left(elapsed=0.0) == 12 * 3600


def test_no_limit():
    assert devices.time_left() is None
    assert devices.time_left(limit_hours=1.0, elapsed=0.0) == 3600


def kaggle_secrets(value):
    def get_secret(self, name):
        if value is None:
            raise ConnectionError(f"no {name}; {SECRET}")
        return value

    module = types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = type("UserSecretsClient", (), {"get_secret": get_secret})
    return module


def test_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("A_TOKEN", SECRET)
    assert devices.secret("A_TOKEN") == SECRET


def test_secret_of_kaggle(on_kaggle, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle_secrets(SECRET))
    assert devices.secret("A_TOKEN") == SECRET
    monkeypatch.setenv("A_TOKEN", "of the environment")
    assert devices.secret("A_TOKEN") == "of the environment"


def test_secret_of_colab(on_colab, monkeypatch):
    module = types.ModuleType("google.colab.userdata")
    module.get = {"A_TOKEN": SECRET}.__getitem__
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "google.colab.userdata", module)
    assert devices.secret("A_TOKEN") == SECRET


def test_no_secret(on_kaggle, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle_secrets(None))
    with pytest.raises(LookupError, match="no secret A_TOKEN .ConnectionError.: set the env") as e:
        devices.secret("A_TOKEN")
    assert SECRET not in str(e.value) and e.value.__suppress_context__


# Dtypes, caches


def test_dtypes():
    assert devices.dtypes() == (jnp.float32, jnp.float32)
    for kind in ("tpu", "gpu"):
        assert devices.dtypes(platform=kind) == (jnp.bfloat16, jnp.float32)
    assert devices.dtypes("bfloat16") == (jnp.bfloat16, jnp.float32)
    assert devices.dtypes("float32", "tpu") == (jnp.float32, jnp.float32)


def test_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert devices.cache("plan") == tmp_path / "aha_lib" / "plan"


def test_cache_without_a_home(monkeypatch):
    """As for a container's user whom passwd does not know."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert devices.cache("plan") == Path(tempfile.gettempdir(), f"aha_lib-{os.getuid()}", "plan")


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Kaggle's and Colab's folders, empty; JAX's settings are put back."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("KAGGLE_WORKING", "KAGGLE_INPUT", "DRIVE"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(devices, name, tmp_path / name)
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return tmp_path, told


def test_compiled_programs_are_kept_in_the_home(places, capsys):
    tmp_path, told = places
    assert devices.compilation_cache() == tmp_path / "home" / "aha_lib" / "jax"
    assert told["jax_compilation_cache_dir"] == str(tmp_path / "home" / "aha_lib" / "jax")
    assert told["jax_persistent_cache_min_compile_time_secs"] == 0
    assert capsys.readouterr().out == ""


def test_compiled_programs_of_kaggle_go_from_output_to_input(places, on_kaggle, capsys):
    tmp_path, told = places
    folder = devices.compilation_cache()
    assert folder == tmp_path / "KAGGLE_WORKING" / "aha_compiled" and folder.is_dir()
    assert told["jax_compilation_cache_dir"] == str(folder)
    assert told["jax_persistent_cache_min_compile_time_secs"] > 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "0 so far" in line and "Attach this output" in line
    # The next session: the output lies below the inputs, at whatever depth, and can only be read.
    (folder / "jit_f-123-cache").write_bytes(b"a program")
    for depth in ("notebook", "notebooks/somebody/notebook"):
        earlier = tmp_path / "KAGGLE_INPUT" / depth / "aha_compiled"
        earlier.parent.mkdir(parents=True)
        shutil.copytree(folder, earlier)
        shutil.rmtree(folder)
        assert devices.compilation_cache() == folder
        assert (folder / "jit_f-123-cache").read_bytes() == b"a program"
        assert "1 so far, 1 of them from an input" in capsys.readouterr().out
        shutil.rmtree(earlier)
    devices.compilation_cache()
    assert "1 so far, 0 of them from an input" in capsys.readouterr().out


def test_compiled_programs_of_colab_lie_on_the_drive_that_is_mounted(places, on_colab, capsys):
    tmp_path, _ = places
    assert devices.compilation_cache() == tmp_path / "DRIVE" / "aha_compiled"
    assert "DRIVE" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "DRIVE")
    assert devices.compilation_cache() == tmp_path / "home" / "aha_lib" / "jax"
    assert capsys.readouterr().out == "", "there is none to tell of"


def test_a_disk_that_is_full_costs_no_run(places, on_kaggle, capsys, monkeypatch):
    tmp_path, _ = places

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    assert devices.compilation_cache() == tmp_path / "home" / "aha_lib" / "jax"
    assert "not kept for later sessions" in capsys.readouterr().err


def test_the_folder_that_the_environment_names_comes_first(places, on_kaggle, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    assert devices.compilation_cache() == Path("/somewhere")
    assert capsys.readouterr().out == ""


# Several hosts


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
            },
            {"num_processes": 2, "process_id": 1},
        ),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"SLURM_NTASKS": "4"}, None),  # a batch script
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell
        ({"SLURM_NTASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
    ],
)
def test_start_distributed(monkeypatch, environment, expected):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices.start_distributed() == (expected is not None)
    assert calls == ([] if expected is None else [expected])


def test_slurm_without_srun_is_told(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not devices.start_distributed()
    told = capsys.readouterr().err
    assert told.startswith("This is one process of a Slurm job for 4 tasks") and "srun" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("count", [None, "two"])
def test_half_an_address_is_told(monkeypatch, count):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    if count:
        monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    with pytest.raises(ValueError, match="^JAX_NUM_PROCESSES is '.*': with JAX_COORDINATOR"):
        devices.start_distributed()


def test_start_distributed_on_a_cloud_tpu_vm(monkeypatch, tpu):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append(1))
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert devices.start_distributed() and calls == [1]


# Mesh and shardings


def test_make_mesh_says_what_is_wrong():
    with pytest.raises(ValueError, match="fsdp=2 × tp=3 is not 1 devices: leave fsdp out"):
        devices.make_mesh(jax.devices()[:1], fsdp=2, tp=3)


@pytest.mark.parametrize(
    "shape, names, expected",
    [
        ((16, 5), ("rows",), P(("fsdp",))),
        ((6, 5), ("rows",), P(None)),  # 6 rows do not divide by 4
        ((16, 8, 32), ("embed", "heads", None), P(("fsdp",), ("tp",), None)),
        ((16, 3, 32), ("embed", "kv_heads", None), P(("fsdp",), None, None)),
        ((64, 16), ("vocab", "embed"), P(("fsdp", "tp"), None)),  # the first takes what it can
        ((63, 16), ("vocab", "embed"), P(None, ("fsdp",))),  # and leaves what it cannot
        ((3, 16), ("layers", "norm"), P(None, None)),
    ],
)
def test_spec(shape, names, expected):
    mesh = jax.sharding.AbstractMesh((4, 2), ("fsdp", "tp"))
    assert devices.spec(shape, names, mesh) == expected


def test_constrain_without_a_mesh_is_nothing():
    x = jnp.ones((4, 2))
    assert devices.constrain(x, "rows") is x and devices.row_major(x, "rows") is x


def test_to_host():
    tree = {"a": jnp.arange(3), "b": np.ones(2)}
    whole = devices.to_host(tree)
    assert all(isinstance(x, np.ndarray) for x in whole.values())
    assert whole["a"].tolist() == [0, 1, 2]


def test_lanes_are_for_small_weights_on_a_cpu_alone(monkeypatch):
    small, large = {"a": np.zeros(8, np.float32)}, {"a": np.zeros(2**22, np.float32)}
    for cores, threads in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert (devices.cpu_threads(small), devices.cpu_threads(large)) == (threads, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert devices.cpu_threads(small) == 1


def test_run_in_threads():
    here, wait = threading.get_ident(), threading.Barrier(3, timeout=60)
    assert devices.run_in_threads(lambda _: threading.get_ident(), [0]) == [here]

    def meet(x):  # returns when all three are there: they do run side by side
        wait.wait()
        return x, threading.get_ident() == here

    assert devices.run_in_threads(meet, [3, 1, 2]) == [(3, False), (1, False), (2, False)]
    with pytest.raises(ZeroDivisionError):
        devices.run_in_threads(lambda x: 1 / x, [1, 0])


def test_no_two_purposes_share_a_key():
    """Nor has one the key of another seed, or what nnx and JAX make of a seed by themselves."""

    def words(key):
        return tuple(np.asarray(jax.random.key_data(key)).tolist())

    purposes = ("training", "evaluation", "preflight", "adapters", "cold-start adapters")
    ours = [words(devices.random_key(seed, name)) for seed in range(20) for name in purposes]
    theirs = []
    for seed in range(20):
        key, rngs = jax.random.key(seed), nnx.Rngs(seed)
        theirs += [key, *jax.random.split(key), *(rngs.params() for _ in range(8))]
    assert len({*ours}) == 100 and not {*ours} & {*map(words, theirs)}
    assert words(devices.random_key(3, "training")) == ours[15], "always the same"


def test_keys_are_of_one_generator_whatever_the_default_is():
    key = devices.random_key(0, "training")
    with jax.default_prng_impl("rbg"):
        again = devices.random_key(0, "training")
        drawn = jax.random.normal(nnx.Rngs(again).params(), (4,))
    np.testing.assert_array_equal(drawn, jax.random.normal(nnx.Rngs(key).params(), (4,)))
