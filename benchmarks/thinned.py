"""A fixed share of the benchmarks: evenly spaced rows of their original files, in files of the same names."""

import csv
import gzip
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

_FILES = {
    "arc_easy": ("arc/ARC-Easy-Test.jsonl.gz",),
    "arc_challenge": ("arc/ARC-Challenge-Test.jsonl.gz",),
    "hellaswag": ("hellaswag/hellaswag_val.jsonl.gz",),
    "winogrande": ("winogrande/dev.jsonl.gz",),
    "boolq": ("boolq/dev.jsonl.gz",),
    "piqa": ("piqa/valid.jsonl", "piqa/valid-labels.lst"),
}


def thin_bench(bench: Path, folder: Path, items: Mapping[str, int]) -> Path:
    """Write so many items of each task, of every subject for `mmlu`, whose examples stay; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SUBSET").touch()  # says that rows are lacking on purpose
    for task, count in items.items():
        if task == "mmlu":
            _thin_mmlu(bench / "mmlu", folder / "mmlu", count)
            continue
        for name in _FILES[task]:
            packed = name.endswith(".gz")
            data = (bench / name).read_bytes()
            lines = (gzip.decompress(data) if packed else data).decode().splitlines(keepends=True)
            chosen = "".join(lines[place] for place in spaced(len(lines), count)).encode()
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.compress(chosen) if packed else chosen)
    return folder


def spaced(size: int, count: int) -> list[int]:
    """Return `count` evenly spaced places of `size`; all where there are no more."""
    count = min(size, count)
    return [size * number // count for number in range(count)]


def _thin_mmlu(bench: Path, folder: Path, count: int) -> None:
    shutil.copytree(bench / "dev", folder / "dev")
    (folder / "test").mkdir()
    for path in sorted((bench / "test").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        written = io.StringIO()
        csv.writer(written).writerows(rows[place] for place in spaced(len(rows), count))
        (folder / "test" / path.name).write_text(written.getvalue(), encoding="utf-8", newline="")
