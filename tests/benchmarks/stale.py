"""How each loss's gradient turns while a batch is used again: `python tests/benchmarks/stale.py`.

A batch is frozen, the model takes 1, 2, 4 and 8 updates on it with the default loss, and after each
the gradient of every variant is compared with its first one. Several batches, each at the base
(Adam starts from nothing) and after ten steps of training (Adam as a run has it). Writes
`stale.json` beside itself, which notebook 09 draws; a case that is in it is not repeated.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aha_lib import loop
from aha_lib.model import weights
from aha_lib.presets import SETTINGS, VARIANTS
from aha_lib.rl import grpo, objectives
from aha_lib.tasks.rollout import Policy, rollout, score, training_puzzles
from aha_lib.tasks.task import Countdown

FILE = Path(__file__).with_suffix(".json")
UPDATES = (1, 2, 4, 8)
STARTS = (0, 10)  # steps of training before the batch


@functools.partial(jax.jit, static_argnames="graph")
def logprobs_of(graph, params, batch):
    """Log-probabilities [B, T] of the batch's completions."""
    return grpo.completion_logprobs(nnx.merge(graph, params), batch, 1.0)[0]


@functools.partial(jax.jit, static_argnames="graph")
def to_gradient(graph, params, batch, slopes):
    """The sums over tokens of slopes [N, B, T] times the gradients of log-probabilities."""
    pull = jax.vjp(lambda params: logprobs_of(graph, params, batch), params)[1]
    trees = jax.lax.map(lambda slope: pull(slope)[0], slopes)
    return jnp.concatenate([x.reshape(len(slopes), -1) for x in jax.tree.leaves(trees)], axis=1)


def gradients(graph, params, batches: dict, base):
    """Of every variant its gradient, as one vector [N, parameters], and the share it clips."""
    frozen = next(iter(batches.values()))[0]
    now = logprobs_of(graph, params, frozen)
    slopes, clipped = [], []
    for batch, s in batches.values():
        batch = batch._replace(weights=objectives.token_weights(batch.mask, s.norm, s.group))

        def loss(logprobs, batch=batch, s=s):
            value, sums = grpo.surrogate(logprobs, 0 * logprobs, base, batch, s)
            return value / batch.mask.sum(), sums["clip_fraction"] / sums["tokens"]

        slope, share = jax.grad(loss, has_aux=True)(now)
        slopes.append(slope)
        clipped.append(float(share))
    return np.asarray(to_gradient(graph, params, frozen, jnp.stack(slopes))), clipped


def measure(seed: int, start: int) -> dict:
    """One batch: by update and variant the cosine with the first gradient, and what is clipped."""
    s = dataclasses.replace(
        SETTINGS["tiny"],
        prompts=8,
        seed=seed,
        completion_len=96,
        micro_batch=64,
        warmup=0 if start == 0 else 5,
    )
    model, tokenizer, _ = weights.load("tiny")
    graph, base = nnx.split(model)
    base = jax.tree.map(jnp.copy, base)
    policy, opt_state = Policy(model, tokenizer, Countdown(), s), grpo.optimizer(s).init(base)
    key = jax.random.key(seed)
    for number in range(1, start + 1):
        opt_state, _ = loop.step(policy, opt_state, None, number, key)
    state = grpo.TrainState(nnx.state(model), opt_state)
    puzzles = training_puzzles(policy.task, s, start + 1)
    key = jax.random.fold_in(key, start + 1)
    out = rollout(policy, puzzles, key, group=s.group, temperature=1.0)
    rewards = score(policy.task, out, s.group)
    frozen = loop.to_batch(out, rewards, s)
    frozen = frozen._replace(logprobs=np.asarray(logprobs_of(graph, state.params, frozen)))
    settings = {name: dataclasses.replace(s, **flags) for name, flags in VARIANTS.items()}
    batches = {
        name: (loop.to_batch(out, rewards, x)._replace(logprobs=frozen.logprobs), x)
        for name, x in settings.items()
    }
    reference = logprobs_of(graph, base, frozen)
    first, _ = gradients(graph, state.params, batches, reference)
    row = {
        "seed": seed,
        "start": start,
        "variants": [*VARIANTS],
        "updates": [*UPDATES],
        "cosine": [],
        "clipped": [],
    }
    for update in range(1, max(UPDATES) + 1):
        state, _ = grpo.train_step(graph, state, None, frozen, s)
        if update in UPDATES:
            later, clipped = gradients(graph, state.params, batches, reference)
            norms = np.linalg.norm(first, axis=1) * np.linalg.norm(later, axis=1)
            cosines = (first * later).sum(1) / norms
            row["cosine"].append([round(float(x), 4) for x in cosines])
            row["clipped"].append([round(share, 4) for share in clipped])
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    for seed in range(args.seeds):
        for start in STARTS:
            if not any((row["seed"], row["start"]) == (seed, start) for row in rows):
                rows.append(measure(seed, start))
                FILE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    for start in STARTS:
        turned = np.mean([row["cosine"] for row in rows if row["start"] == start], axis=0)
        print(f"after {start} steps; columns: {', '.join(VARIANTS)}")
        for update, cosines in zip(UPDATES, turned, strict=True):
            print(f"{update} updates:", *(f"{x:+.2f}" for x in cosines))
