"""The record of a run: metrics.jsonl (one row a step) and events.jsonl (what happened)."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onward.artifact import write_text


class Record:
    """Appends rows to a run's two record files; rows past the step that a run resumes from are dropped first."""

    def __init__(self, run_folder: Path, first_step: int) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        metrics = run_folder / "metrics.jsonl"
        events = run_folder / "events.jsonl"
        for path, end in ((metrics, first_step), (events, None)):
            if path.exists():
                # Without a last line that a kill has cut: the next row would be appended to it, and both be lost.
                kept = [row for row in read_rows(path) if end is None or row["step"] < end]
                write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._metrics = open(metrics, "a", buffering=1)
        self._events = open(events, "a", buffering=1)

    def metrics(self, **row: Any) -> None:
        """Write one step's figures."""
        self._metrics.write(json.dumps(row) + "\n")

    def event(self, event: str, **facts: Any) -> None:
        """Write one event with the time of day."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.write(json.dumps({"time": time, "event": event, **facts}) + "\n")

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._events.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL record; a last line cut by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
