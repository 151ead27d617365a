"""An evaluation under way: the rows that are scored so far, on disk, and the seconds they took.

Each chunk of rows is a Parquet file of its own, written atomically, so that a kill costs the chunk in hand. Several
processes may write into one folder; what a chunk's file is called follows from its rows.
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from onward.artifact import fingerprint, sync, write_json
from onward.errors import UserError
from onward.evaluation.scores import ItemRow, read_rows, write_rows

_FOLDER = "rows"


class Partial:
    """The rows of an evaluation that has not ended, and how long its lives have worked.

    A life is one start of the evaluation up to its end or its being killed; its seconds are those up to its last rows.
    """

    def __init__(self, folder: Path, life: int, began: float, is_timed: bool = True) -> None:
        self._folder, self.life, self.began, self._is_timed = folder, life, began, is_timed

    @classmethod
    def open(cls, building: Path, made_from: Mapping[str, Any]) -> "Partial":
        """Begin another life in the folder of an evaluation; rows of other inputs are forgotten."""
        folder, wanted = building / _FOLDER, {"fingerprint": fingerprint(made_from)}
        if _json(folder / "made_from.json") != wanted:
            for left in building.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            folder.mkdir()
            write_json(folder / "made_from.json", wanted)
        life = len(list(folder.glob("life-*.json")))
        # By these lives are counted. Of several ranks only the first records seconds, after a chunk of its own: were
        # there no file before, the next life would take the same number.
        write_json(folder / f"life-{life}.json", {"seconds": 0.0})
        return cls(folder, life, time.time())

    @classmethod
    def join(cls, building: Path, life: int, began: float, is_timed: bool) -> "Partial":
        """Take part in a life that another process has begun; one of those who do records its seconds."""
        return cls(building / _FOLDER, life, began, is_timed)

    def files(self) -> tuple[str, ...]:
        """Name what is there; a file that a power cut has left damaged is removed."""
        return tuple(sorted(path.name for path in self._folder.glob("[!.]*.parquet") if _is_whole(path)))

    def rows(self, files: Iterable[str]) -> dict[str, list[ItemRow]]:
        """Return the rows of these files by task."""
        found: dict[str, list[ItemRow]] = {}
        for name in files:
            for row in read_rows(self._folder / name):
                found.setdefault(row.task, []).append(row)
        return found

    def keep(self, rows: Sequence[ItemRow]) -> None:
        """Write the rows of a chunk, and the seconds of this life so far."""
        if not rows:
            return
        name = xxhash.xxh3_64_hexdigest(repr([(row.task, row.source, row.item) for row in rows]).encode()) + ".parquet"
        aside = self._folder / f".{name}.part"
        write_rows(aside, rows)
        sync(aside)
        aside.replace(self._folder / name)
        if self._is_timed:
            self.lived()

    def lived(self) -> float:
        """Record the seconds of this life so far, and return those of all lives."""
        write_json(self._folder / f"life-{self.life}.json", {"seconds": round(time.time() - self.began, 3)})
        return float(sum(_json(path).get("seconds", 0.0) for path in sorted(self._folder.glob("life-*.json"))))

    def remove(self) -> None:
        """Remove what is no longer needed once all rows stand in one file."""
        shutil.rmtree(self._folder)


def require_model(model: Any | None, where: str, missing: int) -> None:
    """Raise UserError when rows are missing and there is no model to score them.

    This is the one who joins what several ranks have written: all have ended well, yet a part is damaged or gone.
    """
    if model is None:
        got, todo = f"{missing} of its rows are missing", "run the same command again: only these are scored"
        raise UserError("what the ranks have scored is not all there", where, got, "every row", todo)


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except (FileNotFoundError, ValueError):
        return {}


def _is_whole(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except pa.ArrowInvalid:
        path.unlink()
        return False
    return True
