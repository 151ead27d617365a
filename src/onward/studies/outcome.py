"""What a study found, before it is a page: one table, one figure, one paragraph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

from onward.analysis.rows import LEAST_GROUPS
from onward.analysis.wording import MINUS, decimals_for, number
from onward.recipe import Recipe
from onward.reporting.content import Table
from onward.reporting.figures import Figure
from onward.statistics import Interval
from onward.studies.kinds import joined
from onward.studies.member import Variant
from onward.studies.scored import Text
from onward.training.record import read_rows

PER_BYTE, INTERVAL = "bits per byte", "95 % interval"


@dataclass(frozen=True)
class Measured:
    """A variant whose seeds are trained and scored.

    runs: the run folders of its seeds by number. texts: held-out texts by name, at the end of the training.
    points: the same at the token counts between, where the study looks there. parameters: of the base model.
    """

    variant: Variant
    recipe: Recipe
    runs: Mapping[int, Path]
    texts: Mapping[str, Text]
    parameters: int
    points: Mapping[int, Mapping[str, Text]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the training."""
        return self.recipe.training.stages[-1]


@dataclass(frozen=True)
class Outcome:
    """headline: one sentence. findings: the sentences of the paragraph. rows: the table's numbers, as JSON.

    points: what is compared with one member, by name and in words: a list under the last sentence of the paragraph.
    pairs: the numbers of every two members beside each other, where the study compares them on the same documents.
    """

    headline: str
    findings: tuple[str, ...]
    table: Table
    rows: tuple[Mapping[str, Any], ...]
    figure: Figure | None
    points: tuple[tuple[str, str], ...] = ()
    pairs: tuple[Mapping[str, Any], ...] = ()


def change_texts(change: Interval) -> tuple[str, str]:
    """Write a change and its interval, with three decimals or as many as show two digits of the interval's width.

    An interval without zero has as many as show that.
    """
    places = max(3, decimals_for(change.low, change.high))
    if change.low != change.low:
        return number(change.estimate, places, sign=True), "unknown"
    while change.low * change.high > 0 and not all(round(end, places) for end in (change.low, change.high)):
        places += 1
    low, high = (number(end, places, sign=True) for end in (change.low, change.high))
    return number(change.estimate, places, sign=True), f"{low} to {high}"


def change_words(change: Interval) -> str:
    """Write a change in a sentence: `−0.123 bits per byte (−0.130 to −0.116)`."""
    value, interval = change_texts(change)
    return f"{value} {PER_BYTE} ({interval})"


def difference_words(difference: Interval) -> str:
    """Write a change where the unit was said before: `−0.123 (−0.130 to −0.116)`."""
    return change_words(difference).replace(f" {PER_BYTE}", "")


def rate_words(rate: float, is_prose: bool = False) -> str:
    """Write a learning rate exactly, in the fewest digits that a recipe reads as it: `3e-4`, `1.25e-3`.

    is_prose: with a minus, since lines of prose break at a hyphen; tables keep it, to be copied into recipes.
    """
    digits, exponent = f"{Decimal(repr(float(rate))).normalize():e}".split("e")
    written = f"{digits}e{int(exponent)}"
    return written.replace("-", MINUS) if is_prose else written


def as_numbers(prefix: str, interval: Interval) -> dict[str, float | None]:
    """Return an interval as three columns of a table of numbers; what is not known is None."""
    values = {prefix: interval.estimate, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}
    return {name: None if value != value else round(value, 6) for name, value in values.items()}


_MOST_PAIRS = 4


def over_words(found: Sequence[Measured]) -> str:
    """Say what the intervals of members are over: `seeds and documents`, and which of them are of one seed alone."""
    alone = [each.variant.words for each in found if len(each.runs) == 1]
    if len(alone) == len(found):
        return "documents alone, since one seed says nothing of others"
    return "seeds and documents" + (
        f", and over documents alone for what has one seed: {listed(alone)}" if alone else ""
    )  # fmt: skip


def common_words(one: Measured, other: Measured) -> str:
    """Say of how many seeds a difference is where these are fewer than either has: ` (from 1 seed in common)`."""
    common = len(one.runs.keys() & other.runs.keys())
    if not common or common == max(len(one.runs), len(other.runs)):
        return ""
    return f" (from {number_of(common, 'seed')} in common)"


def _variants_words(each: Measured) -> str:
    return each.variant.words


def without_common_seed(found: Sequence[Measured], named: Callable[[Measured], str] = _variants_words) -> list[str]:
    """Return the sentence on members that share no seed, since one of either failed; none where all share one.

    named: what a member is called in it.
    """
    apart = [f"{named(one)} and {named(other)}" for one, other in combinations(found, 2)
             if not one.runs.keys() & other.runs.keys()]  # fmt: skip
    if not apart:
        return []
    more = [f"{len(apart) - _MOST_PAIRS} more pairs"] if len(apart) > _MOST_PAIRS else []
    pairs = "; to ".join([*apart[:_MOST_PAIRS], *more])
    return [f"No seed is common to {pairs}: their differences have no interval and no verdict."]


def listed(names: list[str]) -> str:
    """Join names: `a, b and c`."""
    return joined(names)


def judged_on(found: Sequence[Measured]) -> list[str]:
    """Return the sentences on how many documents the texts have, and on those that have too few for an interval."""
    counts: dict[str, set[int]] = {}
    groups: dict[str, set[int]] = {}
    for each in found:
        for texts in (each.texts, *each.points.values()):
            for name, text in texts.items():
                counts.setdefault(name, set()).add(len(text.before))
                groups.setdefault(name, set()).add(text.groups)
    parts = [f"{name} text {_counted(counts[name], groups[name])}" for name in counts]
    sentences = [f"Held-out documents: {joined(parts)}."]
    few = [f"{name} text" for name in counts if min(groups[name]) < LEAST_GROUPS]
    if few:
        sentences.append(
            f"Fewer than {LEAST_GROUPS} documents (or groups of them) give no interval and no verdict: {joined(few)}. "
            "Hold out more (evaluation.held_out_tokens, or more documents)."
        )
    return sentences


def _counted(documents: set[int], groups: set[int]) -> str:
    """Write how many documents a text has, and in how many groups where these are fewer: `40`, `40 (12 groups)`."""
    shown, grouped = (" to ".join(f"{end:,}" for end in sorted({min(each), max(each)})) for each in (documents, groups))
    return shown if documents == groups else f"{shown} ({grouped} groups)"


def number_of(count: int, noun: str) -> str:
    """Count in words: `1 training`, `2 trainings`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def training_seconds(run_folder: Path) -> float:
    """Return the seconds that a run's steps took, from its records; 0 where there are none."""
    return round(sum(float(row.get("seconds") or 0) for row in read_rows(run_folder / "metrics.jsonl")), 1)
