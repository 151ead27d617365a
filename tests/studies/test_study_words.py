"""How studies say what they found: headlines, numbers, and tables in a terminal of any width."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_texts import a_grid, measured, rated, the_course

from onward.reporting.content import Table
from onward.statistics import Interval
from onward.studies import StudyResult, budgets_compared, rates, remedies, side_by_side
from onward.studies.execution import Counts
from onward.studies.outcome import Outcome, change_texts
from onward.studies.view import study_view


@pytest.mark.parametrize("columns", [80, 110])
def test_the_terminal_cuts_no_number(columns: int) -> None:
    domains = side_by_side.outcome([measured("law", -0.2, 0.01), measured("health", -0.4, 0.02)], "domains")
    tuned = rates.outcome([rated(1e-4, 1024, -0.1), rated(1e-3, 1024, -0.3)])
    for found in (domains, tuned, remedies.outcome(a_grid())):
        result = StudyResult(Path("place"), found, (), Counts(), Path("place/index.html"))
        console = Console(width=columns, record=True, file=io.StringIO())
        for part in study_view(result):
            console.print(part)
        printed = console.export_text()
        assert "\N{HORIZONTAL ELLIPSIS}" not in printed
        for row in found.table.rows:
            for word in " ".join(row).split():
                assert word in printed
        assert found.findings[0].split()[-1] in printed, "and says what it means"


def test_what_is_said_of_remedies_fits_how_many_there_are() -> None:
    one = remedies.outcome([measured("none", -0.5, 0.1, "none", seeds=1)])
    assert one.figure is not None
    assert "over documents. The" in one.figure.caption
    assert "control" not in one.figure.caption
    assert one.headline.startswith("1 of 1 member is")
    assert any("among 1 row of the table one" in sentence for sentence in one.findings)
    mixed = remedies.outcome([measured("none", -0.5, 0.1, "none"), measured("half", -0.3, 0.0, "blend")])
    assert mixed.headline.startswith("2 of 2 members and blends are")
    grid = remedies.outcome(a_grid())
    assert grid.figure is not None
    assert "over documents and seeds" in grid.figure.caption
    assert "the control, a square, is no remedy" in grid.figure.caption


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1590.0, "+1,590"),
        (-12345.6, "\N{MINUS SIGN}12,346"),
        (1.594, "+1.59"),
        (0.00012345, "+0.000123"),
        (0.0, "0.00"),
    ],
)
def test_gains_are_written_without_exponents(value: float, said: str) -> None:
    assert budgets_compared._gain_texts(Interval(value, value, value)) == (said, f"{said} to {said}")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.00024, 0.0027, ("+0.0014", "+0.0002 to +0.0027")),
        (-0.0027, -0.00004, ("\N{MINUS SIGN}0.00140", "\N{MINUS SIGN}0.00270 to \N{MINUS SIGN}0.00004")),
        (-0.0002, 0.003, ("+0.001", "0.000 to +0.003")),
        (0.0, 0.003, ("+0.001", "0.000 to +0.003")),
    ],
)
def test_an_interval_that_excludes_zero_does_not_read_as_if_it_did_not(
    low: float, high: float, said: tuple[str, str]
) -> None:
    assert change_texts(Interval(0.0014 if high > 0 else -0.0014, low, high)) == said


def test_findings_on_tokens_hold_no_markup() -> None:
    assert "`" not in " ".join(the_course([-0.1, -0.2, -0.4, -0.42]).findings)


def test_rates_say_what_the_best_did_to_general_text() -> None:
    found = rates.outcome([rated(1e-4, 1024, -0.1), rated(1e-3, 1024, -0.3)])
    assert found.findings[0].startswith("General text changes by ")
    assert found.findings[0].endswith("at the best: not distinguishable from before.")


@pytest.mark.parametrize("members", [2, 7])
def test_a_narrow_terminal_breaks_no_name_and_no_word(members: int) -> None:
    headers = ("member", "domain", "95 % interval", "seeds", "front")
    rows = tuple(
        (f"ewc-{n}", "+0.001", "+0.000 to +0.001", "1", "not distinguishable from none") for n in range(members)
    )
    result = StudyResult(Path("place"), None, (), Counts(), Path("place/index.html"))
    outcome = Outcome("", (), Table("A caption", headers, (False, True, True, True, False), rows), (), None)
    for columns in range(40, 110):
        console = Console(width=columns, record=True, file=io.StringIO())
        console.print(list(study_view(replace(result, outcome=outcome)))[1])  # the table
        printed = console.export_text()
        for word in (*" ".join(map(" ".join, rows)).split(), *" ".join(headers).split()):
            assert word in printed, (columns, word)


@pytest.mark.parametrize(("members", "named"), [(5, True), (6, False)])
def test_a_headline_names_few_members_and_counts_many(members: int, named: bool) -> None:
    along = [measured(f"replay-{n}", -0.1 * n, 0.01 * n, "replay") for n in range(1, members + 1)]
    found = remedies.outcome(along)
    assert found.headline.startswith(f"{members} of {members} members are on the Pareto front")
    assert ("replay-3" in found.headline) == named
    assert "replay-3" in " ".join(found.findings)
