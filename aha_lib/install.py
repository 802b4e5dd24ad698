"""What the notebooks need, compared with what this machine has; pip brings what is missing.

Standard library alone: it runs before JAX can be imported, in the setup cell of every notebook.
Knows nothing of the other modules, and installs nothing that is there in a version that will do.
"""

import glob
import hashlib
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of a clone; in a zip, the folder in it
RESTART = "restart the session (Kaggle: Run, Restart; Colab: Runtime, Restart session)"


def tpu_files() -> list[str]:
    """The device files of the TPU chips of this machine."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def versions() -> dict[str, str]:
    """Version of every installed distribution, by its name in lower case and with dashes."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[_plain(name)] = distribution.version
    return found


def numbers(version: str) -> list[int]:
    """The release of a version, to be compared: "0.8.0.dev1+abc" is [0, 8, 0]."""
    release = re.match(r"[\d.]*", version)[0]
    return [int(part) for part in release.split(".") if part]


def lacking(project: dict, installed: dict[str, str], tpu: bool) -> list[str]:
    """Requirements of a pyproject's `project` that the installed versions do not meet.

    With a TPU they are those of the extra `tpu` too, which brings libtpu.
    """
    missing = [need for need in project["dependencies"] if not _met(need, installed)]
    if tpu:
        for need in project["optional-dependencies"]["tpu"]:
            if not _met(need, installed) or "libtpu" not in installed:
                missing.append(need)
    return missing


def complete() -> None:
    """Unpack the package if it runs from a zip, install what is lacking, and say so.

    SystemExit with a sentence that says what to do where pip fails, and where a package that is in
    use already was replaced.
    """
    root = unpack(ROOT.parent) if ROOT.parent.suffix == ".zip" else ROOT
    project = own_project(root / "pyproject.toml")
    if project is None:
        return  # pip has put the package here, and what it needs
    before = versions()
    missing = lacking(project, before, bool(tpu_files()))
    if not missing:
        return
    print("Installing", *missing, flush=True)
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing]).returncode:
        raise SystemExit(
            "pip could not install them. Is the session's internet on? (Kaggle: "
            "Settings, Internet.) Then run this cell again."
        )
    importlib.invalidate_caches()
    after = versions()
    replaced = [name for name in sorted(before) if after.get(name, before[name]) != before[name]]
    new = [f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    changed = [f"{name} {before[name]} -> {after[name]}" for name in replaced]
    print("Installed", ", ".join([*new, *changed]))
    stale = sorted(in_use() & set(replaced))
    if stale:
        raise SystemExit(
            f"{', '.join(stale)} was in use and is replaced: {RESTART}, then run this cell again."
        )


def own_project(file: Path) -> dict | None:
    """The table `project` of this package's pyproject.toml; None if the file is another's."""
    try:
        project = tomllib.loads(file.read_text())["project"]
    except (OSError, KeyError, ValueError):  # none; without a project; no TOML, or no text
        return None
    return project if project.get("name") == "aha_lib" else None


def unpack(archive: Path) -> Path:
    """Unpack the zip that this module was loaded from, and load the package from there from now on.

    Into a folder beside the notebook that is named by the zip's contents: nothing is ever written
    over, and a newer zip gets a folder of its own. Gives the root in it.
    """
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:8]
    folder = Path(f"aha-{digest}").absolute()
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.new")  # a torn one would be taken for whole
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.unpack_archive(archive, fresh, "zip")
        fresh.replace(folder)
        print(f"Unpacked {archive.name} into {folder.name}")
    root = folder / ROOT.name
    sys.path[:] = [str(root), *(place for place in sys.path if place != str(ROOT))]
    for name in [name for name in sys.modules if name.split(".")[0] == "aha_lib"]:
        del sys.modules[name]  # those from the zip
    importlib.invalidate_caches()
    return root


def in_use() -> set[str]:
    """Distributions of which a module is loaded already."""
    owners = importlib.metadata.packages_distributions()
    return {_plain(owner) for module in [*sys.modules] for owner in owners.get(module, ())}


def _met(need: str, installed: dict[str, str]) -> bool:
    """Whether "name[extra]>=1.2.3" holds."""
    name, least = need.split(">=")
    version = installed.get(_plain(name.split("[")[0]))
    return version is not None and numbers(version) >= numbers(least)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
