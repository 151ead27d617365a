"""The pictures of the studies: which marks and labels they hold, and where these stand."""

import re
from itertools import pairwise
from math import cos, hypot, nan, pi, sin

import pytest
from synthetic_texts import a_grid, the_course

from onward.reporting.figures import NARROW, WIDE
from onward.statistics import Interval
from onward.studies import pilot, remedies
from onward.studies.plots import CONTROL, Course, Point, Row, courses_figure, plane_figure, rows_figure

WIDEST = 6.5
"""Pixels of a character of a label in DejaVu Sans Bold at 11.5 px, on the average of such names."""


def labels(picture: str) -> list[tuple[float, float, str]]:
    return [(x, y, words) for x, y, kind, _, words in texts(picture) if kind.split()[0] in ("note", "name")]


def texts(picture: str) -> list[tuple[float, float, str, str, str]]:
    """Place, kind, anchor and words of every text."""
    pattern = r'<text x="([-\d.]+)" y="([\d.]+)" class="([^"]*)" text-anchor="(\w+)">(?:<title>[^<]*</title>)?([^<]*)<'
    return [(float(x), float(y), *others) for x, y, *others in re.findall(pattern, picture)]


def ends(x: float, anchor: str, words: str) -> tuple[float, float]:
    """Left and right of a text."""
    width = len(words) * WIDEST
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return left, left + width


def around(value: float, reach: float = 0.01) -> Interval:
    return Interval(value, value - reach, value + reach)


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


LONG = "/data/models/continued-pretraining-of-the-law/2026-11-21/the-final-model"


@pytest.mark.parametrize("name", ["law", "HuggingFaceTB/SmolLM2-135M-Instruct", LONG])
def test_a_name_ends_before_what_stands_beside_it(name: str) -> None:
    rows = [Row(name, part, around(-0.5), "-0.500 (-0.510 to -0.490)", "gained") for part in ("domain", "general")]
    drawn = rows_figure([*rows, Row("a", "domain", around(0.2), "", "lost")], "Rows.", ("easier", "harder"), "bits")
    for picture in (drawn.wide, drawn.narrow):
        by_line: dict[float, list[tuple[float, float]]] = {}
        for x, y, _, anchor, words in texts(picture):
            by_line.setdefault(y, []).append(ends(x, anchor, words))
        for stretches in by_line.values():
            assert all(a[1] <= b[0] for a, b in pairwise(sorted(stretches)))
            assert all(left >= 0 and right <= WIDE for left, right in stretches)
        assert f">{name}<" in picture or f">{name}, domain<" in picture  # in the title, where it is shortened
    names = {y: ends(x, "start", words)[1] for x, y, words in labels(drawn.wide)}
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn.wide)
    assert all(float(x) > names.get(float(y) + 4, 0) for x, y in marks)
    assert name == LONG or name in [words for _, _, words in labels(drawn.wide)], "there is room for the usual ones"


def test_ticks_of_small_values_are_not_cut() -> None:
    rows = [Row(name, "", around(value, 1e-6), "", "") for name, value in (("a", -5e-6), ("b", 1e-6))]
    points = [Point(row.name, row.value, row.value, "front", True) for row in rows]
    figures = [rows_figure(rows, "Rows.", ("easier", "harder"), "bits"), plane_figure(points, "Plane.")]
    for figure in figures:
        for picture, width in ((figure.wide, WIDE), (figure.narrow, NARROW)):
            at = [ends(x, anchor, words) for x, _, kind, anchor, words in texts(picture) if kind == "tick" and words]
            assert len(at) > 2
            assert all(left >= 0 and right <= width for left, right in at)


@pytest.mark.parametrize("apart", [(0, 0), (4e-3, 0), (0, 3e-3), (-2e-3, 1e-3)])
def test_a_control_does_not_hide_the_front(apart: tuple[float, float]) -> None:
    points = [
        Point("none", around(0.5), around(0.1), "front", True),
        Point("EWC 1", around(0.5), around(0.1), "behind", False),
        Point("control", around(0.5 + apart[0]), around(0.1 + apart[1]), CONTROL, False),
        Point("replay", around(0.3), around(0.0), "front", True),
    ]
    figure = plane_figure(points, "Plane.")
    for picture in (figure.wide, figure.narrow):
        marks = re.findall(r'<title>([^<]*)</title><(?:circle|rect)[^>]*class="mark', picture)
        assert marks == ["control", "EWC 1", "none", "replay"]
        # At the same place a square is seen behind the round mark.
        assert 'width="10.0" height="10.0"' in picture


@pytest.mark.parametrize("turn", range(8))
def test_names_of_marks_that_meet_stand_on_the_sides_of_their_own(turn: int) -> None:
    # Half a mark apart, in every direction; two others set the ends of the axes.
    across, up = 2e-3 * cos(turn * pi / 4), 1e-3 * sin(turn * pi / 4)
    points = [
        Point("none", around(0.5), around(0.1), "front", True),
        Point("control", around(0.5 + across), around(0.1 + up), CONTROL, False),
        Point("first", around(1.0), around(0.3), "front", True),
    ]
    drawn = plane_figure(points, "Plane.").wide
    control, none, _ = re.findall(r'<(?:circle c|rect )x="([\d.]+)" c?y="([\d.]+)"[^>]*class="mark', drawn)
    places = {"none": (float(none[0]), float(none[1])), "control": (float(control[0]) + 5, float(control[1]) + 5)}
    for x, y, name in labels(drawn):
        if name in places:
            half = len(name) * WIDEST / 2
            far = {other: hypot(max(0, abs(x - px) - half), y - 4 - py) for other, (px, py) in places.items()}
            assert far[name] < min(far.values()) + 0.5


