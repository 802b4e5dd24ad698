"""The training loop: what a step is fed, what is measured, when it stops.

A step is a function of (state, step number): its puzzles and random keys are folded from the seed
and the number, so that a resumed run is the same run. Joins the text side (puzzles, rewards,
traces) to the array side (sampler, grpo); knows nothing of plots.
"""

import dataclasses
import functools
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PUZZLES, Settings
from aha_lib.rl import grpo, sampler
from aha_lib.run import checkpoints, session
from aha_lib.run.checkpoints import read_rows as read_rows  # for those who look at a run
from aha_lib.tasks import countdown, traces

ROOM = "sampling, lower prompts or set gather=False; updating, lower micro_batch; or set lora=16"
PANEL_SEED = 0  # the held-out panel is the same for every run, whatever its seed


def puzzles(settings: Settings, step: int, draw: int = 0) -> list[countdown.Puzzle]:
    """The training puzzles of step 1, 2, …; those of step 0 are the held-out panel.

    No puzzle's index is used by two steps, or by two draws of a step (see `Settings.refills`).
    """
    s, ranges = settings, PUZZLES[settings.puzzles]
    if step == 0:
        indices = range(s.eval_puzzles)
        return [countdown.generate(PANEL_SEED, i, **ranges, held_out=True) for i in indices]
    first = (step - 1 + draw * s.steps) * s.prompts
    return [countdown.generate(s.seed, i, **ranges) for i in range(first, first + s.prompts)]


