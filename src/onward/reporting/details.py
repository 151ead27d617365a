"""What stands behind the before/after table: scores above chance, picked letters, held-out text by source."""

from collections.abc import Sequence
from dataclasses import dataclass

from onward.analysis import Comparison
from onward.analysis.wording import adjusted_text, change_text, p_text, percent, title, values_text
from onward.reporting.content import Table

_SHOWN_SOURCES = 20


@dataclass(frozen=True)
class Labelled:
    """A comparison with the base, and what the other side is called in a column."""

    label: str
    comparison: Comparison


def detail_tables(compared: Sequence[Labelled], base: str = "base") -> tuple[Table, ...]:
    """Return the tables behind comparisons with one base; those of which there is something to say."""
    if not compared:
        return ()
    tables = [_above_chance(compared, base), *_letters(compared, base), *_sources(compared[-1])]
    return tuple(table for table in tables if table is not None)


def _above_chance(compared: Sequence[Labelled], base: str) -> Table | None:
    """One row a measure: what guessing scores, then every model where guessing is 0 and all right is 100."""
    rows = []
    for first in compared[0].comparison.differences:
        same = [
            adjusted_text(row)
            for one in compared
            for row in one.comparison.differences
            if (row.name, row.metric) == (first.name, first.metric)
        ]
        scores = [text for text in same if text is not None]
        if first.chance is not None and len(scores) == len(compared):
            after = (score[1] for score in scores)
            rows.append((title(first.name), first.metric, percent(first.chance), scores[0][0], *after))
    if not rows:
        return None
    headers = ("measure", "metric", "guessing scores", base, *(one.label for one in compared))
    numeric = (False, False, *(True for _ in headers[2:]))
    return Table("Scores above chance: guessing is 0, all right is 100", headers, numeric, tuple(rows))


def _letters(compared: Sequence[Labelled], base: str) -> list[Table]:
    """One table a task: how often each option is right, and how often each model picks it."""
    tables = []
    for first in compared[0].comparison.letters:
        rows = [("right answers", *_shares(first.gold), "")]
        rows.append((base, *_shares(first.before), percent(first.constant_before)))
        for one in compared:
            same = (found for found in one.comparison.letters if found.task == first.task)
            rows += [(one.label, *_shares(found.after), percent(found.constant_after)) for found in same]
        headers = ("", *first.options, "always its favourite would score")
        numeric = (False, *(True for _ in headers[1:]))
        tables.append(Table(f"{title(first.task)}: which option is picked", headers, numeric, tuple(rows)))
    return tables


def _shares(counts: Sequence[int]) -> tuple[str, ...]:
    return tuple(percent(count / sum(counts)) for count in counts)


def _sources(last: Labelled) -> list[Table]:
    """Held-out text by source, of the last model alone; the sources with most documents first."""
    tables = []
    for name in dict.fromkeys(row.name for row in last.comparison.sources):
        sources = sorted((row for row in last.comparison.sources if row.name == name), key=lambda row: -row.items)
        rows = []
        for row in sources[:_SHOWN_SOURCES]:
            p_value = "" if row.p_adjusted is None else p_text(row.p_adjusted)
            values = (*values_text(row), *change_text(row), p_value)
            rows.append((row.source or "", f"{row.items:,}", *values, row.verdict))
        more = f", the {_SHOWN_SOURCES} largest of {len(sources):,}" if len(sources) > _SHOWN_SOURCES else ""
        caption = f"{title(name)} by source in bits per byte, {last.label}{more}"
        headers = ("source", "documents", "before", "after", "change", "95 % interval", "p (Holm)", "verdict")
        numeric = (False, *(True for _ in headers[1:-1]), False)
        tables.append(Table(caption, headers, numeric, tuple(rows), verdict=len(headers) - 1))
    return tables
