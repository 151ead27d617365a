"""Several seeds of one recipe against the base: what the recipe does, not what one of its runs did."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.analysis.comparison import assembled
from onward.analysis.difference import BITS_PER_BYTE, Comparison, Difference
from onward.analysis.paired import Pair, pair_up, read_scored
from onward.analysis.rows import at_chance, corrected, likelihoods
from onward.errors import UserError
from onward.statistics import pooled_change


def pooled(
    base_folder: Path, folders: Sequence[Path], name: str | None = None, base_name: str | None = None
) -> Comparison:
    """Compare the mean over models that differ in their seed alone with their base, on the same items.

    The intervals hold for other seeds and other items (`statistics.pooled_change`). name: of the pooled side;
    base_name: of the base, else the one in its scores. Held-out text, measures of right and wrong, and bits per byte
    are pooled; perplexities are not, whose mean is no perplexity. Holm's correction is over the rows of a kind. Raises
    UserError for fewer than two folders, or when the items or the precision differ.
    """
    require_seeds(len(folders))
    base = read_scored(base_folder)
    sides = [pair_up(base, read_scored(folder)) for folder in folders]
    texts = [_text_row(pairs) for pairs in zip(*(texts for texts, _ in sides), strict=True)]
    rows, clean = [], []
    for pairs in zip(*(tasks for _, tasks in sides), strict=True):
        rows += _task_rows(pairs)
        clean += _clean_rows(pairs)
    judged, without = corrected([rows])[0], corrected([clean])[0]
    shown = [*corrected([texts])[0], *judged]
    return assembled(base_name or base.scores.model, name or f"{len(folders)} seeds", shown, without)


def require_seeds(seeds: int) -> None:
    """Raise UserError where there are fewer than two seeds: one says nothing of how seeds differ."""
    if seeds < 2:
        todo = "train the recipe with another seed as well, or compare the one alone: `onward compare BASE MODEL`"
        raise UserError("pooling needs several seeds", None, f"{seeds}", "2 or more", todo)


def _text_row(pairs: Sequence[Pair]) -> Difference:
    size = pairs[0].before.bytes * np.log(2)
    return _row(pairs, BITS_PER_BYTE, pairs[0].before.nats, np.stack([pair.after.nats for pair in pairs]), size)


def _task_rows(pairs: Sequence[Pair]) -> list[Difference]:
    first = pairs[0]
    rows = []
    for metric, before in first.before.right.items():
        if not all(metric in pair.after.right for pair in pairs):
            continue
        after = np.stack([pair.after.right[metric] for pair in pairs])
        row = _row(pairs, metric, before, after, np.ones(len(before)))
        if at_chance(first, metric, first.before) and all(at_chance(pair, metric, pair.after) for pair in pairs):
            row = replace(row, verdict="at chance")
        rows.append(replace(row, chance=None if first.score is None else first.score.chance))
    for measure in likelihoods(first):
        if measure.scale is None:
            after = np.stack([pair.after.nats for pair in pairs])
            rows.append(_row(pairs, measure.metric, first.before.nats, after, measure.size))
    return rows


def _clean_rows(pairs: Sequence[Pair]) -> list[Difference]:
    """The rows without items that stood in the text of any side; as they are where none did."""
    touched = np.any([pair.touched for pair in pairs], axis=0)
    if not touched.any():
        return _task_rows(pairs)
    if touched.all():
        return []
    seen = max(pair.seen for pair in pairs)
    rows = _task_rows([pair.where(~touched) for pair in pairs])
    return [replace(row, touched=int(touched.sum()), seen=seen) for row in rows]


def _row(
    pairs: Sequence[Pair],
    metric: str,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    size: NDArray[np.float64],
) -> Difference:
    change = pooled_change(before, after, size, pairs[0].before.group)
    seeds = after.sum(axis=1) / size.sum()
    ends = (change.interval.estimate, change.interval.low, change.interval.high)
    return Difference(
        pairs[0].name,
        metric,
        float(np.sum(before) / size.sum()),
        float(seeds.mean()),
        *ends,
        change.p_value,
        None,
        "not distinguishable",
        len(before),
        None,
        None,
        groups=pairs[0].groups,
        seeds=tuple(seeds.tolist()),
    )