def widest(settings: Settings) -> countdown.Puzzle:
    """The puzzle with the longest prompt that the settings' ranges allow."""
    ranges = PUZZLES[settings.puzzles]
    numbers = (ranges["high"],) * int(np.max(ranges["numbers"]))
    return countdown.Puzzle(numbers, ranges["target_high"])


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Puzzles and what the model wrote for them, as arrays and as text, a row a completion."""

    puzzles: list[countdown.Puzzle]
    prompts: np.ndarray
    valid: np.ndarray
    completions: sampler.Completions
    texts: list[str]
    seconds: float


def rollout(
    model,
    tokenizer: Tokenizer,
    puzzles: Sequence[countdown.Puzzle],
    key,
    settings: Settings,
    *,
    group: int,
    temperature: float,
) -> Rollout:
    """Sample `group` completions of every puzzle, as many rows at a time as in a training step."""
    start, s = time.perf_counter(), settings
    ids = [tokenizer.encode(countdown.prompt(puzzle, s.template)) for puzzle in puzzles]
    prompts, valid = sampler.pad_left(ids, s.prompt_len, tokenizer.pad_id)
    at_a_time = max(1, s.prompts * s.group // group)
    parts = [
        sampler.sample(
            model,
            prompts[i : i + at_a_time],
            valid[i : i + at_a_time],
            jax.random.fold_in(key, i),
            group=group,
            length=s.completion_len,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            temperature=temperature,
            gather=s.gather,
        )
        for i in range(0, len(puzzles), at_a_time)
    ]
    completions = sampler.Completions(*map(np.concatenate, zip(*parts, strict=True)))
    texts = [
        tokenizer.decode(row[mask])
        for row, mask in zip(completions.tokens, completions.mask, strict=True)
    ]
    each = [puzzle for puzzle in puzzles for _ in range(group)]
    prompts, valid = np.repeat(prompts, group, axis=0), np.repeat(valid, group, axis=0)
    return Rollout(each, prompts, valid, completions, texts, time.perf_counter() - start)


@devices.memory_errors(ROOM)
def evaluate(model, tokenizer, settings: Settings, key, step: int) -> tuple[dict, dict]:
    """Greedy and sampled completions of the held-out panel.

    Gives the metrics (accuracies, mean length in tokens, backtracks per completion, outcomes and
    styles as counts; at step 0 also pass@1…pass@k) and the completions' texts for the record.
    """
    panel = puzzles(settings, 0)
    base = step == 0 and settings.pass_k > 1
    group = settings.pass_k if base else 1
    out = rollout(
        model, tokenizer, panel, key, settings, group=group, temperature=settings.temperature
    )
    greedy = rollout(model, tokenizer, panel, key, settings, group=1, temperature=0.0)
    parsed = [traces.parse(*pair) for pair in zip(out.texts, out.puzzles, strict=True)]
    ended = (~out.completions.mask[:, -1]).tolist()
    right = np.array([trace.right for trace in parsed]).reshape(len(panel), group)
    greedily = [countdown.reward(t, p).value == 1 for t, p in zip(greedy.texts, panel, strict=True)]
    metrics = {
        "heldout_accuracy": float(right.mean()),
        "heldout_greedy": float(np.mean(greedily)),
        "heldout_length": float(out.completions.mask.sum(1).mean()),
        "heldout_backtracks": float(np.mean([trace.backtracks for trace in parsed])),
        "outcomes": dict(Counter(map(traces.outcome, parsed, ended))),
        "styles": dict(Counter(map(traces.style, parsed))),
    }
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


def scored(out: Rollout, settings: Settings) -> tuple[grpo.Batch, np.ndarray, np.ndarray]:
    """A rollout as a batch to learn from, and its rewards [P, G] before and after shaping."""
    s = settings
    rewards = np.array(
        [
            countdown.reward(text, puzzle, form=s.form_reward).value
            for text, puzzle in zip(out.texts, out.puzzles, strict=True)
        ]
    ).reshape(-1, s.group)
    tokens, logprobs, mask = out.completions
    shaped = grpo.shaped(rewards, mask.sum(1).reshape(rewards.shape), s)
    gain = grpo.advantages(shaped, scale_by_std=s.scale_by_std, leave_one_out=s.leave_one_out)
    gain = gain.reshape(-1).astype(np.float32)
    return grpo.Batch(out.prompts, out.valid, tokens, mask, logprobs, gain), rewards, shaped


@devices.memory_errors(ROOM)
def step(graph, state, reference, tokenizer, settings: Settings, number: int, key):
    """GRPO step `number` (from 1): sample, reward, update. Gives the new state and the metrics.

    The metrics are those of the first draw of puzzles, whatever replaces it in the update.
    """
    s, model = settings, nnx.merge(graph, state.params)
    key = jax.random.fold_in(key, number)
    draw = functools.partial(
        rollout, model, tokenizer, settings=s, group=s.group, temperature=s.temperature
    )
    out = draw(puzzles(s, number), key)
    start = time.perf_counter()
    batch, grouped, _ = scored(out, s)
    rewarded = time.perf_counter()
    right, draws = (grouped == 1).astype(float), 1
    while draws <= s.refills and not grpo.has_signal(right).all():
        again = draw(puzzles(s, number, draws), jax.random.fold_in(key, draws))
        more, more_rewards, _ = scored(again, s)
        batch, right = grpo.refill(batch, right, more, (more_rewards == 1).astype(float))
        draws += 1
    refilled = time.perf_counter()
    with futures.ThreadPoolExecutor(1) as beside:  # Python counts while the devices learn
        parsed = beside.map(traces.parse, out.texts, out.puzzles)
        state, updated = grpo.train_step(graph, state, reference, batch, s)
        backtracks = [trace.backtracks for trace in parsed]
    end, count = time.perf_counter(), int(out.completions.mask.sum())
    return state, {
        "step": number,
        "reward": float(grouped.mean()),
        "train_accuracy": float((grouped == 1).mean()),
        "length": float(out.completions.mask.sum(1).mean()),
        "backtracks": float(np.mean(backtracks)),
        "draws": draws,  # of puzzles, refills included
        "zero_variance_groups": float((~grpo.has_signal(grouped)).mean()),
        **updated,
        # An estimate over all that was written; the update sees only groups with signal.
        "entropy": -float(out.completions.logprobs.sum() / count),
        "sample_seconds": out.seconds,
        "reward_seconds": rewarded - start,
        "refill_seconds": refilled - rewarded,
        "update_seconds": end - refilled,
        "sample_tokens_per_second": count / out.seconds,
        "update_tokens_per_second": int(batch.mask.sum()) / (end - refilled),
    }


def begin(settings: Settings, mesh):
    """The graph, state, reference and tokenizer that a run starts from, on the devices.

    The reference (None without a KL term) is in the dtype of activations; with adapters it is the
    base under them. Raises ValueError where a prompt could be too long, and what `weights.load`
    raises.
    """
    s, (dtype, param_dtype) = settings, devices.dtypes(settings.dtype)
    model, tokenizer, _ = weights.load(
        s.model, mesh=mesh, dtype=dtype, param_dtype=dtype if s.lora else param_dtype
    )
    longest = tokenizer.encode(countdown.prompt(widest(s), s.template))
    sampler.pad_left([longest], s.prompt_len, tokenizer.pad_id)
    if s.lora:
        lora.add(model, s.lora, rngs=nnx.Rngs(s.seed))
    model.remat = s.remat
    graph, params = nnx.split(model)
    own = s.kl and not s.lora  # with adapters the base is still there
    reference = jax.tree.map(lambda x: x.copy(), sampler.ready(params, dtype)) if own else None
    state = grpo.TrainState(params, grpo.optimizer(s).init(grpo.learned(params, s)[0]))
    state = jax.device_put(state, devices.shardings(state, mesh))  # Adam's scalars too
    return graph, state, reference, tokenizer


def train(settings: Settings, out: str | Path) -> Iterator[dict]:
    """Run, or resume, the run in folder `out`; yields a row of metrics after every step.

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
    s, out, ends = settings, Path(out), session.deadline(settings.hours)
    say, stop = functools.partial(checkpoints.say, out), out / "stop"
    for change in checkpoints.claim(out, s):
        say(f"Taken over: {change}")
    track, mesh = checkpoints.tracker(s, out), devices.make_mesh(tp=s.tp)
    train_key, eval_key = jax.random.split(jax.random.key(s.seed))
    with checkpoints.disk_errors(out), checkpoints.manager(out) as manager, session.together():
        with devices.use(mesh):
            graph, state, reference, tokenizer, done = _resume(s, out, mesh, manager)
            checkpoints.check_room(out, _kept(state, s)[0])
            if s.preflight and done < 0:
                base = nnx.merge(graph, state.params)
                tried = rollout(
                    base,
                    tokenizer,
                    puzzles(s, 1),
                    train_key,
                    s,
                    group=s.group,
                    temperature=s.temperature,
                )
                say(session.verdict(scored(tried, s)[1], tried.seconds))
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
                        state, row = step(graph, state, reference, tokenizer, s, number, train_key)
                    if number % s.eval_every == 0 or number == s.steps:
                        now, draw = nnx.merge(graph, state.params), jax.random.fold_in
                        got, texts = evaluate(now, tokenizer, s, draw(eval_key, number), number)
                        row |= got
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
                    checkpoints.save(manager, number, _kept(state, s)[0], row)
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


