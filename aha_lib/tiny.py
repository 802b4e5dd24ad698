"""The tiny base model: its corpus of worked Countdown text and its pre-training.

It plays the part of a pre-trained base that has seen people work. Most of its traces jump to an
answer, some check one attempt, a small share search: try, compute, compare, say no, try again.
Knows nothing of rewards or GRPO. Rebuild the shipped base with

    python -m aha_lib.tiny --out aha_lib/data/tiny
"""

import argparse
import functools
import hashlib
import json
import random
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm.auto import trange

from aha_lib import countdown, weights
from aha_lib.gemma import Gemma
from aha_lib.presets import MODELS, PUZZLES
from aha_lib.tokenizer import Tokenizer, tiny_model

BOUND = 100  # every value the tiny language can write is an integer from 0 to this
ROW = 160  # tokens in a packed row; longer documents are dropped
ROWS = 24  # rows a step
STEPS = 6_000
DRILL = 6  # facts in a drill
STYLES = {"drill": 0.2, "jump": 0.56, "check": 0.16, "search": 0.08}  # shares of documents


def operations(a: int, b: int) -> list[tuple[str, int]]:
    """Every legal operation on two numbers as (text, value): `20 - 16 = 4`, larger first."""
    a, b = max(a, b), min(a, b)
    values = {"+": a + b, "-": a - b, "*": a * b}
    if b and a % b == 0:
        values["/"] = a // b
    return [(f"{a} {op} {b} = {v}", v) for op, v in values.items() if v <= BOUND]


def is_held_out_fact(fact: str) -> bool:
    """Whether the corpus never shows this sum or difference: one in 32 of all of them.

    Products and quotients within 0..100 are a small table that has to be known, not derived.
    """
    return any(op in fact for op in "+-") and zlib.crc32(fact.encode()) % 32 == 0


def document(seed: int, index: int) -> list[tuple[str, bool]]:
    """Text number `index` of the corpus that `seed` names: pieces, and whether each is to learn.

    A drill is a list of facts of which only the results are learnt, a trace is a prompt (not
    learnt) and a worked solution.
    """
    rng = random.Random(f"{seed} {index}")
    style = rng.choices(list(STYLES), STYLES.values())[0]
    while True:
        if style == "drill":
            kinds = rng.choices(_drills(), [4, 4, 1, 1], k=DRILL)
            facts = [rng.choice(kind).rsplit(" ", 1) for kind in kinds]
            pieces = [p for left, value in facts for p in ((f", {left}", False), (value, True))]
            pieces[0] = (facts[0][0], False)
        else:
            puzzle = countdown.generate(seed, rng.getrandbits(48), **PUZZLES["tiny"])
            pieces = [(countdown.prompt(puzzle, "tiny"), False), (trace(puzzle, style, rng), True)]
        if not any(map(is_held_out_fact, _facts(" ".join(text for text, _ in pieces)))):
            return pieces


def trace(puzzle: countdown.Puzzle, style: str, rng: random.Random) -> str:
    """A worked solution in one of the three styles; only "search" goes on after a no.

    It goes through the first operations in a fixed order from a random one on, round and round,
    and for each tries the second operation that comes closest to the target.
    """
    a, b, c = sorted(puzzle.numbers, reverse=True)
    firsts = [(fact, value, rest) for x, y, rest in ((a, b, c), (a, c, b), (b, c, a))
              for fact, value in operations(x, y)]  # fmt: skip
    firsts = list(dict.fromkeys(firsts))
    start = rng.randrange(len(firsts))
    firsts = firsts[start:] + firsts[:start]
    lines = []
    for first, value, rest in firsts:
        seconds = operations(value, rest)
        rng.shuffle(seconds)
        if style != "jump":  # a jump does not look at the target, the others try the closest
            seconds.sort(key=lambda second: abs(second[1] - puzzle.target))
        second, result = seconds[0]
        lines += [first, ",", second, "yes" if result == puzzle.target else "no"]
        if style != "search" or result == puzzle.target:
            break
    # The last operation of the answer, with the first in the place of its value.
    left, op, right = second.split(" = ")[0].split()
    nested = f"( {first.split(' = ')[0]} )"
    left, right = (nested, right) if left == str(value) else (left, nested)
    answer = f"<answer> {left} {op} {right} </answer>"
    return answer if style == "jump" else " ".join([*lines, answer])


