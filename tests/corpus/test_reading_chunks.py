import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from onward.corpus import documents
from onward.corpus.documents import Document, Unreadable
from onward.corpus.reading import builtin, cutting, pieces, streams
from onward.corpus.reading.chunks import Chunk, items_in, open_chunk, read_chunks, ready_chunks
from onward.corpus.reading.pieces import Position
from onward.corpus.reading.sources import Inputs, find_inputs, read_source
from onward.recipe import Source

WORDS = ["the", "heron", "stood", "in", "shallow", "water", "and", "waited", "for", "a", "fish"]


def line(n: int) -> bytes:
    text = " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(n % 40))
    return json.dumps({"id": f"d{n}", "text": text}).encode() + b"\n"


LINES = [line(n) for n in range(600)]
WHOLE = b"".join(LINES)


def gzip_members(folder: Path) -> Path:
    path = folder / "members.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b"".join(LINES[n : n + 7]), mtime=0) for n in range(0, 600, 7)))
    return path


def zstd_frames(folder: Path) -> Path:
    path = folder / "frames.jsonl.zst"
    compress = zstandard.ZstdCompressor(write_checksum=True).compress
    path.write_bytes(b"".join(compress(WHOLE[n : n + 999]) for n in range(0, len(WHOLE), 999)))
    return path


def one_frame(folder: Path) -> Path:
    path = folder / "one.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(WHOLE))
    return path


def plain(folder: Path) -> Path:
    path = folder / "plain.jsonl"
    path.write_bytes(WHOLE + b'{"text": "broken\n' * 50 + b'{"text": "' + b"long " * 2000 + b'"}\n' + WHOLE)
    return path


def utf16(folder: Path) -> Path:
    path = folder / "wide.jsonl.gz"
    path.write_bytes(gzip.compress(WHOLE.decode().encode("utf-16")))
    return path


def truncated(folder: Path) -> Path:
    path = folder / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(WHOLE)[:-500])
    return path


def json_list(folder: Path) -> Path:
    path = folder / "list.json"
    path.write_bytes(b"[" + b",".join(LINES) + b', 7, {"text": "\\ud800 lone", "share": NaN}]')
    return path


def long_text(folder: Path) -> Path:
    path = folder / "long.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress("".join(f"Zeile {n} ä\n" for n in range(4000)).encode()))
    return path


def table(folder: Path) -> Path:
    path = folder / "t.parquet"
    texts = [json.loads(one)["text"] for one in LINES]
    texts[333] = "very long " * 3000
    columns = {"id": [f"d{n}" for n in range(600)], "text": texts, "n": range(600)}
    parquet.write_table(pa.table(columns), path, row_group_size=130)
    return path


def folder_of_all(folder: Path) -> Path:
    inner = folder / "all"
    inner.mkdir()
    for make in (gzip_members, json_list, long_text, one_frame, plain, table, truncated, utf16):
        make(inner)
    for n in range(120):
        (inner / f"small{n:03d}.md").write_text(f"# Title {n}\n\n" + "text " * (n * 7 % 50))
    (inner / "small050.md").write_bytes(b"\xff\xff")
    return inner


def python_docs(folder: Path) -> str:
    return builtin.PYTHON_DOCS


def general_text(folder: Path) -> str:
    return builtin.GENERAL_TEXT


SOURCES = (
    plain,
    gzip_members,
    zstd_frames,
    one_frame,
    utf16,
    truncated,
    json_list,
    long_text,
    table,
    folder_of_all,
    python_docs,
    general_text,
)


@pytest.fixture(autouse=True)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(cutting, "WHOLE_TEXT_BYTES", 6000)
    monkeypatch.setattr(documents, "MAXIMUM_CHARACTERS", 3000)
    if "python_docs" in request.node.name:
        monkeypatch.setattr(builtin, "_modules", lambda library: [library / "textwrap.py", library / "abc.py"])


