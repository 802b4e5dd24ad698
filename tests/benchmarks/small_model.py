"""What `tinyzero-small` has learnt, before or after GRPO, on held-out puzzles, beside the rule.

`python tests/benchmarks/small_model.py NAME FOLDER` reads a base or a run's newest checkpoint, and
writes under NAME in small_model.json, for 3 and 4 numbers, P and S, 512 puzzles of different
multisets each:
- sampled and greedy completions: accuracy, styles, true sums, tokens, where searches first leave
  the rule (`tasks.faults`), where they look first (`look.order`);
- the same barred from answering before a yes, so that each answer is a search;
- what the corpus's rule solves without a slip within as many tokens;
- pass@1 to pass@64 on some of the puzzles; which sums of all there are it gets right, those that
  the corpus never taught told apart.
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
from aha_lib.look import order
from aha_lib.model import weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import PRETRAINING, SETTINGS
from aha_lib.rl import sampler
from aha_lib.run import train
from aha_lib.tasks import corpus, countdown, faults, traces
from aha_lib.tasks.rollout import Policy, rollout, score
from aha_lib.tasks.task import Countdown

CORPUS = PRETRAINING["tinyzero-small"]
RULE = corpus.rule(CORPUS)
AT_A_TIME = 128  # rows that are sampled side by side
FILE = Path(__file__).with_suffix(".json")
DRAWS = 64  # completions a puzzle, for pass@k


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
    by_need = {True: [], False: []}
    for trace in parsed:
        by_need[order.needs_product(trace.puzzle, RULE.bound)].append(trace.right)
    return {
        "right": float(right.mean()),
        "standard error": float(right.std() / len(right) ** 0.5),
        "styles": dict(Counter(map(traces.style, parsed))),
        "tokens": float(np.mean([len(text.split()) + 1 for text in texts])),
        "sums": _mean(true),
        "sums held out": _mean(unseen),
        "attempts": _mean([len(trace.attempts) for trace in parsed]),
        "needs a product": {"right": _mean(by_need[True]), "n": len(by_need[True])},
        "sums suffice": {"right": _mean(by_need[False]), "n": len(by_need[False])},
        **_faults(texts, puzzles, parsed),
        "looked": [
            dataclasses.asdict(order.looked(parsed, tries, RULE.bound)) for tries in (1, 2, 4)
        ],
        "signs": order.signs(parsed, RULE.bound),
    }


def _mean(values: list) -> float | None:
    return float(np.mean(values)) if values else None


def _faults(texts: list[str], puzzles: list, parsed: list[traces.Trace]) -> dict:
    """Where the searches first leave the rule, and how often the next operation is the rule's."""
    searches = [
        faults.first_fault(text, puzzle, RULE)
        for text, puzzle, trace in zip(texts, puzzles, parsed, strict=True)
        if len(trace.attempts) > 1
    ]
    in_order = sum(read.in_order for read in searches)
    of = in_order + sum(read.out_of_order for read in searches)
    return {
        "first faults of searches": dict(Counter(read.fault for read in searches).most_common()),
        "in the rule's order": in_order / max(1, of),
    }


def many_draws(policy: Policy, puzzles: list[countdown.Puzzle], key) -> dict:
    """pass@1 to pass@DRAWS, and the operations that lead to a target and are never tried."""
    drawn = rollout(policy, puzzles, key, group=DRAWS, temperature=1.0)
    right = score(policy.task, drawn, DRAWS) == 1
    pairs = zip(drawn.texts, drawn.puzzles, strict=True)
    parsed = [traces.parse(*pair) for pair in pairs]
    each = [parsed[first : first + DRAWS] for first in range(0, len(parsed), DRAWS)]
    return {
        "n": len(puzzles),
        "pass_at": {k: train.pass_at_k(right, k) for k in (1, 2, 4, 8, 16, 32, 64)},
        "never tried": dataclasses.asdict(order.never_tried(each, RULE.bound)),
    }


def load(folder: Path, limit: int) -> Policy:
    """A base's model, or that of a run's newest checkpoint."""
    if (folder / "rollouts.jsonl").exists():
        model, tokenizer, _ = train.trained(folder)
    else:
        model, tokenizer, _ = weights.load(folder, dtype=devices.dtypes()[0])
    settings = dataclasses.replace(SETTINGS["tinyzero-small"], completion_len=limit)
    return Policy(model, tokenizer, Countdown.from_settings(settings), settings)


def measured(policy: Policy, puzzles: list[countdown.Puzzle], key) -> dict:
    """All that is asked of one panel."""
    rows = {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        texts = rollout(policy, puzzles, key, group=1, temperature=temperature).texts
        rows[name] = described(texts, puzzles)
    rows["barred"] = described(barred(policy, puzzles, key), puzzles)
    rows["perfect"] = null(puzzles, RULES["depth-first, round"], draws=2)["solved"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the row in the record")
    parser.add_argument("folder", type=Path, help="of a base or of a run")
    parser.add_argument("--puzzles", type=int, default=512)
    parser.add_argument("--drawn", type=int, default=64, help="puzzles of which DRAWS are drawn")
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a completion")
    chosen = parser.parse_args()
    policy = load(chosen.folder, chosen.limit)
    found = {"limit": chosen.limit, "sums": sums(policy.model, policy.tokenizer)}
    print({name: round(share, 4) for name, share in found["sums"].items()}, flush=True)
    for name, ranges in RANGES.items():
        for numbers in (3, 4):
            puzzles = panel(dataclasses.replace(ranges, numbers=numbers), chosen.puzzles)
            row = measured(policy, puzzles, jax.random.key(numbers))
            if chosen.drawn and name == "P":
                row["drawn"] = many_draws(policy, puzzles[: chosen.drawn], jax.random.key(9))
            found[f"{numbers} numbers, {name}"] = row
            print(f"\n{numbers} numbers, {name}")
            for way, value in row.items():
                print(f"  {way}: {value}", flush=True)
    record = json.loads(FILE.read_text()) if FILE.exists() else {}
    record[chosen.name] = found | {"puzzles": chosen.puzzles}
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
