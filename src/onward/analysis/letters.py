"""Which option a model picks: a change of habit can look like a change of ability."""

import numpy as np
from numpy.typing import NDArray

from onward.analysis.difference import Letters
from onward.analysis.paired import Pair
from onward.tasks.shots import split_shots

_ABCD = ("A", "B", "C", "D")
FIXED_OPTIONS = {
    "boolq": ("no", "yes"),
    "medmcqa": _ABCD,
    "medqa_4options": _ABCD,
    "pubmedqa": ("yes", "no", "maybe"),
}
"""Options of tasks that are the same for every item, in lm-eval's order (doc_to_choice); MMLU's are by prefix."""


def fixed_options(pair: Pair) -> tuple[str, ...] | None:
    """Return the options of a task where every item has the same, and every item says which of them was picked."""
    options = FIXED_OPTIONS.get(split_shots(pair.name)[0])
    if options is None and pair.name.startswith("mmlu") and "continuation" not in pair.name:
        options = _ABCD
    if options is None or not np.all(pair.before.options == len(options)):
        return None
    sides = (pair.before.gold, pair.before.predicted, pair.after.predicted)
    return None if any(np.isnan(side).any() for side in sides) else options


def letters(pair: Pair) -> Letters | None:
    """Count the options that either model picks; None for a task whose options differ from item to item."""
    options = fixed_options(pair)
    if options is None:
        return None

    def counts(picked: NDArray[np.float64]) -> tuple[int, ...]:
        return tuple(np.bincount(picked.astype(np.int64), minlength=len(options)).tolist())

    gold, before, after = map(counts, (pair.before.gold, pair.before.predicted, pair.after.predicted))
    return Letters(pair.name, options, gold, before, after)
