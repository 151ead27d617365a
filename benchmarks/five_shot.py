"""MMLU with five examples before each question, as it is usually reported; lm-eval's own default is none."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from onward.tasks import Item, TaskItems
from onward.tasks.items import items_hash
from onward.tasks.parts import Part, parts_of

TASK, EXAMPLES = "mmlu_5_shot", 5


def five_shot(bench: Path, subjects: Collection[str] | None = None) -> tuple[list[Any], TaskItems]:
    """Return lm-eval's task objects of the subjects (None: all 57) and the items that they build."""
    parts = [part for part in parts_of("mmlu", bench, None) if subjects is None or part.definition.subject in subjects]
    built, items = [], []
    for part in parts:
        config = {**part.definition.config, "num_fewshot": EXAMPLES}
        asked = replace(part, definition=replace(part.definition, config=config), count=part.size)
        built.append(asked.build())
        items += _items(asked, built[-1])
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    return built, TaskItems(
        TASK, "multiple_choice", tuple(items), len(items), items_hash(items), EXAMPLES, chance, ("acc",)
    )


def _items(part: Part, built: Any) -> list[Item]:
    built.build_all_requests(rank=0, world_size=1)
    subject = str(part.definition.subject)
    requests: dict[int, list[tuple[str, str]]] = {}
    for instance in built.instances:
        requests.setdefault(instance.doc_id, []).append(instance.args)
    return [
        Item(
            TASK,
            subject,
            part.item_id(index),
            subject,
            tuple(pairs),
            tuple(built.doc_to_choice(built.task_docs[index])),
            int(built.doc_to_target(built.task_docs[index])),
        )
        for index, pairs in sorted(requests.items())
    ]
