"""C4's rules (arXiv 1910.10683, section 2.2): lines are taken out of a document, then the document is judged.

Sentences are counted as spaCy's sentencizer does, by which datatrove counts them: one begins with every line, and with
every word behind a word that ends a sentence, unless that word is punctuation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.quality.facts import Rule
from onward.corpus.text.batch import TextBatch
from onward.corpus.text.characters import DIGIT, SPACE, code_point, flags, flags_of, read_only
from onward.corpus.text.lines import line_break, without_blanks
from onward.corpus.text.words import IS_CATEGORY_P, IS_SENTENCE_END, split_words
from onward.recipe.quality import C4

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LOREM, _JAVASCRIPT, _CURLY = 1, 2, 4
_PHRASES = ("lorem ipsum", "javascript", "{", *POLICY)
_CITATIONS = ("edit]", "citation needed]")
_TERMINAL, _ELLIPSIS = 1, 2


@dataclass(frozen=True)
class LeftLines:
    """What C4's line rules leave of a batch.

    before, after: the texts, document by document. lines: int64[documents], lines that are left. found:
    uint8[documents], which of the phrases that drop a document stand in them.
    """

    before: TextBatch
    after: TextBatch
    lines: NDArray[np.int64]
    found: NDArray[np.uint8]

    def changed(self) -> dict[int, str]:
        """Return the documents that are not what they were, with what is left of them."""
        before, after = self.before, self.after
        same = before.sizes() == after.sizes()
        for n in np.flatnonzero(same).tolist():
            old = before.buffer[before.starts[n] : before.starts[n + 1]]
            same[n] = np.array_equal(old, after.buffer[after.starts[n] : after.starts[n + 1]])
        return {n: after.text(n) for n in np.flatnonzero(~same).tolist()}


def c4_lines(batch: TextBatch, rules: C4) -> LeftLines:
    """Take out the lines that a rule speaks against, white space at the ends of the others, and citations."""
    out = np.empty(len(batch.buffer) + len(batch) + 1, dtype=np.uint8)
    starts = np.zeros(len(batch) + 1, dtype=np.int64)
    lines, found = np.zeros(len(batch), dtype=np.int64), np.zeros(len(batch), dtype=np.uint8)
    line_phrases = (_JAVASCRIPT if rules.no_javascript else 0) | (0x1F8 if rules.no_policy_phrases else 0)
    document_phrases = (_LOREM if rules.no_lorem_ipsum else 0) | (_CURLY if rules.no_curly_bracket else 0)
    limits = np.array(
        [
            rules.maximum_word_characters or 2**31 - 1,
            bool(rules.no_citations),
            bool(rules.terminal_punctuation),
            rules.minimum_line_words or 0,
            line_phrases,
            document_phrases,
        ],
        dtype=np.int64,
    )
    texts, begins, begin_so = _phrases()
    buffer = read_only(batch.buffer)
    _take_out(buffer, batch.starts, flags(), limits, texts, begins, begin_so, out, starts, lines, found)
    return LeftLines(batch, TextBatch(out[: starts[-1]], starts), lines, found)


def c4_rules(left: LeftLines, rules: C4) -> Iterator[Rule]:
    """Yield the rules about the document, in datatrove's order; one without any line left is dropped in any case."""
    lorem, curly = (left.found & _LOREM) != 0, (left.found & _CURLY) != 0
    yield Rule("c4: lorem ipsum", lorem.astype(np.float64), 0.0 if rules.no_lorem_ipsum else None, True, True)
    yield Rule("c4: curly bracket", curly.astype(np.float64), 0.0 if rules.no_curly_bracket else None, True, True)
    if rules.minimum_sentences is not None:
        sentences = count_sentences(left.after, left.lines).astype(np.float64)
        yield Rule("c4: too few sentences", sentences, rules.minimum_sentences, False)
    yield Rule("c4: no lines left", (left.after.sizes() == 0).astype(np.float64), 0.0, True, True)


