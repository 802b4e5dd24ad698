"""The figures in the README are those of the runs and measurements that are kept here."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from aha_lib.look import measures, record
from aha_lib.presets import MODELS, SETTINGS
from aha_lib.run import train
from aha_lib.tasks import traces
from aha_lib.tpu import plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CLOUDS = (ROOT / "docs/clouds.md").read_text()


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_runs(seed):
    rows = train.read_rows(ROOT / f"aha_lib/data/run/seed{seed}/metrics.jsonl")
    at = {row["step"]: row for row in rows}
    line = next(x for x in (ROOT / "README.md").read_text().splitlines() if f"| {seed} |" in x[:5])
    figures = [float(x) for x in re.findall(r"\d+\.\d+", line)]
    first, last = at[0], at[60]
    assert figures == pytest.approx(
        [
            first["heldout_accuracy"],
            at[10]["heldout_accuracy"],
            at[20]["heldout_accuracy"],
            last["heldout_accuracy"],
            last["heldout_greedy"],
            first["heldout_length"],
            last["heldout_length"],
            first["heldout_backtracks"],
            last["heldout_backtracks"],
        ],
        abs=0.051,
    )
    assert figures[:5] == pytest.approx(
        [
            first["heldout_accuracy"],
            at[10]["heldout_accuracy"],
            at[20]["heldout_accuracy"],
            last["heldout_accuracy"],
            last["heldout_greedy"],
        ],
        abs=0.00051,
    )


def test_what_is_said_of_speed():
    text, stored = " ".join(README.split()), ROOT / "tests/benchmarks"
    runs = json.loads((stored / "peers.json").read_text())["runs"]
    first, *later = [run["heldout_0.9"] for run in runs if run.get("heldout_0.9")]
    said = "after {:.0f} and {:.0f} s of its loop, and after {:.0f} s where its programs"
    assert said.format(*sorted(later), first) in text
    growth = json.loads((stored / "growth.json").read_text())
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
    assert f"sampling reaches {ends[0]}" in text and f"the update {ends[1]}" in text
    assert len({(x["rows"], x["length"], x["parameters"]) for x in alone}) == 11
    assert "over eleven sizes" in text


@pytest.mark.slow
def test_what_is_said_of_gemma(monkeypatch):
    """The table and the figure are pages.py's; here what the text around them says."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import pages

    text, place = " ".join(README.split()), record.DATA / "gemma3-270m"
    runs = [record.read(folder) for folder in sorted(place.glob("seed*"))]
    longer = [record.read(folder) for folder in sorted(place.glob("h100*/seed*"))]
    assert {len(run.panel) for run in runs} == {128} and "128 held-out puzzles" in text
    assert {len(run.panel) for run in longer} == {512} and "512 held-out puzzles" in text
    cold = json.loads((place / "cold_start/settings.json").read_text())
    assert f"start*, {cold['steps']} steps on worked puzzles" in text
    for of in (runs, longer):
        ends = [run.measured[-1]["outcomes"] for run in of]
        assert sum(x["cut off"] for x in ends) > sum(sum(x.values()) - x["right"] for x in ends) / 2
    limits = tuple(of[0].settings.completion_len for of in (runs, longer))
    said = "Most answers that are wrong at the end are cut off at {} tokens or at {}"
    assert said.format(*limits) in text
    laps = [
        traces.parse(*pair).attempts
        for run in longer
        for pair in zip(run.kept[-1]["sampled"], run.panel, strict=True)
        if "</answer>" not in pair[0]
    ]
    new = [len({attempt.expression for attempt in lap}) / len(lap) for lap in laps]
    assert f"only {sum(new) / len(new):.0%} are different".replace("%", " %") in text
    alone = record.read(place / "no_search").measured[-1]
    assert alone["heldout_backtracks"] == 0 and alone["styles"]["check"] > 100
    (far,) = (run for run in longer if run.measured[-1]["step"] > 100)
    preset = dataclasses.asdict(SETTINGS[far.settings.preset])
    other = {k for k, v in dataclasses.asdict(far.settings).items() if v != preset[k]}
    assert other <= {"model", "checkpoint_minutes"} and "by the preset `gemma3-270m-short`" in text
    seconds = sum(row[f"{of}_seconds"] for row in far.rows[1:] for of in ("sample", "update"))
    assert 300 < seconds < 450 and f"{far.measured[-1]['step']} steps in seven and a half" in text
    solved = [
        [
            any(a.reached for a in traces.parse(*pair).attempts[:8])
            for pair in zip(far.kept[i]["sampled"], far.panel, strict=True)
        ]
        for i in (1, -1)
    ]
    early, late = (f"{sum(of) / len(of):.2f}" for of in solved)
    assert f"it solves {early} of the puzzles at step 10 and {late} at the end" in text
    (twice,) = (run for run in longer if run.measured[-1]["step"] == 20)
    assert twice.settings.learning_rate == 2 * far.settings.learning_rate
    assert f"stood at {twice.measured[-1]['heldout_accuracy']:.2f} after 20 steps" in text
    rotten = record.read(place / "h100_2e-4/no_search")
    began, ended = (row["heldout_accuracy"] for row in (rotten.measured[0], rotten.measured[-1]))
    assert f"In {rotten.measured[-1]['step']} steps something else" in text
    assert f"more answers are right, {ended:.2f} instead of {began:.2f}" in text
    shares = (float(pages.true_sums(rotten, i)) for i in (-1, 0))
    truths = (f"{share:.0%}".replace("%", " %") for share in shares)
    assert "{} are true instead of {}".format(*truths) in text
    zero = record.read(place / "zero")
    assert not any("right" in row["outcomes"] for row in zero.measured)
    assert zero.settings.template == "base" and zero.settings.lora == runs[0].settings.lora


