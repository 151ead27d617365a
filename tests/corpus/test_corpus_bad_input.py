import ast
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from onward.artifact import Folders
from onward.corpus.ledger import Count, Tally
from onward.corpus.making import nothing_kept
from onward.corpus.preparation import plan_preparation
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.corpus.reading import pieces, streams
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus

TEXT = (
    "A heron stood in the shallow water and waited for a fish.\n"
    "Nobody on the bridge had ever seen it move its head.\n"
    "Then, one evening in spring, it flew off without a sound."
)


@pytest.fixture
def attempt(tiny_tokenizer: LoadedTokenizer, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepare `data.jsonl` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def attempt(content: bytes, label: str = "domain", name: str = "data.jsonl", **fields: Any) -> PreparedCorpus:
        Path(name).write_bytes(content)
        # The good records here are alike but for a number.
        given = {"sources": [{"path": name}], "held_out": {"share": "0%"}, "duplicates": {"near": None}, **fields}
        corpus = Corpus.model_validate(given)
        return prepare(
            corpus,
            tokenizer=tiny_tokenizer,
            sequence_tokens=32,
            wanted_tokens=None,
            seed=0,
            folders=folders,
            label=label,
        )

    return attempt


def good(count: int) -> list[bytes]:
    return [json.dumps({"text": f"{TEXT} {n * 7919}"}).encode() for n in range(count)]


def test_a_few_bad_lines_are_counted_with_their_place(attempt: Callable[..., PreparedCorpus]) -> None:
    prepared = attempt(b"\n".join([*good(150), b'{"text": "cut', *good(50)]))
    assert prepared.ledger.unreadable == ("data.jsonl:151: unreadable: broken JSON",)
    assert prepared.ledger.dropped["unreadable: broken JSON"].documents == 1
    assert prepared.ledger.read.documents == 201
    assert (prepared.ledger.kept.documents, prepared.ledger.duplicate.documents) == (150, 50)


def test_more_bad_lines_than_allowed_are_an_error(attempt: Callable[..., PreparedCorpus]) -> None:
    with pytest.raises(UserError) as error:
        attempt(b"\n".join([*good(98), b'{"text": "\xff"}', b"{"]), label="general")
    assert str(error.value) == (
        "too many records cannot be read\n"
        "  where     data.jsonl:99: unreadable: not UTF-8; data.jsonl:100: unreadable: broken JSON\n"
        "  got       2 of 100 (2%)\n"
        "  expected  at most 1%\n"
        "  do        give the source its encoding (`encoding: cp1252`); mend or remove them, or raise "
        "general.maximum_unreadable; fewer are counted and passed over"
    )
    assert attempt(b"\n".join([*good(98), b"}", b"{"]), maximum_unreadable="2%").ledger.kept.documents == 98


def test_a_misnamed_field_is_answered_with_the_fields_that_exist(attempt: Callable[..., PreparedCorpus]) -> None:
    line = json.dumps({"url": "x", "texts": TEXT}).encode()
    with pytest.raises(UserError) as error:
        attempt(b"\n".join([line] * 3))
    assert str(error.value) == (
        "no record has the field `text`\n"
        "  where     data.jsonl:1\n"
        "  got       fields: url, texts\n"
        "  do        name the field that holds the document: `text: texts`"
    )


def test_a_hopeless_corpus_is_not_read_to_its_end(
    attempt: Callable[..., PreparedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 12_000)
    with pytest.raises(UserError, match="no record has the field `text`"):
        attempt(b'{"body": "x"}\n' * 5000)
    with pytest.raises(UserError) as error:
        attempt(b'{"text": 1}\n' * 5000)
    assert error.value.got == "1,000 of 1,000 (100%)"


def test_empty_texts_are_counted_but_are_no_reading_errors(attempt: Callable[..., PreparedCorpus]) -> None:
    prepared = attempt(b"\n".join([*good(2), b'{"text": ""}', b'{"text": "\\n"}']))
    assert prepared.ledger.dropped["unreadable: empty text"].documents == 2
    assert prepared.ledger.unreadable == ()


def test_nothing_left_says_what_dropped_it(attempt: Callable[..., PreparedCorpus], folders: Folders) -> None:
    with pytest.raises(UserError) as error:
        attempt(b'{"text": "short"}\n{"text": "brief"}\n{"text": ""}')
    assert str(error.value) == (
        "no document is left to train on\n"
        "  where     corpus.sources: data.jsonl\n"
        "  got       quality: too few lines: 2 of 3; unreadable: empty text: 1 of 3\n"
        "  do        loosen what dropped them, e.g. corpus.quality: none"
    )
    with pytest.raises(UserError, match="no document is left to train on"):
        attempt(b"")
    assert not [path for path in (folders.cache / "corpora").iterdir() if not path.name.startswith(".")]


def test_a_single_long_line_is_prepared_in_parts(attempt: Callable[..., PreparedCorpus]) -> None:
    text = " ".join(f"word{n}" for n in range(900_000))
    prepared = attempt(json.dumps({"text": text}).encode(), quality="none")
    assert prepared.ledger.read.documents == prepared.ledger.kept.documents == 3
    assert prepared.ledger.read.bytes == len(text)


def test_a_truncated_file_is_counted(attempt: Callable[..., PreparedCorpus], tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join(good(3000)))
    prepared = attempt(whole[:-300], name="data.jsonl.gz")
    (place,) = prepared.ledger.unreadable
    assert place.endswith(": unreadable: truncated file")
    assert int(place.split(":")[1]) == prepared.ledger.read.documents
    assert prepared.ledger.kept.documents == prepared.ledger.read.documents - 1 > 1000


@pytest.mark.parametrize(
    ("name", "content", "where", "reason"),
    [
        ("bad.jsonl", b'{"text": "cut', ":1", "broken JSON"),
        ("bad.jsonl", b'{"text": "\xff"}', ":1", "not UTF-8"),
        ("bad.jsonl", b'{"text": null}', ":1", "field `text` is not text"),
        ("bad.jsonl", b'{"body": "x"}', ":1", "no field `text`"),
        ("bad.jsonl", b'{"text": "' + b"\\u0000x" * 9 + b'"}', ":1", "binary content"),
        ("bad.jsonl", b'["x"]', ":1", "not a JSON object"),
        ("bad.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], ":1", "truncated file"),
        ("bad.jsonl.zst", zstandard.ZstdCompressor().compress(b"{}")[:-2], ":1", "truncated file"),
        ("bad.txt.zst", b"no zstd", "", "damaged compression"),
        ("bad.txt", "Grüße".encode("latin-1"), "", "not UTF-8"),
        ("bad.txt", "Grüße und Küsse\n".encode() + "Grüße".encode("latin-1"), "", "mixed encodings"),
        ("bad.txt", b"\x7fELF\0\0\0\0", "", "binary content"),
        ("bad.parquet", b"PAR1 no table", ":1", "broken Parquet"),
        ("bad.html", b"<html><script>x</script></html>", "", "no text in the page"),
        ("bad.pdf", b"%PDF-1.4 nothing", "", "broken PDF"),
        ("bad.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(9), "", "password-protected DOCX"),
        ("bad.epub", b"PK nothing", "", "broken EPUB"),
    ],
)
def test_what_cannot_be_read_is_one_row_of_the_ledger_and_the_rest_is_kept(
    attempt: Callable[..., PreparedCorpus], tmp_path: Path, name: str, content: bytes, where: str, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    sources = [{"path": name}, {"path": "data.jsonl"}]
    ledger = attempt(b"\n".join(good(120)), sources=sources).ledger
    assert ledger.dropped == {f"unreadable: {reason}": Count(1, 0)}
    # A page without text was read without fault, it has only nothing to give.
    expected = () if name == "bad.html" else (f"{name}{where}: unreadable: {reason}",)
    assert ledger.unreadable == expected
    assert (ledger.read.documents, ledger.kept.documents) == (121, 120)


def test_a_file_that_may_not_be_read_is_an_error_and_not_a_loss(
    attempt: Callable[..., PreparedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *how: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(streams, "open", refuse, raising=False)
    with pytest.raises(UserError) as error:
        attempt(b"\n".join(good(3)))
    assert str(error.value) == (
        "this file cannot be read\n"
        "  where     data.jsonl\n"
        "  got       Permission denied\n"
        "  do        check its permissions"
    )


READ_ALL = """
import sys
from onward.corpus.documents import Document
from onward.corpus.reading.chunks import items_in, read_chunks
from onward.corpus.reading.sources import find_inputs
from onward.recipe import Source

inputs = find_inputs(Source(path=sys.argv[1]))
longest = bytes_read = documents = 0
bad = []
for number, (chunk, _) in enumerate(read_chunks(inputs)):
    longest = max(longest, chunk.size_bytes)
    bytes_read += chunk.size_bytes
    if number % 50 == 0 or chunk.size_bytes < 1000:
        for item in items_in(chunk, inputs.fields):
            if isinstance(item, Document):
                documents += 1
            else:
                bad.append((item.where.rpartition("/")[2], item.reason))
# The kernel's own mark: getrusage begins with the peak of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print([longest, bytes_read, documents, bad, int(peak.split()[1]) // 1000])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("name", ["x.txt.zst", "x.jsonl.zst"])
def test_a_document_of_a_gigabyte_is_read_with_bounded_memory(tmp_path: Path, name: str) -> None:
    compress = zstandard.ZstdCompressor().compress
    megabyte = compress(b"".join(b"word %06d " % n for n in range(1_000_000 // 12)) + b"\r   ")
    path = tmp_path / name
    begin, end = (b'{"text": "', b'"}\n{"text": "last"}\n') if name == "x.jsonl.zst" else (b"", b"")
    path.write_bytes(b"".join([compress(begin), *[megabyte] * 1000, compress(end)]))
    said = subprocess.run([sys.executable, "-c", READ_ALL, str(path)], check=True, capture_output=True, text=True)
    longest, bytes_read, documents, bad, megabytes = ast.literal_eval(said.stdout)
    if name == "x.txt.zst":
        assert (longest <= 4_000_000, bytes_read, documents, bad) == (True, 1_000_000_000, 6, [])
        assert megabytes < 300
    else:
        assert (bytes_read, documents, bad) == (17, 1, [("x.jsonl.zst:1", "unreadable: longer than 128 MB")])
        assert megabytes < 600


@pytest.mark.parametrize(
    ("dropped", "todo"),
    [
        ("tokens: too few bytes per token", "corpora.self.minimum_bytes_per_token: null"),
        ("tokens: too many unknown", "corpora.self.maximum_unknown_tokens: 99%"),
        ("quality: too few lines", "corpora.self.quality: none"),
        (None, "corpora.self.self_replay.temperature"),
    ],
)
def test_samples_that_nothing_is_left_of_are_told_of_as_samples(
    dropped: str | None, todo: str, tiny_tokenizer: LoadedTokenizer, folders: Folders
) -> None:
    corpus = Corpus.model_validate({"self_replay": {"tokens": 1000}})
    job = plan_preparation(
        corpus, tokenizer=tiny_tokenizer, sequence_tokens=64, wanted_tokens=None, seed=0, folders=folders,
        model_fingerprint="m", label="self",
    )  # fmt: skip
    tally = Tally()
    if dropped is not None:
        tally.dropped[dropped] = Count(3, 100)
    error = nothing_kept("no document is left to train on", job, tally)
    assert error.where == "corpora.self, sampled from the base"
    assert todo in str(error.todo)
