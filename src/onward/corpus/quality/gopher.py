"""Gopher's rules about words and about repetition (arXiv 2112.11446, appendix A1.1 and table A1)."""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from onward.corpus.quality.facts import Facts, Rule, share
from onward.corpus.quality.repeats import per_document, seen_before
from onward.corpus.text.batch import batch_of
from onward.corpus.text.characters import flags, read_only
from onward.corpus.text.lines import ELLIPSES, HASHES, OTHER_BREAKS, line_break, without_blanks
from onward.corpus.text.words import IS_PUNCTUATION, LETTERS, split_words
from onward.recipe.quality import GopherQuality, GopherRepetition

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_COUNTED, _CHARACTERS, _WITH_LETTER, _STOP = range(4)
_LINES, _BULLETS, _ELLIPSIS_LINES, _HASHES, _ELLIPSES = range(5)


def quality_rules(facts: Facts, rules: GopherQuality) -> Iterator[Rule]:
    """Yield Gopher's rules about words, in datatrove's order."""
    words, lines = _word_counts(facts).T, _line_counts(facts).T
    mean = share(words[_CHARACTERS], words[_COUNTED])
    hashes, ellipses = share(lines[_HASHES], facts.num_words), share(lines[_ELLIPSES], facts.num_words)
    bullets, ends = share(lines[_BULLETS], lines[_LINES]), share(lines[_ELLIPSIS_LINES], lines[_LINES])
    with_letter = share(words[_WITH_LETTER], facts.num_words)
    for name, values, limit, is_maximum in (
        ("too few words", words[_COUNTED], rules.minimum_words, False),
        ("too many words", words[_COUNTED], rules.maximum_words, True),
        ("short words", mean, rules.minimum_mean_word_characters, False),
        ("long words", mean, rules.maximum_mean_word_characters, True),
        ("hash signs", hashes, rules.maximum_hashes, True),
        ("ellipses", ellipses, rules.maximum_ellipses, True),
        ("bullet lines", bullets, rules.maximum_bullet_lines, True),
        ("lines ending in an ellipsis", ends, rules.maximum_ellipsis_lines, True),
        ("words without a letter", with_letter, rules.minimum_words_with_letter, False),
        ("too few stop words", words[_STOP], rules.minimum_stop_words, False),
    ):
        yield Rule(f"gopher quality: {name}", values.astype(np.float64), _limit(limit), is_maximum)


def repetition_rules(facts: Facts, rules: GopherRepetition) -> Iterator[Rule]:
    """Yield Gopher's rules about repetition, in datatrove's order."""
    lines, paragraphs, repetition = facts.lines, facts.paragraphs, facts.repetition
    seen = seen_before(paragraphs.hash, paragraphs.starts)
    repeated = per_document(seen, paragraphs.starts)
    repeated_characters = per_document(np.where(seen, paragraphs.characters, 0), paragraphs.starts)
    again = per_document(facts.seen_lines, lines.starts)
    again_characters = per_document(np.where(facts.seen_lines, lines.characters, 0), lines.starts)
    # Between line feeds stands a line; an empty one counts only before the first and behind the last.
    first, last = _edge_feeds(facts)
    num_lines = np.diff(lines.starts) + first + last
    yield _repetition("duplicate paragraphs", repeated, np.diff(paragraphs.starts), rules.maximum_duplicate_paragraphs)
    characters, limit = facts.characters, rules.maximum_duplicate_paragraph_characters
    yield _repetition("characters in duplicate paragraphs", repeated_characters, characters, limit)
    yield _repetition("duplicate lines", again + (first & last), num_lines, rules.maximum_duplicate_lines)
    limit = rules.maximum_duplicate_line_characters
    yield _repetition("characters in duplicate lines", again_characters, characters, limit)
    for n, limit in enumerate((rules.maximum_top_2gram, rules.maximum_top_3gram, rules.maximum_top_4gram), 2):
        yield _repetition(f"most frequent {n}-gram", repetition.top[:, n], characters, limit)
    for n, limit in enumerate(duplicate_ngram_limits(rules), 5):
        yield _repetition(f"duplicate {n}-grams", repetition.repeated[:, n], characters, limit)


def duplicate_ngram_limits(rules: GopherRepetition) -> tuple[Fraction | None, ...]:
    """Return the limits of 5- to 10-grams."""
    few = (rules.maximum_duplicate_5grams, rules.maximum_duplicate_6grams, rules.maximum_duplicate_7grams)
    return *few, rules.maximum_duplicate_8grams, rules.maximum_duplicate_9grams, rules.maximum_duplicate_10grams


def _repetition(name: str, part: NDArray[np.int64], whole: NDArray[np.int64], limit: Fraction | None) -> Rule:
    return Rule(f"gopher repetition: {name}", share(part, whole), _limit(limit), True)


def _limit(limit: Fraction | float | None) -> float | None:
    return None if limit is None else float(limit)


