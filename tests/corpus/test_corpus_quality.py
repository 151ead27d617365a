from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.corpus.documents import Document
from onward.corpus.quality.paper import paper_reason, quality_reason, repeated_ngram_characters
from onward.corpus.reading.sources import find_inputs, read_source
from onward.recipe import PaperRules, Quality, Source

PROSE = "\n".join(f"The {word} went down to the river, and nobody knew of it." for word in ["fox", "heron", "otter"])
RULES = PaperRules(maximum_duplicate_ngrams=None)


def lines_of(*words: str) -> str:
    return "\n\n".join(f"{word}, a word in a line of more than thirty characters" for word in words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lines_of("one", "two", "three"), None),
        (lines_of("one", "two") + "\n \n\t\n", "quality: too few lines"),
        (lines_of("one") + "\nshort\nbrief", None),  # 2 of 3 short is under 67 %
        (lines_of("one") + "\nshort\nbrief\ncurt", "quality: mostly short lines"),
        (lines_of("one", "two", "three") + "\n" + lines_of("one"), "quality: characters in repeated lines"),
        (lines_of("one", "one", "three"), "quality: repeated lines"),
        ("\n".join(["x" * 30, "y" * 30, "z" * 31]), None),
        ("\n".join(["x" * 30, "y" * 30, "z" * 30]), "quality: mostly short lines"),
    ],
)
def test_lines(text: str, reason: str | None) -> None:
    assert paper_reason(text, RULES) == reason


def test_a_share_on_the_threshold_is_kept() -> None:
    text = lines_of(*"abcdefg", "a", "b", "c")
    rules = PaperRules(
        maximum_duplicate_lines=Fraction(3, 10), maximum_duplicate_line_characters=None, maximum_duplicate_ngrams=None
    )
    assert paper_reason(text, rules) is None
    assert paper_reason(text, rules.model_copy(update={"maximum_duplicate_lines": Fraction(29, 100)})) is not None


def test_repeated_ngrams_by_hand() -> None:
    words = ["a", "b", "c", "d", "e", "f"]
    assert repeated_ngram_characters(words) == 0
    assert repeated_ngram_characters(words + words) == 5  # the second a-e; reading goes on behind it, at f
    assert repeated_ngram_characters(["ab"] * 11) == 20  # first at 0; 1-5 repeats it; 6-10 again
    assert paper_reason(PROSE, PaperRules()) == "quality: repeated 5-grams"


def greedy(words: list[str], n: int) -> int:
    """The reference algorithm, word for word."""
    seen: set[tuple[str, ...]] = set()
    characters = at = 0
    while at + n <= len(words):
        ngram = tuple(words[at : at + n])
        if ngram in seen:
            characters += sum(map(len, ngram))
            at += n
        else:
            seen.add(ngram)
            at += 1
    return characters


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=60), st.integers(2, 6))
def test_repeated_ngrams_equal_the_sequential_reading(words: list[str], n: int) -> None:
    assert repeated_ngram_characters(words, n) == greedy(words, n)


def test_real_text_gives_the_same_counts_as_the_sequential_reading(shared_data: Path) -> None:
    source = Source(path=str(shared_data / "domain/education/fineweb_edu_sample150.jsonl.zst"))
    for item in read_source(find_inputs(source)):
        assert isinstance(item, Document)
        assert repeated_ngram_characters(item.text.split()) == greedy(item.text.split(), 5)


def test_none_switches_rules_off() -> None:
    off = PaperRules(
        minimum_lines=None,
        maximum_short_lines=None,
        maximum_duplicate_lines=None,
        maximum_duplicate_line_characters=None,
        maximum_duplicate_ngrams=None,
    )
    assert paper_reason("x", off) is None
    assert quality_reason("x", None) is None
    assert quality_reason("x", Quality(paper=None)) is None
    assert quality_reason("x", Quality()) == "quality: too few lines"
