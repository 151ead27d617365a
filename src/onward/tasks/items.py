"""Items: the questions of a task as the harness asks them, ready to be scored or avoided."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from onward.errors import UserError
from onward.tasks.parts import Part, parts_of


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
    parts = parts_of(task, data, limit)
    items: list[Item] = []
    metrics: tuple[str, ...] = ()
    for part in parts:
        if part.count:
            built = part.build()
            metrics = tuple(built.aggregation())
            items += [_item(task, part, built, index) for index in range(part.count)]
    if not items:
        raise UserError("a task has no items", f"evaluation.tasks: {task}")
    content = json.dumps([asdict(item) for item in items], ensure_ascii=False)
    digest = sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    total, num_fewshot = sum(part.size for part in parts), parts[0].definition.num_fewshot
    return TaskItems(task, tuple(items), total, digest, num_fewshot, chance, metrics)


def _item(task: str, part: Part, built: Any, index: int) -> Item:
    """Build one item with lm-eval's own functions."""
    definition, name = part.definition, part.item_id(index)
    document = built.task_docs[index]
    prefix = built.doc_to_prefix(document)
    context = built.fewshot_context(document, num_fewshot=definition.num_fewshot, gen_prefix=prefix)
    choices = tuple(built.doc_to_choice(document))
    instances = built.construct_requests(document, context, metadata=(definition.name, index, 1))
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
    group = definition.subject or name
    if "passage" in document:
        group = sha256(document["passage"].encode()).hexdigest()[:16]
    return Item(task, definition.subject, name, group, requests, choices, gold)
