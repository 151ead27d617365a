"""The processes that train together: joined, in step, and gone again."""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from onward.training.launch import USER_ERROR, Place, another_has_said, find_place, meeting_point

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)
"""How long a rank waits for the first one, which may be preparing text or writing a model, before it gives up."""
_MEETINGS = itertools.count()
"""Numbers the times that this process joins the others; all of them do so equally often."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run as one of them sees them: its place and its device.

    control: a group on the CPU for objects and agreements, None for one process alone; sharding and offloading need
    one even then.
    """

    place: Place
    device: torch.device
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this rank records and writes."""
        return self.place.is_first

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.place.world

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def agree(self, value: T) -> T:
        """Return the first rank's value on every rank."""
        if self.control is None or self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in their order, on every rank."""
        if self.control is None or self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values


def choose_device(place: Place) -> torch.device:
    """Return this rank's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())  # a task of srun may see one GPU alone


@contextmanager
def joined(needs_group: bool = False) -> Iterator[Ranks]:
    """Join this process with the other ranks of its run, if there are any, and leave when the block ends.

    needs_group: make a process group for one process too (FSDP2 and offloading want one).
    """
    place = find_place()
    device = choose_device(place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():  # a caller of the Python API has joined them already
        yield Ranks(place, device, dist.new_group(backend="gloo", timeout=_PATIENCE))
        return
    if place.world == 1 and not needs_group and device.type == "cpu":  # a GPU's model may have to be offloaded
        yield Ranks(place, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if place.world == 1:
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    else:
        timeout = _PATIENCE if device.type == "cpu" else dist.default_pg_timeout
        store = dist.PrefixStore(f"meeting-{next(_MEETINGS)}", _store(timeout))  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    try:
        yield Ranks(place, device, dist.new_group(backend="gloo", timeout=_PATIENCE))
        if place.world > 1:
            dist.barrier()
    except BaseException as error:
        # NCCL would wait for operations that the other ranks never join; the rank is ended by `leave` instead.
        if device.type == "cpu" or place.world == 1:
            dist.destroy_process_group()
        # A collective that another rank has left: no word is to be added to what that one says.
        if place.world > 1 and isinstance(error, RuntimeError) and another_has_said():
            raise SystemExit(USER_ERROR) from error
        raise
    dist.destroy_process_group()


@cache
def _store(timeout: timedelta) -> Any:
    """Where the ranks leave their addresses; it outlives a group, so one that meets again needs names of its own."""
    os.environ.update(meeting_point())
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return store


def leave(status: int) -> None:
    """End this rank at once, output written: gloo's threads may abort a process that exits in the ordinary way.

    Met with torch 2.13 in 3 of 10 runs of two processes, after all work was done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
