"""The tables beside the tokens: documents, what was dropped, and the held-out text."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import parquet

from onward.corpus.documents import Document

_STRINGS = ("id", "source", "group", "text", "reason", "excerpt")


def _schema(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string() if name in _STRINGS else pa.int64()) for name in names])


DOCUMENTS = _schema("id", "offset", "length", "bytes", "source")
DROPPED = _schema("id", "source", "reason", "excerpt")
HELD_OUT = _schema("id", "source", "group", "text", "bytes")
HELD_OUT_FILE = "held_out.parquet"
DROPPED_FILE = "dropped.parquet"
DROPPED_ROWS = 10_000
"""Rows kept of each reason; the ledger has the full counts."""
EXCERPT_CHARACTERS = 200
_BUFFER_ROWS = 4096
_BUFFER_CHARACTERS = 16_000_000


class RowWriter:
    """Writes rows to a Parquet file, some thousands or some megabytes of text at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = parquet.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._characters = 0

    def add(self, *row: str | int | None) -> None:
        """Append a row, its values in the order of the schema."""
        self._rows.append(row)
        self._characters += sum(len(value) for value in row if isinstance(value, str))
        if len(self._rows) >= _BUFFER_ROWS or self._characters >= _BUFFER_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Write what is left; a table without rows still has its columns."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._characters = [], 0


class DroppedWriter:
    """Writes dropped.parquet: the first rows of every reason."""

    def __init__(self, folder: Path) -> None:
        self._rows = RowWriter(folder / DROPPED_FILE, DROPPED)
        self._counts: dict[str, int] = {}

    def add(self, name: str, source: str, reason: str, text: str) -> None:
        """Append a document or record that was dropped."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if self._counts[reason] <= DROPPED_ROWS:
            self._rows.add(name, source, reason, text[:EXCERPT_CHARACTERS])

    def close(self) -> None:
        """Finish the file."""
        self._rows.close()


class HeldOutWriter:
    """Writes held_out.parquet in ascending order of a hash, so that a prefix is a stable random sample.

    The text waits in a file until the order is known; 24 bytes per document are held in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spill = folder / "held_out.waiting"
        self._file = open(self._spill, "w+b")
        self._hashes, self._starts = array("Q"), array("Q")

    def add(self, document: Document, order: int, size_bytes: int) -> None:
        """Append a held-out document; `order` is a uniform 64-bit hash."""
        self._hashes.append(order)
        self._starts.append(self._file.tell())
        self._file.write(orjson.dumps((document.id, document.source, document.group, document.text, size_bytes)))

    def close(self) -> None:
        """Sort, write, and remove the waiting file."""
        with self._file as file:
            ends = [*self._starts[1:], file.tell()]
            rows = RowWriter(self._folder / HELD_OUT_FILE, HELD_OUT)
            for n in np.argsort(np.array(self._hashes, dtype=np.uint64), kind="stable").tolist():
                file.seek(self._starts[n])
                rows.add(*orjson.loads(file.read(ends[n] - self._starts[n])))
            rows.close()
        self._spill.unlink()
