"""Quality rules and their thresholds; each family is a section, off is null."""

from fractions import Fraction

from pydantic import Field

from onward.recipe.quantities import Share
from onward.recipe.section import Section


class PaperRules(Section):
    """The filters of arXiv 2504.09687 section 3; it gives no thresholds, the defaults are Gopher's and FineWeb's."""

    minimum_lines: int | None = Field(3, ge=1)
    """Drop documents with fewer non-empty lines (the paper: 3)."""
    short_line_characters: int = Field(30, ge=1)
    """A line of at most this many characters is short (FineWeb: 30)."""
    maximum_short_lines: Share | None = Fraction(67, 100)
    """Drop when more than this share of the non-empty lines is short (FineWeb: 0.67)."""
    maximum_duplicate_lines: Share | None = Fraction(3, 10)
    """Drop when more than this share of the non-empty lines repeats an earlier line (Gopher: 0.3)."""
    maximum_duplicate_line_characters: Share | None = Fraction(2, 10)
    """Drop when repeated lines hold more than this share of the characters (Gopher: 0.2)."""
    maximum_duplicate_ngrams: Share | None = Fraction(15, 100)
    """Drop when words inside repeated 5-grams hold more than this share of the characters (Gopher: 0.15)."""


class Quality(Section):
    """Which quality rules run; null switches a family off."""

    paper: PaperRules | None = None
    """The filters of arXiv 2504.09687."""


PAPER = Quality(paper=PaperRules())  # type: ignore[call-arg]
_PRESETS = {"paper": {"paper": {}}}


def from_presets(value: object) -> object:
    """Replace preset names by the rules they stand for; anything else is returned as it is."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return value
    if names == ["none"]:
        return None
    unknown = [name for name in names if name not in _PRESETS]
    if unknown:
        raise ValueError(f"unknown preset {unknown[0]}; the presets are {', '.join(_PRESETS)} and none")
    return {family: rules for name in names for family, rules in _PRESETS[name].items()}
