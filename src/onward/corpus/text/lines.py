"""Lines of a batch, found and hashed once for every rule about lines and paragraphs."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import SENTENCE_END, SPACE, code_point, code_point_before, flags, flags_of, read_only
from onward.corpus.text.hashing import eight_bytes, hash_stretch, in_eights

BLANK, ENDS_SENTENCE, OTHER_BREAKS, HASHES, ELLIPSES = 1, 2, 4, 8, 16
"""What is known of a line: only white space; its last character ends sentences; it may hold line breaks other than the
line feed; it holds `#`; it may hold an ellipsis."""
_FEED = 128


@dataclass(frozen=True)
class Lines:
    """The non-empty stretches between line feeds, in order.

    begin, end: int32[lines], bytes of the buffer; inner_begin, inner_end: without white space at the ends. characters,
    inner_characters: int32[lines], code points. hash, inner_hash: uint64[lines]. about: uint8[lines], bits.
    starts: int64[documents + 1], lines of document n are [starts[n], starts[n + 1]). line_feeds: int64[documents].
    """

    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    inner_begin: NDArray[np.int32]
    inner_end: NDArray[np.int32]
    characters: NDArray[np.int32]
    inner_characters: NDArray[np.int32]
    hash: NDArray[np.uint64]
    inner_hash: NDArray[np.uint64]
    about: NDArray[np.uint8]
    starts: NDArray[np.int64]
    line_feeds: NDArray[np.int64]


def split_lines(batch: TextBatch) -> Lines:
    """Find, measure and hash the lines of every document."""
    buffer = read_only(batch.buffer)
    number = int(np.count_nonzero(buffer == ord("\n"))) + len(batch)
    places = tuple(np.empty(number, dtype=np.int32) for _ in range(6))
    hashes = (np.empty(number, dtype=np.uint64), np.empty(number, dtype=np.uint64))
    about = np.empty(number, dtype=np.uint8)
    starts, feeds = np.zeros(len(batch) + 1, dtype=np.int64), np.zeros(len(batch), dtype=np.int64)
    count: int = _lines(
        buffer, in_eights(buffer), batch.starts, flags(), _bytes(), places, hashes, about, starts, feeds
    )
    begin, end, inner_begin, inner_end, characters, inner_characters = (place[:count] for place in places)
    places_of_lines = (begin, end, inner_begin, inner_end, characters, inner_characters)
    return Lines(*places_of_lines, hashes[0][:count], hashes[1][:count], about[:count], starts, feeds)


@cache
def _bytes() -> NDArray[np.uint8]:
    """Return what a byte says about its line."""
    table = np.zeros(256, dtype=np.uint8)
    table[[0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E]] = OTHER_BREAKS
    table[0xC2] |= OTHER_BREAKS  # begins U+0085
    table[0xE2] |= OTHER_BREAKS  # begins U+2028 and U+2029
    table[0xA6] |= ELLIPSES  # ends the ellipsis
    table[ord("#")] |= HASHES
    table[ord("\n")] = _FEED
    return table


@njit(cache=True, nogil=True, _nrt=False)
def _lines(buffer, eights, starts, table, bytes_table, places, both_hashes, about, first, feeds):  # type: ignore[no-untyped-def]
    """Fill the columns; return the number of lines."""
    begin, end, inner_begin, inner_end, characters, inner_characters = places
    hashes, inner_hashes = both_hashes
    count = 0
    for document in range(len(starts) - 1):
        at, stop = starts[document], starts[document + 1]
        while at < stop:
            low, seen = at, np.int64(0)
            while at < stop:
                if at + 8 < stop and _is_plain(eight_bytes(buffer, eights, at, 8)):
                    at += 8
                    continue
                what = bytes_table[buffer[at]]
                if what == _FEED:
                    break
                seen |= np.int64(what)
                at += 1
            if at > low:
                inner_low, inner_high = without_blanks(buffer, low, at, table)
                begin[count], end[count], inner_begin[count], inner_end[count] = low, at, inner_low, inner_high
                hashes[count], characters[count], dotted = hash_stretch(buffer, eights, low, at)
                inner_hashes[count], inner_characters[count] = hashes[count], characters[count]
                if inner_low > low or inner_high < at:
                    inner_hashes[count], inner_characters[count], _ = hash_stretch(
                        buffer, eights, inner_low, inner_high
                    )
                seen &= OTHER_BREAKS | HASHES | ELLIPSES
                last, _ = code_point_before(buffer, at)
                if flags_of(last, table) & SENTENCE_END:
                    seen |= ENDS_SENTENCE
                about[count] = seen | (BLANK if inner_low == inner_high else 0) | (ELLIPSES if dotted else 0)
                count += 1
            if at < stop:
                feeds[document] += 1
                at += 1
        first[document + 1] = count
    return count


@njit(forceinline=True, cache=True, _nrt=False)
def _is_plain(eight):  # type: ignore[no-untyped-def]
    """Whether eight bytes are ASCII without control characters and `#` (and with `#` or `"` none is missed)."""
    ones, high_bits = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    control = eight - np.uint64(0x20) * ones
    unlike = eight ^ np.uint64(ord("#")) * ones
    return not (control | (unlike - ones) | eight) & high_bits


@njit(forceinline=True, cache=True, _nrt=False)
def without_blanks(buffer, low, high, table):  # type: ignore[no-untyped-def]
    """Return a stretch without the white space at its ends."""
    while low < high:
        code, size = code_point(buffer, low)
        if not flags_of(code, table) & SPACE:
            break
        low += size
    while low < high:
        code, size = code_point_before(buffer, high)
        if not flags_of(code, table) & SPACE:
            break
        high -= size
    return low, high


@njit(cache=True, _nrt=False)
def line_break(buffer, at, stop):  # type: ignore[no-untyped-def]
    """Return the bytes of the line break at `at`, as `str.splitlines` knows them, 0 where there is none."""
    byte = buffer[at]
    if byte > 0x1E and byte != 0xC2 and byte != 0xE2:
        return 0
    if byte == 0x0D:
        return 2 if at + 1 < stop and buffer[at + 1] == 0x0A else 1
    if 0x0A <= byte <= 0x0C or 0x1C <= byte <= 0x1E:
        return 1
    if byte == 0xC2 and buffer[at + 1] == 0x85:
        return 2
    if byte == 0xE2 and buffer[at + 1] == 0x80 and (buffer[at + 2] == 0xA8 or buffer[at + 2] == 0xA9):
        return 3
    return 0
