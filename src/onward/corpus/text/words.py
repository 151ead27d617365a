"""The word rule: how a text is cut into words, for every rule that counts or compares them.

White space separates pieces. From both ends of a piece punctuation, quotes and symbols are cut off, one word each (a run
of periods is one word); from its end also 's, a unit or a currency behind a digit, and a period, unless that belongs to
an abbreviation (Mr., e.g., U.S., an initial). What is left is one word, except that it is cut
- before a contraction: n't, 'll, 're, 've, 'd, 'm;
- at hyphens, and at : < > = / , between letters; at a period between a small and a capital letter; at + - * ^ between
  digits; at symbols and ellipses, each a word of its own;
- but a web or mail address stays whole.

This is a small stand-in for spaCy's English tokenizer, by which datatrove counts words; docs/numbers says how often the
quality rules decide otherwise because of it. `cut.py` has the rule itself.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import (
    CATEGORY_P,
    LETTER,
    NUMERAL,
    PUNCTUATION,
    SENTENCE_END,
    UPPER,
    code_point,
    flags,
    flags_of,
    lower_case,
)
from onward.corpus.text.cut import cut_words

SYMBOLS, NUMBER, LETTERS = 0, 1, 2
"""Kinds of words: without any letter or digit; with a digit and no letter; with a letter."""
IS_PUNCTUATION, IS_SENTENCE_END, IS_CATEGORY_P = 1, 2, 4
"""Marks of words: of nothing but punctuation in Gopher's sense; one character that ends a sentence; of nothing but
punctuation in Unicode's sense."""


@dataclass(frozen=True)
class Words:
    """The words of a batch in order.

    begin, end: int32[words], bytes of the batch's buffer. characters: int32[words], code points. exact: uint64[words],
    hash of the word as written. folded: uint64[words], hash of its letters, digits and marks in lower case (0 for
    SYMBOLS). kind: uint8[words]. marks: uint8[words], IS_PUNCTUATION and so on. starts: int64[documents + 1], the words
    of document n are [starts[n], starts[n + 1]).
    """

    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    characters: NDArray[np.int32]
    exact: NDArray[np.uint64]
    folded: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    starts: NDArray[np.int64]


def split_words(batch: TextBatch) -> Words:
    """Cut every document of a batch into words; a word never crosses from one document to the next."""
    begin, end, starts = cut_words(batch)
    return Words(begin, end, *_describe(batch.buffer, begin, end, flags(), lower_case()), starts)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _describe(buffer, begin, end, table, lower):  # type: ignore[no-untyped-def]
    """Hash, measure and classify every word."""
    number = len(begin)
    characters = np.empty(number, dtype=np.int32)
    exact = np.empty(number, dtype=np.uint64)
    folded = np.empty(number, dtype=np.uint64)
    kind = np.empty(number, dtype=np.uint8)
    marks = np.empty(number, dtype=np.uint8)
    seed, factor = np.uint64(0x243F6A8885A308D3), np.uint64(0x9E3779B97F4A7C15)
    shift = np.uint64(32)
    for word in range(number):
        at, stop = begin[word], end[word]
        written, lowered, length = seed, seed, 0
        some, every = np.uint16(0), np.uint16(0xFFFF)
        while at < stop:
            byte = buffer[at]
            length += 1
            if byte < 0x80:
                what = table[byte]
                written = (written ^ np.uint64(byte)) * factor
                if what & (LETTER | NUMERAL):
                    lowered = (lowered ^ np.uint64(byte | 0x20 if what & UPPER else byte)) * factor
                at += 1
            else:
                code, size = code_point(buffer, at)
                what = flags_of(code, table)
                written = (written ^ np.uint64(code)) * factor
                if what & (LETTER | NUMERAL):
                    lowered = (lowered ^ np.uint64(lower[code] if code < len(lower) else code)) * factor
                at += size
            some |= what
            every &= what
        characters[word] = length
        exact[word] = written ^ (written >> shift)
        kind[word] = 2 if some & LETTER else 1 if some & NUMERAL else 0
        folded[word] = lowered ^ (lowered >> shift) if some & (LETTER | NUMERAL) else np.uint64(0)
        marks[word] = (
            (1 if every & PUNCTUATION else 0)
            | (2 if length == 1 and every & SENTENCE_END else 0)
            | (4 if every & CATEGORY_P else 0)
        )
    return characters, exact, folded, kind, marks
