"""A model asked a task's puzzles: prompts in, completions and their rewards out.

Joins the text side (puzzles, prompts, rewards) to the array side (tokens, log-probabilities). Knows
nothing of advantages or updates.
"""

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import Settings
from aha_lib.rl import sampler
from aha_lib.tasks.task import Task

PANEL_SEED = 0  # the held-out panel is the same for every run, whatever its seed


@dataclass(frozen=True)
class Policy:
    """What answers puzzles: a model and its tokenizer, asked a task within a run's settings."""

    model: Gemma
    tokenizer: Tokenizer
    task: Task
    settings: Settings


@dataclass(frozen=True)
class Rollout:
    """Puzzles and what the model wrote for them: B = P · G rows, those of a group side by side."""

    puzzles: list  # B, each puzzle G times
    prompts: Int[np.ndarray, "B Tp"]
    valid: Bool[np.ndarray, "B Tp"]  # prompt tokens that are not padding
    completions: sampler.Completions
    texts: list[str]  # B, with the replies of the task's tool in them
    replies: dict[str, float]  # of a task with a tool: how many a completion had, and failures


def training_puzzles(task: Task, settings: Settings, number: int, draw: int = 0) -> list:
    """The puzzles of training step 1, 2, …; no two steps, or draws of a step, share an index."""
    first = (number - 1 + draw * settings.steps) * settings.prompts
    indices = range(first, first + settings.prompts)
    return [task.puzzle(settings.seed, index, held_out=False) for index in indices]


def held_out_panel(task: Task, settings: Settings) -> list:
    """The puzzles on which every run is measured and none is trained."""
    indices = range(settings.eval_puzzles)
    return [task.puzzle(PANEL_SEED, index, held_out=True) for index in indices]


def sampler_calls(settings: Settings) -> list[tuple[int, int]]:
    """How many prompts, and completions of each, the calls of the sampler in a run have.

    What is left for a last call is filled up to the size of the others.
    """
    s = settings
    calls = {(s.prompts, s.group)}
    for group in (1, s.pass_k):  # of the held-out panel
        calls.add((min(s.eval_puzzles, _prompts_at_a_time(s, group)), group))
    return sorted(calls)


def shapes(settings: Settings, *, threads: int = 1) -> sampler.CallShapes:
    """Of all programs of the sampler that a run can meet, see `sampler.shapes`."""
    found = sampler.CallShapes()
    for prompts, group in sampler_calls(settings):
        sampling = sampler.Sampling(group, settings.completion_len, stop_ids=(), pad_id=0)
        found.add(sampler.shapes(prompts, settings.prompt_len, sampling, threads=threads))
    return found


def decode_shapes(settings: Settings, *, threads: int = 1) -> list[sampler.DecodeShape]:
    """Those of `shapes` that are of decode programs, the largest first."""
    return sorted(shapes(settings, threads=threads).decodes, reverse=True)


