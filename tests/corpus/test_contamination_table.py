"""The table of items found, written and read."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from onward.corpus.contamination.table import CONTAMINATION, read_touched


def write(folder: Path, block: int, *rows: tuple[str, str, str]) -> None:
    folder.mkdir(exist_ok=True)
    whole = [(task, item, "d", "s", 0.5, action, "[[x]]") for task, item, action in rows]
    columns = list(zip(*whole, strict=True)) or [()] * len(CONTAMINATION)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CONTAMINATION, strict=True)]
    table = pa.table(arrays, schema=CONTAMINATION)
    parquet.write_table(table, folder / f"contamination-{block:05d}.parquet")


def test_what_was_left_in_training_outweighs_what_was_not(tmp_path: Path) -> None:
    write(tmp_path, 0, ("mmlu", "a/0", "drop"), ("mmlu", "a/1", "report"), ("boolq", "0", "cut"))
    write(tmp_path, 1, ("mmlu", "a/0", "report"), ("mmlu", "a/1", "drop"))
    write(tmp_path, 2)
    assert read_touched(tmp_path) == {("mmlu", "a/0"): "report", ("mmlu", "a/1"): "report", ("boolq", "0"): "cut"}


def test_a_corpus_without_tables_touched_nothing(tmp_path: Path) -> None:
    assert read_touched(tmp_path) == {}
    assert read_touched(tmp_path / "nowhere") == {}
