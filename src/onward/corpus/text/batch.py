"""A batch of documents as one buffer of UTF-8, which compiled code reads without Python objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextBatch:
    """Documents one after the other. buffer: uint8[bytes], UTF-8. starts: int64[documents + 1], document n is
    buffer[starts[n]:starts[n + 1]].
    """

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, n: int) -> str:
        """Return document `n` as a string."""
        return self.buffer[self.starts[n] : self.starts[n + 1]].tobytes().decode()

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of every document."""
        return np.diff(self.starts)


def batch_of(texts: Sequence[str]) -> TextBatch:
    """Lay texts one after the other; raises UnicodeEncodeError for lone surrogates, which readers keep out."""
    encoded = [text.encode() for text in texts]
    starts = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=starts[1:])
    return TextBatch(np.frombuffer(b"".join(encoded), dtype=np.uint8), starts)
