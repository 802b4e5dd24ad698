"""Rehearses notebooks with a Gemma on eight simulated devices, in a place shaped like Kaggle.

    python tests/rehearsal/rehearse.py 03_sampler                    # a random small Gemma
    python tests/rehearsal/rehearse.py 05_train --site colab
    python tests/rehearsal/rehearse.py --model FOLDER                # a real one, all notebooks
    python tests/rehearsal/rehearse.py --record random               # kept for docs/rehearsal.md
    python tests/rehearsal/rehearse.py --table                       # which is written anew

A notebook is the `.py` of this checkout, committed or not; the package that it finds is the one of
this checkout, as `aha.zip` brings it. As a reader does, a rehearsal changes the parameters cell:
the preset, and the lengths in `SHORTER`. Its weights come through the sites' own clients from
`servers.py`. Results go into `--out`: `results.json`, and each notebook as it was executed.
Knows nothing of what the notebooks do.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
import place as places
import servers

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py"))
RECORD = Path(__file__).with_name("record.json")
PAGE = ROOT / "docs" / "rehearsal.md"
TABLE = re.compile(r"(?s)(?<=<!-- table -->\n).*(?=<!-- end of table -->)")
COLUMNS = {
    "tiny": "tiny, one device",
    "random": "random Gemma 3, eight devices",
    "real": "Gemma 3 270M, eight devices",
}
PRESET = "gemma3-270m-short"
DEVICES = 8
TIMEOUT = 1200  # seconds of a cell

# What a rehearsal makes of the names in a notebook's parameters cell, beside the preset: a run
# of few steps and short answers. A name that the cell does not have is left out.
FEW = {
    "cold_start_steps": 2,
    "steps": 2,
    "prompts": 8,
    "group": 4,
    "completion_len": 48,
    "eval_puzzles": 16,
    "eval_every": 1,
    "checkpoint_every": 1,
    "micro_batch": 8,
}
SHORTER = {"overrides": FEW}
# Of notebooks whose Gemma has a task of its own. The random one spells English letter by letter.
LETTERS = {"prompt_len": 96, "completion_len": 96, "reply_len": 96}
OWN = {"10_tools": {"preset": "look-up-270m", "overrides": FEW | LETTERS}}
SHORTER_TINY = {"overrides": {"steps": 2}}  # as tests/test_notebooks.py has it


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed, but for the notebook."""

    site: str = "kaggle"
    preset: str = PRESET
    devices: int = DEVICES
    timeout: int = TIMEOUT


def rehearse(name: str, how: Rehearsal, place: places.Place, values: dict | None = None) -> dict:
    """Run one notebook in a place; what `session.py` found, and how it was run."""
    notebook = jupytext.read(ROOT / f"notebooks/{name}.py")
    shorter = SHORTER_TINY if how.preset == "tiny" else SHORTER
    own = OWN.get(name, {}) if how.preset == PRESET else {}
    wanted = {"preset": how.preset} | shorter | own | (values or {})
    changed = set_parameters(notebook, wanted)
    for cell in notebook.cells:
        cell.source = place.text(cell.source)
    results = place.folder / "results"
    results.mkdir(exist_ok=True)
    request, answer = results / f"{name}.request.json", results / f"{name}.answer.json"
    answer.unlink(missing_ok=True)
    asked = {
        "notebook": json.loads(nbformat.writes(notebook)),
        "timeout": how.timeout,
        "working": place.inside(place.working),
        "ipython": str(place.folder / "ipython"),
        "watched": str(results / f"{name}.watched.json"),
        "now": str(results / f"{name}.now"),  # the cell that is being run
        "executed": str(results / f"{name}.ipynb"),
    }
    request.write_text(json.dumps(asked))
    script = Path(__file__).with_name("session.py")
    done = place.run(
        [sys.executable, str(script), str(request), str(answer)], capture_output=True, text=True
    )
    if not answer.exists():
        raise RuntimeError(f"{name}: the session ended with {done.returncode}: {done.stderr}")
    went = json.loads(answer.read_text())
    went["package"] = went.get("devices", {}).get("package", "")
    went |= {"notebook": name, "site": how.site, "preset": wanted["preset"], "changed": changed}
    went |= {"real_paths": place.real, "simulated": how.devices}
    return went


