"""Prompts to completions with their log-probabilities.

One prefill per prompt, shared by its group; then a decode loop on the device, in stages: between
two stages the host lengthens the KV cache and drops the rows that are finished. Knows nothing of
text, Countdown or rewards; takes token ids.

With a tool, rows may wait: a row that has written one of `turn_ends` stands still until all others
wait too, or have come to their end. The host then gives it a reply, whose tokens are forced through
the same decode loop (`_write_in_turns`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from aha_lib.devices import (
    GENERATOR,
    constrain,
    cpu_threads,
    mesh_in_use,
    run_in_threads,
    shard_batch,
    shardings,
    to_host,
    whole_shares,
)
from aha_lib.model.gemma import Cache, Gemma

BLOCK = 128  # tokens of which a draw adds up the probabilities at a time: the lanes of a TPU
# Rows are halved between stages, down to this part of them: on a CPU, which compiles a program in
# a second; and elsewhere, where it takes a minute and few rows cost hardly less than some more.
FEWEST = 8
FEWEST_ON_ACCELERATORS = 4

# What a tool answers: from a row's number and its tokens so far to the tokens of the reply. None
# ends the row; no tokens let it go on.
Reply = Callable[[int, list[int]], Sequence[int] | None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn. There is no top-k or top-p.

    They would make the returned log-probabilities those of another distribution than the one that
    is trained on.
    """

    group: int  # completions of each prompt
    length: int  # tokens of a completion at most, the stop token included
    stop_ids: Collection[int]  # tokens that end a completion
    pad_id: int  # written after the end
    temperature: float = 1.0  # 0: the likeliest token; log-probabilities are then those at 1
    stages: int = 4  # of equal length: finished rows are dropped, and the cache grows, in between
    # Copy sharded layers whole to every device, once. False where they do not fit: they are then
    # gathered layer by layer, for every token.
    gather: bool = True
    # Prompts for which programs are there: fewer are filled up, so that no others are compiled.
    fill: int = 0
    turn_ends: Collection[int] = ()  # tokens after which a row waits for a reply, where there is
    reply: Reply | None = None  # a tool: called from several threads, for each row from one


class Completions(NamedTuple):
    """What the model wrote, on the host: B = P · G rows, those of a group side by side."""

    tokens: Int[np.ndarray, "B T"]  # pad_id after the end
    logprobs: Float[np.ndarray, "B T"]  # nats, of the distribution sampled from; 0 after the end
    mask: Bool[np.ndarray, "B T"]  # True for sampled tokens, the stop token included
    written: Bool[np.ndarray, "B T"]  # True for these and for the tokens of replies: no gaps

    @property
    def ended(self) -> Bool[np.ndarray, " B"]:
        """Which rows came to their end within the limit."""
        return ~self.written[:, -1]


class Stage(NamedTuple):
    """Columns of the completions that one call of the decode loop writes: its static arguments."""

    slot: int  # of the cache, which the first of them is written into; with a `Turn` it says that
    length: int
    stop_ids: tuple[int, ...]
    pad_id: int

    @property
    def slots(self) -> int:
        """How many the cache has meanwhile."""
        return self.slot + self.length


class Turn(NamedTuple):
    """What a stage needs to know where rows may wait."""

    slot: Int[Array | np.ndarray, ""] | int  # of the cache, for the stage's first column
    forced: Int[Array | np.ndarray, "B T"]  # the replies' tokens; -1 where the model samples
    left: Int[Array | np.ndarray, " B"]  # tokens that a row may still have


class Call(NamedTuple):
    """What a decode loop is given beside its rows: numbers, for which its program is the same."""

    temperature: Float[Array, ""] | float
    turn: Turn | None = None  # where rows may wait


class DecodeShape(NamedTuple):
    """What distinguishes the decode programs of one model: one is compiled for each."""

    rows: int
    slots: int  # of the cache
    length: int  # tokens at most


class PrefillShape(NamedTuple):
    """What distinguishes the prefill programs of one model and length of prompts."""

    prompts: int
    rows: int  # that are to be written


class Move(NamedTuple):
    """A change of the cache between two programs: one is compiled for each, and for each array."""

    rows: int  # before it; for the first, prompts
    slots: int
    kept: int  # rows after it
    longer: int  # their slots
    is_first: bool

    @property
    def picks(self) -> bool:
        """Whether rows are picked, not all kept as they are."""
        return self.is_first or self.kept < self.rows


