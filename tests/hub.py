"""A Hub on the loopback interface: folders served as repositories, the way huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


NAME = r"(?P<repo>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/tree/(?P<revision>[^/]+)")
RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Repository:
    """A folder as a repository with one commit on its branch `main`."""

    name: str
    folder: Path

    def paths(self) -> list[str]:
        """Name the files."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def read(self, path: str) -> bytes:
        """Return what a file holds."""
        return Path(self.folder, path).read_bytes()

    def commit(self) -> str:
        """Return the hash of the commit, which depends on every file."""
        digest = hashlib.sha1()
        for path in self.paths():
            digest.update(path.encode() + self.read(path))
        return digest.hexdigest()

    def info(self) -> dict[str, object]:
        """Describe the repository."""
        siblings = [{"rfilename": path} for path in self.paths()]
        return {"id": self.name, "sha": self.commit(), "private": False, "tags": [], "siblings": siblings}

    def tree(self) -> list[dict[str, object]]:
        """List the files with their sizes and hashes."""
        files = {path: self.read(path) for path in self.paths()}
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": etag(files[path])} for path in files]


def etag(content: bytes) -> str:
    """Return the hash under which git keeps the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """What the server serves, where, and what it was asked."""

    repositories: dict[str, Repository]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Refusal(Exception):
    """An error of the Hub, by the name that huggingface_hub turns into an exception."""


@contextmanager
def serve(folders: Mapping[str, Path]) -> Iterator[Hub]:
    """Serve folders under the names of repositories; those of data sets start with `datasets/`."""
    hub = Hub({name: Repository(name.removeprefix("datasets/"), Path(folder)) for name, folder in folders.items()})
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

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            content, headers = self._find(path)
            self.send_response(200)
        except Refusal as refusal:
            content, headers = b"", {"X-Error-Code": str(refusal), "X-Error-Message": f"{refusal}: {path}"}
            self.send_response(404)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _find(self, path: str) -> tuple[bytes, dict[str, str]]:
        if match := RESOLVE.fullmatch(path):
            return self._file(self._repository(match), match["path"])
        if match := TREE.fullmatch(path):
            return self._json(self._repository(match).tree())
        if match := INFO.fullmatch(path):
            return self._json(self._repository(match).info())
        self.hub.unknown.append(f"{self.command} {path}")
        raise Refusal("NotFound")

    def _repository(self, match: re.Match[str]) -> Repository:
        prefix = "datasets/" if (match["kind"] or "").startswith("datasets") else ""
        repository = self.hub.repositories.get(prefix + match["repo"])
        if repository is None:
            raise Refusal("RepoNotFound")
        if match["revision"] not in (None, "main", repository.commit()):
            raise Refusal("RevisionNotFound")
        return repository

    def _file(self, repository: Repository, path: str) -> tuple[bytes, dict[str, str]]:
        headers = {"X-Repo-Commit": repository.commit()}
        if path not in repository.paths():
            raise Refusal("EntryNotFound")
        content = repository.read(path)
        return content, {**headers, "ETag": f'"{etag(content)}"'}

    def _json(self, value: object) -> tuple[bytes, dict[str, str]]:
        return json.dumps(value).encode(), {"Content-Type": "application/json"}
