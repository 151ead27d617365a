"""What a comparison of two models says: one row for each measure."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["gained", "lost", "not distinguishable", "at chance"]

BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True)
class Difference:
    """One measure of the same items before and after.

    name: `domain`, `general` or a task. metric: `bits per byte` (lower is better), `acc` or `acc_norm` (shares of
    1, higher is better). delta: after - before, with its 95 % interval low..high. p_value: exact McNemar, p_adjusted:
    after Holm over all task rows of the comparison; both None for text, whose verdict rests on the interval.
    items: documents or questions. right_to_wrong, wrong_to_right: questions that changed, None for text. touched:
    questions left out because they stood in the corpora's text, seen: those of them that stayed in the training text.
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


@dataclass(frozen=True)
class Comparison:
    """All differences between two models, text first, then tasks, and the same in plain words.

    without_touched: the rows of tasks some of whose items were found in the corpora's text, computed anew without
    those items; their verdicts are the ones to go by.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    summary: tuple[str, ...]
    without_touched: tuple[Difference, ...] = ()

    def find(self, name: str) -> Difference | None:
        """Return the first difference of this name (a corpus or a task), None when it was not scored."""
        return next((difference for difference in self.differences if difference.name == name), None)

    def clean(self, difference: Difference) -> Difference | None:
        """Return the same row without the items found in the text, None when none was found (or nothing is left)."""
        same = (row for row in self.without_touched if (row.name, row.metric) == (difference.name, difference.metric))
        return next(same, None)
