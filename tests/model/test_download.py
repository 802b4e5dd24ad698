"""Models from Hugging Face and Kaggle: the sites' own clients against a server of ours."""

import errno
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from etils import epath
from servers import COMMIT, TOKEN, Servers

from aha_lib.model import files, weights

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "hf_gemma3"
WORDS = GOLDEN.parents[1] / "golden_tokenizer.model"
HANDLE = "google/gemma-3/flax/gemma3-1b"

# The clients read the environment when they are imported: each environment is a process, forked
# from one that has imported JAX already. Prints for each source its folder, or the error.
PROGRAM = """
import json, os, sys, traceback
from aha_lib.model import download

for number, (environment, sources) in enumerate(json.load(open(sys.argv[1]))):
    if os.fork():
        os.wait()
        continue
    os.environ.update(environment)
    found = []
    for source in sources:
        try:
            found.append({"folder": str(download.folder_of(source))})
        except Exception as error:
            whole = "".join(traceback.format_exception(error))
            kind = type(error).__name__
            found.append({"kind": kind, "says": str(error), "whole": whole})
    json.dump(found, open(f"{sys.argv[1]}.{number}", "w"))
    os._exit(0)
"""


def ask(place, *environments):
    """What each environment's client makes of its sources: `(environment, sources)` each."""
    request = place / "request.json"
    request.write_text(json.dumps(environments))
    names = ("HF_", "HUGGING", "KAGGLE", "http_proxy", "COLAB")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    clean |= {"HOME": str(place), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(request)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = []
    for number in range(len(environments)):
        answers += json.loads((place / f"request.json.{number}").read_text())
    return answers, done.stdout + done.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A model as Hugging Face has it, with files that are not needed."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((GOLDEN / name).read_bytes())
    (folder / "tokenizer.model").write_bytes(WORDS.read_bytes())
    for name in ("README.md", "model.gguf", "pytorch_model.bin", "original/consolidated.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    return folder


@pytest.fixture(scope="module")
def answers(repository, tmp_path_factory):
    """By (environment, source), and all that was printed."""
    place = tmp_path_factory.mktemp("home")
    quantised = tmp_path_factory.mktemp("quantised")
    (quantised / "model.gguf").write_text("no safetensors")
    models = {
        "google/gemma-3-1b-pt": repository,
        "google/gated": repository,
        "someone/gguf": quantised,
    }
    with Servers(hugging_face=models, gated=("google/gated",)) as site:
        online = site.hugging_face_api()
    closed = {"HF_ENDPOINT": site.url, "HF_TOKEN": TOKEN}  # nobody listens there any more
    here, gone = "hf:google/gemma-3-1b-pt", "hf:google/gemma-2-2b"
    with Servers(hugging_face=models, gated=("google/gated",)) as site:
        online = site.hugging_face_api()
        asked = {
            "token": (
                online | {"HF_TOKEN": f"{TOKEN}\n"},  # as it is pasted
                [
                    here,
                    f"{here}@{COMMIT}",
                    "hf:google/gated",
                    gone,
                    f"{here}@v9",
                    "hf:someone/gguf",
                ],
            ),
            "stranger": (
                online | {"HF_TOKEN": "", "HF_HUB_CACHE": str(place / "other")},
                [here, gone],
            ),
            "offline": (online | {"HF_HUB_OFFLINE": "1"}, [here, gone]),
            "unreachable": (closed, [here, gone]),
        }
        found, printed = ask(place, *asked.values())
        site_asked = list(site.asked)
    keys = [(name, source) for name, (_, sources) in asked.items() for source in sources]
    return dict(zip(keys, found, strict=True)), printed, site_asked


def test_only_what_is_needed_is_downloaded(answers):
    found, _, asked = answers
    folder = Path(found["token", "hf:google/gemma-3-1b-pt"]["folder"])
    names = sorted(path.name for path in folder.rglob("*"))
    assert names == ["config.json", "model.safetensors", "tokenizer.model"]
    fetched = [line for line in asked if line.startswith("GET /google/gemma-3-1b-pt/resolve")]
    assert len(fetched) == 3, "once each, by all environments"
    gemma = weights.find_gemma(files.open_checkpoint(epath.Path(folder)))
    assert weights.recognise(gemma, [folder]).generation == 3


@pytest.mark.parametrize(
    "environment, source",
    [
        ("token", f"hf:google/gemma-3-1b-pt@{COMMIT}"),
        ("offline", "hf:google/gemma-3-1b-pt"),
        ("unreachable", "hf:google/gemma-3-1b-pt"),
    ],
)
def test_what_is_here_is_taken(answers, environment, source):
    found = answers[0]
    assert found[environment, source] == found["token", "hf:google/gemma-3-1b-pt"]


@pytest.mark.parametrize(
    "environment, source, message",
    [
        ("token", "hf:google/gated", "Accept Gemma's licence at https://huggingface.co/google/g"),
        ("token", "hf:google/gemma-2-2b", "no model google/gemma-2-2b that your token may see"),
        ("token", "hf:google/gemma-3-1b-pt@v9", "google/gemma-3-1b-pt .* has no revision v9"),
        ("token", "hf:someone/gguf", r"someone/gguf .* has no \*\.safetensors"),
        ("stranger", "hf:google/gemma-3-1b-pt", "nobody without a valid token: create one"),
        ("stranger", "hf:google/gemma-2-2b", "nobody without a valid token: create one"),
        ("offline", "hf:google/gemma-2-2b", "HF_HUB_OFFLINE is set"),
        ("unreachable", "hf:google/gemma-2-2b", "huggingface.co does not answer"),
    ],
)
def test_what_does_not_come_is_one_sentence(answers, environment, source, message):
    went, printed, _ = answers[0][environment, source], *answers[1:]
    with pytest.raises(OSError, match=message):
        raise OSError(went.get("says"))
    assert went["kind"] == "OSError"
    assert went["says"].count(". ") == 0
    assert TOKEN not in went["whole"] + printed


class LocalEntryNotFoundError(FileNotFoundError):
    """As huggingface_hub's."""


class ReadTimeout(Exception):
    """As httpx's and requests'."""


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, TOKEN), "The disk is full: make room for google/gemma-3-1b-pt"),
        (chained(LocalEntryNotFoundError(TOKEN), ReadTimeout(TOKEN)), "does not answer"),
        (ValueError(TOKEN), r"broke off \(ValueError\): call again"),
    ],
)
def test_other_ends_of_a_download(error, message, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(OSError, match=message) as caught:
        weights.load("hf:google/gemma-3-1b-pt")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).count(". ") == 0


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match="pip install huggingface_hub"):
        weights.load("hf:google/gemma-3-1b-pt")


