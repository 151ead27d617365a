"""The figures of the report as inline SVG, each in a wide form and one for narrow screens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onward.analysis import Difference, LossCurve
from onward.analysis.wording import change_text, title
from onward.reporting.drawing import (
    NAME,
    NOTE,
    Scale,
    circle,
    line,
    path,
    shortened,
    svg,
    text,
    text_width,
    tick_at,
    tick_text,
    ticks,
    token_text,
)

WIDE, NARROW = 760, 380
_NAMES, _MOST_NAMES = 246.0, 376.0
"""Pixels before the axis of changes: for names of usual length, and for the longest, since the marks need room too."""


@dataclass(frozen=True)
class Figure:
    """One figure: file name stem, what it shows, and the two pictures."""

    name: str
    caption: str
    wide: str
    narrow: str


def loss_figure(curve: LossCurve, stages: Sequence[int]) -> Figure:
    """Draw loss (above) and learning rate (below) over the tokens trained on; `stages` are cumulative tokens."""
    caption = "Training loss in nats per token: each point and the smoothed line; learning rate below."
    pictures = (_loss_picture(curve, stages, width, caption) for width in (WIDE, NARROW))
    return Figure("training", caption, *pictures)


def _loss_picture(curve: LossCurve, stages: Sequence[int], width: int, caption: str) -> str:
    right, top, loss_bottom, rate_top, bottom = width - 52, 50, 252, 284, 346
    low, high = _padded(*np.quantile(curve.loss, [0.005, 0.995]), float(curve.smooth.min()), float(curve.smooth.max()))
    loss = Scale(low, high, loss_bottom, top)
    values = ticks(loss.low, loss.high, 5)
    left = max(46.0, 10 + max(text_width(tick_text(value, values), NOTE) for value in values))
    x = Scale(0, max(float(curve.tokens[-1]), 1.0), left, right)
    rate = Scale(0, max(float(curve.learning_rate.max()) * 1.08, 1e-12), bottom, rate_top)
    parts = [*_y_axis(loss, left, right, values), *_stage_marks(x, stages, top, bottom, width)]
    parts.append(path(((x(t), loss(v)) for t, v in zip(curve.tokens, curve.loss, strict=True)), "raw"))
    parts.append(path(((x(t), loss(v)) for t, v in zip(curve.tokens, curve.smooth, strict=True)), "smooth"))
    end = float(curve.smooth[-1])
    parts.append(circle(x(curve.tokens[-1]), loss(end), 3.5, "end"))
    parts.append(text(right + 8, loss(end) + 4, f"{end:.2f}", "value"))
    parts.append(text(left - 38, top - 34, "loss, nats per token", "label"))
    parts.append(text(left - 38, rate_top - 12, "learning rate", "label"))
    points = [(x(t), rate(v)) for t, v in zip(curve.tokens, curve.learning_rate, strict=True)]
    parts.append(path([(points[0][0], bottom), *points, (points[-1][0], bottom)], "area"))
    parts.append(path(points, "rate"))
    peak = float(curve.learning_rate.max())
    parts += [line(left, rate(peak), right, rate(peak), "grid"), line(left, bottom, right, bottom, "axis")]
    parts += [
        text(left - 8, rate(peak) + 4, rate_text(peak), "tick", "end"),
        text(left - 8, bottom + 4, "0", "tick", "end"),
    ]
    for value in ticks(0, x.high, 6 if width == WIDE else 3):
        parts.append(text(x(value), bottom + 18, token_text(value), "tick", "middle"))
    parts.append(text(right, bottom + 36, "tokens trained on", "label", "end"))
    return svg(width, bottom + 44, caption, "wide" if width == WIDE else "narrow", parts)


def rate_text(rate: float) -> str:
    """Write a learning rate as people do: `3e-4`, `9.6e-4`, `0`."""
    if rate == 0:
        return "0"
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _padded(*values: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), 1e-3)
    return low - room, high + room


def _y_axis(scale: Scale, left: float, right: float, values: Sequence[float]) -> list[str]:
    parts = []
    for value in values:
        parts.append(line(left, scale(value), right, scale(value), "grid"))
        parts.append(text(left - 8, scale(value) + 4, tick_text(value, values), "tick", "end"))
    return parts


def _stage_marks(x: Scale, stages: Sequence[int], top: float, bottom: float, width: int) -> list[str]:
    """Mark the ends of the stages that training has reached (the last point stands a little before its end)."""
    parts = []
    room = 100 if width == WIDE else 54
    free = x.end + room  # from the last stage backwards: a label without room is left out, its line is not
    for stage, tokens in reversed(list(enumerate(stages, start=1))):
        if tokens > x.high * 1.02:
            continue
        parts.append(line(x(tokens), top - 6, x(tokens), bottom, "stage"))
        anchor = "end" if x(tokens) > x.end - room / 2 else "middle"
        edge = x(tokens) if anchor == "end" else x(tokens) + room / 2
        if edge <= free:
            label = f"stage {stage} · {token_text(tokens)}" if width == WIDE else f"stage {stage}"
            parts.append(text(x(tokens), top - 12, label, "note", anchor))
            free = edge - room
    return parts


@dataclass(frozen=True)
class ForestRow:
    """One interval of a forest plot: the measure, which stage, and the difference."""

    stage: str
    difference: Difference


def forest_figure(rows: Sequence[ForestRow], text_rows: bool) -> Figure:
    """Draw the changes with their 95 % intervals around the line of no change, coloured by verdict.

    text_rows: bits per byte of held-out text (left is better); otherwise task scores in points (right is better).
    """
    name = "text" if text_rows else "tasks"
    what = "Change of held-out bits per byte" if text_rows else "Change of task scores in percentage points"
    caption = f"{what}, with 95 % intervals of the paired difference."
    pictures = (_forest_picture(rows, text_rows, width, caption) for width in (WIDE, NARROW))
    return Figure(name, caption, *pictures)


def _forest_picture(rows: Sequence[ForestRow], text_rows: bool, width: int, caption: str) -> str:
    wide = width == WIDE
    left, right, top, pitch = (_name_room(rows), width - 186, 40, 26) if wide else (14.0, width - 14, 40, 46)
    scale = 1.0 if text_rows else 100.0
    ends = [scale * v for row in rows for v in _finite(row.difference)]
    x = Scale(*_padded(0.0, *ends), left, right)
    places, bottom = _places(rows, top, pitch, 10 if wide else 6)
    values = ticks(x.low, x.high, min(6, int((right - left) / 50)) if wide else 4)
    # On narrow screens names stand over the marks, and a line from top to bottom would run through them.
    pieces = [(top - 8, bottom)] if wide else [(at - 2, at + 22) for at in places]
    parts = [line(x(v), start, x(v), end, "grid") for v in values for start, end in pieces]
    parts += [line(x(0), start, x(0), end, "zero") for start, end in pieces]
    parts += [tick_at(x(v), bottom + 18, tick_text(v, values, sign=True), width) for v in values]
    better, worse = ("easier", "harder") if text_rows else ("better", "worse")
    left_word, right_word = (better, worse) if text_rows else (worse, better)
    parts.append(text(left, top - 20, f"\N{LEFTWARDS ARROW} {left_word}", "label"))
    parts.append(text(right, top - 20, f"{right_word} \N{RIGHTWARDS ARROW}", "label", "end"))
    for row, y in zip(rows, places, strict=True):
        first = row is rows[0] or not _same(row, rows[rows.index(row) - 1])
        parts += _forest_row(row, x, y, scale, first, width)
    unit = "bits per byte" if text_rows else "points"
    parts.append(text(right, bottom + 36, unit, "label", "end"))
    return svg(width, bottom + 44, caption, "wide" if wide else "narrow", parts)


def _finite(difference: Difference) -> tuple[float, ...]:
    values = (difference.delta, difference.low, difference.high)
    return tuple(v for v in values if np.isfinite(v))


def _same(row: ForestRow, other: ForestRow) -> bool:
    return (row.difference.name, row.difference.metric) == (other.difference.name, other.difference.metric)


def _places(rows: Sequence[ForestRow], top: float, pitch: float, gap: float) -> tuple[list[float], float]:
    """Stack the rows, a gap between measures; return their heights and the bottom."""
    places: list[float] = []
    y = top
    for index, row in enumerate(rows):
        y += pitch if index and _same(row, rows[index - 1]) else pitch + (gap if index else 0)
        places.append(y - pitch / 2)
    return places, y + 6


def _named(row: ForestRow) -> str:
    metric = "" if row.difference.is_text else f" · {row.difference.metric}"
    return f"{title(row.difference.name)}{metric}"


def _name_room(rows: Sequence[ForestRow]) -> float:
    """Return where the axis begins, so that the longest names end before it."""
    taken = max(text_width(_named(row), NAME) + 14 + text_width(row.stage, NOTE) for row in rows)
    return min(max(_NAMES, taken + 18), _MOST_NAMES)


def _forest_row(row: ForestRow, x: Scale, y: float, scale: float, first: bool, width: int) -> list[str]:
    difference = row.difference
    kind = difference.verdict.replace(" ", "-")
    change, interval = change_text(difference)
    whole = _named(row)
    low, high = (scale * v if np.isfinite(v) else scale * difference.delta for v in (difference.low, difference.high))
    mark_y = y if width == WIDE else y + 10
    parts = [
        line(x(low), mark_y, x(high), mark_y, f"interval {kind}"),
        circle(x(scale * difference.delta), mark_y, 4.5, f"mark {kind}"),
    ]
    if width == WIDE:
        if first:
            room = x.start - 18 - text_width(row.stage, NOTE) - 14
            parts.append(text(0, y + 4, shortened(whole, NAME, room), "name", whole=whole))
        parts.append(text(x.start - 18, y + 4, row.stage, "tick", "end"))
        parts.append(text(width - 178, y + 4, change, f"value {kind}"))
        parts.append(text(width - 122, y + 4, interval, "tick"))
    else:
        stage = f" · {row.stage}"
        name = shortened(whole, NAME, width - 28 - 12 - text_width(change + stage, NAME))
        parts.append(text(14, y - 6, f"{name}{stage}", "name", whole=f"{whole}{stage}"))
        parts.append(text(width - 14, y - 6, change, f"value {kind}", "end"))
    return parts
