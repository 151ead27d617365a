"""The word rule: how a text is cut into words, for every rule that counts or compares them.

White space separates pieces. From both ends of a piece punctuation, quotes and symbols are cut off, one word each (a
run of periods is one word). From its end are cut off 's, n't, 'll, 're, 've, 'd, 'm, a unit or a currency behind a
digit, and a period, unless that belongs to an abbreviation (Mr., e.g., U.S., an initial). What is left is one word,
except that these are words of their own inside it: hyphens and : < > = / , between letters (all but the comma also
between a digit and a letter); a period between a small and a capital letter; + - * ^ between digits; symbols and
ellipses. Web and mail addresses stay whole, and so do and/or and w/o.

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
    code_point,
    flags,
    flags_of,
    lower_case,
    read_only,
)
from onward.corpus.text.cut import cut_words
from onward.corpus.text.hashing import SEED, SMALL, eight_bytes, in_eights, mixed

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
    SYMBOLS). kind: uint8[words]. marks: uint8[words], bits. starts: int64[documents + 1], the words
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
    cuts = cut_words(batch)
    number = len(cuts.begin)
    characters = np.empty(number, dtype=np.int32)
    exact, folded = np.empty(number, dtype=np.uint64), np.empty(number, dtype=np.uint64)
    kind, marks = np.empty(number, dtype=np.uint8), np.empty(number, dtype=np.uint8)
    buffer = read_only(batch.buffer)
    about = (characters, exact, folded, kind, marks)
    _describe(buffer, in_eights(buffer), cuts.begin, cuts.end, cuts.plain, flags(), lower_case(), *about)
    return Words(cuts.begin, cuts.end, *about, cuts.starts)


@njit(cache=True, nogil=True, _nrt=False)
def _describe(buffer, eights, begin, end, plain, table, lower, characters, exact, folded, kind, marks):  # type: ignore[no-untyped-def]
    """Hash, measure and classify every word."""
    for word in range(len(begin)):
        low, high = np.int64(begin[word]), np.int64(end[word])
        if not plain[word]:
            if high == low + 1:  # most other words are one symbol
                what, one = table[buffer[low]], np.uint64(buffer[low])
                is_word = what & (LETTER | NUMERAL)
                characters[word], kind[word], marks[word] = 1, _kind(what), _marks(what, 1)
                exact[word] = mixed(SEED, one)
                small = one | np.uint64(0x20) if what & LETTER else one
                folded[word] = mixed(SEED, small) if is_word else np.uint64(0)
                continue
            _describe_any(buffer, low, high, word, table, lower, characters, exact, folded, kind, marks)
            continue
        characters[word], kind[word], marks[word] = high - low, LETTERS, 0
        written, lowered = SEED, SEED
        while low + 8 < high:
            eight = eight_bytes(buffer, eights, low, 8)
            written, lowered = mixed(written, eight), mixed(lowered, eight | SMALL)
            low += 8
        eight = eight_bytes(buffer, eights, low, high - low)
        small = eight | (SMALL >> np.uint64(64 - 8 * (high - low)))
        exact[word], folded[word] = mixed(written, eight), mixed(lowered, small)


@njit(cache=True, _nrt=False)
def _describe_any(buffer, at, stop, word, table, lower, characters, exact, folded, kind, marks):  # type: ignore[no-untyped-def]
    """Describe one word of any characters; words of ASCII letters get the hashes that `_describe` gives them."""
    written, lowered = SEED, SEED
    eight, small = np.uint64(0), np.uint64(0)
    filled, filled_small, length = 0, 0, 0
    some, every = np.uint16(0), np.uint16(0xFFFF)
    while at < stop:
        code, size = code_point(buffer, at)
        what = flags_of(code, table)
        some |= what
        every &= what
        length += 1
        for byte in range(at, at + size):
            if filled == 64:
                written, eight, filled = mixed(written, eight), np.uint64(0), 0
            eight |= np.uint64(buffer[byte]) << np.uint64(filled)
            filled += 8
        at += size
        if what & (LETTER | NUMERAL):
            low = lower[code] if code < len(lower) else code
            for part in range(1 if low < 0x80 else 3):
                if filled_small == 64:
                    lowered, small, filled_small = mixed(lowered, small), np.uint64(0), 0
                byte = low if low < 0x80 else 0x80 | ((low >> (7 * part)) & 0x7F)
                small |= np.uint64(byte) << np.uint64(filled_small)
                filled_small += 8
    characters[word] = length
    exact[word] = mixed(written, eight)
    kind[word], marks[word] = _kind(some), _marks(every, length)
    folded[word] = mixed(lowered, small) if some & (LETTER | NUMERAL) else np.uint64(0)


@njit(forceinline=True, cache=True, _nrt=False)
def _kind(some):  # type: ignore[no-untyped-def]
    """Return the kind of a word from the flags that some character of it has."""
    return LETTERS if some & LETTER else NUMBER if some & NUMERAL else SYMBOLS


@njit(forceinline=True, cache=True, _nrt=False)
def _marks(every, length):  # type: ignore[no-untyped-def]
    """Return the marks of a word from the flags that every character of it has."""
    is_end = IS_SENTENCE_END if length == 1 and every & SENTENCE_END else 0
    is_punctuation = IS_PUNCTUATION if every & PUNCTUATION else 0
    return is_punctuation | is_end | (IS_CATEGORY_P if every & CATEGORY_P else 0)
