"""The task with a search: its worlds and passages, its replies, its reward and its corpus."""

import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import gemma_like_tokenizer

from aha_lib.look import show
from aha_lib.presets import PRETRAINING, SETTINGS
from aha_lib.run import cold_start
from aha_lib.tasks import corpus, look_up_text
from aha_lib.tasks.look_up_text import RELATIONS, LookUpText, Question, search, store, words
from aha_lib.tasks.task import load

TASK = LookUpText()
LESSON = PRETRAINING["look-up-270m"]
QUESTIONS = [TASK.puzzle(3, index, held_out=index % 2 == 0) for index in range(200)]


@pytest.fixture(scope="module")
def bm25s():
    return pytest.importorskip("bm25s", reason='needs pip install "aha_lib[search]"')


def play(task: LookUpText, puzzle: Question) -> str:
    """A perfect policy, which knows English: it asks in other words until the fact is there."""
    text, subject = "", puzzle.start
    for name in puzzle.relations:
        relation = RELATIONS[name]
        forms = [re.escape(told.format(subject, "@")) for told in relation.told]
        readers = [re.compile(form.replace("@", "([A-Z][A-Za-z& ]+)")) for form in forms]
        found = None
        for asked in relation.asked:
            text += f"ask: {asked.format(subject)}\n"
            reply = task.reply(text, puzzle)
            text += reply
            matches = [reader.fullmatch(reply.removesuffix("\n")) for reader in readers]
            found = next((match for match in matches if match), None)
            if found:
                break
        if not found:
            return f"{text}<answer>nobody</answer>"
        subject = found[1]
    return f"{text}<answer>{subject}</answer>"


def test_a_question_as_it_is_asked():
    puzzle = Question(5, "Anna Bell", ("works", "based", "mayor"))
    prompt = "Name the mayor of the town where the employer of Anna Bell is based.\n"
    assert TASK.prompt(puzzle) == prompt


def test_the_same_index_gives_the_same_question_and_world():
    assert TASK.puzzle(3, 7, held_out=False) == QUESTIONS[7]
    passages = store(QUESTIONS[7].world).passages
    store.cache_clear()
    assert store(QUESTIONS[7].world).passages == passages
    assert len({puzzle.world for puzzle in QUESTIONS}) == len(QUESTIONS)


def test_held_out_questions_are_never_asked_in_training():
    held_out = {TASK.prompt(q) for q in QUESTIONS[::2]}
    drawn = {TASK.prompt(TASK.puzzle(0, i, held_out=False)) for i in range(2_000)}
    assert len(held_out) > 50 and not held_out & drawn


def test_a_world_tells_each_fact_once_among_others():
    facts = store(QUESTIONS[0].world)
    assert len(facts.passages) == len(set(facts.passages)) == 300
    for (relation, subject), found in facts.facts.items():
        (passage,) = [p for p in facts.passages if p == facts.telling[relation, subject]]
        assert subject in passage and found in passage
    assert len(facts.facts) == 60 * 2 + 24 * 3
    wordings = Counter(
        RELATIONS[name].told[0].format(subject, found) == facts.telling[name, subject]
        for (name, subject), found in facts.facts.items()
    )
    assert min(wordings[True], wordings[False]) > 60
    other = store(QUESTIONS[1].world)
    same = facts.facts.items() & other.facts.items()
    assert len(same) < 0.1 * len(facts.facts), "worlds agree by chance alone"


def test_questions_have_one_to_three_hops_that_fit():
    hops = Counter(len(q.relations) for q in QUESTIONS)
    assert set(hops) == {1, 2, 3} and min(hops.values()) > 40
    for puzzle in QUESTIONS:
        facts = store(puzzle.world)
        chain = facts.chain(puzzle)
        assert len(set(chain)) == len(chain)
        for relation, subject in zip(puzzle.relations, chain, strict=False):
            assert subject in facts.names[RELATIONS[relation].of]


def test_an_empty_line_and_prose_are_no_calls():
    """They get no word, and the completion goes on; behind an answer it ends."""
    for text in ("\n", "so\n", "I ask: who\n", " ask: who\n", "Ask: who\n", "ask\n", "ask: a", ""):
        assert TASK.reply(text, QUESTIONS[0]) == "", text
    assert TASK.reply("<answer>Anna Bell</answer>\n", QUESTIONS[0]) is None
    assert TASK.reply("<answer>Anna\nask: who\n", QUESTIONS[0]) is not None


