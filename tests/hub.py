"""A stand-in for the Hugging Face Hub on this machine: model and data set repositories served from folders.

It answers what `huggingface_hub` really asks for when a snapshot is downloaded and `hf://` files are listed and read
in parts: repository info, the file tree, paths-info, and resolve with ranges. Everything else is 404.

`huggingface_hub` reads HF_ENDPOINT when it is imported, so a test runs its client in a process of its own, with
`Hub.environment`.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?")
_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Repository:
    """One repository with a single commit, which is a hash of its content."""

    name: str
    folder: Path
    commit: str
    blobs: Mapping[str, str]

    @staticmethod
    def read(name: str, folder: Path) -> "Repository":
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        blobs = {path.relative_to(folder).as_posix(): _blob(path) for path in paths}
        return Repository(name, folder, sha1(json.dumps([name, blobs]).encode()).hexdigest(), blobs)

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in self.blobs]
        return {"id": self.name, "sha": self.commit, "private": False, "gated": False, "siblings": siblings}

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
        """Entries below a folder ('' is the root), None when there is no such folder."""
        start = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path in (path for path in self.blobs if path.startswith(start)):
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = start + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "path": name, "oid": sha1(name.encode()).hexdigest(), "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = self.entry(path)
        return list(entries.values()) or None

    def entry(self, path: str) -> dict[str, Any]:
        size = (self.folder / path).stat().st_size
        return {"type": "file", "path": path, "oid": self.blobs[path], "size": size}


@dataclass
class Hub:
    """The running stand-in. requests: `METHOD path` of all that was asked, in order."""

    endpoint: str
    repositories: Mapping[tuple[str, str], Repository]
    requests: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this for the Hub, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commit(self, kind: str, name: str) -> str:
        return self.repositories[kind, name].commit

    def fetched(self, kind: str, name: str) -> set[str]:
        """Paths of a repository whose content was asked for."""
        prefix = f"GET {'datasets/' if kind == 'datasets' else ''}{name}/resolve/"
        return {line[len(prefix) :].partition("/")[2] for line in self.requests if line.startswith(prefix)}


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serve `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>`, as they are now, until the end."""
    found = [(kind, folder) for kind in ("models", "datasets") for folder in sorted(root.glob(f"{kind}/*/*"))]
    names = [(kind, folder.relative_to(root / kind).as_posix(), folder) for kind, folder in found]
    repositories = {(kind, name): Repository.read(name, folder) for kind, name, folder in names}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in Hub.requests."""

    def _answer(self, form: Mapping[str, list[str]] | None = None) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub.requests.append(f"{self.command} {path.removeprefix('/')}")
        if match := _API.fullmatch(path):
            kind, name, what, revision, inside = match.groups()
        elif match := _RESOLVE.fullmatch(path):
            kind, (name, revision, inside), what = match[1] or "models", match.groups()[1:], "resolve"
        else:
            return self._missing("no such endpoint")
        repository = hub.repositories.get((kind, name))
        if repository is None:
            return self._missing("RepoNotFound")
        if revision not in (None, "main", repository.commit):
            return self._missing("RevisionNotFound")
        if what == "resolve":
            return self._resolve(repository, inside) if inside in repository.blobs else self._missing("EntryNotFound")
        if what == "paths-info":
            wanted = (form or {}).get("paths", [])
            return self._json([repository.entry(path) for path in wanted if path in repository.blobs])
        if what == "tree":
            tree = repository.tree(inside or "", parse_qs(url.query).get("recursive", [""])[0].lower() == "true")
            return self._missing("EntryNotFound") if tree is None else self._json(tree)
        return self._json(repository.info())

    def _resolve(self, repository: Repository, path: str) -> None:
        content = (repository.folder / path).read_bytes()
        headers = {"ETag": f'"{repository.blobs[path]}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content, headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _blob(path: Path) -> str:
    """Git's name of a file's content."""
    content = path.read_bytes()
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()
