"""Exact duplicates and the held-out split: both are functions of a hash of the normalised text."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import xxhash
from numpy.typing import NDArray

from onward.corpus.text.batch import TextBatch


def digests(normal: TextBatch) -> NDArray[np.uint64]:
    """Return the low 64 bits of the xxh3-128 of every normalised document, 1 where they are 0 (which means no key).

    Among 100 million different texts two share a digest with a probability of 1 in 3,700.
    """
    text, ends = normal.buffer.data, normal.starts.tolist()
    digest = xxhash.xxh3_128_digest
    joined = b"".join([digest(text[begin:end]) for begin, end in pairwise(ends)])
    low = np.frombuffer(joined, dtype=">u8")[1::2].astype(np.uint64)  # the canonical form is big-endian
    low[low == 0] = 1
    return low


def split_hashes(normal: TextBatch, groups: Sequence[str | None]) -> NDArray[np.uint64]:
    """Return the 64-bit hash that decides every document's side: xxh3-64 of its group, else of its normalised text."""
    text, ends = normal.buffer.data, normal.starts.tolist()
    digest = xxhash.xxh3_64_intdigest
    hashes = [
        digest(text[begin:end] if group is None else group.encode())
        for (begin, end), group in zip(pairwise(ends), groups, strict=True)
    ]
    return np.array(hashes, dtype=np.uint64)


def held_out_flags(hashes: NDArray[np.uint64], share: Fraction | float) -> NDArray[np.bool_]:
    """Return which hashes fall into the held-out share: those below share x 2^64, compared exactly.

    The hashes are uniform over 64 bits, so the choice needs no state: a document's side stays the same however the
    corpus grows or is ordered.
    """
    threshold = ceil(Fraction(share) * 2**64)  # an integer is below a fraction when it is below the next integer
    if threshold >= 2**64:
        return np.ones(len(hashes), dtype=np.bool_)
    return hashes < np.uint64(max(threshold, 0))


def split_hash(key: str) -> int:
    """Return the hash of one group or normalised text, as `split_hashes` does."""
    return xxhash.xxh3_64_intdigest(key.encode())


def is_held_out(key: str, share: Fraction | float) -> bool:
    """Return whether one group or normalised text falls into the held-out share, as `held_out_flags` says."""
    return split_hash(key) < share * 2**64
