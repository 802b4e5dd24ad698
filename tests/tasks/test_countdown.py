"""Countdown against independent calculations: brute force, and Python's own parser on fractions."""

import ast
import dataclasses
import itertools
import json
import operator
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha_lib.presets import PUZZLES, PuzzleRange
from aha_lib.tasks import countdown
from aha_lib.tasks.countdown import Puzzle, generate, is_held_out, prompt, reward, solve

TINY = PuzzleRange(numbers=3, low=1, high=20, target_low=10, target_high=99, bound=100)
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NODES = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
DATA = Path(__file__).parents[1] / "data"
PUZZLE = Puzzle((44, 19, 35), 98)


# Independent tools. A tree is an integer or (sign, left, right).


def tree_of(text):
    """Tree of an expression by Python's parser; None if it holds anything but + - * / ( )."""

    def convert(node):
        if isinstance(node, ast.BinOp) and type(node.op) in NODES:
            return NODES[type(node.op)], convert(node.left), convert(node.right)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        raise ValueError

    if re.search(r"[^0-9+*/() \t\n\r\f\v-]|\b0\d", text):
        return None
    try:
        return convert(ast.parse(" ".join(text.split()), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def values_of(tree):
    """Every value in the tree, leaves and intermediates, the result last."""
    if isinstance(tree, int):
        return [Fraction(tree)]
    left, right = values_of(tree[1]), values_of(tree[2])
    return [*left, *right, SIGNS[tree[0]](left[-1], right[-1])]


def leaves_of(tree):
    return [tree] if isinstance(tree, int) else leaves_of(tree[1]) + leaves_of(tree[2])


def operations_of(tree):
    return [] if isinstance(tree, int) else [tree, *operations_of(tree[1]), *operations_of(tree[2])]


def canonical(tree):
    """One tree for all that differ by commutativity."""
    if isinstance(tree, int):
        return tree
    sides = [canonical(tree[1]), canonical(tree[2])]
    return tree[0], *(sorted(sides, key=repr) if tree[0] in "+*" else sides)


def truly_right(completion, puzzle):
    """The verdict without the module's help: for short completions."""
    found = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", completion, re.DOTALL)
    if not found or len(found[-1]) > 300:
        return False
    text = found[-1].strip().replace("×", "*").replace("÷", "/").replace("−", "-")
    text, equals, tail = text.partition("=")
    if equals and not re.fullmatch(rf"\s*{puzzle.target}\s*", tail, re.ASCII):
        return False
    tree = tree_of(text)
    if tree is None or sorted(leaves_of(tree)) != sorted(puzzle.numbers):
        return False
    try:
        return values_of(tree)[-1] == puzzle.target
    except ZeroDivisionError:
        return False


def brute_force(puzzle, bound):
    """Canonical trees of all solutions: every order, every shape, every choice of signs."""

    def trees(numbers):
        if len(numbers) == 1:
            yield numbers[0]
        for cut in range(1, len(numbers)):
            sides = itertools.product(trees(numbers[:cut]), trees(numbers[cut:]))
            for (left, right), sign in itertools.product(sides, SIGNS):
                yield sign, left, right

    found = set()
    for order in set(itertools.permutations(puzzle.numbers)):
        for tree in trees(order):
            try:
                values = values_of(tree)
            except ZeroDivisionError:
                continue
            legal = bound is None or (
                all(v.denominator == 1 and 0 <= v <= bound for v in values)
                and all(larger_first(t) for t in operations_of(tree) if t[0] in "-/")
            )
            if legal and values[-1] == puzzle.target:
                found.add(canonical(tree))
    return found


def larger_first(tree):
    return values_of(tree[1])[-1] >= values_of(tree[2])[-1]


# Puzzles


@pytest.mark.parametrize("held_out", [False, True])
def test_generate_tiny(held_out):
    puzzles = [generate(3, i, TINY, held_out=held_out) for i in range(300)]
    assert puzzles == [generate(3, i, TINY, held_out=held_out) for i in range(300)]
    assert len(set(puzzles)) > 100
    for puzzle in puzzles:
        assert len(puzzle.numbers) == 3 and 10 <= puzzle.target <= 99
        assert all(1 <= number <= 20 for number in puzzle.numbers)
        assert is_held_out(puzzle.numbers) == held_out
    assert all(brute_force(puzzle, 100) for puzzle in puzzles[:20])


def test_generate_same_on_every_platform():
    # Recorded once; a change here silently mixes training and held-out puzzles of old runs.
    assert [generate(0, i, TINY) for i in range(3)] == [
        Puzzle((13, 16, 16), 48),
        Puzzle((16, 6, 7), 16),
        Puzzle((4, 9, 8), 40),
    ]
    assert generate(0, 0, held_out=True) == Puzzle((95, 40, 71), 64)


def test_generate_gives_the_puzzles_that_it_gave():
    """Several hundred puzzles of each preset and other ranges, recorded when texts were built.

    Each row of `puzzles.jsonl` has the puzzles 0, 1, 2, … of a seed: the numbers, then the target.
    """
    counts = Counter()
    for line in (DATA / "puzzles.jsonl").read_text().splitlines():
        row = json.loads(line)
        ranges = {**row["ranges"]}
        if isinstance(ranges["numbers"], list):
            ranges["numbers"] = tuple(ranges["numbers"])
        for index, (*numbers, target) in enumerate(row["puzzles"]):
            puzzle = generate(row["seed"], index, PuzzleRange(**ranges), held_out=row["held_out"])
            assert puzzle == Puzzle(tuple(numbers), target)
            counts[ranges["high"], ranges.get("bound"), ranges.get("targets", "reached")] += 1
    for preset in PUZZLES.values():
        assert counts[preset.high, preset.bound, preset.targets] == 300


@given(st.lists(st.integers(0, 12), min_size=2, max_size=4), st.sampled_from([None, 30]))
@settings(max_examples=30)
def test_targets_are_those_that_have_a_solution(numbers, bound):
    """What `generate` draws from, computed without texts, against the solver's expressions."""
    numbers = tuple(sorted(numbers))
    targets = countdown._targets(numbers, bound, 0, 40)
    solutions = countdown._expressions(numbers, bound)
    assert list(targets) == [target for target in range(41) if target in solutions]


def test_generate_builds_no_expressions(monkeypatch):
    """A puzzle of TinyZero's takes a fraction of a millisecond: nothing is spelt out for it."""
    monkeypatch.setattr(countdown, "_expressions", None)
    countdown._targets.cache_clear()
    assert generate(0, 0, PUZZLES["tinyzero"], held_out=True) == Puzzle((95, 40, 71), 64)


def test_generate_tinyzero_range():
    puzzles = [generate(0, i) for i in range(60)]
    assert {len(puzzle.numbers) for puzzle in puzzles} == {3, 4}
    assert all(
        10 <= p.target <= 100 and min(p.numbers) >= 1 <= max(p.numbers) <= 99 for p in puzzles
    )
    assert all(solve(puzzle) for puzzle in puzzles)


def test_lists_differ_by_seed_and_index():
    lists = [[generate(seed, i) for i in range(20)] for seed in range(3)]
    assert len({puzzle for each in lists for puzzle in each}) == 60


def test_held_out_is_a_tenth_of_the_multisets():
    multisets = list(itertools.combinations_with_replacement(range(1, 21), 3))
    share = sum(map(is_held_out, multisets)) / len(multisets)
    assert 0.07 < share < 0.13
    assert all(
        len({is_held_out(order) for order in itertools.permutations(numbers)}) == 1
        for numbers in multisets[:200]
    )


def test_target_is_uniform_over_what_can_be_reached():
    one = PuzzleRange(
        numbers=2, low=7, high=7, target_low=0, target_high=50
    )  # reaches 0, 1, 14, 49
    side = dict(held_out=is_held_out((7, 7)))
    counts = [generate(0, i, one, **side).target for i in range(800)]
    assert set(counts) == {0, 1, 14, 49}
    assert all(150 < counts.count(target) < 250 for target in set(counts))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(numbers=1),
        dict(numbers=6),
        dict(numbers=()),
        dict(numbers=(3, 9)),
        dict(low=5, high=4),
        dict(low=-1),
        dict(target_low=20, target_high=19),
        dict(target_low=-1),
        dict(numbers=2, low=1, high=3, target_low=50),  # nothing reaches a target
        dict(high=20, bound=5),  # no target within the bound
        dict(low=7, high=7, numbers=2, held_out=not is_held_out((7, 7))),  # an empty side
    ],
)
def test_impossible_settings_are_one_clear_sentence(wrong):
    ranges = dict(wrong)
    held_out = ranges.pop("held_out", False)
    with pytest.raises(ValueError, match=r"(give|let each|widen)") as caught:
        generate(0, 0, PuzzleRange(**ranges), held_out=held_out)
    assert "\n" not in str(caught.value)


