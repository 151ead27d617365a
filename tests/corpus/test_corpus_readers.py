import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from onward.corpus import documents
from onward.corpus.reading import streams
from onward.corpus.documents import Document, Fields, Item, Unreadable
from onward.corpus.reading.readers import read_file
from onward.corpus.reading.streams import InputFile, lines

LINES = b'{"id":"a","text":"one"}\n\n{"text":"two","book":"B"}\n'


def read(path: Path, text: str = "text", group: str | None = None) -> list[Item]:
    return list(read_file(InputFile(str(path), None, None), Fields(text, group)))


def put(folder: Path, name: str, content: bytes) -> Path:
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path = folder / name
    path.write_bytes(packed.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "jsonl.gz", "jsonl.zst"])
def test_records_keep_their_id_or_get_path_and_line(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path, f"x.{suffix}", LINES)
    assert read(path) == [Document("a", "one", str(path)), Document(f"{path}:3", "two", str(path))]


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", b'\xef\xbb\xbf{"text":"one"}\r\n{"text":"two"}\r\n')
    assert [item.text for item in read(path) if isinstance(item, Document)] == ["one", "two"]


def test_a_json_list_gives_its_elements(tmp_path: Path) -> None:
    path = put(tmp_path, "x.json", b'[\n{"text":"one"},\n{"text":"two"}, 3]')
    assert read(path) == [
        Document(f"{path}:[1]", "one", str(path)),
        Document(f"{path}:[2]", "two", str(path)),
        Unreadable(f"{path}:[3]", "unreadable: not a JSON object"),
    ]


@pytest.mark.parametrize("suffix", ["txt", "md", "txt.gz", "md.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path, f"x.{suffix}", "Ä line\nand another\n".encode())
    assert read(path) == [Document(str(path), "Ä line\nand another\n", str(path))]


def test_parquet_rows_are_documents_and_other_columns_are_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"body": ["one", None, "three"], "id": [7, 8, 9], "book": ["A", "A", "B"], "n": [1, 2, 3]})
    parquet.write_table(table, path, row_group_size=2)
    assert read(path, "body", "book") == [
        Document("7", "one", str(path), "A"),
        Unreadable(f"{path}:2", "unreadable: field `body` is not text"),
        Document("9", "three", str(path), "B"),
    ]


BAD_LINES = [
    (b'{"text": "on', "unreadable: broken JSON"),
    (b'{"text": "\xff"}', "unreadable: not UTF-8"),
    (b'{"body": "one"}', "unreadable: no field `text`"),
    (b'{"text": 3}', "unreadable: field `text` is not text"),
    (b'{"text": null}', "unreadable: field `text` is not text"),
    (b'["one"]', "unreadable: not a JSON object"),
    (b'{"text": " \\n "}', "unreadable: empty text"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = put(tmp_path, "x.jsonl", b'{"text":"one"}\n' + line + b'\n{"text":"two"}\n')
    first, bad, last = read(path)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(bad, Unreadable)
    assert (bad.where, bad.reason) == (f"{path}:2", reason)


def test_a_record_without_the_group_is_named_with_its_fields(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", LINES)
    bad = read(path, group="book")[0]
    assert bad == Unreadable(f"{path}:1", "unreadable: no field `book`", ("id", "text"))


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_a_truncated_file_gives_its_whole_lines_and_one_unreadable(tmp_path: Path, suffix: str) -> None:
    content = b"".join(json.dumps({"text": f"{n} {n * 7919 % 1000}"}).encode() + b"\n" for n in range(20_000))
    path = put(tmp_path, f"x.{suffix}", content)
    path.write_bytes(path.read_bytes()[:-2000])
    *read_items, last = read(path)
    assert all(isinstance(item, Document) for item in read_items)
    assert last == Unreadable(f"{path}:{len(read_items) + 1}", "unreadable: truncated file")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.jsonl.gz", "unreadable: damaged compression"),
        ("x.txt.zst", "unreadable: damaged compression"),
        ("x.txt", "unreadable: not UTF-8"),
        ("x.parquet", "unreadable: broken Parquet"),
    ],
)
def test_a_file_that_is_something_else_is_one_unreadable(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe not what the name says" * 9)
    (item,) = read(path)
    assert isinstance(item, Unreadable)
    assert item.reason == reason
    assert item.where.startswith(str(path))


def test_frames_of_zstd_may_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(part) for part in (b"one\n", b"", b"two\n")))
    assert read(path) == [Document(str(path), "one\ntwo\n", str(path))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_a_very_long_document_comes_in_parts_that_join_to_the_whole(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAXIMUM_CHARACTERS", 1000)
    text = "".join(f"line {n} ä\n" for n in range(500)) + "x" * 3000
    path = put(tmp_path, name, (text if name == "x.txt" else json.dumps({"id": "big", "text": text})).encode())
    parts = read(path)
    assert all(isinstance(part, Document) and len(part.text) <= 1000 for part in parts)
    assert "".join(part.text for part in parts if isinstance(part, Document)) == text
    assert len({part.id for part in parts if isinstance(part, Document)}) == len(parts) > 5


def test_a_line_over_the_limit_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = b'{"text":"' + b"x" * 5000 + b'"}'
    assert list(lines(iter([b"a\n" + long[:3000], long[3000:] + b"\nb"]), 1000)) == [b"a", None, b"b"]
    monkeypatch.setattr(streams.lines, "__defaults__", (1000,))
    path = put(tmp_path, "x.jsonl", LINES + long)
    assert read(path)[-1] == Unreadable(f"{path}:4", "unreadable: longer than 512 MB")


@given(st.lists(st.binary(max_size=8).map(lambda part: part.replace(b"\r", b"\n")), max_size=12))
def test_lines_do_not_depend_on_the_blocks(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    assert list(lines(iter(pieces))) == (expected if expected[-1] else expected[:-1])


@given(st.text(alphabet="ab \n", max_size=200), st.integers(2, 30))
def test_cutting_loses_nothing(text: str, characters: int) -> None:
    parts = list(documents.cut(text, characters))
    assert "".join(parts) == text
    assert all(0 < len(part) <= characters for part in parts) or not text
