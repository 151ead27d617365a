"""A survey of a prepared corpus's tables: one pass over columns, in memory that does not grow with the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

BATCH_ROWS = 65_536
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
HELD_NAMES = 100_000
"""Names counted at a time; when twice as many are held, those with the fewest tokens are let go."""
_HOST = r"^[Hh][Tt][Tt][Pp][Ss]?://(?:[^/?#@]*@)?(?:www\.)?(?P<host>[^/?#:@]+)"


@dataclass(frozen=True)
class Spread:
    """How documents and their tokens are spread over the values of a number.

    lower: ascending lower ends of the bins; the last bin is open upwards. documents, tokens: in each bin. quantiles:
    (share of the documents, value), from the smallest to the largest value.
    """

    lower: tuple[float, ...]
    documents: tuple[int, ...]
    tokens: tuple[int, ...]
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Origin:
    """What a source or a web domain gave to the kept text."""

    name: str
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Origins:
    """Where the kept text comes from. rows: those with the most tokens, in descending order.

    distinct: how many names there are. missed_tokens: 0 where every name was counted to the end; else so many tokens
    of any name may be missing from its count, and there are more names than `distinct`.
    """

    rows: tuple[Origin, ...]
    distinct: int
    missed_tokens: int


def batches(paths: Sequence[Path], columns: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield some columns of tables that follow each other, so many rows at most at a time."""
    for path in paths:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(rows, columns=list(columns))


def integers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """Return a column of integers as int64[rows]."""
    values: NDArray[np.int64] = batch.column(name).to_numpy(zero_copy_only=False)
    return values


def coded(names: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Return the row's place in the list of distinct names (its length where a row has none), and that list."""
    encoded = compute.dictionary_encode(names)
    distinct = encoded.dictionary.to_pylist()
    return encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False).astype(np.int64), distinct


def hosts(addresses: pa.Array) -> pa.Array:
    """Return the host of each web address in lower case, without `www.`; null where there is none."""
    return compute.utf8_lower(compute.struct_field(compute.extract_regex(addresses, _HOST), "host"))


class SpreadTally:
    """Counts documents and tokens by a small whole number (a length in tokens, hundredths of a ratio)."""

    def __init__(self) -> None:
        self._documents = np.zeros(1, dtype=np.int64)
        self._tokens = np.zeros(1, dtype=np.int64)

    def add(self, values: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Count documents of these values, none below zero."""
        if not len(values):
            return
        size = int(values.max()) + 1
        if size > len(self._documents):
            room = size - len(self._documents)
            self._documents = np.pad(self._documents, (0, room))
            self._tokens = np.pad(self._tokens, (0, room))
        self._documents[:size] += np.bincount(values)
        self._tokens[:size] += np.bincount(values, weights=tokens).astype(np.int64)

    def spread(self, lower: Sequence[int], unit: float = 1.0) -> Spread:
        """Return the counts in bins that begin at `lower` (ascending from 0), the empty ones at both ends left out.

        unit: what a value of 1 stands for.
        """
        inside = np.array([edge for edge in lower if edge < len(self._documents)])
        documents, tokens = (np.add.reduceat(counts, inside) for counts in (self._documents, self._tokens))
        used = np.flatnonzero(documents)
        if not len(used):
            return Spread((), (), (), ())
        shown = slice(int(used[0]), int(used[-1]) + 1)
        reached = np.cumsum(self._documents)
        places = np.searchsorted(reached, np.maximum(1, np.ceil(np.array(QUANTILES) * reached[-1])))
        return Spread(
            tuple(round(edge * unit, 6) for edge in inside[shown].tolist()),
            tuple(documents[shown].tolist()),
            tuple(tokens[shown].tolist()),
            tuple((share, round(place * unit, 6)) for share, place in zip(QUANTILES, places.tolist(), strict=True)),
        )


class OriginTally:
    """Counts what each name gave, with at most `2 x held` names in memory.

    Where there are more, those with the fewest tokens are let go, and their largest count bounds what any name has
    lost (lossy counting, Manku and Motwani 2002): the names with the most tokens stay right up to that bound.
    """

    def __init__(self, held: int = HELD_NAMES) -> None:
        self._held = held
        self._counts: dict[str, tuple[int, int, int]] = {}
        self._missed_tokens = 0
        self._most_names = 0

    def add(self, names: pa.Array, sizes: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Count documents of `sizes` bytes; rows without a name are passed over."""
        codes, distinct = coded(names)
        columns = [
            np.bincount(codes, weights=weights, minlength=len(distinct) + 1).astype(np.int64).tolist()
            for weights in (None, sizes, tokens)
        ]
        for name, *counts in zip(distinct, *columns, strict=False):
            documents, size, tokens_before = self._counts.get(name, (0, 0, 0))
            self._counts[name] = (documents + counts[0], size + counts[1], tokens_before + counts[2])
        self._most_names = max(self._most_names, len(self._counts))
        if len(self._counts) > 2 * self._held:
            self._let_go()

    def origins(self, number: int) -> Origins:
        """Return the `number` names with the most tokens; names with as many tokens come by their letters.

        Where names were let go, those that could be outweighed by what was missed are not named.
        """
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1][2], item[0]))
        rows = tuple(Origin(name, *counts) for name, counts in ranked[:number] if counts[2] > self._missed_tokens)
        return Origins(rows, self._most_names, self._missed_tokens)

    def _let_go(self) -> None:
        ranked = sorted(self._counts.items(), key=lambda item: -item[1][2])
        # What is let go now may have been let go before: the bounds add up.
        self._missed_tokens += ranked[self._held][1][2]
        self._counts = dict(ranked[: self._held])


class Choice:
    """A random choice of up to `number` rows for each name, from rows that are seen once; the same for the same seed.

    Every row draws a random number and the smallest win, so each row is as likely as any other.
    """

    def __init__(self, number: int, seed: int) -> None:
        self._number = number
        self._draws = np.random.default_rng(seed)
        self._chosen: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self.seen: dict[str, int] = {}

    def offer(self, batch: pa.RecordBatch, names: pa.Array | None = None) -> None:
        """Offer rows; names: string[rows], None for rows of one kind."""
        draws = self._draws.random(len(batch))
        codes, distinct = (np.zeros(len(batch), dtype=np.int64), [""]) if names is None else coded(names)
        for code, name in enumerate(distinct):
            rows = np.flatnonzero(codes == code)
            self.seen[name] = self.seen.get(name, 0) + len(rows)
            best = rows[np.argsort(draws[rows])[: self._number]]
            found = [(float(draws[n]), row) for n, row in zip(best.tolist(), batch.take(best).to_pylist(), strict=True)]
            chosen = self._chosen.get(name, []) + found
            self._chosen[name] = sorted(chosen, key=lambda item: item[0])[: self._number]

    def rows(self, name: str = "") -> list[Mapping[str, Any]]:
        """Return the rows chosen for a name."""
        return [row for _, row in self._chosen.get(name, [])]
