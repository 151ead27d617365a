from pathlib import Path
from typing import IO, Any, ClassVar

import fsspec
import fsspec.registry
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from onward.corpus.documents import Document
from onward.corpus.reading import remote
from onward.corpus.reading.pieces import Position
from onward.corpus.reading.sources import find_inputs, read_source
from onward.corpus.reading.streams import Content
from onward.errors import UserError
from onward.recipe import Source
from onward.recipe.proxies import PROXIES


def texts(path: str) -> list[str]:
    return [item.text for item in read_source(find_inputs(Source(path=path))) if isinstance(item, Document)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/z.md", "a/c.txt", ".hidden/x.txt", "a/.x.txt", "picture.png"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "texts"


def test_a_folder_is_read_recursively_in_order_without_hidden_files(folder: Path) -> None:
    assert texts(str(folder)) == ["a/c.txt", "a/z.md", "b.txt"]
    assert find_inputs(Source(path=str(folder))).skipped == (f"{folder}/picture.png",)


def test_globs_match_files_and_folders_once(folder: Path) -> None:
    assert texts(f"{folder}/**/*.txt") == ["a/c.txt", "b.txt"]
    assert texts(f"{folder}/*") == ["a/c.txt", "a/z.md", "b.txt"]


def test_the_facts_of_a_file_change_with_it(folder: Path) -> None:
    before = find_inputs(Source(path=f"{folder}/b.txt")).facts()
    (folder / "b.txt").write_text("something else")
    assert find_inputs(Source(path=f"{folder}/b.txt")).facts() != before


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("nowhere", "there is no such file, folder or match"),
        ("*.jsonl", "there is no such file, folder or match"),
        ("empty", "this folder is empty"),
        ("pictures", "no file here can be read as text"),
        ("pictures/p.png", "no file here can be read as text"),
        ("builtin:python-doc", "there is no such builtin corpus"),
        ("memory://nowhere/x.txt", "there is no such remote file or folder"),
        ("nothing://x", "there is no such remote file or folder"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, path: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/p.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=what) as error:
        find_inputs(Source(path=path))
    assert path in str(error.value)


def test_text_files_cannot_be_grouped(folder: Path) -> None:
    with pytest.raises(UserError, match="text files have no fields to group by"):
        list(read_source(find_inputs(Source(path=str(folder), group="book"))))


class FlakyFile:
    """A remote file whose connection carries 100 kB at a time and breaks at every third read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell, self.seek, self.close = file.tell, file.seek, lambda: None
        self._file = file

    def read(self, size: int) -> bytes:
        FakeHub.reads += 1
        if FakeHub.reads % 3 == 0:
            raise ConnectionError("reset by peer")
        return self._file.read(min(size, 100_000))


class FakeHub(MemoryFileSystem):
    """Data sets on a hub: files in memory behind a bad network."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return "hf:/" + name

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        file = super()._open(path, mode, *args, **kwargs)
        return FlakyFile(file) if mode == "rb" else file


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(remote, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    monkeypatch.setitem(_registry, "hf", FakeHub)
    FakeHub.store.clear()
    FakeHub.reads = 0
    return FakeHub()


@pytest.mark.parametrize("name", list(PROXIES))
def test_a_proxy_stands_for_a_few_files_of_a_data_set(hub: FakeHub, name: str) -> None:
    """The names of files are those that the data sets have; others beside them are not read."""
    files = {
        "fineweb": "sample/10BT/000_00000.parquet",
        "fineweb-edu": "sample/10BT/013_00000.parquet",
        "dclm": "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst",
        "pile": "train/00.jsonl.zst",
        "smollm": "data00/train-00000-of-23698.jsonl.zst",
        "slimpajama": "train/chunk1/example_train_10.jsonl.zst",
    }
    repository = "/".join(PROXIES[name].path.removeprefix("hf://datasets/").split("/")[:2])
    for path in (files[name], "data/CC-MAIN-2013-20/000_00000.parquet", "train/chunk1/example_train_4711.jsonl.zst"):
        hub.pipe(f"/datasets/{repository}/{path}", b"x")
    inputs = find_inputs(Source(path=f"proxy:{name}"))
    assert [file.path for file in inputs.files] == [f"hf://datasets/{repository}/{files[name]}"]
    assert inputs.source.path == f"proxy:{name}"


@pytest.mark.parametrize("path", ["hf://datasets/org/name", "hf://datasets/org/name/**/*.txt"])
def test_a_remote_data_set_survives_a_bad_network(hub: FakeHub, path: str) -> None:
    content = "".join(f"line {n}\n" for n in range(60_000))
    hub.pipe("/datasets/org/name/data/one.txt", content.encode())
    hub.pipe("/datasets/org/name/data/two.txt", b"short")
    inputs = find_inputs(Source(path=path))
    assert [file.path for file in inputs.files] == [
        f"hf://datasets/org/name/data/{name}.txt" for name in ("one", "two")
    ]
    assert all("None" not in fact for fact in inputs.facts().values())
    assert texts(path) == [content, "short"]
    assert FakeHub.reads > 6


def test_remote_parquet_is_read_through_seeks(hub: FakeHub, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": [f"{n} " * 50 for n in range(3000)]}), tmp_path / "x.parquet")
    hub.pipe("/datasets/org/name/x.parquet", (tmp_path / "x.parquet").read_bytes())
    assert texts("hf://datasets/org/name/x.parquet") == [f"{n} " * 50 for n in range(3000)]


def test_a_dead_network_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)

    def dead() -> bytes:
        raise TimeoutError("no answer")

    with pytest.raises(UserError, match="a remote file cannot be read") as error:
        remote.patiently(dead, "hf://datasets/org/name")
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert error.value.got == "TimeoutError: no answer"


def test_a_connection_that_ends_early_is_not_the_end_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_DELAYS_SECONDS", ())
    fsspec.filesystem("memory").pipe("/short.txt", b"0123456789")
    whole = find_inputs(Source(path="memory://short.txt")).files[0]
    fsspec.filesystem("memory").pipe("/short.txt", b"01234")
    with pytest.raises(UserError, match="a remote file cannot be read") as error:
        list(Content(whole, Position()).blocks())
    assert error.value.got == "ConnectionError: the connection ended at byte 5 of 10"
