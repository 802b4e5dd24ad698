"""What the base of `tinyzero-small` has learnt, on held-out puzzles, before GRPO.

`python tests/benchmarks/small_base.py FOLDER` prints, and writes to FOLDER/measured.json:
- which sums it gets right of all there are, those that the corpus never taught told apart;
- accuracy, styles, true sums and tokens of its own completions, for 3 and 4 numbers, P and S;
- the same for the base barred from answering before a yes: so each answer is a search. Where its
  searches first leave the rule (`tasks.faults`), and what the rule solves without a slip.
"""

import argparse
import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from nulls import RANGES, RULES, null, panel

from aha_lib import devices
from aha_lib.model import weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PRETRAINING, SETTINGS
from aha_lib.rl import sampler
from aha_lib.tasks import corpus, countdown, faults, traces
from aha_lib.tasks.rollout import Policy, rollout
from aha_lib.tasks.task import Countdown

CORPUS = PRETRAINING["tinyzero-small"]
RULE = corpus.rule(CORPUS)
AT_A_TIME = 128  # rows that are sampled side by side


def sums(model: Gemma, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of all sums whose likeliest result is right, by sign; held-out ones apart."""

    @nnx.jit
    def guesses(model, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
        return model.logits(hidden[:, -1]).argmax(-1)

    shares, held_out = {}, []
    for sign, facts in zip("+-*/", corpus._facts_by_sign(RULE.bound), strict=True):
        tokens = np.array([tokenizer.encode(fact) for fact in facts])
        parts = -(-len(tokens) // 1024)
        padded = np.resize(tokens, (parts * 1024, tokens.shape[1]))
        said = [guesses(model, part[:, :-1]) for part in np.split(padded, parts)]
        right = np.concatenate(said)[: len(tokens)] == tokens[:, -1]
        hidden = np.array([corpus.is_held_out_fact(fact) for fact in facts])
        shares[sign] = float(right[~hidden].mean())
        held_out += right[hidden].tolist()
    return shares | {"held out": float(np.mean(held_out))}


@functools.partial(jax.jit, static_argnames=("graph", "length", "words"))
def _write(graph, params, prompts, valid, key, length, words):
    """Tokens [B, length] at temperature 1, an answer allowed after a yes alone."""
    answer, yes, eos = words
    model = nnx.merge(graph, params)
    B, start = prompts.shape
    c = model.config
    cache = model.empty_cache(B, start + length)
    ring = -(-c.window // 8) * 8
    short = cache.local_k[:, :, :, :ring]
    cache = cache._replace(local_k=short, local_v=short)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, cache = model.extend(prompts, positions, cache, 0)

    def step(i, carry):
        hidden, position, last, open_answer, key, cache, out = carry
        logits = model.logits(hidden)
        barred = (last != yes) & ~open_answer
        logits = logits.at[:, answer].add(jnp.where(barred, -1e30, 0))
        logits = logits.at[:, eos].add(jnp.where(open_answer, 0, -1e30))
        key, now = jax.random.split(key)
        token = jax.random.categorical(now, logits).astype(jnp.int32)
        open_answer |= token == answer
        out = out.at[:, i].set(token)
        hidden, cache = model.extend(token[:, None], position[:, None], cache, start + i)
        return hidden[:, -1], position + 1, token, open_answer, key, cache, out

    closed = jnp.zeros(B, bool)
    out = jnp.zeros((B, length), jnp.int32)
    carry = (hidden[:, -1], positions[:, -1] + 1, prompts[:, -1], closed, key, cache, out)
    return jax.lax.fori_loop(0, length, step, carry)[-1]


def barred(policy: Policy, puzzles: list, key) -> list[str]:
    """Completions of the base that may not answer before a yes, one a puzzle."""
    tokenizer, limit = policy.tokenizer, policy.settings.completion_len
    graph, params = nnx.split(policy.model)
    words = (tokenizer.piece_id("▁<answer>"), tokenizer.piece_id("▁yes"), tokenizer.eos_id)
    ids = [tokenizer.encode(policy.task.prompt(puzzle)) for puzzle in puzzles]
    texts = []
    for first in range(0, len(ids), AT_A_TIME):
        prompts = sampler.pad_left(
            ids[first : first + AT_A_TIME], policy.settings.prompt_len, tokenizer.pad_id
        )
        out = _write(graph, params, *prompts, jax.random.fold_in(key, first), limit, words)
        for row in np.asarray(out):
            ends = np.flatnonzero(row == tokenizer.eos_id)
            texts.append(tokenizer.decode(row[: ends[0]] if len(ends) else row))
    return texts


def described(texts: list[str], puzzles: list[countdown.Puzzle]) -> dict:
    """Accuracy with its standard error, and what the texts are like."""
    parsed = [traces.parse(text, puzzle) for text, puzzle in zip(texts, puzzles, strict=True)]
    right = np.array([trace.right for trace in parsed])
    claims = [claim for trace in parsed for claim in trace.claims]
    true = [bool(claim.true) for claim in claims]
    unseen = [bool(c.true) for c in claims if corpus.is_held_out_fact(c.text)]
    searches = [
        faults.first_fault(text, puzzle, RULE)
        for text, puzzle, trace in zip(texts, puzzles, parsed, strict=True)
        if len(trace.attempts) > 1
    ]
    in_order = sum(read.in_order for read in searches)
    return {
        "right": float(right.mean()),
        "standard error": float(right.std() / len(right) ** 0.5),
        "styles": dict(Counter(map(traces.style, parsed))),
        "tokens": float(np.mean([len(text.split()) + 1 for text in texts])),
        "sums": float(np.mean(true)) if true else None,
        "sums held out": float(np.mean(unseen)) if unseen else None,
        "attempts": float(np.mean([len(trace.attempts) for trace in parsed])),
        "first faults of searches": dict(Counter(read.fault for read in searches).most_common()),
        "in the rule's order": in_order
        / max(1, in_order + sum(read.out_of_order for read in searches)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--puzzles", type=int, default=512)
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a completion")
    parser.add_argument("--show", type=int, default=1, help="barred completions to print of each")
    chosen = parser.parse_args()
    model, tokenizer, _ = weights.load(chosen.folder, dtype=devices.dtypes()[0])
    settings = dataclasses.replace(SETTINGS["tinyzero-small"], completion_len=chosen.limit)
    policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
    record = {"limit": chosen.limit, "puzzles": chosen.puzzles, "sums": sums(model, tokenizer)}
    print({name: round(share, 4) for name, share in record["sums"].items()})
    for name, ranges in RANGES.items():
        for numbers in (3, 4):
            puzzles = panel(dataclasses.replace(ranges, numbers=numbers), chosen.puzzles)
            key = jax.random.key(numbers)
            free = rollout(policy, puzzles, key, group=1, temperature=1.0).texts
            forced = barred(policy, puzzles, key)
            perfect = null(puzzles, RULES["depth-first, round"], draws=2)
            row = {
                "free": described(free, puzzles),
                "barred": described(forced, puzzles),
                "perfect": perfect["solved"],
            }
            record[f"{numbers} numbers, {name}"] = row
            print(f"\n{numbers} numbers, {name}")
            for way in ("free", "barred", "perfect"):
                print(f"  {way}: {row[way]}")
            for text, puzzle in list(zip(forced, puzzles, strict=True))[: chosen.show]:
                read = faults.first_fault(text, puzzle, RULE)
                print(f"  {countdown.prompt(puzzle)} {text[:600]}\n  -> {read}")
    file = chosen.folder / "measured.json"
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
