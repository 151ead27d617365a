"""A prepared corpus, opened for the steps that read it; also one that is still being made, block by block."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.artifact import MANIFEST, building_place
from onward.corpus.blocks import STATE, block_name
from onward.corpus.ledger import Ledger, read_ledger
from onward.corpus.packing import Packing, join_packings, load_packing
from onward.corpus.tokens import TokenIds, open_tokens

_POLL_SECONDS = 0.2

Sequence = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Place:
    """Where a sequence of an endless reading, block after block, lies.

    epoch: how often the corpus was passed over before. block: its number. first: the first sequence of the block,
    size: how many it has. nth: which of them is meant, from 0.
    """

    epoch: int
    block: int
    first: int
    size: int
    nth: int


@dataclass(frozen=True)
class OpenBlock:
    """A finished block: its first sequence and token, counted over the corpus, its packing and its tokens on disk."""

    first_sequence: int
    first_token: int
    packing: Packing
    tokens: TokenIds


class OpenCorpus:
    """Sequences and tokens by their numbers over the whole corpus; tokens stay on disk until they are read.

    while_waiting: called again and again while a block is waited for; it raises when waiting is in vain. None: the
    corpus is complete.
    """

    def __init__(self, folder: Path, while_waiting: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._while_waiting = while_waiting
        self._packings: list[Packing] = []
        self._tokens: list[TokenIds] = []
        self._first_sequence, self._first_token = [0], [0]
        self._is_complete = False
        if while_waiting is None:
            self._load_new()
            assert self._is_complete, f"{folder} is a complete corpus"
        else:
            self._wait_for(1)

    @property
    def sequence_tokens(self) -> int:
        """Length of a packed sequence."""
        return self._packings[0].sequence_tokens

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole corpus; waits for its end."""
        self._wait_for(None)
        return self._first_sequence[-1]

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole corpus; waits for its end."""
        self._wait_for(None)
        return self._first_token[-1]

    @property
    def ledger(self) -> Ledger:
        """Where everything went; of a complete corpus."""
        return read_ledger(self._folder)

    @cached_property
    def packing(self) -> Packing:
        """The packing of all blocks as one; of a complete corpus."""
        self._wait_for(None)
        return join_packings(self._packings)

    def place(self, nth: int) -> Place:
        """Return where the nth sequence of an endless reading, block after block, lies; waits until it is there."""
        self._wait_for(nth + 1)
        epoch, within = divmod(nth, self._first_sequence[-1]) if nth >= self._first_sequence[-1] else (0, nth)
        block = int(np.searchsorted(self._first_sequence, within, side="right")) - 1
        first, following = self._first_sequence[block : block + 2]
        return Place(epoch, block, first, following - first, within - first)

    def has(self, sequences: int | None) -> bool:
        """Whether so many sequences are there already, or (None) all; raises when waiting for them is in vain."""
        if not self._is_complete:
            self._load_new()
        if self._is_complete or (sequences is not None and self._first_sequence[-1] >= sequences):
            return True
        assert self._while_waiting is not None
        self._while_waiting()
        return False

    @property
    def num_blocks(self) -> int:
        """How many blocks are opened so far."""
        return len(self._packings)

    def block(self, number: int) -> OpenBlock:
        """Return an opened block."""
        # A memory map of its own class costs microseconds at every access; a plain view of it does not.
        tokens: TokenIds = self._tokens[number].view(np.ndarray)
        return OpenBlock(self._first_sequence[number], self._first_token[number], self._packings[number], tokens)

    def sequence(self, n: int) -> Sequence:
        """Return offsets, lengths and document ends of the pieces of sequence `n`, in their order."""
        self._wait_for(n + 1)
        block = int(np.searchsorted(self._first_sequence, n, side="right")) - 1
        return self._packings[block].sequence(n - self._first_sequence[block])

    def read(self, offset: int, length: int) -> TokenIds:
        """Return `length` tokens from global `offset` on; they must lie in one block, as every document does."""
        block = int(np.searchsorted(self._first_token, offset, side="right")) - 1
        begin = offset - self._first_token[block]
        tokens = self._tokens[block][begin : begin + length]
        assert len(tokens) == length, f"tokens {offset}..{offset + length} are not in one block"
        return tokens

    def _wait_for(self, sequences: int | None) -> None:
        """Wait until so many sequences are there, or all (None)."""
        while not self._is_complete and (sequences is None or self._first_sequence[-1] < sequences):
            self._load_new()
            if self._is_complete or (sequences is not None and self._first_sequence[-1] >= sequences):
                return
            assert self._while_waiting is not None
            self._while_waiting()
            time.sleep(_POLL_SECONDS)

    def _load_new(self) -> None:
        """Open the blocks that were finished since, in the folder or beside it."""
        is_complete = (self._folder / MANIFEST).exists()
        folder = self._folder if is_complete else building_place(self._folder)
        while True:
            number = len(self._packings)
            state = f"{STATE}/{block_name('block', number, 'json')}"
            sign = block_name("packing", number, "npz") if is_complete else state
            try:
                if not (folder / sign).exists():
                    break
                packing = load_packing(folder / block_name("packing", number, "npz"))
                tokens = open_tokens(folder / block_name("tokens", number, "npy"))
            except FileNotFoundError:  # the corpus was completed, and its folder renamed, at this moment
                return
            self._packings.append(packing)
            self._tokens.append(tokens)
            self._first_sequence.append(self._first_sequence[-1] + packing.num_sequences)
            self._first_token.append(self._first_token[-1] + len(tokens))
        self._is_complete = is_complete


def open_corpus(folder: Path, while_waiting: Callable[[], None] | None = None) -> OpenCorpus:
    """Open a prepared corpus, or, with `while_waiting`, one that is still being prepared."""
    return OpenCorpus(folder, while_waiting)
