"""Supervised training on worked text: the tiny base from nothing, or a cold start of real Gemma.

"Cold start" is DeepSeek-R1's word (2501.12948, section 2.3) for the few worked examples that a base
sees before it is rewarded. On the same mesh, with the same shardings, as GRPO, but knows nothing of
rewards. The shipped base, and a cold start by itself:

    aha pretrain --preset tiny --out aha_lib/data/tiny
    aha pretrain --preset gemma3-270m-cpu --out runs/cold
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from aha_lib import devices
from aha_lib.model import export, lora, vocabulary, weights
from aha_lib.model.finite import refuse_nonfinite
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, Pretraining
from aha_lib.rl import grpo
from aha_lib.run import checkpoints, cli, folder, session, stop
from aha_lib.tasks import corpus

ROOM = "set rows, or row_len, to less, or remat=True"  # advice where a device's memory is full


def begin(settings: Pretraining, mesh: Mesh | None = None) -> tuple[Gemma, Tokenizer]:
    """The model that the settings start from, with its adapters, and its tokenizer.

    Its arrays are sharded over `mesh` (without one: on the first device). Raises what
    `weights.load` raises.
    """
    s, mesh = settings, mesh or devices.make_mesh(jax.devices()[:1])
    dtype, param_dtype = devices.dtypes(s.dtype)
    if not s.model:
        return _random_model(s, mesh, dtype)
    kept = dtype if s.lora else param_dtype
    model, tokenizer, _ = weights.load(s.model, mesh=mesh, dtype=dtype, param_dtype=kept)
    if s.cut:
        used = set(corpus.pieces_used(s, tokenizer))
        ids = sorted(used.union(tokenizer.special_ids))
        model, tokenizer = vocabulary.cut(model, ids), tokenizer.subset(ids)
        _spread(model, mesh)  # an embedding of another size may be split otherwise
    if s.adapters:
        lora.load(model, s.adapters)
        refuse_nonfinite(model, s.adapters)
    elif s.lora:
        # A tag of its own: adapters of GRPO on the same seed begin elsewhere.
        key = devices.random_key(s.seed, "cold-start adapters")
        lora.add(model, s.lora, rngs=nnx.Rngs(key))
    model.remat = s.remat
    return model, tokenizer


def _random_model(settings: Pretraining, mesh: Mesh, dtype) -> tuple[Gemma, Tokenizer]:
    """A model of a shape and language of its own."""
    rngs = nnx.Rngs(devices.random_key(settings.seed, "tiny model"))
    tokenizer = Tokenizer(tiny_model(WORDS[settings.shape]))
    model = Gemma(MODELS[settings.shape], rngs=rngs, dtype=dtype)
    if settings.waves:
        vocabulary.add_waves(model, tokenizer.numbers())
    _spread(model, mesh)
    model.remat = settings.remat
    return model, tokenizer


def _spread(model: Gemma, mesh: Mesh) -> None:
    """Put every array of a model where the mesh wants it."""
    state = nnx.state(model)
    nnx.update(model, jax.device_put(state, devices.shardings(state, mesh)))


class Update(NamedTuple):
    """What of the settings an update needs: arguments of its program, which fits all of them."""

    rate: Float[Array | np.ndarray, ""] | float  # of learning
    weight_decay: Float[Array, ""] | float

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW at this rate, after clipping by the global norm."""
        # As a schedule, so that the state counts the updates.
        adamw = optax.adamw(lambda count: self.rate, b2=0.95, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(1.0), adamw)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def learning_rate(peak: float, warmup: int, steps: int, count: Int[Array, ""]) -> Float[Array, ""]:
    """That of the update after `count` others: a linear warm-up from 0, then a cosine to 0.

    A program of one number: the only one that is compiled anew for other `steps`.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))
    return schedule(count)


class TrainState(NamedTuple):
    """What a step changes: the trained parameters, and AdamW's moments of them."""

    params: nnx.State
    moments: optax.OptState


