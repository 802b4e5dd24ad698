"""How sampling and the update grow with rows, length, parameters and devices, on this machine.

    python tests/benchmarks/growth.py
    python tests/benchmarks/growth.py --gemma accelerator.json

The first prints a table and writes growth.json beside this file. From the tiny Gemma at 256 rows x
120 tokens one thing is changed at a time; nothing stops early. Seconds are the least of three
rounds, each in every case once. Beside them the share of this machine's roof, measured in the same
process: of decoding the larger of operations over the rate of a matmul and bytes (weights and live
cache, a token) over the rate of a sum that reads as much; of the update its operations over that
rate. Keep the machine quiet.

The second is for an accelerator: Gemma 3 270M and 1B, whole vocabulary, random weights, bfloat16
activations, on all devices there are. It also says how far the trainer's log-probabilities are
from the sampler's.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aha_lib import devices
from aha_lib.model.gemma import Gemma
from aha_lib.presets import MODELS, SETTINGS, ModelConfig, Settings
from aha_lib.rl import grpo, sampler
from aha_lib.tpu import chips

RECORD = Path(__file__).with_suffix(".json")
TINY, GROUP = MODELS["tiny"], 16
CASES = {  # what grows: rows, tokens, width
    "rows": [(rows, 120, 128) for rows in (16, 64, 256, 1024)],
    "length": [(256, length, 128) for length in (30, 60, 120, 240, 480)],
    "parameters": [(256, 120, width) for width in (64, 128, 256, 512)],
}
DEVICES = (1, 2, 4)  # that share the cores
GEMMAS = [  # preset, rows, tokens
    ("gemma3-270m", 512, 256),
    ("gemma3-1b", 512, 256),
    ("gemma3-270m", 64, 64),
]


def shape(width: int) -> ModelConfig:
    """A Gemma of the tiny one's kind and depth, of another width."""
    return dataclasses.replace(TINY, width=width, heads=width // 32, ff=2 * width)


def least(function, rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def roofs(dtype="float32", side=1024, count=2**24) -> tuple[float, float]:
    """Operations a second of a matmul, bytes a second of a sum over so many numbers."""
    square, data = jnp.ones((side, side), dtype), jnp.ones(count, dtype)
    product, total = jax.jit(lambda x: x @ x), jax.jit(jnp.sum)
    jax.block_until_ready((product(square), total(data)))
    times = least(lambda: product(square), 30), least(lambda: total(data), 30)
    return 2 * side**3 / times[0], data.nbytes / times[1]


class Case:
    """A model and a batch of one size: what is timed."""

    def __init__(self, config: ModelConfig, s: Settings, rows: int, length: int):
        self.config, self.rows, self.length = config, rows, length
        self.settings = dataclasses.replace(s, prompts=rows // GROUP, completion_len=length)
        dtype, param_dtype = devices.dtypes(s.dtype)
        model = Gemma(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)
        model.remat, self.bytes = s.remat, dtype.itemsize
        self.graph, params = nnx.split(model)
        mesh = devices.make_mesh()
        params = jax.device_put(params, devices.shardings(params, mesh))
        self.state = grpo.TrainState(params, grpo.optimizer(s).init(params))
        self.prompts = np.full((rows // GROUP, s.prompt_len), 7, np.int32)

    def sample(self):
        return sampler.sample(
            nnx.merge(self.graph, self.state.params),
            self.prompts,
            self.prompts > 0,
            jax.random.key(0),
            sampler.Sampling(group=GROUP, length=self.length, stop_ids=(-1,), pad_id=0),
        )

    def batch(self, out):
        gains = np.random.default_rng(0).normal(size=len(out.mask)).astype(np.float32)
        prompts = np.repeat(self.prompts, GROUP, axis=0)
        return grpo.Batch(prompts, prompts > 0, out.tokens, out.mask, out.logprobs, gains)

    def update(self, out):
        batch = self.batch(out)
        self.state, _ = grpo.train_step(self.graph, self.state, None, batch, self.settings)
        return self.state

    def mismatch(self) -> tuple[float, float]:
        """Mean and greatest |trainer's - sampler's| log-probability of the sampled tokens, nats."""
        batch = self.batch(self.sample())
        ours = grpo.rescore(self.graph, self.state.params, batch, self.settings).logprobs
        gaps = np.abs(ours - batch.logprobs)[batch.mask]
        return float(gaps.mean()), float(gaps.max())

    def bounds(self, flops: float, bandwidth: float) -> tuple[float, float]:
        """Seconds of sampling and of the update at the machine's roofs."""
        rows, length, c, s = self.rows, self.length, self.config, self.settings
        slots = sum(c.slots(s.prompt_len + t) for t in range(length))
        moved = length * c.parameters + rows * slots * 2 * c.kv_heads * c.head_dim
        work = rows * (length * 2 * c.parameters + slots * 4 * c.heads * c.head_dim)
        here = chips.Chip("", 1, 0, flops, math.inf, math.inf, 0)
        sampling = max(self.bytes * moved / bandwidth, work / flops)
        return sampling, chips.estimate(c, s, here)["update"]


def measure(cases: list[Case], rates: tuple[float, float], rounds: int = 3) -> list[dict]:
    """Rows of figures for cases, in turn; `rates` as from `roofs`, of all devices together."""
    first, best = {}, {}
    for turn in range(rounds + 1):  # the first compiles
        for case in cases:
            start = time.perf_counter()
            with devices.use(devices.make_mesh()):
                out = case.sample()
                middle = time.perf_counter()
                jax.block_until_ready(case.update(out))
            times = middle - start, time.perf_counter() - middle
            if turn:
                best[case] = tuple(map(min, times, best.get(case, times)))
            else:
                first[case] = sum(times)
    rows = []
    for case in cases:
        bounds = case.bounds(*rates)
        shares = [round(bound / took, 3) for bound, took in zip(bounds, best[case], strict=True)]
        rows.append(
            {
                "rows": case.rows,
                "length": case.length,
                "parameters": case.config.parameters,
                "devices": jax.device_count(),
                "sample": round(best[case][0], 3),
                "update": round(best[case][1], 3),
                "first": round(first[case], 1),
                "share": shares,
                "GFLOP/s": round(rates[0] / 1e9),
                "GB/s": round(rates[1] / 1e9, 1),
            }
        )
    return rows


def gemmas(file: Path) -> None:
    """Figures of `GEMMAS` on the devices that are here, one model after the other, into a file."""
    chips = jax.devices()
    rates = [len(chips) * rate for rate in roofs("bfloat16", 8192, 2**30)]
    found = {
        "device": f"{len(chips)} x {chips[0].device_kind}",
        "date": str(date.today()),
        "jax": jax.__version__,
        "rows": [],
    }
    for name, rows, length in GEMMAS:
        own = dict(kl=0.0, prompt_len=64, micro_batch=32)
        case = Case(MODELS[name], dataclasses.replace(SETTINGS[name], **own), rows, length)
        row = {"model": name, **measure([case], rates, 2)[0]}
        row["mismatch"] = [float(f"{x:.2g}") for x in case.mismatch()]
        found["rows"].append(row)
        print(row, flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
        del case


def table(found: dict[str, list[dict]]) -> None:
    heads = "rows", "length", "parameters", "devices", "sample", "update"
    for name, rows in found.items():
        print(
            f"\ngrowth with {name}\n"
            + "".join(f"{head:>12}" for head in heads)
            + "   share of the roof"
        )
        for row in rows:
            shares = ", ".join(f"{x:.0%}" for x in row["share"])
            print("".join(f"{row[head]:>12,}" for head in heads) + f"   {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*CASES, "devices"], help="print one JSON of it")
    parser.add_argument("--gemma", metavar="FILE", help="Gemma on this accelerator, into FILE")
    args = parser.parse_args()
    devices.keep_memory()
    if args.gemma:
        gemmas(Path(args.gemma))
        return
    if args.only:
        sizes = CASES.get(args.only, [(256, 120, 128)])
        cases = [Case(shape(width), SETTINGS["tiny"], *size) for *size, width in sizes]
        print(json.dumps(measure(cases, roofs())))
        return
    found = {}
    for name, count in [*((name, 1) for name in CASES), *(("devices", n) for n in DEVICES)]:
        flags = f"--xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, __file__, "--only", name],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )
        found[name] = found.get(name, []) + json.loads(done.stdout.splitlines()[-1])
    about = {
        "date": str(date.today()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in found.items())
    RECORD.write_text(f'{{"about": {json.dumps(about)},\n{lines}\n}}\n')
    table(found)


if __name__ == "__main__":
    main()
