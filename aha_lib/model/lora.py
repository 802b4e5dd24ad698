"""Low-rank adapters (LoRA, 2106.09685): add, merge, switch off, keep in a file.

A weight W gets two small matrices A and B and acts as W + A B. They are `nnx.LoRAParam`s beside
W in the stacked layers, so `nnx.state(model, nnx.LoRAParam)` is all there is to train and to
keep; the base stays as it is and serves as the reference. There is no alpha / rank: scale the
learning rate. Knows nothing of losses or optimizers.
"""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from safetensors import SafetensorError
from safetensors.numpy import load_file

from aha_lib import devices
from aha_lib.model.block import WEIGHTS
from aha_lib.model.files import write_safetensors
from aha_lib.model.gemma import Gemma, abstract

_NOT_OURS = "{} is damaged, or holds another model's adapters."


def add(
    model: Gemma, rank: int, *, rngs: nnx.Rngs, targets: tuple[str, ...] = tuple(WEIGHTS)
) -> None:
    """Give the named weights adapters of this rank, in place; the model computes what it did.

    A is normal with variance 1 / inputs and B zero, both float32, sharded as their weight is.
    `targets` are names among q, k, v, o, gate, up, down. Raises ValueError for other names, for a
    rank below 1 or above what any of these weights has, and where adapters are already.
    """
    layers = model.layers
    if rank < 1 or not set(targets) <= WEIGHTS.keys() or nnx.state(model, nnx.LoRAParam):
        raise ValueError(
            f"Adapters need a rank of at least 1 (not {rank}), targets among {', '.join(WEIGHTS)} "
            f"(not {', '.join(targets)}) and a model that has none yet."
        )
    full = max(_full_rank(layers, name) for name in targets)
    if rank > full:
        raise ValueError(
            f"Adapters of rank {rank} are larger than the weights that they change: lora, their "
            f"rank, has to be at most {full} for this model."
        )
    for name in targets:
        (inputs, outputs), shapes = WEIGHTS[name], _adapter_shapes(layers, name, rank)
        fan_in = math.prod(shapes["a"][1:-1])
        a = jax.random.normal(rngs.params(), shapes["a"]) / fan_in**0.5
        b = jnp.zeros(shapes["b"])
        setattr(layers, f"{name}_a", nnx.LoRAParam(a, axes=("layers", *inputs, None)))
        setattr(layers, f"{name}_b", nnx.LoRAParam(b, axes=("layers", None, *outputs)))
    sharding = getattr(jax.tree.leaves(model.embed)[0], "sharding", None)  # a tracer has none
    if isinstance(sharding, NamedSharding):
        adapters = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.device_put(adapters, devices.shardings(adapters, sharding.mesh)))


def _adapter_shapes(layers: nnx.Module, name: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the matrices A and B of a weight, stacked over the layers."""
    shape = getattr(layers, name).shape
    split = 1 + len(WEIGHTS[name][0])  # axes before it are the layers and the inputs
    return {"a": (*shape[:split], rank), "b": (shape[0], rank, *shape[split:])}


def _full_rank(layers: nnx.Module, name: str) -> int:
    """The rank that a layer's weight can have: the lesser of its inputs and its outputs."""
    shapes = _adapter_shapes(layers, name, 1)
    return min(math.prod(shapes["a"][1:]), math.prod(shapes["b"][1:]))


def off(model: Gemma) -> Gemma:
    """The base: a model without adapters, or a direction, that shares the arrays of `model`."""
    base = abstract(model.config, dtype=model.dtype)
    _, rest = nnx.state(model, nnx.LoRAParam, ...)
    pure = nnx.to_pure_dict(rest)
    pure["layers"].pop("strength", None)  # of the direction, see look.steering
    nnx.update(base, pure)
    return base


def merge(model: Gemma, dtype=jnp.float32) -> Gemma:
    """A model without adapters that computes the same: W + A B for W, in `dtype`.

    The merged weights, and the activations, are in `dtype`. Adapters move a weight by less than
    bfloat16 can tell apart: `rounding` says how much of the update is lost there. Other weights are
    shared, and a direction (`look.steering`) is kept.
    """
    merged = off(model)
    merged.dtype = jnp.dtype(dtype)
    changed = {name: w.astype(dtype) for name, w in _merged_weights(model).items()}
    nnx.update(merged, {"layers": changed})
    for name in ("direction", "strength"):
        if hasattr(model.layers, name):
            setattr(merged.layers, name, getattr(model.layers, name))
    return merged


def _merged_weights(model: Gemma) -> dict[str, jax.Array]:
    """W + A B in float32, by the name of the weight."""
    adapters = _adapters(model)
    found = {}
    for name in WEIGHTS:
        if f"{name}_a" in adapters:
            product = _product(adapters[f"{name}_a"], adapters[f"{name}_b"])
            found[name] = getattr(model.layers, name)[...].astype(jnp.float32) + product
    return found


@jax.jit
def _product(a, b):
    return jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a, b)


