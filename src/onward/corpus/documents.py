"""Documents: what readers give to the corpus stage, and what they could not read."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

MAXIMUM_CHARACTERS = 4_000_000
"""A longer text is given in parts, so that no stage holds more than a few megabytes of one document at a time.

Few books are that long (War and Peace has 3.2 million characters); a part ends at a line, else at a space. A part is a
document of its own, in the held-out split too: a corpus that is one large file then still has both sides, and the two
meet only at the borders of contiguous megabytes.
"""
BINARY_SHARE = 100
"""A text is binary when more than one character in so many is NUL; fewer are removed (PDF converters leave some)."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """One text. id: the record's own, else `path:line`. source: the file. group: shares a held-out side, or None."""

    id: str
    text: str
    source: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Records without a usable text. where: `path:line`. reason: a ledger rule. fields: those the record has.

    count: so many records in a row have this reason, the first of them at `where`; millions of empty lines are then
    few objects.
    """

    where: str
    reason: str
    fields: tuple[str, ...] = ()
    count: int = 1

    def places(self) -> Iterator[str]:
        """Yield the place of every record: `path:7`, `path:8`, ..., in a list `path:[7]`, `path:[8]`, ..."""
        yield self.where
        if self.count > 1:
            path, _, first = self.where.rpartition(":")
            form = "[{}]" if first.startswith("[") else "{}"
            begin = int(first.strip("[]"))
            yield from (f"{path}:{form.format(number)}" for number in range(begin + 1, begin + self.count))


Item = Document | Unreadable


class Unfit(Exception):
    """Content that gives no text. reason: a ledger rule."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold the text and the group."""

    text: str
    group: str | None


EMPTY = "unreadable: empty text"
BINARY = "unreadable: binary content"
BROKEN_JSON = "unreadable: broken JSON"
NOT_AN_OBJECT = "unreadable: not a JSON object"
NOT_UTF8 = "unreadable: not UTF-8"
MIXED_ENCODINGS = "unreadable: mixed encodings"
TRUNCATED = "unreadable: truncated file"
DAMAGED = "unreadable: damaged compression"
WIDE_WINDOW = "unreadable: zstd window of more than 128 MB"
BROKEN_PARQUET = "unreadable: broken Parquet"
NO_TEXT_IN_PAGE = "unreadable: no text in the page"
NO_TEXT_IN_PDF = "unreadable: no text in the PDF"

WITHOUT_TEXT = frozenset({EMPTY, NO_TEXT_IN_PAGE})
"""Read without fault, with nothing to give: counted, but no sign of bad input."""


_NO_FIELD = "unreadable: no field "


def no_field(name: str) -> str:
    """Return the ledger rule for a record that lacks a field."""
    return f"{_NO_FIELD}`{name}`"


def not_encoded(encoding: str) -> str:
    """Return the ledger rule for bytes that are not in the encoding that they should have."""
    return f"unreadable: not {encoding}"


def too_long(maximum_bytes: int) -> str:
    """Return the ledger rule for a record or file of more than so many bytes."""
    return f"unreadable: longer than {maximum_bytes // 1_000_000} MB"


def broken(kind: str) -> str:
    """Return the ledger rule for a file that is not the PDF, DOCX or EPUB that its name says."""
    return f"unreadable: broken {kind}"


def protected(kind: str) -> str:
    """Return the ledger rule for a file that only opens with a password or a key."""
    return f"unreadable: password-protected {kind}"


def reason_against(record: object, fields: Fields) -> str | None:
    """Return the ledger rule of a record without a usable text, None for one that is a document."""
    if not isinstance(record, dict):
        return NOT_AN_OBJECT
    for field in (fields.text, fields.group):
        if field is not None and field not in record:
            return no_field(field)
    text = record[fields.text]
    return reason_against_text(text) if isinstance(text, str) else f"unreadable: field `{fields.text}` is not text"


def fields_to_show(reason: str, record: object) -> tuple[str, ...]:
    """Return the fields of a record that lacks the wanted one; of any other they help nobody."""
    return tuple(record) if isinstance(record, dict) and reason.startswith(_NO_FIELD) else ()


def reason_against_text(text: str) -> str | None:
    """Return the ledger rule of an empty or binary text, None for any other."""
    if not text or text.isspace():
        return EMPTY
    return BINARY if "\0" in text and text.count("\0") * BINARY_SHARE > len(text) else None


def from_record(record: Mapping[str, Any], fields: Fields, source: str, where: str) -> Iterable[Item]:
    """Return the document of a record that no reason speaks against, in parts when it is very long."""
    text, name = record[fields.text], record.get("id")
    group = None if fields.group is None else str(record[fields.group])
    return from_text(text, str(name) if isinstance(name, str | int) else where, source, where, group)


def from_text(text: str, name: str, source: str, where: str, group: str | None = None) -> Iterable[Item]:
    """Return one document, or its parts `name#1`, `name#2`, ... when it is longer than MAXIMUM_CHARACTERS.

    NUL characters are removed where they are few; other control characters stay as they were read.
    """
    if reason := reason_against_text(text):
        return (Unreadable(where, reason),)
    if len(text) <= MAXIMUM_CHARACTERS:
        return (Document(name, text.replace("\0", ""), source, group),)
    parts = enumerate(cut(text, MAXIMUM_CHARACTERS), start=1)
    return chain.from_iterable(from_text(part, f"{name}#{n}", source, f"{where}#{n}", group) for n, part in parts)


def without_surrogates(text: str) -> str:
    """Return the text with U+FFFD for every lone surrogate, which no encoding could write."""
    return _SURROGATE.sub("�", text)


def cut(text: str, characters: int) -> Iterator[str]:
    """Cut a text into parts of at most `characters`; joined they are the text."""
    begin = 0
    while len(text) - begin > characters:
        end = begin + characters
        # A border in the second half, so that parts stay few: after a line, else before a space, else anywhere.
        line = text.rfind("\n", begin + characters // 2, end) + 1
        space = text.rfind(" ", begin + characters // 2, end)
        end = next((border for border in (line, space) if border > begin), end)
        yield text[begin:end]
        begin = end
    yield text[begin:]
