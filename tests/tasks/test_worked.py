"""Searches through three, four and five numbers, by a reader that keeps books of its own."""

import dataclasses
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aha_lib.model import weights
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import PRETRAINING, PUZZLES, SETTINGS, Pretraining
from aha_lib.tasks import corpus, countdown, faults, traces, worked
from aha_lib.tasks.countdown import Puzzle
from aha_lib.tasks.task import Countdown

SMALL = PRETRAINING["tinyzero-small"]
RULE = corpus.rule(SMALL)
RANGES = PUZZLES[SMALL.puzzles]
FIVE = dataclasses.replace(RANGES, numbers=5)


@pytest.fixture(scope="module")
def searches():
    """Pairs of a puzzle and its search."""
    puzzles = [countdown.generate(0, i, RANGES) for i in range(60)]
    puzzles += [countdown.generate(0, i, FIVE) for i in range(2)]
    return [(p, worked.trace(p, "search", random.Random(i), RULE)) for i, p in enumerate(puzzles)]


@pytest.mark.parametrize(("model", "preset"), [("tiny", "tiny"), ("small", "tinyzero-small")])
def test_the_shipped_bases_corpora_are_this_codes(model, preset):
    """The three-number traces of before are a case of the recursion, to the letter."""
    record = json.loads((weights.SHIPPED[model] / "pretraining.json").read_text())
    assert record["corpus"] == corpus.fingerprint(PRETRAINING[preset])
    assert Pretraining(**record["settings"]) == PRETRAINING[preset]


def test_a_search_as_it_is_written():
    puzzle = Puzzle((44, 19, 35, 7), 91)
    text = worked.trace(puzzle, "search", random.Random(3), worked.Rule(bound=200))
    assert text.startswith(
        "44 - 19 = 25 ; 35 25 7 = 91 : 35 + 7 = 42 , 42 + 25 = 67 no 35 - 7 = 28 , 28 + 25 = 53 no "
    )
    assert " no back 44 35 19 7 = 91 : 44 + 7 = 51 ; 51 35 19 = 91 : 35 + 19 = 54 , " in text
    assert text.endswith(" 72 + 19 = 91 yes <answer> ( ( 44 - 7 ) + 35 ) + 19 </answer>")


def test_searches_keep_their_rule(searches):
    """True sums, the numbers left, nothing twice, back where all is used up, in the rule's order;
    and the first operation on some numbers is any of them."""
    kinds = Counter()
    for puzzle, text in searches:
        read = faults.first_fault(text, puzzle, RULE)
        assert read.fault == "none", (puzzle, read)
        assert read.out_of_order == 0 and read.sums == text.count(" = ") - text.count(" :")
        kinds[len(puzzle.numbers)] += read.attempts
    assert kinds[3] / sum(len(p.numbers) == 3 for p, _ in searches) < 4
    assert 8 < kinds[4] / sum(len(p.numbers) == 4 for p, _ in searches) < 50
    starts = Counter()
    for seed in range(300):
        puzzle = Puzzle((40, 30, 20), 77)
        starts[worked.trace(puzzle, "check", random.Random(seed), RULE)[:12]] += 1
    assert len(starts) == 7 and min(starts.values()) > 20, "a * b and a / b are not within 200"


@pytest.mark.parametrize("leave", [0.3, 1.0])
def test_other_orders(leave):
    """Left early, a puzzle is gone on with when its turn comes: all is tried, nothing twice."""
    rule = dataclasses.replace(RULE, leave=leave)
    for index in range(12):
        puzzle = countdown.generate(1, index, dataclasses.replace(RANGES, numbers=4))
        text = worked.trace(puzzle, "search", random.Random(index), rule)
        assert countdown.reward(text, puzzle).value == 1
        attempts = re.findall(r"(\d+ \S \d+) = \d+ , (\d+ \S \d+) =", text)
        stated = re.findall(r"; ([\d ]+) = \d+ :", text)
        if leave == 1:
            assert len(attempts) == len(stated), "each attempt begins with the given numbers"
        wholes = [attempt.expression for attempt in traces.parse(text, puzzle).attempts]
        assert len(wholes) == len(attempts)
    flat = worked.trace(Puzzle((97, 96, 95, 94), 10), "search", random.Random(0), rule)
    assert len(re.findall(" no| yes", flat)) > 50, "it goes on when a round is over"
    assert flat.split(" <answer>")[0].split()[-1] in ("no", "yes"), "no way back before the answer"


