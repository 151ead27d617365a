"""What every character is, as tables that compiled code looks up by code point."""

import sys
import unicodedata
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

OTHER, SPACE, LETTER, DIGIT, MARK, SYMBOL = 0, 1, 2, 3, 4, 5
_CLASS_OF_CATEGORY = {"L": LETTER, "N": DIGIT, "M": MARK, "P": SYMBOL, "S": SYMBOL, "Z": SPACE, "C": OTHER}
FOLDED_CODE_POINTS = 0x20000
"""Lower case is looked up below this code point; above it there are no cased letters but a few historic ones."""


@cache
def classes() -> NDArray[np.uint8]:
    """Return the class of every code point: uint8[0x110000]. SPACE is what `str.isspace` says."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(len(table)):
        character = chr(code)
        table[code] = SPACE if character.isspace() else _CLASS_OF_CATEGORY[unicodedata.category(character)[0]]
    return table


@cache
def lower_case() -> NDArray[np.int32]:
    """Return the lower case of every code point below FOLDED_CODE_POINTS that has a single one, else itself."""
    table = np.arange(FOLDED_CODE_POINTS, dtype=np.int32)
    for code in range(FOLDED_CODE_POINTS):
        lower = chr(code).lower()
        if len(lower) == 1:
            table[code] = ord(lower)
    return table


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def code_point(buffer: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Return the code point that begins at byte `at` of valid UTF-8, and its number of bytes."""
    first = buffer[at]
    if first < 0x80:
        return np.int64(first), 1
    if first < 0xE0:
        return ((np.int64(first) & 0x1F) << 6) | (np.int64(buffer[at + 1]) & 0x3F), 2
    if first < 0xF0:
        middle = (np.int64(buffer[at + 1]) & 0x3F) << 6
        return ((np.int64(first) & 0x0F) << 12) | middle | (np.int64(buffer[at + 2]) & 0x3F), 3
    high = ((np.int64(first) & 0x07) << 18) | ((np.int64(buffer[at + 1]) & 0x3F) << 12)
    return high | ((np.int64(buffer[at + 2]) & 0x3F) << 6) | (np.int64(buffer[at + 3]) & 0x3F), 4
