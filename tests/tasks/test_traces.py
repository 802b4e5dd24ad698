"""Traces: parsing against independent calculations, and the rules against hand labels.

`python tests/test_traces.py` prints precision and recall of every rule on the labelled traces.

How `data/labelled_traces.jsonl` was made. 154 traces (`tiny`, `free`) were written and labelled by
hand before the first rule was written; some were put in because rules should fail on them (`note`
says why). The rules were tuned on the two thirds marked `tuned`; the others were set aside and
looked at once. Traces and rules have one author, so 20 completions of Gemma 3 270M (base, two
prompts; `gemma`) were labelled and added afterwards. At first sight of them the rules had, as
precision and recall, verification 0.56 1.00 (`That is not 79` was taken for a check against
another target), backtracking 1.00 0.80, slip 1.00 1.00, illegal 1.00 0.82, two false backward
and one false subgoal, 14 of 20 counts of attempts and 19 outcomes right; then four rules were
corrected. No label was changed after the rules saw it. The labels, after Gandhi et al. (2025),
arXiv 2503.01307:

- verification: a computed result is compared with the target, in words or signs, and the verdict
  agrees with the number on the page (`97. Yes!` for 98 is a claim, not a check); or a finished
  expression is computed once more.
- backtracking: a path is left for another one, said or unsaid. Announcing it is not enough.
- subgoals: an intermediate number is wanted before it is there, or the way is parted into goals.
- backward: it is computed or argued from the target towards the numbers.
- attempts: different paths tried before the answer; slip: a sum that is wrong (sloppy running
  chains and rounding are not); illegal: a number in an attempt that is not given, or used again;
  repeated: the same calculation in any order; found_then_abandoned: a legal solution on the page
  and no right answer; outcome as in `traces.outcome`, judged by reading.
"""

import json
import operator
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aha_lib.look import record
from aha_lib.tasks import traces
from aha_lib.tasks.countdown import Puzzle, reward

LABELLED_FILE = Path(__file__).parents[1] / "data" / "labelled_traces.jsonl"
LABELLED = [json.loads(line) for line in LABELLED_FILE.read_text().splitlines()]
BEHAVIOURS = ("verification", "backtracking", "subgoals", "backward")
FLAGS = ("slip", "illegal", "repeated", "found_then_abandoned")
P98 = Puzzle((44, 19, 35), 98)
TINY = Puzzle((20, 16, 4), 40)
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def judge(row: dict) -> tuple[dict, dict]:
    """What the rules and what the keywords see in a labelled trace."""
    puzzle = Puzzle(tuple(row["numbers"]), row["target"])
    trace = traces.parse(row["completion"], puzzle)
    counts, words = traces.behaviours(trace), traces.keyword_counts(row["completion"])
    rules = {name: getattr(counts, name) > 0 for name in BEHAVIOURS}
    rules |= {
        "slip": trace.slips > 0,
        "illegal": any(attempt.illegal for attempt in trace.attempts),
        "repeated": any(attempt.repeated for attempt in trace.attempts),
        "found_then_abandoned": trace.found_then_abandoned,
        "attempts": len(trace.attempts),
        "style": traces.style(trace),
        "outcome": traces.outcome(trace),
    }
    return rules, {name: getattr(words, name) > 0 for name in BEHAVIOURS}


def scores(rows: list[dict]) -> dict[tuple[str, str], tuple[float, float, int]]:
    """(who, what) -> precision, recall and the number of traces that have the label."""
    judged, result = [judge(row) for row in rows], {}
    for who, names in (("rules", BEHAVIOURS + FLAGS), ("keywords", BEHAVIOURS)):
        for name in names:
            seen = [pair[who == "keywords"][name] for pair in judged]
            hits = sum(a and row[name] for a, row in zip(seen, rows, strict=True))
            true = sum(row[name] for row in rows)
            result[who, name] = hits / max(1, sum(seen)), hits / max(1, true), true
    for name in ("attempts", "style", "outcome"):
        styles = [("jump", "check", "search")[min(2, row["attempts"])] for row in rows]
        label = styles if name == "style" else [row[name] for row in rows]
        same = sum(rules[name] == want for (rules, _), want in zip(judged, label, strict=True))
        result["rules", name] = same / len(rows), same / len(rows), len(rows)
    return result


