"""A sample of a corpus's files, taken through its own preparation: what is kept of it, and what that tells of the rest.

The rules, the tokenizer, the search for duplicates and the packing are those of the recipe; only benchmark items are
not looked for, which takes their data and changes little. Nothing outlives the call.
"""

import time
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from math import ceil, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from onward.corpus import blocks
from onward.corpus.documents import Document
from onward.corpus.duplicates.seen import Seen
from onward.corpus.examine import Rules, Task, examine
from onward.corpus.ledger import Tally
from onward.corpus.packing import load_packing
from onward.corpus.preparation import Preparation
from onward.corpus.reading.chunks import Chunk, read_chunks
from onward.corpus.reading.compression import decompressor_for
from onward.corpus.reading.formats import TABLES, suffix_of
from onward.corpus.reading.inputs import InputFile, Inputs
from onward.corpus.reading.pieces import Position
from onward.corpus.reading.sources import read_source
from onward.corpus.reading.streams import open_raw
from onward.corpus.sorting import Sorter
from onward.corpus.tables import HELD_OUT_FILE, write_held_out
from onward.corpus.tokenise import choose_engine
from onward.plan.foresight import Range
from onward.progress import Progress

SAMPLE_BYTES = 6_000_000
"""Content read of each source: some seconds of work, and some thousand web pages, whose kept share is then known to a
few per cent."""
_FILES, _REMOTE_FILES, _MOST_FILES = 6, 2, 300
"""The files that a sample comes from, evenly spread over the source; small ones are read whole, and more of them."""
_ENGINE_DOCUMENTS = 200
_LEAST_ERROR = 0.05
"""What was not read may differ from what was: no estimate claims to be closer, as a share of itself."""
_READ_BYTES = 1 << 10


@dataclass(frozen=True)
class SourceSample:
    """What was read of one source, and what its whole gives by that.

    stored_bytes: of all its files, None where a server does not tell. is_whole: whether all of it was read.
    read_documents: in the sample. text_bytes: of the whole source as text. documents, tokens: kept of the whole.
    """

    inputs: Inputs
    stored_bytes: int | None
    is_whole: bool
    read_documents: int
    text_bytes: Range
    documents: Range
    tokens: Range


@dataclass(frozen=True)
class Sample:
    """What was read of a corpus.

    tally: where the sample's documents went. fill: share of the packed places that hold a token. pairs_per_token: mean
    length that a position looks back over, itself included. bytes_per_token: of a prepared corpus on the disk.
    seconds_per_byte: of text, in one process, after the first chunk where there are several.
    """

    sources: tuple[SourceSample, ...]
    tally: Tally
    fields: tuple[str, ...]
    fill: float
    pairs_per_token: float
    disk_bytes_per_token: float
    seconds_per_byte: float


@dataclass(frozen=True)
class _Unit:
    """A chunk of the sample: the stored bytes that it came from, and what was kept of it.

    sizes, lengths: of every document, in bytes as read and in tokens kept by the rules (duplicates too).
    """

    stored: float
    text: int
    documents: int
    tokens: int
    seconds: float
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]


def take_sample(preparation: Preparation, progress: Progress) -> Sample:
    """Read some of every source through the recipe's own rules; raises UserError when reading itself fails."""
    progress.begin(f"reading a sample of {preparation.section}", None, "documents")
    with TemporaryDirectory(prefix="onward-plan-") as name:
        return _Sampling(preparation, Path(name)).all(progress)


