"""The record of a run: metrics.jsonl (one row a step) and events.jsonl (what happened)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import isfinite, nan
from pathlib import Path
from typing import Any

from onward.artifact import write_text

_NUMBERS = ("loss_nats", "gradient_norm")
"""Figures of a step that may not be a number: null in the file, since JSON has no NaN, and NaN to who reads it."""


class Record:
    """Appends rows to a run's two record files; rows of the steps that are made anew are dropped first.

    These are the steps from first_step up to, but not, last_step (None: all). Rows of later steps wait in a file of
    their own until the record is closed, so a kill loses none.
    """

    def __init__(self, run_folder: Path, first_step: int, last_step: int | None = None) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self._path = run_folder / "metrics.jsonl"
        self._waiting = run_folder / ".metrics.later.jsonl"
        events = run_folder / "events.jsonl"
        rows = {row["step"]: row for row in [*read_rows(self._waiting), *read_rows(self._path)]}
        later = [rows[step] for step in sorted(rows) if last_step is not None and step >= last_step]
        if later:
            write_text(self._waiting, _lines(later))
        # Files are rewritten without a last line that a kill has cut: the next row would be appended to it.
        kept = [rows[step] for step in sorted(rows) if step < first_step]
        self.before = kept
        """The rows of the steps before this session."""
        for path, text in ((self._path, _lines(kept)), (events, _lines(read_rows(events)))):
            if path.exists():
                write_text(path, text)
        self._metrics = open(self._path, "a", buffering=1)
        self._events = open(events, "a", buffering=1)

    def metrics(self, **row: Any) -> None:
        """Write one step's figures."""
        self._metrics.write(_line(row))

    def event(self, event: str, **facts: Any) -> None:
        """Write one event with the time of day."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.write(_line({"time": time, "event": event, **facts}))

    def close(self) -> None:
        """Put back the rows of later steps and close both files."""
        self._metrics.close()
        self._events.close()
        if self._waiting.exists():
            write_text(self._path, _lines([*read_rows(self._path), *read_rows(self._waiting)]))
            self._waiting.unlink()


@contextmanager
def recorded(run_folder: Path, first_step: int, last_step: int) -> Iterator[Record]:
    """Open a run's record, cut to a session's first step; steps from `last_step` on stay."""
    record = Record(run_folder, first_step, last_step)
    try:
        yield record
    finally:
        record.close()


def undone_until(run_folder: Path, step: int) -> int:
    """Return the step at which the guard went back behind `step`, and so undid it; `step` where it never did."""
    for row in read_rows(run_folder / "events.jsonl"):
        if row["event"] == "rollback" and row["to"] < step <= row["to"] + row["batches_left_out"]:
            step = row["to"] + row["batches_left_out"]
    return step


def _line(row: dict[str, Any]) -> str:
    row = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
    return json.dumps(row) + "\n"


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(_line(row) for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL record; a last line cut by a kill is left out, and a loss or norm that is null is NaN."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows.append(row | {name: nan for name in _NUMBERS if row.get(name, 0) is None})
    return rows
