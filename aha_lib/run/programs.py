"""The programs that a run executes on its devices, ready to be compiled, of shapes alone.

All that a run can meet, for `run.ahead`, and the largest of each kind, for `tpu.plan`: of a run
that goes on here, or of one on a mesh of devices that are not there, where `jax.eval_shape` stands
for what `train` begins with. No array is made. Knows nothing of chips or of what fits them.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aha_lib import devices
from aha_lib.model import lora
from aha_lib.model.gemma import Cache, Gemma
from aha_lib.presets import ModelConfig, Pretraining, Settings
from aha_lib.rl import grpo, sampler
from aha_lib.run import checkpoints, cold_start, pretrain
from aha_lib.tasks import rollout

GiB = 2**30


@dataclass(frozen=True)
class Program:
    """A program, and what else is in memory while it runs."""

    name: str  # "phase: program"
    resident: float  # GiB of a core: arrays that are none of its arguments
    lower: Callable[[], jax.stages.Lowered]  # to be called with the mesh in use
    size: int = 0  # by which the largest of a name is known
    shapes: tuple = ()  # by which the same program is known again


@dataclass(frozen=True)
class Shapes:
    """What a run keeps on the devices between its programs: arrays, or shapes with shardings."""

    settings: Settings
    mesh: Mesh
    window: int  # slots of a local layer's cache
    graph: nnx.GraphDef
    state: grpo.TrainState
    reference: nnx.State | None  # of the KL term
    weights: nnx.State  # as the sampler reads them
    key: jax.Array | jax.ShapeDtypeStruct  # of random numbers, as the sampler makes it
    stop_ids: tuple[int, ...] = (1,)
    pad_id: int = 0
    threads: int = 1  # in which the sampler and the gradient do their work
    has_tool: bool = False  # which the rows wait for: their decode programs are compiled when met

    @property
    def trained(self) -> nnx.State:
        """The parameters that have moments and a gradient."""
        return grpo.trainable(self.state.params, self.settings.lora)[0]

    @property
    def beside_sampler(self) -> float:
        """GiB of a core that wait while the sampler runs.

        Weights that need neither conversion nor gathering are the state's own arrays. They are
        arguments of the sampler already, and count once.
        """
        pairs = zip(jax.tree.leaves(self.weights), jax.tree.leaves(self.state.params), strict=True)
        lent = [x for x, own in pairs if x.dtype == own.dtype and x.sharding == own.sharding]
        return held((self.state, self.reference)) - held(lent)


def held(tree) -> float:
    """GiB of one core that the arrays of a tree take; shapes with shardings do as well."""
    size = 0
    for x in jax.tree.leaves(tree):
        size += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return size / GiB


def programs(config: ModelConfig, settings: Settings, mesh: Mesh) -> list[Program]:
    """The largest of each kind: all that has to fit.

    A run's cold start is over, and its arrays are gone, when GRPO begins.
    """
    largest = {}
    with jax.set_mesh(mesh):
        found = list(every(absent(config, settings, mesh)))
    for program in found:
        known = largest.get(program.name)
        if known is None or program.size > known.size:
            largest[program.name] = program
    return [*_supervised(config, settings, mesh), *largest.values()]


def _supervised(config: ModelConfig, settings: Settings, mesh: Mesh) -> list[Program]:
    """The step of the run's cold start, if it has one.

    The vocabulary is the whole one, also where the cold start cuts it: a step then needs less.
    """
    cold = cold_start.planned(settings)
    if cold is None:
        return []
    model = _abstract(config, cold, mesh)
    graph, params, rest = nnx.split(model, pretrain.trained_kind(cold), ...)
    state = _placed(jax.eval_shape(pretrain.begin_state, params), mesh)
    rest = _placed(rest, mesh)
    with jax.set_mesh(mesh):
        shape = devices.whole_shares(cold.rows, "rows"), cold.row_len
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    batch["weights"] = np.zeros(shape, np.float32)
    update = pretrain.Update(np.float32(1), cold.weight_decay)

    def lower() -> jax.stages.Lowered:
        return pretrain.train_step.lower(graph, state, rest, batch, update)

    return [Program("cold start: step", 0.0, lower)]


def _abstract(config: ModelConfig, settings: Settings | Pretraining, mesh: Mesh) -> Gemma:
    """The model that training begins with, adapters included, of shapes alone."""
    s = settings
    dtype, param_dtype = devices.dtypes(s.dtype, mesh.devices.flat[0].platform)
    if s.lora:  # what is not trained is kept as it is read
        param_dtype = dtype

    def build() -> Gemma:
        model = Gemma(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)
        if s.lora:
            lora.add(model, s.lora, rngs=nnx.Rngs(0))
        model.remat = s.remat
        return model

    return nnx.eval_shape(build)


def every(run: Shapes) -> Iterator[Program]:
    """All that a run can meet, but for what handles one array at a time.

    Call it with the mesh in use.
    """
    yield _checksum(run)
    yield from _sampling(run)
    yield from _updating(run)


def present(policy: rollout.Policy, opt_state: grpo.OptState, reference, mesh: Mesh) -> Shapes:
    """Of a run that goes on here; call it with the mesh in use."""
    graph, params = nnx.split(policy.model)
    dtype, gather = policy.model.dtype, policy.settings.gather
    where = devices.shardings(params, mesh, gathered=gather)
    return Shapes(
        settings=policy.settings,
        mesh=mesh,
        window=policy.model.config.window,
        graph=graph,
        state=grpo.TrainState(params, opt_state),
        reference=reference,
        weights=jax.tree.map(_as_read, _read(params, dtype), params, where),
        # A real one: where it lies is up to eager operations, with a mesh and without.
        key=sampler._threefry(jax.random.fold_in(devices.random_key(0, "shapes"), 0)),
        stop_ids=tuple(sorted(policy.tokenizer.stop_ids)),
        pad_id=policy.tokenizer.pad_id,
        threads=devices.cpu_threads(params),
        has_tool=bool(policy.task.turn_end),
    )


def _read(params: nnx.State, dtype) -> nnx.State:
    """Parameters with the dtypes in which the sampler reads them."""

    def read(path, x):
        return jax.ShapeDtypeStruct(x.shape, sampler.dtype_as_read(path, x, dtype))

    return jax.tree.map_with_path(read, params)


def _as_read(read, own, where):
    """An array as the sampler reads it: itself, where it neither converts nor moves it."""
    one_device = where.mesh.size == 1
    if read.dtype == own.dtype and (one_device or own.sharding.is_equivalent_to(where, own.ndim)):
        return own
    return read.update(sharding=where)


def absent(config: ModelConfig, settings: Settings, mesh: Mesh) -> Shapes:
    """Of a run on a mesh that need not be there: what `train` begins with."""
    s, model = settings, _abstract(config, settings, mesh)
    graph, params = nnx.split(model)
    moments = jax.eval_shape(grpo.optimizer(s).init, grpo.trainable(params, s.lora)[0])
    read = _read(params, model.dtype)
    # With adapters the KL term's base is the model itself without them.
    needs_reference = s.kl and not s.lora
    return Shapes(
        settings=s,
        mesh=mesh,
        window=config.window,
        graph=graph,
        state=_placed(grpo.TrainState(params, moments), mesh),
        reference=_placed(read, mesh) if needs_reference else None,
        weights=_placed(read, mesh, gathered=s.gather),
        key=_placed(jax.eval_shape(_key), mesh),
    )


def _key() -> jax.Array:
    return jax.random.key(0, impl=devices.GENERATOR)


def _placed(tree, mesh: Mesh, *, gathered: bool = False):
    """Shapes with the shardings that a run gives to such arrays."""
    where = devices.shardings(tree, mesh, gathered=gathered)
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), tree, where)


def _checksum(run: Shapes) -> Program:
    """The checksum of what a checkpoint holds."""
    kept = run.state._replace(params=run.trained)._asdict()
    resident = held((run.state, run.reference)) - held(kept)
    return Program("keep: checksum", resident, lambda: checkpoints.checksum.lower(kept))


def _sampling(run: Shapes) -> Iterator[Program]:
    """Prefills and decode stages, and the moves of the rows in between."""
    yield from _conversions(run)
    found = rollout.shapes(run.settings, threads=run.threads)
    for shape in sorted(found.prefills, reverse=True):
        yield _prefill(run, shape)
    if run.has_tool:
        return
    rows = _rows_of(run, *max(found.prefills))
    for shape in sorted(found.decodes, reverse=True):
        yield _decode(run, rows, shape)
    known = set()
    for move in sorted(found.moves, reverse=True):
        for program in _moves(run, rows, move):
            if program.shapes not in known:  # a window that is full moves alike at every stage
                known.add(program.shapes)
                yield program
    for many, few in sorted({(m.rows, m.kept) for m in found.moves if m.picks and not m.is_first}):
        yield _pick(run, rows, many, few)


def _conversions(run: Shapes) -> Iterator[Program]:
    """Of the parameters that the sampler reads in another dtype, or gathered: one at a time."""
    where = devices.shardings(run.state.params, run.mesh, gathered=run.settings.gather)
    known = set()
    leaves = map(jax.tree.leaves, (run.state.params, run.weights, where))
    for own, read, place in zip(*leaves, strict=True):
        mine = (own.shape, own.dtype, own.sharding, read.dtype, place)
        if (own.dtype, own.sharding) == (read.dtype, read.sharding) or mine in known:
            continue
        known.add(mine)
        # `prepare_weights` has no mesh to look at where one device is all there is.
        target = None if jax.sharding.get_abstract_mesh().empty else place
        lower = functools.partial(sampler._converted.lower, own, read.dtype, target)
        resident = held((run.state, run.reference, run.weights)) - held(own)
        yield Program("sample: convert", resident, lower, size=math.prod(own.shape))


def _prefill_arguments(run: Shapes, prompt_count: int, row_count: int) -> tuple:
    prompts = np.zeros((prompt_count, run.settings.prompt_len), np.int32)
    order = np.arange(row_count) % prompt_count  # whose prompt's cache a row begins with
    wanted = sampler._Wanted(run.key, 0, row_count, order)
    return run.graph, run.weights, prompts, prompts > 0, wanted


def _prefill(run: Shapes, shape: sampler.PrefillShape) -> Program:
    arguments = _prefill_arguments(run, *shape)
    return Program(
        "sample: prefill",
        run.beside_sampler,
        lambda: sampler._prefill.lower(*arguments),
        size=shape.prompts * run.settings.prompt_len + shape.rows,
    )


def _rows_of(run: Shapes, prompt_count: int, row_count: int) -> sampler._Rows:
    """Rows of a prefill: their shapes, but for the numbers of rows and slots, are all rows'."""
    return jax.eval_shape(sampler._prefill, *_prefill_arguments(run, prompt_count, row_count))


