"""Rows of benchmark files, with errors that name the file and the line."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from onward.errors import UserError


@dataclass(frozen=True)
class Row:
    """One record and where it stands; the accessors check its schema.

    content: a mapping for JSON, a list of cells for CSV. number: 1-based line.
    """

    path: Path
    number: int
    content: Any

    def error(self, got: str, expected: str) -> UserError:
        """Return the UserError for this row."""
        return UserError("a benchmark row is not as expected", f"{self.path}, line {self.number}", got, expected)

    def text(self, key: str) -> str:
        """Return a field that must be a text."""
        if key not in self.content:
            raise self.error(f"fields {', '.join(self.content) or 'none'}", f"a field `{key}`")
        return self.as_text(self.content[key], key)

    def as_text(self, value: Any, key: str) -> str:
        """Return `value` when it is a text."""
        if not isinstance(value, str):
            raise self.error(f"`{key}`: {value!r}"[:100], f"`{key}` as text")
        return value

    def choice(self, key: str) -> str:
        """Return a field that must be a text which can be chosen: not an empty one."""
        return self.as_choice(self.text(key), key)

    def as_choice(self, value: Any, key: str) -> str:
        """Return `value` when it is a text that can be chosen."""
        if not self.as_text(value, key).strip():
            raise self.error(f"`{key}`: {value!r}, an empty choice", f"`{key}` with a text in every choice")
        return str(value)

    def sequence(self, key: str) -> list[Any]:
        """Return a field that must be a list."""
        value = self.content.get(key)
        if not isinstance(value, list):
            raise self.error(f"`{key}`: {value!r}"[:100], f"a list `{key}`")
        return value

    def integer(self, key: str, below: int) -> int:
        """Return a field that must be a whole number of [0, below), as a number or in digits."""
        value = self.content.get(key)
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < below:
            raise self.error(f"`{key}`: {value!r}"[:100], f"`{key}` from 0 to {below - 1}")
        return number

    def inner(self, key: str, expected: str) -> "Row":
        """Return a field that must be an object, as a row of its own."""
        return self.within(self.content.get(key), key, expected)

    def within(self, value: Any, key: str, expected: str = "an object") -> "Row":
        """Return `value`, which must be an object, as a row at the same place."""
        if not isinstance(value, dict):
            raise self.error(f"`{key}`: {value!r}"[:100], f"`{key}`: {expected}")
        return replace(self, content=value)


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield the records of a JSONL file (plain, .gz, .zst); empty lines are passed over."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError("not valid JSON", f"{path}, line {number}", str(error), "one JSON object a line") from None
        if not isinstance(content, dict):
            raise UserError("not a JSON object", f"{path}, line {number}", line[:60], "one JSON object a line")
        yield Row(path, number, content)


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file without header (plain, .gz, .zst); `number` is a row's last line."""
    with _opened(path) as file:
        reader = csv.reader(file)
        for cells in reader:
            yield Row(path, reader.line_num, cells)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file (plain, .gz, .zst) with their 1-based numbers."""
    with _opened(path) as file:
        yield from enumerate(file, start=1)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text; raises UserError when its bytes are damaged."""
    import zstandard

    try:
        with open(path, "rb") as raw:
            if path.suffix == ".gz":
                stream: Any = gzip.GzipFile(fileobj=raw)
            elif path.suffix == ".zst":
                stream = zstandard.ZstdDecompressor().stream_reader(raw)
            else:
                stream = raw
            with io.TextIOWrapper(stream, encoding="utf-8", newline="" if ".csv" in path.suffixes else None) as file:
                yield file
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zstandard.ZstdError, csv.Error) as error:
        todo = "fetch the file again"
        raise UserError("a benchmark file is damaged", str(path), str(error), "UTF-8 text", todo) from error
