"""Completions taken apart: attempts, checked arithmetic, behaviours, style and outcome.

Rules on structure and words, the same for the tiny vocabulary and for free text:
- A *claim* is an equality with an operation in it, `44 + 19 = 63`, also in words (`is`, `times`).
  It is computed exactly; a stated decimal may be rounded. A chain `a = b = c` is a claim per sign,
  a running chain `44 + 19 = 63 + 35 = 98` two sums. An equality with a question mark, or an
  expression of given numbers without `=`, states nothing. Sums of decimals are not read.
- A claim *goes on* with the attempt if it uses a result of it, or numbers that it has left while
  no verdict has fallen; or if it restates, extends or recomputes what the attempt has, unless
  that was rejected. Any other starts a new attempt, perhaps from a result of an earlier one.
- A *line*, `20*5=10,100-18=82 no`, is one attempt, though its numbers do not hang together, as
  where a result is false: claims that commas alone part, and a "yes" or "no" right behind them.
- A *verdict* is the first yes-like or no-like expression between a claim and the next one.
- A claim that uses the target as if it were a number works backward; it is part of no attempt.
- A smaller puzzle, `; 35 25 7 = 91 :`, says what is left after the claim before it. The attempts
  that follow go on from there, and `back 44 35 19 7 = 91 :` returns (see tasks/worked.py).

Knows nothing of JAX, tokens or models. How often the rules err is measured in their tests.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise

from aha_lib.tasks.countdown import EXACT, Puzzle, reward, to_postfix

MAX_TEXT = 20_000  # characters read, of what stands before the answer
MAX_GAP = 160  # characters after a claim in which its verdict is sought
MAX_TERMS = 30  # numbers in an expression as written
MAX_WHOLE = 200  # numbers and signs of one with its results filled in

Number = int | Fraction
Postfix = list[Number | str]

# What means a sign is replaced by the sign, padded with blanks so that positions stay.
_SIGNS = {
    "*": r"[×·⋅]|\\times|\\cdot|\btimes\b|\bmultiplied by\b|(?<=[\d) ])x(?= ?[\d(])",
    "/": r"÷|\\div|\bdivided by\b",
    "+": r"\bplus\b",
    "-": r"[−–]|\bminus\b",
    "=": r"≈|(?:\bis|\bequal|[.,;:]? ?\b(?:(?:which|this|that|it) )?"
    r"(?:equals|gives(?: us)?|makes|is equal to))(?= *[\d(])",
    " ": r"\*\*+|[$`]|\\[][()]",
}
_SIGN = re.compile("|".join(f"({words})" for words in _SIGNS.values()), re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3}){1,2}(?![\d,])", re.ASCII)
# A list of steps without blanks, `20*5=100,100-18=82`: after the comma the result is used, or a
# number stands that no thousands separator has before it; or a puzzle stood after a result.
_BARE_STEPS = re.compile(r"=(\d+),(?:\1|\d{1,2}|\d{4,})[-+*/]|=\d+;  ", re.ASCII)
# In such a list, digits and comma between a result and a step, which may be cut off.
_RESULT_THEN_STEP = re.compile(r"(?<==)\d{1,3},[1-9]\d{2}(?=[-+*/=]|\Z)", re.ASCII)
_TERM = r"(?:\( *){0,8}(?<![\w.])(?:0|[1-9]\d{0,8})(?![\w%^!]|\.\d)(?: *\)){0,8}"
_SIDE = rf"{_TERM}(?: *[-+*/] *{_TERM}){{0,{MAX_TERMS - 1}}}"
_VALUE = r"-?\d{1,18}(?:\.\d{1,9})?(?! *[-+*/] *[\d(]|[\w%^!])"
# Not the rest of what is not understood, such as `x - 4 + 2` or `sqrt(4) + 2`.
_CHAIN = re.compile(
    rf"(?<![^\n][-+*/] )(?<![-+*/^\w(]){_SIDE}(?: *=+ *(?:{_VALUE}|{_SIDE}))*", re.ASCII
)

_COMMA = re.compile(r" *, *")  # between the claims of a line
_END_OF_LINE = re.compile(r" *(?:yes|no)\b")

# The words. Where they are sought, the target's number reads as the word `target`.
_VERDICT = re.compile(
    r"(?P<no>\b(?:no(?:pe)?(?! (?:other|way|need|more|further))|not(?! bad| \d)|wrong|incorrect"
    r"|short|fails?|close|off|(?:over|under)shoots|exceeds"
    r"|too (?:big|small|large|high|low|much|little)"
    r"|(?:less|more|smaller|larger|bigger|greater) than)\b|n['’]t\b|[≠✗❌]|!=)"
    r"|(?P<yes>\b(?:yes|correct|right|works|perfect|exactly|great|bingo|found it|success|solved"
    r"|done|match(?:es)?|as required|it does|it is|that is it)\b|[✓✔✅]|(?:\bis|['’]s|=|equals?"
    r"|equal to|reach(?:ed|es)|hits?|gives|got) (?:exactly )?(?:the |our )?target\b(?! ?\?))",
    re.IGNORECASE,
)
_GOAL = re.compile(
    r"\b(?:need|want|like|try|aim|have to|could|should|must|first)\b[^.!?\n\d]{0,30}\b(\d{1,9})\b"
    r"(?! ?[-+*/×÷=])|\b(?:multiple of|close to) (?:a |the )?(?:\d|target)",
    re.ASCII | re.IGNORECASE,
)
# The numbers left, where a text states them after an operation or on going back.
_LIST = re.compile(r"(?:;|\bback\b) ?(\d{1,9}(?: \d{1,9}){1,9}) ?= ?\d{1,9} ?:", re.ASCII)
_KEYWORDS = (  # of the four behaviours, in the order of `Behaviours`
    r"(?i)\b(?:check|verify|correct|yes|works)\b",
    r"(?i)\b(?:wait|no|again|instead|another|different|backtrack|actually)\b",
    r"(?i)\b(?:first|step|goal|need)\b",
    r"(?i)\bback(?:wards?)?\b",
)


@dataclass(frozen=True)
class Claim:
    """An expression with, perhaps, a stated value.

    `start` and `end` index the trace's text. They don't overlap: in a chain, each claim starts
    where the one before it ends.
    """

    text: str
    expression: str
    value: Number | None  # exact; None: divides by zero
    stated: Number | None  # None: only proposed, or asked
    true: bool | None  # None: nothing is stated
    verdict: str | None  # "yes" or "no", as said right after it
    backward: bool
    start: int
    end: int


@dataclass(frozen=True)
class Attempt:
    """Claims that belong together, and the one expression that they make of the numbers."""

    claims: tuple[Claim, ...]
    expression: str
    value: Number | None  # of the expression, exact, whatever was stated
    stated: Number | None
    verdict: str | None  # the last one
    distance: Number | None  # from the exact value to the target
    used: tuple[Number, ...]
    illegal: tuple[Number, ...]  # numbers not given, or used again
    repeated: bool  # the same calculation, in whatever order, as an earlier attempt
    slips: int  # false claims
    reached: bool  # the target, without a slip, with every number exactly once
    returned: bool = False  # it goes on from a result of an earlier attempt


@dataclass(frozen=True)
class Trace:
    """A completion taken apart; `text` is what was read: up to the answer, if it is complete."""

    text: str
    puzzle: Puzzle
    answer: str | None  # None: no complete answer
    right: bool
    claims: tuple[Claim, ...]  # all of them, in order
    attempts: tuple[Attempt, ...]
    backtracks: int  # attempts left for another attempt, said or unsaid
    slips: int  # false claims
    found_then_abandoned: bool  # an attempt reached the target, the answer is not right

    @property
    def returns(self) -> int:
        """Attempts that return to a partial result, so that less than all is given up."""
        return sum(attempt.returned for attempt in self.attempts)

    @property
    def first_operations(self) -> tuple[str, ...]:
        """What was tried first on the given numbers, each once, in order."""
        begun = [attempt.claims[0] for attempt in self.attempts if not attempt.returned]
        return tuple(dict.fromkeys(claim.expression for claim in begun))


@dataclass(frozen=True)
class Behaviours:
    """How often the behaviours of Gandhi et al. (2025, arXiv 2503.01307) show in a trace."""

    verification: int  # verdicts that agree with the number they are about: `97. Yes!` does not
    backtracking: int  # attempts left for another attempt
    subgoals: int  # numbers wanted in words, not given, not the target, not computed before
    backward: int  # claims that start from the target


@dataclass
class _Draft:
    """An attempt while its claims are gathered."""

    claims: list[Claim]
    unused: list[tuple[Number, Postfix]]  # results that nothing is made of yet, and their makings
    whole: Postfix  # the one expression that the claims make so far
    marks: list[float | None]  # of it, see `_marks`
    shown: Number | None  # its value on the page
    verdict: str | None
    returned: bool  # it goes on from a result of an earlier attempt

    def add(self, claim: Claim, whole: Postfix, shown: Number | None) -> None:
        """Take up a claim that stands for `whole`."""
        marks = _marks(whole)
        is_step_of_it = marks[-1] in self.marks[:-1]
        if not is_step_of_it:
            self.whole = whole
            self.marks = marks
            self.shown = shown
        self.claims.append(claim)
        self.verdict = claim.verdict or self.verdict


def parse(completion: str, puzzle: Puzzle) -> Trace:
    """Take a completion apart, whatever the string. The module's docstring has the rules."""
    judged = reward(completion, puzzle)
    text = _before_the_answer(completion)
    gather = _gather_by_lists if _LIST.search(text) else _gather
    claims, drafts = gather(text, puzzle)
    attempts = _attempts(drafts, puzzle)
    right = judged.value == 1.0
    reached = any(attempt.reached for attempt in attempts)
    return Trace(
        text=text,
        puzzle=puzzle,
        answer=judged.expression or None,
        right=right,
        claims=tuple(claims),
        attempts=tuple(attempts),
        backtracks=max(0, len(attempts) - 1),
        slips=sum(claim.true is False for claim in claims),
        found_then_abandoned=reached and not right,
    )


