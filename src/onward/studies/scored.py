"""What the scores of a variant's seeds say: changes of held-out text against the base, and between two variants."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onward.analysis.paired import Scored, pair_up, read_scored
from onward.analysis.rows import LEAST_GROUPS
from onward.artifact import MANIFEST
from onward.errors import UserError
from onward.statistics import Interval, paired_bootstrap_ratio, pooled_change

NO_VERDICT: Literal["no verdict"] = "no verdict"
Told = Literal["better", "worse", "not distinguishable", "no verdict"]


@dataclass(frozen=True)
class Text:
    """Nats of a held-out text under the base and under each seed's model.

    before: [documents]; after: [seeds, documents]; bits: [documents], ln 2 x UTF-8 bytes; group: [documents]. numbers:
    of the seeds, in the order of `after`.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    bits: NDArray[np.float64]
    group: NDArray[np.object_]
    numbers: tuple[int, ...]

    @property
    def base(self) -> float:
        """Bits per byte of the base."""
        return float(self.before.sum() / self.bits.sum())

    @property
    def groups(self) -> int:
        """Units of the intervals: groups of documents; a single group counts its documents, as in a run's tests."""
        return units(self.group)

    def change(self, resamples: int, seed: int) -> Interval:
        """Return the mean change in bits per byte against the base, below 0 where the model is better.

        Its interval holds for other documents, and where there are several seeds for other seeds too
        (`statistics.pooled_change`). Of fewer than `LEAST_GROUPS` groups it is not known: nan.
        """
        return _interval(self.before, self.after, self.bits, self.group, resamples, seed)

    def of_seeds(self) -> list[float]:
        """Return each seed's change in bits per byte."""
        found: list[float] = ((self.after.sum(axis=1) - self.before.sum()) / self.bits.sum()).tolist()
        return found

    def joined(self, other: "Text") -> "Text":
        """Return the text with the seeds of another, scored against the same base."""
        return replace(self, after=np.concatenate([self.after, other.after]), numbers=self.numbers + other.numbers)

    def beyond(self, other: "Text", resamples: int, seed: int) -> Interval:
        """Return how much more bits per byte this takes than `other`: the same documents, pairs of the same seeds.

        Without a seed in common it is the difference of the means, and its interval is not known: nan.
        """
        common = [number for number in self.numbers if number in other.numbers]
        if not common:
            apart_by = float(np.mean(self.of_seeds()) - np.mean(other.of_seeds()))
            return Interval(apart_by, float("nan"), float("nan"))
        mine, theirs = (text.after[[text.numbers.index(number) for number in common]] for text in (self, other))
        if len(common) == 1:
            return _interval(theirs[0], mine, self.bits, self.group, resamples, seed)
        return _interval(np.zeros(mine.shape[1]), mine - theirs, self.bits, self.group, resamples, seed)

    def is_of_the_documents_of(self, other: "Text") -> bool:
        """Whether both are of the same documents, told by their sizes and groups."""
        return np.array_equal(self.bits, other.bits) and np.array_equal(self.group, other.group)

    def gained_beyond(self, other: "Text", resamples: int, seed: int) -> Interval:
        """Return this change less that of `other`, whose base may be another; below 0 where this one is better.

        Of the same documents it is paired, by document and seed; else the errors are taken as independent (`apart`).
        """
        if not self.is_of_the_documents_of(other):
            return apart(self.change(resamples, seed), other.change(resamples, seed))
        # What the bases differ by is taken off each document: what is left of the models' difference is the changes'.
        return replace(self, after=self.after - self.before + other.before).beyond(other, resamples, seed)


def _interval(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    bits: NDArray[np.float64],
    group: NDArray[np.object_],
    resamples: int,
    seed: int,
) -> Interval:
    if units(group) < LEAST_GROUPS:  # as for a run: of so few, intervals miss more often than they say
        return Interval(float((after.sum(axis=1).mean() - before.sum()) / bits.sum()), float("nan"), float("nan"))
    names = group.astype(str)
    if len(after) == 1:
        return paired_bootstrap_ratio(before, after[0], bits, names, resamples, seed)
    return pooled_change(before, after, bits, names).interval


def units(group: NDArray[np.object_]) -> int:
    """Return how many units intervals are over, by the group of each document; a single group counts its documents."""
    groups = len(set(group.tolist()))
    return len(group) if groups == 1 else groups


def read_texts(base: Path, folder: Path, number: int) -> dict[str, Text]:
    """Return the held-out texts by name, from the scores of the base and those of a seed; number: of the seed.

    Raises UserError when one is missing, they are not of the same documents, or differ in precision.
    """
    return {
        pair.name: Text(
            pair.before.nats,
            pair.after.nats[None],
            pair.before.bytes * np.log(2),
            pair.before.group,
            (number,),
        )
        for pair in pair_up(_read(base, "the base's scores"), _read(folder, "the scores"))[0]
    }


@lru_cache(maxsize=4)
def _read_at(folder: Path, changed_ns: int) -> Scored:
    return read_scored(folder)


def _read(folder: Path, what: str) -> Scored:
    """Read scores; those of the base stand beside every member's and are read once. what: they are, for messages."""
    try:
        changed_ns = (folder / MANIFEST).stat().st_mtime_ns
    except FileNotFoundError:
        todo = "run again where the text is at its place; they will be made anew"
        raise UserError(f"{what} are missing", str(folder), todo=todo) from None
    return _read_at(folder, changed_ns)


def told(difference: Interval) -> Told:
    """Say what an interval of bits per byte shows: below zero is better; one that holds zero shows nothing.

    Too few documents, or no seed in common, give no interval and so no verdict.
    """
    if np.isnan(difference.low):
        return NO_VERDICT
    if difference.low <= 0 <= difference.high:
        return "not distinguishable"
    return "better" if difference.high < 0 else "worse"


def apart(first: Interval, second: Interval) -> Interval:
    """Return first - second of two changes on different documents, their errors taken as independent.

    Each end takes the distances of the ends that lead there, in squares, so that skewed intervals stay skewed (Zou and
    Donner 2008, doi:10.1002/sim.3095). On documents in common the true interval is narrower.
    """
    middle = first.estimate - second.estimate
    below = np.hypot(first.estimate - first.low, second.high - second.estimate)
    above = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(middle, float(middle - below), float(middle + above))
