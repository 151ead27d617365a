"""Content: a file opened and decompressed from a place on, and where a later run begins for a later place."""

import codecs
import io
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from onward.corpus.documents import Unfit, not_encoded
from onward.corpus.reading.compression import decompressor_for
from onward.corpus.reading.encodings import by_mark
from onward.corpus.reading.inputs import InputFile
from onward.corpus.reading.pieces import Position
from onward.corpus.reading.remote import RemoteFile
from onward.errors import UserError

BLOCK_BYTES = 1 << 20
_MARK_BYTES = 4


def open_raw(file: InputFile) -> IO[bytes]:
    """Open a file for reading; raises UserError when it may not be read."""
    if file.is_remote:
        return io.BufferedReader(RemoteFile(file), BLOCK_BYTES)
    try:
        return open(Path(file.path).expanduser(), "rb")
    except OSError as error:
        raise cannot_read(file, error) from None


def cannot_read(file: InputFile, error: OSError) -> UserError:
    """Return what is said when a file of this machine cannot be opened or read to its end."""
    return UserError("this file cannot be read", file.path, error.strerror or str(error), todo="check its permissions")


class Content:
    """The decompressed content of a file from a position on.

    A plain file seeks. A compressed one begins at the frame (zstd) or member (gzip) that holds the position, and its
    content before the position is decompressed again but neither cut nor parsed.

    recode: makes UTF-8 of content in `encoding`, or in that of its byte order mark (UTF-16, UTF-32) when that is
    None; recoded content always begins at the start of the file.
    """

    def __init__(self, file: InputFile, start: Position, encoding: str | None = None, recode: bool = False) -> None:
        self._file = file
        self._start = start
        self._encoding = encoding if recode else None
        self._looks_for_mark = recode and encoding is None and not start.offset
        self._decompress = decompressor_for(file.path)
        self._frames = deque([(-start.skip, start.offset)])

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in blocks of at most a megabyte (recoded ones of up to three).

        Raises Unfit where the compression or the encoding breaks, after all before it; UserError when reading fails.
        """
        left = self._start.skip
        try:
            for block in self._recoded():
                if left >= len(block):
                    left -= len(block)
                    continue
                yield block[left:] if left else block
                left = 0
        except OSError as error:
            raise cannot_read(self._file, error) from None

    def position(self, content_bytes: int, record: int) -> Position:
        """Return where reading goes on after so many bytes of this content, which grow from call to call."""
        start = self._start
        if self._encoding is not None:
            return Position(start.file, 0, start.skip + content_bytes, record)
        if self._decompress is None:
            return Position(start.file, start.offset + content_bytes, 0, record)
        while len(self._frames) > 1 and self._frames[1][0] <= content_bytes:
            self._frames.popleft()
        begin, offset = self._frames[0]
        return Position(start.file, offset, content_bytes - begin, record)

    def _stored(self) -> Iterator[bytes]:
        with open_raw(self._file) as raw:
            if self._start.offset:
                raw.seek(self._start.offset)
            if self._decompress is None:
                while block := raw.read(BLOCK_BYTES):
                    yield block
                return
            at = -self._start.skip
            for frame, block in self._decompress(raw, self._start.offset):
                if frame != self._frames[-1][1]:
                    self._frames.append((at, frame))
                at += len(block)
                yield block

    def _recoded(self) -> Iterator[bytes]:
        stored = self._stored()
        if self._looks_for_mark:
            begin = b""
            while len(begin) < _MARK_BYTES and (block := next(stored, b"")):
                begin += block
            self._encoding = by_mark(begin)
            stored = chain([begin] if begin else [], stored)
        if self._encoding is None:
            yield from stored
            return
        decoder = codecs.getincrementaldecoder(self._encoding)()
        try:
            for block in stored:
                yield decoder.decode(block).encode()
            yield decoder.decode(b"", final=True).encode()
        except UnicodeError:
            raise Unfit(not_encoded(self._encoding)) from None


def beginning(file: InputFile, size: int = 4096) -> bytes:
    """Return the first bytes of the content as UTF-8, fewer when it is shorter or breaks before."""
    begin = b""
    try:
        for block in Content(file, Position(), recode=True).blocks():
            begin += block[: size - len(begin)]
            if len(begin) >= size:
                break
    except Unfit:
        pass
    return begin