def test_prompts():
    puzzle = Puzzle((4, 20, 16), 40)
    assert prompt(puzzle) == "20 16 4 = 40 :"
    assert prompt(puzzle, "short") == "Make 40 from 4, 20, 16.\n"
    base = prompt(puzzle, "base")
    assert "[4, 20, 16]" in base and "equals 40" in base and "exactly once" in base
    assert base.startswith("A conversation") and base.endswith("\n<think>")
    with pytest.raises(ValueError, match='"tiny", "short" or "base"'):
        prompt(puzzle, "chat")


# Solver


@pytest.mark.parametrize("bound", [None, 100])
@pytest.mark.parametrize(
    "puzzle",
    [
        Puzzle((20, 16, 4), 40),
        Puzzle((4, 4, 8), 16),
        Puzzle((3, 3, 8, 8), 24),
        Puzzle((2, 2, 4, 4), 8),
        Puzzle((1, 5, 5, 5), 24),
        Puzzle((2, 2, 2), 2),
        Puzzle((6, 3), 2),
        Puzzle((7, 7, 7), 50),
        Puzzle((1, 1), 90),
        Puzzle((0, 5, 10, 10), 10),
    ],
)
def test_solve_against_brute_force(puzzle, bound):
    solutions = solve(puzzle, bound)
    trees = [tree_of(text) for text in solutions]
    assert solutions == sorted(set(solutions))
    assert sorted(map(repr, map(canonical, trees))) == sorted(map(repr, brute_force(puzzle, bound)))
    for text, tree in zip(solutions, trees, strict=True):
        assert all(larger_first(t) for t in operations_of(tree) if t[0] in "+*")
        assert reward(f"<answer> {text} </answer>", puzzle).value == 1.0


