"""What the quality rules say of a batch of documents: the first rule against each, and every rule's number."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.corpus.quality.c4 import c4_lines, c4_rules
from onward.corpus.quality.facts import Facts, Rule
from onward.corpus.quality.fineweb import fineweb_rules
from onward.corpus.quality.gopher import duplicate_ngram_limits, quality_rules, repetition_rules
from onward.corpus.quality.paper import NGRAM_WORDS, paper_rules
from onward.corpus.text.batch import TextBatch
from onward.corpus.text.words import Words
from onward.recipe.quality import Quality


@dataclass(frozen=True)
class Measure:
    """The number that a rule compared with its threshold. values: float32[documents], nan where it is undefined."""

    rule: str
    threshold: float
    is_maximum: bool
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Judgement:
    """What speaks against each document.

    reason: int16[documents], index into `reasons` (the active rules, by their names in the ledger), -1 where no rule
    speaks against it. measures: one for each active rule that compares a number. trimmed: documents that stay without
    some of their lines (C4's line rules), with the text that is left.
    """

    reason: NDArray[np.int16]
    reasons: tuple[str, ...]
    measures: tuple[Measure, ...]
    trimmed: dict[int, str]


def judge(batch: TextBatch, words: Words, quality: Quality | None) -> Judgement:
    """Apply every family to the text as read; the first rule that speaks, in a fixed order, is the reason."""
    reason = np.full(len(batch), -1, dtype=np.int16)
    if quality is None:
        return Judgement(reason, (), (), {})
    rules: list[Rule] = []
    trimmed: dict[int, str] = {}
    for rule in _rules(Facts(batch, words, _longest_ngram(quality)), quality, trimmed):
        if rule.limit is not None:
            against = rule.values > rule.limit if rule.is_maximum else rule.values < rule.limit
            reason[against & (reason < 0)] = len(rules)
            rules.append(rule)
    measures = tuple(
        Measure(rule.name, rule.limit, rule.is_maximum, rule.values.astype(np.float32))
        for rule in rules
        if rule.limit is not None and not rule.is_yes_or_no
    )
    left = {document: text for document, text in trimmed.items() if reason[document] < 0}
    return Judgement(reason, tuple(rule.name for rule in rules), measures, left)


def _rules(facts: Facts, quality: Quality, trimmed: dict[int, str]) -> Iterator[Rule]:
    """Yield the rules of every family that is on; C4's put the documents that they would change into `trimmed`."""
    if quality.paper is not None:
        yield from paper_rules(facts, quality.paper)
    if quality.gopher_quality is not None:
        yield from quality_rules(facts, quality.gopher_quality)
    if quality.gopher_repetition is not None:
        yield from repetition_rules(facts, quality.gopher_repetition)
    if quality.c4 is not None:
        left = c4_lines(facts.batch, quality.c4)
        trimmed.update(left.changed())
        yield from c4_rules(left, quality.c4)
    if quality.fineweb is not None:
        yield from fineweb_rules(facts, quality.fineweb)


def _longest_ngram(quality: Quality) -> int:
    """Return the largest n that a rule asks for: what lies beyond is not counted."""
    longest = NGRAM_WORDS if quality.paper is not None and quality.paper.maximum_duplicate_ngrams is not None else 0
    if quality.gopher_repetition is not None:
        limits = enumerate(duplicate_ngram_limits(quality.gopher_repetition), 5)
        longest = max([4, longest, *(n for n, limit in limits if limit is not None)])
    return longest
