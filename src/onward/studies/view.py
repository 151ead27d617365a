"""What a study found, for a terminal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onward.errors import in_a_line
from onward.reporting import content
from onward.reporting.console import screened
from onward.studies.outcome import INTERVAL
from onward.studies.study import StudyResult
from onward.studies.writing import nothing_words


def study_view(result: StudyResult) -> Iterator[RenderableType]:
    """Yield headline, table, findings, failures, counts and places."""
    outcome = result.outcome
    if outcome is None:
        yield Text(nothing_words(result.folder), style="bold")
    else:
        yield Text(screened(outcome.headline), style="bold")
        yield _Fitting(outcome.table)
        yield Text(screened(" ".join(outcome.findings)))
        for name, words in outcome.points:
            yield Padding(Text.assemble("- ", (screened(name), "bold"), f": {screened(words)}"), (0, 0, 0, 2))
    for failure in result.failures:
        words = screened(in_a_line(failure.message))
        yield Text(f"not made: {failure.member}: {words} ({failure.traceback})", style="red")
    yield Text(result.counts.words())
    yield Text(f"study: {result.page}", overflow="fold")


@dataclass(frozen=True)
class _Fitting:
    """A table as it fits the terminal: upright, else on its side, else a line for each cell."""

    table: content.Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the first form whose numbers are not cut."""
        for form in (self._upright(), self._on_its_side()):
            # Columns keep the width of their longest word, so what does not fit is too wide as a whole.
            drawn = "".join(segment.text for segment in console.render(form, options))
            if max(map(cell_len, drawn.splitlines())) <= options.max_width:
                yield form
                return
        yield Text(screened(self.table.caption))
        for row in self.table.rows:
            cells = zip(self.table.headers, row, strict=True)
            yield Text("  ".join(screened(f"{header} {cell}".strip()) for header, cell in cells if cell))

    def _upright(self) -> Table:
        form = self._opened()
        for place, (header, numeric) in enumerate(zip(self.table.headers, self.table.numeric, strict=True)):
            # Numbers stay whole under headings of a word a line; intervals and words may take several lines.
            whole = numeric and header != INTERVAL
            named = header.replace(" ", "\n") if whole else header
            # Else a narrow column cuts words: `ewc-` over `5`, `distinguis`.
            cells = [row[place] for row in self.table.rows]
            least = max(_longest_word([named]), max(map(len, cells), default=0) if whole else _longest_word(cells))
            form.add_column(named, justify="right" if numeric else "left", no_wrap=whole, min_width=least)
        for row in self.table.rows:
            form.add_row(*(Text(screened(cell)) for cell in row))
        return form

    def _on_its_side(self) -> Table:
        """A column for each row: for few members with many figures."""
        form = self._opened()
        form.add_column(self.table.headers[0], min_width=_longest_word(self.table.headers))
        for row in self.table.rows:
            numbers = [len(cell) for cell, numeric in zip(row, self.table.numeric, strict=True) if numeric]
            least = max([len(row[0]), *numbers, _longest_word(row)])
            form.add_column(screened(row[0]), justify="right", min_width=least)
        for place, header in enumerate(self.table.headers[1:], start=1):
            form.add_row(header, *(Text(screened(row[place])) for row in self.table.rows))
        return form

    def _opened(self) -> Table:
        return Table(title=screened(self.table.caption), title_justify="left", box=box.SIMPLE_HEAD)


def _longest_word(cells: Iterable[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split()), default=0)
