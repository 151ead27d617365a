"""SIGTERM and Ctrl-C ask the training loop to save first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `code` is the conventional exit status 128 + signal."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step, self.code = number, step, 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; run the same command to go on")


class Terminated(SystemExit):
    """SIGTERM has come where there is nothing to save: artifacts are complete or absent."""


class StopRequest:
    """Remembers the first signal; the loop asks between steps."""

    number: int | None = None

    def __init__(self, insistent: bool = True) -> None:
        self._insistent = insistent

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note; a second Ctrl-C does not wait for the save, if it is insistent."""
        if self._insistent and self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals(insistent: bool = True) -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block; outside the main thread signals stay as they are.

    insistent: a second Ctrl-C ends the process at once. Among several ranks it must not: the launcher passes on the
    Ctrl-C that every rank has had from the terminal.
    """
    request = StopRequest(insistent)
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: the owner of the process handles signals
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
