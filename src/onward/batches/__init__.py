"""The mixture and the order: a batch is a pure function of (plan, step).

Slots are numbered over the whole run; slot s of the global batch holds one packed sequence. A fixed interleaving
gives each slot to the domain or to the general text, so every window of steps has the exact share. The n-th domain
slot takes the n-th sequence of an endless order: one keyed permutation of the corpus after the other, or, when the
order is by blocks, one of each block after the other. Nothing here depends on workers, ranks, micro-batches, restarts
or on how much of the corpus is there already; resuming is an integer and costs the same at any step.
"""

from onward.batches.assembly import NO_TARGET
from onward.batches.plan import BatchPlan, plan_batches
from onward.batches.reading import Batch, Batches, StepCount

__all__ = ["NO_TARGET", "Batch", "BatchPlan", "Batches", "StepCount", "plan_batches"]
