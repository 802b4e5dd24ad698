"""Models from Kaggle and from Hugging Face, by their own clients, as folders of this machine.

What goes wrong is one sentence that says what to do, in none of the clients' own words: those may
hold a token. Knows nothing of what is in a checkpoint, but for which files one consists of.
"""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from aha_lib import devices

HUGGING_FACE = "hf:"  # how a source begins that is there
_NAMED = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_HANDLE = re.compile(r"[\w.-]+(/[\w.-]+){3,4}")
# Of a repository there. Others hold the same weights for other programs, and pictures.
NEEDED = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer.model"]


def folder_of(source: str) -> str | Path:
    """The local folder of a Kaggle handle, or of "hf:OWNER/NAME"; another source as it is.

    A folder that looks like a handle is one. Raises ValueError where a name after "hf:" is none,
    and what `from_kaggle` and `from_hugging_face` raise.
    """
    if source.startswith(HUGGING_FACE):
        match = _NAMED.fullmatch(source)
        if not match:
            raise ValueError(
                f"{source} names no model of Hugging Face: write hf:OWNER/NAME, and @REVISION "
                "after it if it is not the newest that you want."
            )
        return from_hugging_face(match[1], match[2])
    if _HANDLE.fullmatch(source) and not Path(source).exists():
        return from_kaggle(source)
    return source


def from_kaggle(handle: str) -> Path:
    """The local folder of a Kaggle model, downloaded with a progress bar unless it is there.

    Credentials are kagglehub's: a Kaggle session's own, the environment, `~/.kaggle`, or Colab's
    secret KAGGLE_API_TOKEN (without that one it finds no KAGGLE_USERNAME and KAGGLE_KEY there).
    Raises OSError with one sentence that says what to do.
    """
    import kagglehub

    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:
        has_token = bool(kagglehub.config.get_kaggle_credentials())
        advice = _kaggle_advice(error, handle, has_token)
    raise OSError(advice)  # outside of "except": a request's traceback may show the token


def from_hugging_face(name: str, revision: str | None = None) -> Path:
    """The local folder of a model of Hugging Face, "google/gemma-3-1b-pt": its `NEEDED` files.

    They are downloaded with a progress bar unless they are there. `revision` is a branch, a tag or
    a commit, the newest by default. The token is HF_TOKEN of the environment or of Kaggle's or
    Colab's secrets, or that of `hf auth login`. Raises OSError with one sentence that says what to
    do, also where `huggingface_hub` is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise OSError(
            "hf: needs the package huggingface_hub: pip install huggingface_hub, and load again."
        ) from None
    token = _token() or huggingface_hub.get_token()
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=NEEDED, token=token
        )
        found = any(Path(folder).glob("*.safetensors"))
        advice = f"{name} on Hugging Face has no *.safetensors: take one that transformers loads."
    except Exception as error:
        found = False
        advice = _hugging_face_advice(error, name, revision, bool(token))
    if not found:
        raise OSError(advice)  # outside of "except", as above
    return Path(folder)


def _token() -> str:
    """HF_TOKEN, without the line's end that is easily pasted with it; "" where there is none."""
    try:
        return devices.secret("HF_TOKEN").strip()
    except LookupError:
        return ""


def _kaggle_advice(error: Exception, handle: str, has_token: bool) -> str:
    """What to do about an error of kagglehub, in none of its own words: they may hold a token."""
    kind = type(error).__name__
    status = _status(error)
    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    if status == 403 and has_token:
        return f"Accept Gemma's licence at {page} with the account of your Kaggle token."
    if status in (401, 403) or kind in ("CredentialError", "UnauthenticatedError"):
        return (
            "Kaggle needs your token: create one on kaggle.com (Settings, API) and store it "
            "as the environment variable, or Colab secret, KAGGLE_API_TOKEN."
        )
    if status == 404:
        return f"Kaggle has no model {handle}: see {page} for the names."
    if "Connect" in kind or "Timeout" in kind:
        return "kaggle.com does not answer: switch the session's internet on, or give a folder."
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"The disk is full: make room for {handle}, or point KAGGLEHUB_CACHE elsewhere."
    return f"The download of {handle} broke off ({kind}): call again to go on with it."


def _hugging_face_advice(error: Exception, name: str, revision: str | None, has_token: bool) -> str:
    """What to do about an error of huggingface_hub, or of those that it came from."""
    chain = list(_causes(error))
    kinds = [type(cause).__name__ for cause in chain]
    page = f"https://huggingface.co/{name}"
    if "OfflineModeIsEnabled" in kinds:
        return f"HF_HUB_OFFLINE is set, and {name} is not whole on this machine: unset it."
    if "GatedRepoError" in kinds and has_token:
        return (
            f"Accept Gemma's licence at {page} with the account of your token, which also has to "
            "be allowed to read gated repositories."
        )
    if "RevisionNotFoundError" in kinds:
        return f"{name} on Hugging Face has no revision {revision}: see {page}/tree/main."
    if "RepositoryNotFoundError" in kinds and has_token:
        return f"Hugging Face has no model {name} that your token may see: check the name."
    if any(_status(cause) in (401, 403) for cause in chain):
        return (
            f"Hugging Face gives {name} to nobody without a valid token: create one on "
            "huggingface.co (Settings, Access Tokens), store it as the environment variable, or "
            "secret of Kaggle or Colab, HF_TOKEN, and check the model's name."
        )
    if any("Connect" in kind or "Timeout" in kind for kind in kinds):
        return "huggingface.co does not answer: switch the session's internet on, or give a folder."
    if errno.ENOSPC in [getattr(cause, "errno", None) for cause in chain]:
        return f"The disk is full: make room for {name}, or point HF_HUB_CACHE elsewhere."
    return f"The download of {name} broke off ({kinds[0]}): call again to go on with it."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    return getattr(getattr(error, "response", None), "status_code", None)
