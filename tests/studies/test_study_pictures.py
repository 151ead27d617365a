"""The pictures of the studies: which marks and labels they hold, and where these stand."""

import re
from math import hypot

import pytest
from synthetic_texts import a_grid, the_course

from onward.reporting.figures import NARROW, WIDE
from onward.statistics import Interval
from onward.studies import pilot, remedies
from onward.studies.plots import Point, Row, plane_figure, rows_figure

WIDEST = 6.5
"""Pixels of a character of a label in DejaVu Sans Bold at 11.5 px, on the average of such names."""


def labels(picture: str) -> list[tuple[float, float, str]]:
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="(?:note|name)[^>]*>([^<]*)</text>', picture)
    return [(float(x), float(y), words) for x, y, words in found]


def test_the_control_is_a_square_with_its_name_on_narrow_screens_too() -> None:
    figure = remedies.outcome(a_grid()).figure
    assert figure is not None
    for picture in (figure.wide, figure.narrow):
        assert picture.count('<rect x="') == 1
        assert picture.count("<circle") == len(a_grid()) - 1
        assert "control" in [words for _, _, words in labels(picture)]


@pytest.mark.parametrize("above", [4, 8, 12])
def test_a_label_is_nearest_to_its_own_point_or_a_line_leads_there(above: int) -> None:
    places = {"blended 25 % of no remedy": (300, 200), "replay 1 %": (300, 200 + above), "EWC 1": (600, 400)}
    points = []
    for name, place in places.items():
        gain, loss = (Interval(value, value - 9, value + 9) for value in place)
        points.append(Point(name, gain, loss, "front", True))
    drawn = plane_figure(points, "A plane.").wide
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    led = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)"[^>]*class="leader"', drawn)
    named = {words: (x, y - 4) for x, y, words in labels(drawn)}
    for name, own in zip(places, marks, strict=True):
        x, y = named[name]
        half = len(name) * WIDEST / 2
        far = {mark: hypot(max(0, abs(x - float(mark[0])) - half), y - float(mark[1])) for mark in marks}
        assert far[own] == min(far.values()) or own in led, name


def test_names_of_courses_are_not_cut() -> None:
    figure = the_course([-0.1, -0.2, -0.3]).figure
    assert figure is not None
    for picture, width in ((figure.wide, WIDE), (figure.narrow, NARROW)):
        named = labels(picture)
        assert named
        assert all(x + len(words) * WIDEST < width for x, _, words in named)


def test_values_that_are_no_changes_have_no_sign_and_no_sides() -> None:
    rows = [Row(name, "", Interval(value, value - 0.2, value + 0.2), "", "") for name, value in (("a", 3.5), ("b", 1))]
    changes = rows_figure(rows, "Changes.", ("easier", "harder"), "bits per byte")
    values = rows_figure(rows, "Values.", None, "bits per byte")
    assert ">+2<" in changes.wide
    assert "\N{LEFTWARDS ARROW} easier" in changes.wide
    assert not re.search("[+\N{LEFTWARDS ARROW}\N{RIGHTWARDS ARROW}]", values.wide + values.narrow)
    assert ">2<" in values.wide


def test_no_line_runs_through_a_name_on_a_narrow_screen() -> None:
    rows = [Row(name, "", Interval(value, value - 0.2, value + 0.2), "", "") for name, value in (("a", 3.5), ("b", 1))]
    for sides in (None, ("easier", "harder")):
        drawn = rows_figure(rows, "Rows.", sides, "bits per byte").narrow
        lines = re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)" class="(?:zero|grid)"', drawn)
        assert lines
        for _, baseline, _ in labels(drawn):
            assert not any(float(top) < baseline and float(bottom) > baseline - 9 for top, bottom in lines)


def test_a_pilots_mark_stands_at_what_was_trained() -> None:
    rows = [
        {"tokens": 4096 * n, "loss_nats": 5 - n / 8, "learning_rate": 1e-3, "labelled_tokens": 4096}
        for n in range(1, 9)
    ]
    figure = pilot._figure(rows)
    assert figure is not None
    assert "stage 1 · 32.8k<" in figure.wide
