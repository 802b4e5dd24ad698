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
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Num
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import export, lora, vocabulary, weights
from aha_lib.model.finite import refuse_nonfinite
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, Pretraining
from aha_lib.run import checkpoints, cli, folder, session
from aha_lib.tasks import corpus

ROOM = "set rows, or row_len, to less, or remat=True"  # advice where a device's memory is full


def begin(settings: Pretraining) -> tuple[Gemma, Tokenizer]:
    """The model that the settings start from, with its adapters, and its tokenizer.

    Raises what `weights.load` raises.
    """
    s = settings
    dtype, param_dtype = devices.dtypes(s.dtype)
    if not s.model:
        return _random_model(s, dtype)
    kept = dtype if s.lora else param_dtype
    model, tokenizer, _ = weights.load(s.model, dtype=dtype, param_dtype=kept)
    if s.cut:
        used = set(corpus.pieces_used(s, tokenizer))
        ids = sorted(used.union(tokenizer.special_ids))
        model, tokenizer = vocabulary.cut(model, ids), tokenizer.subset(ids)
    if s.adapters:
        lora.load(model, s.adapters)
        refuse_nonfinite(model, s.adapters)
    elif s.lora:
        # A tag of its own: adapters of GRPO on the same seed begin elsewhere.
        key = devices.random_key(s.seed, "cold-start adapters")
        lora.add(model, s.lora, rngs=nnx.Rngs(key))
    model.remat = s.remat
    return model, tokenizer


def _random_model(settings: Pretraining, dtype) -> tuple[Gemma, Tokenizer]:
    """A model of a shape and language of its own."""
    rngs = nnx.Rngs(devices.random_key(settings.seed, "tiny model"))
    tokenizer = Tokenizer(tiny_model(WORDS[settings.shape]))
    model = Gemma(MODELS[settings.shape], rngs=rngs, dtype=dtype)
    if settings.waves:
        vocabulary.add_waves(model, tokenizer.numbers())
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


class TrainState(NamedTuple):
    """What a step changes: the trained parameters, and AdamW's moments of them."""

    params: nnx.State
    moments: optax.OptState


@functools.partial(jax.jit, static_argnames=("graph", "settings"), donate_argnames="state")
def train_step(
    graph,
    state: TrainState,
    rest: nnx.State,
    batch: dict[str, Num[Array, "B T"]],
    settings: Pretraining,
) -> tuple[TrainState, Float[Array, ""], Bool[Array, ""]]:
    """One AdamW step on the mean next-token loss (nats) over positions of weight 1.

    `rest`, the base under adapters, is not trained. `batch` is from `corpus.rows`. Gives the new
    state, the loss before the step, and whether loss and gradient were finite: where not, the
    state stays as it was.
    """

    def loss_of(params):
        model = nnx.merge(graph, params, rest)
        hidden = model.hidden(batch["tokens"], batch["positions"], batch["segments"])
        logprobs, _ = model.logprobs(hidden[:, :-1], batch["tokens"][:, 1:])
        weights = batch["weights"][:, 1:]
        return -jnp.sum(logprobs * weights) / jnp.sum(weights)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    updates, moments = optimizer(settings).update(grads, state.moments, state.params)
    stepped = TrainState(optax.apply_updates(state.params, updates), moments)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
    return state, loss, finite


