"""Writes the setup cell and the badges of every notebook: `python notebooks/_setup_cell.py`.

The repository's address is `Repository` under [project.urls] in pyproject.toml. While it is not
there, notebooks have no badges and their setup cell looks for the folder or its zip; with it, it
clones. All that can wait until the package is found is in `aha_lib/install.py`, which unpacks the
zip and installs what is lacking, and in `devices.start`.
Afterwards bring the .ipynb files up to date (jupytext --update --to ipynb) and execute them.
Knows nothing of what the notebooks teach.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SETUP = """\
# Setup, the same in every notebook: find aha_lib and what it needs.
import pathlib
import sys

here = pathlib.Path(globals().get("__file__", "notebook")).absolute().parent
drive = pathlib.Path("/content/drive/MyDrive")
data = pathlib.Path("/kaggle/input")  # how deep below is Kaggle's choice
places = [here, here.parent, here / "aha", drive, drive / "aha"]
places += [p for depth in range(1, 5) for p in data.glob("*/" * depth)]
found = [str(p) for p in places if (p / "aha_lib/install.py").exists()]
if not found and "__file__" not in globals():  # a notebook, not a script
    {elsewhere}
sys.path[:0] = found[:1]
try:
    from aha_lib import install
except ImportError:
    sys.exit("aha_lib is not here: bring aha.zip, as notebook 00 says.")
install.complete()  # says what it installs; what will do is left alone

from aha_lib import devices

devices.start()  # joins other hosts, and says which chips there are
"""
UNPACK = """\
zips = [z for p in places for z in p.glob("aha.zip")]
    zips += [z for p in places for z in p.glob("aha ([0-9]).zip")]
    newest = sorted(zips, key=lambda z: z.stat().st_mtime)[-1:]
    found = [f"{z}/aha" for z in newest]"""
CLONE = """\
address = "{address}"
    os.system(f"git clone -q --depth=1 {{address}} aha")
    found = [str(here / "aha")]"""
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
    return cell.replace("import pathlib\n", "import os\nimport pathlib\n")


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
