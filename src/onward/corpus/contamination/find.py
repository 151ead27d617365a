"""Compiled search for the runs and texts of an index in the words of many documents.

The kernels fill `rows` (int64[capacity, 5]: document, long or short text, n-gram or -1, first and last word) and return
how many there are; above `capacity` they only count, and their caller comes again with more room.
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.contamination.index import ANSWER_WINDOW_WORDS, ItemIndex
from onward.corpus.contamination.ngrams import place_of, sift

DOCUMENT, TEXT, NGRAM, FIRST, LAST = range(5)
"""Columns of the rows."""
_CAPACITY = 4096

Rows = NDArray[np.int64]


def find_ngrams(folded: NDArray[np.uint64], starts: NDArray[np.int64], index: ItemIndex) -> Rows:
    """Return a row for every n-gram found and every long text that has it, in the order of the words.

    folded: uint64[words]; starts: int64[documents + 1]. A run never crosses from one document to the next.
    """
    table = index.ngrams
    arrays = (table.keys, table.first, table.owners, table.buckets, table.filter)
    numbers = (table.words, table.bucket_bits, table.filter_bits)
    return _with_room(lambda capacity: _find_ngrams(folded, starts, *arrays, *numbers, capacity))


def find_short_texts(folded: NDArray[np.uint64], starts: NDArray[np.int64], index: ItemIndex) -> Rows:
    """Return a row for every short text found, up to the end of its answer where it needs one."""
    short, table = index.short, index.short.anchors
    arrays = (table.keys, table.first, table.owners, table.buckets, table.filter)
    numbers = (table.words, table.bucket_bits, table.filter_bits)
    texts = (short.words, short.starts, short.answers, short.answer_starts, short.offset)
    return _with_room(
        lambda capacity: _find_short_texts(folded, starts, *arrays, *numbers, *texts, ANSWER_WINDOW_WORDS, capacity)
    )


def _with_room(search: Callable[[int], tuple[Rows, int]]) -> Rows:
    rows, count = search(_CAPACITY)
    if count > _CAPACITY:  # the text is made of benchmark items
        rows, count = search(count)
    return rows[:count]


@njit(cache=True, nogil=True)
def _find_ngrams(  # type: ignore[no-untyped-def]
    folded, starts, keys, first, owners, buckets, filter_, words, bucket_bits, filter_bits, capacity
):
    rows = np.empty((capacity, 5), dtype=np.int64)
    count = 0
    begins, found_keys = _room(starts)
    for document in range(len(starts) - 1):
        start = starts[document]
        found = sift(folded[start : starts[document + 1]], words, filter_, filter_bits, begins, found_keys)
        for candidate in range(found):
            place = place_of(found_keys[candidate], keys, buckets, bucket_bits)
            if place < 0:
                continue
            begin = start + begins[candidate]
            for owned in range(first[place], first[place + 1]):
                _add(rows, count, document, owners[owned], place, begin, begin + words - 1)
                count += 1
    return rows, count


@njit(cache=True, nogil=True)
def _find_short_texts(  # type: ignore[no-untyped-def]
    folded, starts, keys, first, owners, buckets, filter_, words, bucket_bits, filter_bits,
    texts, text_starts, answers, answer_starts, offset, window, capacity,
):  # fmt: skip
    rows = np.empty((capacity, 5), dtype=np.int64)
    count = 0
    begins, found_keys = _room(starts)
    for document in range(len(starts) - 1):
        start = starts[document]
        spoken = folded[start : starts[document + 1]]
        found = sift(spoken, words, filter_, filter_bits, begins, found_keys)
        for candidate in range(found):
            place = place_of(found_keys[candidate], keys, buckets, bucket_bits)
            if place < 0:
                continue
            for owned in range(first[place], first[place + 1]):
                text = owners[owned]
                begin = begins[candidate] - offset[text]
                if not _stands(spoken, begin, texts, text_starts[text], text_starts[text + 1]):
                    continue
                end = begin + text_starts[text + 1] - text_starts[text]
                if answer_starts[text + 1] > answer_starts[text]:
                    end = _after_answer(spoken, end, window, answers, answer_starts[text], answer_starts[text + 1])
                    if end < 0:
                        continue
                _add(rows, count, document, text, -1, start + begin, start + end - 1)
                count += 1
    return rows, count


@njit(cache=True, nogil=True)
def _room(starts):  # type: ignore[no-untyped-def]
    """Return arrays that `sift` may fill for the longest document."""
    longest = 0
    for document in range(len(starts) - 1):
        longest = max(longest, starts[document + 1] - starts[document])
    return np.empty(longest + 1, dtype=np.int64), np.empty(longest + 1, dtype=np.uint64)


@njit(cache=True, nogil=True)
def _add(rows, count, document, text, ngram, begin, last):  # type: ignore[no-untyped-def]
    if count < len(rows):
        rows[count, 0], rows[count, 1], rows[count, 2] = document, text, ngram
        rows[count, 3], rows[count, 4] = begin, last


@njit(cache=True, nogil=True)
def _stands(spoken, begin, texts, first, last):  # type: ignore[no-untyped-def]
    """Whether texts[first:last] stands at `begin`."""
    if begin < 0 or begin + last - first > len(spoken):
        return False
    for word in range(last - first):  # noqa: SIM110 (numba compiles no generators)
        if spoken[begin + word] != texts[first + word]:
            return False
    return True


@njit(cache=True, nogil=True)
def _after_answer(spoken, end, window, answers, first, last):  # type: ignore[no-untyped-def]
    """Return the end of the first answers[first:last] that begins within `window` words from `end`, -1 without one."""
    for begin in range(end, end + window):
        if _stands(spoken, begin, answers, first, last):
            return begin + last - first
    return -1
