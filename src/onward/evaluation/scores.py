"""What an evaluation says: results.json, and items.parquet with one row for each document and question."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import write_json
from onward.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

RESULTS = "results.json"
ITEMS = "items.parquet"


@dataclass(frozen=True)
class SourceScore:
    """Bits per byte of the held-out documents of one source, with its 95 % bootstrap interval (nan: one document)."""

    source: str
    documents: int
    tokens: int
    bytes: int
    bits_per_byte: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOutScore:
    """Bits per byte of held-out text: nats / (ln 2 * bytes) over all documents, with its 95 % bootstrap interval.

    corpus: `domain`, `general`, or the name of a text that was given. low, high: ends of the interval, nan where there
    is one document only. sources: the same for each source, where there are several.
    """

    corpus: str
    documents: int
    tokens: int
    bytes: int
    nats: float
    bits_per_byte: float
    low: float
    high: float
    sources: tuple[SourceScore, ...] = ()


@dataclass(frozen=True)
class Measure:
    """One number of a task under lm-eval's name for it (`acc`, `acc_norm`, `perplexity`, `bits_per_byte`).

    stderr: its standard error, None where lm-eval has none for it.
    """

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool = True


@dataclass(frozen=True)
class WithoutTouched:
    """The measures of a task on the items that were found in no corpus of the run.

    touched: items left out; seen: those of them whose text was left in the training text (`contamination.action:
    report`), the others were dropped or cut out. items: those that remain; without any there are no measures.
    """

    touched: int
    seen: int
    items: int
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class TaskScore:
    """What a task says of a model, as lm-eval computes it.

    items: scored; items_total: without the limit. chance: share of right answers by guessing, None where nothing is
    chosen (LAMBADA, WikiText). truncated: items whose context did not fit the model. without_touched: the same
    without items that were found in the text, None when none was.
    """

    task: str
    items: int
    items_total: int
    items_hash: str
    num_fewshot: int
    chance: float | None
    measures: tuple[Measure, ...]
    truncated: int
    without_touched: WithoutTouched | None = None

    def find(self, name: str) -> Measure | None:
        """Return the measure of this name, None where the task has none such."""
        return next((measure for measure in self.measures if measure.name == name), None)


@dataclass(frozen=True)
class Scores:
    """All scores of one model. seconds: wall time of the evaluation."""

    model: str
    held_out: tuple[HeldOutScore, ...]
    tasks: tuple[TaskScore, ...]
    seconds: float


@dataclass(frozen=True)
class ItemRow:
    """One row of items.parquet: a question, or a document of held-out text or of a task that scores whole texts.

    task: the task's name, or `held_out:domain`. group: cluster for the bootstrap. source: of a held-out document.
    gold: index of the (first) right choice; predicted: of the likeliest one. right: whether the item was answered
    rightly, by measure (`acc`, `acc_norm`, `acc_bytes`, `acc_mutual_info`; LAMBADA's `acc` is a greedy match).
    logprobs: nats of each choice, of the one continuation where there is no choice. nats: negative log-likelihood of a
    text or of the one continuation; bytes, tokens, words: its size. truncated: the context did not fit the model.
    touched: `drop`, `cut` or `report`, what was done with the item's text in a corpus; None when it stood in none.
    """

    task: str
    subject: str | None
    item: str
    group: str
    source: str | None = None
    gold: int | None = None
    predicted: int | None = None
    right: Mapping[str, bool] | None = None
    logprobs: tuple[float, ...] | None = None
    nats: float | None = None
    bytes: int | None = None
    tokens: int | None = None
    words: int | None = None
    truncated: bool = False
    touched: str | None = None


def write_scores(folder: Path, scores: Scores, rows: Iterable[ItemRow]) -> None:
    """Write results.json and items.parquet into a folder."""
    write_json(folder / RESULTS, scores_as_json(scores))
    write_rows(folder / ITEMS, rows)


def scores_as_json(scores: Scores) -> dict[str, Any]:
    """Return scores for JSON, which has no nan: what is not known is null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [known(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    found: dict[str, Any] = known(asdict(scores))
    return found


def write_rows(path: Path, rows: Iterable[ItemRow]) -> None:
    """Write rows as Parquet: the columns are the fields of ItemRow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([_plain(row) for row in rows], schema=_schema()), path)


def read_rows(path: Path) -> list[ItemRow]:
    """Read rows that `write_rows` wrote."""
    import pyarrow.parquet as pq

    return [
        ItemRow(
            **{
                **row,
                "right": None if row["right"] is None else dict(row["right"]),
                "logprobs": None if row["logprobs"] is None else tuple(row["logprobs"]),
            }
        )
        for row in pq.read_table(path).to_pylist()
    ]


def read_scores(folder: Path) -> Scores:
    """Read the scores of a finished evaluation; raises UserError when they are damaged."""
    try:
        content = json.loads((folder / RESULTS).read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(folder / RESULTS, error) from error
    held_out = tuple(_held_out(**score) for score in content["held_out"])
    tasks = tuple(_task_score(**task) for task in content["tasks"])
    return Scores(content["model"], held_out, tasks, content["seconds"])


def _held_out(*, sources: list[dict[str, Any]], **score: Any) -> HeldOutScore:
    return HeldOutScore(**_ends(score), sources=tuple(SourceScore(**_ends(source)) for source in sources))


def _ends(score: dict[str, Any]) -> dict[str, Any]:
    return {**score, **{end: math.nan for end in ("low", "high") if score[end] is None}}


def _task_score(*, measures: list[Any], without_touched: dict[str, Any] | None, **score: Any) -> TaskScore:
    without = None if without_touched is None else _without_touched(**without_touched)
    return TaskScore(**score, measures=_measures(measures), without_touched=without)


def _without_touched(*, measures: list[Any], **counts: int) -> WithoutTouched:
    return WithoutTouched(**counts, measures=_measures(measures))


def _measures(content: list[dict[str, Any]]) -> tuple[Measure, ...]:
    return tuple(Measure(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in content)


def read_items(folder: Path) -> "pa.Table":
    """Read items.parquet: the columns are the fields of ItemRow. Raises UserError when it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(folder / ITEMS)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(folder / ITEMS, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    todo = f"remove {path.parent} and score again"
    return UserError("scores cannot be read", str(path), str(error)[:200], todo=todo)


def _plain(row: ItemRow) -> dict[str, Any]:
    # `asdict` copies deeply, which takes longer than writing for a hundred thousand rows.
    fields = dict(row.__dict__)
    fields["right"] = None if row.right is None else list(row.right.items())
    return fields


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "task": pa.string(),
            "subject": pa.string(),
            "item": pa.string(),
            "group": pa.string(),
            "source": pa.string(),
            "gold": pa.int32(),
            "predicted": pa.int32(),
            "right": pa.map_(pa.string(), pa.bool_()),
            "logprobs": pa.list_(pa.float64()),
            "nats": pa.float64(),
            "bytes": pa.int64(),
            "tokens": pa.int64(),
            "words": pa.int64(),
            "truncated": pa.bool_(),
            "touched": pa.string(),
        }
    )