def test_a_call_finds_the_fact_in_the_passages_own_words(bm25s):
    """In one of the two ways to ask for it, on all facts of some worlds; in the other seldom."""
    found = Counter()
    for world in range(3):
        facts = store(world)
        for (name, subject), passage in facts.telling.items():
            relation = RELATIONS[name]
            hits = [search(world, asked.format(subject)) == passage for asked in relation.asked]
            object_ = facts.facts[name, subject]
            wording = [told.format(subject, object_) for told in relation.told].index(passage)
            assert hits[wording], (name, subject)
            found[hits[1 - wording]] += 1
    assert found[True] < 0.2 * found.total()


def test_the_best_passage_is_that_of_bm25_written_out(bm25s):
    """Lucene's formula, k1 1.5 and b 0.75, in NumPy."""
    passages = [words(passage) for passage in store(1).passages]
    lengths = np.array([len(passage) for passage in passages])
    for query in ("where Anna Bell lives", "the founder of Grant Mills", "bread", "Sundays"):
        scores = np.zeros(len(passages))
        for word in words(query):
            count = np.array([passage.count(word) for passage in passages])
            rare = (count > 0).sum()
            if rare:
                idf = np.log(1 + (len(passages) - rare + 0.5) / (rare + 0.5))
                scores += idf * count / (count + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
        best = np.flatnonzero(scores > scores.max() - 1e-4)
        assert search(1, query) in [store(1).passages[i] for i in best]


def test_the_search_is_silent(bm25s, caplog, capfd):
    look_up_text._index.cache_clear()
    with caplog.at_level("DEBUG"):
        assert search(2, "the mayor of Norton")
    assert not caplog.text and not "".join(capfd.readouterr())


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    look_up_text._index.cache_clear()
    monkeypatch.setitem(sys.modules, "bm25s", None)  # as if it were not there
    with pytest.raises(ValueError, match=r'pip install "aha_lib\[search\]"'):
        TASK.reply("ask: where Anna Bell lives\n", QUESTIONS[0])


HOSTILE = [
    "",
    " ",
    "???",
    "zzz qqq",
    "__import__('os').system('id')",
    "{0.__class__}",
    "%s %n",
    "\0\ud800",
    "١٢٣",
    "x" * 100_000,
    "<answer>",
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_what_no_passage_has_finds_nothing(bm25s, query):
    assert TASK.reply(f"ask:{query}\n", QUESTIONS[0]) == "nothing\n"
    assert LookUpText(empty=True).reply("ask: where Anna Bell lives\n", QUESTIONS[0]) == "nothing\n"


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_answered_and_judged(text, query):
    pytest.importorskip("bm25s")
    puzzle = QUESTIONS[0]
    so_far = f"{text}\nask:{query}\n"
    reply = TASK.reply(so_far, puzzle)
    assert reply in (None, "", "nothing\n") or reply[:-1] in store(puzzle.world).passages
    assert TASK.reply(so_far, puzzle) == reply
    assert TASK.reward(so_far, puzzle) == 0.0
    TASK.measures([so_far], [puzzle], [False])


def test_replies_are_a_line_and_cut(bm25s, monkeypatch):
    call = "ask: where Anna Bell lives\n"
    whole = TASK.reply(call, QUESTIONS[0])
    assert whole.endswith("\n") and "\n" not in whole[:-1]
    monkeypatch.setattr(look_up_text, "MAX_REPLY", 5)
    assert TASK.reply(call, QUESTIONS[0]) == whole[:5] + "\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>{}</answer>", 1.0),
        ("so\n<answer> {} </answer>", 1.0),
        ("<answer>Anna</answer><answer>{}</answer>", 1.0),
        ("<answer>{}</answer><answer>Anna</answer>", 0.0),
        ("<answer>{}.</answer>", 0.0),
        ("<answer>{} or Anna Bell</answer>", 0.0),
        ("<answer><b>{}</b></answer>", 0.0),
        ("<answer>{}", 0.0),
        ("{}", 0.0),
    ],
)
def test_reward_is_strict(text, value):
    for puzzle in QUESTIONS[:20]:
        right = store(puzzle.world).chain(puzzle)[-1]
        assert TASK.reward(text.replace("{}", right), puzzle) == value


