"""Documents: what readers give to the corpus stage, and what they could not read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAXIMUM_CHARACTERS = 4_000_000
"""A longer text is given in parts, so that no stage holds more than a few megabytes of one document at a time.

Few books are that long (War and Peace has 3.2 million characters); a part ends at a line, else at a space. A part is a
document of its own, in the held-out split too: a corpus that is one large file then still has both sides, and the two
meet only at the borders of contiguous megabytes.
"""


@dataclass(frozen=True)
class Document:
    """One text. id: the record's own, else `path:line`. source: the file. group: shares a held-out side, or None."""

    id: str
    text: str
    source: str
    group: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A record without a usable text. where: `path:line`. reason: a ledger rule. fields: those the record has."""

    where: str
    reason: str
    fields: tuple[str, ...] = ()


Item = Document | Unreadable


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold the text and the group."""

    text: str
    group: str | None


EMPTY = "unreadable: empty text"
BROKEN_JSON = "unreadable: broken JSON"
NOT_UTF8 = "unreadable: not UTF-8"
TRUNCATED = "unreadable: truncated file"
DAMAGED = "unreadable: damaged compression"
BROKEN_PARQUET = "unreadable: broken Parquet"
TOO_LONG = "unreadable: longer than 512 MB"


def no_field(name: str) -> str:
    """Return the ledger rule for a record that lacks a field."""
    return f"unreadable: no field `{name}`"


def from_record(record: Mapping[str, object], fields: Fields, source: str, where: str) -> Iterator[Item]:
    """Yield the document of a record (in parts when it is very long), or why there is none."""
    for field in (fields.text, fields.group):
        if field is not None and field not in record:
            yield Unreadable(where, no_field(field), tuple(map(str, record)))
            return
    text = record[fields.text]
    if not isinstance(text, str):
        yield Unreadable(where, f"unreadable: field `{fields.text}` is not text")
        return
    name, group = record.get("id"), None if fields.group is None else str(record[fields.group])
    yield from from_text(text, str(name) if isinstance(name, str | int) else where, source, where, group)


def from_text(text: str, name: str, source: str, where: str, group: str | None = None) -> Iterator[Item]:
    """Yield one document, or its parts `name#1`, `name#2`, ... when it is longer than MAXIMUM_CHARACTERS."""
    if not text or text.isspace():
        yield Unreadable(where, EMPTY)
    elif len(text) <= MAXIMUM_CHARACTERS:
        yield Document(name, text, source, group)
    else:
        for number, part in enumerate(cut(text, MAXIMUM_CHARACTERS), start=1):
            yield from from_text(part, f"{name}#{number}", source, f"{where}#{number}", group)


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