def broken(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


GOOD = (
    "44 - 7 = 37 ; 37 35 19 = 91 : 35 - 19 = 16 , 37 + 16 = 53 no 37 + 35 = 72 , 72 + 19 = 91 yes "
    "<answer> ( ( 44 - 7 ) + 35 ) + 19 </answer>"
)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", "none"),
        ("= 37 ;", "= 36 ;", "false sum"),
        ("37 35 19 =", "37 35 7 =", "false list"),
        ("19 = 91 :", "19 = 90 :", "false list"),
        ("35 - 19 = 16", "35 - 7 = 28", "not at hand"),
        ("37 + 35 = 72 ,", "35 - 19 = 16 ,", "repeat"),
        ("no 37 + 35", "no back 44 35 19 7 = 91 : 37 + 35", "left early"),
        ("37 + 16 = 53", "37 - 16 = 21", "not closest"),
        ("53 no", "53 yes", "false verdict"),
        ("91 yes", "91 no", "false verdict"),
        ("+ 19 </", "- 19 </", "false answer"),
        (" 37 + 35 = 72 , 72 + 19 = 91 yes", "", "gave up"),
        (" </answer>", "", "cut off"),
        ("yes <answer>", "yes", "form"),
        ("; 37", ", 37", "form"),
    ],
)
def test_faults_are_named(old, new, fault):
    puzzle = Puzzle((44, 19, 35, 7), 91)
    assert faults.first_fault(broken(GOOD, old, new), puzzle, RULE).fault == fault


def test_staying_on_used_up_numbers_is_a_fault():
    puzzle = Puzzle((97, 96, 95, 94), 10)
    text = worked.trace(puzzle, "search", random.Random(0), RULE)
    before, after = text.split(" back 97", 1)
    again = re.search(r": (\d+ \S \d+ = \d+) , ", before)[1]
    stays = f"{before} {again} , {after}"
    assert faults.first_fault(stays, puzzle, RULE).fault == "stays"
    assert set(faults.KINDS) >= {faults.first_fault(text, puzzle, RULE).fault}


@pytest.mark.parametrize("language", ["tiny", "compact"])
def test_traces_understand_searches(searches, language):
    """Attempts, returns and first operations, of which the text itself tells the number."""
    for puzzle, tiny in searches:
        text = tiny if language == "tiny" else corpus.compact(tiny)
        trace = traces.parse(text, puzzle)
        verdicts = re.findall(r" (no|yes) ", tiny)
        assert [attempt.verdict for attempt in trace.attempts] == verdicts
        assert trace.right and trace.attempts[-1].reached and not trace.slips
        assert all(a.distance == abs(a.stated - puzzle.target) for a in trace.attempts)
        assert not any(attempt.illegal for attempt in trace.attempts)
        if len(puzzle.numbers) == 4:
            firsts = re.findall(r"(\d+ . \d+) = \d+ ;", tiny)
            assert trace.returns == len(verdicts) - len(firsts)
            shown = [first.replace(" ", "") for first in trace.first_operations]
            assert shown == [first.replace(" ", "") for first in firsts]
        if len(puzzle.numbers) == 3:
            assert trace.returns == 0 and len(trace.first_operations) == len(verdicts)
        assert traces.outcome(trace) == "right"


def test_compact_pieces_join_to_the_compact_text():
    short = dataclasses.replace(SMALL, template="short", drill=0.0, jump=0.0, check=0.0)
    spaced = dataclasses.replace(short, template="tiny")
    for index in range(30):
        (_, *pieces), (_, *words) = (corpus.document(s, index) for s in (short, spaced))
        assert [weight for _, weight in pieces] == [weight for _, weight in words]
        whole = corpus.compact(" ".join(text for text, _ in words))
        assert "".join(text for text, _ in pieces) == whole
        assert all(text.isdecimal() for text, weight in pieces if not weight)


