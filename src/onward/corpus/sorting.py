"""Sorting: every document goes to exactly one end, in the order of reading, and the tally counts it there."""

from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onward.corpus.documents import EMPTY, Document, Unreadable
from onward.corpus.duplicates.exact import DigestSet
from onward.corpus.examine import Chunk, Examined, Finding
from onward.corpus.ledger import Count, Tally
from onward.corpus.tables import DOCUMENTS, DroppedWriter, HeldOutWriter, RowWriter
from onward.corpus.tokens import SHARD_TOKENS, TokenIds, TokenWriter, token_dtype

OTHER_SIDE = "same text on the other side of the held-out split"
"""Ledger rule for texts that would stand in training and held-out text both (only when duplicates are kept)."""
_FIELDS_SHOWN = 30


class Sorter:
    """Writes documents to their ends: dropped, duplicate, held out, kept.

    wanted_tokens: sorting is over when so many are kept. exact_duplicates: False keeps repeated texts, but never
    one text in training and held-out text both.
    """

    def __init__(self, folder: Path, vocabulary_size: int, wanted_tokens: int | None, exact_duplicates: bool) -> None:
        self.tally = Tally()
        self.fields: dict[str, None] = {}
        self._folder = folder
        self._wanted_tokens = wanted_tokens
        self._exact_duplicates = exact_duplicates
        self._seen = DigestSet()
        self._seen_held_out = DigestSet()
        self._tokens = TokenWriter(folder, token_dtype(vocabulary_size), SHARD_TOKENS)
        self._lengths = array("q")
        self._documents: RowWriter | None = None
        self._documents_shard = -1
        self._dropped = DroppedWriter(folder)
        self._held_out = HeldOutWriter(folder)

    @property
    def is_full(self) -> bool:
        """Whether the wanted tokens are there."""
        return self._wanted_tokens is not None and self.tally.kept_tokens >= self._wanted_tokens

    def document_lengths(self) -> NDArray[np.int64]:
        """Return the tokens of every kept document, in the order of the store."""
        return np.array(self._lengths, dtype=np.int64)

    def take(self, chunk: Chunk, examined: Examined) -> None:
        """Sort a chunk's items; the rest of the chunk counts as not read once the wanted tokens are there."""
        at = 0
        for item, found in zip(chunk, examined.findings, strict=True):
            if self.is_full:
                return
            if isinstance(item, Unreadable):
                self._unreadable(item)
                continue
            assert found is not None
            self._document(item, found, examined.tokens[at : at + found.num_tokens])
            at += found.num_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Finish every file."""
        with ExitStack() as closing:  # all of them, though one fails (the disk is full)
            for file in (self._held_out, self._dropped, self._documents, self._tokens):
                if file is not None:
                    closing.callback(file.close)

    def _unreadable(self, item: Unreadable) -> None:
        self.tally.read += Count(1, 0)
        self.tally.drop(item.reason, 0)
        self._dropped.add(item.where, item.where, item.reason, "")
        if item.reason != EMPTY:  # an empty text was read without fault; it only has nothing to give
            self.tally.name_place(item.where, item.reason)
        if len(self.fields) < _FIELDS_SHOWN:
            self.fields |= dict.fromkeys(item.fields)

    def _document(self, document: Document, found: Finding, tokens: TokenIds) -> None:
        count = Count(1, found.size_bytes)
        self.tally.read += count
        if found.quality_reason:
            self._drop(document, found.quality_reason, found.size_bytes)
        elif self._exact_duplicates and not self._seen.add(found.digest):
            self.tally.duplicate += count
            self._dropped.add(document.id, document.source, "duplicate", document.text)
        elif not self._exact_duplicates and self._is_on_other_side(found):
            self._drop(document, OTHER_SIDE, found.size_bytes)
        elif found.is_held_out:
            self.tally.held_out += count
            # Held out by the group, ordered by the text: a prefix then draws from all held-out groups, not from one.
            order = found.split_hash if document.group is None else found.digest >> 64
            self._held_out.add(document, order, found.size_bytes)
        elif found.token_reason:
            self._drop(document, found.token_reason, found.size_bytes)
        else:
            self._keep(document, found, tokens)

    def _drop(self, document: Document, reason: str, size_bytes: int) -> None:
        self.tally.drop(reason, size_bytes)
        self._dropped.add(document.id, document.source, reason, document.text)

    def _is_on_other_side(self, found: Finding) -> bool:
        own, other = self._seen, self._seen_held_out
        if found.is_held_out:
            own, other = other, own
        if found.digest in other:
            return True
        own.add(found.digest)
        return False

    def _keep(self, document: Document, found: Finding, tokens: TokenIds) -> None:
        offset = self._tokens.append(tokens)
        if self._documents is None or self._documents_shard != self._tokens.shard:
            if self._documents is not None:
                self._documents.close()
            self._documents_shard = self._tokens.shard
            path = self._folder / f"documents-{self._documents_shard:05d}.parquet"
            self._documents = RowWriter(path, DOCUMENTS)
        self._documents.add(document.id, offset, len(tokens), found.size_bytes, document.source)
        self._lengths.append(len(tokens))
        self.tally.kept += Count(1, found.size_bytes)
        self.tally.kept_tokens += len(tokens)
