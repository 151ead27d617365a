"""Repeated runs of words: the most frequent 2- to 4-grams, and the 5- to 10-grams seen before.

An n-gram can only occur twice where both (n-1)-grams in it do, so after the pairs of words only the places that are
left are looked at.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.hashing import FACTOR, mixed
from onward.corpus.text.words import Words

LONGEST = 10
SPARSE = 4
"""A table has at least so many places for each n-gram."""
TOP, REPEATED = range(2, 5), range(5, LONGEST + 1)
"""Sizes of which the most frequent n-gram is wanted, and sizes of which the repetition is."""


@dataclass(frozen=True)
class Repetition:
    """Characters in n-grams. Both are int64[documents, 11], the column is n.

    top: length of the most frequent n-gram, its words joined by one space, times its count; of equally frequent ones
    the first. repeated: characters of the words of n-grams seen earlier in the document. Reading goes on behind a
    repeated n-gram, and the n-grams that begin inside it are neither counted nor remembered (datatrove's reading of
    Gopher, arXiv 2112.11446 table A1).
    """

    top: NDArray[np.int64]
    repeated: NDArray[np.int64]


def count_repetition(words: Words, longest: int = LONGEST) -> Repetition:
    """Count for every size up to `longest` what Gopher's rules compare; sizes beyond it are left at zero."""
    documents = len(words.starts) - 1
    most = int(np.max(np.diff(words.starts), initial=1))
    top, repeated = (np.zeros((documents, LONGEST + 1), dtype=np.int64) for _ in range(2))
    places, entries, numbers = (np.empty(most, dtype=np.int32) for _ in range(3))
    hashes, firsts = np.empty(most, dtype=np.uint64), np.empty(2 * SPARSE * most, dtype=np.int32)
    ends = np.empty(most + 1, dtype=np.int64)
    columns = (places, hashes, entries, numbers)
    _count(words.exact, words.characters, words.starts, longest, ends, *columns, firsts, top, repeated)
    return Repetition(top, repeated)


@njit(cache=True, nogil=True, _nrt=False)
def _count(exact, characters, starts, longest, ends, places, hashes, entries, numbers, firsts, top, repeated):  # type: ignore[no-untyped-def]
    for document in range(len(starts) - 1):
        low, size = starts[document], starts[document + 1] - starts[document]
        ends[0] = 0
        for word in range(size):
            ends[word + 1] = ends[word] + characters[low + word]
        left = np.int64(size - 1)
        for place in range(left):
            places[place] = place
            hashes[place] = mixed(exact[low + place] * FACTOR, exact[low + place + 1])
        for n in range(2, min(longest, size) + 1):
            best, number = _look_up(places, hashes, entries, numbers, left, firsts)
            if n <= 4:
                top[document, n] = (ends[best + n] - ends[best] + n - 1) * number
            else:
                repeated[document, n] = _read_on(places, entries, numbers, left, n, ends)
            while left > 1 and places[left - 2] + n >= size:  # no longer n-gram begins there
                left -= 1
            kept = 0
            for k in range(left - 1):
                place = places[k]
                is_left = (numbers[entries[k]] != 1) & (numbers[entries[k + 1]] != 1) & (places[k + 1] == place + 1)
                places[kept] = place
                hashes[kept] = mixed(hashes[k], exact[low + place + n])
                kept += is_left
            left = np.int64(kept)


@njit(cache=True, _nrt=False)
def _look_up(places, hashes, entries, numbers, left, firsts):  # type: ignore[no-untyped-def]
    """Give every n-gram the entry of the first like it and count it there; return the most frequent one and its count.

    The document's first n-gram stands for all that occur once.
    """
    bits = 1
    while (1 << bits) < SPARSE * left:
        bits += 1
    mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
    firsts[: mask + 1] = -1
    best, number = np.int64(0), np.int32(1)
    for k in range(left):
        # Whether an n-gram is new cannot be guessed, so nothing here branches on it: `&` and not `and`, and a count
        # that is set to nothing whether it will be used or not.
        key = hashes[k]
        slot = np.int64((key * FACTOR) >> shift)
        while (firsts[slot] >= 0) & (hashes[firsts[slot]] != key):
            slot = (slot + 1) & mask
        entry = np.int64(firsts[slot])
        entry = np.int64(k) if entry < 0 else entry
        firsts[slot] = entry
        entries[k] = entry
        numbers[k] = 0
        count = numbers[entry] + np.int32(1)
        numbers[entry] = count
        if count >= number and (count > number or places[entry] < best):
            best, number = np.int64(places[entry]), count
    return best, number


@njit(cache=True, _nrt=False)
def _read_on(places, entries, numbers, left, n, ends):  # type: ignore[no-untyped-def]
    """Count the characters of n-grams seen before; a negative count marks an n-gram as seen."""
    total, unread = np.int64(0), 0
    for k in range(left):
        entry, place = entries[k], np.int64(places[k])
        if numbers[entry] == 1 or place < unread:
            continue
        if numbers[entry] > 0:
            numbers[entry] = -numbers[entry]
        else:
            total += ends[place + n] - ends[place]
            unread = place + n
    return total
