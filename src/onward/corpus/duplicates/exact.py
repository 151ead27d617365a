"""Exact duplicates and the held-out split: both are functions of a hash of the normalised text."""

import unicodedata
from fractions import Fraction

import numpy as np
import xxhash


def normalise(text: str) -> str:
    """Return the text as duplicates see it: NFC, lower case, every run of white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.lower().split())


def digest(normalised: str) -> int:
    """Return the xxh3-128 of a normalised text."""
    return xxhash.xxh3_128_intdigest(normalised.encode())


def split_hash(key: str) -> int:
    """Return the 64-bit hash that decides the side of the held-out split; key: group value, else normalised text."""
    return xxhash.xxh3_64_intdigest(key.encode())


def is_held_out(key: str, share: Fraction | float) -> bool:
    """Whether a key falls into the held-out share: its hash is uniform over 64 bits, so the choice needs no state.

    A document's side therefore stays the same however the corpus grows or is ordered.
    """
    return split_hash(key) < share * 2**64


class DigestSet:
    """A set of 128-bit digests in 21 to 43 bytes each (a Python set of them takes above 100).

    Open addressing with linear probing over one flat array, at most 3/4 full; the digests are uniform already, so
    their low bits are the slot.
    """

    def __init__(self, slots: int = 1 << 12) -> None:
        assert slots & (slots - 1) == 0, "a power of two, so that a mask finds the slot"
        self._size = 0
        self._allocate(slots)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, value: int) -> bool:
        return self._table[self._slot(value)] != 0

    def add(self, value: int) -> bool:
        """Add a digest; return whether it is new."""
        slot = self._slot(value)
        if self._table[slot]:
            return False
        self._table[slot], self._table[slot + 1] = _halves(value)
        self._size += 1
        if self._size * 4 > (self._mask + 1) * 3:
            self._grow()
        return True

    def _allocate(self, slots: int) -> None:
        self._mask = slots - 1
        # A memoryview reads one element three times faster than the array itself; zeros touch no memory yet.
        self._table: memoryview[int] = np.zeros(2 * slots, dtype=np.uint64).data

    def _slot(self, value: int) -> int:
        """Return twice the slot that holds the digest or, when it is absent, the free one that would."""
        table, mask = self._table, self._mask
        low, high = _halves(value)
        slot = low & mask
        while (found := table[2 * slot]) and not (found == low and table[2 * slot + 1] == high):
            slot = (slot + 1) & mask
        return 2 * slot

    def _grow(self) -> None:
        old = self._table
        self._allocate(2 * (self._mask + 1))
        for at in range(0, len(old), 2):
            if old[at]:
                low, high = old[at], old[at + 1]
                slot = self._slot(high << 64 | low)
                self._table[slot], self._table[slot + 1] = low, high


def _halves(value: int) -> tuple[int, int]:
    """Split a digest; a low half of zero marks a free slot, so the one digest in 2**64 that has it becomes one."""
    return (value & 0xFFFF_FFFF_FFFF_FFFF) or 1, value >> 64
