"""Questions in English for a tool that searches: the task with a tool, for a Gemma.

"Name the mayor of the town where Anna Bell lives." The store, some three hundred short passages, is
drawn anew for every puzzle. A call is a line, `ask: where Anna Bell lives`, and the next line is
the best passage by BM25. A fact is worded in one of two ways, and so are calls: words that the
passage does not have may find another one, and then it helps to ask in other words. Needs the extra
`search` (`pip install "aha_lib[search]"`). Knows nothing of JAX, tokens or models.
"""

import functools
import importlib
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aha_lib.presets import Pretraining
from aha_lib.tasks.look_up import HOPS, NOTHING, Call, Log, answer_of, is_right, told
from aha_lib.tasks.task import Task, is_held_out

ASK = "ask:"  # begins the line of a call
MAX_QUERY = 200  # characters of a call that are read
MAX_REPLY = 120  # characters of a passage that are shown
AGAIN = 0.5  # of searches in the corpus: the chance to ask in other words after a miss
PEOPLE, PLACES = 60, 24  # people of a world, and its towns and its firms

FIRST = """Ada Amy Anna Ben Carl Clara Daniel David Emma Eric Eva Frank George Grace Henry Ivy Jack
Jane John Kate Laura Leo Mark Mary Nina Oscar Paul Peter Rosa Ruth Sam Tom""".split()
LAST = """Adams Baker Bell Brown Carter Clark Cook Cooper Day Fisher Ford Fox Gray Green Hall Hill
Hunt King Lee Long Moore Page Price Rose Shaw Stone Walker Ward White Wood""".split()
TOWNS = """Ashford Barton Bolton Camden Carlton Chester Clifton Dalton Denton Easton Fairfield
Grafton Hampton Hartford Kingston Lincoln Malton Marsden Milford Newton Norton Oakland Preston
Richmond Stratford Sutton Taunton Trenton Warwick Weston""".split()
FIRMS = [
    f"{name} {kind}"
    for kind in ("Mills", "& Sons", "Motors")
    for name in "Archer Bishop Cross Dean Field Grant Harper Knight Mason Porter".split()
]
HOBBIES = """plays chess;sings in a choir;keeps bees;collects stamps;paints birds;bakes bread;
repairs clocks;grows roses""".replace("\n", "").split(";")
GOODS = "chairs paper bicycles glass soap boats carpets tools".split()
FAME = "cheese bridges gardens markets churches apples music trains".split()


@dataclass(frozen=True)
class Relation:
    """A kind of fact. `{}` or `{0}` is its subject; in what is told the other is its object."""

    of: str  # kind of the subject: "person", "firm" or "town"
    to: str  # kind of the object
    phrase: str  # in a question
    asked: tuple[str, str]  # calls: the first in the words of the first passage, and so on
    told: tuple[str, str]  # passages


RELATIONS = {
    "lives": Relation(
        "person",
        "town",
        "the town where {} lives",
        ("where {} lives", "the home of {}"),
        ("{} lives in {}.", "The home of {} is in {}."),
    ),
    "works": Relation(
        "person",
        "firm",
        "the employer of {}",
        ("who {} works for", "the employer of {}"),
        ("{} works for {}.", "The employer of {} is {}."),
    ),
    "based": Relation(
        "firm",
        "town",
        "the town where {} is based",
        ("where {} is based", "the offices of {}"),
        ("{} is based in {}.", "The offices of {} are in {}."),
    ),
    "founded": Relation(
        "firm",
        "person",
        "the founder of {}",
        ("who founded {}", "the founder of {}"),
        ("{} was founded by {}.", "The founder of {} is {}."),
    ),
    "mayor": Relation(
        "town",
        "person",
        "the mayor of {}",
        ("the mayor of {}", "who governs {}"),
        ("The mayor of {} is {}.", "{1} governs {0}."),
    ),
}
# What is also told of everybody and everything, and no question is about.
BESIDE = {
    "person": ("{} {} on Sundays.", HOBBIES),
    "firm": ("{} makes {}.", GOODS),
    "town": ("{} is known for its {}.", FAME),
}


@dataclass(frozen=True)
class Question:
    """Where some relations lead, one after another, from a name, in a world of passages."""

    world: int
    start: str
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """The facts of a world and the passages that tell them."""

    names: dict[str, list[str]]  # by kind
    facts: dict[tuple[str, str], str]  # object by relation and subject
    passages: list[str]
    telling: dict[tuple[str, str], str]  # passage by relation and subject

    def chain(self, question: Question) -> list[str]:
        """The start, and the name that each hop leads to."""
        found = [question.start]
        for relation in question.relations:
            found.append(self.facts[relation, found[-1]])
        return found

    def needed(self, question: Question) -> list[str]:
        """The passages that tell the hops of a question."""
        chain = self.chain(question)
        hops = zip(question.relations, chain[:-1], strict=True)
        return [self.telling[hop] for hop in hops]