def _before_the_answer(completion: str) -> str:
    """What stands before the last complete answer; all of it where there is none."""
    closed = max(0, completion.rfind("</answer>"))
    opened = completion.rfind("<answer>", 0, closed)
    text = completion if opened < 0 else completion[:opened]
    return text[:MAX_TEXT]


def _gather(text: str, puzzle: Puzzle) -> tuple[list[Claim], list[_Draft]]:
    """All claims of a text, in order, and those that are no backward work as attempts."""
    claims: list[Claim] = []
    drafts: list[_Draft] = []
    made: dict[Number | None, Postfix] = {}  # every result so far, and what it was made of
    whole: Postfix = []
    found = [*_claims(text, puzzle.target)]
    in_line = _starts_within_lines(text, [claim for claim, _ in found])
    for claim, postfix in found:
        if claim.stated is None and not _leaves(postfix) <= Counter(puzzle.numbers):
            continue  # an expression of other numbers, of which nothing is said
        if _is_backward(claim, postfix, puzzle, made):
            claims.append(replace(claim, backward=True))
            continue
        shown = claim.value if claim.stated is None else claim.stated
        # In a chain `a = b = c` the second claim is the first one, written otherwise.
        rewrites = drafts and claim.start == claims[-1].end and not claims[-1].backward
        if not rewrites:
            same_line = claim.start in in_line
            whole = _place(postfix, drafts, puzzle.numbers, made, same_line=same_line)
            made[shown] = whole
            drafts[-1].unused.append((shown, whole))
        drafts[-1].add(claim, whole, shown)
        claims.append(claim)
    return claims, drafts


