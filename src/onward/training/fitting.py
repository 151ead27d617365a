"""Choosing how a run fits: the fastest strategy within the memory there is, and the next one when it was not enough."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal

import psutil

from onward.artifact import write_json
from onward.errors import UserError
from onward.model.shape import ModelShape
from onward.recipe import Training
from onward.training.hardware import Hardware, Kind, Precision, control_group_memory
from onward.training.memory import MemoryUse, corrected, predict
from onward.training.strategy import Sharding, Strategy

_RETREAT = "retreat.json"
_MICRO_TOKENS: dict[Kind, int] = {"cpu": 4096, "cuda": 65_536}
"""Most tokens of a forward pass on one rank: measured fastest on a CPU; a GPU of the day is busy with so many."""
_CHUNK_BYTES: dict[Kind, int] = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Logits of a chunk in fp32: a CPU gains where they stay in its caches, a GPU where they fill it."""
_LEAST_CHUNK = 256
_RESERVE: dict[Kind, float] = {"cpu": 0.1, "cuda": 0.08}
"""Share of the free memory that is left alone: other processes, fragments, libraries' workspaces."""
_CONTEXT_BYTES = 500 * 10**6
"""What CUDA takes of a GPU before it holds a tensor."""
_KNOBS = ("sharding", "offload", "gradient_checkpointing", "micro_batch_sequences", "loss_chunk_tokens")
"""Fields of `training` that, left at auto, are chosen so that the step fits."""
_LEAST_SEQUENCE = 128
"""Shortest sequence that is proposed as a way out."""


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
    if training.compile != "auto":
        compiled = training.compile
    chunk = _loss_chunk(training, shape.vocabulary, kind)
    found = [
        Strategy(sharding, offload, every, micro, chunk, kind == "cuda" if compiled is None else compiled)
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
    """Sequences of a forward pass, from the most to one, each an even share of the rank's rows."""
    if isinstance(training.micro_batch_sequences, int):
        return (min(training.micro_batch_sequences, rows_per_rank),)
    sizes: list[int] = []
    passes = -(-rows_per_rank // max(1, _MICRO_TOKENS[kind] // training.sequence_tokens))
    while not sizes or sizes[-1] > 1:
        sizes.append(-(-rows_per_rank // passes))
        passes *= 2
    return tuple(dict.fromkeys(sizes))


def _loss_chunk(training: Training, vocabulary: int, kind: Kind) -> int:
    """Positions whose logits exist at one time."""
    if isinstance(training.loss_chunk_tokens, int):
        return training.loss_chunk_tokens
    return max(_LEAST_CHUNK, _CHUNK_BYTES[kind] // (4 * vocabulary))


def _relative_time(strategy: Strategy, sequence_tokens: int) -> float:
    """Time per token as a multiple of the fastest way's: a ranking, not a prediction.

    Recomputing all activations is a third more arithmetic, since the backward pass costs twice the forward one; a pass
    over few positions leaves part of the device idle; zero2 reduces gradients in every micro-batch, zero3 gathers the
    weights twice in each as well; offloading moves all of that over the link to the machine's memory.
    """
    recomputed = 1 / strategy.checkpoint_every if strategy.checkpoint_every else 0.0
    sharing = {"none": 1.0, "zero2": 1.1, "zero3": 1.25}[strategy.sharding]
    idle = 512 / (strategy.micro_batch * sequence_tokens)
    return (1 + recomputed / 3) * sharing * (1 + idle) * (3.0 if strategy.offload else 1.0)


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
    free_bytes: int | None = None,
) -> Choice:
    """Return the fastest strategy that fits into `budget_bytes` per rank, with all that were weighed.

    factor: a probe's correction of the prediction (`memory.correction`). free_bytes: what `budget_bytes` was made of
    (`budget`); None: what the hardware has. Raises UserError when nothing fits, with what would.
    """

    def weigh(settings: Training) -> list[Option]:
        found = []
        for strategy in candidates(
            settings, shape, kind=hardware.kind, world=world, rows_per_rank=rows_per_rank, compiled=compiled
        ):
            use = predict(
                shape, strategy, sequence_tokens=settings.sequence_tokens, world=world, kind=hardware.kind,
                precision=precision, micro_batches=-(-rows_per_rank // strategy.micro_batch),
                baseline_bytes=baseline_bytes, forgetting=settings.forgetting,
            )  # fmt: skip
            use = corrected(use, factor)
            found.append(
                Option(strategy, use, use.total <= budget_bytes, _relative_time(strategy, settings.sequence_tokens))
            )
        return found

    options = weigh(training)
    fastest = options[0].relative_time
    table = tuple(replace(option, relative_time=option.relative_time / fastest) for option in options)
    for option in table:
        if option.fits:
            return Choice(option.strategy, option.use, budget_bytes, table)
    most = budget("auto", replace(hardware, count=1), free_bytes)
    raise _refusal(training, weigh, "GPU" if hardware.kind == "cuda" else "process", world, budget_bytes, most)


def _refusal(
    training: Training,
    weigh: Callable[[Training], list[Option]],
    one: Literal["GPU", "process"],
    world: int,
    budget_bytes: int,
    most_bytes: int,
) -> UserError:
    """Say what a step needs at the least and what would fit; most_bytes: what training.memory can be raised to."""
    by = 1 if one == "GPU" else world  # processes share what the machine gives
    is_fixed = training.memory != "auto" and training.memory // by <= budget_bytes
    limit = "by training.memory" if is_fixed else "all that is free"
    needed = _least(weigh(training))
    ways = _ways_out(training, weigh, budget_bytes)
    if is_fixed and needed * by <= most_bytes:
        ways = [f"raise training.memory to {amount(needed * by, 'up').replace(' ', '')}", *ways[:1]]
    return UserError(
        "the training step does not fit into the memory",
        "training.memory",
        # Need is rounded up and room down, so that the two never read the same.
        f"{amount(needed, 'up')} at the least",
        f"at most {amount(budget_bytes, 'down')} for one {one}, {limit}",
        ", or ".join(ways),
    )


def _ways_out(training: Training, weigh: Callable[[Training], list[Option]], budget_bytes: int) -> list[str]:
    """Say what would fit: fixed knobs left to choose, else shorter sequences too, else how much memory is needed."""
    fixed = [f"training.{name}" for name in _KNOBS if getattr(training, name) != "auto"]
    free = training.model_copy(update=dict.fromkeys(_KNOBS, "auto"))
    if fixed and any(option.fits for option in weigh(free)):
        return [f"set {' and '.join(fixed)} to auto"]
    also = f" and {' and '.join(fixed)} to auto" if fixed else ""
    tokens = training.sequence_tokens // 2
    while tokens >= _LEAST_SEQUENCE:
        if any(option.fits for option in weigh(free.model_copy(update={"sequence_tokens": tokens}))):
            return [f"set training.sequence_tokens to {tokens}{also}", "use a smaller model"]
        tokens //= 2
    return ["use a smaller model", f"use a device that gives {amount(_least(weigh(free)), 'up')} and more"]


def _least(options: list[Option]) -> int:
    return min(option.use.total for option in options)


def amount(size: float, rounded: Literal["up", "down"] | None = None) -> str:
    """Write an amount of memory or disk in three digits: `1.5 GB`, `320 MB`, `12 kB`; rounded: None for the nearest."""
    if rounded is not None:
        unit = 10 ** max(0, len(str(int(size))) - 3)
        size = (ceil if rounded == "up" else floor)(size / unit) * unit
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= scale * 0.9995:
            return f"{size / scale:.3g} {name}"
    return f"{size / 1e3:.0f} kB"


def smaller(strategy: Strategy, training: Training, *, kind: Kind, world: int) -> Strategy | None:
    """Return the next strategy after memory ran out: less memory, the same mathematics; None when there is none left.

    Half the micro-batch, then activation checkpointing, then offload (GPUs), then sharding (several ranks), at last
    smaller chunks of logits. A knob that the recipe fixes is not touched.
    """
    if strategy.micro_batch > 1 and training.micro_batch_sequences == "auto":
        return replace(strategy, micro_batch=-(-strategy.micro_batch // 2))
    if strategy.checkpoint_every != 1 and training.gradient_checkpointing == "auto":
        return replace(strategy, checkpoint_every=1)
    if not strategy.offload and kind == "cuda" and training.offload == "auto":
        return replace(strategy, offload=True)
    if world > 1 and training.sharding == "auto" and strategy.sharding != "zero3":
        return replace(strategy, sharding="zero2" if strategy.sharding == "none" else "zero3")
    if strategy.loss_chunk > _LEAST_CHUNK and training.loss_chunk_tokens == "auto":
        return replace(strategy, loss_chunk=max(_LEAST_CHUNK, strategy.loss_chunk // 4))
    return None


def budget(
    memory: int | Literal["auto"], hardware: Hardware, free_bytes: int | None = None, ranks_here: int = 1
) -> int:
    """Return the bytes that one rank may use.

    memory: the recipe's, for one GPU or for the whole machine without one. free_bytes: what is free on this machine
    now (`free_memory_bytes`); None plans for a machine that is not here, with nothing else on it. ranks_here: ranks
    that share this machine; without GPUs they share its memory, and so do the `count` of the hardware.
    """
    there = free_bytes
    if there is None:
        there = hardware.memory_bytes - (_CONTEXT_BYTES if hardware.kind == "cuda" else 0)
    there = int(there * (1 - _RESERVE[hardware.kind]))
    allowed = there if memory == "auto" else min(memory, there)
    return allowed if hardware.kind == "cuda" else allowed // max(ranks_here, hardware.count)


def free_memory_bytes(kind: Kind) -> int:
    """Return what is free on this rank's GPU or in this machine, with what this process holds already.

    Control groups (containers, Slurm) that limit memory are respected.
    """
    if kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())
    held = int(psutil.Process().memory_info().rss)
    free = [int(psutil.virtual_memory().available)]
    free += [max(0, limit - used) for limit, used in control_group_memory()]
    return min(free) + held


def remember(folder: Path, strategy: Strategy, training: Training, hardware: Hardware, world: int = 1) -> None:
    """Write down that a run had to retreat to `strategy`, in the checkpoints folder, so that a restart begins there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _RETREAT, {**_circumstances(training, hardware, world), "strategy": asdict(strategy)})


def remembered(folder: Path, training: Training, hardware: Hardware, world: int = 1) -> Strategy | None:
    """Return the strategy that a run of the same knobs on the same hardware retreated to; None when there is none."""
    try:
        content = json.loads((folder / _RETREAT).read_bytes())
        strategy = Strategy(**content.pop("strategy"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return strategy if content == _circumstances(training, hardware, world) else None


def _circumstances(training: Training, hardware: Hardware, world: int) -> dict[str, Any]:
    """What a retreat holds for: with other knobs, another device or number of ranks it is forgotten."""
    settings = training.model_dump(mode="json")
    knobs = {name: settings[name] for name in (*_KNOBS, "memory", "compile", "sequence_tokens", "batch_tokens")}
    device = {"name": hardware.name, "count": hardware.count, "memory_bytes": hardware.memory_bytes}
    return {"device": device, "ranks": world, "knobs": knobs}
