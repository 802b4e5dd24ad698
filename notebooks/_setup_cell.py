"""Writes the setup cell and the badges of every notebook: `python notebooks/_setup_cell.py`.

The repository's address is `Repository` under [project.urls] in pyproject.toml. While it is not
there, notebooks have no badges and their setup cell looks for the folder or its zip; with it, it
clones. What comes after that is `aha_lib/install.py`.
Afterwards bring the .ipynb files up to date (jupytext --update --to ipynb) and execute them.
Knows nothing of what the notebooks teach.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SETUP = """\
# Setup, the same in every notebook: find aha_lib and what it needs.
import glob
import pathlib
import shutil
import sys

drive, data = "/content/drive/MyDrive", "/kaggle/input"
places = [".", "..", "*", drive, f"{drive}/*"]
places += [data + "/*" * depth for depth in range(1, 5)]
found = [p for place in places for p in glob.glob(f"{place}/aha_lib")]
if not found:
    {elsewhere}
sys.path[:0] = [str(pathlib.Path(p).parent.resolve()) for p in found[:1]]
try:
    from aha_lib import install
except ImportError:
    raise SystemExit(
        "aha_lib is not here: bring its whole folder or its "
        "zip, as notebook 00 says, beside this one."
    ) from None
install.complete()  # says what it installs; what will do is left alone

import jax

from aha_lib import devices

devices.start_distributed()  # only where there are several hosts
kind = devices.available()[0].device_kind
print(f"JAX {jax.__version__} on {jax.device_count()} x {kind}")
"""
UNPACK = """\
zips = [z for place in places for z in glob.glob(f"{place}/aha*.zip")]
    for file in zips[:1]:
        shutil.unpack_archive(file)
    found = glob.glob("aha*/aha_lib")"""
CLONE = """\
address = "{address}"
    os.system(f"git clone -q --depth=1 {{address}} aha")
    found = glob.glob("aha/aha_lib")"""
COLAB = "https://colab.research.google.com/assets/colab-badge.svg"
KAGGLE = "https://kaggle.com/static/images/open-in-kaggle.svg"


def address() -> str:
    """The repository's address, "" while it is not public."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", "")


def setup_cell(address: str) -> str:
    """The code of the setup cell."""
    if not address:
        return SETUP.replace("{elsewhere}", UNPACK)
    cell = SETUP.replace("{elsewhere}", CLONE.format(address=address))
    return cell.replace("import glob\n", "import glob\nimport os\n").replace(
        "import shutil\n", ""
    )


def badges(address: str, name: str) -> str:
    """The line of badges, as lines of a markdown cell; "" without an address."""
    if not address:
        return ""
    file = (
        address.removeprefix("https://github.com/")
        + f"/blob/main/notebooks/{name}.ipynb"
    )
    colab = f"[![Open in Colab]({COLAB})](https://colab.research.google.com/github/{file})"
    src = f"https://kaggle.com/kernels/welcome?src=https://github.com/{file}"
    return f"#\n# {colab} [![Open in Kaggle]({KAGGLE})]({src})\n"


def rewrite(text: str, name: str, address: str) -> str:
    """A notebook's .py with its setup cell and badges brought up to date.

    Raises ValueError unless it has one cell tagged "setup" and a title.
    """
    cell = f'# %% tags=["setup"]\n{setup_cell(address)}\n'
    text, cells = re.subn(
        r'(?ms)^# %% tags=\["setup"\]\n.*?(?=^# %%|\Z)', lambda _: cell, text
    )
    text = re.sub(r"(?m)^#\n# \[!\[Open in .*\n", "", text)
    text, titles = re.subn(
        r"(?m)^# # .*\n", lambda m: m[0] + badges(address, name), text, count=1
    )
    if cells != 1 or titles != 1:
        raise ValueError(
            f'{name}.py needs a title ("# # …") and one cell tagged "setup".'
        )
    return text


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        path.write_text(rewrite(path.read_text(), path.stem, address()))
