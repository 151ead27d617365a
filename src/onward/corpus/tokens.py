"""The token store: flat shards of token ids on disk, read as memory maps; and the checks on a document's tokens."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SHARD_TOKENS = 2**28
"""A shard holds at most this many tokens (512 MB as uint16)."""

TokenIds = NDArray[np.uint16 | np.uint32]


def token_dtype(vocabulary_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return uint16 when every id fits into it, else uint32."""
    return np.dtype(np.uint16) if vocabulary_size <= 2**16 else np.dtype(np.uint32)


def token_reason(
    ids: Sequence[int], size_bytes: int, unknown_id: int | None, maximum_unknown: Fraction, minimum_bytes: float | None
) -> str | None:
    """Return why a document's tokens speak against it, None when they do not.

    ids: without BOS and EOS. maximum_unknown: share of unknown tokens. minimum_bytes: bytes of text per token.
    """
    if not ids:
        return "tokens: none"
    if unknown_id is not None and ids.count(unknown_id) > maximum_unknown * len(ids):
        return "tokens: too many unknown"
    if minimum_bytes is not None and size_bytes < minimum_bytes * len(ids):
        return "tokens: too few bytes per token"
    return None


class TokenStore:
    """Tokens of a prepared corpus by their global offset."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("tokens-*.npy"))
        assert paths, f"no token shards in {folder}"
        self._shards: list[TokenIds] = [np.load(path, mmap_mode="r") for path in paths]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    @property
    def total_tokens(self) -> int:
        """Number of tokens in all shards."""
        return int(self._starts[-1])

    def read(self, offset: int, length: int) -> TokenIds:
        """Return `length` tokens from global `offset` on; they must lie in one shard, as every document does."""
        shard = int(np.searchsorted(self._starts, offset, side="right")) - 1
        begin = offset - int(self._starts[shard])
        tokens = self._shards[shard][begin : begin + length]
        assert len(tokens) == length, f"tokens {offset}..{offset + length} are not in one shard"
        return tokens


class TokenWriter:
    """Appends documents to shards; a document never crosses from one shard to the next."""

    def __init__(self, folder: Path, dtype: np.dtype[np.uint16] | np.dtype[np.uint32], shard_tokens: int) -> None:
        self._folder = folder
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._file: BinaryIO | None = None
        self._in_shard = 0
        self.shard = -1
        self.total_tokens = 0

    def append(self, tokens: TokenIds) -> int:
        """Write one document's tokens; return their global offset."""
        assert tokens.dtype == self._dtype
        assert len(tokens) <= self._shard_tokens, "a document fits into a shard"
        if self._file is None or self._in_shard + len(tokens) > self._shard_tokens:
            self._open_next()
        assert self._file is not None
        self._file.write(tokens.tobytes())
        self._in_shard += len(tokens)
        self.total_tokens += len(tokens)
        return self.total_tokens - len(tokens)

    def close(self) -> None:
        """Write the last shard's length into its header."""
        if self._file is not None:
            with self._file as file:
                length = file.tell()
                file.seek(0)
                self._header(file)
                assert file.tell() == length - self._in_shard * self._dtype.itemsize, "the header kept its size"
            self._file = None

    def _open_next(self) -> None:
        self.close()
        self.shard += 1
        self._in_shard = 0
        self._file = open(self._folder / f"tokens-{self.shard:05d}.npy", "wb")
        self._header(self._file)

    def _header(self, file: BinaryIO) -> None:
        # numpy pads the header so that the length along the first axis can be written over it afterwards.
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._in_shard,)}
        np.lib.format.write_array_header_1_0(file, facts)
