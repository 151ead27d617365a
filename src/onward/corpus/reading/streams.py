"""Bytes of local and remote files: opened, decompressed, cut into lines, with bounded memory and patient retries."""

import io
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from onward.errors import UserError

BLOCK_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 14
"""Compressed bytes per step; all that they hold comes out at once, so they are few."""
MAXIMUM_RECORD_BYTES = 512_000_000
RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0)

Result = TypeVar("Result")


class Truncated(Exception):
    """A compressed file ends before its end."""


class Damaged(Exception):
    """A compressed file is not what its suffix says."""


@dataclass(frozen=True)
class InputFile:
    """One file to read. path: as shown to the user. version: changes with the content (mtime in ns, or an etag)."""

    path: str
    size_bytes: int | None
    version: str | None

    @property
    def is_remote(self) -> bool:
        """Whether fsspec opens it."""
        return "://" in self.path


def open_raw(file: InputFile) -> IO[bytes]:
    """Open a file for reading; raises UserError when it may not be read."""
    if file.is_remote:
        return io.BufferedReader(RemoteFile(file), BLOCK_BYTES)
    try:
        return open(Path(file.path).expanduser(), "rb")
    except OSError as error:
        raise UserError("this file cannot be read", file.path, error.strerror, todo="check its permissions") from None


def blocks(file: InputFile) -> Iterator[bytes]:
    """Yield the decompressed content in blocks; raises Truncated or Damaged where the compression breaks."""
    with open_raw(file) as raw:
        if how := _decompressor(file.path):
            yield from _decompress(raw, *how)
        else:
            while block := raw.read(BLOCK_BYTES):
                yield block


def _decompressor(path: str) -> tuple[Callable[[], Any], type[Exception]] | None:
    """Return what opens a frame of this file's compression and what it raises; None for a plain file."""
    if path.endswith(".gz"):
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    if path.endswith((".zst", ".zstd")):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
    return None


def _decompress(raw: IO[bytes], open_frame: Callable[[], Any], error_kind: type[Exception]) -> Iterator[bytes]:
    """Decompress frame after frame, giving all that there is before a break.

    The libraries' own file objects lose the last megabyte before a missing end (gzip) or take it for the end (zstd).
    """
    frame = None
    try:
        while compressed := raw.read(COMPRESSED_BYTES):
            while compressed := compressed if frame else compressed.lstrip(b"\0"):  # gzip may be padded with zeros
                frame = frame or open_frame()
                if block := frame.decompress(compressed):
                    yield block
                compressed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except error_kind as error:
        raise Damaged from error
    if frame is not None:
        raise Truncated


def lines(pieces: Iterator[bytes], maximum_bytes: int = MAXIMUM_RECORD_BYTES) -> Iterator[bytes | None]:
    """Yield lines without their line feed; None stands for a line of more than `maximum_bytes`, which is skipped."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for line in ended:
            size += len(line)
            yield b"".join([*parts, line]) if size <= maximum_bytes else None
            parts, size = [], 0
        size += len(rest)
        if size <= maximum_bytes:
            parts.append(rest)
        else:
            parts = []
    if size:
        yield b"".join(parts) if size <= maximum_bytes else None


def patiently(action: Callable[[], Result], where: str) -> Result:
    """Do something over the network, again after 1, 2, 4 and 8 seconds when it fails; then raise UserError."""
    for delay in (*RETRY_DELAYS_SECONDS, None):
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError):
            raise
        except Exception as error:  # fsspec's back ends raise families (aiohttp, httpx, botocore) without common root
            if delay is None:
                todo = "check the network and run again: finished work is kept"
                got = f"{type(error).__name__}: {error}"
                raise UserError("a remote file cannot be read", where, got, todo=todo) from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


class RemoteFile(io.RawIOBase):
    """A remote file that is opened again, at the place where it was, when the network fails."""

    def __init__(self, file: InputFile) -> None:
        import fsspec

        self._where = file.path
        self._filesystem, self._path = fsspec.core.url_to_fs(file.path)
        self._size = file.size_bytes
        self._position = 0
        self._open: Any = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is (Parquet reads its end first)."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the network is not asked."""
        assert whence != io.SEEK_END or self._size is not None, "the size of a remote file is known"
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's length."""
        block = patiently(lambda: self._read(len(buffer)), self._where)
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            if self._open is None:
                self._open = self._filesystem.open(self._path, "rb")
            if self._open.tell() != self._position:
                self._open.seek(self._position)
            block: bytes = self._open.read(size)
            if not block and size and self._size is not None and self._position < self._size:
                raise ConnectionError(f"the connection ended at byte {self._position} of {self._size}")
            return block
        except BaseException:
            self._open = None
            raise
