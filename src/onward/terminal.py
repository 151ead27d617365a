"""What a person sees while and after a run: a live line, the closing tables, an error."""

import os
import sys
import time
from math import isnan
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import ConsoleOptions, RenderResult
    from rich.table import Table

    from onward.analysis import Comparisons
    from onward.analysis.blending import Blending
    from onward.corpus.inspected import Inspection
    from onward.corpus.ledger import Ledger
    from onward.errors import UserError
    from onward.evaluation.scores import Scores
    from onward.plan import Foresight
    from onward.reporting.summary import SummaryRow
    from onward.studies import StudyResult
    from onward.verification import Verification

_LINE_SECONDS = 20.0
"""Without a terminal (a log file, CI) a line is written this often."""
_FILE_COLUMNS = 110
"""Width of tables in a file or a pipe, where the variable COLUMNS does not say another."""
_NAME_COLUMNS, _VERDICT_COLUMNS = 12, 15
"""The least width of what is compared (`MMLU, acc_norm` in two lines), and of a verdict (`distinguishable`)."""
_ONE_LINE_COLUMNS = 68
"""What a bar with a long title, its percentage and the time left take."""


class _TimeLeft(ProgressColumn):
    """The time a step still takes, once it can be told."""

    def render(self, task: Task) -> Text:
        from onward.recipe import format_seconds

        seconds = task.time_remaining
        return Text("" if seconds is None or task.finished else f"{format_seconds(seconds)} left")


class _Bar(Progress):
    """A bar with the step's facts behind it, or below it where the terminal has no room for both."""

    def get_renderables(self) -> "Iterable[RenderableType]":
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["below"]:
                yield Text(f"  {task.fields['below']}", overflow="fold")


class _FirstThatFits:
    """The first of some tables whose least width there is room for, else the last."""

    def __init__(self, *tables: "Table") -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: "ConsoleOptions") -> "RenderResult":
        unbounded = options.update(max_width=10_000)  # else no table would be told to need more than there is
        least = ((Measurement.get(console, unbounded, table).minimum, table) for table in self._tables)
        yield next((table for width, table in least if width <= options.max_width), self._tables[-1])