def _resume(s: Settings, out: Path, mesh, manager, upto: int | float = math.inf):
    """As `begin`, with the state of the newest checkpoint, and its step; -1 if there is none."""
    graph, state, reference, tokenizer = begin(s, mesh)
    kept, rest = _kept(state, s)
    if manager.latest_step() is None:
        return graph, state, reference, tokenizer, -1
    shapes = checkpoints.shapes(kept)
    del state, kept  # what is restored takes their place in memory
    tree, done = checkpoints.restore(manager, shapes, out, upto)
    if tree is None:
        return *begin(s, mesh), done
    state = grpo.TrainState(nnx.merge_state(tree["params"], rest), tree["opt_state"])
    return graph, state, reference, tokenizer, done


def trained(
    out: str | Path, step: int | float = math.inf, *, merged: bool = True
) -> tuple[Gemma, Tokenizer, Settings]:
    """The model of a run's newest checkpoint, up to a step, with its tokenizer and settings.

    Adapters are merged, unless `merged` is False. FileNotFoundError if there is no checkpoint.
    """
    said = json.loads((Path(out) / "settings.json").read_text())
    s = dataclasses.replace(Settings(**said), kl=0.0)  # without a reference
    mesh = devices.make_mesh(tp=s.tp)
    with devices.use(mesh), checkpoints.manager(Path(out), read_only=True) as manager:
        graph, state, _, tokenizer, done = _resume(s, Path(out), mesh, manager, step)
    if done < 0:
        raise FileNotFoundError(f"{out} has no checkpoint up to step {step}.")
    model = nnx.merge(graph, state.params)
    return lora.merge(model) if s.lora and merged else model, tokenizer, s


def _kept(state: grpo.TrainState, settings: Settings) -> tuple[dict, nnx.State]:
    """What a checkpoint holds, and the parameters it can do without: the base under adapters."""
    params, rest = grpo.learned(state.params, settings)
    return state._replace(params=params)._asdict(), rest
