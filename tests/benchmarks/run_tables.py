"""Tables of the recorded runs, as lines of Markdown, for pages.py.

Every figure comes from the records in `aha_lib/data` or from habits.json. Knows nothing of pages,
and measures nothing itself.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aha_lib.look import measures, record
from aha_lib.presets import SETTINGS
from aha_lib.rl import grpo
from aha_lib.tasks import traces

HABITS = Path(__file__).with_name("habits.json")
LOOK_UP = Path(__file__).with_name("look_up.json")
TINYZERO_FITS = Path(__file__).with_name("tinyzero_fits.json")
CALCULATOR = Path(__file__).with_name("calculator.json")
TINY, GEMMA = record.DATA / "run", record.DATA / "gemma3-270m"
SMALL = record.DATA / "tinyzero-small"
LOOK_UP_GEMMA = record.DATA / "look-up-270m"
GPU, GPU_FAST = GEMMA / "h100", GEMMA / "h100_2e-4"
COLD = {"seed": "with searches", "no_search": "without", "zero": "none"}  # by the folder's name
BASES = {  # and the habits that their worked text has
    "tiny": "jumps, checks, searches",
    "tiny-no-search": "jumps, checks",
    "tiny-jumps": "jumps",
}
ENOUGH = 50  # sums of which a share is told


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def change(before: float, after: float, digits: int) -> str:
    return f"{before:.{digits}f} → {after:.{digits}f}"


@dataclass(frozen=True)
class Ends:
    """What runs of one kind are like before GRPO and after it: means over the runs."""

    accuracy: tuple[float, float]
    tokens: tuple[float, float]
    searching: tuple[float, float]  # shares of the answers that go on after a "no"

    @classmethod
    def mean(cls, runs: Sequence["Ends"]) -> "Ends":
        def of(name: str) -> tuple[float, float]:
            pairs = [getattr(run, name) for run in runs]
            return tuple(sum(ends) / len(ends) for ends in zip(*pairs, strict=True))

        return cls(of("accuracy"), of("tokens"), of("searching"))

    def cells(self) -> list[str]:
        shares = [f"{share:.0%}".replace("%", " %") for share in self.searching]
        return [change(*self.accuracy, 2), change(*self.tokens, 0), " → ".join(shares)]


def habit_runs(base: str) -> list[dict]:
    """The runs of habits.json from one base."""
    return [run for run in json.loads(HABITS.read_text()) if run["base"] == base]


def ends_of_habit_run(run: dict) -> Ends:
    styles = [run["styles"][i] for i in (0, -1)]
    searching = tuple(of.get("search", 0) / sum(of.values()) for of in styles)
    accuracy, tokens = ((run[name][0], run[name][-1]) for name in ("accuracy", "length"))
    return Ends(accuracy, tokens, searching)


read = functools.cache(record.read)


@functools.cache
def answers(folder: Path, evaluation: int) -> list[traces.Trace]:
    """The sampled answers of one evaluation of a recorded run, taken apart: 0 first, -1 last."""
    run = read(folder)
    (side,) = measures.take_apart(dataclasses.replace(run, kept=[run.kept[evaluation]]))
    return side


def will_and_skill(folder: Path, evaluation: int) -> dict[str, measures.Share]:
    return measures.will_and_skill(answers(folder, evaluation))


def ends_of_record(folder: Path) -> Ends:
    run = read(folder)
    first, last = run.measured[0], run.measured[-1]
    went_on = [will_and_skill(folder, i)["goes on after a no"].count for i in (0, -1)]
    return Ends(
        accuracy=(first["heldout_accuracy"], last["heldout_accuracy"]),
        tokens=(first["heldout_length"], last["heldout_length"]),
        searching=tuple(count / len(run.panel) for count in went_on),
    )


def results() -> list[str]:
    """README's table: the best rows of each model, and their controls.

    A line of `single` for each further run.
    """
    rows = []
    for base, taught in BASES.items():
        runs = habit_runs(base)
        ends = Ends.mean([ends_of_habit_run(run) for run in runs])
        answers_of_a_step = SETTINGS["tiny"].prompts * SETTINGS["tiny"].group
        count = f"{runs[0]['steps']} × {answers_of_a_step}"
        rows.append([f"tiny, {len(runs)} seeds", taught, count, *ends.cells()])
    single = [
        ("small, TinyZero's task", BASES["tiny"], SMALL / "seed0"),
        ("Gemma 270M, seed 0", BASES["tiny"], GPU / "seed0"),
        ("Gemma 270M, seed 1", BASES["tiny"], GPU / "seed1"),
        ("Gemma 270M", BASES["tiny-no-search"], GPU_FAST / "no_search"),
        ("Gemma 270M", "none", GEMMA / "zero"),
    ]
    for model, taught, folder in single:
        rows.append([model, taught, size(read(folder)), *ends_of_record(folder).cells()])
    head = ["model", "its worked text has", "steps × answers", "accuracy", "tokens", "search"]
    return table(head, rows)


def size(run: record.Record) -> str:
    """Steps to the last evaluation, and answers of a step."""
    return f"{run.measured[-1]['step']} × {run.settings.prompts * run.settings.group}"


def tinyzero_runs() -> list[str]:
    """TinyZero's task, 3 and 4 numbers: the held-out panel's figures at each evaluation."""
    rows = []
    for folder in sorted(SMALL.glob("seed*")):
        run = read(folder)
        for at in run.measured:
            shares = [at[f"heldout_accuracy{count}"] for count in ("", "_3", "_4")]
            cells = [f"{share:.3f}" for share in (*shares, at["heldout_greedy"])]
            means = [f"{at[f'heldout_{name}']:.1f}" for name in ("length", "backtracks", "returns")]
            rows.append([run.settings.seed, at["step"], *cells, *means])
    head = ["seed", "step", "accuracy", "3 numbers", "4 numbers", "greedy", "tokens"]
    return table([*head, "further attempts", "returns"], rows)


def tinyzero_fits() -> list[str]:
    """TinyZero's task on eight cores: the largest program of each phase, GiB a core; minutes."""
    rows = []
    for row in json.loads(TINYZERO_FITS.read_text()):
        phases: dict[str, float] = {}
        for program, size in row["GiB"].items():
            phase = program.split(":")[0]
            phases[phase] = max(size, phases.get(phase, 0.0))
        sizes = [phases[phase] for phase in ("cold start", "sample", "update")]
        cells = [f"{size:.1f}" for size in (*sizes, row["GiB available"])]
        minutes = f"{row['minutes']:.0f}" if row["minutes"] else "–"
        rows.append([row["preset"], row["chip"], *cells, minutes])
    head = ["preset", "chip", "cold start, GiB", "sampling", "update", "a core has", "minutes"]
    return table(head, rows)


