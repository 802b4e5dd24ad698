"""Notebooks: each pair agrees, committed outputs are clean, each runs from a fresh kernel."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.cli import jupytext as jupytext_command
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Values for names of a notebook's cell tagged "parameters", to make its run here a short one:
# {"05_train": {"overrides": {"steps": 2}}} runs a cell `overrides = {'steps': 2}` right after it.
SHORTER = {"05_train": {"overrides": {"steps": 2}}}
FEW_CHECKS = ("04_grpo_step", "09_objectives")  # with three checks at most
QUICK = ("01_load_gemma", "02_countdown_env")  # run by every `pytest`

DIRTY = re.compile(
    r"Traceback \(most recent call last\)"
    r"|\w*Warning:|WARNING"
    r"|(?<![\w.~-])/(root|home|Users|work|tmp|content|kaggle|opt|usr)/"
)
SAMPLE = '# %% [markdown]\n# # Title\n\n# %% tags=["setup"]\nold\n\n# %%\n1 + 1\n'

spec = importlib.util.spec_from_file_location("setup_cell", ROOT / "notebooks/_setup_cell.py")
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)


def tagged(notebook, tag: str) -> int:
    """Index of the one cell with this tag."""
    (index,) = [i for i, c in enumerate(notebook.cells) if tag in c.metadata.get("tags", [])]
    return index


def test_every_py_has_its_ipynb():
    ipynb = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert ipynb == [path.stem for path in NOTEBOOKS]


@each_notebook
def test_pair_agrees(path, tmp_path):
    exported = tmp_path / path.name
    ipynb = str(path.with_suffix(".ipynb"))
    jupytext_command(["--quiet", "--to", "py:percent", "--output", str(exported), ipynb])
    assert exported.read_text() == path.read_text()


@each_notebook
def test_names_its_kernel(path):
    """Without one Kaggle's own `kaggle kernels push` refuses a notebook: no kernel name found."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert nbformat.read(path.with_suffix(".ipynb"), as_version=4).metadata.kernelspec == kernel
    assert jupytext.read(path).metadata["kernelspec"] == kernel


@each_notebook
def test_setup_and_parameters(path):
    text = path.read_text()
    assert setup.rewrite(text, path.stem, setup.address()) == text, "run notebooks/_setup_cell.py"
    notebook = jupytext.read(path)
    parameters = notebook.cells[tagged(notebook, "parameters")].source
    assert tagged(notebook, "setup") < tagged(notebook, "parameters")
    assert 'preset = "tiny"' in parameters


@each_notebook
def test_committed_outputs(path):
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            data = {k: v for k, v in output.get("data", {}).items() if k[:6] != "image/"}
            text = output.get("text", "") + json.dumps(data, ensure_ascii=False)
            text = re.sub(r";base64,[\w+/=\\]+", "", text)  # pictures within HTML
            assert not DIRTY.search(text), f"{DIRTY.search(text)[0]} after {cell.source}"


@pytest.mark.parametrize("name", FEW_CHECKS)
def test_checks_are_few(name):
    """What is checked is what the notebook teaches; all else is for tests."""
    tree = ast.parse((ROOT / f"notebooks/{name}.py").read_text())
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    others = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("assert_")
    ]
    assert 1 <= len(asserts) + len(others) <= 3


def slow_unless_quick(path: Path):
    marks = () if path.stem in QUICK else pytest.mark.slow
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", map(slow_unless_quick, NOTEBOOKS))
def test_runs(path, tmp_path):
    """In a fresh kernel; some with other values of their parameters."""
    shorter = SHORTER.get(path.stem, {})
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    at = tagged(notebook, "parameters")
    stored = [n for n in ast.walk(ast.parse(notebook.cells[at].source)) if isinstance(n, ast.Name)]
    assert set(shorter) <= {name.id for name in stored}, "no such name in the parameters cell"
    lines = [f"{name} = {value!r}" for name, value in shorter.items()]
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("address", ["", "https://github.com/someone/something"])
def test_setup_cell_is_written_from_the_address(address):
    text = setup.rewrite(SAMPLE, "05_train", address)
    assert setup.rewrite(text, "05_train", address) == text
    assert setup.rewrite(text, "05_train", "") == setup.rewrite(SAMPLE, "05_train", "")
    assert text.count("notebooks/05_train.ipynb") == (2 if address else 0)
    assert ("git clone -q" in text) == bool(address) == (f'address = "{address}"\n' in text)
    assert text.endswith("\n# %%\n1 + 1\n")
    assert all(len(line) <= 76 for line in setup.setup_cell(address).splitlines())
    ast.parse(text)
