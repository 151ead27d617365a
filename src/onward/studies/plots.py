"""The plots of the studies as inline SVG, in a wide form and one for narrow screens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from math import cos, hypot, isfinite, log10, pi, sin
from statistics import fmean

from onward.reporting.drawing import (
    NAME,
    NOTE,
    Scale,
    circle,
    line,
    named,
    path,
    polygon,
    rectangle,
    shortened,
    svg,
    text,
    text_width,
    tick_at,
    tick_text,
    ticks,
    token_text,
)
from onward.reporting.figures import NARROW, WIDE, Figure
from onward.statistics import Interval
from onward.studies.outcome import rate_words

_LINE = 15.0
"""Height of a line of labels, in pixels: for placing, a little more than it takes."""
_TURNS = (2, 14, 6, 10, 0, 8, 1, 15, 7, 9, 3, 13, 5, 11, 4, 12)
"""Where a label may stand around its point, in sixteenths of a turn: first where no interval is drawn."""
_REACHES = (10, 14, 20, 28, 38, 50, 64, 80, 98, 118, 140, 170, 200, 240, 280)
"""How far from its point, in pixels; from some distance on a thin line leads there."""
_LED, _CLOSE, _CLEAR = 14, 50, 1.25
"""A label that is close stands where every other point is clearly farther off, else where a line leads to its own."""

_ROOM, _NARROW_ROOM = 24, 8
"""So many labels have room; for each beyond them the picture is a line higher."""
_NAMES, _MOST_NAMES = 250.0, 376.0
"""Pixels before the axis of rows: for names of usual length, and for the longest, since the marks need room too."""
_KEY, _NARROW_KEY, _SAMPLE = 50.0, 40.0, 22.0
"""Pixels from the end of an axis to the names of courses, and of the piece of its line before a name."""
_LABEL, _NARROW_LABEL = 250, 190
"""So many pixels of a label are written, the rest of a longer name is left to the pointer."""


CONTROL = "control"
"""The kind of a point that is no remedy and stands outside."""


@dataclass(frozen=True)
class Point:
    """A member in the plane: gain of the domain to the right, loss of general text upwards, both in bits per byte."""

    name: str
    gain: Interval
    loss: Interval
    kind: str
    is_front: bool

    def is_named(self, width: int) -> bool:
        """Whether a label belongs to it: on narrow screens the front and the control alone have room for theirs."""
        return width == WIDE or self.is_front or self.kind == CONTROL


_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass
class _Labels:
    """Labels that have their place within an area, so that the next one goes elsewhere; points: centres of marks."""

    area: _Box
    points: Sequence[tuple[float, float]]
    taken: list[_Box] = field(default_factory=list)

    def place(self, x: float, y: float, content: str) -> tuple[float, float] | None:
        """Return the left end of the baseline of a label near a point, None where there is no room."""
        free = [(reach, box) for reach, box in _boxes(x, y, text_width(content, NOTE)) if self._is_free(box)]
        if not free:
            return None
        own = (box for reach, box in free if reach <= _CLOSE and self._is_own(box, x, y, _CLEAR))
        led = [(reach, box) for reach, box in free if reach > _LED]
        # A line that comes from its own side of a neighbour does not run under the neighbour's mark.
        beside = (box for reach, box in led if reach <= _CLOSE and self._is_own(box, x, y, 1))
        box = next(chain(own, beside, (box for _, box in led)), free[0][1])
        self.taken.append(box)
        return box[0], box[3] - 3.5

    def _is_free(self, box: _Box) -> bool:
        left, top, right, bottom = self.area
        inside = box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom
        return inside and not any(_meet(box, other) for other in self.taken)

    def _is_own(self, box: _Box, x: float, y: float, times: float) -> bool:
        clear = times * _distance(box, x, y)
        return all(_distance(box, *point) >= clear for point in self.points if point != (x, y))


def _boxes(x: float, y: float, width: float) -> Iterator[tuple[int, _Box]]:
    """Yield where a label may stand around a point, from near to far, with its distance."""
    for reach in _REACHES:
        for turn in _TURNS:
            angle = turn * pi / 8
            near, middle = x + reach * cos(angle), y - reach * sin(angle)
            # Beside the point the label begins or ends there; above and below it stands in the middle.
            start = near - width / 2 if abs(cos(angle)) < 0.3 else near - (width if cos(angle) < 0 else 0)
            yield reach, (start, middle - _LINE / 2, start + width, middle + _LINE / 2)


def _distance(box: _Box, x: float, y: float) -> float:
    """How far a point is from the line through the middle of a label's words."""
    return hypot(max(box[0] - x, 0, x - box[2]), y - (box[1] + box[3]) / 2)


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def plane_figure(points: Sequence[Point], caption: str) -> Figure:
    """Draw members in the plane of domain gain and general loss, with their intervals and the Pareto front."""
    return Figure("plot", caption, *(_plane(points, width, caption) for width in (WIDE, NARROW)))


