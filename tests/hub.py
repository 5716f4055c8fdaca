"""A Hub on the loopback interface: folders served as repositories, the way huggingface_hub asks for them.

With a room for new repositories it takes uploads as well, from whoever shows its token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest


NAME = r"(?P<repo>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
PREUPLOAD = re.compile(rf"/api/(?P<kind>models)/{NAME}/preupload/(?P<revision>[^/]+)")
COMMIT = re.compile(rf"/api/(?P<kind>models)/{NAME}/commit/(?P<revision>[^/]+)")
BRANCH = re.compile(rf"/api/models/{NAME}/branch/(?P<branch>[^/]+)")
BATCH = re.compile(rf"/{NAME}\.git/info/lfs/objects/batch")
TOKEN = "hf_loopback"
LARGE = (".safetensors", ".png")  # the files that go through LFS; the others come in the commit


@dataclass(frozen=True)
class Repository:
    """A folder as a repository with one commit on one branch."""

    name: str
    folder: Path
    private: bool = False

    def paths(self) -> list[str]:
        """Name the files."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def read(self, path: str) -> bytes:
        """Return what a file holds."""
        return Path(self.folder, path).read_bytes()

    def commit(self) -> str:
        """Return the hash of the commit, which depends on every file: on when it was written, to read none."""
        stats = [(path, Path(self.folder, path).stat()) for path in self.paths()]
        return hashlib.sha1(repr([(path, one.st_size, one.st_mtime_ns) for path, one in stats]).encode()).hexdigest()

    def info(self) -> dict[str, object]:
        """Describe the repository."""
        siblings = [{"rfilename": path} for path in self.paths()]
        return {"id": self.name, "sha": self.commit(), "private": self.private, "tags": [], "siblings": siblings}

    def known(self, path: str) -> str | None:
        """Return the hash by which an upload that changes nothing is known, or None for a new file."""
        if path not in self.paths():
            return None
        return hashlib.sha256(self.read(path)).hexdigest() if path.endswith(LARGE) else etag(self.read(path))

    def tree(self, folder: str | None) -> list[dict[str, object]]:
        """List the files of all or of one folder with their sizes and hashes."""
        files = {path: self.read(path) for path in self.paths() if folder is None or path.startswith(f"{folder}/")}
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": etag(files[path])} for path in files]


