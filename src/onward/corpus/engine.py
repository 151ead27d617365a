"""The engine: chunks through a pure function, in this process or in many, results always in the order of the chunks.

loky runs the processes of one machine; `ray_engine` those of many. Both are told once what to do, then get chunks as
they have room (so a slow chunk holds nobody up), and the number of chunks in flight is bounded. Chunks are read in
the caller's own thread, so a failure while reading is the caller's.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from onward.errors import UserError

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

CHUNKS_ALONE = 2
"""Chunks done before workers are started: starting them takes about as long."""
IN_FLIGHT = 8
"""Chunks per worker that are waiting, being worked on, or done and not yet fetched."""
IN_FLIGHT_BYTES = 256_000_000
"""Chunks with the workers hold no more than this and one chunk: a record may be a hundred times the usual chunk."""
_RESTARTS = 3
"""So often in a row, without any chunk done between, may workers be killed before it is an error."""

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
ChunkIn = TypeVar("ChunkIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Pending(Protocol[ResultOut]):
    """A chunk that was sent to a worker."""

    def result(self) -> ResultOut:
        """Wait for the worker and return what it made; raises WorkerLost when it was killed."""

    def is_done(self) -> bool:
        """Whether there is nothing to wait for; also where waiting is better than working elsewhere."""


class Workers(Protocol[ChunkIn, ResultOut]):
    """Processes, here or elsewhere, that were told their work."""

    count: int
    """How many chunks they work on at one time."""

    def send(self, chunk: ChunkIn) -> Pending[ResultOut]:
        """Give a chunk to whichever is free next."""


StartWorkers = Callable[[Callable[[Chunk], Result]], AbstractContextManager[Workers[Chunk, Result]]]
"""Starts workers for a pure, picklable function, and stops them at the end of the context."""


class WorkerLost(Exception):
    """A worker was killed from outside, and what it was doing is lost."""


def in_order(
    chunks: Iterable[Chunk],
    work: Callable[[Chunk], Result],
    start: StartWorkers[Chunk, Result] | None,
    weigh: Callable[[Chunk], int] = lambda chunk: 0,
) -> Generator[tuple[Chunk, Result], None, None]:
    """Yield every chunk with its result, in order.

    work: pure and picklable. start: what starts the workers; None stays in this process. weigh: bytes of a chunk;
    while chunks of IN_FLIGHT_BYTES are with the workers no further one is read. Chunks that a killed worker had are
    done again; raises UserError when workers are killed again and again.
    """
    chunks = iter(chunks)
    for chunk in islice(chunks, CHUNKS_ALONE if start is not None else None):
        yield chunk, work(chunk)
    waiting = deque(islice(chunks, 1))
    if start is None or not waiting:
        return
    losses = 0
    while waiting:
        try:
            with start(work) as workers:
                # They take seconds to start and to load what a chunk needs; meanwhile the work is done here.
                probe = workers.send(waiting[0])
                while waiting and not probe.is_done():
                    yield waiting[0], work(waiting[0])
                    waiting.popleft()
                    waiting += islice(chunks, 0 if waiting else 1)
                for chunk, result in _in_flight(waiting, chunks, workers, weigh):
                    losses = 0
                    yield chunk, result
        except WorkerLost as error:
            losses += 1
            if losses > _RESTARTS:
                todo = "run again with fewer workers, or on a machine with more memory; finished blocks are kept"
                raise UserError(
                    "workers were killed again and again, most likely for want of memory", todo=todo
                ) from error


def _in_flight(
    waiting: deque[Chunk], chunks: Iterator[Chunk], workers: Workers[Chunk, Result], weigh: Callable[[Chunk], int]
) -> Iterator[tuple[Chunk, Result]]:
    """Send chunks and yield results; `waiting` holds the chunks without a result, so that nothing is lost."""
    sent = deque(workers.send(chunk) for chunk in waiting)
    weight = sum(map(weigh, waiting))
    while True:
        while len(sent) < workers.count * IN_FLIGHT and weight < IN_FLIGHT_BYTES:
            if not (following := list(islice(chunks, 1))):
                break
            waiting += following
            sent.append(workers.send(following[0]))
            weight += weigh(following[0])
        if not sent:  # asked after the refill: one heavy chunk may have been all that was under way
            return
        result = sent.popleft().result()
        weight -= weigh(waiting[0])
        yield waiting.popleft(), result


def processes(count: int | None) -> StartWorkers[Chunk, Result] | None:
    """Return what starts worker processes on this machine; None for one per core; a single one is this process."""
    if count is None:
        from loky import cpu_count  # knows containers' limits and every system

        count = cpu_count()
    if count <= 1:
        return None
    number = count

    @contextmanager
    def start(work: Callable[[Chunk], Result]) -> Iterator[Workers[Chunk, Result]]:
        from loky import ProcessPoolExecutor

        executor = ProcessPoolExecutor(number, initializer=_take_work, initargs=(work, os.getpid()))
        is_broken = False
        try:
            yield _Processes(executor, number)
        except (WorkerLost, KeyboardInterrupt, SystemExit):
            is_broken = True
            raise
        finally:  # after an early end the few chunks in flight are waited for: aborted workers fail now and then
            executor.shutdown(kill_workers=is_broken)

    return start


class _Processes(Generic[Chunk, Result]):
    """Worker processes of this machine."""

    def __init__(self, executor: "ProcessPoolExecutor", count: int) -> None:
        self.count = count
        self._executor = executor

    def send(self, chunk: Chunk) -> Pending[Result]:
        return _Sent(self._executor, chunk)


class _Sent(Generic[Chunk, Result]):
    """A chunk given to the pool; a pool that is broken already shows when the result is asked for."""

    def __init__(self, executor: "ProcessPoolExecutor", chunk: Chunk) -> None:
        from loky.process_executor import BrokenProcessPool

        self._broken = BrokenProcessPool
        self._error: Exception | None = None
        try:
            self._future = executor.submit(_do_work, chunk)
        except BrokenProcessPool as error:  # the one before it was killed while this one was sent
            self._error = error

    def is_done(self) -> bool:
        return self._error is not None or bool(self._future.done())

    def result(self) -> Result:
        if self._error is not None:
            raise WorkerLost from self._error
        try:
            result: Result = self._future.result()
        except self._broken as error:
            raise WorkerLost from error
        return result


_work: Callable[..., object] | None = None


def _take_work(work: Callable[..., object], caller: int) -> None:
    """Run in a worker as it starts: the work holds a tokenizer and an index of items, which travel once."""
    global _work
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one worker per core already
    _work = work


def _end_with(caller: int) -> None:
    """End this worker when its caller was killed; the queue that it waits at would keep it for ever."""
    while os.getppid() == caller:
        time.sleep(1)
    os._exit(1)


def _do_work(chunk: object) -> object:
    assert _work is not None
    return _work(chunk)
