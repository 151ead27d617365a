"""Quality rules and their thresholds; each family is a section, each rule in it is switched off by null."""

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


class GopherQuality(Section):
    """Gopher's rules about words (arXiv 2112.11446, appendix A1.1), as datatrove applies them.

    Words of punctuation alone are not counted by the rules about the number and the length of words; the others divide
    by all words.
    """

    minimum_words: int | None = Field(50, ge=1)
    """Drop documents with fewer words."""
    maximum_words: int | None = Field(100_000, ge=1)
    """Drop documents with more words."""
    minimum_mean_word_characters: float | None = Field(3, gt=0)
    """Drop when words have fewer characters on average."""
    maximum_mean_word_characters: float | None = Field(10, gt=0)
    """Drop when words have more characters on average."""
    maximum_hashes: Share | None = Fraction(1, 10)
    """Drop when there are more `#` than this share of the number of words."""
    maximum_ellipses: Share | None = Fraction(1, 10)
    """Drop when there are more ellipses (three periods or one character) than this share of the number of words."""
    maximum_bullet_lines: Share | None = Fraction(9, 10)
    """Drop when more than this share of the lines begins with a bullet or a hyphen."""
    maximum_ellipsis_lines: Share | None = Fraction(3, 10)
    """Drop when more than this share of the lines ends with an ellipsis."""
    minimum_words_with_letter: Share | None = Fraction(8, 10)
    """Drop when less than this share of the words has a letter."""
    minimum_stop_words: int | None = Field(2, ge=1)
    """Drop when fewer different words of: the, be, to, of, and, that, have, with."""


class GopherRepetition(Section):
    """Gopher's rules about repetition (arXiv 2112.11446, table A1), as datatrove applies them.

    Shares of characters are of all characters of the document. A top n-gram is the most frequent one, and its share is
    its length times its count; repeated n-grams are those seen earlier in the document, none overlapping another.
    """

    maximum_duplicate_lines: Share | None = Fraction(3, 10)
    """Drop when more than this share of the lines repeats an earlier one."""
    maximum_duplicate_line_characters: Share | None = Fraction(2, 10)
    """Drop when repeated lines hold more than this share of the characters."""
    maximum_duplicate_paragraphs: Share | None = Fraction(3, 10)
    """Drop when more than this share of the paragraphs (between empty lines) repeats an earlier one."""
    maximum_duplicate_paragraph_characters: Share | None = Fraction(2, 10)
    """Drop when repeated paragraphs hold more than this share of the characters."""
    maximum_top_2gram: Share | None = Fraction(20, 100)
    """Drop when the most frequent pair of words holds more than this share of the characters."""
    maximum_top_3gram: Share | None = Fraction(18, 100)
    """The same for three words."""
    maximum_top_4gram: Share | None = Fraction(16, 100)
    """The same for four words."""
    maximum_duplicate_5grams: Share | None = Fraction(15, 100)
    """Drop when repeated runs of five words hold more than this share of the characters."""
    maximum_duplicate_6grams: Share | None = Fraction(14, 100)
    """The same for six words."""
    maximum_duplicate_7grams: Share | None = Fraction(13, 100)
    """The same for seven words."""
    maximum_duplicate_8grams: Share | None = Fraction(12, 100)
    """The same for eight words."""
    maximum_duplicate_9grams: Share | None = Fraction(11, 100)
    """The same for nine words."""
    maximum_duplicate_10grams: Share | None = Fraction(10, 100)
    """The same for ten words."""


class C4(Section):
    """C4's rules (arXiv 1910.10683, section 2.2), as datatrove applies them: line by line, then the document.

    Lines that a rule speaks against are taken out of the document. `true` and `null` switch a rule without a threshold
    on and off. The list of bad words is left out, as datatrove leaves it to a filter of its own.
    """

    terminal_punctuation: bool | None = True
    """Take out lines that do not end with a period, `?`, `!` or a quotation mark, or that end with an ellipsis."""
    minimum_line_words: int | None = Field(3, ge=1)
    """Take out lines with fewer words between white space."""
    maximum_word_characters: int | None = Field(1000, ge=1)
    """Take out lines with a longer word."""
    no_javascript: bool | None = True
    """Take out lines that name JavaScript."""
    no_policy_phrases: bool | None = True
    """Take out lines with terms of use, privacy policy, cookie policy, uses cookies, use of cookies, use cookies."""
    no_citations: bool | None = True
    """Take citations as in Wikipedia out of the lines: [1], [edit], [citation needed]."""
    no_lorem_ipsum: bool | None = True
    """Drop documents in which `lorem ipsum` stands in a line that is left."""
    no_curly_bracket: bool | None = True
    """Drop documents in which `{` stands in a line that is left."""
    minimum_sentences: int | None = Field(5, ge=1)
    """Drop documents with fewer sentences in the lines that are left."""


class FineWeb(Section):
    """FineWeb's own rules (arXiv 2406.17557, section 3.4), as datatrove applies them.

    Lines of white space do not count.
    """

    minimum_punctuated_lines: Share | None = Fraction(12, 100)
    """Drop when less than this share of the lines ends with terminal punctuation."""
    short_line_characters: int = Field(30, ge=1)
    """A line of at most this many characters is short."""
    maximum_short_lines: Share | None = Fraction(67, 100)
    """Drop when more than this share of the lines is short."""
    maximum_duplicate_line_characters: Share | None = Fraction(1, 100)
    """Drop when repeated lines hold more than this share of the characters (line feeds not counted)."""
    maximum_line_feeds: Share | None = Fraction(3, 10)
    """Drop when there are more line feeds than this share of the number of words."""


class Quality(Section):
    """Which quality rules run; null switches a family off."""

    paper: PaperRules | None = None
    """The filters of arXiv 2504.09687."""
    gopher_quality: GopherQuality | None = None
    """Gopher's rules about words."""
    gopher_repetition: GopherRepetition | None = None
    """Gopher's rules about repetition."""
    c4: C4 | None = None
    """C4's rules about lines and sentences."""
    fineweb: FineWeb | None = None
    """FineWeb's rules about lines."""


PAPER = Quality(paper=PaperRules())  # type: ignore[call-arg]
_PRESETS: dict[str, tuple[str, ...]] = {
    "paper": ("paper",),
    "gopher": ("gopher_quality", "gopher_repetition"),
    "c4": ("c4",),
    "fineweb": ("fineweb",),
}


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
    return {family: {} for name in names for family in _PRESETS[name]}