def test_one_vector():
    rows = json.loads((ROOT / "tests/benchmarks/backtracking.json").read_text())
    mean = {
        who: sum(row[who]["accuracy"] for row in rows) / len(rows)
        for who in ("base", "alone", "trained")
    }
    which = lambda x: (x["direction"], x["layer"], x["strength"])  # noqa: E731
    half = sorted(
        x["accuracy"] for row in rows for x in row["pushed"] if which(x) == ("difference", 3, 0.5)
    )
    gemma = json.loads((ROOT / "tests/benchmarks/backtracking_gemma.json").read_text())
    (pushed,) = (x for x in gemma["pushed"] if which(x) == ("difference", 17, 0.5))
    text = " ".join(README.split())
    assert len(rows) == 3 and "three seeds; all 0.6 million: {trained:.2f}".format(**mean) in text
    assert "goes from {base:.2f} to {alone:.2f}".format(**mean) in text
    assert f"gives {half[0]:.2f} to {half[-1]:.2f}" in text
    assert f"{gemma['base']['accuracy']:.2f} to {pushed['accuracy']:.2f}" in text
    assert f"({gemma['base']['n']} puzzles, one run)" in text


@pytest.mark.slow
def test_what_gets_better_after_ten_steps():
    """The first GPU run within eight attempts, the rule, and what its unfinished answers tried."""
    run = record.read(record.DATA / "gemma3-270m/h100/seed0")
    run = dataclasses.replace(run, kept=[run.kept[1], run.kept[-1]])
    sides = measures.take_apart(run)
    ten, last = (measures.reached_within(side, 8).value for side in sides)
    text = " ".join(README.split())
    assert f"it solves {ten:.2f} of the puzzles at step 10 and {last:.2f} at the end" in text
    chances = [measures.chance_by_rule(puzzle, 8) for puzzle in run.panel]
    rule = sum(chances) / len(chances)
    assert f"followed without a mistake: {rule:.2f}." in text
    before, after = (measures.finished(side).value for side in sides)
    assert after > before + 0.1 and "it finishes more of what it begins well" in text
    cut_off = [trace for trace in sides[-1] if trace.answer is None]
    assert measures.finished(cut_off).of > 0.8 * len(cut_off) > 20


def test_shares_in_the_text():
    """How often the base searches, and what it solves where it may not answer early."""
    text, found = " ".join((ROOT / "README.md").read_text().split()), []
    for seed in range(3):
        styles = train.read_rows(ROOT / f"aha_lib/data/run/seed{seed}/metrics.jsonl")[0]["styles"]
        found.append(styles["search"] / sum(styles.values()))
    assert f"in {sum(found) / 3:.0%} of its answers, searches".replace("%", " %") in text
    players = json.loads((ROOT / "tests/benchmarks/reach.json").read_text())
    (made,) = [row for row in players if row["who"] == "base, no answer before a yes"]
    solved = sum(made["right"]) / made["n"] / len(made["right"])
    assert f"solves as many ({solved:.2f}; notebook 06)" in text


def test_the_control():
    runs = json.loads((ROOT / "tests/benchmarks/habits.json").read_text())
    text = " ".join(README.split())
    ends = {}
    for base in ("tiny-no-search", "tiny-jumps"):
        of = [run for run in runs if run["base"] == base and run["steps"] == 60]
        ends[base] = tuple(f"{end(x['accuracy'][-1] for x in of):.2f}" for end in (min, max))
        assert len(of) == 3 and max(run["backtracks"][-1] for run in of) < 0.05
    assert "ends the same run at {} to {} (three seeds)".format(*ends["tiny-no-search"]) in text
    began = {f"{run['accuracy'][0]:.2f}" for run in runs if run["base"] == "tiny-jumps"}
    assert len(began) == 1, "one figure will do"
    said = "ends it at {} to {}, where it began at {}".format(*ends["tiny-jumps"], *began)
    assert said in text


@pytest.mark.slow
def test_the_table_of_what_fits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import fits

    rows = json.loads(fits.RESULTS.read_text())
    cases = [(model, chip, way) for model, way in fits.CASES for chip in fits.CHIPS]
    asked = {(row["model"], row["chip"], row["way"]): row for row in rows}
    assert len(asked) == len(rows) and asked.keys() <= set(cases)
    import pages

    for page, text in pages.pages().items():
        assert page.read_text() == text, "run python tests/benchmarks/pages.py"
        assert text.count("| gemma") == (4 if page.stem == "README" else len(fits.CASES))
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


def test_the_tree_lists_every_module():
    """Each of them once, below its room."""
    tree = README.partition("```\naha_lib/\n")[2].partition("```")[0]
    listed, room = set(), ""
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if name.endswith("/"):
            room = name
        else:
            assert name not in listed
            listed.add(name if indent == 2 else room + name)
    package = ROOT / "aha_lib"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert listed == {name for name in modules if "__" not in name}


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", re.sub(r"(?s)```.*?```", "", page), re.M)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", ["README.md", "docs/clouds.md"])
def test_everything_a_page_links_to_is_there(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
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
