"""A few real training steps on this machine, on made-up text of the corpus's document lengths."""

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from onward.batches import BatchPlan
from onward.model.shape import ModelShape
from onward.model.source import ModelSource
from onward.plan.costs import MEASURED_ERROR
from onward.plan.foresight import Range, Timed
from onward.plan.remedies import base_work, step_work
from onward.progress import Progress
from onward.recipe import Training
from onward.training.strategy import Strategy

if TYPE_CHECKING:
    from onward.training.learner import Learner
    from onward.training.ranks import Ranks

_PAIRS = 2
"""Short and long updates that are timed, each in turn."""


def time_steps(
    base: ModelSource,
    shape: ModelShape,
    training: Training,
    strategy: Strategy,
    precision: str,
    plan: BatchPlan,
    pairs_per_token: float,
    devices: int,
    progress: Progress,
) -> Timed:
    """Return what a step takes: updates of one and of three micro-batches are timed, and their difference scaled up.

    The first update, which compiles and allocates, does not count. devices: those the batch is shared out over; one is
    timed. The remedies of `training.forgetting` are part of a step, with a Fisher information that is all ones; KL's
    pass of the base over replayed rows, which few micro-batches have, is added by arithmetic (`remedies.step_work`).
    Raises UserError for a model that cannot be trained.
    """
    import torch

    from onward.training.memory import MemoryMeter
    from onward.training.network import Rows
    from onward.training.ranks import joined

    rows_per_device = -(-plan.sequences_per_step // devices)
    micro_batches = -(-rows_per_device // strategy.micro_batch)
    numbers = (1, min(3, micro_batches))
    progress.begin("timing a few steps", 1 + _PAIRS * len(set(numbers)), "updates")
    with joined(strategy.sharding != "none" or strategy.offload) as ranks:
        learner = _learner(base, training, strategy, precision, plan, ranks)
        rows = _rows(strategy.micro_batch, plan.sequence_tokens, pairs_per_token, shape.vocabulary)
        on_device = Rows(*rows).to(ranks.device)
        labelled = strategy.micro_batch * plan.sequence_tokens
        meter = MemoryMeter(ranks.device)

        def seconds(number: int) -> float:
            started = time.perf_counter()
            learner.update([on_device] * number, labelled * number, training.optimizer.learning_rate)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        seconds(1)
        times: dict[int, list[float]] = {}
        for done, number in enumerate((n for _ in range(_PAIRS) for n in sorted(set(numbers))), start=2):
            times.setdefault(number, []).append(seconds(number))
            progress.advance(done)
        peak = meter.read().peak
    short, long = (median(times[number]) for number in numbers)
    each = (long - short) / (numbers[1] - numbers[0]) if numbers[1] > numbers[0] else 0.0
    step = short + max(each, 0.0) * (micro_batches - 1)
    if training.forgetting.kl:
        whole = step_work(training.forgetting, shape, pairs_per_token).value
        step *= whole / (whole - base_work(training.forgetting))
    return Timed(Range(step * (1 - MEASURED_ERROR), step, step * (1 + MEASURED_ERROR)), peak, micro_batches)


_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def _learner(
    base: ModelSource, training: Training, strategy: Strategy, precision: str, plan: BatchPlan, ranks: "Ranks"
) -> "Learner":
    """Make what trains, remedies included; the Fisher information is all ones."""
    import torch

    from onward.training.learner import Learner

    weights: dict[str, torch.Tensor] = {}

    def even(model: Any) -> None:
        weights.update((name, torch.ones(parameter.shape)) for name, parameter in model.named_parameters())

    learner = Learner(
        base,
        training.optimizer,
        strategy,
        getattr(torch, _DTYPES[precision]),
        plan.step_tokens,
        ranks,
        even if training.forgetting.weighed is not None else None,
        forgetting=training.forgetting,
        fisher=weights,
    )
    weights.clear()
    return learner


def _rows(rows: int, length: int, pairs_per_token: float, vocabulary: int):  # type: ignore[no-untyped-def]
    """Return the parts of `Rows`: documents of the length whose positions look back as far as the corpus's do."""
    import torch

    piece = max(1, min(length, round(2 * pairs_per_token - 1)))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows * length,), generator=generator)
    positions = (torch.arange(length) % piece).repeat(rows)
    starts = (positions == 0).nonzero()[:, 0]
    bounds = torch.full((max(64, 1 << len(starts).bit_length()),), rows * length, dtype=torch.int32)
    bounds[: len(starts)] = starts
    return ids, ids.roll(-1), positions, bounds, length
