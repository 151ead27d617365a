"""Places in a document where a term can be taken out: the sentence, and the text before it that does not name it."""

import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from onward.evaluation.cloze.distractors import stems
from onward.evaluation.cloze.words import Document, sentences

CONTEXT_WORDS = 150
"""Most words before the gap, about 200 tokens; whole sentences, from the nearest back."""
MINIMUM_WORDS = 20
"""Fewest words of two letters or more before the gap: of less nobody can tell the topic."""
SENTENCE_WORDS = (8, 60)
BEFORE_IN_SENTENCE = 2
"""Fewest words of the sentence before the gap."""
_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_ODD = re.compile(r"[{}\\=<>|_^~`#*@]|https?:|www\.")


@dataclass(frozen=True)
class Gap:
    """A place for a term. begin, end: of the term; start: of the context; stop: of the sentence; in characters."""

    begin: int
    end: int
    start: int
    stop: int
    sentence: int


class Sentences:
    """The sentences of a document, and what speaks against a gap in one of them."""

    def __init__(self, document: Document) -> None:
        self.text = document.text
        lowered = document.text.lower()
        # Some letters become longer in lower case (the Turkish dotted I); places must stay what they are.
        self.lowered = lowered if len(lowered) == len(document.text) else document.text
        self._spans = sentences(document.text)
        self._begins = [begin for begin, _ in self._spans]
        self._faults = [_fault(document.text[begin:end]) for begin, end in self._spans]

    def begin_of(self, gap: Gap) -> int:
        """Return where the sentence of a gap begins."""
        return self._begins[gap.sentence]

    def gap(self, term: str, begin: int, rejected: Counter[str]) -> Gap | None:
        """Return the gap of a term at `begin`; None where it makes no good item, with the reason counted."""
        end = begin + len(term)
        number = bisect_right(self._begins, begin) - 1
        if number < 0 or end > self._spans[number][1] or self.text[begin:end] != term:
            rejected["not within a sentence"] += 1
            return None
        first, stop = self._spans[number]
        reason = self._faults[number] or self._surroundings(term, begin, end, first, stop)
        if reason is None and any(stem in self.lowered[end:stop] for stem in stems(term)):
            reason = "the term stands again in the sentence"
        start = self._context_start(term, number, begin) if reason is None else None
        if reason is None and (start is None or len(_LETTERS.findall(self.text, start, begin)) < MINIMUM_WORDS):
            reason = "too little text before it that does not name it"
        if reason is not None or start is None:
            rejected[str(reason)] += 1
            return None
        return Gap(begin, end, start, stop, number)

    def _surroundings(self, term: str, begin: int, end: int, first: int, stop: int) -> str | None:
        """Return what speaks against the words beside the gap."""
        if len(_WORD.findall(self.text, first, begin)) < BEFORE_IN_SENTENCE:
            return "too near the sentence's beginning"
        if self.text[begin - 1] != " " or self.text[begin - 2] == " " or not _ends_word(self.text, end):
            return "joined to something else"
        if term[0].isupper():
            before = _WORD.findall(self.text, max(first, begin - 40), begin)
            after = _LETTERS.match(self.text, end + 1) if self.text[end : end + 1] == " " else None
            follows_name = before[-1][0].isupper() and self.text[begin - 2].isalnum()
            if follows_name or (after is not None and after.group()[0].isupper()):
                return "part of a longer name"
        return None

    def _context_start(self, term: str, number: int, begin: int) -> int | None:
        """Return where the text before the gap begins: behind the last mention, at most CONTEXT_WORDS back.

        None where the sentence itself names the term before the gap. A context that named it would ask for copying.
        """
        mention = max(self.lowered.rfind(stem, 0, begin) for stem in stems(term))
        if mention >= self._begins[number]:
            return None
        start, words = self._begins[number], len(_WORD.findall(self.text, self._begins[number], begin))
        for earlier in range(number - 1, -1, -1):
            low, high = self._spans[earlier]
            words += len(_WORD.findall(self.text, low, high))
            if mention >= low or words > CONTEXT_WORDS:
                break
            start = low
        return start


def _fault(sentence: str) -> str | None:
    """Return why a sentence is no good for an item, None when it is."""
    words = _WORD.findall(sentence)
    if not SENTENCE_WORDS[0] <= len(words) <= SENTENCE_WORDS[1]:
        return "in a line or sentence too short or too long"
    if sentence.rstrip("\"')]”’ ")[-1:] not in (".", "!", "?"):
        return "in a line that is no sentence"
    letters = sum(character.isalpha() or character == " " for character in sentence)
    if letters < 0.9 * len(sentence) or _ODD.search(sentence) or "  " in sentence:
        return "in formulas, code or a list"
    capitals = sum(word[0].isupper() for word in words)
    return "in a list of names" if capitals > len(words) / 2 else None


def _ends_word(text: str, end: int) -> bool:
    following, beyond = text[end : end + 1], text[end + 1 : end + 2]
    return following in (" ", ",", ";", "?", "!", ")") or (following in (".", ":") and not beyond.isalnum())
