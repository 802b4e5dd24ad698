"""Supervised training on worked text: the tiny base from nothing, or a cold start of real Gemma.

"Cold start" is DeepSeek-R1's word (2501.12948, section 2.3) for the few worked examples that a base
sees before it is rewarded. Knows nothing of rewards or GRPO. The shipped base, and one for GRPO to
start from:

    aha pretrain --preset tiny --out aha_lib/data/tiny
    aha pretrain --preset gemma3-270m-cpu --out runs/gemma3-270m-cpu/base
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import lora, vocabulary, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, Pretraining
from aha_lib.run import checkpoints, cli, folder
from aha_lib.tasks import corpus


def begin(settings: Pretraining) -> tuple[Gemma, Tokenizer]:
    """The model that the settings start from, with its adapters, and its tokenizer.

    Raises what `weights.load` raises.
    """
    s = settings
    dtype, param_dtype = devices.dtypes(s.dtype)
    if not s.model:
        rngs = nnx.Rngs(devices.random_key(s.seed, "tiny model"))
        return Gemma(MODELS["tiny"], rngs=rngs, dtype=dtype), Tokenizer(tiny_model())
    kept = dtype if s.lora else param_dtype
    model, tokenizer, _ = weights.load(s.model, dtype=dtype, param_dtype=kept)
    if s.cut:
        used = set(corpus.pieces_used(s, tokenizer))
        ids = sorted(used.union(tokenizer.special_ids))
        model, tokenizer = vocabulary.cut(model, ids), tokenizer.subset(ids)
    if s.adapters:
        lora.load(model, s.adapters)
    elif s.lora:
        # A tag of its own: adapters of GRPO on the same seed begin elsewhere.
        key = devices.random_key(s.seed, "cold-start adapters")
        lora.add(model, s.lora, rngs=nnx.Rngs(key))
    model.remat = s.remat
    return model, tokenizer


def optimizer(settings: Pretraining) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; linear warm-up, then a cosine to 0."""
    s = settings
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, s.learning_rate, s.warmup, max(s.steps, s.warmup + 1)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=s.weight_decay)
    )


@functools.partial(jax.jit, static_argnames=("graph", "settings"), donate_argnums=(1, 3))
def train_step(
    graph,
    params,
    rest,
    moments,
    tokens: Int[Array, "B T"],
    positions,
    segments,
    weights: Float[Array, "B T"],
    settings: Pretraining,
):
    """One AdamW step on the mean next-token loss (nats) over positions of weight 1.

    `params` are trained, `rest` (the base under adapters) are not.
    """

    def loss(params):
        model = nnx.merge(graph, params, rest)
        hidden = model.hidden(tokens, positions, segments)
        logprobs, _ = model.logprobs(hidden[:, :-1], tokens[:, 1:])
        return -jnp.sum(logprobs * weights[:, 1:]) / jnp.sum(weights[:, 1:])

    value, grads = jax.value_and_grad(loss)(params)
    updates, moments = optimizer(settings).update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, value


def pretrain(settings: Pretraining, out: str | Path) -> Iterator[dict]:
    """Train, or go on, in folder `out`; yields a row (`step`, `loss` in nats) after every step.

    The folder gets `settings.json`, `metrics.jsonl` and `checkpoints/` of what is trained; at the
    end the model, adapters merged, as `weights.load` reads it, `adapters.safetensors` if there are
    any, and `pretraining.json`. A run that was killed goes on from its last checkpoint and gives
    the rows it would have given. Raises ValueError if another process trains in the folder, or it
    holds a run with other settings, another base or no whole checkpoint.
    """
    out = Path(out)
    folder.make(out)
    with folder.hold(out):
        folder.changed_settings(out, settings)
        folder.remove_marks(out)
        with folder.keep_reason(out), checkpoints.disk_errors(out):
            yield from _resume_or_start(settings, out)


def _resume_or_start(s: Pretraining, out: Path) -> Iterator[dict]:
    """The steps that are left, and the model at their end; the folder is this run's alone."""
    model, tokenizer = begin(s)
    graph, params, rest = nnx.split(model, nnx.LoRAParam if s.lora else nnx.Param, ...)
    tree = {"params": params, "moments": optimizer(s).init(params), "document": jnp.int32(0)}
    # Where the steps leave it: else the second one would compile anew.
    tree = jax.device_put(tree, devices.shardings(tree, devices.make_mesh(jax.devices()[:1])))
    with checkpoints.manager(out) as manager:
        if s.lora:
            checkpoints.keep_base(out, rest, s.model)
        like = checkpoints.shapes(tree)
        kept, done = checkpoints.restore(manager, like, out, first=s.checkpoint_every)
        folder.write_settings(out, s)
        params, moments, index = map((kept or tree).get, ("params", "moments", "document"))
        index = int(index)
        rows = folder.truncate_after(out / "metrics.jsonl", done)
        bar = tqdm(
            range(max(done, 0), s.steps),
            initial=max(done, 0),
            total=s.steps,
            unit="step",
            mininterval=5,
        )
        batch, index = corpus.rows(s, index, s.rows, tokenizer)
        for step in bar:
            params, moments, loss = train_step(graph, params, rest, moments, **batch, settings=s)
            learnt = index
            batch, index = corpus.rows(s, learnt, s.rows, tokenizer)  # while the device is at work
            row = {"step": step + 1, "loss": float(loss)}
            rows.append(row)
            folder.append(out / "metrics.jsonl", row)
            if (step + 1) % s.checkpoint_every == 0 or step + 1 == s.steps:
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                tree = {"params": params, "moments": moments, "document": jnp.int32(learnt)}
                checkpoints.save(manager, step + 1, tree, row)
                manager.wait_until_finished()  # before the arrays are donated
            yield row
    model = nnx.merge(graph, params, rest)
    if s.lora:
        lora.save(model, out / "adapters.safetensors")
    weights.save_hf(lora.merge(model) if s.lora else model, out, tokenizer)
    losses = [row["loss"] for row in rows]
    record = {
        "settings": dataclasses.asdict(s),
        "corpus": corpus.fingerprint(s),
        "first_losses": losses[:20],
    }
    if losses:
        record["last_loss"] = float(np.mean(losses[-100:]))
    folder.write(out / "pretraining.json", json.dumps(record, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train in a folder, or go on there; bad settings end it with status 2."""
    settings, out = cli.parse(argv, PRETRAINING, "aha pretrain")
    devices.compilation_cache()
    try:
        devices.available()
        with closing(pretrain(settings, out)) as run:
            for _ in run:
                pass
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    devices.keep_memory()
    main()
