"""The rows of a comparison before any correction: each measure's values, interval, tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onward.analysis.difference import BITS_PER_BYTE, LOWER_IS_BETTER, Difference, Verdict
from onward.analysis.letters import fixed_options
from onward.analysis.paired import Items, Pair
from onward.analysis.wording import HOLDS_ZERO, p_text
from onward.statistics import (
    Interval,
    binomial_two_sided,
    bootstrap_mean_difference,
    chance_agreement,
    holm,
    mcnemar_exact,
    paired_bootstrap_ratio,
    sign_flip,
)

LEVEL = 0.05
SIGN_FLIPS = 9_999
"""Sign patterns drawn for a test of nats: the smallest p is 0.0001, which Holm over five hundred rows can use."""

LEAST_GROUPS = 8
"""Fewer documents (or groups) give no verdict: with 8 the interval misses the truth about as often as it says."""


@dataclass(frozen=True)
class Resampling:
    """How often intervals resample, and from which seed."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Likelihood:
    """A measure made of nats: their total over the total size, scaled (exp makes a perplexity)."""

    metric: str
    size: NDArray[np.float64]
    scale: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None


def text_row(pair: Pair, how: Resampling) -> Difference:
    """Return held-out text in bits per byte = nats / (ln 2 x UTF-8 bytes), total over total."""
    return likelihood_row(pair, Likelihood(BITS_PER_BYTE, pair.before.bytes * np.log(2)), how)


def source_rows(pair: Pair, how: Resampling) -> list[Difference]:
    """Return the bits per byte of each source of a held-out text; none where there are not several."""
    sources = sorted({source for source in pair.before.source.tolist() if source is not None})
    if len(sources) < 2:
        return []
    parts = [(source, pair.where(np.asarray(pair.before.source == source))) for source in sources]
    return [replace(text_row(part, how), source=source) for source, part in parts]


def task_rows(pair: Pair, how: Resampling) -> list[Difference]:
    """Return a row for each measure of right and wrong, then for each made of nats."""
    rows = [share_row(pair, metric, how) for metric in pair.before.right if metric in pair.after.right]
    return rows + [likelihood_row(pair, measure, how) for measure in likelihoods(pair)]


def clean_rows(pair: Pair, how: Resampling) -> list[Difference]:
    """Return a task's rows without the items found in the text; none when nothing is left."""
    touched = pair.touched
    if touched.all():
        return []
    rows = task_rows(pair.where(~touched), how)
    return [replace(row, touched=int(touched.sum()), seen=pair.seen) for row in rows]


def share_row(pair: Pair, metric: str, how: Resampling) -> Difference:
    """Compare shares of right answers: tests over items and over groups, and the interval over groups."""
    before, after = pair.before.right[metric], pair.after.right[metric]
    groups = pair.before.group
    interval = bootstrap_mean_difference(before, after, groups, how.resamples, how.seed)
    p_mcnemar, right_to_wrong, wrong_to_right = mcnemar_exact(before, after)
    p_value = p_mcnemar
    if pair.groups < len(before):
        p_value = sign_flip(before, after, groups, SIGN_FLIPS, how.seed)
    chance = None if pair.score is None else pair.score.chance
    return Difference(
        pair.name,
        metric,
        float(before.mean()),
        float(after.mean()),
        interval.estimate,
        interval.low,
        interval.high,
        p_value,
        None,
        "at chance" if _guesses(pair, metric) else "not distinguishable",
        len(before),
        right_to_wrong,
        wrong_to_right,
        groups=pair.groups,
        p_mcnemar=p_mcnemar,
        chance=chance,
        below_chance=(below_chance(pair, metric, pair.before), below_chance(pair, metric, pair.after)),
    )


def likelihoods(pair: Pair) -> list[Likelihood]:
    """Return the measures of a task that are made of its items' nats, by lm-eval's names for them."""
    before, after, score = pair.before, pair.after, pair.score
    if score is None or np.isnan(before.nats).any() or np.isnan(after.nats).any():
        return []
    measures = (
        Likelihood("perplexity", np.ones(len(before)), np.exp),
        Likelihood("bits_per_byte", before.bytes * np.log(2)),
        Likelihood("word_perplexity", before.words, np.exp),
    )
    return [m for m in measures if score.find(m.metric) is not None and not np.isnan(m.size).any()]


