"""Preparing a corpus in a process of its own, while this one trains on the blocks that are finished."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from onward.corpus.engine import processes
from onward.corpus.preparation import Preparation
from onward.corpus.prepare import PreparedCorpus, make
from onward.errors import UserError


class Background:
    """A corpus that is being prepared by another process, which ends with this one at the latest."""

    def __init__(self, preparation: Preparation, workers: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._messages, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_prepare, args=(preparation, workers, theirs))
        self._process.start()
        theirs.close()
        self._preparation = preparation

    def check(self) -> None:
        """Raise what the other process raised, when it has ended without a corpus."""
        if self._process.is_alive():
            return
        self._process.join()
        with suppress(EOFError):  # it ended without a word
            raise self._messages.recv()
        if self._process.exitcode:
            got = f"exit code {self._process.exitcode}"
            todo = "run again: finished blocks are kept"
            raise UserError("the process that prepares the text ended", got=got, todo=todo)

    def result(self) -> PreparedCorpus:
        """Wait for the corpus."""
        while self._process.is_alive():
            time.sleep(0.2)
        self.check()
        return make(self._preparation, None, None)

    def stop(self) -> None:
        """End the other process, if it still runs; its finished blocks are kept."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _prepare(preparation: Preparation, workers: int | None, messages: Connection) -> None:
    """Run in the other process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(1)  # the parent was killed: nobody would read the blocks, and the next start wants their lock

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its workers end with it
    try:
        make(preparation, None, processes(workers))
    except UserError as error:
        messages.send(error)
