"""Where we run, and how arrays are laid out there: machine, clock, secrets, mesh, shardings.

Parameters carry logical axis names; one table, `RULES`, says which mesh axis shards each of them.
Knows nothing of Gemma's layers, of tokens or of rewards; takes arrays and their axis names.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from aha_lib.install import tpu_files as _tpu_files

# Logical axis -> mesh axes. `fsdp` shards every batch along its rows and every parameter along its
# width, the embedding along its vocabulary: the one weight that is never gathered. `tp` splits
# heads and feed-forward. An axis of an array takes what those before it have left.
RULES = {
    "rows": ("fsdp",),
    "embed": ("fsdp",),
    "vocab": ("fsdp", "tp"),
    "draws": ("fsdp", "tp"),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "ff": ("tp",),
}

GENERATOR = "threefry2x32"  # of all random keys, whatever `jax_default_prng_impl` says

# Hours after which a session ends, as said by their pages of 2026; Colab's depends on the plan.
SESSION_HOURS = {"Kaggle TPU": 9.0, "Kaggle": 12.0, "Colab": 12.0}

# What outlives a session: Kaggle's output, which can be an input of the next one; Colab's Drive.
KAGGLE_WORKING = Path("/kaggle/working")
KAGGLE_INPUT = Path("/kaggle/input")
DRIVE = Path("/content/drive/MyDrive")
COMPILED = "aha_compiled"  # the folder there of compiled programs

# What JAX says when it cannot have the chips -> what to do about it; the first match counts.
HELD = (
    "Another process holds the TPU: shut down the notebook or program that uses it, or restart. "
    "If there is none, delete /tmp/libtpu_lockfile."
)
TOO_OLD = (
    f"JAX {jax.__version__} does not know this chip, which may be too old for it: "
    f'pip install "jax[tpu]<{jax.__version__}" and restart.'
)
NO_START = (
    "JAX cannot start the TPU: check that the session's accelerator is one, and that jax and "
    'libtpu came together, by pip install "jax[tpu]".'
)
TRAPS = {
    r"(?i)already in use|lockfile|resource busy|iommu group": HELD,
    r"(?i)not supported|unsupported|unknown tpu": TOO_OLD,
    r"(?i)tpu": NO_START,
}


def place() -> str:
    """Kaggle, Colab, Cloud TPU VM (through Colab, if its page is the front), or this computer."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in os.environ:
        return "Colab"
    if not _tpu_files():
        return "this computer"
    parent = Path(f"/proc/{os.getppid()}/cmdline")  # the Jupyter server, told to trust Colab
    attached = parent.exists() and "colab.research.google.com" in parent.read_text()
    return "Cloud TPU VM" + ", through Colab" * attached


def start() -> None:
    """Join the other hosts if there are any, and print which chips there are.

    For the setup cell of a notebook. Without the chips it prints what to do, and ends a script with
    status 2.
    """
    try:
        start_distributed()
        kind = available()[0].device_kind
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    print(f"JAX {jax.__version__} on {jax.device_count()} x {kind}")


def available() -> list[jax.Device]:
    """`jax.devices()`, or RuntimeError with a sentence that says what to do to have them."""
    if not _may_have_a_tpu():
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS=cuda, no plugin
        raise RuntimeError(explain(str(error))) from error
    if _tpu_files() and found[0].platform == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise RuntimeError('JAX sees no TPU here: run pip install "jax[tpu]" and restart.')
    return found


def _may_have_a_tpu() -> bool:
    """False where only the CPU is left: JAX would start libtpu, whose errors alarm for nothing.

    JAX has a platform set already where the user names one, or where it saw a TPU on the bus.
    """
    told = bool(jax.config.jax_platforms)
    plugins = importlib.util.find_spec("jax_plugins") is not None  # of GPUs, for example
    return told or plugins or bool(_tpu_files())


def keep_memory() -> None:
    """Have glibc keep what XLA frees on a CPU for its next arrays; does nothing elsewhere.

    Left to itself glibc gives large blocks back to the kernel, which has to clear them when they
    are wanted again: on two cores a tenth of a step of the tiny pre-training, a quarter of a GRPO
    step of Gemma 3 270M. The price is memory, and slower compilation, since all threads share one
    arena: it is for long runs. Call it before JAX starts its threads. The numbers are malloc.h's.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX: one arena
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own from the kernel
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
        mallopt(-2, 2**26)  # M_TOP_PAD: take 64 MiB at a time


def explain(error: str) -> str:
    """What to do about an error at JAX's start; the error itself if it is not a known one."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    tpu_is_there = "tpu" in wanted and bool(_tpu_files())
    if wanted not in ("", "cpu") and not tpu_is_there:
        reason = f" ({error.splitlines()[0]})" if error else ""
        return (
            f"JAX_PLATFORMS is {wanted!r}, and JAX cannot start that here{reason}: unset it to "
            'take what there is, or install what is missing, by pip install "aha_lib[gpu]" or '
            '"aha_lib[tpu]".'
        )
    known = [advice for pattern, advice in TRAPS.items() if re.search(pattern, error)]
    for name in ("torch_xla", "tensorflow"):
        if known and name in sys.modules:
            return f"{name} was imported and holds the TPU: restart, and import JAX alone."
    return known[0] if known else error


