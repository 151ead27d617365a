"""How a long step tells its reader where it is; steps call these three methods and know nothing of terminals."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a step reports. One step at a time: `begin`, then `advance` as often as it likes."""

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """A step starts: its title, how many units it will take (None: unknown) and their name."""

    def advance(self, done: int, facts: str = "") -> None:
        """So many units are done; `facts` is a short text such as `loss 3.21  lr 1e-3`."""

    def note(self, text: str) -> None:
        """Something worth a line of its own happened."""


class Named:
    """Hands on what a step reports under the name of what it works on, one of several: `base: scoring piqa`."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Begin the step under the name."""
        self._progress.begin(f"{self.name}: {title}", total, unit)

    def advance(self, done: int, facts: str = "") -> None:
        """Hand it on."""
        self._progress.advance(done, facts)

    def note(self, text: str) -> None:
        """Hand it on under the name."""
        self._progress.note(f"{self.name}: {text}")


class Silent:
    """The default of the Python API: says nothing."""

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Ignore it."""

    def advance(self, done: int, facts: str = "") -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
