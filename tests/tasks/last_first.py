"""A task of your own: generator, prompt and reward in one file, and the loop that learns it.

`python tests/last_first.py`. The task: of three numbers, write the last one first. The tiny base
model was never asked for that, and hardly ever does it. Change the three functions, and it is your
task. Knows nothing of Countdown.
"""

import random
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx

from aha_lib.model import weights
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import Settings
from aha_lib.rl import grpo, sampler

SETTINGS = Settings(steps=35, prompts=16, group=16, completion_len=2, learning_rate=2e-3)


def generate(seed: int, index: int) -> list[int]:
    """Three numbers; the same seed and index give the same ones."""
    return random.Random(f"{seed} {index}").sample(range(1, 21), 3)


def prompt(numbers: list[int]) -> str:
    """In the words that the model knows: the tiny one, numbers to 100 and a few signs."""
    return " ".join(map(str, numbers)) + " = 50 :"


def reward(text: str, numbers: list[int]) -> float:
    """1 for the last number at the beginning, else 0."""
    return float(text.split()[:1] == [str(numbers[-1])])


def learn(s: Settings) -> Iterator[float]:
    """GRPO from the tiny base; yields each step's mean reward, measured before its update."""
    model, tokenizer, _ = weights.load("tiny")
    graph, params = nnx.split(model)
    state = grpo.TrainState(params, grpo.optimizer(s).init(params))
    for step in range(s.steps):
        tasks = [generate(s.seed, step * s.prompts + i) for i in range(s.prompts)]
        key = jax.random.fold_in(jax.random.key(s.seed), step)
        batch, rewards = rollout(nnx.merge(graph, state.params), tokenizer, tasks, key, s)
        state, _ = grpo.train_step(graph, state, None, batch, s)
        yield float(rewards.mean())


def rollout(
    model, tokenizer: Tokenizer, tasks: list[list[int]], key: jax.Array, s: Settings
) -> tuple[grpo.Batch, np.ndarray]:
    """A group of completions for every task as a batch to learn from; rewards [P, G]."""
    ids = [tokenizer.encode(prompt(task)) for task in tasks]
    prompts, valid = sampler.pad_left(ids, s.prompt_len, tokenizer.pad_id)
    tokens, logprobs, mask = sampler.sample(
        model,
        prompts,
        valid,
        key,
        group=s.group,
        length=s.completion_len,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
    )
    texts = [tokenizer.decode(row[kept]) for row, kept in zip(tokens, mask, strict=True)]
    each = [task for task in tasks for _ in range(s.group)]
    scores = [reward(text, task) for text, task in zip(texts, each, strict=True)]
    rewards = np.array(scores).reshape(-1, s.group)
    gain = grpo.advantages(rewards).reshape(-1).astype(np.float32)
    prompts, valid = (np.repeat(x, s.group, axis=0) for x in (prompts, valid))
    return grpo.Batch(prompts, valid, tokens, mask, logprobs, gain), rewards


if __name__ == "__main__":
    for number, mean in enumerate(learn(SETTINGS)):
        print(f"step {number:2}  mean reward {mean:.2f}")
