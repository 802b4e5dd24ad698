"""The figures in README and docs are those of the runs and measurements that are kept here."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from aha_lib import commands
from aha_lib.look import measures, record
from aha_lib.presets import MODELS, PRETRAINING, SETTINGS
from aha_lib.run import train
from aha_lib.tasks import countdown
from aha_lib.tasks import task as tasks
from aha_lib.tpu import plan

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests/benchmarks"
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
README, CLOUDS, RESULTS, MACHINES, GLOSSARY = (
    (ROOT / name).read_text()
    for name in (
        "README.md",
        "docs/clouds.md",
        "docs/results.md",
        "docs/machines.md",
        "docs/glossary.md",
    )
)
GEMMA = record.DATA / "gemma3-270m"
GPU = GEMMA / "h100"


def says(page: str, sentence: str) -> bool:
    """Whether a page has a sentence, wherever its lines end."""
    return sentence in " ".join(page.split())


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


@pytest.fixture
def pages(monkeypatch):
    """tests/benchmarks/pages.py, which writes the tables."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pages

    return pages


def test_the_readme_is_short():
    """Words are counted in tables and code too; signs alone are none."""
    words = [word for word in README.split() if re.search(r"\w", word)]
    assert len(words) <= 1300
    assert sum(bool(line.strip()) for line in README.splitlines()) <= 140


def test_one_line_is_the_command_that_tests():
    """`.ci/run` looks for it."""
    assert len(re.findall(r"^.*pytest$", README, re.M)) == 1


def test_the_puzzle_before_and_after():
    """As the record of seed 0 has it."""
    run = record.read(record.DATA / "run/seed0")
    numbers = re.search(r'"make (\d+) from (\d+), (\d+) and (\d+)"', README)
    target, *given = map(int, numbers.groups())
    asked = countdown.Puzzle(tuple(given), target)
    before, after = (run.kept[i]["sampled"] for i in (0, -1))
    answered = [
        (before[i].split(), after[i].split())
        for i, puzzle in enumerate(run.panel)
        if puzzle == asked
    ]
    shown = re.search(r"```\nstep 0 (.*?)step 60 (.*?)```", README, re.S)
    assert tuple(text.split() for text in shown.groups()) in answered


def test_the_output_to_expect():
    """The lines that the command prints, of the recorded run of its seed."""
    run = record.read(record.DATA / "run/seed0")
    for row in (run.measured[0], run.measured[-1]):
        kept = {k: v for k, v in row.items() if not isinstance(v, dict)}
        assert commands.evaluation(kept) in README