def test_a_long_name_has_a_label_beside_its_point() -> None:
    points = [
        Point(name, around(gain), around(0.1 * gain), "front", True)
        for name, gain in ((LONG, 0.2), (f"blended 50 % of {LONG}", 0.3), ("x", 0.4))
    ]
    figure = plane_figure(points, "Plane.")
    for picture in (figure.wide, figure.narrow):
        assert len(labels(picture)) == 3
        assert all(f"<title>{point.name}</title>" in picture for point in points)


def line_of(end: float, name: str = "batch") -> Course:
    return Course(name, tuple((1e6 * 2**n, around(end * n / 4)) for n in range(5)))


@pytest.mark.parametrize("count", [2, 5, 7, 16])
def test_courses_can_be_told_apart_without_colours(count: int) -> None:
    figure = courses_figure([line_of(-0.1 * n) for n in range(1, count + 1)], "Courses.", "tokens", is_tokens=True)
    for picture in (figure.wide, figure.narrow):
        looks = []
        for after in re.split(r'(?=<path [^>]*class="course )', picture)[1:]:
            dash = re.search(r"dash-\d", after)
            shape = re.search(r'<(circle|polygon)(?: points="([^"]*)")?[^>]*class="dot', after)
            assert dash
            assert shape
            corners = [tuple(map(float, corner.split(","))) for corner in shape[2].split()] if shape[2] else []
            form = tuple((round(x - corners[0][0]), round(y - corners[0][1])) for x, y in corners)
            looks.append((dash[0], form))
        assert len(looks) == 2 * count, "each line, and a piece of it before its name"
        assert len(set(looks)) == count


@pytest.mark.parametrize("last", [0.3, -0.3])
@pytest.mark.parametrize("count", [2, 7, 30])
def test_names_of_courses_that_end_together_stand_within_the_plot(count: int, last: float) -> None:
    courses = [line_of(last + 0.001 * n, f"batch {n}") for n in range(count)]
    figure = courses_figure(courses, "Courses.", "tokens", is_tokens=True)
    for picture in (figure.wide, figure.narrow):
        found = labels(picture)
        axis = min(y for _, y, kind, anchor, _ in texts(picture) if (kind, anchor) == ("tick", "middle"))
        assert [words for _, _, words in found] == [course.name for course in courses]
        heights = sorted(y for _, y, _ in found)
        assert all(b - a > 14.9 for a, b in pairwise(heights))
        assert heights[0] >= 34
        assert heights[-1] < axis - 10
        ordered = [words for _, _, words in sorted(found, key=lambda label: label[1], reverse=True)]
        assert ordered == [words for _, _, words in found], "in the order of the ends"


def test_labels_stand_around_what_they_name_and_a_line_leads_there() -> None:
    others = [line_of(-0.2 + 0.001 * n) for n in range(3)]
    figure = courses_figure([line_of(0.3), *others, line_of(-0.6)], "Courses.", "tokens", is_tokens=True)
    baselines = [y for _, y, _ in labels(figure.wide)]
    last = [
        tuple(map(float, found)) for found in re.findall(r'd="M[^"]* L([\d.]+) ([\d.]+)" class="course', figure.wide)
    ]
    middles = [y for _, y in last[1::2]]
    assert baselines == [pytest.approx(y + 4, abs=0.11) for y in middles]
    own = [y for _, y in last[0::2]]
    assert sum(middles[1:4]) == pytest.approx(sum(own[1:4]), abs=0.5)
    assert middles[0] == pytest.approx(own[0], abs=0.1)
    assert middles[4] == pytest.approx(own[4], abs=0.1)
    assert figure.wide.count('class="leader"') == 2, "the middle one of the three stands beside its end"


def test_a_course_that_ends_early_is_led_to_its_name() -> None:
    short = Course("failed later", line_of(-0.2).points[:3])
    figure = courses_figure([line_of(-0.4), short], "Courses.", "tokens", is_tokens=True)
    for picture in (figure.wide, figure.narrow):
        assert picture.count('class="leader"') == 1


def test_rates_below_the_axis_do_not_meet() -> None:
    points = tuple((1e-4 * 2**n, Interval(-0.1, nan, nan)) for n in range(7))
    figure = courses_figure([Course("batch 64k", points)], "Courses.", "peak learning rate", is_tokens=False)
    for picture in (figure.wide, figure.narrow):
        at = [
            ends(x, anchor, words)
            for x, _, kind, anchor, words in texts(picture)
            if (kind, anchor) == ("tick", "middle")
        ]
        assert len(at) > 2
        assert all(a[1] < b[0] for a, b in pairwise(at))
        steps = [b[0] + b[1] - a[0] - a[1] for a, b in pairwise(at)]
        assert max(steps) - min(steps) < 1, "evenly, as the rates are"
