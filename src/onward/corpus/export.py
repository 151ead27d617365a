"""A prepared corpus for other trainers: its clean text by decoding the tokens, or its packed sequences as a data set.

The text that was kept is not stored twice: tokens are decoded, and every document is compared with the size and the
hash of the text that was kept, so the outcome says whether it is that text, byte by byte.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import orjson
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pyarrow import parquet

from onward.artifact import disk_errors, read_manifest
from onward.corpus.store import OpenCorpus, open_corpus
from onward.corpus.tokenise import open_decoder
from onward.corpus.tokens import TokenIds
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer

TextFormat = Literal["jsonl", "parquet"]
NO_TARGET = -100
"""Label of a position without a target, as in torch and transformers."""
_NAMED = 20
_ROWS = 4096
_BATCH_BYTES = 16_000_000
_BUFFER_BYTES = 1 << 20
_SHARD_TOKENS = 2**24
_COLUMNS = ("id", "source", "offset", "length", "bytes", "digest")
_TEXT = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("source", pa.string())])
_DESCRIPTION = (
    "Packed sequences of a prepared corpus, in the order of their packing: shuffle them. A row holds documents or "
    "pieces of them one after the other, then padding. seq_idx: number of the piece within the row, -1 in padding. "
    "position_ids: place within the piece. labels: the input ids, -100 in padding and at the first token of each "
    "piece, so that no target crosses a border once the model shifts them."
)


@dataclass(frozen=True)
class Exported:
    """What was written. rows: documents, or sequences. bytes: of the files, compressed as they are.

    different: documents whose decoded text is not the text that was kept (a tokenizer that normalises, or has no token
    for a character); first_different: ids of the first of them.
    """

    path: Path
    files: int
    rows: int
    bytes: int
    different: int = 0
    first_different: tuple[str, ...] = ()

    def outcome(self, noun: str) -> str:
        """Say in one or two sentences what was written and whether it is what was kept."""
        files = f"{self.files:,} file" + "s" * (self.files != 1)
        said = f"{self.rows:,} {noun} in {self.path} ({files}, {self.bytes / 1e6:.1f} MB)"
        if not self.different:
            return said
        names = ", ".join(self.first_different)
        more = ", ..." if self.different > len(self.first_different) else ""
        why = "the tokenizer does not give them back byte by byte"
        return f"{said}; {self.different:,} are not the text that was kept, as {why}: {names}{more}"


@dataclass(frozen=True)
class _Document:
    id: str
    source: str
    text: bytes


def export_text(folder: Path, to: Path, format: TextFormat, tokenizer: LoadedTokenizer) -> Exported:
    """Write the kept documents as records of id, text and source.

    folder: a prepared corpus. to: for `jsonl` a file, .jsonl or .jsonl.zst; for `parquet` a folder, with one file for
    each block. It appears when it is whole. tokenizer: the corpus's own. Raises UserError when `folder` is no
    corpus, `to` exists or has another suffix, and for a full disk.
    """
    corpus, _ = _open(folder)
    if format == "jsonl" and not to.name.endswith((".jsonl", ".jsonl.zst")):
        raise UserError("the name does not say how to write the text", str(to), expected=".jsonl or .jsonl.zst")
    write = _write_jsonl if format == "jsonl" else _write_parquet
    documents = _Documents(folder, corpus, tokenizer)
    with _appearing(to) as aside:
        write(documents, aside, to.name.endswith(".zst"))
    files, size = _size(to)
    return Exported(to, files, documents.rows, size, documents.different, tuple(documents.first_different))


def export_tokens(folder: Path, to: Path) -> Exported:
    """Write the packed sequences as a Hugging Face data set, for `datasets.load_from_disk`.

    to: a folder, which appears when it is whole. Columns, all of the sequence's length: input_ids, labels,
    position_ids and seq_idx (int32), attention_mask (int8); what they hold stands in the data set's description. The
    one target of a piece that is cut off from its document's next token is lost. Raises UserError as `export_text`.
    """
    corpus, fingerprint = _open(folder)
    packing, length = corpus.packing, corpus.sequence_tokens
    rows = max(1, _SHARD_TOKENS // length)
    starts = range(0, packing.num_sequences, rows)
    with _appearing(to) as aside:
        schema, names = _describe_data_set(aside, length, len(starts), fingerprint)
        for start, name in zip(starts, names, strict=True):
            with pa.OSFile(str(aside / name), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                stop = min(start + rows, packing.num_sequences)
                for first in range(start, stop, step := max(1, rows // 16)):
                    writer.write_batch(_sequences(corpus, first, min(first + step, stop), schema))
    files, size = _size(to)
    return Exported(to, files, packing.num_sequences, size)


def _open(folder: Path) -> tuple[OpenCorpus, str]:
    """Return the corpus and its fingerprint."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != "corpus":
        expected = "the folder of a corpus that `onward prepare` has finished"
        raise UserError("this is not a prepared corpus", str(folder), expected=expected)
    return open_corpus(folder), manifest.fingerprint


@contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Give a place beside `to`, and make it `to` at the end; after an error nothing is left."""
    if to.exists():
        raise UserError("something is there already", str(to), todo="remove it, or name another place")
    aside = to.with_name(f".{to.name}.part")
    with disk_errors(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        try:
            yield aside
            aside.rename(to)
        except BaseException:
            _remove(aside)
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> tuple[int, int]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(files), sum(file.stat().st_size for file in files)


class _Documents:
    """The kept documents of a corpus with their text, block by block; counts those that come back otherwise."""

    def __init__(self, folder: Path, corpus: OpenCorpus, tokenizer: LoadedTokenizer) -> None:
        self._corpus, self._tokenizer = corpus, tokenizer
        self._decode = open_decoder(tokenizer)
        self._first = 0 if tokenizer.bos_id is None else 1
        self.tables = sorted(folder.glob("documents-*.parquet"))
        self.rows = self.different = 0
        self.first_different: list[str] = []

    def of(self, table: Path) -> Iterator[_Document]:
        """Yield the documents of one block."""
        for batch in parquet.ParquetFile(table).iter_batches(_ROWS, columns=list(_COLUMNS)):
            columns = [batch.column(name).to_pylist() for name in _COLUMNS]
            for name, source, offset, length, size, digest in zip(*columns, strict=True):
                tokens = self._corpus.read(offset, length)[self._first : -1]
                text, is_same = self._text(tokens, size, digest)
                self.rows += 1
                if not is_same:
                    self.different += 1
                    if len(self.first_different) < _NAMED:
                        self.first_different.append(name)
                yield _Document(name, source, text)

    def _text(self, tokens: TokenIds, size: int, digest: int) -> tuple[bytes, bool]:
        """Decode: quickly, and when that is not the kept text, by the reference."""
        if self._decode is not None:
            text = self._decode(tokens)
            if _is_kept(text, size, digest):
                return text, True
        text = self._tokenizer.decode(tokens.tolist()).encode()
        return text, _is_kept(text, size, digest)


def _is_kept(text: bytes, size: int, digest: int) -> bool:
    return len(text) == size and xxhash.xxh3_64_intdigest(text) == digest % 2**64


def _write_jsonl(documents: _Documents, to: Path, is_compressed: bool) -> None:
    with open(to, "wb", buffering=_BUFFER_BYTES) as file, _compressing(file, is_compressed) as stream:
        for table in documents.tables:
            for document in documents.of(table):
                record = {"id": document.id, "text": document.text.decode(), "source": document.source}
                stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


@contextmanager
def _compressing(file: BinaryIO, is_compressed: bool) -> Iterator[BinaryIO]:
    if not is_compressed:
        yield file
        return
    import zstandard

    with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as stream:
        yield stream


def _write_parquet(documents: _Documents, to: Path, _: bool) -> None:
    to.mkdir()
    for table in documents.tables:
        name = table.name.replace("documents", "text")
        with parquet.ParquetWriter(to / name, _TEXT, compression="zstd") as writer:
            rows: list[_Document] = []
            size = 0
            for document in documents.of(table):
                rows.append(document)
                size += len(document.text)
                if size >= _BATCH_BYTES:
                    writer.write_batch(_text_rows(rows))
                    rows, size = [], 0
            writer.write_batch(_text_rows(rows))


def _text_rows(rows: list[_Document]) -> pa.RecordBatch:
    columns = [[row.id for row in rows], [row.text.decode() for row in rows], [row.source for row in rows]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _TEXT, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_TEXT)


def _describe_data_set(folder: Path, length: int, shards: int, fingerprint: str) -> tuple[pa.Schema, list[str]]:
    """Let `datasets` write an empty data set of these columns, then name the files that will hold the rows."""
    import datasets

    narrow = datasets.List(datasets.Value("int8"), length=length)
    wide = datasets.List(datasets.Value("int32"), length=length)
    features = datasets.Features(input_ids=wide, labels=wide, position_ids=wide, seq_idx=wide, attention_mask=narrow)
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features)
    empty.info.description = _DESCRIPTION
    shows_progress = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    empty.save_to_disk(folder)
    if shows_progress:
        datasets.enable_progress_bars()
    state = orjson.loads((folder / "state.json").read_bytes())
    for file in state["_data_files"]:
        (folder / file["filename"]).unlink()
    names = [f"data-{n:05d}-of-{shards:05d}.arrow" for n in range(shards)]
    # What `datasets` caches it finds again by the fingerprint, so two corpora must not have the same.
    state |= {"_data_files": [{"filename": name} for name in names], "_fingerprint": fingerprint}
    (folder / "state.json").write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    return features.arrow_schema, names


def _sequences(corpus: OpenCorpus, start: int, stop: int, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of sequences [start, stop)."""
    shape = (stop - start, corpus.sequence_tokens)
    columns: dict[str, NDArray[Any]] = {name: np.zeros(shape, dtype=np.int32) for name in schema.names}
    columns["attention_mask"] = np.zeros(shape, dtype=np.int8)
    columns["labels"][:] = NO_TARGET
    columns["seq_idx"][:] = -1
    counting = np.arange(corpus.sequence_tokens, dtype=np.int32)
    for row, sequence in enumerate(range(start, stop)):
        at = 0
        for piece, (offset, length) in enumerate(zip(*corpus.sequence(sequence)[:2], strict=True)):
            span = slice(at, at + int(length))
            columns["input_ids"][row, span] = corpus.read(int(offset), int(length))
            columns["labels"][row, at + 1 : span.stop] = columns["input_ids"][row, at + 1 : span.stop]
            columns["position_ids"][row, span] = counting[:length]
            columns["seq_idx"][row, span] = piece
            at = span.stop
        columns["attention_mask"][row, :at] = 1
        # Padding counts from 0 like one more piece: kernels that cut where positions restart then see one, not many.
        columns["position_ids"][row, at:] = counting[: corpus.sequence_tokens - at]
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(columns[field.name].reshape(-1)), type=field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
