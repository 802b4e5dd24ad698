"""The task with a tool: its facts and replies, its reward, its corpus, and the base that asks."""

import dataclasses
import itertools
import json
import random
import re
from collections import Counter
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha_lib.model import weights
from aha_lib.model.tokenizer import WORDS, Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, SETTINGS, Pretraining
from aha_lib.run import pretrain
from aha_lib.tasks import corpus, look_up
from aha_lib.tasks.look_up import Empty, LookUp, Priced, Question, lookup
from aha_lib.tasks.task import load

TASK = LookUp()
LESSON = PRETRAINING["look-up"]
TOKENIZER = Tokenizer(tiny_model(WORDS["look-up"]))
QUESTIONS = [TASK.puzzle(3, index, held_out=index % 2 == 0) for index in range(600)]


def question(hops: int, *, miss: int = 0) -> Question:
    """One of so many hops whose miss is where we want it."""
    found = next(q for q in QUESTIONS if len(q.relations) == hops)
    return dataclasses.replace(found, miss=miss)


def play(task: LookUp, puzzle: Question) -> str:
    """A perfect policy: it asks for each hop, and again after a reply about somebody else."""
    text, subject = "", str(puzzle.start)
    for relation in TASK.prompt(puzzle).split()[1:-1]:
        words = []
        while words[:1] != [subject]:
            text = f"{text} <ask> {subject} {relation} </ask>".strip()
            words = task.reply(text, puzzle).split()
            text = f"{text} {' '.join(words)}"
            if words == ["nothing"]:
                return f"{text} <answer> 0 </answer>"
        subject = words[-1]
    return f"{text} <answer> {subject} </answer>"


def test_a_question_as_it_is_asked():
    puzzle = Question(world=5, start=7, relations=("lives", "works"), miss=2)
    assert TASK.prompt(puzzle) == "7 lives works :"
    assert puzzle.chain == [7, lookup(5, 7, "lives"), puzzle.answer]
    assert puzzle.answer == lookup(5, puzzle.chain[1], "works") is not None


def test_the_same_index_gives_the_same_question():
    for index in range(20):
        again = TASK.puzzle(3, index, held_out=index % 2 == 0)
        assert again == QUESTIONS[index]
        assert play(TASK, again) == play(TASK, QUESTIONS[index])
    assert len({q.world for q in QUESTIONS}) == len(QUESTIONS)


def test_held_out_questions_are_never_asked_in_training():
    held_out = {TASK.prompt(q) for q in QUESTIONS[::2]}
    drawn = {TASK.prompt(TASK.puzzle(s, i, held_out=False)) for s in range(3) for i in range(2_000)}
    taught = {corpus.document(LESSON, index)[0][0] for index in range(3_000)}
    assert len(held_out) > 200 and len(taught) > 1_000
    assert not held_out & (drawn | taught)


def test_questions_have_one_to_three_hops_and_a_way_without_circles():
    hops = Counter(len(q.relations) for q in QUESTIONS)
    assert min(hops[n] for n in (1, 2, 3)) > 150 and len(hops) == 3
    for puzzle in QUESTIONS:
        assert len(set(puzzle.relations)) == len(puzzle.relations)
        assert len(set(puzzle.chain)) == len(puzzle.chain) and None not in puzzle.chain
        assert 0 <= puzzle.miss <= len(puzzle.relations)
    share = np.mean([q.miss > 0 for q in QUESTIONS])
    assert share == pytest.approx(look_up.MISS, abs=0.06)


def test_facts_are_drawn_anew_in_every_world():
    """Knowing one world says nothing of the next: answers to the same question are spread."""
    found = Counter(lookup(world, 7, "lives") for world in range(2_000))
    assert found[None] == pytest.approx(400, abs=80)
    assert len(found) == look_up.ENTITIES + 1
    assert max(count for entity, count in found.items() if entity is not None) < 70


