"""The parts of the cloze benchmark on text whose answers are known."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import small_run
from onward.corpus.prepare import prepare
from onward.evaluation.cloze import training_text
from onward.evaluation.cloze.distractors import Distractors, alike, by_rank, stems
from onward.evaluation.cloze.gaps import MINIMUM_WORDS, Sentences
from onward.evaluation.cloze.ngrams import NGrams
from onward.evaluation.cloze.selection import Material, Proposal, choose
from onward.evaluation.cloze.terms import Stream, Terms, find_terms
from onward.evaluation.cloze.training_text import sample_training_text
from onward.evaluation.cloze.words import Vocabulary, cut, read_document, sentences
from onward.model.tokenizer import read_tokenizer

LEAD = "The lecture went on for a long time and nobody in the room had yet understood what all of it was for. "


def spans(text: str) -> list[str]:
    return [text[begin:end] for begin, end in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One ends here. Another begins! And a third?", ["One ends here.", "Another begins!", "And a third?"]),
        (
            "He met Dr. Smith and J. Doe, e.g. in Rome. Then he left.",
            ["He met Dr. Smith and J. Doe, e.g. in Rome.", "Then he left."],
        ),
        ("Title\n\nA sentence that\ngoes on below. Next", ["Title", "A sentence that\ngoes on below.", "Next"]),
        ("A list:\nfirst\nsecond", ["A list:", "first\nsecond"]),
        ('He said "no." "Yes," said she.', ['He said "no."', '"Yes," said she.']),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert spans(text) == expected


def test_pieces_stand_where_they_are_said_to_stand() -> None:
    vocabulary = Vocabulary()
    text = "It's 3.5 times CO2, isn't it?\nThe well-known U.S. law."
    document = read_document(vocabulary, "d", None, "g", text)
    found = [vocabulary.surfaces[piece] for piece in document.pieces]
    assert found == [
        "It's",
        "3.5",
        "times",
        "CO2",
        ",",
        "isn't",
        "it",
        "?",
        "\n",
        "The",
        "well-known",
        "U.S",
        ".",
        "law",
        ".",
    ]
    assert all(text.startswith(piece, begin) for piece, begin in zip(found, document.begins.tolist(), strict=True))
    assert (cut(vocabulary, [text])[0] == document.pieces).all()
    folded = [vocabulary.folded[piece] for piece in cut(vocabulary, ["The the 1 22 ? ! ."])[0]]
    assert folded[0] == folded[1]
    assert folded[2] == folded[3]
    assert len(set(folded[4:])) == 1


def texts_of(*texts: str) -> tuple[Vocabulary, list[np.ndarray]]:
    vocabulary = Vocabulary()
    surfaces = cut(vocabulary, list(texts))
    return vocabulary, [np.array(vocabulary.folded, dtype=np.int32)[ids] for ids in surfaces]


def test_the_trigram_model_by_hand() -> None:
    vocabulary, ids = texts_of("red wine is red wine")
    red, wine, is_ = ids[0][:3].tolist()
    model = NGrams(ids, vocabulary.num_folded)
    # 7 words: five and the two ends. p(is) = 2 / (7 + V); c(wine, is) = 1 of 2; c(red, wine, is) = 1 of 2.
    unigram = 2 / (7 + vocabulary.num_folded)
    bigram = (1 + 20 * unigram) / (2 + 20)
    expected = np.log((1 + 5 * bigram) / (2 + 5))
    rows = np.array([[red, wine, is_]], dtype=np.int32)
    assert model.logprobs(rows)[0] == pytest.approx(expected)
    more = np.array([[red, wine, is_, red]], dtype=np.int32)
    assert model.logprobs(more)[0] < expected


def test_a_text_left_out_is_as_if_it_had_never_been_counted() -> None:
    vocabulary, ids = texts_of("a b c. a b d.", "the cat sat. a b c d e", "c d e f a b", "")
    whole, without = NGrams(ids, vocabulary.num_folded), NGrams(ids[:1] + ids[2:], vocabulary.num_folded)
    rows = np.random.default_rng(0).integers(0, vocabulary.num_folded, (200, 5)).astype(np.int32)
    assert not np.allclose(whole.logprobs(rows), without.logprobs(rows))
    whole.leave_out([ids[1]])
    assert np.allclose(whole.logprobs(rows), without.logprobs(rows), rtol=0, atol=1e-12)


def corpus_with_topics() -> list[str]:
    """Forty documents of one topic each; a topic is shared by two documents, and all share their plain words."""
    random = np.random.default_rng(0)
    plain = ["water", "house", "field", "winter", "morning", "people", "garden", "letter"]
    documents = []
    for number in range(40):
        topic = f"tova{chr(97 + number // 2)}rium"
        name = f"Lena Voro{chr(97 + number // 2)}ina"
        words = random.choice(plain, 60).tolist() + [f"of {topic} in"] * 5 + [f"by {name} and"] * 4
        documents.append(" ".join(random.permutation(words).tolist()) + ". onlyonce" + "x" * number)
    return documents


def test_terms_are_telling_of_few_documents_and_frequent_enough() -> None:
    vocabulary = Vocabulary()
    terms = find_terms(vocabulary, Stream.of(vocabulary, cut(vocabulary, corpus_with_topics())))
    assert {text for text in terms.texts if " " not in text and text.islower()} == {
        f"tova{chr(97 + n)}rium" for n in range(20)
    }
    assert {text for text in terms.texts if " " in text} == set()  # `Lena` stands in all documents: no term
    assert set(terms.counts[[text.startswith("tova") for text in terms.texts]].tolist()) == {10}
    documents = {(terms.texts[t], d) for t, d in zip(terms.term.tolist(), terms.document.tolist(), strict=True)}
    assert {document for text, document in documents if text == "tovabrium"} == {2, 3}
    same_use = terms.profiles @ terms.profiles.T
    lower = [n for n, text in enumerate(terms.texts) if text.startswith("tova")]
    upper = [n for n, text in enumerate(terms.texts) if text.startswith("Voro")]
    assert same_use[np.ix_(lower, lower)].min() > 0.9
    assert same_use[np.ix_(lower, upper)].max() < 0.1


def test_names_of_two_words_are_found() -> None:
    texts = [
        "plain words about nothing much. " * 20 + ("the Civil War and bone marrow. " * 4 if n in (3, 7) else "")
        for n in range(80)
    ]
    vocabulary = Vocabulary()
    terms = find_terms(vocabulary, Stream.of(vocabulary, cut(vocabulary, texts)))
    kinds = dict(zip(terms.texts, terms.kinds, strict=True))
    assert "Civil War" not in kinds  # `War` has three letters
    assert kinds["bone marrow"] == "name lower"


def gap(text: str, term: str, occurrence: int = 0) -> tuple[str, str] | str:
    document = read_document(Vocabulary(), "d", None, "g", text)
    begin = [n for n in range(len(text)) if text.startswith(term, n)][occurrence]
    rejected: Counter[str] = Counter()
    found = Sentences(document).gap(term, begin, rejected)
    if found is None:
        return next(iter(rejected))
    assert not rejected
    return text[found.start : found.begin], text[found.end : found.stop]


def test_a_gap_has_its_sentence_and_the_sentences_before() -> None:
    text = f"{LEAD}Then the speaker took out a small gyroscope, and everyone looked up at once. After that they left."
    assert gap(text, "gyroscope") == (
        f"{LEAD}Then the speaker took out a small ",
        ", and everyone looked up at once.",
    )


def test_the_context_never_names_the_term() -> None:
    sentence = "Then the speaker took out a small gyroscope, and everyone looked up at once."
    found = gap(f"All gyroscopic things are odd. {LEAD}{sentence}", "gyroscope")
    assert found[0] == f"{LEAD}Then the speaker took out a small "
    reason = "too little text before it that does not name it"
    assert gap(f"{LEAD}All gyroscopes are odd. {sentence}", "gyroscope", 1) == reason
    named_within = "Then, of all the gyroscopes, the speaker took a small gyroscope in both hands."
    assert gap(LEAD + named_within, "gyroscope", 1) == reason
    assert len(LEAD.split()) >= MINIMUM_WORDS


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("The speaker took a small gyroscope.", "in a line or sentence too short or too long"),
        ("The speaker took out a small gyroscope and then he left the room", "in a line that is no sentence"),
        ("The gyroscope was in the speaker's hand for all of the rest.", "too near the sentence's beginning"),
        ("Then the speaker took out a micro-gyroscope and held it up for all.", "joined to something else"),
        ("Then the speaker took out (gyroscope) and held it up for us all.", "joined to something else"),
        ("Then x = gyroscope and y = 2 and z = 3 and so on and so forth.", "in formulas, code or a list"),
        (
            "Then the gyroscope turned, and it was a good gyroscope indeed, he said.",
            "the term stands again in the sentence",
        ),
        ("Then Anna and Bert with Carl Dora Meier took gyroscope Emil Fritz Gina Hugo.", "in a list of names"),
    ],
)
def test_gaps_that_make_no_good_item(sentence: str, reason: str) -> None:
    assert gap(LEAD + sentence, "gyroscope") == reason


def test_a_word_within_a_longer_name_is_no_gap() -> None:
    sentence = "Then they talked about the Civil Rights of their people for all the rest of it."
    assert gap(LEAD + sentence, "Rights") == "part of a longer name"
    assert gap(LEAD + sentence, "Civil") == "part of a longer name"
    assert gap(LEAD + sentence.replace("Civil Rights", "Rights"), "Rights") != "part of a longer name"


def terms_with(texts: list[str], counts: list[int], kinds: list[str] | None = None) -> Terms:
    none = np.zeros(0, dtype=np.int64)
    forms = np.stack([np.arange(len(texts)), np.full(len(texts), -1)], axis=1).astype(np.int32)
    profiles = np.ones((len(texts), 1))
    return Terms(
        forms,
        tuple(texts),
        np.array(counts),
        tuple(kinds or ["lower"] * len(texts)),
        profiles,
        none,
        none,
        none,
        profiles[:0, 0],
    )


def test_distractors_are_of_the_kind_and_frequency_and_not_in_the_document() -> None:
    texts = ["enzyme", "anchor", "ribbon", "saddle", "common", "enzymes", "enzymic", "planet", "Madrid", "absent"]
    counts = [10, 10, 6, 19, 100, 10, 10, 10, 10, 3]
    kinds = ["lower"] * 8 + ["capitalised", "lower"]
    pool = Distractors(terms_with(texts, counts, kinds)).pool(0, "planetary motion", "the")
    # With so few, frequencies within a factor of four are taken too.
    assert {texts[n] for n in pool} == {"anchor", "ribbon", "saddle", "absent"}
    after_an = Distractors(terms_with(texts, counts, kinds)).pool(0, "", "an")
    assert {texts[n] for n in after_an} == {"anchor", "absent"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cells", "cellular", True),
        ("colour", "color", True),
        ("fluorine", "chlorine", True),
        ("bone marrow", "marrow", True),
        ("protein", "enzyme", False),
        ("Jefferson", "Madison", False),
    ],
)
def test_variants_are_no_distractors(one: str, other: str, same: bool) -> None:
    assert alike(stems(one), stems(other), one.lower(), other.lower()) is same


def proposals(number: int, skill: float, seed: int) -> list[Proposal]:
    """Proposals of whose answers the n-gram model is often sure: their scores are shifted upwards by `skill`."""
    random = np.random.default_rng(seed)
    found = []
    for n in range(number):
        gap = type("", (), {"start": 0, "begin": n, "end": n, "stop": n})()
        pool = tuple(random.permutation(39)[:20].tolist())
        scores = random.normal(size=20)
        found.append(Proposal(0, 0, gap, 39, pool, scores, float(random.normal(loc=skill))))
    return found


@pytest.mark.parametrize("skill", [0.0, 1.5, 2.0])
def test_the_right_term_is_as_often_each_choice_of_the_ngram_model(skill: float) -> None:
    document = read_document(Vocabulary(), "d", None, "g", "x" * 2000)
    terms = terms_with([f"term{n}" for n in range(40)], [9] * 40)
    material = Material([document], [document.pieces], document.pieces, terms, NGrams([document.pieces], 3))
    rejected: Counter[str] = Counter()
    items = choose(proposals(2000, skill, 1), material, 200, np.random.default_rng(0), rejected)
    assert len(items) == 200
    places = [int((np.array(item.ngram) > item.ngram[item.gold]).sum()) for item in items]
    assert Counter(places) == dict.fromkeys(range(4), 50)
    golds = Counter(item.gold for item in items)
    assert max(golds.values()) < 50 + 4 * np.sqrt(200 * 3 / 16)
    # The place says nothing of the item: not how sure the model was of it within its pool.
    answers = np.array([proposal.answer for proposal in proposals(2000, skill, 1)])
    of_item = np.array([answers[int(item.id.split(":")[1])] for item in items])
    assert abs(np.corrcoef(places, of_item)[0, 1]) < 4 / np.sqrt(200)
    assert (rejected["the n-gram model is too sure"] > 800) == (skill > 1)
    assert choose(proposals(2000, skill, 1), material, 200, np.random.default_rng(0), rejected) == items


def test_distractors_by_rank() -> None:
    scores, random = np.array([1.0, 2.0, 3.0, 4.0]), np.random.default_rng(0)
    for rank in (0, 1, 2):
        chosen = by_rank(scores, 2.5, rank, 2, random)
        assert len(set(chosen.tolist())) == 2
        assert (scores[chosen] > 2.5).sum() == rank


def test_the_sample_is_of_the_text_that_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the byte tokenizer a character is a token."""
    place = small_run.write_inputs(tmp_path)
    tokenizer = read_tokenizer(place / "model")
    corpus = prepare(
        small_run.recipe(place).corpus,
        tokenizer=tokenizer,
        sequence_tokens=48,
        wanted_tokens=None,
        seed=5,
        folders=small_run.folders(place),
        workers=1,
    ).path
    written = {json.loads(line)["text"] for line in (place / "domain.jsonl").read_text().splitlines()}
    held_out = set(pq.read_table(corpus / "held_out.parquet")["text"].to_pylist())
    whole = sample_training_text(corpus, 10**9, seed=0)
    assert set(whole) == written - held_out
    assert len(whole) == len(written) - len(held_out) > 30, "each once"
    some = sample_training_text(corpus, 3000, seed=0)
    assert some == whole[: len(some)]
    assert sum(map(len, some[:-1])) < 3000 <= sum(map(len, some)) + len(some), "an end token each"
    assert sample_training_text(corpus, 3000, seed=1) != some
    monkeypatch.setattr(training_text, "_LONGEST_TOKENS", 50)
    cut = sample_training_text(corpus, 10**9, seed=0)
    assert cut == [text[:50] for text in whole], "nothing of a long document but its front"
    assert len(sample_training_text(corpus, 500, seed=0)) == 10
