"""One block of the Gemma transformer as functions of arrays: attention, feed-forward, norms, RoPE.

A block is `project`, `attend`, `finish`. Knows nothing of `nnx`, of caches, or of how many layers
there are.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aha_lib.devices import constrain
from aha_lib.presets import ModelConfig

# Logical axes of each weight, inputs then outputs; devices.RULES maps them to the mesh. They are
# the parameters' metadata `axes`: under flax's own name, `out_sharding`, it would look for mesh
# axes called so, and each version of flax in another way.
WEIGHTS = {
    "q": (("embed",), ("heads", "head")),
    "k": (("embed",), ("kv_heads", "head")),
    "v": (("embed",), ("kv_heads", "head")),
    "o": (("heads", "head"), ("embed",)),
    "gate": (("embed",), ("ff",)),
    "up": (("embed",), ("ff",)),
    "down": (("ff",), ("embed",)),
}

Parameters = dict[str, Array]  # a layer's, by the names that gemma.Layers gives them
Rope = Float[Array, "2 B T 1 half"]  # cosines and sines, of half a head


def project(
    c: ModelConfig, p: Parameters, x: Float[Array, "B T D"], rope: Rope
) -> tuple[Float[Array, "B T H h"], Float[Array, "B K T h"], Float[Array, "B K T h"]]:
    """Queries, keys and values of a layer, the queries scaled, both of them rotated."""
    x = rms_norm(x, p["pre_attn_norm"], c.norm_eps)
    q = _linear(p, "q", x)
    k = _linear(p, "k", x)
    v = _linear(p, "v", x)
    if c.qk_norm:
        q = rms_norm(q, p["q_norm"], c.norm_eps)
        k = rms_norm(k, p["k_norm"], c.norm_eps)
    q = _rotate(q, rope) * (c.query_scalar or c.head_dim) ** -0.5
    return q, _rotate(k, rope).swapaxes(1, 2), v.swapaxes(1, 2)


def attend(
    c: ModelConfig,
    q: Float[Array, "B T H h"],
    k: Float[Array, "B K S h"],
    v: Float[Array, "B K S h"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T H h"]:
    """Grouped-query attention (2305.13245); heads that share a KV head are folded into its rows.

    Softmax is normalised after the product with the values: h numbers to divide, not S.
    """
    B, T, H, h = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, T, K, H // K, h).swapaxes(1, 2).reshape(B, K, T * H // K, h)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = softcap(scores, c.attn_softcap).reshape(B, K, T, H // K, S)
    scores = jnp.where(mask[:, None, :, None, :], scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = weights.reshape(B, K, T * H // K, S).astype(v.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=jnp.float32)
    out = (out.reshape(B, K, T, H // K, h) / total).astype(v.dtype)
    return out.swapaxes(1, 2).reshape(B, T, H, h)


def finish(
    c: ModelConfig, p: Parameters, x: Float[Array, "B T D"], attended: Float[Array, "B T H h"]
) -> Float[Array, "B T D"]:
    """The rest of a layer: output projection, GeGLU (2002.05202), their norms and residuals."""
    y = _linear(p, "o", attended)
    x = x + (rms_norm(y, p["post_attn_norm"], c.norm_eps) if c.post_norms else y)
    y = rms_norm(x, p["pre_ff_norm"], c.norm_eps)
    y = jax.nn.gelu(_linear(p, "gate", y), approximate=True) * _linear(p, "up", y)
    y = _linear(p, "down", y)
    x = x + (rms_norm(y, p["post_ff_norm"], c.norm_eps) if c.post_norms else y)
    x = x + p["push"] if "push" in p else x
    return constrain(x, "rows")  # else XLA may split the width, and sum logits over devices


def rms_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
    """RMSNorm (1910.07467) with Gemma's 1 + w, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * (1 + scale.astype(jnp.float32))).astype(x.dtype)


def rope_tables(c: ModelConfig, positions: Int[Array, "B T"]) -> tuple[Rope, Rope]:
    """Rotations for global and for local layers (2104.09864)."""
    exponents = jnp.arange(c.head_dim // 2) * (2 / c.head_dim)

    def table(base, scale):
        angles = (positions[..., None, None] / scale) * base**-exponents
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)])

    return table(c.rope_base, c.rope_scale), table(c.rope_base_local, 1.0)


def softcap(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Gemma 2's bound on scores and logits (2408.00118); a cap of 0 is none."""
    return jnp.tanh(x / cap) * cap if cap else x


def _rotate(x, rope):
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _linear(p, name, x):
    """`x` times a weight, and times its adapters where there are some (see lora)."""
    axes = len(WEIGHTS[name][0])
    y = _product(x, p[name], axes)
    if f"{name}_a" not in p:
        return y
    return y + _product(_product(x, p[f"{name}_a"], axes), p[f"{name}_b"], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, w, axes):
    """`tensordot` that adds up in float32 and rounds once, in the backward pass too.

    Left to itself, JAX's derivative multiplies a float32 by a bfloat16 array, which a CPU does
    three times as slowly as two bfloat16 ones.
    """
    return jnp.tensordot(x, w, axes, preferred_element_type=jnp.float32).astype(x.dtype)


def _product_forward(x, w, axes):
    return _product(x, w, axes), (x, w)


def _product_backward(axes, kept, g):
    x, w = kept
    rows = range(x.ndim - axes)
    outputs_of_g = range(x.ndim - axes, g.ndim)
    outputs_of_w = range(axes, w.ndim)
    no_batch = ((), ())
    dx = jax.lax.dot_general(
        g, w, ((outputs_of_g, outputs_of_w), no_batch), preferred_element_type=jnp.float32
    )
    dw = jax.lax.dot_general(x, g, ((rows, rows), no_batch), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)
