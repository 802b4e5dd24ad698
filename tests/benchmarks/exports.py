"""Real Gemma 3 270M as `export.save_hf` writes it, opened in transformers 4 and 5.

`python tests/benchmarks/exports.py WEIGHTS PYTHON...`: the folder of Gemma 3 270M, and Pythons that
have torch and a transformers each. Four models leave: the whole one; the one that the recorded
cold start and GRPO on an H100 have trained, adapters merged; and both with the vocabulary cut.
Whether token ids are equal, the mean of -log p, the largest difference of a log-probability and
whether greedy text is equal are printed, and go into exports.json beside this file. Ten minutes on
two cores.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from aha_lib import devices
from aha_lib.look.record import DATA
from aha_lib.model import export, lora, vocabulary, weights
from aha_lib.presets import PRETRAINING
from aha_lib.tasks import corpus, countdown

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import here  # noqa: E402

RECORD = Path(__file__).with_suffix(".json")
ADAPTERS = ("cold_start/adapters.safetensors", "h100/seed0/adapters.safetensors")
COLD = PRETRAINING["gemma3-270m-short"]
ENGLISH = [
    "The capital of France is Paris. The capital of Italy is",
    "Größe: 🦜\n\tx  = [1, 22];",
]
WIDTH, LENGTH = 96, 12


def trained(model, tokenizer):
    """The model that was trained: the adapters of the cold start, then those of GRPO, merged."""
    for name in ADAPTERS:
        model = lora.off(model)
        lora.load(model, DATA / "gemma3-270m" / name)
        model = lora.merge(model)
    return model, tokenizer


def cut(model, tokenizer):
    ids = sorted({*corpus.pieces_used(COLD, tokenizer), *tokenizer.special_ids})
    return vocabulary.cut(model, ids), tokenizer.subset(ids)


def answers(model, tokenizer, asked: dict) -> dict:
    """This package's, as `elsewhere.py` gives transformers'."""
    return {
        "texts": [here.score(model, tokenizer, text, WIDTH) for text in asked["texts"]],
        "greedy": [here.write(model, tokenizer, x, LENGTH, WIDTH) for x in asked["prompts"]],
    }


def compare(ours: dict, theirs: dict) -> dict:
    pairs = list(zip(ours["texts"], theirs["texts"], strict=True))
    row = {"transformers": theirs["version"], "ids": all(a["ids"] == b["ids"] for a, b in pairs)}
    if row["ids"]:
        mine = np.concatenate([a["logprobs"] for a, _ in pairs])
        other = np.concatenate([b["logprobs"] for _, b in pairs])
        row |= {"tokens": len(mine), "nats": -mine.mean(), "nats there": -other.mean()}
        row["difference"] = np.abs(mine - other).max()
    row["greedy"] = ours["greedy"] == theirs["greedy"]
    row["text"] = [text["text"] for text in theirs["greedy"]]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="folder of Gemma 3 270M")
    parser.add_argument("pythons", nargs="+", help="Pythons with torch and transformers")
    chosen = parser.parse_args()
    devices.compilation_cache()
    whole, tokenizer, _ = weights.load(chosen.weights, dtype=jnp.float32)
    documents = ["".join(text for text, _ in corpus.document(COLD, i)) for i in range(40)]
    texts = sorted(documents, key=len)[12:14]
    puzzles = [countdown.Puzzle((20, 16, 4), 40), countdown.Puzzle((19, 7, 3), 36)]
    prompts = [countdown.prompt(puzzle, COLD.template) for puzzle in puzzles]
    rows = []
    for name in ("whole", "whole, trained", "cut", "cut, trained"):
        model, words = whole, tokenizer
        if "cut" in name:
            model, words = cut(model, words)
        if "trained" in name:
            model, words = trained(model, words)
        english = ENGLISH if "cut" not in name else []
        asked = {"texts": texts + english, "prompts": prompts + english[:1]}
        with tempfile.TemporaryDirectory() as folder:
            export.save_hf(model, folder, words)
            question = {"folder": folder, "chats": [], "length": LENGTH, **asked}
            theirs = [here.ask(python, [question], Path(folder))[0] for python in chosen.pythons]
        ours = answers(model, words, asked)
        for other in theirs:
            row = {"model": name, **compare(ours, other)}
            print(json.dumps(row, ensure_ascii=False, default=float), flush=True)
            rows.append(row)
    text = json.dumps(rows, indent=2, ensure_ascii=False, default=float)
    RECORD.write_text(text + "\n")


if __name__ == "__main__":
    main()
