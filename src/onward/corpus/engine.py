"""The engine: chunks through a pure function, in this process or in many, results always in the order of the chunks.

joblib runs the workers, so its other back ends (Ray, Dask) carry the same call across machines. Chunks go out in
windows: what is in flight is bounded, the next window is read while the workers are busy with this one, and a
failure while reading happens in the caller's own thread.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from threading import Event
from typing import TypeVar

from onward.errors import UserError

CHUNKS_ALONE = 2
"""Chunks done before workers are started: starting them takes about as long."""
WINDOW_CHUNKS = 16
"""Chunks per worker in a window; at its end a worker waits for half a chunk on average, so 3 % of the time."""

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def in_order(
    chunks: Iterable[Chunk], work: Callable[[Chunk], Result], workers: int | None = None
) -> Generator[tuple[Chunk, Result], None, None]:
    """Yield every chunk with its result, in order.

    work: pure and picklable. workers: processes, None for one per core; 1 stays in this process. Raises UserError
    when a worker is killed from outside.
    """
    if workers is None:
        from joblib import cpu_count  # knows containers' limits and every system

        workers = cpu_count()
    chunks = iter(chunks)
    for chunk in islice(chunks, CHUNKS_ALONE if workers > 1 else None):
        yield chunk, work(chunk)
    window = list(islice(chunks, WINDOW_CHUNKS * workers))
    if window:
        yield from _in_processes(window, chunks, work, workers)


def _in_processes(
    window: list[Chunk], chunks: Iterator[Chunk], work: Callable[[Chunk], Result], workers: int
) -> Iterator[tuple[Chunk, Result]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    call = delayed(_single_threaded)
    try:
        with Parallel(n_jobs=workers, return_as="generator", batch_size=1) as parallel:
            while window:
                is_over = Event()
                results = parallel(call(work, chunk) for chunk in _until(is_over, window))
                try:
                    following = list(islice(chunks, len(window)))
                    yield from zip(window, results, strict=True)
                finally:
                    # After an early end joblib is given no more chunks and finishes the few it has; closing its
                    # generator instead aborts the workers, whose threads then now and then fail (1 of 850 times).
                    is_over.set()
                    deque(results, maxlen=0)
                window = following
    except TerminatedWorkerError as error:
        todo = "run again with fewer workers, or on a machine with more memory; finished artifacts are kept"
        raise UserError("a worker process was killed, most likely for want of memory", todo=todo) from error


def _until(is_over: Event, window: Iterable[Chunk]) -> Iterator[Chunk]:
    for chunk in window:
        if is_over.is_set():
            return
        yield chunk


def _single_threaded(work: Callable[[Chunk], Result], chunk: Chunk) -> Result:
    """Run in a worker: there is one worker per core already."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return work(chunk)
