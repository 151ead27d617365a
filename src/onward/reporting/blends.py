"""The line of blends as a picture, as tables and as Markdown."""

from collections.abc import Sequence

from onward.analysis.blending import DOMAIN, GENERAL, Blending, BlendPoint
from onward.analysis.wording import number
from onward.reporting.content import Table
from onward.reporting.drawing import Scale, line, path, standalone, svg, text, tick_text, ticks
from onward.reporting.figures import WIDE
from onward.reporting.markdown import plain, table_markdown
from onward.reporting.summary import summary_rows

DEV, TEST = "dev", "test"
_HEIGHT, _DECIMALS = 420, 4
_ROOM = 0.12
"""Of an axis, beyond the outermost points."""
_LABEL_WIDTH = 150
_CHARACTER, _LETTER = 7.0, 11.0
"""About the width and the height of a letter of a label."""
_Box = tuple[float, float, float, float]
"""Left, top, right, bottom of what is drawn."""


def blend_table(found: Blending) -> Table:
    """Return a row for each blend: bits per byte of both texts on dev and test part, and which was chosen."""
    texts = [half.text for half in found.points[0].texts]
    heads = ["share", *(f"{name} {half}" for name in texts for half in (DEV, TEST)), ""]
    rows = []
    for point in found.points:
        values = [number(value, _DECIMALS) for half in point.texts for value in (half.dev, half.test)]
        rows.append((f"{point.share:g}", *values, _mark(found, point)))
    return Table("Bits per byte of held-out text", tuple(heads), _numeric(heads), tuple(rows))


def task_table(found: Blending) -> Table | None:
    """Return a row for each blend with every measure of every task; None without tasks."""
    tasks = found.points[0].tasks
    if not tasks:
        return None
    heads = ["share", *(f"{value.task} {value.metric}" for value in tasks), ""]
    rows = [
        (f"{point.share:g}", *(number(value.value, _DECIMALS) for value in point.tasks), _mark(found, point))
        for point in found.points
    ]
    return Table("Task scores, all items", tuple(heads), _numeric(heads), tuple(rows))


def blend_markdown(found: Blending) -> str:
    """Return the line, the findings and the comparisons on the test part as GitHub-flavoured Markdown."""
    halves = ", ".join(f"{half.text}: {half.dev_documents:,} and {half.test_documents:,}" for half in found.point.texts)
    parts = [
        f"# {plain(found.base)} to {plain(found.adapted)}, blended",
        "\n".join(f"- {plain(sentence)}" for sentence in found.findings),
        f"Weights are base + share × (adapted - base). Documents of the dev and the test part: {plain(halves)}. A "
        "blend is chosen on the dev part alone; intervals and verdicts are of the test part, paired by document.",
        f"![{plain(_caption(found))}](blend.svg)",
    ]
    parts += [table_markdown(table) for table in (blend_table(found), task_table(found)) if table is not None]
    for comparison in found.comparisons:
        heads = ("", "before", "after", "change", "95 % interval", "p (Holm)", "items", "")
        rows = tuple(
            (row.name, row.before, row.after, row.change, row.interval, row.p_value, row.items, row.verdict)
            for row in summary_rows(comparison)
        )
        table = Table("", heads, _numeric(heads), rows)
        parts += [f"## {plain(comparison.before)} to {plain(comparison.after)}, test part", table_markdown(table)]
    return "\n\n".join(parts) + "\n"


