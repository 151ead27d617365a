"""The documents behind a task, counted before anything is built from them: which items a limit takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.recipe import TASKS
from onward.tasks.local import Splits, read_local
from onward.tasks.originals import Document

if TYPE_CHECKING:
    from onward.tasks.harness import Definition


@dataclass(frozen=True)
class Part:
    """One lm-eval definition behind a task: the whole task, or a subject of MMLU.

    splits: local documents by split, None for the Hub's. opened: lm-eval's task over all of them, where its items
    can be counted only so. size: items without a limit; count: the first so many are taken. lacks: the split that
    lm-eval scores, where it is not there and another is scored for it.
    """

    definition: "Definition"
    splits: Splits | None
    opened: Any
    size: int
    count: int
    lacks: str | None = None

    def item_id(self, index: int) -> str:
        """Return the name of an item: its place in the evaluation split, with the subject before it for MMLU."""
        subject = self.definition.subject
        return f"{subject}/{index}" if subject else str(index)

    def build(self) -> Any:
        """Return lm-eval's task over the documents that are taken, maybe with others after them."""
        from onward.tasks.harness import open_task

        if self.opened is not None:
            return self.opened
        assert self.splits is not None
        split = self.definition.evaluation_split
        return open_task(self.definition, self.splits | {split: self.splits[split][: self.count]})

    def documents(self) -> Sequence[Document]:
        """Return the documents that are taken, with the fields that the Hub has."""
        if self.opened is not None:
            return [self.opened.task_docs[index] for index in range(self.count)]
        assert self.splits is not None
        return self.splits[self.definition.evaluation_split][: self.count]


def parts_of(task: str, data: Path | None, limit: int | None) -> list[Part]:
    """Return the parts of a task with the share of `limit` that falls to each (None: all); data: None is the Hub.

    Raises UserError for an unknown or unsupported task and for data that cannot be read.
    """
    from onward.tasks.harness import definitions

    parts = [_open(definition, data) for definition in definitions(task)]
    sizes = [part.size for part in parts]
    counts = sizes if limit is None else spread(limit, sizes)
    return [replace(part, count=count) for part, count in zip(parts, counts, strict=True)]


def _open(definition: "Definition", data: Path | None) -> Part:
    from onward.tasks.harness import open_task

    splits = (
        None
        if data is None
        else read_local(definition.dataset, definition.subset, data, examples=definition.num_fewshot > 0)
    )
    test, lacks = definition.config.get("test_split"), None
    if splits is not None and test and test not in splits:
        # lm-eval's own rule: the validation split where there is no test split.
        definition, lacks = replace(definition, config={**definition.config, "test_split": None}), str(test)
    # process_docs of the seven maps one to one, so that a limit may cut before it (HellaSwag: 2.4 s saved);
    # another task's may filter, and its items can be counted only afterwards.
    countable = "process_docs" not in definition.config or definition.name in TASKS
    if splits is not None and countable and definition.evaluation_split in splits:
        return Part(definition, splits, None, len(splits[definition.evaluation_split]), 0, lacks)
    opened = open_task(definition, splits)
    return Part(definition, splits, opened, len(opened.task_docs), 0, lacks)


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
