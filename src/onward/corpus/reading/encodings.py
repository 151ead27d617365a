"""Encodings of text files: UTF-8, else what a byte order mark says, else what the content says beyond doubt."""

import codecs
import re
from typing import TYPE_CHECKING

from onward.corpus.documents import BINARY, BINARY_SHARE, MIXED_ENCODINGS, NOT_UTF8, Unfit, not_encoded

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's, so it is asked first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ASCII = bytes(range(128))
_BEYOND_ASCII = bytes(range(128, 256))
_META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML = re.compile(rb"""^\s*<\?xml[^>]+encoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE)
_META_BYTES = 4096
_SAMPLE_BYTES = 1_000_000
_EVIDENCE_BYTES = 16
"""Fewer bytes beyond ASCII say nothing: the detector finds a language for any two of them."""
_MIXED_CHARACTERS = 8
_COHERENCE = 0.15
"""Least likeness of the letters' frequencies to a language's; measured on ten languages in their 21 usual encodings:
right 0.19 to 0.68, wrong (EUC-JP read as Big5) 0."""
_CHAOS_TIE, _COHERENCE_TIE = 0.01, 0.05
"""Readings closer than this to the best are as good; when they differ, only cp1252 is believed (HTML's default)."""


def by_mark(begin: bytes) -> str | None:
    """Return the encoding of a byte order mark other than UTF-8's."""
    return next((encoding for mark, encoding in _MARKS if begin.startswith(mark)), None)


def is_ascii_based(encoding: str) -> bool:
    """Whether ASCII bytes mean ASCII, so that lines can be cut before they are decoded."""
    try:
        return _ASCII.decode(encoding) == _ASCII.decode("ascii")
    except UnicodeError:
        return False


def decoded(content: bytes, encoding: str | None) -> str:
    """Return the text of a whole file. encoding: the recipe's, or None to find out; raises Unfit."""
    if encoding := encoding or by_mark(content):
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeError:
            raise Unfit(not_encoded(encoding)) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode(_detected(content))


def decoded_page(content: bytes, encoding: str | None) -> str:
    """Return the HTML of a page; raises Unfit. What it declares goes before what the bytes look like."""
    try:
        return decoded(content, encoding or _declared(content))
    except Unfit:
        if encoding:
            raise
        return decoded(content, None)


def _declared(content: bytes) -> str | None:
    """Return the encoding that a page declares, where it can be believed: its bytes are not UTF-8 anyway."""
    named = _META.search(content[:_META_BYTES]) or _XML.search(content[:_META_BYTES])
    if named is None or by_mark(content):
        return None
    try:
        content.decode()
    except UnicodeDecodeError:
        _refuse_nonsense(content)
    else:
        return None
    try:
        name = codecs.lookup(named[1].decode()).name
    except LookupError:
        return None
    if name.startswith(("utf-16", "utf-32")):  # the declaration could not be read if it were true
        return None
    # What pages call Latin-1 or ASCII is its Windows extension (WHATWG Encoding Standard, section 4.2).
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def _refuse_nonsense(content: bytes) -> None:
    """Raise Unfit for binary content, and for UTF-8 among bytes that are none."""
    if content.count(0) * BINARY_SHARE > len(content):
        raise Unfit(BINARY)
    if _is_mixed(content):
        raise Unfit(MIXED_ENCODINGS)


def _detected(content: bytes) -> str:
    """Return the encoding that the bytes speak for; raises Unfit when they are binary, mixed, or leave a doubt."""
    from charset_normalizer import from_bytes

    _refuse_nonsense(content)
    matches = list(from_bytes(content[:_SAMPLE_BYTES]))
    evidence = len(content) - len(content.translate(None, _BEYOND_ASCII))
    if matches and evidence >= _EVIDENCE_BYTES and matches[0].coherence >= _COHERENCE:
        best = matches[0]
        rivals = [match for match in matches if _is_as_good(match, best)]
        western = any("cp1252" in match.could_be_from_charset for match in rivals)
        encoding = "cp1252" if western else best.encoding
        if (western or len(rivals) == 1) and _is_in(content, encoding):
            return encoding
    raise Unfit(NOT_UTF8)


def _is_in(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeError:
        return False
    return True


def _is_mixed(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 as a whole are UTF-8 in part: in whole lines, or in most characters.

    Chinese and Japanese encodings look like UTF-8 in some characters by chance, but not in all of a line.
    """
    in_whole_lines = in_all = lost = 0
    for line in content.decode(errors="replace").splitlines():
        bad = line.count("�")
        good = len(line) - len(line.encode().translate(None, _BEYOND_ASCII)) - bad
        in_all, lost = in_all + good, lost + bad
        in_whole_lines += good if good > 1 and not bad else 0
    return in_all > lost or in_whole_lines >= _MIXED_CHARACTERS


def _is_as_good(match: "CharsetMatch", best: "CharsetMatch") -> bool:
    return match.chaos <= best.chaos + _CHAOS_TIE and match.coherence >= best.coherence - _COHERENCE_TIE
