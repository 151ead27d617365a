"""The table of benchmark items found in a corpus: contamination-NNNNN.parquet, a row for each passage."""

from pathlib import Path

import pyarrow as pa

from onward.corpus.contamination.scan import Hit
from onward.corpus.text.batch import TextBatch

CONTAMINATION = pa.schema(
    {
        "task": pa.string(),
        "item": pa.string(),
        "id": pa.string(),
        "source": pa.string(),
        "score": pa.float64(),
        "action": pa.string(),
        "excerpt": pa.string(),
    }
)
"""item: its id in the task. id, source: the document. score: share of the item's n-grams in it. action: `drop`, `cut`
or `report`, what was done with the passage.
"""
EXCERPT_CHARACTERS = 300
_AROUND, _PASSAGE = 50, 180
_OPEN, _CLOSE, _GAP = "[[", "]]", " ... "


def excerpt(batch: TextBatch, hit: Hit) -> str:
    """Return the passage between [[ and ]], its middle left out where it is long, with some text around it.

    At most EXCERPT_CHARACTERS; white space becomes single blanks.
    """
    start, stop = int(batch.starts[hit.document]), int(batch.starts[hit.document + 1])
    before = _text(batch, max(start, hit.begin - 4 * _AROUND), hit.begin)[-_AROUND:]
    after = _text(batch, hit.end, min(stop, hit.end + 4 * _AROUND))[:_AROUND]
    passage = _text(batch, hit.begin, hit.end).strip()
    if len(passage) > _PASSAGE:
        half = (_PASSAGE - len(_GAP)) // 2
        passage = f"{passage[:half]}{_GAP}{passage[-half:]}"
    return f"{before}{_OPEN}{passage}{_CLOSE}{after}".strip()


def _text(batch: TextBatch, begin: int, end: int) -> str:
    text = batch.buffer[begin:end].tobytes().decode(errors="ignore")
    blank = " " if text[:1].isspace() else ""
    return blank + " ".join(text.split()) + (" " if text[-1:].isspace() and text.strip() else "")


def read_touched(folder: Path) -> dict[tuple[str, str], str]:
    """Return what was done with each item found in a prepared corpus, by (task, item id); nothing without tables.

    An item that stays in one document of the training text is `report`, whatever was done about others.
    """
    from pyarrow import parquet

    touched: dict[tuple[str, str], str] = {}
    for path in sorted(folder.glob("contamination-*.parquet")):
        table = parquet.read_table(path, columns=["task", "item", "action"])
        for task, item, action in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if touched.get((task, item)) != "report":
                touched[task, item] = action
    return touched
