"""This package on the two works of ../peers.py: a JSON line a step, its seconds and their parts."""

import dataclasses
import json
import sys
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from aha_lib import countdown, grpo, runtime, sampler, train, weights
from aha_lib.presets import SETTINGS


def fixed(steps: int, seed: int) -> None:
    """16 puzzles x 16 completions x 120 tokens, nothing stops early, rewards from a die."""
    s = dataclasses.replace(SETTINGS["tiny"], completion_len=120, clip_high=0.2)
    model, tokenizer, _ = weights.load("tiny")
    model.remat = s.remat
    graph, params = nnx.split(model)
    state = grpo.TrainState(params, grpo.optimizer(s).init(params))
    die = np.random.default_rng(seed)
    for number in range(1, steps + 1):
        start, puzzles = time.perf_counter(), train.puzzles(s, number)
        ids = [tokenizer.encode(countdown.prompt(puzzle, s.template)) for puzzle in puzzles]
        prompts, valid = sampler.pad_left(ids, s.prompt_len, tokenizer.pad_id)
        model = nnx.merge(graph, state.params)
        out = sampler.sample(
            model, prompts, valid, jax.random.key(number), group=s.group, length=s.completion_len,
            stop_ids=(), pad_id=tokenizer.pad_id,
        )  # fmt: skip
        for row in out.tokens:
            tokenizer.decode(row)
        sampled = time.perf_counter()
        gains = grpo.advantages(die.random((s.prompts, s.group))).reshape(-1).astype(np.float32)
        prompts, valid = np.repeat(prompts, s.group, axis=0), np.repeat(valid, s.group, axis=0)
        batch = grpo.Batch(prompts, valid, out.tokens, out.mask, out.logprobs, gains)
        state, _ = grpo.train_step(graph, state, None, batch, s)
        end = time.perf_counter()
        tell(step=end - start, sample=sampled - start, update=end - sampled,
             tokens=int(out.mask.sum()))  # fmt: skip


def real(steps: int, seed: int) -> None:
    """The preset "tiny" as it is, evaluations and checkpoints included in `loop` alone."""
    began, settings = time.perf_counter(), SETTINGS["tiny"]
    settings = dataclasses.replace(settings, steps=steps, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        for row in train.train(settings, folder):
            parts = {x: row.get(f"{x}_seconds", 0.0) for x in ("sample", "reward", "update")}
            tell(step=sum(parts.values()), loop=time.perf_counter() - began, number=row["step"],
                 accuracy=row.get("train_accuracy"), heldout=row.get("heldout_accuracy"),
                 length=row.get("length"), **parts)  # fmt: skip


def tell(**row) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    runtime.keep_memory()
    runtime.compilation_cache()
    side, size = jax.random.normal(jax.random.key(0), (2048, 2048)), 2048
    product = jax.jit(lambda x: x @ x)
    product(side).block_until_ready()
    start = time.perf_counter()
    for _ in range(10):
        product(side).block_until_ready()
    tell(matmul=10 * 2 * size**3 / (time.perf_counter() - start) / 1e9)  # GFLOP/s
    work, steps, seed = sys.argv[1:]
    {"fixed": fixed, "real": real}[work](int(steps), int(seed))
