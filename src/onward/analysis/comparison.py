"""Compare two scorings of the same items: what was gained, what was lost, and what cannot be told apart."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onward.analysis.difference import BITS_PER_BYTE, Comparison, Difference, Verdict
from onward.analysis.wording import sentence
from onward.errors import UserError
from onward.evaluation.scores import Scores, TaskScore, read_items, read_scores
from onward.statistics import (
    Interval,
    binomial_two_sided,
    bootstrap_mean_difference,
    holm,
    mcnemar_exact,
    paired_bootstrap_ratio,
)

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT = "held_out:"
LEVEL = 0.05
_COLUMNS = ("task", "item", "group", "gold", "nats", "bytes")
_NULLABLE_COLUMNS = ("correct", "correct_norm", "touched")

Items = Mapping[str, NDArray[Any]]

LEAST_GROUPS = 8
"""Fewer documents (or groups) give no verdict: with 8 the interval misses the truth about as often as it says."""


def compare(before_folder: Path, after_folder: Path, resamples: int, seed: int) -> Comparison:
    """Compare the scores in two folders (results.json, items.parquet), paired item by item.

    Tasks with items that were found in the corpora's text are compared a second time without those, in the same
    family of Holm's correction. Raises UserError when they did not score the same items, naming what differs.
    """
    before, after = read_scores(before_folder), read_scores(after_folder)
    _same_settings(before, after, after_folder)
    items = _paired(_by_task(read_items(before_folder)), _by_task(read_items(after_folder)), after_folder)
    text = [
        _text_difference(task.removeprefix(HELD_OUT), *pair, resamples, seed)
        for task, pair in items.items()
        if task.startswith(HELD_OUT)
    ]
    chances = {task.task: task.chance for task in before.tasks}
    pairs = {task: pair for task, pair in items.items() if not task.startswith(HELD_OUT)}
    tasks = {task: _task_differences(task, chances[task], *pair, resamples, seed) for task, pair in pairs.items()}
    clean = tasks | {
        task: _clean_differences(task, chances[task], *pair, resamples, seed)
        for task, pair in pairs.items()
        if _touched(*pair).any()
    }
    differences = (*text, *_corrected(list(chain(*tasks.values()))))
    without = tuple(row for row in _corrected(list(chain(*clean.values()))) if row.touched)
    sentences = tuple(sentence(row) for row in (*differences, *without))
    return Comparison(before.model, after.model, differences, sentences, without)


def _text_difference(name: str, before: Items, after: Items, resamples: int, seed: int) -> Difference:
    """Bits per byte = nats / (ln 2 x UTF-8 bytes), total over total; documents of a group are drawn together."""
    scale = 1 / np.log(2)
    size = before["bytes"].astype(np.float64)
    bits_before, bits_after = (side["nats"].astype(np.float64) * scale for side in (before, after))
    interval = paired_bootstrap_ratio(bits_before, bits_after, size, before["group"], resamples, seed)
    first, second = float(bits_before.sum() / size.sum()), float(bits_after.sum() / size.sum())
    verdict: Verdict = "gained" if interval.high < 0 else "lost" if interval.low > 0 else "not distinguishable"
    if len(set(before["group"].tolist())) < LEAST_GROUPS:
        verdict = "not distinguishable"  # a bootstrap over so few documents is too narrow to rest a verdict on
    ends = (interval.estimate, interval.low, interval.high)
    return Difference(name, BITS_PER_BYTE, first, second, *ends, None, None, verdict, len(size), None, None)


def _task_differences(
    task: str, chance: float, before: Items, after: Items, resamples: int, seed: int
) -> list[Difference]:
    """One row for acc and one for acc_norm where every item has it; verdicts still without Holm's correction."""
    metrics = {"acc": "correct", "acc_norm": "correct_norm"}
    complete = {m: c for m, c in metrics.items() if not any(v is None for side in (before, after) for v in side[c])}
    rows = []
    for metric, column in complete.items():
        right_before, right_after = before[column].astype(bool), after[column].astype(bool)
        interval = bootstrap_mean_difference(right_before, right_after, before["group"], resamples, seed)
        p_value, right_to_wrong, wrong_to_right = mcnemar_exact(right_before, right_after)
        guessing = at_chance(right_before, chance) and at_chance(right_after, chance)
        verdict: Verdict = "at chance" if guessing else task_verdict(interval, p_value)
        rates = (float(right_before.mean()), float(right_after.mean()))
        ends = (interval.estimate, interval.low, interval.high)
        changes = (len(right_before), right_to_wrong, wrong_to_right)
        rows.append(Difference(task, metric, *rates, *ends, p_value, None, verdict, *changes))
    return rows