def _edge_feeds(facts: Facts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether documents begin and end with a line feed; an empty document counts as beginning with one."""
    buffer, starts = facts.batch.buffer, facts.batch.starts
    sizes = np.diff(starts)
    first, last = sizes == 0, np.zeros(len(sizes), dtype=np.bool_)
    filled = sizes > 0
    first[filled] = buffer[starts[:-1][filled]] == ord("\n")
    last[filled] = buffer[starts[1:][filled] - 1] == ord("\n")
    return first, last


@cache
def _stop_words() -> NDArray[np.uint64]:
    """Return the hashes of the stop words, each at the place that the last bits of its hash name: uint64[64]."""
    table = np.zeros(64, dtype=np.uint64)
    hashes = split_words(batch_of(STOP_WORDS)).exact
    table[hashes & np.uint64(63)] = hashes
    assert np.count_nonzero(table) == len(STOP_WORDS), "no two share a place"
    return table


def _word_counts(facts: Facts) -> NDArray[np.int64]:
    words, counts = facts.words, np.zeros((len(facts.batch), 4), dtype=np.int64)
    _count_words(words.exact, words.characters, words.kind, words.marks, words.starts, _stop_words(), counts)
    return counts


def _line_counts(facts: Facts) -> NDArray[np.int64]:
    lines, counts = facts.lines, np.zeros((len(facts.batch), 5), dtype=np.int64)
    columns = (lines.begin, lines.end, lines.inner_begin, lines.inner_end, lines.about, lines.starts, lines.line_feeds)
    _count_lines(read_only(facts.batch.buffer), facts.batch.starts, flags(), *columns, counts)
    return counts


@njit(cache=True, nogil=True, _nrt=False)
def _count_words(exact, characters, kind, marks, starts, stop_words, counts):  # type: ignore[no-untyped-def]
    for document in range(len(starts) - 1):
        counted, length, letters, stops, found = 0, 0, 0, 0, np.uint64(0)
        for word in range(starts[document], starts[document + 1]):
            is_counted = 1 - (marks[word] & IS_PUNCTUATION)
            counted += is_counted
            length += is_counted * characters[word]
            letters += kind[word] == LETTERS
            place = exact[word] & np.uint64(63)
            if stop_words[place] == exact[word]:
                stops += (found >> place) & np.uint64(1) == 0
                found |= np.uint64(1) << place
        counts[document, _COUNTED], counts[document, _CHARACTERS] = counted, length
        counts[document, _WITH_LETTER], counts[document, _STOP] = letters, stops


@njit(cache=True, nogil=True, _nrt=False)
def _count_lines(buffer, text_starts, table, begin, end, inner_begin, inner_end, about, starts, feeds, counts):  # type: ignore[no-untyped-def]
    """Count lines as `str.splitlines` does, and what stands in them."""
    for document in range(len(starts) - 1):
        count = counts[document]
        count[_LINES] = feeds[document]
        stop = text_starts[document + 1]
        for line in range(starts[document], starts[document + 1]):
            low, high = np.int64(begin[line]), np.int64(end[line])
            if high == stop:
                count[_LINES] += 1
            if about[line] & HASHES:
                for place in range(low, high):
                    count[_HASHES] += buffer[place] == ord("#")
            if about[line] & ELLIPSES:
                count[_ELLIPSES] += _ellipses(buffer, low, high)
            if not about[line] & OTHER_BREAKS:
                _mark(buffer, np.int64(inner_begin[line]), np.int64(inner_end[line]), count)
                continue
            at = low
            while at < high:
                size = line_break(buffer, at, stop)
                if size:
                    inner_low, inner_high = without_blanks(buffer, low, at, table)
                    _mark(buffer, inner_low, inner_high, count)
                    low = np.int64(at + size)
                    # Behind the last break of a document is no line, and the line feed of \r\n is counted already.
                    count[_LINES] += low <= high and low < stop
                at += max(size, 1)
            inner_low, inner_high = without_blanks(buffer, low, high, table)
            _mark(buffer, inner_low, inner_high, count)


@njit(cache=True, _nrt=False)
def _ellipses(buffer, low, high):  # type: ignore[no-untyped-def]
    """Count runs of three periods and ellipsis characters."""
    number, periods = 0, 0
    for at in range(low, high):
        if buffer[at] == ord("."):
            periods += 1
            if periods == 3:
                number, periods = number + 1, 0
            continue
        periods = 0
        if buffer[at] == 0xE2 and buffer[at + 1] == 0x80 and buffer[at + 2] == 0xA6:
            number += 1
    return number


@njit(cache=True, _nrt=False)
def _mark(buffer, low, high, count):  # type: ignore[no-untyped-def]
    """Count a line without white space at the ends if it begins with a bullet or ends with an ellipsis."""
    size = high - low
    if size >= 1 and (
        buffer[low] == ord("-")
        or (size >= 3 and buffer[low] == 0xE2 and buffer[low + 1] == 0x80 and buffer[low + 2] == 0xA2)
    ):
        count[_BULLETS] += 1
    if size >= 3:
        one, two, three = buffer[high - 3], buffer[high - 2], buffer[high - 1]
        if (one == 0x2E and two == 0x2E and three == 0x2E) or (one == 0xE2 and two == 0x80 and three == 0xA6):
            count[_ELLIPSIS_LINES] += 1
