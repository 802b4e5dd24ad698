"""What fits on which chip, asked of the compiler; and the time and price that its peaks allow.

Compiles the programs of a training step for a TPU that need not be there, with XLA's own TPU
compiler (libtpu), and adds up what a core must hold. `python -m aha_lib.plan --model gemma2-2b
--chip v3-8` prints it. Runs none of them, loads no weights and does not know the task.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from aha_lib import grpo, install, lora, runtime, sampler
from aha_lib.gemma import Cache, Gemma
from aha_lib.presets import MODELS, SETTINGS, Settings
from aha_lib.train import changes

GiB = 2**30


@dataclass(frozen=True)
class Chip:
    """A machine: its cores as JAX counts them, and what each of them can do at best.

    Peaks: docs.cloud.google.com/tpu/docs/v3 (v5e, v6e). Links: two per chip, one way, of the JAX
    scaling book (jax-ml.github.io/scaling-book/tpus). Memory: what the compiler grants.
    """

    topology: str
    cores: int
    hbm: float  # GiB
    flops: float  # bfloat16, per second
    bandwidth: float  # of HBM, bytes per second
    ici: float  # from the other cores, bytes per second; infinite where there are none
    dollars: float  # per hour of the machine, on demand in the USA


# Prices a chip and hour, $2.20 (v3, two cores), $1.20 (v5e) and $2.70 (v6e): cloud.google.com/tpu/
# pricing as quoted in 2026; ask there for today's. Sessions on Kaggle and Colab can be free.
CHIPS = {
    "v3-8": Chip("v3:2x2", 8, 15.48, 61.5e12, 450e9, 100e9, 8.80),
    "v5e-1": Chip("v5e:1x1", 1, 15.75, 197e12, 819e9, math.inf, 1.20),  # Colab's
    "v5e-8": Chip("v5e:2x4", 8, 15.75, 197e12, 819e9, 90e9, 9.60),
    "v5e-16": Chip("v5e:4x4", 16, 15.75, 197e12, 819e9, 90e9, 19.20),
    "v6e-1": Chip("v6e:1x1", 1, 31.25, 918e12, 1638e9, math.inf, 2.70),  # Colab's
    "v6e-8": Chip("v6e:2x4", 8, 31.25, 918e12, 1638e9, 180e9, 21.60),
}
# What to change where a program does not fit.
ADVICE = {"sample": "prompts (or gather=False)", "update": "micro_batch"}


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
        rows = [f"{self.model} on {self.chip}: {s.prompts} prompts x {s.group} completions, "
                f"{s.prompt_len} + {s.completion_len} tokens, micro_batch {s.micro_batch}, "
                f"kl {s.kl:g}, " + (f"adapters of rank {s.lora}" if s.lora else "all weights")
                + "; GiB per core"]  # fmt: skip
        rows.append(f"{'program':<18}{'arguments':>10}{'temporary':>10}{'resident':>9}{'total':>7}"
                    f"{'free':>7}{'compiled in':>13}")  # fmt: skip
        for p in self.programs:
            rows.append(f"{p.name:<18}{p.arguments:10.2f}{p.temporaries:10.2f}{p.resident:9.2f}"
                        f"{p.total:7.2f}{chip.hbm - p.total:7.2f}{p.seconds:11.0f} s")  # fmt: skip
        for p in self.programs:
            if p.total > chip.hbm:
                rows.append(f"{p.name} needs {p.total:.1f} GiB of a core's {chip.hbm:g}: lower "
                            f"{ADVICE[p.kind]}, or train adapters.")  # fmt: skip
        step = sum(self.times.values())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.times.items())
        hours = s.steps * step / 3600
        rows.append(f"at the chip's peaks a step takes {step:.1f} s ({parts}), {s.steps} steps "
                    f"{hours:.1f} h or ${hours * chip.dollars:.0f}")  # fmt: skip
        return "\n".join(rows)


def plan(model: str, chip: str, **changes) -> Plan:
    """Compile a step of `train` for a chip of `CHIPS`; `changes` are those of `Settings`.

    The settings are those of the preset `model`, or of gemma2-2b for a model without one. Results
    are kept by content. Raises ValueError for unknown names, RuntimeError without libtpu.
    """
    if model not in MODELS or chip not in CHIPS:
        names = f"models {', '.join(MODELS)}; chips {', '.join(CHIPS)}"
        raise ValueError(f"{model} on {chip} is not in the tables: there are {names}.")
    base = SETTINGS.get(model) or dataclasses.replace(SETTINGS["gemma2-2b"], model=model)
    settings = dataclasses.replace(base, **changes)
    programs = _programs(MODELS[model], settings, CHIPS[chip])
    return Plan(model, chip, settings, programs, estimate(MODELS[model], settings, CHIPS[chip]))


def largest(name: str, model: str, chip: str, **changes) -> int:
    """The largest power of two times the cores that setting `name` may have; 0 if none fits."""
    best, size = 0, CHIPS[chip].cores
    while plan(model, chip, **changes | {name: size}).fits:
        best, size = size, 2 * size
    return best


def estimate(config, settings: Settings, chip: Chip) -> dict[str, float]:
    """Seconds per step of the three phases if the machine reached its peaks.

    Each phase takes the longest of its operations, its bytes of HBM and its bytes between cores
    (scaling book, "roofline"). Forward: 2 N + 4 L H h S operations for a token that attends to S
    ("transformers"); an update is four of them (forward, recomputed, and backward twice), and one
    for the reference. A decoded token reads the weights and its rows' KV cache ("inference").
    """
    s, c, cores = settings, config, chip.cores
    head = c.vocab * c.width
    layers = 2 * (c.parameters - head)  # bytes in bfloat16
    rows, length = s.prompts * s.group, s.prompt_len + s.completion_len

    def forward(tokens, context):
        operations = 2 * c.parameters + 4 * c.layers * c.heads * c.head_dim * context
        return tokens * operations / cores / chip.flops

    context = s.prompt_len + 5 / 8 * s.completion_len  # mean length of the cache in four stages
    cache = rows / cores * context * 4 * c.layers * c.kv_heads * c.head_dim
    read = (layers if s.gather else layers / cores) + 2 * head / cores + cache
    moved = 0 if s.gather else layers
    update = (4 + (s.kl > 0)) * forward(rows * length, length)
    gathers = (3 + (s.kl > 0)) * layers * math.ceil(rows / s.micro_batch)  # 2, and the gradient's
    return {
        "prefill": max(forward(s.prompts * s.prompt_len, s.prompt_len), layers / chip.ici),
        "decode": s.completion_len
        * max(forward(rows, context), read / chip.bandwidth, moved / chip.ici),
        "update": max(update, gathers / chip.ici) * s.updates,
    }


def _programs(config, s: Settings, chip: Chip) -> list[Program]:
    """The programs of `sampler.sample` and `grpo.train_step`, as `train` calls them."""
    mesh, (dtype, param_dtype) = _mesh(chip, s.tp), runtime.dtypes("tpu")

    def place(tree, gathered=False):
        where = runtime.shardings(tree, mesh, gathered=gathered)
        return jax.tree.map(_struct, tree, where)

    def build():
        kept = dtype if s.lora else param_dtype
        model = Gemma(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=kept)
        if s.lora:
            lora.add(model, s.lora, rngs=nnx.Rngs(0))
        return model

    graph, params = nnx.split(nnx.eval_shape(build))
    adam = jax.eval_shape(grpo.optimizer(s).init, grpo.learned(params, s)[0])
    state = place(grpo.TrainState(params, adam))
    grads = grpo.learned(state.params, s)[0]
    lean = jax.eval_shape(lambda x: sampler.ready(x, dtype), params)
    weights, reference = place(lean, s.gather), place(lean) if s.kl and not s.lora else None
    kl = _held(reference)
    waiting = _held(state) + kl
    lent = [x for x, y in zip(*map(jax.tree.leaves, (weights, state.params)), strict=True)
            if (x.dtype, x.sharding) == (y.dtype, y.sharding)]  # fmt: skip
    aside = waiting - _held(lent)  # while the sampler runs: these are its arguments too
    prompts, key = np.zeros((s.prompts, s.prompt_len), np.int32), jax.eval_shape(jax.random.key, 0)
    begin = (graph, weights, prompts, prompts > 0, place(key), s.group)
    rows = jax.eval_shape(sampler._prefill, *begin)
    last = s.completion_len - round(s.completion_len * 3 / 4)  # tokens of the last stage of four
    slots = s.prompt_len + s.completion_len

    def lengthened(n):
        cache = (jax.eval_shape(lambda x: sampler._lengthen(x, n), x) for x in rows.cache)
        return _place_rows(rows._replace(cache=Cache(*cache)), mesh)

    shorter, longer = lengthened(slots - last), lengthened(slots)
    decode = dict(slot=slots - last, length=last, stop_ids=(1,), pad_id=0)
    blank = np.zeros((s.micro_batch, s.completion_len), np.float32)
    micro = prompts[np.zeros(s.micro_batch, int)]
    batch = grpo.Batch(
        micro, micro > 0, blank.astype(np.int32), blank > 0, blank, blank[:, 0], None
    )
    with jax.set_mesh(mesh):
        return [
            _compile("sample: prefill", aside, sampler._prefill.lower(*begin), chip),
            _compile("sample: lengthen", aside + _held((weights, longer[:-1], longer.cache.k)),
                     sampler._lengthen.lower(shorter.cache.v, slots), chip),
            _compile("sample: decode", aside,
                     sampler._decode.lower(graph, weights, longer, s.temperature, **decode), chip),
            _compile("update: gradient", waiting - kl - _held(state.params),
                     grpo.accumulate.lower(graph, state.params, reference, grads, batch,
                                           1.0, s), chip),
            _compile("update: apply", kl, grpo.apply.lower(state, grads, s), chip),
        ]  # fmt: skip


def _compile(name: str, resident: float, lowered, chip: Chip) -> Program:
    """Memory of a lowered program, from the compiler or from what it said of the same before."""
    versions = [importlib.metadata.version(package) for package in ("jax", "libtpu")]
    text = " ".join((*versions, chip.topology, lowered.as_text()))
    file = runtime.cache("plan") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
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
    return runtime.make_mesh(topology.devices, tp=tp)


def _struct(x, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _place_rows(rows, mesh: Mesh):
    """As the sampler's `_spread` does."""

    def place(path, x):
        names = (None, "rows", "kv_heads") if x.ndim == 5 else ("rows",)
        return _struct(x, NamedSharding(mesh, runtime.spec(x.shape, names, mesh)))

    return jax.tree.map_with_path(place, rows)


def _held(tree) -> float:
    """GiB of one core that the arrays take."""
    sizes = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree)]  # fmt: skip
    return sum(sizes) / GiB


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if the plan fits, 1 if not, 2 for bad input or without libtpu."""
    parser = argparse.ArgumentParser(prog="python -m aha_lib.plan", description=plan.__doc__)
    parser.add_argument("--model", required=True, choices=list(MODELS))
    parser.add_argument("--chip", required=True, choices=list(CHIPS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--largest", choices=["micro_batch", "prompts"])
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # leaves a TPU that is here alone
    try:
        wanted = changes(args.set)
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