def _touched(before: Items, after: Items) -> NDArray[np.bool_]:
    """Which items were found in the text of either side's corpora: bool [items]."""
    pairs = zip(before["touched"], after["touched"], strict=True)
    return np.array([first is not None or second is not None for first, second in pairs], dtype=np.bool_)


def _clean_differences(
    task: str, chance: float, before: Items, after: Items, resamples: int, seed: int
) -> list[Difference]:
    """Compare a task without the items found in the text; no row when nothing is left."""
    touched = _touched(before, after)
    if touched.all():
        return []
    seen = int(np.sum((before["touched"] == "report") | (after["touched"] == "report")))
    first, second = ({name: column[~touched] for name, column in side.items()} for side in (before, after))
    rows = _task_differences(task, chance, first, second, resamples, seed)
    return [replace(row, touched=int(touched.sum()), seen=seen) for row in rows]


def at_chance(right: NDArray[np.bool_], chance: float) -> bool:
    """Whether a score cannot be told from guessing: two-sided exact binomial test against `chance`, p > 0.05.

    A task is called `at chance` when this holds before and after: a change between two guesses is a change of
    habit (always answering A scores 23 to 27 % on MMLU), not of ability, whatever the paired test says of it.
    """
    return binomial_two_sided(int(right.sum()), len(right), chance) > LEVEL


def task_verdict(interval: Interval, p_adjusted: float) -> Verdict:
    """Say gained or lost only when the corrected test and the interval agree.

    The exact test does not know of groups (questions on one passage), the interval does; asking both keeps the
    error below 5 % in either case, and no row says `gained` beside an interval that holds zero.
    """
    if p_adjusted > LEVEL or interval.low <= 0 <= interval.high or np.isnan(interval.low):
        return "not distinguishable"
    return "gained" if interval.estimate > 0 else "lost"


def _corrected(rows: list[Difference]) -> list[Difference]:
    """Apply Holm over all task rows of one comparison, acc and acc_norm alike: both are chances to be fooled."""
    adjusted = holm([row.p_value for row in rows if row.p_value is not None])
    corrected = []
    for row, p_adjusted in zip(rows, adjusted, strict=True):
        verdict = row.verdict
        if verdict != "at chance":
            verdict = task_verdict(Interval(row.delta, row.low, row.high), p_adjusted)
        corrected.append(replace(row, p_adjusted=p_adjusted, verdict=verdict))
    return corrected


def _by_task(table: "pa.Table") -> dict[str, Items]:
    """Split the items by task, each sorted by item id; {task: {column: [items]}}."""
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS}
    for name in _NULLABLE_COLUMNS:  # as objects, so that None stays None
        columns[name] = np.array(table.column(name).to_pylist(), dtype=object)
    order = np.argsort(columns["item"].astype(str), kind="stable")
    names = dict.fromkeys(columns["task"].tolist())
    split: dict[str, Items] = {}
    for task in names:
        rows = order[columns["task"][order] == task]
        split[task] = {name: column[rows] for name, column in columns.items()}
    return split


def _paired(before: dict[str, Items], after: dict[str, Items], where: Path) -> dict[str, tuple[Items, Items]]:
    """Return both sides of every task, row by row the same item; raises UserError when they are not."""
    if set(before) != set(after):
        _refuse(where, ", ".join(sorted(after)) or "nothing", ", ".join(sorted(before)) or "nothing")
    for task in before:
        first, second = set(before[task]["item"].tolist()), set(after[task]["item"].tolist())
        if first != second:
            got = f"{task}: {_some(first - second)} only before, {_some(second - first)} only after"
            _refuse(where, got, f"the same {len(first)} items of {task}")
        column = "bytes" if task.startswith(HELD_OUT) else "gold"
        changed = before[task]["item"][before[task][column] != after[task][column]]
        if len(changed):
            _refuse(where, f"{task}: {column} differs in {_some(set(changed.tolist()))}", "the same content")
    return {task: (before[task], after[task]) for task in before}


def _same_settings(before: Scores, after: Scores, where: Path) -> None:
    def settings(task: TaskScore) -> str:
        return f"{task.task}: {task.items} items {task.items_hash}, {task.num_fewshot}-shot"

    theirs = {task.task: settings(task) for task in before.tasks}
    for task in after.tasks:
        if theirs.get(task.task, settings(task)) != settings(task):
            _refuse(where, settings(task), theirs[task.task])


def _some(items: set[str]) -> str:
    return f"{len(items)} items (such as {min(items)})" if items else "none"


def _refuse(where: Path, got: str, expected: str) -> None:
    raise UserError(
        "the two models were not scored on the same items, so they cannot be compared",
        str(where),
        got,
        expected,
        "score both with the same tasks, limit and held-out text; remove the older scores and run again",
    )