def table() -> str:
    """Precision and recall of rules and keywords, as text."""
    parts = {
        "all": LABELLED,
        "tuned on": [row for row in LABELLED if row["tuned"]],
        "set aside": [row for row in LABELLED if not row["tuned"]],
        "tiny": [row for row in LABELLED if row["kind"] == "tiny"],
        "free": [row for row in LABELLED if row["kind"] == "free"],
        "gemma": [row for row in LABELLED if row["kind"] == "gemma"],
    }
    lines = []
    for part, rows in parts.items():
        found = scores(rows)
        head = f"{part} ({len(rows)} traces)"
        lines.append(f"{head:26}rules P     R  keywords P     R  labelled")
        for name in (*BEHAVIOURS, *FLAGS):
            cells = []
            for who in ("rules", "keywords"):
                precision, recall, labelled = found.get((who, name), (0, 0, 0))
                cells += [f"{x:.2f}" if labelled else "-" for x in (precision, recall)]
            number = found["rules", name][2]
            lines.append("  {:24}{:>7}{:>6}{:>12}{:>6}{:>10}".format(name, *cells, number))
        for name in ("attempts", "style", "outcome"):
            lines.append(f"  {name:24}{found['rules', name][0]:7.2f}  exactly as labelled")
    return "\n".join(lines)


def claims_of(text: str, puzzle: Puzzle = P98) -> list[tuple]:
    return [(c.expression, c.stated, c.true) for c in traces.parse(text, puzzle).claims]


def expressions_of(text: str, puzzle: Puzzle = P98) -> list[str]:
    return [attempt.expression for attempt in traces.parse(text, puzzle).attempts]


# Slightly below what was measured on all 174 traces: (precision, recall).
FLOORS = {
    "verification": (0.94, 0.94),
    "backtracking": (0.94, 0.89),
    "subgoals": (0.95, 0.80),
    "backward": (0.80, 0.50),
    "slip": (0.99, 0.99),
    "illegal": (0.85, 0.85),
    "repeated": (0.99, 0.99),
    "found_then_abandoned": (0.99, 0.99),
    "attempts": (0.88, 0.88),
    "style": (0.91, 0.91),
    "outcome": (0.96, 0.96),
}


def test_labelled_set_is_what_it_says():
    assert len(LABELLED) >= 120
    assert 50 <= sum(row["kind"] == "tiny" for row in LABELLED) <= len(LABELLED) - 50
    for row in LABELLED:  # the one label that the verifier can check
        puzzle = Puzzle(tuple(row["numbers"]), row["target"])
        assert (reward(row["completion"], puzzle).value == 1) == (row["outcome"] == "right")