def tiny_runs() -> list[str]:
    """The held-out panel's figures of each shipped run, before and after and on the way."""
    rows = []
    for folder in sorted(TINY.glob("seed*")):
        run = read(folder)
        at = {row["step"]: row for row in run.measured}
        before, after = at[0], at[60]
        rows.append(
            [
                run.settings.seed,
                *(f"{at[step]['heldout_accuracy']:.3f}" for step in (0, 10, 20, 60)),
                f"{after['heldout_greedy']:.3f}",
                change(before["heldout_length"], after["heldout_length"], 1),
                change(before["heldout_backtracks"], after["heldout_backtracks"], 2),
            ]
        )
    head = ["seed", "accuracy, base", "step 10", "step 20", "step 60", "greedy, step 60"]
    return table([*head, "tokens", "further attempts"], rows)


def bases() -> list[str]:
    """The control: the same run from three bases, a row for each seed."""
    rows = []
    for base, taught in BASES.items():
        for run in habit_runs(base):
            rows.append([taught, run["seed"], *ends_of_habit_run(run).cells()])
    head = ["worked text has", "seed", "accuracy", "tokens", "answers that search"]
    return table(head, rows)


def tool_runs() -> list[str]:
    """Look it up: each case of look_up.json, before and after."""
    names = "right", "accuracy_1", "accuracy_2", "accuracy_3", "calls"
    rows = []
    for run in json.loads(LOOK_UP.read_text()):
        cells = [change(run[name][0], run[name][-1], 2) for name in names]
        rows.append([run["case"], run["seed"], *cells])
    return table(["case", "seed", "accuracy", "1 hop", "2 hops", "3 hops", "calls"], rows)


def tool_gemma() -> list[str]:
    """Look it up in English: Gemma's held-out figures at each evaluation."""
    names = "accuracy", "greedy", "accuracy_1", "accuracy_2", "accuracy_3", "calls"
    rows = []
    for folder in sorted(LOOK_UP_GEMMA.glob("seed*")):
        for at in read(folder).measured:
            rows.append([at["step"], *(f"{at[f'heldout_{name}']:.2f}" for name in names)])
    return table(["step", "accuracy", "greedy", "1 hop", "2 hops", "3 hops", "calls"], rows)


