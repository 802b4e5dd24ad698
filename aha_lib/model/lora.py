"""Low-rank adapters (LoRA, 2106.09685): add, merge, switch off, keep in a file.

A weight W gets two small matrices A and B and acts as W + A B. They are `nnx.LoRAParam`s beside
W in the stacked layers, so `nnx.state(model, nnx.LoRAParam)` is all there is to train and to
keep; the base stays as it is and serves as the reference. There is no alpha / rank: scale the
learning rate. Knows nothing of losses or optimizers.
"""

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


def add(
    model: Gemma, rank: int, *, rngs: nnx.Rngs, targets: tuple[str, ...] = tuple(WEIGHTS)
) -> None:
    """Give the named weights adapters of this rank, in place; the model computes what it did.

    A is normal with variance 1 / inputs and B zero, both float32, sharded as their weight is.
    `targets` are names among q, k, v, o, gate, up, down. Raises ValueError for other names, for a
    rank below 1, and where adapters are already.
    """
    layers = model.layers
    if rank < 1 or not set(targets) <= WEIGHTS.keys() or nnx.state(model, nnx.LoRAParam):
        raise ValueError(
            f"Adapters need a rank of at least 1 (not {rank}), targets among {', '.join(WEIGHTS)} "
            f"(not {', '.join(targets)}) and a model that has none yet."
        )
    for name in targets:
        (inputs, outputs), shape = WEIGHTS[name], getattr(layers, name).shape
        n = 1 + len(inputs)
        a = jax.random.normal(rngs.params(), (*shape[:n], rank)) / math.prod(shape[1:n]) ** 0.5
        b = jnp.zeros((shape[0], rank, *shape[n:]))
        setattr(layers, f"{name}_a", nnx.LoRAParam(a, axes=("layers", *inputs, None)))
        setattr(layers, f"{name}_b", nnx.LoRAParam(b, axes=("layers", None, *outputs)))
    sharding = getattr(jax.tree.leaves(model.embed)[0], "sharding", None)  # a tracer has none
    if isinstance(sharding, NamedSharding):
        adapters = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.device_put(adapters, devices.shardings(adapters, sharding.mesh)))


def off(model: Gemma) -> Gemma:
    """The base: a model without adapters that shares the arrays of `model`, nothing copied."""
    base = abstract(model.config, dtype=model.dtype)
    _, rest = nnx.state(model, nnx.LoRAParam, ...)
    nnx.update(base, rest)
    return base


def merge(model: Gemma) -> Gemma:
    """A model without adapters that computes the same: W + A B for W, in the dtype of W."""
    merged, weights = off(model), {}
    for name in WEIGHTS:
        if hasattr(model.layers, f"{name}_a"):
            a, b = (getattr(model.layers, f"{name}_{x}")[...] for x in "ab")
            weight = getattr(merged.layers, name)
            delta = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a, b)
            weights[name] = (weight[...] + delta).astype(weight.dtype)
    nnx.update(merged, {"layers": weights})
    return merged


def save(model: Gemma, path: str | Path) -> None:
    """Write the adapters to a safetensors file, rounded to bfloat16: a file of a few MB."""
    adapters = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))["layers"]
    rounded = {name: np.asarray(x.astype(jnp.bfloat16)) for name, x in adapters.items()}
    write_safetensors(rounded, Path(path))


def load(model: Gemma, path: str | Path) -> None:
    """Give a model without adapters those of a file that `save` has written, in place.

    Raises ValueError where the file is damaged or holds another model's, OSError where it is not.
    """
    try:
        adapters = load_file(path)
        targets = tuple(name for name in WEIGHTS if f"{name}_a" in adapters)
        add(model, adapters[f"{targets[0]}_a"].shape[-1], rngs=nnx.Rngs(0), targets=targets)
        fresh = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))["layers"]
        for name in fresh.keys() | adapters.keys():
            if fresh[name].shape != adapters[name].shape:
                raise KeyError(name)
    except (KeyError, IndexError, SafetensorError):
        raise ValueError(f"{path} is damaged, or holds another model's adapters.") from None
    values = {
        k: jax.device_put(x.astype(np.float32), fresh[k].sharding) for k, x in adapters.items()
    }
    nnx.update(model, {"layers": values})
