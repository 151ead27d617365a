"""The keys seen last, in memory: a hash table over a log, from which runs are written."""

from collections.abc import Iterator

import numpy as np
from numba import njit

from onward.corpus.duplicates.runs import PIECE_KEYS, Pairs

_SMALLEST = 1 << 12


class Recent:
    """Keys with their values, in the order in which they were added.

    keys: uint64[capacity], values: int64[capacity], the first `size` are in use. slots: uint64[a power of two], open
    addressing: the upper half of a key and its place in the log plus one, so that a key which is not there costs one
    access to memory; at most half of the slots are in use.
    """

    def __init__(self) -> None:
        self.size = 0
        self._allocate(_SMALLEST)

    def clear(self) -> None:
        """Forget everything, but keep the room."""
        self.size = 0
        self.slots.fill(0)

    @property
    def capacity(self) -> int:
        """How many keys fit in without growing."""
        return len(self.keys)

    def make_room(self, number: int) -> None:
        """Grow until so many more keys fit in."""
        if self.size + number <= self.capacity:
            return
        capacity = self.capacity
        while capacity < self.size + number:
            capacity *= 2
        keys, values = self.keys[: self.size], self.values[: self.size]
        self._allocate(capacity)
        self.keys[: self.size], self.values[: self.size] = keys, values
        _index(self.keys, self.size, self.slots)

    def ordered(self, begin: int) -> Iterator[Pairs]:
        """Return the keys added from place `begin` on with their values, sorted by key, piece by piece."""
        order = np.argsort(self.keys[begin : self.size])
        order += begin
        for at in range(0, len(order), PIECE_KEYS):
            places = order[at : at + PIECE_KEYS]
            yield np.column_stack((self.keys[places], self.values[places].view(np.uint64)))

    def _allocate(self, capacity: int) -> None:
        self.keys = np.empty(capacity, dtype=np.uint64)
        self.values = np.empty(capacity, dtype=np.int64)
        self.slots = np.zeros(2 * capacity, dtype=np.uint64)


@njit(cache=True, nogil=True, inline="always")
def find(key, keys, slots):  # type: ignore[no-untyped-def]
    """Return the place of a key in the log, -1 when it is not there."""
    mask = np.uint64(len(slots) - 1)
    upper = np.uint64(0xFFFFFFFF00000000)
    slot = key & mask
    while slots[slot] != 0:
        if (slots[slot] ^ key) & upper == 0:
            place = np.int64(slots[slot] & ~upper) - 1
            if keys[place] == key:
                return place
        slot = slot + np.uint64(1) & mask
    return np.int64(-1)


@njit(cache=True, nogil=True, inline="always")
def enter(key, place, slots):  # type: ignore[no-untyped-def]
    """Point a free slot to the place of a key that is not there yet."""
    mask = np.uint64(len(slots) - 1)
    slot = key & mask
    while slots[slot] != 0:
        slot = slot + np.uint64(1) & mask
    slots[slot] = key & np.uint64(0xFFFFFFFF00000000) | np.uint64(place + 1)


@njit(cache=True, nogil=True)
def _index(keys, size, slots):  # type: ignore[no-untyped-def]
    for place in range(size):
        enter(keys[place], place, slots)
