"""Built prompts kept on disk: the next evaluation with the same tasks and data need not build them again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.artifact import disk_errors, fingerprint
from onward.tasks.items import Item, TaskItems, items_hash
from onward.tasks.questions import item_facts

_METHOD = 1
"""Raised when items of the same data would come out different."""
_FACTS = b"onward"


def kept_items(
    task: str,
    data: Path | None,
    limit: int | None,
    folder: Path,
    load: Callable[[str, Path | None, int | None], TaskItems],
) -> TaskItems:
    """Read the items of a task from `folder`, or build them with `load` and keep them there.

    They are found by the content of the local files or the revision of the Hub's, lm-eval's version and the limit. A
    file that is damaged, as its hash of the items tells, is made anew.
    """
    facts = item_facts([task], data, limit)
    if "unknown" in str(facts["data"]):  # nobody knows whether the Hub's data are still the same
        return load(task, data, limit)
    path = folder / f"{task}-{fingerprint({'method': _METHOD, **facts})}.parquet"
    items = _read(path)
    if items is None or items.task != task:
        items = load(task, data, limit)
        _write(path, items)
    return items


def _write(path: Path, items: TaskItems) -> None:
    import pyarrow.parquet as pq

    facts = {key: value for key, value in items.__dict__.items() if key != "items"}
    table = _table(items.items).replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
    aside = path.with_name(f".{path.name}.part")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, aside, compression="zstd")
        aside.replace(path)


def _table(items: tuple[Item, ...]) -> Any:
    import pyarrow as pa

    pairs = pa.list_(pa.list_(pa.binary()))
    schema = pa.schema(
        {
            "task": pa.binary(),
            "subject": pa.binary(),
            "id": pa.binary(),
            "group": pa.binary(),
            "requests": pairs,
            "choices": pa.list_(pa.binary()),
            "gold": pa.int32(),
            "also_right": pa.list_(pa.int32()),
            "unconditional": pairs,
            "text": pa.large_binary(),
            "words": pa.int64(),
            "bytes": pa.int64(),
        }
    )
    return pa.table([[_packed(getattr(item, field.name)) for item in items] for field in schema], schema=schema)


def _packed(value: Any) -> Any:
    """Texts as bytes: a prompt may hold half of a surrogate pair, which Parquet's texts cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="surrogatepass")
    return [_packed(one) for one in value] if isinstance(value, tuple) else value


def _unpacked(value: Any, texts: dict[bytes, str]) -> Any:
    """Equal texts become one: the choices of a question share their prompt."""
    if isinstance(value, bytes):
        return texts.setdefault(value, value.decode("utf-8", errors="surrogatepass"))
    return tuple(_unpacked(one, texts) for one in value) if isinstance(value, list) else value


def _read(path: Path) -> TaskItems | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[_FACTS])
        texts: dict[bytes, str] = {}
        columns = [[_unpacked(value, texts) for value in column.to_pylist()] for column in table.columns]
        items = tuple(Item(*values) for values in zip(*columns, strict=True))
        found = TaskItems(items=items, **{key: _unpacked(value, texts) for key, value in facts.items()})
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return found if items_hash(items) == found.items_hash else None
