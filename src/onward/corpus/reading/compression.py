"""Compressed content, frame after frame, in bounded steps, with all that there is before a break.

The libraries' own file objects lose the last megabyte before a missing end (gzip) or take it for the end (zstd), and
do not say where a frame begins, from which a later run can go on.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from onward.corpus.documents import DAMAGED, TRUNCATED, WIDE_WINDOW, Unfit

READ_BYTES = 1 << 18
OUTPUT_BYTES = 1 << 20
MAXIMUM_WINDOW_BYTES = 1 << 27
"""zstd keeps so much decompressed content at hand; its own tools take no more either unless they are told to."""
_RUN_LENGTH, _RESERVED, _BLOCK_BYTES, _HAS_CHECKSUM = 1, 3, 1 << 17, 4

Block = tuple[int, bytes]
"""Offset of the frame in the stored file, and decompressed bytes of it: at most a megabyte, never of two frames."""


def decompressor_for(path: str) -> Callable[[IO[bytes], int], Iterator[Block]] | None:
    """Return what decompresses a file of this name; None for a plain one.

    The function takes the file, standing at `offset`, where a frame begins; it raises Unfit where the content breaks,
    after everything before the break is given.
    """
    lower = path.lower()
    if lower.endswith(".gz"):
        return _gzip
    return _zstd if lower.endswith((".zst", ".zstd")) else None


class _Stored:
    """Stored bytes with a look ahead. offset: of the next byte."""

    def __init__(self, raw: IO[bytes], offset: int) -> None:
        self.offset = offset
        self._raw = raw
        self._held = b""
        self._at = 0

    def more(self) -> bytes:
        """Return the bytes at hand, else the next ones; b'' at the end."""
        piece = self._held[self._at :] if self._at < len(self._held) else self._raw.read(READ_BYTES)
        self._held, self._at = b"", 0
        self.offset += len(piece)
        return piece

    def take(self, size: int) -> memoryview:
        """Return exactly so many bytes; raises Unfit when the file ends before."""
        taken = self.see(size)
        self._at += size
        self.offset += size
        return taken

    def see(self, size: int) -> memoryview:
        """Return the bytes that `take` will return."""
        while len(self._held) - self._at < size:
            if not (piece := self._raw.read(max(READ_BYTES, size))):
                raise Unfit(TRUNCATED)
            self._held, self._at = self._held[self._at :] + piece, 0
        return memoryview(self._held)[self._at : self._at + size]

    def pass_over(self, size: int) -> None:
        """Leave out so many bytes."""
        while size:
            size -= len(self.take(min(size, READ_BYTES)))

    def give_back(self, piece: bytes) -> None:
        """Take back what was not needed of the last `more`."""
        self._held, self._at = piece, 0
        self.offset -= len(piece)

    def has_more(self) -> bool:
        """Whether there is another byte."""
        self.give_back(self.more())
        return bool(self._held)


def _gzip(raw: IO[bytes], offset: int) -> Iterator[Block]:
    stored = _Stored(raw, offset)
    while stored.has_more():
        if not (piece := stored.more().lstrip(b"\0")):  # gzip may be padded with zeros
            continue
        stored.give_back(piece)
        member, inflater, rest = stored.offset, zlib.decompressobj(wbits=31), b""
        while not inflater.eof:
            compressed = rest or stored.more()
            before = inflater.copy()  # some 40 kB for each megabyte
            try:
                block = inflater.decompress(compressed, OUTPUT_BYTES)
            except zlib.error:
                yield from ((member, block) for block in _until_damage(before, compressed))
                raise Unfit(DAMAGED) from None
            if block:
                yield member, block
            elif not compressed and not inflater.eof:
                raise Unfit(TRUNCATED)
            rest = inflater.unconsumed_tail
        stored.give_back(inflater.unused_data)


def _until_damage(inflater: Any, compressed: bytes) -> Iterator[bytes]:
    """Decompress again in small steps: a failing step gives nothing."""
    try:
        for begin in range(0, len(compressed), 64):
            yield inflater.decompress(compressed[begin : begin + 64])
    except zlib.error:
        return


def _zstd(raw: IO[bytes], offset: int) -> Iterator[Block]:
    """Feed block after block (RFC 8878, section 3.1.1): each gives at most 128 kB, whatever its ratio is."""
    import zstandard

    stored = _Stored(raw, offset)
    while stored.has_more():
        frame = stored.offset
        magic = bytes(stored.take(4))
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:  # a skippable frame holds no content
            stored.pass_over(int.from_bytes(stored.take(4), "little"))
            continue
        if magic != zstandard.FRAME_HEADER:
            raise Unfit(DAMAGED)
        descriptor = stored.take(1)[0]
        header = bytes(stored.take(_header_bytes(descriptor)))
        if _window_bytes(descriptor, header) > MAXIMUM_WINDOW_BYTES:
            raise Unfit(WIDE_WINDOW)
        decompress = zstandard.ZstdDecompressor(max_window_size=MAXIMUM_WINDOW_BYTES).decompressobj().decompress
        try:
            decompress(magic + bytes([descriptor]) + header)
            is_last = False
            while not is_last:
                facts = int.from_bytes(stored.see(3), "little")
                is_last, kind, size = bool(facts & 1), facts >> 1 & 3, facts >> 3
                if kind == _RESERVED or size > _BLOCK_BYTES:
                    raise Unfit(DAMAGED)
                if block := decompress(stored.take(3 + (1 if kind == _RUN_LENGTH else size))):
                    yield frame, block
            if descriptor & _HAS_CHECKSUM:
                decompress(stored.take(4))
        except zstandard.ZstdError:
            raise Unfit(DAMAGED) from None


def _header_bytes(descriptor: int) -> int:
    """Return how long a frame header is after its first byte: window, dictionary and content size."""
    is_single = descriptor >> 5 & 1
    return 1 - is_single + (0, 1, 2, 4)[descriptor & 3] + (is_single, 2, 4, 8)[descriptor >> 6]


def _window_bytes(descriptor: int, header: bytes) -> int:
    """Return what the decompressor must keep: the whole content where a frame is a single segment."""
    if descriptor >> 5 & 1:
        size = header[(0, 1, 2, 4)[descriptor & 3] :]
        return int.from_bytes(size, "little") + (256 if len(size) == 2 else 0)
    base = 1 << (10 + (header[0] >> 3))
    return base + (base >> 3) * (header[0] & 7)