def _plane(points: Sequence[Point], width: int, caption: str) -> str:
    wide = width == WIDE
    higher = _LINE * max(0, sum(point.is_named(width) for point in points) - (_ROOM if wide else _NARROW_ROOM))
    left, right, top, bottom = (64.0, width - 20, 34, 500 + higher) if wide else (46.0, width - 10, 34, 360 + higher)
    y = Scale(*_room([0.0, *_ends(point.loss for point in points)]), bottom, top)
    up = ticks(y.low, y.high, 6)
    left = _beside(up, left)
    x = Scale(*_room([0.0, *_ends(point.gain for point in points)]), left, right)
    parts = _grid(x, y, ticks(x.low, x.high, 7 if wide else 4), up, width)
    parts += [line(x(0), top, x(0), bottom, "zero"), line(left, y(0), right, y(0), "zero")]
    front = sorted((point for point in points if point.is_front), key=lambda point: point.gain.estimate)
    parts.append(path(((x(p.gain.estimate), y(p.loss.estimate)) for p in front), "front"))
    # The front over what cannot be told from it, and the control's square, which is larger, behind all.
    points = sorted(points, key=lambda point: (point.is_front, point.kind != CONTROL))
    for point in points:
        parts += _cross(point, x, y)
    centres = [(x(point.gain.estimate), y(point.loss.estimate)) for point in points]
    labels = _Labels((left, top, right, bottom), centres, [_around(*centre, 6) for centre in centres])
    # Long names first, while there is room near their points; short ones fit in between.
    for point in sorted(points, key=lambda point: (not point.is_front, -len(point.name))):
        if point.is_named(width):
            parts += _label(labels, point, x(point.gain.estimate), y(point.loss.estimate), width)
    # After the labels, whose halos would hide them.
    parts += [named(_mark(point.kind, *centre), point.name) for point, centre in zip(points, centres, strict=True)]
    unit = "bits per byte" if wide else "bits/byte"
    parts.append(text(left - 40 if wide else 4, top - 16, f"general text: {unit} lost (lower is better)", "label"))
    parts.append(text(right, bottom + 38, f"domain text: {unit} gained (further right is better)", "label", "end"))
    return svg(width, bottom + 48, caption, "wide" if wide else "narrow", parts)


def _label(labels: _Labels, point: Point, x: float, y: float, width: int) -> list[str]:
    words = shortened(point.name, NOTE, _LABEL if width == WIDE else _NARROW_LABEL)
    at = labels.place(x, y, words)
    if at is None:
        return []
    long = text_width(words, NOTE)
    near = min(max(x, at[0]), at[0] + long), at[1] - 4
    leader = [line(x, y, *near, "leader")] if hypot(near[0] - x, near[1] - y) > _LED else []
    kind = "note strong" if point.is_front else "note"
    return [*leader, text(at[0] + long / 2, at[1], words, kind, "middle", point.name)]