def set_parameters(notebook, values: dict) -> dict:
    """Change the parameters cell as a reader would; what was changed, by name."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    changed = {}
    for statement in reversed(ast.parse(cell.source).body):
        names = [target.id for target in getattr(statement, "targets", [])]
        if names and names[0] in values:
            changed[names[0]] = values[names[0]]
            lines = cell.source.splitlines()
            lines[statement.lineno - 1 : statement.end_lineno] = [
                f"{names[0]} = {values[names[0]]!r}"
            ]
            cell.source = "\n".join(lines)
    return changed


def prepare(how: Rehearsal, folder: Path, servers_: servers.Servers) -> places.Place:
    """The place, with the environment of its site and the addresses of `servers_`."""
    place = places.make(how.site, folder)
    servers_.mount = place.input
    flags = f"--xla_force_host_platform_device_count={how.devices}"
    place.environment.update(servers_.hugging_face_api(), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    place.environment["IPYTHONDIR"] = str(folder / "ipython")  # where session.py's watch is
    kaggle = servers_.kaggle_session() if how.site == "kaggle" else servers_.kaggle_api()
    place.environment.update(kaggle)
    return place


def serve(model: Path) -> servers.Servers:
    """The sites, which give this model for every Gemma 3. A folder of one layout serves both."""
    handles = ("gemma-3-270m", "gemma3-1b")
    kaggle = model / "kaggle" if (model / "kaggle").is_dir() else model
    hugging_face = model / "hf" if (model / "hf").is_dir() else model
    return servers.Servers(
        kaggle={f"google/gemma-3/flax/{handle}": kaggle for handle in handles},
        hugging_face={"google/gemma-3-270m": hugging_face, "google/gemma-3-1b-pt": hugging_face},
    )


def figures(went: dict) -> list[str]:
    """Minutes (passed, and of one core), the host's memory, arrays and scratch of a device."""
    watched = went.get("devices", {})
    arrays = max(watched.get("arrays", {}).values(), default=0)
    minutes = f"{went['minutes']:.1f} min ({went['processor_minutes']:.1f})"
    host = f"{went['host'] / 2**30:.2f} GiB"
    return [minutes, host, f"{arrays / 2**20:.0f}", f"{watched.get('scratch', 0) / 2**20:.0f} MiB"]


def in_words(went: dict) -> str:
    """A line on how a rehearsal went, or a few."""
    minutes, host, arrays, scratch = figures(went)
    took = f"{minutes}, host {host}, a device {arrays} (arrays) + {scratch} (scratch)"
    if went["runs"]:
        return f"{went['notebook']}: runs, {took}"
    begins = went["source"].splitlines()[:3]
    return (
        f"{went['notebook']}: fails in code cell {went['cell']} of {went['of']} ({took})\n"
        f"    {went['error'].splitlines()[0]}\n    in: " + "\n        ".join(begins)
    )


def recorded() -> dict[str, list[dict]]:
    """By column, how each notebook went."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def record(column: str, results: list[dict]) -> None:
    """Keep results in the place of those of the same notebooks."""
    kept = recorded()
    by_name = {went["notebook"]: went for went in kept.get(column, [])}
    for went in results:
        by_name[went["notebook"]] = went
    kept[column] = [by_name[name] for name in sorted(by_name)]
    RECORD.write_text(json.dumps(kept, indent=1) + "\n")


def with_table(page: str, kept: dict[str, list[dict]]) -> str:
    """The page with its table as the record has it."""
    head = ["notebook", *COLUMNS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    names = sorted({went["notebook"] for column in kept.values() for went in column})
    for name in names:
        cells = [name]
        for column in COLUMNS:
            found = [went for went in kept.get(column, []) if went["notebook"] == name]
            cells.append(_cell(found[0]) if found else "")
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    return TABLE.sub(lambda _: table, page)


def _cell(went: dict) -> str:
    minutes, host, arrays, scratch = figures(went)
    fate = "" if went["runs"] else f"fails in code cell {went['cell']}: "
    return f"{fate}{minutes}, {host}, {arrays} + {scratch}"


def value(text: str) -> tuple[str, object]:
    """`name=value` of the command line."""
    name, _, literal = text.partition("=")
    return name, ast.literal_eval(literal)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", default=NOTEBOOKS, help="such as 05_train")
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--site", default="kaggle", choices=("kaggle", "colab"))
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--model", type=Path, help="a folder; by default a random small Gemma 3")
    parser.add_argument("--out", type=Path, help="a folder, new or of an earlier rehearsal")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=value,
        metavar="NAME=VALUE",
        help="another name of the parameters cell, as 'overrides={\"steps\": 1}'",
    )
    parser.add_argument("--record", choices=COLUMNS, help="keep the results, as this column")
    parser.add_argument("--table", action="store_true", help="write docs/rehearsal.md's table")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds of a cell")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    asked = parse(arguments)
    if asked.table:
        PAGE.write_text(with_table(PAGE.read_text(), recorded()))
        return 0
    folder = (asked.out or Path(tempfile.mkdtemp(prefix="rehearsal-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = asked.model
    if model is None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else libtpu looks for its chips
        import stand_in

        model = folder / "model"
        if not model.exists():
            stand_in.write(model)
    how = Rehearsal(asked.site, asked.preset, asked.devices, asked.timeout)
    print(f"In {folder}", flush=True)
    results = []
    with serve(model) as sites:
        place = prepare(how, folder, sites)
        for name in asked.notebooks:
            name = re.sub(r"\.(py|ipynb)$", "", Path(name).name)
            results.append(rehearse(name, how, place, dict(asked.set)))
            print(in_words(results[-1]), flush=True)
            (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            if asked.record:
                record(asked.record, results[-1:])
    return 0 if all(went["runs"] for went in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