def test_solve_writes_the_tiny_format():
    assert solve(Puzzle((16, 4, 20), 40), 100) == [
        "( 20 + 16 ) + 4",
        "( 20 + 4 ) + 16",
        "20 + ( 16 + 4 )",
    ]
    assert solve(Puzzle((3, 3, 8, 8), 24)) == ["8 / ( 3 - ( 8 / 3 ) )"]
    assert solve(Puzzle((3, 3, 8, 8), 24), 100) == []


@pytest.mark.parametrize("numbers", [(5,), (1, 2, 3, 4, 5, 6)])
def test_solve_refuses_too_many_numbers(numbers):
    with pytest.raises(ValueError, match="the solver takes 2 to 5"):
        solve(Puzzle(numbers, 5))


# Verifier


@st.composite
def expressions(draw):
    """A tree over random numbers and one of its many spellings."""
    trees = draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))
    while len(trees) > 1:
        left, right = (trees.pop(draw(st.integers(0, len(trees) - 1))) for _ in range(2))
        trees.append((draw(st.sampled_from("+-*/")), left, right))
    blank = st.sampled_from(["", "", " ", "\n", " \t "])

    def spell(tree, brackets):
        if isinstance(tree, int):
            text, brackets = str(tree), draw(st.integers(0, 9)) == 0
        else:
            sign, left, right = tree
            strong = sign in "*/"
            text = draw(blank).join(
                [
                    spell(left, strong and not isinstance(left, int) and left[0] in "+-"),
                    draw(st.sampled_from({"*": "*×", "/": "/÷", "-": "-−"}.get(sign, sign))),
                    spell(right, not isinstance(right, int) and (strong or right[0] in "+-")),
                ]
            )
        return f"({draw(blank)}{text}{draw(blank)})" if brackets or draw(st.booleans()) else text

    return trees[0], spell(trees[0], False)