def _around(x: float, y: float, reach: float) -> _Box:
    return x - reach, y - reach, x + reach, y + reach


def _mark(kind: str, x: float, y: float) -> str:
    """Draw an estimate; the control's is a square, since hollow rounds stand for members near the front.

    Its corners are seen behind a round mark at the same place.
    """
    if kind == CONTROL:
        return rectangle(x - 5, y - 5, 10, 10, f"mark {kind}")
    return circle(x, y, 4.5, f"mark {kind}")


def _cross(point: Point, x: Scale, y: Scale) -> list[str]:
    parts = []
    if isfinite(point.gain.low):
        middle = y(point.loss.estimate)
        parts.append(line(x(point.gain.low), middle, x(point.gain.high), middle, f"reach {point.kind}"))
    if isfinite(point.loss.low):
        middle = x(point.gain.estimate)
        parts.append(line(middle, y(point.loss.low), middle, y(point.loss.high), f"reach {point.kind}"))
    return parts


def _ends(intervals: Iterable[Interval]) -> list[float]:
    return [value for each in intervals for value in (each.estimate, each.low, each.high) if isfinite(value)]


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 1e-4)
    return low - room, high + room


def _beside(up: Sequence[float], least: float) -> float:
    """Return where an upright axis stands, so that the texts of its ticks are not cut."""
    return max(least, 8 + max(text_width(tick_text(value, up, sign=True), NOTE) for value in up))


def _grid(x: Scale, y: Scale, across: Sequence[float], up: Sequence[float], width: int) -> list[str]:
    parts = [line(x(value), y.end, x(value), y.start, "grid") for value in across]
    parts += [tick_at(x(value), y.start + 18, tick_text(value, across), width) for value in across]
    parts += [line(x.start, y(value), x.end, y(value), "grid") for value in up]
    return parts + [text(x.start - 6, y(value) + 4, tick_text(value, up), "tick", "end") for value in up]


@dataclass(frozen=True)
class Row:
    """An interval of a plot of rows. group: what stands over the rows in common; kind: gained, lost, ..."""

    group: str
    name: str
    value: Interval
    words: str
    kind: str


def rows_figure(rows: Sequence[Row], caption: str, sides: tuple[str, str] | None, unit: str) -> Figure:
    """Draw intervals in rows; sides: what left and right of zero mean, None for values that are no changes."""
    return Figure("plot", caption, *(_rows(rows, width, caption, sides, unit) for width in (WIDE, NARROW)))


def _rows(rows: Sequence[Row], width: int, caption: str, sides: tuple[str, str] | None, unit: str) -> str:
    wide = width == WIDE
    left, right, pitch = (_name_room(rows), width - 190, 26) if wide else (14.0, width - 14, 46)
    top = y = 40.0 if sides else 16.0
    low, high = _room([0.0, *_ends(row.value for row in rows)])
    x = Scale(low if sides else 0.0, high, left, right)
    places = []
    for number, row in enumerate(rows):
        y += pitch + (10 if number and rows[number - 1].group != row.group else 0)
        places.append(y - pitch / 2)
    bottom = y + 6
    values = ticks(x.low, x.high, min(6, int((right - left) / 50)) if wide else 4)
    # On narrow screens names stand over the marks, and a line from top to bottom would run through them.
    pieces = [(top - 8, bottom)] if wide else [(at - 2, at + 22) for at in places]
    parts = [
        line(x(v), start, x(v), end, "grid" if v else "zero") for v in sorted({*values, 0.0}) for start, end in pieces
    ]
    parts += [tick_at(x(v), bottom + 18, tick_text(v, values, sign=bool(sides)), width) for v in values]
    if sides:
        words = f"\N{LEFTWARDS ARROW} {sides[0]}", f"{sides[1]} \N{RIGHTWARDS ARROW}"
        parts.append(text(min(left, right - 16 - text_width("".join(words), NOTE)), top - 20, words[0], "label"))
        parts.append(text(right, top - 20, words[1], "label", "end"))
    for number, (row, at) in enumerate(zip(rows, places, strict=True)):
        is_first = not number or rows[number - 1].group != row.group
        parts += _row(row, x, at, is_first, width)
    parts.append(text(right, bottom + 36, unit, "label", "end"))
    return svg(width, bottom + 44, caption, "wide" if wide else "narrow", parts)