def pretrain(settings: Pretraining, out: str | Path) -> Iterator[dict]:
    """Train, or go on, in folder `out`; yields a row (`step`, `loss` in nats) after every step.

    The folder gets `settings.json`, `metrics.jsonl` and `checkpoints/` of what is trained; at the
    end the model, adapters merged, as `weights.load` reads it, `adapters.safetensors` if there are
    any, and `pretraining.json`. A run that was killed goes on from its last checkpoint and gives
    the rows it would have given.

    Raises ValueError if another process trains in the folder, or it holds a run with other
    settings, another base or no whole checkpoint; MemoryError if a device's memory is too small;
    FloatingPointError after three steps in a row whose gradients were not finite: none of them is
    applied, so what the checkpoints hold stays good.
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
    tree = _kept_tree(TrainState(params, optimizer(s).init(params)), 0)
    # Where the steps leave it: else the second one would compile anew.
    tree = jax.device_put(tree, devices.shardings(tree, devices.make_mesh(jax.devices()[:1])))
    with checkpoints.manager(out) as manager:
        if s.lora:
            checkpoints.keep_base(out, rest, s.model)
        like = checkpoints.shapes(tree)
        kept, done = checkpoints.restore(manager, like, out, first=s.checkpoint_every)
        tree = kept or tree
        folder.write_settings(out, s)
        rows = folder.truncate_after(out / "metrics.jsonl", done)
        state = TrainState(tree["params"], tree["moments"])
        batch, document = corpus.rows(s, int(tree["document"]), s.rows, tokenizer)
        bar = _progress(max(done, 0), s.steps)
        for step in bar:
            with devices.memory_errors(ROOM):
                state, loss, is_finite = train_step(graph, state, rest, batch, s)
                not_learnt = document
                # While the device is at work the host writes the next documents.
                batch, document = corpus.rows(s, not_learnt, s.rows, tokenizer)
                row = {"step": step + 1, "loss": float(loss)}
            if not is_finite:
                row["skipped_updates"] = 1
            rows.append(row)
            folder.append(out / "metrics.jsonl", row)
            session.check_finite(rows)
            if (step + 1) % s.checkpoint_every == 0 or step + 1 == s.steps:
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                checkpoints.save(manager, step + 1, _kept_tree(state, not_learnt), row)
                manager.wait_until_finished()  # before the arrays are donated
            yield row
    model = nnx.merge(graph, state.params, rest)
    _write_model(model, tokenizer, s, out)
    _write_summary(rows, s, out)


def _progress(first: int, steps: int) -> tqdm:
    """The numbers of the steps that are left, from 0, with a bar."""
    return tqdm(range(first, steps), initial=first, total=steps, unit="step", mininterval=5)


def _write_model(model: Gemma, tokenizer: Tokenizer, settings: Pretraining, out: Path) -> None:
    """The model as `weights.load` reads it, and its adapters; ValueError if it holds NaN."""
    refuse_nonfinite(model, out)
    if settings.lora:
        lora.save(model, out / "adapters.safetensors")
        model = lora.merge(model)
    export.save_hf(model, out, tokenizer)


def _write_summary(rows: list[dict], settings: Pretraining, out: Path) -> None:
    """What the base was made by: settings, the corpus' fingerprint, first and last losses."""
    losses = [row["loss"] for row in rows]
    summary = {
        "settings": dataclasses.asdict(settings),
        "corpus": corpus.fingerprint(settings),
        "first_losses": losses[:20],
    }
    if losses:
        summary["last_loss"] = float(np.mean(losses[-100:]))
    folder.write(out / "pretraining.json", json.dumps(summary, indent=2) + "\n")


def _kept_tree(state: TrainState, document: int) -> dict:
    """What a checkpoint holds: the state, and the first document that it has not learnt."""
    return {"params": state.params, "moments": state.moments, "document": jnp.int32(document)}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train in a folder, or go on there; bad settings end it with status 2."""
    settings, out = cli.parse(argv, PRETRAINING, "aha pretrain")
    devices.compilation_cache()
    try:
        devices.available()
        with closing(pretrain(settings, out)) as run:
            for _ in run:
                pass
    except KeyboardInterrupt:
        cli.leave(f"To go on: the same command, with --out {out}", status=130)
    except (ValueError, OSError, RuntimeError, MemoryError, FloatingPointError) as error:
        cli.leave(str(error))


if __name__ == "__main__":
    devices.keep_memory()
    main()
