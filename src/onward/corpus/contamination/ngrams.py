"""Hashes of runs of words, and a table that says quickly that a run is none of the known ones."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Words w of a run hash to sum of w[i] * BASE^(n - 1 - i), modulo 2^64: sliding on by a word is two products."""
SPREAD = np.uint64(0xD6E8FEB86659FD93)
"""Odd, so that multiplying by it loses nothing, and its high bits depend on all bits of the hash."""
_FILTER_BITS_PER_KEY = 16
"""A sixteenth of the filter is set, so that so much of a clean text is looked up in vain."""


@dataclass(frozen=True)
class RunTable:
    """Known runs of `words` words and whom they belong to.

    keys: uint64[runs], ascending. owners: int32[owned], those of run r are owners[first[r]:first[r + 1]]. buckets:
    int32[2^bits + 1], where keys with so many high bits begin. filter: uint64[], a bit for each value of a key's
    `filter_bits` high bits.
    """

    words: int
    keys: NDArray[np.uint64]
    first: NDArray[np.int32]
    owners: NDArray[np.int32]
    buckets: NDArray[np.int32]
    filter: NDArray[np.uint64]
    filter_bits: int

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in (self.keys, self.first, self.owners, self.buckets, self.filter))


def run_table(words: int, keys: NDArray[np.uint64], owners: NDArray[np.int32]) -> RunTable:
    """Build the table of pairs (key, owner), both [pairs], each pair once."""
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    distinct, starts = np.unique(keys, return_index=True)
    first = np.append(starts, len(keys)).astype(np.int32)
    bits = max(4, int(len(distinct)).bit_length() - 1)
    borders = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    buckets = np.concatenate([[0], np.searchsorted(distinct, borders), [len(distinct)]]).astype(np.int32)
    filter_bits = max(10, int(len(distinct) * _FILTER_BITS_PER_KEY - 1).bit_length())
    bitmap = np.zeros(1 << (filter_bits - 6), dtype=np.uint64)
    _mark(distinct, bitmap, filter_bits)
    return RunTable(words, distinct, first, owners, buckets, bitmap, filter_bits)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark(keys, bitmap, filter_bits):  # type: ignore[no-untyped-def]
    for key in keys:
        slot = key >> np.uint64(64 - filter_bits)
        bitmap[slot >> np.uint64(6)] |= np.uint64(1) << (slot & np.uint64(63))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def run_keys(folded, words):  # type: ignore[no-untyped-def]
    """Return the key of every run of `words` words in folded uint64[n]: uint64[max(0, n - words + 1)]."""
    count = max(0, len(folded) - words + 1)
    keys = np.empty(count, dtype=np.uint64)
    top = power(words)
    value = np.uint64(0)
    for at in range(len(folded)):
        value = value * BASE + folded[at]
        if at >= words:
            value -= folded[at - words] * top
        if at >= words - 1:
            keys[at - words + 1] = value * SPREAD
    return keys


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def power(exponent):  # type: ignore[no-untyped-def]
    """Return BASE^exponent modulo 2^64."""
    value = np.uint64(1)
    for _ in range(exponent):
        value *= BASE
    return value


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def may_hold(key, bitmap, filter_bits):  # type: ignore[no-untyped-def]
    """Say whether a key may be in the table; False is certain."""
    slot = key >> np.uint64(64 - filter_bits)
    return (bitmap[slot >> np.uint64(6)] >> (slot & np.uint64(63))) & np.uint64(1) != 0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def place_of(key, keys, buckets, bits):  # type: ignore[no-untyped-def]
    """Return the place of a key in the table, -1 when it is not there."""
    bucket = key >> np.uint64(64 - bits)
    for place in range(buckets[bucket], buckets[bucket + np.uint64(1)]):
        if keys[place] == key:
            return place
    return -1
