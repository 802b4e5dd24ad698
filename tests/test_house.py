"""The house as drawn: order of imports, sizes, docstrings. Reads the sources; imports none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module imports only from modules that stand before it.
ORDER = """install presets arguments config_json runtime tokenizer block gemma lora weights
countdown traces sampler objectives packing grpo session checkpoints train steering
record show dashboard chips plan vocabulary corpus pretrain""".split()
NO_JAX = {"countdown": set(), "traces": {"countdown"}}  # and what they may have of aha_lib
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
SOURCES = {path.stem: path.read_text() for path in sorted((ROOT / "aha_lib").glob("*.py"))}
MODULES = [name for name in SOURCES if name != "__init__"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


def imports(source: str) -> set[str]:
    """Top-level packages that a source imports, anywhere in it; of aha_lib, its modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(["aha_lib"] * bool(node.level) + [node.module] * bool(node.module))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.split(".")[name.startswith("aha_lib.")] for name in found}


def code_lines(source: str) -> int:
    """Lines that are neither blank nor comment nor docstring: what a reader's head has to hold."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        has_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_one and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(re.match(r"\s*[^\s#]", x)) and i not in documented for i, x in lines)


def test_package_is_the_list():
    assert len(SOURCES) == len([*(ROOT / "aha_lib").rglob("*.py")]), "aha_lib has no subpackages"
    assert set(MODULES) <= set(ORDER), "a module that the layout does not have"
    assert not imports(SOURCES["__init__"]), "aha_lib/__init__.py imports nothing"
    assert sum(map(code_lines, SOURCES.values())) <= 3570


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    used = imports(SOURCES[name])
    later = set(ORDER[ORDER.index(name) :])
    assert not used & later, f"{name} imports what stands below it"
    assert name == "dashboard" or not used & {"show", "dashboard"}, "these are for notebooks alone"
    if name in NO_JAX:
        assert not used & JAX and used & set(ORDER) <= NO_JAX[name]
    assert len(SOURCES[name].splitlines()) <= 350
    docstring = ast.get_docstring(ast.parse(SOURCES[name])) or ""
    assert re.search(r"(?i)\bknows? (nothing|no|neither|not)\b|\bnot know\b", docstring), (
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


def test_ruff():
    check = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