def likelihood_row(pair: Pair, measure: Likelihood, how: Resampling) -> Difference:
    """Compare a measure made of nats; the test is of the nats, so that a perplexity and its bits agree."""
    before, after, groups = pair.before.nats, pair.after.nats, pair.before.group
    size, scale = measure.size, measure.scale
    interval = paired_bootstrap_ratio(before, after, size, groups, how.resamples, how.seed, scale)
    values = np.array([before.sum() / size.sum(), after.sum() / size.sum()])
    first, second = (values if scale is None else scale(values)).tolist()
    ends = (interval.estimate, interval.low, interval.high)
    p_value = sign_flip(before, after, groups, SIGN_FLIPS, how.seed)
    return Difference(
        pair.name,
        measure.metric,
        first,
        second,
        *ends,
        p_value,
        None,
        "not distinguishable",
        len(before),
        None,
        None,
        groups=pair.groups,
    )


def _guesses(pair: Pair, metric: str) -> bool:
    """Whether neither model does better than guessing: a change between two guesses is one of habit, not of ability,
    whatever the paired test says of it."""
    return all(at_chance(pair, metric, side) for side in (pair.before, pair.after))


def at_chance(pair: Pair, metric: str, side: Items) -> bool:
    """Whether a score cannot be told from guessing, p > 0.05.

    Where options are letters, guessing is picking each of them as often as the model does, in each subject
    (`chance_agreement`): always answering A scores 23 to 27 % on MMLU and always yes 62 % on BoolQ, far from 25 and
    50 % by any test, and is no ability. Elsewhere it is the two-sided exact binomial test against the score of
    guessing.
    """
    options = fixed_options(pair)
    if metric == "acc" and options is not None:
        gold, picked = (answer.astype(np.int64) for answer in (side.gold, side.predicted))
        subjects = side.subject.astype(str)  # `None` is a name like any other
        return chance_agreement(gold, picked, len(options), subjects) > LEVEL
    if pair.score is None or pair.score.chance is None:
        return False
    right = side.right[metric]
    return binomial_two_sided(int(right.sum()), len(right), pair.score.chance) > LEVEL


def below_chance(pair: Pair, metric: str, side: Items) -> bool:
    """Whether a score is lower than guessing, p <= 0.05: wrong more often than somebody who knows nothing.

    Guessing is what `at_chance` takes it for: where options are letters, picking each as often as the model does.
    """
    guessed = guessing(pair, metric, side)
    return guessed is not None and not at_chance(pair, metric, side) and bool(side.right[metric].mean() < guessed)


def guessing(pair: Pair, metric: str, side: Items) -> float | None:
    """Return the score of guessing: of picking each letter as often as the model does, in each subject; else chance.

    None where a task has no level of chance.
    """
    if pair.score is None or pair.score.chance is None:
        return None
    options = fixed_options(pair)
    if metric != "acc" or options is None:
        return pair.score.chance
    subjects, right = side.subject.astype(str), 0.0
    for subject in np.unique(subjects):
        gold, picked = (
            np.bincount(answer[subjects == subject].astype(np.int64), minlength=len(options))
            for answer in (side.gold, side.predicted)
        )
        right += float(gold @ picked) / gold.sum()
    return right / len(side)


def corrected(tables: list[list[Difference]]) -> list[list[Difference]]:
    """Apply Holm over all rows of all tables, then give verdicts: every row is a chance to be fooled."""
    adjusted = iter(holm([row.p_value for table in tables for row in table if row.p_value is not None]))
    return [[_judged(row, next(adjusted)) for row in table] for table in tables]


def _judged(row: Difference, p_adjusted: float) -> Difference:
    if row.verdict == "at chance":
        return replace(row, p_adjusted=p_adjusted)
    assert row.p_value is not None
    why = unclear(Interval(row.delta, row.low, row.high), row.groups, row.p_value, p_adjusted, row.is_text)
    rose: Verdict = "lost" if row.metric in LOWER_IS_BETTER else "gained"
    fell: Verdict = "gained" if row.metric in LOWER_IS_BETTER else "lost"
    verdict: Verdict = "not distinguishable" if why else rose if row.delta > 0 else fell
    return replace(row, p_adjusted=p_adjusted, verdict=verdict, why=why)


def unclear(interval: Interval, groups: int, p_value: float, p_adjusted: float, is_text: bool) -> str | None:
    """Say why a change cannot be told from none; None when the corrected test and the interval both show it.

    Asking both, no row says `gained` beside an interval that holds zero, and none without the correction.
    """
    if is_text and groups < LEAST_GROUPS:
        return f"fewer than {LEAST_GROUPS} documents or groups of them"
    if np.isnan(interval.low):
        return "one item has no interval"
    if interval.low <= 0 <= interval.high:
        return HOLDS_ZERO
    if p_adjusted <= LEVEL:
        return None
    return f"p = {p_text(p_value)} alone, {p_text(p_adjusted)} after Holm"
