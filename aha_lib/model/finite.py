"""Whether a model's numbers are numbers: NaN and infinity are found and named.

Knows nothing of files or training.
"""

import jax
import jax.numpy as jnp
from flax import nnx


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def first_nonfinite(params) -> str | None:
    """The path, such as `layers/q`, of the first array that holds NaN or infinity; else None.

    `params` is a pytree of arrays, sharded or not: each is looked at where it is.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    # All are asked before the first answer is waited for.
    found = [(path, _is_finite(array)) for path, array in flat]
    for path, is_finite in found:
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
