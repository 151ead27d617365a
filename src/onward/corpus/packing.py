"""Packing of documents into sequences, as an index over the token store.

Three ways: best fit (decreasing) cuts only documents longer than a sequence and leaves hardly any padding; sequential
lays documents one after the other and cuts where a sequence ends, as the paper (arXiv 2504.09687) does; none gives
every document, or every piece of a long one, a sequence of its own. Nothing is lost, nothing is copied.

Best fit gives what the textbook algorithm gives, item by item, but a whole run of equally long pieces is placed at
once, so the cost depends on the number of distinct lengths (at most the sequence length), not on the documents.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PackingMode = Literal["best_fit", "sequential", "none"]
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PackingReport:
    """What packing did to the documents.

    long_documents: cut because they are longer than a sequence. cut_documents: cut by the border of a sequence
    although they would fit into one. pieces_mean, pieces_quantiles: documents, or pieces of them, per sequence
    (quantiles 0, 25, 50, 75 and 100 %; all 0 without sequences).
    """

    documents: int
    sequences: int
    padding_tokens: int
    long_documents: int
    cut_documents: int
    pieces_mean: float
    pieces_quantiles: tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """Which pieces of documents make each sequence.

    sequence_start: int64[n+1], index of a sequence's first piece. piece_offset: int64[p], in tokens of the store.
    piece_length: int32[p], tokens. piece_ends_document: bool[p], whether the piece holds its document's EOS.
    """

    sequence_tokens: int
    sequence_start: NDArray[np.int64]
    piece_offset: NDArray[np.int64]
    piece_length: NDArray[np.int32]
    piece_ends_document: NDArray[np.bool_]

    @property
    def num_sequences(self) -> int:
        """Number of packed sequences."""
        return len(self.sequence_start) - 1

    @property
    def packed_tokens(self) -> int:
        """Tokens in all pieces."""
        return int(self.piece_length.sum(dtype=np.int64))

    @property
    def padding_tokens(self) -> int:
        """Places left empty: sequences x length - packed tokens."""
        return self.num_sequences * self.sequence_tokens - self.packed_tokens

    def sequence(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Return offsets, lengths and document ends of the pieces of sequence `n`, in their order."""
        pieces = slice(int(self.sequence_start[n]), int(self.sequence_start[n + 1]))
        return self.piece_offset[pieces], self.piece_length[pieces], self.piece_ends_document[pieces]

    def report(self) -> PackingReport:
        """Count what was cut and what was left empty."""
        order = np.argsort(self.piece_offset, kind="stable")
        last = np.flatnonzero(self.piece_ends_document[order])
        first = np.append(0, last[:-1] + 1) if len(last) else last
        reached = np.append(0, np.cumsum(self.piece_length[order], dtype=np.int64))
        is_long = reached[last + 1] - reached[first] > self.sequence_tokens
        per_sequence = np.diff(self.sequence_start)
        quantiles = np.quantile(per_sequence, _QUANTILES, method="inverted_cdf") if len(per_sequence) else [0] * 5
        return PackingReport(
            documents=len(last),
            sequences=self.num_sequences,
            padding_tokens=self.padding_tokens,
            long_documents=int(is_long.sum()),
            cut_documents=int(((last > first) & ~is_long).sum()),
            pieces_mean=len(order) / max(1, self.num_sequences),
            pieces_quantiles=tuple(int(value) for value in quantiles),
        )

    def save(self, path: Path) -> None:
        """Write the index of one block as .npz."""
        np.savez(
            path,
            sequence_tokens=np.int64(self.sequence_tokens),
            sequence_start=self.sequence_start,
            piece_offset=self.piece_offset,
            piece_length=self.piece_length,
            piece_ends_document=self.piece_ends_document,
        )


def load_packing(path: Path) -> Packing:
    """Read the index of one block."""
    with np.load(path) as arrays:
        return Packing(
            int(arrays["sequence_tokens"]),
            arrays["sequence_start"],
            arrays["piece_offset"],
            arrays["piece_length"],
            arrays["piece_ends_document"],
        )


def join_packings(packings: Sequence[Packing]) -> Packing:
    """Return the sequences of several blocks, one block after the other; at least one block."""
    assert len({packing.sequence_tokens for packing in packings}) == 1, "blocks of one corpus"
    starts, pieces = [np.zeros(1, dtype=np.int64)], 0
    for packing in packings:
        starts.append(packing.sequence_start[1:] + pieces)
        pieces += len(packing.piece_offset)
    return Packing(
        packings[0].sequence_tokens,
        np.concatenate(starts),
        np.concatenate([packing.piece_offset for packing in packings]),
        np.concatenate([packing.piece_length for packing in packings]),
        np.concatenate([packing.piece_ends_document for packing in packings]),
    )


