"""Remote text from a server on this machine that cuts connections."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import hub
from onward.corpus.documents import Document
from onward.corpus.reading import remote
from onward.corpus.reading.chunks import read_chunks
from onward.corpus.reading.sources import find_inputs, read_source
from onward.errors import UserError
from onward.recipe import Source

RECORDS = [{"id": f"r{n}", "text": f"record {n} " + str(n * 7919) * 40} for n in range(40_000)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@dataclass
class Server:
    """What is served and how badly. cuts: answers that still break off in the middle; None: all of them do."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: int | None = 0
    takes_ranges: bool = True
    says_size: bool = True
    gone: bool = False
    answers: int = 0

    def cuts_now(self) -> bool:
        if self.cuts is None:
            return True
        self.cuts -= 1
        return self.cuts >= 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        state = self.server.state  # type: ignore[attr-defined]
        content = state.files.get(self.path.removeprefix("/"))
        if content is None or state.gone:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content
        if asked and state.takes_ranges:
            part = content[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if state.takes_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        state.answers += 1
        if state.cuts_now():
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            self.connection.close()
        else:
            try:
                self.wfile.write(part)
            except OSError:  # the client had enough
                self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "RETRY_DELAYS_SECONDS", (0.0, 0.0, 0.0))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state = Server(f"http://127.0.0.1:{http.server_address[1]}")
    http.state = state  # type: ignore[attr-defined]
    http.handle_error = lambda *about: None  # type: ignore[method-assign]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def write_parquet(path: Path) -> None:
    """Write the records so that they are longer than what the client reads ahead."""
    texts = [str(record["text"]) for record in RECORDS]
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=5000, compression="none", use_dictionary=False)


def ids(url: str) -> list[str]:
    return [item.id for item in read_source(find_inputs(Source(path=url))) if isinstance(item, Document)]


@pytest.mark.parametrize("takes_ranges", [True, False])
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_cut_connections_are_taken_up_again(server: Server, name: str, takes_ranges: bool) -> None:
    server.files[name] = LINES if name == "x.jsonl" else gzip.compress(LINES, 1)
    server.cuts, server.takes_ranges = 3, takes_ranges
    assert ids(f"{server.address}/{name}") == [record["id"] for record in RECORDS]
    assert server.cuts is not None
    assert server.cuts < 0
    assert server.answers >= 4


def test_parquet_is_read_over_cut_connections(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path)
    server.files["x.parquet"] = path.read_bytes()
    server.cuts = 2
    url = f"{server.address}/x.parquet"
    assert ids(url) == [f"{url}:{n}" for n in range(1, 40_001)]
    assert server.answers > 2


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_a_connection_that_always_breaks_is_a_user_error_after_what_was_read(
    server: Server, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path)
    server.files = {"x.jsonl": LINES, "x.parquet": path.read_bytes()}
    inputs = find_inputs(Source(path=f"{server.address}/{name}"))
    chunks = read_chunks(inputs)
    first, position = next(chunks)
    server.cuts = None
    with pytest.raises(UserError) as error:
        list(chunks)
    assert error.value.what == "a remote file cannot be read"
    assert error.value.where == f"{server.address}/{name}"
    assert error.value.got is not None
    assert error.value.got.startswith("ClientPayloadError: ")
    assert error.value.todo == "check the network and run again: finished work is kept"
    server.cuts = 0
    following = next(read_chunks(inputs, position))
    assert following[0] != first
    assert following == list(read_chunks(inputs))[1]


def test_a_file_that_is_gone_while_it_is_read_is_a_user_error(server: Server) -> None:
    server.files["x.jsonl"] = LINES
    inputs = find_inputs(Source(path=f"{server.address}/x.jsonl"))
    server.gone = True
    with pytest.raises(UserError, match="a remote file cannot be read") as error:
        list(read_chunks(inputs))
    assert error.value.got is not None
    assert "the file is not there any more" in error.value.got


def test_no_server_and_no_file_are_told_apart(server: Server) -> None:
    with pytest.raises(UserError, match="there is no such remote file or folder"):
        find_inputs(Source(path=f"{server.address}/none.jsonl"))
    with pytest.raises(UserError, match="a remote file cannot be read"):
        find_inputs(Source(path="http://127.0.0.1:9/none.jsonl"))


LIST_AND_READ = """
import json, sys
from onward.corpus.reading.sources import find_inputs, read_source
from onward.recipe import Source

inputs = find_inputs(Source(path=sys.argv[1]))
texts = [item.text for item in read_source(inputs)]
files = [(file.path, file.address, file.version) for file in inputs.files]
print(json.dumps({"files": files, "facts": inputs.facts(), "texts": texts}))
"""


@pytest.mark.parametrize("path", ["hf://datasets/org/name", "hf://datasets/org/name@main/data/*.jsonl"])
def test_a_data_set_of_the_hub_is_read_at_one_commit(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "served/datasets/org/name"
    (folder / "data").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"data/{name}.jsonl").write_text(json.dumps({"text": f"text of {name}"}) + "\n")
    with hub.serving(tmp_path / "served") as server:
        environment = {**os.environ, **server.environment(tmp_path / "home")}
        child = [sys.executable, "-c", LIST_AND_READ, path]
        said = subprocess.run(child, env=environment, check=True, capture_output=True, text=True).stdout
        commit = server.commit("datasets", "org/name")
        answer = json.loads(said)
        assert answer["texts"] == ["text of a", "text of b"]
        blobs = server.repositories["datasets", "org/name"].blobs
        # What is shown, and what the artifact depends on, names the content; what is opened, the commit too.
        assert answer["files"] == [
            [f"hf://datasets/org/name/{name}", f"hf://datasets/org/name@{commit}/{name}", blobs[name]]
            for name in ("data/a.jsonl", "data/b.jsonl")
        ]
        assert commit not in json.dumps(answer["facts"])
        read = [request for request in server.requests if "/resolve/" in request]
        assert read
        assert all(f"/resolve/{commit}/" in request for request in read)
