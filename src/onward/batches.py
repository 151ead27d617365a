"""The mixture and the order: a batch is a pure function of (plan, step).

Slots are numbered over the whole run; slot s of the global batch holds one packed sequence. A fixed interleaving
gives each slot to the domain or to the general text, so every window of steps has the exact share. The n-th domain
slot takes the n-th sequence of an endless order: one seeded permutation of the corpus after the other, or, when the
order is by blocks, one of each block after the other. Nothing here depends on workers, ranks, micro-batches, restarts
or on how much of the corpus is there already; resuming is an integer.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor, inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onward.corpus.store import OpenCorpus
from onward.errors import UserError
from onward.recipe import Training

NO_TARGET = -100
"""Label of a position without a target (PyTorch's cross-entropy ignores it)."""


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
        return floor(slots * self.replay)

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
    replay = training.forgetting.replay or Fraction(0)
    return BatchPlan(
        training.sequence_tokens, sequences, replay, seed, steps, training.order, training.maximum_repetition
    )


@dataclass(frozen=True)
class Batch:
    """One global batch, or some rows of it.

    ids_BT: token ids. labels_BT: the next token of the same document, NO_TARGET elsewhere. documents_BT: number of
    the document piece within its row, -1 in padding. positions_BT: position within the piece, from 0.
    general_B: whether the row is general (replayed) text.
    """

    ids_BT: NDArray[np.int64]
    labels_BT: NDArray[np.int64]
    documents_BT: NDArray[np.int64]
    positions_BT: NDArray[np.int64]
    general_B: NDArray[np.bool_]

    @property
    def labelled_tokens(self) -> int:
        """Number of positions that have a target."""
        return int((self.labels_BT != NO_TARGET).sum())

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the rows [start, stop) as a micro-batch."""
        cut = slice(start, stop)
        return Batch(
            self.ids_BT[cut], self.labels_BT[cut], self.documents_BT[cut], self.positions_BT[cut], self.general_B[cut]
        )


@lru_cache(maxsize=4)
def _permutation(size: int, *seeds: int) -> NDArray[np.int64]:
    return np.random.default_rng(seeds).permutation(size)


class Batches:
    """Random access to the batches of a run: `batches[step]`.

    corpora: domain first, general second when there is replay.
    """

    def __init__(self, plan: BatchPlan, corpora: list[OpenCorpus], padding_id: int) -> None:
        self.plan = plan
        self._corpora = corpora
        self._padding_id = padding_id
        assert len(corpora) == (2 if plan.replay else 1), "one corpus for each source of the mixture"
        assert all(corpus.sequence_tokens == plan.sequence_tokens for corpus in corpora)

    def __len__(self) -> int:
        return self.plan.total_steps

    def sequences(self, step: int) -> list[tuple[int, int]]:
        """Return (corpus, sequence) of every row of a step: the provenance of a batch, without reading it."""
        chosen = []
        first = step * self.plan.sequences_per_step
        general = self.plan.general_slots(first)
        for slot in range(first, first + self.plan.sequences_per_step):
            reached = self.plan.general_slots(slot + 1)
            corpus, nth = (1, general) if reached > general else (0, slot - general)
            general = reached
            chosen.append((corpus, self._sequence(corpus, nth)))
        return chosen

    def _sequence(self, corpus: int, nth: int) -> int:
        """Return the nth sequence of the endless order over a corpus."""
        if self.plan.order == "corpus":
            epoch, within = divmod(nth, size := self._corpora[corpus].num_sequences)
            return int(_permutation(size, self.plan.seed, corpus, epoch)[within])
        place = self._corpora[corpus].place(nth)
        if place.epoch and nth >= self.plan.maximum_repetition * self._corpora[corpus].num_sequences:
            raise UserError(
                "the text is too short for this run",
                "training.stages",
                f"{self._corpora[corpus].total_tokens:,} tokens prepared",
                f"at most {self.plan.maximum_repetition:g} repetitions",
                "add text, end the stages earlier, or raise training.maximum_repetition",
            )
        order = _permutation(place.size, self.plan.seed, corpus, place.epoch, place.block)
        return place.first + int(order[place.nth])

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a run of {len(self)} steps")
        rows = self.sequences(step)
        shape = (len(rows), self.plan.sequence_tokens)
        ids = np.full(shape, self._padding_id, dtype=np.int64)
        labels = np.full(shape, NO_TARGET, dtype=np.int64)
        documents = np.full(shape, -1, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        for row, (corpus, sequence) in enumerate(rows):
            store = self._corpora[corpus]
            offsets, lengths, ends = store.sequence(sequence)
            at = 0
            for piece, (offset, length, is_end) in enumerate(zip(offsets, lengths, ends, strict=True)):
                # A piece that does not end its document has one more target: the document's next token.
                tokens = store.read(int(offset), int(length) + (0 if is_end else 1)).astype(np.int64)
                span = slice(at, at + int(length))
                ids[row, span] = tokens[:length]
                labels[row, at : at + len(tokens) - 1] = tokens[1:]
                documents[row, span] = piece
                positions[row, span] = np.arange(length)
                at += int(length)
        return Batch(ids, labels, documents, positions, np.array([corpus == 1 for corpus, _ in rows]))
