"""Chunks: what the reading process hands out and a worker opens.

Reading is split where it is cheap: `read_chunks` opens, decompresses and cuts raw bytes, in one process, so it parses
nothing; `open_chunk` parses, decodes and extracts, in any process on any machine. Borders of chunks are a function of
the input, so reading that goes on after a position yields exactly the chunks that would have followed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from onward.corpus.documents import Document, Fields, Item
from onward.corpus.reading import builtin, formats, pieces
from onward.corpus.reading.cutting import cut_file
from onward.corpus.reading.inputs import Inputs
from onward.corpus.reading.lines import open_lines
from onward.corpus.reading.parquet_rows import open_rows
from onward.corpus.reading.pieces import Chunk, Cut, Given, Lines, Piece, Position, Rows, Segment, Whole, size_of
from onward.corpus.reading.whole_files import open_segment, open_whole
from onward.errors import UserError

__all__ = ["Chunk", "Position", "items_in", "open_chunk", "read_chunks", "ready_chunks"]

_MAXIMUM_PIECES = 1000
"""Most files in a chunk (or ready documents in a piece): each also costs its opening."""


def read_chunks(inputs: Inputs, after: Position | None = None) -> Iterator[tuple[Chunk, Position]]:
    """Yield the chunks of a source in reading order, each with the position to go on after it.

    after: go on there; files before it are not opened, plain files seek, Parquet goes to the row group, compressed
    files begin at the frame or member that holds it. A stream of a single frame is decompressed again up to the place
    (about 500 MB/s of content for zstd, 200 for gzip), without cutting or parsing. Raises UserError when reading
    itself fails; what is broken in the content comes as Unreadable, in its place.
    """
    start = after or Position()
    if inputs.source.path == builtin.PYTHON_DOCS:
        return _grouped(_cut_ready(builtin.python_docs(), start))
    _refuse_groups(inputs)
    return _grouped(chain.from_iterable(_cut_all(inputs, start)))


def ready_chunks(documents: Iterable[Document]) -> Iterator[Chunk]:
    """Yield chunks of documents that exist already, such as sampled ones."""
    return (chunk for chunk, _ in _grouped(_cut_ready(documents, Position())))


def open_chunk(chunk: Chunk, fields: Fields) -> list[Item]:
    """Return what a chunk holds, in order: documents, and what cannot be read. A pure function, for a worker."""
    return list(items_in(chunk, fields))


def items_in(chunk: Chunk, fields: Fields) -> Iterator[Item]:
    """Yield what a chunk holds; of a very long record only the part in hand exists as a document."""
    for piece in chunk.pieces:
        match piece:
            case Lines():
                yield from open_lines(piece, fields)
            case Rows():
                yield from open_rows(piece, fields)
            case Whole():
                yield from open_whole(piece)
            case Segment():
                yield from open_segment(piece)
            case Given():
                yield from piece.items


def _cut_all(inputs: Inputs, start: Position) -> Iterator[Cut]:
    for number, file in enumerate(inputs.files[start.file :], start=start.file):
        # A packaged file lies elsewhere on every machine; its documents are named after the builtin.
        shown = inputs.source.path if inputs.source.path.startswith(builtin.PREFIX) else file.path
        yield cut_file(file, shown, inputs, start if number == start.file else Position(number))


def _cut_ready(documents: Iterable[Document], start: Position) -> Cut:
    held: list[Item] = []
    size, number = 0, start.record
    for number, document in enumerate(islice(documents, start.record, None), start=start.record + 1):
        held.append(document)
        size += len(document.text)
        if size >= pieces.CHUNK_BYTES // 2 or len(held) >= _MAXIMUM_PIECES:
            yield Given(tuple(held)), Position(record=number)
            held, size = [], 0
    if held:
        yield Given(tuple(held)), Position(record=number)


def _grouped(cut: Cut) -> Iterator[tuple[Chunk, Position]]:
    """Group small pieces (files of a folder, the last lines of a file and the next file) into chunks."""
    held: list[Piece] = []
    weight = 0
    after = Position()
    for piece, after in cut:
        held.append(piece)
        size = size_of(piece)
        weight += formats.weight_of(piece.path, size) if isinstance(piece, Whole) else size
        if weight >= pieces.CHUNK_BYTES // 2 or len(held) >= _MAXIMUM_PIECES:
            yield Chunk(tuple(held)), after
            held, weight = [], 0
    if held:
        yield Chunk(tuple(held)), after


def _refuse_groups(inputs: Inputs) -> None:
    """Raise UserError when a group is asked of files that are no records."""
    for file in inputs.files:
        if inputs.source.group is not None and formats.suffix_of(file.path) not in (*formats.RECORDS, *formats.TABLES):
            todo = "remove `group`, or give records (JSONL, Parquet) that hold the field"
            got = f"group: {inputs.source.group}"
            raise UserError("text files have no fields to group by", file.path, got, todo=todo)
