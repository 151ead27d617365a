"""Parquet: row batches of the needed columns are cut out as Arrow streams, and a worker makes records of them."""

from collections.abc import Iterator
from typing import Any

from onward.corpus import documents
from onward.corpus.documents import Fields, Item, Unreadable
from onward.corpus.reading import pieces
from onward.corpus.reading.inputs import InputFile
from onward.corpus.reading.lines import MAXIMUM_RECORD_BYTES
from onward.corpus.reading.pieces import Bad, Cut, Given, Position, Rows, failed, together
from onward.corpus.reading.streams import open_raw

_MAXIMUM_ROWS = 1024
_PAGE_BYTES = 1 << 20
"""Read ahead in a column; without a number a whole column of a row group would be held."""


def cut_rows(file: InputFile, shown: str, fields: Fields, start: Position) -> Cut:
    """Yield the rows in pieces of about CHUNK_BYTES; row groups before the position are passed over unread."""
    import pyarrow as pa
    from pyarrow import parquet

    row = start.record
    with open_raw(file) as raw:
        try:
            table = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=_PAGE_BYTES)
            names = table.schema_arrow.names
            missing = next((name for name in (fields.text, fields.group) if name and name not in names), None)
            if missing is not None:
                if count := table.metadata.num_rows:
                    bad = Unreadable(f"{shown}:1", documents.no_field(missing), tuple(names), count)
                    yield Given((bad,)), Position(start.file + 1)
                return
            wanted = [name for name in names if name in ("id", fields.text, fields.group)]
            for first, batch in _batches(table, wanted, start.record):
                row = first + batch.num_rows
                if batch.nbytes > MAXIMUM_RECORD_BYTES:  # a single row: longer batches were halved
                    bad = Unreadable(f"{shown}:{row}", documents.too_long(MAXIMUM_RECORD_BYTES))
                    yield Given((bad,)), Position(start.file, record=row)
                    continue
                yield Rows(shown, first + 1, _as_stream(batch)), Position(start.file, record=row)
        except (pa.ArrowException, OSError):
            yield failed(f"{shown}:{row + 1}", documents.BROKEN_PARQUET, start)


def _batches(table: Any, wanted: list[str], given: int) -> Iterator[tuple[int, Any]]:
    """Yield (rows before it, batch) from row `given` on; the borders are those of a reading from the start."""
    first = 0
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if first + group.num_rows <= given:
            first += group.num_rows
            continue
        row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = min(_MAXIMUM_ROWS, max(1, pieces.CHUNK_BYTES // row_bytes))
        for batch in table.iter_batches(rows, [number], wanted, use_threads=False):
            for part in _parts(batch):
                if first >= given:
                    yield first, part
                first += part.num_rows


def _parts(batch: Any) -> Iterator[Any]:
    """Halve a batch until its parts are of the size of a chunk; compressed rows do not show theirs before."""
    if batch.nbytes <= 2 * pieces.CHUNK_BYTES or batch.num_rows == 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half))
    yield from _parts(batch.slice(half))


def _as_stream(batch: Any) -> bytes:
    import pyarrow as pa

    bare = pa.RecordBatch.from_arrays(batch.columns, names=batch.schema.names)  # metadata may be long
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, bare.schema) as stream:
        stream.write_batch(bare)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def open_rows(piece: Rows, fields: Fields) -> Iterator[Item]:
    """Yield the documents of the rows; bad rows that follow each other for one reason are one Unreadable."""
    return together(_opened(piece, fields), lambda row: f"{piece.path}:{row}")


def _opened(piece: Rows, fields: Fields) -> Iterator[Item | Bad]:
    import pyarrow as pa

    with pa.ipc.open_stream(piece.content) as stream:
        batch = stream.read_next_batch()
    names = batch.schema.names
    for row, values in enumerate(zip(*map(_values, batch.columns), strict=True), start=piece.first):
        record = dict(zip(names, values, strict=True))
        if any(isinstance(value, UnicodeDecodeError) for value in values):
            yield Bad(row, documents.NOT_UTF8)
        elif reason := documents.reason_against(record, fields):
            yield Bad(row, reason, documents.fields_to_show(reason, record))
        else:
            yield from documents.from_record(record, fields, piece.path, f"{piece.path}:{row}")


def _values(column: Any) -> list[Any]:
    """Return the Python values of a column, with the error in the place of text that is not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(value) for value in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
