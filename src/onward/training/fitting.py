"""Choosing how a run fits: the fastest strategy within the memory there is, and the next one when it was not enough."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onward.model.shape import ModelShape
from onward.recipe import Training
from onward.training.hardware import Hardware, Kind, Precision
from onward.training.memory import MemoryUse
from onward.training.strategy import Strategy


@dataclass(frozen=True)
class Option:
    """A strategy that was weighed: its memory, whether it fits, its time per token with the fastest one's as 1."""

    strategy: Strategy
    use: MemoryUse
    fits: bool
    relative_time: float


@dataclass(frozen=True)
class Choice:
    """The strategy that a run takes, its memory and what was weighed against it, fastest first."""

    strategy: Strategy
    use: MemoryUse
    budget_bytes: int
    table: tuple[Option, ...]


def candidates(
    training: Training,
    shape: ModelShape,
    *,
    kind: Kind,
    world: int,
    rows_per_rank: int,
    compiled: bool | None = None,
) -> tuple[Strategy, ...]:
    """Return every strategy that the recipe allows, fastest first; what it fixes is the same in all.

    rows_per_rank: sequences of a step on one rank. compiled: for `compile: auto`; None: on GPUs.
    """
    raise NotImplementedError


def choose(
    training: Training,
    shape: ModelShape,
    *,
    hardware: Hardware,
    world: int,
    rows_per_rank: int,
    precision: Precision,
    budget_bytes: int,
    compiled: bool | None = None,
    factor: float = 1.0,
    baseline_bytes: int | None = None,
) -> Choice:
    """Return the fastest strategy that fits into `budget_bytes` per rank, with all that were weighed.

    factor: a probe's correction of the prediction (`memory.correction`). Raises UserError when nothing fits, with what
    would.
    """
    raise NotImplementedError


def smaller(strategy: Strategy, training: Training, *, kind: Kind, world: int) -> Strategy | None:
    """Return the next strategy after memory ran out: less memory, the same mathematics; None when there is none left.

    Half the micro-batch, then activation checkpointing, then offload (GPUs), then sharding (several ranks). A knob that
    the recipe fixes is not touched.
    """
    raise NotImplementedError


def budget(memory: int | Literal["auto"], hardware: Hardware, free_bytes: int | None = None) -> int:
    """Return the bytes that one rank may use.

    memory: the recipe's, for one GPU or for the whole machine without one. free_bytes: what is free on this machine
    now (`free_memory_bytes`); None plans for a machine that is not here, with nothing else on it.
    """
    raise NotImplementedError


def free_memory_bytes(kind: Kind) -> int:
    """Return what is free on this rank's GPU, or in this machine with what this process holds already."""
    raise NotImplementedError


def remember(folder: Path, strategy: Strategy, training: Training, hardware: Hardware) -> None:
    """Write down that a run had to retreat to `strategy`, in the checkpoints folder, so that a restart begins there."""
    raise NotImplementedError


def remembered(folder: Path, training: Training, hardware: Hardware) -> Strategy | None:
    """Return the strategy that a run of the same knobs on the same hardware retreated to; None when there is none."""
    raise NotImplementedError