def _name_room(rows: Sequence[Row]) -> float:
    """Return where the axis begins, so that the longest names end before it; the marks need room too."""
    taken = max(text_width(row.group, NAME) + 14 + text_width(row.name, NOTE) for row in rows)
    return min(max(_NAMES, taken + 10), _MOST_NAMES)


def _row(row: Row, x: Scale, y: float, is_first: bool, width: int) -> list[str]:
    wide = width == WIDE
    mark_y = y if wide else y + 10
    low, high = (end if isfinite(end) else row.value.estimate for end in (row.value.low, row.value.high))
    parts = [
        line(x(low), mark_y, x(high), mark_y, f"interval {row.kind}"),
        circle(x(row.value.estimate), mark_y, 4.5, f"mark {row.kind}"),
    ]
    if wide:
        name = shortened(row.name, NOTE, x.start / 2)
        group = shortened(row.group, NAME, x.start - 10 - text_width(name, NOTE) - (14 if name else 0))
        parts += [text(0, y + 4, group, "name", whole=row.group)] if is_first else []
        parts += [text(x.start - 10, y + 4, name, "tick", "end", row.name)]
        return [*parts, text(width - 182, y + 4, row.words, "tick")]
    value = row.words.split(" (")[0]
    room = width - 28 - 12 - text_width(value, NAME)
    name = shortened(row.name, NAME, max(room / 2, room - text_width(f"{row.group}, ", NAME)))
    name = f", {name}" if row.group and name else name
    group = shortened(row.group, NAME, room - text_width(name, NAME))
    whole = ", ".join(filter(None, (row.group, row.name)))
    parts.append(text(14, y - 6, f"{group}{name}", "name", whole=whole))
    return [*parts, text(width - 14, y - 6, value, "value", "end")]


@dataclass(frozen=True)
class Course:
    """A line of a plot over tokens or learning rates: its name and (place, change with its interval)."""

    name: str
    points: tuple[tuple[float, Interval], ...]


def courses_figure(courses: Sequence[Course], caption: str, x_label: str, is_tokens: bool) -> Figure:
    """Draw changes over a logarithmic axis of tokens or learning rates, a line for each course."""
    return Figure("plot", caption, *(_courses(courses, width, caption, x_label, is_tokens) for width in (WIDE, NARROW)))


def _courses(courses: Sequence[Course], width: int, caption: str, x_label: str, is_tokens: bool) -> str:
    wide = width == WIDE
    longest = max(text_width(course.name, NOTE) for course in courses)
    key = _KEY if wide else _NARROW_KEY
    top, bottom = 34, max(330, 34 + _LINE * len(courses))
    places = sorted({place for course in courses for place, _ in course.points})
    logs = [log10(place) for place in places]
    y = Scale(*_room([0.0, *_ends(value for course in courses for _, value in course.points)]), bottom, top)
    up = ticks(y.low, y.high, 6)
    left, right = _beside(up, 64 if wide else 46), width - (key + 4 + longest)
    x = Scale(min(logs) - 0.08, max(logs) + 0.08, left, right)
    parts = [line(left, y(value), right, y(value), "grid") for value in up]
    parts += [text(left - 6, y(value) + 4, tick_text(value, up, sign=True), "tick", "end") for value in up]
    parts.append(line(left, y(0), right, y(0), "zero"))
    labels = [(x(log10(place)), token_text(place) if is_tokens else rate_words(place)) for place in places]
    parts += [text(at, bottom + 18, label, "tick", "middle") for at, label in _apart(labels)]
    heights = _spread([y(course.points[-1][1].estimate) for course in courses], top, bottom)
    for number, (course, height) in enumerate(zip(courses, heights, strict=True)):
        parts += _course(course, number, x, y)
        place, value = course.points[-1]
        parts += _key(course, number, (x(log10(place)), y(value.estimate)), (right + key, height))
    parts.append(text(left - 40, top - 16, "change in bits per byte (lower is better)", "label"))
    parts.append(text(right, bottom + 38, x_label, "label", "end"))
    return svg(width, bottom + 46, caption, "wide" if wide else "narrow", parts)


