"""reasoning-gym's Countdown scorer beside ours, on a thousand answers: who calls what right?

`python tests/benchmarks/scorers.py` writes scorers.json beside this file. The answers are the
recorded runs' own, every third of them changed by one character. Theirs evaluates an answer as
Python, so only answers of digits, blanks, brackets and + - * / are given to it.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

import reasoning_gym
from tqdm.auto import tqdm

from aha_lib.look import record
from aha_lib.tasks import countdown

FILE = Path(__file__).with_suffix(".json")
COUNT = 1_000
HARMLESS = re.compile(r"[0-9+\-*/() ]{1,60}")
# A power of large numbers would keep Python busy for a very long time.
ENDLESS = re.compile(r"\*\s*\*|//")


def answers(rng: random.Random) -> list[tuple[countdown.Puzzle, str]]:
    """Puzzles and answers of the recorded tiny runs, every third one changed."""
    found = []
    for place in sorted((record.DATA / "run").glob("seed*")):
        run = record.read(place)
        for row in run.kept:
            for puzzle, text in zip(run.panel, row["sampled"], strict=True):
                answer = countdown.reward(text, puzzle).expression
                if answer:
                    found.append((puzzle, answer))
    rng.shuffle(found)
    changed = []
    for i, (puzzle, answer) in enumerate(found):
        if i % 3 == 0:
            at = rng.randrange(len(answer))
            answer = answer[:at] + rng.choice("0123456789+-*/() ") + answer[at + 1 :]
        if HARMLESS.fullmatch(answer) and not ENDLESS.search(answer):
            changed.append((puzzle, answer))
    return changed[:COUNT]


def compare() -> dict:
    """How often both scorers agree, and examples of each kind of disagreement."""
    theirs = reasoning_gym.create_dataset("countdown", seed=0, size=1)
    counts, examples = Counter(), {}
    for puzzle, answer in tqdm(answers(random.Random(0))):
        ours = countdown.reward(f"<answer>{answer}</answer>", puzzle)
        entry = {"metadata": {"numbers": list(puzzle.numbers), "target": puzzle.target}}
        score = theirs.score_answer(answer=answer, entry=entry)
        kind = f"ours {'right' if ours.value == 1 else 'wrong'}, "
        kind += f"theirs {'right' if score == 1 else 'wrong'}"
        counts[kind] += 1
        if (ours.value == 1) != (score == 1):
            case = f"{answer!r} for {list(puzzle.numbers)} -> {puzzle.target}: it {ours.reason}"
            examples.setdefault(kind, []).append(case)
    return {
        "answers": sum(counts.values()),
        "counts": dict(counts),
        "disagreements": {kind: cases[:10] for kind, cases in examples.items()},
    }


if __name__ == "__main__":
    found = compare()
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
