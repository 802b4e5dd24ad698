"""Writes the setup cell and the badges of every notebook: `python notebooks/_setup_cell.py`.

The repository's address is `Repository` under [project.urls] in pyproject.toml. While it is not
there, notebooks have no badges and their setup cell asks for a clone or an upload of the folder.
Afterwards bring the .ipynb files up to date (jupytext --update --to ipynb) and execute them.
Knows nothing of what the notebooks teach.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SETUP = """\
# Setup, the same in every notebook: find aha_lib and what it needs.
import importlib.util
import pathlib
import subprocess
import sys
import tomllib

here = pathlib.Path.cwd()
checkout = [p for p in (here, here.parent) if (p / "aha_lib").is_dir()]
sys.path[:0] = map(str, checkout)
needs = "aha_lib", "flax", "jaxtyping", "optax", "orbax", "sentencepiece"
if not all(importlib.util.find_spec(name) for name in needs):
    if checkout:
        pyproject = (checkout[0] / "pyproject.toml").read_text()
        missing = tomllib.loads(pyproject)["project"]["dependencies"]
    else:
        {elsewhere}
    pip = [sys.executable, "-m", "pip", "install", "-q", *missing]
    subprocess.run(pip, check=True)

import jax

from aha_lib import runtime

runtime.start_distributed()  # only where there are several hosts
kind = runtime.devices()[0].device_kind
print(f"JAX {jax.__version__} on {jax.device_count()} x {kind}")
"""
ASK = """\
raise SystemExit("aha_lib is not here: clone or upload its whole "
                         "folder and open this notebook inside it.")"""
FETCH = 'missing = ["aha_lib @ git+{address}"]'
COLAB = "https://colab.research.google.com/assets/colab-badge.svg"
KAGGLE = "https://kaggle.com/static/images/open-in-kaggle.svg"


def address() -> str:
    """The repository's address, "" while it is not public."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", "")


def setup_cell(address: str) -> str:
    """The code of the setup cell."""
    return SETUP.replace("{elsewhere}", FETCH.format(address=address) if address else ASK)


def badges(address: str, name: str) -> str:
    """The line of badges, as lines of a markdown cell; "" without an address."""
    if not address:
        return ""
    file = address.removeprefix("https://github.com/") + f"/blob/main/notebooks/{name}.ipynb"
    colab = f"[![Open in Colab]({COLAB})](https://colab.research.google.com/github/{file})"
    src = f"https://kaggle.com/kernels/welcome?src=https://github.com/{file}"
    return f"#\n# {colab} [![Open in Kaggle]({KAGGLE})]({src})\n"


def rewrite(text: str, name: str, address: str) -> str:
    """A notebook's .py with its setup cell and badges brought up to date.

    Raises ValueError unless it has one cell tagged "setup" and a title.
    """
    cell = f'# %% tags=["setup"]\n{setup_cell(address)}\n'
    text, cells = re.subn(r'(?ms)^# %% tags=\["setup"\]\n.*?(?=^# %%|\Z)', lambda _: cell, text)
    text = re.sub(r"(?m)^#\n# \[!\[Open in .*\n", "", text)
    text, titles = re.subn(r"(?m)^# # .*\n", lambda m: m[0] + badges(address, name), text, count=1)
    if cells != 1 or titles != 1:
        raise ValueError(f'{name}.py needs a title ("# # …") and one cell tagged "setup".')
    return text


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        path.write_text(rewrite(path.read_text(), path.stem, address()))
