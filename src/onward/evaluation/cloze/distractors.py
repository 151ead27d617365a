"""Three other terms for a gap: of the same kind and frequency, absent from the document, no variant of the answer."""

from collections import defaultdict
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from onward.evaluation.cloze.terms import Terms

POOL = 40
"""Terms among which distractors are drawn: the most alike in use of those of the same kind and frequency."""
_SIMILAR_SPELLING = 0.75


def stems(text: str) -> tuple[str, ...]:
    """Return the beginnings of a term's words by which it and its relatives are recognised in a text, in lower case.

    Two letters are cut off, and at least 4 and at most 7 kept: `cells` and `cellular` share `cell`. It takes too much
    for a relative rather than too little.
    """
    return tuple(word[: max(4, min(7, len(word) - 2))] for word in text.lower().split())


class Distractors:
    """Terms by kind, in the order of their frequency."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._logs = np.log2(terms.counts)
        groups: dict[str, list[int]] = defaultdict(list)
        for number, kind in enumerate(terms.kinds):
            groups[kind].append(number)
        self._groups = {kind: np.array(numbers) for kind, numbers in groups.items()}

    def pool(self, term: int, lowered: str, before: str) -> list[int]:
        """Return up to POOL terms that may stand for `term`, the ones used most like it.

        lowered: the document in lower case, in which none of them occurs. before: the word before the gap; after
        `a` and `an` their first letters are vowels or not, as the answer's is. Their frequencies are within a factor
        of two, or of four where that leaves too few.
        """
        terms, text = self._terms, self._terms.texts[term]
        group = self._groups[terms.kinds[term]]
        distance = np.abs(self._logs[group] - self._logs[term])
        likeness = terms.profiles[group] @ terms.profiles[term]
        order = np.lexsort((group, -likeness))
        found: list[int] = []
        for widest in (1.0, 2.0):
            found = []
            for other in group[order[distance[order] <= widest]].tolist():
                if other != term and self._fits(text, terms.texts[other], lowered, before):
                    found.append(other)
                    if len(found) == POOL:
                        return found
            if len(found) >= POOL // 4:
                return found
        return found

    def _fits(self, text: str, other: str, lowered: str, before: str) -> bool:
        ours, theirs = stems(text), stems(other)
        if any(stem in lowered for stem in theirs):
            return False
        if before in ("a", "an") and _starts_with_vowel(text) != _starts_with_vowel(other):
            return False
        return not alike(ours, theirs, text.lower(), other.lower())


def alike(ours: tuple[str, ...], theirs: tuple[str, ...], text: str, other: str) -> bool:
    """Return whether two terms share a stem or are spelt alike, so that both might be right."""
    if any(stem in other for stem in ours) or any(stem in text for stem in theirs):
        return True
    matcher = SequenceMatcher(None, text, other, autojunk=False)
    return matcher.real_quick_ratio() >= _SIMILAR_SPELLING and matcher.ratio() >= _SIMILAR_SPELLING


def by_rank(
    scores: NDArray[np.float64], answer: float, rank: int, distractors: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw distractors so that `rank` of them score above the answer and the others below; there must be so many.

    scores: of the pool by the n-gram model [pool]. Returns places in the pool.
    """
    above, below = np.flatnonzero(scores > answer), np.flatnonzero(scores < answer)
    chosen = [generator.choice(above, rank, replace=False), generator.choice(below, distractors - rank, replace=False)]
    return np.concatenate(chosen).astype(np.int64)


def _starts_with_vowel(text: str) -> bool:
    return text[0].lower() in "aeiou"