def begin_state(params: nnx.State) -> TrainState:
    """Of parameters that no step has changed yet."""
    return TrainState(params, Update(0.0, 0.0).optimizer().init(params))


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="state")
def train_step(
    graph,
    state: TrainState,
    rest: nnx.State,
    batch: dict[str, Num[Array | np.ndarray, "B T"]],
    update: Update,
) -> tuple[TrainState, Float[Array, ""], Bool[Array, ""]]:
    """One AdamW step on the mean next-token loss (nats) over positions of weight 1.

    `rest`, the base under adapters, is not trained. `batch` is from `corpus.rows`; on a mesh its
    rows are spread over `fsdp`. Gives the new state, the loss before the step, and whether loss and
    gradient were finite: where not, the state stays as it was.
    """
    batch = devices.shard_batch(batch)

    def loss_of(params):
        model = nnx.merge(graph, params, rest)
        hidden = model.hidden(batch["tokens"], batch["positions"], batch["segments"])
        logprobs, _ = model.logprobs(hidden[:, :-1], batch["tokens"][:, 1:])
        weights = batch["weights"][:, 1:]
        return -jnp.sum(logprobs * weights) / jnp.sum(weights)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    updates, moments = update.optimizer().update(grads, state.moments, state.params)
    stepped = TrainState(optax.apply_updates(state.params, updates), moments)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
    return state, loss, finite


def pretrain(settings: Pretraining, out: str | Path) -> Iterator[dict]:
    """Train, or go on, in folder `out`; yields a row (`step`, `loss` in nats) after every step.

    Uses all devices, those of other hosts too, which then have to share the folder; `step_seconds`
    is how long the step took. The folder gets `settings.json`, `metrics.jsonl` and `checkpoints/`
    of what is trained; at the end the model, adapters merged, as `weights.load` reads it,
    `adapters.safetensors` if there are any, and `pretraining.json`. A run that was killed goes on
    from its last checkpoint and gives the rows it would have given. It stops early as `train` does.

    Raises ValueError if another process trains in the folder, or it holds a run with other
    settings, another base or no whole checkpoint; MemoryError or OSError if a device's memory or
    the disk is too small; FloatingPointError after three steps in a row whose gradients were not
    finite: none of them is applied, so what the checkpoints hold stays good.
    """
    out = Path(out)
    watch = stop.Watch((out,), session.deadline(settings.hours))
    folder.make(out)
    with session.fail_together(), folder.hold(out):
        folder.changed_settings(out, settings)
        folder.remove_marks(out)
        with folder.keep_reason(out), checkpoints.disk_errors(out):
            yield from learn(settings, out, watch)


def is_finished(out: Path) -> bool:
    """Whether the training in a folder has come to its end, and its model is there."""
    return (out / "pretraining.json").exists() and (out / "model.safetensors").exists()


@dataclasses.dataclass
class _Training:
    """Supervised training between two of its steps."""

    settings: Pretraining
    out: Path
    mesh: Mesh
    manager: ocp.CheckpointManager
    graph: nnx.GraphDef
    rest: nnx.State  # what is not trained
    tokenizer: Tokenizer
    state: TrainState
    document: int  # the first that it has not learnt
    rows: list[dict]
    done: int  # steps
    batch: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # of the next step
    following: int = 0  # the first document after those of the batch


def learn(settings: Pretraining, out: Path, watch: stop.Watch) -> Iterator[dict]:
    """The steps that are left in a folder that is held, and the model at their end.

    Yields the rows of `pretrain`, and raises what it raises. Returns early, without a model, where
    `watch` ends it.
    """
    s = settings
    with checkpoints.manager(out) as manager:
        run = _resume_or_start(s, out, manager)
        first = run.done + 1
        bar = session.Progress(run.done, s.steps, "supervised")
        with contextlib.closing(bar), session.catch_signals() as seen:
            for number in range(first, s.steps + 1):
                row = _take_step(run, number)
                session.check_finite(run.rows)
                watch.took(row["step_seconds"])
                reason = watch.reason(number, s.steps, seen)
                if number % s.checkpoint_every == 0 or reason is not stop.Stop.NOT:
                    checkpoints.save(manager, number, _kept_tree(run), row)
                    manager.wait_until_finished()  # before the arrays are donated
                if number == first + 3:  # the first ones compile
                    left = session.estimate_time_left(run.rows, s.steps)
                    folder.log(out, f"Supervised step {number}: {left}.")
                if reason is not stop.Stop.FINISHED:  # else a file `stop` is for what follows
                    watch.tell(reason, f"supervised step {number} of {s.steps}")
                bar.advance(f"loss {row['loss']:.3f}")
                yield row
                stop.leave(reason)
                if reason not in (stop.Stop.NOT, stop.Stop.FINISHED):
                    return
    with devices.use(run.mesh):
        model = nnx.merge(run.graph, run.state.params, run.rest)
        _write_model(model, run.tokenizer, s, out)
    _write_summary(run.rows, s, out)
    session.any_host(True)  # the other hosts wait: from here on the model is there


