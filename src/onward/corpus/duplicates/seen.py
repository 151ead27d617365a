"""Which documents were read before: the keys of all documents kept so far, on disk, in bounded memory.

Documents are sorted in the order of reading. One that shares a deciding key with a document added before is a
duplicate of it and is not added itself; any other is added with all its keys. So every duplicate matches a kept
document directly (no chains), no two kept documents match, and the first one of those alike is the one kept.

The newest keys are in a hash table in memory; when that is full, all its keys are cold: looked up in sorted files
(runs), behind a filter that tells nearly all new keys without touching the disk. Every finished block leaves its keys
as runs, so a restart needs nothing else. Runs that have become many are merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.duplicates.cold import LARGEST_FILTER_BYTES, Cold
from onward.corpus.duplicates.filter import holds, include
from onward.corpus.duplicates.passages import SAMPLED, Passages, PassagesRead
from onward.corpus.duplicates.recent import Recent, enter, find
from onward.corpus.duplicates.run_folder import RunFolder
from onward.corpus.duplicates.runs import open_runs
from onward.errors import UserError

NONE, EXACT, NEAR, OTHER_SIDE, COVERED = 0, 1, 2, 3, 4
"""Kinds of matches: none; same text; a band of the signature agrees; same text, held out there and not here or the
other way round (told only where same texts are kept); a share of its passages was read before."""

RECENT_KEYS = 1 << 22
"""Keys in memory: 128 MB, those of about 1 GB of text."""


_NO_KEYS, _NO_BLOCKS, _NO_HITS = np.empty(0, np.uint64), np.empty((0, 8), np.uint32), np.ones(1, np.int64)


@dataclass(frozen=True)
class Matches:
    """What n documents are duplicates of.

    kind: int8[n], NONE, EXACT and so on. of: int64[n], the value of the first document matched; with its bits inverted
    (so below zero) when that belongs to another corpus; -1 for NONE and COVERED. corpus: int16[n], which of `against`
    it belongs to, -1 for this one. bands: int16[n], how many bands agree with it; 0 unless NEAR. share: float32[n], the
    share of the passages looked at that were read before; 0 unless COVERED.
    """

    kind: NDArray[np.int8]
    of: NDArray[np.int64]
    corpus: NDArray[np.int16]
    bands: NDArray[np.int16]
    share: NDArray[np.float32]


class Seen:
    """The documents added so far, by k keys each: column 0 is the exact digest, the others are band keys; 0 is no key.

    folder: where runs are written, for this object alone; those of the first `blocks` blocks are gone on from, others
    there are removed. exact: whether the same text makes a duplicate; when not, only if the lowest bit of the values
    differs (one is held out, the other is not). covered: the share of its passages that makes a document a duplicate
    when it was read before in this corpus; None: passages do not count. against: files that `close` wrote for other
    corpora, whose documents count as added before. Peak memory: 450 MB, 600 MB with passages, whatever the number of
    documents. Raises UserError when a file is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        columns: int,
        *,
        blocks: int = 0,
        exact: bool = True,
        covered: Fraction | None = None,
        against: Sequence[Path] = (),
        recent_keys: int = RECENT_KEYS,
        largest_filter_bytes: int = LARGEST_FILTER_BYTES,
    ) -> None:
        assert columns >= 1
        self._columns, self._exact = columns, exact
        self._recent_keys = recent_keys
        self._block = blocks
        self._recent = Recent()
        self._written = 0
        self._folder = RunFolder(folder, blocks)
        try:
            self._passages = None if covered is None else PassagesRead(folder, blocks, covered)
            self._others = open_runs(against)
        except UserError:
            self._folder.close()
            raise
        self._cold = Cold(self._others, self._folder, largest_filter_bytes)

    def sort(
        self,
        keys: NDArray[np.uint64],
        values: NDArray[np.int64],
        alive: NDArray[np.bool_],
        passages: Passages | None = None,
    ) -> Matches:
        """Return what documents are duplicates of, and add those that are none.

        keys: uint64[n, columns]. values: int64[n], not negative, the number of a document in the order of reading
        times 2, plus 1 when it is held out. alive: those not alive are neither looked up nor added. passages: needed
        when `covered` is set.
        """
        assert keys.shape == (len(values), self._columns)
        assert keys.dtype == np.uint64
        if self._recent.size and self._recent.size + keys.size > self._recent_keys:
            self._make_cold()
        self._recent.make_room(keys.size)
        matches = _no_matches(len(values))
        corpora, known = self._look_up_cold(keys, values, alive)
        read, recent = self._passages, self._recent
        if read is None:
            rule = (_NO_KEYS, np.zeros(len(values) + 1, dtype=np.int64), _NO_BLOCKS, 1, _NO_HITS, 1, 1)
        else:
            assert passages is not None
            share = read.share.numerator, read.share.denominator
            rule = (passages.keys, passages.starts, read.filter.blocks, read.thin, read.needed, *share)
        log = (recent.keys, recent.values, recent.slots, recent.size)
        found = (matches.kind, matches.of, matches.corpus, matches.bands, matches.share)
        recent.size = _settle(keys, values, alive, corpora, known, len(self._others), self._exact, *log, *rule, *found)
        if read is not None and passages is not None:
            read.add(passages, alive & (matches.kind == NONE))
        return matches

    def finish_block(self, number: int) -> None:
        """Write the keys added since the last block to the disk; earlier blocks are known to outlive a kill by now."""
        assert number == self._block, "blocks are finished in order"
        self._write()
        self._folder.finish(number)
        if self._passages is not None:
            self._passages.finish_block(number)
        self._block = number + 1

    def close(self, path: Path) -> None:
        """Write all keys, sorted, to one file for `against`; all blocks are finished. The runs remain."""
        assert self._written == self._recent.size, "the last block is finished"
        self._folder.merge_all(path)
        self.abandon()

    def abandon(self) -> None:
        """Close every file; blocks that are not finished are lost."""
        for run in self._others:
            run.close()
        self._folder.close()
        if self._passages is not None:
            self._passages.close()

    def _look_up_cold(
        self, keys: NDArray[np.uint64], values: NDArray[np.int64], alive: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Return for each key that is cold its corpus (their number for this one) and its value; else -1 and -1."""
        corpora = np.full(keys.shape, -1, dtype=np.int16)
        known = np.full(keys.shape, -1, dtype=np.int64)
        if not len(self._cold):
            return corpora, known
        rows = np.flatnonzero(alive)
        corpora[rows, 0], known[rows, 0] = self._cold.find(keys[rows, 0], rows)
        if self._columns > 1:
            decided = known[rows, 0] >= 0
            if not self._exact:
                decided &= (known[rows, 0] ^ values[rows]) & 1 == 1
            rows = rows[~decided]  # the bands of a copy would all be found on disk, to no purpose
            found = self._cold.find(keys[rows, 1:].ravel(), np.repeat(rows, self._columns - 1))
            corpora[rows, 1:], known[rows, 1:] = (column.reshape(len(rows), self._columns - 1) for column in found)
        return corpora, known

    def _make_cold(self) -> None:
        """Write what is not on disk yet, and empty the table in memory."""
        self._write()
        self._cold.add(self._recent.keys[: self._recent.size])
        self._recent.clear()
        self._written = 0

    def _write(self) -> None:
        if size := self._recent.size - self._written:
            self._folder.add(self._block, size, self._recent.ordered(self._written))
            self._written = self._recent.size


def _no_matches(number: int) -> Matches:
    return Matches(
        kind=np.zeros(number, dtype=np.int8),
        of=np.full(number, -1, dtype=np.int64),
        corpus=np.full(number, -1, dtype=np.int16),
        bands=np.zeros(number, dtype=np.int16),
        share=np.zeros(number, dtype=np.float32),
    )


@njit(cache=True, nogil=True)
def _settle(  # type: ignore[no-untyped-def]
    keys,
    values,
    alive,
    corpora,
    known,
    own,
    exact,
    log_keys,
    log_values,
    slots,
    size,
    passages,
    bounds,
    blocks,
    thin,
    needed,
    numerator,
    denominator,
    kind,
    of,
    corpus,
    bands,
    share,
):
    """Sort documents one by one into the columns of Matches; return the new size of the log."""
    for n in range(len(keys)):
        if not alive[n]:
            continue
        is_repeated = False
        first_corpus, first_value, count = own + 1, np.int64(-1), 0
        for column in range(keys.shape[1]):
            key = keys[n, column]
            if key == 0:
                continue
            where, value = np.int64(corpora[n, column]), known[n, column]
            if where < 0:
                place = find(key, log_keys, slots)
                if place < 0:
                    continue
                where, value = own, log_values[place]
            if column == 0:
                is_repeated = True
                if exact or (value ^ values[n]) & 1:
                    kind[n] = EXACT if exact else OTHER_SIDE
                    first_corpus, first_value = where, value
                    break
            elif where < first_corpus or (where == first_corpus and value < first_value):
                first_corpus, first_value, count = where, value, 1
            elif where == first_corpus and value == first_value:
                count += 1
        if first_corpus <= own:
            of[n] = first_value if first_corpus == own else ~first_value
            corpus[n] = -1 if first_corpus == own else first_corpus
            if not kind[n]:
                kind[n], bands[n] = NEAR, count
            continue
        begin, end = bounds[n], bounds[n + 1]
        hits, looked_at = _count_read(passages, begin, end, blocks, thin)
        at_least = needed[looked_at] if looked_at < len(needed) else -(-looked_at * numerator // denominator)
        if hits >= at_least and not is_repeated:  # a text that is kept repeatedly is covered, of course
            kind[n], share[n] = COVERED, hits / looked_at
            continue
        size = _add(keys[n, 1:] if is_repeated else keys[n], values[n], log_keys, log_values, slots, size)
        for place in range(begin, end):
            if _is_looked_at(passages[place], thin):
                include(blocks, passages[place])
    return size


@njit(cache=True, nogil=True)
def _add(keys, value, log_keys, log_values, slots, size):  # type: ignore[no-untyped-def]
    """Add the keys of a document to the log; return its new size."""
    for key in keys:
        if key != 0 and find(key, log_keys, slots) < 0:  # a document may hold a key twice
            log_keys[size], log_values[size] = key, value
            enter(key, size, slots)
            size += 1
    return size


@njit(cache=True, nogil=True)
def _count_read(passages, begin, end, blocks, thin):  # type: ignore[no-untyped-def]
    """Return how many passages were read before, and how many were looked at."""
    hits, looked_at = 0, 0
    for place in range(begin, end):
        if _is_looked_at(passages[place], thin):
            looked_at += 1
            hits += holds(blocks, passages[place])
    return hits, looked_at


@njit(cache=True, nogil=True, inline="always")
def _is_looked_at(passage, thin):  # type: ignore[no-untyped-def]
    return passage // np.uint64(SAMPLED) % np.uint64(thin) == 0
