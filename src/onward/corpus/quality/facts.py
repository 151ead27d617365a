"""What the families of rules ask of a batch, each counted once; and a rule as it is judged."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.corpus.quality.ngrams import LONGEST, Repetition, count_repetition
from onward.corpus.quality.repeats import Paragraphs, paragraphs_of, per_document, seen_before
from onward.corpus.text.batch import TextBatch
from onward.corpus.text.lines import Lines, split_lines
from onward.corpus.text.words import Words


@dataclass(frozen=True)
class Rule:
    """A number of every document and the limit beyond which the rule speaks against it.

    name: in the ledger. values: float64[documents], nan where the number is undefined, which speaks for the document.
    limit None: the rule is off. is_yes_or_no: the number is 0 or 1.
    """

    name: str
    values: NDArray[np.float64]
    limit: float | None
    is_maximum: bool
    is_yes_or_no: bool = False


@dataclass(frozen=True)
class Facts:
    """Counts of a batch. longest: the largest n of the n-grams that a rule asks for."""

    batch: TextBatch
    words: Words
    longest: int = LONGEST

    @cached_property
    def lines(self) -> Lines:
        """The lines between line feeds."""
        return split_lines(self.batch)

    @cached_property
    def paragraphs(self) -> Paragraphs:
        """The lines between empty lines."""
        return paragraphs_of(self.batch, self.lines)

    @cached_property
    def seen_lines(self) -> NDArray[np.bool_]:
        """Which lines occurred earlier in their document."""
        return seen_before(self.lines.hash, self.lines.starts)

    @cached_property
    def repetition(self) -> Repetition:
        """Characters in repeated n-grams."""
        return count_repetition(self.words, self.longest)

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """Code points of every document."""
        return per_document(self.lines.characters, self.lines.starts) + self.lines.line_feeds

    @cached_property
    def num_words(self) -> NDArray[np.int64]:
        """Words of every document."""
        return np.diff(self.words.starts)


def share(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide, nan where the whole is nothing.

    Both are integers far below 2**53, so the quotient is the float nearest to the exact share, and equals a threshold
    written as a decimal exactly when the share does.
    """
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient = np.full(len(part), np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient
