"""Quality rules: why a document is not worth training on.

A word is a run of characters without white space; a line ends at a line feed; lines of white space do not count.
Shares are compared as exact fractions, so a document on a threshold is kept on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from onward.recipe import PaperRules, Quality

NGRAM_WORDS = 5
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def quality_reason(text: str, quality: Quality | None) -> str | None:
    """Return the first rule that speaks against a document, None when none does."""
    if quality is None or quality.paper is None:
        return None
    return paper_reason(text, quality.paper)


def paper_reason(text: str, rules: PaperRules) -> str | None:
    """Apply the filters of arXiv 2504.09687 section 3: few lines, mostly short lines, repeated content."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if rules.minimum_lines is not None and len(lines) < rules.minimum_lines:
        return "quality: too few lines"
    if rules.maximum_short_lines is not None:
        short = sum(1 for line in lines if len(line) <= rules.short_line_characters)
        if short > rules.maximum_short_lines * len(lines):
            return "quality: mostly short lines"
    different = set(lines)
    if rules.maximum_duplicate_lines is not None:
        repeated = len(lines) - len(different)
        if repeated > rules.maximum_duplicate_lines * len(lines):
            return "quality: repeated lines"
    if rules.maximum_duplicate_line_characters is not None:
        repeated = sum(map(len, lines)) - sum(map(len, different))
        if repeated > rules.maximum_duplicate_line_characters * len(text):
            return "quality: characters in repeated lines"
    if rules.maximum_duplicate_ngrams is not None:
        repeated = repeated_ngram_characters(text.split())
        if repeated > rules.maximum_duplicate_ngrams * len(text):
            return "quality: repeated 5-grams"
    return None


def repeated_ngram_characters(words: list[str], n: int = NGRAM_WORDS) -> int:
    """Count the characters in n-grams of words that were seen earlier in the document.

    Gopher (arXiv 2112.11446, table A1) counts each character once however many n-grams overlap on it. As the
    reference implementation (datatrove) does, reading goes on behind a repeated n-gram, and the n-grams that begin
    inside it are neither counted nor remembered.
    """
    if len(words) <= n:
        return 0
    ngrams = _ngram_hashes(words, n)
    in_order = np.sort(ngrams)
    if not (in_order[1:] == in_order[:-1]).any():  # a plain sort takes a tenth of an argsort
        return 0
    order = np.argsort(ngrams, kind="stable")
    same = ngrams[order[1:]] == ngrams[order[:-1]]
    several = np.append(same, False) | np.append(False, same)
    # Only n-grams that occur more than once decide anything, so the reading in order looks at these alone.
    places = np.sort(order[several])
    ends = np.cumsum(np.fromiter(map(len, words), dtype=np.int64, count=len(words)))
    seen: set[int] = set()
    characters = unread = 0
    for place, ngram in zip(places.tolist(), ngrams[places].tolist(), strict=True):
        if place < unread:
            continue
        if ngram in seen:
            characters += int(ends[place + n - 1]) - (int(ends[place - 1]) if place else 0)
            unread = place + n
        else:
            seen.add(ngram)
    return characters


def _ngram_hashes(words: list[str], n: int) -> NDArray[np.uint64]:
    """Hash every n-gram of words to 64 bits; words get numbers by first appearance, so no hash seed matters."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = np.fromiter(map(numbers.__getitem__, words), dtype=np.uint64, count=len(words))
    hashes = np.zeros(len(words) - n + 1, dtype=np.uint64)
    for shift in range(n):
        # Multiply and mix (wrapping): distinct n-grams collide with probability about 2**-64 per pair.
        hashes = (hashes ^ ids[shift : shift + len(hashes)]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes
