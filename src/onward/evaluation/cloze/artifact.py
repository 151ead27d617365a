"""The made items on disk: items.parquet with one row for each, facts.json with how they came about."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from onward.artifact import read_manifest
from onward.errors import UserError
from onward.tasks import Item, TaskItems
from onward.tasks.items import items_hash

TASK = "cloze:domain"
KIND = "cloze"
ITEMS, FACTS = "items.parquet", "facts.json"
CHOICES = 4


@dataclass(frozen=True)
class ClozeItem:
    """A sentence with a gap and four terms for it.

    id: document and character of the gap. group: cluster of the bootstrap. context: text up to the gap, without the
    space before it. rest: text from the gap to the end of the sentence. kind: shape of the terms. count: occurrences
    of the right term in the words counted. ngram: ln p of each choice with its surroundings by the trigram model.
    """

    id: str
    document: str
    source: str | None
    group: str
    context: str
    rest: str
    choices: tuple[str, ...]
    gold: int
    kind: str
    count: int
    ngram: tuple[float, ...]

    def requests(self) -> tuple[tuple[str, str], ...]:
        """Return (context, continuation) for each choice: the choice and what follows it, given what precedes it."""
        return tuple((self.context, f" {choice}{self.rest}") for choice in self.choices)


def write_cloze(folder: Path, items: Iterable[ClozeItem], facts: dict[str, object]) -> None:
    """Write items.parquet and facts.json into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from onward.artifact import write_json

    pq.write_table(pa.Table.from_pylist([asdict(item) for item in items]), folder / ITEMS, compression="zstd")
    write_json(folder / FACTS, facts)


def read_cloze(folder: Path) -> list[ClozeItem]:
    """Read the items of a finished artifact; raises UserError when there is none."""
    import pyarrow.parquet as pq

    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != KIND:
        raise UserError("this folder holds no cloze items", str(folder), expected="what make_cloze has written")
    rows = pq.read_table(folder / ITEMS).to_pylist()
    return [ClozeItem(**row | {name: tuple(row[name]) for name in ("choices", "ngram")}) for row in rows]


def load_cloze(folder: Path) -> TaskItems:
    """Return the items of a finished artifact as a task, to be scored like any other."""
    return task_items(read_cloze(folder))


def task_items(made: list[ClozeItem]) -> TaskItems:
    """Return made items as a task of one measure, acc: the likeliest sentence is the answer."""
    items = tuple(
        Item(
            task=TASK,
            subject=None,
            id=item.id,
            group=item.group,
            requests=item.requests(),
            choices=item.choices,
            gold=item.gold,
        )
        for item in made
    )
    return TaskItems(
        task=TASK,
        kind="multiple_choice",
        items=items,
        items_total=len(items),
        items_hash=items_hash(items),
        num_fewshot=0,
        chance=1 / CHOICES,
        measures=("acc",),
    )
