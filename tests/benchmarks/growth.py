"""How sampling and the update grow with rows, length, parameters and devices, on this machine.

    python tests/benchmarks/growth.py

prints a table and writes growth.json beside this file. From the tiny Gemma at 256 rows x 120 tokens
one thing is changed at a time; nothing stops early. Seconds are the least of three rounds, each in
every case once. Beside them the share of this machine's roof, measured in the same process: of
decoding the larger of operations over the rate of a matmul and bytes (weights and live cache, a
token) over the rate of a sum that reads as much; of the update its operations over that rate. Keep
the machine quiet.
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

from aha_lib import chips, grpo, runtime, sampler
from aha_lib.gemma import Gemma
from aha_lib.presets import MODELS, SETTINGS, ModelConfig

RECORD = Path(__file__).with_suffix(".json")
TINY, GROUP = MODELS["tiny"], 16
CASES = {  # what grows: rows, tokens, width
    "rows": [(rows, 120, 128) for rows in (16, 64, 256, 1024)],
    "length": [(256, length, 128) for length in (30, 60, 120, 240, 480)],
    "parameters": [(256, 120, width) for width in (64, 128, 256, 512)],
}
DEVICES = (1, 2, 4)  # that share the cores


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


def roofs() -> tuple[float, float]:
    """Operations a second of a matmul, bytes a second of a sum over 64 MB."""
    square, data = jnp.ones((1024, 1024)), jnp.ones(2**24)
    product, total = jax.jit(lambda x: x @ x), jax.jit(jnp.sum)
    jax.block_until_ready((product(square), total(data)))
    return 2 * 1024**3 / least(lambda: product(square), 30), 2**26 / least(lambda: total(data), 30)


class Case:
    """A model and a batch of one size: what is timed."""

    def __init__(self, rows: int, length: int, width: int):
        self.size, self.config = (rows, length, width), shape(width)
        s = SETTINGS["tiny"]
        self.settings = dataclasses.replace(s, prompts=rows // GROUP, completion_len=length)
        self.graph, params = nnx.split(Gemma(self.config, rngs=nnx.Rngs(0)))
        mesh = runtime.make_mesh()
        params = jax.device_put(params, runtime.shardings(params, mesh))
        self.state = grpo.TrainState(params, grpo.optimizer(s).init(params))
        self.prompts = np.full((rows // GROUP, s.prompt_len), 7, np.int32)

    def sample(self):
        return sampler.sample(
            nnx.merge(self.graph, self.state.params), self.prompts, self.prompts > 0,
            jax.random.key(0), group=GROUP, length=self.size[1], stop_ids=(-1,), pad_id=0,
        )  # fmt: skip

    def update(self, out):
        gains = np.random.default_rng(0).normal(size=len(out.mask)).astype(np.float32)
        prompts = np.repeat(self.prompts, GROUP, axis=0)
        batch = grpo.Batch(prompts, prompts > 0, out.tokens, out.mask, out.logprobs, gains)
        self.state, _ = grpo.train_step(self.graph, self.state, None, batch, self.settings)
        return self.state

    def bounds(self, flops: float, bandwidth: float) -> tuple[float, float]:
        """Seconds of sampling and of the update at the machine's roofs."""
        (rows, length, _), c, s = self.size, self.config, self.settings
        slots = sum(c.slots(s.prompt_len + t) for t in range(length))
        moved = 4 * (length * c.parameters + rows * slots * 2 * c.kv_heads * c.head_dim)
        work = rows * (length * 2 * c.parameters + slots * 4 * c.heads * c.head_dim)
        here = chips.Chip("", 1, 0, flops, math.inf, math.inf, 0)
        return max(moved / bandwidth, work / flops), chips.estimate(c, s, here)["update"]


def measure(sizes, rounds: int = 3) -> list[dict]:
    """Rows of figures for cases of these sizes, in turn."""
    cases, best = [Case(*size) for size in sizes], {}
    for turn in range(rounds + 1):  # the first compiles
        for case in cases:
            start = time.perf_counter()
            with runtime.use(runtime.make_mesh()):
                out = case.sample()
                middle = time.perf_counter()
                jax.block_until_ready(case.update(out))
            times = middle - start, time.perf_counter() - middle
            if turn:
                best[case] = tuple(map(min, times, best.get(case, times)))
    flops, bandwidth = roofs()
    rows = []
    for case in cases:
        bounds = case.bounds(flops, bandwidth)
        shares = [round(bound / took, 3) for bound, took in zip(bounds, best[case], strict=True)]
        rows.append({"rows": case.size[0], "length": case.size[1],
                     "parameters": case.config.parameters, "devices": jax.device_count(),
                     "sample": round(best[case][0], 3), "update": round(best[case][1], 3),
                     "share": shares, "GFLOP/s": round(flops / 1e9),
                     "GB/s": round(bandwidth / 1e9, 1)})  # fmt: skip
    return rows


def table(found: dict[str, list[dict]]) -> None:
    heads = "rows", "length", "parameters", "devices", "sample", "update"
    for name, rows in found.items():
        print(f"\ngrowth with {name}\n" + "".join(f"{head:>12}" for head in heads)
              + "   share of the roof")  # fmt: skip
        for row in rows:
            shares = ", ".join(f"{x:.0%}" for x in row["share"])
            print("".join(f"{row[head]:>12,}" for head in heads) + f"   {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*CASES, "devices"], help="print one JSON of it")
    only = parser.parse_args().only
    if only:
        print(json.dumps(measure(CASES.get(only, [(256, 120, 128)]))))
        return
    found = {}
    for name, devices in [*((name, 1) for name in CASES), *(("devices", n) for n in DEVICES)]:
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, __file__, "--only", name], check=True, capture_output=True, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )  # fmt: skip
        found[name] = found.get(name, []) + json.loads(done.stdout.splitlines()[-1])
    about = {"date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
             "jax": jax.__version__}  # fmt: skip
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in found.items())
    RECORD.write_text(f'{{"about": {json.dumps(about)},\n{lines}\n}}\n')
    table(found)


if __name__ == "__main__":
    main()
