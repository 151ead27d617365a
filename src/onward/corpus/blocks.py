"""Blocks: what a kill cannot undo.

A corpus is written block by block, each of about `corpus.block_tokens` kept tokens: a shard of tokens, their packing,
the tables of their documents. A block is finished when its state file exists, written last and flushed; the state says
where reading goes on, so a restart begins behind the last finished block, and training may read blocks while the next
ones are being made. Where a block ends depends on the text alone.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa

from onward.artifact import write_text
from onward.corpus.contamination.table import CONTAMINATION
from onward.corpus.duplicates.runs import flush_folder
from onward.corpus.packing import Packing, PackingMode, pack
from onward.corpus.tables import DOCUMENTS, DROPPED, DUPLICATES, HeldOutSpill, TableWriter
from onward.corpus.tokenise import TokenIds

STATE = "state"
"""Folder, inside a corpus that is being made, for what is needed only until it is finished."""
_TABLES = {"documents": DOCUMENTS, "dropped": DROPPED, "duplicates": DUPLICATES, "contamination": CONTAMINATION}
LARGEST_READ_BYTES = 512_000_000
"""A block ends after so much text even when little of it is kept."""


def block_name(kind: str, number: int, suffix: str) -> str:
    """Return the name of a block's file, e.g. `tokens-00003.npy`."""
    return f"{kind}-{number:05d}.{suffix}"


class BlockWriter:
    """The files of one block while it is being written.

    first_token: tokens in the blocks before it, since offsets count over the whole corpus.
    """

    def __init__(self, folder: Path, number: int, first_token: int, dtype: np.dtype[Any]) -> None:
        self.number = number
        self.first_token = first_token
        self.kept_tokens = self.read_bytes = 0
        self._folder = folder
        self._dtype = dtype
        self._lengths: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        with ExitStack() as opened:  # when one cannot be made (the disk is full), those before it are closed
            self._tokens = opened.enter_context(_open_array(folder / block_name("tokens", number, "npy"), dtype))
            tables = [
                opened.enter_context(closing(TableWriter(folder / block_name(kind, number, "parquet"), schema)))
                for kind, schema in _TABLES.items()
            ]
            spill = HeldOutSpill(folder / STATE / block_name("held_out", number, "rows"))
            self.held_out = opened.enter_context(closing(spill))
            self._files = opened.pop_all()
        self.documents, self.dropped, self.duplicates, self.contamination = tables

    def append(self, tokens: TokenIds, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Write the tokens of documents, one after the other; return the offset of the first."""
        assert tokens.dtype == self._dtype
        assert int(lengths.sum()) == len(tokens)
        offset = self.first_token + self.kept_tokens
        self._tokens.write(tokens.data)
        self._lengths.append(lengths)
        self.kept_tokens += len(tokens)
        return offset

    def finish(self, sequence_tokens: int, mode: PackingMode) -> Packing:
        """Complete and flush the files, and pack."""
        _write_length(self._tokens, self._dtype, self.kept_tokens)
        self._files.close()
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *self._lengths])
        packing = pack(lengths, sequence_tokens, mode, self.first_token)
        packing.save(self._folder / block_name("packing", self.number, "npz"))
        for kind in _TABLES:
            _flush(self._folder / block_name(kind, self.number, "parquet"))
        _flush(self._folder / block_name("packing", self.number, "npz"))
        _flush(self._folder / block_name("tokens", self.number, "npy"))
        _flush(self._folder / STATE / block_name("held_out", self.number, "rows"))
        return packing

    def abandon(self) -> None:
        """Close the files without finishing them; the next start removes them."""
        with suppress(OSError, pa.ArrowException):  # a disk that is full stays full
            self._files.close()


def save_state(folder: Path, number: int, state: dict[str, Any]) -> None:
    """Declare a block finished, once the names of its files are on the disk as well."""
    flush_folder(folder)
    write_text(folder / STATE / block_name("block", number, "json"), orjson.dumps(state).decode())
    flush_folder(folder / STATE)


def finished_blocks(folder: Path) -> list[dict[str, Any]]:
    """Return the states of the finished blocks of a corpus that is being made, and remove what is not finished."""
    states = read_states(folder)
    for path in [*folder.glob("*-[0-9]*.*"), *(folder / STATE).glob("held_out-*")]:
        if int(path.stem.rpartition("-")[2]) >= len(states):
            path.unlink()
    return states


def read_states(folder: Path, first: int = 0) -> list[dict[str, Any]]:
    """Return the states of the finished blocks from `first` on."""
    states: list[dict[str, Any]] = []
    while (path := folder / STATE / block_name("block", first + len(states), "json")).exists():
        states.append(orjson.loads(path.read_bytes()))
    return states


def remove_state(folder: Path) -> None:
    """Remove what was needed only until the corpus was finished."""
    shutil.rmtree(folder / STATE, ignore_errors=True)


def _open_array(path: Path, dtype: np.dtype[Any]) -> BinaryIO:
    file = open(path, "wb")
    _write_header(file, dtype, 0)  # into the buffer; the disk is not asked yet
    return file


def _write_length(file: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    end = file.tell()
    file.seek(0)
    _write_header(file, dtype, length)
    assert file.tell() == end - length * dtype.itemsize, "the header kept its size"


def _write_header(file: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    # numpy pads the header so that the length along the first axis can be written over it afterwards.
    facts = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, facts)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spills(folder: Path, blocks: int) -> Sequence[Path]:
    """Return the files of held-out documents that wait for the end."""
    return [folder / STATE / block_name("held_out", number, "rows") for number in range(blocks)]