def _prompts_at_a_time(settings: Settings, group: int) -> int:
    """As many rows as in a training step, or one prompt's where these are more."""
    return max(1, settings.prompts * settings.group // group)


def _sampling(policy: Policy, group: int, temperature: float) -> sampler.Sampling:
    tokenizer, s = policy.tokenizer, policy.settings
    return sampler.Sampling(
        group=group,
        length=s.completion_len,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        temperature=temperature,
        gather=s.gather,
    )


def _turn_ends(policy: Policy) -> tuple[int, ...]:
    """The token after which a row waits for a reply.

    ValueError where the vocabulary does not have it as one piece.
    """
    piece = policy.task.turn_end
    if jax.process_count() > 1:  # a tool may be late for one host and not for another
        raise ValueError("A task with a tool runs on one host: start one process.")
    tokens = policy.tokenizer.encode(piece, bos=False)
    if len(tokens) != 1:
        raise ValueError(
            f"The task's turn_end is {piece!r}, which this vocabulary writes in {len(tokens)} "
            "pieces: choose one that is a single piece, such as a newline."
        )
    return tuple(tokens)


def _within(seconds: float, function: Callable[[], str | None]) -> str | None:
    """What a function gives, or raises; TimeoutError where it takes longer.

    It then goes on in its thread, which does not keep the process from ending.
    """
    done = futures.Future()

    def work():
        try:
            done.set_result(function())
        except BaseException as error:  # an exit too, and a timeout of the tool's own
            done.set_exception(RuntimeError(repr(error)))

    threading.Thread(target=work, daemon=True).start()
    return done.result(seconds)


class Tool:
    """The task's tool as the sampler asks it: tokens in, tokens out, and what went wrong counted.

    `settings.turns` replies a completion at most, each of `settings.reply_len` tokens and within
    `settings.reply_seconds`: a call beyond that, a longer or later reply, and an error of the tool
    end the completion.
    """

    def __init__(self, policy: Policy, puzzles: Sequence, group: int):
        self.policy = policy
        self.puzzles = puzzles
        self.group = group
        self.turn_ends = _turn_ends(policy)
        self.given = Counter()  # replies, by the row
        self.failed: dict[int, str] = {}  # rows that the tool ended, and why

    def behind(self, sampling: sampler.Sampling, first: int) -> sampler.Sampling:
        """The sampling of a call whose row 0 belongs to puzzle `first`, with this tool."""

        def reply(row: int, tokens: list[int]) -> list[int] | None:
            return self.answer(first * self.group + row, tokens)

        return dataclasses.replace(sampling, turn_ends=self.turn_ends, reply=reply)

    def answer(self, row: int, tokens: list[int]) -> list[int] | None:
        """The tokens of a reply to a row that is to go on; None ends it."""
        tokenizer, s = self.policy.tokenizer, self.policy.settings
        puzzle = self.puzzles[row // self.group]
        try:
            asked = functools.partial(self.policy.task.reply, tokenizer.decode(tokens), puzzle)
            text = _within(s.reply_seconds, asked)
            reply = tokenizer.encode(text or "", bos=False)
        except TimeoutError:
            return self.fail(row, "late")
        except Exception:  # whatever a tool does: the run goes on, and the failure is counted
            return self.fail(row, "error")
        if not text:
            return None if text is None else []
        if self.given[row] == s.turns:
            return self.fail(row, "too many")
        if len(reply) > s.reply_len:
            return self.fail(row, "too long")
        self.given[row] += 1
        return reply

    def fail(self, row: int, why: str) -> None:
        """A row has come to its end by the tool."""
        self.failed[row] = why

    def measures(self) -> dict[str, float]:
        """Replies, and completions that the tool ended, as means over all completions."""
        rows = len(self.puzzles) * self.group
        return {
            "replies": self.given.total() / rows,
            "failed_replies": len(self.failed) / rows,
        }


def rollout(
    policy: Policy, puzzles: Sequence, key: Key[Array, ""], *, group: int, temperature: float
) -> Rollout:
    """`group` completions of every puzzle, as many rows at a time as in a training step."""
    tokenizer, s = policy.tokenizer, policy.settings
    ids = [tokenizer.encode(policy.task.prompt(puzzle)) for puzzle in puzzles]
    prompts, valid = sampler.pad_left(ids, s.prompt_len, tokenizer.pad_id)
    at_a_time = _prompts_at_a_time(s, group)
    sampling = _sampling(policy, group, temperature)
    tool = Tool(policy, puzzles, group) if policy.task.turn_end else None
    if len(puzzles) > at_a_time:  # the last call may have fewer, and takes the others' programs
        sampling = dataclasses.replace(sampling, fill=at_a_time)
    parts = []
    for first in range(0, len(puzzles), at_a_time):
        rows = slice(first, first + at_a_time)
        parts.append(
            sampler.sample(
                policy.model,
                prompts[rows],
                valid[rows],
                jax.random.fold_in(key, first),
                sampling if tool is None else tool.behind(sampling, first),
            )
        )
    completions = sampler.Completions(*map(np.concatenate, zip(*parts, strict=True)))
    rows = zip(completions.tokens, completions.written, strict=True)
    texts = [tokenizer.decode(tokens[written]) for tokens, written in rows]
    each = [puzzle for puzzle in puzzles for _ in range(group)]
    prompts, valid = np.repeat(prompts, group, axis=0), np.repeat(valid, group, axis=0)
    replies = tool.measures() if tool else {}
    return Rollout(each, prompts, valid, completions, texts, replies)


def score(task: Task, out: Rollout, group: int) -> Float[np.ndarray, "P G"]:
    """The reward of every completion, a row a puzzle."""
    judged = zip(out.texts, out.puzzles, strict=True)
    rewards = [task.reward(text, puzzle) for text, puzzle in judged]
    return np.array(rewards, dtype=float).reshape(-1, group)