@functools.cache
def _drills() -> list[list[str]]:
    """All facts that the tiny language can write, a list for each operation."""
    facts = [fact for a in range(BOUND + 1) for b in range(a + 1) for fact, _ in operations(a, b)]
    return [[fact for fact in facts if op in fact] for op in "+-*/"]


def _facts(text: str) -> list[str]:
    """All `a op b = c` of a text, in order."""
    words = text.split()
    return [" ".join(words[i - 3 : i + 2]) for i, word in enumerate(words)
            if word == "=" and i >= 3 and words[i - 2] in "+-*/"]  # fmt: skip


def rows(seed: int, start: int, count: int, tokenizer: Tokenizer) -> tuple[dict, int]:
    """`count` packed rows of the corpus from document `start` on, and the next document's index.

    Returns arrays [count, ROW]: `tokens`, `positions` in the document, `segments` (1, 2, … for
    the documents of a row, 0 for padding) and `weights` (1 where a token is to be predicted).
    """
    out = {k: np.zeros((count, ROW), np.int32) for k in ("tokens", "positions", "segments")}
    out["weights"] = np.zeros((count, ROW), np.float32)
    index = start
    for row in range(count):
        filled, segment = 0, 0
        while True:
            pieces = [(tokenizer.encode(text, bos=False), learn)
                      for text, learn in document(seed, index)]  # fmt: skip
            pieces = [([tokenizer.bos_id], False), *pieces, ([tokenizer.eos_id], True)]
            ids = [token for tokens, _ in pieces for token in tokens]
            if filled + len(ids) > ROW and len(ids) <= ROW:
                break  # it opens the next row
            index += 1
            if len(ids) > ROW:
                continue
            segment += 1
            here = slice(filled, filled + len(ids))
            out["tokens"][row, here], out["segments"][row, here] = ids, segment
            out["positions"][row, here] = np.arange(len(ids))
            out["weights"][row, here] = [learn for tokens, learn in pieces for _ in tokens]
            filled = here.stop
    return out, index


@functools.partial(jax.jit, static_argnames=("graph", "optimizer"), donate_argnums=(2, 3))
def train_step(graph, optimizer, params, moments, tokens: Int[Array, "B T"], positions,
               segments, weights: Float[Array, "B T"]):  # fmt: skip
    """One AdamW step on the mean next-token loss (nats) over positions of weight 1."""

    def loss(params):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, positions, segments)
        logprobs, _ = model.logprobs(hidden[:, :-1], tokens[:, 1:])
        return -jnp.sum(logprobs * weights[:, 1:]) / jnp.sum(weights[:, 1:])

    value, grads = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, value


def pretrain(seed: int, steps: int, *, stop: int | None = None) -> tuple[Gemma, list[float]]:
    """Train the tiny model from nothing; gives the model and the loss of every step.

    `steps` sets the learning-rate schedule; `stop` ends earlier, for a slice of the same run.
    """
    tokenizer = Tokenizer(tiny_model())
    graph, params = nnx.split(Gemma(MODELS["tiny"], rngs=nnx.Rngs(seed)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-3, 100, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01)
    )
    moments, losses, index = optimizer.init(params), [], 0
    bar = trange(steps if stop is None else stop, desc="pre-training", mininterval=5)
    for step in bar:
        batch, index = rows(seed, index, ROWS, tokenizer)
        params, moments, loss = train_step(graph, optimizer, params, moments, **batch)
        losses.append(loss)
        if step % 100 == 0:
            bar.set_postfix(loss=f"{float(loss):.3f}")
    return nnx.merge(graph, params), [float(x) for x in losses]


def corpus_hash(seed: int, count: int = 500) -> str:
    """SHA-256 of the corpus's first documents: a base belongs to the code that made its corpus."""
    text = "\n".join(" ".join(text for text, _ in document(seed, i)) for i in range(count))
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Pre-train and write the folder that `weights.load("tiny")` reads."""
    parser = argparse.ArgumentParser(description="Pre-train the tiny base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    model, losses = pretrain(args.seed, args.steps)
    weights.save_hf(model, args.out, Tokenizer(tiny_model()))
    record = {"seed": args.seed, "steps": args.steps, "corpus": corpus_hash(args.seed),
              "first_losses": losses[:20], "last_loss": float(np.mean(losses[-100:]))}  # fmt: skip
    (args.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
