"""Countdown with a calculator: replies, rewards, measures, and the corpus in which it is asked."""

import dataclasses
import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha_lib.model import weights
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, SETTINGS
from aha_lib.tasks import calculator, corpus
from aha_lib.tasks.calculator import Calculator, Cheap, Dear, Sum, sums, with_calls, without_calls
from aha_lib.tasks.countdown import Puzzle
from aha_lib.tasks.task import Countdown, load, name_of

TASK = Calculator(puzzles="tinyzero-200")
PLAIN = Countdown(puzzles="tinyzero-200")
LESSON = PRETRAINING["calculator"]
TOKENIZER = Tokenizer(tiny_model(WORDS["calculator"]))
PUZZLE = Puzzle((44, 19, 35), 60)
SEARCH = "44 - 35 = ? 9 , 19 + 9 = 28 no 44 - 19 = ? 25 , 35 + 25 = 60 yes"
ANSWER = "<answer> 35 + ( 44 - 19 ) </answer>"

texts_of_words = st.lists(st.sampled_from([*WORDS["calculator"], "201", "999"]), max_size=40)


def reply(text: str) -> str:
    return TASK.reply(text, PUZZLE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("44 + 19 = ?", "63"),
        ("44 - 19 = ?", "25"),
        ("19 * 7 = ?", "133"),
        ("84 / 7 = ?", "12"),
        ("19 - 19 = ?", "0"),
        ("0 / 7 = ?", "0"),
        ("150 + 50 = ?", "200"),
        ("44 + 19 = 99 , 99 - 9 = ?", "90"),
        ("44 + 19 = ? 63 , 63 - 9 = ?", "54"),
        ("44 + 19 = 63 no 44 - 19 = ? ", "25"),
        ("<answer> 44 - 19 = ?", "25"),
        ("44 35 19 7 = 91 : 44 - 19 = ?", "25"),
    ],
)
def test_the_calculator_is_right(text, told):
    assert reply(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "84 / 8 = ?",
        "7 / 84 = ?",
        "84 / 0 = ?",
        "0 / 0 = ?",
        "19 - 44 = ?",
        "150 + 51 = ?",
        "99 * 99 = ?",
        "999 * 999 = ?",
    ],
)
def test_what_has_no_result_is_refused(text):
    assert reply(text) == "no"


@pytest.mark.parametrize(
    "text",
    [
        "?",
        "",
        "44 = ?",
        "44 - = ?",
        "- 19 = ?",
        "= ?",
        "44 - 19 ?",
        "44 - 19 = ? ?",
        "44 - 19 = 25 ?",
        "44 - 19 = ? 25",
        "44 - 19 =",
        "1 + 44 - 19 = ?",
        "2 * 44 - 19 = ?",
        "( 44 - 19 ) * 2 = ?",
        "44 - ( 19 ) = ?",
        "-44 - 19 = ?",
        "44-19=?",
        "44 ** 2 = ?",
        "44 // 2 = ?",
        "44 % 5 = ?",
        "44.0 - 19 = ?",
        "1e2 - 19 = ?",
        "٤٤ - 19 = ?",
        "44\n- 19 = ?",
        "44 - 19 = ? please",
        "__import__('os').getcwd() - 19 = ?",
        "9" * 5_000 + " * " + "9" * 5_000 + " = ?",
        "1 + " * 50_000 + "1 = ?",
        "44 - 19 = ? 25 " * 5_000,
        "\0 \ud800 - 19 = ?",
    ],
    ids=range(30),
)
def test_what_is_no_sum_is_refused(text):
    assert reply(text) == "no"


@given(texts_of_words.map(" ".join))
def test_any_text_is_answered_in_one_word_of_the_vocabulary(text):
    told = reply(f"{text} ?")
    assert TOKENIZER.decode(TOKENIZER.encode(told, bos=False)) == told
    assert len(TOKENIZER.encode(told, bos=False)) == 1
    assert told == "no" or 0 <= int(told) <= TASK.bound


def test_every_sum_of_the_puzzles_arithmetic_has_its_result():
    """All facts that the corpus may write, sign by sign."""
    facts = [fact for of_sign in corpus._facts_by_sign(TASK.bound) for fact in of_sign]
    assert len(facts) > 20_000
    for fact in facts:
        asked, told = fact.rsplit(" ", 1)
        assert reply(f"{asked} ?") == told


