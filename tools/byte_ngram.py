"""A byte n-gram language model with Witten-Bell back-off, in numpy: the plain baseline of the tiny model's card.

An n-gram is the number made of its bytes, oldest first, so a shorter one that ends at the same byte is a remainder
and its context a quotient. Training counts only the longest n-grams; every shorter count is a sum of those.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

LONGEST_ORDER = 8  # eight bytes fill the 64-bit code


@dataclass(frozen=True)
class NgramCounts:
    """Distinct n-grams of `order` bytes, ascending, and how often each was seen."""

    order: int
    codes: Codes
    counts: Counts


def ngram_codes(text: bytes, order: int) -> Codes:
    """The n-gram that ends at each byte of one document; before the document stand zero bytes."""
    padded = np.frombuffer(bytes(order - 1) + text, dtype=np.uint8).astype(np.uint64)
    codes = np.zeros(len(text), dtype=np.uint64)
    for offset in range(order):
        codes = (codes << np.uint64(8)) | padded[offset : offset + len(text)]
    return codes


def count_ngrams(texts: Iterable[bytes], order: int, block_bytes: int = 24_000_000) -> NgramCounts:
    """Count the n-grams of all documents in blocks: memory is the table of distinct n-grams plus one block."""
    total = NgramCounts(order, np.zeros(0, np.uint64), np.zeros(0, np.int64))
    for block in _blocks(texts, order, block_bytes):
        codes, counts = np.unique(block, return_counts=True)
        total = _merged(order, np.concatenate([total.codes, codes]), np.concatenate([total.counts, counts]))
    return total


def shortened(longer: NgramCounts, order: int) -> NgramCounts:
    """The counts of the n-grams of `order` bytes: sums over every beginning of the longer ones."""
    return _merged(order, longer.codes & np.uint64(2 ** (8 * order) - 1), longer.counts)


def surprisal_bits(counts: NgramCounts, texts: Iterable[bytes]) -> list[npt.NDArray[np.float64]]:
    """Bits of each byte of each document, interpolated Witten-Bell down to the uniform distribution over 256 bytes.

    With c(h) tokens and t(h) distinct bytes seen after the context h (Witten and Bell 1991, method C; Chen and Goodman
    1999, eq. 11): p(b|h) = (c(h b) + t(h) p(b|shorter h)) / (c(h) + t(h)). A context never seen backs off whole.
    """
    documents = [ngram_codes(text, counts.order) for text in texts]
    codes = np.concatenate(documents)
    probability = np.full(len(codes), 1 / 256)
    for order in range(1, counts.order + 1):
        table = counts if order == counts.order else shortened(counts, order)
        probability = _one_order(table, codes & np.uint64(2 ** (8 * order) - 1), probability)
    borders = np.cumsum([len(document) for document in documents])[:-1]
    return np.split(-np.log2(probability), borders)


def _blocks(texts: Iterable[bytes], order: int, block_bytes: int) -> Iterator[Codes]:
    pending: list[Codes] = []
    size = 0
    for text in texts:
        pending.append(ngram_codes(text, order))
        size += len(text)
        if size >= block_bytes:
            yield np.concatenate(pending)
            pending, size = [], 0
    if pending:
        yield np.concatenate(pending)


def _merged(order: int, codes: Codes, counts: Counts) -> NgramCounts:
    by_code = np.argsort(codes, kind="stable")
    codes = codes[by_code]
    starts = _group_starts(codes)
    return NgramCounts(order, codes[starts], np.add.reduceat(counts[by_code], starts))


def _group_starts(codes: Codes) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))


def _one_order(table: NgramCounts, wanted: Codes, shorter: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Ascending codes put the n-grams of one context next to each other.
    contexts = table.codes >> np.uint64(8)
    starts = _group_starts(contexts)
    tokens = np.add.reduceat(table.counts, starts)
    types = np.diff(starts, append=len(contexts))
    seen = _looked_up(table.codes, table.counts, wanted)
    after_context = _looked_up(contexts[starts], tokens, wanted >> np.uint64(8))
    types_after = _looked_up(contexts[starts], types, wanted >> np.uint64(8))
    mass = after_context + types_after
    return np.where(mass > 0, (seen + types_after * shorter) / np.maximum(mass, 1), shorter)


def _looked_up(keys: Codes, values: Counts, wanted: Codes) -> Counts:
    where = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[where] == wanted, values[where], 0)
