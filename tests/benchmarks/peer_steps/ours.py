"""This package on the two works of ../peers.py: a JSON line a step, its seconds and their parts."""

import dataclasses
import json
import sys
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from aha_lib import devices
from aha_lib.presets import SETTINGS
from aha_lib.rl import grpo
from aha_lib.run import train
from aha_lib.tasks.rollout import Policy, rollout, training_puzzles
from aha_lib.tasks.task import Countdown


def fixed(steps: int, seed: int) -> None:
    """16 puzzles x 16 completions x 120 tokens, nothing stops early, rewards from a die."""
    s = dataclasses.replace(SETTINGS["tiny"], completion_len=120, clip_high=0.2)
    task = Countdown()
    graph, state, _, tokenizer = train.begin(s, devices.make_mesh(), task)
    tokenizer.stop_ids, die = frozenset(), np.random.default_rng(seed)
    for number in range(1, steps + 1):
        start = time.perf_counter()
        policy = Policy(nnx.merge(graph, state.params), tokenizer, task, s)
        puzzles, key = training_puzzles(task, s, number), jax.random.key(number)
        out = rollout(policy, puzzles, key, group=s.group, temperature=s.temperature)
        sampled = time.perf_counter()
        gains = grpo.advantages(die.random((s.prompts, s.group))).reshape(-1).astype(np.float32)
        written = out.completions.tokens, out.completions.mask, out.completions.logprobs
        batch = grpo.Batch(out.prompts, out.valid, *written, gains)
        begun = time.perf_counter()
        state, _ = grpo.train_step(graph, state, None, batch, s)
        end = time.perf_counter()
        tell(
            step=end - start,
            sample=sampled - start,
            update=end - begun,
            tokens=int(out.completions.mask.sum()),
        )


def real(steps: int, seed: int) -> None:
    """The preset "tiny" as it is, evaluations and checkpoints included in `loop` alone."""
    began, settings = time.perf_counter(), SETTINGS["tiny"]
    settings = dataclasses.replace(settings, steps=steps, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        for row in train.train(settings, folder):
            parts = {x: row.get(f"{x}_seconds", 0.0) for x in ("sample", "reward", "update")}
            tell(
                step=sum(parts.values()),
                loop=time.perf_counter() - began,
                number=row["step"],
                accuracy=row.get("train_accuracy"),
                heldout=row.get("heldout_accuracy"),
                length=row.get("length"),
                **parts,
            )


def tell(**row) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    devices.keep_memory()
    devices.compilation_cache()
    size = 2048
    square, product = jax.random.normal(jax.random.key(0), (size, size)), jax.jit(lambda x: x @ x)
    product(square).block_until_ready()
    start = time.perf_counter()
    for _ in range(10):
        product(square).block_until_ready()
    tell(matmul=10 * 2 * size**3 / (time.perf_counter() - start) / 1e9)  # GFLOP/s
    work, steps, seed = sys.argv[1:]
    {"fixed": fixed, "real": real}[work](int(steps), int(seed))
