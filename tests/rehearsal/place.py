"""A machine shaped like Kaggle's or Colab's: folders, environment, and what may not be written.

Where Linux lets us (`unshare`, as root or as an ordinary user) a notebook runs in a mount namespace
of its own, in which /kaggle/input and /kaggle/working, or /content, are what they are there: at
those very paths, the input read-only even for root. Elsewhere those folders lie below a temporary
one, and their paths are exchanged in the notebook's text: `Place.real` tells which it is.
The Python, its packages and the compiled programs' cache are this machine's.
Knows nothing of notebooks' contents or of models.
"""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A new root that is this machine's, and beside it the site's own folders. $1: a folder of ours that
# becomes the root, $2: what lies there under the names of the site, $3: what is to be read-only.
ENTER = """\
set -e
root=$1; site=$2; fixed=$3; work=$4; shift 4
mount -t tmpfs rehearsal "$root"
for path in /* /.[!.]*; do
    name=${path#/}
    if [ -L "$path" ]; then cp -P "$path" "$root/$name"
    elif [ -d "$path" ]; then mkdir "$root/$name"; mount --rbind "$path" "$root/$name"
    elif [ -e "$path" ]; then touch "$root/$name"; mount --bind "$path" "$root/$name"
    fi
done
for path in "$site"/*; do
    mkdir -p "$root/${path##*/}"; mount --rbind "$path" "$root/${path##*/}"
done
if [ -n "$fixed" ]; then
    mount --bind "$site/$fixed" "$root/$fixed"
    mount -o remount,bind,ro "$root/$fixed" || mount -o remount,bind,ro,nosuid,nodev "$root/$fixed"
fi
exec chroot "$root" sh -c 'cd "$1"; shift; exec "$@"' sh "$work" "$@"
"""
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ENTER, "sh")

# What a session of the site sets; the servers add where Kaggle is to be found.
KAGGLE = {
    "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
    "KAGGLE_CONTAINER_NAME": "kaggle_rehearsal",
    "KAGGLE_DATA_PROXY_PROJECT": "kaggle-161607",
    "KAGGLE_URL_BASE": "https://www.kaggle.com",
    "KAGGLE_WORKING_DIR": "/kaggle/working",
}
COLAB = {
    "COLAB_RELEASE_TAG": "release-colab-rehearsal",
    "COLAB_BACKEND_VERSION": "next",
    "COLAB_JUPYTER_IP": "127.0.0.1",
}
# What this machine or a test may have set, and the site does not.
FOREIGN = re.compile(r"(PYTHON|KAGGLE|COLAB|HF_|HUGGING|XLA_FLAGS|JUPYTER|IPYTHON).*")


@dataclass(frozen=True)
class Place:
    """Where a rehearsal runs. `folder` is on this machine; paths of the site lie below it."""

    site: str  # "kaggle" or "colab"
    folder: Path
    real: bool  # whether the site's own paths are there; else they are exchanged in the text
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def input(self) -> Path:
        """What the site calls /kaggle/input; on Colab the Drive."""
        below = "kaggle/input" if self.site == "kaggle" else "content/drive/MyDrive"
        return self.folder / "site" / below

    @property
    def working(self) -> Path:
        """Where the notebook runs, and what it may write."""
        return self.folder / "site" / ("kaggle/working" if self.site == "kaggle" else "content")

    def inside(self, path: Path) -> str:
        """The path by which the notebook knows a file below `folder/site`."""
        return str(path).replace(f"{self.folder}/site", "") if self.real else str(path)

    def text(self, source: str) -> str:
        """A cell as it is run there."""
        if self.real:
            return source
        for path in ("/kaggle/input", "/kaggle/working", "/content/drive"):
            source = source.replace(f'"{path}', f'"{self.folder}/site{path}')
        return source

    def run(self, command: list[str], **options) -> subprocess.CompletedProcess:
        """Run a command there, in the notebook's folder."""
        environment = {k: v for k, v in os.environ.items() if not FOREIGN.fullmatch(k)}
        environment |= self.environment | {"HOME": str(self.folder / "home")}
        if self.real:
            (self.folder / "root").mkdir(exist_ok=True)
            fixed = "kaggle/input" if self.site == "kaggle" else ""
            where = [str(self.folder / "root"), str(self.folder / "site"), fixed]
            command = [*UNSHARE, *where, self.inside(self.working), *command]
        return subprocess.run(command, env=environment, cwd=self.working, **options)


@functools.cache
def has_namespaces() -> bool:
    """Whether this machine lets us have mounts of our own."""
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    command += ["sh", "-c", "mount -t tmpfs probe /mnt && mount --rbind /proc /mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


def make(site: str, folder: Path, *, real: bool | None = None) -> Place:
    """The folders of a site below `folder`, with the package as its user brings it.

    On Kaggle that is the dataset, which Kaggle unpacks; on Colab it is the zip on Drive.
    """
    real = has_namespaces() if real is None else real
    environment = dict(KAGGLE if site == "kaggle" else COLAB)
    if site == "kaggle" and not real:
        environment["KAGGLE_CACHE_MOUNT_FOLDER"] = str(folder / "site/kaggle/input")
    place = Place(site, folder, real, environment)
    for path in (place.input, place.working, folder / "home"):
        path.mkdir(parents=True, exist_ok=True)
    bring_package(place)
    return place


def bring_package(place: Place) -> None:
    """Put the package there, in the place of what an earlier rehearsal has left."""
    packed = pack(place.folder / "aha.zip")
    if place.site == "colab":
        shutil.copy(packed, place.input)
        return
    set_writable(place.input, True)
    shutil.rmtree(place.input / "aha", ignore_errors=True)
    shutil.unpack_archive(packed, place.input / "aha")
    if not place.real:
        set_writable(place.input, False)


def set_writable(folder: Path, writable: bool) -> None:
    """Whether an ordinary user can write below a folder; root always can."""
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)


def pack(file: Path) -> Path:
    """What the pages' command puts into aha.zip, from the files as they are, committed or not."""
    pages = [path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    command = re.search(r"^git archive .* HEAD (.*)", "\n".join(pages), re.M)
    attributes = (ROOT / ".gitattributes").read_text().splitlines()
    left_out = {line.split()[0] for line in attributes if line.endswith("export-ignore")}
    left_out = {path for pattern in left_out for path in ROOT.glob(pattern)}
    packed = file.with_suffix("") / "aha"
    for name in command[1].split():
        for path in [ROOT / name, *(ROOT / name).rglob("*")]:
            if path.is_file() and path not in left_out and "__pycache__" not in path.parts:
                target = packed / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    shutil.make_archive(str(file.with_suffix("")), "zip", packed.parent)
    shutil.rmtree(packed.parent)
    return file