def count_sentences(batch: TextBatch, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sentences of every document: int64[documents]. Each of its `lines` has one at least."""
    words = split_words(batch)
    sentences = lines.copy()
    _count_sentences(batch.buffer, words.begin, words.end, words.marks, words.starts, sentences)
    return sentences


@cache
def _phrases() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint16]]:
    """Return the bytes of all phrases and citations, where each begins, and as bits which phrases may begin so.

    The last is uint16[2, 256]: phrases with this first byte, and phrases with this second byte.
    """
    encoded = [phrase.encode() for phrase in (*_PHRASES, *_CITATIONS)]
    begins = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    begin_so = np.zeros((2, 256), dtype=np.uint16)
    for number, phrase in enumerate(_PHRASES):
        for place in range(2):
            of_place = phrase[place : place + 1]
            begin_so[place, list((of_place + of_place.upper()).encode()) or slice(None)] |= np.uint16(1 << number)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), begins, begin_so


@njit(cache=True, nogil=True, _nrt=False)
def _take_out(buffer, starts, table, limits, texts, begins, begin_so, out, out_starts, lines, found):  # type: ignore[no-untyped-def]
    longest, citations, terminal, fewest, line_phrases, document_phrases = limits
    free = np.int64(0)
    for document in range(len(starts) - 1):
        at, stop, first = starts[document], starts[document + 1], free
        while at < stop:
            low = at
            size = 0
            while at < stop:
                size = line_break(buffer, at, stop)
                if size:
                    break
                at += 1
            inner_low, inner_high = without_blanks(buffer, low, at, table)
            at += size
            begin = free + (1 if lines[document] else 0)
            end, num_words, length = _copy_line(
                buffer, inner_low, inner_high, table, citations, texts, begins, out, begin
            )
            ends = _ending(out, begin, end)
            if length > longest or (terminal and ends != _TERMINAL) or num_words < fewest:
                continue
            phrases = _find(out, begin, end, texts, begins, begin_so, line_phrases | document_phrases)
            # In datatrove's order: a line with lorem ipsum drops the document, one that a line rule takes out does not.
            found[document] |= phrases & document_phrases & _LOREM
            if phrases & line_phrases & _JAVASCRIPT:
                continue
            found[document] |= phrases & document_phrases
            if phrases & line_phrases:
                continue
            if lines[document]:
                out[free] = ord("\n")
            lines[document] += 1
            free = end
        low, high = without_blanks(out, first, free, table)
        for place in range(low, high):
            out[first + place - low] = out[place]
        free = first + high - low
        out_starts[document + 1] = free


@njit(cache=True, _nrt=False)
def _copy_line(buffer, low, high, table, citations, texts, begins, out, free):  # type: ignore[no-untyped-def]
    """Copy a line without citations; return the end of the copy, its words and the characters of the longest one."""
    num_words, length, longest = 0, 0, 0
    skip = low
    while low < high:
        byte = buffer[low]
        if citations and byte == ord("[") and low >= skip:
            skip = _citation(buffer, low, high, table, texts, begins)
        what, size = table[byte], 1
        if byte >= 0x80:
            code, size = code_point(buffer, low)
            what = flags_of(code, table)
        if what & SPACE:
            length = 0
        else:
            num_words += length == 0
            length += 1
            longest = max(longest, length)
        if low >= skip:
            for place in range(size):
                out[free + place] = buffer[low + place]
            free += size
        low += size
    return free, num_words, longest


@njit(cache=True, _nrt=False)
def _citation(buffer, low, high, table, texts, begins):  # type: ignore[no-untyped-def]
    """Return the byte behind [1], [edit] or [citation needed], or where it began."""
    at = low + 1
    while at < high and buffer[at] < 0x80 and table[buffer[at]] & DIGIT:
        at += 1
    if at < high and buffer[at] == ord("]"):
        return at + 1
    for number in range(len(begins) - 3, len(begins) - 1):
        if _stands_at(buffer, low + 1, high, texts, begins[number], begins[number + 1], 0):
            return low + 1 + begins[number + 1] - begins[number]
    return low


@njit(cache=True, _nrt=False)
def _stands_at(buffer, at, high, texts, begin, end, small):  # type: ignore[no-untyped-def]
    """Whether a phrase stands here. small: 0x20 to read capitals as small letters."""
    if high - at < end - begin:
        return False
    for place in range(end - begin):
        byte = buffer[at + place]
        if ord("A") <= byte <= ord("Z"):
            byte |= small
        if byte != texts[begin + place]:
            return False
    return True


@njit(cache=True, _nrt=False)
def _ending(out, begin, end):  # type: ignore[no-untyped-def]
    if end == begin:
        return 0
    last = out[end - 1]
    if last == ord("."):
        is_ellipsis = end - begin >= 3 and out[end - 2] == ord(".") and out[end - 3] == ord(".")
        return _ELLIPSIS if is_ellipsis else _TERMINAL
    return _TERMINAL if last == ord("?") or last == ord("!") or last == ord('"') or last == ord("'") else 0


@njit(cache=True, _nrt=False)
def _find(out, begin, end, texts, begins, begin_so, wanted):  # type: ignore[no-untyped-def]
    """Return which phrases stand in a line, as bits."""
    found = np.int64(0)
    for at in range(begin, end):
        left = np.int64(begin_so[0, out[at]] & begin_so[1, out[at + 1]]) & wanted & ~found
        number = 0
        while left:
            if left & 1 and _stands_at(out, at, end, texts, begins[number], begins[number + 1], 0x20):
                found |= 1 << number
            left >>= 1
            number += 1
    return found


@njit(cache=True, nogil=True, _nrt=False)
def _count_sentences(buffer, begin, end, marks, starts, sentences):  # type: ignore[no-untyped-def]
    for document in range(len(starts) - 1):
        is_over = False
        for word in range(starts[document], starts[document + 1]):
            if word > starts[document]:
                for at in range(end[word - 1], begin[word]):
                    is_over &= buffer[at] != ord("\n")
            if is_over and not marks[word] & (IS_CATEGORY_P | IS_SENTENCE_END):
                sentences[document] += 1
                is_over = False
            elif marks[word] & IS_SENTENCE_END:
                is_over = True
