"""Measurements are no tests and run nowhere here; what they import from the package is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("look/browse*.py")])


def test_there_are_scripts_and_pytest_takes_none_of_them_for_a_test():
    assert len(SCRIPTS) > 15
    assert not [path for path in SCRIPTS if re.match(r"test_|.*_test$", path.stem)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_it_imports_is_there(path):
    """Everywhere in the script, in its functions too; what is not ours need not be installed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "aha_lib":
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "aha_lib":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
