"""A few words of SVG: scales, ticks, shapes. Colours and type come from style sheets, so figures follow the page.

Hand-written instead of matplotlib: inline SVG takes the page's dark mode and fonts, stays selectable text, redraws for
a phone, and costs no 100 MB of dependencies.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import pairwise
from unicodedata import east_asian_width

NAME, NOTE = 12.5, 11.5
"""Sizes of type in pixels: of names and values, and of notes, ticks and labels (figure.css)."""
_CUT = "\N{HORIZONTAL ELLIPSIS}"
_EMS = {"ijlI|'/ ": 0.37, "ftrJ.,:;!()[]-_": 0.48, f"mwMW%@{_CUT}": 1.05, "+\N{MINUS SIGN}": 0.84}
"""Widths of characters in bold DejaVu Sans, in sizes of type; of others by their kind."""


@dataclass(frozen=True)
class Scale:
    """A linear map from values low..high to places start..end, in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value, held within the axis."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round values within low..high, about so many: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, values: Sequence[float], sign: bool = False) -> str:
    """Write a tick with the decimals that tell it from its neighbours."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:{'+' if sign and abs(value) > step / 2 else ''}.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def token_text(tokens: float) -> str:
    """Write tokens briefly: `400M`, `1.2B`, `655k`."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit * 0.9995:
            return f"{tokens / unit:.3g}{suffix}"
    return f"{tokens:.0f}"


def text_width(content: str, size: float) -> float:
    """Return about how many pixels a line of text takes, rather more than less: in bold DejaVu Sans, a wide font."""
    return size * sum(_ems(character) for character in content)


def _ems(character: str) -> float:
    for characters, ems in _EMS.items():
        if character in characters:
            return ems
    return 1.05 if east_asian_width(character) in "WF" else 0.79 if character.isupper() else 0.7


def shortened(content: str, size: float, room: float) -> str:
    """Return a text that takes at most `room` pixels, cut in its middle: names often differ at one of their ends."""
    if text_width(content, size) <= room:
        return content
    kept = len(content) - 1
    while kept > 2 and text_width(_without_middle(content, kept), size) > room:
        kept -= 1
    return _without_middle(content, kept)


def _without_middle(content: str, kept: int) -> str:
    return f"{content[: kept - kept // 2]}{_CUT}{content[len(content) - kept // 2 :]}"


def text(x: float, y: float, content: str, kind: str, anchor: str = "start", whole: str = "") -> str:
    """Return a text element; the contents are escaped. whole: what is shown under the pointer, where it says more."""
    told = f"<title>{escape(whole)}</title>" if whole not in ("", content) else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{told}{escape(content)}</text>'


def tick_at(x: float, y: float, content: str, width: float) -> str:
    """Return the text of a tick below an axis: under its place, or beside it where the picture would cut it."""
    half = text_width(content, NOTE) / 2
    return text(min(max(x, half), width - half), y, content, "tick", "middle")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a filled rectangle; x, y: its upper left corner."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    """Return a circle; x, y: its centre."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>'


def polygon(corners: Iterable[tuple[float, float]], kind: str) -> str:
    """Return a closed shape."""
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" class="{kind}"/>'


def named(shape: str, name: str) -> str:
    """Return a shape that shows a name under the pointer."""
    return f"<g><title>{escape(name)}</title>{shape}</g>"


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    """Return an open line through the points."""
    return f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="{kind}"/>'


def svg(width: int, height: float, title: str, kind: str, parts: Iterable[str]) -> str:
    """Return a picture that scales to its place; the title is what a screen reader says."""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" class="figure {kind}"'
        f' aria-label="{escape(title)}" preserveAspectRatio="xMidYMid meet">'
    )
    return "\n".join([opening, f"<title>{escape(title)}</title>", *parts, "</svg>"])


def standalone(picture: str, width: int) -> str:
    """Make an inline picture a file of its own: with its style sheets and its size."""
    folder = resources.files("onward.reporting") / "templates"
    style = "".join((folder / name).read_text(encoding="utf-8") for name in ("colours.css", "figure.css"))
    head, rest = picture.split(">", 1)
    return f'{head} width="{width}"><style>{style}</style>{rest}\n'