def test_small_documents():
    """Drills over the whole range; held-out facts not learnt, searches not left out for them."""
    documents = [corpus.document(SMALL, index) for index in range(600)]
    learnt, not_learnt, unlearnt_results = Counter(), 0, 0
    for document in documents:
        text = " ".join(piece for piece, _ in document)
        if " :" not in document[0][0]:
            assert [weight for _, weight in document] == [0.0, SMALL.drill_weight] * corpus.DRILL
            learnt.update(corpus._facts(text))
            continue
        assert document[0][1] == 0
        *numbers, target = map(int, re.findall(r"\d+", document[0][0]))
        assert not countdown.is_held_out(tuple(numbers))
        so_far = ""
        for piece, weight in document[1:]:
            so_far += f" {piece}"
            if weight:
                continue
            not_learnt += 1
            last_fact = " ".join(so_far.split()[-5:])
            assert corpus.is_held_out_fact(last_fact)
        held_out = [fact for fact in corpus._facts(text) if corpus.is_held_out_fact(fact)]
        unlearnt_results += len(held_out)
    assert not_learnt == unlearnt_results > 10
    assert not any(corpus.is_held_out_fact(fact) for fact in learnt)
    assert max(int(fact.split()[-1]) for fact in learnt) > 195


def test_rows_of_small_documents_are_full():
    """Nothing is left out: the last document of a row is cut."""
    tokenizer = Tokenizer(tiny_model(WORDS["small"]))
    rows, end = corpus.rows(SMALL, 0, 6, tokenizer)
    assert (rows["segments"] > 0).all() and rows["tokens"].shape == (6, SMALL.row_len)
    assert not (rows["tokens"] == tokenizer.special_ids[-1]).any(), "every word has its piece"
    assert (rows["segments"].max(axis=1) == (rows["tokens"] == tokenizer.bos_id).sum(axis=1)).all()
    assert (rows["tokens"] == tokenizer.bos_id).sum() == end
    assert set(np.unique(rows["weights"])) == {0.0, 1.0, SMALL.drill_weight}
    again, last = corpus.rows(SMALL, 0, 2, tokenizer)
    rest, same_end = corpus.rows(SMALL, last, 4, tokenizer)
    np.testing.assert_array_equal(np.concatenate([again["tokens"], rest["tokens"]]), rows["tokens"])
    assert same_end == end


def test_what_is_measured_of_a_mix():
    task = Countdown("tinyzero-200")
    three = Puzzle((44, 19, 35), 98)
    four = Puzzle((44, 19, 35, 7), 91)
    texts = ["<answer> ( 44 + 19 ) + 35 </answer>", GOOD, "<answer> 44 </answer>"]
    found = task.measures(texts, [three, four, four], [True] * 3)
    assert (found["accuracy_3"], found["accuracy_4"], found["returns"]) == (1.0, 0.5, 1 / 3)
    assert "accuracy_3" not in Countdown("tiny").measures(texts[:1], [three], [True])


def test_the_longest_prompt_fits_the_preset():
    settings = SETTINGS["tinyzero-small"]
    task = Countdown.from_settings(settings)
    tokenizer = Tokenizer(tiny_model(WORDS["small"]))
    assert len(tokenizer.encode(task.prompt(task.longest()))) == settings.prompt_len


def test_the_null_searchers(monkeypatch):
    """Three numbers are done within a hundred tokens or two; flat searches of four take more."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import nulls

    three, four = (
        nulls.panel(dataclasses.replace(RANGES, numbers=numbers), 40) for numbers in (3, 4)
    )
    assert len({tuple(sorted(puzzle.numbers)) for puzzle in four}) == 40
    assert all(countdown.is_held_out(puzzle.numbers) for puzzle in three + four)
    deep, flat = (nulls.RULES[name] for name in ("depth-first, round", "flat, round"))
    assert nulls.null(three, deep, 2)["solved"][200] == 1
    solved = nulls.null(four, deep, 2)["solved"]
    assert list(solved.values()) == sorted(solved.values()) and 0.8 < solved[1024] <= 1
    assert nulls.null(four, flat, 2)["solved"][1024] < solved[1024]
    kept = json.loads(nulls.FILE.read_text())["nulls"]
    assert set(kept) == {
        f"{n} numbers, {d}, {r}" for n in (3, 4) for d in "PS" for r in nulls.RULES
    }
    assert solved[1024] == pytest.approx(
        kept["4 numbers, P, depth-first, round"]["solved"]["1024"], abs=0.12
    )