@settings(max_examples=400)
@given(expressions(), st.integers(0, 99), st.sampled_from(["", "so ", "<answer>1</answer>\n"]))
def test_valid_expressions_score_as_they_should(expression, other, before):
    tree, text = expression
    numbers = tuple(leaves_of(tree)[::-1])

    def score(tail="", target=other, numbers=numbers):
        return reward(f"{before}<answer>{text}{tail}</answer> after", Puzzle(numbers, target))

    try:
        value = values_of(tree)[-1]
    except ZeroDivisionError:
        assert (score().value, score().reason) == (0.1, "divides by zero")
        return
    assert score().value == (1.0 if value == other else 0.1)
    if value != other:
        assert score().reason == f"equals {value}, not {other}"
    if value.denominator == 1 and value >= 0:
        assert score(target=int(value)).value == 1.0
        assert score(target=int(value)).expression == text
        assert score(f" = {value}", int(value)).value == 1.0
        assert score(f" = {value + 1}", int(value)).value == 0.1
    assert score(target=int(value), numbers=(*numbers, 7)).value == 0.1


SMALL = Puzzle((1, 2, 2), 4)
NASTY = "\u00a00012222+-*/()==×÷−. \n\t\0_eٱ２²½'\"\ud800"


@settings(max_examples=1000)
@given(st.text(st.sampled_from("122+-*/()= ×÷−"), max_size=12), st.text(max_size=5))
def test_random_answers(text, noise):
    check_verdict(f"{noise}<answer>{text}</answer>{noise}", SMALL)


@settings(max_examples=1000)
@given(st.data())
def test_mutated_answers(data):
    tags = ["<answer>", "</answer>", "<answer", "<think>", "**", "//", "= 4", "1_0", "02", "2.0"]
    completion = data.draw(
        st.sampled_from(
            [
                "<think> 1 + 2 = 3 </think> <answer>( 1 + 2 ) * 2 - 2 = 4</answer>",
                "<answer> 2 * 2 / 1 = 4 </answer>",
                "<answer>2*2*1</answer><answer>2+2</answer>",
            ]
        )
    )
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(completion)))
        stop = min(len(completion), start + data.draw(st.integers(0, 3)))
        new = data.draw(st.sampled_from(tags) | st.text(NASTY, max_size=2))
        completion = completion[:start] + new + completion[stop:]
    check_verdict(completion, SMALL)