class _Sampling:
    """The preparation of a sample in a folder of its own."""

    def __init__(self, preparation: Preparation, folder: Path) -> None:
        self._job, self._folder = preparation, folder
        corpus, duplicates = preparation.corpus, preparation.corpus.duplicates
        (folder / blocks.STATE).mkdir()
        items = (item for inputs in preparation.training for item in read_source(inputs))
        texts = (item.text for item in items if isinstance(item, Document))
        self._rules = Rules(
            unicode=corpus.unicode,
            quality=corpus.quality,
            near=None if duplicates is None else duplicates.near,
            looks_at_passages=duplicates is not None and duplicates.covered is not None,
            contamination=None,
            items=None,
            held_out_share=Fraction(0) if preparation.held_out else corpus.held_out.share,
            tokenizer=preparation.tokenizer,
            engine=choose_engine(preparation.tokenizer, list(islice(texts, _ENGINE_DOCUMENTS))),
            maximum_unknown=corpus.maximum_unknown_tokens,
            minimum_bytes_per_token=corpus.minimum_bytes_per_token,
        )
        self._seen = Seen(
            folder / blocks.STATE / "seen",
            self._rules.key_columns,
            exact=duplicates is not None and duplicates.exact,
            covered=None if duplicates is None else duplicates.covered,
            against=[Path(path) / "seen.npy" for path in duplicates.against] if duplicates else [],
        )
        self._sorter = Sorter(
            folder,
            vocabulary_size=preparation.tokenizer.vocabulary_size,
            sequence_tokens=preparation.sequence_tokens,
            packing=corpus.packing,
            block_tokens=1 << 40,
            wanted_tokens=None,
            seen=self._seen,
            item_names=(),
            action="report",
        )

    def all(self, progress: Progress) -> Sample:
        """Read the sample of every source and close the books."""
        try:
            sources, units = [], []
            for inputs in self._job.training:
                found, whole = self._units(inputs, progress)
                sources.append(_source(inputs, found, whole))
                units += found
            self._sorter.finish_block()
            write_held_out(blocks.spills(self._folder, self._sorter.number_of_blocks), self._folder / HELD_OUT_FILE)
            self._seen.close(self._folder / "seen.npy")
        except BaseException:
            self._sorter.abandon()
            self._seen.abandon()
            raise
        blocks.remove_state(self._folder)
        tally, size = self._sorter.tally, sum(path.stat().st_size for path in self._folder.iterdir())
        timed = units[1:] if len(units) > 1 else units  # the first chunk waits for compilers and caches
        lengths = np.zeros(0, dtype=np.int64)
        if self._sorter.number_of_blocks:
            lengths = load_packing(self._folder / "packing-00000.npz").piece_length.astype(np.int64)
        return Sample(
            sources=tuple(sources),
            tally=tally,
            fields=tuple(self._sorter.fields),
            fill=tally.packed_tokens / max(tally.packed_tokens + tally.padding_tokens, 1),
            pairs_per_token=pairs_per_token(lengths),
            disk_bytes_per_token=size / max(tally.kept_tokens, 1),
            seconds_per_byte=sum(unit.seconds for unit in timed) / max(sum(unit.text for unit in timed), 1),
        )

    def _units(self, inputs: Inputs, progress: Progress) -> tuple[list[_Unit], bool]:
        """Examine and sort the sample of one source; return its chunks and whether they are all there is."""
        units: list[_Unit] = []
        parts, is_whole = _parts(inputs, SAMPLE_BYTES)
        for part, most in parts:
            chunks, stored, ended = _chunks(part, most)
            is_whole &= ended
            content = sum(chunk.size_bytes for chunk in chunks)
            for chunk in chunks:
                units.append(self._unit(Task(chunk, part.fields, False, None), stored / max(content, 1)))
                progress.advance(self._sorter.tally.read.documents)
        return units, is_whole

    def _unit(self, task: Task, stored_per_byte: float) -> _Unit:
        started, before = time.perf_counter(), self._sorter.tally
        read, kept, tokens = before.read.bytes, before.kept.documents, before.kept_tokens
        examined = examine(task, self._rules)
        self._sorter.take(examined, None)
        after = self._sorter.tally
        return _Unit(
            task.chunk.size_bytes * stored_per_byte,
            after.read.bytes - read,
            after.kept.documents - kept,
            after.kept_tokens - tokens,
            time.perf_counter() - started,
            np.concatenate([each.read_bytes for each in examined]),
            np.concatenate([np.where(each.reason < 0, np.diff(each.starts), 0) for each in examined]),
        )


def pairs_per_token(lengths: NDArray[np.int64]) -> float:
    """Return sum L (L + 1) / 2 over sum L of the pieces of documents; lengths: int64, in tokens."""
    return float((lengths * (lengths + 1) / 2).sum() / max(int(lengths.sum()), 1))