def test_the_table_of_notebooks():
    """Each notebook once; minutes as the rehearsal took them, rounded up."""
    line = r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \|.*\| (\d*) ?\| (.*?) ?\|$"
    rows = re.findall(line, README, re.M)
    names = [name for name, _, _ in rows]
    assert names == sorted(set(names))
    assert {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py")} <= set(names)
    for name, _, before in rows:
        assert all(number < name[:2] for number in before.split(", ")), name
    told = {name: int(minutes) for name, minutes, _ in rows if minutes}
    stored = json.loads((ROOT / "tests/rehearsal/record.json").read_text())
    took = {went["notebook"]: math.ceil(went["minutes"]) for went in stored["tiny"]}
    assert told.pop("05_train") > took.pop("05_train"), "it was rehearsed with two steps"
    assert told == took


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_runs(seed):
    rows = train.read_rows(record.DATA / f"run/seed{seed}/metrics.jsonl")
    at = {row["step"]: row for row in rows}
    line = next(x for x in RESULTS.splitlines() if f"| {seed} |" in x[:5])
    figures = [float(x) for x in re.findall(r"\d+\.\d+", line)]
    first, last = at[0], at[60]
    shares = [
        first["heldout_accuracy"],
        at[10]["heldout_accuracy"],
        at[20]["heldout_accuracy"],
        last["heldout_accuracy"],
        last["heldout_greedy"],
    ]
    assert figures[:5] == pytest.approx(shares, abs=0.00051)
    means = [row[f"heldout_{of}"] for of in ("length", "backtracks") for row in (first, last)]
    assert figures[5:] == pytest.approx(means, abs=0.051)


def test_what_is_said_of_speed():
    runs = json.loads((BENCHMARKS / "peers.json").read_text())["runs"]
    first, *later = [run["heldout_0.9"] for run in runs if run.get("heldout_0.9")]
    said = "in {:.0f}–{:.0f} s of its loop, or in {:.0f} s including compilation"
    assert says(MACHINES, said.format(*sorted(later), first))
    growth = json.loads((BENCHMARKS / "growth.json").read_text())
    alone = [
        row
        for name, rows in growth.items()
        if name != "about"
        for row in rows
        if row["devices"] == 1
    ]
    ends = [
        f"{100 * min(of):.0f} to {100 * max(of):.0f} %"
        for of in zip(*(row["share"] for row in alone), strict=True)
    ]
    assert says(MACHINES, f"sampling reaches {ends[0]} of what")
    assert says(MACHINES, f"the update {ends[1]}")
    assert len({(x["rows"], x["length"], x["parameters"]) for x in alone}) == 11
    assert says(MACHINES, "Over eleven sizes")


def test_the_tool_and_its_controls():
    """What docs/results.md and notebook 10 say of look it up, of the kept runs."""
    runs = json.loads((BENCHMARKS / "look_up.json").read_text())
    by_case = {case: [r for r in runs if r["case"] == case] for case in {r["case"] for r in runs}}
    assert all({run["seed"] for run in of} == {0, 1, 2} for of in by_case.values())
    for run in by_case["tool"]:
        assert run["right"][0] <= 0.25 and run["right"][-1] >= 0.85
        assert all(run[f"accuracy_{hops}"][-1] >= 0.85 for hops in (1, 2, 3))
        assert run["calls"][0] < 0.7 and 2.2 < run["calls"][-1] < 2.6
        asking = sum(run["styles"][0].values()) - run["styles"][0]["guess"]
        assert 0.44 < run["outcomes"][0]["wrong"] / asking < 0.52
        answers = sum(run["styles"][0].values())
        assert 1.45 < run["calls"][0] * answers / asking < 1.6
    for case in ("empty tool", "facts of another world", "no asking in the corpus"):
        assert all(max(run["right"]) < 0.08 for run in by_case[case])
        assert all(run["calls"][-1] < 0.1 for run in by_case[case])
    assert all(run["calls"][0] > 0.5 for run in by_case["facts of another world"])
    assert max(run["seconds"] for run in runs) < 36
    assert all(run["calls"][0] > 0.3 for run in by_case["empty tool"])
    assert all(max(run["calls"]) < 0.05 for run in by_case["no asking in the corpus"])
    for run in runs:
        if 0 < run["price"] <= 0.2:
            assert run["right"][-1] > 0.8 and run["calls"][-1] > 2.2
    dear = by_case["a call costs 0.4"]
    assert all(run["calls"][2] < 0.05 for run in dear)
    assert [run["accuracy_1"][-1] > 0.1 for run in dear] == [False, True, False]


def test_tinyzeros_presets_fit():
    """What docs/results.md says of them: each fits each chip, and has an estimate."""
    rows = json.loads((BENCHMARKS / "tinyzero_fits.json").read_text())
    assert {(row["preset"], row["chip"]) for row in rows} == {
        (preset, chip)
        for preset in ("tinyzero-270m", "tinyzero-1b", "tinyzero-2b")
        for chip in ("v5e-8", "v3-8")
    }
    for row in rows:
        assert row["fits"] and max(row["GiB"].values()) < row["GiB available"]
        assert {"cold start: step", "sample: decode", "update: gradient"} <= row["GiB"].keys()
        s = SETTINGS[row["preset"]]
        assert s.completion_len == 1024 and s.lora and s.cold_start
        assert not PRETRAINING[s.cold_start].cut


def test_the_tool_and_gemma():
    run = record.read(record.DATA / "look-up-270m/seed0")
    first, *_, last = run.measured
    assert first["heldout_accuracy"] < 0.1 and last["heldout_accuracy"] > 0.4
    assert first["heldout_greedy"] == 0 and last["heldout_greedy"] > 0.5
    ended = [row["heldout_failed_replies"] for row in run.measured]
    assert max(ended) == 0.25 and ended[-1] == 0
    assert len(run.panel) == 64 and says(RESULTS, "64 held-out questions")
    assert run.settings.prompts * run.settings.group == 64
    seconds = sum(row["sample_seconds"] + row["update_seconds"] for row in run.rows[1:])
    assert says(RESULTS, f"two cores, {seconds / 60:.0f} minutes in all")
    assert says(RESULTS, f"{PRETRAINING['look-up-270m'].steps} steps; then 64 answers")


def test_the_calculator():
    """What docs/results.md and notebook 10 say of Countdown with a calculator."""
    runs = json.loads((BENCHMARKS / "calculator.json").read_text())
    by_way = {way: [r for r in runs if r["way"] == way] for way in {r["way"] for r in runs}}
    ends = {way: [run["after"]["right"] for run in of] for way, of in by_way.items()}
    assert len(ends["always"]) == len(ends["free"]) == len(ends["barred"]) == 2
    others = [right for way in ends if way != "always" for right in ends[way]]
    assert min(ends["always"]) > max(others) + 2 * 0.04, "by two errors of a difference"
    gap = np.mean(ends["free"]) - np.mean(ends["barred"])
    assert abs(gap) < 0.03
    for way in ("free", "cheap", "dear"):
        for run in by_way[way]:
            assert run["before"]["true"] < 0.5
            assert run["after"]["asked"] < run["before"]["asked"]
            assert run["after"]["true"] < 0.6 * run["before"]["true"]
    said = {
        ("free", "before"): ("0.37 and 0.38", "0.31 and 0.34"),
        ("free", "after"): ("0.69 and 0.67", "0.66 and 0.64"),
        ("always", "after"): ("0.71 and 0.78", "0.69 and 0.77"),
    }
    for (way, when), figures in said.items():
        for run, figure in zip(by_way[way], figures, strict=True):
            at = run[when]
            assert f"{at['never']:.2f} and {at['always']:.2f}" == figure and says(RESULTS, figure)
            gain = at["always"] - at["never"]
            assert gain > 0.06 if way == "always" else gain < 0.04
    assert by_way["free"][1]["after"]["calls"] > by_way["free"][1]["before"]["calls"]


@pytest.mark.slow
def test_what_is_said_of_gemma():
    """The tables are pages.py's; here what the text around them says."""
    runs = [record.read(folder) for folder in sorted(GEMMA.glob("seed*"))]
    longer = [record.read(folder) for folder in sorted(GEMMA.glob("h100*/seed*"))]
    assert {len(run.panel) for run in runs} == {128} and says(RESULTS, "128 held-out puzzles")
    assert {len(run.panel) for run in longer} == {512} and says(RESULTS, "512 held-out puzzles")
    cold = json.loads((GEMMA / "cold_start/settings.json").read_text())
    assert says(RESULTS, f"{cold['steps']} supervised steps on worked puzzles come first")
    for of in (runs, longer):
        ends = [run.measured[-1]["outcomes"] for run in of]
        assert sum(x["cut off"] for x in ends) > sum(sum(x.values()) - x["right"] for x in ends) / 2
    limits = tuple(of[0].settings.completion_len for of in (runs, longer))
    said = "Most answers that are wrong at the end are cut off at {} tokens or at {}"
    assert says(RESULTS, said.format(*limits))
    alone = record.read(GEMMA / "no_search").measured[-1]
    assert alone["heldout_backtracks"] == 0 and alone["styles"]["check"] > 100
    (far,) = (run for run in longer if run.measured[-1]["step"] > 100)
    preset = dataclasses.asdict(SETTINGS[far.settings.preset])
    other = {k for k, v in dataclasses.asdict(far.settings).items() if v != preset[k]}
    # The cold start had been made before, by itself: the run's model is what it left.
    assert far.settings.cold_start == "" and preset["cold_start"] == "gemma3-270m-short"
    assert other <= {"model", "cold_start", "checkpoint_minutes"}
    assert says(RESULTS, "Presets `gemma3-270m-short` (one NVIDIA H100")
    seconds = sum(row[f"{of}_seconds"] for row in far.rows[1:] for of in ("sample", "update"))
    steps = far.measured[-1]["step"]
    assert 300 < seconds < 450 and says(RESULTS, f"{steps} steps in seven and a half minutes")
    assert says(README, f"{steps} steps in 7.5 minutes")
    (twice,) = (run for run in longer if run.measured[-1]["step"] == 20)
    assert twice.settings.learning_rate == 2 * far.settings.learning_rate
    stood = f"stood at {twice.measured[-1]['heldout_accuracy']:.2f} after 20 steps"
    assert says(RESULTS, stood)
    zero = record.read(GEMMA / "zero")
    assert not any("right" in row["outcomes"] for row in zero.measured)
    assert zero.settings.template == "base" and zero.settings.lora == runs[0].settings.lora
    assert says(RESULTS, f"of {len(zero.panel)} puzzles, with TinyZero's prompt")
    assert says(RESULTS, "none before five steps") and zero.measured[-1]["step"] == 5


@pytest.mark.slow
def test_the_control_that_lost_its_sums(pages):
    """The run of 100 steps without searches in its cold start."""
    folder = GEMMA / "h100_2e-4/no_search"
    run = record.read(folder)
    first, last = run.measured[0], run.measured[-1]
    said = "In the run of {} steps accuracy rises to {:.2f}, from {:.2f}"
    accuracies = [row["heldout_accuracy"] for row in (last, first)]
    assert says(RESULTS, said.format(last["step"], *accuracies))
    before, after = (pages.run_tables.will_and_skill(folder, i) for i in (0, -1))
    true = [percent(shares["true sums"].value) for shares in (after, before)]
    assert says(RESULTS, "only {} of their sums are true, down from {}".format(*true))
    assert says(README, "({} of its sums are true at the end, {} before)".format(*true))
    assert before["goes on after a no"].count == after["goes on after a no"].count == 0
    assert after["goes on after a no"].of > 400 and after["any attempt"].value > 0.99
    silent = run.rows[-1]["zero_variance_groups"]
    assert says(RESULTS, f"at its last step {silent:.2f} of the groups have no signal")
    assert run.settings.decay == 1 and says(RESULTS, "Its rate of 2e-4, which did not fall")
    assert run.settings.learning_rate == 2e-4


def test_one_vector():
    rows = _pushed()
    mean = {
        who: sum(row[who]["accuracy"] for row in rows) / len(rows)
        for who in ("base", "alone", "trained")
    }
    which = lambda x: (x["direction"], x["layer"], x["strength"])  # noqa: E731
    half = sorted(
        x["accuracy"] for row in rows for x in row["pushed"] if which(x) == ("difference", 3, 0.5)
    )
    gemma = json.loads((BENCHMARKS / "backtracking_gemma.json").read_text())
    (pushed,) = (x for x in gemma["pushed"] if which(x) == ("difference", 17, 0.5))
    said = "three seeds; all 0.6 million: {trained:.2f}".format(**mean)
    assert len(rows) == 3 and says(RESULTS, said)
    assert says(RESULTS, "goes from {base:.2f} to {alone:.2f}".format(**mean))
    assert says(RESULTS, f"gives {half[0]:.2f} to {half[-1]:.2f}")
    assert says(RESULTS, f"{gemma['base']['accuracy']:.2f} to {pushed['accuracy']:.2f}")
    assert says(RESULTS, f"({gemma['base']['n']} puzzles, one run)")


def test_tinyzeros_task():
    """The small model after GRPO, its base barred from answering early, and the rule."""
    run = record.read(record.DATA / "tinyzero-small/seed0")
    last = run.measured[-1]
    barred = [_small("base", count)["barred"] for count in (3, 4)]
    stored = json.loads((BENCHMARKS / "small_model.json").read_text())
    assert stored["base"]["puzzles"] == stored["seed0"]["puzzles"] == 128
    said = "solves {:.2f} of puzzles of three numbers and {:.2f} of four"
    assert says(RESULTS, said.format(*(row["right"] for row in barred)))
    after = [_small("seed0", count)["sampled"] for count in (3, 4)]
    ends = [row["right"] for row in after]
    assert says(RESULTS, "free, {:.2f} and {:.2f} of the same (128".format(*ends))
    for row, end in zip(barred, ends, strict=True):
        assert end < row["right"] + 2 * row["standard error"], "more than the will: say so"
    first = after[1]["looked"][0]
    share = first["found"]["count"] / first["found"]["of"]
    assert first["tries"] == 1 and abs(share - first["shuffled"]) < 0.05
    said = f"the target in {share:.2f} of the answers, and in {first['shuffled']:.2f} if"
    assert says(RESULTS, said)
    true = after[1]["sums"], barred[1]["sums"]
    assert says(RESULTS, "writes {:.2f} are true, of the barred base's {:.2f}".format(*true))
    rule = json.loads((BENCHMARKS / "nulls.json").read_text())["nulls"]
    solved = [rule[f"{n} numbers, P, depth-first, round"]["solved"]["1024"] for n in (3, 4)]
    assert solved[0] == 1 and says(RESULTS, f"without a slip, solves all and {solved[1]:.2f}")
    faults = barred[1]["first faults of searches"]
    assert max(faults, key=faults.get) == "not at hand"
    assert says(RESULTS, f"{last['step']} steps of {run.settings.prompts * run.settings.group}")
    seconds = [row["sample_seconds"] + row["update_seconds"] for row in run.rows[1:]]
    paused = sum(seconds[step - 1] for step in (30, 31))
    assert says(RESULTS, f"{(sum(seconds) - paused) / 60:.0f} minutes of sampling and updating")


def _small(name: str, numbers: int) -> dict:
    """What was measured of the small model, of puzzles whose targets the numbers reach."""
    stored = json.loads((BENCHMARKS / "small_model.json").read_text())
    return stored[name][f"{numbers} numbers, P"]


def test_one_number():
    """GRPO on the bias of one logit, and that bias set by hand."""
    rows = json.loads((BENCHMARKS / "one_scalar.json").read_text())
    found = [row["held_out"] for row in rows]
    ends = sorted(f"{end['bias']:.1f}" for end in found)
    accuracy = np.mean([end["accuracy"] for end in found])
    assert len(rows) == 3 and says(RESULTS, f"between {ends[-1]} and {ends[0]}")
    base = {row["base"]["accuracy"] for row in _pushed()}
    assert says(RESULTS, f"goes from {np.mean([*base]):.2f} to {accuracy:.2f} (three seeds, 20")
    assert says(README, f"the logit of `<answer>`, reaches {accuracy:.2f}")
    for row in rows:
        by_hand = {int(x["bias"]): x["accuracy"] for x in row["by_hand"]}
        assert min(by_hand[-6], by_hand[-8]) > accuracy - 0.02
        assert len(row["trained"]["curve"]) == 20 and row["trained"]["answers"] == 64
    strong = np.mean([row["by_hand"][-1]["accuracy"] for row in rows])
    assert says(RESULTS, f"-12 gives {strong:.2f}")


def _pushed() -> list[dict]:
    """What was measured of pushes, a row a seed."""
    return json.loads((BENCHMARKS / "backtracking.json").read_text())


@pytest.mark.slow
def test_what_gets_better_after_ten_steps(pages):
    """The runs on the GPU: what is solved within eight attempts, by the rule too; what finishes."""
    tables = pages.run_tables
    ten, last = (tables.answers(GPU / "seed0", i) for i in (1, -1))
    solved = [measures.reached_within(side, 8).value for side in (ten, last)]
    in_eight = "it solves {:.2f} of the puzzles at step 10 and {:.2f} at the end".format(*solved)
    assert says(README, f"Within eight attempts {in_eight}")
    assert says(RESULTS, in_eight.replace("it solves", "the first run solves"))
    rule = measures.rule_within(record.read(GPU / "seed0").panel, 8)
    assert rule > solved[1] + 0.1
    assert says(RESULTS, f"followed without a mistake: {rule:.2f}.")
    assert says(README, f"solves {rule:.2f} if followed without a mistake")
    shares = [measures.finished(side) for side in (ten, last)]
    shares += [measures.finished(tables.answers(GPU / "seed1", i)) for i in (1, -1)]
    for early, late in (shares[:2], shares[2:]):
        assert late.value - early.value > 3 * np.hypot(early.error, late.error)
    finished = [share.value for share in shares]
    assert says(README, "{:.2f} → {:.2f} (seed 0), {:.2f} → {:.2f} (seed 1)".format(*finished))
    said = "{:.2f} of the cases at step 10 and in {:.2f} at the end (seed 1: {:.2f} and {:.2f})"
    assert says(RESULTS, said.format(*finished))
    true = [tables.will_and_skill(GPU / "seed0", i)["true sums"].value for i in (0, -1)]
    assert abs(true[1] - true[0]) < 0.02


@pytest.mark.slow
def test_what_unfinished_answers_had_tried(pages):
    """At the end of the two runs at the lower rate, and the rule run on for as long."""
    long, repeats = [], []
    for seed in ("seed0", "seed1"):
        side = pages.run_tables.answers(GPU / seed, -1)
        cut_off = [trace for trace in side if trace.answer is None]
        rule = [
            measures.rule_run_on(trace.puzzle, len(trace.attempts), start)
            for start, trace in enumerate(cut_off)
        ]
        repeats.append([measures.repeated(of).value for of in (cut_off, rule)])
        long += cut_off
    tried = measures.finished(long)
    said = f"Of the {len(long)} that the two runs at the lower rate leave, {tried.of} had tried"
    assert says(RESULTS, said) and tried.value < 0.1
    (ours, its), (ours_1, its_1) = repeats
    assert ours < its and ours_1 < its_1
    said = "{:.2f} and {:.2f} of their attempts are repeats, and {:.2f} and {:.2f} of the rule's"
    assert says(RESULTS, said.format(ours, ours_1, its, its_1))
    attempts = sum(len(trace.attempts) for trace in long) / len(long)
    assert says(RESULTS, f"makes {attempts:.0f} attempts")


def test_errors_are_clustered():
    """Puzzles of the same three numbers taken together, calculated here once more."""
    run = record.read(GPU / "seed0")
    right = run.measured[-1]["heldout_accuracy"]
    assert f"{right:.2f}" == "0.90"
    multisets = [tuple(sorted(puzzle.numbers)) for puzzle in run.panel]
    different = {(numbers, p.target) for numbers, p in zip(multisets, run.panel, strict=True)}
    said = f"the {len(run.panel)} are {len(different)} different ones of {len(set(multisets))}"
    assert says(RESULTS, said)
    task = tasks.load(run.settings)
    flags = [
        task.reward(text, puzzle) == 1
        for text, puzzle in zip(run.kept[-1]["sampled"], run.panel, strict=True)
    ]
    off = np.array(flags) - right
    totals = [off[[m == numbers for m in multisets]].sum() for numbers in set(multisets)]
    together = math.sqrt(sum(total**2 for total in totals)) / len(flags)
    apart = math.sqrt(right * (1 - right) / len(flags))
    assert says(RESULTS, f"of 0.90 is {together:.3f}, not {apart:.3f}")


def test_shares_in_the_text():
    """How often the base searches, and what it solves where it may not answer early."""
    found = []
    for seed in range(3):
        styles = train.read_rows(record.DATA / f"run/seed{seed}/metrics.jsonl")[0]["styles"]
        found.append(styles["search"] / sum(styles.values()))
    assert says(RESULTS, f"In {percent(sum(found) / 3)} of its answers the base searches")
    solved = players()["base, no answer before a yes"]["accuracy"]
    assert says(RESULTS, f"as many without any training ({solved:.2f}; notebook 06)")
    assert says(README, f"the untrained base solves {solved:.2f}")
    corpus = PRETRAINING["tiny"]
    searches = corpus.search / (corpus.jump + corpus.check + corpus.search)
    assert round(searches, 3) == 0.1 and says(README, "a tenth of them were searches")
    assert says(RESULTS, f"{corpus.steps * corpus.rows * corpus.row_len / 1e6:.0f} million tokens")


def players() -> dict[str, dict]:
    """Who drew each puzzle of the panel many times: first attempts that hit, accuracy, pass@64."""
    lines = json.loads((BENCHMARKS / "reach.json").read_text())
    found = {}
    for line in lines:
        if "right" in line:
            draws = np.arange(line["n"]) < np.array(line["right"])[:, None]
            hits = measures.Share(line["counts"]["hits at 1"], line["counts"]["attempt 1"])
            of = {"accuracy": draws.mean(), "pass@64": train.pass_at_k(draws, 64)}
            found[line["who"]] = of | {"hits": hits.value}
    return found


def test_hits_are_the_rules(pages):
    """The first attempts of base and trained model, against the rule counted out."""
    base, trained = players()["base"], players()["trained"]
    panel = record.read(record.DATA / "run/seed0").panel
    rule = measures.rule_within(panel, 1)
    said = "of the base hit in {:.2f} of the cases, those of the trained model in {:.2f}, those of"
    assert says(RESULTS, said.format(base["hits"], trained["hits"]))
    assert says(RESULTS, f"those of the corpus's rule in {rule:.2f}")
    assert max(abs(base["hits"] - rule), abs(trained["hits"] - rule)) < 0.03
    one = f"the base solves {base['accuracy']:.2f} of them and the trained model"
    assert says(RESULTS, f"{one} {trained['accuracy']:.2f}")
    many = "64 draws counts, {:.2f} and {:.2f}".format(base["pass@64"], trained["pass@64"])
    assert says(RESULTS, many)


def test_the_control():
    runs = json.loads((BENCHMARKS / "habits.json").read_text())
    ends = {}
    for base in ("tiny-no-search", "tiny-jumps"):
        of = [run for run in runs if run["base"] == base and run["steps"] == 60]
        ends[base] = tuple(f"{end(x['accuracy'][-1] for x in of):.2f}" for end in (min, max))
        assert len(of) == 3 and max(run["backtracks"][-1] for run in of) < 0.05
    checks, jumps = ends["tiny-no-search"], ends["tiny-jumps"]
    said = "The base without searches ends the run at {} to {} (three seeds)"
    assert says(RESULTS, said.format(*checks))
    assert says(README, "model ends at {} to {}, checking one attempt".format(*checks))
    began = {f"{run['accuracy'][0]:.2f}" for run in runs if run["base"] == "tiny-jumps"}
    assert len(began) == 1, "one figure will do"
    said = "ends it at {} to {}, where it began at {}"
    assert says(RESULTS, said.format(*jumps, *began))
    assert says(README, "without checks too, at {} to {}".format(*jumps))


def test_the_checks_that_are_named_are_there():
    named = set(re.findall(r"`(test_\w+)`", RESULTS))
    assert len(named) > 5 and named <= globals().keys()


def test_the_comparison():
    """Our own figure is that of the table; others' are told on both pages alike."""
    ours = re.search(r"3 numbers to 20: (\S+ → \S+)", README)[1]
    assert f"| tiny, 3 seeds | jumps, checks, searches | 60 × 256 | {ours} |" in README
    for figure in ("0.446 → 0.75", "about 0.60 in"):
        assert figure in README and figure in RESULTS
    assert says(README, "its README calls it deprecated")


SLOW_TABLES = {"README.md", "docs/results.md"}  # the GPU's records are parsed for them


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW_TABLES else ())
        for name in ("README.md", "docs/results.md", "docs/machines.md", "docs/package.md")
    ],
)
def test_tables_are_what_was_measured(name, pages):
    assert set(pages.TABLES) == {*SLOW_TABLES, "docs/machines.md", "docs/package.md"}
    assert (ROOT / name).read_text() == pages.page(name), "run python tests/benchmarks/pages.py"