@contextlib.contextmanager
def memory_errors(advice: str):
    """JAX's error at the end of a device's memory as a MemoryError: its figures, and `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figures = re.search(r"(?i)used [\d.]+\w+ of [\d.]+\w+|allocat\w* [\d.]+ ?\w+", str(error))
        raise MemoryError(
            f"A device has too little memory ({figures[0] if figures else 'RESOURCE_EXHAUSTED'}): "
            f"{advice}. `aha plan` says beforehand what fits."
        ) from error


def describe() -> str:
    """A table of the machine: place, chips, memories, versions. Errors as from `available`."""
    found = available()
    cpu = jax.default_backend() == "cpu"
    kind = f"{os.cpu_count()} CPU cores" if cpu else found[0].device_kind
    hbm = (found[0].memory_stats() or {}).get("bytes_limit")
    disk = shutil.disk_usage(".").free
    rows = {
        "where": place(),
        "chip": f"{len(found)} x {kind}, on {jax.process_count()} host(s)",
        "HBM": f"{hbm / 2**30:.1f} GiB per core" if hbm else "none: the host's memory",
        "host": f"{_host_memory() / 2**30:.0f} GiB RAM, {disk / 2**30:.0f} GiB of disk",
        "versions": ", ".join(_versions("jax", "jaxlib", "libtpu", "flax")),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


def _host_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or its container's."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" is none
    if limit.exists() and limit.read_text().strip().isdigit():
        ram = min(ram, int(limit.read_text()))
    return ram


def _versions(*names: str) -> list[str]:
    """ "jax 0.10.2" of each that is installed."""
    found = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def time_left(*, limit_hours: float | None = None, elapsed: float | None = None) -> float | None:
    """Seconds until the session ends; None where there is no limit, or none that is known.

    `limit_hours` is by default what the place grants. A session that is older than that has another
    limit, by its plan, and which is not known. `elapsed` (seconds) is by default the age of the
    machine's first process, which Kaggle and Colab start with the session.
    """
    if elapsed is None:
        elapsed = _session_age()
    if limit_hours:
        return limit_hours * 3600 - elapsed
    where = place()
    if where == "Kaggle" and _tpu_files():
        where = "Kaggle TPU"
    left = SESSION_HOURS.get(where, 0.0) * 3600 - elapsed
    return left if left > 0 else None


def _session_age() -> float:
    """Seconds since the machine's first process was started."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    after_name = Path("/proc/1/stat").read_text().rsplit(")", 1)[1]  # the name may have blanks
    started = int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")  # seconds after the boot
    return uptime - started


class Stopwatch:
    """Seconds between one lap and the next, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap this name."""
        now = time.perf_counter()
        self.laps[name] = now - self._since
        self._since = now


def secret(name: str) -> str:
    """A secret of the environment, of Kaggle or of Colab; LookupError where there is none."""
    where = place()
    try:
        if name in os.environ or where not in ("Kaggle", "Colab"):
            return os.environ[name]
        if where == "Kaggle":
            return importlib.import_module("kaggle_secrets").UserSecretsClient().get_secret(name)
        return importlib.import_module("google.colab.userdata").get(name)
    except Exception as error:  # kinds of their own: not found, access not granted, no network
        raise LookupError(
            f"There is no secret {name} ({type(error).__name__}): set the environment variable, or "
            "on Kaggle and Colab add it to the secrets and let the notebook read it."
        ) from None