class Terminal:
    """The command line's Progress: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._total, self._unit = "", None, ""  # type: str, int | None, str
        self._done, self._facts, self._started, self._printed = 0, "", 0.0, 0.0
        self._first: tuple[int, float] | None = None
        self._is_closed = False

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Close the step before, if any, and open the line of this one."""
        self.end()
        self._title, self._total, self._unit = title, total, unit
        self._done, self._facts, self._started = 0, "", time.monotonic()
        self._printed = self._started
        self._first = None
        if self.console.is_terminal:
            self._bar = _Bar(
                TextColumn("{task.description:<16}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%" if total else "{task.completed:,} {task.fields[unit]}"),
                _TimeLeft(),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, facts="", below="", unit=unit)

    def advance(self, done: int, facts: str = "") -> None:
        """Move the bar; without a terminal write a line now and then."""
        if self._is_closed:
            if self._total is not None and done >= self._total:
                return
            started = self._started  # it goes on: a roll-back at the last step, say
            self.begin(self._title, self._total, self._unit)
            self._started = started
        self._done, self._facts = done, facts
        self._first = self._first or (done, time.monotonic())
        if self._bar is not None and self._task is not None:
            behind = len(facts) <= self.console.width - _ONE_LINE_COLUMNS
            beside, below = (facts, "") if behind else ("", facts)
            self._bar.update(self._task, completed=done, facts=beside, below=below)
        elif time.monotonic() - self._printed > _LINE_SECONDS and done != self._total:
            self._printed = time.monotonic()
            self.console.print(f"{self._line()}{self._left()}", soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """Write a line above the bar; after the closing line of a step that has all its units."""
        if self._total is not None and self._done >= self._total:
            self._close()
        self.console.print(f"  {text}", soft_wrap=True, markup=False)

    def end(self) -> None:
        """Close the open step with a line that says how it went."""
        self._close()
        self._title, self._is_closed = "", False

    def _close(self) -> None:
        """Write the closing line, once, and take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._title and not self._is_closed:
            from onward.recipe import format_seconds

            took = format_seconds(time.monotonic() - self._started)
            self.console.print(f"{self._line()}  in {took}", soft_wrap=True, markup=False)
        self._is_closed = True

    def _left(self) -> str:
        """Say how long the step still takes at its speed so far, what was done before it began left out."""
        from onward.recipe import format_seconds

        if self._total is None or self._first is None or not self._first[0] < self._done < self._total:
            return ""
        done, began = self._first
        seconds = (time.monotonic() - began) * (self._total - self._done) / (self._done - done)
        return f"  {format_seconds(seconds)} left"

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
    _print_results(_summary_table(rows, title))


def _summary_table(rows: "tuple[SummaryRow, ...]", title: str) -> "RenderableType":
    """Return the table, with p where there is room for it; names and verdicts may take several lines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    numbers = {
        "before": [row.before for row in rows],
        "after": [row.after for row in rows],
        "change": [row.change for row in rows],
        "95 % interval": [row.interval for row in rows],
        "p (Holm)": [row.p_value for row in rows],
    }

    def table(*columns: str, is_least: bool = False) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        made.add_column("", overflow="fold", min_width=_NAME_COLUMNS)
        for column in columns:
            width = None if is_least else max(map(len, numbers[column]), default=0)
            made.add_column(column, justify="right", overflow="fold", min_width=width, no_wrap=not is_least)
        made.add_column("", overflow="fold", min_width=_VERDICT_COLUMNS)
        for place, row in enumerate(rows):
            made.add_row(row.name, *(numbers[column][place] for column in columns), row.verdict)
        return made

    without_p = tuple(numbers)[:-1]
    return _FirstThatFits(table(*numbers), table(*without_p), table(*without_p, is_least=True))


def print_scores(scores: "Sequence[tuple[str, Scores]]", as_json: bool) -> None:
    """Print the scores of models, each under its name; intervals in brackets, standard errors after the sign."""
    if as_json:
        import json

        from onward.evaluation.scores import scores_as_json

        print(json.dumps({name: scores_as_json(score) for name, score in scores}, ensure_ascii=False))
        return
    for name, score in scores:
        print(name)
        for text in score.held_out:
            print(f"  {text.corpus:<18} {text.bits_per_byte:.4f} bits per byte {_interval(text.low, text.high)}")
            for source in text.sources:
                numbers = f"{source.bits_per_byte:.4f} {_interval(source.low, source.high)}"
                print(f"    {source.source}: {numbers}, {source.documents:,} documents")
        for task in score.tasks:
            errors = (None if m.stderr is None or isnan(m.stderr) else f" ± {m.stderr:.4f}" for m in task.measures)
            values = [f"{m.name} {m.value:.4f}{error or ''}" for m, error in zip(task.measures, errors, strict=True)]
            chance = "" if task.chance is None else f", chance {task.chance:.4f}"
            cut = f", {task.truncated:,} with a context too long for the model" if task.truncated else ""
            print(f"  {task.task:<18} {', '.join(values)} ({task.items:,} items{chance}{cut})")


def _interval(low: float, high: float) -> str:
    return "(one document has no interval)" if isnan(low) else f"[{low:.4f}, {high:.4f}]"


def print_comparisons(comparisons: "Comparisons") -> None:
    """Print what became of each model in comparison with the first, then of all of them pooled where asked for."""
    from onward.analysis.wording import below_text, title
    from onward.reporting.summary import summary_rows

    for comparison in comparisons.tables:
        print_summary(summary_rows(comparison), f"{comparison.before} (before) and {comparison.after} (after)")
        for row in comparison.differences:
            if (low := below_text(row)) is not None:
                _print_results(Text(f"{title(row.name)}, {row.metric}: {low}"))
    _print_results(
        Text("p after Holm, items and how many changed, letters picked, text by source: in the table named below")
    )


def print_blending(found: "Blending") -> None:
    """Print the line of blends, what was chosen, and how it compares on the test part."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from onward.reporting.blends import blend_table, task_table
    from onward.reporting.summary import summary_rows

    for content in (blend_table(found), task_table(found)):
        if content is None:
            continue
        table = Table(title=content.caption, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for head, is_number in zip(content.headers, content.numeric, strict=True):
            table.add_column(head, justify="right" if is_number else "left", no_wrap=not is_number)
        for row in content.rows:
            table.add_row(*row)
        _print_results(table)
    _print_results(*map(Text, found.chosen_by))
    for comparison in found.comparisons:
        title = f"Test part: {comparison.before} (before) and {comparison.after} (after)"
        print_summary(summary_rows(comparison), title)


def print_ledger(label: str, ledger: "Ledger") -> None:
    """Print a corpus's ledger: every document accounted for."""
    from onward.reporting.console import ledger_view

    _print_results(ledger_view(f"{label} corpus", ledger))


def print_inspection(name: str, inspection: "Inspection") -> None:
    """Print what an inspection of a corpus found; readable from 80 columns on."""
    from onward.reporting.console import inspection_view

    for part in inspection_view(name, inspection):
        _print_results(part, "")


def print_plan(foresight: "Foresight") -> None:
    """Print what a run will need."""
    from onward.plan.view import plan_view

    for part in plan_view(foresight):
        _print_results(part, "")


def print_verification(found: "Verification") -> None:
    """Print how an interrupted training compares with one in peace."""
    from onward.verification.view import verification_view

    for part in verification_view(found):
        _print_results(part)


def print_study(result: "StudyResult") -> None:
    """Print what a study found: its table, its findings, what was made and reused, where the files are."""
    from onward.studies.view import study_view

    for part in study_view(result):
        _print_results(part)


def _print_results(*parts: "RenderableType") -> None:
    """Print to standard output, where results go; in a file or a pipe lines end with their last letter."""
    columns = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() or (columns.isdecimal() and int(columns)) else _FILE_COLUMNS
    console = Console(highlight=False, width=width)
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))
    sys.stdout.flush()
