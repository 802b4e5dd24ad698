"""Prompts to completions with their log-probabilities.

One prefill per prompt, shared by its group; then a decode loop on the device, in stages: between
two stages the host lengthens the KV cache and drops the rows that are finished. Knows nothing of
text, Countdown or rewards; takes token ids.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from aha_lib.devices import (
    constrain,
    in_lanes,
    lanes,
    mesh_in_use,
    shard_batch,
    shardings,
    to_host,
    whole_shares,
)
from aha_lib.model.gemma import Cache, Gemma

BLOCK = 128  # tokens of which a draw adds up the probabilities at a time: the lanes of a TPU


class Completions(NamedTuple):
    """What the model wrote, on the host: B = P · G rows, those of a group side by side."""

    tokens: Int[np.ndarray, "B T"]  # pad_id after the end
    logprobs: Float[np.ndarray, "B T"]  # nats, of the distribution sampled from; 0 after the end
    mask: Bool[np.ndarray, "B T"]  # True for sampled tokens, the stop token included


class _Rows(NamedTuple):
    """The rows still being written: what the decode loop carries."""

    hidden: Float[Array, "B D"]  # of the newest token
    position: Int[Array, " B"]  # of the token to be written
    done: Bool[Array, " B"]
    key: Key[Array, " B"]
    cache: Cache


def pad_left(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Token ids as one array, padded on the left, and the mask of what is not padding.

    Raises ValueError where a row is longer than `length`.
    """
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(f"A prompt has {longest} tokens: raise prompt_len above {length}.")
    tokens = np.full((len(rows), length), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
    return tokens, np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]


def sample(
    model: Gemma,
    prompts: Int[np.ndarray, "P T"],
    valid: Bool[np.ndarray, "P T"],
    key: Key[Array, ""],
    *,
    group: int,
    length: int,
    stop_ids: Iterable[int],
    pad_id: int,
    temperature: float = 1.0,
    stages: int = 4,
    gather: bool = True,
) -> Completions:
    """Sample `group` completions of at most `length` tokens for each left-padded prompt.

    Row i draws from keys folded from (key, i, position), so a row's tokens depend neither on the
    other rows nor on how the batch is sharded. `temperature` 0 takes the likeliest token (its
    log-probabilities are then those at temperature 1). No top-k or top-p: they would make the
    returned log-probabilities those of another distribution than the one trained on. `gather`
    copies the sharded layers whole to every device, once; False where they do not fit: they are
    then gathered layer by layer, for every token. The prompts are dealt out to several threads
    where `devices.lanes` has them.
    """
    graph, params = nnx.split(model)
    params = ready(params, model.dtype, gather=gather)
    write = functools.partial(
        _sample,
        graph,
        params,
        key=key,
        group=group,
        length=length,
        stop_ids=tuple(sorted(stop_ids)),
        pad_id=pad_id,
        temperature=temperature,
        stages=stages,
        window=model.config.window,
    )
    shares = np.array_split(np.arange(len(prompts)), min(lanes(params), len(prompts)))
    parts = in_lanes(lambda i: write(prompts[i], valid[i], first=group * i[0]), shares)
    return Completions(*map(np.concatenate, zip(*parts, strict=True)))


