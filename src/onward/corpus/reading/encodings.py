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
_META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML = re.compile(rb"""^\s*<\?xml[^>]+encoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE)
_META_BYTES = 4096
_SAMPLE_BYTES = 1_000_000
_EVIDENCE_BYTES = 16
"""Fewer bytes beyond ASCII say nothing: the detector finds a language for any two of them."""
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
    """Return the HTML of a page; without another sign its own declaration is believed where it can be true."""
    try:
        return decoded(content, encoding)
    except Unfit:
        named = _META.search(content[:_META_BYTES]) or _XML.search(content[:_META_BYTES])
        if encoding or named is None:
            raise
        try:
            name = codecs.lookup(named[1].decode()).name
            # What pages call Latin-1 or ASCII is its Windows extension (WHATWG Encoding Standard, section 4.2).
            return content.decode("cp1252" if name in ("iso8859-1", "ascii") else name)
        except (LookupError, UnicodeError):
            raise Unfit(NOT_UTF8) from None


def _detected(content: bytes) -> str:
    """Return the encoding that the bytes speak for; raises Unfit when they are binary, mixed, or leave a doubt."""
    if content.count(0) * BINARY_SHARE > len(content):
        raise Unfit(BINARY)
    lossy = content.decode(errors="replace")
    lost = lossy.count("�")
    if 4 * (sum(not character.isascii() for character in lossy) - lost) > lost:
        raise Unfit(MIXED_ENCODINGS)  # GBK looks like UTF-8 in one character of ten by chance, others hardly ever
    from charset_normalizer import from_bytes

    matches = list(from_bytes(content[:_SAMPLE_BYTES]))
    evidence = len(content) - len(content.translate(None, bytes(range(128, 256))))
    if matches and evidence >= _EVIDENCE_BYTES and matches[0].coherence >= _COHERENCE:
        best = matches[0]
        rivals = [match for match in matches if _is_as_good(match, best)]
        western = any("cp1252" in match.could_be_from_charset for match in rivals)
        if western or len(rivals) == 1:
            encoding = "cp1252" if western else best.encoding
            try:
                content.decode(encoding)
            except UnicodeError:
                raise Unfit(NOT_UTF8) from None
            return encoding
    raise Unfit(NOT_UTF8)


def _is_as_good(match: "CharsetMatch", best: "CharsetMatch") -> bool:
    return match.chaos <= best.chaos + _CHAOS_TIE and match.coherence >= best.coherence - _COHERENCE_TIE
