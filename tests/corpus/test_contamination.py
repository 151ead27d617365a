"""Benchmark items planted in text are found, near misses are not; a scan finds what a plain search finds."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.contamination.index import (
    ANSWER_WINDOW_WORDS,
    MOST_ITEMS,
    QUESTION_WORDS,
    WHOLE_WORDS,
    ItemIndex,
    build_index,
)
from onward.corpus.contamination.scan import MOST_PIECES, WINDOW_CHARACTERS, Hit, cut_items, cut_passages, scan
from onward.corpus.contamination.table import EXCERPT_CHARACTERS, excerpt
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import SYMBOLS, split_words
from onward.recipe import Contamination
from onward.tasks import Question

FILLER = "Over the hills the carts went slowly, and nobody spoke of what had been seen at the ford. "
PASSAGE = (
    "Persian, also known by its endonym Farsi, is one of the Western Iranian languages within the Indo-Iranian branch "
    "of the family. It is primarily spoken in Iran, Afghanistan and Tajikistan, and some other regions."
)
MMLU = "Which of the following properties of a wave does not change when it passes from one medium into another?"
OPTIONS = ("Its frequency", "Its wavelength", "Its speed", "Its direction")
STEM = "The speed of sound in dry air depends on"
ITEMS = {
    "boolq": [Question("boolq", "0", (PASSAGE,), "do iran and afghanistan speak the same language?")],
    "mmlu": [
        Question("mmlu", "physics/0", (f"{MMLU} {' '.join(OPTIONS)}",), MMLU, OPTIONS[0]),
        Question("mmlu", "physics/1", ("What is a prism made of? glass lead",), "What is a prism made of?", "glass"),
        Question("mmlu", "physics/2", (f"{STEM} temperature colour",), STEM, "temperature"),
        Question("mmlu", "physics/3", ("Entropy is disorder order",), "Entropy is", "disorder"),
    ],
}


def index_of(items: dict[str, list[Question]] | None = None, **rules: object) -> ItemIndex:
    return build_index(items or ITEMS, Contamination(**rules))  # type: ignore[arg-type]


def hits_in(*texts: str, index: ItemIndex | None = None) -> tuple[Hit, ...]:
    batch = batch_of(texts)
    return scan(batch, split_words(batch), index or index_of())


def found_in(text: str, index: ItemIndex | None = None) -> list[str]:
    index = index or index_of()
    return [index.names[hit.item][1] for hit in hits_in(text, index=index)]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (PASSAGE, ["0"]),
        (PASSAGE[20:150], ["0"]),
        ("Do Iran and\nAfghanistan speak the SAME language", ["0"]),
        (MMLU, ["physics/0"]),
        (f"{MMLU}\n(A) {OPTIONS[3]}\n(B) {OPTIONS[1]}\n(C) {OPTIONS[0]}\n(D) {OPTIONS[2]}", ["physics/0"]),
        (MMLU.upper().replace(" ", " -- "), ["physics/0"]),
        ("17. what is a PRISM made of?\n a) lead\n b) tin\n c) Glass", ["physics/1"]),
        ("The speed of sound in dry air depends on: (a) colour (b) temperature", ["physics/2"]),
    ],
)
def test_planted_items_are_found(text: str, items: list[str]) -> None:
    assert found_in(FILLER * 20 + text + ". " + FILLER * 20) == items
    assert found_in(text) == items


@pytest.mark.parametrize(
    "text",
    [
        " ".join(PASSAGE.split()[:12]),
        MMLU.replace("does not change", "changes").replace("it passes", "they pass"),
        "What is a prism made of? Nobody knows.",
        "What is a prism made of? " + "So it went on. " * 10 + "glass",
        "What is a prism made of? glas",
        "What are prisms made of? glass",
        "the speed of sound in dry air depends on many things",
        "Entropy is disorder",
        "iran and afghanistan speak the same language",
    ],
)
def test_near_misses_are_not_found(text: str) -> None:
    assert found_in(f"{FILLER}{text}. {FILLER}") == []


def test_the_window_ends_where_it_says() -> None:
    between = "so " * (ANSWER_WINDOW_WORDS - 1)
    assert found_in(f"What is a prism made of? {between}glass") == ["physics/1"]
    assert found_in(f"What is a prism made of? {between}so glass") == []


def test_items_do_not_reach_over_documents() -> None:
    words = PASSAGE.split()
    assert hits_in(" ".join(words[:11]), " ".join(words[11:22])) == ()
    assert len(hits_in(" ".join(words[:22]))) == 1
    assert hits_in("do iran and afghanistan", "speak the same language") == ()
    assert hits_in("What is a prism made of?", "glass") == ()
    assert [hit.document for hit in hits_in("", PASSAGE, FILLER, PASSAGE)] == [1, 3]


def test_score_is_the_share_of_the_text_and_the_passage_is_where_it_stands() -> None:
    words = split_words(batch_of([PASSAGE]))
    ngrams = int((words.kind != SYMBOLS).sum()) - 12
    part = PASSAGE[: PASSAGE.index(" It is primarily")]
    text = f"Ein Wort: „{part}“ {FILLER}"
    (hit,) = hits_in(text)
    assert text.encode()[hit.begin : hit.end].decode() == part.rstrip(".")
    part_words = split_words(batch_of([part]))
    assert hit.score == pytest.approx((int((part_words.kind != SYMBOLS).sum()) - 12) / ngrams)
    assert hits_in(PASSAGE)[0].score == 1.0
    assert hits_in(text, index=index_of(minimum_overlap="90%")) == ()
    assert len(hits_in(PASSAGE, index=index_of(minimum_overlap="90%"))) == 1


def test_of_several_texts_the_best_score_counts() -> None:
    both = Question("t", "0", (f"{PASSAGE} {FILLER}", PASSAGE, f"{FILLER} {PASSAGE}"))
    assert [hit.score for hit in hits_in(PASSAGE, index=index_of({"t": [both]}))] == [1.0]


def test_passages_of_an_item_far_apart_are_two() -> None:
    hits = hits_in(f"{MMLU} {FILLER * 3} {MMLU}")
    assert len(hits) == 2
    assert hits[0].end < hits[1].begin
    assert len(hits_in(f"{MMLU} Think of {MMLU}")) == 1


def test_length_of_the_ngrams_is_the_recipes() -> None:
    text = " ".join(PASSAGE.split()[:12])
    assert found_in(text, index_of(ngram_words=12)) == ["0"]
    assert found_in(PASSAGE[:150], index_of(ngram_words=13)) == ["0"]
    assert found_in(PASSAGE[:150], index_of(ngram_words=30)) == []


def test_boilerplate_and_questions_of_several_items() -> None:
    opening = "For each of the statements below choose the letter that stands beside the best answer to it."
    many = [
        Question("t", str(n), (f"{opening} Number {'x' * (n + 1)} is it",), None, None) for n in range(MOST_ITEMS + 1)
    ]
    assert found_in(opening, index_of({"t": many})) == []
    assert len(found_in(opening, index_of({"t": many[1:]}))) == MOST_ITEMS
    assert found_in(f"{opening} Number xxx is it", index_of({"t": many})) == ["2"]
    asked = "Which of these sentences is the true one?"
    twice = [Question("t", "0", (), asked, "snow is white"), Question("t", "1", (), asked, "grass is green")]
    assert len(split_words(batch_of([asked])).kind) - 1 >= WHOLE_WORDS
    assert found_in(asked, index_of({"t": twice})) == []
    assert found_in(f"{asked} Grass is green.", index_of({"t": twice})) == ["1"]
    assert found_in(asked, index_of({"t": twice[:1]})) == ["0"]


def test_an_index_of_nothing_finds_nothing_and_indices_travel() -> None:
    assert hits_in(PASSAGE, index=index_of({"t": []})) == ()
    assert hits_in(PASSAGE, index=index_of({"t": [Question("t", "0", ("",), "", "")]})) == ()
    assert hits_in("", index=index_of()) == ()
    assert found_in(MMLU, pickle.loads(pickle.dumps(index_of()))) == ["physics/0"]


WORDS = st.sampled_from(["red", "blue", "green"])
SENTENCES = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)


def plain_search(text: str, question: Question, ngram: int) -> float | None:
    """The score by the rules as they are written, over lists of words; None when nothing is found."""

    def cut(text: str) -> list[str]:
        return text.lower().replace("?", "").split()

    def grams(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[n : n + ngram]) for n in range(len(words) - ngram + 1)}

    def places(wanted: list[str]) -> list[int]:
        return [n for n in range(len(words) - len(wanted) + 1) if words[n : n + len(wanted)] == wanted]

    words, asked, answer = cut(text), cut(question.asked or ""), cut(question.answer or "")
    alone = len(asked) >= WHOLE_WORDS and (question.asked or "").endswith("?")
    found = []
    for wanted, needs_answer in [*((cut(text), False) for text in question.texts), (asked, not alone)]:
        ends = [place + len(wanted) for place in places(wanted)]
        if len(wanted) >= ngram:
            found.append(len(grams(wanted) & grams(words)) / len(grams(wanted)))
        elif not needs_answer and len(wanted) >= WHOLE_WORDS:
            found.append(1.0 if ends else 0.0)
        elif needs_answer and len(wanted) >= QUESTION_WORDS:
            near = [end for end in ends for at in places(answer) if end <= at < end + ANSWER_WINDOW_WORDS]
            found.append(1.0 if near else 0.0)
    return max(found, default=0.0) or None


@given(SENTENCES, SENTENCES, st.sampled_from(["", "?"]), WORDS, SENTENCES, SENTENCES)
@settings(max_examples=300, deadline=None)
def test_a_scan_finds_what_a_plain_search_finds(
    text: str, asked: str, mark: str, answer: str, before: str, after: str
) -> None:
    question = Question("t", "0", (text,), asked + mark, answer)
    index = index_of({"t": [question]}, ngram_words=10)
    for document in (f"{before} {asked} {after}", f"{before} {text} {after}", before, after + answer):
        found = {hit.score for hit in hits_in(document, index=index)}
        score = plain_search(document, question, 10)
        assert found == (set() if score is None else {score})


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([PASSAGE, MMLU, PASSAGE[30:140], ""])), max_size=6))
@settings(max_examples=60, deadline=None)
def test_nothing_is_found_in_what_was_cut(parts: list[tuple[int, str]]) -> None:
    index = index_of()
    text = " ".join(f"{FILLER * times}{planted}." for times, planted in parts)
    left = cut_items(text, index)
    assert hits_in(left, index=index) == ()
    assert (left == text) == (not hits_in(text, index=index))


def test_what_a_cut_brings_together_is_cut_as_well() -> None:
    half, end = PASSAGE.index("Western"), PASSAGE.index("It is primarily")
    window = "x " * (WINDOW_CHARACTERS // 2)
    planted = f"\n{window}{PASSAGE} {window}\n"
    text = f"{FILLER * 4}{PASSAGE[:half]}{planted}{PASSAGE[half:end]}{FILLER * 4}"
    once = cut_passages(text, [(hit.begin, hit.end) for hit in hits_in(text)])
    assert hits_in(once) != ()
    assert hits_in(cut_items(text, index_of())) == ()


def test_cuts_take_a_window_and_end_at_borders() -> None:
    before, after = "One. " * 100 + "Word " * 41 + "end. ", "Word " * 41 + "end. " + "Two. " * 100
    text = f"{before}XXXX{after}"
    place = len(before)
    assert cut_passages(text, [(place, place + 4)]) == ("One. " * 100).strip() + "\n\n" + ("Two. " * 100).strip()
    lines = "Über\n" * 100 + "XXXX\n" + "zwei\n" * 100
    at = lines.encode().index(b"XXXX")
    left = cut_passages(lines, [(at, at + 4)])
    assert set(left.split()) == {"Über", "zwei"}
    assert len(left.split()) == 200 - 2 * WINDOW_CHARACTERS // 5
    run = "x" * 3000
    assert cut_passages(run, [(1000, 1010)]) == "x" * (1000 - WINDOW_CHARACTERS) + "\n\n" + "x" * (
        1990 - WINDOW_CHARACTERS
    )
    assert cut_passages(text, []) == text


def test_short_pieces_go_and_texts_made_of_items_are_left_empty() -> None:
    assert cut_passages(f"{FILLER}XXXX{FILLER}", [(len(FILLER), len(FILLER) + 4)]) == ""
    long = FILLER * 20
    between = "So it is. " * 50
    at = len(long) + 6 + len(between)
    left = cut_passages(f"{long}XXXX. {between}XXXX. {long}", [(len(long), len(long) + 4), (at, at + 4)])
    assert (left.count("So it is"), left.count("\n\n")) == (0, 1)
    text = (long + "XXXX. ") * (MOST_PIECES - 1) + long
    spans = [(at, at + 4) for at in range(len(text)) if text.startswith("XXXX", at)]
    assert len(cut_passages(text, spans).split("\n\n")) == MOST_PIECES
    more = text + "XXXX. " + long
    assert cut_passages(more, [*spans, (len(text), len(text) + 4)]) == ""


def test_excerpts_mark_the_passage_and_stay_short() -> None:
    texts = [f"{FILLER}{MMLU}\n{FILLER}", f"{FILLER * 2}{PASSAGE * 5}{FILLER}", "«é» " * 40 + MMLU]
    batch = batch_of(texts)
    shown = [excerpt(batch, hit) for hit in hits_in(*texts)]
    assert shown[0].endswith(
        f"had been seen at the ford. [[{MMLU[:-1]}]]? Over the hills the carts went slowly, and nobody"
    )
    assert len(shown) == 3
    assert "[[Persian" in shown[1]
    assert " ... " in shown[1]
    assert all(len(text) <= EXCERPT_CHARACTERS for text in shown)
    assert "«é» [[Which" in shown[2]
    assert "\N{REPLACEMENT CHARACTER}" not in shown[2]


EXPECTED = {
    "domain/education/openstax_us-history": {"mmlu": 15},
    "domain/education/openstax_american-government": {"mmlu": 15, "boolq": 5},
    "domain/education/openstax_world-history": {"mmlu": 19},
    "domain/education/openstax_principles-marketing": {"mmlu": 1},
    "domain/education/openstax_prealgebra-bundle": {},
    "domain/legal/dc_laws": {},
    "general/storybooks": {},
}
"""Items of the seven tasks found in files of the shared data, some with many, some with none."""


def test_known_overlaps_of_real_text(shared_data: Path) -> None:
    import json

    import zstandard

    from onward.recipe import TASKS
    from onward.tasks import load_questions

    index = build_index(load_questions(TASKS, shared_data / "bench", None), Contamination())  # type: ignore[call-arg]
    assert len(index.names) == 34_007
    found = {}
    for name in EXPECTED:
        with zstandard.open(shared_data / f"{name}.jsonl.zst", "rt", encoding="utf-8") as lines:
            hits = hits_in(*(json.loads(line)["text"] for line in lines), index=index)
        items = {index.names[hit.item] for hit in hits}
        tasks = sorted({task for task, _ in items})
        found[name] = {task: sum(1 for whose, _ in items if whose == task) for task in tasks}
    assert found == EXPECTED
    assert sum(array.nbytes for array in (index.ngrams.keys, index.ngrams.owners, index.ngrams.filter)) < 32e6
    assert np.all(np.diff(index.ngrams.keys.astype(np.float64)) >= 0)
