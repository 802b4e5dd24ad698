"""Tunix on the fixed work of ../peers.py: a JSON line a step. Run by its own environment's Python.

`python with_tunix.py fixed STEPS SEED`, with this repository on PYTHONPATH for the tiny shape and
its vocabulary: a random Gemma 3, 64 rows at a time.
"""

import json
import random
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.gemma3 import model as gemma3
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout

from aha_lib.model.tokenizer import TINY_WORDS
from aha_lib.presets import MODELS, SETTINGS

steps, seed = int(sys.argv[2]), int(sys.argv[3])
c, s = MODELS["tiny"], SETTINGS["tiny"]
words = ["<pad>", "<eos>", "<bos>", "<unk>", *TINY_WORDS]
ids = {word: i for i, word in enumerate(words)}


class Words:
    """The tiny vocabulary as Tunix wants a tokenizer; no token ends a completion."""

    def encode(self, text, **_):
        return [ids.get(word, 3) for word in text.split()]

    def decode(self, tokens, **_):
        return " ".join(words[int(i)] for i in tokens)

    def bos_id(self):
        return 2

    def eos_id(self):
        return -1

    def pad_id(self):
        return 0


shape = gemma3.ModelConfig(
    num_layers=c.layers,
    num_embed=len(words),
    embed_dim=c.width,
    hidden_dim=c.ff,
    num_heads=c.heads,
    head_dim=c.head_dim,
    num_kv_heads=c.kv_heads,
    sliding_window_size=c.window,
    param_dtype=jnp.float32,
)
mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
with mesh:
    actor = gemma3.Gemma3(shape, rngs=nnx.Rngs(0))
roles = rl_cluster.Role
cluster = rl_cluster.RLCluster(
    actor=actor,
    reference=None,
    tokenizer=Words(),
    cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh={role: mesh for role in (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT)},
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(s.learning_rate),
            eval_every_n_steps=1000,
            max_steps=steps,
            mini_batch_size=s.prompts,
            train_micro_batch_size=s.prompts // 4,
            rollout_micro_batch_size=s.prompts,
            compute_logps_micro_batch_size=s.prompts,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=120,
            max_prompt_length=s.prompt_len,
            kv_cache_size=136,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[100_000],
        ),
    ),
)
generate, die = cluster.generate, random.Random(seed)
clock = {"last": time.perf_counter(), "sample": 0.0}


def timed_generate(*args, **kwargs):
    start = time.perf_counter()
    out = generate(*args, **kwargs)
    jax.block_until_ready(jax.tree.leaves(out.tokens))
    clock["sample"] += time.perf_counter() - start
    return out


def reward(prompts, completions, **_):
    """Called once a step, after sampling: a line for the step before."""
    now, sample = time.perf_counter(), clock["sample"]
    whole = now - clock["last"]
    print(json.dumps({"step": whole, "sample": sample, "update": whole - sample}), flush=True)
    clock.update(last=now, sample=0.0)
    return [die.random() for _ in completions]


cluster.generate = timed_generate
learner = GRPOLearner(
    rl_cluster=cluster,
    reward_fns=reward,
    algo_config=GRPOConfig(num_generations=s.group, num_iterations=1, beta=0.0, epsilon=0.2),
)
puzzle = lambda: " ".join(str(die.randint(1, 20)) for _ in range(3)) + f" = {die.randint(10, 99)} :"  # noqa: E731
learner.train([{"prompts": np.array([puzzle() for _ in range(s.prompts)])} for _ in range(steps)])
