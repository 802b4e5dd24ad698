"""What the notebooks need, compared with what this machine has; pip brings what is missing.

Standard library alone: it runs before JAX can be imported, in the setup cell of every notebook.
Knows nothing of the other modules, and installs nothing that is there in a version that will do.
"""

import glob
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def tpu_files() -> list[str]:
    """The device files of the TPU chips of this machine."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def versions() -> dict[str, str]:
    """Version of every installed distribution, by its name in lower case and with dashes."""
    found = importlib.metadata.distributions()
    return {_plain(d.metadata["Name"]): d.version for d in found if d.metadata["Name"]}


def numbers(version: str) -> list[int]:
    """The release of a version, to be compared: "0.8.0.dev1+abc" is [0, 8, 0]."""
    release = re.match(r"[\d.]*", version)[0]
    return [int(part) for part in release.split(".") if part]


def lacking(project: dict, installed: dict[str, str], tpu: bool) -> list[str]:
    """Requirements of a pyproject's `project` that the installed versions do not meet.

    With a TPU they are those of the extra `tpu` too, which brings libtpu.
    """
    missing = [need for need in project["dependencies"] if not _met(need, installed)]
    for need in project["optional-dependencies"]["tpu"] if tpu else ():
        if not _met(need, installed) or "libtpu" not in installed:
            missing.append(need)
    return missing


def complete() -> None:
    """Install what is lacking and say so.

    SystemExit with a sentence that says what to do where Python is too old, where pip fails, and
    where a package that is in use already was replaced.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # came with Python 3.11
        raise SystemExit(
            f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed."
        ) from None
    if not PYPROJECT.exists():
        return  # pip has put the package here, and what it needs
    before = versions()
    project = tomllib.loads(PYPROJECT.read_text())["project"]
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
    new = [f"{name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    replaced = [name for name in sorted(before) if after.get(name, before[name]) != before[name]]
    changes = [f"{name} {before[name]} -> {after[name]}" for name in replaced]
    print("Installed", ", ".join([*new, *changes]))
    owners = importlib.metadata.packages_distributions()
    in_use = {_plain(owner) for module in [*sys.modules] for owner in owners.get(module, ())}
    if stale := sorted(in_use & set(replaced)):
        raise SystemExit(
            f"{', '.join(stale)} was in use and is replaced: restart the session "
            "(Kaggle: Run, Restart; Colab: Runtime, Restart session), then run this "
            "cell again."
        )


def _met(need: str, installed: dict[str, str]) -> bool:
    """Whether "name[extra]>=1.2.3" holds."""
    name, least = need.split(">=")
    version = installed.get(_plain(name.split("[")[0]))
    return version is not None and numbers(version) >= numbers(least)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
