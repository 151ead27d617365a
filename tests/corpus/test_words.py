import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import (
    IS_CATEGORY_P,
    IS_PUNCTUATION,
    IS_SENTENCE_END,
    LETTERS,
    NUMBER,
    SYMBOLS,
    Words,
    split_words,
)

PIECES = [
    "word",
    "Word",
    "WORD",
    "don't",
    "U.S.",
    "3.5",
    "km",
    "http://a.bc/d",
    "a@b.cd",
    "e.g.",
    "--",
    "...",
    "'s",
    "É",
]
TEXTS = st.text(
    st.one_of(
        st.characters(codec="utf-8"), st.sampled_from(" \t\n\u00a0\u2003.,'’\"-—/:<>=+*^~%$€°#()…0123456789abABßé")
    )
)
MIXED = st.lists(st.one_of(TEXTS, st.sampled_from(PIECES)), max_size=12).map("".join)


def words_of(text: str) -> list[str]:
    words = split_words(batch_of([text]))
    raw = text.encode()
    return [raw[low:high].decode() for low, high in zip(words.begin.tolist(), words.end.tolist(), strict=True)]


def folded(text: str) -> list[int]:
    return [value for value in split_words(batch_of([text])).folded.tolist() if value]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" \n\t ", ""),
        ("one word", "one word"),
        ("Hello, (world)!", "Hello , ( world ) !"),
        ("“Stop,” he said.", "“ Stop , ” he said ."),
        ("don't I'll we’ve she'd I'm they're John's", "do n't I 'll we ’ve she 'd I 'm they 're John 's"),
        ("DON'T (can't) 'tis", "DO N'T ( ca n't ) ' tis"),
        ("Mr. Smith vs. the U.S. etc. e.g. J. p.", "Mr. Smith vs. the U.S. etc . e.g. J. p."),
        ("the end. THE END. in 1999. (so.)", "the end . THE END . in 1999 . ( so . )"),
        ("well-known and/or he/she A-B 3-4 a-1", "well - known and/or he / she A - B 3 - 4 a-1"),
        ("wait... what…now ..", "wait ... what … now .."),
        ("5km 10% 3.5GB $5 5$ 20°C 4x", "5 km 10 % 3.5 GB $ 5 5 $ 20 ° C 4x"),
        ("+5 +a 2+3 2*3 x+y", "+5 + a 2 + 3 2 * 3 x+y"),
        ("key=value std::vector<int> f(x) a,b 1,000", "key = value std::vector < int > f(x ) a , b 1,000"),
        ("one.Two one.two 1.2", "one . Two one.two 1.2"),
        ("http://example.com/a-b, www.a.org me@host.edu.", "http://example.com/a-b , www.a.org me@host.edu ."),
        ("no://host a-b.c/d", "no://host a - b.c / d"),
        ("a\u00a0b\u2003c\u3000d", "a b c d"),
        ("naïve Σοφία 東京 ① ß", "naïve Σοφία 東京 ① ß"),
    ],
)
def test_the_rule_by_example(text: str, words: str) -> None:
    assert words_of(text) == words.split()


@given(MIXED)
@settings(deadline=None)  # the first example may compile the rule
def test_words_cover_every_visible_character_once_and_in_order(text: str) -> None:
    words = words_of(text)
    assert "".join(words) == "".join(text.split())
    assert not any(character.isspace() for word in words for character in word)
    assert all(words)
    places = split_words(batch_of([text]))
    assert all(end <= begin for end, begin in zip(places.end[:-1].tolist(), places.begin[1:].tolist(), strict=True))


@given(st.lists(MIXED, max_size=6))
@settings(deadline=None)  # the first example may compile the rule
def test_documents_do_not_see_each_other(texts: list[str]) -> None:
    together, alone = split_words(batch_of(texts)), [split_words(batch_of([text])) for text in texts]
    starts = batch_of(texts).starts
    assert np.diff(together.starts).tolist() == [len(words.begin) for words in alone]
    for name in ("characters", "exact", "folded", "kind", "marks"):
        expected = [value for words in alone for value in getattr(words, name).tolist()]
        assert getattr(together, name).tolist() == expected, name
    places = [
        start + place for start, words in zip(starts.tolist(), alone, strict=False) for place in words.begin.tolist()
    ]
    assert together.begin.tolist() == places


