"""The programs that a run executes on its devices, ready to be compiled, of shapes alone.

Follows `train` through its phases with `jax.eval_shape`: no array is made, no weights are loaded,
and the mesh may be of devices that are not there. Knows nothing of chips or of what fits them.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from aha_lib import devices
from aha_lib.model import lora
from aha_lib.model.gemma import Cache, Gemma
from aha_lib.presets import ModelConfig, Settings
from aha_lib.rl import grpo, sampler
from aha_lib.run import checkpoints, cold_start, pretrain

GiB = 2**30


@dataclass(frozen=True)
class Program:
    """A program, and what else is in memory while it runs."""

    name: str  # "phase: program"
    resident: float  # GiB of a core: arrays that are none of its arguments
    lower: Callable[[], jax.stages.Lowered]  # to be called with the mesh in use


@dataclass(frozen=True)
class _Run:
    """What a run keeps on the devices between its programs: shapes with shardings."""

    settings: Settings
    mesh: Mesh
    window: int  # slots of a local layer's cache
    graph: nnx.GraphDef
    state: grpo.TrainState
    reference: nnx.State | None  # of the KL term
    weights: nnx.State  # as the sampler reads them

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
    """All that a run executes on the mesh, but for what handles one array at a time.

    Each is as large as any call makes it, to train or to evaluate. A run's cold start is over, and
    its arrays are gone, when GRPO begins.
    """
    run = _start(config, settings, mesh)
    return [*_supervised(config, settings, mesh), _checksum(run), *_sampling(run), *_updating(run)]


def _supervised(config: ModelConfig, settings: Settings, mesh: Mesh) -> list[Program]:
    """The step of the run's cold start, if it has one."""
    cold = cold_start.planned(settings)
    if cold is None:
        return []
    return [Program("cold start: step", 0.0, pretrain.abstract_step(config, cold, mesh))]


def _start(config: ModelConfig, settings: Settings, mesh: Mesh) -> _Run:
    """The arrays that `train` begins with."""
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

    graph, params = nnx.split(nnx.eval_shape(build))
    moments = jax.eval_shape(grpo.optimizer(s).init, grpo.trainable(params, s.lora)[0])
    read = jax.eval_shape(lambda x: sampler.prepare_weights(x, dtype), params)
    # With adapters the KL term's base is the model itself without them.
    needs_reference = s.kl and not s.lora
    return _Run(
        settings=s,
        mesh=mesh,
        window=config.window,
        graph=graph,
        state=_placed(grpo.TrainState(params, moments), mesh),
        reference=_placed(read, mesh) if needs_reference else None,
        weights=_placed(read, mesh, gathered=s.gather),
    )


def _placed(tree, mesh: Mesh, *, gathered: bool = False):
    """Shapes with the shardings that a run gives to such arrays."""
    where = devices.shardings(tree, mesh, gathered=gathered)
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), tree, where)


def _checksum(run: _Run) -> Program:
    """The checksum of what a checkpoint holds."""
    kept = run.state._replace(params=run.trained)._asdict()
    resident = held((run.state, run.reference)) - held(kept)
    return Program("keep: checksum", resident, lambda: checkpoints.checksum.lower(kept))


