"""Choosing how a run fits: the fastest strategy within the memory there is, and the next one when it was not enough."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from onward.artifact import write_json
from onward.errors import UserError
from onward.model.shape import ModelShape
from onward.recipe import Training
from onward.training.hardware import Hardware, Kind, Precision, machine_memory_bytes
from onward.training.memory import MemoryUse, corrected, predict
from onward.training.strategy import Sharding, Strategy

_RETREAT = "retreat.json"
_MICRO_TOKENS: dict[str, int] = {"cpu": 4096, "cuda": 65536}
"""Most tokens of a forward pass on one rank: measured fastest on a CPU; a GPU of the day is busy with so many."""
_RESERVE: dict[str, float] = {"cpu": 0.1, "cuda": 0.08}
"""Share of the free memory that is left alone: fragments, other processes, libraries' workspaces."""


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
    checkpointing = _options(training.gradient_checkpointing, {"none": 0, "all": 1}, (0, 2, 1))
    shardings: tuple[Sharding, ...] = ("none", "zero2", "zero3") if world > 1 else ("none",)
    if training.sharding != "auto":
        shardings = (training.sharding,)
    offloads = (False, True) if kind == "cuda" else (False,)
    if training.offload != "auto":
        offloads = (training.offload,)
    found = [
        Strategy(sharding, offload, every, micro, _loss_chunk(training, shape.vocabulary, kind), bool(compiled))
        for offload in offloads
        for sharding in shardings
        for every in checkpointing
        for micro in _micro_batches(training, rows_per_rank, kind)
    ]
    return tuple(sorted(found, key=lambda strategy: _relative_time(strategy, training.sequence_tokens)))


def _options(asked: int | str, names: dict[str, int], auto: tuple[int, ...]) -> tuple[int, ...]:
    if asked == "auto":
        return auto
    return (asked if isinstance(asked, int) else names[asked],)


def _micro_batches(training: Training, rows_per_rank: int, kind: Kind) -> tuple[int, ...]:
    """Sequences of a forward pass, from the most to one: about 4,096 tokens on a CPU, 65,536 on a GPU."""
    if isinstance(training.micro_batch_sequences, int):
        return (min(training.micro_batch_sequences, rows_per_rank),)
    most = max(1, min(rows_per_rank, _MICRO_TOKENS[kind] // training.sequence_tokens))
    return tuple(sorted({max(1, most >> shift) for shift in range(most.bit_length())}, reverse=True))


def _loss_chunk(training: Training, vocabulary: int, kind: Kind) -> int:
    """Positions whose logits exist at one time: 8 MB in fp32 on a CPU but 256 at least, 256 MB on a GPU."""
    if isinstance(training.loss_chunk_tokens, int):
        return training.loss_chunk_tokens
    return max(256, (256 if kind == "cuda" else 8) * 2**20 // (4 * vocabulary))


def _relative_time(strategy: Strategy, sequence_tokens: int) -> float:
    """Time per token as a multiple of the fastest way's: a ranking, not a prediction."""
    recomputed = 0.0 if strategy.checkpoint_every == 0 else 1 / strategy.checkpoint_every
    sharing = {"none": 1.0, "zero2": 1.1, "zero3": 1.25}[strategy.sharding]
    small = 1 + 512 / (strategy.micro_batch * sequence_tokens)
    return (1 + recomputed / 3) * sharing * small * (3.0 if strategy.offload else 1.0)


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
    options = []
    for strategy in candidates(
        training, shape, kind=hardware.kind, world=world, rows_per_rank=rows_per_rank, compiled=compiled
    ):
        use = predict(
            shape, strategy, sequence_tokens=training.sequence_tokens, world=world, kind=hardware.kind,
            precision=precision, baseline_bytes=baseline_bytes,
        )  # fmt: skip
        use = corrected(use, factor)
        time = _relative_time(strategy, training.sequence_tokens)
        options.append(Option(strategy, use, use.total <= budget_bytes, time))
    fastest = min(option.relative_time for option in options)
    table = tuple(Option(o.strategy, o.use, o.fits, o.relative_time / fastest) for o in options)
    for option in table:
        if option.fits:
            return Choice(option.strategy, option.use, budget_bytes, table)
    least = min(table, key=lambda option: option.use.total)
    raise UserError(
        "the training step does not fit into the memory",
        "training.memory",
        f"{least.use.total / 1e9:.1f} GB at the least",
        f"{budget_bytes / 1e9:.1f} GB",
        "a smaller model, shorter training.sequence_tokens, knobs left at auto, or a device with more memory",
    )


def smaller(strategy: Strategy, training: Training, *, kind: Kind, world: int) -> Strategy | None:
    """Return the next strategy after memory ran out: less memory, the same mathematics; None when there is none left.

    Half the micro-batch, then activation checkpointing, then offload (GPUs), then sharding (several ranks). A knob that
    the recipe fixes is not touched.
    """
    if strategy.micro_batch > 1 and training.micro_batch_sequences == "auto":
        return replace(strategy, micro_batch=strategy.micro_batch // 2)
    if strategy.checkpoint_every != 1 and training.gradient_checkpointing == "auto":
        return replace(strategy, checkpoint_every=1)
    if not strategy.offload and kind == "cuda" and training.offload == "auto":
        return replace(strategy, offload=True)
    if world > 1 and training.sharding == "auto" and strategy.sharding != "zero3":
        return replace(strategy, sharding="zero2" if strategy.sharding == "none" else "zero3")
    return None


def budget(memory: int | Literal["auto"], hardware: Hardware, free_bytes: int | None = None) -> int:
    """Return the bytes that one rank may use.

    memory: the recipe's, for one GPU or for the whole machine without one. free_bytes: what is free on this machine
    now (`free_memory_bytes`); None plans for a machine that is not here, with nothing else on it.
    """
    there = hardware.memory_bytes if free_bytes is None else free_bytes
    auto = int(there * (1 - _RESERVE[hardware.kind]))
    return auto if memory == "auto" else min(memory, auto)


def free_memory_bytes(kind: Kind) -> int:
    """Return what is free on this rank's GPU, or in this machine with what this process holds already."""
    if kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    limit = machine_memory_bytes()
    return min(limit, int(psutil.virtual_memory().available + psutil.Process().memory_info().rss))


def remember(folder: Path, strategy: Strategy, training: Training, hardware: Hardware) -> None:
    """Write down that a run had to retreat to `strategy`, in the checkpoints folder, so that a restart begins there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _RETREAT, {**_circumstances(training, hardware), "strategy": asdict(strategy)})


def remembered(folder: Path, training: Training, hardware: Hardware) -> Strategy | None:
    """Return the strategy that a run of the same knobs on the same hardware retreated to; None when there is none."""
    try:
        content = json.loads((folder / _RETREAT).read_bytes())
        strategy = Strategy(**content.pop("strategy"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return strategy if content == _circumstances(training, hardware) else None


def _circumstances(training: Training, hardware: Hardware) -> dict[str, Any]:
    """What a retreat holds for: with other knobs or another device it is forgotten."""
    knobs = ("memory", "sharding", "offload", "gradient_checkpointing", "micro_batch_sequences", "loss_chunk_tokens")
    settings = training.model_dump(mode="json")
    return {"device": hardware.name, "knobs": {name: settings[name] for name in (*knobs, "sequence_tokens")}}
