"""Random access to the batches of a run: which sequences a step takes, and their tokens as arrays.

Shapes: B rows of T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from onward.batches.assembly import NO_TARGET, count_sequences, fill_rows
from onward.batches.order import order_key, places_in_order
from onward.batches.plan import BatchPlan
from onward.corpus.store import OpenBlock, OpenCorpus, Place
from onward.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One global batch, or some rows of it.

    ids_BT: token ids. labels_BT: the next token of the same document, NO_TARGET elsewhere. documents_BT: number of
    the document piece within its row, -1 in padding. positions_BT: position within the piece, from 0.
    replayed_B: whether the row is replayed text, not of the domain.
    """

    ids_BT: NDArray[np.int64]
    labels_BT: NDArray[np.int64]
    documents_BT: NDArray[np.int64]
    positions_BT: NDArray[np.int64]
    replayed_B: NDArray[np.bool_]

    @property
    def labelled_tokens(self) -> int:
        """Number of positions that have a target."""
        return int((self.labels_BT != NO_TARGET).sum())

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the rows [start, stop) as a micro-batch."""
        cut = slice(start, stop)
        return Batch(
            self.ids_BT[cut], self.labels_BT[cut], self.documents_BT[cut], self.positions_BT[cut], self.replayed_B[cut]
        )


@dataclass(frozen=True)
class StepCount:
    """What a step holds over all its rows, counted from the packing index without reading a token.

    labelled_tokens: positions with a target. tokens: without padding. causal_pairs: sum over the document pieces of
    L (L + 1) / 2. replayed_sequences: rows of each replayed corpus, in the plan's order.
    """

    labelled_tokens: int
    tokens: int
    causal_pairs: int
    replayed_sequences: tuple[int, ...]


class _Blocks:
    """The blocks of a corpus, with those that have been finished since."""

    def __init__(self, corpus: OpenCorpus, lock: Lock) -> None:
        self._corpus, self._lock = corpus, lock
        self._known: list[OpenBlock] = []
        self._first_sequences = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros((0, 3), dtype=np.int64)
        self._look_for_new()

    def of(self, sequences: NDArray[np.int64]) -> Iterator[tuple[OpenBlock, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each block that holds some of the sequences: the block, which of them, their numbers within it."""
        self._look_for_new()
        numbers = np.searchsorted(self._first_sequences, sequences, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        begin, sorted_numbers = 0, numbers[order]
        ends = [*(np.flatnonzero(sorted_numbers[1:] != sorted_numbers[:-1]) + 1).tolist(), len(order)]
        for end in ends if len(order) else []:
            block, chosen = self._known[sorted_numbers[begin]], order[begin:end]
            yield block, chosen, sequences[chosen] - block.first_sequence
            begin = end

    def count(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return labelled tokens, tokens and causal pairs of some sequences together: int64[3]."""
        self._look_for_new()
        total: NDArray[np.int64] = self._counts[sequences].sum(axis=0)
        return total

    def _look_for_new(self) -> None:
        if len(self._known) == self._corpus.num_blocks:
            return
        with self._lock:
            self._open_new()

    def _open_new(self) -> None:
        corpus, known, counts = self._corpus, [*self._known], [self._counts]
        for number in range(len(known), corpus.num_blocks):
            block = corpus.block(number)
            reached = (block.packing.piece_offset + block.packing.piece_length).max(initial=block.first_token)
            assert reached <= block.first_token + len(block.tokens), f"the packing of block {number} lies in its tokens"
            known.append(block)
            counts.append(count_sequences(block.packing))
        self._first_sequences = np.array([block.first_sequence for block in known])
        self._counts = np.concatenate(counts)
        self._known = known  # last: another thread takes its length for a sign that the rest is there


class Batches:
    """Random access to the batches of a run: `batches[step]`.

    corpora: those that the plan names, in its order: the domain first, then each that is replayed.
    """

    def __init__(self, plan: BatchPlan, corpora: list[OpenCorpus], padding_id: int) -> None:
        self.plan = plan
        self.padding_id = padding_id
        self._corpora = corpora
        # A growing corpus is looked at by the thread that reads ahead and by the one that trains.
        self._lock = Lock()
        self._blocks = [_Blocks(corpus, self._lock) for corpus in corpora]
        assert len(corpora) == len(plan.corpora), "one corpus for each source of the mixture"
        assert all(corpus.sequence_tokens == plan.sequence_tokens for corpus in corpora)

    def __len__(self) -> int:
        return self.plan.total_steps

    def __getitem__(self, step: int) -> Batch:
        return self.read(step, 0, self.plan.sequences_per_step)

    def read(self, step: int, start: int, stop: int) -> Batch:
        """Return the rows [start, stop) of a step, and read no others; raises IndexError past the last step."""
        corpus_B, sequence_B = self._chosen(step, start, stop)
        shape = (stop - start, self.plan.sequence_tokens)
        ids, labels, documents, positions = (np.empty(shape, dtype=np.int64) for _ in range(4))
        for block, rows, within in self._by_block(corpus_B, sequence_B):
            fill_rows(
                block.tokens, block.first_token, block.packing, within, rows,
                ids, labels, documents, positions, self.padding_id,
            )  # fmt: skip
        return Batch(ids, labels, documents, positions, corpus_B > 0)

    def sequences(self, step: int) -> list[tuple[str, int]]:
        """Return (corpus, sequence) of every row of a step: the provenance of a batch, without reading it."""
        corpus_B, sequence_B = self._chosen(step, 0, self.plan.sequences_per_step)
        names = [self.plan.corpora[corpus] for corpus in corpus_B.tolist()]
        return list(zip(names, sequence_B.tolist(), strict=True))

    def count(self, step: int) -> StepCount:
        """Count what all rows of a step hold, from the packing index alone: every rank can, and reads nothing."""
        corpus_B, sequence_B = self._chosen(step, 0, self.plan.sequences_per_step)
        total = np.zeros(3, dtype=np.int64)
        for corpus, blocks in enumerate(self._blocks):
            total += blocks.count(sequence_B[corpus_B == corpus])
        labelled, tokens, pairs = total.tolist()
        rows = np.bincount(corpus_B, minlength=len(self._corpora)).tolist()
        return StepCount(labelled, tokens, pairs, tuple(rows[1:]))

    def labelled_tokens(self, step: int) -> int:
        """Positions of a step that have a target, over all its rows."""
        return self.count(step).labelled_tokens

    def tokens(self, step: int) -> int:
        """Tokens of a step without padding, over all its rows."""
        return self.count(step).tokens

    def causal_pairs(self, step: int) -> int:
        """Sum over the document pieces of a step of L (L + 1) / 2."""
        return self.count(step).causal_pairs

    def is_ready(self, step: int) -> bool:
        """Whether the text of a step is there, or still being prepared; raises what makes waiting for it vain."""
        with self._lock:
            needs = self.plan.needed_sequences(step + 1).values()
            return all(
                corpus.has(None if self.plan.order == "corpus" else needed)
                for corpus, needed in zip(self._corpora, needs, strict=True)
            )

    def _chosen(self, step: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return of each row [start, stop) of a step the number of its corpus, and its sequence there."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a run of {len(self)} steps")
        assert 0 <= start <= stop <= self.plan.sequences_per_step
        first = step * self.plan.sequences_per_step + start
        # What each corpus has taken before each slot: one of them takes one more with every slot.
        taken = np.array([self.plan.slots_of(slot) for slot in range(first, first + stop - start + 1)])
        corpus_B = np.diff(taken, axis=0).argmax(axis=1)
        sequence_B = np.empty(stop - start, dtype=np.int64)
        with self._lock:
            for corpus in range(len(self._corpora)):
                mine = corpus_B == corpus
                sequence_B[mine] = self._in_order(corpus, taken[:-1][mine, corpus])
        return corpus_B, sequence_B

    def _in_order(self, corpus: int, nth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the nth sequences (consecutive numbers) of the endless order over a corpus."""
        parts = [np.zeros(0, dtype=np.int64)]
        while len(nth):
            stretch = self._stretch(corpus, int(nth[0]))
            here = nth[: stretch.size - stretch.nth]
            if stretch.epoch and self.plan.order == "blocks":
                self._check_repetition(corpus, int(here[-1]))
            key = order_key(self.plan.seed, corpus, stretch.epoch, stretch.block)
            parts.append(stretch.first + places_in_order(here - here[0] + stretch.nth, stretch.size, key))
            nth = nth[len(here) :]
        return np.concatenate(parts)

    def _stretch(self, corpus: int, nth: int) -> Place:
        """Return the place of the nth sequence in the block, or else the corpus, that is shuffled as one."""
        if self.plan.order == "blocks":
            return self._corpora[corpus].place(nth)
        epoch, within = divmod(nth, size := self._corpora[corpus].num_sequences)
        return Place(epoch, block=0, first=0, size=size, nth=within)

    def _check_repetition(self, corpus: int, nth: int) -> None:
        """Raise UserError when a reading has reached the cap; a growing corpus shows its size only then."""
        if nth >= self.plan.maximum_repetition * self._corpora[corpus].num_sequences:
            raise UserError(
                "the text is too short for this run",
                "training.stages",
                f"{self._corpora[corpus].total_tokens:,} tokens prepared",
                f"at most {self.plan.maximum_repetition:g} repetitions",
                "add text, end the stages earlier, or raise training.maximum_repetition",
            )

    def _by_block(
        self, corpus_B: NDArray[np.int64], sequence_B: NDArray[np.int64]
    ) -> Iterator[tuple[OpenBlock, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the blocks that hold some of the rows: the block, the rows, their sequences within the block."""
        for corpus, blocks in enumerate(self._blocks):
            rows = np.flatnonzero(corpus_B == corpus)
            for block, chosen, within in blocks.of(sequence_B[rows]):
                yield block, rows[chosen], within
