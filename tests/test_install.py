"""What the setup cell installs, and what it says; where it finds the package on each site."""

import ast
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
def test_colab_lacks_two_packages(changes, tpu):
    missing = install.lacking(PROJECT, COLAB | changes, tpu)
    assert [need.split(">=")[0] for need in missing] == ["jaxtyping", "tyro"]


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
    installed = {"jaxtyping": "0.3.11", "tyro": "1.0.17"} | COLAB | changes
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
    calls, have = [], {"jaxtyping": "0.1.0", "tyro": "1.0.17"} | COLAB
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


def test_an_old_python_is_one_sentence():
    """Whatever of the package is loaded first, and before anything that it could not read."""
    program = (
        "import sys; sys.version_info = (3, 10, 12); sys.version = '3.10.12 (main)'\n"
        "import aha_lib.install"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "Python 3.10.12 is too old: aha_lib needs 3.11 or newer.\n"


@pytest.mark.parametrize("name", ["aha_lib/__init__.py", "notebooks/05_train.py"])
def test_an_old_python_can_read_that_far(name):
    ast.parse((ROOT / name).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    "text",
    [
        '[project]\nname = "somebody-elses"\ndependencies = ["torch==1.0"]\n',
        '[build-system]\nrequires = ["poetry"]\n',
        "= no TOML\n",
        None,
    ],
)
def test_a_strangers_pyproject_is_left_alone(tmp_path, monkeypatch, capsys, text):
    """In site-packages some packages leave one, right beside aha_lib."""
    if text:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install.subprocess, "run", None)
    install.complete()
    assert not capsys.readouterr().out
    assert install.own_project(ROOT / "pyproject.toml") == PROJECT


# Where the setup cell finds the package. Its beginning, up to what it does with the package.
SEARCH = setup.setup_cell("").split("\nfrom aha_lib import devices")[0]
SEARCH += "\nimport aha_lib\nprint(aha_lib.__file__)\n"


def cell_for(folder):
    """The cell's beginning; Kaggle's and Drive's folders lie in this one."""
    cell = SEARCH.replace("/kaggle/input", f"{folder}/input")
    return cell.replace("/content/drive/MyDrive", f"{folder}/drive")


def run_in(folder):
    """Run it in folder / "here", as a notebook's kernel does."""
    (folder / "here").mkdir(exist_ok=True)
    alone = [sys.executable, "-I", "-S", "-c", cell_for(folder)]
    return subprocess.run(alone, cwd=folder / "here", capture_output=True, text=True)


def run_script(folder, script):
    """Run it in folder / "here" as a script that lies elsewhere."""
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(cell_for(folder))
    (folder / "here").mkdir(exist_ok=True)
    alone = [sys.executable, "-I", "-S", script]
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
    assert done.stdout.strip() == str(place / "aha_lib/__init__.py"), done.stderr


def pack(file, mark=""):
    """A zip of the package, as the README's command makes it."""
    packed = file.parent / "packed"
    put(packed / "aha")
    (packed / "aha/mark.txt").write_text(mark)
    shutil.make_archive(file.with_suffix(""), "zip", packed)
    shutil.rmtree(packed)


@pytest.mark.parametrize("name", ["aha.zip", "aha (1).zip"])  # as a browser names a second one
@pytest.mark.parametrize("where", ["here", "drive", "input/aha"])
def test_its_zip_is_unpacked(tmp_path, where, name):
    pack(tmp_path / where / name)
    done = run_in(tmp_path)
    told, found = done.stdout.splitlines()
    (unpacked,) = (tmp_path / "here").glob("aha-*")
    assert told == f"Unpacked {name} into {unpacked.name}"
    assert found == str(unpacked / "aha/aha_lib/__init__.py"), done.stderr
    again = run_in(tmp_path)
    assert again.stdout.splitlines() == [found], "what is there already is taken"


def test_the_newest_zip_counts_and_nothing_is_written_over(tmp_path):
    pack(tmp_path / "here/aha.zip", "old")
    mine = tmp_path / "here/aha/notes.txt"  # a folder of the user's, of the zip's own name
    mine.parent.mkdir()
    mine.write_text("mine")
    first = run_in(tmp_path).stdout.splitlines()[-1]
    (Path(first).parent.parent / "mark.txt").write_text("edited")
    pack(tmp_path / "here/aha (1).zip", "new")
    done = run_in(tmp_path)
    mark = Path(done.stdout.splitlines()[-1]).parent.parent / "mark.txt"
    assert mark.read_text() == "new", done.stderr
    assert mine.read_text() == "mine"
    assert (Path(first).parent.parent / "mark.txt").read_text() == "edited"


@pytest.mark.parametrize("name", ["ahab.zip", "aha-old.zip", "aha (1) copy.zip"])
def test_other_zips_are_left_alone(tmp_path, name):
    pack(tmp_path / "here" / name)
    done = run_in(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("aha_lib is not here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


def test_a_script_takes_the_package_beside_it(tmp_path):
    """Whatever lies in the working folder: an older copy, or a zip."""
    for old in ("here", "here/aha", "here/aha-old", "drive"):
        put(tmp_path / old)
    pack(tmp_path / "here/aha.zip")
    put(tmp_path / "new")
    done = run_script(tmp_path, tmp_path / "new/notebooks/05_train.py")
    assert done.stdout.strip() == str(tmp_path / "new/aha_lib/__init__.py"), done.stderr


def test_a_script_unpacks_nothing(tmp_path):
    pack(tmp_path / "here/aha.zip")
    pack(tmp_path / "lone/aha.zip")
    done = run_script(tmp_path, tmp_path / "lone/05_train.py")
    assert done.returncode == 1 and done.stderr.startswith("aha_lib is not here")
    assert not list(tmp_path.glob("*/aha-*"))


def test_a_script_without_one_beside_it_takes_the_installed(tmp_path):
    put(tmp_path / "site")
    put(tmp_path / "here/aha-old")
    script = tmp_path / "lone/05_train.py"
    first = f"import sys; sys.path.append({str(tmp_path / 'site')!r})\n"
    script.parent.mkdir()
    script.write_text(first + cell_for(tmp_path))
    alone = [sys.executable, "-I", "-S", script]
    done = subprocess.run(alone, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "site/aha_lib/__init__.py"), done.stderr


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
