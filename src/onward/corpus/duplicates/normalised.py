"""The text as duplicates see it, for whole batches: NFC, lower case, every run of white space one space.

Exactly `" ".join(unicodedata.normalize("NFC", text).lower().split())`. Compiled code does it by table for every
document whose characters stand alone, that is, nearly all; a document with any other character (a combining mark, a
Hangul vowel that may compose, a capital sigma, which is lowered by its place in the word) goes through Python's `str`.
"""

import sys
import unicodedata
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch

_SPACE, _SPECIAL = -1, -2
_TABLE_END, _PLAIN_END = 0x20000, 0x2F800
"""Between the two there are only ideographs that stand alone; from the second on, compatibility ideographs."""
_SIGMA = "Σ"


def normalise(text: str) -> str:
    """Return one text as duplicates see it; the definition that `normalised` follows."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.lower().split())


def normalised(batch: TextBatch) -> TextBatch:
    """Return every document as duplicates see it, UTF-8 as before; none grows by it, except through composition."""
    buffer, sizes, special = _normalise(batch.buffer, batch.starts, _lowered())
    starts = np.zeros(len(batch) + 1, dtype=np.int64)
    if not special.any():
        np.cumsum(sizes, out=starts[1:])
        return TextBatch(buffer, starts)
    texts = {n: normalise(batch.text(n)).encode() for n in np.flatnonzero(special).tolist()}
    whole, ends = buffer.data, np.cumsum(sizes)  # special documents have written nothing
    pieces: list[bytes | memoryview] = []
    at = 0
    for n, text in texts.items():
        end = int(ends[n])
        pieces += [whole[at:end], text]
        sizes[n], at = len(text), end
    pieces.append(whole[at : int(ends[-1])])
    np.cumsum(sizes, out=starts[1:])
    return TextBatch(np.frombuffer(b"".join(pieces), dtype=np.uint8), starts)


@cache
def _lowered() -> NDArray[np.int32]:
    """Return the lower case of every code point below _TABLE_END that stands alone, else _SPACE or _SPECIAL.

    A character stands alone when NFC never changes it, whatever is around it (UAX #15: it is NFC itself, of combining
    class 0, and no second part of any composition), and when it has one lower-case character, whatever is around it,
    of no more bytes.
    """
    table = np.arange(_TABLE_END, dtype=np.int32)
    parts: set[str] = set()
    for code in range(_TABLE_END):
        if 0xD800 <= code < 0xE000:
            continue  # no UTF-8 holds surrogates
        character = chr(code)
        decomposed = unicodedata.normalize("NFD", character)
        parts.update(decomposed[1:])
        lower = character.lower()
        changes = decomposed != character and unicodedata.normalize("NFC", character) != character
        grows = len(lower) != 1 or len(lower.encode()) > len(character.encode())
        if changes or grows or unicodedata.combining(character) or character == _SIGMA:
            table[code] = _SPECIAL
        else:
            table[code] = _SPACE if character.isspace() else ord(lower)
    table[[ord(part) for part in parts if ord(part) < _TABLE_END]] = _SPECIAL
    assert max(map(ord, parts)) < _TABLE_END, sys.version
    return table


@njit(cache=True, nogil=True)
def _normalise(buffer, starts, lowered):  # type: ignore[no-untyped-def]
    number = len(starts) - 1
    out = np.empty(len(buffer), dtype=np.uint8)
    sizes = np.zeros(number, dtype=np.int64)
    special = np.zeros(number, dtype=np.bool_)
    ascii_table = np.empty(128, dtype=np.uint8)
    for code in range(128):
        ascii_table[code] = 0x20 if lowered[code] == _SPACE else lowered[code]
    write = 0
    for document in range(number):
        at, stop, first = starts[document], starts[document + 1], write
        after_space = True  # the space that would be next is left out
        while at < stop:
            byte = buffer[at]
            if byte < 0x80:
                low = ascii_table[byte]
                is_space = low == 0x20
                out[write] = low
                write += not (is_space and after_space)
                after_space = is_space
                at += 1
                continue
            code, size = _decode(buffer, at)
            at += size
            what = lowered[code] if code < _TABLE_END else (code if code < _PLAIN_END else _SPECIAL)
            if what == _SPECIAL:
                special[document] = True
                break
            if what == _SPACE:
                out[write] = 0x20
                write += not after_space
                after_space = True
            else:
                write = _encode(out, write, what)
                after_space = False
        if special[document]:
            write = first
        elif after_space and write > first:
            write -= 1
        sizes[document] = write - first
    return out[:write], sizes, special


@njit(cache=True, inline="always")
def _decode(buffer, at):  # type: ignore[no-untyped-def]
    """Return the code point beyond ASCII that begins at byte `at` of valid UTF-8, and its bytes."""
    first = np.int64(buffer[at])
    second = np.int64(buffer[at + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, 2
    third = np.int64(buffer[at + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(buffer[at + 3]) & 0x3F, 4


@njit(cache=True, inline="always")
def _encode(out, at, code):  # type: ignore[no-untyped-def]
    """Write a code point as UTF-8; return where the next one goes."""
    if code < 0x80:
        out[at] = code
        return at + 1
    if code < 0x800:
        out[at] = 0xC0 | code >> 6
        out[at + 1] = 0x80 | code & 0x3F
        return at + 2
    if code < 0x10000:
        out[at] = 0xE0 | code >> 12
        out[at + 1] = 0x80 | code >> 6 & 0x3F
        out[at + 2] = 0x80 | code & 0x3F
        return at + 3
    out[at] = 0xF0 | code >> 18
    out[at + 1] = 0x80 | code >> 12 & 0x3F
    out[at + 2] = 0x80 | code >> 6 & 0x3F
    out[at + 3] = 0x80 | code & 0x3F
    return at + 4
