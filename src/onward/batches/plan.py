"""What decides the batches of a run, from the recipe alone."""

from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Literal

from onward.recipe import Training


@dataclass(frozen=True)
class BatchPlan:
    """What decides the batches of a run.

    sequences_per_step: global batch. replay: share of the slots for general text. stage_steps: cumulative steps at
    the end of each stage. order: whether sequences are mixed over the whole corpus or within its blocks.
    maximum_repetition: how often a corpus may be passed over; the plan refuses a run beyond it, but a corpus that is
    still being prepared shows its size only while it is read.
    """

    sequence_tokens: int
    sequences_per_step: int
    replay: Fraction
    seed: int
    stage_steps: tuple[int, ...]
    order: Literal["corpus", "blocks"] = "corpus"
    maximum_repetition: float = inf

    @property
    def step_tokens(self) -> int:
        """Places of a step, padding included; long documents leave almost none, short alike ones may leave many."""
        return self.sequences_per_step * self.sequence_tokens

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.stage_steps[-1]

    def general_slots(self, slots: int) -> int:
        """How many of the first `slots` slots hold general text: floor(slots x share)."""
        return slots * self.replay.numerator // self.replay.denominator

    def needed_sequences(self, steps: int | None = None) -> tuple[int, int]:
        """Domain and general sequences that the first `steps` (None: all) read, repetitions counted."""
        slots = (self.total_steps if steps is None else steps) * self.sequences_per_step
        general = self.general_slots(slots)
        return slots - general, general


def plan_batches(training: Training, seed: int) -> BatchPlan:
    """Turn token budgets into steps: each stage ends at the first step that reaches its cumulative tokens."""
    sequences = training.batch_tokens // training.sequence_tokens
    step_tokens = sequences * training.sequence_tokens
    steps = tuple(-(-tokens // step_tokens) for tokens in training.stages)
    replay = training.forgetting.replay_share
    return BatchPlan(
        training.sequence_tokens, sequences, replay, seed, steps, training.order, training.maximum_repetition
    )