@functools.lru_cache(maxsize=256)
def store(world: int) -> Store:
    """The world of that number, always the same one."""
    rng = random.Random(f"world {world}")
    everybody = [f"{first} {last}" for first in FIRST for last in LAST]
    names = {
        "person": rng.sample(everybody, PEOPLE),
        "firm": rng.sample(FIRMS, PLACES),
        "town": rng.sample(TOWNS, PLACES),
    }
    facts, telling, passages = {}, {}, []
    for name, relation in RELATIONS.items():
        for subject in names[relation.of]:
            found = rng.choice(names[relation.to])
            facts[name, subject] = found
            telling[name, subject] = rng.choice(relation.told).format(subject, found)
    for kind, (wording, things) in BESIDE.items():
        passages += [wording.format(subject, rng.choice(things)) for subject in names[kind]]
    passages += telling.values()
    rng.shuffle(passages)
    return Store(names, facts, passages, telling)


@functools.lru_cache(maxsize=256)
def _index(world: int):
    """BM25 of a world's passages. Raises ValueError where the package is missing."""
    try:
        bm25s = importlib.import_module("bm25s")
    except ImportError as error:
        raise ValueError(
            f'The search needs the package bm25s: pip install "aha_lib[search]" ({error}).'
        ) from None
    # Importing it has started JAX, where that is installed; and it tells of every index it builds.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25()
    passages = [words(passage) for passage in store(world).passages]
    index.index(passages, show_progress=False)
    return index


def words(text: str) -> list[str]:
    """The words of a text as the search compares them: small letters, no s at the end."""
    found = re.findall(r"[a-z]+", text.lower())
    return [word.removesuffix("s") for word in found if word != "s"]


def search(world: int, query: str) -> str:
    """The best passage of a world; the first of several, and "nothing" if no word is in any."""
    index = _index(world)
    known = [word for word in words(query[:MAX_QUERY]) if word in index.vocab_dict]
    if not known:
        return NOTHING
    scores = index.get_scores(known)
    return store(world).passages[int(scores.argmax())]


@dataclass(frozen=True)
class LookUpText(Task[Question]):
    """Follow one to three relations from a name to another, by searching short passages."""

    price: float = 0.0  # of a call, taken off the reward; the accuracy is then the measure "right"
    empty: bool = False  # the tool replies "nothing" whatever is asked: a control

    turn_end = "\n"

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> Question:
        """A question whose words are held out, or are not; no name comes twice on its way."""
        rng = random.Random(f"look up text {seed} {index} {held_out}")
        hops = rng.choice(HOPS)
        while True:
            world = rng.getrandbits(48)
            names = store(world).names
            kind = rng.choice(list(names))
            start = rng.choice(names[kind])
            question = Question(world, start, _walk(kind, hops, rng))
            chain = store(world).chain(question)
            is_way = len(set(chain)) == len(chain)
            if is_way and is_held_out(self.prompt(question)) == held_out:
                return question

    def prompt(self, puzzle: Question) -> str:
        phrase = puzzle.start
        for relation in puzzle.relations:
            phrase = RELATIONS[relation].phrase.format(phrase)
        return f"Name {phrase}.\n"

    def longest(self) -> Question:
        """Of the most characters among many; `prompt_len` should leave a few tokens more."""
        puzzles = [self.puzzle(0, index, held_out=False) for index in range(300)]
        return max(puzzles, key=lambda puzzle: len(self.prompt(puzzle)))

    def reply(self, text: str, puzzle: Question) -> str | None:
        """A passage behind a call; "" behind another line; None, the end, behind an answer."""
        if answer_of(text) is not None:
            return None
        query = _query(text)
        if query is None:
            return ""
        if self.empty:
            return f"{NOTHING}\n"
        return f"{search(puzzle.world, query)[:MAX_REPLY]}\n"

    def reward(self, text: str, puzzle: Question) -> float:
        """1.0 for the right name in the last complete answer tag, else 0; less what calls cost."""
        right = store(puzzle.world).chain(puzzle)[-1]
        return float(is_right(text, right)) - self.price * len(_calls(text))

    def measures(
        self, texts: Sequence[str], puzzles: Sequence[Question], ended: Sequence[bool]
    ) -> dict[str, float | dict[str, int]]:
        """As of the task with numbers: see `look_up.told`."""
        logs = [self.log(*each) for each in zip(texts, puzzles, ended, strict=True)]
        return told(logs)

    def log(self, text: str, puzzle: Question, ended: bool = True) -> Log:
        """What a completion asked, and what it was told: each reply is worked out anew.

        A reply that tells none of the question's hops is beside the point; another call after it
        is asking again.
        """
        facts = store(puzzle.world)
        needed = facts.needed(puzzle)
        shown = {passage[:MAX_REPLY] for passage in needed}
        calls: list[Call] = []
        again = 0
        for so_far in _calls(text):
            reply = (self.reply(so_far, puzzle) or "").removesuffix("\n")
            again += bool(calls) and calls[-1].missed
            if not text.startswith(reply, len(so_far)):  # such as the last call of a row cut off
                reply = NOTHING
            is_hop = reply in shown
            calls.append(Call(reply if is_hop else "", not is_hop and reply != NOTHING))
        return Log(
            hops=len(puzzle.relations),
            right=is_right(text, facts.chain(puzzle)[-1]),
            calls=tuple(calls),
            again=again,
            whole=shown <= {call.found for call in calls},
            answered=answer_of(text) is not None,
            ended=ended,
        )


