"""Items: the questions of a task as the harness asks them, ready to be scored or avoided."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.errors import UserError
from onward.recipe import TASKS

if TYPE_CHECKING:
    from onward.tasks.harness import Definition


@dataclass(frozen=True)
class Item:
    """One multiple-choice question.

    id: place in the task's evaluation split, with the subject before it for MMLU. group: items that share their
    fate (subject, passage), the unit of the bootstrap. requests: (context, continuation) for each choice, as lm-eval
    builds them. choices: the texts whose characters `acc_norm` divides by. gold: index of the right choice.
    """

    task: str
    subject: str | None
    id: str
    group: str
    requests: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class TaskItems:
    """The items of a task that are scored.

    items_total: how many the task has without a limit. items_hash: SHA-256 over the scored items. chance: mean of
    1 / number of choices. metrics: those that lm-eval reports for the task (`acc`, `acc_norm`).
    """

    task: str
    items: tuple[Item, ...]
    items_total: int
    items_hash: str
    num_fewshot: int
    chance: float
    metrics: tuple[str, ...]


def load_items(tasks: Iterable[str], data: Path | None, limit: int | None) -> dict[str, TaskItems]:
    """Return the items of each task, in the given order.

    data: folder with the benchmarks' original files; None takes the Hub's. limit: the first so many items of a
    task; MMLU spreads them evenly over its subjects. Raises UserError for an unknown or unsupported task and for
    data that cannot be read.
    """
    return {task: _load(task, data, limit) for task in dict.fromkeys(tasks)}


def _load(task: str, data: Path | None, limit: int | None) -> TaskItems:
    from onward.tasks.harness import definitions

    parts = definitions(task)
    opened = [_open(part, data) for part in parts]
    sizes = [size for size, _ in opened]
    counts = sizes if limit is None else spread(limit, sizes)
    items: list[Item] = []
    metrics: tuple[str, ...] = ()
    for part, (_, build), count in zip(parts, opened, counts, strict=True):
        if count:
            built = build(count)
            metrics = tuple(built.aggregation())
            items += [_item(task, part, built, index) for index in range(count)]
    if not items:
        raise UserError("a task has no items", f"evaluation.tasks: {task}")
    content = json.dumps([asdict(item) for item in items], ensure_ascii=False)
    digest = sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    return TaskItems(task, tuple(items), sum(sizes), digest, parts[0].num_fewshot, chance, metrics)


def _open(part: "Definition", data: Path | None) -> tuple[int, Callable[[int], Any]]:
    """Return how many items a definition has, and what builds its lm-eval task over the first so many of them."""
    from onward.tasks.harness import open_task
    from onward.tasks.local import read_local

    splits = None if data is None else read_local(part.dataset, part.subset, data)
    # process_docs of the seven maps one to one, so that a limit may cut before it (HellaSwag: 2.4 s saved);
    # another task's may filter, and its items can be counted only afterwards.
    countable = "process_docs" not in part.config or part.name in TASKS
    if splits is not None and countable and part.evaluation_split in splits:
        documents = splits[part.evaluation_split]
        return len(documents), lambda count: open_task(part, splits | {part.evaluation_split: documents[:count]})
    built = open_task(part, splits)
    return len(built.task_docs), lambda count: built


def spread(limit: int, sizes: list[int]) -> list[int]:
    """Share `limit` items evenly over parts of the given sizes; what does not divide goes to evenly spaced parts.

    A part that has too few gives the rest to the others: sum(result) == min(limit, sum(sizes)).
    """
    counts = [0] * len(sizes)
    while (left := min(limit, sum(sizes)) - sum(counts)) > 0:
        unfilled = [place for place, size in enumerate(sizes) if counts[place] < size]
        for rank, place in enumerate(unfilled):
            share = left * (rank + 1) // len(unfilled) - left * rank // len(unfilled)
            counts[place] = min(sizes[place], counts[place] + share)
    return counts


def _item(task: str, part: "Definition", built: Any, index: int) -> Item:
    """Build one item with lm-eval's own functions."""
    document = built.task_docs[index]
    context = built.fewshot_context(document, num_fewshot=part.num_fewshot, gen_prefix=built.doc_to_prefix(document))
    choices = tuple(built.doc_to_choice(document))
    name = f"{part.subject}/{index}" if part.subject else str(index)
    instances = built.construct_requests(document, context, metadata=(part.name, index, 1))
    requests = tuple((str(i.args[0]), str(i.args[1])) for i in instances[: len(choices)])
    # A task whose contexts differ by choice (WinoGrande) gives the right choice's index where others give the text.
    gold = built.doc_to_text(document) if built.multiple_input else built.doc_to_target(document)
    gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    where = f"{task}, item {name}"
    if isinstance(gold, list):
        raise UserError("this task has several right answers to an item", where, str(gold), "one right answer")
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise UserError("an answer is out of range", where, repr(gold), f"0 to {len(choices) - 1}")
    if len(choices) < 2 or not all(choices):
        raise UserError("an item needs two choices or more, none of them empty", where, repr(choices)[:200])
    group = part.subject or name
    if "passage" in document:
        group = sha256(document["passage"].encode()).hexdigest()[:16]
    return Item(task, part.subject, name, group, requests, choices, gold)
