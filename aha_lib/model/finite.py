"""Whether a model's numbers are numbers: NaN and infinity are found and named.

Knows nothing of files or training.
"""

import jax
import jax.numpy as jnp
from flax import nnx


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def first_nonfinite(params) -> str | None:
    """The path, such as `layers/q`, of the first array that holds NaN or infinity; else None.

    `params` is a pytree of arrays, sharded or not: one pass over them on their devices.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    found = _are_finite([leaf for _, leaf in flat])
    for (path, _), is_finite in zip(flat, found, strict=True):
        if not is_finite:
            return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return None


def refuse_nonfinite(model: nnx.Module, source: object) -> None:
    """Raises ValueError, which names the tensor, where a model from `source` is not all numbers."""
    name = first_nonfinite(nnx.state(model, nnx.Param))
    if name is not None:
        raise ValueError(
            f"{source}: {name} holds NaN or infinity. The training that wrote it had diverged, or "
            "the file is damaged: take an earlier checkpoint, or train again with a lower "
            "learning_rate."
        )