def _decode(run: Shapes, rows: sampler._Rows, shape: sampler.DecodeShape) -> Program:
    slot = shape.slots - shape.length
    stage = sampler.Stage(slot, shape.length, run.stop_ids, run.pad_id)
    state = _resized(run, rows, shape.rows, shape.slots)
    call = sampler.Call(float(run.settings.temperature))

    def lower():
        return sampler._decode.lower(run.graph, run.weights, state, call, stage)

    size = shape.rows * shape.slots
    return Program("sample: decode", run.beside_sampler, lower, size)


def _resized(run: Shapes, rows: sampler._Rows, count: int, slots: int) -> sampler._Rows:
    """So many of the rows, with a cache for so many tokens, with their shardings."""

    def part(x):
        return x.update(shape=(count, *x.shape[1:]))

    cache = []
    for x, size in zip(rows.cache, sampler._cache_slots(slots, run.window), strict=True):
        layers, _, heads, _, head_size = x.shape
        cache.append(x.update(shape=(layers, count, heads, size, head_size)))
    rest = jax.tree.map(part, rows[:-1])
    return _spread(run, sampler._Rows(*rest, Cache(*cache)))


def _spread(run: Shapes, rows: sampler._Rows) -> sampler._Rows:
    """The rows with the shardings of `sampler._spread`."""

    def place(x):
        is_cache = x.ndim == 5  # layers, rows, KV heads, slots, head size
        names = (None, "rows", "kv_heads") if is_cache else ("rows",)
        axes = devices.spec(x.shape, names, run.mesh)
        return x.update(sharding=NamedSharding(run.mesh, axes))

    return jax.tree.map(place, rows)


