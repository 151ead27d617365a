"""The before/after table as rows of text, for the terminal and the page alike."""

from dataclasses import dataclass

from onward.analysis import Comparison, Difference
from onward.analysis.wording import change_text, p_text, title, values_text


@dataclass(frozen=True)
class SummaryRow:
    """One difference as text: measure, metric, both values, the change with its 95 % interval, verdict.

    p_value: after Holm; flips: items that became right / wrong, empty where nothing is right or wrong.
    """

    measure: str
    metric: str
    before: str
    after: str
    change: str
    interval: str
    p_value: str
    items: str
    flips: str
    verdict: str

    @property
    def name(self) -> str:
        """Measure and metric in one: `ARC easy, acc_norm`."""
        return f"{self.measure}, {self.metric}"


@dataclass(frozen=True)
class StageSummary:
    """The rows of one stage under their title."""

    title: str
    rows: tuple[SummaryRow, ...]


def summary_rows(comparison: Comparison) -> tuple[SummaryRow, ...]:
    """Return the differences of a comparison as rows of text: held-out text first, then tasks.

    Below a task some of whose items were found in the text stands the same without those.
    """
    pairs = ((difference, comparison.clean(difference)) for difference in comparison.differences)
    return tuple(_row(difference) for pair in pairs for difference in pair if difference is not None)


def _row(difference: Difference) -> SummaryRow:
    before, after = values_text(difference)
    change, interval = change_text(difference)
    flips = ""
    if difference.wrong_to_right is not None:
        flips = f"{difference.wrong_to_right:,} / {difference.right_to_wrong:,}"
    p_value = "" if difference.p_adjusted is None else p_text(difference.p_adjusted)
    values = (before, after, change, interval, p_value, f"{difference.items:,}", flips)
    measure = title(difference.name)
    if difference.touched:
        measure += f" without {difference.touched:,} found"
    return SummaryRow(measure, difference.metric, *values, difference.verdict)