def test_the_table_of_what_fits(pages):
    import fits

    rows = json.loads(fits.RESULTS.read_text())
    cases = [(model, chip, way) for model, way in fits.CASES for chip in fits.CHIPS]
    asked = {(row["model"], row["chip"], row["way"]): row for row in rows}
    assert len(asked) == len(rows) and asked.keys() <= set(cases)
    assert len(re.findall(r"^\| gemma", MACHINES, re.M)) == len(fits.CASES)
    for model, chip in (("gemma2-2b", "v3-8"),):  # what its preset is for
        row = asked[model, chip, "all weights, KL"]
        assert row["prompts"] >= SETTINGS[model].prompts
        assert max(row["GiB"].values()) <= plan.CHIPS[chip].hbm


def test_the_least_hours_of_each_machine():
    def hours(model, chip):
        s = SETTINGS[model]
        step = sum(plan.estimate(MODELS[model], s, plan.CHIPS[chip]).values())
        return f"{s.steps * step / 3600:.1f} h"

    lines = {x.split("|")[1].strip(): x for x in README.splitlines() if x.startswith("| ")}
    three = [hours(model, "v5e-8") for model in ("gemma3-270m", "gemma3-1b", "gemma2-2b")]
    assert "{}, {} and {}".format(*three) in lines["Kaggle, TPU v5e-8"]
    two = [hours("gemma3-270m", chip) for chip in ("v5e-1", "v6e-1")]
    assert "{} and {}".format(*two) in lines["Colab, one v5e or v6e chip"]
    dollars = f"${plan.CHIPS['v5e-8'].dollars:.2f} an hour"
    assert dollars in lines["Cloud TPU VM, v5e-8"]