def random_key(seed: int, purpose: str) -> jax.Array:
    """The key from which a run of this seed draws for one purpose, by a name such as "sampling".

    Keys are 64 bits of SHA-256: none is another's, and none is what `nnx.Rngs(seed)` or
    `jax.random.split` make of a seed. Runs and records made before 28 November 2026 used
    `jax.random.split(jax.random.key(seed))` and `nnx.Rngs(seed)` instead: the tiny base and the
    records in `aha_lib/data` are of that kind, and the same settings give other tokens today.
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    words = np.frombuffer(digest[:8], ">u4").astype(np.uint32)
    return jax.random.wrap_key_data(words, impl=GENERATOR)


def dtypes(wanted: str = "auto", platform: str | None = None) -> tuple[np.dtype, np.dtype]:
    """Of activations (as `wanted`) and of parameters, float32; "auto": bfloat16 but on a CPU."""
    cpu = (platform or jax.default_backend()) == "cpu"
    automatic = "float32" if cpu else "bfloat16"
    return jnp.dtype(automatic if wanted == "auto" else wanted), jnp.dtype(jnp.float32)


def cache(name: str) -> Path:
    """A folder in the user's cache folder for what can be made again.

    Without a home, as a container's user without HOME and without an entry in passwd, a temporary
    one.
    """
    own = os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own) / "aha_lib" / name
    try:
        return Path.home() / ".cache" / "aha_lib" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"aha_lib-{os.getuid()}" / name


def compilation_cache() -> Path:
    """Keep compiled programs in a folder, so that the next start need not compile them again.

    The folder is what JAX_COMPILATION_CACHE_DIR names; else one that outlives the session on Kaggle
    (its output, which the next session reads where it is attached as input) and on Colab (Drive,
    where it is mounted), which a line tells; else one of the user's cache.
    """
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    lasting = None if own else _lasting_folder()
    folder = Path(own) if own else lasting or cache("jax")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Of what lasts, the hundreds of programs that take no time are left out.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5 if lasting else 0.0)
    return folder


def _lasting_folder() -> Path | None:
    """A folder for compiled programs that outlives the session, with those of earlier ones."""
    where = place()
    roots = {"Kaggle": KAGGLE_WORKING, "Colab": DRIVE}
    root = roots.get(where)
    if root is None or not os.access(root, os.W_OK):
        return None
    folder = root / COMPILED
    try:
        folder.mkdir(exist_ok=True)
        taken = _take_over(folder) if where == "Kaggle" else 0
    except OSError as error:  # a full disk, or a Drive that is gone: it costs time, no more
        print(f"Compiled programs are not kept for later sessions: {error}.", file=sys.stderr)
        return None
    count = len(list(folder.glob("*-cache")))
    line = f"Compiled programs are kept in {folder}: {count} so far"
    if where == "Kaggle":
        line += f", {taken} of them from an input. Attach this output to the next session as one"
    print(f"{line}.")
    return folder


def _take_over(folder: Path) -> int:
    """Copy the compiled programs that earlier outputs have, attached as inputs; how many."""
    taken = 0
    for depth in ("*", "*/*", "*/*/*", "*/*/*/*"):  # how deep they lie is Kaggle's choice
        for kept in sorted(KAGGLE_INPUT.glob(f"{depth}/{COMPILED}/*-cache")):
            if not (folder / kept.name).exists():
                part = folder / f"{kept.name}.part"  # a reader sees the whole file or none
                shutil.copyfile(kept, part)
                part.replace(folder / kept.name)
                taken += 1
    return taken


def start_distributed() -> bool:
    """Join the other processes if the environment tells of any; say whether it does.

    Call it first. Told by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; JAX
    itself finds them on Cloud TPU VMs (a single one too), on GKE, under Slurm and Open MPI.
    Raises ValueError where the first of them is there without the others.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return True
    if "JAX_COORDINATOR_ADDRESS" in env:
        count = _whole_number(env, "JAX_NUM_PROCESSES")
        this = _whole_number(env, "JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=count, process_id=this)
        return True
    cloud = place().startswith("Cloud TPU VM") and "TPU_SKIP_MDS_QUERY" not in env
    workers = "," in env.get("TPU_WORKER_HOSTNAMES", "")
    open_mpi = int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if cloud or workers or open_mpi or _slurm_has_others(env):
        jax.distributed.initialize()
        return True
    return False


def _whole_number(env: Mapping[str, str], name: str) -> int:
    """A number that goes with JAX_COORDINATOR_ADDRESS; ValueError where it is not there."""
    text = env.get(name, "")
    if not text.isdigit():
        raise ValueError(
            f"{name} is {text!r}: with JAX_COORDINATOR_ADDRESS it has to be a whole number."
        )
    return int(text)


def _slurm_has_others(env: Mapping[str, str]) -> bool:
    """Whether `srun` has started other processes beside this one.

    SLURM_NTASKS tells how many the job may have: it is set in an interactive shell and in a batch
    script too, where JAX would wait for processes that nobody starts (jax issue 30073).
    """
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    if int(env.get("SLURM_NTASKS", 1)) > 1:
        print(
            f"This is one process of a Slurm job for {env['SLURM_NTASKS']} tasks, and runs alone: "
            "start it by srun to have all of them.",
            file=sys.stderr,
        )
    return False


def make_mesh(devices=None, *, fsdp: int | None = None, tp: int = 1) -> Mesh:
    """A mesh of the devices (all) with axes `fsdp` (by default what `tp` leaves) and `tp`.

    Gemma's widths divide by 128 at least. Raises ValueError if fsdp × tp is not all devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp = len(devices) // tp if fsdp is None else fsdp
    if fsdp * tp != len(devices):
        raise ValueError(f"fsdp={fsdp} × tp={tp} is not {len(devices)} devices: leave fsdp out.")
    return jax.make_mesh((fsdp, tp), ("fsdp", "tp"), (AxisType.Auto,) * 2, devices=devices)


def use(mesh: Mesh):
    """`jax.set_mesh` as a context; one device needs none."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def mesh_in_use() -> Mesh:
    """The mesh of `jax.set_mesh`, for which JAX 0.7 has no public name."""
    if hasattr(jax.sharding, "get_mesh"):
        return jax.sharding.get_mesh()
    return importlib.import_module("jax._src.mesh").get_concrete_mesh()


def shardings(tree, mesh: Mesh, *, gathered: bool = False):
    """The NamedSharding of every array of a model or of a state (parameters, Adam's moments).

    A pytree like `tree` (`nnx.state(tree)` for a module), for `jax.device_put`. Arrays without
    axis names, and axes that the mesh axis does not divide, are replicated. `gathered=True` keeps
    the width whole: layers are not sharded by `fsdp`, as a sampler reads them.
    """

    def place(leaf):
        names = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None
        names = [None if gathered and n == "embed" else n for n in names or ()]
        return jax.tree.map(lambda a: NamedSharding(mesh, spec(a.shape, names, mesh)), leaf)

    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tell XLA how `x` lies on the mesh of `jax.set_mesh`, by logical axis names of its first axes.

    Further axes are not split. Without a mesh, `x` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x.shape, names, mesh)))


