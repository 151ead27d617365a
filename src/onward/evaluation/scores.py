"""What an evaluation says: results.json, and items.parquet with one row for each document and question."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import write_json

if TYPE_CHECKING:
    import pyarrow as pa

RESULTS = "results.json"
ITEMS = "items.parquet"


@dataclass(frozen=True)
class HeldOutScore:
    """Bits per byte of held-out text: nats / (ln 2 * bytes) over all documents, with its 95 % bootstrap interval.

    corpus: `domain` or `general`. low, high: ends of the interval, nan where there is one document only.
    """

    corpus: str
    documents: int
    tokens: int
    bytes: int
    nats: float
    bits_per_byte: float
    low: float
    high: float


@dataclass(frozen=True)
class WithoutTouched:
    """Accuracy on the items of a task that were found in no corpus of the run.

    touched: items left out; seen: those of them whose text was left in the training text (`contamination.action:
    report`), the others were dropped or cut out. items: those that remain; without any, the scores are None.
    """

    touched: int
    seen: int
    items: int
    acc: float | None
    acc_stderr: float | None
    acc_norm: float | None
    acc_norm_stderr: float | None


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on a task, as lm-eval computes it.

    items: scored; items_total: without the limit. acc_norm divides log-likelihoods by the choices' characters; it is
    None where lm-eval does not report it. truncated: items whose context did not fit the model. without_touched: the
    same without items that were found in the text, None when none was.
    """

    task: str
    items: int
    items_total: int
    items_hash: str
    num_fewshot: int
    chance: float
    acc: float
    acc_stderr: float
    acc_norm: float | None
    acc_norm_stderr: float | None
    truncated: int
    without_touched: WithoutTouched | None = None


@dataclass(frozen=True)
class Scores:
    """All scores of one model. seconds: wall time of the evaluation."""

    model: str
    held_out: tuple[HeldOutScore, ...]
    tasks: tuple[TaskScore, ...]
    seconds: float


@dataclass(frozen=True)
class ItemRow:
    """One row of items.parquet: a question (gold to logprobs) or a held-out document (nats to tokens).

    task: the task's name, or `held_out:domain`. group: cluster for the bootstrap. predicted_norm and correct_norm:
    by length-normalised log-likelihood, None where lm-eval does not report acc_norm. logprobs: nats per choice.
    touched: `drop`, `cut` or `report`, what was done with the item's text in a corpus; None when it stood in none.
    """

    task: str
    subject: str | None
    item: str
    group: str
    gold: int | None = None
    predicted: int | None = None
    predicted_norm: int | None = None
    correct: bool | None = None
    correct_norm: bool | None = None
    logprobs: tuple[float, ...] | None = None
    nats: float | None = None
    bytes: int | None = None
    tokens: int | None = None
    touched: str | None = None


def write_scores(folder: Path, scores: Scores, rows: Iterable[ItemRow]) -> None:
    """Write results.json and items.parquet into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_json(folder / RESULTS, asdict(scores))
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema()), folder / ITEMS)


def read_scores(folder: Path) -> Scores:
    """Read the scores of a finished evaluation."""
    content = json.loads((folder / RESULTS).read_bytes())
    held_out = tuple(HeldOutScore(**score) for score in content["held_out"])
    tasks = tuple(_task_score(**task) for task in content["tasks"])
    return Scores(content["model"], held_out, tasks, content["seconds"])


def _task_score(*, without_touched: dict[str, Any] | None = None, **score: Any) -> TaskScore:
    """Results of before touched items were known lack them."""
    return TaskScore(**score, without_touched=None if without_touched is None else WithoutTouched(**without_touched))


def read_items(folder: Path) -> "pa.Table":
    """Read items.parquet: the columns are the fields of ItemRow; one that an older file lacks is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / ITEMS)
    for field in _schema():
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "task": pa.string(),
            "subject": pa.string(),
            "item": pa.string(),
            "group": pa.string(),
            "gold": pa.int32(),
            "predicted": pa.int32(),
            "predicted_norm": pa.int32(),
            "correct": pa.bool_(),
            "correct_norm": pa.bool_(),
            "logprobs": pa.list_(pa.float64()),
            "nats": pa.float64(),
            "bytes": pa.int64(),
            "tokens": pa.int64(),
            "touched": pa.string(),
        }
    )
