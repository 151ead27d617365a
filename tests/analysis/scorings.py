"""Scorings with planted facts, written as an evaluation writes them."""

import dataclasses
from pathlib import Path

import numpy as np

from onward.analysis import Comparison, compare
from onward.artifact import building
from onward.evaluation.scores import ItemRow, Measure, Scores, TaskScore, write_scores


def text_rows(corpus: str, bits_per_byte: float, documents: int = 40, group_of: int = 1) -> list[ItemRow]:
    generator = np.random.default_rng(4)
    size = generator.integers(100, 2000, documents)
    hardness = generator.normal(0, 0.3, documents)
    nats = (bits_per_byte + hardness) * size * np.log(2)
    return [
        ItemRow(f"held_out:{corpus}", None, f"d{i}", f"g{i // group_of}", nats=float(nats[i]), bytes=int(size[i]))
        for i in range(documents)
    ]


def task_rows(
    task: str, right: list[bool] | np.ndarray, norm: list[bool] | np.ndarray | None = None, group_of: int = 1
) -> list[ItemRow]:
    rows = []
    for i, value in enumerate(right):
        answers = {"acc": bool(value)} | ({} if norm is None else {"acc_norm": bool(norm[i])})
        group = f"q{i // group_of:05d}"
        row = ItemRow(task, None, f"q{i:05d}", group, gold=i % 4, predicted=(i + (not value)) % 4, right=answers)
        rows.append(dataclasses.replace(row, logprobs=(-1.0,) * 4))
    return rows


def write(
    folder: Path,
    rows: list[ItemRow],
    chance: float | None = 0.25,
    items_hash: str = "h",
    fewshot: int = 0,
    measures: tuple[str, ...] = (),
) -> Path:
    folder.mkdir(exist_ok=True)
    names = dict.fromkeys(row.task for row in rows if not row.task.startswith("held_out:"))
    found = tuple(Measure(name, 0.0, None) for name in measures)
    tasks = [TaskScore(n, 9, 9, items_hash, fewshot, chance, found, 0) for n in names]
    write_scores(folder, Scores(folder.name, (), tuple(tasks), 1.0), rows)
    return folder


def artifact(folder: Path, rows: list[ItemRow], **made_from: str) -> Path:
    """Write scores as an evaluation leaves them: with the manifest of what they were made from."""
    with building(folder, "evaluation", made_from) as aside:
        write_scores(aside, Scores(folder.name, (), (), 1.0), rows)
    return folder


def pair(tmp_path: Path, before: list[ItemRow], after: list[ItemRow], chance: float = 0.25) -> Comparison:
    return compare(write(tmp_path / "before", before, chance), write(tmp_path / "after", after, chance), 300, 0)
