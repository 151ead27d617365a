"""Which passages were read before: a sample of word 8-grams, to find documents put together from others.

MinHash finds documents that are alike as wholes. A chapter with new exercises, a section copied out of a long page, a
page made of two others share most of their text with what was read, but have a low Jaccard similarity with each of it.
Here a document counts as covered when a share (half, say) of its passages was read before, wherever that was.

Passages are runs of 8 words in lower case without the symbols between them, and 1 in 8 of them is looked at: those
whose hash ends in zeros, so that the same ones are chosen in every document (FracMinHash, Irber et al. 2022, for the
containment of Broder 1997). Why 8 words: of the word 5-grams of podcasts 10 % occur in other episodes by chance, of the
8-grams 0.3 %; of edited copies of textbook chapters at most half of the 13-grams are left, but more of the 8-grams.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil, comb
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.duplicates.filter import Filter
from onward.corpus.duplicates.minhash import shingle_hashes
from onward.corpus.duplicates.runs import PIECE_KEYS, flush_folder
from onward.corpus.text.words import Words
from onward.errors import UserError

PASSAGE_WORDS = 8
SAMPLED = 8
"""One passage in so many is looked at, a power of two."""
SMALLEST_FILTER_BYTES, LARGEST_FILTER_BYTES = 1 << 23, 1 << 27
_FILTER_BITS_PER_KEY = 10
"""1 % of new passages look read before, which moves no share by more than that."""
_LONGEST_BLOCK_KEYS = 11_000_000
"""Passages of a block, which the filter has to take in before it may grow: 500 MB of text."""
_UNRELATED_SHARE = Fraction(2, 5)
_CHANCE = 0.01
_TABLE = 257


@dataclass(frozen=True)
class Passages:
    """The sampled passages of n documents. keys: uint64[passages], starts: int64[n + 1], as in a TextBatch."""

    keys: NDArray[np.uint64]
    starts: NDArray[np.int64]


def passage_keys(words: Words) -> Passages:
    """Return the sampled passages of every document, repeated ones repeatedly."""
    return Passages(*_sample(words.folded, words.kind, words.starts))


@cache
def needed_hits(share: Fraction) -> NDArray[np.int64]:
    """Return how many passages must have been read before, by the number looked at: int64[257].

    The share, and for few passages so many that a document of which only 2/5 of the share was read before is taken for
    covered with 1 chance in 100 at most (binomial): 3 of 3, 5 of 7, 7 of 12 for one half.
    """
    rare = float(share * _UNRELATED_SHARE)
    needed = np.zeros(_TABLE, dtype=np.int64)
    for looked_at in range(_TABLE):
        at_least, tail = looked_at + 1, 0.0
        for hits in range(looked_at, -1, -1):
            tail += comb(looked_at, hits) * rare**hits * (1 - rare) ** (looked_at - hits)
            if tail > _CHANCE:
                break
            at_least = hits
        needed[looked_at] = max(at_least, ceil(share * looked_at))
    return needed


class PassagesRead:
    """The passages of the documents kept so far, in bounded memory.

    folder: where the passages of each block are written, for a restart; the first `blocks` blocks are gone on from.
    filter: of the passages, 128 MB at most; once more than 100 million (5 GB of text) are in it, only every second one
    is looked at, then every fourth and so on: `thin`, a power of two. Both depend only on the blocks finished, so a
    restart decides as if there had been none. Raises UserError when the passages of a block are missing.
    """

    def __init__(
        self, folder: Path, blocks: int, share: Fraction, largest_filter_bytes: int = LARGEST_FILTER_BYTES
    ) -> None:
        self.share, self.needed = share, needed_hits(share)
        self._folder = folder
        self._blocks = blocks
        self._number = sum(self._size(block) for block in range(blocks))
        self._fill()
        self._file: BinaryIO | None = None

    def add(self, passages: Passages, is_added: NDArray[np.bool_]) -> None:
        """Write the passages of the documents added to the disk; they are in the filter already."""
        if self._file is None:
            self._file = open(self._path(self._blocks), "wb")
        keys = passages.keys[np.repeat(is_added, np.diff(passages.starts))]
        self._file.write(keys.data)

    def finish_block(self, number: int) -> None:
        """Flush the passages of a block to the disk, and make the filter fit for the next one."""
        file = self._file or open(self._path(number), "wb")
        with file:
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        flush_folder(self._folder)
        self._blocks = number + 1
        self._number += self._size(number)
        if self._wanted() != (self.thin, self.filter.size_bytes):
            self._fill()

    def close(self) -> None:
        """Close the file of a block that is not finished."""
        if self._file is not None:
            self._file.close()

    def _wanted(self) -> tuple[int, int]:
        """Return how thinly to look, and the bytes of the filter, for the blocks finished and one more."""
        thin, size_bytes = 1, SMALLEST_FILTER_BYTES
        while (self._number + _LONGEST_BLOCK_KEYS) * _FILTER_BITS_PER_KEY > size_bytes * 8 * thin:
            if size_bytes < LARGEST_FILTER_BYTES:
                size_bytes *= 2
            else:
                thin *= 2
        return thin, size_bytes

    def _fill(self) -> None:
        """Make the filter anew from what is on disk."""
        self.thin, size_bytes = self._wanted()
        self.filter = Filter(0)  # the old one is free before the new one is there
        self.filter = Filter(size_bytes)
        for block in range(self._blocks):
            with open(self._path(block), "rb") as file:
                while len(keys := np.fromfile(file, dtype=np.uint64, count=PIECE_KEYS)):
                    self.filter.add(keys[keys // np.uint64(SAMPLED) % np.uint64(self.thin) == 0])

    def _size(self, block: int) -> int:
        """Return the number of passages of a finished block."""
        path = self._path(block)
        if not path.exists():
            todo = "remove this folder and run again; the corpus will be made anew"
            raise UserError("the index of finished work is not whole", str(path), "no such file", todo=todo)
        return path.stat().st_size // 8

    def _path(self, block: int) -> Path:
        return self._folder / f"passages-{block:05d}.keys"


@njit(cache=True, nogil=True)
def _sample(folded, kind, starts):  # type: ignore[no-untyped-def]
    documents = len(starts) - 1
    bounds = np.zeros(documents + 1, dtype=np.int64)
    keys = np.empty(len(folded), dtype=np.uint64)
    longest = 0
    for document in range(documents):
        longest = max(longest, starts[document + 1] - starts[document])
    hashes = np.empty(longest, dtype=np.uint64)
    window = np.empty(PASSAGE_WORDS, dtype=np.uint64)
    number = 0
    for document in range(documents):
        begin, end = starts[document], starts[document + 1]
        count = shingle_hashes(folded, kind, begin, end, window, hashes)
        for n in range(count):
            keys[number] = hashes[n]
            number += hashes[n] % np.uint64(SAMPLED) == 0
        bounds[document + 1] = number
    return keys[:number].copy(), bounds