def _apart(labels: Sequence[tuple[float, str]]) -> Sequence[tuple[float, str]]:
    """Return every label, every second, third ...: the most of them that do not meet."""
    for step in range(1, len(labels)):
        halves = [(at, text_width(label, NOTE) / 2 + 2) for at, label in labels[::step]]
        if all(at + half < after - other for (at, half), (after, other) in pairwise(halves)):
            return labels[::step]
    return labels[:1]


def _course(course: Course, number: int, x: Scale, y: Scale) -> list[str]:
    colour, dash = _look(number)
    points = [(x(log10(place)), y(value.estimate)) for place, value in course.points]
    parts = [path(points, f"course {colour} {dash}")]
    for (px, py), (_, value) in zip(points, course.points, strict=True):
        if isfinite(value.low):
            parts.append(line(px, y(value.low), px, y(value.high), f"reach {colour}"))
        parts.append(_dot(number, px, py))
    return parts


def _key(course: Course, number: int, end: tuple[float, float], at: tuple[float, float]) -> list[str]:
    """Draw the name of a course with a piece of its line; a thin line leads there from an end that is not beside it."""
    colour, dash = _look(number)
    start, height = at[0] - 6 - _SAMPLE, at[1]
    is_beside = abs(height - end[1]) < 3 and start - end[0] < 60
    leader = [] if is_beside else [line(*end, start, height, "leader")]
    sample = path([(start, height), (start + _SAMPLE, height)], f"course {colour} {dash}")
    # The dot of the end anew, since the leader runs over it.
    dots = [_dot(number, *end), _dot(number, start + _SAMPLE / 2, height)]
    return [*leader, sample, *dots, text(at[0], height + 4, course.name, "note")]


def _look(number: int) -> tuple[str, str]:
    """Return colour and dash of a course: with the shape of its dots, 16 differ without any colour."""
    return f"course-{(number + number // 16) % 4}", f"dash-{number // 4 % 4}"


def _dot(number: int, x: float, y: float) -> str:
    kind = f"dot {_look(number)[0]}"
    if number % 4 == 0:
        return circle(x, y, 3.5, kind)
    corners = {
        1: [(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)],
        2: [(0, -4.4), (4.2, 3), (-4.2, 3)],
        3: [(0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)],
    }[number % 4]
    return polygon(((x + across, y + down) for across, down in corners), kind)


def _spread(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return heights of labels within top..bottom that are a line of text apart and as near to theirs as may be.

    Labels that would meet stand as a block around the mean of what they name (isotonic regression by pooling
    adjacent violators; Barlow et al. 1972), which is what least squares asks for.
    """
    order = sorted(range(len(heights)), key=lambda number: heights[number])
    blocks: list[list[float]] = []
    for rank, number in enumerate(order):
        blocks.append([heights[number] - rank * _LINE])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    lowest = max(top, bottom - (len(heights) - 1) * _LINE)
    bases = [min(max(fmean(block), top), lowest) for block in blocks for _ in block]
    found = list(heights)
    for rank, (number, base) in enumerate(zip(order, bases, strict=True)):
        found[number] = base + rank * _LINE
    return found
