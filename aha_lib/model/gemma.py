"""The Gemma transformer: generations 1, 2 and 3 by configuration, as one `nnx.Module`.

Layers are stacked on a leading axis L and scanned, so that compile time and memory do not grow
with depth. Two ways through the same block: `hidden` (training: whole rows, rematerialised) and
`extend` (sampling: new tokens against a KV cache). Knows nothing of tokenizers, files, Countdown
or rewards; takes token ids and gives hidden states and logits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aha_lib.devices import constrain, row_major
from aha_lib.model.block import WEIGHTS, attend, finish, project, rms_norm, rope_tables, softcap
from aha_lib.presets import ModelConfig

UNROLLED = 8  # layers at most of a model whose `hidden` is compiled layer by layer, without remat


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, those of global and of local layers.

    Rows are left-padded, so that all of them write the same slot next. A local layer's slots may be
    fewer, down to its window: they are a ring, slot t of the others is its slot t mod R.
    """

    k: Float[Array, "Lg B K S h"]
    v: Float[Array, "Lg B K S h"]
    local_k: Float[Array, "Ll B K R h"]
    local_v: Float[Array, "Ll B K R h"]


class Layers(nnx.Module):
    """The parameters of all layers, each stacked on a leading axis L."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs, dtype):
        sizes = {
            "layers": c.layers,
            "embed": c.width,
            "heads": c.heads,
            "kv_heads": c.kv_heads,
            "head": c.head_dim,
            "ff": c.ff,
        }
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

    def __init__(
        self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, param_dtype=jnp.float32
    ):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        table = jax.random.normal(rngs.params(), (config.vocab, config.width), param_dtype)
        self.embed = nnx.Param(table * config.width**-0.5, axes=("vocab", "embed"))
        self.layers = Layers(config, rngs, param_dtype)
        self.final_norm = nnx.Param(jnp.zeros(config.width, param_dtype), axes=(None,))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        prefixes: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Final hidden states of whole rows; `remat`: layers are computed again going backward.

        Tokens attend to earlier tokens of the same segment (document, or 1 for a row's tokens
        and 0 for its padding), and of the segment that `prefixes` has for them: several
        completions may follow one prompt. `positions` count from 0, a prefix's tokens included.
        """
        x, _ = self._through(tokens, positions, segments, prefixes, keep=False)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def residuals(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> Float[Array, "L B T D"]:
        """The residual stream after each layer, of rows as `hidden` takes them."""
        return self._through(tokens, positions, segments, keep=True)[1]

    def _through(self, tokens, positions, segments, prefixes=None, *, keep: bool):
        c = self.config
        slots = jnp.arange(tokens.shape[1])
        mask = segments[:, :, None] == segments[:, None, :]
        if prefixes is not None:
            mask |= prefixes[:, :, None] == segments[:, None, :]
        mask &= slots[:, None] >= slots
        near = positions[:, :, None] - positions[:, None, :] < c.window
        rope = rope_tables(c, positions)

        def layer(x, inputs):
            p, is_global = inputs
            q, k, v = project(c, p, x, jnp.where(is_global, *rope))
            attended = attend(c, q, k, v, mask & (is_global | near))
            x = finish(c, p, x, attended)
            return x, x if keep else None

        layer = jax.checkpoint(layer) if self.remat else layer
        inputs = (self._stacked(), (jnp.arange(c.layers) + 1) % c.global_every == 0)
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
        c = self.config
        out = softcap(out, c.final_softcap)
        if not c.padding:
            return out
        tokens = jnp.arange(c.vocab) < c.vocab - c.padding
        return jnp.where(tokens, out, -1e30)  # finite: entropies are

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

        def empty(layers):
            return jnp.zeros((layers, rows, c.kv_heads, slots, c.head_dim), self.dtype)

        far, near = empty(c.global_layers), empty(c.layers - c.global_layers)
        return Cache(k=far, v=far, local_k=near, local_v=near)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache,
        slot: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Read T new tokens per row into slots `slot`, `slot` + 1, … and give their hidden states.

        Prefill is one call with the left-padded prompts at slot 0, decode one call per token.
        `positions` count a row's tokens from 0, padding left out: a token at position p sees the p
        slots before its own, whatever lies further back is padding. Several tokens at a time may
        not go round a ring's end. The cache is a loop carry that XLA updates in place: never pass
        it through a scan's inputs and outputs, that copies it.
        """
        c, every = self.config, self.config.global_every
        weights = self._stacked()
        slots = slot + jnp.arange(tokens.shape[1])  # of the new tokens
        rope, rope_local = rope_tables(c, positions)
        far_mask = _visible(slots, positions, ring=cache.k.shape[3], window=math.inf)
        near_mask = _visible(slots, positions, ring=cache.local_k.shape[3], window=c.window)
        far = _CachedLayers(c, weights, rope, far_mask, slot)
        near = _CachedLayers(c, weights, rope_local, near_mask, slot)

        def global_layer(i, carry):
            x, cache = carry
            x, k, v = far.apply(i, i // every, x, (cache.k, cache.v))
            return x, cache._replace(k=k, v=v)

        def local_layer(i, carry):
            x, cache = carry
            x, k, v = near.apply(i, i - i // every, x, (cache.local_k, cache.local_v))
            return x, cache._replace(local_k=k, local_v=v)

        def period(n, carry):
            """Some local layers and the global one after them."""
            first = n * every
            if every > 1:
                local = lambda i, carry: local_layer(first + i, carry)  # noqa: E731
                carry = jax.lax.fori_loop(0, every - 1, local, carry)
            return global_layer(first + every - 1, carry)

        carry = (self._embed(tokens), cache)
        periods = c.global_layers
        if periods:
            carry = jax.lax.fori_loop(0, periods, period, carry)
        if c.layers % every:  # a period cut short
            carry = jax.lax.fori_loop(periods * every, c.layers, local_layer, carry)
        x, cache = carry
        return rms_norm(x, self.final_norm[...], c.norm_eps), cache

    def _embed(self, tokens):
        x = self.embed[...].astype(self.dtype)[tokens]
        return constrain(x * jnp.asarray(math.sqrt(self.config.width), self.dtype), "rows")

    def _stacked(self) -> dict[str, Array]:
        pure = nnx.to_pure_dict(nnx.state(self.layers))
        if "direction" in pure:  # see steering
            pure["push"] = pure.pop("strength")[:, None] * pure.pop("direction")
        return {k: v if "norm" in k else v.astype(self.dtype) for k, v in pure.items()}


def _visible(slots, positions, *, ring: int, window: int | float) -> Bool[Array, "B T S"]:
    """Which cells of a ring of slots each new token attends to, itself included.

    `slots` [T] and `positions` [B, T] are those of the new tokens.
    """
    query = slots[:, None]
    newest = query[-1]
    # A cell holds the newest token whose slot, modulo the ring's size, is the cell's.
    held = newest - (newest - jnp.arange(ring)) % ring
    back = query - held  # how many tokens it lies behind
    return (back >= 0) & (back <= positions[:, :, None]) & (back < window)


class _CachedLayers(NamedTuple):
    """The layers of one kind, global or local, as they read new tokens against a cache."""

    config: ModelConfig
    weights: dict[str, Array]  # of all layers, stacked
    rope: Array
    mask: Bool[Array, "B T S"]
    slot: Int[Array, ""] | int  # of the first new token

    def apply(self, i, at, x, cache):
        """Layer `i`, which is number `at` of its kind; `cache` are the keys and values of all.

        Gives the residual stream and both arrays with the new tokens' in them.
        """
        p = {
            name: jax.lax.dynamic_index_in_dim(w, i, keepdims=False)
            for name, w in self.weights.items()
        }
        q, new_keys, new_values = project(self.config, p, x, self.rope)
        keys = self._put(cache[0], new_keys, at)
        values = self._put(cache[1], new_values, at)
        attended = attend(self.config, q, keys[at], values[at], self.mask)
        return finish(self.config, p, x, attended), keys, values

    def _put(self, array, new, at):
        cell = self.slot % array.shape[3]
        array = jax.lax.dynamic_update_slice(array, new[None], (at, 0, 0, cell, 0))
        return row_major(array, None, "rows", "kv_heads")


def abstract(config: ModelConfig, *, dtype=jnp.float32, param_dtype=jnp.float32) -> Gemma:
    """A Gemma of shapes and dtypes alone, to be filled: no array is made."""
    how = dict(dtype=dtype, param_dtype=param_dtype)
    return nnx.eval_shape(lambda: Gemma(config, rngs=nnx.Rngs(0), **how))