def test_a_hit_a_miss_and_the_same_again():
    puzzle = question(2, miss=1)
    ask = f"<ask> {puzzle.start} {puzzle.relations[0]} </ask>"
    beside = TASK.reply(ask, puzzle)
    other, relation, told = beside.split()
    assert int(other) != puzzle.start and relation != puzzle.relations[0]
    assert int(told) == lookup(puzzle.world, int(other), relation) != puzzle.chain[1]
    hit = f"{puzzle.start} {puzzle.relations[0]} {puzzle.chain[1]}"
    assert TASK.reply(f"{ask} {beside} {ask}", puzzle) == hit
    assert TASK.reply(ask, dataclasses.replace(puzzle, miss=0)) == hit


UNKNOWN = next(n for n in range(50) if lookup(5, n, "lives") is None)
KNOWN = next(n for n in range(50) if lookup(5, n, "lives") is not None)


@pytest.mark.parametrize(
    "text",
    [
        f"<ask> {UNKNOWN} lives </ask>",
        "<ask> </ask>",
        "</ask>",
        "",
        "<ask> lives </ask>",
        "<ask> lives 7 </ask>",
        "<ask> 7 8 </ask>",
        f"<ask> {KNOWN} lives works </ask>",
        f"<ask> {KNOWN} lives",
        f"{KNOWN} lives </ask>",
        f"<ask> {KNOWN} lives </ask> and",
        f"<ask> {KNOWN} lives </ask> </ask>",
        f"<ask> {KNOWN}\nlives </ask>",
        f"<ask> 0{KNOWN} lives </ask>",
        "<ask> 50 lives </ask>",
        "<ask> -1 lives </ask>",
        "<ask> 1e1 lives </ask>",
        "<ask> ٧ lives </ask>",
        "<ask> 7 LIVES </ask>",
        "<ask> 7 __class__ </ask>",
        "<ask> __import__('os').getcwd() lives </ask>",
        "<ask> " + "9" * 5_000 + " lives </ask>",
        "<ask> " + "7 " * 50_000 + "</ask>",
        "<ask>" * 20_000 + "</ask>",
        "\0 <ask> \ud800 lives </ask>",
    ],
    ids=range(25),
)
def test_what_is_no_call_for_a_fact_gets_nothing(text):
    puzzle = Question(5, KNOWN, ("lives",))
    assert TASK.reply(text, puzzle) == "nothing"
    assert TASK.reply(f"<ask> {KNOWN} lives </ask>", puzzle) != "nothing"