def _adapters(model: Gemma) -> dict[str, jax.Array]:
    """The matrices by name, such as "q_a"; a direction is none."""
    pure = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam)).get("layers", {})
    return {name: x for name, x in pure.items() if name.endswith(("_a", "_b"))}


def has_adapters(model: Gemma) -> bool:
    """Whether there is something to merge."""
    return bool(_adapters(model))


def check_plain(model: Gemma) -> None:
    """Raises ValueError, with what to do, for a model that has more than Gemma's own weights."""
    if _adapters(model):
        raise ValueError("The model has adapters: give lora.merge(model).")
    if hasattr(model.layers, "direction"):
        raise ValueError(
            "The model is steered, and a Gemma's files have no place for a direction: give "
            "lora.off(model), the model without it."
        )


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What is lost of an update where merged weights are rounded to `dtype`."""

    dtype: str
    error: float  # length of what is lost, in lengths of the update
    unmoved: float  # share of the weights that the update does not move

    def __str__(self) -> str:
        return (
            f"Rounding to {self.dtype} loses {self.error:.2f} of the adapters' update; "
            f"{self.unmoved:.0%} of the weights do not move."
        )


def rounding(model: Gemma, dtype=jnp.bfloat16) -> Rounding:
    """How much of its adapters' update is lost if `merge(model)` is rounded to `dtype`.

    Raises ValueError for a model without adapters.
    """
    lost = update = 0.0
    unmoved = count = 0
    for name, merged in _merged_weights(model).items():
        base = getattr(model.layers, name)[...].astype(jnp.float32)
        rounded = merged.astype(dtype).astype(jnp.float32)
        lost += float(jnp.sum((rounded - merged) ** 2))
        update += float(jnp.sum((merged - base) ** 2))
        unmoved += int(jnp.sum(rounded == base.astype(dtype).astype(jnp.float32)))
        count += merged.size
    if not count:
        raise ValueError("The model has no adapters: nothing is merged, and nothing is rounded.")
    error = math.sqrt(lost / update) if update else 0.0
    return Rounding(jnp.dtype(dtype).name, error, unmoved / count)


def save(model: Gemma, path: str | Path) -> None:
    """Write the adapters to a safetensors file, rounded to bfloat16: a file of a few MB.

    Of several hosts all call it, and the first writes. Raises ValueError for a model that has none.
    """
    adapters = _adapters(model)
    if not adapters:
        raise ValueError("The model has no adapters that could be written to a file.")
    rounded = devices.to_host({name: x.astype(jnp.bfloat16) for name, x in adapters.items()})
    if jax.process_index() == 0:
        write_safetensors(rounded, Path(path))


def load(model: Gemma, path: str | Path) -> None:
    """Give a model without adapters those of a file that `save` has written, in place.

    Raises ValueError where the file is damaged or holds another model's, OSError where it is not.
    The model is then as it was.
    """
    try:
        adapters = load_file(path)
        targets = tuple(name for name in WEIGHTS if f"{name}_a" in adapters)
        rank = adapters[f"{targets[0]}_a"].shape[-1]
    except (KeyError, IndexError, SafetensorError):
        raise ValueError(_NOT_OURS.format(path)) from None
    expected = {
        f"{name}_{half}": shape
        for name in targets
        for half, shape in _adapter_shapes(model.layers, name, rank).items()
    }
    if {name: x.shape for name, x in adapters.items()} != expected:
        raise ValueError(_NOT_OURS.format(path))
    add(model, rank, rngs=nnx.Rngs(0), targets=targets)
    fresh = _adapters(model)
    values = {
        name: jax.device_put(x.astype(np.float32), fresh[name].sharding)
        for name, x in adapters.items()
    }
    nnx.update(model, {"layers": values})
