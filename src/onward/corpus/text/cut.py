"""Where words begin and end: the rule that `words.py` describes, over bytes."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import (
    BEFORE_PERIOD,
    CURRENCY,
    DIGIT,
    EDGE,
    ICON,
    LETTER,
    LOWER,
    PREFIX,
    QUOTE,
    SPACE,
    UPPER,
    code_point,
    code_point_before,
    flags,
    flags_of,
    read_only,
)

PIECES = 1024
IS_SPACE, IS_OTHER, IS_FOREIGN = 1, 2, 4


@dataclass(frozen=True)
class Cuts:
    """Where words are. begin, end: int32[words], bytes of the buffer. plain: uint8[words], 1 where a word is known to
    be of ASCII letters alone. starts: int64[documents + 1], the first word of every document.
    """

    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    plain: NDArray[np.uint8]
    starts: NDArray[np.int64]


_ABBREVIATIONS = """
Mr. Mrs. Ms. Dr. Prof. Rev. Gen. Gov. Sen. Rep. Adm. Messrs. Jr. St. Mt. Inc. Ltd. Co. co. Corp. Bros. vs. v.s. e.g.
E.g. i.e. I.e. a.m. p.m. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec.
Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Md. Mich. Minn. Miss.
Mo. Mont. Neb. Nebr. Nev. Okla. Ore. Pa. Tenn. Va. Wash. Wis. Ph.D. and/or w/o
"""
_UNITS = """
km m dm cm mm nm ha yd in ft kg g mg t lb oz kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % km/h m/s
km² m² cm² mm² km³ m³ cm³ mm³ µm µg
"""


def _packed(word: str) -> int:
    return int.from_bytes(word.encode(), "little")


def _lookup(words: str) -> NDArray[np.uint64]:
    """A table of 512 places, in which a word of at most eight bytes is found at its hash or a little behind."""
    table = np.zeros(512, dtype=np.uint64)
    for word in words.split():
        key = _packed(word)
        place = (key * 0x9E3779B97F4A7C15 % 2**64) >> 55
        while table[place]:
            place = (place + 1) % 512
        table[place] = key
    return table


_WHOLE, _UNIT = _lookup(_ABBREVIATIONS), _lookup(_UNITS)


def cut_words(batch: TextBatch) -> Cuts:
    """Cut every document of a batch into words."""
    size = len(batch.buffer)
    assert size < 2**31, "a batch is a few MB of text, or one document"
    scratch = (*(np.empty(PIECES, dtype=np.int32) for _ in range(2)), np.empty(PIECES, dtype=np.uint8))
    starts = np.zeros(len(batch.starts), dtype=np.int64)
    capacity = size // 3 + 1024  # English has a word in five bytes; a text of symbols has more, and is cut again
    while True:
        begin, end, stack = (np.empty(capacity, dtype=np.int32) for _ in range(3))
        plain = np.empty(capacity, dtype=np.uint8)
        words = (begin, end, plain, stack, starts)
        count = _cut(read_only(batch.buffer), batch.starts, flags(), _bytes(), _WHOLE, _UNIT, *scratch, *words)
        if count >= 0:
            return Cuts(begin[:count], end[:count], plain[:count], starts)
        capacity = min(2 * capacity, size)


@cache
def _bytes() -> NDArray[np.uint8]:
    """Return what a byte is: 0 a letter, IS_SPACE, IS_OTHER, or IS_FOREIGN (part of a character beyond ASCII)."""
    table = np.full(256, IS_FOREIGN, dtype=np.uint8)
    what = flags()[:128]
    table[:128] = np.where(what & LETTER, 0, np.where(what & SPACE, IS_SPACE, IS_OTHER))
    return table


@njit(cache=True, nogil=True, _nrt=False)
def _cut(buffer, starts, table, bytes_table, whole, units, lows, highs, kinds, begin, end, plain, stack, first):  # type: ignore[no-untyped-def]
    """Return the number of words, -1 where they are more than there is room for."""
    count = 0
    for document in range(len(starts) - 1):
        at, stop = starts[document], starts[document + 1]
        while at < stop:
            pieces, at = _pieces(buffer, at, stop, bytes_table, lows, highs, kinds)
            for piece in range(pieces):
                low, high, kind = np.int64(lows[piece]), np.int64(highs[piece]), kinds[piece]
                if count + high - low > len(begin):
                    return -1
                if kind == 0:
                    begin[count], end[count], plain[count] = low, high, 1
                    count += 1
                    continue
                letters = low
                while bytes_table[buffer[letters]] == 0:
                    letters += 1
                if letters == high - 1 and letters > low and _ends_plainly(buffer, low, letters, table):
                    begin[count], end[count], plain[count] = low, letters, 1
                    begin[count + 1], end[count + 1], plain[count + 1] = letters, high, 0
                    count += 2
                    continue
                before = count
                while low < high:
                    rest = _blank_or_end(buffer, low, high, table) if kind & IS_FOREIGN else high
                    count = _cut_piece(buffer, low, rest, table, whole, units, begin, end, stack, count)
                    low = rest if rest == high else rest + code_point(buffer, rest)[1]
                for word in range(before, count):
                    plain[word] = 0
        first[document + 1] = count
    return count


@njit(forceinline=True, cache=True, _nrt=False)
def _ends_plainly(buffer, low, letters, table):  # type: ignore[no-untyped-def]
    """Whether the only character behind letters is cut off: the usual case, decided without looking further."""
    last = buffer[letters]
    if last == ord("."):  # no abbreviation has seven letters
        return letters - low > 6 and table[buffer[letters - 1]] & LOWER
    return last < 0x80 and table[last] & EDGE


@njit(forceinline=True, cache=True, _nrt=False)
def _blank_or_end(buffer, low, high, table):  # type: ignore[no-untyped-def]
    """Return where the next white space begins, which is beyond ASCII here, or the end."""
    while low < high:
        code, size = code_point(buffer, low)
        if size > 1 and flags_of(code, table) & SPACE:
            break
        low += size
    return low


@njit(forceinline=True, cache=True, _nrt=False)
def _pieces(buffer, at, stop, bytes_table, lows, highs, kinds):  # type: ignore[no-untyped-def]
    """Find the next pieces between blanks; return their number and where to go on.

    The loop has no branch but its end: guessing where words end costs more than writing every byte down.
    """
    count, low, kind, inside = 0, at, np.uint8(0), 0
    while at < stop and count < len(lows) - 1:
        what = bytes_table[buffer[at]]
        is_space = what & IS_SPACE
        lows[count], highs[count], kinds[count] = low, at, kind
        count += inside & is_space
        low = at + 1 if is_space else low
        kind = np.uint8(0) if is_space else np.uint8(kind | what)
        inside = 1 - is_space
        at += 1
    if at == stop and inside:
        lows[count], highs[count], kinds[count] = low, at, kind
        count += 1
    return count, at


@njit(forceinline=True, cache=True, _nrt=False)
def _is_among(buffer, low, high, words):  # type: ignore[no-untyped-def]
    """Whether these bytes are one of the words of a lookup."""
    if high - low > 8 or high == low:
        return False
    key = np.uint64(0)
    for at in range(high - 1, low - 1, -1):
        key = (key << np.uint64(8)) | np.uint64(buffer[at])
    place = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(55)
    while words[place]:
        if words[place] == key:
            return True
        place = (place + np.uint64(1)) % np.uint64(512)
    return False


@njit(forceinline=True, cache=True, _nrt=False)
def _cut_piece(buffer, low, high, table, whole, units, begin, end, stack, count):  # type: ignore[no-untyped-def]
    """Cut what stands between white space; return the new number of words."""
    depth = 0
    while low < high and not _is_abbreviation(buffer, low, high, whole):
        size = _prefix(buffer, low, high, table)
        if size:
            begin[count], end[count] = low, low + size
            count += 1
            low += size
            continue
        size = _suffix(buffer, low, high, table, units)
        if not size or size == high - low:
            size = _contraction(buffer, low, high)
        if not size:
            break
        stack[depth] = high
        depth += 1
        high -= size
    if low < high:
        count = _cut_middle(buffer, low, high, table, whole, begin, end, count)
    while depth:
        depth -= 1
        begin[count], end[count] = high, stack[depth]
        high = stack[depth]
        count += 1
    return count


@njit(forceinline=True, cache=True, _nrt=False)
def _is_abbreviation(buffer, low, high, whole):  # type: ignore[no-untyped-def]
    """An abbreviation, or an initial in small letters, with its period."""
    if buffer[high - 1] != ord("."):
        return False
    if high - low == 2 and ord("a") <= buffer[low] <= ord("z"):
        return True
    return _is_among(buffer, low, high, whole)


@njit(forceinline=True, cache=True, _nrt=False)
def _prefix(buffer, low, high, table):  # type: ignore[no-untyped-def]
    """Bytes to cut off at the beginning, 0 for none."""
    code, size = code_point(buffer, low)
    if flags_of(code, table) & (EDGE | PREFIX):
        return size
    if code == ord("."):
        size = _periods(buffer, low, high)
        return size if size > 1 else 0
    if code == ord("+") and (low + 1 == high or not table[buffer[low + 1]] & DIGIT):
        return 1
    return 0


@njit(forceinline=True, cache=True, _nrt=False)
def _periods(buffer, low, high):  # type: ignore[no-untyped-def]
    at = low
    while at < high and buffer[at] == ord("."):
        at += 1
    return at - low


@njit(forceinline=True, cache=True, _nrt=False)
def _suffix(buffer, low, high, table, units):  # type: ignore[no-untyped-def]
    """Bytes to cut off at the end, 0 for none."""
    code, size = code_point_before(buffer, high)
    what = flags_of(code, table)
    if what & EDGE:
        return size
    before = high - size
    if before <= low:
        return 0
    if code == ord("."):
        while before > low and buffer[before - 1] == ord("."):
            before -= 1
        if high - before > 1:
            return high - before
        code, size = code_point_before(buffer, before)
        what = flags_of(code, table)
        if what & BEFORE_PERIOD:
            return 1
        before -= size
        if what & UPPER and before > low:
            code, size = code_point_before(buffer, before)
            if flags_of(code, table) & UPPER:
                return 1
        return 0
    if code == ord("s") or code == ord("S"):
        mark, size = code_point_before(buffer, before)
        if mark == ord("'") or mark == 0x2019:
            return 1 + size
    if buffer[before - 1] < 0x80 and table[buffer[before - 1]] & DIGIT and (code == ord("+") or what & CURRENCY):
        return size
    at = high
    while at > low and high - at <= 5 and not (buffer[at - 1] < 0x80 and table[buffer[at - 1]] & DIGIT):
        at -= 1
    is_behind_digit = low < at < high and buffer[at - 1] < 0x80 and table[buffer[at - 1]] & DIGIT
    return high - at if is_behind_digit and _is_among(buffer, at, high, units) else 0


@njit(forceinline=True, cache=True, _nrt=False)
def _contraction(buffer, low, high):  # type: ignore[no-untyped-def]
    """Bytes of n't, 'll, 're, 've, 'd, 'm at the end, 0 for none."""
    for letters in range(1, 3):
        end = high - letters
        width = 1 if end - 1 > low and buffer[end - 1] == ord("'") else 0
        if end - 3 > low and buffer[end - 3] == 0xE2 and buffer[end - 2] == 0x80 and buffer[end - 1] == 0x99:
            width = 3
        if not width:
            continue
        first, last = buffer[end] | 0x20, buffer[high - 1] | 0x20
        before = end - width - 1
        if letters == 1 and (last == ord("d") or last == ord("m")):
            return width + 1
        if letters == 1 and last == ord("t") and before > low and buffer[before] | 0x20 == ord("n"):
            return width + 2
        is_re_or_ve = last == ord("e") and (first == ord("r") or first == ord("v"))
        if letters == 2 and (is_re_or_ve or (first == ord("l") and last == ord("l"))):
            return width + 2
    return 0


@njit(forceinline=True, cache=True, _nrt=False)
def _cut_middle(buffer, low, high, table, whole, begin, end, count):  # type: ignore[no-untyped-def]
    """Cut inside what is left between prefixes and suffixes; return the new number of words."""
    start = at = low
    before = np.uint16(0)
    while at < high:
        code, size = code_point(buffer, at)
        what = flags_of(code, table)
        width = _infix(buffer, at, high, size, code, what, before, table) if at > low else 0
        if width and start == low and _stays_whole(buffer, low, high, table, whole):
            break
        if width:
            if at > start:
                begin[count], end[count] = start, at
                count += 1
            begin[count], end[count] = at, at + width
            count += 1
            start = at + width
        at += width if width else size
        before = what
    if start < high:
        begin[count], end[count] = start, high
        count += 1
    return count


@njit(forceinline=True, cache=True, _nrt=False)
def _infix(buffer, at, high, size, code, what, before, table):  # type: ignore[no-untyped-def]
    """Bytes of the word that cuts the middle of a piece in two at `at`, 0 for none."""
    if what & ICON or code == 0x2026:
        return size
    if what & (LETTER | DIGIT) or at + size >= high:
        return 0
    after_code, _ = code_point(buffer, at + size)
    after = flags_of(after_code, table)
    if code == ord("."):
        if after_code == ord("."):
            return _periods(buffer, at, high)
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    is_hyphen = code == ord("-") or code == 0x2013 or code == 0x2014 or code == ord("~")
    is_operator = code == ord("+") or code == ord("-") or code == ord("*") or code == ord("^")
    if is_operator and before & DIGIT and (after & DIGIT or after_code == ord("-")):
        return 1
    if code == ord(","):
        return 1 if before & LETTER and after & LETTER else 0
    if not before & (LETTER | DIGIT):
        return 0
    if is_hyphen:
        width = size
        while after_code == code and (code == ord("-") or code == 0x2014) and width < 3:
            width += size
            if at + width >= high:
                return 0
            after_code, _ = code_point(buffer, at + width)
            after = flags_of(after_code, table)
        return width if after & LETTER else 0
    if code == ord(":") or code == ord("<") or code == ord(">") or code == ord("=") or code == ord("/"):
        return 1 if after & LETTER else 0
    return 0


@njit(forceinline=True, cache=True, _nrt=False)
def _stays_whole(buffer, low, high, table, whole):  # type: ignore[no-untyped-def]
    """An abbreviation with something in it that would cut it, or an address."""
    return _is_among(buffer, low, high, whole) or _is_address(buffer, low, high, table)


@njit(forceinline=True, cache=True, _nrt=False)
def _is_address(buffer, low, high, table):  # type: ignore[no-untyped-def]
    """Whether this is [scheme://] [user@] host.tld [:port] [/path]."""
    at = low
    while at < high and (_is_in_name(buffer[at], table) or buffer[at] == ord("+")):
        at += 1
    if at > low + 1 and at + 3 < high and buffer[at] == ord(":"):
        is_scheme = buffer[at + 1] == ord("/") and buffer[at + 2] == ord("/")
        if is_scheme and _is_host(buffer, at + 3, high, table):
            return True
    if _is_host(buffer, low, high, table):
        return True
    for sign in range(low + 1, high - 1):
        if buffer[sign] == ord("@") and _is_host(buffer, sign + 1, high, table):
            return True
    return False


@njit(forceinline=True, cache=True, _nrt=False)
def _is_in_name(byte, table):  # type: ignore[no-untyped-def]
    """Whether this may stand in the name of a host, beyond ASCII anything."""
    if byte >= 0x80 or table[byte] & (LETTER | DIGIT):
        return True
    return byte == ord("-") or byte == ord("_") or byte == ord(".")


@njit(forceinline=True, cache=True, _nrt=False)
def _is_host(buffer, low, high, table):  # type: ignore[no-untyped-def]
    """Whether parts joined by periods stand here, the last of two small letters or more, and then the end or a path."""
    at = label = low
    dots = 0
    while at < high and _is_in_name(buffer[at], table):
        if buffer[at] == ord("."):
            if at == label or buffer[at - 1] == ord("-") or buffer[at - 1] == ord("_"):
                return False
            dots += 1
            label = at + 1
        at += 1
    if not dots or at - label < 2:
        return False
    for letter in range(label, at):
        if buffer[letter] < 0x80 and not table[buffer[letter]] & LOWER:
            return False
    if at < high and buffer[at] == ord(":"):
        digits = at + 1
        while digits < high and table[buffer[digits]] & DIGIT:
            digits += 1
        if 3 <= digits - at <= 6:
            at = digits
    return at == high or buffer[at] == ord("/") or buffer[at] == ord("?") or buffer[at] == ord("#")
