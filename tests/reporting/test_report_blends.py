"""The picture of a line of blends: axes, and the shares beside the points."""

import re
from pathlib import Path

import pytest

from onward.analysis.blending import Blending, BlendPoint, Halves, Rule
from onward.reporting.blends import blend_markdown, blend_picture


def line_of(steps: int, chosen: float, has_general: bool = True, bend: float = 1.0) -> Blending:
    """The domain falls to 1.82 and general text rises to 2.2, by `bend` of that."""
    points = []
    for number in range(steps):
        share = round(number / (steps - 1), 6)
        texts = [Halves("domain", 1.0, 2.0 - bend * (0.3 * share - 0.12 * share**2), 5, 5)]
        if has_general:
            texts.append(Halves("general", 1.0, 2.0 + 0.2 * bend * share**2, 5, 5))
        points.append(BlendPoint(share, Path(), tuple(texts), ()))
    return Blending("small", "large", Rule(), tuple(points), chosen, (), ())


def places(picture: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(.*?)" cy="(.*?)" r="3" class="end"/>', picture)]


def shares_shown(picture: str) -> list[str]:
    labels = re.findall(r'<text x="(.*?)" y="(.*?)" class="tick" text-anchor="middle">(0\.\d+)</text>', picture)
    return sorted(text for _, y, text in labels if float(y) < 370)  # below are the ticks


def test_the_domain_lies_across_and_general_text_upwards() -> None:
    found = line_of(5, 1.0)
    first, *_, last = places(blend_picture(found))
    assert last[0] < first[0], "the domain has become easier: to the left"
    assert last[1] < first[1], "general text has become harder: higher up"
    said = "Further left: the domain is easier; lower: general text is, less is forgotten."
    assert said in blend_picture(found)
    assert said in blend_markdown(found)


def test_without_general_text_the_share_lies_across() -> None:
    picture = blend_picture(line_of(5, 1.0, has_general=False))
    first, *_, last = places(picture)
    assert first[0] < last[0]
    assert "General text was not scored." in picture


@pytest.mark.parametrize(("steps", "chosen"), [(5, 1.0), (11, 0.7), (11, 1.0)])
def test_points_between_carry_their_share(steps: int, chosen: float) -> None:
    shares = [f"{number / (steps - 1):g}" for number in range(1, steps - 1)]
    assert shares_shown(blend_picture(line_of(steps, chosen))) == [s for s in shares if float(s) != chosen]


def test_shares_of_a_crowded_line_never_cover_each_other() -> None:
    picture = blend_picture(line_of(101, 1.0))
    shown = shares_shown(picture)
    assert 5 < len(shown) < 60
    labels = re.findall(r'<text x="(.*?)" y="(.*?)" class="tick" text-anchor="middle">(0\.\d+)</text>', picture)
    spots = [(float(x), float(y), 3.5 * len(text)) for x, y, text in labels if float(y) < 370]
    for number, (x, y, half) in enumerate(spots):
        for other_x, other_y, other_half in spots[:number]:
            assert abs(x - other_x) >= half + other_half or abs(y - other_y) >= 11
