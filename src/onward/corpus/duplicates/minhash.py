"""Near duplicates: MinHash signatures of word n-grams, cut into bands (Broder 1997; Lee et al., arXiv 2107.06499).

Of two documents whose sets of shingles (runs of n words) have Jaccard similarity s, one hash function keeps the same
smallest value with probability s. A band is `rows` such values; the documents meet when all values of any of the
`bands` bands agree, which has the probability 1 - (1 - s^rows)^bands. With FineWeb's 14 bands of 8 rows over 5 words:

    similarity   0.50  0.60  0.65  0.69  0.70  0.75  0.80  0.85  0.90  0.95
    probability  0.05  0.21  0.36  0.52  0.56  0.77  0.92  0.99  1.00  1.00
"""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from onward.corpus.text.words import SYMBOLS, Words
from onward.recipe import NearDuplicates

_SEED = 0x6F6E77617264
"""Fixed for good: keys of different machines and years have to meet."""
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROLL = 0x9E3779B97F4A7C15


def band_keys(words: Words, near: NearDuplicates) -> NDArray[np.uint64]:
    """Return a key for every band of every document: uint64[documents, bands].

    Shingles are runs of `ngram_words` words in lower case without the symbols between them; a document with fewer
    words has one shingle, all of them. A document without any word has the keys 0, which mean no key: it meets none.
    """
    multipliers, summands = _functions(near.bands * near.rows)
    columns = (words.folded, words.kind, words.starts)
    keys: NDArray[np.uint64] = _band_keys(*columns, near.ngram_words, near.bands, near.rows, multipliers, summands)
    return keys


def inclusion_probability(similarity: ArrayLike, near: NearDuplicates) -> NDArray[np.float64]:
    """Return the probability that two documents of this Jaccard similarity meet (Lee et al., section 4.2)."""
    return 1.0 - (1.0 - np.asarray(similarity, dtype=np.float64) ** near.rows) ** near.bands


def threshold(near: NearDuplicates) -> float:
    """Return the Jaccard similarity at which two documents meet with probability 1/2: 0.685 for 14 x 8."""
    return float((1.0 - 0.5 ** (1.0 / near.bands)) ** (1.0 / near.rows))


@cache
def _functions(number: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return multipliers (odd) and summands of hash functions x -> a x + b mod 2^32.

    Such functions alone are far from min-wise independent, but the x are well mixed hashes already: for random x each
    function keeps a uniformly chosen shingle, and two functions agree on it hardly more often than by chance. The
    inclusion curve is tested against the formula.
    """
    values = np.empty(2 * number, dtype=np.uint64)
    state = _SEED
    for n in range(2 * number):  # splitmix64 (Steele, Lea, Flood 2014)
        state = (state + _ROLL) % 2**64
        mixed = (state ^ state >> 30) * _MIX_1 % 2**64
        mixed = (mixed ^ mixed >> 27) * _MIX_2 % 2**64
        values[n] = mixed ^ mixed >> 31
    drawn = (values >> np.uint64(32)).astype(np.uint32)
    return drawn[:number] | np.uint32(1), drawn[number:]


@njit(cache=True, nogil=True)
def _band_keys(folded, kind, starts, ngram, bands, rows, multipliers, summands):  # type: ignore[no-untyped-def]
    documents = len(starts) - 1
    keys = np.zeros((documents, bands), dtype=np.uint64)
    longest = 0
    for document in range(documents):
        longest = max(longest, starts[document + 1] - starts[document])
    hashes = np.empty(longest, dtype=np.uint64)
    shingles = np.empty(longest, dtype=np.uint32)
    window = np.empty(ngram, dtype=np.uint64)
    smallest = np.empty(bands * rows, dtype=np.uint32)
    for document in range(documents):
        count = shingle_hashes(folded, kind, starts[document], starts[document + 1], window, hashes)
        if not count:
            continue
        for n in range(count):
            shingles[n] = np.uint32(hashes[n] >> np.uint64(32))
        for function in range(bands * rows):
            smallest[function] = _smallest(shingles[:count], multipliers[function], summands[function])
        for band in range(bands):
            key = np.uint64(band + 1) * np.uint64(_ROLL)
            for row in range(band * rows, (band + 1) * rows):
                key = _mix(key ^ np.uint64(smallest[row]))
            keys[document, band] = max(key, np.uint64(1))
    return keys


@njit(cache=True, nogil=True, inline="always")
def _mix(value):  # type: ignore[no-untyped-def]
    """Scatter 64 bits (the finaliser of splitmix64)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(_MIX_1)
    value = (value ^ value >> np.uint64(27)) * np.uint64(_MIX_2)
    return value ^ value >> np.uint64(31)


@njit(cache=True, nogil=True)
def shingle_hashes(folded, kind, begin, end, window, hashes):  # type: ignore[no-untyped-def]
    """Write the 64-bit hashes of a document's shingles of len(window) words; return their number.

    A document with fewer words has one, of all its words; one without words has none.
    """
    ngram = len(window)
    outgoing = np.uint64(1)
    for _ in range(ngram):
        outgoing *= np.uint64(_ROLL)
    count, words, slot = 0, 0, 0
    rolling = np.uint64(0)
    for word in range(begin, end):
        if kind[word] == SYMBOLS:
            continue
        incoming = folded[word]
        rolling = rolling * np.uint64(_ROLL) + incoming
        if words >= ngram:
            rolling -= window[slot] * outgoing
        window[slot] = incoming
        slot = slot + 1 if slot + 1 < ngram else 0
        words += 1
        if words >= ngram:
            hashes[count] = _mix(rolling)
            count += 1
    if 0 < words < ngram:
        hashes[0] = _mix(rolling)
        count = 1
    return count


@njit(cache=True, nogil=True)
def _smallest(shingles, multiplier, summand):  # type: ignore[no-untyped-def]
    """Return the smallest hash of all shingles.

    Written so that LLVM makes SIMD of it: 0.06 ns per hash; with `for shingle in shingles` or `min` it is 0.8 ns.
    """
    best = np.uint32(0xFFFFFFFF)
    for n in range(shingles.size):
        hashed = np.uint32(shingles[n] * multiplier + summand)
        best = hashed if hashed < best else best
    return best