def test_a_perfect_policy_is_always_right(bm25s):
    texts = [play(TASK, puzzle) for puzzle in QUESTIONS]
    assert [TASK.reward(*each) for each in zip(texts, QUESTIONS, strict=True)] == [1.0] * 200
    found = TASK.measures(texts, QUESTIONS, [True] * 200)
    assert found["right"] == found["again"] == found["accuracy_3"] == 1.0
    assert found["styles"] == {"whole chain": 200}
    assert 2.5 < found["calls"] < 3.3  # two hops on average, half of them asked in two ways
    priced = LookUpText(price=0.1)
    calls = texts[0].count("ask:")
    assert priced.reward(texts[0], QUESTIONS[0]) == pytest.approx(1 - 0.1 * calls)


def test_without_the_search_it_is_right_by_chance(bm25s):
    rng = random.Random(0)
    empty, guessed = [], []
    for puzzle in QUESTIONS:
        kind = RELATIONS[puzzle.relations[-1]].to
        guess = rng.choice(store(puzzle.world).names[kind])
        guessed.append(TASK.reward(f"<answer>{guess}</answer>", puzzle))
        empty.append(LookUpText(empty=True).reward(play(LookUpText(empty=True), puzzle), puzzle))
    assert sum(empty) == 0 and np.mean(guessed) < 0.1


def test_documents_teach_no_word_of_the_search(bm25s):
    texts, puzzles = [], []
    for index in range(400):
        (prompt, of_prompt), *pieces = corpus.document(LESSON, index)
        assert prompt.startswith("Name ") and prompt.endswith(".\n") and of_prompt == 0
        *calls, (answer, of_answer) = pieces
        assert re.fullmatch(r"<answer>[A-Z][A-Za-z& ]+</answer>", answer) and of_answer == 1
        for (asked, of_asked), (reply, of_reply) in zip(calls[::2], calls[1::2], strict=True):
            assert re.fullmatch(r"ask: [^\n]+\n", asked) and of_asked == 1
            assert reply.endswith("\n") and of_reply == 0
        rng = random.Random(f"{LESSON.seed} {index}")
        rng.choices([0], [1])  # as `document` draws the kind
        puzzles.append(TASK.puzzle(LESSON.seed, rng.getrandbits(48), held_out=False))
        assert TASK.prompt(puzzles[-1]) == prompt
        texts.append("".join(text for text, _ in pieces))
    found = TASK.measures(texts, puzzles, [True] * len(texts))
    styles = found["styles"]
    assert styles["guess"] / 400 == pytest.approx(LESSON.jump, abs=0.08)
    assert 0 < styles["whole chain"] < styles["one call"] < styles["guess"]
    assert 0.05 < found["again"] < 0.4 and 0.05 < found["right"] < 0.3


def test_a_cut_vocabulary_can_write_all_that_the_task_needs(bm25s):
    """With pieces of a vocabulary made as Gemma's is, on worlds that the corpus never showed."""
    tokenizer = gemma_like_tokenizer(look_up_text.sentences(), 1_500, turns=False)
    small = corpus.pieces_used(LESSON, tokenizer, count=20)
    small = tokenizer.subset(sorted({*small, *tokenizer.special_ids}))
    assert small.vocab_size < tokenizer.vocab_size
    for puzzle in QUESTIONS:
        text = TASK.prompt(puzzle) + play(TASK, puzzle)
        texts = [text, *(f"{passage}\n" for passage in store(puzzle.world).passages[:20])]
        for one in texts:
            ids = small.encode(one)
            assert small.special_ids[-1] not in ids and small.decode(ids) == one
    assert len(small.encode(TASK.turn_end, bos=False)) == 1


def test_the_preset_has_a_cold_start_and_room():
    """A token for four letters at most, as a Gemma's names and plain words need, is assumed."""
    settings = SETTINGS["look-up-270m"]
    assert type(load(settings)) is LookUpText
    assert cold_start.planned(settings) == LESSON
    longest = TASK.prompt(TASK.longest())
    assert len(re.findall(r"\w{1,8}|[^\w ]|\n", longest)) + 1 <= settings.prompt_len
    assert max(len(TASK.prompt(q)) for q in QUESTIONS) <= len(longest) + 8


def test_what_is_shown_is_escaped(bm25s):
    puzzle = next(q for q in QUESTIONS if q.relations == ("founded",) or "& Sons" in q.start)
    call = f"ask: {RELATIONS['founded'].asked[0].format('Dean & Sons')}<script>x</script>\n"
    reply = TASK.reply(call, puzzle)
    shown = show.answers(TASK, puzzle, {"<i>": f"{call}{reply}"}).data
    assert "<script>" not in shown and "<i>" not in shown and "& " not in shown
    assert "&amp; Sons" in shown and "&lt;script&gt;" in shown
