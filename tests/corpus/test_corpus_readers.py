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
from onward.corpus.documents import Document, Item, Unreadable
from onward.corpus.reading import cutting, lines, pieces
from onward.corpus.reading.sources import find_inputs, read_source
from onward.recipe import Source

LINES = b'{"id":"a","text":"one"}\n\n{"text":"two","book":"B"}\n'


def read(path: Path, text: str = "text", group: str | None = None) -> list[Item]:
    return list(read_source(find_inputs(Source(path=str(path), text=text, group=group))))


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
    path.write_bytes(b"\xfe\x28 not what the name says" * 9)
    (item,) = read(path)
    assert isinstance(item, Unreadable)
    assert item.reason == reason
    assert item.where.startswith(str(path))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_what_precedes_a_damaged_place_is_given(tmp_path: Path, name: str) -> None:
    content = b"".join(json.dumps({"text": f"{n} {n * 7919 % 1000}"}).encode() + b"\n" for n in range(40_000))
    path = put(tmp_path, name, content)
    stored = bytearray(path.read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 1000] = b"\xff" * 1000
    path.write_bytes(stored)
    *good, last = read(path)
    assert isinstance(last, Unreadable)
    assert last.reason == "unreadable: damaged compression"
    # zstd notices it in the same block; gzip a little later, so a few nonsensical lines may come before it.
    texts = [item.text for item in good if isinstance(item, Document)][:-100]
    assert len(texts) > 5_000
    assert texts == [f"{n} {n * 7919 % 1000}" for n in range(len(texts))]


def test_a_window_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    # magic, no single segment, no content size, window 2 GB; then an empty last block
    path.write_bytes(zstandard.FRAME_HEADER + bytes([0, (31 - 10) << 3, 1, 0, 0]))
    assert read(path) == [Unreadable(f"{path}:1", "unreadable: zstd window of more than 128 MB")]


def test_frames_of_zstd_may_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    frames = [zstandard.ZstdCompressor().compress(part) for part in (b"one\n", b"", b"two\n")]
    skippable = b"\x5a\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"seekable!"
    path.write_bytes(b"".join([*frames[:2], skippable, frames[2]]))
    assert read(path) == [Document(str(path), "one\ntwo\n", str(path))]


def test_members_of_gzip_may_follow_each_other_and_zeros_them(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"one\n") + bytes(512) + gzip.compress(b"two\n") + bytes(300_000))
    assert read(path) == [Document(str(path), "one\ntwo\n", str(path))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "long.txt", "long.txt.zst"])
def test_a_very_long_document_comes_in_parts_that_join_to_the_whole(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAXIMUM_CHARACTERS", 1000)
    if name.startswith("long"):
        monkeypatch.setattr(cutting, "WHOLE_TEXT_BYTES", 2000)
    text = "".join(f"line {n} ä\n" for n in range(500)) + "€" * 3000
    path = put(tmp_path, name, (json.dumps({"id": "big", "text": text}) if name == "x.jsonl" else text).encode())
    parts = read(path)
    assert all(isinstance(part, Document) and len(part.text) <= 1000 for part in parts)
    assert "".join(part.text for part in parts if isinstance(part, Document)) == text
    assert len({part.id for part in parts if isinstance(part, Document)}) == len(parts) > 5
    first = parts[0]
    assert isinstance(first, Document)
    assert first.text.endswith("\n")
    assert first.id == ("big#1" if name == "x.jsonl" else f"{path}#1")


def test_a_line_over_the_limit_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 500)
    monkeypatch.setattr(lines, "MAXIMUM_RECORD_BYTES", 1000)
    long = b'{"text":"' + b"x" * 5000 + b'"}'
    for name in ("x.jsonl", "x.jsonl.gz"):
        path = put(tmp_path, name, LINES + long + b"\n" + LINES + long)
        items = read(path)
        assert [item for item in items if isinstance(item, Unreadable)] == [
            Unreadable(f"{path}:4", "unreadable: longer than 0 MB"),
            Unreadable(f"{path}:8", "unreadable: longer than 0 MB"),
        ]
        assert [item.id for item in items if isinstance(item, Document)] == ["a", f"{path}:3", "a", f"{path}:7"]


@given(st.lists(st.binary(max_size=8).map(lambda part: part.replace(b"\r", b"\n")), max_size=12), st.integers(1, 9))
def test_runs_of_lines_do_not_depend_on_the_blocks(blocks: list[bytes], chunk_bytes: int) -> None:
    whole = b"".join(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(lines, "MAXIMUM_RECORD_BYTES", 20)
        runs = list(lines.line_runs(iter(blocks)))
        assert runs == list(lines.line_runs(iter([whole])))
    at = 0
    assert [run.is_last for run in runs[:-1]] == [False] * (len(runs) - 1 if runs else 0)
    for run, size, is_last in runs:
        content = whole[at : at + size]
        at += size
        assert content.endswith(b"\n") or is_last
        assert not is_last or at == len(whole)
        assert (run is None and size > 20 and b"\n" not in content[:-1]) or run == content
        assert size <= chunk_bytes or b"\n" not in content[:-1]
    assert at == len(whole)


def test_millions_of_empty_documents_are_few_objects(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl.zst", b'{"text": ""}\n' * 400_000 + b'{"text":"last"}\n')
    *empty, last = read(path)
    assert last == Document(f"{path}:400001", "last", str(path))
    assert len(empty) == 3
    assert sum(item.count for item in empty if isinstance(item, Unreadable)) == 400_000
    assert all(isinstance(item, Unreadable) and item.reason == "unreadable: empty text" for item in empty)


def test_bad_lines_in_a_row_name_every_place(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", b'{"text":"one"}\n{\n{\n{"a":1}\n\n{"b":2}\n')
    one, broken, first, second = read(path)
    assert isinstance(one, Document)
    assert broken == Unreadable(f"{path}:2", "unreadable: broken JSON", (), 2)
    assert isinstance(broken, Unreadable)
    assert list(broken.places()) == [f"{path}:2", f"{path}:3"]
    # A blank line between them is no record, so the places are not one row of numbers.
    assert first == Unreadable(f"{path}:4", "unreadable: no field `text`", ("a",))
    assert second == Unreadable(f"{path}:6", "unreadable: no field `text`", ("b",))


def test_a_parquet_file_without_the_column_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"body": ["one"] * 5000, "n": range(5000)}), path)
    assert read(path) == [Unreadable(f"{path}:1", "unreadable: no field `text`", ("body", "n"), 5000)]


def test_a_parquet_value_that_is_not_utf8_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    wrong = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": wrong}), path)
    assert read(path) == [
        Document(f"{path}:1", "one", str(path)),
        Unreadable(f"{path}:2", "unreadable: not UTF-8"),
        Document(f"{path}:3", "three", str(path)),
    ]


@given(st.text(alphabet="ab \n", max_size=200), st.integers(2, 30))
def test_cutting_loses_nothing(text: str, characters: int) -> None:
    parts = list(documents.cut(text, characters))
    assert "".join(parts) == text
    assert all(0 < len(part) <= characters for part in parts) or not text
