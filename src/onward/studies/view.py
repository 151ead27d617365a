"""What a study found, for a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onward.reporting.console import screened
from onward.studies.study import StudyResult


def study_view(result: StudyResult) -> Iterator[RenderableType]:
    """Yield headline, table, findings, failures, counts and places."""
    outcome = result.outcome
    if outcome is None:
        yield Text("No member was made.", style="bold")
    else:
        yield Text(screened(outcome.headline), style="bold")
        table = Table(title=screened(outcome.table.caption), title_justify="left", box=box.SIMPLE_HEAD)
        for header, numeric in zip(outcome.table.headers, outcome.table.numeric, strict=True):
            table.add_column(header, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
        for row in outcome.table.rows:
            table.add_row(*(Text(screened(cell)) for cell in row))
        yield table
        yield Text(screened(" ".join(outcome.findings)))
    for failure in result.failures:
        yield Text(
            f"not made: {failure.member}: {screened(failure.message.splitlines()[0])} ({failure.traceback})",
            style="red",
        )
    yield Text(result.counts.words())
    yield Text(f"study: {result.page}", overflow="fold")
