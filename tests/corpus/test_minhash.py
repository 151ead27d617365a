"""MinHash: who meets whom, by the formula and on real text."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zstandard

from onward.corpus.duplicates.minhash import band_keys, inclusion_probability, threshold
from onward.corpus.duplicates.passages import SAMPLED, passage_keys
from onward.corpus.duplicates.seen import COVERED, NEAR, Seen
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import SYMBOLS, Words, split_words
from onward.recipe import NearDuplicates


def rules(**fields: int) -> NearDuplicates:
    return NearDuplicates.model_validate(fields)


def words_of(hashes: np.ndarray) -> Words:
    """Documents (rows) of given word hashes."""
    documents, size = hashes.shape
    nothing = np.zeros(hashes.size, dtype=np.int32)
    columns = dict.fromkeys(Words.__dataclass_fields__, nothing)
    columns |= {"folded": hashes.ravel(), "kind": np.full(hashes.size, 2, dtype=np.uint8)}
    return Words(**columns | {"starts": np.arange(documents + 1, dtype=np.int64) * size})  # type: ignore[arg-type]


def meet(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return ((first == second) & (first != 0)).any(axis=1)


@pytest.mark.parametrize("fields", [{}, {"bands": 20, "rows": 5}, {"bands": 6, "rows": 3}])
@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_documents_meet_as_often_as_the_formula_says(fields: dict[str, int], similarity: float) -> None:
    near = rules(ngram_words=1, **fields)
    pairs, union = 6000, 200
    shared = round(similarity * union)
    own = (union - shared) // 2
    hashes = np.random.default_rng(5).integers(1, 2**64, (pairs, shared + 2 * own), dtype=np.uint64)
    first = band_keys(words_of(hashes[:, : shared + own]), near)
    second = band_keys(words_of(np.roll(hashes, own, axis=1)[:, : shared + own]), near)
    exact = shared / (shared + 2 * own)
    assert abs(meet(first, second).mean() - inclusion_probability(exact, near)) < 0.02


def records(path: Path) -> list[dict[str, str]]:
    lines = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode().splitlines()
    return [json.loads(line) for line in lines]


def shingles(words: Words, document: int, ngram: int) -> set[tuple[int, ...]]:
    """The shingles of a document, from their definition."""
    part = slice(words.starts[document], words.starts[document + 1])
    folded = words.folded[part][words.kind[part] != SYMBOLS].tolist()
    if len(folded) < ngram:
        return {tuple(folded)} - {()}
    return set(zip(*(folded[n:] for n in range(ngram)), strict=False))


def jaccard(first: set[tuple[int, ...]], second: set[tuple[int, ...]]) -> float:
    return len(first & second) / len(first | second)


def test_edited_real_text_meets_as_often_as_the_formula_says(shared_data: Path) -> None:
    near = rules()
    random = np.random.default_rng(6)
    words = [
        word
        for record in records(shared_data / "domain/education/openstax_us-history.jsonl.zst")[:120]
        for word in record["text"].split()
    ]
    pieces = [words[at : at + 150] for at in range(0, len(words) - 150, 150)]
    similarities, met = [], []
    for rate in (0.01, 0.02, 0.03, 0.04, 0.05, 0.07):
        edited = [
            [
                words[random.integers(len(words))] if change else word
                for word, change in zip(piece, changes, strict=True)
            ]
            for piece, changes in zip(pieces, random.random((len(pieces), 150)) < rate, strict=True)
        ]
        both = split_words(batch_of([" ".join(piece) for piece in pieces + edited]))
        keys = band_keys(both, near)
        met.append(meet(keys[: len(pieces)], keys[len(pieces) :]))
        similarities += [jaccard(shingles(both, n, 5), shingles(both, n + len(pieces), 5)) for n in range(len(pieces))]
    expected, found = inclusion_probability(similarities, near), np.concatenate(met)
    for low, high in ((0.0, 0.3), (0.3, 0.8), (0.8, 1.0), (0.0, 1.0)):
        within = (expected >= low) & (expected <= high)
        assert within.sum() > 1500
        assert abs(found[within].mean() - expected[within].mean()) < 0.02


def test_the_threshold_is_where_half_of_the_pairs_meet() -> None:
    near = rules()
    assert threshold(near) == pytest.approx(0.6847, abs=1e-4)
    assert inclusion_probability(threshold(near), near) == pytest.approx(0.5)
    assert inclusion_probability([0, 1], near).tolist() == [0, 1]


def keys_of(texts: Sequence[str], **fields: int) -> np.ndarray:
    return band_keys(split_words(batch_of(texts)), rules(**fields))


def test_shingles_are_runs_of_lower_case_words_without_symbols() -> None:
    keys = keys_of(["One, two -- three! four five", "one two three four five", "five four three two one"])
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).all()


def test_short_documents_are_one_shingle_and_empty_ones_meet_none() -> None:
    keys = keys_of(["two words", "Two words.", "two other", "", " ... !", "..."])
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).all()
    assert keys[:3].all()
    assert not keys[3:].any()


def test_keys_are_the_same_on_every_machine() -> None:
    hashes = np.arange(1, 9, dtype=np.uint64).reshape(1, 8) << np.uint64(40)
    assert band_keys(words_of(hashes), rules(bands=2, rows=3)).tolist() == [[17508485051803223465, 5109100858238549929]]
    assert passage_keys(words_of(np.arange(100, dtype=np.uint64).reshape(1, 100))).keys.tolist()[:2] == [
        12180979217063277912,
        2039823129244367784,
    ]


def test_a_band_never_meets_another_band() -> None:
    keys = keys_of(["a b c d e"] * 1, rows=1, bands=64)
    assert len(set(keys.ravel().tolist())) == 64


def test_sampled_passages_are_a_fixed_choice_of_word_8_grams(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    words = split_words(batch_of([text, "", "a few words", f"More of it: {text}"]))
    read = passage_keys(words)
    distinct = len(shingles(words, 0, 8))
    assert 0.6 * distinct / SAMPLED < len(set(read.keys[: read.starts[1]].tolist())) < 1.5 * distinct / SAMPLED
    assert not (read.keys % SAMPLED).any()
    assert read.starts[1] == read.starts[2]
    again = set(read.keys[read.starts[3] :].tolist())
    assert set(read.keys[: read.starts[1]].tolist()) <= again


def sort_all(folder: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray, Words]:
    """Sort texts as one chunk; return kinds, the numbers of the documents matched, and the words."""
    words = split_words(batch_of(texts))
    keys = np.column_stack((np.zeros(len(texts), dtype=np.uint64), band_keys(words, rules())))
    seen = Seen(folder, keys.shape[1], covered=Fraction(1, 2))
    numbers = np.arange(len(texts))
    matches = seen.sort(keys, numbers * 2, np.ones(len(texts), dtype=bool), passage_keys(words))
    seen.abandon()
    return matches.kind, matches.of >> 1, words


def test_near_duplicates_of_textbooks_are_found(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "domain/education"
    originals = [record["text"] for path in sorted(folder.glob("openstax_*.zst")) for record in records(path)]
    copies = [record["text"] for record in records(folder / "near_duplicates.jsonl.zst")]
    kind, _, _ = sort_all(tmp_path, originals + copies)
    assert len(copies) == 135
    assert (kind[len(originals) :] != 0).mean() >= 0.99
    assert (kind[: len(originals)] != 0).mean() < 0.02


def test_documents_reported_as_near_are_alike(shared_data: Path, tmp_path: Path) -> None:
    texts = [record["text"] for record in records(shared_data / "domain/legal/dc_code_sections.jsonl.zst")[:8000]]
    kind, of, words = sort_all(tmp_path, texts)
    near = np.flatnonzero(kind == NEAR)
    found = np.array([jaccard(shingles(words, n, 5), shingles(words, of[n], 5)) for n in near.tolist()])
    assert len(near) > 50
    assert found.min() > 0.35  # who meets at 0.35 is one pair in 300
    assert np.median(found) > threshold(rules())
    read: set[tuple[int, ...]] = set()
    shares = []
    for n, what in enumerate(kind.tolist()):
        own = shingles(words, n, 8)
        if what == COVERED:
            shares.append(len(own & read) / len(own))
        elif not what:
            read |= own
    assert len(shares) > 50
    assert np.mean(np.array(shares) >= 0.4) > 0.9
