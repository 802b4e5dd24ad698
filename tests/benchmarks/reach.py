"""What base and trained model reach with many draws of a held-out puzzle, and at twice the length.

`python tests/benchmarks/reach.py --run FOLDER`, with the folder of a tiny run (it is trained there
if it is empty). Writes `reach.json` beside itself, which notebook 06 reads: for each puzzle how
many of the draws were right, and what the draws did. Draws go on where the file stops.

A third player is the base that may not write `<answer>` before it has written `yes`: so it has to
search, with what it has learnt from its corpus alone.
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

from aha_lib import devices
from aha_lib.model import weights
from aha_lib.presets import Settings
from aha_lib.rl import sampler
from aha_lib.run import train
from aha_lib.tasks import countdown, traces
from aha_lib.tasks.rollout import Policy, held_out_panel, rollout
from aha_lib.tasks.task import Countdown

FILE = Path(__file__).with_suffix(".json")
AT_ONCE = 16  # draws of every puzzle between two savings
DRAWS = {"base": 256, "trained": 256, "base, no answer before a yes": 64}
KEY = 7  # another than those of any run


def trained(folder: Path):
    """The settings of a run, and graph and parameters of its model; trains it where it is not."""
    record = folder / "settings.json"
    s = Settings(**json.loads(record.read_text())) if record.exists() else Settings()
    for _ in train.train(s, folder):
        pass
    better, tokenizer, s = train.trained(folder)
    graph, base = nnx.split(weights.load(s.model)[0])
    return s, tokenizer, graph, base, nnx.state(better)


@functools.partial(jax.jit, static_argnames=("graph", "length", "answer", "yes", "stop", "pad"))
def held_back(graph, params, prompts, valid, key, *, length, answer, yes, stop, pad):
    """Token ids and mask [B, T] of completions that hold no `answer` before a `yes`."""
    model, (B, T) = nnx.merge(graph, params), prompts.shape
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    cache = model.empty_cache(B, T + length)
    hidden, cache = model.extend(prompts, positions, cache, 0)

    def step(carry, t):
        hidden, cache, position, done, free = carry
        logits = model.logits(hidden)
        barred = (jnp.arange(logits.shape[1]) == answer) & ~free[:, None]
        drawn = jax.random.categorical(
            jax.random.fold_in(key, t), jnp.where(barred, -jnp.inf, logits)
        )
        token = jnp.where(done, pad, drawn)
        hidden, cache = model.extend(token[:, None], position[:, None], cache, T + t)
        after = (hidden[:, 0], cache, position + 1, done | (token == stop), free | (token == yes))
        return after, (token, ~done)

    none = jnp.zeros(B, bool)
    start = (hidden[:, -1], cache, positions[:, -1] + 1, none, none)
    _, (tokens, mask) = jax.lax.scan(step, start, jnp.arange(length))
    return tokens.T, mask.T


def searches(model, tokenizer, panel, key, s: Settings) -> tuple[list[str], np.ndarray]:
    """One completion of each puzzle without an answer before a yes, and its length in tokens."""
    graph, params = nnx.split(model)
    ids = [tokenizer.encode(countdown.prompt(puzzle, s.template)) for puzzle in panel]
    prompts, valid = sampler.pad_left(ids, s.prompt_len, tokenizer.pad_id)
    (answer,), (yes,) = (tokenizer.encode(word, bos=False) for word in ("<answer>", "yes"))
    tokens, mask = held_back(
        graph,
        params,
        prompts,
        valid,
        key,
        length=s.completion_len,
        answer=answer,
        yes=yes,
        stop=tokenizer.eos_id,
        pad=tokenizer.pad_id,
    )
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    return [tokenizer.decode(row[m]) for row, m in zip(tokens, mask, strict=True)], mask.sum(1)


def counts(texts, puzzles, lengths, limit: int) -> Counter:
    """What completions did, in numbers that do not depend on how they ended."""
    seen = Counter(draws=len(texts), tokens=int(lengths.sum()))
    for text, puzzle, length in zip(texts, puzzles, lengths, strict=True):
        trace = traces.parse(text, puzzle)
        tried = trace.attempts
        seen["cut off"] += int(trace.answer is None and length == limit)
        seen["slips"] += trace.slips
        seen["sums"] += sum(claim.true is not None for claim in trace.claims)
        seen["any attempt"] += bool(tried)
        seen["attempts"] += len(tried)
        seen["hits"] += sum(attempt.reached for attempt in tried)
        seen["repeats"] += sum(attempt.repeated for attempt in tried)
        for at, attempt in enumerate(tried[:3], 1):  # how often attempt 1, 2, 3 hits
            seen[f"attempt {at}"] += 1
            seen[f"hits at {at}"] += attempt.reached
        if tried and tried[0].verdict == "no":
            seen["first no"] += 1
            seen["went on"] += len(tried) > 1
    return seen


def draw(who: str, run, panel, number: int) -> tuple[np.ndarray, Counter]:
    """`AT_ONCE` draws of every puzzle: how many are right [P], and the counts."""
    s, tokenizer, graph, base, better = run
    model = nnx.merge(graph, better if who == "trained" else base)
    key = jax.random.fold_in(jax.random.key(KEY), number)
    puzzles = [puzzle for puzzle in panel for _ in range(AT_ONCE)]
    if who in ("base", "trained"):
        policy = Policy(model, tokenizer, Countdown(), s)
        out = rollout(policy, panel, key, group=AT_ONCE, temperature=1.0)
        texts, lengths = out.texts, out.completions.mask.sum(1)
    else:
        parts = [
            searches(model, tokenizer, puzzles[i : i + 256], jax.random.fold_in(key, i), s)
            for i in range(0, len(puzzles), 256)
        ]
        texts = [text for part, _ in parts for text in part]
        lengths = np.concatenate([part for _, part in parts])
    right = [traces.parse(*pair).right for pair in zip(texts, puzzles, strict=True)]
    done = counts(texts, puzzles, lengths, s.completion_len)
    return np.reshape(right, (len(panel), AT_ONCE)).sum(1), done


def longer(run, panel) -> dict:
    """The run's last sampled answers once more, and with twice the tokens: what becomes of those
    that were cut off. A row draws with its own keys, so that it begins as before."""
    s, tokenizer, graph, _, params = run
    model = nnx.merge(graph, params)
    key = jax.random.fold_in(devices.random_key(s.seed, "evaluation"), s.steps)
    twice = dataclasses.replace(s, completion_len=2 * s.completion_len)
    once, more = (
        rollout(Policy(model, tokenizer, Countdown(), x), panel, key, group=1, temperature=1.0)
        for x in (s, twice)
    )
    old, new = (
        [traces.parse(*pair) for pair in zip(out.texts, panel, strict=True)] for out in (once, more)
    )
    ended = ~more.completions.mask[:, -1]
    cut = [i for i, trace in enumerate(old) if trace.answer is None]
    became = Counter(traces.outcome(new[i], ended[i]) for i in cut)
    alike = sum(b.startswith(a) for a, b in zip(once.texts, more.texts, strict=True))
    return {
        "who": "trained, twice the length",
        "limit": twice.completion_len,
        "begin alike": alike,
        "puzzles": len(panel),
        "cut off": len(cut),
        "became": became,
        "accuracy": [sum(t.right for t in side) / len(panel) for side in (old, new)],
        "texts": [[str(panel[i]), more.texts[i]] for i in cut],
    }


def write(rows: list[dict]) -> None:
    """A line a player, so that a difference between two files can be read."""
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a tiny run")
    parser.add_argument("--draws", type=int, default=256, help="of each player at most")
    args = parser.parse_args()
    run = trained(args.run)
    panel = held_out_panel(Countdown(), run[0])
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    if not any("became" in row for row in rows):
        rows.append(longer(run, panel))
        write(rows)
    for who in DRAWS:
        if not any(row["who"] == who for row in rows):
            rows.append(
                {"who": who, "seed": run[0].seed, "n": 0, "right": [0] * len(panel), "counts": {}}
            )
    for total in range(AT_ONCE, args.draws + 1, AT_ONCE):  # in turn, so that a stop hurts none
        for row in rows[1:]:
            if row["n"] < min(total, DRAWS[row["who"]]):
                right, seen = draw(row["who"], run, panel, row["n"])
                row["n"] += AT_ONCE
                row["right"] = (np.array(row["right"]) + right).tolist()
                row["counts"] = dict(Counter(row["counts"]) + seen)
                write(rows)
    for row in rows[1:]:
        each = np.arange(row["n"]) < np.array(row["right"])[:, None]
        ks = [k for k in (1, 2, 4, 8, 16, 64, 256) if k <= row["n"]]
        print(row["who"], {k: round(train.pass_at_k(each, k), 3) for k in ks}, row["counts"])
    print({key: value for key, value in rows[0].items() if key != "texts"})