def pack(
    document_lengths: NDArray[np.int64], sequence_tokens: int, mode: PackingMode = "best_fit", first_offset: int = 0
) -> Packing:
    """Pack documents that lie one after the other in the token store.

    document_lengths: int64[documents], tokens with EOS, each at least 1. first_offset: tokens in the store before the
    first document. The order of sequences and of the pieces within them is a function of lengths and mode alone.
    """
    assert sequence_tokens >= 1
    assert document_lengths.min(initial=1) >= 1, "a document holds at least its EOS"
    if mode == "sequential":
        return _sequential(document_lengths, sequence_tokens, first_offset)
    offset, length, ends = _pieces(document_lengths, sequence_tokens)
    offset += first_offset
    if mode == "none":
        return Packing(sequence_tokens, np.arange(len(offset) + 1), offset, length.astype(np.int32), ends)
    # Longest first; equal lengths in the order of the documents, which the stable sort keeps.
    order = np.argsort(-length, kind="stable")
    sequence_of_rank, num_sequences = _best_fit(length[order], sequence_tokens)
    by_sequence = np.argsort(sequence_of_rank, kind="stable")
    start = np.zeros(num_sequences + 1, dtype=np.int64)
    np.cumsum(np.bincount(sequence_of_rank, minlength=num_sequences), out=start[1:])
    order = order[by_sequence]
    return Packing(sequence_tokens, start, offset[order], length[order].astype(np.int32), ends[order])


def _sequential(document_lengths: NDArray[np.int64], sequence_tokens: int, first_offset: int) -> Packing:
    """Cut the row of documents where one ends and where a sequence ends; only the last sequence has padding."""
    document_ends = np.cumsum(document_lengths)
    total = int(document_lengths.sum())
    sequence_ends = np.minimum(np.arange(0, total, sequence_tokens) + sequence_tokens, total)
    ends = np.union1d(document_ends, sequence_ends)
    length = np.diff(ends, prepend=0)
    start = np.append(0, np.searchsorted(ends, sequence_ends, side="right"))
    is_end = np.isin(ends, document_ends)
    return Packing(sequence_tokens, start, ends - length + first_offset, length.astype(np.int32), is_end)


def _pieces(
    document_lengths: NDArray[np.int64], sequence_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Cut long documents: offset, length and document end of every piece, in the order of the store."""
    counts = -(-document_lengths // sequence_tokens)
    last = np.cumsum(counts) - 1
    document = np.repeat(np.arange(len(document_lengths)), counts)
    nth = np.arange(len(document)) - (last - counts + 1)[document]
    starts = np.cumsum(document_lengths) - document_lengths
    offset = starts[document] + nth * sequence_tokens
    ends = np.zeros(len(document), dtype=np.bool_)
    ends[last] = True
    length = np.minimum(sequence_tokens, document_lengths[document] - nth * sequence_tokens)
    return offset, length, ends


def _best_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Return the sequence of every piece (`lengths` descending) and the number of sequences.

    Each piece goes where it leaves the least room, else into a new sequence. Of a run of equal lengths the best
    fit stays the best fit until it is full, so one step fills all sequences that have the same room left.
    """
    sequence_of = np.empty(len(lengths), dtype=np.int64)
    room = _Rooms()
    opened = placed = 0
    run_ends = np.append(np.flatnonzero(lengths[1:] != lengths[:-1]) + 1, len(lengths))
    for end in run_ends.tolist() if len(lengths) else []:
        length = int(lengths[placed])
        while placed < end:
            fitting = room.smallest(length)
            left = fitting or capacity
            each = left // length
            wanted = -(-(end - placed) // each)
            if fitting is None:
                chosen = np.arange(opened, opened + wanted)
                opened += wanted
            else:
                chosen = room.take(left, wanted)
            count = min(end - placed, each * len(chosen))
            sequence_of[placed : placed + count] = np.repeat(chosen, each)[:count]
            full, rest = divmod(count, each)
            room.put(left - each * length, chosen[:full])
            if rest:
                room.put(left - rest * length, chosen[full:])
            placed += count
    return sequence_of, opened


class _Rooms:
    """Open sequences by the room they have left, oldest first."""

    def __init__(self) -> None:
        self._sequences: dict[int, deque[NDArray[np.int64]]] = {}
        self._present = 0  # bit r is set when some sequence has room r: the next larger room is one shift away

    def smallest(self, least: int) -> int | None:
        """Return the smallest room of at least `least`, None when every sequence is fuller."""
        above = self._present >> least
        return least + (above & -above).bit_length() - 1 if above else None

    def take(self, room: int, wanted: int) -> NDArray[np.int64]:
        """Remove up to `wanted` sequences with this room."""
        queue, taken = self._sequences[room], []
        while queue and wanted > 0:
            block = queue.popleft()
            taken.append(block[:wanted])
            if len(block) > wanted:
                queue.appendleft(block[wanted:])
            wanted -= len(taken[-1])
        if not queue:
            self._present &= ~(1 << room)
        return np.concatenate(taken)

    def put(self, room: int, sequences: NDArray[np.int64]) -> None:
        """Add sequences with this room; full ones are forgotten."""
        if room and len(sequences):
            self._sequences.setdefault(room, deque()).append(sequences)
            self._present |= 1 << room