def _sample(
    graph,
    params,
    prompts,
    valid,
    *,
    key,
    first,
    group,
    length,
    stop_ids,
    pad_id,
    temperature,
    stages,
    window,
) -> Completions:
    """Of `sample`'s rows those from number `first` on that these prompts have."""
    P, count = len(prompts), group * len(prompts)
    # The last prompts and rows only fill the devices up: what does not divide is not spread.
    filled = np.arange(whole_shares(P, "draws")) % P
    index = np.arange(whole_shares(count, "draws"))  # which row of `out` each row written is
    order = np.minimum(index // group, P - 1)  # and which row of the cache it reads
    rows = _prefill(graph, params, prompts[filled], valid[filled], key, order, count, first)
    out = Completions(
        np.full((len(index), length), pad_id, np.int32),
        np.zeros((len(index), length), np.float32),
        np.zeros((len(index), length), bool),
    )
    bounds = sorted({round(length * i / stages) for i in range(stages + 1)})
    for start, stop in zip(bounds, bounds[1:], strict=False):
        cache = []
        slots = _slots(prompts.shape[1] + stop, window)
        for x, n in zip(rows.cache, slots, strict=True):
            cache.append(_move(x, order, n))
            x.delete()  # once copied: there are never two whole caches
        rows = rows._replace(cache=Cache(*cache))
        rows, *written = _decode(
            graph,
            params,
            rows,
            temperature,
            slot=prompts.shape[1] + start,
            length=stop - start,
            stop_ids=stop_ids,
            pad_id=pad_id,
        )
        for array, part in zip(out, written, strict=True):
            array[index, start:stop] = to_host(part)
        done = to_host(rows.done)
        if done.all():
            break
        keep, order = _room(len(index), int((~done).sum()), count // 8), None
        if keep < len(index):
            order = np.argsort(done, kind="stable")[:keep]
            rows, index = _Rows(*_pick(rows[:-1], order), rows.cache), index[order]
    return Completions(*(array[:count] for array in out))


def _room(rows: int, unfinished: int, least: int) -> int:
    """Rows that go on: halved while the unfinished fit, so that there are few shapes to compile."""
    half = whole_shares(-(-rows // 2), "draws")
    if half == rows or half < max(unfinished, least):
        return rows
    return _room(half, unfinished, least)


def ready(params: nnx.State, dtype: jnp.dtype, *, gather: bool = False) -> nnx.State:
    """Weights as a forward pass reads them: converted once, and gathered if asked (see `sample`).

    Arrays that are so already are not copied.
    """
    mesh = jax.sharding.get_abstract_mesh()
    where = None if mesh.empty else shardings(params, mesh_in_use(), gathered=gather)

    def convert(path, x, where=None):
        kind = x.dtype if "norm" in jax.tree_util.keystr(path) else dtype  # norms stay in float32
        as_is = x.dtype == kind and (where is None or x.sharding.is_equivalent_to(where, x.ndim))
        return x if as_is else _converted(x, kind, where)  # jit would copy what it gives back

    return jax.tree.map_with_path(convert, params, *[where] * (where is not None))


@functools.partial(jax.jit, static_argnames=("dtype", "where"))
def _converted(x, dtype, where):
    x = x.astype(dtype)
    return x if where is None else jax.lax.with_sharding_constraint(x, where)


@functools.partial(jax.jit, static_argnames="graph")
def _prefill(graph, params, prompts, valid, key, order, count, first) -> _Rows:
    """The rows to be written, row i after prompt order[i]; their cache still has a row a prompt.

    Rows from `count` on are done. Row i draws as number `first` + i.
    """
    model, (P, T) = nnx.merge(graph, params), prompts.shape
    prompts, valid = shard_batch((jnp.asarray(prompts), jnp.asarray(valid)))
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, cache = model.extend(prompts, positions, model.empty_cache(P, T), 0)
    index = jnp.arange(len(order))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + index)
    position = positions[order, -1] + 1
    return _spread(_Rows(hidden[order, -1], position, index >= count, keys, cache))


@functools.partial(
    jax.jit,
    static_argnames=("graph", "slot", "length", "stop_ids", "pad_id"),
    donate_argnames="rows",
)
def _decode(graph, params, rows, temperature, *, slot, length, stop_ids, pad_id):
    """Write up to `length` tokens per row into cache slots `slot`, `slot` + 1, …"""
    greedy = temperature == 0
    model, B = nnx.merge(graph, params), len(rows.done)
    last = model.config.vocab - model.config.padding - 1
    written = (jnp.full((B, length), pad_id), jnp.zeros((B, length)), jnp.zeros((B, length), bool))

    def unfinished(carry):
        t, rows, _ = carry
        return (t < length) & ~rows.done.all()

    def step(carry):
        t, rows, (tokens, logprobs, mask) = carry
        logits = constrain(model.logits(rows.hidden), "draws")
        logs = jax.nn.log_softmax(logits / jnp.where(greedy, 1, temperature))
        token = jnp.where(greedy, logs.argmax(-1), _draw(logs, rows.key, rows.position))
        token = jnp.minimum(token, last)  # rounding of the sums could lead beyond it
        token = jnp.where(rows.done, pad_id, token).astype(jnp.int32)
        logprob = jnp.take_along_axis(logs, token[:, None], axis=1)[:, 0]
        put = lambda array, column: jax.lax.dynamic_update_slice(array, column[:, None], (0, t))  # noqa: E731
        written = (
            put(tokens, token),
            put(logprobs, jnp.where(rows.done, 0, logprob)),
            put(mask, ~rows.done),
        )
        done = rows.done | jnp.isin(token, jnp.array(stop_ids))
        hidden, cache = model.extend(token[:, None], rows.position[:, None], rows.cache, slot + t)
        return t + 1, _Rows(hidden[:, 0], rows.position + 1, done, rows.key, cache), written

    start = (0, _spread(rows), shard_batch(written))
    _, rows, written = jax.lax.while_loop(unfinished, step, start)
    return rows, *written


def _spread(rows: _Rows) -> _Rows:
    """Rows over `fsdp`; of the cache, KV heads over `tp` too."""
    cache = (constrain(x, None, "rows", "kv_heads") for x in rows.cache)
    return _Rows(*shard_batch(rows[:-1]), Cache(*cache))


def _draw(logs, keys, position):
    """One token per row by inverting the distribution's sum: one uniform number a row, not V.

    The sum goes over blocks of tokens, then over those of one block: V numbers are read, not V sums
    written.
    """
    fold = jax.vmap(jax.random.fold_in)
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(fold(keys, position))
    blocks = jnp.pad(jnp.exp(logs), ((0, 0), (0, -logs.shape[1] % BLOCK)))
    blocks = blocks.reshape(len(logs), -1, BLOCK)
    sums = jnp.cumsum(blocks.sum(-1), axis=-1)
    goal = uniform[:, None] * sums[:, -1:]
    block = jnp.sum(sums <= goal, axis=-1, keepdims=True)
    before = jnp.where(block > 0, jnp.take_along_axis(sums, block - 1, axis=1), 0)
    within = jnp.cumsum(jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0], axis=-1)
    return BLOCK * block[:, 0] + jnp.sum(within <= goal - before, axis=-1)


def _slots(length: int, window: int) -> tuple[int, int, int, int]:
    """Slots of the arrays of a `Cache` while rows grow to `length`: see `_move`."""
    near = min(length, window or length)
    return length, length, near, near


@functools.partial(jax.jit, static_argnames="slots")
def _move(x, order, slots):
    """An array of a cache with its rows `order` (None: all) and `slots` slots, the new ones empty.

    Of more slots the last are kept, as the ring that `Gemma.extend` goes on writing. A layer at a
    time: whatever rows are picked from is whole on every device meanwhile.
    """
    old = x.shape[3]

    def part(x):
        x = x if order is None else x[order]
        if slots < old:
            x = jnp.roll(x[..., old - slots :, :], old % slots, axis=2)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, max(0, slots - old)), (0, 0)])
        return constrain(x, "rows", "kv_heads")

    return constrain(jax.lax.map(part, x), None, "rows", "kv_heads")


@jax.jit
def _pick(rows, order):
    return shard_batch(tuple(x[order] for x in rows))
