"""Where we run and how arrays are laid out there: machine, mesh, shardings, secrets, clock.

Parameters carry logical axis names; one table, `RULES`, says which mesh axis shards each of them.
Knows nothing of Gemma's layers, of tokens or of rewards; takes arrays and their axis names.
"""

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axis. `fsdp` shards every parameter along its width and every batch along
# its rows; `tp` splits heads, feed-forward and vocabulary. Axes not named here are never split.
RULES = {
    "rows": "fsdp",
    "embed": "fsdp",
    "heads": "tp",
    "kv_heads": "tp",
    "ff": "tp",
    "vocab": "tp",
}


def make_mesh(devices=None, *, fsdp: int | None = None, tp: int = 1) -> Mesh:
    """A mesh of all (or the given) devices with axes `fsdp` × `tp`.

    `fsdp` defaults to all devices that `tp` leaves. Raises ValueError if the product is not the
    number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp = len(devices) // tp if fsdp is None else fsdp
    if fsdp * tp != len(devices):
        raise ValueError(
            f"fsdp={fsdp} × tp={tp} does not make {len(devices)} devices: choose a tp that divides "
            "them and leave fsdp out."
        )
    return jax.make_mesh((fsdp, tp), ("fsdp", "tp"), (AxisType.Auto,) * 2, devices=devices)


def shardings(tree, mesh: Mesh, *, gathered: bool = False):
    """The NamedSharding of every array of a model or of a state (parameters, Adam's moments).

    Gives a pytree like `tree` (of `nnx.state(tree)` for a module) for `jax.device_put`, or for
    jit's `in_shardings`. Arrays without axis names, and axes that the mesh axis does not divide,
    are replicated. `gathered=True` leaves `fsdp` out: weights whole on every device, as a sampler
    reads them.
    """

    def place(leaf):
        names = leaf.get_metadata().get("out_sharding") if isinstance(leaf, nnx.Variable) else None
        names = [None if gathered and RULES.get(n) == "fsdp" else n for n in names or ()]
        return jax.tree.map(lambda a: NamedSharding(mesh, _spec(a.shape, names, mesh)), leaf)

    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tell XLA how `x` lies on the active mesh, by logical axis names; without a mesh, `x` itself.

    The mesh is that of `with jax.set_mesh(mesh):`. Axes past the last name are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec(x.shape, names, mesh)))


def shard_batch(tree):
    """Spread the leading axis (rows) of every array over `fsdp`; no-op when no mesh is active."""
    return jax.tree.map(lambda x: constrain(x, "rows"), tree)


def to_host(tree):
    """NumPy copies of all arrays; on several hosts each gets the whole of every array."""

    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def _spec(shape, names, mesh) -> PartitionSpec:
    axes = [RULES.get(n) for n in names]
    divides = [a and d % mesh.shape[a] == 0 for d, a in zip(shape, axes, strict=False)]
    return PartitionSpec(*(a if ok else None for a, ok in zip(axes, divides, strict=False)))
