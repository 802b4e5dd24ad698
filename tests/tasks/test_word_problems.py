"""Sums in sentences: stories whose answer is recomputed from their words, and a reward."""

import re

import pytest

from aha_lib.tasks.word_problems import NAMES, Story, WordProblems, last_answer

TASK = WordProblems()


def recount(text: str) -> int:
    """The answer, read from the sentences alone."""
    first, *changes, _ = re.split(r"(?<=[.?]) ", text)
    count = int(re.search(r"has (\d+) ", first)[1])
    for sentence in changes:
        numbers = [int(digits) for digits in re.findall(r"\d+", sentence)]
        if sentence.startswith("Then"):
            count += numbers[0]
        elif "boxes" in sentence:
            count += numbers[0] * numbers[1]
        elif sentence.startswith("Half"):
            assert count % 2 == 0, text
            count //= 2
        else:
            assert "gets" in sentence
            count -= numbers[0]
        assert count > 0
    return count


def test_stories_have_the_answer_that_their_words_give():
    stories = [TASK.puzzle(3, index, held_out=index % 2 == 0) for index in range(400)]
    assert [story.answer for story in stories] == [recount(story.text) for story in stories]
    assert len({story.text for story in stories}) == 400
    assert {len(re.findall(r"\.", story.text)) for story in stories} == {3, 4, 5}
    assert all(story.text.split()[0] in NAMES for story in stories)


def test_the_same_index_gives_the_same_story_and_held_out_ones_are_apart():
    assert TASK.puzzle(0, 7, held_out=False) == TASK.puzzle(0, 7, held_out=False)
    kept = {TASK.puzzle(0, index, held_out=True).text for index in range(300)}
    drawn = {TASK.puzzle(seed, i, held_out=False).text for seed in range(2) for i in range(300)}
    assert not kept & drawn


def test_no_prompt_is_much_longer_than_the_longest():
    longest = len(TASK.prompt(TASK.longest()))
    others = [TASK.prompt(TASK.puzzle(9, index, held_out=True)) for index in range(500)]
    assert max(map(len, others)) <= longest + 5


@pytest.mark.parametrize(
    "text, value",
    [
        (" 12 + 4 = 16.\n#### 1016", 1.0),
        ("#### 1,016.", 1.0),
        ("#### $1016", 1.0),
        ("#### 1016.00", 1.0),
        ("#### 3\nno, wait\n####1016", 1.0),
        ("#### 1016\n#### 3", 0.1),
        ("#### 1016.5", 0.0),
        ("#### -1016", 0.1),
        ("the answer is 1016", 0.0),
        ("#### the answer", 0.0),
        ("####", 0.0),
        ("", 0.0),
        ("#### ١٠١٦ and 1016", 0.0),
    ],
)
def test_reward(text, value):
    assert TASK.reward(text, Story("", 1016)) == value


def test_any_text_is_judged():
    assert last_answer("#" * 100_000) is None
    assert last_answer("#### " + "9" * 4_000) == int("9" * 4_000)