def _starts_within_lines(text: str, claims: list[Claim]) -> set[int]:
    """Where the claims of lines begin, but for the first one of each."""
    found = set()
    line: list[int] = []  # if a verdict comes, the claims so far are one
    for before, claim in pairwise(claims):
        if _COMMA.fullmatch(text, before.end, claim.start) is None:
            line = []
            continue
        line.append(claim.start)
        if _END_OF_LINE.match(text, claim.end):
            found.update(line)
            line = []
    return found


Piece = tuple[Number, Postfix]  # a number at hand, and what it was made of


def _gather_by_lists(text: str, puzzle: Puzzle) -> tuple[list[Claim], list[_Draft]]:
    """As `_gather`, of a text that says which numbers are left, and when it goes back."""
    claims: list[Claim] = []
    drafts: list[_Draft] = []
    lists: list[list[Piece]] = [[(number, [number]) for number in puzzle.numbers]]
    at_hand = list(lists[0])
    end = 0
    goes_on = False  # with the attempt of the claim before
    # A puzzle that is stated claims nothing, nor does its `=` say that the target is reached.
    for claim, postfix in _claims(_LIST.sub(_blank, text), puzzle.target):
        for stated in _LIST.finditer(text, end, claim.start):
            if stated[0].startswith(";"):
                lists.append(_listed(stated[1], at_hand))
            else:
                lists = lists[:-1] or lists
            at_hand = list(lists[-1])
        if not goes_on:
            at_hand = list(lists[-1])
        if not goes_on:
            drafts.append(_new_draft(returned=any(len(made) > 1 for _, made in at_hand)))
        whole = _fill(postfix, at_hand)
        shown = claim.value if claim.stated is None else claim.stated
        at_hand.append((shown, whole))
        drafts[-1].add(claim, whole, shown)
        drafts[-1].unused = [(n, made) for n, made in at_hand if len(made) > 1 and made != whole]
        claims.append(claim)
        end = claim.end
        goes_on = claim.verdict is None
    return claims, drafts


