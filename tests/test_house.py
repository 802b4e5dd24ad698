"""The house as drawn: order of imports, docstrings, formatting. Reads the sources; imports none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "aha_lib"
# A module imports only from modules that stand before it: from its own room, and from rooms above.
ORDER = """
install presets devices
model.finite model.download model.tokenizer model.tokenizer_json model.files model.layouts
model.block model.gemma model.lora model.vocabulary model.weights model.export
rl.sampler rl.objectives rl.packing rl.grpo
tasks.countdown tasks.traces tasks.task tasks.last_first tasks.word_problems tasks.gym
tasks.look_up tasks.look_up_text
tasks.rollout tasks.worked tasks.faults tasks.calculator tasks.corpus
loop
run.session run.folder run.stop run.checkpoints run.tracker run.cli run.pretrain run.cold_start
run.programs run.ahead run.train
look.record look.placement look.profile look.measures look.order look.show look.dashboard
look.steering
tpu.chips tpu.forecast tpu.plan
commands
""".split()
NO_JAX = {  # and what they may import
    "tasks.countdown": {"presets"},
    "tasks.traces": {"tasks.countdown"},
    "tasks.worked": {"tasks.countdown"},
    "tasks.faults": {"tasks.countdown", "tasks.worked"},
    "tasks.task": {"presets", "tasks.countdown", "tasks.traces"},
    "tasks.last_first": {"tasks.task"},
    "tasks.word_problems": {"tasks.task"},
    "tasks.gym": {"tasks.task"},
    "tasks.look_up": {"presets", "tasks.task"},
    "tasks.look_up_text": {"presets", "tasks.task", "tasks.look_up"},
    "tasks.calculator": {"presets", "tasks.countdown", "tasks.task", "tasks.worked"},
}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


SOURCES = {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = [name for name in SOURCES if name.endswith("__init__")]
MODULES = [name for name in SOURCES if name not in ROOMS and name != "__main__"]


def imports(source: str) -> set[str]:
    """What a source imports, anywhere in it: top-level packages; of aha_lib, its modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {resolve(name) for name in found}


def resolve(name: str) -> str:
    """ "aha_lib.model.weights.load" is "model.weights"; "jax.numpy" is "jax"."""
    if not name.startswith("aha_lib."):
        return name.split(".")[0]
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in SOURCES else parts[0]


def test_package_is_the_list():
    assert set(MODULES) == set(ORDER), "a module that the layout does not have, or lacks"


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_nothing(name):
    allowed = {"sys"} if name == "__init__" else set()  # which looks at Python's version
    assert imports(SOURCES[name]) <= allowed


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    used = imports(SOURCES[name])
    later = set(ORDER[ORDER.index(name) :])
    assert not used & later, f"{name} imports what stands below it"
    if name in NO_JAX:
        assert not used & JAX and used & set(ORDER) <= NO_JAX[name]
    docstring = ast.get_docstring(ast.parse(SOURCES[name])) or ""
    assert re.search(r"(?i)\bknows?\s(nothing|no|neither|not)\b|\bnot\sknow\b", docstring), (
        f"{name}'s docstring should say what the module does and what it knows nothing of"
    )


@pytest.mark.parametrize("name", [*SOURCES, *(path.stem for path in NOTEBOOKS)])
def test_nobody_evals(name):
    source = SOURCES.get(name) or (ROOT / "notebooks" / f"{name}.py").read_text()
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 30, cell.source


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in [*ROOT.rglob("aha_lib/**/*.py"), *ROOT.rglob("tests/**/*.py"), *NOTEBOOKS]:
        assert "fmt: " + "skip" not in path.read_text(), path
