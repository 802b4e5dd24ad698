"""Where we run, and how arrays are laid out there: machine, clock, secrets, mesh, shardings.

Parameters carry logical axis names; one table, `RULES`, says which mesh axis shards each of them.
Knows nothing of Gemma's layers, of tokens or of rewards; takes arrays and their axis names.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
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
RULES = {"rows": ("fsdp",), "embed": ("fsdp",), "vocab": ("fsdp", "tp"), "draws": ("fsdp", "tp")}
RULES |= {"heads": ("tp",), "kv_heads": ("tp",), "ff": ("tp",)}

GENERATOR = "threefry2x32"  # of all random keys, whatever `jax_default_prng_impl` says

# Hours after which a session ends, as said by their pages of 2026; Colab's depends on the plan.
SESSION_HOURS = {"Kaggle TPU": 9.0, "Kaggle": 12.0, "Colab": 12.0}

# What JAX says when it cannot have the chips -> what to do about it; the first match counts.
TRAPS = {
    r"(?i)already in use|lockfile": "Another process holds the TPU: shut down the notebook or "
    "program that uses it, or restart. If there is none, delete /tmp/libtpu_lockfile.",
    r"(?i)not supported|unsupported|unknown tpu": f"JAX {jax.__version__} does not know this chip, "
    f'which may be too old for it: pip install "jax[tpu]<{jax.__version__}" and restart.',
    r"(?i)tpu": "JAX cannot start the TPU: check that the session's accelerator is one, and that "
    'jax and libtpu came together, by pip install "jax[tpu]".',
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


def available() -> list[jax.Device]:
    """`jax.devices()`, or RuntimeError with a sentence that says what to do to have them."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        raise RuntimeError(explain(str(error))) from error
    if _tpu_files() and found[0].platform == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise RuntimeError('JAX sees no TPU here: run pip install "jax[tpu]" and restart.')
    return found


def keep_memory() -> None:
    """Have glibc keep what XLA frees on a CPU for its next arrays; does nothing elsewhere.

    Left to itself glibc gives large blocks back to the kernel, which has to clear them when they
    are wanted again: on two cores a tenth of a step of the tiny pre-training, a quarter of a GRPO
    step of Gemma 3 270M. The price is memory, and slower compilation, since all threads share one
    arena: it is for long runs. Call it before JAX starts its threads. The numbers are malloc.h's:
    one arena, no mapped blocks, no trimming, 64 MiB at a time.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in ((-8, 1), (-4, 0), (-1, -1), (-2, 2**26)):
            mallopt(name, value)


def explain(error: str) -> str:
    """What to do about an error at JAX's start; the error itself if it is not a known one."""
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
            f"{advice}. `python -m aha_lib.tpu.plan` says beforehand what fits."
        ) from error


def describe() -> str:
    """A table of the machine: place, chips, memories, versions. Errors as from `devices`."""
    found, cpu = available(), jax.default_backend() == "cpu"
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" is none
    if limit.exists() and limit.read_text().strip().isdigit():
        ram = min(ram, int(limit.read_text()))
    hbm = (found[0].memory_stats() or {}).get("bytes_limit")
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    names = [name for name in ("jax", "jaxlib", "libtpu", "flax") if name in installed]
    kind = f"{os.cpu_count()} CPU cores" if cpu else found[0].device_kind
    rows = {
        "where": place(),
        "chip": f"{len(found)} x {kind}, on {jax.process_count()} host(s)",
        "HBM": f"{hbm / 2**30:.1f} GiB per core" if hbm else "none: the host's memory",
        "host": f"{ram / 2**30:.0f} GiB RAM, {shutil.disk_usage('.').free / 2**30:.0f} GiB of disk",
        "versions": ", ".join(f"{name} {installed[name]}" for name in names),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


def time_left(*, limit_hours: float | None = None, elapsed: float | None = None) -> float | None:
    """Seconds until the session ends; None where there is no limit.

    `elapsed` (seconds) is by default the age of the machine's first process, which Kaggle and
    Colab start with the session.
    """
    where = place() + " TPU" * (place() == "Kaggle" and bool(_tpu_files()))
    if not (limit_hours := limit_hours or SESSION_HOURS.get(where)):
        return None
    if elapsed is None:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        ticks = int(Path("/proc/1/stat").read_text().rsplit(")", 1)[1].split()[19])
        elapsed = uptime - ticks / os.sysconf("SC_CLK_TCK")
    return limit_hours * 3600 - elapsed


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
    `jax.random.split` make of a seed. Runs and records made before November 2026 used
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
    """A folder in the user's cache folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aha_lib" / name


def compilation_cache() -> Path:
    """Keep compiled programs in a folder, so that the next start need not compile them again."""
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache("jax"))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def start_distributed() -> bool:
    """Join the other processes if the environment tells of any; say whether it does.

    Call it first. Told by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; JAX
    itself finds them on Cloud TPU VMs (a single one too), on GKE, under Slurm and Open MPI.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return True
    if "JAX_COORDINATOR_ADDRESS" in env:
        count, this = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        jax.distributed.initialize(num_processes=count, process_id=this)
        return True
    cloud = place().startswith("Cloud TPU VM") and "TPU_SKIP_MDS_QUERY" not in env
    tasks = [int(env.get(name, 1)) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    if cloud or "," in env.get("TPU_WORKER_HOSTNAMES", "") or max(tasks) > 1:
        jax.distributed.initialize()
        return True
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
    where, order = spec(x.shape, names, mesh), Layout(tuple(range(x.ndim)))
    keep = functools.partial(with_layout_constraint, layouts=order)
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
    left, axes_of = dict(mesh.shape), []
    for size, name in zip(shape, names, strict=False):
        axes = tuple(a for a in RULES.get(name, ()) if a in left)
        if axes and size % math.prod(left.pop(a) for a in axes) == 0:
            axes_of.append(axes)
        else:
            left |= {a: mesh.shape[a] for a in axes}
            axes_of.append(None)
    return PartitionSpec(*axes_of)
