"""Any data set of reasoning-gym (2505.24760) as a task: `--task gym:chain_sum`.

Needs the extra `gym` (`pip install "aha_lib[gym]"`). Questions and scores are its own. Knows
nothing of Countdown.
"""

import inspect
import random
import re
from typing import Any

from aha_lib.tasks.task import Task, is_held_out

INDICES = 2**31 - 1  # entries of a data set, of which each puzzle draws some
TRIED = 1_000  # draws after which a data set seems to have no held-out questions, or no others
# A scorer that runs a model's text as code is not asked.
EVALUATES = re.compile(r"\b(parse_expr|sympify|eval|exec)\(")


class Gym(Task[dict[str, Any]]):
    """A data set of reasoning-gym by its name, with changes of its configuration.

    A puzzle is one of its entries: `question`, `answer` and `metadata`. Raises ValueError where
    the package or the data set is missing, and where the data set's scorer evaluates the answer as
    code: what a model writes is never run.
    """

    def __init__(self, dataset: str, **config):
        self.name = f"gym:{dataset}"
        self._config = config
        self._dataset = dataset
        self._made = _create(dataset, **config)
        if EVALUATES.search(inspect.getsource(inspect.getmodule(type(self._made)))):
            raise ValueError(
                f"reasoning-gym's {dataset} evaluates expressions as Python code: an answer of a "
                "model could run anything. Choose another data set, or write the reward yourself."
            )

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> dict[str, Any]:
        """The first of some random entries whose question is held out, or is not."""
        rng = random.Random(f"{seed} {index} {held_out}")
        for _ in range(TRIED):
            entry = self._made[rng.randrange(INDICES)]
            if is_held_out(entry["question"]) == held_out:
                return entry
        kind = "held-out" if held_out else "training"
        raise ValueError(f"{self.name} has no {kind} question in {TRIED} draws: it is too small.")

    def prompt(self, puzzle: dict[str, Any]) -> str:
        return f"{puzzle['question']}\nGive the answer as <answer> answer </answer>.\n"

    def reward(self, text: str, puzzle: dict[str, Any]) -> float:
        """The data set's own score, from 0 to 1, of what the last answer tag holds, or of all."""
        said = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        answer = said[-1] if said else text
        return float(self._made.score_answer(answer=answer.strip(), entry=puzzle))

    def longest(self) -> dict[str, Any]:
        """The longest of some prompts; `prompt_len` should leave room for longer ones."""
        entries = [self.puzzle(0, index, held_out=False) for index in range(200)]
        return max(entries, key=lambda entry: len(self.prompt(entry)))


def _create(dataset: str, **config):
    """The data set, with a sentence where it or the package is missing."""
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError('gym: tasks need reasoning-gym: pip install "aha_lib[gym]".') from None
    try:
        return reasoning_gym.create_dataset(dataset, seed=0, size=INDICES, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym has no data set {dataset} so: {error}") from None