def _moves(run: Shapes, rows: sampler._Rows, move: sampler.Move) -> Iterator[Program]:
    """A move of the cache: a program for each of its arrays.

    The arrays move one after the other, and the old one goes when the new one is there. So while
    one moves, each of the others counts with the larger of its two sizes.
    """
    name = "sample: spread" if move.is_first else "sample: halve"
    if not move.picks:
        name = "sample: lengthen"
    before = _resized(run, rows, move.rows, move.slots)
    after = _resized(run, rows, move.kept, move.longer)
    order = np.zeros(move.kept, int) if move.picks else None
    pairs = list(zip(before.cache, after.cache, strict=True))
    larger = [max(held(old), held(new)) for old, new in pairs]
    rest = run.beside_sampler + held((run.weights, after[:-1]))
    for (old, new), mine in zip(pairs, larger, strict=True):
        if order is None and old.shape == new.shape:  # then it is not moved
            continue
        yield Program(
            name,
            rest + sum(larger) - mine,
            functools.partial(sampler._resize.lower, old, order, new.shape[3]),
            size=math.prod(old.shape) + math.prod(new.shape),
            shapes=(old.shape, new.shape, move.picks),
        )


def _pick(run: Shapes, rows: sampler._Rows, many: int, few: int) -> Program:
    """What is not cache of the rows that go on."""
    before = _resized(run, rows, many, run.settings.prompt_len)
    cache = held(_resized(run, rows, many, run.settings.prompt_len + run.settings.completion_len))
    order = np.zeros(few, int)
    resident = run.beside_sampler + held(run.weights) + cache
    return Program(
        "sample: pick",
        resident,
        lambda: sampler._pick_rows.lower(before[:-1], order),
        size=many + few,
    )