def _blank(match: re.Match) -> str:
    return ";".ljust(len(match[0]))


def _listed(numbers: str, at_hand: list[Piece]) -> list[Piece]:
    """The pieces that a list names; a number that was not at hand stands for itself."""
    rest = list(at_hand)
    rest.sort(key=lambda piece: -len(piece[1]))  # of equal numbers the result first
    found = []
    for number in map(int, numbers.split()):
        whole = _fill([number], rest)
        found.append((number, whole))
    return found


def _is_backward(claim: Claim, postfix: Postfix, puzzle: Puzzle, made: dict) -> bool:
    """Whether a claim uses the target as if it were a number, or begins with it."""
    strange = [n for n in _leaves(postfix) if n not in puzzle.numbers and n not in made]
    begins_with_target = claim.text.startswith(str(puzzle.target))
    turned = claim.stated == puzzle.target and begins_with_target
    return puzzle.target in strange or bool(turned and strange)


def _attempts(drafts: list[_Draft], puzzle: Puzzle) -> list[Attempt]:
    """The finished attempts; without a last one that only announces the answer."""
    attempts, seen = [], set()
    for draft in drafts:
        function = draft.marks[-1]
        attempts.append(_attempt(draft, puzzle, repeated=function in seen))
        seen.add(function)
    if attempts:
        last = attempts[-1]
        nothing_is_stated = all(claim.stated is None for claim in last.claims)
        if last.verdict != "no" and nothing_is_stated:
            attempts.pop()
    return attempts


def behaviours(trace: Trace) -> Behaviours:
    """Count the four behaviours by rules; `keyword_counts` is the baseline to compare with."""
    known = dict.fromkeys([*trace.puzzle.numbers, trace.puzzle.target], -1)
    goals, agreed = {trace.puzzle.target}, 0
    for claim in trace.claims:
        if claim.backward:
            goals.add(claim.stated)
        else:
            known.setdefault(claim.stated, claim.start)
        agreed += claim.verdict == ("yes" if claim.stated in goals else "no")
    wanted = [(int(goal[1] or -1), goal.start()) for goal in _GOAL.finditer(trace.text)]
    subgoals = sum(known.get(number, at) >= at for number, at in wanted)
    backward = sum(claim.backward for claim in trace.claims)
    return Behaviours(agreed, trace.backtracks, subgoals, backward)


def keyword_counts(text: str) -> Behaviours:
    """The naive baseline: telltale words alone."""
    return Behaviours(*(len(re.findall(words, text)) for words in _KEYWORDS))


def style(trace: Trace) -> str:
    """ "jump", "check" or "search": no attempt before the answer, one, or more."""
    return ("jump", "check", "search")[min(len(trace.attempts), 2)]


def outcome(trace: Trace, ended: bool = True) -> str:
    """ "right", or why not, the first that fits: "cut off", "slipped", "claimed" or "gave up".

    cut off: the limit of tokens came before the end (not `ended`), with no complete answer.
    slipped: a slip decided an attempt: on the page it hits the target, in truth it doesn't, or the
      other way round. This comes first because it explains the claim that may follow.
    claimed: the last verdict is yes, or the answer itself says `= target`.
    gave up: the last verdict is no, or there is none, with an answer or without.
    """
    target = trace.puzzle.target
    if trace.right:
        return "right"
    if trace.answer is None and not ended:
        return "cut off"
    if any(a.slips and (a.stated == target) != (a.value == target) for a in trace.attempts):
        return "slipped"
    said = [match.lastgroup for match in _VERDICT.finditer(_words(trace.text, target))]
    verdict = trace.attempts[-1].verdict if trace.attempts else (said or [None])[-1]
    tail = (trace.answer or "").partition("=")[2].strip()
    return "claimed" if verdict == "yes" or tail == str(target) else "gave up"


