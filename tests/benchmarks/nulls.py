"""What a perfect searcher that looks in random order solves, by the number of tokens it may write.

`python tests/benchmarks/nulls.py` writes nulls.json: the corpus's rule (`tasks.worked`) carried out
without a slip on held-out puzzles of different multisets. Depth-first or, as a flat search does,
from the given numbers at each attempt; the order a round from a random operation on, as in the
corpus, or shuffled. To compare trained models with: whoever is above it looks in a better order.
"""

import argparse
import dataclasses
import json
import random
from pathlib import Path

import numpy as np

from aha_lib.presets import PUZZLES, PuzzleRange
from aha_lib.tasks import countdown, worked

FILE = Path(__file__).with_suffix(".json")
LIMITS = (100, 200, 400, 600, 1024)
RANGES = {"P": PUZZLES["tinyzero-200"], "S": PUZZLES["tinyzero-200-uniform"]}
RULES = {
    "depth-first, round": worked.Rule(bound=200),
    "depth-first, shuffled": worked.Rule(bound=200, shuffled=True),
    "a fifth left early, round": worked.Rule(bound=200, leave=0.2),
    "flat, round": worked.Rule(bound=200, leave=1.0),
    "flat, shuffled": worked.Rule(bound=200, leave=1.0, shuffled=True),
}


def panel(ranges: PuzzleRange, count: int) -> list[countdown.Puzzle]:
    """The first held-out puzzles, each of another multiset of numbers."""
    found, seen, index = [], set(), 0
    while len(found) < count:
        puzzle = countdown.generate(0, index, ranges, held_out=True)
        index += 1
        multiset = tuple(sorted(puzzle.numbers))
        if multiset not in seen:
            seen.add(multiset)
            found.append(puzzle)
    return found


def tokens(puzzle: countdown.Puzzle, rule: worked.Rule, rng: random.Random) -> tuple[int, int]:
    """Tokens that a search writes until its end, EOS included, and its attempts."""
    words = worked.trace(puzzle, "search", rng, rule).split()
    return len(words) + 1, words.count("no") + words.count("yes")


def null(puzzles: list[countdown.Puzzle], rule: worked.Rule, draws: int) -> dict:
    """Share of the puzzles that are solved within each limit, and what the searches are like."""
    rng = random.Random(0)
    each = [[tokens(puzzle, rule, rng) for _ in range(draws)] for puzzle in puzzles]
    found = np.array(each)  # puzzles, draws, (tokens, attempts)
    length, attempts = found[..., 0], found[..., 1]
    by_puzzle = {limit: (length <= limit).mean(1) for limit in LIMITS}
    return {
        "solved": {limit: round(float(x.mean()), 4) for limit, x in by_puzzle.items()},
        "standard_error": {
            limit: round(float(x.std(ddof=1) / len(x) ** 0.5), 4) for limit, x in by_puzzle.items()
        },
        "tokens": [round(float(x), 1) for x in (length.mean(), *np.percentile(length, (50, 90)))],
        "attempts": [
            round(float(x), 1) for x in (attempts.mean(), *np.percentile(attempts, (50, 90)))
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--puzzles", type=int, default=512)
    parser.add_argument("--draws", type=int, default=4)
    chosen = parser.parse_args()
    record = {"puzzles": chosen.puzzles, "draws": chosen.draws, "nulls": {}}
    for name, ranges in RANGES.items():
        for numbers in (3, 4):
            puzzles = panel(dataclasses.replace(ranges, numbers=numbers), chosen.puzzles)
            for rule_name, rule in RULES.items():
                row = null(puzzles, rule, chosen.draws)
                record["nulls"][f"{numbers} numbers, {name}, {rule_name}"] = row
                print(f"{numbers} {name} {rule_name:26} {row['solved']} {row['attempts']}")
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
