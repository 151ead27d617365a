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
    """After `tokens` the marginal gain is below half of the largest before.

    again: the first piece from there on that gains half or more of the best before it once more, None where none does.
    """

    tokens: int
    after: Marginal
    largest: Marginal
    again: Marginal | None

    @property
    def is_below_half(self) -> bool:
        """Whether the whole interval of the gain after it is below half; never where it is not known."""
        return self.after.gain.high < self.largest.gain.estimate / 2

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is below half and no later piece takes that back."""
        return self.is_below_half and self.again is None


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
    halved: tuple[Marginal, Marginal] | None = None
    for place, piece in enumerate(pieces[1:], start=1):
        largest = max(pieces[:place], key=lambda before: before.gain.estimate)
        half = largest.gain.estimate / 2
        if half <= 0:
            continue
        if halved is None and piece.gain.estimate < half:
            halved = piece, largest
        elif halved is not None and piece.gain.estimate >= half:
            return Inflection(halved[0].start, *halved, again=piece)
    return None if halved is None else Inflection(halved[0].start, *halved, again=None)
