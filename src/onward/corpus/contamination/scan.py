"""Benchmark items in documents: finding them, and cutting them out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.corpus.contamination.find import DOCUMENT, FIRST, LAST, NGRAM, TEXT, Rows, find_ngrams, find_short_texts
from onward.corpus.contamination.index import ItemIndex, spoken
from onward.corpus.text.batch import TextBatch, batch_of
from onward.corpus.text.words import Words, split_words

WINDOW_CHARACTERS = 200
"""Cut on either side of a passage, and the least that is left of a text between two cuts (GPT-3, appendix C)."""
BORDER_CHARACTERS = 200
"""A cut goes on so far to end at a line or a sentence, else it ends at white space."""
MOST_PIECES = 10
"""A text that falls into more pieces is made of benchmarks, and nothing of it is kept (GPT-3, appendix C)."""
_BORDER = re.compile(r"\n|[.!?…][\"'’”)\]]*\s")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage of a document in which a benchmark item stands, or a part of it.

    document: place in the batch. item: number in the index, whose `names` name it. score: share of the n-grams of the
    item's text that the whole document holds (1 for a short text); of several texts the largest. begin, end: bytes of
    the batch's buffer. An item that stands in several places of a document has a hit for each, with one score.
    """

    document: int
    item: int
    score: float
    begin: int
    end: int


def scan(batch: TextBatch, words: Words, index: ItemIndex) -> tuple[Hit, ...]:
    """Return the passages of the batch that hold items of the index, by document, item and place.

    words: of this batch. n-grams of an item with no more words between them than an n-gram has are one passage.
    """
    if not index.names:
        return ()
    folded, places, starts = spoken(words)
    ngrams, short = find_ngrams(folded, starts, index), find_short_texts(folded, starts, index)
    if not len(ngrams) and not len(short):
        return ()
    items = np.concatenate([index.text_item[ngrams[:, TEXT]], index.short.item[short[:, TEXT]]])
    scores = _scores(ngrams, short, index)
    hits = []
    for document, item, first, last in _passages(np.concatenate([ngrams, short]), items, index.ngrams.words):
        score = scores[document, item]
        if score >= index.minimum_overlap:
            begin, end = words.begin[places[first]], words.end[places[last]]
            hits.append(Hit(document, item, score, int(begin), int(end)))
    return tuple(hits)


def _scores(ngrams: Rows, short: Rows, index: ItemIndex) -> dict[tuple[int, int], float]:
    """Return the score of every item in every document, by (document, item)."""
    found = np.unique(ngrams[:, [DOCUMENT, TEXT, NGRAM]], axis=0)
    texts, counts = np.unique(found[:, :2], axis=0, return_counts=True)
    scores: dict[tuple[int, int], float] = {}
    for (document, text), count in zip(texts.tolist(), counts.tolist(), strict=True):
        item = int(index.text_item[text])
        scores[document, item] = max(scores.get((document, item), 0.0), count / int(index.text_ngrams[text]))
    for document, text in short[:, [DOCUMENT, TEXT]].tolist():
        scores[document, int(index.short.item[text])] = 1.0
    return scores


def _passages(rows: Rows, items: NDArray[np.int32], gap: int) -> list[tuple[int, int, int, int]]:
    """Join the rows of a document and an item whose words are at most `gap` apart; (document, item, first, last)."""
    order = np.lexsort((rows[:, FIRST], items, rows[:, DOCUMENT]))
    passages: list[tuple[int, int, int, int]] = []
    for row, item in zip(rows[order].tolist(), items[order].tolist(), strict=True):
        document, first, last = row[DOCUMENT], row[FIRST], row[LAST]
        if passages:
            *whose, begin, end = passages[-1]
            if whose == [document, item] and first <= end + gap + 1:
                passages[-1] = (document, item, begin, max(end, last))
                continue
        passages.append((document, item, first, last))
    return passages


def cut_items(text: str, index: ItemIndex) -> str:
    """Cut every passage that holds an item out of a text, until a scan finds none; empty when too little is left.

    What a cut brings together may spell an item anew, which is why one cut is not enough.
    """
    while text:
        batch = batch_of([text])
        hits = scan(batch, split_words(batch), index)
        if not hits:
            break
        text = cut_passages(text, [(hit.begin, hit.end) for hit in hits])
    return text


def cut_passages(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Cut spans of bytes out of a text, with WINDOW_CHARACTERS around each and on to the next border.

    Passages overlap what is left of the question and its answers, so the text around them goes as well. What is left
    between the cuts is joined by an empty line; pieces shorter than WINDOW_CHARACTERS go too. Returns an empty text
    when nothing is left or there are more than MOST_PIECES pieces.
    """
    encoded = text.encode()
    pieces, at = [], 0
    for span in sorted(spans):
        begin, end = (len(encoded[:byte].decode()) for byte in span)
        begin, end = _border_before(text, begin - WINDOW_CHARACTERS), _border_after(text, end + WINDOW_CHARACTERS)
        if begin > at:
            pieces.append(text[at:begin].strip())
        at = max(at, end)
    if not at:
        return text
    pieces.append(text[at:].strip())
    kept = [piece for piece in pieces if len(piece) >= WINDOW_CHARACTERS]
    return "" if len(pieces) > MOST_PIECES else "\n\n".join(kept)


def _border_before(text: str, at: int) -> int:
    """Return the last begin of a line or sentence in the BORDER_CHARACTERS before a place; of a word without one."""
    start = max(0, at - BORDER_CHARACTERS)
    before = text[start : max(0, at)]
    ends = [match.end() for match in _BORDER.finditer(before)]
    if not ends:
        ends = [match.end() for match in _SPACE.finditer(before)] if start else [0]
    return start + ends[-1] if ends else at


def _border_after(text: str, at: int) -> int:
    """Return the first end of a line or sentence in the BORDER_CHARACTERS after a place; of a word without one."""
    after = text[at : at + BORDER_CHARACTERS]
    found = _BORDER.search(after)
    if not found and at + BORDER_CHARACTERS >= len(text):
        return len(text)
    found = found or _SPACE.search(after)
    return at + found.end() if found else at
