"""Hashes of stretches of a buffer, eight bytes at a time."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

SEED, FACTOR = np.uint64(0x243F6A8885A308D3), np.uint64(0x9E3779B97F4A7C15)
ALL_BITS, SMALL = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x2020202020202020)
"""SMALL: the bits that make ASCII capitals small letters."""

# Kernels that allocate nothing are compiled with `_nrt=False`: numba otherwise counts references to all arrays in every
# call of a helper, which took two thirds of the time of the word rule (21 of 28 ms per MB became 7).


def in_eights(buffer: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the whole eights of bytes of a buffer as numbers, without copying."""
    return buffer[: len(buffer) // 8 * 8].view(np.uint64)


@njit(forceinline=True, cache=True, _nrt=False)
def eight_bytes(buffer, eights, at, number):  # type: ignore[no-untyped-def]
    """Return the next `number` (1 to 8) bytes from byte `at` on as one number, the first byte lowest."""
    place, shift = at >> 3, np.uint64(8 * (at & 7))
    keep = ALL_BITS >> np.uint64(64 - 8 * number)
    if place + 1 < len(eights):
        return ((eights[place] >> shift) | ((eights[place + 1] << np.uint64(1)) << (np.uint64(63) - shift))) & keep
    value = np.uint64(0)
    for byte in range(number):
        value |= np.uint64(buffer[at + byte]) << np.uint64(8 * byte)
    return value


@njit(forceinline=True, cache=True, _nrt=False)
def mixed(value, eight):  # type: ignore[no-untyped-def]
    """Take eight more bytes into a hash: multiply and shift; different texts agree with a chance of about 2**-64."""
    value = (value ^ eight) * FACTOR
    return value ^ (value >> np.uint64(32))


@njit(cache=True, _nrt=False)
def hash_stretch(buffer, eights, low, high):  # type: ignore[no-untyped-def]
    """Return the hash of a stretch, its code points, and whether two of its periods touch."""
    value, ones, high_bits = SEED, np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    length, dotted = high - low, np.uint64(0)
    while low < high:
        number = min(8, high - low)
        eight = eight_bytes(buffer, eights, low, number)
        value = mixed(value, eight)
        inner = (eight >> np.uint64(7)) & ~(eight >> np.uint64(6)) & ones  # 10xxxxxx: not the first byte of a character
        length -= np.int64((inner * ones) >> np.uint64(56))
        unlike = eight ^ np.uint64(0x2E2E2E2E2E2E2E2E)
        periods = ~(((unlike & ~high_bits) + ~high_bits) | unlike) & high_bits
        dotted |= periods & (periods >> np.uint64(8))
        low += 8
    return value, length, dotted != 0