def _words(text: str, target: int) -> str:
    return re.sub(rf"\b{target}\b", "target", text) if str(target) in text else text


def _place(
    postfix: Postfix,
    drafts: list[_Draft],
    numbers: tuple[int, ...],
    made: dict,
    *,
    same_line: bool,
) -> Postfix:
    """Find or begin the attempt that a claim belongs to; return all that the claim stands for."""
    is_of_given = _leaves(postfix) <= Counter(numbers)
    if drafts:
        draft = drafts[-1]
        still_unused = list(draft.unused)
        whole = _fill(postfix, still_unused)
        makings = [making for _, making in still_unused]
        fits = _leaves(whole, *makings) <= Counter(numbers)
        uses_result = not is_of_given and len(still_unused) < len(draft.unused)
        if (fits and not draft.verdict) or uses_result:
            draft.unused = still_unused
            return whole
        marks = _marks(postfix)
        restates = draft.marks[-1] in marks or marks[-1] in draft.marks
        if is_of_given and restates and draft.verdict != "no":
            draft.unused = []
            return _fill_from_all(postfix, made, numbers)
        if same_line and not draft.verdict:
            draft.unused = still_unused
            return whole
    whole = _fill_from_all(postfix, made, numbers)
    drafts.append(_new_draft(returned=len(whole) > len(postfix)))
    return whole


def _new_draft(*, returned: bool) -> _Draft:
    return _Draft([], unused=[], whole=[], marks=[], shown=None, verdict=None, returned=returned)


def _fill_from_all(postfix: Postfix, made: dict, numbers: tuple[int, ...]) -> Postfix:
    """The expression, with every result of the text filled in that is no given number."""
    return _fill(postfix, [(shown, whole) for shown, whole in made.items() if shown not in numbers])


def _fill(postfix: Postfix, results: list[tuple]) -> Postfix:
    """The expression, its numbers replaced by what made them; takes these out of the results."""
    whole = []
    for item in postfix:
        shown = [result for result, _ in results]
        if item in shown:
            _, making = results.pop(shown.index(item))
            whole += making
        else:
            whole.append(item)
    return whole if len(whole) <= MAX_WHOLE else postfix


def _leaves(*expressions: Postfix) -> Counter[Number]:
    """How often each number stands in the expressions."""
    items = chain.from_iterable(expressions)
    return Counter(item for item in items if not isinstance(item, str))


def _attempt(draft: _Draft, puzzle: Puzzle, *, repeated: bool) -> Attempt:
    value = _run(draft.whole, _exact)[-1]
    distance = None if value is None else abs(value - puzzle.target)
    slips = sum(claim.true is False for claim in draft.claims)
    given = Counter(puzzle.numbers)
    used = _leaves(draft.whole)
    on_branches = _leaves(*(whole for _, whole in draft.unused))
    illegal = (used - given) | (on_branches - given)
    in_brackets = _run(draft.whole, lambda sign, a, b: f"({a} {sign} {b})")[-1]
    return Attempt(
        claims=tuple(draft.claims),
        expression=in_brackets[1:-1],
        value=value,
        stated=draft.shown,
        verdict=draft.verdict,
        distance=distance,
        used=tuple(used.elements()),
        illegal=tuple(illegal.elements()),
        repeated=repeated,
        slips=slips,
        reached=used == given and distance == 0 and not slips,
        returned=draft.returned,
    )


def _run(postfix: Postfix, operate: Callable, number: Callable = lambda n: n) -> list:
    """The results of all operations of an expression, in order; None where it divides by zero."""
    stack, results = [], []
    for item in postfix:
        if not isinstance(item, str):
            stack.append(number(item))
            continue
        b, a = stack.pop(), stack.pop()
        try:
            stack.append(operate(item, a, b))
        except (ZeroDivisionError, TypeError):  # TypeError: a or b is None already
            stack.append(None)
        results.append(stack[-1])
    return results or stack


def _exact(sign: str, a: Number, b: Number) -> Number:
    return Fraction(a, b) if sign == "/" else EXACT[sign](a, b)


def _marks(postfix: Postfix) -> list[float | None]:
    """For each operation a number that is the same for the same function of the given numbers."""
    # It is the value at a point of no significance: 2 + sin(n) in place of n.
    marks = _run(postfix, lambda sign, a, b: EXACT[sign](a, b), lambda n: 2 + math.sin(n))
    return [mark if mark is None else round(mark, 9) for mark in marks]


