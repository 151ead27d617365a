"""Repeated runs of words: the most frequent 2- to 4-grams, and the 5- to 10-grams seen before.

An n-gram can only occur twice where both (n-1)-grams in it do, so after the pairs of words only places that are left are
looked at: about a third of the text for three words, a tenth for five.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.hashing import FACTOR, mixed
from onward.corpus.text.words import Words

LONGEST = 10
TOP, REPEATED = range(2, 5), range(5, LONGEST + 1)
"""Sizes of which the most frequent n-gram is wanted, and sizes of which the repetition is."""


@dataclass(frozen=True)
class Repetition:
    """Characters in n-grams. Both are int64[documents, 11], the column is n.

    top: length of the most frequent n-gram, its words joined by one space, times its count; of the equally frequent ones
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
    places, entries, numbers, first = (np.empty(most, dtype=np.int32) for _ in range(4))
    hashes, keys = np.empty(most, dtype=np.uint64), np.empty(_capacity(most), dtype=np.uint64)
    firsts, ends = np.empty(len(keys), dtype=np.int32), np.empty(most + 1, dtype=np.int64)
    columns = (places, hashes, entries, numbers)
    _count(words.exact, words.characters, words.starts, longest, ends, *columns, keys, firsts, top, repeated)
    return Repetition(top, repeated)


def _capacity(number: int) -> int:
    """Places of a table that is at most half full: a power of two."""
    return 1 << (2 * number - 1).bit_length()


@njit(cache=True, nogil=True, _nrt=False)  # type: ignore[untyped-decorator]
def _count(exact, characters, starts, longest, ends, places, hashes, entries, numbers, keys, firsts, top, repeated):  # type: ignore[no-untyped-def]  # noqa: E501
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
            best, number = _look_up(places, hashes, entries, numbers, left, keys, firsts)
            if n <= 4:
                top[document, n] = (ends[best + n] - ends[best] + n - 1) * number
            else:
                repeated[document, n] = _read_on(places, entries, numbers, left, n, ends)
            kept = 0
            for k in range(left - 1):
                place = places[k]
                if numbers[entries[k]] == 1 or numbers[entries[k + 1]] == 1 or places[k + 1] != place + 1:
                    continue
                if place + n < size:
                    places[kept] = place
                    hashes[kept] = mixed(hashes[k], exact[low + place + n])
                    kept += 1
            left = np.int64(kept)


@njit(cache=True, _nrt=False)  # type: ignore[untyped-decorator]
def _look_up(places, hashes, entries, numbers, left, keys, firsts):  # type: ignore[no-untyped-def]
    """Give every n-gram the entry of the first like it and count it there; return the most frequent one and its count.

    The document's first n-gram stands for all that occur once.
    """
    bits = 1
    while (1 << bits) < 2 * left:
        bits += 1
    mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
    keys[: mask + 1] = 0
    best, number = np.int64(0), np.int64(1)
    for k in range(left):
        key = hashes[k] | np.uint64(1)  # zero is an empty place
        slot = np.int64((key * FACTOR) >> shift)
        while keys[slot] != key and keys[slot] != 0:
            slot = (slot + 1) & mask
        if keys[slot] == 0:
            keys[slot], firsts[slot], entries[k], numbers[k] = key, k, k, 1
            continue
        entry = firsts[slot]
        entries[k] = entry
        numbers[entry] += 1
        if numbers[entry] > number or (numbers[entry] == number and places[entry] < best):
            best, number = np.int64(places[entry]), np.int64(numbers[entry])
    return best, number


@njit(cache=True, _nrt=False)  # type: ignore[untyped-decorator]
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