@given(st.lists(st.sampled_from([*WORDS["look-up"], "?"]), max_size=40).map(" ".join))
def test_any_text_is_answered_and_judged(text):
    """The reply is a fact of this world or "nothing", and its words are the vocabulary's."""
    puzzle = QUESTIONS[0]
    reply = TASK.reply(text, puzzle)
    if reply != "nothing":
        subject, relation, found = reply.split()
        assert lookup(puzzle.world, int(subject), relation) == int(found)
    assert TOKENIZER.decode(TOKENIZER.encode(reply)) == reply
    assert TASK.reward(text, puzzle) in (0.0, 1.0)
    found = TASK.measures([text], [puzzle], [True])
    assert found["right"] == TASK.reward(text, puzzle)
    assert found["calls"] == text.count("</ask>")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer> {} </answer>", 1.0),
        ("<answer>{}</answer>", 1.0),
        ("<answer> 3 </answer> no <answer> {} </answer>", 1.0),
        ("<answer> {} </answer> <answer> 3", 1.0),  # the last complete one counts
        ("<answer> {} </answer> <answer> 77 </answer>", 0.0),
        ("<answer> {} 77 </answer>", 0.0),
        ("<answer> {} {} </answer>", 0.0),
        ("<answer> 0{} </answer>", 0.0),
        ("<answer> {}.0 </answer>", 0.0),
        ("<answer>\n{}\n</answer>", 0.0),
        ("<answer> {}", 0.0),
        ("{} </answer>", 0.0),
        ("<answer> <answer> </answer> {} </answer>", 0.0),
        ("{}", 0.0),
        ("<answer> </answer>", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_strict(text, value):
    for puzzle in QUESTIONS[:20]:
        assert TASK.reward(text.replace("{}", str(puzzle.answer)), puzzle) == value


def test_a_perfect_policy_is_always_right():
    for puzzle in QUESTIONS:
        text = play(TASK, puzzle)
        assert TASK.reward(text, puzzle) == 1.0
        assert text.count("</ask>") == len(puzzle.relations) + (puzzle.miss > 0)
    texts = [play(TASK, puzzle) for puzzle in QUESTIONS]
    found = TASK.measures(texts, QUESTIONS, [True] * len(texts))
    assert found["right"] == found["again"] == found["accuracy_3"] == 1.0
    assert found["styles"] == {"whole chain": 600} and found["outcomes"] == {"right": 600}
    assert found["calls"] == pytest.approx(2 + look_up.MISS, abs=0.15)


def test_without_asking_it_is_right_by_chance_and_so_with_an_empty_tool():
    rng = random.Random(0)
    asked, guessed = [], []
    for index in range(5_000):
        puzzle = TASK.puzzle(0, index, held_out=False)
        guess = f"<answer> {rng.randrange(look_up.ENTITIES)} </answer>"
        guessed.append(TASK.reward(guess, puzzle))
        asked.append(Empty().reward(play(Empty(), puzzle), puzzle))
    assert np.mean(guessed) == pytest.approx(1 / look_up.ENTITIES, abs=0.008)
    assert np.mean(asked) == pytest.approx(1 / look_up.ENTITIES, abs=0.008)


def test_a_call_has_its_price():
    puzzle = question(3)
    text = play(TASK, puzzle)
    assert Priced().reward(text, puzzle) == pytest.approx(1 - 3 * Priced().price)
    assert Priced().reward("</ask> </ask>", puzzle) == pytest.approx(-2 * Priced().price)
    assert Priced().measures([text], [puzzle], [True])["right"] == 1.0


def test_measures_of_completions_written_by_hand():
    one, two = question(1, miss=1), question(2)
    ask = f"<ask> {one.start} {one.relations[0]} </ask>"
    miss = TASK.reply(ask, one)
    begin = f"<ask> {two.start} {two.relations[0]} </ask> {two.start} {two.relations[0]}"
    half = f"{begin} {two.chain[1]}"
    texts = {
        f"<answer> {two.answer} </answer>": (two, "guess", "right"),
        "<answer> 77 </answer>": (two, "guess", "guessed"),
        f"{half} <answer> {two.chain[1]} </answer>": (two, "one call", "wrong"),
        f"{half} {begin}": (two, "some calls", "cut off"),
        f"{half} {half}": (two, "some calls", "no answer"),
        f"{ask} {miss} <answer> {miss.split()[-1]} </answer>": (one, "one call", "wrong"),
        f"{ask} {miss} {ask} {one.start} {one.relations[0]} {one.answer}": (
            one,
            "whole chain",
            "no answer",
        ),
    }
    ended = [outcome != "cut off" for _, _, outcome in texts.values()]
    puzzles = [puzzle for puzzle, _, _ in texts.values()]
    for (text, (puzzle, style, outcome)), end in zip(texts.items(), ended, strict=True):
        log = TASK.log(text, puzzle, end)
        assert (look_up.style(log), look_up.outcome(log)) == (style, outcome), text
    found = TASK.measures(list(texts), puzzles, ended)
    assert found["calls"] == (0 + 0 + 1 + 2 + 2 + 1 + 2) / 7
    assert found["accuracy_1"] == 0 and found["accuracy_2"] == 1 / 5
    assert found["again"] == 1 / 2
    assert "again" not in TASK.measures(["<answer> 3 </answer>"], [two], [True])


def test_documents_teach_no_word_of_the_tool():
    kinds = Counter()
    for index in range(2_000):
        (prompt, of_prompt), *pieces = corpus.document(LESSON, index)
        assert re.fullmatch(r"\d+( [a-z]+){1,3} :", prompt) and of_prompt == 0
        *calls, (answer, of_answer) = pieces
        assert re.fullmatch(r"<answer> \d+ </answer>", answer) and of_answer == 1
        for (asked, of_asked), (reply, of_reply) in zip(calls[::2], calls[1::2], strict=True):
            assert re.fullmatch(r"<ask> \d+ [a-z]+ </ask>", asked) and of_asked == 1
            assert re.fullmatch(r"\d+ [a-z]+ \d+|nothing", reply) and of_reply == 0
        kinds[len(calls) // 2] += 1
    assert kinds[0] > kinds[1] > kinds[2] + kinds[3] + kinds[4]
    assert set(kinds) == {0, 1, 2, 3, 4}


def test_of_packed_rows_the_models_own_words_are_learnt():
    rows, _ = corpus.rows(LESSON, 0, 40, TOKENIZER)
    segments = rows["segments"]
    for row, segment in {(r, int(s)) for r, s in np.ndindex(segments.shape) if segments[r, s]}:
        here = segments[row] == segments[row, segment]
        ids, learnt = rows["tokens"][row, here], rows["weights"][row, here] > 0
        text = TOKENIZER.decode(ids)
        own = TOKENIZER.decode(ids[learnt])
        after_prompt = text.partition(" : ")[2]
        assert own == re.sub(r"</ask> (\d+ \w+ \d+|nothing)", "</ask>", after_prompt)
        assert learnt[-1] and ids[-1] == TOKENIZER.eos_id


def test_asking_is_rare_in_the_corpus_and_asking_again_rarer():
    texts, puzzles = [], []
    task = LookUp()
    for index in range(4_000):
        rng = random.Random(f"{LESSON.seed} {index}")
        (kind,) = rng.choices(list(LESSON.shares), LESSON.shares.values())
        puzzle = task.puzzle(LESSON.seed, rng.getrandbits(48), held_out=False)
        pieces = look_up.worked(task, puzzle, kind, rng)
        assert [(task.prompt(puzzle), 0.0), *pieces] == corpus.document(LESSON, index)
        texts.append(" ".join(text for text, _ in pieces))
        puzzles.append(puzzle)
    found = task.measures(texts, puzzles, [True] * len(texts))
    shares = {style: count / len(texts) for style, count in found["styles"].items()}
    assert shares["guess"] == pytest.approx(LESSON.jump, abs=0.03)
    logs = [task.log(*each) for each in zip(texts, puzzles, strict=True)]
    asked = np.mean([len(log.calls) > 0 for log in logs])
    asked_twice = np.mean([len(log.calls) > 1 for log in logs])
    asked_again = np.mean([log.again > 0 for log in logs])
    assert 0.03 < asked_again < asked_twice < asked / 2 < shares["guess"] / 2
    assert 0.1 < found["right"] < 0.25


def test_the_control_has_never_seen_a_call():
    control = PRETRAINING["look-up-no-asking"]
    assert dataclasses.replace(control, preset="look-up", **LESSON.shares) == LESSON
    for index in range(500):
        assert len(corpus.document(control, index)) == 2


def test_the_limits_are_those_that_a_perfect_answer_needs():
    settings = SETTINGS["look-up"]
    task = load(settings)
    assert type(task) is LookUp
    prompts = [len(TOKENIZER.encode(task.prompt(puzzle))) for puzzle in QUESTIONS]
    longest = len(TOKENIZER.encode(task.prompt(task.longest())))
    assert settings.prompt_len == max(prompts) == longest
    lengths = [len(TOKENIZER.encode(play(task, q), bos=False)) + 1 for q in QUESTIONS]  # and EOS
    assert settings.completion_len == max(lengths)
    assert TOKENIZER.encode(task.turn_end, bos=False) == [TOKENIZER.piece_id("▁</ask>")]


def test_the_shipped_base_is_of_this_code():
    folder = weights.SHIPPED["look-up"]
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["corpus"] == corpus.fingerprint(LESSON)
    assert Pretraining(**record["settings"]) == LESSON
    assert (folder / "tokenizer.model").read_bytes() == tiny_model(WORDS["look-up"])
    assert MODELS["look-up"].parameters <= 600_000


@pytest.mark.slow
def test_the_shipped_bases_first_steps_are_those_of_this_code(tmp_path):
    record = json.loads((weights.SHIPPED["look-up"] / "pretraining.json").read_text())
    with closing(pretrain.pretrain(LESSON, tmp_path)) as run:
        losses = [row["loss"] for row in itertools.islice(run, 6)]
    np.testing.assert_allclose(losses, record["first_losses"][:6], rtol=1e-3)
    assert record["last_loss"] < 1 < losses[-1]


def test_the_shipped_base_asks_seldom_and_well():
    """On held-out questions: it asks first with a chance near the corpus's; a call that it begins
    is the question's first, and one of its second hop asks on from what was found."""
    model, tokenizer, config = weights.load("look-up")
    assert config == MODELS["look-up"]
    puzzles = [q for q in QUESTIONS[::2] if len(q.relations) > 1]
    puzzles = [dataclasses.replace(q, miss=0) for q in puzzles]
    rows, ends = [], []
    for puzzle in puzzles:
        two = play(TASK, dataclasses.replace(puzzle, relations=puzzle.relations[:2]))
        calls = two.partition(" <answer>")[0]
        prompt = tokenizer.encode(TASK.prompt(puzzle))
        rows.append(prompt + tokenizer.encode(calls, bos=False))
        ends.append(len(prompt))
    length = max(map(len, rows))
    tokens = jnp.array([row + [0] * (length - len(row)) for row in rows])
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
    logits = np.asarray(model.logits(hidden))
    ask = tokenizer.piece_id("▁<ask>")
    chances = np.asarray(jax.nn.softmax(logits, -1))
    first, second = [], []
    for row, end in enumerate(ends):
        said = logits[row].argmax(-1)
        assert abs(chances[row, end - 1, ask] - (LESSON.check + LESSON.search)) < 0.1
        first.append((said[end : end + 3] == tokens[row, end + 1 : end + 4]).all())
        at = end + 7  # four tokens of the call, three of the reply
        second.append((said[at : at + 3] == tokens[row, at + 1 : at + 4]).all())
    assert np.mean(first) > 0.99
    assert np.mean(second) > 0.9


def test_the_shipped_base_tells_a_miss_from_a_hit():
    """Where it asks on, it asks the same again after a fact beside the point, and not after a hit:
    the skill is there; what is rare is to ask at all."""
    model, tokenizer, _ = weights.load("look-up")
    ask = tokenizer.piece_id("▁<ask>")
    same = {}
    for miss in (0, 1):
        rows, subjects = [], []
        for puzzle in QUESTIONS[::2]:
            if len(puzzle.relations) == 1:
                continue
            asked = f"<ask> {puzzle.start} {puzzle.relations[0]} </ask>"
            reply = TASK.reply(asked, dataclasses.replace(puzzle, miss=miss))
            prompt = TASK.prompt(puzzle)
            rows.append([*tokenizer.encode(f"{prompt} {asked} {reply}"), ask])
            subjects.append(tokenizer.piece_id(f"▁{puzzle.start}"))
        length = max(map(len, rows))  # they end alike, so shorter ones are filled on the left
        tokens = jnp.array([[0] * (length - len(row)) + row for row in rows])
        filled = length - jnp.array(list(map(len, rows)))[:, None]
        positions = jnp.maximum(jnp.arange(length) - filled, 0)
        segments = jnp.where(jnp.arange(length) < filled, 0, 1)
        hidden = model.hidden(tokens, positions, segments)
        chances = np.asarray(jax.nn.softmax(model.logits(hidden[:, -1]), -1))
        same[miss] = chances[np.arange(len(rows)), subjects].mean()
    assert same[0] < 0.1 and same[1] > 0.9
