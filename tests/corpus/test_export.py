import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
import zstandard
from pyarrow import parquet

from onward.corpus import export
from onward.corpus.export import Exported, export_text, export_tokens
from onward.corpus.ledger import Tally
from onward.corpus.packing import PackingMode, pack
from onward.corpus.store import open_corpus
from onward.corpus.tables import DOCUMENTS, TableWriter
from onward.corpus.tokenise import Engine, encode
from onward.errors import UserError
from onward.model.difficult_texts import difficult_texts
from onward.model.tokenizer import LoadedTokenizer

LENGTH = 32
BLOCKS = [
    ["The first one.", "Two  spaces,\n\n\u00e9 \u8a9e \U0001f642 <|endoftext|> in it", "x" * 300, "a"],
    ["Of the second block: " * 20, "e\u0301 apart", "last"],
]


def write(folder: Path, blocks: list[list[str]], tokenizer: LoadedTokenizer, mode: PackingMode = "best_fit") -> Path:
    """A corpus as `prepare` leaves it, as far as it is read here."""
    folder.mkdir(parents=True)
    tally, first, number = Tally(), 0, 0
    for block, texts in enumerate(blocks):
        encoded = encode(texts, tokenizer, Engine("tokenizers", ""))
        np.save(folder / f"tokens-{block:05d}.npy", encoded.ids)
        packing = pack(encoded.lengths(), LENGTH, mode, first)
        packing.save(folder / f"packing-{block:05d}.npz")
        table = TableWriter(folder / f"documents-{block:05d}.parquet", DOCUMENTS)
        raw = [text.encode() for text in texts]
        numbers = [number + n for n in range(len(texts))]
        digests = np.array([xxhash.xxh3_64_intdigest(text) for text in raw], dtype=np.uint64).view(np.int64)
        sizes = [len(text) for text in raw]
        names = [f"d{n}" for n in numbers]
        sources = [f"s{block}"] * len(texts)
        table.add(numbers, names, sources, encoded.starts[:-1] + first, encoded.lengths(), sizes, digests)
        table.close()
        first += len(encoded.ids)
        number += len(texts)
    tally.close(LENGTH).save(folder)
    manifest = {"kind": "corpus", "fingerprint": "0123456789abcdef", "made_from": {}, "files": {}, "created": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def records(blocks: list[list[str]]) -> list[dict[str, str]]:
    pairs = [(text, f"s{block}") for block, texts in enumerate(blocks) for text in texts]
    return [{"id": f"d{n}", "text": text, "source": source} for n, (text, source) in enumerate(pairs)]


@pytest.fixture
def corpus(tmp_path: Path, tiny_tokenizer: LoadedTokenizer) -> Path:
    return write(tmp_path / "corpus", BLOCKS, tiny_tokenizer)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.zst"])
def test_the_kept_text_comes_back_as_json_lines(
    corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, name: str
) -> None:
    to = tmp_path / "new" / "folder" / name
    exported = export_text(corpus, to, "jsonl", tiny_tokenizer)
    content = to.read_bytes()
    assert exported == Exported(to, 1, 7, len(content))
    if name.endswith(".zst"):
        content = zstandard.ZstdDecompressor().stream_reader(content).read()
    assert [json.loads(line) for line in content.decode().splitlines()] == records(BLOCKS)
    assert [path.name for path in to.parent.iterdir()] == [name]
    assert exported.outcome("documents") == f"7 documents in {to} (1 file, 0.0 MB)"


def test_the_kept_text_comes_back_as_parquet_one_file_for_each_block(
    corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_BATCH_BYTES", 100)
    exported = export_text(corpus, tmp_path / "out", "parquet", tiny_tokenizer)
    assert (exported.files, exported.rows, exported.different) == (2, 7, 0)
    assert sorted(path.name for path in exported.path.iterdir()) == ["text-00000.parquet", "text-00001.parquet"]
    found = [row for path in sorted(exported.path.iterdir()) for row in parquet.read_table(path).to_pylist()]
    assert found == records(BLOCKS)


@pytest.mark.parametrize("bos_id", [None, 3])
@pytest.mark.parametrize("is_quick", [True, False])
def test_every_text_of_a_byte_level_tokenizer_comes_back(
    tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch, bos_id: int | None, is_quick: bool
) -> None:
    tokenizer = replace(tiny_tokenizer, bos_id=bos_id)
    texts = [text for text in difficult_texts() if text]
    corpus = write(tmp_path / "corpus", [texts], tokenizer)
    if not is_quick:
        monkeypatch.setattr(export, "open_decoder", lambda _: None)
    exported = export_text(corpus, tmp_path / "out", "parquet", tokenizer)
    assert (exported.rows, exported.different) == (len(texts), 0)
    found = parquet.read_table(exported.path / "text-00000.parquet").column("text").to_pylist()
    assert found == texts


def test_what_gigatoken_decodes_otherwise_is_decoded_by_the_reference(
    corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "open_decoder", lambda _: lambda _: b"\xff wrong")
    exported = export_text(corpus, tmp_path / "out.jsonl", "jsonl", tiny_tokenizer)
    assert exported.different == 0
    assert [json.loads(line) for line in exported.path.read_text().splitlines()] == records(BLOCKS)


def test_documents_that_do_not_come_back_are_counted_and_named(
    tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lower-cased by the tokenizer: of the same size, so only the hash can tell; or composed, so of another size.
    content = json.loads(tiny_tokenizer.json)
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    tokenizer = replace(tiny_tokenizer, json=json.dumps(content))
    corpus = write(tmp_path / "corpus", [["same", "Different", "same again"], ["e\u0301", "plain"]], tokenizer)
    exported = export_text(corpus, tmp_path / "out.jsonl", "jsonl", tokenizer)
    assert (exported.rows, exported.different, exported.first_different) == (5, 2, ("d1", "d3"))
    assert exported.outcome("documents").endswith(
        "; 2 are not the text that was kept, as the tokenizer does not give them back byte by byte: d1, d3"
    )
    texts = [json.loads(line)["text"] for line in exported.path.read_text().splitlines()]
    assert texts == ["same", "different", "same again", "\u00e9", "plain"]
    monkeypatch.setattr(export, "_NAMED", 1)
    again = export_text(corpus, tmp_path / "again.jsonl", "jsonl", tokenizer)
    assert again.first_different == ("d1",)
    assert again.outcome("documents").endswith(": d1, ...")


def test_only_a_finished_corpus_is_exported(tmp_path: Path, tiny_tokenizer: LoadedTokenizer) -> None:
    for call in (lambda: export_tokens(tmp_path, tmp_path / "x"),
                 lambda: export_text(tmp_path, tmp_path / "x.jsonl", "jsonl", tiny_tokenizer)):  # fmt: skip
        with pytest.raises(UserError, match="this is not a prepared corpus") as caught:
            call()
        assert caught.value.where == str(tmp_path)
        assert caught.value.expected == "the folder of a corpus that `onward prepare` has finished"


def test_nothing_is_written_over(corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer) -> None:
    to = tmp_path / "out.jsonl"
    to.write_text("mine")
    with pytest.raises(UserError, match="something is there already"):
        export_text(corpus, to, "jsonl", tiny_tokenizer)
    with pytest.raises(UserError, match="something is there already"):
        export_tokens(corpus, to)
    assert to.read_text() == "mine"


def test_the_suffix_says_how_json_lines_are_written(
    corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer
) -> None:
    with pytest.raises(UserError, match="does not say how to write") as caught:
        export_text(corpus, tmp_path / "out.gz", "jsonl", tiny_tokenizer)
    assert caught.value.expected == ".jsonl or .jsonl.zst"


def test_a_full_disk_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export.orjson, "dumps", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_text(corpus, tmp_path / "out.jsonl", "jsonl", tiny_tokenizer)
    monkeypatch.undo()
    monkeypatch.setattr(export, "_sequences", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_tokens(corpus, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("mode", ["best_fit", "sequential", "none"])
@pytest.mark.parametrize("shard", [2**24, 4 * LENGTH])
def test_the_packed_sequences_open_as_a_data_set(
    tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch, mode: PackingMode, shard: int
) -> None:
    import datasets

    monkeypatch.setattr(export, "_SHARD_TOKENS", shard)
    opened = open_corpus(write(tmp_path / "corpus", BLOCKS, tiny_tokenizer, mode))
    exported = export_tokens(tmp_path / "corpus", tmp_path / "out")
    found = datasets.load_from_disk(tmp_path / "out")
    assert exported.rows == len(found) == opened.num_sequences
    assert len(list(exported.path.glob("*.arrow"))) == -(-opened.num_sequences * LENGTH // shard)
    assert found.features["input_ids"] == datasets.List(datasets.Value("int32"), length=LENGTH)
    assert json.loads((exported.path / "state.json").read_bytes())["_fingerprint"] == "0123456789abcdef"
    assert "no target crosses a border" in found.info.description
    rows = found.with_format("numpy")
    for n in range(opened.num_sequences):
        at = 0
        row = {name: np.asarray(value) for name, value in rows[n].items()}
        assert {len(value) for value in row.values()} == {LENGTH}
        for piece, (offset, length) in enumerate(zip(*opened.sequence(n)[:2], strict=True)):
            span = slice(at, at + length)
            ids = opened.read(int(offset), int(length)).tolist()
            assert row["input_ids"][span].tolist() == ids
            assert row["labels"][span].tolist() == [-100, *ids[1:]]
            assert row["position_ids"][span].tolist() == list(range(length))
            assert row["seq_idx"][span].tolist() == [piece] * length
            assert row["attention_mask"][span].tolist() == [1] * length
            at += int(length)
        rest = LENGTH - at
        expected = {"input_ids": 0, "labels": -100, "seq_idx": -1, "attention_mask": 0}
        assert {name: row[name][at:].tolist() for name in expected} == {k: [v] * rest for k, v in expected.items()}
        assert row["position_ids"][at:].tolist() == list(range(rest))


def test_wide_ids_and_progress_bars_are_as_before(
    tmp_path: Path, tiny_tokenizer: LoadedTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    tokenizer = replace(tiny_tokenizer, vocabulary_size=70_000, eos_id=69_999)
    write(tmp_path / "corpus", BLOCKS, tokenizer)
    datasets.enable_progress_bars()
    export_tokens(tmp_path / "corpus", tmp_path / "out")
    assert not datasets.are_progress_bars_disabled()
    assert capsys.readouterr() == ("", "")
    found = datasets.load_from_disk(tmp_path / "out").data.table.column("input_ids")
    assert pa.compute.max(found.combine_chunks().flatten()).as_py() == 69_999
