"""The batches of a rank, read ahead by a thread, as micro-batches of one shape.

The thread touches the memory map, assembles and hashes while the step before is computed; the kernels that do it hold
no lock of Python's.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Condition, Thread

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from onward.batches import NO_TARGET, Batch, Batches
from onward.training.launch import Place
from onward.training.network import Rows

_POLL_SECONDS = 0.2
"""How often text that is still being prepared is looked for, and the caller's `while_waiting` asked."""


@dataclass(frozen=True)
class Step:
    """What a rank needs for one update.

    micro: this rank's micro-batches, on its device; as many, and of the same shape, on every rank. labelled_tokens,
    tokens (without padding), causal_pairs and replay_sequences count the rows of all ranks. digest: of the ids in this
    rank's rows, added up modulo 2^63 over ranks it is the same however the rows are shared out.
    """

    step: int
    micro: tuple[Rows, ...]
    labelled_tokens: int
    tokens: int
    causal_pairs: int
    replay_sequences: int
    digest: int


def rows_of_rank(sequences: int, rank: int, world: int) -> range:
    """Return which rows of a step a rank trains on: neighbouring ones, and as many as the others have, or one less."""
    return range(rank * sequences // world, (rank + 1) * sequences // world)


def micro_shape(sequences: int, world: int, micro_batch: int) -> tuple[int, int]:
    """Return the number of micro-batches of a step, and the rows of each, for every rank.

    The largest share of a rank is cut into as few as `micro_batch` allows, as evenly as possible.
    """
    largest = -(-sequences // world)
    number = -(-largest // micro_batch)
    return number, -(-largest // number)


class Loader:
    """Reads a rank's rows of one step after the other, `depth` steps ahead; to be entered, or closed at the end.

    micro_batch: the most sequences of a forward pass; rows without a target fill up a rank that has fewer.
    replayed_apart: whether the step reads the replayed rows by themselves as well.
    """

    def __init__(
        self,
        batches: Batches,
        place: Place,
        micro_batch: int,
        first_step: int,
        device: torch.device,
        depth: int = 2,
        *,
        replayed_apart: bool = False,
    ) -> None:
        assert micro_batch >= 1
        assert depth >= 1
        self._batches, self._place, self._micro_batch = batches, place, micro_batch
        self._device, self._depth, self._replayed_apart = device, depth, replayed_apart
        self._reader = self._started(first_step)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps from the next one to the last of the run."""
        for number in range(self._reader.next, len(self._batches)):
            yield self.step(number)

    def step(self, number: int, while_waiting: Callable[[], None] | None = None) -> Step:
        """Return a step; reading goes on behind it. Any but the following one begins reading anew.

        while_waiting: called now and then until the step is there; it raises to give up. Raises IndexError past the
        last step, and what the reading thread met at this step.
        """
        if not 0 <= number < len(self._batches):
            raise IndexError(f"step {number} of a run of {len(self._batches)} steps")
        if number != self._reader.next:
            self.restart(number, self._micro_batch)
        found = self._reader.take(while_waiting)
        if isinstance(found, BaseException):
            self._reader.next = -1  # its thread has ended: should the step be asked for again, it is read again
            raise found
        if self._device.type == "cpu":
            return found
        # From pinned memory the copy is begun and not waited for; 24 bytes a token are nothing beside a step, so it
        # needs no stream of its own and takes no memory of the GPU before its step.
        return replace(found, micro=tuple(rows.to(self._device) for rows in found.micro))

    def restart(self, step: int, micro_batch: int) -> None:
        """Read on from `step`, in micro-batches of at most so many sequences; what was read ahead is dropped."""
        self._reader.close()
        self._micro_batch = micro_batch
        self._reader = self._started(step)

    def close(self) -> None:
        """End the reading thread, also when it waits for text."""
        self._reader.close()

    def _started(self, first_step: int) -> "_Reader":
        settings = (self._micro_batch, first_step, self._device, self._depth, self._replayed_apart)
        return _Reader(self._batches, self._place, *settings)


class _Reader:
    """The thread that reads ahead, from one step to the end, and the steps that it has ready."""

    def __init__(
        self,
        batches: Batches,
        place: Place,
        micro_batch: int,
        first_step: int,
        device: torch.device,
        depth: int,
        replayed_apart: bool,
    ) -> None:
        self.next = first_step
        """The step that `take` returns."""
        self._batches, self._place, self._device, self._depth = batches, place, device, depth
        self._replayed_apart = replayed_apart
        self._rows = rows_of_rank(batches.plan.sequences_per_step, place.rank, place.world)
        self._shape = micro_shape(batches.plan.sequences_per_step, place.world, micro_batch)
        self._ready: deque[Step | BaseException] = deque()
        self._changed = Condition()
        self._is_closed = False
        self._thread = Thread(target=self._run, args=(first_step,), name="onward-loader", daemon=True)
        self._thread.start()

    def take(self, while_waiting: Callable[[], None] | None) -> Step | BaseException:
        """Return the next step, or what ended the thread."""
        while True:
            with self._changed:
                assert not self._is_closed
                if self._changed.wait_for(lambda: self._ready, _POLL_SECONDS):
                    self._changed.notify_all()
                    self.next += 1
                    return self._ready.popleft()
            if while_waiting is not None:
                while_waiting()

    def close(self) -> None:
        """End the thread; what it has ready is dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def _run(self, first_step: int) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # else pinning makes a context on the first GPU, for every rank
        for step in range(first_step, len(self._batches)):
            found: Step | BaseException | None
            try:
                found = self._read(step)
            except BaseException as error:
                found = error
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or len(self._ready) < self._depth)
                if self._is_closed or found is None:
                    return
                self._ready.append(found)
                self._changed.notify_all()
            if isinstance(found, BaseException):
                return

    def _read(self, step: int) -> Step | None:
        """Read this rank's rows of a step; None when the reader was closed while their text was waited for."""
        while not self._batches.is_ready(step):
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, _POLL_SECONDS):
                    return None
        batch = self._batches.read(step, self._rows.start, self._rows.stop)
        count = self._batches.count(step)
        digest = sum(xxhash.xxh3_64_intdigest(ids_T) for ids_T in batch.ids_BT) % 2**63
        number, rows = self._shape
        filled = filled_up(batch, number, rows, self._batches.padding_id)
        micro = Rows.cut(filled, number, self._device.type == "cuda", self._replayed_apart)
        return Step(
            step, micro, count.labelled_tokens, count.tokens, count.causal_pairs, sum(count.replayed_sequences), digest
        )


def filled_up(batch: Batch, number: int, rows: int, padding_id: int) -> Batch:
    """Return a batch of `number` times `rows` rows: the rows of a batch, shared out evenly, each share then padding."""
    have = len(batch.ids_BT)
    if have == number * rows:
        return batch
    cuts = [n * have // number for n in range(number + 1)]
    source = np.full(number * rows, have)  # the row after the last is padding
    for n in range(number):
        source[n * rows : n * rows + cuts[n + 1] - cuts[n]] = np.arange(cuts[n], cuts[n + 1])

    def fill(array: NDArray[np.int64], value: int) -> NDArray[np.int64]:
        filled: NDArray[np.int64] = np.take(np.pad(array, ((0, 1), (0, 0)), constant_values=value), source, axis=0)
        return filled

    return Batch(
        fill(batch.ids_BT, padding_id),
        fill(batch.labels_BT, NO_TARGET),
        fill(batch.documents_BT, -1),
        fill(batch.positions_BT, 0),
        np.pad(batch.replayed_B, (0, 1))[source],
    )
