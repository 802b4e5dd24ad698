"""Questions that only a tool can answer: "7 lives works :" is where the one who lives … works.

The facts of every puzzle are drawn anew, so nothing can be known by heart. The model asks
`<ask> 7 lives </ask>`, the tool writes the fact behind it, `7 lives 12`, and the model goes on from
there, once for each hop of the question; the reward sees the answer alone. Once in some puzzles the
tool tells a fact beside the point, and asking again helps. Also the worked text in which a base
sees this done, and seldom. Knows nothing of JAX, tokens or models.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aha_lib.presets import Pretraining
from aha_lib.tasks.task import Task, is_held_out

ENTITIES = 50  # numbers from 0
RELATIONS = ("lives", "works", "knows", "likes", "visits", "follows", "teaches", "calls")
HOPS = (1, 2, 3)  # of a question, a third of the questions each
MISS = 0.4  # share of the puzzles in which one reply is beside the point
ASK, ASK_END = "<ask>", "</ask>"
NOTHING = "nothing"

_NUMBERS = {str(number): number for number in range(ENTITIES)}
_ANSWER = re.compile(r"<answer>([^<>]*)</answer>")


@dataclass(frozen=True)
class Question:
    """Where some relations lead, one after another, from a start, in a world of facts."""

    world: int  # whose facts they are
    start: int
    relations: tuple[str, ...]
    miss: int = 0  # the number of the call, from 1, whose reply is beside the point; 0: none

    @property
    def chain(self) -> list[int | None]:
        """The start and what each hop leads to; None from where there is no fact."""
        found: list[int | None] = [self.start]
        for relation in self.relations:
            subject = found[-1]
            found.append(None if subject is None else lookup(self.world, subject, relation))
        return found

    @property
    def answer(self) -> int | None:
        return self.chain[-1]


@dataclass(frozen=True)
class Call:
    """A call of a tool, as its reply shows it."""

    found: str  # what the reply tells that helps; "" if it tells nothing
    missed: bool  # whether it told a fact beside the point


@dataclass(frozen=True)
class Log:
    """What a completion did with a tool."""

    hops: int  # of the question
    right: bool
    calls: tuple[Call, ...]
    again: int  # misses after which the same was asked again
    whole: bool  # whether every hop of the question was found by a call
    answered: bool  # with a complete answer
    ended: bool  # within the limit


def lookup(world: int, subject: int, relation: str) -> int | None:
    """The object of a fact; None for the fifth of all pairs of which a world has no fact."""
    digest = hashlib.sha256(f"{world} {subject} {relation}".encode()).digest()
    if digest[0] % 5 == 0:
        return None
    return int.from_bytes(digest[1:5], "big") % ENTITIES


@dataclass(frozen=True)
class LookUp(Task[Question]):
    """Follow one to three relations from a number to another, by asking for each fact."""

    price: float = 0.0  # of a call, taken off the reward; the accuracy is then the measure "right"
    empty: bool = False  # the tool replies "nothing" whatever is asked: a control
    elsewhere: bool = False  # what it tells are facts of another world: another control

    turn_end = ASK_END

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> Question:
        """A question whose words are held out, or are not; no number comes twice on its way."""
        rng = random.Random(f"look up {seed} {index} {held_out}")
        hops = rng.choice(HOPS)  # before the loop, in which long ways are refused more often
        while True:
            relations = tuple(rng.sample(RELATIONS, hops))
            miss = rng.randint(1, len(relations)) if rng.random() < MISS else 0
            question = Question(rng.getrandbits(48), rng.randrange(ENTITIES), relations, miss)
            chain = question.chain
            is_whole = None not in chain and len(set(chain)) == len(chain)
            if is_whole and is_held_out(self.prompt(question)) == held_out:
                return question

    def prompt(self, puzzle: Question) -> str:
        return f"{puzzle.start} {' '.join(puzzle.relations)} :"

    def longest(self) -> Question:
        return Question(0, ENTITIES - 1, RELATIONS[: max(HOPS)])

    def reply(self, text: str, puzzle: Question) -> str:
        """The fact that the last call of `text` asks for, in words; "nothing" if there is none.

        A call is `<ask>`, a number, a relation and `</ask>`.
        """
        query = _query(text)
        if query is None or self.empty:
            return NOTHING
        subject, relation = query
        found = lookup(puzzle.world + self.elsewhere, subject, relation)
        if found is None:
            return NOTHING
        if text.count(ASK_END) == puzzle.miss:
            return _beside(puzzle, subject, relation)
        return f"{subject} {relation} {found}"

    def reward(self, text: str, puzzle: Question) -> float:
        """1.0 for the right number in the last complete answer tag, else 0; less what calls cost.

        There has to be this one number in the tag and nothing else.
        """
        right = float(is_right(text, str(puzzle.answer)))
        return right - self.price * text.count(ASK_END)

    def measures(
        self, texts: Sequence[str], puzzles: Sequence[Question], ended: Sequence[bool]
    ) -> dict[str, float | dict[str, int]]:
        """What `told` tells: calls, the accuracy for each number of hops, asking again, styles."""
        logs = [self.log(*each) for each in zip(texts, puzzles, ended, strict=True)]
        return told(logs)

    def log(self, text: str, puzzle: Question, ended: bool = True) -> Log:
        """What a completion asked, and what it was told: each reply is worked out anew.

        A call that got no reply, such as the last one of a row that was cut off, found nothing.
        """
        calls, queries = [], []
        again = 0
        for match in re.finditer(re.escape(ASK_END), text):
            so_far = text[: match.end()]
            query = _query(so_far)
            reply = self.reply(so_far, puzzle)
            is_there = text[match.end() :].lstrip().startswith(reply)
            words = reply.split() if is_there else [NOTHING]
            missed = words[:1] != [NOTHING] and query is not None and words[0] != str(query[0])
            found = "" if missed or words == [NOTHING] else " ".join(words)
            again += bool(calls) and calls[-1].missed and query == queries[-1]
            calls.append(Call(found, missed))
            queries.append(query)
        chain = puzzle.chain
        hops = zip(chain[:-1], puzzle.relations, chain[1:], strict=True)
        needed = {f"{subject} {relation} {found}" for subject, relation, found in hops}
        return Log(
            hops=len(puzzle.relations),
            right=is_right(text, str(puzzle.answer)),
            calls=tuple(calls),
            again=again,
            whole=needed <= {call.found for call in calls},
            answered=answer_of(text) is not None,
            ended=ended,
        )


@dataclass(frozen=True)
class Priced(LookUp):
    """The same task where a call costs a twentieth of a right answer."""

    price: float = 0.05


@dataclass(frozen=True)
class Empty(LookUp):
    """The control: a tool that knows nothing."""

    empty: bool = True


def _query(text: str) -> tuple[int, str] | None:
    """What the call at the end of a text asks for; None where it is none, or badly formed."""
    call = text.rstrip()
    if not call.endswith(ASK_END):
        return None
    call = call.removesuffix(ASK_END)
    begin = call.rfind(ASK)
    words = call[begin + len(ASK) :].split(" ")
    words = [word for word in words if word]
    if begin < 0 or len(words) != 2:
        return None
    subject, relation = words
    if subject not in _NUMBERS or relation not in RELATIONS:
        return None
    return _NUMBERS[subject], relation


def _beside(puzzle: Question, subject: int, relation: str) -> str:
    """A fact of another subject and another relation, and with another object."""
    rng = random.Random(f"beside {puzzle.world} {subject} {relation}")
    right = lookup(puzzle.world, subject, relation)
    other_relation = rng.choice([name for name in RELATIONS if name != relation])
    for other in rng.sample(range(ENTITIES), ENTITIES):
        found = lookup(puzzle.world, other, other_relation)
        if other != subject and found not in (None, right):
            return f"{other} {other_relation} {found}"
    return NOTHING


def answer_of(text: str) -> str | None:
    """What stands in the last complete answer tag, without blanks around it; None: no such tag."""
    found = _ANSWER.findall(text)
    return found[-1].strip(" ") if found else None


def is_right(text: str, right: str) -> bool:
    """Whether the last complete answer is this one, to the letter."""
    return answer_of(text) == right


def told(logs: Sequence[Log]) -> dict[str, float | dict[str, int]]:
    """The measures of some completions: means by name, and counts of styles and outcomes.

    right: the accuracy, whatever a call costs. calls: calls of a completion. accuracy_1, …: of
    questions with so many hops. again: of the replies beside the point, the share after which the
    same was asked again (without such replies it is left out).
    """
    found: dict[str, float | dict[str, int]] = {"calls": _mean([len(log.calls) for log in logs])}
    for hops in sorted({log.hops for log in logs}):
        found[f"accuracy_{hops}"] = _mean([log.right for log in logs if log.hops == hops])
    misses = sum(call.missed for log in logs for call in log.calls)
    if misses:
        found["again"] = sum(log.again for log in logs) / misses
    found["right"] = _mean([log.right for log in logs])
    found["styles"] = dict(Counter(map(style, logs)))
    found["outcomes"] = dict(Counter(map(outcome, logs)))
    return found


def style(log: Log) -> str:
    """ "guess", "one call", "some calls" or "whole chain": a call has found each hop."""
    if log.whole:
        return "whole chain"
    return ("guess", "one call", "some calls")[min(len(log.calls), 2)]


def outcome(log: Log) -> str:
    """ "right", or why not: "cut off" by the limit, "no answer", "guessed" or "wrong"."""
    if log.right:
        return "right"
    if not log.answered:
        return "no answer" if log.ended else "cut off"
    return "wrong" if log.calls else "guessed"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def document(settings: Pretraining, index: int) -> list[tuple[str, float]]:
    """Text number `index` of the corpus, in pieces with their weights in the loss.

    The prompt and what the tool says have weight 0: they are never learnt. A jump guesses; a check
    asks once, and answers what it was told whatever the number of hops; a search follows the whole
    question, and asks again after a fact beside the point. No question of it is held out.
    """
    rng = random.Random(f"{settings.seed} {index}")
    shares = settings.shares
    (kind,) = rng.choices(list(shares), shares.values())
    task = LookUp()
    question = task.puzzle(settings.seed, rng.getrandbits(48), held_out=False)
    prompt = (task.prompt(question), 0.0)
    return [prompt, *worked(task, question, kind, rng)]


def worked(
    task: LookUp, question: Question, kind: str, rng: random.Random
) -> list[tuple[str, float]]:
    """A completion of the corpus: the model's words weigh 1, the tool's 0."""
    pieces: list[tuple[str, float]] = []
    subject: int | None = question.start
    hops = {"jump": 0, "check": 1}.get(kind, len(question.relations))
    for relation in question.relations[:hops]:
        if subject is None:
            break
        asked = subject
        subject = _ask(task, question, (asked, relation), pieces)
        was_missed = subject is not None and subject != lookup(question.world, asked, relation)
        if was_missed and kind == "search":
            subject = _ask(task, question, (asked, relation), pieces)
    is_guess = hops == 0 or subject is None
    answer = rng.randrange(ENTITIES) if is_guess else subject
    pieces.append((f"<answer> {answer} </answer>", 1.0))
    return pieces


def _ask(
    task: LookUp, question: Question, query: tuple[int, str], pieces: list[tuple[str, float]]
) -> int | None:
    """Add a call and its reply to the pieces; gives the object that the reply names, if any."""
    subject, relation = query
    pieces.append((f"{ASK} {subject} {relation} {ASK_END}", 1.0))
    reply = task.reply(" ".join(text for text, _ in pieces), question)
    pieces.append((reply, 0.0))
    return None if reply == NOTHING else _NUMBERS[reply.split()[-1]]
