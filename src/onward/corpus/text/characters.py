"""What every character is, as a table of flags that compiled code looks up by code point."""

import string
import unicodedata
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

CODE_POINTS = 0x20000
"""Flags and lower case are looked up below this code point; above it there are ideographs and private use."""

SPACE, LOWER, UPPER, DIGIT, NUMERAL, EDGE, PREFIX, CURRENCY = 1, 2, 4, 8, 16, 32, 64, 128
ICON, QUOTE, BEFORE_PERIOD, PUNCTUATION, CATEGORY_P, SENTENCE_END = 256, 512, 1024, 2048, 4096, 8192
LETTER = LOWER | UPPER
"""Letters without case are both, so that every rule about neighbouring letters holds for them.

SPACE: `str.isspace`. DIGIT: 0 to 9. NUMERAL: any number, and marks that belong to a letter. EDGE: cut off from either
end of a word; PREFIX: only from its beginning. ICON: symbols that are words wherever they stand. BEFORE_PERIOD: a
period behind it ends a sentence, not an abbreviation. PUNCTUATION: words of these alone are not counted by Gopher.
CATEGORY_P: Unicode's punctuation. SENTENCE_END: Unicode's Sentence_Terminal.
"""

_MARKS = ",:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪…"
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCIES = "$£€¥฿₽﷼₴" + "".join(map(chr, range(0x20A0, 0x20C0)))
_NOT_COUNTED = string.punctuation + "´«»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
_SENTENCE_ENDS = """
21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6
17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E
2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52
FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6
111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944
11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F
1DA88
"""
_OF_CATEGORY = {
    "Ll": LOWER,
    "Lu": UPPER,
    "Lt": UPPER,
    "Lm": LETTER,
    "Lo": LETTER,
    "Nd": NUMERAL,
    "Nl": NUMERAL,
    "No": NUMERAL,
    "Mn": NUMERAL,
    "Mc": NUMERAL,
    "Me": NUMERAL,
    "So": ICON | EDGE,
    **dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"), CATEGORY_P),
}
_OF_CHARACTER = (
    ("0123456789", DIGIT | BEFORE_PERIOD),
    (_MARKS, EDGE | BEFORE_PERIOD),
    (_QUOTES, EDGE | QUOTE | BEFORE_PERIOD),
    ("—–", EDGE),
    ("§%=", PREFIX),
    (_CURRENCIES, PREFIX | CURRENCY),
    ("%²-+|", BEFORE_PERIOD),
    (_NOT_COUNTED, PUNCTUATION),
)


@cache
def flags() -> NDArray[np.uint16]:
    """Return the flags of every code point below CODE_POINTS: uint16[CODE_POINTS]."""
    characters = list(map(chr, range(CODE_POINTS)))
    of_category = {category: _OF_CATEGORY.get(category, 0) for category in map(unicodedata.category, characters)}
    table = np.fromiter(map(of_category.__getitem__, map(unicodedata.category, characters)), np.uint16, CODE_POINTS)
    table[np.fromiter(map(str.isspace, characters), np.bool_, CODE_POINTS)] |= SPACE
    table[(table & LOWER) != 0] |= BEFORE_PERIOD
    for members, flag in _OF_CHARACTER:
        table[[ord(member) for member in members]] |= flag
    table[_controls()] |= PUNCTUATION
    table[_sentence_ends()] |= SENTENCE_END | PUNCTUATION
    return table


@cache
def lower_case() -> NDArray[np.int32]:
    """Return the lower case of every code point below CODE_POINTS that has a single one, else itself."""
    table = np.arange(CODE_POINTS, dtype=np.int32)
    for code in np.flatnonzero((flags() & LETTER) == UPPER).tolist():
        lower = chr(code).lower()
        if len(lower) == 1:
            table[code] = ord(lower)
    return table


def _controls() -> list[int]:
    """Control characters but the line feed, the line feed's neighbours included (as datatrove's set has them)."""
    return [*range(9), 11, 12, *range(13, 32), *range(127, 160)]


def _sentence_ends() -> list[int]:
    codes: list[int] = []
    for span in _SENTENCE_ENDS.split():
        first, _, last = span.partition("-")
        codes += range(int(first, 16), int(last or first, 16) + 1)
    return codes


def read_only(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view that cannot be written: compiled code knows two types of array, and is compiled for each."""
    view = buffer.view()
    view.flags.writeable = False
    return view


@njit(forceinline=True, cache=True, _nrt=False)
def flags_of(code, table):  # type: ignore[no-untyped-def]
    """Return the flags of a code point; above the table ideographs are letters, the rest is nothing."""
    if code < CODE_POINTS:
        return table[code]
    return np.uint16(LETTER) if code < 0x40000 else np.uint16(0)


@njit(forceinline=True, cache=True, _nrt=False)
def code_point(buffer, at):  # type: ignore[no-untyped-def]
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


@njit(forceinline=True, cache=True, _nrt=False)
def code_point_before(buffer, end):  # type: ignore[no-untyped-def]
    """Return the code point that ends before byte `end` of valid UTF-8, and its number of bytes."""
    at = end - 1
    while buffer[at] & 0xC0 == 0x80:
        at -= 1
    code, size = code_point(buffer, at)
    return code, size