def _updating(run: Shapes) -> Iterator[Program]:
    """One micro-batch's gradient, the optimizer's step, and the rescoring where it is asked for."""
    s, params = run.settings, run.state.params
    row_count = devices.whole_shares(s.micro_batch, "rows")
    batch = _batch(s, row_count)
    if s.norm != "token":
        batch = batch._replace(weights=batch.logprobs)
    rescored = batch
    if s.importance_cap:
        batch = batch._replace(weights=batch.logprobs)
    packed = next(grpo.micro_batches(batch, row_count, all_rows=True))._replace(total=1.0)
    moments, reference = held(run.state.opt_state), held(run.reference)
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    count = grpo.updates_done(run.state.opt_state)
    schedule = functools.partial(grpo._rate, grpo.LearningRate.of(s))
    rate = jax.eval_shape(schedule, count).update(sharding=everywhere)
    loss = jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)

    def rescore():
        return grpo._logprobs.lower(run.graph, params, rescored, s.temperature)

    def gradient():
        read = grpo.Weights(params, run.reference)
        how = grpo.LossSettings.of(s)
        return grpo.accumulate.lower(run.graph, read, run.trained, packed, how)

    how_applied = grpo.OptimizerSettings.of(s)

    def apply():
        return grpo.apply.lower(run.state, run.trained, rate, loss, how_applied)

    if s.importance_cap:
        yield Program("update: rescore", moments + reference, rescore)
    yield Program("update: gradient", moments, gradient)
    if run.threads > 1:
        twice = run.trained, run.trained
        beside = held(run.state) + reference
        yield Program("update: add", beside, lambda: grpo._added.lower(*twice))
    yield Program("update: apply", reference, apply)


def _batch(s: Settings, row_count: int) -> grpo.Batch:
    """A batch on the host whose every token is trained, of zeros."""
    valid = np.ones((row_count, s.prompt_len), bool)
    blank = np.zeros((row_count, s.completion_len), np.float32)
    return grpo.Batch(
        prompts=valid.astype(np.int32),
        valid=valid,
        completions=blank.astype(np.int32),
        mask=np.ones_like(blank, bool),
        logprobs=blank,
        advantages=blank[:, 0],
    )