def calculator_runs() -> list[str]:
    """Countdown with a calculator: each run of calculator.json, before and after."""
    ways = {
        "always": "every sum is asked for it",
        "free": "it chooses",
        "cheap": "it chooses, a call costs 0.01",
        "dear": "it chooses, a call costs 0.05",
        "barred": "it cannot ask",
    }
    runs = json.loads(CALCULATOR.read_text())
    rows = []
    for run in sorted(runs, key=lambda run: ([*ways].index(run["way"]), run["seed"])):
        both = run["before"], run["after"]
        cells = []
        for name in ("right", "asked", "true"):
            ends = [at.get(name) for at in both]
            cells.append("–" if None in ends else change(*ends, 2))
        rows.append([ways[run["way"]], run["seed"], *cells])
    return table(["", "seed", "accuracy", "sums asked", "own sums true"], rows)


def gemma_folders() -> list[Path]:
    """The recorded runs of Gemma 3 270M, in the order of the tables."""
    found = []
    for place in (GPU, GEMMA, GPU_FAST):
        for kind in COLD:
            found += sorted(place.glob(f"{kind}*"))
    return found


def gemma_runs() -> list[str]:
    """A row for each recorded run of Gemma 3 270M."""
    rows = []
    for folder in gemma_folders():
        run = read(folder)
        first, last = run.measured[0], run.measured[-1]
        shown = [row for row in run.measured if row["step"] in (0, 10, 20) or row is last]
        shares = [will_and_skill(folder, i) for i in (0, -1)]
        kind = next(kind for kind in COLD if folder.name.startswith(kind))
        rows.append(
            [
                COLD[kind],
                run.settings.seed,
                run.settings.prompts * run.settings.group,
                f"{last['step']} of {run.rows[-1]['step']}",
                rates(run),
                " → ".join(f"{row['heldout_accuracy']:.3f}" for row in shown),
                change(first["heldout_greedy"], last["heldout_greedy"], 3),
                change(first["heldout_length"], last["heldout_length"], 1),
                " → ".join(told(of["goes on after a no"], enough=1) for of in shares),
                " → ".join(told(of["true sums"], enough=ENOUGH) for of in shares),
            ]
        )
    head = [
        "cold start",
        "seed",
        "answers a step",
        "evaluated at step",
        "learning rate",
        "accuracy",
        "greedy",
        "tokens",
        "goes on after a no",
        "true sums",
    ]
    return table(head, rows)


def told(share: measures.Share, enough: int) -> str:
    return f"{share.value:.2f}" if share.of >= enough else "–"


def rates(run: record.Record) -> str:
    """The learning rate after the warm-up, and where it falls that of the last evaluated step."""
    s = run.settings
    shown = [s.learning_rate]
    if s.decay < 1:
        updates_before = run.measured[-1]["step"] - 1
        shown.append(float(grpo.LearningRate.of(s)(updates_before)))
    return " → ".join(f"{rate:.2g}".replace("e-0", "e-") for rate in shown)


WITHIN = (1, 4, 8, 12)  # attempts


def growth() -> list[str]:
    """Will and skill of the runs with searches, against the rule followed without a mistake."""
    panel = read(GPU / "seed0").panel
    rows = [
        ["the rule", "", "", "", "", *(f"{measures.rule_within(panel, n):.3f}" for n in WITHIN)]
    ]
    for place, machine in ((GPU, "GPU"), (GEMMA, "two cores")):
        for folder in sorted(place.glob("seed*")):
            rows += growth_of(f"{machine}, {folder.name}", folder)
    head = ["run", "step", "goes on after a no", "finishes", "true sums"]
    return table([*head, *(f"within {n}" for n in WITHIN)], rows)


def growth_of(name: str, folder: Path) -> list[list]:
    """Its rows, before, after ten steps and at the end."""
    kept = read(folder).kept
    rows = []
    for i in (0, 1, -1):
        shares = will_and_skill(folder, i)
        side = answers(folder, i)
        rows.append(
            [
                name,
                kept[i]["step"],
                told(shares["goes on after a no"], enough=1),
                told(measures.finished(side), enough=1),
                told(shares["true sums"], enough=ENOUGH),
                *(f"{measures.reached_within(side, n).value:.3f}" for n in WITHIN),
            ]
        )
    return rows