def blend_picture(found: Blending) -> str:
    """Draw the test part's bits per byte: domain across, general text upwards; without general text, share across."""
    left, right, top, bottom = 64, WIDE - 28, 44, _HEIGHT - 60
    has_general = found.point.find(GENERAL) is not None
    points = [_place(point, has_general) for point in found.points]
    x = Scale(*_widened([point[0] for point in points]), left, right)
    y = Scale(*_widened([point[1] for point in points]), bottom, top)
    columns, rows = ticks(x.low, x.high, 7), ticks(y.low, y.high, 7)
    parts = [line(x(value), top, x(value), bottom, "grid") for value in columns]
    parts += [line(left, y(value), right, y(value), "grid") for value in rows]
    parts += [text(x(value), bottom + 18, tick_text(value, columns), "tick", "middle") for value in columns]
    parts += [text(left - 8, y(value) + 4, tick_text(value, rows), "tick", "end") for value in rows]
    places = [(x(across), y(up)) for across, up in points]
    parts.append(path(places, "smooth"))
    parts += [f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" class="end"/>' for across, up in places]
    parts += _labels(found, places, (left, right))
    upwards, across = ("general", "domain text") if has_general else ("domain", "")
    told = f"\N{DOWNWARDS ARROW} easier · {upwards} text, bits per byte of the test part"
    below = f"\N{LEFTWARDS ARROW} easier · {across}, bits per byte of the test part"
    parts.append(text(left - 56, top - 22, told, "label"))
    below = below if has_general else "share of the way to the adapted model"
    parts.append(text(right, bottom + 40, below, "label", "end"))
    return standalone(svg(WIDE, _HEIGHT, _caption(found), "wide", parts), WIDE)


def _labels(found: Blending, places: Sequence[tuple[float, float]], ends: tuple[float, float]) -> list[str]:
    """Name the ends and the chosen blend, which is filled, and give the others their share where there is room."""
    parts, taken = [], []
    named = [point.share in (0, 1) or point.share == found.chosen for point in found.points]
    for place, (point, (across, up)) in enumerate(zip(found.points, places, strict=True)):
        if not named[place]:
            continue
        is_chosen = point.share == found.chosen
        name = {0.0: "base", 1.0: "adapted"}.get(point.share, f"{point.share:g} of the way")
        label = f"{name}, chosen" if is_chosen else name
        kind = "mark front" if is_chosen else "mark"
        parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{6 if is_chosen else 4.5}" class="{kind}"/>')
        is_right = across + _LABEL_WIDTH < ends[1]
        # A label to the left goes to the side on which the line does not come in.
        is_below = not is_right and place > 0 and places[place - 1][1] < up
        x, y = across + (12 if is_right else -12), up + (20 if is_below else -10)
        parts.append(text(x, y, label, "note", "start" if is_right else "end"))
        reach = _CHARACTER * len(label) * (1 if is_right else -1)
        taken.append((min(x, x + reach), y - _LETTER, max(x, x + reach), y))
    marks = [(across - 4, up - 4, across + 4, up + 4) for across, up in places]
    for place in sorted(range(len(places)), key=lambda place: (place % 2, place)):  # every second one first
        across, up = places[place]
        label = f"{found.points[place].share:g}"
        half = _CHARACTER * len(label) / 2
        # Above or below the line, whichever is free of other labels and points.
        boxes = [(across - half, y - _LETTER, across + half, y) for y in (up - 8, up + 18)]
        others = [*taken, *marks[:place], *marks[place + 1 :]]
        box = next((box for box in boxes if not any(_meet(box, other) for other in others)), None)
        if box is not None and not named[place]:
            taken.append(box)
            parts.append(text(across, box[3], label, "tick", "middle"))
    return parts


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _caption(found: Blending) -> str:
    line = (
        f"Blends on the line from {found.base} to {found.adapted}, {found.chosen:g} of the way chosen on the dev part."
    )
    if found.point.find(GENERAL) is None:
        return f"{line} Lower: the domain is easier. General text was not scored."
    return f"{line} Further left: the domain is easier; lower: general text is, less is forgotten."


def _mark(found: Blending, point: BlendPoint) -> str:
    names = [{0.0: "base", 1.0: "adapted"}.get(point.share, ""), "chosen" if point.share == found.chosen else ""]
    return ", ".join(name for name in names if name)


def _numeric(heads: Sequence[str]) -> tuple[bool, ...]:
    return tuple(0 < place < len(heads) - 1 or head == "share" for place, head in enumerate(heads))


def _place(point: BlendPoint, has_general: bool) -> tuple[float, float]:
    domain = _on_test(point, DOMAIN)
    return (domain, _on_test(point, GENERAL)) if has_general else (point.share, domain)


def _on_test(point: BlendPoint, name: str) -> float:
    halves = point.find(name)
    assert halves is not None, f"{name} text is scored"
    return halves.test


def _widened(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(_ROOM * (high - low), 1e-4)
    return low - room, high + room
