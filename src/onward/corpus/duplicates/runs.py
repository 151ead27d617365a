"""Sorted, immutable files of keys and their values: written once, looked up in with little memory, merged by streaming.

A run is a NumPy array uint64[keys, 2] of (key, value), ascending by key, every key once.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.errors import UserError

Pairs = NDArray[np.uint64]

_PAIR_BYTES = 16
PAGE_KEYS = 256
"""Keys read at once for a look-up: 4 kB. The first key of every page stays in memory, 31 MB for a billion keys."""
_PAGES_AT_ONCE = 1024
PIECE_KEYS = 1 << 16
"""Keys read or written at once, whole pages: 1 MB."""


class Run:
    """A run that is open for look-ups.

    size: number of keys. Raises UserError when the file is missing or is no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with ExitStack() as opened:
                self._file: BinaryIO = opened.enter_context(open(path, "rb", buffering=0))
                self.size, self._offset = _read_header(self._file)
                opened.pop_all()
        except (OSError, ValueError) as error:
            todo = "prepare that corpus again"
            raise UserError("an index of documents cannot be read", str(path), str(error), todo=todo) from None
        # Look-ups are far apart: what the system reads ahead would only be thrown away.
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        self._first_keys: NDArray[np.uint64] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pieces(self) -> Iterator[Pairs]:
        """Return all pairs in order, a bounded number at a time."""
        first_keys = [np.empty(0, dtype=np.uint64)]
        for begin in range(0, self.size, PIECE_KEYS):
            piece = self._read(begin, min(PIECE_KEYS, self.size - begin))
            first_keys.append(piece[::PAGE_KEYS, 0].copy())  # a view would keep the whole piece
            yield piece
        self._first_keys = np.concatenate(first_keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the value of every key, -1 for those that are not there."""
        values = np.full(len(keys), -1, dtype=np.int64)
        if not self.size:
            return values
        pages = np.searchsorted(self._index(), keys, side="right") - 1
        within = np.flatnonzero(pages >= 0)  # a key before the first one is not there
        for begin in range(0, len(within), _PAGES_AT_ONCE):
            chosen = within[begin : begin + _PAGES_AT_ONCE]
            values[chosen] = _find(*self._read_pages(pages[chosen]), keys[chosen])
        return values

    def _index(self) -> NDArray[np.uint64]:
        """Return the first key of every page; known from when all was read last, else all is read once."""
        if self._first_keys is None:
            deque(self.pieces(), maxlen=0)
        assert self._first_keys is not None
        return self._first_keys

    def _read_pages(self, pages: NDArray[np.int64]) -> tuple[Pairs, NDArray[np.int64]]:
        """Return the pairs of pages, one after the other, and where each one ends."""
        descriptor, offset, size = self._file.fileno(), self._offset, PAGE_KEYS * _PAIR_BYTES
        data = b"".join([os.pread(descriptor, size, offset + page * size) for page in pages.tolist()])
        ends = np.cumsum(np.minimum(PAGE_KEYS, self.size - pages * PAGE_KEYS))
        return self._pairs(data, int(ends[-1])), ends

    def _read(self, begin: int, number: int) -> Pairs:
        data = os.pread(self._file.fileno(), number * _PAIR_BYTES, self._offset + begin * _PAIR_BYTES)
        return self._pairs(data, number)

    def _pairs(self, data: bytes, expected: int) -> Pairs:
        if len(data) != expected * _PAIR_BYTES:
            todo = "was it changed while it was in use?"
            raise UserError("an index of documents ends early", str(self.path), todo=todo)
        return np.frombuffer(data, dtype=np.uint64).reshape(-1, 2)


def open_runs(paths: Iterable[Path]) -> list[Run]:
    """Open several runs, or none when one of them raises UserError."""
    with ExitStack() as opened:
        runs = [opened.enter_context(closing(Run(path))) for path in paths]
        opened.pop_all()
        return runs


def write_run(path: Path, size: int, pieces: Iterable[Pairs]) -> None:
    """Write `size` pairs, which come sorted, and flush them to the disk."""
    with open(path, "wb") as file:
        facts: dict[str, Any] = {"descr": "<u8", "fortran_order": False, "shape": (size, 2)}
        np.lib.format.write_array_header_1_0(file, facts)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
        file.flush()
        os.fsync(file.fileno())


def merge_runs(runs: Sequence[Run], path: Path) -> None:
    """Merge runs that share no key into one, a piece at a time, and flush it to the disk."""
    write_run(path, sum(run.size for run in runs), _merged(runs))


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _merged(runs: Sequence[Run]) -> Iterator[Pairs]:
    waiting = [(piece, pieces) for run in runs if (piece := next(pieces := run.pieces(), None)) is not None]
    while waiting:
        bound = min(piece[-1, 0] for piece, _ in waiting)  # up to here every run is in memory
        ready, rest = [], []
        for piece, pieces in waiting:
            end = int(np.searchsorted(piece[:, 0], bound, side="right"))
            ready.append(piece[:end])
            piece = piece[end:] if end < len(piece) else next(pieces, None)
            if piece is not None:
                rest.append((piece, pieces))
        pairs = np.concatenate(ready)
        yield pairs[np.argsort(pairs[:, 0], kind="stable")]
        waiting = rest


def _read_header(file: BinaryIO) -> tuple[int, int]:
    """Return the number of pairs and where they begin; raises ValueError when the file is none of ours."""
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    begin = file.tell()
    if fortran_order or dtype != np.uint64 or len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"an array {dtype}{list(shape)} instead of uint64[keys, 2]")
    if os.fstat(file.fileno()).st_size != begin + shape[0] * _PAIR_BYTES:
        raise ValueError("its size is not what its header says")
    return shape[0], begin


@njit(cache=True, nogil=True)
def _find(pairs, ends, keys):  # type: ignore[no-untyped-def]
    """Return the value of every key, which is on a page of its own or nowhere."""
    values = np.empty(len(keys), dtype=np.int64)
    begin = 0
    for n in range(len(keys)):
        low, high = begin, ends[n]
        while low < high:
            middle = (low + high) // 2
            if pairs[middle, 0] < keys[n]:
                low = middle + 1
            else:
                high = middle
        is_there = low < ends[n] and pairs[low, 0] == keys[n]
        values[n] = np.int64(pairs[low, 1]) if is_there else -1
        begin = ends[n]
    return values