def _sampling(run: _Run) -> list[Program]:
    """Prefill and the last decode stage, the largest; and the moves of the cache in between."""
    s = run.settings
    prompt_count, row_count = _largest_call(s)
    with jax.set_mesh(run.mesh):
        prompt_count = devices.whole_shares(prompt_count, "draws")
        row_count = devices.whole_shares(row_count, "draws")
        half = devices.whole_shares(-(-row_count // 2), "draws")
    prompts = np.zeros((prompt_count, s.prompt_len), np.int32)
    key = _placed(jax.eval_shape(jax.random.key, 0), run.mesh)
    order = np.arange(row_count) % prompt_count  # whose prompt's cache a row begins with
    wanted = sampler._Wanted(key, 0, row_count, order)
    begin = (run.graph, run.weights, prompts, prompts > 0, wanted)

    # Slots of the cache before and after the last of the four stages, and after the first.
    end = s.prompt_len + s.completion_len
    length = s.completion_len - round(s.completion_len * 3 / 4)
    start = end - length
    rows = _spread(run, jax.eval_shape(sampler._prefill, *begin))
    before_last = _moved(run, rows, order, start)
    in_last = _moved(run, rows, order, end)
    stage = sampler.Stage(slot=start, length=length, stop_ids=(1,), pad_id=0)

    def decode():
        return sampler._decode.lower(run.graph, run.weights, in_last, s.temperature, stage)

    return [
        Program("sample: prefill", run.beside_sampler, lambda: sampler._prefill.lower(*begin)),
        _move(run, "sample: spread", rows, order, end - 3 * length),
        Program("sample: decode", run.beside_sampler, decode),
        _move(run, "sample: lengthen", before_last, None, end),
        _move(run, "sample: halve", before_last, np.arange(half), end),
    ]


def _largest_call(s: Settings) -> tuple[int, int]:
    """The most prompts, and the most rows, of one call of the sampler: `train.rollout`'s parts."""
    calls = [(s.prompts, s.group)]
    for group in (1, s.pass_k):  # the panel: one completion each, or at step 0 as for pass@k
        at_a_time = max(1, s.prompts * s.group // group)
        calls.append((min(s.eval_puzzles, at_a_time), group))
    most_prompts = max(prompts for prompts, _ in calls)
    most_rows = max(prompts * group for prompts, group in calls)
    return most_prompts, most_rows


def _spread(run: _Run, rows: sampler._Rows) -> sampler._Rows:
    """The rows with the shardings of `sampler._spread`."""

    def place(x):
        is_cache = x.ndim == 5  # layers, rows, KV heads, slots, head size
        names = (None, "rows", "kv_heads") if is_cache else ("rows",)
        axes = devices.spec(x.shape, names, run.mesh)
        return x.update(sharding=NamedSharding(run.mesh, axes))

    return jax.tree.map(place, rows)


def _moved(run: _Run, rows: sampler._Rows, order: np.ndarray | None, length: int) -> sampler._Rows:
    """The rows with a cache for `length` tokens, of these rows."""
    cache = []
    for x, slots in zip(rows.cache, sampler._cache_slots(length, run.window), strict=True):
        move = functools.partial(sampler._resize, slots=slots)
        cache.append(jax.eval_shape(move, x, order))
    return _spread(run, rows._replace(cache=Cache(*cache)))


def _move(
    run: _Run, name: str, rows: sampler._Rows, order: np.ndarray | None, length: int
) -> Program:
    """The move of the cache's largest array to rows of `length` tokens.

    The arrays move one after the other, and the old one goes when the new one is there. So while
    one moves, each of the others counts with the larger of its two sizes.
    """
    old, new = rows.cache, _moved(run, rows, order, length).cache
    larger = [max(held(before), held(after)) for before, after in zip(old, new, strict=True)]
    moving = int(np.argmax(larger))
    others = sum(larger) - larger[moving]
    rest_of_rows = rows[:-1]
    resident = run.beside_sampler + others + held((run.weights, rest_of_rows))
    slots = new[moving].shape[3]
    return Program(name, resident, lambda: sampler._resize.lower(old[moving], order, slots))


def _updating(run: _Run) -> list[Program]:
    """One micro-batch's gradient, the optimizer's step, and the rescoring where it is asked for."""
    s, params = run.settings, run.state.params
    with jax.set_mesh(run.mesh):
        row_count = devices.whole_shares(s.micro_batch, "rows")
    batch = _batch(s, row_count)
    has_weights = s.importance_cap or s.norm != "token"
    weighted = batch._replace(weights=batch.logprobs if has_weights else None)
    packed = next(grpo.micro_batches(weighted, row_count, all_rows=True))._replace(total=1.0)
    moments, reference = held(run.state.opt_state), held(run.reference)

    def rescore():
        return grpo._logprobs.lower(run.graph, params, batch, s.temperature)

    def gradient():
        read = grpo.Weights(params, run.reference)
        how = grpo.LossSettings.of(s)
        return grpo.accumulate.lower(run.graph, read, run.trained, packed, how)

    def apply():
        one = np.float32(1)  # a learning rate, and a loss
        return grpo.apply.lower(run.state, run.trained, one, one, grpo.OptimizerSettings.of(s))

    rescoring = [Program("update: rescore", moments + reference, rescore)]
    return [
        *(rescoring if s.importance_cap else []),
        Program("update: gradient", moments, gradient),
        Program("update: apply", reference, apply),
    ]


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
