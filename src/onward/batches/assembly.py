"""From the packing index and the token store to the arrays of a batch: compiled, without a loop over pieces in Python.

numba compiles for each type of token (uint16, uint32) at the first use and keeps the code beside this file.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.packing import Packing

NO_TARGET = -100
"""Label of a position without a target (PyTorch's cross-entropy ignores it)."""


def fill_rows(
    tokens: NDArray[np.uint16 | np.uint32],
    first_token: int,
    packing: Packing,
    sequences: NDArray[np.int64],
    rows: NDArray[np.int64],
    ids_BT: NDArray[np.int64],
    labels_BT: NDArray[np.int64],
    documents_BT: NDArray[np.int64],
    positions_BT: NDArray[np.int64],
    padding_id: int,
) -> None:
    """Write sequences of one block into rows of a batch, padding included.

    tokens: the block's, of which the first has the number first_token in the corpus. sequences: int64[n], numbers
    within the block. rows: int64[n], where each goes.
    """
    _fill(
        tokens, first_token, packing.sequence_start, packing.piece_offset, packing.piece_length,
        packing.piece_ends_document, sequences, rows, ids_BT, labels_BT, documents_BT, positions_BT, padding_id,
    )  # fmt: skip


def count_sequences(packing: Packing) -> NDArray[np.int64]:
    """Return labelled tokens, tokens and causal pairs of each sequence of a block: int64[sequences, 3].

    Causal pairs: the sum over the pieces of L (L + 1) / 2, the (query, key) pairs of attention within documents.
    """
    counts: NDArray[np.int64] = _count(packing.sequence_start, packing.piece_length, packing.piece_ends_document)
    return counts


@njit(cache=True, nogil=True)
def _fill(  # type: ignore[no-untyped-def]
    tokens, first_token, start, offset, length, ends, sequences, rows, ids, labels, documents, positions, padding
):
    # A loop for each array: the compiler makes vector code of them, and of one loop over all four it did not
    # (4.6 ns a token against 6.3).
    for n in range(len(sequences)):
        row = rows[n]
        at = np.int64(0)
        first_piece = start[sequences[n]]
        for piece in range(first_piece, start[sequences[n] + 1]):
            begin, size = offset[piece] - first_token, np.int64(length[piece])
            # The last token of a piece that does not end its document has a target too: the document's next token.
            targets = size - 1 if ends[piece] else size
            text = tokens[begin : begin + targets + 1]
            _copy(text[:size], ids[row, at : at + size])
            _copy(text[1:], labels[row, at : at + targets])
            if targets < size:
                labels[row, at + targets] = NO_TARGET
            documents[row, at : at + size] = piece - first_piece
            _count_up(positions[row, at : at + size])
            at += size
        ids[row, at:] = padding
        labels[row, at:] = NO_TARGET
        documents[row, at:] = -1
        positions[row, at:] = 0


@njit(cache=True, nogil=True, inline="always")
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = source[i]


@njit(cache=True, nogil=True, inline="always")
def _count_up(target):  # type: ignore[no-untyped-def]
    for i in range(len(target)):
        target[i] = i


@njit(cache=True, nogil=True)
def _count(start, length, ends):  # type: ignore[no-untyped-def]
    counts = np.zeros((len(start) - 1, 3), dtype=np.int64)
    for n in range(len(counts)):
        for piece in range(start[n], start[n + 1]):
            size = int(np.int64(length[piece]))
            counts[n, 0] += size - 1 if ends[piece] else size
            counts[n, 1] += size
            counts[n, 2] += size * (size + 1) // 2
    return counts
