"""What the setup cell installs, and what it says; where it finds the package on each site."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from aha_lib import install

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Of googlecolab/backend-info, pip-freeze.tpu.txt, 19 August 2026; the CPU list's protobuf differs.
COLAB = dict(
    line.split("==")
    for line in """\
flax==0.11.2
ipywidgets==7.7.1
jax==0.7.2
kagglehub==1.0.2
libtpu==0.0.21.1
matplotlib==3.10.0
numpy==2.1.3
optax==0.2.8
orbax-checkpoint==0.12.4
protobuf==7.35.1
safetensors==0.8.0
sentencepiece==0.2.2
tqdm==4.67.3""".splitlines()
)

spec = importlib.util.spec_from_file_location("setup_cell", ROOT / "notebooks/_setup_cell.py")
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)


@pytest.mark.parametrize("changes, tpu", [({}, True), ({"protobuf": "5.29.6"}, False)])
def test_colab_lacks_one_package(changes, tpu):
    missing = install.lacking(PROJECT, COLAB | changes, tpu)
    assert [need.split(">=")[0] for need in missing] == ["jaxtyping"]


@pytest.mark.parametrize(
    "changes, tpu, missing",
    [
        ({"numpy": "1.26.4"}, False, ["numpy"]),
        ({"numpy": "2.10.0"}, False, []),  # as numbers, not as text
        ({"jax": "0.8.0.dev20250901+abc"}, False, []),
        ({"jax": "0.6.2"}, False, ["jax"]),
        ({"jax": "0.6.2"}, True, ["jax", "jax[tpu]"]),
        ({"libtpu": None}, True, ["jax[tpu]"]),
        ({"libtpu": None}, False, []),
    ],
)
def test_versions_are_compared(changes, tpu, missing):
    installed = {"jaxtyping": "0.3.11"} | COLAB | changes
    installed = {name: version for name, version in installed.items() if version}
    found = install.lacking(PROJECT, installed, tpu)
    assert [need.split(">=")[0] for need in found] == missing


def test_here_nothing_is_lacking(capsys, monkeypatch):
    monkeypatch.setattr(install, "tpu_files", list)
    monkeypatch.setattr(install.subprocess, "run", None)
    install.complete()
    assert not capsys.readouterr().out


@pytest.fixture
def pip(monkeypatch):
    """A pip that brings jaxtyping and the versions in `brings`; gives its calls."""
    calls, have = [], {"jaxtyping": "0.1.0"} | COLAB
    fake = types.SimpleNamespace(calls=calls, brings={"jaxtyping": "0.3.11"}, code=0)

    def run(command):
        calls.append(command)
        have.update(fake.brings)
        return types.SimpleNamespace(returncode=fake.code)

    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install, "versions", have.copy)
    monkeypatch.setattr(install, "tpu_files", lambda: ["/dev/vfio/0"])
    monkeypatch.setattr(install.sys, "modules", {"numpy": None})
    fake.have = have
    return fake


def test_only_what_is_lacking_is_installed(pip, capsys):
    del pip.have["jaxtyping"]
    install.complete()
    assert pip.calls == [[sys.executable, "-m", "pip", "install", "-q", "jaxtyping>=0.3.0"]]
    assert capsys.readouterr().out.endswith("Installed jaxtyping 0.3.11\n")


def test_what_was_in_use_asks_for_a_restart(pip, capsys):
    pip.brings["numpy"] = "2.4.6"
    with pytest.raises(SystemExit, match="^numpy was in use and is replaced: restart"):
        install.complete()
    assert "numpy 2.1.3 -> 2.4.6" in capsys.readouterr().out


def test_pip_that_fails_is_one_sentence(pip):
    pip.code = 1
    with pytest.raises(SystemExit, match="internet on"):
        install.complete()


def test_an_old_python_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(SystemExit, match="is too old: 3.11"):
        install.complete()


# Where the setup cell finds the package. Its beginning, up to what it does with the package.
SEARCH = setup.setup_cell("").split("install.complete()")[0] + "print(install.__file__)\n"


def run_in(folder):
    """Run the cell's beginning in folder / "here"; Kaggle's and Drive's folders lie beside it."""
    (folder / "here").mkdir(exist_ok=True)
    cell = SEARCH.replace("/kaggle/input", f"{folder}/input")
    cell = cell.replace("/content/drive/MyDrive", f"{folder}/drive")
    alone = [sys.executable, "-I", "-S", "-c", cell]
    return subprocess.run(alone, cwd=folder / "here", capture_output=True, text=True)


def put(folder):
    (folder / "aha_lib").mkdir(parents=True)
    for name in ("__init__.py", "install.py"):
        shutil.copy(ROOT / "aha_lib" / name, folder / "aha_lib")


@pytest.mark.parametrize(
    "where",
    [
        ".",
        "..",
        "aha",
        "../input/aha",
        "../input/aha/aha",
        "../input/datasets/me/aha/aha",
        "../drive",
        "../drive/aha",
    ],
)
def test_the_package_is_found(tmp_path, where):
    """Kaggle unpacks a dataset's zip below /kaggle/input, at a depth of its own choice."""
    place = (tmp_path / "here" / where).resolve()
    put(place)
    done = run_in(tmp_path)
    assert done.stdout.strip() == str(place / "aha_lib/install.py"), done.stderr


@pytest.mark.parametrize("where", ["here", "drive"])
def test_its_zip_is_unpacked(tmp_path, where):
    put(tmp_path / "packed/aha")
    file = tmp_path / where / "aha (1)"  # as a browser names a second download
    shutil.make_archive(file, "zip", tmp_path / "packed")
    done = run_in(tmp_path)
    assert done.stdout.strip() == str(tmp_path / "here/aha/aha_lib/install.py"), done.stderr


def test_without_the_package_it_is_one_sentence(tmp_path):
    done = run_in(tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("aha_lib is not here: bring") and done.stderr.count("\n") == 1


def test_with_an_address_it_is_cloned():
    cell = setup.setup_cell("https://github.com/someone/something")
    assert 'address = "https://github.com/someone/something"\n' in cell
    assert 'os.system(f"git clone -q --depth=1 {address} aha")\n' in cell
    assert "import os\n" in cell and "zip" not in cell.split("try:")[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the bounds are of Python 3.11")
def test_the_lowest_versions_do():
    """What every `pytest` runs, once more, with the lower bounds of pyproject.toml."""
    theirs = ("PYTEST_", "JAX_", "XLA_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    env |= {"PYTHON": sys.executable}
    how = dict(cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    done = subprocess.run([ROOT / ".ci" / "lowest"], **how)
    assert done.returncode == 0, done.stdout[-8000:]
