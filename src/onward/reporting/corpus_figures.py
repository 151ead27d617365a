"""The figures of a corpus: how long its documents are, and where they lie around the rules' thresholds."""

import math
from collections.abc import Sequence

from onward.corpus.inspected import Measured
from onward.corpus.survey import Spread
from onward.reporting.drawing import Scale, line, path, rectangle, svg, text, tick_text, ticks
from onward.reporting.figures import NARROW, WIDE, Figure

_HALVES = 2
"""Bins of a measure drawn as one bar."""


def length_figure(role: str, lengths: Spread) -> Figure:
    """Draw the share of documents (bars) and of their tokens (line) by length in tokens; each bin doubles."""
    caption = "Length of the kept documents: bars are shares of the documents, the line shares of their tokens."
    pictures = (_length_picture(lengths, width, caption) for width in (WIDE, NARROW))
    return Figure(f"lengths-{role}", caption, *pictures)


def _length_picture(lengths: Spread, width: int, caption: str) -> str:
    left, right, top, bottom = 46, width - 14, 40, 210
    documents, tokens = (_shares(counts) for counts in (lengths.documents, lengths.tokens))
    edges = [math.log2(max(edge, 1.0)) for edge in lengths.lower]
    x = Scale(edges[0], edges[-1] + 1, left, right)
    y = Scale(0, max(*documents, *tokens) * 1.08, bottom, top)
    values = ticks(0, y.high, 5)
    parts = [line(left, y(value), right, y(value), "grid") for value in values]
    parts += [text(left - 8, y(v) + 4, f"{tick_text(v, values)} %", "tick", "end") for v in values]
    parts += [
        rectangle(x(edge) + 1, y(share), x(edge + 1) - x(edge) - 2, bottom - y(share), "bar")
        for edge, share in zip(edges, documents, strict=True)
    ]
    corners = [(x(edge + end), y(share)) for edge, share in zip(edges, tokens, strict=True) for end in (0.0, 1.0)]
    parts.append(path([(left, bottom), *corners, (right, bottom)], "smooth"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    step = max(1, math.ceil(len(edges) / (14 if width == WIDE else 6)))
    for edge in edges[::step]:
        parts.append(text(x(edge), bottom + 18, f"{2**edge:,.0f}", "tick", "middle"))
    median = dict(lengths.quantiles)[0.5]
    at = x(math.log2(max(median, 1.0)))
    parts.append(line(at, top - 8, at, bottom, "stage"))
    anchor = "start" if at < (left + right) / 2 else "end"
    parts.append(text(at, top - 14, f"half have at most {median:,.0f} tokens", "note", anchor))
    parts.append(text(right, bottom + 36, "tokens of a document", "label", "end"))
    return svg(width, bottom + 44, caption, "wide" if width == WIDE else "narrow", parts)


def _shares(counts: Sequence[int]) -> list[float]:
    whole = max(1, sum(counts))
    return [100 * count / whole for count in counts]


def measure_figure(role: str, measures: Sequence[Measured]) -> Figure:
    """Draw a small histogram for each rule, from 0 to twice its threshold; what it speaks against is coloured."""
    caption = (
        "What the quality rules measured, each from 0 to twice its threshold (the dashed line), larger values in the "
        "last bar. Coloured: the side a rule speaks against, and the share of all documents there."
    )
    ranked = sorted(measures, key=lambda measure: (-measure.beyond, measure.rule))
    pictures = (_measure_picture(ranked, width, caption) for width in (WIDE, NARROW))
    return Figure(f"measures-{role}", caption, *pictures)


def _measure_picture(measures: Sequence[Measured], width: int, caption: str) -> str:
    wide = width == WIDE
    pitch, height, top = (34, 24, 0) if wide else (58, 26, 0)
    left, right = (330, width - 148) if wide else (14, width - 72)
    parts: list[str] = []
    bottom = float(top)
    for measure in measures:
        bottom += pitch
        parts += _measure_row(measure, (left, right), bottom, height)
        sign, words = ("≤", "at most") if measure.is_maximum else ("≥", "at least")
        allowed = f"{words if wide else sign} {measure.threshold:,g}"
        beyond = 100 * measure.beyond / max(1, sum(measure.counts))
        share = "< 0.1 %" if 0 < beyond < 0.1 else f"{beyond:.1f} %"
        kind = "value lost" if measure.beyond else "tick"
        if wide:
            parts.append(text(0, bottom - 4, measure.rule, "tick"))
            parts.append(text(right + 12, bottom - 4, allowed, "tick"))
            parts.append(text(width, bottom - 4, share, kind, "end"))
        else:
            parts.append(text(left, bottom - height - 8, f"{measure.rule} · {allowed}", "tick"))
            parts.append(text(width - 14, bottom - 4, share, kind, "end"))
    return svg(width, bottom + 10, caption, "wide" if wide else "narrow", parts)


def _measure_row(measure: Measured, ends: tuple[float, float], bottom: float, height: float) -> list[str]:
    *bins, larger = measure.counts
    counts = [sum(bins[start : start + _HALVES]) for start in range(0, len(bins), _HALVES)]
    x = Scale(0, len(counts) + 2, *ends)  # a gap, then the bar of all larger values
    y = Scale(0, max(1, larger, *counts), bottom, bottom - height)
    middle = len(counts) // 2
    parts = [line(ends[0], bottom, ends[1], bottom, "axis")]
    for place, count in [*enumerate(counts), (len(counts) + 1, larger)]:
        if count:
            kind = "bar lost" if (place >= middle) == measure.is_maximum else "bar"
            tall = max(1.0, bottom - y(count))
            parts.append(rectangle(x(place) + 0.5, bottom - tall, x(1) - x(0) - 1, tall, kind))
    parts.append(line(x(middle), bottom - height - 3, x(middle), bottom, "stage"))
    return parts
