"""JSON lines: runs of whole lines are cut out of the content, and a worker parses them."""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import orjson

from onward.corpus import documents
from onward.corpus.documents import Fields, Item, Unfit, Unreadable
from onward.corpus.reading import pieces
from onward.corpus.reading.encodings import is_ascii_based
from onward.corpus.reading.inputs import InputFile
from onward.corpus.reading.pieces import Bad, Cut, Given, Lines, Position, failed, together
from onward.corpus.reading.records import json_reason, parsed
from onward.corpus.reading.streams import Content

MAXIMUM_RECORD_BYTES = 128_000_000
"""A longer line is counted and passed over, so that memory stays bounded: a line is held three times on its way."""
_LINE_FEED = 10


def cut_lines(file: InputFile, shown: str, encoding: str | None, start: Position) -> Cut:
    """Yield the lines of a file in pieces of about CHUNK_BYTES; nothing is parsed, only line ends are counted."""
    by_line = encoding is not None and is_ascii_based(encoding)  # then a worker decodes, and a bad line is only one
    content = Content(file, start, encoding, recode=not by_line)
    number, at = start.record, 0
    try:
        for run, size_bytes, is_last in line_runs(content.blocks()):
            first = number + 1
            number += 1 if run is None else _count_lines(run)
            at += size_bytes
            after = Position(start.file + 1) if is_last else content.position(at, number)
            if run is None:
                yield Given((Unreadable(f"{shown}:{first}", documents.too_long(MAXIMUM_RECORD_BYTES)),)), after
            else:
                yield Lines(shown, first, run, encoding if by_line else None), after
    except Unfit as unfit:
        yield failed(f"{shown}:{number + 1}", unfit.reason, start)


def _count_lines(run: bytes) -> int:
    # numpy compares many bytes at once: 0.16 ms for a megabyte where bytes.count takes 0.59.
    return int(np.count_nonzero(np.frombuffer(run, dtype=np.uint8) == _LINE_FEED))


class Run(NamedTuple):
    """Whole lines, None for a line over the limit. is_last: nothing follows."""

    content: bytes | None
    size_bytes: int
    is_last: bool = False


def line_runs(blocks: Iterator[bytes]) -> Iterator[Run]:
    """Yield as many lines as CHUNK_BYTES hold, but at least one.

    The lines before a break are given, what there is of the broken line is not.
    """
    held: list[bytes] = []
    size, is_long, failure = 0, False, None
    try:
        for block in blocks:
            held.append(block)
            size += len(block)
            if is_long and (end := block.find(b"\n") + 1):  # everything held belongs to the line that ends here
                held[-1], rest = block[:end], block[end:]
                size -= len(rest)
                yield _within_limit(b"".join(held), size)
                held, size, is_long = [rest], len(rest), False
            elif size > MAXIMUM_RECORD_BYTES and is_long:
                held = []
            while size >= pieces.CHUNK_BYTES and not is_long:
                run, held = _first_lines(held, size)
                size -= len(run)
                is_long = not run
                if run:
                    yield _within_limit(run, len(run))
    except Unfit as unfit:
        failure = unfit
    rest = b"".join(held)
    if failure is None and size:
        yield _within_limit(rest, size, is_last=True)
    elif failure is not None:
        if rest := rest[: rest.rfind(b"\n") + 1]:
            yield Run(rest, len(rest))
        raise failure


def _within_limit(content: bytes, size: int, is_last: bool = False) -> Run:
    """Return a run; only a single line can be over the limit, and what was held of it is let go."""
    return Run(content if size <= MAXIMUM_RECORD_BYTES else None, size, is_last)


def _first_lines(held: list[bytes], size: int) -> tuple[bytes, list[bytes]]:
    """Return the lines within the first CHUNK_BYTES, else the first line, else b''; and what remains held."""
    last = held[-1]
    end = last.rfind(b"\n", 0, max(0, pieces.CHUNK_BYTES - size + len(last))) + 1
    if end:  # nearly always: the content is then copied once
        return b"".join([*held[:-1], memoryview(last)[:end]]), [last[end:]]
    whole = b"".join(held)
    end = whole.rfind(b"\n", 0, pieces.CHUNK_BYTES) + 1 or whole.find(b"\n", pieces.CHUNK_BYTES) + 1
    return whole[:end], [whole[end:]]


def open_lines(piece: Lines, fields: Fields) -> Iterator[Item]:
    """Yield the documents of the lines; bad lines that follow each other for one reason are one Unreadable."""
    return together(_opened(piece, fields), piece.where)


def _opened(piece: Lines, fields: Fields) -> Iterator[Item | Bad]:
    content = piece.content.removeprefix(codecs.BOM_UTF8) if piece.first == 1 else piece.content
    for number, line in enumerate(content.split(b"\n"), start=piece.first):
        if not line:
            continue
        try:
            record = orjson.loads(line) if piece.encoding is None else parsed(line.decode(piece.encoding))
        except ValueError:
            if line.isspace():
                continue
            try:
                record = parsed(line if piece.encoding is None else line.decode(piece.encoding))
            except orjson.JSONDecodeError:
                yield Bad(number, documents.BROKEN_JSON if piece.encoding else json_reason(line))
                continue
            except UnicodeError:
                yield Bad(number, documents.not_encoded(str(piece.encoding)))
                continue
        if reason := documents.reason_against(record, fields):
            yield Bad(number, reason, documents.fields_to_show(reason, record))
        elif isinstance(record, dict):
            yield from documents.from_record(record, fields, piece.path, piece.where(number))
