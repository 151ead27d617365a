"""What made items must pass before they are used: the base above chance and below the ceiling, n-grams at chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onward.errors import UserError
from onward.evaluation.cloze.artifact import CHOICES, ClozeItem
from onward.model.source import ModelSource
from onward.progress import Progress
from onward.statistics import Interval, bootstrap_ratio

CEILING = 0.95
"""Accuracy of the base above which there is no room left to gain."""
_RESAMPLES = 2000
_CHUNK = 1000


def check(
    items: Sequence[ClozeItem], base: ModelSource, held_out: Path, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return the accuracy of the n-gram model and of the base, with and without the context, each with its interval.

    Raises UserError when the base cannot be told from chance or is above CEILING. No item is dropped for what the
    base makes of it: a set on which it was right (or wrong) by selection would make every later model look worse (or
    better) than it is.
    """
    with_context, without = _score_base(items, base, progress)
    facts = {
        "chance": 1 / CHOICES,
        "ngram": _accuracy(items, [item.ngram for item in items], seed),
        "base_accuracy": _accuracy(items, with_context, seed),
        "base_accuracy_without_context": _accuracy(items, without, seed),
    }
    found = facts["base_accuracy"]
    assert isinstance(found, dict)
    require_between(Interval(found["accuracy"], found["low"], found["high"]), base, held_out, len(items))
    return facts


def require_between(accuracy: Interval, base: ModelSource, held_out: Path, items: int) -> None:
    """Raise UserError unless the base's accuracy over so many items is above chance and leaves room to gain."""
    interval = f"95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}"
    got = f"{accuracy.estimate:.1%} of {items:,} questions right, {interval}"
    if not accuracy.low > 1 / CHOICES:
        todo = (
            "for a narrower interval hold more text out (corpus.held_out.share) or ask for more questions; for a base "
            "that knows more of this domain take a stronger one; or train without them (evaluation.cloze: null)"
        )
        raise UserError(
            f"{base.name} answers the cloze questions no better than by guessing, so they could not show that it "
            "forgets; this is said before training, which is not at fault",
            str(held_out),
            got,
            f"an interval above {1 / CHOICES:.0%}, which is guessing among {CHOICES}",
            todo,
        )
    if accuracy.estimate > CEILING:
        todo = "the base knows this text: hold other text out, or leave it out (evaluation.cloze: null)"
        raise UserError(
            f"{base.name} solves the cloze items, so they would not show a gain",
            str(held_out),
            got,
            f"at most {CEILING:.0%}",
            todo,
        )


def _accuracy(items: Sequence[ClozeItem], scores: Sequence[Sequence[float]], seed: int) -> dict[str, float]:
    """Return the share of items whose right choice scores highest, with an interval over groups of documents."""
    right = np.argmax(np.array(scores), axis=1) == np.array([item.gold for item in items])
    groups = np.array([item.group for item in items])
    interval = bootstrap_ratio(right.astype(np.float64), np.ones(len(items)), groups, _RESAMPLES, seed)
    facts = {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: round(value, 6) for name, value in facts.items()}


def _score_base(
    items: Sequence[ClozeItem], base: ModelSource, progress: Progress
) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Return the log-likelihoods of the choices in their place, and of the choices alone."""
    import torch

    from onward.model.load import load_model
    from onward.model.score import encode_requests, score_continuations
    from onward.model.tokenizer import read_tokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(base, device=device), read_tokenizer(base.folder)
    batch_tokens = 65_536 if device == "cuda" else 4096
    progress.begin("scoring the base on cloze items", len(items), "items")

    def score(pairs: list[tuple[str, str]]) -> list[tuple[float, ...]]:
        found = score_continuations(model, encode_requests(tokenizer, pairs), batch_tokens)
        values = [result.logprob for result in found]
        return [tuple(values[start : start + CHOICES]) for start in range(0, len(values), CHOICES)]

    whole: list[tuple[float, ...]] = []
    alone: list[tuple[float, ...]] = []
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        whole += score([pair for item in chunk for pair in item.requests()])
        alone += score([("", choice) for item in chunk for choice in item.choices])
        progress.advance(len(whole))
    return whole, alone
