"""Read two scorings and put them side by side, row by row the same item."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onward.artifact import read_manifest
from onward.errors import UserError
from onward.evaluation.scores import Scores, TaskScore, read_items, read_scores

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT = "held_out:"
_NAMES = ("item", "subject", "group", "source", "touched")
_NUMBERS = ("gold", "predicted", "nats", "bytes", "words")


@dataclass(frozen=True)
class Items:
    """The scored items of one task or text, sorted by id; all arrays are [items].

    names of subjects, groups, sources and what was done with touched items are objects, None where there is none;
    numbers are float64, nan where there is none. options: choices of an item. right: only measures that every item has.
    """

    item: NDArray[Any]
    subject: NDArray[Any]
    group: NDArray[Any]
    source: NDArray[Any]
    touched: NDArray[Any]
    gold: NDArray[np.float64]
    predicted: NDArray[np.float64]
    nats: NDArray[np.float64]
    bytes: NDArray[np.float64]
    words: NDArray[np.float64]
    options: NDArray[np.float64]
    right: Mapping[str, NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.item)

    def where(self, mask: NDArray[np.bool_]) -> "Items":
        """Return only the items of a mask: bool [items]."""
        columns = {name: getattr(self, name)[mask] for name in (*_NAMES, *_NUMBERS, "options")}
        return replace(self, **columns, right={measure: values[mask] for measure, values in self.right.items()})


@dataclass(frozen=True)
class Pair:
    """The same items before and after. score: what a task is (its settings and measures), None for held-out text."""

    name: str
    score: TaskScore | None
    before: Items
    after: Items

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Which items were found in the text of either side's corpora: bool [items]."""
        found = (self.before.touched != None) | (self.after.touched != None)  # noqa: E711 (by element)
        return np.asarray(found, dtype=np.bool_)

    @property
    def seen(self) -> int:
        """How many items stayed in the training text of either side."""
        return int(np.sum((self.before.touched == "report") | (self.after.touched == "report")))

    @property
    def groups(self) -> int:
        """Units of tests and intervals; a single group counts its items (see `statistics._clusters`)."""
        groups = len(set(self.before.group.tolist()))
        return len(self.before) if groups == 1 else groups

    def where(self, mask: NDArray[np.bool_]) -> "Pair":
        """Return only the items of a mask: bool [items]."""
        return replace(self, before=self.before.where(mask), after=self.after.where(mask))


@dataclass(frozen=True)
class Scored:
    """One side: the scores of a model and its items by task. precision: None where the folder does not say."""

    where: Path
    scores: Scores
    items: Mapping[str, Items]
    precision: str | None


def read_scored(folder: Path) -> Scored:
    """Read the scores in a folder (results.json, items.parquet, manifest.json where there is one)."""
    return Scored(folder, read_scores(folder), _by_task(read_items(folder)), scored_precision(folder))


def scored_precision(folder: Path) -> str | None:
    """Return what the scores in a folder were computed in, `fp32` or `bf16`; None where its manifest does not say."""
    manifest = read_manifest(folder)
    return None if manifest is None else manifest.made_from.get("precision")


def pair_up(before: Scored, after: Scored) -> tuple[list[Pair], list[Pair]]:
    """Return the held-out texts and the tasks of both sides.

    Raises UserError when they are not of the same items, or were not computed in the same precision.
    """
    where = after.where
    _same_precision(before, after)
    _same_settings(before.scores, after.scores, where)
    if set(before.items) != set(after.items):
        _refuse(where, ", ".join(sorted(after.items)) or "nothing", ", ".join(sorted(before.items)) or "nothing")
    scores = {task.task: task for task in before.scores.tasks}
    texts, tasks = [], []
    for name, first in before.items.items():
        second = after.items[name]
        _same_items(name, first, second, where)
        if name.startswith(HELD_OUT):
            texts.append(Pair(name.removeprefix(HELD_OUT), None, first, second))
        else:
            tasks.append(Pair(name, scores[name], first, second))
    return texts, tasks


def _by_task(table: "pa.Table") -> dict[str, Items]:
    import pyarrow.compute as pc

    columns: dict[str, NDArray[Any]] = {}
    for name in _NAMES:  # as objects, so that None stays None
        columns[name] = np.array(table.column(name).to_pylist(), dtype=object)
    for name in _NUMBERS:
        columns[name] = table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
    columns["options"] = pc.list_value_length(table.column("logprobs")).to_numpy(zero_copy_only=False)
    columns["options"] = columns["options"].astype(np.float64)
    tasks = np.array(table.column("task").to_pylist(), dtype=object)
    right = table.column("right").to_pylist()
    order = np.argsort(columns["item"].astype(str), kind="stable")
    split = {}
    for task in dict.fromkeys(tasks.tolist()):
        rows = order[tasks[order] == task]
        split[task] = Items(
            **{name: column[rows] for name, column in columns.items()}, right=_right([right[row] for row in rows])
        )
    return split


def _right(rows: list[Any]) -> dict[str, NDArray[np.bool_]]:
    """Turn a column of maps into columns by measure, leaving out those that some item lacks."""
    answers = [dict(row or ()) for row in rows]
    measures = [name for name in answers[0] if all(answer.get(name) is not None for answer in answers)]
    return {name: np.array([answer[name] for answer in answers], dtype=np.bool_) for name in measures}


def _same_items(name: str, before: Items, after: Items, where: Path) -> None:
    first, second = set(before.item.tolist()), set(after.item.tolist())
    if first != second:
        got = f"{name}: {_some(first - second)} only before, {_some(second - first)} only after"
        _refuse(where, got, f"the same {len(first)} items of {name}")
    for column in ("bytes", "words", "gold"):
        one, other = getattr(before, column), getattr(after, column)
        changed = before.item[(one != other) & ~(np.isnan(one) & np.isnan(other))]
        if len(changed):
            _refuse(where, f"{name}: {column} differs in {_some(set(changed.tolist()))}", "the same content")


def _same_precision(before: Scored, after: Scored) -> None:
    """Refuse scores of fp32 beside such of bf16: near ties fall otherwise, and the flips would pass for a change."""
    first, second = before.precision, after.precision
    if first is None or second is None or first == second:
        return
    raise UserError(
        "the two models were scored in different precision, so they cannot be compared",
        str(after.where),
        second,
        f"{first}, as in {before.where}",
        f"score both in one: `onward compare` with `--precision {first}` and the models in place of their scores",
    )


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
