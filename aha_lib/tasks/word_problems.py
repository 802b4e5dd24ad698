"""Sums in sentences, in the shape of GSM8K (2110.14168): a little story, a question, a number.

    python notebooks/05_train.py --task aha_lib.tasks.word_problems:WordProblems --preset ...

Stories are generated, so there is no data set to fetch and none to have been read before. It is for
a Gemma: the tiny model does not know these words. Knows nothing of Countdown.
"""

import random
import re
from dataclasses import dataclass

from aha_lib.tasks.task import Task, is_held_out

NAMES = ("Ada", "Ben", "Chidi", "Dana", "Emil", "Farah", "Goran", "Hana")
THINGS = ("apples", "books", "coins", "eggs", "marbles", "pencils", "stamps", "tickets")
STEPS = (2, 3, 4)  # changes in a story, of which one is drawn

PROMPT = """\
Solve the problem step by step. End with the answer in the form #### number.
Problem: {story}
Solution:"""

# The number after the last ####, with or without a currency sign, commas or a full stop.
ANSWER = re.compile(r"####\s*\$?\s*(-?\d[\d,]*)(\.0+)?(?!\.?\d)", re.ASCII)
WELL_FORMED = 0.1  # what a number after #### earns when it is the wrong one


@dataclass(frozen=True)
class Story:
    """A problem in words and its answer."""

    text: str
    answer: int


class WordProblems(Task[Story]):
    """How many are left? Two to four changes of a count, each in a sentence."""

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> Story:
        """A story whose text belongs to the held-out tenth, or does not."""
        rng = random.Random(f"{seed} {index} {held_out}")
        while True:
            story = tell(rng)
            if is_held_out(story.text) == held_out:
                return story

    def prompt(self, puzzle: Story) -> str:
        return PROMPT.format(story=puzzle.text)

    def reward(self, text: str, puzzle: Story) -> float:
        """1.0 for the right number after the last ####, 0.1 for another one, else 0."""
        said = last_answer(text)
        if said is None:
            return 0.0
        return 1.0 if said == puzzle.answer else WELL_FORMED

    def longest(self) -> Story:
        """The longest of many stories; `prompt_len` should leave a few tokens more."""
        stories = [self.puzzle(0, index, held_out=False) for index in range(2_000)]
        return max(stories, key=lambda story: len(story.text))


def tell(rng: random.Random) -> Story:
    """A story of some changes; the count is a whole number from 1 on after each of them."""
    name, friend = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    count = rng.randint(4, 60)
    sentences = [f"{name} has {count} {thing}."]
    for _ in range(rng.choice(STEPS)):
        sentence, count = change(rng, count, friend, thing)
        sentences.append(sentence)
    sentences.append(f"How many {thing} does {name} have now?")
    return Story(" ".join(sentences), count)


def change(rng: random.Random, count: int, friend: str, thing: str) -> tuple[str, int]:
    """A sentence in which the count changes, and the new count."""
    kinds = ["find", "boxes"]
    if count > 1:
        kinds.append("give")
    if count % 2 == 0:
        kinds.append("half")
    kind = rng.choice(kinds)
    if kind == "find":
        more = rng.randint(2, 40)
        return f"Then {more} more {thing} turn up.", count + more
    if kind == "boxes":
        boxes, each = rng.randint(2, 6), rng.randint(2, 9)
        return f"{friend} brings {boxes} boxes with {each} {thing} in each.", count + boxes * each
    if kind == "give":
        fewer = rng.randint(1, count - 1)
        return f"{friend} gets {fewer} of the {thing}.", count - fewer
    return f"Half of the {thing} are sold.", count // 2


def last_answer(text: str) -> int | None:
    """The number after the last `####`; None if there is none."""
    found = ANSWER.search(text, max(0, text.rfind("####")))
    if found is None:
        return None
    return int(found[1].replace(",", ""))
