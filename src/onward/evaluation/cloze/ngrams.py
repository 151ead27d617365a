"""A trigram model, the baseline that the items must not be solvable by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.evaluation.cloze.words import BOUNDARY, UNKNOWN, Ids

_BITS = 21
_BIGRAM_WEIGHT, _TRIGRAM_WEIGHT = 20.0, 5.0
"""Pseudo-counts that the shorter history has in the longer one's distribution."""

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class _Table:
    """Sorted keys with their counts."""

    keys: Keys
    counts: NDArray[np.int64]

    @staticmethod
    def of(keys: Keys) -> "_Table":
        return _Table(*np.unique(keys, return_counts=True))

    def __getitem__(self, keys: Keys) -> NDArray[np.float64]:
        if not len(self.keys):
            return np.zeros(keys.shape)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0).astype(np.float64)


@dataclass(frozen=True)
class _Counts:
    """Counts of one, two and three folded words in a row, and of all words."""

    tables: tuple[_Table, _Table, _Table]
    total: int

    @staticmethod
    def of(ids: Sequence[Ids]) -> "_Counts":
        gap = np.full(2, BOUNDARY, dtype=np.int32)
        stream = np.concatenate([part for each in ids for part in (gap, each)] + [gap])
        # Each text has as many n-grams of every length, so the counts of all are the sums of those of each.
        one, two, three = (_Table.of(_keys(stream[3 - length :], length)) for length in (1, 2, 3))
        return _Counts((one, two, three), len(stream) - 2)


def _keys(stream: Ids, length: int) -> Keys:
    """Return a key for each run of `length` ids along the last axis, at the place where it ends."""
    ids = np.where(stream < 1 << _BITS, stream, UNKNOWN).astype(np.uint64)
    count = ids.shape[-1] - length + 1
    keys = ids[..., :count].copy()
    for place in range(1, length):
        keys = keys << np.uint64(_BITS) | ids[..., place : place + count]
    return keys


class NGrams:
    """A trigram model that can forget: a text of the counts is scored by the counts of all other groups.

    Each history's counts are smoothed with the next shorter one's distribution as a Dirichlet prior (MacKay and Peto,
    A Hierarchical Dirichlet Language Model, 1995): p(w | uv) = (c(uvw) + m p(w | v)) / (c(uv) + m). It needs nothing
    but counts, so a group's own can be taken out exactly, which Kneser-Ney's numbers of distinct histories do not
    allow.
    """

    def __init__(self, ids: Iterable[Ids], num_folded: int) -> None:
        self._all = _Counts.of(list(ids))
        self._num_folded = num_folded
        self._left_out: _Counts | None = None

    def leave_out(self, ids: Sequence[Ids]) -> None:
        """Take these texts, which are among the counted ones, out of the counts until the next call."""
        self._left_out = _Counts.of(ids) if ids else None

    def logprobs(self, rows: Ids) -> NDArray[np.float64]:
        """Return ln p of each row [rows, words] from its third word on, the first two being history."""
        third, second = self._counts(_keys(rows, 3), 2), self._counts(_keys(rows[:, 1:], 2), 1)
        first = self._counts(_keys(rows[:, 2:], 1), 0)
        history, short = self._counts(_keys(rows[:, :-1], 2), 1), self._counts(_keys(rows[:, 1:-1], 1), 0)
        total = self._all.total - (0 if self._left_out is None else self._left_out.total)
        unigram = (first + 1) / (total + self._num_folded)
        bigram = (second + _BIGRAM_WEIGHT * unigram) / (short + _BIGRAM_WEIGHT)
        trigram = (third + _TRIGRAM_WEIGHT * bigram) / (history + _TRIGRAM_WEIGHT)
        summed: NDArray[np.float64] = np.log(trigram).sum(axis=1)
        return summed

    def _counts(self, keys: Keys, table: int) -> NDArray[np.float64]:
        counts = self._all.tables[table][keys]
        return counts if self._left_out is None else np.maximum(counts - self._left_out.tables[table][keys], 0.0)
