import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import plain_rules
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from onward.corpus.documents import Document
from onward.corpus.quality.judge import Judgement, judge
from onward.corpus.reading.sources import find_inputs, read_source
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import split_words
from onward.recipe import PaperRules, Quality, Source
from onward.recipe.quality import C4, FineWeb, GopherQuality, GopherRepetition, from_presets

PROSE = "\n".join(f"The {word} went down to the river, and nobody knew of it." for word in ["fox", "heron", "otter"])
RULES = Quality(paper=PaperRules(maximum_duplicate_ngrams=None))
EVERYTHING = Quality.model_validate(from_presets(["paper", "gopher", "fineweb"]))
FAMILIES: list[Callable[[str], dict[str, float]]] = [
    plain_rules.paper,
    plain_rules.gopher_quality,
    plain_rules.gopher_repetition,
    plain_rules.fineweb,
]


def judged(texts: list[str], quality: Quality | None) -> Judgement:
    batch = batch_of(texts)
    return judge(batch, split_words(batch), quality)


def reason(text: str, quality: Quality | None) -> str | None:
    judgement = judged([text], quality)
    return None if judgement.reason[0] < 0 else judgement.reasons[judgement.reason[0]]


def only(section: type, **rules: object) -> object:
    """A family with nothing but these rules."""
    off = {name: None for name in section.model_fields if name != "short_line_characters"}
    return section(**{**off, **rules})


def lines_of(*words: str) -> str:
    return "\n\n".join(f"{word}, a word in a line of more than thirty characters" for word in words)


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_lines(text: str, expected: str | None) -> None:
    assert reason(text, RULES) == expected


def test_a_share_on_the_threshold_is_kept() -> None:
    text = lines_of(*"abcdefg", "a", "b", "c")
    for limit, expected in [(Fraction(3, 10), None), (Fraction(29, 100), "quality: repeated lines")]:
        rules = only(PaperRules, maximum_duplicate_lines=limit)
        assert reason(text, Quality(paper=rules)) == expected


def test_repeated_ngrams_by_hand() -> None:
    assert reason(PROSE, Quality(paper=PaperRules())) == "quality: repeated 5-grams"
    words = "ab cd ef gh ij kl"
    quality = Quality(paper=only(PaperRules, maximum_duplicate_ngrams=1))
    for text, characters in [(words, 0), (f"{words} {words}", 10), (" ".join(["ab"] * 11), 20)]:
        value = judged([text], quality).measures[0].values[0]
        assert value == np.float32(characters / len(text))


@given(st.text("ab .\n#-•…[1]{…\r\u2028\u00a0É'", max_size=60), st.data())
@settings(max_examples=300, deadline=None)  # the first example may compile the rules
def test_every_number_is_that_of_the_plain_rules(text: str, data: st.DataObject) -> None:
    text = text * data.draw(st.sampled_from([1, 1, 2, 3]))
    assert_as_plain([text])


def assert_as_plain(texts: list[str]) -> None:
    judgement = judged(texts, EVERYTHING)
    values = {measure.rule: measure.values for measure in judgement.measures}
    for n, text in enumerate(texts):
        expected = {name: value for family in FAMILIES for name, value in family(text).items()}
        assert set(values) == set(expected)
        for name, value in expected.items():
            both_undefined = math.isnan(value) and math.isnan(values[name][n])
            assert both_undefined or values[name][n] == np.float32(value), (name, text[:200])
        # The first rule that speaks is the reason.
        speaks = [
            (measure.values[n] > np.float32(measure.threshold))
            if measure.is_maximum
            else (measure.values[n] < np.float32(measure.threshold))
            for measure in judgement.measures
        ]
        assert judgement.reason[n] == (speaks.index(True) if any(speaks) else -1)


@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "dd."]), max_size=60).map(" ".join), max_size=3))
@settings(deadline=None)
def test_ngrams_of_few_words(texts: list[str]) -> None:
    assert_as_plain(texts)


def read_texts(path: Path, number: int) -> list[str]:
    items = read_source(find_inputs(Source(path=str(path))))
    return [item.text for _, item in zip(range(number), items, strict=False) if isinstance(item, Document)]


def test_real_texts_give_the_numbers_of_the_plain_rules(shared_data: Path) -> None:
    assert_as_plain(read_texts(shared_data / "domain/education/fineweb_edu_sample150.jsonl.zst", 150))
    assert_as_plain(read_texts(shared_data / "domain/technical/powershell_docs.jsonl.zst", 60))