@pytest.mark.parametrize("make", SOURCES)
def test_going_on_yields_exactly_the_chunks_that_would_have_followed(
    tmp_path: Path, make: Callable[[Path], Path | str]
) -> None:
    inputs = find_inputs(Source(path=str(make(tmp_path))))
    expected = list(read_chunks(inputs))
    assert len(expected) > 3
    every = range(len(expected)) if len(expected) < 40 else range(0, len(expected), len(expected) // 40)
    for n in every:
        stored = json.loads(json.dumps(asdict(expected[n][1])))
        assert list(read_chunks(inputs, Position(**stored))) == expected[n + 1 :], (n, stored)
    items = [item for chunk, _ in expected for item in open_chunk(chunk, inputs.fields)]
    assert items == list(read_source(inputs))
    assert len(items) > 6


@pytest.mark.parametrize("make", [plain, gzip_members, zstd_frames, one_frame, utf16, table])
def test_chunks_hold_every_record_once_in_order(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    items = list(read_source(find_inputs(Source(path=str(make(tmp_path))))))
    ids = [item.id.partition("#")[0] for item in items if isinstance(item, Document)]
    given = [f"d{n}" for n in range(600) if n % 40]
    assert list(dict.fromkeys(ids))[: len(given)] == given


@pytest.mark.parametrize("block_bytes", [100, 3999, 1 << 20])
def test_chunks_do_not_depend_on_the_size_of_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    inputs = find_inputs(Source(path=str(plain(tmp_path))))
    expected = list(read_chunks(inputs))
    monkeypatch.setattr(streams, "BLOCK_BYTES", block_bytes)
    assert list(read_chunks(inputs)) == expected


def test_chunks_are_small_cross_processes_and_know_their_size(tmp_path: Path) -> None:
    for chunk, _ in read_chunks(find_inputs(Source(path=str(folder_of_all(tmp_path))))):
        assert pickle.loads(pickle.dumps(chunk)) == chunk
        assert chunk.size_bytes <= 3 * 4000 or max(map(pieces.size_of, chunk.pieces)) > 6000  # a long record
        assert hash(chunk) == hash(pickle.loads(pickle.dumps(chunk)))


def test_small_files_share_a_chunk(tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n:02d}.txt").write_text(f"small text {n} " * 10)
    chunks = [chunk for chunk, _ in read_chunks(find_inputs(Source(path=str(tmp_path))))]
    assert len(chunks) < 10
    assert all(len(chunk.pieces) > 5 for chunk in chunks[:-1])


def test_pages_cost_more_than_their_size_and_share_with_fewer(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n:02d}.html").write_text("<p>" + "x" * 400)
    chunks = [chunk for chunk, _ in read_chunks(find_inputs(Source(path=str(tmp_path))))]
    assert {len(chunk.pieces) for chunk in chunks} == {1}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    original = streams.open_raw

    def open_raw(file: streams.InputFile) -> IO[bytes]:
        opened.append(Path(file.path).name)
        return original(file)

    monkeypatch.setattr(streams, "open_raw", open_raw)
    return opened


def test_finished_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(WHOLE)
    inputs = find_inputs(Source(path=str(tmp_path)))
    positions = [at for _, at in read_chunks(inputs)]
    position = next(at for at in positions if at.file == 2)
    opened = watched(monkeypatch)
    list(read_chunks(inputs, position))
    assert opened == ["c.jsonl"]
    assert list(read_chunks(inputs, positions[-1])) == []
    assert opened == ["c.jsonl"]


@pytest.mark.parametrize("make", [plain, gzip_members, zstd_frames])
def test_finished_content_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    inputs = find_inputs(Source(path=str(make(tmp_path))))
    positions = [at for _, at in read_chunks(inputs)]
    begun: list[int] = []
    original = streams.Content._stored

    def stored(self: streams.Content) -> Iterator[bytes]:
        begun.append(self._start.offset)
        return original(self)

    monkeypatch.setattr(streams.Content, "_stored", stored)
    position = positions[len(positions) // 2]
    list(read_chunks(inputs, position))
    assert begun == [position.offset]
    assert position.offset > inputs.files[0].size_bytes / 4  # type: ignore[operator]
    assert position.skip < 1000


def test_parquet_goes_to_the_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = find_inputs(Source(path=str(table(tmp_path))))
    position = next(at for _, at in read_chunks(inputs) if at.record > 400)
    groups: list[Any] = []
    original = parquet.ParquetFile.iter_batches

    def iter_batches(self: Any, rows: int, row_groups: list[int], *rest: Any, **named: Any) -> Any:
        groups.extend(row_groups)
        return original(self, rows, row_groups, *rest, **named)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    list(read_chunks(inputs, position))
    assert groups == [3, 4]


def test_a_long_record_is_given_in_parts_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "big", "text": "word " * 5000}))
    ((chunk, _),) = read_chunks(find_inputs(Source(path=str(path))))
    items = items_in(chunk, find_inputs(Source(path=str(path))).fields)
    first = next(items)
    assert isinstance(first, Document)
    assert (first.id, len(first.text)) == ("big#1", 2999)
    assert len(list(items)) == 8


def test_ready_documents_make_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Document(f"self-{n}", f"text {n} " * 50, "self-replay") for n in range(200)]
    chunks = list(ready_chunks(iter(made)))
    assert len(chunks) > 5
    fields = Inputs(Source(path="x"), ()).fields
    assert [item for chunk in chunks for item in open_chunk(chunk, fields)] == made
    assert all(isinstance(chunk, Chunk) and chunk.size_bytes < 4000 for chunk in chunks)


def test_the_documents_before_a_break_are_given_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(WHOLE)[:-200])
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "next"}\n')
    items = list(read_source(find_inputs(Source(path=str(tmp_path)))))
    broken = [item for item in items if isinstance(item, Unreadable) and item.reason != documents.EMPTY]
    assert [item.reason for item in broken] == ["unreadable: truncated file"]
    assert items[-2] == broken[0]
    assert isinstance(items[-1], Document)
    assert items[-1].text == "next"


def test_places_of_records_in_a_list_are_counted_on_as_well() -> None:
    assert list(Unreadable("f.json:[7]", "x", count=3).places()) == ["f.json:[7]", "f.json:[8]", "f.json:[9]"]
    assert list(Unreadable("f.jsonl:7", "x", count=2).places()) == ["f.jsonl:7", "f.jsonl:8"]