def test_rules_on_the_labelled_set():
    print("\n" + table())
    found = scores(LABELLED)
    for name, (precision, recall) in FLOORS.items():
        assert found["rules", name][0] >= precision, name
        assert found["rules", name][1] >= recall, name
    for name in BEHAVIOURS:  # keywords mislead: fewer right on both counts
        assert found["keywords", name][0] < found["rules", name][0], name
        assert found["keywords", name][1] < found["rules", name][1], name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("44 + 19 = 63", [("44 + 19", 63, True)]),
        ("44+19=64.", [("44+19", 64, False)]),
        ("(44 + 19) + 35 = 98", [("(44 + 19) + 35", 98, True)]),
        ("(44 + 19 = 63)", [("44 + 19", 63, True)]),
        (
            "44 × 2 = 88, 88 ÷ 8 = 11, 44 − 19 = 25",
            [("44 * 2", 88, True), ("88 / 8", 11, True), ("44 - 19", 25, True)],
        ),
        ("44 \\times 2 = 88 and 44 times 2 is 88", [("44 * 2", 88, True), ("44 * 2", 88, True)]),
        ("75 * 50 = 3,750", [("75 * 50", 3750, True)]),
        # A comma without a blank stands in a number, or between the steps of a list.
        ("75*50=3,750-25=3,725", [("75*50", 3750, True), ("3750 -25", 3725, True)]),
        ("20*50=1,000-18=982", [("20*50", 1000, True), ("1000 -18", 982, True)]),
        ("44,19 and 35: 75*50=3,750 no", [("75*50", 3750, True)]),
        ("20*5=100,100-18=82 yes", [("20*5", 100, True), ("100-18", 82, True)]),
        (
            "10*10=100,100/5=20,120-2=118",
            [("10*10", 100, True), ("100/5", 20, True), ("120-2", 118, True)],
        ),
        (
            "20-16=4,4+4=8 no\n12+11=23,234+4=277 no",
            [("20-16", 4, True), ("4+4", 8, True), ("12+11", 23, True), ("234+4", 277, False)],
        ),
        (
            "20-16=4,4+4=8 no\n75*50=3,750 no\n10*10=100,100",  # cut off
            [("20-16", 4, True), ("4+4", 8, True), ("75*50", 3750, True), ("10*10", 100, True)],
        ),
        ("98 = 44 + 54", [("44 + 54", 98, True)]),
        ("19 - 44 = -25", [("19 - 44", -25, True)]),
        ("44 / 19 = 2.32", [("44 / 19", Fraction(58, 25), True)]),  # rounded
        (
            "44 / 19 = 2.32 and 44 / 19 = 2.35",
            [("44 / 19", Fraction(58, 25), True), ("44 / 19", Fraction(47, 20), False)],
        ),
        ("44 / 19 = 2", [("44 / 19", 2, False)]),
        ("44 / (19 - 19) = 0", [("44 / (19 - 19)", 0, False)]),
        ("44+19+35 = 63+35 = 98", [("44+19+35", 98, True), ("63+35", 98, True)]),
        ("44 + 19 = 63 + 35 = 98", [("44 + 19", 63, True), ("63 + 35", 98, True)]),
        ("4+4 = 8 = 40?", [("4+4", 8, True)]),
        ("Is 44 + 19 = 98?", [("44 + 19", None, None)]),
        ("Let's try 44 + 19 - 35.", [("44 + 19 - 35", None, None)]),
        (
            "**44 + 19** = 63\n- 44 - 19 = 25\n2. 35 + 19 = 54",
            [("44 + 19", 63, True), ("44 - 19", 25, True), ("35 + 19", 54, True)],
        ),
        (
            "= 8 20 16 4 = 40 : 20 - 16 = 4 , 4 + 4 = 8 no",
            [("20 - 16", 4, True), ("4 + 4", 8, True)],
        ),
        # What is not understood is not called false.
        ("x - 4 + 2 = 9, sqrt(4) + 2 = 9, 2^3 + 1 = 5, 3! + 2 = 3, 50% + 2 = 3, 2x + 4 = 9", []),
        ("44, 19 and 35; 12/5/2024; 1-2; the target is 98; 98 = 98; - 5 = 3", []),
        ("44 + = 63, + 19 = 63", []),
    ],
)
def test_claims(text, expected):
    assert claims_of(text) == expected


STEP = r"(\d+)([-+*/])(\d+)=(\d+)"
LINE = re.compile(rf"({STEP}),({STEP}) (?:no|yes)")


