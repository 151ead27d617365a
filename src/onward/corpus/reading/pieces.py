"""Pieces: raw records as the reading process cuts them, chunks of pieces for a worker, and the place after them.

The reading process opens, decompresses and cuts; it parses nothing, because it is one and the workers are many. A
piece therefore holds bytes, and the numbers that turn into `path:line` if something in it cannot be read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from onward.corpus.documents import Document, Item, Unreadable

CHUNK_BYTES = 2_000_000
"""Raw bytes of a piece: a tenth of a second of work at 20 MB/s, long against the millisecond that sending it costs."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of JSON records. first: number of the first. encoding: None for UTF-8.

    in_list: they are elements of one JSON list, written one per line by the reader; their places are `path:[7]`.
    """

    path: str
    first: int
    content: bytes
    encoding: str | None = None
    in_list: bool = False

    def where(self, number: int) -> str:
        """Return the place of a line."""
        return f"{self.path}:[{number}]" if self.in_list else f"{self.path}:{number}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table. first: number of the first. content: a record batch of needed columns as an Arrow stream."""

    path: str
    first: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text file that is too long to be held. number: counts the parts. content: UTF-8."""

    path: str
    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole file, decompressed; its suffix says how it is read. encoding: the recipe's, None to find out."""

    path: str
    content: bytes
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """Documents that need no opening (builtin or sampled text), and what the reading process could not read."""

    items: tuple[Item, ...]


Piece = Lines | Rows | Segment | Whole | Given


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one worker opens at a time: pieces of about 1 to 3 MB together, more only where one record is longer."""

    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes (for given documents characters) that it holds; what is in flight is bounded by their sum."""
        return sum(map(size_of, self.pieces))


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on after a chunk; `dataclasses.asdict` makes it JSON, `Position(**value)` reads it.

    file: index among the input's files. offset: byte of the stored file where reading (for compressed files the
    decompression of a frame) begins. skip: decompressed bytes from there that are given. record: lines, rows or
    parts that are given, or documents of a source without files.
    """

    file: int = 0
    offset: int = 0
    skip: int = 0
    record: int = 0


def size_of(piece: Piece) -> int:
    """Return the bytes (for given documents characters) of a piece."""
    if isinstance(piece, Given):
        return sum(len(item.text) for item in piece.items if isinstance(item, Document))
    return len(piece.content)


Cut = Iterator[tuple[Piece, Position]]
"""Pieces of a file, each with the position after it."""


def failed(where: str, reason: str, start: Position) -> tuple[Piece, Position]:
    """Return what stands for the rest of a file that cannot be read; reading goes on with the next file."""
    return Given((Unreadable(where, reason),)), Position(start.file + 1)


class Bad(NamedTuple):
    """A line or row without a usable text, before it is counted together with those around it."""

    number: int
    reason: str
    fields: tuple[str, ...] = ()


def together(entries: Iterable[Item | Bad], where: Callable[[int], str]) -> Iterator[Item]:
    """Yield documents, and bad lines or rows that follow each other for the same reason as one Unreadable."""
    first: Bad | None = None
    count = 0
    for entry in entries:
        if first is not None:
            if isinstance(entry, Bad) and entry.reason == first.reason and entry.number == first.number + count:
                count += 1
                continue
            yield Unreadable(where(first.number), first.reason, first.fields, count)
            first = None
        if isinstance(entry, Bad):
            first, count = entry, 1
        else:
            yield entry
    if first is not None:
        yield Unreadable(where(first.number), first.reason, first.fields, count)