@given(MIXED)
@settings(deadline=None)  # the first example may compile the rule
def test_what_is_known_of_a_word(text: str) -> None:
    words = split_words(batch_of([text]))
    for number, word in enumerate(words_of(text)):
        assert words.characters[number] == len(word)
        has_letter, has_number = any(map(str.isalpha, word)), any(unicodedata.category(c)[0] in "NM" for c in word)
        # Beyond the table of characters an unassigned code point passes for a letter.
        if all(unicodedata.category(c) != "Cn" for c in word):
            assert words.kind[number] == (LETTERS if has_letter else NUMBER if has_number else SYMBOLS)
            is_punctuation = all(unicodedata.category(c)[0] == "P" for c in word)
            assert bool(words.marks[number] & IS_CATEGORY_P) == is_punctuation
        assert (words.folded[number] == 0) == (words.kind[number] == SYMBOLS)


def test_marks() -> None:
    words = split_words(batch_of(["Is $ it , ? ... • end ."]))
    assert (words.marks & IS_PUNCTUATION != 0).tolist() == [False, True, False, True, True, True, False, False, True]
    assert (words.marks & IS_SENTENCE_END != 0).tolist() == [False] * 4 + [True] + [False] * 3 + [True]


@given(
    st.lists(
        st.sampled_from(["a", "ab", "abcdefgh", "abcdefghi", "é", "abcdefgé", "x1", "Abcdefgh", "ABCDEFGHIJKLMNOPQ"])
    )
)
@settings(deadline=None)  # the first example may compile the rule
def test_words_have_one_hash_when_they_are_the_same(words: list[str]) -> None:
    # The last words of a buffer are read in another way than the others, and words of letters in another than the rest.
    text = " ".join(words)
    exact = split_words(batch_of([text])).exact.tolist()
    small = split_words(batch_of([text])).folded.tolist()
    assert len(exact) == len(words)
    for one, other in pairwise(range(len(words))):
        assert (exact[one] == exact[other]) == (words[one] == words[other])
        assert (small[one] == small[other]) == (words[one].lower() == words[other].lower())


@pytest.mark.parametrize("length", range(1, 20))
def test_a_word_has_the_same_hash_wherever_it_is_cut_from(length: int) -> None:
    word = "Abcdefghijklmnopqrstuvwxyz"[:length]
    words = split_words(batch_of([f"{word} x-{word} ({word}) {word}, é{word}"]))
    same = [0, 3, 5, 7]
    assert len(set(words.exact[same].tolist())) == len(set(words.folded[same].tolist())) == 1
    assert len(set(words.exact.tolist())) == 7


def test_a_word_with_and_without_symbols_is_folded_alike() -> None:
    for one, other in [
        ("e.g.", "eg"),
        ("U.S.", "us"),
        ("don't", "do nt"),
        ("AT_x", "atx"),
        ("naïve!", "NAÏVE"),
        ("3,000", "3000"),
    ]:
        assert folded(one) == folded(other), one


@given(st.text(st.characters(codec="utf-8", categories=("L", "M", "Nd"), max_codepoint=0x1FFFF)))
@settings(deadline=None)  # the first example may compile the rule
def test_folded_does_not_see_case(text: str) -> None:
    # Character by character: the lower case of a whole text depends on neighbours in Greek, and may be two characters.
    lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    assert split_words(batch_of([text])).folded.tolist() == split_words(batch_of([lower])).folded.tolist()


def test_a_text_of_symbols_has_room() -> None:
    assert len(split_words(batch_of(["?!" * 20_000])).begin) == 40_000


def test_empty_batches() -> None:
    for texts in ([], [""], ["", "", "a", ""]):
        words = split_words(batch_of(texts))
        assert isinstance(words, Words)
        assert words.starts.tolist() == [0, *np.cumsum([len(text) for text in texts]).tolist()]
