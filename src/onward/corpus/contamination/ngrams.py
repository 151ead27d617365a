"""Hashes of runs of words, and a table that says at once of nearly every run that it is none of the known ones."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Words w of a run hash to the sum of w[i] * BASE^(n - 1 - i), modulo 2^64: sliding on costs two products."""
SPREAD = np.uint64(0xD6E8FEB86659FD93)
"""A key is a hash times this: odd, so that nothing is lost, and the high bits then depend on all bits of the hash."""
_FILTER_BITS_PER_KEY = 16
"""With three bits set for a key, the filter lets about 1 % of the runs of a clean text pass."""


@dataclass(frozen=True)
class RunTable:
    """Known runs of `words` words and whom they belong to.

    keys: uint64[runs], ascending. owners: int32[owned], those of run r are owners[first[r]:first[r + 1]]. buckets:
    int32[2^bucket_bits + 1], where the keys begin that have a number for their high bits. filter: uint64
    [2^filter_bits], at the number of a key's high bits the three bits of `_filter_mask` are set.
    """

    words: int
    keys: NDArray[np.uint64]
    first: NDArray[np.int32]
    owners: NDArray[np.int32]
    buckets: NDArray[np.int32]
    bucket_bits: int
    filter: NDArray[np.uint64]
    filter_bits: int


def run_table(words: int, keys: NDArray[np.uint64], owners: NDArray[np.int32]) -> RunTable:
    """Build the table of pairs of a key and an owner, both [pairs], no pair twice."""
    order = np.lexsort((owners, keys))
    distinct, starts = np.unique(keys[order], return_index=True)
    bucket_bits = max(4, len(distinct).bit_length() - 1)
    borders = np.arange(1, 1 << bucket_bits, dtype=np.uint64) << np.uint64(64 - bucket_bits)
    filter_bits = max(6, (len(distinct) * _FILTER_BITS_PER_KEY // 64).bit_length())
    bits = np.zeros(1 << filter_bits, dtype=np.uint64)
    _mark(distinct, bits, filter_bits)
    return RunTable(
        words,
        distinct,
        np.append(starts, len(keys)).astype(np.int32),
        owners[order],
        np.concatenate([[0], np.searchsorted(distinct, borders), [len(distinct)]]).astype(np.int32),
        bucket_bits,
        bits,
        filter_bits,
    )


@njit(cache=True, nogil=True)
def run_keys(folded, words):  # type: ignore[no-untyped-def]
    """Return the key of every run of `words` words: uint64[max(0, n - words + 1)] for hashes of words uint64[n]."""
    count = max(0, len(folded) - words + 1)
    keys = np.empty(count, dtype=np.uint64)
    top = _power(words - 1)
    value = np.uint64(0)
    for at in range(min(words - 1, len(folded))):
        value = value * BASE + folded[at]
    for at in range(count):
        value = value * BASE + folded[at + words - 1]
        keys[at] = value * SPREAD
        value -= folded[at] * top
    return keys


@njit(cache=True, nogil=True)
def sift(folded, words, filter_, filter_bits, begin, key):  # type: ignore[no-untyped-def]
    """Write the begin and the key of every run that the filter may hold; return how many.

    folded: uint64[n]. begin, key: int64 and uint64 [n + 1], to be written. Nothing branches on what the filter says:
    the processor could not foresee it, and would wait for memory each time (measured: 30 ns a word against 9).
    """
    top = _power(words - 1)
    shift = np.uint64(64 - filter_bits)
    value = np.uint64(0)
    found = np.int64(0)
    for at in range(min(words - 1, len(folded))):
        value = value * BASE + folded[at]
    for at in range(len(folded) - words + 1):
        value = value * BASE + folded[at + words - 1]
        hashed = value * SPREAD
        mask = _filter_mask(hashed)
        begin[found] = at
        key[found] = hashed
        found += np.int64((filter_[hashed >> shift] & mask) == mask)
        value -= folded[at] * top
    return found


@njit(cache=True, nogil=True)
def place_of(key, keys, buckets, bucket_bits):  # type: ignore[no-untyped-def]
    """Return the place of a key in the table, -1 when it is not there."""
    bucket = np.int64(key >> np.uint64(64 - bucket_bits))
    for place in range(buckets[bucket], buckets[bucket + 1]):
        if keys[place] == key:
            return place
    return -1


@njit(cache=True, nogil=True)
def _power(exponent):  # type: ignore[no-untyped-def]
    value = np.uint64(1)
    for _ in range(exponent):
        value *= BASE
    return value


@njit(cache=True, nogil=True, inline="always")
def _filter_mask(key):  # type: ignore[no-untyped-def]
    """Return three bits by the low bits of a key (the high ones choose the word of the filter)."""
    one, six = np.uint64(1), np.uint64(63)
    return one << (key & six) | one << ((key >> np.uint64(6)) & six) | one << ((key >> np.uint64(12)) & six)


@njit(cache=True, nogil=True)
def _mark(keys, filter_, filter_bits):  # type: ignore[no-untyped-def]
    for key in keys:
        filter_[np.int64(key >> np.uint64(64 - filter_bits))] |= _filter_mask(key)
