"""How the documents of a corpus lie around the threshold of each quality rule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onward.corpus.quality.judge import Measure

BINS = 40
"""Bins between zero and twice the threshold; one more counts what lies beyond."""


@dataclass
class Histogram:
    """Counts of documents by the value a rule measures.

    threshold: in the rule's unit. is_maximum: whether larger values speak against a document. counts: int64[BINS + 1],
    bin b holds values of [b, b + 1) x threshold x 2 / BINS, the last one all larger values.
    """

    threshold: float
    is_maximum: bool
    counts: NDArray[np.int64]


class Histograms:
    """A histogram for each rule that measures a number; adding is exact and in any order."""

    def __init__(self) -> None:
        self.by_rule: dict[str, Histogram] = {}

    def add(self, measures: Iterable[Measure]) -> None:
        """Count the documents of a batch."""
        for measure in measures:
            width = 2 * measure.threshold / BINS
            values = measure.values[~np.isnan(measure.values)]
            places = np.clip(values / (width or 1.0), 0, BINS).astype(np.int64)
            counts = np.bincount(places, minlength=BINS + 1).astype(np.int64)
            self._add(measure.rule, Histogram(measure.threshold, measure.is_maximum, counts))

    def merge(self, other: "Histograms") -> None:
        """Add the counts of other documents."""
        for rule, histogram in other.by_rule.items():
            self._add(rule, histogram)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            rule: {"threshold": h.threshold, "is_maximum": h.is_maximum, "counts": h.counts.tolist()}
            for rule, h in sorted(self.by_rule.items())
        }

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> Self:
        """Return the histograms that `as_json` turned into `content`."""
        histograms = cls()
        for rule, found in content.items():
            counts = np.array(found["counts"], dtype=np.int64)
            histograms.by_rule[rule] = Histogram(found["threshold"], found["is_maximum"], counts)
        return histograms

    def _add(self, rule: str, histogram: Histogram) -> None:
        if rule in self.by_rule:
            mine = self.by_rule[rule]
            histogram = Histogram(mine.threshold, mine.is_maximum, mine.counts + histogram.counts)
        self.by_rule[rule] = histogram
