"""The word rule: how a text is cut into words, for every rule that counts or compares them.

A word is a run of letters, digits and marks, or one symbol; white space separates.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import DIGIT, FOLDED_CODE_POINTS, LETTER, MARK, SPACE, classes, code_point, lower_case

SYMBOLS, NUMBER, LETTERS = 0, 1, 2
"""Kinds of words: without any letter or digit; with a digit and no letter; with a letter."""


@dataclass(frozen=True)
class Words:
    """The words of a batch in order.

    begin, end: int32[words], bytes of the batch's buffer. characters: int32[words], code points. exact: uint64[words],
    hash of the word as written. folded: uint64[words], hash of its letters, digits and marks in lower case (0 for
    SYMBOLS). kind: uint8[words]. starts: int64[documents + 1], the words of document n are [starts[n], starts[n + 1]).
    """

    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    characters: NDArray[np.int32]
    exact: NDArray[np.uint64]
    folded: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    starts: NDArray[np.int64]


def split_words(batch: TextBatch) -> Words:
    """Cut every document of a batch into words; a word never crosses from one document to the next."""
    return Words(*_split(batch.buffer, batch.starts, classes(), lower_case()))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _split(buffer, starts, classes, lower):  # type: ignore[no-untyped-def]
    bound = len(buffer)
    begin = np.empty(bound, dtype=np.int32)
    end = np.empty(bound, dtype=np.int32)
    characters = np.empty(bound, dtype=np.int32)
    exact = np.empty(bound, dtype=np.uint64)
    folded = np.empty(bound, dtype=np.uint64)
    kind = np.empty(bound, dtype=np.uint8)
    first = np.zeros(len(starts), dtype=np.int64)
    prime, offset = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
    count = 0
    for document in range(len(starts) - 1):
        at, stop = starts[document], starts[document + 1]
        while at < stop:
            code, size = code_point(buffer, at)
            what = classes[code]
            if what == SPACE:
                at += size
                continue
            word, length, written, lowered, is_kind = at, 0, offset, offset, 0
            while True:
                for byte in range(at, at + size):
                    written = (written ^ np.uint64(buffer[byte])) * prime
                at += size
                length += 1
                if what == LETTER or what == DIGIT or what == MARK:
                    is_kind = max(is_kind, 2 if what == LETTER else 1)
                    low = lower[code] if code < FOLDED_CODE_POINTS else code
                    lowered = (lowered ^ np.uint64(low)) * prime
                else:
                    break
                if at >= stop:
                    break
                code, size = code_point(buffer, at)
                what = classes[code]
                if not (what == LETTER or what == DIGIT or what == MARK):
                    break
            begin[count], end[count], characters[count] = word, at, length
            exact[count], kind[count] = written, is_kind
            folded[count] = lowered if is_kind else np.uint64(0)
            count += 1
        first[document + 1] = count
    return begin[:count], end[:count], characters[:count], exact[:count], folded[:count], kind[:count], first
