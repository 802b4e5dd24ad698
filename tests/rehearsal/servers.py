"""Kaggle and Hugging Face on 127.0.0.1: as much of them as their own clients ask for a model.

Kaggle is asked in two ways. In its notebooks `kagglehub` has a model attached (a POST with the
session's tokens, and the files then lie below /kaggle/input); elsewhere it uses the API with the
user's token (version, list of files, a redirect for each file or for one archive).
Hugging Face is asked for the commit, the tree and each file.
Knows nothing of what is in the files.
"""

import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import urllib.parse
from pathlib import Path

TOKEN = "hf_or_kaggle_token_of_a_rehearsal"  # of both
SESSION_TOKENS = {"X-Kaggle-Authorization": "Bearer a-jwt", "X-KAGGLE-PROXY-DATA": "a-data-token"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOST_FILES = 25  # of a page of Kaggle's list; kagglehub takes the archive where there are more


class Servers:
    """Both sites, on one port. `with Servers(...) as site:` serves from a thread.

    `kaggle` and `hugging_face` are folders by handle ("google/gemma-3/flax/gemma-3-270m") and by
    name ("google/gemma-3-270m"). `gated` are those whose licence the token's account has not
    accepted. `mount` is the folder that a notebook on Kaggle sees as /kaggle/input.
    """

    def __init__(
        self,
        kaggle: dict[str, Path] | None = None,
        hugging_face: dict[str, Path] | None = None,
        gated: tuple[str, ...] = (),
        mount: Path | None = None,
    ):
        self.kaggle = kaggle or {}
        self.hugging_face = hugging_face or {}
        self.gated = gated
        self.mount = mount
        self.asked: list[str] = []  # "GET /path" of every request
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.httpd.site = self
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.httpd.shutdown()
        self.httpd.server_close()

    def kaggle_api(self) -> dict[str, str]:
        """Environment in which kagglehub uses this site's API.

        Its address can be one of a few only; at "localhost" requests go through a proxy if the
        environment names one, and that is this site.
        """
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": self.url,
            "no_proxy": "127.0.0.1",
            "KAGGLE_API_TOKEN": TOKEN,
        }

    def kaggle_session(self) -> dict[str, str]:
        """Environment in which kagglehub has models attached, as in a notebook on Kaggle."""
        return {
            "KAGGLE_DATA_PROXY_URL": self.url,
            "KAGGLE_USER_SECRETS_TOKEN": "a-jwt",
            "KAGGLE_DATA_PROXY_TOKEN": "a-data-token",
        }

    def hugging_face_api(self) -> dict[str, str]:
        """Environment in which huggingface_hub asks this site."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: a test's output is not for every request."""

    @property
    def site(self) -> Servers:
        return self.server.site

    def do_HEAD(self):
        self._hugging_face(self._path())

    def do_GET(self):
        path = self._path()
        if path.startswith("/storage/"):
            self._kaggle_storage(path.removeprefix("/storage/"))
        else:
            self._hugging_face(path)

    def do_POST(self):
        path = self._path()
        length = int(self.headers.get("Content-Length", 0))
        question = json.loads(self.rfile.read(length) or b"{}")
        if path.startswith("/kaggle-jwt-handler/"):
            self._attach(question.get("modelRef", {}))
        elif path.startswith("/api/v1/models.ModelApiService/"):
            self._kaggle_api(path.rpartition("/")[2], question)
        else:
            self._send(404)

    def _path(self) -> str:
        """Of the request, also where it came to this site as to a proxy."""
        url = urllib.parse.urlsplit(self.path)
        self.site.asked.append(f"{self.command} {url.path}")
        return urllib.parse.unquote(url.path)

    def _send(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, content, status: int = 200, **headers: str):
        self._send(status, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # Kaggle

    def _attach(self, model: dict):
        """Put the model where the notebook finds it, and tell the folder below /kaggle/input."""
        for name, value in SESSION_TOKENS.items():
            if self.headers.get(name) != value:
                return self._send(401)
        parts = [model[k] for k in ("OwnerSlug", "ModelSlug", "Framework", "InstanceSlug")]
        handle = "/".join(part.lower() for part in parts)
        if handle not in self.site.kaggle:
            return self._send_json({"wasSuccessful": False})
        slug = f"models/{handle}/1"
        place = self.site.mount / slug
        if not place.exists():
            shutil.copytree(self.site.kaggle[handle], place)
        result = {"mountSlug": slug, "versionNumber": 1}
        return self._send_json({"wasSuccessful": True, "result": result})

    def _kaggle_api(self, request: str, question: dict):
        framework = question["framework"].rpartition("_")[2].lower()
        parts = (question["ownerSlug"], question["modelSlug"], framework, question["instanceSlug"])
        handle = "/".join(parts)
        folder = self.site.kaggle.get(handle)
        if not self._has_token():
            return self._send_json({"code": 401, "message": "Unauthenticated"}, 401)
        if folder is None:
            return self._send_json({"code": 404, "message": "Not found"}, 404)
        if handle in self.site.gated:
            return self._send_json({"code": 403, "message": "Permission denied"}, 403)
        files = _files(folder)
        if request == "GetModelInstance":
            return self._send_json({"slug": parts[-1], "versionNumber": 1})
        if request == "ListModelInstanceVersionFiles":
            more = {"nextPageToken": "2"} if len(files) > MOST_FILES else {}
            names = [{"name": name} for name in files[:MOST_FILES]]
            return self._send_json({"files": names, **more})
        if request == "DownloadModelInstanceVersion":
            target = f"{self.site.url}/storage/{handle}"
            if question.get("path"):
                target += f"?file={urllib.parse.quote(question['path'])}"
            return self._send(302, Location=target)
        return self._send(404)

    def _kaggle_storage(self, handle: str):
        folder = self.site.kaggle[handle]
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "file" in query:
            return self._send(200, (folder / query["file"][0]).read_bytes())
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name in _files(folder):
                archive.add(folder / name, name)
        return self._send(200, packed.getvalue())

    # Hugging Face

    def _hugging_face(self, path: str):
        is_api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repository = f"{owner}/{name}"
        folder = self.site.hugging_face.get(repository)
        if folder is None:  # one that is private looks the same to a stranger
            missing = {"X_Error_Code": "RepoNotFound"} if self._has_token() else {}
            return self._send(404 if missing else 401, **missing)
        if is_api and rest[:1] in ([], ["revision"]):
            known = (rest[1:] or ["main"])[0] in ("main", COMMIT)
            if not known:
                return self._send(404, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": file} for file in _files(folder)]
            return self._send_json({"id": repository, "sha": COMMIT, "siblings": siblings})
        if is_api and rest[:1] == ["tree"]:
            return self._send_json([_entry(folder, file) for file in _files(folder)])
        if rest[:1] == ["resolve"]:
            if not self._has_token() or repository in self.site.gated:
                status = 403 if self._has_token() else 401
                return self._send(status, X_Error_Code="GatedRepo")
            return self._hugging_face_file(folder / "/".join(rest[2:]))
        return self._send(404)

    def _hugging_face_file(self, file: Path):
        if not file.exists():
            return self._send(404, X_Error_Code="EntryNotFound")
        content = file.read_bytes()
        return self._send(
            200,
            content,
            Content_Length=str(len(content)),
            ETag=f'"{_digest(file)}"',
            X_Repo_Commit=COMMIT,
            Accept_Ranges="bytes",
        )


def _files(folder: Path) -> list[str]:
    """The files below a folder, as paths within it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _entry(folder: Path, name: str) -> dict:
    file = folder / name
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
