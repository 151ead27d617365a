"""What a person sees while and after a run: a live line, the closing table, an error."""

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from onward.corpus.ledger import Ledger
    from onward.errors import UserError
    from onward.reporting.summary import SummaryRow

_LINE_SECONDS = 20.0
"""Without a terminal (a log file, CI) a line is written this often."""


class Terminal:
    """The command line's Progress: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._total, self._unit = "", None, ""  # type: str, int | None, str
        self._done, self._facts, self._started, self._printed = 0, "", 0.0, 0.0

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Close the step before, if any, and open the line of this one."""
        self.end()
        self._title, self._total, self._unit = title, total, unit
        self._done, self._facts, self._started = 0, "", time.monotonic()
        self._printed = self._started
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<16}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%" if total else "{task.completed:,}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, facts="")

    def advance(self, done: int, facts: str = "") -> None:
        """Move the bar; without a terminal write a line now and then."""
        self._done, self._facts = done, facts
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, facts=facts)
        elif time.monotonic() - self._printed > _LINE_SECONDS and done != self._total:
            self._printed = time.monotonic()
            self.console.print(self._line(), soft_wrap=True)

    def note(self, text: str) -> None:
        """Write a line above the bar."""
        self.console.print(f"  {text}", soft_wrap=True, markup=False)

    def end(self) -> None:
        """Close the open step with a line that says how it went."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._title:
            from onward.recipe import format_seconds

            took = format_seconds(time.monotonic() - self._started)
            self.console.print(f"{self._line()}  in {took}", soft_wrap=True, markup=False)
            self._title = ""

    def _line(self) -> str:
        of = f" of {self._total:,}" if self._total and self._total != self._done else ""
        return f"{self._title:<16} {self._done:,}{of} {self._unit}  {self._facts}".rstrip()


def print_error(error: "UserError") -> None:
    """Write a user's error: what, where, got, expected, what to do."""
    console = Console(stderr=True, highlight=False)
    console.print("error: ", style="bold red", end="")
    console.print(str(error), markup=False, soft_wrap=True)


def print_summary(rows: "tuple[SummaryRow, ...]", title: str) -> None:
    """Print the before/after table to standard output."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "change", "95 % interval", ""):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.before, row.after, row.change, row.interval, row.verdict)
    width = None if sys.stdout.isatty() else 110
    Console(highlight=False, width=width).print(table)


def print_ledger(label: str, ledger: "Ledger") -> None:
    """Print a corpus's ledger: every document accounted for."""
    from rich.table import Table

    table = Table(title=f"{label} corpus", title_justify="left")
    table.add_column("")
    for column in ("documents", "bytes"):
        table.add_column(column, justify="right")
    for end, documents, size in ledger.rows():
        table.add_row(end, f"{documents:,}", f"{size:,}")
    table.caption = (
        f"{ledger.kept_tokens:,} tokens in {ledger.sequences:,} sequences of {ledger.sequence_tokens:,}, "
        f"{ledger.padding_tokens:,} places padded, {ledger.cut_tokens:,} tokens cut off"
    )
    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table)
