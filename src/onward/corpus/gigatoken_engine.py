"""gigatoken behind this project's terms: whole batches to flat arrays, in bounded memory, and back to bytes.

Three things about gigatoken are met here. It takes a special token that is spelt out in a text for the token, so it is
given the tokenizer without its special tokens. It knows another version of Unicode than the reference, so documents
with characters on which they may differ are named, for the reference to encode. And it remembers every word it has
seen, without a bound, so it is made anew when that memory has grown.
"""

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

MEMORY_BYTES = 256_000_000
"""Growth of the process after which the tokenizer is made anew: prose stays at 30 MB; 25 MB of random letters are
enough for 200 MB. Making it takes 0.1 s."""
CHECK_BYTES = 16_000_000
"""Text between two looks at the memory."""
_BETWEEN = b"\xff"
"""Stands between documents in a joined text: no UTF-8 holds this byte."""


class Gigatoken:
    """One tokenizer; raises whatever gigatoken raises when it cannot read it.

    exceptions: characters on which it differs from the reference.
    """

    def __init__(self, tokenizer_json: str, exceptions: str = "") -> None:
        content = json.loads(tokenizer_json)
        added = content.get("added_tokens") or []
        self._special = _patterns([token["content"] for token in added if token["special"]])
        self._json = json.dumps(content | {"added_tokens": [token for token in added if not token["special"]]})
        self._doubtful = _unassigned().copy()
        self._doubtful[[ord(character) for character in exceptions]] = True
        self._make()

    def left_to_reference(self, documents: list[bytes]) -> list[int]:
        """Return which documents (UTF-8) spell out a special token, or hold a character that the two may differ on."""
        if not documents:
            return []
        joined = _BETWEEN.join(documents)
        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(document) + 1 for document in documents], out=starts[1:])
        found = np.zeros(len(documents), dtype=np.bool_)
        buffer = np.frombuffer(joined, dtype=np.uint8)
        words = buffer[: len(buffer) // 8 * 8].view(np.uint64)
        _mark_doubtful(buffer, words, starts, self._doubtful, found)
        places = [match.start() for pattern in self._special for match in pattern.finditer(joined)]
        found[np.searchsorted(starts, np.array(places, dtype=np.int64), side="right") - 1] = True
        rows: list[int] = np.flatnonzero(found).tolist()
        return rows

    def encode(self, documents: list[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all documents (UTF-8) one after the other, and where each starts: int64[documents + 1]."""
        layout: Any = self._tokenizer.encode_batch(documents, parallel=False).layout
        ids, starts = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        assert starts[0] == 0
        assert starts[-1] == len(ids)
        self._encoded_bytes += sum(map(len, documents))
        if self._encoded_bytes >= CHECK_BYTES:
            self._bound_memory()
        return ids, starts

    def decode(self, ids: NDArray[np.uint16 | np.uint32]) -> bytes:
        """Return the text of ids, without BOS and EOS; not UTF-8 when the ids are no text's."""
        return self._tokenizer.decode(ids.astype(np.uint32, copy=False))

    def _bound_memory(self) -> None:
        self._encoded_bytes = 0
        if _resident_bytes() - self._resident_bytes > MEMORY_BYTES:
            del self._tokenizer  # its memory is to be free before the new one is measured
            self._make()

    def _make(self) -> None:
        from gigatoken import Tokenizer

        self._tokenizer = Tokenizer.from_json(self._json)
        self._encoded_bytes = 0
        self._resident_bytes = _resident_bytes()


def _resident_bytes() -> int:
    from psutil import Process

    return int(Process().memory_info().rss)


def _patterns(texts: list[str]) -> list[re.Pattern[bytes]]:
    """Return one pattern for each first byte, since `re` is fast where every match begins alike."""
    by_first: dict[bytes, list[bytes]] = {}
    for text in filter(None, texts):
        by_first.setdefault(text.encode()[:1], []).append(re.escape(text.encode()))
    return [re.compile(b"|".join(group)) for group in by_first.values()]


@lru_cache(maxsize=1)
def _unassigned() -> NDArray[np.bool_]:
    """Return which code points are no character yet: libraries that know a newer Unicode may treat them in other ways.

    Private ones are known to all.
    """
    table = np.ones(0x110000, dtype=np.bool_)
    for first, last in ((0, 0x34000), (0xE0000, 0xE0200)):
        table[first:last] = [unicodedata.category(chr(code)) == "Cn" for code in range(first, last)]
    for first, last in ((0xF0000, 0xFFFFE), (0x100000, 0x10FFFE)):
        table[first:last] = False
    return table


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_doubtful(buffer, words, starts, doubtful, found) -> None:  # type: ignore[no-untyped-def]
    """Set `found` for every document with a doubtful character (none is ASCII).

    buffer: documents, a byte between every two. words: the same in words of eight bytes.
    """
    high_bits = np.uint64(0x8080808080808080)
    for document in range(len(found)):
        at, end = starts[document], starts[document + 1] - 1
        while at < end:
            if at % 8 == 0 and at + 8 <= end and words[at >> 3] & high_bits == 0:
                at += 8
                continue
            byte = buffer[at]
            if byte < 0xC0:
                at += 1
            elif byte < 0xE0:
                at += 2
                code = ((byte & 0x1F) << 6) | (buffer[at - 1] & 0x3F)
                if doubtful[code]:
                    found[document] = True
                    break
            elif byte < 0xF0:
                at += 3
                code = ((byte & 0x0F) << 12) | ((buffer[at - 2] & 0x3F) << 6) | (buffer[at - 1] & 0x3F)
                if doubtful[code]:
                    found[document] = True
                    break
            else:
                at += 4
                code = ((byte & 0x07) << 18) | ((buffer[at - 3] & 0x3F) << 12)
                code |= ((buffer[at - 2] & 0x3F) << 6) | (buffer[at - 1] & 0x3F)
                if doubtful[code]:
                    found[document] = True
                    break