def etag(content: bytes) -> str:
    """Return the hash under which git keeps the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def redirect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let huggingface_hub fetch files from this address; before 1.0 two of its modules had the Hub's."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@dataclass
class Hub:
    """What the server serves, where, and what it was asked.

    Attributes:
        repositories: By name; other branches than `main` are `NAME@BRANCH`.
        room: The folder in which new repositories are made, or None where nothing can be uploaded.
        stored: What was uploaded to LFS, by SHA-256.
        refusing: Beginning of a request, as in "POST /api/repos/create" -> the status that it is answered with.
    """

    repositories: dict[str, Repository]
    room: Path | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    refusing: dict[str, int] = field(default_factory=dict)

    def create(self, name: str, private: bool = False) -> Repository:
        """Make an empty repository."""
        assert self.room is not None
        folder = self.room / name.replace("/", "--").replace("@", "--at--")
        folder.mkdir()
        return self.repositories.setdefault(name, Repository(name.partition("@")[0], folder, private))


class Refusal(Exception):
    """An error of the Hub, by the name that huggingface_hub turns into an exception, and what else it answers."""

    def __init__(self, code: str, status: int = 404, **answer: str):
        super().__init__(code)
        self.status, self.answer = status, answer


@contextmanager
def serve(folders: Mapping[str, Path], room: Path | None = None) -> Iterator[Hub]:
    """Serve folders under the names of repositories; those of data sets start with `datasets/`.

    With `room`, a folder, others can be made and uploaded to; a token is asked for that.
    """
    repositories = {name: Repository(name.removeprefix("datasets/"), Path(path)) for name, path in folders.items()}
    hub = Hub(repositories, room)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        """Answer with headers and body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:  # noqa: N802
        """Answer with headers."""
        self._answer(with_body=False)

    def do_POST(self) -> None:  # noqa: N802
        """Take what is uploaded."""
        self._answer(with_body=True)

    def do_PUT(self) -> None:  # noqa: N802
        """Take a large file."""
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self, with_body: bool) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        request = f"{self.command} {path}"
        self.hub.asked.append(request)
        try:
            self._refuse(request)
            content, headers = self._take(path, body) if body is not None else self._find(path)
            self.send_response(200)
        except Refusal as refusal:
            content, headers = self._json(refusal.answer)
            headers |= {"X-Error-Code": str(refusal), "X-Error-Message": f"{refusal}: {path}"}
            self.send_response(refusal.status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _body(self) -> bytes | None:
        """Read what came along: whole, or in chunks."""
        if self.command not in ("POST", "PUT"):
            return None
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _refuse(self, request: str) -> None:
        for start, status in self.hub.refusing.items():
            if request.startswith(start):
                # Some servers quote what they were sent.
                raise Refusal(f"Refused {self.headers.get('Authorization')}", status)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, path: str) -> tuple[bytes, dict[str, str]]:
        if match := RESOLVE.fullmatch(path):
            return self._file(self._repository(match), match["path"])
        if match := TREE.fullmatch(path):
            return self._tree(self._repository(match), match["folder"])
        if match := INFO.fullmatch(path):
            return self._json(self._repository(match).info())
        return self._unknown(path)

    def _take(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if self.hub.room is None:
            return self._unknown(path)
        if path == "/api/validate-yaml":
            return self._json({})
        if path.startswith("/lfs/"):  # a store of its own, whose addresses are secrets and need no token
            return self._store(path.removeprefix("/lfs/"), body)
        if not self._allowed():
            raise Refusal("Unauthorized", 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := BRANCH.fullmatch(path):
            return self._branch(match["repo"], match["branch"])
        if match := PREUPLOAD.fullmatch(path):
            return self._preupload(self._repository(match), json.loads(body))
        if BATCH.fullmatch(path):
            return self._json({"transfer": "basic", "objects": list(map(self._action, json.loads(body)["objects"]))})
        if match := COMMIT.fullmatch(path):
            return self._commit(self._repository(match), [json.loads(line) for line in body.splitlines()])
        return self._unknown(path)

    def _unknown(self, path: str) -> tuple[bytes, dict[str, str]]:
        self.hub.unknown.append(f"{self.command} {path}")
        raise Refusal("NotFound")

    def _create(self, wanted: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            raise Refusal("Conflict", 409, url=f"{self.hub.url}/{name}")
        self.hub.create(name, wanted.get("visibility") == "private")
        return self._json({"url": f"{self.hub.url}/{name}"})

    def _branch(self, name: str, branch: str) -> tuple[bytes, dict[str, str]]:
        if branch == "main" or f"{name}@{branch}" in self.hub.repositories:
            raise Refusal("Conflict", 409)
        made = self.hub.create(f"{name}@{branch}")
        shutil.copytree(self.hub.repositories[name].folder, made.folder, dirs_exist_ok=True)
        return self._json({})

    def _preupload(self, repository: Repository, wanted: Mapping[str, list]) -> tuple[bytes, dict[str, str]]:
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in wanted["files"]}
        files = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": repository.known(path)}
            for path, mode in modes.items()
        ]
        return self._json({"files": files})

    def _action(self, wanted: Mapping[str, object]) -> dict[str, object]:
        """Say where a large file goes, unless it is there."""
        where = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
        return {**wanted, **({} if wanted["oid"] in self.hub.stored else {"actions": where})}

    def _store(self, oid: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal("BadRequest", 400)
        self.hub.stored[oid] = body
        return b"", {}

    def _commit(self, repository: Repository, lines: list) -> tuple[bytes, dict[str, str]]:
        for line in lines:
            value = line["value"]
            if line["key"] != "header":
                path = Path(repository.folder, value["path"])
                path.parent.mkdir(parents=True, exist_ok=True)
                large = line["key"] == "lfsFile"
                path.write_bytes(self.hub.stored[value["oid"]] if large else base64.b64decode(value["content"]))
        commit = repository.commit()
        return self._json({"commitUrl": f"{self.hub.url}/{repository.name}/commit/{commit}", "commitOid": commit})

    def _repository(self, match: re.Match[str]) -> Repository:
        prefix = "datasets/" if (match["kind"] or "").startswith("datasets") else ""
        name, revision = prefix + match["repo"], match["revision"]
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._allowed()):
            raise Refusal("RepoNotFound")
        branches = {
            key.partition("@")[2]: one for key, one in self.hub.repositories.items() if key.startswith(f"{name}@")
        }
        known = {"main": repository, **branches}
        found = known.get(revision or "main") or {one.commit(): one for one in known.values()}.get(revision)
        if found is None:
            raise Refusal("RevisionNotFound")
        return found

    def _tree(self, repository: Repository, folder: str | None) -> tuple[bytes, dict[str, str]]:
        files = repository.tree(folder)
        if folder is not None and not files:
            raise Refusal("EntryNotFound")
        return self._json(files)

    def _file(self, repository: Repository, path: str) -> tuple[bytes, dict[str, str]]:
        headers = {"X-Repo-Commit": repository.commit()}
        if path not in repository.paths():
            raise Refusal("EntryNotFound")
        content = repository.read(path)
        return content, {**headers, "ETag": f'"{etag(content)}"'}

    def _json(self, value: object) -> tuple[bytes, dict[str, str]]:
        return json.dumps(value).encode(), {"Content-Type": "application/json"}