def test_the_zip_has_what_the_setup_cell_looks_for():
    """Its one command, in a clone; an export without .git cannot make it."""
    (command,) = re.findall("^git archive .*", CLOUDS, re.M)
    *_, tree = command.partition(" HEAD ")
    wanted = {"aha_lib", "docs", "notebooks", "tests/benchmarks", "pyproject.toml"}
    assert set(tree.split()) >= wanted
    assert "--prefix=aha/ -o aha.zip" in command
    for name in tree.split():
        assert (ROOT / name).exists(), name


def test_the_tree_lists_every_room():
    """Each room and each module outside the rooms once, and nothing that is not there."""
    tree = README.partition("```\naha_lib/\n")[2].partition("```")[0]
    listed = [line.split()[0] for line in tree.splitlines()]
    package = ROOT / "aha_lib"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py") if "__" not in path.name}
    assert len(listed) == len(set(listed))
    assert set(listed) == rooms | modules | {"data/"} and (package / "data").is_dir()
    assert all(len(line.split()) > 2 for line in tree.splitlines()), "a comment to each line"


def test_the_page_of_the_package_lists_every_module():
    text = (ROOT / "docs/package.md").read_text()
    listed = re.findall(r"^\| \[(\S+)\]\(\.\./aha_lib/\1\) \| \S", text, re.M)
    package = ROOT / "aha_lib"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert sorted(listed) == sorted(name for name in modules if "__" not in name)


