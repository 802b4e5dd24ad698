"""A run of GRPO: `loop.step` with evaluation, checkpoints, a clock, and a way to stop and go on.

A run that was killed goes on from its last checkpoint and gives the rows it would have given. Knows
nothing of plots, nor of what a task's puzzles are.
"""

import dataclasses
import functools
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.devices import Stopwatch
from aha_lib.loop import ROOM, reference_params, step, training_key
from aha_lib.model import lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import Settings
from aha_lib.rl import grpo, sampler
from aha_lib.run import checkpoints, session
from aha_lib.run.checkpoints import read_rows as read_rows  # for those who look at a run
from aha_lib.tasks import task as tasks
from aha_lib.tasks.rollout import Policy, held_out_panel, rollout, score, training_puzzles
from aha_lib.tasks.task import Task


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
    ended = (~out.completions.mask[:, -1]).tolist()
    for name, value in task.measures(out.texts, out.puzzles, ended).items():
        # Means are also measured in training: those of the panel have a name of their own.
        metrics[name if isinstance(value, dict) else f"heldout_{name}"] = value
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


def begin(settings: Settings, mesh, task: Task):
    """The graph, state, reference and tokenizer that a run starts from, on the devices.

    Raises ValueError where a prompt could be too long, and what `weights.load` raises.
    """
    s, (dtype, param_dtype) = settings, devices.dtypes(settings.dtype)
    model, tokenizer, _ = weights.load(
        s.model, mesh=mesh, dtype=dtype, param_dtype=dtype if s.lora else param_dtype
    )
    longest = tokenizer.encode(task.prompt(task.longest()))
    sampler.pad_left([longest], s.prompt_len, tokenizer.pad_id)
    if s.lora:
        lora.add(model, s.lora, rngs=nnx.Rngs(devices.random_key(s.seed, "adapters")))
    model.remat = s.remat
    reference = reference_params(model, s)
    graph, params = nnx.split(model)
    state = grpo.TrainState(params, grpo.optimizer(s).init(grpo.trainable(params, s.lora)[0]))
    state = jax.device_put(state, devices.shardings(state, mesh))  # Adam's scalars too
    return graph, state, reference, tokenizer


def train(settings: Settings, out: str | Path, task: Task | None = None) -> Iterator[dict]:
    """Run, or resume, the run in folder `out`; yields a row of metrics after every step.

    What is learnt is `task`, or what `settings.task` names; the folder remembers its name.

    Uses all devices, those of other hosts too (`devices.start_distributed`), which then have to
    share the folder. Step 0 measures the base. The folder gets `settings.json`, `metrics.jsonl`
    (a row a step), `rollouts.jsonl` (the held-out panel's completions at each evaluation),
    `log.txt` and `checkpoints/`, of what is trained: with adapters these alone.
    A run that was killed goes on from its last checkpoint and gives the rows it would have given.
    It saves a step and stops early, and says so in `stopped.txt`, when the session ends, when the
    folder has a file `stop`, at Ctrl-C (KeyboardInterrupt) and at SIGTERM (SystemExit).

    Raises ValueError if the folder holds a run with other settings, or preflight finds nothing to
    learn from; MemoryError or OSError if a device's memory or the disk is too small;
    FloatingPointError after three steps in a row whose gradients were not finite. Of several hosts
    each ends where one does, see `session.together`.
    """
    task = tasks.load(settings) if task is None else task
    s = dataclasses.replace(settings, task=tasks.name_of(task))
    out, ends = Path(out), session.deadline(settings.hours)
    say, stop = functools.partial(checkpoints.say, out), out / "stop"
    for change in checkpoints.claim(out, s):
        say(f"Taken over: {change}")
    track, mesh = checkpoints.tracker(s, out), devices.make_mesh(tp=s.tp)
    train_key = training_key(s)
    eval_key = devices.random_key(s.seed, "evaluation")
    with checkpoints.disk_errors(out), checkpoints.manager(out) as manager, session.together():
        with devices.use(mesh):
            graph, state, reference, tokenizer, done = _resume(s, out, mesh, manager, task)
            policy = Policy(nnx.merge(graph, state.params), tokenizer, task, s)
            opt_state = state.opt_state
            del state  # the policy's model and the optimizer's state go on from here
            checkpoints.check_room(out, _kept(policy.model, opt_state, s)[0])
            if s.preflight and done < 0:
                say(preflight(policy, devices.random_key(s.seed, "preflight")))
        rows = checkpoints.cut(out / "metrics.jsonl", done)
        checkpoints.cut(out / "rollouts.jsonl", done)
        bar = tqdm(
            range(done + 1, s.steps + 1),
            initial=done + 1,
            total=s.steps + 1,
            unit="step",
            disable=jax.process_index() > 0,
        )
        saved, longest = time.monotonic(), 0.0
        with session.signals() as seen:
            for number in bar:
                began, row = time.monotonic(), {"step": number}
                with devices.use(mesh):  # and off while the row is looked at
                    if number:
                        opt_state, row = step(policy, opt_state, reference, number, train_key)
                    if number % s.eval_every == 0 or number == s.steps:
                        own_key = jax.random.fold_in(eval_key, number)
                        measured, texts = evaluate(policy, own_key, number)
                        row |= measured
                        bar.set_postfix_str(f"held-out accuracy {row['heldout_accuracy']:.2f}")
                        checkpoints.append(out / "rollouts.jsonl", texts)
                checkpoints.append(out / "metrics.jsonl", row)
                for name, value in row.items():
                    if track and isinstance(value, int | float):
                        track(name, value, number)
                rows.append(row)
                session.check_finite(rows)
                for sign in sorted(session.signs(rows) - session.signs(rows[:-1])):
                    say(f"Step {number}: {sign}")
                if number == done + 4:  # the first ones compile
                    say(f"Step {number}: {session.outlook(rows, s.steps)}, without evaluations.")
                longest = max(longest, time.monotonic() - began) if number else 0.0
                left = ends - time.monotonic()
                interrupted, terminated, asked, late, due = session.any_host(
                    signal.SIGINT in seen,
                    signal.SIGTERM in seen or session.preempted(number),
                    stop.exists(),
                    left < 60 + 2 * longest,
                    time.monotonic() - saved > 60 * s.checkpoint_minutes,
                )
                last = interrupted or terminated or asked or late or number == s.steps
                if last or due or number % s.checkpoint_every == 0:
                    checkpoints.save(manager, number, _kept(policy.model, opt_state, s)[0], row)
                    saved = time.monotonic()
                if last and number < s.steps:
                    manager.wait_until_finished()
                    why = f"{max(left, 0) / 60:.0f} minutes left" if late else "Stopped"
                    checkpoints.stopped(
                        out,
                        f"{why}: step {number} of {s.steps} is saved. The "
                        "same command, or cell, goes on from there.",
                    )
                yield row
                if interrupted:
                    raise KeyboardInterrupt
                if terminated:
                    raise SystemExit(128 + signal.SIGTERM)
                if last:
                    return


