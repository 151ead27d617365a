"""What a comparison of two models says: one row for each measure."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from onward.statistics import above_chance

Verdict = Literal["gained", "lost", "not distinguishable", "at chance"]

BITS_PER_BYTE = "bits per byte"
LOWER_IS_BETTER = frozenset({BITS_PER_BYTE, "bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity"})


@dataclass(frozen=True)
class Difference:
    """One measure of the same items before and after.

    name: `domain`, `general` or a task. metric: `bits per byte` of held-out text, else lm-eval's name: `acc` and its
    kin (shares of 1), `perplexity`, `word_perplexity`, `bits_per_byte`. delta: after - before, with its 95 % interval
    low..high. p_value: of no change, by the exact test over groups of items that share their fate, which is McNemar's
    where each item stands alone; p_adjusted: after Holm over all rows of its kind. p_mcnemar: of the exact McNemar
    test over single items, None where nothing is right or wrong. items: documents or questions, groups: the units of
    test and interval. right_to_wrong, wrong_to_right: questions that changed, None for text. touched: questions left
    out because they stood in the corpora's text, seen: those of them that stayed in the training text. chance: score
    of guessing, None where nothing is chosen. source: of held-out text, None for all of it. seeds: the score of
    each seed's model where several are pooled. why: what a `not distinguishable` rests on. below_chance: whether the
    score before, and after, is lower than guessing would leave it (p <= 0.05).
    """

    name: str
    metric: str
    before: float
    after: float
    delta: float
    low: float
    high: float
    p_value: float | None
    p_adjusted: float | None
    verdict: Verdict
    items: int
    right_to_wrong: int | None
    wrong_to_right: int | None
    touched: int = 0
    seen: int = 0
    groups: int = 0
    p_mcnemar: float | None = None
    chance: float | None = None
    source: str | None = None
    seeds: tuple[float, ...] = ()
    why: str | None = None
    below_chance: tuple[bool, bool] = (False, False)

    @property
    def is_text(self) -> bool:
        """Whether this is held-out text, not a task."""
        return self.metric == BITS_PER_BYTE

    @property
    def is_share(self) -> bool:
        """Whether the values are shares of 1, to be shown as percentages."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def adjusted(self) -> tuple[float, float] | None:
        """The scores before and after on the scale where guessing is 0 and all right is 1; None without chance."""
        if self.chance is None:
            return None
        return above_chance(self.before, self.chance), above_chance(self.after, self.chance)


@dataclass(frozen=True)
class Letters:
    """Which option a model picks on a task whose options are letters, or the same for every item.

    options: their names. gold, before, after: how many items have that right answer, and that pick of either model.
    constant_before, constant_after: score of always answering the letter that the model picks most.
    """

    task: str
    options: tuple[str, ...]
    gold: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def constant_before(self) -> float:
        """Score of always answering what the model before picks most."""
        return self.gold[self.before.index(max(self.before))] / sum(self.gold)

    @property
    def constant_after(self) -> float:
        """Score of always answering what the model after picks most."""
        return self.gold[self.after.index(max(self.after))] / sum(self.gold)


@dataclass(frozen=True)
class Comparison:
    """All differences between two models, text first, then tasks, and the same in plain words.

    without_touched: the rows of tasks some of whose items were found in the corpora's text, computed anew without
    those items; their verdicts are the ones to go by. sources: held-out text by source, where a text has several.
    letters: what the models pick, for tasks whose options are letters.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    summary: tuple[str, ...]
    without_touched: tuple[Difference, ...] = ()
    sources: tuple[Difference, ...] = ()
    letters: tuple[Letters, ...] = ()

    def find(self, name: str) -> Difference | None:
        """Return the first difference of this name (a corpus or a task), None when it was not scored."""
        return next((difference for difference in self.differences if difference.name == name), None)

    def clean(self, difference: Difference) -> Difference | None:
        """Return the same row without the items found in the text, None when none was found (or nothing is left)."""
        same = (row for row in self.without_touched if (row.name, row.metric) == (difference.name, difference.metric))
        return next(same, None)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, with what is derived from them; a number that is not one becomes null."""
        plain = _plain(asdict(self))
        for key in ("differences", "without_touched"):
            for row, difference in zip(plain[key], getattr(self, key), strict=True):
                row["adjusted"] = _plain(difference.adjusted)
        for row, letters in zip(plain["letters"], self.letters, strict=True):
            row |= {"constant_before": letters.constant_before, "constant_after": letters.constant_after}
        assert isinstance(plain, dict)
        return plain


@dataclass(frozen=True)
class Comparisons:
    """Several models, each compared with one base; p-values are corrected over all of them together.

    pooled: the mean over the models, where they are seeds of one training; its p-values are corrected by themselves.
    """

    base: str
    comparisons: tuple[Comparison, ...]
    pooled: Comparison | None = None

    @property
    def tables(self) -> tuple[Comparison, ...]:
        """All that is to be shown: each model alone, then the models pooled."""
        return (*self.comparisons, *(() if self.pooled is None else (self.pooled,)))

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `pooled` is null where the models were not pooled."""
        alone = [comparison.as_json() for comparison in self.comparisons]
        return {"base": self.base, "comparisons": alone, "pooled": self.pooled and self.pooled.as_json()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