def test_the_index_lists_every_page():
    index = (ROOT / "docs/README.md").read_text()
    listed = re.findall(r"\]\((\w+\.md)\)", index)
    assert sorted(listed) == sorted(
        p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md"
    )


WORDS = (
    """
completion rollout group advantage logprob ratio clip KL prefill decode mesh shard pass@k held-out
panel rule null jump check search LoRA
""".split()
    + ["KV cache", "cold start"]
)


@pytest.mark.parametrize("word", WORDS)
def test_the_glossary_has(word):
    """Each of these words, in one or two sentences, with a place where it appears."""
    rows = re.findall(r"^\| \*\*(.*?)\*\* \| (.*?) \| (.*?) \|$", GLOSSARY, re.M)
    (row,) = (row for row in rows if word in row[0].split(", "))
    assert re.search(r"\]\(\S+\)", row[2])
    assert 5 < len(row[1].split()) < 45


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", re.sub(r"(?s)```.*?```", "", page), re.M)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_everything_a_page_links_to_is_there(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets or page in {"docs/rehearsal.md", "docs/settings.md"}
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in headings(there.read_text()), target


CLOUD_SECTIONS = re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", CLOUDS)


@pytest.mark.parametrize("name, section", CLOUD_SECTIONS[1:], ids=lambda x: x[:12])
def test_a_cloud_is_a_numbered_list_of_steps_that_says_what_is_seen(name, section):
    steps = re.split(r"(?m)^(\d+)\. ", section)
    numbers, bodies = [*map(int, steps[1::2])], steps[2::2]
    assert numbers == [*range(1, len(numbers) + 1)] and len(numbers) > 1
    assert all("→" in body for body in bodies), name


def test_clouds_are_told_presets_and_outputs_that_exist():
    """What a reader is told to type or to see is what the code has."""
    for name in re.findall(r"--preset (\S+)", CLOUDS):
        assert name in SETTINGS
    install = (ROOT / "aha_lib/install.py").read_text()
    for text in re.findall(r"^   (Unpacked|Installing|Installed) ", CLOUDS, re.M):
        assert f'"{text}' in install, text
    notebook = (ROOT / "notebooks/01_load_gemma.py").read_text()
    assert "Kaggle knows who you are." in CLOUDS and "Kaggle knows who you are." in notebook