def preflight(policy: Policy, key) -> str:
    """Sample a step's completions and say what they promise; ValueError if they teach nothing."""
    s, clock = policy.settings, Stopwatch()
    puzzles = training_puzzles(policy.task, s, 1)
    tried = rollout(policy, puzzles, key, group=s.group, temperature=s.temperature)
    clock.lap("sampling")
    return session.verdict(score(policy.task, tried, s.group), clock.laps["sampling"])


def _resume(s: Settings, out: Path, mesh, manager, task: Task, upto: int | float = math.inf):
    """As `begin`, with the state of the newest checkpoint, and its step; -1 if there is none."""
    graph, state, reference, tokenizer = begin(s, mesh, task)
    if manager.latest_step() is None:
        return graph, state, reference, tokenizer, -1
    params, rest = grpo.trainable(state.params, s.lora)
    shapes = checkpoints.shapes(_tree(params, state.opt_state))
    del state, params  # what is restored takes their place in memory
    tree, done = checkpoints.restore(manager, shapes, out, upto)
    if tree is None:
        return *begin(s, mesh, task), done
    state = grpo.TrainState(nnx.merge_state(tree["params"], rest), tree["opt_state"])
    return graph, state, reference, tokenizer, done


def trained(
    out: str | Path,
    step: int | float = math.inf,
    *,
    merged: bool = False,
    task: Task | None = None,
) -> tuple[Gemma, Tokenizer, Settings]:
    """The model of a run's newest checkpoint, up to a step, with its tokenizer and settings.

    Adapters are kept apart, as they were trained; `merged` adds them to the weights, in float32
    (see `lora.merge`). FileNotFoundError if there is no checkpoint.
    """
    said = json.loads((Path(out) / "settings.json").read_text())
    s = dataclasses.replace(Settings(**said), kl=0.0)  # without a reference
    task = tasks.load(s) if task is None else task
    mesh = devices.make_mesh(tp=s.tp)
    with devices.use(mesh), checkpoints.manager(Path(out), read_only=True) as manager:
        graph, state, _, tokenizer, done = _resume(s, Path(out), mesh, manager, task, step)
    if done < 0:
        raise FileNotFoundError(f"{out} has no checkpoint up to step {step}.")
    model = nnx.merge(graph, state.params)
    return lora.merge(model) if s.lora and merged else model, tokenizer, s


def _kept(model: Gemma, opt_state, settings: Settings) -> tuple[dict, nnx.State]:
    """What a checkpoint holds, and the parameters it can do without: the base under adapters."""
    params, rest = grpo.trainable(nnx.state(model), settings.lora)
    return _tree(params, opt_state), rest


def _tree(params: nnx.State, opt_state) -> dict:
    return {"params": params, "opt_state": opt_state}