@dataclasses.dataclass
class CallShapes:
    """The shapes of all programs that calls of `sample` can meet."""

    prefills: set[PrefillShape] = dataclasses.field(default_factory=set)
    decodes: set[DecodeShape] = dataclasses.field(default_factory=set)
    moves: set[Move] = dataclasses.field(default_factory=set)

    def add(self, others: "CallShapes") -> None:
        self.prefills |= others.prefills
        self.decodes |= others.decodes
        self.moves |= others.moves


class _Share(NamedTuple):
    """Prompts that one thread answers."""

    numbers: Int[np.ndarray, " N"]
    size: int  # of the programs: N or more, the others only fill up


class _Weights(NamedTuple):
    """A model as the sampler reads it."""

    graph: nnx.GraphDef
    params: nnx.State
    window: int


class _Wanted(NamedTuple):
    """The rows that are to be written, B with those that only fill the devices up."""

    key: Key[Array, ""]
    first: int  # row i draws as number first + i
    count: int  # rows from here on only fill up
    prompt: Int[np.ndarray, " B"]  # which one a row follows


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

    Raises ValueError where a row is longer than `length`, and where there is none.
    """
    if not len(rows):
        raise ValueError("There are no prompts: give one at least.")
    lengths = np.array([len(row) for row in rows])
    longest = lengths.max()
    if longest > length:
        raise ValueError(f"A prompt has {longest} tokens: raise prompt_len above {length}.")
    tokens = np.full((len(rows), length), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
    return tokens, np.arange(length) >= length - lengths[:, None]


def sample(
    model: Gemma,
    prompts: Int[np.ndarray, "P T"],
    valid: Bool[np.ndarray, "P T"],
    key: Key[Array, ""],
    sampling: Sampling,
) -> Completions:
    """Sample `sampling.group` completions of each left-padded prompt.

    Row i draws from keys folded from (key, i, position), so a row's tokens depend neither on the
    other rows nor on how the batch is sharded. All of them are threefry's, whatever
    `jax_default_prng_impl` is: rbg draws other numbers for other batches. The prompts are dealt out
    to several threads where `devices.cpu_threads` has them. Raises ValueError without prompts.
    """
    if not len(prompts):
        raise ValueError("There are no prompts to sample from: give one at least.")
    tokens = model.config.vocab - model.config.padding
    if prompts.max() >= tokens:  # JAX would read the last row of the embedding, without a word
        raise ValueError(
            f"A prompt has the token id {prompts.max()}, the model has {tokens} tokens: encode it "
            "with the tokenizer that belongs to the model."
        )
    graph, params = nnx.split(model)
    params = prepare_weights(params, model.dtype, gather=sampling.gather)
    weights = _Weights(graph, params, model.config.window)
    key = _threefry(key)

    def write(share):
        wanted = _wanted_rows(key, share, sampling.group)
        # The last prompts only fill the devices up: what does not divide is not spread.
        filled = np.arange(whole_shares(share.size, "draws")) % len(share.numbers)
        mine = share.numbers[filled]
        write_rows = _write_in_turns if sampling.reply else _write
        return write_rows(weights, prompts[mine], valid[mine], wanted, sampling)

    shares = _shares(len(prompts), cpu_threads(params), sampling.fill)
    parts = run_in_threads(write, shares)
    return Completions(*map(np.concatenate, zip(*parts, strict=True)))


def shapes(prompts: int, prompt_len: int, sampling: Sampling, *, threads: int = 1) -> CallShapes:
    """Of all programs that `sample` can meet for so many prompts of so many tokens.

    Which of them it does meet depends on how soon completions end. `threads`: those of
    `devices.cpu_threads`. Call it with the mesh in use, which rounds numbers of rows up.
    """
    found = CallShapes()
    stages = _stages(prompt_len, sampling)
    for share in _shares(prompts, threads, sampling.fill):
        rows = whole_shares(sampling.group * share.size, "draws")
        filled = whole_shares(share.size, "draws")
        found.prefills.add(PrefillShape(filled, rows))
        found.moves.add(Move(filled, prompt_len, rows, stages[0].slots, is_first=True))
        found.decodes.add(DecodeShape(rows, stages[0].slots, stages[0].length))
        before = [rows]  # none are dropped before the first stage
        sizes = _halvings(rows, _fewest(rows))
        for last, stage in itertools.pairwise(stages):
            found.decodes |= {DecodeShape(size, stage.slots, stage.length) for size in sizes}
            for many, few in itertools.product(before, sizes):
                if few <= many:
                    found.moves.add(Move(many, last.slots, few, stage.slots, is_first=False))
            before = sizes
    return found


def decode_shapes(
    prompts: int, prompt_len: int, sampling: Sampling, *, threads: int = 1
) -> list[DecodeShape]:
    """Those of `shapes` that are of decode programs, the largest first."""
    return sorted(shapes(prompts, prompt_len, sampling, threads=threads).decodes, reverse=True)


def _shares(prompts: int, threads: int, fill: int = 0) -> list[_Share]:
    """The numbers of the prompts that each thread answers."""
    most = max(prompts, fill)
    count = min(threads, most)
    sizes = map(len, np.array_split(np.arange(most), count))
    numbers = np.array_split(np.arange(prompts), count)
    shares = map(_Share, numbers, sizes)
    return [share for share in shares if len(share.numbers)]


def _wanted_rows(key, share: _Share, group: int) -> _Wanted:
    """The rows of a share of the prompts, whose numbers follow one another."""
    prompts = len(share.numbers)
    index = np.arange(whole_shares(group * share.size, "draws"))
    prompt = np.minimum(index // group, prompts - 1)  # those that fill up: the last one's
    return _Wanted(key, group * int(share.numbers[0]), group * prompts, prompt)


def _stages(prompt_len: int, sampling: Sampling) -> list[Stage]:
    """Stages of lengths as equal as can be; fewer where there are fewer tokens than stages."""
    s = sampling
    bounds = sorted({round(s.length * i / s.stages) for i in range(s.stages + 1)})
    stop_ids = tuple(sorted(s.stop_ids))
    return [
        Stage(prompt_len + start, stop - start, stop_ids, s.pad_id)
        for start, stop in itertools.pairwise(bounds)
    ]


def _write(
    weights: _Weights,
    prompts: Int[np.ndarray, "P T"],
    valid: Bool[np.ndarray, "P T"],
    wanted: _Wanted,
    sampling: Sampling,
) -> Completions:
    """The wanted rows after these prompts, of which the devices divide the number."""
    graph, params, window = weights
    rows = _prefill(graph, params, prompts, valid, wanted)
    index = np.arange(len(wanted.prompt))  # which row of `out` each row being written is
    order = wanted.prompt  # which rows of the cache go on: at first it has one a prompt
    out = _nothing_written(len(index), sampling)
    prompt_len = prompts.shape[1]
    call = Call(float(sampling.temperature))
    for stage in _stages(prompt_len, sampling):
        rows = _with_slots(rows, order, _cache_slots(stage.slots, window))
        rows, *written = _decode(graph, params, rows, call, stage)
        first = stage.slot - prompt_len
        for array, part in zip(out[:3], written, strict=True):
            array[index, first : first + stage.length] = to_host(part)
        done = to_host(rows.done)
        if done.all():
            break
        order = None
        keep = _rows_to_keep(len(index), int((~done).sum()), _fewest(len(wanted.prompt)))
        if keep < len(index):
            order = np.argsort(done, kind="stable")[:keep]
            index = index[order]
            rows = _Rows(*_pick_rows(rows[:-1], order), rows.cache)
    tokens, logprobs, mask = (array[: wanted.count] for array in out[:3])
    return Completions(tokens, logprobs, mask, written=mask)


def _nothing_written(rows: int, sampling: Sampling) -> Completions:
    shape = (rows, sampling.length)
    tokens = np.full(shape, sampling.pad_id, np.int32)
    sampled = np.zeros(shape, bool)
    return Completions(tokens, np.zeros(shape, np.float32), sampled, np.zeros(shape, bool))


@dataclasses.dataclass
class _Turns:
    """Rows that take turns with a tool, on the host: R of them, as `_write_in_turns` began them."""

    out: Completions
    lengths: Int[np.ndarray, " R"]  # tokens written
    finished: Bool[np.ndarray, " R"]
    forced: list[list[int]]  # of each row, what is left of its reply

    def left(self, index) -> Int[np.ndarray, " B"]:
        """How many tokens some of the rows may still have."""
        return self.out.tokens.shape[1] - self.lengths[index]

    def forced_columns(self, index, count: int) -> Int[np.ndarray, "B T"]:
        """The next tokens of the replies to some of the rows; -1 where there are none."""
        columns = np.full((len(index), count), -1, np.int32)
        for row, i in enumerate(index.tolist()):
            reply = self.forced[i][:count]
            columns[row, : len(reply)] = reply
            self.forced[i] = self.forced[i][count:]
        return columns

    def put(self, i: int, tokens, logprobs, mask) -> None:
        """Add what a stage wrote of row `i`, behind what it has."""
        here = slice(self.lengths[i], self.lengths[i] + len(tokens))
        self.out.tokens[i, here] = tokens
        self.out.logprobs[i, here] = logprobs
        self.out.mask[i, here] = mask
        self.out.written[i, here] = True
        self.lengths[i] = here.stop

    def answer(self, i: int, number: int, sampling: Sampling) -> None:
        """See whether row `i` has come to its end, or waits, and ask for its reply."""
        last = int(self.lengths[i]) - 1
        token = self.out.tokens[i, last]
        own = self.out.mask[i, last]  # no token of a reply ends a row, or asks
        if self.lengths[i] == sampling.length or (own and token in sampling.stop_ids):
            self.finished[i] = True
        elif own and token in sampling.turn_ends:
            answer = sampling.reply(number, self.out.tokens[i, : last + 1].tolist())
            self.finished[i] = answer is None
            self.forced[i] = list(answer or ())


def _write_in_turns(
    weights: _Weights,
    prompts: Int[np.ndarray, "P T"],
    valid: Bool[np.ndarray, "P T"],
    wanted: _Wanted,
    sampling: Sampling,
) -> Completions:
    """As `_write`, of rows that may wait for replies.

    A stage ends when every row waits or is done, at the latest after its columns. Before the next
    one the rows are pushed together: all end at one slot of the cache again, as after the prefill,
    so nothing is computed twice and no row has gaps.
    """
    graph, params, window = weights
    s, prompt_len = sampling, prompts.shape[1]
    columns = -(-s.length // s.stages)
    stage = Stage(0, columns, tuple(sorted({*s.stop_ids, *s.turn_ends})), s.pad_id)
    rows = _prefill(graph, params, prompts, valid, wanted)
    index = np.arange(len(wanted.prompt))  # which row of `turns` each row being written is
    finished = index >= wanted.count
    nothing = np.zeros(len(index), int)
    turns = _Turns(_nothing_written(len(index), s), nothing, finished, [[] for _ in index])
    slots = prompt_len + s.length + columns
    # While a row waits, others write: a ring has room for them beside its window.
    near = min(slots, window + columns) if window else slots
    rows = _with_slots(rows, wanted.prompt, (slots, slots, near, near))
    slot = prompt_len
    position = to_host(rows.position)
    while True:
        turn = Turn(slot, turns.forced_columns(index, columns), turns.left(index))
        rows, *written = _decode(graph, params, rows, Call(float(s.temperature), turn), stage)
        written = [to_host(part) for part in written]
        before, position = position, to_host(rows.position)
        used = position - before
        for row, i in enumerate(index.tolist()):
            if not turns.finished[i]:
                turns.put(i, *(part[row, : used[row]] for part in written))
                turns.answer(i, wanted.first + i, s)
        done = turns.finished[index]
        if done.all():
            break
        keep = _rows_to_keep(len(index), int((~done).sum()), _fewest(len(wanted.prompt)))
        order = np.argsort(done, kind="stable")[:keep]
        # The longest row that goes on decides where all of them end.
        end = slot + used
        slot = int(position[~done].max())
        shift = slot - end
        if keep == len(index) and not shift[~done].any():  # all lie where they should
            rows = rows._replace(done=done)
            continue
        rows = _pushed_together(rows, order, shift[order], done[order])
        index, position = index[order], position[order]
    return Completions(*(array[: wanted.count] for array in turns.out))


def _pushed_together(rows: _Rows, order, shift, done) -> _Rows:
    """Its rows `order`, each with its cache moved `shift` slots to the right."""
    cache = []
    for array in rows.cache:
        cache.append(_rolled(array, order, shift))
        array.delete()  # once copied: there are never two whole caches
    hidden, position, _, key = _pick_rows(rows[:-1], order)
    return _Rows(hidden, position, done, key, Cache(*cache))


@jax.jit
def _rolled(x, order, shift):
    """An array of a cache with its rows `order`, each turned by its `shift`: the ring goes on.

    What wraps around is none of a row's tokens: those stay in front of slot 0 and in the window.
    """

    def roll_layer(x):
        turned = jax.vmap(lambda row, by: jnp.roll(row, by, axis=1))(x[order], shift)
        return constrain(turned, "rows", "kv_heads")

    return constrain(jax.lax.map(roll_layer, x), None, "rows", "kv_heads")


def _rows_to_keep(rows: int, unfinished: int, least: int) -> int:
    """Rows that go on: halved while the unfinished fit, so that there are few shapes to compile."""
    return min(size for size in _halvings(rows, least) if size >= unfinished)


def _fewest(rows: int) -> int:
    """To how few of `rows` they are halved."""
    has_mesh = not jax.sharding.get_abstract_mesh().empty
    slow = has_mesh or jax.default_backend() != "cpu"
    return rows // (FEWEST_ON_ACCELERATORS if slow else FEWEST)


def _halvings(rows: int, least: int) -> list[int]:
    """`rows`, half of them, half of those, … down to `least`, as the devices divide them."""
    sizes = [rows]
    while True:
        half = whole_shares(-(-sizes[-1] // 2), "draws")
        if half == sizes[-1] or half < least:
            return sizes
        sizes.append(half)


def _threefry(key: Key[Array, ""]) -> Key[Array, ""]:
    """The key of JAX's default generator in a key: all of it, or half of an rbg key's words.

    `jax.random.key(3)`, and what is folded from it, gives one key under both generators.
    """
    return jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl=GENERATOR)


def prepare_weights(params: nnx.State, dtype: jnp.dtype, *, gather: bool = False) -> nnx.State:
    """Weights as a forward pass reads them: converted to `dtype`, and gathered if asked, once.

    Norms stay in their dtype, float32. `gather` is `Sampling.gather`. Arrays that are so already
    are not copied.
    """
    mesh = jax.sharding.get_abstract_mesh()
    where = None if mesh.empty else shardings(params, mesh_in_use(), gathered=gather)

    def convert(path, x, where=None):
        wanted = dtype_as_read(path, x, dtype)
        in_place = where is None or x.sharding.is_equivalent_to(where, x.ndim)
        if x.dtype == wanted and in_place:
            return x  # jit would copy what it gives back
        return _converted(x, wanted, where)

    if where is None:
        return jax.tree.map_with_path(convert, params)
    return jax.tree.map_with_path(convert, params, where)


def dtype_as_read(path, x, dtype: jnp.dtype) -> jnp.dtype:
    """Of the parameter at a path, in a forward pass whose activations have a dtype."""
    return x.dtype if "norm" in jax.tree_util.keystr(path) else dtype


@functools.partial(jax.jit, static_argnames=("dtype", "where"))
def _converted(x, dtype, where):
    x = x.astype(dtype)
    return x if where is None else jax.lax.with_sharding_constraint(x, where)


@functools.partial(jax.jit, static_argnames="graph")
def _prefill(graph, params, prompts, valid, wanted: _Wanted) -> _Rows:
    """The rows to be written; their cache still has a row a prompt. Those that fill up are done."""
    model = nnx.merge(graph, params)
    P, T = prompts.shape
    prompts, valid = shard_batch((jnp.asarray(prompts), jnp.asarray(valid)))
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, cache = model.extend(prompts, positions, model.empty_cache(P, T), 0)
    index = jnp.arange(len(wanted.prompt))
    rows = _Rows(
        hidden=hidden[wanted.prompt, -1],
        position=positions[wanted.prompt, -1] + 1,
        done=index >= wanted.count,
        key=jax.vmap(jax.random.fold_in, (None, 0))(wanted.key, wanted.first + index),
        cache=cache,
    )
    return _spread(rows)


@functools.partial(jax.jit, static_argnames=("graph", "stage"), donate_argnames="rows")
def _decode(graph, params, rows: _Rows, call: Call, stage: Stage):
    """Write up to `stage.length` tokens per row; gives the rows and the three arrays written.

    With a turn a row that is done stays as it is, so that it can go on in a later call.
    """
    temperature, turn = call
    greedy = temperature == 0
    model = nnx.merge(graph, params)
    last = model.config.vocab - model.config.padding - 1
    stop_ids = jnp.array(stage.stop_ids)
    first = stage.slot if turn is None else turn.slot
    shape = (len(rows.done), stage.length)
    nothing = (jnp.full(shape, stage.pad_id), jnp.zeros(shape), jnp.zeros(shape, bool))

    def unfinished(carry):
        t, rows, _ = carry
        return (t < stage.length) & ~rows.done.all()

    def choose(rows):
        """The next token of each row and its log-probability."""
        logits = constrain(model.logits(rows.hidden), "draws")
        logs = jax.nn.log_softmax(logits / jnp.where(greedy, 1, temperature))
        token = jnp.where(greedy, logs.argmax(-1), _draw(logs, rows.key, rows.position))
        token = jnp.minimum(token, last)  # rounding of the sums could lead beyond it
        token = jnp.where(rows.done, stage.pad_id, token).astype(jnp.int32)
        logprob = jnp.take_along_axis(logs, token[:, None], axis=1)[:, 0]
        return token, jnp.where(rows.done, 0, logprob)

    def step(carry):
        t, rows, (tokens, logprobs, mask) = carry
        token, logprob = choose(rows)
        if turn is not None:
            reply = jax.lax.dynamic_index_in_dim(turn.forced, t, axis=1, keepdims=False)
            is_forced = ~rows.done & (reply >= 0)
            token = jnp.where(is_forced, reply, token)
            logprob = jnp.where(is_forced, 0, logprob)
        written = (
            _put_column(tokens, token, t),
            _put_column(logprobs, logprob, t),
            _put_column(mask, ~rows.done if turn is None else ~rows.done & ~is_forced, t),
        )
        ends = jnp.isin(token, stop_ids)
        if turn is not None:  # no token of a reply ends a row, but the limit does
            ends = (ends & ~is_forced) | (t + 1 >= turn.left)
        done = rows.done | ends
        slot = first + t
        hidden, cache = model.extend(token[:, None], rows.position[:, None], rows.cache, slot)
        return t + 1, _advanced(rows, hidden[:, 0], done, cache, turn is not None), written

    start = (0, _spread(rows), shard_batch(nothing))
    _, rows, written = jax.lax.while_loop(unfinished, step, start)
    # As they came: the next programs were compiled for rows that lie so.
    return _spread(rows), *written


def _advanced(rows: _Rows, hidden, done, cache: Cache, may_wait: bool) -> _Rows:
    """The rows after a token. Where they may wait, those that were done stand where they stood."""
    position = rows.position + 1
    if may_wait:
        hidden = jnp.where(rows.done[:, None], rows.hidden, hidden)
        position = jnp.where(rows.done, rows.position, position)
    return _Rows(hidden, position, done, rows.key, cache)


def _put_column(array, column, t):
    return jax.lax.dynamic_update_slice(array, column[:, None], (0, t))


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


def _cache_slots(length: int, window: int) -> tuple[int, int, int, int]:
    """Slots of the arrays of a `Cache` while rows grow to `length`: local layers keep a window."""
    near = min(length, window or length)
    return length, length, near, near


def _with_slots(rows: _Rows, order, slots: tuple[int, int, int, int]) -> _Rows:
    """Rows whose cache has its rows `order` (None: all) and so many slots in each array."""
    cache = []
    for array, count in zip(rows.cache, slots, strict=True):
        if order is None and count == array.shape[3]:  # a window that is full
            cache.append(array)
            continue
        cache.append(_resize(array, order, count))
        array.delete()  # once copied: there are never two whole caches
    return rows._replace(cache=Cache(*cache))


@functools.partial(jax.jit, static_argnames="slots")
def _resize(x, order, slots):
    """An array of a cache with its rows `order` (None: all) and `slots` slots, the new ones empty.

    Of more slots the last are kept, as the ring that `Gemma.extend` goes on writing. A layer at a
    time: whatever rows are picked from is whole on every device meanwhile.
    """
    old = x.shape[3]

    def resize_layer(x):
        x = x if order is None else x[order]
        if slots < old:
            x = jnp.roll(x[..., old - slots :, :], old % slots, axis=2)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, max(0, slots - old)), (0, 0)])
        return constrain(x, "rows", "kv_heads")

    return constrain(jax.lax.map(resize_layer, x), None, "rows", "kv_heads")


@jax.jit
def _pick_rows(rows, order):
    return shard_batch(tuple(x[order] for x in rows))
