"""What each further piece of training gains, and where that has halved."""

from collections.abc import Sequence
from dataclasses import dataclass

from onward.statistics import Interval

PER_TOKENS = 100_000_000
"""Marginal gains are given per so many tokens, as the paper counts."""


@dataclass(frozen=True)
class Marginal:
    """What the tokens from `start` to `end` gained: bits per byte per 100M tokens, above 0 where it got easier."""

    start: int
    end: int
    gain: Interval


@dataclass(frozen=True)
class Inflection:
    """After `tokens` the marginal gain is below half of the largest before. is_sure: its whole interval is."""

    tokens: int
    after: Marginal
    largest: Marginal
    is_sure: bool


def marginal(start: int, end: int, change: Interval) -> Marginal:
    """Return the gain per 100M tokens of a change in bits per byte between two budgets."""
    scale = PER_TOKENS / (end - start)
    return Marginal(start, end, Interval(-change.estimate * scale, -change.high * scale, -change.low * scale))


def inflection(pieces: Sequence[Marginal]) -> Inflection | None:
    """Return the efficiency inflection, None where it is not reached.

    It is the first budget after which the next piece gains, per token, less than half of what the best piece up to
    there did. The best piece is the first one unless warm-up lies in it. Without a piece that gains there is nothing to
    halve.
    """
    for place, piece in enumerate(pieces[1:], start=1):
        largest = max(pieces[:place], key=lambda before: before.gain.estimate)
        half = largest.gain.estimate / 2
        if half > 0 and piece.gain.estimate < half:
            return Inflection(piece.start, piece, largest, piece.gain.high < half)
    return None