def sums_of(text: str) -> list[tuple[str, int, bool]] | None:
    """The sums of an answer all of whose lines are `a+b=c,c+d=e no`; None of any other."""
    lines = [LINE.fullmatch(line) for line in text.removesuffix("\n").split("\n")]
    if not all(lines):
        return None
    sums = []
    for step in (step for line in lines for step in line.group(1, 6)):
        a, sign, b, stated = re.fullmatch(STEP, step).groups()
        exists = sign != "/" or b != "0"
        true = exists and SIGNS[sign](Fraction(a), Fraction(b)) == int(stated)
        sums.append((f"{a}{sign}{b}", int(stated), true))
    return sums


def test_hundreds_in_recorded_steps_are_no_thousands():
    """Gemma's last answers on a GPU, against a reader of their language alone."""
    run = record.read(record.DATA / "gemma3-270m" / "h100" / "seed0")
    read = 0
    for text, puzzle in zip(run.kept[-1]["sampled"], run.panel, strict=True):
        if not re.search(r"=\d{3},\d{3}[-+*/]", text):
            continue
        trace = traces.parse(text, puzzle)
        expected = sums_of(trace.text)
        if expected is not None:
            stated = [claim for claim in trace.claims if claim.stated is not None]
            assert [(c.expression, c.stated, c.true) for c in stated] == expected
            read += 1
    assert read > 15, "else nothing is shown"


@given(st.data())
def test_claims_are_computed_exactly(data):
    """Random expressions, written and evaluated here, with a right or a wrong result."""

    def build(depth: int) -> tuple[str, Fraction | None]:
        if depth == 0 or data.draw(st.booleans()):
            number = data.draw(st.integers(0, 99))
            return str(number), Fraction(number)
        (a, x), (b, y) = build(depth - 1), build(depth - 1)
        sign = data.draw(st.sampled_from("+-*/"))
        if x is None or y is None or (sign == "/" and y == 0):
            return f"({a} {sign} {b})", None
        return f"({a} {sign} {b})", {"+": x + y, "-": x - y, "*": x * y, "/": y and x / y}[sign]

    (a, x), (b, y), sign = build(2), build(2), data.draw(st.sampled_from("+-*"))
    value = None if x is None or y is None else {"+": x + y, "-": x - y, "*": x * y}[sign]
    shift = data.draw(st.integers(-2, 2))
    stated = shift if value is None else int(value) + shift
    (claim,) = traces.parse(f"So {a} {sign} {b} = {stated}, I think", P98).claims
    assert claim.true == (value == stated)
    assert claim.value == value
    assert claim.stated == stated


def test_tiny_trace_by_hand():
    text = "20 - 16 = 4 , 4 + 4 = 8 no 20 + 4 = 24 , 24 + 16 = 41 yes"
    answer = " <answer> ( 20 + 4 ) + 16 </answer>"
    trace = traces.parse(text + answer, TINY)
    assert trace.text == text + " " and trace.answer == "( 20 + 4 ) + 16" and trace.right
    assert (trace.backtracks, trace.slips, trace.found_then_abandoned) == (1, 1, False)
    first, second = trace.attempts
    assert [c.text for c in first.claims] == ["20 - 16 = 4", "4 + 4 = 8"]
    assert [c.verdict for c in trace.claims] == [None, "no", None, "yes"]
    assert (first.expression, first.value, first.stated) == ("(20 - 16) + 4", 8, 8)
    assert (first.verdict, first.distance, first.slips, first.reached) == ("no", 32, 0, False)
    # The expression of the second is right; what it states is not.
    assert (second.expression, second.value, second.stated) == ("(20 + 4) + 16", 40, 41)
    assert (second.verdict, second.distance, second.slips, second.reached) == ("yes", 0, 1, False)
    assert sorted(first.used) == sorted(second.used) == [4, 16, 20]
    assert first.illegal == second.illegal == ()
    for claim in trace.claims:
        assert trace.text[claim.start : claim.end] == claim.text


def operations(draw, numbers: list[int]) -> tuple[str, int]:
    """One attempt in the tiny language, written here independently, and its last result."""
    steps, numbers = [], list(numbers)
    while len(numbers) > 1:
        a, b = sorted(numbers.pop(draw(st.integers(0, len(numbers) - 1))) for _ in "ab")[::-1]
        signs = [s for s in "+-*/" if s != "/" or (b and a % b == 0)]
        sign = draw(st.sampled_from(signs))
        numbers.append({"+": a + b, "-": a - b, "*": a * b, "/": a // (b or 1)}[sign])
        steps.append(f"{a} {sign} {b} = {numbers[-1]}")
    return " , ".join(steps), numbers[0]


@given(st.data())
def test_any_tiny_search(data):
    """Whatever is tried, each attempt ends at its verdict, uses every number and has no slip."""
    numbers = data.draw(st.lists(st.integers(1, 20), min_size=3, max_size=4, unique=True))
    tried = [operations(data.draw, numbers) for _ in range(data.draw(st.integers(0, 5)))]
    ends = [end for _, end in tried]
    target = data.draw(st.sampled_from(ends + [97]))
    assume(target not in ends[:-1])  # what follows a yes may be a check of it
    text = " ".join(f"{steps} {'yes' if end == target else 'no'}" for steps, end in tried)
    trace = traces.parse(text + " <answer> 1 </answer>", Puzzle(tuple(numbers), target))
    assert trace.slips == 0
    assert [attempt.value for attempt in trace.attempts] == ends
    assert all(sorted(attempt.used) == sorted(numbers) for attempt in trace.attempts)
    assert trace.backtracks == max(0, len(tried) - 1)
    assert traces.behaviours(trace).verification == len(tried)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("44 + 19 = 63. 63 - 35 = 28, no. 63 + 35 = 98", ["(44 + 19) - 35", "(44 + 19) + 35"]),
        ("44 * 2 = 88, too big. 88 - 19 = 69", ["(44 * 2) - 19"]),  # goes on after a verdict
        ("44 + 19 = 63. 44 + 35 = 79", ["44 + 19", "44 + 35"]),  # 44 is used up
        ("44 + 19 = 63. So 44 + 19 + 35 = 98", ["(44 + 19) + 35"]),  # extends
        ("44 + 19 + 35 = 98. Check: 44 + 19 = 63, 63 + 35 = 98", ["(44 + 19) + 35"]),  # recomputes
        ("Try (44 - 19) * 35: 44 - 19 = 25, 25 * 35 = 875. No.", ["(44 - 19) * 35"]),
        ("98 - 35 = 63. 44 + 19 = 63", ["44 + 19"]),  # working backward is no attempt
        ("So it must be 44 + 19 + 35.", []),  # an announcement
        ("44 + 19 - 35? No.", ["(44 + 19) - 35"]),
        ("44 + 10 = 54, 54 + 44 = 98", ["(44 + 10) + 44"]),
        ("44 + 19 = 63, 44 + 35 = 79, 19 + 35 = 54", ["44 + 19", "44 + 35", "19 + 35"]),
        ("44 + 19 = 62, 44 + 35 = 79. No. 44 - 35 = 9", ["44 + 19", "44 + 35", "44 - 35"]),
    ],
)
def test_attempts(text, expected):
    assert expressions_of(text) == expected


@pytest.mark.parametrize(
    "line",
    [
        "44*19=8,35*9=4 no\n",  # the result is false, and another number is used
        "44*19=8,35*8=4 no\n",
        "44 + 19 = 62 , 63 + 35 = 98 no ",  # as if it had been true
        "44 + 19 = 63 , 44 + 35 = 79 no ",  # a number is used twice
        "7 + 7 = 14 , 35 + 3 = 38 no ",  # numbers that nobody gave
    ],
)
def test_a_line_with_one_verdict_is_one_attempt(line):
    """Steps that only a comma parts are one attempt, however wrong their results are."""
    once = traces.parse(line + "<answer>(44+19)+35</answer>", P98)
    assert (len(once.attempts), once.backtracks, traces.style(once)) == (1, 0, "check")
    (attempt,) = once.attempts
    assert len(attempt.claims) == 2 and attempt.verdict == "no" and not attempt.reached
    twice = traces.parse(2 * line, P98)
    assert [len(attempt.claims) for attempt in twice.attempts] == [2, 2]
    assert [attempt.repeated for attempt in twice.attempts] == [False, True]


