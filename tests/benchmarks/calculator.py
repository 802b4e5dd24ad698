"""Does a calculator help where a model's own sums are wrong; and does a price teach when to ask?

`python tests/benchmarks/calculator.py WAY …` trains the base `calculator` by GRPO in each of the
ways below, and writes a row of calculator.json for each, with the base as it was before:
- "free", "cheap", "dear": a call costs 0, 0.01, 0.05 of a right answer;
- "always": a question mark and the result are put behind every `=`, at no price;
- "barred": the same base, its question mark cut out of the vocabulary, on Countdown as it is.
Every row has the accuracy on the same held-out puzzles, the calls of an answer, the share of the
sums that is asked, and what the model itself would have said: at each `a op b =` of its answers,
the probability of the right result where asking is barred. A model that knows when to ask does so
where this is low. What the tool can do for a model, "never" and "always" tell: the accuracy without
question marks, and where one stands behind every `=`.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aha_lib import devices, loop
from aha_lib.model import vocabulary, weights
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import SETTINGS, Settings
from aha_lib.tasks.calculator import (
    ASK,
    KINDS,
    Calculator,
    Cheap,
    Dear,
    Sum,
    result,
    without_calls,
)
from aha_lib.tasks.rollout import Policy, Rollout, held_out_panel, rollout
from aha_lib.tasks.task import Countdown

FILE = Path(__file__).with_suffix(".json")
KEPT = ("reward", "train_accuracy", "right", "length", "calls", "asked", "true", "backtracks")


class Always(Calculator):
    """Every sum is asked, whether the model would or not: the question is a part of the reply."""

    turn_end = "="

    def reply(self, text, puzzle):
        return f"{ASK} {super().reply(f'{text} {ASK}', puzzle)}"


WAYS = {
    "free": Calculator,
    "cheap": Cheap,
    "dear": Dear,
    "always": Always,
    "barred": Countdown,
}


def policy(way: str, settings: Settings, base: str) -> Policy:
    """The base, and the task it is trained on; barred, it has no question mark to write."""
    model, tokenizer, _ = weights.load(base, dtype=devices.dtypes()[0])
    of = Policy(model, tokenizer, WAYS[way].from_settings(settings), settings)
    return without_asking(of) if way == "barred" else of


def without_asking(of: Policy) -> Policy:
    """The same with the question mark cut out of the vocabulary, on Countdown as it is."""
    small = WORDS["small"]  # the words of this base in its order, without the last
    assert WORDS["calculator"] == [*small, ASK]
    if of.tokenizer.vocab_size == 4 + len(small):
        return of
    model = vocabulary.cut(of.model, range(of.tokenizer.vocab_size - 1))
    task = Countdown.from_settings(of.settings)
    return Policy(model, Tokenizer(tiny_model(small)), task, of.settings)


def always_asking(of: Policy) -> Policy:
    """The same where a question mark and the result stand behind every `=`."""
    return dataclasses.replace(of, task=Always.from_settings(of.settings))


def accuracy(of: Policy, key) -> float:
    """Of two answers to each held-out puzzle, whatever calls cost."""
    out = rollout(of, held_out_panel(of.task, of.settings), key, group=2, temperature=1.0)
    plain = Countdown.from_settings(of.settings)
    judged = zip(out.texts, out.puzzles, strict=True)
    return float(
        np.mean([plain.reward(without_calls(text), puzzle) == 1 for text, puzzle in judged])
    )


@nnx.jit
def _hidden(model, tokens, positions, segments):
    return model.hidden(tokens, positions, segments)


def beliefs(policy: Policy, out: Rollout) -> list[tuple[Sum, float]]:
    """Every sum of the completions that has a result, and the right result's probability.

    At the sum's `=`, with the question mark barred: so it says how far the model could have done
    without it.
    """
    tokenizer = policy.tokenizer
    tokens = np.concatenate([out.prompts, out.completions.tokens], axis=1)
    is_text = np.concatenate([out.valid, out.completions.written], axis=1)
    positions = np.maximum(np.cumsum(is_text, axis=1) - 1, 0)
    hidden = _hidden(policy.model, tokens, positions, is_text.astype(np.int32))
    words = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    ids = {word: token for token, word in enumerate(words)}
    places, found, right = [], [], []
    start = out.prompts.shape[1]
    for row, written in enumerate(out.completions.written):
        text = [words[token] for token in tokens[row, : start + written.sum()]]
        for at in range(start + 3, len(text) - 1):
            one = _sum_at(text[at - 4 : at + 2])
            value = None if one is None else result(one.a, one.sign, one.b)
            if value is not None and str(value) in ids:
                places.append((row, at))
                found.append(one)
                right.append(ids[str(value)])
    rows, columns = np.array(places).T
    logits = policy.model.logits(hidden[rows, columns]).astype(jnp.float32)
    if ASK in ids:
        logits = logits.at[:, ids[ASK]].set(-jnp.inf)
    chances = jax.nn.softmax(logits)[np.arange(len(right)), np.array(right)]
    return list(zip(found, np.asarray(chances).tolist(), strict=True))


def _sum_at(words: list[str]) -> Sum | None:
    """The sum in six words, of which the fifth is its `=`; the first may not be a sign."""
    before, a, sign, b, equals, stated = words
    is_sum = equals == "=" and sign in {*"+-*/"} and a.isdecimal() and b.isdecimal()
    if not is_sum or before in {*"+-*/"} or not (stated == ASK or stated.isdecimal()):
        return None
    return Sum(int(a), sign, int(b), None if stated == ASK else int(stated))


def measured(policy: Policy, key) -> dict:
    """What sampled answers to the held-out panel are like, and never or always asked."""
    s = policy.settings
    out = rollout(policy, held_out_panel(policy.task, s), key, group=1, temperature=1.0)
    ended = out.completions.ended.tolist()
    found = Calculator.from_settings(s).measures(out.texts, out.puzzles, ended)
    found["length"] = float(out.completions.written.sum(1).mean())
    found["standard_error"] = (found["right"] * (1 - found["right"]) / len(out.texts)) ** 0.5
    every = beliefs(policy, out)
    found["sums"] = {"all": described(every)}
    for kind in KINDS:
        those = [(one, chance) for one, chance in every if one.kind == kind]
        found["sums"][kind] = described(those)
    found["never"] = accuracy(without_asking(policy), key)
    if policy.task.turn_end:
        found["always"] = accuracy(always_asking(policy), key)
    return found


def described(every: list[tuple[Sum, float]]) -> dict:
    """How many sums are asked, of all and of those that the model is and is not sure of."""
    asked = np.array([one.asked for one, _ in every])
    chance = np.array([chance for _, chance in every])
    groups = {
        "asked": asked,
        "asked_if_sure": asked[chance >= 0.5],
        "asked_if_unsure": asked[chance < 0.5],
        "chance": chance,
        "chance_of_asked": chance[asked],
        "chance_of_own": chance[~asked],
    }
    means = {name: round(float(x.mean()), 4) for name, x in groups.items() if len(x)}
    return {"n": len(every), **means}


def train(way: str, settings: Settings, base: str) -> dict:
    """A run of GRPO in one of the ways: its row."""
    of = policy(way, settings, base)
    key = jax.random.key(settings.seed)
    began = time.monotonic()
    row = {"way": way, "seed": settings.seed, "before": measured(of, key), "curve": []}
    print(way, row["before"], flush=True)
    for metrics in loop.learn(of.model, of.tokenizer, of.task, settings):
        kept = {name: round(metrics[name], 4) for name in KEPT if name in metrics}
        row["curve"].append({"step": metrics["step"], **kept})
        seconds = metrics["sample_seconds"], metrics["update_seconds"]
        print(way, metrics["step"], kept, *map(round, seconds), flush=True)
    row["after"] = measured(of, key)
    row["seconds"] = round(time.monotonic() - began)
    print(way, row["after"], flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", help=", ".join(WAYS))
    parser.add_argument("--base", default="calculator", help="a name or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=SETTINGS["calculator"].steps)
    parser.add_argument("--rate", type=float, default=SETTINGS["calculator"].learning_rate)
    chosen = parser.parse_args()
    devices.compilation_cache()
    settings = dataclasses.replace(
        SETTINGS["calculator"], seed=chosen.seed, steps=chosen.steps, learning_rate=chosen.rate
    )
    for way in chosen.ways or WAYS:
        row = train(way, settings, chosen.base)
        row["settings"] = {"steps": chosen.steps, "prompts": settings.prompts}
        row["settings"] |= {"group": settings.group, "learning_rate": chosen.rate}
        record = json.loads(FILE.read_text()) if FILE.exists() else []
        others = [one for one in record if (one["way"], one["seed"]) != (way, chosen.seed)]
        FILE.write_text(json.dumps([*others, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
