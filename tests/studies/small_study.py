"""A study of the small run, and what it tells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_run
from onward.progress import Progress, Silent
from onward.studies import StudyResult, planned, run_study


class Heard(Silent):
    """Keeps the notes, and acts on each."""

    def __init__(self, on_note: Callable[[str], None] = lambda _: None) -> None:
        self.notes: list[str] = []
        self.on_note = on_note

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.on_note(text)


def study(place: Path, name: str, processes: int = 1, progress: Progress | None = None, **changes: Any) -> StudyResult:
    changes = {"training__stages": [4800], **changes}
    plan = planned(name, small_run.recipe(place, **changes), folders=small_run.folders(place))
    return run_study(plan, progress=progress, workers=1, processes=processes)
