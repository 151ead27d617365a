"""Terms: words and names that are frequent in few documents and rare in all, with their kind and surroundings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.evaluation.cloze.words import BOUNDARY, Ids, Vocabulary

STOP_SHARE = 0.05
"""A word of more than this share of the documents is no term."""
MINIMUM_COUNT, MINIMUM_PER_MILLION = 5, 20
"""Occurrences over all, and in a million words: rarer ones are met once or twice in a short training."""
MINIMUM_IN_DOCUMENT = 2
MINIMUM_KEYNESS = 5.0
"""How many times more frequent in a document than in all: what the document is about."""
LETTERS = 4
_NEIGHBOURS = 128
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("-ing", ("ing",)),
    ("-ed", ("ed",)),
    ("-ly", ("ly",)),
    ("-noun", ("tion", "sion", "ment", "ness", "ity", "ism", "ance", "ence", "logy")),
    ("-adjective", ("al", "ic", "ous", "ive", "able", "ible", "ary", "ful", "less")),
    ("-er", ("er", "or", "ist")),
)

Floats = NDArray[np.floating]
Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """All texts as one row of pieces. surfaces, folded: ids [pieces]. document: each piece's text [pieces]."""

    surfaces: Ids
    folded: Ids
    document: Ids
    num_documents: int

    @staticmethod
    def of(vocabulary: Vocabulary, texts: Sequence[Ids]) -> "Stream":
        """Join texts; between two stands the end of a sentence."""
        end = vocabulary.ids(["\n"])
        surfaces = np.concatenate([part for each in texts for part in (each, end)])
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), [len(each) + 1 for each in texts])
        return Stream(surfaces, np.array(vocabulary.folded, dtype=np.int32)[surfaces], numbers, len(texts))


@dataclass(frozen=True)
class Terms:
    """What can stand in a gap. forms: surface ids of the one or two words [terms, 2], -1 where there is no second.

    counts: occurrences in all texts [terms]. kinds: shape and ending [terms]. profiles: root shares of the frequent
    words beside each term, unit length [terms, neighbours]; the cosine of two tells whether they are used alike.
    document, term, in_document, weight: for each document that a term is telling of, how often it stands there and
    its tf-idf [tellings].
    """

    forms: NDArray[np.int32]
    texts: tuple[str, ...]
    counts: Longs
    kinds: tuple[str, ...]
    profiles: Floats
    document: Longs
    term: Longs
    in_document: Longs
    weight: Floats


def find_terms(vocabulary: Vocabulary, stream: Stream) -> Terms:
    """Return the terms of a corpus: informative in at least one document by tf-idf, rare in general, no stop words."""
    size = len(vocabulary.surfaces)
    folded = np.array(vocabulary.folded, dtype=np.int64)
    pairs = np.unique(stream.document.astype(np.int64) * vocabulary.num_folded + stream.folded)
    spread = np.bincount(pairs % vocabulary.num_folded, minlength=vocabulary.num_folded)[folded]
    is_stop = spread > max(3.0, STOP_SHARE * stream.num_documents)
    shapes = [_shape(surface) for surface in vocabulary.surfaces]
    has_shape = np.array([shape is not None for shape in shapes])
    of_one = np.flatnonzero(has_shape & ~is_stop)
    to_term = np.full(size, -1, dtype=np.int64)
    to_term[of_one] = np.arange(len(of_one))
    firsts, first_terms = _where(to_term[stream.surfaces])
    pair_forms, seconds, second_terms = _names(stream, to_term, spread, shapes)
    forms = np.concatenate([np.stack([of_one, np.full(len(of_one), -1)], axis=1), pair_forms]).astype(np.int32)
    places = np.concatenate([firsts, seconds])
    numbers = np.concatenate([first_terms, second_terms + len(of_one)])
    counts = np.bincount(numbers, minlength=len(forms))
    telling = _tellings(stream, places, numbers, counts)
    kept = np.unique(telling[1])
    order = np.full(len(forms), -1, dtype=np.int64)
    order[kept] = np.arange(len(kept))
    inside = order[numbers] >= 0
    forms, numbers, places = forms[kept], order[numbers[inside]], places[inside]
    document, term, in_document, weight = telling
    texts = tuple(" ".join(vocabulary.surfaces[form] for form in row if form >= 0) for row in forms.tolist())
    kinds = tuple(_kind([vocabulary.surfaces[form] for form in row if form >= 0]) for row in forms.tolist())
    profiles = _profiles(stream, places, numbers, forms)
    return Terms(forms, texts, counts[kept], kinds, profiles, document, order[term], in_document, weight)


def _where(terms: Longs) -> tuple[Longs, Longs]:
    places = np.flatnonzero(terms >= 0)
    return places, terms[places]