@pytest.mark.parametrize("source", ["hf:", "hf:gemma-3-1b-pt", "hf:google/gemma 3", "hf:a/b@"])
def test_names_that_are_none(source):
    with pytest.raises(ValueError, match="names no model of Hugging Face: write hf:OWNER/NAME"):
        weights.load(source)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """More files than Kaggle lists on a page, so that the client takes an archive."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(30):
        (folder / f"part{number}").mkdir()
        (folder / f"part{number}/file").write_text(str(number))
    return folder


@pytest.mark.slow
def test_kaggles_client(repository, archive, tmp_path):
    """By its API, file by file and as an archive, and attached as in Kaggle's own notebooks."""
    gated = "google/gemma-3/flax/gated"
    models = {HANDLE: repository, "google/gemma/flax/2b": archive, gated: repository}
    with Servers(kaggle=models, gated=(gated,), mount=tmp_path / "input") as site:
        attached = site.kaggle_session() | {
            "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
            "KAGGLE_CACHE_MOUNT_FOLDER": str(tmp_path / "input"),
        }
        stranger = {k: v for k, v in site.kaggle_api().items() if k != "KAGGLE_API_TOKEN"}
        found, printed = ask(
            tmp_path,
            (site.kaggle_api(), [HANDLE, "google/gemma/flax/2b", gated, "google/a/flax/b"]),
            (stranger | {"KAGGLEHUB_CACHE": str(tmp_path / "other")}, [HANDLE]),
            (attached, [HANDLE]),
        )
    by_file, packed, licence, missing, no_token, mounted = found
    expected = {path.name for path in repository.rglob("*")}
    for one in (by_file, mounted):
        assert {path.name for path in Path(one["folder"]).rglob("*")} == expected
    assert Path(packed["folder"], "part7/file").read_text() == "7"
    assert Path(mounted["folder"]) == tmp_path / "input/models" / HANDLE / "1"
    assert licence["says"].startswith("Accept Gemma's licence at https://www.kaggle.com/models")
    assert missing["says"].startswith("Kaggle has no model google/a/flax/b")
    assert no_token["says"].startswith("Kaggle needs your token")
    assert TOKEN not in printed + json.dumps(found)