@given(st.text(st.characters()) | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_any_text(text):
    for completion in (text, f"<answer>{text}</answer>", f"<answer>{text}", f"{text}</answer>"):
        check_verdict(completion, SMALL)


def check_verdict(completion, puzzle):
    verdict = reward(completion, puzzle)
    assert verdict.value in (0.0, 0.1, 1.0)
    assert (verdict.value == 1.0) == truly_right(completion, puzzle)
    assert verdict.reason and verdict.reason.encode()  # can be printed, whatever the completion


@pytest.mark.parametrize(
    ("completion", "value", "reason"),
    [
        ("… <answer>44 + 19 + 35</answer>", 1.0, "equals 98"),
        ("<answer>(44+19)+35 = 98</answer>", 1.0, "equals 98"),
        ("<answer>44+19+35</answer>\n", 1.0, "equals 98"),  # TinyZero: 0
        ("<answer>\n44+19\n+35\n</answer>", 1.0, "equals 98"),  # TinyZero: 0
        ("<answer>1</answer> no, <answer>44+19+35</answer>", 1.0, "equals 98"),
        ("<answer>44+19+35</answer> and <answer>1", 1.0, "equals 98"),  # the last complete one
        ("<answer>44+ <answer>44+19+35</answer> </answer>", 1.0, "equals 98"),
        ("<answer>44+19+35</answer><answer>no</answer>", 0.0, "'n' is not allowed"),
        ("<answer>44+19+35 = 97</answer>", 0.1, "equals 98, but claims to equal 97"),
        ("<answer>44-19+35</answer>", 0.1, "equals 60, not 98"),
        ("<answer>44/19+35</answer>", 0.1, "equals 709/19, not 98"),
        ("<answer>44+19+19</answer>", 0.1, "uses 19 twice and 35 not at all"),
        ("<answer>44+54</answer>", 0.1, "54 from outside the puzzle"),
        ("<answer>98</answer>", 0.1, "98 from outside the puzzle"),
        ("<answer>44/(19-19)+35</answer>", 0.1, "uses 19 twice"),
        ("<answer>44+19+35", 0.0, "no complete"),
        ("44+19+35</answer>", 0.0, "no complete"),
        ("</answer>44+19+35<answer>", 0.0, "no complete"),
        ("44 + 19 + 35 = 98", 0.0, "no complete"),
        ("", 0.0, "no complete"),
        ("<answer></answer>", 0.0, "not complete"),
        ("<answer>44+19+35=</answer>", 0.0, "an integer is expected"),
        ("<answer>44+19+35=98=98</answer>", 0.0, "an integer is expected"),
        ("<answer>((44+19)+35</answer>", 0.0, "not complete"),
        ("<answer>44+19)+35</answer>", 0.0, ") without ("),
        ("<answer>44 19 35</answer>", 0.0, "19 is out of place"),
        ("<answer>44(19)35</answer>", 0.0, "( is out of place"),
        ("<answer>+44+19+35</answer>", 0.0, "+ is out of place"),
        ("<answer>44+19--35</answer>", 0.0, "- is out of place"),
        ("<answer>044+19+35</answer>", 0.0, "'04' is not allowed"),
        ("<answer>4_4+19+35</answer>", 0.0, "'_' is not allowed"),
        ("<answer>44.0+19+35</answer>", 0.0, "'.' is not allowed"),
        ("<answer>44e0+19+35</answer>", 0.0, "'e' is not allowed"),
        ("<answer>٤٤+19+35</answer>", 0.0, "'٤' is not allowed"),
        ("<answer>44\u00a0+19+35</answer>", 0.0, "'\\xa0' is not allowed"),
        ("<answer>sum([44,19,35])</answer>", 0.0, "'s' is not allowed"),
        ("<answer>\ud800</answer>", 0.0, "'\\ud800' is not allowed"),
    ],
)
def test_verdicts(completion, value, reason):
    verdict = reward(completion, PUZZLE)
    assert verdict.value == value and reason in verdict.reason
    assert (value == 1.0) == truly_right(completion, PUZZLE)


@pytest.mark.parametrize(
    ("numbers", "target", "answer"),
    [
        ((2, 50, 2), 5, "2.50*2"),
        ((1, 5), 2, "1/.5"),
        ((2, 3), 8, "2**3"),
        ((7, 2), 3, "7//2"),
        ((1, 2, 3), 7, "--1+2*3"),
        ((50, 60, 70), 10, "50**60**70"),
    ],
)
def test_what_deceives_tinyzero_earns_nothing(numbers, target, answer):
    assert reward(f"<answer>{answer}</answer>", Puzzle(numbers, target)).value == 0.0


def test_expression_is_what_was_written():
    assert reward("<answer> 44 + 19 </answer>", PUZZLE).expression == "44 + 19"


def test_repeated_numbers_are_counted():
    twins = Puzzle((2, 2, 3), 7)
    assert reward("<answer>2*2+3</answer>", twins).value == 1.0
    assert reward("<answer>2*3+3-2</answer>", twins).reason == "uses 3 twice"
    assert reward("<answer>3-2</answer>", twins).reason == "uses 2 once"


def test_forgiving_mode_lets_numbers_be_left_out():
    puzzle = Puzzle((44, 19, 35), 63)
    assert reward("<answer>44+19</answer>", puzzle).value == 0.1
    assert reward("<answer>44+19</answer>", puzzle, forgiving=True).value == 1.0
    assert reward("<answer>44+19+35-35</answer>", puzzle, forgiving=True).value == 0.1
    assert reward("<answer>63</answer>", puzzle, forgiving=True).value == 0.1


def test_work_is_bounded(monkeypatch):
    read = []
    parse = countdown.to_postfix
    spy = lambda text: (read.append(len(text)), parse(text))[1]  # noqa: E731
    monkeypatch.setattr(countdown, "to_postfix", spy)
    right = "<answer>44+19+35</answer>"
    size = countdown.MAX_COMPLETION
    assert reward("x" * 2 * size + right, PUZZLE).value == 1.0
    assert reward(right + "x" * (size - len(right)), PUZZLE).value == 1.0
    assert reward(right + "x" * size, PUZZLE).value == 0.0  # out of sight
    many = size // 10
    for inside in ("1" * many, " " * many, "(" * many, "1+" * many, "(" * 150 + "1" + ")" * 149):
        assert reward(f"<answer>{inside}</answer>", PUZZLE).value == 0.0
    for text in ("<answer>" * 200_000, "</answer>" * 200_000, "<" * size, "\0" * 3 * size):
        assert reward(text, PUZZLE).value == 0.0
    assert max(read) <= countdown.MAX_ANSWER
    nested = "(" * 140 + "44+19+35" + ")" * 140
    assert reward(f"<answer>{nested}</answer>", PUZZLE).value == 1.0  # no recursion to overflow


def test_what_a_well_formed_wrong_answer_is_paid_can_be_set():
    puzzle = Puzzle((20, 16, 4), 40)
    texts = ["20 + 16 - 4", "20 + 20", "20 / ( 16 - 16 ) * 4", "20 + 16 + 4 = 41"]
    for text in texts:
        assert reward(f"<answer> {text} </answer>", puzzle).value == 0.1
        assert reward(f"<answer> {text} </answer>", puzzle, form=0.0).value == 0.0
    assert reward("<answer> 20 + 16 + 4 </answer>", puzzle, form=0.0).value == 1.0
    assert reward("<answer> none </answer>", puzzle, form=0.5).value == 0.0


def test_targets_drawn_before_the_numbers():
    """Uniform in their range, though some are reached far more often; the mix is kept."""
    reached, uniform = PUZZLES["tinyzero-200"], PUZZLES["tinyzero-200-uniform"]
    assert uniform == dataclasses.replace(reached, targets="uniform")
    puzzles = [generate(0, index, uniform) for index in range(250)]
    assert puzzles[:5] == [generate(0, index, uniform) for index in range(5)]
    for puzzle in puzzles[:40]:
        assert solve(puzzle, bound=200) and not is_held_out(puzzle.numbers)
    low = sum(puzzle.target < 40 for puzzle in puzzles) / len(puzzles)
    assert low == pytest.approx(30 / 91, abs=0.1)
    three = sum(len(puzzle.numbers) == 3 for puzzle in puzzles) / len(puzzles)
    assert three == pytest.approx(0.5, abs=0.1)
    held_out = generate(0, 0, uniform, held_out=True)
    assert is_held_out(held_out.numbers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "random"}, 'targets is \'random\': it has to be "reached" or "uniform"'),
        ({"targets": "uniform", "bound": 50}, "Targets to 100 cannot be reached within 50"),
    ],
)
def test_impossible_targets_are_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        generate(0, 0, dataclasses.replace(PUZZLES["tinyzero"], **changes))