def _parts(inputs: Inputs, sample_bytes: int) -> tuple[list[tuple[Inputs, int]], bool]:
    """Choose the files of a sample, each with the bytes to read of it; return also whether they are all files."""
    files = inputs.files
    if not files:
        return [(inputs, sample_bytes)], True
    sizes = [file.size_bytes or 0 for file in files]
    if not any(file.is_remote for file in files) and sum(sizes) * _expansion(files) <= sample_bytes:
        return [(inputs, 1 << 62)], True  # in one reading: small files then share their chunks
    wanted = ceil(sample_bytes / max(1, sum(sizes) * _expansion(files) / len(files)))
    least = _REMOTE_FILES if files[0].is_remote else _FILES
    number = min(len(files), max(least, min(wanted, _MOST_FILES)))
    chosen = [files[n * len(files) // number] for n in range(number)]
    return [(replace(inputs, files=(file,)), sample_bytes // number) for file in chosen], number == len(files)


def _expansion(files: tuple[InputFile, ...]) -> int:
    """Return about how many bytes of content a stored byte is: text compresses to a third or a quarter."""
    return 4 if any(decompressor_for(file.path) or suffix_of(file.path) in TABLES for file in files) else 1


def _chunks(inputs: Inputs, most_bytes: int) -> tuple[list[Chunk], float, bool]:
    """Read a part of a sample; return it, the stored bytes that it came from, and whether it was read to its end."""
    chunks: list[Chunk] = []
    content, reached = 0, Position()
    for chunk, position in read_chunks(inputs):
        chunks.append(chunk)
        content += chunk.size_bytes
        reached = position
        if content >= most_bytes:
            break
    else:
        return chunks, sum(file.size_bytes or 0 for file in inputs.files) or content, True
    if not inputs.files:
        return chunks, content, False
    file = inputs.files[0]
    if reached.file >= len(inputs.files):
        return chunks, file.size_bytes or content, True
    return chunks, _stored(file, content, reached), False


def _stored(file: InputFile, content_bytes: int, position: Position) -> float:
    """Return how much of a stored file its first content is, up to a position."""
    if suffix_of(file.path) in TABLES:
        from pyarrow import parquet

        with open_raw(file) as raw:
            rows: int = parquet.ParquetFile(raw, pre_buffer=False).metadata.num_rows
        return (file.size_bytes or content_bytes) * position.record / max(rows, 1)
    decompress = decompressor_for(file.path)
    if decompress is None:
        return min(content_bytes, file.size_bytes or content_bytes)
    with open_raw(file) as raw:
        counted, given = _Counted(raw), 0
        for _, block in decompress(cast("IO[bytes]", counted), 0):
            given += len(block)
            if given >= content_bytes:
                break
        return counted.read_bytes * min(1.0, content_bytes / max(given, 1))


class _Counted:
    """A stored file that is read in small steps and counts them."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.read_bytes = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, not more than a few kilobytes."""
        block = self._raw.read(min(size, _READ_BYTES))
        self.read_bytes += len(block)
        return block


def _source(inputs: Inputs, units: list[_Unit], is_whole: bool) -> SourceSample:
    """Say what a source gives as a whole, by its sample."""
    sizes = [file.size_bytes for file in inputs.files]
    known = None if any(size is None for size in sizes) else sum(size or 0 for size in sizes)
    stored = sum(unit.stored for unit in units)
    factor = 1.0 if is_whole or not stored else max(1.0, (known or stored) / stored)
    error = 0.0 if is_whole else max(_LEAST_ERROR, 2 * _relative_error(units) * sqrt(max(0.0, 1 - 1 / factor)))

    def whole(sampled: float) -> Range:
        expected = sampled * factor
        return Range(max(sampled, expected * (1 - error)), expected, expected * (1 + error))

    return SourceSample(
        inputs=inputs,
        stored_bytes=known,
        is_whole=is_whole,
        read_documents=sum(len(unit.sizes) for unit in units),
        text_bytes=whole(sum(unit.text for unit in units)),
        documents=whole(sum(unit.documents for unit in units)),
        tokens=whole(sum(unit.tokens for unit in units)),
    )


def _relative_error(units: list[_Unit]) -> float:
    """Return the standard error of kept tokens per byte, as a share: the larger of that over documents and chunks.

    Ratio estimator: sqrt(n / (n - 1) x sum (y - R x)^2) / sum y (Cochran, Sampling Techniques, chapter 6).
    """
    if not units:
        return 0.0
    by_document = (np.concatenate([u.sizes for u in units]), np.concatenate([u.lengths for u in units]))
    by_chunk = (np.array([unit.stored for unit in units]), np.array([unit.tokens for unit in units]))
    return max(_ratio_error(*by_document), _ratio_error(*by_chunk))


def _ratio_error(x: NDArray[Any], y: NDArray[Any]) -> float:
    if len(x) < 2 or not y.sum() or not x.sum():
        return 0.0
    residuals = y - x * (y.sum() / x.sum())
    return sqrt(len(x) / (len(x) - 1) * float((residuals**2).sum())) / float(y.sum())
