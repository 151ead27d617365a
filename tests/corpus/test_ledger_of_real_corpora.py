"""The ledger of every corpus of the shared data, against a count of the files that knows nothing of the stage."""

import unicodedata
from pathlib import Path

import orjson
import pytest
import zstandard
from pyarrow import parquet

from onward.artifact import Folders
from onward.corpus.prepare import prepare
from onward.corpus.store import open_corpus
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus

CORPORA = (
    "domain/education/*",
    "domain/legal/*",
    "domain/medical/*",
    "domain/technical/*",
    "general/books_classics*",
    "general/books_eltec*",
    "general/podcast*",
    "general/storybooks*",
)


def counted(files: list[Path]) -> tuple[int, int]:
    """Documents, and bytes of their texts in NFC."""
    documents = size = 0
    for path in files:
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            for line in stream.read().splitlines():
                documents += 1
                size += len(unicodedata.normalize("NFC", orjson.loads(line)["text"]).encode())
    return documents, size


@pytest.mark.parametrize("pattern", CORPORA)
def test_every_document_byte_and_token_of_a_real_corpus_is_accounted_for(
    shared_data: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, pattern: str
) -> None:
    settings = {"quality": ["gopher", "fineweb", "c4"], "held_out": {"share": "2%"}, "block_tokens": 4_000_000}
    corpus = Corpus.model_validate({"sources": [{"path": f"{shared_data}/{pattern}.jsonl.zst"}], **settings})
    folders = Folders(tmp_path, tmp_path)
    prepared = prepare(
        corpus, tokenizer=tiny_tokenizer, sequence_tokens=512, wanted_tokens=None, seed=0, folders=folders, workers=1
    )
    ledger = prepared.ledger
    ledger.check()
    assert (ledger.read.documents, ledger.read.bytes) == counted(sorted(shared_data.glob(f"{pattern}.jsonl.zst")))
    kept = [parquet.read_table(path, columns=["length", "bytes"]) for path in prepared.path.glob("documents-*")]
    assert sum(table.num_rows for table in kept) == ledger.kept.documents > 0
    assert sum(sum(table["bytes"].to_pylist()) for table in kept) == ledger.kept.bytes
    assert sum(sum(table["length"].to_pylist()) for table in kept) == ledger.kept_tokens
    opened = open_corpus(prepared.path)
    assert opened.total_tokens == ledger.kept_tokens == ledger.packed_tokens
    assert opened.num_sequences == ledger.sequences
    held_out = parquet.read_table(prepared.path / "held_out.parquet", columns=["bytes"])
    assert (held_out.num_rows, sum(held_out["bytes"].to_pylist())) == (ledger.held_out.documents, ledger.held_out.bytes)
