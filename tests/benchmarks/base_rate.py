"""What a base model can do on Countdown before any training, with three numbers a puzzle.

`python tests/benchmarks/base_rate.py SOURCE`, with what weights.load takes: prints the share of
completions with an answer and with a well-formed one, and pass@k on held-out puzzles.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import weights
from aha_lib.presets import PUZZLES, SETTINGS
from aha_lib.run import train
from aha_lib.tasks import countdown, traces
from aha_lib.tasks.rollout import Policy, rollout
from aha_lib.tasks.task import Countdown

AT_A_TIME = 16  # puzzles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--puzzles", type=int, default=256)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--show", type=int, default=3, help="completions to print")
    chosen = parser.parse_args()
    model, tokenizer, _ = weights.load(chosen.source, dtype=devices.dtypes()[0])
    ranges = dataclasses.replace(PUZZLES["tinyzero"], numbers=3)
    panel = [countdown.generate(0, i, ranges, held_out=True) for i in range(chosen.puzzles)]
    prompts = [tokenizer.encode(countdown.prompt(puzzle, "base")) for puzzle in panel]
    settings = dataclasses.replace(
        SETTINGS["gemma3-270m"],
        prompts=AT_A_TIME,
        group=chosen.group,
        prompt_len=max(map(len, prompts)),
        completion_len=chosen.length,
    )
    policy = Policy(model, tokenizer, Countdown.from_settings(settings), settings)
    rewards, texts, tokens, seconds = [], [], 0, 0.0
    for start in tqdm(range(0, len(panel), AT_A_TIME)):
        puzzles = panel[start : start + AT_A_TIME]
        began = time.perf_counter()
        out = rollout(policy, puzzles, jax.random.key(start), group=chosen.group, temperature=1.0)
        seconds += time.perf_counter() - began
        judged = zip(out.texts, out.puzzles, strict=True)
        rewards += [countdown.reward(text, puzzle).value for text, puzzle in judged]
        texts += list(zip(out.puzzles, out.texts, strict=True))[:: chosen.group]
        tokens += int(out.completions.mask.sum())
    rewards = np.array(rewards).reshape(len(panel), chosen.group)
    for puzzle, text in texts[: chosen.show]:
        print(f"\n{list(puzzle.numbers)} -> {puzzle.target}: {text!r}")
    parsed = [traces.parse(text, puzzle) for puzzle, text in texts]
    print(
        f"\n{len(panel)} puzzles x {chosen.group}, {chosen.length} tokens, temperature 1; "
        f"{tokens / seconds:.0f} tokens a second on {jax.devices()[0].device_kind}"
    )
    print(f"a well-formed answer {np.mean(rewards > 0):.4f}, right {np.mean(rewards == 1):.4f}")
    ks = [k for k in (1, 2, 4, 8, 16) if k <= chosen.group]
    print("pass@k", {k: round(train.pass_at_k(rewards == 1, k), 4) for k in ks})
    tried = np.mean([len(trace.attempts) > 0 for trace in parsed])
    print(f"of {len(parsed)}, one a puzzle, {tried:.3f} hold an attempt at an expression")


if __name__ == "__main__":
    main()
