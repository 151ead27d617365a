"""How the training step fits into memory: what was weighed, and what is taken."""

from dataclasses import fields

from onward.batches import BatchPlan
from onward.errors import UserError
from onward.model.shape import ModelShape
from onward.plan.foresight import MemoryForesight, StrategyForesight
from onward.recipe import Training
from onward.training.fitting import Option, budget, candidates, choose, free_memory_bytes
from onward.training.hardware import Hardware, Precision
from onward.training.memory import MemoryUse, predict


def foresee_memory(
    training: Training, shape: ModelShape, hardware: Hardware, precision: Precision, batches: BatchPlan, is_here: bool
) -> tuple[MemoryForesight, UserError | None]:
    """Return the ways to fit, fastest first, and what is wrong when none does.

    is_here: the memory that is free now counts; otherwise the whole of the machine's.
    """
    free = free_memory_bytes(hardware.kind) if is_here else None
    limit = budget(training.memory, hardware, free)
    rows = -(-batches.sequences_per_step // hardware.count)
    try:
        choice = choose(
            training,
            shape,
            hardware=hardware,
            world=hardware.count,
            rows_per_rank=rows,
            precision=precision,
            budget_bytes=limit,
            free_bytes=free,
        )
    except UserError as problem:
        return MemoryForesight(limit, _hopeless(training, shape, hardware, precision, batches, rows), None), problem
    table = tuple(map(_strategy, choice.table))
    chosen = next(n for n, option in enumerate(choice.table) if option.strategy == choice.strategy)
    return MemoryForesight(limit, table, chosen), None


def _hopeless(
    training: Training, shape: ModelShape, hardware: Hardware, precision: Precision, batches: BatchPlan, rows: int
) -> tuple[StrategyForesight, ...]:
    """Return the strategy that needs least memory, for what it would take."""
    found = [
        (
            strategy,
            predict(
                shape,
                strategy,
                sequence_tokens=batches.sequence_tokens,
                world=hardware.count,
                kind=hardware.kind,
                precision=precision,
                micro_batches=-(-rows // strategy.micro_batch),
                forgetting=training.forgetting,
            ),
        )
        for strategy in candidates(training, shape, kind=hardware.kind, world=hardware.count, rows_per_rank=rows)
    ]
    strategy, use = min(found, key=lambda option: option[1].total)
    return (StrategyForesight(strategy, use.total, _parts(use), False, 1.0),)


def _strategy(option: Option) -> StrategyForesight:
    return StrategyForesight(option.strategy, option.use.total, _parts(option.use), option.fits, option.relative_time)


def _parts(use: MemoryUse) -> dict[str, int]:
    return {field.name: getattr(use, field.name) for field in fields(use)}
