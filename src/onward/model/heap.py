"""What glibc does with memory that tensors leave: keep it for the next pass, or give it back."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt (malloc.h)."""
_MAPPED_BYTES, _RETURNED_BYTES = 48 * 2**20, 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; returns whether it does.

    By default every large tensor is mapped and unmapped, or the heap's end given back, again and again: the kernel
    clears the same pages in every step. Only what is larger than any activation of a small model (logits, gradients of
    embeddings) is still mapped, since one such hole in the heap is seldom filled again.
    """
    return _set_heap(_MAPPED_BYTES, 2**31 - 1)


def return_freed_memory() -> bool:
    """Tell glibc to give back what is freed at once; returns whether it does.

    For runs that recompute activations because memory is short: no holes, a quarter less resident memory (125M, fp32),
    and a few seconds of the kernel's time for every 10 GB that pass through.
    """
    done = _set_heap(_RETURNED_BYTES, _RETURNED_BYTES)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set_heap(mapped_bytes: int, trimmed_bytes: int) -> bool:
    """Set from which size on tensors are mapped by themselves, and how much may stay free at the heap's end."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, mapped_bytes)) and bool(mallopt(_TRIM_THRESHOLD, trimmed_bytes))