def test_the_turn_ends_with_one_piece():
    assert len(TOKENIZER.encode(TASK.turn_end, bos=False)) == 1
    assert MODELS["calculator"].vocab == TOKENIZER.vocab_size


@given(texts_of_words)
def test_rewards_are_those_of_countdown_without_the_question_marks(words):
    plain = " ".join(word for word in words if word != "?")
    tail = f"{plain} {ANSWER}"
    for text, without in ((" ".join(words), plain), (f"{' '.join(words)} {ANSWER}", tail)):
        calls = words.count("?")
        assert TASK.reward(text, PUZZLE) == PLAIN.reward(without, PUZZLE)
        dear = Dear(puzzles="tinyzero-200").reward(text, PUZZLE)
        assert dear == pytest.approx(PLAIN.reward(without, PUZZLE) - 0.05 * calls)


def test_rewards_of_right_wrong_and_none():
    assert TASK.reward(f"{SEARCH} {ANSWER}", PUZZLE) == 1
    assert TASK.reward(f"{SEARCH} <answer> 35 + 44 - 19 = ? 60 </answer>", PUZZLE) == 1
    assert TASK.reward("44 - 19 = ? 25 <answer> 44 - 19 + 1 </answer>", PUZZLE) == 0.1
    assert TASK.reward(SEARCH, PUZZLE) == 0
    priced = dataclasses.replace(TASK, price=0.2)
    assert priced.reward(f"{SEARCH} {ANSWER}", PUZZLE) == pytest.approx(0.6)
    assert priced.reward(SEARCH, PUZZLE) == pytest.approx(-0.4)
    assert (Calculator().price, Cheap().price, Dear().price) == (0, 0.01, 0.05)


def test_sums_and_their_kinds():
    text = "44 - 35 = ? 9 , 19 + 9 = 28 no 7 + 9 = ? 16 , 12 - 8 = 3 , 12 * 8 = 96 , 7 / 2 = ? no"
    assert sums(text) == [
        Sum(44, "-", 35, None),
        Sum(19, "+", 9, 28),
        Sum(7, "+", 9, None),
        Sum(12, "-", 8, 3),
        Sum(12, "*", 8, 96),
        Sum(7, "/", 2, None),
    ]
    kinds = ["large", "large", "small", "small", "times", "times"]
    assert [one.kind for one in sums(text)] == kinds
    assert [one.true for one in sums(text)] == [False, True, False, False, True, False]
    # The result is of the kind too, and it is the true one; a sum without one is no small sum.
    assert Sum(20, "+", 1, 3).kind == "large" and Sum(20, "-", 19, 99).kind == "small"
    assert Sum(8, "-", 12, 4).kind == "large" and not Sum(8, "-", 12, 4).true
    assert sums("7 = 91 : 35 + 25 = 60") == [Sum(35, "+", 25, 60)], "a puzzle is no sum"


def test_measures_by_hand():
    other = "16 - 9 = 7 , 44 + 16 = 61 no 9 * 8 = ? 72 <answer> 44 + 35 </answer>"
    texts = [f"{SEARCH} {ANSWER}", other]
    found = TASK.measures(texts, [PUZZLE, PUZZLE], [True, True])
    assert found["right"] == 0.5
    assert found["calls"] == 1.5
    assert found["asked"] == pytest.approx(3 / 7)
    assert found["true"] == pytest.approx(3 / 4)
    assert (found["asked_large"], found["true_large"]) == (pytest.approx(2 / 5), 2 / 3)
    assert (found["asked_small"], found["true_small"]) == (0, 1)
    assert found["asked_times"] == 1 and "true_times" not in found
    # As Countdown measures them; each text says "no" once and goes on.
    plain = PLAIN.measures([without_calls(text) for text in texts], [PUZZLE, PUZZLE], [True, True])
    assert plain.items() <= found.items() and found["backtracks"] == 1
    assert found["outcomes"]["right"] == 1 and found["accuracy_3"] == 0.5
    assert Dear(puzzles="tinyzero-200").measures(texts, [PUZZLE] * 2, [True] * 2) == found


