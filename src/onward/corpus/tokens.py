"""Token shards on disk: flat arrays of ids, read as memory maps."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.uint16 | np.uint32]


def token_dtype(vocabulary_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return uint16 when every id fits into it, else uint32."""
    return np.dtype(np.uint16) if vocabulary_size <= 2**16 else np.dtype(np.uint32)


def open_tokens(path: Path) -> TokenIds:
    """Open a shard as a memory map (an empty one, which cannot be mapped, as an array)."""
    try:
        shard: TokenIds = np.load(path, mmap_mode="r")
    except ValueError:
        shard = np.load(path)
        assert len(shard) == 0
    return shard
