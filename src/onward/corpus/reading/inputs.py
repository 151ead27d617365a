"""Inputs: a source of the recipe and the files it stands for, each with what tells that it changed."""

import codecs
import sys
from dataclasses import dataclass

from onward.artifact import file_hash
from onward.corpus.documents import Fields
from onward.corpus.reading import builtin
from onward.recipe import Source


@dataclass(frozen=True)
class InputFile:
    """One file to read. path: as shown to the user. version: changes with the content (mtime in ns, or an etag).

    pinned: where a file of the Hub is opened: the same path at the commit that was the newest when it was listed.
    """

    path: str
    size_bytes: int | None
    version: str | None
    pinned: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether fsspec opens it."""
        return "://" in self.path

    @property
    def address(self) -> str:
        """Where it is opened."""
        return self.pinned or self.path


@dataclass(frozen=True)
class Inputs:
    """A source and the files it stands for, in reading order. skipped: files of its folders that no reader knows."""

    source: Source
    files: tuple[InputFile, ...]
    skipped: tuple[str, ...] = ()

    @property
    def fields(self) -> Fields:
        """Which fields of its records are read."""
        return Fields(self.source.text, self.source.group)

    @property
    def encoding(self) -> str | None:
        """The encoding of its files as Python calls it; None for UTF-8, or what the files show themselves."""
        encoding = self.source.encoding
        name = None if encoding is None else codecs.lookup(encoding).name
        return None if name in ("utf-8", "utf-8-sig", "ascii") else name

    def facts(self) -> dict[str, str]:
        """Return what the content depends on: size and version by file, or the versions behind a builtin."""
        if self.source.path == builtin.PYTHON_DOCS:
            return {self.source.path: f"{sys.implementation.name} {sys.version.split()[0]}"}
        if self.source.path == builtin.GENERAL_TEXT:
            return {self.source.path: file_hash(builtin.general_text())}
        return {file.path: f"{file.size_bytes} bytes, {file.version}" for file in self.files}