def shard_batch(tree):
    """Spread the leading axis (rows) of every array over `fsdp`; no-op when no mesh is active."""
    return jax.tree.map(lambda x: constrain(x, "rows"), tree)


def whole_shares(count: int, name: str) -> int:
    """The least number from `count` on that the mesh in use splits evenly along axis `name`."""
    axes = jax.sharding.get_abstract_mesh().shape
    devices = math.prod(axes.get(a, 1) for a in RULES[name])
    return -(-count // devices) * devices


def row_major(x: jax.Array, *names: str | None) -> jax.Array:
    """Keep `x` in memory in the order of its axes, sharded as `constrain` would; no mesh, no-op.

    Of a loop's carry XLA:TPU otherwise keeps a copy in the order of what is written into it, and
    copies it back for whoever reads it, in every round.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    where = spec(x.shape, names, mesh)
    keep = functools.partial(with_layout_constraint, layouts=Layout(tuple(range(x.ndim))))
    return jax.shard_map(keep, in_specs=where, out_specs=where)(x)  # else it would be replicated


def cpu_threads(params) -> int:
    """In how many threads to run a program of these weights, each on its share of the rows.

    XLA:CPU splits every operation among the cores and waits for the last of them, which takes
    longer than a small model's operations do: two cores sample the tiny model no faster than one,
    but two programs side by side twice as fast. Large weights each would read for itself. 1
    on accelerators, and where a mesh spreads the rows.
    """
    small = sum(x.nbytes for x in jax.tree.leaves(params)) < 2**24  # fits a core's caches
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    return min(4, os.cpu_count() or 1) if small and alone else 1


def run_in_threads(function: Callable, shares: Sequence) -> list:
    """`function` of each share, in threads of their own if there are several."""
    if len(shares) == 1:  # what JAX has been told about a mesh holds in this thread alone
        return [function(shares[0])]
    with futures.ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(function, shares))


def to_host(tree):
    """NumPy copies of all arrays; on several hosts each gets the whole of every array."""

    def fetch(x):
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable
        return np.asarray(x) if whole else process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def spec(
    shape: tuple[int, ...], names: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """How `RULES` and the mesh split an array; what does not divide is not split."""
    left = dict(mesh.shape)  # mesh axes that no axis of the array has taken yet
    axes_of = []
    for size, name in zip(shape, names, strict=False):
        axes = tuple(axis for axis in RULES.get(name, ()) if axis in left)
        devices = math.prod(left[axis] for axis in axes)
        if axes and size % devices == 0:
            axes_of.append(axes)
            for axis in axes:
                del left[axis]
        else:
            axes_of.append(None)
    return PartitionSpec(*axes_of)
