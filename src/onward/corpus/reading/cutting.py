"""Cutting: files become pieces at record borders, which depend on the content alone, not on where reading began.

What cannot be read comes as a piece too, in its place, after everything before it.
"""

import codecs

import orjson

from onward.corpus import documents
from onward.corpus.documents import Unfit
from onward.corpus.reading import formats, lines, pieces
from onward.corpus.reading.inputs import InputFile, Inputs
from onward.corpus.reading.lines import cut_lines
from onward.corpus.reading.parquet_rows import cut_rows
from onward.corpus.reading.pieces import Cut, Lines, Position, Segment, Whole, failed
from onward.corpus.reading.records import json_reason, parsed, written
from onward.corpus.reading.streams import Content, beginning

WHOLE_TEXT_BYTES = 16_000_000
"""A text file up to here is held as a whole (4 million characters take at most so many bytes); a longer one is cut."""


def cut_file(file: InputFile, shown: str, inputs: Inputs, start: Position) -> Cut:
    """Yield the pieces of a file from a position on, each with the position after it.

    shown: the path in ids and places. Raises UserError when reading itself fails.
    """
    suffix, encoding = formats.suffix_of(file.path), inputs.encoding
    if suffix in formats.TABLES:
        return cut_rows(file, shown, inputs.fields, start)
    if suffix in formats.TEXTS:
        return _cut_text(file, shown, encoding, start)
    if suffix not in formats.RECORDS:
        return _cut_none(file, shown, encoding, start)
    if suffix == ".json" and beginning(file).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _cut_list(file, shown, encoding, start)
    return cut_lines(file, shown, encoding, start)


def _cut_list(file: InputFile, shown: str, encoding: str | None, start: Position) -> Cut:
    """A JSON list is parsed here and its elements are written as lines: nothing cheaper finds their borders."""
    try:
        whole = _all_of(file, start, lines.MAXIMUM_RECORD_BYTES, encoding, recode=True)
    except Unfit as unfit:
        yield failed(shown, unfit.reason, start)
        return
    try:
        records = parsed(whole.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        yield failed(f"{shown}:{error.lineno}", json_reason(whole), start)
        return
    assert isinstance(records, list), "it begins with a bracket"
    held: list[bytes] = []
    size, first = 0, start.record + 1
    for number, record in enumerate(records[start.record :], start=first):
        held.append(written(record))
        size += len(held[-1])
        if size >= pieces.CHUNK_BYTES:
            yield Lines(shown, first, b"\n".join(held), in_list=True), Position(start.file, record=number)
            held, size, first = [], 0, number + 1
    if held:
        yield Lines(shown, first, b"\n".join(held), in_list=True), Position(start.file + 1)


def _cut_text(file: InputFile, shown: str, encoding: str | None, start: Position) -> Cut:
    """A text file is one document; a very long one is cut into parts while it is read."""
    if not start.record:
        try:
            yield Whole(shown, _all_of(file, start, WHOLE_TEXT_BYTES), encoding), Position(start.file + 1)
            return
        except Unfit as unfit:
            if unfit.reason != documents.too_long(WHOLE_TEXT_BYTES):
                yield failed(shown, unfit.reason, start)
                return
    content = Content(file, start, encoding, recode=True)
    held = bytearray()
    number, at = start.record, 0
    try:
        for block in content.blocks():
            held += block
            while len(held) > documents.MAXIMUM_CHARACTERS:
                end = _part_border(held, documents.MAXIMUM_CHARACTERS)
                number, at = number + 1, at + end
                yield Segment(shown, number, bytes(held[:end])), content.position(at, number)
                del held[:end]
    except Unfit as unfit:
        yield failed(f"{shown}#{number + 1}", unfit.reason, start)
        return
    if held:
        yield Segment(shown, number + 1, bytes(held)), Position(start.file + 1)


def _part_border(text: bytearray, size: int) -> int:
    """Return where a part of at most `size` bytes ends: after a line, else before a space, else after a character."""
    border = text.rfind(b"\n", size // 2, size) + 1 or text.rfind(b" ", size // 2, size)
    if border > 0:
        return border
    return next((end for end in range(size, size - 4, -1) if text[end] & 0xC0 != 0x80), size)


def _cut_none(file: InputFile, shown: str, encoding: str | None, start: Position) -> Cut:
    """HTML, PDF, DOCX and EPUB make sense as a whole only."""
    try:
        content = _all_of(file, start, formats.maximum_bytes(formats.suffix_of(file.path)))
    except Unfit as unfit:
        yield failed(shown, unfit.reason, start)
    else:
        yield Whole(shown, content, encoding), Position(start.file + 1)


def _all_of(
    file: InputFile, start: Position, maximum_bytes: int, encoding: str | None = None, recode: bool = False
) -> bytes:
    """Return all of a file's content; raises Unfit when it is broken or longer than allowed."""
    held: list[bytes] = []
    size = 0
    for block in Content(file, Position(start.file), encoding, recode).blocks():
        size += len(block)
        if size > maximum_bytes:
            raise Unfit(documents.too_long(maximum_bytes))
        held.append(block)
    return b"".join(held)
