"""What fits on which chip, asked of the compiler; and the time and price that its peaks allow.

Compiles the programs of a run for a TPU that need not be there, with XLA's own compiler (libtpu),
and adds up what a core must hold: `python -m aha_lib.tpu.plan --model gemma2-2b --chip v3-8`. Runs
none of them, loads no weights and does not know the task.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from aha_lib import devices, install
from aha_lib.model import lora
from aha_lib.model.gemma import Cache, Gemma
from aha_lib.presets import MODELS, SETTINGS, Settings, shape
from aha_lib.rl import grpo, sampler
from aha_lib.run import arguments, checkpoints
from aha_lib.tpu.chips import CHIPS, Chip, estimate

GiB = 2**30


# What to change where a program does not fit.
ADVICE = {
    "keep": "train adapters",
    "sample": "lower prompts (or gather=False), or train adapters",
    "update": "lower micro_batch, or train adapters",
}


@dataclass(frozen=True)
class Program:
    """What one core holds while a program runs, in GiB."""

    name: str
    arguments: float
    temporaries: float  # and results that take no argument's place; all if the compiler gave up
    resident: float  # arrays that wait for their turn
    seconds: float  # that the compiler took

    @property
    def kind(self) -> str:
        return self.name.split(":")[0]

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries + self.resident


@dataclass(frozen=True)
class Plan:
    """The answer for one model, chip and settings; prints as a table."""

    model: str
    chip: str
    settings: Settings
    programs: list[Program]
    times: dict[str, float]  # seconds per step, of `estimate`

    @property
    def fits(self) -> bool:
        return max(p.total for p in self.programs) <= CHIPS[self.chip].hbm

    def __str__(self) -> str:
        s, chip = self.settings, CHIPS[self.chip]
        rows = [
            f"{self.model} on {self.chip}: {s.prompts} prompts x {s.group} completions, "
            f"{s.prompt_len} + {s.completion_len} tokens, micro_batch {s.micro_batch}, "
            f"kl {s.kl:g}, "
            + (f"adapters of rank {s.lora}" if s.lora else "all weights")
            + "; GiB per core"
        ]
        rows.append(
            f"{'program':<18}{'arguments':>10}{'temporary':>10}{'resident':>9}{'total':>7}"
            f"{'free':>7}{'compiled in':>13}"
        )
        for p in self.programs:
            rows.append(
                f"{p.name:<18}{p.arguments:10.2f}{p.temporaries:10.2f}{p.resident:9.2f}"
                f"{p.total:7.2f}{chip.hbm - p.total:7.2f}{p.seconds:11.0f} s"
            )
        for p in self.programs:
            if p.total > chip.hbm:
                rows.append(
                    f"{p.name} needs {p.total:.1f} GiB of a core's {chip.hbm:g}: {ADVICE[p.kind]}."
                )
        step = sum(self.times.values())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.times.items())
        hours = s.steps * step / 3600
        rows.append(
            f"at the chip's peaks a step takes {step:.1f} s ({parts}), {s.steps} steps "
            f"{hours:.1f} h or ${hours * chip.dollars:.0f}"
        )
        return "\n".join(rows)


def plan(model: str, chip: str, **changes) -> Plan:
    """Compile the programs of `train` for a chip of `CHIPS`; `changes` are those of `Settings`.

    The settings are those of the preset `model`, or of gemma2-2b for a model without one. Results
    are kept by content. Raises ValueError for unknown names, RuntimeError without libtpu.
    """
    settings, todo = _todo(model, chip, changes)
    times = estimate(shape(model), settings, CHIPS[chip])
    return Plan(model, chip, settings, [run() for run in todo], times)


def largest(name: str, model: str, chip: str, *, start: int | None = None, **changes) -> int:
    """The largest power of two times the cores that setting `name` may have; 0 if none fits.
    The search begins at `start`, by default one a core."""

    def fits(size):
        todo = _todo(model, chip, changes | {name: size})[1]
        return all(run().total <= CHIPS[chip].hbm for run in reversed(todo))

    best, size = 0, start or CHIPS[chip].cores
    while fits(size):
        best, size = size, 2 * size
    while not best and size > CHIPS[chip].cores:
        size //= 2
        best = size if fits(size) else 0
    return best


def _todo(model, chip, changes) -> tuple[Settings, list[Callable[[], Program]]]:
    """The settings, and for each program what compiles it."""
    if model not in {*MODELS, *SETTINGS} or chip not in CHIPS:
        names = f"models {', '.join({**MODELS, **SETTINGS})}; chips {', '.join(CHIPS)}"
        raise ValueError(f"{model} on {chip} is not in the tables: there are {names}.")
    base = SETTINGS.get(model) or dataclasses.replace(SETTINGS["gemma2-2b"], model=model)
    settings = dataclasses.replace(base, **changes)
    how = dict(mesh=_mesh(CHIPS[chip], settings.tp), chip=CHIPS[chip])
    found = programs(shape(model), settings, how["mesh"])
    return settings, [functools.partial(_compile, *x, **how) for x in found]


def programs(config, s: Settings, mesh: Mesh) -> list[tuple[str, float, Callable]]:
    """All that a run executes on the mesh, but for what handles one array at a time.

    Names, GiB of a core that wait meanwhile, and functions that lower each, with `mesh` in use.
    Each is as large as any call makes it, to train or to evaluate.
    """
    dtype, param_dtype = devices.dtypes(s.dtype, mesh.devices.flat[0].platform)

    def place(tree, gathered=False):
        where = devices.shardings(tree, mesh, gathered=gathered)
        return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), tree, where)

    def spread(x):  # as the sampler does
        names = (None, "rows", "kv_heads") if x.ndim == 5 else ("rows",)
        return x.update(sharding=NamedSharding(mesh, devices.spec(x.shape, names, mesh)))

    def build():
        kept = dtype if s.lora else param_dtype
        model = Gemma(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=kept)
        if s.lora:
            lora.add(model, s.lora, rngs=nnx.Rngs(0))
        model.remat = s.remat
        return model

    graph, params = nnx.split(nnx.eval_shape(build))
    moments = jax.eval_shape(grpo.optimizer(s).init, grpo.trainable(params, s.lora)[0])
    state = place(grpo.TrainState(params, moments))
    grads = grpo.trainable(state.params, s.lora)[0]
    kept = state._replace(params=grads)._asdict()  # in checkpoints
    lean = jax.eval_shape(lambda x: sampler.prepare_weights(x, dtype), params)
    weights, reference = place(lean, s.gather), place(lean) if s.kl and not s.lora else None
    kl, waiting = _held(reference), _held((state, reference))
    lent = [
        x
        for x, y in zip(*map(jax.tree.leaves, (weights, state.params)), strict=True)
        if (x.dtype, x.sharding) == (y.dtype, y.sharding)
    ]
    aside = waiting - _held(lent)  # while the sampler runs: these are its arguments too

    with jax.set_mesh(mesh):
        count, rows = (devices.whole_shares(n, "draws") for n in _sizes(s))
        half = devices.whole_shares(-(-rows // 2), "draws")
        micro = devices.whole_shares(s.micro_batch, "rows")
    key, order = place(jax.eval_shape(jax.random.key, 0)), np.arange(rows) % count
    prompts = np.zeros((count, s.prompt_len), np.int32)
    wanted = sampler._Wanted(key, 0, rows, order)
    begin = (graph, weights, prompts, prompts > 0, wanted)
    slots = s.prompt_len + s.completion_len
    last = s.completion_len - round(s.completion_len * 3 / 4)  # tokens of the last stage of four

    def moved(rows, order, slots):
        long = sampler._cache_slots(slots, config.window)
        cache = [
            jax.eval_shape(functools.partial(sampler._resize, slots=n), x, order)
            for x, n in zip(rows.cache, long, strict=True)
        ]
        return jax.tree.map(spread, rows._replace(cache=Cache(*cache)))

    def move(name, old, order, slots):
        new = moved(old, order, slots).cache
        both = [max(map(_held, pair)) for pair in zip(old.cache, new, strict=True)]
        n = int(np.argmax(both))  # the largest array moves, the others wait, at their largest
        resident = aside + sum(both) - both[n] + _held((weights, old[:-1]))
        array, long = old.cache[n], new[n].shape[3]
        return f"sample: {name}", resident, lambda: sampler._resize.lower(array, order, long)

    read = jax.tree.map(spread, jax.eval_shape(sampler._prefill, *begin))
    shorter, longer = (moved(read, order, n) for n in (slots - last, slots))
    stage = sampler.Stage(slot=slots - last, length=last, stop_ids=(1,), pad_id=0)
    blank = np.zeros((micro, s.completion_len), np.float32)
    seen, ids = np.ones((micro, s.prompt_len), bool), blank.astype(np.int32)
    batch = grpo.Batch(seen.astype(np.int32), seen, ids, blank == 0, blank, blank[:, 0])
    weighted = batch._replace(weights=blank if s.importance_cap or s.norm != "token" else None)
    packed = next(grpo.micro_batches(weighted, micro, all_rows=True))._replace(total=1.0)
    read_by_loss = grpo.Weights(state.params, reference)
    one = np.float32(1)  # a learning rate and a loss
    adam = waiting - kl - _held(state.params)
    rescore = [
        (
            "update: rescore",
            adam + kl,
            lambda: grpo._logprobs.lower(graph, state.params, batch, s.temperature),
        )
    ]
    return [
        ("keep: checksum", waiting - _held(kept), lambda: checkpoints.checksum.lower(kept)),
        ("sample: prefill", aside, lambda: sampler._prefill.lower(*begin)),
        move("spread", read, order, slots - 3 * last),
        (
            "sample: decode",
            aside,
            lambda: sampler._decode.lower(graph, weights, longer, s.temperature, stage),
        ),
        move("lengthen", shorter, None, slots),
        move("halve", shorter, np.arange(half), slots),
        *(rescore if s.importance_cap else []),
        (
            "update: gradient",
            adam,
            lambda: grpo.accumulate.lower(
                graph, read_by_loss, grads, packed, grpo.LossSettings.of(s)
            ),
        ),
        (
            "update: apply",
            kl,
            lambda: grpo.apply.lower(state, grads, one, one, grpo.OptimizerSettings.of(s)),
        ),
    ]


def _sizes(s: Settings) -> tuple[int, int]:
    """The most prompts and the most rows of a call of the sampler, `train.rollout`'s parts."""
    panel = [(min(s.eval_puzzles, max(1, s.prompts * s.group // n)), n) for n in (1, s.pass_k)]
    calls = [(s.prompts, s.group), *panel]
    return max(prompts for prompts, _ in calls), max(math.prod(call) for call in calls)


def _compile(name: str, resident: float, lower: Callable, mesh: Mesh, chip: Chip) -> Program:
    """Memory of a program, from the compiler or from what it said of the same before."""
    with jax.set_mesh(mesh):
        lowered = lower()
    versions = [importlib.metadata.version(package) for package in ("jax", "libtpu")]
    text = " ".join((*versions, chip.topology, lowered.as_text()))
    file = devices.cache("plan") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not file.exists():
        start = time.perf_counter()
        try:
            m = lowered.compile().memory_analysis()
            new = m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            sizes = m.argument_size_in_bytes / GiB, new / GiB
        except jax.errors.JaxRuntimeError as error:
            used = re.search(r"\(([\d.]+)G\) exceeds|Used ([\d.]+)G of", str(error))
            if not used:
                raise
            sizes = 0.0, float(used[1] or used[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([*sizes, time.perf_counter() - start]))
    arguments, temporaries, seconds = json.loads(file.read_text())
    return Program(name, arguments, temporaries, resident, seconds)


def _mesh(chip: Chip, tp: int) -> Mesh:
    """A mesh of a TPU that need not be there."""
    if not importlib.util.find_spec("libtpu"):
        raise RuntimeError('The TPU compiler is missing: run pip install "aha_lib[tpu]".')
    wanted = re.search(r"libtpu==(\d+\.\d+\.\d+)", str(importlib.metadata.requires("jax")))
    have = importlib.metadata.version("libtpu")
    if wanted and install.numbers(have)[:3] < install.numbers(wanted[1]):  # it would crash
        raise RuntimeError(
            f"The TPU compiler here, libtpu {have}, is older than the {wanted[1]} that goes with "
            f'JAX {jax.__version__}: plan on another machine, after pip install "jax[tpu]".'
        )
    names = "TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost ALLOW_MULTIPLE_LIBTPU_LOAD=1"
    for name in (names + " TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_MIN_LOG_LEVEL=3").split():
        os.environ.setdefault(*name.split("="))
    host = {"chips_per_host_bounds": (1, 1, 1)} if chip.cores == 1 else {}
    topology = topologies.get_topology_desc(chip.topology, "tpu", **host)
    return devices.make_mesh(topology.devices, tp=tp)


def _held(tree) -> float:
    """GiB of one core that the arrays take."""
    sizes = [
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    ]
    return sum(sizes) / GiB


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if the plan fits, 1 if not, 2 for bad input or without libtpu."""
    parser = argparse.ArgumentParser(prog="python -m aha_lib.tpu.plan", description=plan.__doc__)
    parser.add_argument("--model", required=True, choices=list({**MODELS, **SETTINGS}))
    parser.add_argument("--chip", required=True, choices=list(CHIPS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--largest", choices=["micro_batch", "prompts"])
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # leaves a TPU that is here alone
    try:
        wanted = arguments.changes(args.set)
        answer = plan(args.model, args.chip, **wanted)
        print(answer)
        if args.largest:
            size = largest(args.largest, args.model, args.chip, **wanted)
            print(f"largest {args.largest} that fits: {size}")
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    return 0 if answer.fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
