"""A run of GRPO: `loop.step` with evaluation, checkpoints, a clock, and a way to stop and go on.

A run that was killed goes on from its last checkpoint and gives the rows it would have given. Knows
nothing of plots, nor of what a task's puzzles are.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from aha_lib import devices
from aha_lib.devices import Stopwatch
from aha_lib.loop import ROOM, reference_params, step, training_key
from aha_lib.model import lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import Settings
from aha_lib.rl import grpo
from aha_lib.run import ahead, checkpoints, cold_start, folder, session, stop, tracker
from aha_lib.run.folder import read_rows as read_rows  # for those who look at a run
from aha_lib.run.stop import Stop
from aha_lib.tasks import task as tasks
from aha_lib.tasks.rollout import (
    Policy,
    held_out_panel,
    rollout,
    score,
    training_puzzles,
)
from aha_lib.tasks.task import Task


@dataclasses.dataclass
class Run:
    """A run between two of its steps."""

    out: Path
    policy: Policy
    opt_state: grpo.OptState
    reference: nnx.State | None  # of the KL term, see loop.reference_params
    mesh: Mesh
    manager: ocp.CheckpointManager
    rows: list[dict]
    track: tracker.Tracker
    watch: stop.Watch
    next_step: int
    saved: float = dataclasses.field(default_factory=time.monotonic)  # when it last was

    @property
    def settings(self) -> Settings:
        return self.policy.settings


def train(settings: Settings, out: str | Path, task: Task | None = None) -> Iterator[dict]:
    """Run, or resume, the run in folder `out`; yields a row of metrics after every step.

    A run whose settings name a cold start has that first, in `out/base`: its rows have `"phase":
    "cold start"`, `step` and `loss`, and GRPO starts from the model there.
    What is learnt is `task`, or what `settings.task` names; the folder remembers its name.

    Uses all devices, those of other hosts too (`devices.start_distributed`), which then have to
    share the folder. Step 0 measures the base. The folder gets `settings.json`, `metrics.jsonl`
    (a row a step), `rollouts.jsonl` (the held-out panel's completions at each evaluation),
    `log.txt`, `lock`, `base.json` where the base is needed again, and `checkpoints/`, of what is
    trained: with adapters these alone.
    A run that was killed goes on from its last checkpoint and gives the rows it would have given.
    It saves a step and stops early, and says so in `stopped.txt`, when the session ends, when the
    folder has a file `stop`, at Ctrl-C (KeyboardInterrupt) and at SIGTERM (SystemExit). What else
    ends it is in `stopped.txt` too.

    Raises ValueError if another process trains in the folder, if it holds a run with other
    settings, another base or no whole checkpoint, or preflight finds nothing to learn from;
    MemoryError or OSError if a device's memory or the disk is too small, or a checkpoint cannot be
    read; FloatingPointError after three steps in a row whose gradients were not finite. Of several
    hosts each ends where one does, see `session.fail_together`.
    """
    task = tasks.load(settings) if task is None else task
    settings = dataclasses.replace(settings, task=tasks.name_of(task))
    settings = cold_start.without_a_second(settings)
    out, deadline = Path(out), session.deadline(settings.hours)
    folder.make(out)
    with session.fail_together(), folder.hold(out):
        changes = folder.changed_settings(out, settings)
        folder.remove_marks(out)
        with folder.keep_reason(out, settings.steps), checkpoints.disk_errors(out):
            _mesh(settings)  # what cannot be is said before the cold start takes its time
            may_begin = yield from cold_start.steps(settings, out, deadline)
            if not may_begin:
                return
            with checkpoints.manager(out) as manager:
                run = resume_or_start(settings, out, task, manager, deadline)
                for change in changes:
                    folder.log(out, f"Taken over: {change}")
                yield from go_on(run)


def rows_so_far(out: Path) -> list[dict]:
    """The rows that a run's folder has, those of its cold start first; as `train` yields them."""
    return cold_start.read_rows(out) + read_rows(out / "metrics.jsonl")


def resume_or_start(
    settings: Settings,
    out: Path,
    task: Task,
    manager: ocp.CheckpointManager,
    deadline: float,
) -> Run:
    """The run in a folder as its last checkpoint left it, or at its beginning.

    The folder's files are changed last, once all has proved to be possible.
    """
    s, track = settings, tracker.start(settings, out)
    mesh = _mesh(s)
    with devices.use(mesh):
        policy, opt_state, reference, done = _restore_or_begin(s, out, task, mesh, manager)
        checkpoints.check_room(out, _kept(policy.model, opt_state, s))
        if done < s.steps:  # a finished run meets none of its programs
            ahead.compile_ahead(policy, opt_state, reference, mesh)
        if s.preflight and done < 0:
            folder.log(out, preflight(policy, devices.random_key(s.seed, "preflight")))
    folder.write_settings(out, s)
    folder.truncate_after(out / "rollouts.jsonl", done)
    rows = folder.truncate_after(out / "metrics.jsonl", done)
    watch = stop.Watch((out,), deadline)
    return Run(out, policy, opt_state, reference, mesh, manager, rows, track, watch, done + 1)


def go_on(run: Run) -> Iterator[dict]:
    """The steps that are left, each measured, kept and saved where that is due."""
    s = run.settings
    bar = session.Progress(run.next_step, s.steps + 1)
    with contextlib.closing(bar), session.catch_signals() as seen:
        for number in range(run.next_step, s.steps + 1):
            began = time.monotonic()
            with devices.use(run.mesh):  # and off while the row is looked at
                row = take_step(run, number)
                row |= evaluate_if_due(run, number)
            keep_row(run, row)
            warn_if_needed(run)
            if number:  # step 0 is none
                run.watch.took(time.monotonic() - began)
            reason = run.watch.reason(number, s.steps, seen)
            with devices.use(run.mesh):  # in which its checksum was compiled
                save_if_due(run, row, reason)
            if reason is not Stop.NOT:
                run.manager.wait_until_finished()
            run.watch.tell(reason, f"step {number} of {s.steps}")
            bar.advance(_note(row))
            yield row
            stop.leave(reason)
            if reason is not Stop.NOT:
                return


def take_step(run: Run, number: int) -> dict:
    """Update the model by a step of GRPO; its metrics. Step 0 is none: it measures the base."""
    if number == 0:
        return {"step": 0}
    key = training_key(run.settings)
    run.opt_state, row = step(run.policy, run.opt_state, run.reference, number, key)
    return row


def evaluate_if_due(run: Run, number: int) -> dict:
    """The held-out metrics, every `eval_every` steps and at the last; the texts are kept."""
    s = run.settings
    if number % s.eval_every and number != s.steps:
        return {}
    evaluation_key = devices.random_key(s.seed, "evaluation")
    metrics, texts = evaluate(run.policy, jax.random.fold_in(evaluation_key, number), number)
    folder.append(run.out / "rollouts.jsonl", texts)
    return metrics


def keep_row(run: Run, row: dict) -> None:
    """Add a step's row to the folder's, and to the tracker's."""
    if row["step"] == 1:
        # So rows after step 0 tell that there has been a checkpoint, see checkpoints.restore.
        run.manager.wait_until_finished()
    folder.append(run.out / "metrics.jsonl", row)
    run.track(row, row["step"])
    run.rows.append(row)


def warn_if_needed(run: Run) -> None:
    """Say what goes wrong since this step, and once how long it will take.

    FloatingPointError where updates are skipped again and again.
    """
    rows = run.rows
    number = rows[-1]["step"]
    session.check_finite(rows)
    for warning in sorted(session.warnings(rows) - session.warnings(rows[:-1])):
        folder.log(run.out, f"Step {number}: {warning}")
    if number == run.next_step + 3:  # the first ones compile
        left = session.estimate_time_left(rows, run.settings.steps)
        folder.log(run.out, f"Step {number}: {left}, without evaluations.")


def save_if_due(run: Run, row: dict, reason: Stop) -> None:
    """Write a checkpoint: every `checkpoint_every` steps, after so many minutes, and at the end."""
    s, number = run.settings, row["step"]
    minutes = (time.monotonic() - run.saved) / 60
    (long_ago,) = session.any_host(minutes > s.checkpoint_minutes)
    if long_ago or reason is not Stop.NOT or number % s.checkpoint_every == 0:
        checkpoints.save(run.manager, number, _kept(run.policy.model, run.opt_state, s), row)
        run.saved = time.monotonic()


def _note(row: dict) -> str:
    if "heldout_accuracy" not in row:
        return ""
    return f"held-out accuracy {row['heldout_accuracy']:.2f}"


@devices.memory_errors(ROOM)
def evaluate(policy: Policy, key, step: int) -> tuple[dict, dict]:
    """Greedy and sampled completions of the held-out panel.

    Gives the metrics (accuracies, mean length in tokens, the task's own measures; at step 0 also
    pass@1…pass@k) and the completions' texts for the record.
    """
    task, s = policy.task, policy.settings
    panel = held_out_panel(task, s)
    base = step == 0 and s.pass_k > 1
    group = s.pass_k if base else 1
    out = rollout(policy, panel, key, group=group, temperature=s.temperature)
    greedy = rollout(policy, panel, key, group=1, temperature=0.0)
    right = score(task, out, group) == 1
    greedily = score(task, greedy, 1) == 1
    metrics = {
        "heldout_accuracy": float(right.mean()),
        "heldout_greedy": float(greedily.mean()),
        "heldout_length": float(out.completions.mask.sum(1).mean()),
    }
    ended = out.completions.ended.tolist()
    for name, value in task.measures(out.texts, out.puzzles, ended).items():
        # Means are also measured in training: those of the panel have a name of their own.
        metrics[name if isinstance(value, dict) else f"heldout_{name}"] = value
    metrics |= {f"heldout_{name}": value for name, value in out.replies.items()}
    if base:
        metrics["pass_at"] = {k: pass_at_k(right, k) for k in (1, 2, 4, 8, 16) if k <= group}
    texts = {"step": step, "sampled": out.texts[::group], "greedy": greedy.texts}
    return metrics, texts


def pass_at_k(right: np.ndarray, k: int) -> float:
    """The unbiased estimate of pass@k from n ≥ k samples a row (2107.03374, eq. 1)."""
    n, wrong = right.shape[1], right.shape[1] - right.sum(1)
    miss = np.ones(len(right))
    for i in range(k):  # C(wrong, k) / C(n, k)
        miss *= np.maximum(wrong - i, 0) / (n - i)
    return float(1 - miss.mean())


def begin(settings: Settings, mesh: Mesh, task: Task):
    """The graph, state, reference and tokenizer that GRPO starts from, on the devices.

    Raises ValueError where a prompt could be too long, and what `weights.load` raises.
    """
    s, (dtype, param_dtype) = settings, devices.dtypes(settings.dtype)
    model, tokenizer, _ = weights.load(
        s.model, mesh=mesh, dtype=dtype, param_dtype=dtype if s.lora else param_dtype
    )
    longest = len(tokenizer.encode(task.prompt(task.longest())))
    if longest > s.prompt_len:
        raise ValueError(
            f"prompt_len is {s.prompt_len}, and the longest prompt has {longest} tokens: set "
            f"prompt_len={longest}."
        )
    if s.lora:
        lora.add(model, s.lora, rngs=nnx.Rngs(devices.random_key(s.seed, "adapters")))
    model.remat = s.remat
    reference = reference_params(model, s)
    graph, params = nnx.split(model)
    state = grpo.TrainState(params, grpo.optimizer(s).init(grpo.trainable(params, s.lora)[0]))
    state = jax.device_put(state, devices.shardings(state, mesh))  # Adam's scalars too
    return graph, state, reference, tokenizer


def preflight(policy: Policy, key) -> str:
    """Sample a step's completions and say what they promise; ValueError if they teach nothing."""
    s, clock = policy.settings, Stopwatch()
    puzzles = training_puzzles(policy.task, s, 1)
    tried = rollout(policy, puzzles, key, group=s.group, temperature=s.temperature)
    clock.lap("sampling")
    return session.verdict(score(policy.task, tried, s.group), clock.laps["sampling"])


def _mesh(settings: Settings) -> Mesh:
    """All devices; ValueError where `tp` does not divide them."""
    count = jax.device_count()
    if count % settings.tp:
        raise ValueError(
            f"tp is {settings.tp}, and {count} devices cannot be split by it: set tp=1."
        )
    return devices.make_mesh(tp=settings.tp)


def _restore_or_begin(
    s: Settings, out: Path, task: Task, mesh: Mesh, manager: ocp.CheckpointManager
) -> tuple[Policy, grpo.OptState, nnx.State | None, int]:
    """What a step needs, as the newest checkpoint has it, and its step; -1 if there is none."""
    model = cold_start.model_of(s, out)
    graph, state, reference, tokenizer = begin(dataclasses.replace(s, model=model), mesh, task)
    params, rest = grpo.trainable(state.params, s.lora)
    if s.lora or s.kl:  # else the base is not needed again
        checkpoints.keep_base(out, rest if s.lora else params, model)
    shapes = checkpoints.shapes(_tree(params, state.opt_state))
    del params
    if manager.latest_step() is not None:
        del state  # what is restored takes its place in memory
        tree, done = checkpoints.restore(manager, shapes, out)
        state = grpo.TrainState(nnx.merge_state(tree["params"], rest), tree["opt_state"])
    else:
        checkpoints.check_nothing_is_lost(out, {})
        done = -1
    policy = Policy(nnx.merge(graph, state.params), tokenizer, task, s)
    return policy, state.opt_state, reference, done


def trained(
    out: str | Path,
    step: int | float = math.inf,
    *,
    merged: bool = False,
    task: Task | None = None,
) -> tuple[Gemma, Tokenizer, Settings]:
    """The model of a run's newest checkpoint, up to a step, with its tokenizer and settings.

    On the devices that are there, whatever the run had. Changes nothing: the run may be going on.
    Adapters are kept apart, as they were trained; `merged` adds them to the weights, in float32
    (see `lora.merge`). FileNotFoundError if there is no run, or no checkpoint; ValueError if none
    is whole, or the base is another now.
    """
    out = Path(out)
    if cold_start.is_going_on(out):
        raise FileNotFoundError(
            f"The run in {out} is at its cold start: it has no checkpoint of GRPO yet."
        )
    s = dataclasses.replace(folder.read_settings(out), kl=0.0)  # without a reference
    task = tasks.load(s) if task is None else task
    model = cold_start.model_of(s, out)
    mesh = devices.make_mesh(tp=s.tp if jax.device_count() % s.tp == 0 else 1)
    with devices.use(mesh):
        graph, state, _, tokenizer = begin(dataclasses.replace(s, model=model), mesh, task)
        params, rest = grpo.trainable(state.params, s.lora)
        if s.lora:
            checkpoints.check_base(out, rest, model)
        shapes = checkpoints.shapes(_tree(params, state.opt_state))
        del state, params  # what is restored takes their place in memory
        found = checkpoints.look(out, shapes, step)
    if found.damaged and found.tree is None:
        raise ValueError(f"{out} has no whole checkpoint up to step {step}: {found.damaged}.")
    if found.tree is None:
        raise FileNotFoundError(f"{out} has no checkpoint up to step {step}.")
    model = nnx.merge(graph, nnx.merge_state(found.tree["params"], rest))
    return lora.merge(model) if s.lora and merged else model, tokenizer, s


def _kept(model: Gemma, opt_state: grpo.OptState, settings: Settings) -> dict:
    """What a checkpoint holds: with adapters not the base under them."""
    return _tree(grpo.trainable(nnx.state(model), settings.lora)[0], opt_state)


def _tree(params: nnx.State, opt_state: grpo.OptState) -> dict:
    return {"params": params, "opt_state": opt_state}
