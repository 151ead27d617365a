"""What decides the batches of a run, from the recipe alone."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import inf
from typing import Literal

from onward.recipe import Training


@dataclass(frozen=True)
class BatchPlan:
    """What decides the batches of a run.

    sequences_per_step: global batch. replay: (corpus, share of the slots) of each replayed corpus. stage_steps:
    cumulative steps at the end of each stage. order: whether sequences are mixed over the whole corpus or within its
    blocks. maximum_repetition: how often a corpus may be passed over; the plan refuses a run beyond it, but a corpus
    that is still being prepared shows its size only while it is read. text: the corpus of the slots that
    are not replayed.
    """

    sequence_tokens: int
    sequences_per_step: int
    replay: tuple[tuple[str, Fraction], ...]
    seed: int
    stage_steps: tuple[int, ...]
    order: Literal["corpus", "blocks"] = "corpus"
    maximum_repetition: float = inf
    text: str = "domain"

    @property
    def step_tokens(self) -> int:
        """Places of a step, padding included; long documents leave almost none, short alike ones may leave many."""
        return self.sequences_per_step * self.sequence_tokens

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.stage_steps[-1]

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora that the slots are shared out over: the domain, then those that are replayed."""
        return (self.text, *(name for name, _ in self.replay))

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Shares of the slots, of each of `corpora`; together 1."""
        replayed = tuple(share for _, share in self.replay)
        return (1 - sum(replayed, Fraction(0)), *replayed)

    def slots_of(self, slots: int) -> tuple[int, ...]:
        """How many of the first `slots` slots each of `corpora` takes.

        One corpus after the other is split off: of n slots that are left, floor(n x what the later ones have of them)
        go on to those. So floor(slots x share) are replayed, whichever corpora that is shared out over.
        """
        # In Python's integers: a share may have any denominator.
        taken, left = [], slots
        for numerator, denominator in self._later:
            rest = left * numerator // denominator
            taken.append(left - rest)
            left = rest
        return tuple(taken)

    @cached_property
    def _later(self) -> tuple[tuple[int, int], ...]:
        """What the corpora after each have of what it and they have, as whole numbers: asked for at every slot."""
        found, share_left = [], Fraction(1)
        for share in self.shares:
            later = (share_left - share) / share_left
            found.append((later.numerator, later.denominator))
            share_left -= share
        return tuple(found)

    def needed_sequences(self, steps: int | None = None) -> dict[str, int]:
        """How many sequences of each corpus the first `steps` (None: all) read, repetitions counted."""
        slots = (self.total_steps if steps is None else steps) * self.sequences_per_step
        return dict(zip(self.corpora, self.slots_of(slots), strict=True))


def plan_batches(training: Training, seed: int) -> BatchPlan:
    """Turn token budgets into steps: each stage ends at the first step that reaches its cumulative tokens.

    seed: of the order of the sequences (`Recipe.training_seed`).
    """
    sequences = training.batch_tokens // training.sequence_tokens
    step_tokens = sequences * training.sequence_tokens
    steps = tuple(-(-tokens // step_tokens) for tokens in training.stages)
    # By name: a mapping's order is no part of what a recipe says, and decides nothing.
    replay = tuple(sorted(training.forgetting.replayed.items()))
    length, cap = training.sequence_tokens, training.maximum_repetition
    return BatchPlan(length, sequences, replay, seed, steps, training.order, cap, training.text)
