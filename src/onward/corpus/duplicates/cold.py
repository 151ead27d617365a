"""Keys on disk: a filter in memory that knows nearly all new ones, then the runs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.corpus.duplicates.filter import Filter
from onward.corpus.duplicates.run_folder import RunFolder
from onward.corpus.duplicates.runs import Run

SMALLEST_FILTER_BYTES, LARGEST_FILTER_BYTES = 1 << 16, 1 << 28
_FILTER_BITS_PER_KEY = 24
"""The filter doubles until 256 MB, which is enough for 90 million keys (24 GB of text): 1 in 6,000 new keys is looked
up on disk in vain. Beyond that they become more: 1 in 110 at 200 million keys, 1 in 7 at 400 million."""


class Cold:
    """Keys in the runs of other corpora and of this one, which is the last.

    others: one run for each other corpus. folder: the runs of this one.
    """

    def __init__(self, others: Sequence[Run], folder: RunFolder, largest_filter_bytes: int) -> None:
        self._others, self._folder = others, folder
        self._largest_filter_bytes = largest_filter_bytes
        self._size = sum(run.size for run in (*others, *folder.runs))
        self._filter = Filter(SMALLEST_FILTER_BYTES)
        if self._size:
            self._fill_filter()

    def __len__(self) -> int:
        return self._size

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Know keys that were written to the folder."""
        self._size += len(keys)
        if self._wanted_filter_bytes() > self._filter.size_bytes:
            self._fill_filter()
        else:
            self._filter.add(keys)

    def find(
        self, keys: NDArray[np.uint64], documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Return for every key its corpus and its value, -1 and -1 when it is not there.

        documents: ascending numbers of the documents that the keys belong to. Keys of one document tend to match one
        earlier document, whose keys are all in one run: the run in which the first was found is tried first.
        """
        runs = [*enumerate(self._others), *((len(self._others), run) for run in self._folder.runs)]
        runs.sort(key=lambda item: (item[0], -item[1].size))  # most keys are found in the largest
        found_in = np.full(len(keys), -1, dtype=np.int64)
        values = np.full(len(keys), -1, dtype=np.int64)

        def search(places: NDArray[np.int64], order: Sequence[int]) -> None:
            for n in order:
                if not len(places):
                    return
                found = runs[n][1].find(keys[places])
                is_there = found >= 0
                found_in[places[is_there]], values[places[is_there]] = n, found[is_there]
                places = places[~is_there]

        places = self._filter.may_hold(keys)
        owners = documents[places]
        is_first = np.diff(owners, prepend=-1) != 0
        search(places[is_first], range(len(runs)))
        guesses = found_in[places[is_first]][np.cumsum(is_first) - 1]
        # A key of ours is in no other run; one of another corpus may be in a corpus before that one, too.
        guesses[is_first | (guesses < len(self._others))] = -1
        for guess in np.unique(guesses[guesses >= 0]).tolist():
            search(places[guesses == guess], [guess])
        search(places[found_in[places] < 0], range(len(runs)))
        corpora = np.array([*(corpus for corpus, _ in runs), -1], dtype=np.int16)[found_in]
        return corpora, values

    def _wanted_filter_bytes(self) -> int:
        wanted = SMALLEST_FILTER_BYTES
        while wanted * 8 < self._size * _FILTER_BITS_PER_KEY and wanted < self._largest_filter_bytes:
            wanted *= 2
        return wanted

    def _fill_filter(self) -> None:
        """Make the filter anew from all that is on disk."""
        self._filter = Filter(SMALLEST_FILTER_BYTES)  # the old one is free before the new one is there
        self._filter = Filter(self._wanted_filter_bytes())
        for run in (*self._others, *self._folder.runs):
            for piece in run.pieces():
                self._filter.add(piece[:, 0])