def _walk(kind: str, hops: int, rng: random.Random) -> tuple[str, ...]:
    """The names of some relations that follow one another, the first one of this kind."""
    found = []
    for _ in range(hops):
        fitting = [name for name, relation in RELATIONS.items() if relation.of == kind]
        name = rng.choice(fitting)
        found.append(name)
        kind = RELATIONS[name].to
    return tuple(found)


def _query(text: str) -> str | None:
    """What the last line of a text asks for; None where it is no call or has no end."""
    if not text.endswith("\n"):
        return None
    line = text[:-1].rpartition("\n")[2]
    return line.removeprefix(ASK) if line.startswith(ASK) else None


def _calls(text: str) -> list[str]:
    """The text up to the end of each of its calls; what stands behind an answer is none."""
    found = []
    for match in re.finditer(r"^ask:[^\n]*\n", text, re.MULTILINE):
        so_far = text[: match.end()]
        if answer_of(so_far) is not None:
            break
        found.append(so_far)
    return found


def document(settings: Pretraining, index: int) -> list[tuple[str, float]]:
    """Text number `index` of the corpus, in pieces with their weights in the loss.

    The prompt and what the search finds have weight 0. A jump guesses; a check asks once, and
    answers with what was found whatever the number of hops; a search follows the whole question,
    and asks in other words after half of the replies that are beside the point. No question of it
    is held out.
    """
    rng = random.Random(f"{settings.seed} {index}")
    shares = settings.shares
    (kind,) = rng.choices(list(shares), shares.values())
    task = LookUpText()
    question = task.puzzle(settings.seed, rng.getrandbits(48), held_out=False)
    return [(task.prompt(question), 0.0), *worked(task, question, kind, rng)]


def worked(
    task: LookUpText, question: Question, kind: str, rng: random.Random
) -> list[tuple[str, float]]:
    """A completion of the corpus: the model's words weigh 1, the tool's 0."""
    facts = store(question.world)
    pieces: list[tuple[str, float]] = []
    hops = {"jump": 0, "check": 1}.get(kind, len(question.relations))
    again = AGAIN if kind == "search" else 0.0
    found: str | None = None
    for relation, subject in zip(question.relations[:hops], facts.chain(question), strict=False):
        ways = list(RELATIONS[relation].asked)
        rng.shuffle(ways)
        passage = facts.telling[relation, subject]
        reply = _ask(task, question, ways[0].format(subject), pieces)
        if reply != passage and rng.random() < again:
            reply = _ask(task, question, ways[1].format(subject), pieces)
        found = facts.facts[relation, subject] if reply == passage else None
        if found is None:
            break  # what was found does not help: a guess
    if found is None:
        found = rng.choice(facts.names[RELATIONS[question.relations[-1]].to])
    pieces.append((f"<answer>{found}</answer>", 1.0))
    return pieces


def _ask(task: LookUpText, question: Question, query: str, pieces: list[tuple[str, float]]) -> str:
    """Add a call and its reply to the pieces; gives the reply's passage."""
    pieces.append((f"{ASK} {query}\n", 1.0))
    reply = task.reply("".join(text for text, _ in pieces), question)
    pieces.append((reply, 0.0))
    return reply.removesuffix("\n")


def sentences() -> list[str]:
    """Texts in which every name stands in every place that it can have in this task.

    A vocabulary that is cut to their pieces can write all prompts, calls, replies and answers.
    """
    kinds = {"person": [f"{a} {b}" for a in FIRST for b in LAST], "firm": FIRMS, "town": TOWNS}
    found = [f"{NOTHING}\n"]
    for relation in RELATIONS.values():
        first = kinds[relation.to][0]
        for subject in kinds[relation.of]:
            found.append(f"Name {relation.phrase.format(subject)}.\n")
            found += [f"{ASK} {asked.format(subject)}\n" for asked in relation.asked]
            found += [f"{passage.format(subject, first)}\n" for passage in relation.told]
        subject = kinds[relation.of][0]
        for name in kinds[relation.to]:
            found += [f"{passage.format(subject, name)}\n" for passage in relation.told]
            found.append(f"<answer>{name}</answer>")
    for kind, (wording, things) in BESIDE.items():
        found += [f"{wording.format(subject, things[0])}\n" for subject in kinds[kind]]
        found += [f"{wording.format(kinds[kind][0], thing)}\n" for thing in things]
    return found