def test_the_control_without_searches_never_goes_on():
    """Its sums have become false, so that the numbers of a line do not hang together."""
    run = record.read(record.DATA / "gemma3-270m/h100_2e-4/no_search")
    pairs = zip(run.kept[-1]["sampled"], run.panel, strict=True)
    assert sum(traces.parse(*pair).backtracks for pair in pairs) == 0


def test_two_equal_results_are_two():
    text = "9 - 6 = 3 , 4 - 1 = 3 , 3 + 3 = 6 no"
    (attempt,) = traces.parse(text, Puzzle((9, 6, 4, 1), 32)).attempts
    assert attempt.expression == "(9 - 6) + (4 - 1)"
    assert attempt.illegal == () and sorted(attempt.used) == [1, 4, 6, 9]


def test_illegal_numbers():
    reused, foreign = (
        traces.parse(text, P98).attempts[0].illegal
        for text in ("44 + 19 = 63, 63 + 44 = 107", "44 * 2 = 88, 88 + 10 = 98")
    )
    assert reused == (44,) and sorted(foreign) == [2, 10]


def test_repeated_is_the_same_function_of_the_numbers():
    same = "44 + 19 = 63, 63 - 35 = 28 no 44 - 35 = 9, 9 + 19 = 28 no"
    other = "44 + 35 = 79, 79 - 19 = 60 no 19 + 35 = 54, 54 - 44 = 10 no"
    assert [a.repeated for a in traces.parse(same, P98).attempts] == [False, True]
    assert [a.repeated for a in traces.parse(other, P98).attempts] == [False, False]
    # Equal values are not enough: 6 * 4 and 12 * 2 are two ideas.
    equal = traces.parse("6 * 4 = 24 no 12 * 2 = 24 no", Puzzle((12, 6, 4, 2), 50))
    assert [a.repeated for a in equal.attempts] == [False, False]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("44 + 19 = 63, 63 + 35 = 98 yes <answer>44 + 19 + 35</answer>", "right"),
        ("44 + 35 = 79, 79 - 19 = 98 yes <answer>44 + 35 - 19</answer>", "slipped"),  # and claimed
        ("44 + 19 = 63, 63 + 35 = 97 no <answer>44 + 35 - 19</answer>", "slipped"),  # hides it
        ("44 - 19 = 15, 15 + 35 = 50 no <answer>44 + 35 - 19</answer>", "gave up"),  # did no harm
        ("44 + 35 = 79, 79 - 19 = 60 yes <answer>44 + 35 - 19</answer>", "claimed"),
        ("This is correct! <answer>44 + 35 - 19</answer>", "claimed"),
        ("<answer>44 + 35 - 19 = 98</answer>", "claimed"),
        ("44 + 35 = 79, 79 - 19 = 60 no <answer>44 + 35 - 19</answer>", "gave up"),
        ("44 + 19 = 63, 63 + 35 = 98", "gave up"),
        ("<answer>44 + 35 - 19</answer>", "gave up"),
        ("", "gave up"),
    ],
)
def test_outcome(text, expected):
    assert traces.outcome(traces.parse(text, P98)) == expected


def test_cut_off_is_without_an_answer_and_without_an_end():
    loop, answered = "44 + 19 = 63 no 44 + 19 = 63 no", "<answer> 44 + 19 </answer> 44 +"
    assert traces.outcome(traces.parse(loop, P98), ended=False) == "cut off"
    assert traces.outcome(traces.parse(loop, P98), ended=True) == "gave up"
    assert traces.outcome(traces.parse(answered, P98), ended=False) == "gave up"
    right = "<answer> 44 + 19 + 35 </answer> and"
    assert traces.outcome(traces.parse(right, P98), ended=False) == "right"