def test_many_lines_and_paragraphs_at_random() -> None:
    random.seed(1)
    parts = [
        "a b c",
        "a b c",
        "文です。",
        "......",
        "oh.......…",
        " x ",
        "",
        "",
        "\t",
        "- y",
        "z...",
        "\u00a0",
        "q" * 31,
        "two. three!",
        "w\r",
        "e\v",
    ]
    assert_as_plain(["\n".join(random.choices(parts, k=random.randrange(12))) for _ in range(400)])


C4_PARTS = [
    "A line that ends well.",
    "Lorem ipsum dolor sit amet.",
    "No end here",
    "Two words.",
    'He said "yes [1] and no.[citation needed]',
    "We wait and see...",
    "See our Privacy Policy for this.",
    "It uses cookies, we fear!",
    "Please enable JavaScript now.",
    "One {curly bracket here.",
    "Enable JavaScript { to see it.",
    " [edit] Is it? It is! So be it. (Or not.) ",
    "x" * 1001 + " is too long.",
    "Nothing [12] to [ab] see [] here'",
    "",
    "  ",
    "\u2028 after all it was.",
]


@pytest.mark.parametrize("off", [(), ("terminal_punctuation",), ("minimum_line_words", "terminal_punctuation"), "rest"])
def test_c4_leaves_what_the_plain_rules_leave(off: tuple[str, ...] | str) -> None:
    random.seed(2)
    fields = set(C4.model_fields)
    names = fields - {"minimum_sentences"} if off == "rest" else off
    rules = C4(**dict.fromkeys(names))
    texts = ["\n".join(random.choices(C4_PARTS, k=random.randrange(9))) for _ in range(600)]
    judgement = judged(texts, Quality(c4=rules))
    for n, text in enumerate(texts):
        left, dropped = plain_rules.c4(text, rules)
        found = None if judgement.reason[n] < 0 else judgement.reasons[judgement.reason[n]]
        assert (found in dropped) if dropped else found is None, (text, found, dropped)
        assert judgement.trimmed.get(n) == (None if dropped or left == text else left), text


def test_c4_counts_sentences_of_real_text(shared_data: Path) -> None:
    texts = read_texts(shared_data / "domain/education/fineweb_edu_sample150.jsonl.zst", 150)
    judgement = judged(texts, Quality(c4=C4()))
    counted = {measure.rule: measure.values for measure in judgement.measures}["c4: too few sentences"]
    for n, text in enumerate(texts):
        left, dropped = plain_rules.c4(text, C4())
        if judgement.reason[n] < 0:
            assert not dropped
            assert counted[n] == sum(map(plain_rules.sentences, left.splitlines()))


def test_the_first_family_that_speaks_is_the_reason() -> None:
    text = "too short # # # #"
    order = [
        "quality: too few lines",
        "gopher quality: too few words",
        "c4: too few sentences",
        "fineweb: lines without punctuation",
    ]
    presets = ["paper", "gopher", "c4", "fineweb"]
    for number, expected in enumerate(order):
        quality = Quality.model_validate(from_presets(presets[number:]))
        assert reason(text, quality) == expected


@pytest.mark.parametrize("section", [PaperRules, GopherQuality, GopherRepetition, C4, FineWeb])
def test_every_rule_can_be_switched_off(section: type) -> None:
    family = {"PaperRules": "paper", "GopherQuality": "gopher_quality", "GopherRepetition": "gopher_repetition"}
    name = family.get(section.__name__, section.__name__.lower())
    judgement = judged(["x", "", "{ " * 40 + "\n" * 9], Quality(**{name: only(section)}))
    assert not judgement.measures
    assert set(judgement.reasons) <= {"c4: no lines left"}
    assert judgement.reason.tolist()[0] == -1


def test_none_switches_quality_off() -> None:
    for quality in (None, Quality()):
        judgement = judged(["x", ""], quality)
        assert (judgement.reason.tolist(), judgement.reasons, judgement.measures) == ([-1, -1], (), ())


def test_presets() -> None:
    assert from_presets("none") is None
    quality = Quality.model_validate(from_presets(["gopher", "fineweb"]))
    assert quality == Quality(gopher_quality=GopherQuality(), gopher_repetition=GopherRepetition(), fineweb=FineWeb())
    with pytest.raises(ValueError, match="unknown preset good; the presets are paper, gopher, c4, fineweb and none"):
        from_presets(["good"])
    with pytest.raises(ValidationError):
        FineWeb(maximum_short_lines="130%")


def test_nothing_to_judge() -> None:
    judgement = judged([], EVERYTHING)
    assert len(judgement.reason) == 0
    assert all(len(measure.values) == 0 for measure in judgement.measures)