def _names(
    stream: Stream, to_term: Longs, spread: Longs, shapes: list[str | None]
) -> tuple[NDArray[np.int64], Longs, Longs]:
    """Return names of two words [names, 2], the places of their first words, and which name stands there.

    A name is two terms in a row, of one shape, of which one seldom stands without the other.
    """
    first, second = stream.surfaces[:-1].astype(np.int64), stream.surfaces[1:].astype(np.int64)
    codes = {shape: code for code, shape in enumerate(sorted({shape for shape in shapes if shape is not None}))}
    code = np.array([-1 if shape is None else codes[shape] for shape in shapes])
    both = (to_term[first] >= 0) & (to_term[second] >= 0) & (code[first] == code[second])
    places = np.flatnonzero(both)
    keys, which, counts = np.unique(
        first[places] * len(shapes) + second[places], return_inverse=True, return_counts=True
    )
    forms = np.stack([keys // len(shapes), keys % len(shapes)], axis=1)
    single = np.bincount(stream.surfaces, minlength=len(shapes))
    bound = (counts >= _minimum_count(stream)) & (counts >= 0.3 * single[forms].min(axis=1))
    number = np.cumsum(bound) - 1
    chosen = bound[which]
    return forms[bound], places[chosen], number[which[chosen]]


def _tellings(stream: Stream, places: Longs, numbers: Longs, counts: Longs) -> tuple[Longs, Longs, Longs, Floats]:
    """Return (document, term, occurrences there, tf-idf) wherever a term is telling of a document."""
    documents = stream.document[places].astype(np.int64)
    keys, within = np.unique(documents * len(counts) + numbers, return_counts=True)
    document, term = keys // len(counts), keys % len(counts)
    spread = np.bincount(term, minlength=len(counts))
    sizes = np.bincount(stream.document, minlength=stream.num_documents)
    keyness = within / sizes[document] / (counts[term] / len(stream.surfaces))
    telling = (
        (within >= MINIMUM_IN_DOCUMENT)
        & (counts[term] >= _minimum_count(stream))
        & (spread[term] >= 2)
        & (spread[term] <= max(3.0, STOP_SHARE * stream.num_documents))
        & (keyness >= MINIMUM_KEYNESS)
    )
    weight = within * np.log(stream.num_documents / spread[term])
    return document[telling], term[telling], within[telling], weight[telling]


def _minimum_count(stream: Stream) -> float:
    return max(MINIMUM_COUNT, MINIMUM_PER_MILLION * len(stream.surfaces) / 1e6)


def _profiles(stream: Stream, places: Longs, numbers: Longs, forms: NDArray[np.int32]) -> Floats:
    """Return how often each term has each of the most frequent pieces before and behind it, as roots, unit length."""
    common = np.argsort(-np.bincount(stream.folded), kind="stable")[:_NEIGHBOURS]
    code = np.full(int(stream.folded.max()) + 1, _NEIGHBOURS, dtype=np.int64)
    code[common] = np.arange(len(common))
    padded = np.concatenate([[BOUNDARY], stream.folded, [BOUNDARY, BOUNDARY]])
    width = np.where(forms[numbers, 1] >= 0, 2, 1)
    columns = 2 * (_NEIGHBOURS + 1)
    profiles = np.zeros((len(forms), columns))
    for offset, neighbour in ((0, padded[places]), (_NEIGHBOURS + 1, padded[places + 1 + width])):
        cells = np.bincount(numbers * columns + offset + code[neighbour], minlength=profiles.size)
        profiles += cells.reshape(profiles.shape)
    # Words beyond the frequent ones tell of the topic, not of the part of speech.
    profiles[:, [_NEIGHBOURS, columns - 1]] = 0
    roots = np.sqrt(profiles)
    scaled: Floats = roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-9)
    return scaled


def _shape(surface: str) -> str | None:
    """Return the shape of a word that can be a term, None for all other pieces."""
    letters = sum(character.isalpha() for character in surface)
    has_digit = any(character.isdigit() for character in surface)
    if len(surface) < LETTERS or letters < (1 if has_digit else LETTERS) or "." in surface or surface[0].isdigit():
        return None
    if has_digit:
        return "number-like"
    if surface.isupper():
        return "capitals"
    return "capitalised" if surface[0].isupper() else "lower" if surface.islower() else None


def _kind(words: list[str]) -> str:
    """Return the kind of a term: its shape, whether it is of two words, and its ending."""
    shape, last = str(_shape(words[-1])), words[-1].lower()
    number = "name " if len(words) > 1 else ""
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if shape not in ("lower", "capitalised"):
        return number + shape
    if shape == "capitalised":
        return f"{number}{shape}{' -s' if plural else ''}"
    ending = next((name for name, ends in _ENDINGS if last.endswith(ends)), "")
    return f"{number}{shape} {'-s' if plural else ending}".strip()
