"""The tables beside the tokens: documents, what was dropped, duplicates, contamination, and the held-out text."""

from array import array
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

_TEXTS = ("id", "source", "group", "text", "reason", "excerpt", "kind")


def _schema(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string() if name in _TEXTS else pa.int64()) for name in names])


DOCUMENTS = _schema("number", "id", "source", "offset", "length", "bytes", "digest")
"""Kept documents. number: in reading order. offset, length: tokens of the store. digest: xxh3-64 of the kept text."""
DROPPED = _schema("number", "id", "source", "reason", "excerpt")
"""What a rule dropped, and unreadable records (number -1)."""
DUPLICATES = _schema("number", "id", "source", "kind", "of", "bands", "excerpt").append(pa.field("share", pa.float32()))
"""Repeated documents. of: number of the kept or held-out document that was read first, -1 in another corpus or where
many were. bands: how many bands of the signature are equal, for near ones. share: of the passages looked at that were
read before, for covered ones.
"""
HELD_OUT = _schema("number", "id", "source", "group", "text", "bytes")
HELD_OUT_FILE = "held_out.parquet"
FACTS_FILE = "facts.json"
"""The last file of a corpus: how it was tokenised and packed, and the histograms of the quality rules."""
LISTED_ROWS = 10_000
"""Rows kept of each reason; the ledger has the full counts. Near-duplicates are all listed, with whom they met."""
EXCERPT_CHARACTERS = 200
_GROUP_ROWS = 32_768


class TableWriter:
    """Writes a Parquet file, many rows at a time; without rows there is a file with columns alone."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = parquet.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, *columns: Sequence[object] | NDArray[np.number[Any]]) -> None:
        """Append rows, column by column in the order of the schema."""
        if len(columns[0]):
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._waiting.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows += len(columns[0])
            if self._rows >= _GROUP_ROWS:
                self._flush()

    def close(self) -> None:
        """Write what is left."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._rows = [], 0


class HeldOutSpill:
    """Held-out documents of one block, waiting in a file for those of the other blocks."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")

    def add(self, order: int, row: tuple[int | str | None, ...]) -> None:
        """Append a document; order: uniform 64-bit hash that decides its place."""
        content = orjson.dumps(row)
        self._file.write(order.to_bytes(8, "little") + len(content).to_bytes(8, "little") + content)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def write_held_out(spills: Sequence[Path], to: Path) -> None:
    """Write held_out.parquet in ascending order of the hashes, so that a prefix is a stable random sample.

    Memory holds 32 bytes for each document, and some megabytes of text.
    """
    places = _places(spills)
    with closing(parquet.ParquetWriter(to, HELD_OUT, compression="zstd")) as writer:
        rows: list[list[object]] = []
        size = 0
        for _, number, at, length in places[np.lexsort((places["at"], places["block"], places["order"]))].tolist():
            with open(spills[number], "rb") as file:  # opened for each: there may be more blocks than files allowed
                file.seek(at)
                rows.append(orjson.loads(file.read(length)))
            size += length
            if len(rows) >= 4096 or size >= 16_000_000:
                writer.write_table(_held_out_table(rows))
                rows, size = [], 0
        writer.write_table(_held_out_table(rows))


def _places(spills: Sequence[Path]) -> NDArray[np.void]:
    """Return where each waiting document lies: its order, its block, the place and the length of its content."""
    columns = [array("Q") for _ in range(4)]
    for number, path in enumerate(spills):
        with open(path, "rb") as file:
            while head := file.read(16):
                length = int.from_bytes(head[8:], "little")
                facts = (int.from_bytes(head[:8], "little"), number, file.tell(), length)
                for column, fact in zip(columns, facts, strict=True):
                    column.append(fact)
                file.seek(length, 1)
    names = ("order", "block", "at", "length")
    places = np.empty(len(columns[0]), dtype=[(name, np.uint64) for name in names])
    for name, column in zip(names, columns, strict=True):
        places[name] = np.frombuffer(column, dtype=np.uint64) if column else 0
    return places


def _held_out_table(rows: list[list[object]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(HELD_OUT)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, HELD_OUT, strict=True)]
    return pa.table(arrays, schema=HELD_OUT)