def test_measures_of_texts_without_sums():
    found = TASK.measures([ANSWER], [PUZZLE], [True])
    assert found["right"] == 1 and found["calls"] == 0
    assert not {"asked", "true", "asked_small"} & set(found)


def test_it_is_found_by_name():
    task = load(SETTINGS["calculator"])
    assert type(task) is Calculator and task.puzzles == "three-200" and task.bound == 200
    assert name_of(task) == SETTINGS["calculator"].task
    assert name_of(Dear()) == "aha_lib.tasks.calculator:Dear"


def test_some_sums_of_the_corpus_are_asked_and_the_replies_are_not_learnt():
    """Each document is tinyzero-small's kind of document with question marks in it."""
    plain_lesson = dataclasses.replace(LESSON, lesson="countdown")
    asked = own = 0
    for index in range(2_000):
        pieces = corpus.document(LESSON, index)
        plain = corpus.document(plain_lesson, index)
        text = " ".join(text for text, _ in pieces)
        assert without_calls(text) == " ".join(text for text, _ in plain)
        so_far = ""
        is_reply = False
        for text, weight in pieces:
            if is_reply:
                assert weight == 0 and text == reply(so_far)
            so_far = f"{so_far} {text}"
            is_reply = text.endswith("?")
            assert "?" not in text[:-1]
            asked += is_reply
        assert not is_reply, "no document ends with a question"
        learnt = [text for text, weight in pieces if weight]
        own += sum(len(re.findall(r"[-+*/] \d+ = \d+", text)) for text in learnt)
    assert asked > 300
    assert asked / (asked + own) == pytest.approx(calculator.ASKED, abs=0.02)


def test_calls_in_pieces():
    pieces = [("44 35 19 = 60 :", 0.0), ("44 - 19 = 25 , 35 + 25 = 60 yes", 1.0)]
    rng = random.Random(0)
    assert with_calls(pieces, rng, share=0.0) == pieces
    assert with_calls(pieces, rng, share=1.0) == [
        ("44 35 19 = 60 :", 0.0),
        ("44 - 19 = ?", 1.0),
        ("25", 0.0),
        (", 35 + 25 = ?", 1.0),
        ("60", 0.0),
        ("yes", 1.0),
    ]
    drill = [("44 - 19 =", 0.0), ("25", 3.0), (", 4 + 3 =", 0.0), ("7", 3.0)]
    assert with_calls(drill, rng, share=1.0) == drill


@pytest.fixture(scope="module")
def base():
    return weights.load("calculator")


def test_the_base_is_that_of_its_preset(base):
    folder = weights.SHIPPED["calculator"]
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["settings"] == dataclasses.asdict(LESSON)
    assert record["corpus"] == corpus.fingerprint(LESSON)
    assert (folder / "tokenizer.model").read_bytes() == tiny_model(WORDS["calculator"])
    assert base[2] == MODELS["calculator"]


def test_the_base_often_errs_in_large_sums_and_seldom_in_products(base):
    """So there is something that a calculator is good for, and something that it is not."""
    model, tokenizer, _ = base
    rng = random.Random(0)
    chances = {}
    for kind, facts in facts_by_kind().items():
        tokens = jnp.array([tokenizer.encode(fact) for fact in rng.sample(facts, 300)])
        read = tokens[:, :-1]
        positions = jnp.broadcast_to(jnp.arange(read.shape[1]), read.shape)
        hidden = model.hidden(read, positions, jnp.ones_like(read))
        share = jax.nn.softmax(model.logits(hidden[:, -1]).astype(jnp.float32))
        chances[kind] = float(np.mean(share[np.arange(300), tokens[:, -1]]))
    assert 0.15 < chances["large"] < 0.6, chances
    assert chances["times"] > chances["large"] + 0.2, chances


def facts_by_kind() -> dict[str, list[str]]:
    found = {}
    for fact in (fact for of_sign in corpus._facts_by_sign(200) for fact in of_sign):
        (one,) = sums(fact)
        found.setdefault(one.kind, []).append(fact)
    return {kind: found[kind] for kind in ("large", "times")}