@dataclass(frozen=True)
class _Side:
    """One side of an equality."""

    text: str
    postfix: Postfix
    value: Number | None
    scale: int  # 1 / scale is what a stated value may be off, by rounding
    start: int
    end: int


@dataclass(frozen=True)
class _Sum:
    """A claim, before its verdict is sought."""

    side: _Side  # that has the operation
    stated: Number | None
    true: bool | None
    start: int
    end: int


def _claims(text: str, target: int) -> Iterator[tuple[Claim, Postfix]]:
    """Yield each claim of the text, with its expression."""
    sums = _sums(text)
    next_starts = [following.start for following in sums[1:]] + [len(text)]
    for found, next_start in zip(sums, next_starts, strict=False):
        gap = text[found.end : min(next_start, found.end + MAX_GAP)]
        said = _VERDICT.search(_words(gap, target))
        claim = Claim(
            text=text[found.start : found.end],
            expression=found.side.text,
            value=found.side.value,
            stated=found.stated,
            true=found.true,
            verdict=said and said.lastgroup,
            backward=False,
            start=found.start,
            end=found.end,
        )
        yield claim, found.side.postfix


def _sums(text: str) -> list[_Sum]:
    """All equalities with an operation in them, and expressions of which nothing is stated."""
    plain = _in_signs(text)
    found: list[_Sum] = []
    for match in _CHAIN.finditer(plain):
        try:
            sides = [_side(side, match.start()) for side in re.finditer("[^= ][^=]*", match[0])]
        except ValueError:
            continue  # brackets that don't match
        last_is_asked = len(sides) == 1 or plain[match.end() : match.end() + 2].strip() == "?"
        for left, right in pairwise(sides if len(sides) > 1 else sides * 2):
            is_asked = last_is_asked and right is sides[-1]
            earliest = found[-1].end if found else 0
            one = _sum(left, right, is_asked=is_asked, earliest=earliest)
            if len(one.side.postfix) > 1:
                found.append(one)
    return found


def _in_signs(text: str) -> str:
    """The text with signs for words and without commas in numbers, every position as it was."""
    signs = list(_SIGNS)
    plain = _SIGN.sub(lambda match: signs[match.lastindex - 1].ljust(len(match[0])), text)
    return _join_thousands(plain)


def _sum(left: _Side, right: _Side, *, is_asked: bool, earliest: int) -> _Sum:
    """What two neighbours in a chain of equalities say."""
    # `44 + 19 = 63 + 35 = 98`: the right side begins with the left one's result.
    running = len(right.postfix) > 1 and right.postfix[0] == left.value != right.value
    if running:
        side, other, end = left, left, left.end
    elif len(left.postfix) == 1:  # `98 = 44 + 54`
        side, other, end = right, left, right.end
    else:
        side, other, end = left, right, right.end
    stated = None if is_asked else other.value
    if stated is None:
        true = None
    else:
        true = side.value is not None and abs(side.value - stated) * other.scale < 1
    return _Sum(side, stated, true, start=max(left.start, earliest), end=end)


def _join_thousands(text: str) -> str:
    """The text with `1,000` as `1000 `, of the same length; a comma between steps stays."""
    is_list_of_steps = _BARE_STEPS.search(text) is not None

    def joined(match: re.Match) -> str:
        if is_list_of_steps and _RESULT_THEN_STEP.match(text, match.start()):
            return match[0]
        return match[0].replace(",", "").ljust(len(match[0]))

    return _THOUSANDS.sub(joined, text)


def _side(match: re.Match, chain_start: int) -> _Side:
    """One side of an equality; raises a ValueError if its brackets don't match."""
    written = match[0].rstrip()
    start = chain_start + match.start()
    text = " ".join(match[0].split())
    if text.count("(") != text.count(")"):
        text = text.strip("() ")  # `(44 + 19 = 63)`
    decimals = len(text.partition(".")[2])
    if re.fullmatch(r"-?[\d.]+", text):
        postfix = [Fraction(text) if decimals else int(text)]
    else:
        postfix, _ = to_postfix(text)
    return _Side(
        text=text,
        postfix=postfix,
        value=_run(postfix, _exact)[-1],
        # A decimal may be a little off: it is rounded. An integer may not.
        scale=10**decimals if decimals else 10**99,
        start=start,
        end=start + len(written),
    )
