"""Lines and paragraphs that were read before in the same document."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import read_only
from onward.corpus.text.hashing import FACTOR, SEED, hash_stretch, in_eights, mixed
from onward.corpus.text.lines import BLANK, Lines


@dataclass(frozen=True)
class Paragraphs:
    """Lines that are not parted by an empty line, without white space at both ends of the document.

    characters: int64[paragraphs]. hash: uint64[paragraphs]. starts: int64[documents + 1]. A document of nothing but
    white space has one empty paragraph.
    """

    characters: NDArray[np.int64]
    hash: NDArray[np.uint64]
    starts: NDArray[np.int64]


def paragraphs_of(batch: TextBatch, lines: Lines) -> Paragraphs:
    """Put the lines of every document together to paragraphs."""
    number = len(lines.begin) + len(lines.line_feeds)
    characters, hashes = np.empty(number, dtype=np.int64), np.empty(number, dtype=np.uint64)
    starts = np.zeros(len(lines.starts), dtype=np.int64)
    buffer, places = read_only(batch.buffer), (lines.begin, lines.end, lines.inner_begin, lines.inner_end)
    columns = (lines.characters, lines.hash, lines.about, lines.starts)
    count: int = _paragraphs(buffer, in_eights(buffer), places, *columns, characters, hashes, starts)
    return Paragraphs(characters[:count], hashes[:count], starts)


def seen_before(hashes: NDArray[np.uint64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for every line or paragraph whether its document has had the like of it."""
    seen = np.zeros(len(hashes), dtype=np.bool_)
    most = int(np.max(np.diff(starts), initial=1))
    _seen_before(hashes, starts, np.empty(4 * most, dtype=np.uint64), seen)
    return seen


def per_document(values: NDArray[np.generic], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up the values of every document: int64[documents]."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums[starts[1:]] - sums[starts[:-1]]


@njit(cache=True, nogil=True, _nrt=False)
def _seen_before(hashes, starts, keys, seen):  # type: ignore[no-untyped-def]
    for document in range(len(starts) - 1):
        low, high = starts[document], starts[document + 1]
        bits = 1
        while (1 << bits) < 2 * (high - low):
            bits += 1
        mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
        keys[: mask + 1] = 0
        for line in range(low, high):
            key = hashes[line] | np.uint64(1)  # zero is an empty place
            slot = np.int64((key * FACTOR) >> shift)
            while keys[slot] != key and keys[slot] != 0:
                slot = (slot + 1) & mask
            seen[line] = keys[slot] == key
            keys[slot] = key


@njit(cache=True, nogil=True, _nrt=False)
def _paragraphs(buffer, eights, places, characters, hashes, about, starts, out_characters, out_hashes, out_starts):  # type: ignore[no-untyped-def]
    """Fill the columns; return the number of paragraphs."""
    begin, end, inner_begin, inner_end = places
    count = 0
    for document in range(len(starts) - 1):
        low, high = starts[document], starts[document + 1]
        while low < high and about[low] & BLANK:
            low += 1
        while low < high and about[high - 1] & BLANK:
            high -= 1
        out_characters[count], out_hashes[count] = 0, SEED
        for line in range(low, high):
            if line > low:
                if begin[line] - end[line - 1] > 1:
                    count += 1
                    out_characters[count], out_hashes[count] = 0, SEED
                else:
                    out_characters[count] += 1
            first = np.int64(inner_begin[line] if line == low else begin[line])
            last = np.int64(inner_end[line] if line == high - 1 else end[line])
            value, length = hashes[line], np.int64(characters[line])
            if first > begin[line] or last < end[line]:
                value, length, _ = hash_stretch(buffer, eights, first, last)
            out_characters[count] += length
            out_hashes[count] = mixed(out_hashes[count], value)
        count += 1
        out_starts[document + 1] = count
    return count
