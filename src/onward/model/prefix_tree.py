"""Token sequences laid into rows so that what they begin with in common stands there, and is computed, once.

Sequences in lexicographic order share with the one before as much as with any earlier one, so a row is a prefix tree
written down depth first: each sequence adds only the tokens after its common prefix. No position is padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Span = tuple[int, int]
"""First position in a row, and the one after the last."""

LEAST_SHARED = 6
"""Shorter common prefixes are computed again: an attention call costs as much as some tokens of a small model."""


@dataclass(frozen=True)
class Segment:
    """Tokens of a row that follow one another in one sequence.

    span: their positions. before: the spans, from the sequence's beginning, of the tokens before them. depth: number
    of the tokens before them, so the place of their first token in its sequence.
    """

    span: Span
    before: tuple[Span, ...]
    depth: int


@dataclass(frozen=True)
class Path:
    """Where one sequence stands in a row: its number in the order given, and its spans from the beginning."""

    sequence: int
    spans: tuple[Span, ...]

    def last_positions(self, count: int) -> Ids:
        """Return the positions of its last `count` tokens, [count]."""
        taken: list[Ids] = []
        for start, end in reversed(self.spans):
            part = np.arange(max(start, end - count), end)
            taken.append(part)
            count -= len(part)
            if not count:
                break
        return np.concatenate(taken[::-1])


@dataclass
class Row:
    """One prefix tree: token ids [N] depth first, the segments that cover them in order, and the sequences' paths."""

    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)

    def places(self) -> Ids:
        """Return each token's place in its sequence, [N]: its position for the model."""
        return np.concatenate([np.arange(s.span[1] - s.span[0]) + s.depth for s in self.segments])


def rows_of(sequences: Sequence[Sequence[int]], row_tokens: int) -> Iterator[Row]:
    """Lay sequences (not empty, each once) into rows of about `row_tokens`; a longer one has a row to itself.

    A prefix that two rows need is computed in each, so a row may grow by eight times as many tokens as ending it
    would repeat, at most to four times its size: the examples before a subject's questions then cost about a tenth.
    """
    arrays = [np.asarray(ids, dtype=">u4") for ids in sequences]
    # Bytes compare as the numbers do when the highest comes first, and 50 times faster than tuples.
    order = sorted(range(len(arrays)), key=lambda index: arrays[index].tobytes())
    row, before = Row(), None
    for index in order:
        ids = arrays[index]
        shared = 0 if before is None or not row.paths else _common(arrays[before], ids)
        shared = shared if shared >= LEAST_SHARED else 0
        if row.paths and len(row.ids) + len(ids) - shared > min(row_tokens + 8 * shared, 4 * row_tokens):
            yield row
            row, shared = Row(), 0
        _append(row, index, ids, shared)
        before = index
    if row.paths:
        yield row


def tree_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Return the tokens that have to be computed at least: the nodes of the sequences' prefix tree."""
    arrays = sorted((np.asarray(ids, dtype=">u4") for ids in sequences), key=lambda ids: ids.tobytes())
    shared = sum(_common(first, second) for first, second in pairwise(arrays))
    return sum(map(len, arrays)) - shared


def _common(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> int:
    """Return the length of the common prefix."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


def _append(row: Row, index: int, ids: NDArray[np.uint32], shared: int) -> None:
    """Add a sequence whose first `shared` tokens are those of the sequence before it."""
    before, left = [], shared
    for start, end in row.paths[-1].spans if shared else ():
        if left <= 0:
            break
        before.append((start, min(end, start + left)))
        left -= end - start
    start = len(row.ids)
    row.ids += ids[shared:].tolist()
    if len(row.ids) > start:  # else the sequence is a prefix of the one before; sorted after it, it is the same
        row.segments.append(Segment((start, len(row.ids)), tuple(before), shared))
        before.append((start, len(row.ids)))
    row.paths.append(Path(index, tuple(before)))