def test_keywords_mislead():
    """All the words and none of the deeds, and the other way round."""
    words = "First, a goal. Wait, let me check, step back and try again. Yes, correct!"
    deeds = "44 + 35 = 79 and 79 - 19 = 60. 98 - 35 = 63. 44 + 19 = 63."
    nothing = traces.Behaviours(verification=0, backtracking=0, subgoals=0, backward=0)
    assert traces.behaviours(traces.parse(words, P98)) == nothing
    assert traces.keyword_counts(deeds) == nothing
    for name in BEHAVIOURS:
        assert getattr(traces.keyword_counts(words), name) > 0
    found = traces.behaviours(traces.parse(deeds, P98))
    assert (found.backtracking, found.backward) == (1, 1)


def test_only_what_stands_before_the_answer_is_read():
    text = "44 + 19 = 63 <answer>1</answer> 44 - 19 = 25 <answer> 44 + 19 + 35 </answer> 9 + 9 = 1"
    trace = traces.parse(text, P98)
    assert trace.right and trace.answer == "44 + 19 + 35"
    assert [claim.expression for claim in trace.claims] == ["44 + 19", "44 - 19"]
    assert traces.style(trace) == "search"
    cut = traces.parse("44 + 19 = 63 <answer> 44 - 19 = 64", P98)  # goes on inside the answer
    assert (cut.answer, cut.slips, traces.style(cut)) == (None, 1, "search")
    far = traces.parse("word " * traces.MAX_TEXT + "44 + 19 = 63", P98)
    assert far.attempts == () and len(far.text) == traces.MAX_TEXT


WORDS = """44 19 35 98 63 0 + - * / = ( ) , . ? no yes not is gives x need to make
<answer> </answer>""".split()
DOUBLING = " , ".join(f"{2**i} + {2**i} = {2 ** (i + 1)}" for i in range(2, 29))
HOSTILE = [
    "(" * 20_000,
    "1 )" * 7_000,
    "1 + " * 7_000,
    "1 = " * 7_000,
    "44 + 19 = 63 " * 2_000,
    "1,111" * 4_000,
    "is 1 " * 5_000,
    " " * 19_000 + "1 +",
    "need " * 5_000,
    DOUBLING,
    "*".join(["999999999"] * 40) + " = 5",
    "9" * 20_000 + " + 1 = 2",
    "<answer>" * 9_000,
    "44 / (19 - 19) = 5, 5 + 35 = 40, 40 / (44 / (19 - 19)) = 1 no",
]


@given(
    st.one_of(
        st.text(),
        st.text(alphabet="0123456789+-*/=()., x×÷−?\n", max_size=60),
        st.lists(st.sampled_from(WORDS), max_size=50).map(" ".join),
        st.sampled_from(HOSTILE),
    ),
    st.sampled_from([P98, TINY, Puzzle((0, 0), 0), Puzzle((), 5)]),
)
def test_any_text_is_taken_apart(text, puzzle):
    trace = traces.parse(text, puzzle)
    assert trace.right == (reward(text, puzzle).value == 1)
    assert traces.outcome(trace) in ("right", "slipped", "claimed", "gave up")
    assert traces.style(trace) == ("jump", "check", "search")[min(2, len(trace.attempts))]
    assert min(traces.behaviours(trace).__dict__.values()) >= 0 and traces.keyword_counts(text)
    at = 0
    for claim in trace.claims:  # in order, without overlap, and every attempt's claims among them
        assert at <= claim.start < claim.end <= len(trace.text)
        at = claim.end
    assert all(claim in trace.claims for attempt in trace.attempts for claim in attempt.claims)


if __name__ == "__main__":
    print(table())
