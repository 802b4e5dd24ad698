"""The Gemma transformer: generations 1, 2 and 3 by configuration, as one `nnx.Module`.

Layers are stacked on a leading axis L and scanned, so that compile time and memory do not grow
with depth. Two ways through the same block: `hidden` (training: whole rows, rematerialised) and
`extend` (sampling: new tokens against a KV cache). Knows nothing of tokenizers, files, Countdown
or rewards; takes token ids and gives hidden states and logits.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aha_lib.presets import ModelConfig
from aha_lib.runtime import constrain, row_major

# Logical axes of each weight, inputs then outputs; runtime.RULES maps them to the mesh. They are
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

UNROLLED = 8  # layers at most of a model whose `hidden` is compiled layer by layer, without remat


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Rows are left-padded, so that all of them write the same slot next.
    """

    k: Float[Array, "L B K S h"]
    v: Float[Array, "L B K S h"]
    valid: Bool[Array, "B S"]  # slots that hold a token, not padding


class Layers(nnx.Module):
    """The parameters of all layers, each stacked on a leading axis L."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs, dtype):
        sizes = {"layers": c.layers, "embed": c.width, "heads": c.heads, "kv_heads": c.kv_heads,
                 "head": c.head_dim, "ff": c.ff}  # fmt: skip
        for name, (inputs, outputs) in WEIGHTS.items():
            axes = ("layers", *inputs, *outputs)
            fan_in = math.prod(sizes[a] for a in inputs)
            value = jax.random.normal(rngs.params(), [sizes[a] for a in axes], dtype)
            setattr(self, name, nnx.Param(value * fan_in**-0.5, axes=axes))
        norms = ["pre_attn_norm", "pre_ff_norm"]
        norms += ["post_attn_norm", "post_ff_norm"] * c.post_norms
        norms += ["q_norm", "k_norm"] * c.qk_norm
        for name in norms:
            axis = "head" if name in ("q_norm", "k_norm") else "embed"
            value = jnp.zeros((c.layers, sizes[axis]), dtype)
            setattr(self, name, nnx.Param(value, axes=("layers", None)))


class Gemma(nnx.Module):
    """A Gemma language model with tied input and output embeddings.

    `dtype` is that of activations and of the weights when they are used; parameters are stored
    in `param_dtype`. Norms, softmax and logits are float32 always. `remat` may be set to False:
    the backward pass then keeps what layers computed instead of computing it again.
    """

    remat = True

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs,
                 dtype=jnp.float32, param_dtype=jnp.float32):  # fmt: skip
        self.config, self.dtype = config, jnp.dtype(dtype)
        table = jax.random.normal(rngs.params(), (config.vocab, config.width), param_dtype)
        self.embed = nnx.Param(table * config.width**-0.5, axes=("vocab", "embed"))
        self.layers = Layers(config, rngs, param_dtype)
        self.final_norm = nnx.Param(jnp.zeros(config.width, param_dtype), axes=(None,))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Final hidden states of whole rows; `remat`: layers are computed again going backward.

        Tokens attend to earlier tokens of the same segment (document, or 1 for a row's tokens
        and 0 for its padding). `positions` count within the segment, from 0.
        """
        x, _ = self._through(tokens, positions, segments, keep=False)
        return _rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def residuals(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> Float[Array, "L B T D"]:
        """The residual stream after each layer, of rows as `hidden` takes them."""
        return self._through(tokens, positions, segments, keep=True)[1]

    def _through(self, tokens, positions, segments, *, keep: bool):
        c = self.config
        slots = jnp.arange(tokens.shape[1])
        mask = (segments[:, :, None] == segments[:, None, :]) & (slots[:, None] >= slots)
        near = slots[:, None] - slots < c.window
        rope = _rope_tables(c, positions)

        def layer(x, inputs):
            p, is_global = inputs
            q, k, v = _project(c, p, x, jnp.where(is_global, *rope))
            attended = _attend(c, q, k, v, mask & (is_global | near))
            x = _finish(c, p, x, attended)
            return x, x if keep else None

        layer = jax.checkpoint(layer) if self.remat else layer
        inputs = (self._stacked(), _global_layers(c))
        # What is kept for the backward pass a scan stacks: a copy each, which unrolled layers save.
        unroll = c.layers if not self.remat and c.layers <= UNROLLED else 1
        return jax.lax.scan(layer, self._embed(tokens), inputs, unroll=unroll)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Next-token logits, float32; -1e30 for the padding, rows of the embedding without a token.

        Call it on few positions at a time: V is 262,144.
        """
        table = self.embed[...].astype(self.dtype)
        hidden = constrain(hidden)  # whole on every device: a few positions, not the table, move
        out = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        out = constrain(out, *[None] * (out.ndim - 1), "vocab")
        c, out = self.config, _softcap(out, self.config.final_softcap)
        tokens = jnp.arange(c.vocab) < c.vocab - c.padding
        return jnp.where(tokens, out, -1e30) if c.padding else out  # finite: entropies are

    def logprobs(
        self,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        *,
        temperature: float = 1.0,
        chunk: int = 2**28,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Log-probability of each target token and entropy of its distribution, in nats.

        Both of the distribution softmax(logits / temperature). More than `chunk` logits (1 GiB over
        all devices) never exist at a time: they are computed in parts, and again going backward.
        """
        B, T = targets.shape
        chunks = min(T, -(-B * T * self.config.vocab // chunk))
        size = -(-T // chunks)
        padding = ((0, 0), (0, chunks * size - T))
        hidden = jnp.pad(hidden, (*padding, (0, 0))).reshape(len(hidden), chunks, size, -1)
        targets = jnp.pad(targets, padding).reshape(len(targets), chunks, size)

        def piece(_, inputs):
            h, t = inputs
            logs = jax.nn.log_softmax(self.logits(h) / temperature)
            hit = jnp.arange(logs.shape[-1]) == t[..., None]  # no indexing: V is sharded
            chosen = jnp.sum(jnp.where(hit, logs, 0), axis=-1)
            return None, (chosen, -jnp.sum(jnp.exp(logs) * logs, axis=-1))

        piece = jax.checkpoint(piece) if chunks > 1 else piece
        _, both = jax.lax.scan(piece, None, (hidden.swapaxes(0, 1), targets.swapaxes(0, 1)))
        return tuple(x.swapaxes(0, 1).reshape(len(targets), -1)[:, :T] for x in both)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache for `rows` sequences of at most `slots` tokens, in the activations' dtype."""
        c = self.config
        zeros = jnp.zeros((c.layers, rows, c.kv_heads, slots, c.head_dim), self.dtype)
        return Cache(zeros, zeros, jnp.zeros((rows, slots), bool))

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        cache: Cache,
        slot: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Read T new tokens per row into slots `slot`, `slot` + 1, … and give their hidden states.

        Prefill is one call with the left-padded prompts at slot 0, decode one call per token.
        `positions` count a row's tokens from 0, padding left out; `valid` is False for padding,
        which nobody attends to. The cache is a loop carry that XLA
        updates in place: never pass it through a scan's inputs and outputs, that copies it.
        """
        c = self.config
        seen = jax.lax.dynamic_update_slice(cache.valid, valid, (0, slot))
        query, key = slot + jnp.arange(tokens.shape[1])[:, None], jnp.arange(seen.shape[1])
        mask = seen[:, None, :] & (query >= key)
        near = query - key < c.window
        rope = _rope_tables(c, positions)

        def layer(carry, inputs):
            x, keys, values = carry
            p, is_global, index = inputs
            q, k, v = _project(c, p, x, jnp.where(is_global, *rope))
            keys = jax.lax.dynamic_update_slice(keys, k[None], (index, 0, 0, slot, 0))
            values = jax.lax.dynamic_update_slice(values, v[None], (index, 0, 0, slot, 0))
            keys, values = (row_major(x, None, "rows", "kv_heads") for x in (keys, values))
            attended = _attend(c, q, keys[index], values[index], mask & (is_global | near))
            return (_finish(c, p, x, attended), keys, values), None

        inputs = (self._stacked(), _global_layers(c), jnp.arange(c.layers))
        start = (self._embed(tokens), cache.k, cache.v)
        (x, keys, values), _ = jax.lax.scan(layer, start, inputs)
        return _rms_norm(x, self.final_norm[...], c.norm_eps), Cache(keys, values, seen)

    def _embed(self, tokens):
        x = self.embed[...].astype(self.dtype)[tokens]
        return constrain(x * jnp.asarray(math.sqrt(self.config.width), self.dtype), "rows")

    def _stacked(self) -> dict[str, Array]:
        pure = nnx.to_pure_dict(nnx.state(self.layers))
        if "direction" in pure:  # see steering
            pure["push"] = pure.pop("strength")[:, None] * pure.pop("direction")
        return {k: v if "norm" in k else v.astype(self.dtype) for k, v in pure.items()}


def abstract(config: ModelConfig, *, dtype=jnp.float32, param_dtype=jnp.float32) -> Gemma:
    """A Gemma of shapes and dtypes alone, to be filled: no array is made."""
    build = functools.partial(Gemma, config, dtype=dtype, param_dtype=param_dtype)
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def _global_layers(c: ModelConfig) -> Bool[Array, " L"]:
    return (jnp.arange(c.layers) + 1) % c.global_every == 0


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
    rows, out = x.ndim - axes, w.ndim - axes
    dx = jax.lax.dot_general(
        g, w, ((range(rows, rows + out), range(axes, w.ndim)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    dw = jax.lax.dot_general(
        x, g, ((range(rows), range(rows)), ((), ())), preferred_element_type=jnp.float32
    )
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def _project(c, p, x, rope):
    """Queries [B, T, H, h], keys and values [B, K, T, h] of one layer."""
    x = _rms_norm(x, p["pre_attn_norm"], c.norm_eps)
    q, k, v = (_linear(p, name, x) for name in "qkv")
    if c.qk_norm:
        q, k = _rms_norm(q, p["q_norm"], c.norm_eps), _rms_norm(k, p["k_norm"], c.norm_eps)
    q = _rotate(q, rope) * (c.query_scalar or c.head_dim) ** -0.5
    return q, _rotate(k, rope).swapaxes(1, 2), v.swapaxes(1, 2)


def _attend(c, q, k, v, mask):
    """Grouped-query attention; the heads that share a KV head are folded into its rows.

    Softmax is normalised after the product with the values: h numbers to divide, not S.
    """
    B, T, H, h = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, T, K, H // K, h).swapaxes(1, 2).reshape(B, K, T * H // K, h)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = _softcap(scores, c.attn_softcap).reshape(B, K, T, H // K, S)
    scores = jnp.where(mask[:, None, :, None, :], scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = weights.reshape(B, K, T * H // K, S).astype(v.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=jnp.float32)
    out = (out.reshape(B, K, T, H // K, h) / total).astype(v.dtype)
    return out.swapaxes(1, 2).reshape(B, T, H, h)


def _finish(c, p, x, attended):
    """The rest of a layer: output projection, GeGLU feed-forward, their norms and residuals."""
    y = _linear(p, "o", attended)
    x = x + (_rms_norm(y, p["post_attn_norm"], c.norm_eps) if c.post_norms else y)
    y = _rms_norm(x, p["pre_ff_norm"], c.norm_eps)
    y = jax.nn.gelu(_linear(p, "gate", y), approximate=True) * _linear(p, "up", y)
    y = _linear(p, "down", y)
    x = x + (_rms_norm(y, p["post_ff_norm"], c.norm_eps) if c.post_norms else y)
    x = x + p["push"] if "push" in p else x
    return constrain(x, "rows")  # else XLA may split the width, and sum logits over devices


def _rms_norm(x, scale, eps):
    """RMSNorm (1910.07467) with Gemma's 1 + w, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * (1 + scale.astype(jnp.float32))).astype(x.dtype)


def _rope_tables(c, positions) -> tuple[Array, Array]:
    """Cosines and sines for global and for local layers, each [2, B, T, 1, h / 2] (2104.09864)."""
    exponents = jnp.arange(c.head_dim // 2) * (2 / c.head_dim)

    def table(base, scale):
        angles = (positions[..., None, None] / scale) * base**-exponents
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)])

    return table(c.rope_base, c.rope_scale), table(c.rope_base_local, 1.0)


def _rotate(x, rope):
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _softcap(x, cap):
    return jnp.tanh(x / cap) * cap if cap else x