def trained_kind(settings: Pretraining):
    """The kind of parameters that the steps change."""
    return nnx.LoRAParam if settings.lora else nnx.Param


def _resume_or_start(s: Pretraining, out: Path, manager: ocp.CheckpointManager) -> _Training:
    """The training in a folder as its last checkpoint left it, or at its beginning.

    The folder's files are changed last, once all has proved to be possible.
    """
    mesh = devices.make_mesh()
    with devices.use(mesh):
        model, tokenizer = begin(s, mesh)
        graph, params, rest = nnx.split(model, trained_kind(s), ...)
        del model  # it shares its arrays with `params`, which may not be needed
        if s.lora:
            checkpoints.keep_base(out, rest, s.model)
        state = begin_state(params)
        # Adam's scalars too, where the steps leave them: else the second one would compile anew.
        state = jax.device_put(state, devices.shardings(state, mesh))
        run = _Training(s, out, mesh, manager, graph, rest, tokenizer, state, 0, [], 0)
        in_float32 = 4 * sum(x.size for x in jax.tree.leaves((state.params, rest)))
        checkpoints.check_room(out, _kept_tree(run), model=in_float32)
        del params, state
        _restore(run)
        run.batch, run.following = _batch(run, run.document)
    folder.write_settings(out, s)
    run.rows = folder.truncate_after(out / "metrics.jsonl", run.done)
    return run


def _restore(run: _Training) -> None:
    """Give the training the state of the newest whole checkpoint, if there is one."""
    like = checkpoints.shapes(_kept_tree(run))
    if run.manager.latest_step() is not None:
        run.state = None  # what is restored takes its place in memory
    tree, done = checkpoints.restore(
        run.manager, like, run.out, first=run.settings.checkpoint_every
    )
    if tree:
        run.state = TrainState(tree["params"], tree["moments"])
        run.document = int(tree["document"])
        run.done = done


def _take_step(run: _Training, number: int) -> dict:
    """One step on the batch that is ready; while it goes on the host writes the next documents."""
    s, began = run.settings, time.monotonic()
    with devices.memory_errors(ROOM), devices.use(run.mesh):
        count = grpo.updates_done(run.state.moments)
        rate = np.float32(learning_rate(s.learning_rate, s.warmup, s.steps, count))
        update = Update(rate, s.weight_decay)
        run.state, loss, is_finite = train_step(run.graph, run.state, run.rest, run.batch, update)
        run.document = run.following
        run.batch, run.following = _batch(run, run.following)
        row = {"step": number, "loss": float(loss)}
    if not is_finite:
        row["skipped_updates"] = 1
    row["step_seconds"] = time.monotonic() - began
    run.rows.append(row)
    folder.append(run.out / "metrics.jsonl", row)
    return row


def _batch(run: _Training, document: int) -> tuple[dict[str, np.ndarray], int]:
    """The rows of a step from a document on, and the first document after them.

    With blank rows, which have no weight, where the devices do not share the others evenly.
    """
    s = run.settings
    rows, following = corpus.rows(s, document, s.rows, run.tokenizer)
    blank = devices.whole_shares(s.rows, "rows") - s.rows
    return {name: np.pad(x, ((0, blank), (0, 0))) for name, x in rows.items()}, following


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


def _kept_tree(run: _Training) -> dict:
    """What a checkpoint holds: the state, and the first document that it has not learnt."""
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    document = jax.device_put(np.int32(run.document), everywhere)
    return {"params": run.state.params, "moments": run.state.moments, "document": document}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train in a folder, or go on there.

    Its statuses are those of `aha train`, see `commands.train`.
    """
    settings, out = cli.parse(argv, PRETRAINING, "aha pretrain")
    devices.compilation_cache()
    again = f"To go on: the same command, with --out {out}"
    try:
        devices.start_distributed()
        devices.available()
        with contextlib.closing(pretrain(settings, out)) as run:
            for _ in run:
                pass
    except KeyboardInterrupt:
        cli.leave(again, status=130)
    except (ValueError, OSError, RuntimeError, MemoryError, FloatingPointError) as error:
        cli.leave(str(error))
    if folder.why_stopped(out):  # by the clock, or by the file `stop`
        cli.leave(again, status=session.UNFINISHED)


if __name__ == "__main__":
    devices.keep_memory()
    main()
