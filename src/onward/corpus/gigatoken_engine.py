"""gigatoken behind this project's terms: whole batches to flat arrays, in bounded memory, and back to bytes.

Some things about gigatoken are met here. It takes a special token that is spelt out in a text for the token, so it is
given the tokenizer without its special tokens. It knows another version of Unicode than the reference, so documents
with characters on which they may differ are named, for the reference to encode. It wants a token for every byte, which
tokenizers trained at home often lack, so it gets them, and documents that use them are named, too. It does not know
the rule of SmolLM's family that takes every digit by itself, so texts are cut before every digit. And it remembers
every word it has seen, without a bound, so it is made anew when that memory has grown.
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
        plain = [token for token in added if not token["special"]]
        self._special = _patterns([token["content"] for token in added if token["special"]])
        self._size = max([*content["model"]["vocab"].values(), *(token["id"] for token in added)]) + 1
        content["added_tokens"] = plain
        _give_every_byte(content, self._size)
        self._cuts_at_digits = not plain and _without_digits(content)
        self._json = json.dumps(content)
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
        ids, starts = self._cut_and_encode(documents) if self._cuts_at_digits else self._encode(documents)
        self._encoded_bytes += sum(map(len, documents))
        if self._encoded_bytes >= CHECK_BYTES:
            self._bound_memory()
        return ids, starts

    def with_foreign(self, ids: NDArray[np.uint32], starts: NDArray[np.int64]) -> list[int]:
        """Return which documents hold a token that the tokenizer itself does not have."""
        if len(ids) == 0 or ids.max() < self._size:
            return []
        rows: list[int] = np.unique(
            np.searchsorted(starts, np.flatnonzero(ids >= self._size), side="right") - 1
        ).tolist()
        return rows

    def _encode(self, documents: Any) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        layout: Any = self._tokenizer.encode_batch(documents, parallel=False).layout
        ids, starts = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        assert starts[0] == 0
        assert starts[-1] == len(ids)
        return ids, starts

    def _cut_and_encode(self, documents: list[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Encode the pieces that begin at numbers: what follows a number is never one word with it."""
        import awkward

        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(document) for document in documents], out=starts[1:])
        buffer = np.frombuffer(b"".join(documents), dtype=np.uint8)
        cuts = np.empty(len(buffer) + 1, dtype=np.int64)
        count = _cut_at_numbers(buffer, starts, _numbers(), cuts)
        cuts[count] = len(buffer)
        bytes_ = awkward.contents.NumpyArray(buffer, parameters={"__array__": "byte"})
        offsets = awkward.index.Index64(cuts[: count + 1])
        pieces = awkward.contents.ListOffsetArray(offsets, bytes_, parameters={"__array__": "bytestring"})
        ids, piece_starts = self._encode(awkward.Array(pieces))
        return ids, piece_starts[np.searchsorted(cuts[: count + 1], starts)]

    def decode(self, ids: NDArray[np.uint16 | np.uint32]) -> bytes:
        """Return the text of ids, without BOS and EOS; not UTF-8 when the ids are no text's."""
        text: bytes = self._tokenizer.decode(ids.astype(np.uint32, copy=False))
        return text

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


def _give_every_byte(content: dict[str, Any], size: int) -> None:
    """Add tokens, from id `size` on, for bytes that a byte-level vocabulary lacks; the reference drops those bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict) and not content["model"].get("byte_fallback"):
        missing = sorted(set(ByteLevel.alphabet()) - vocabulary.keys())
        content["model"]["vocab"] = vocabulary | {character: size + n for n, character in enumerate(missing)}


def _without_digits(content: dict[str, Any]) -> bool:
    """Take the rule that cuts before and after every digit out of a byte-level tokenizer; return whether it was there.

    With a normalizer the text that is cut would be another one than is given here.
    """
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"] or content.get("normalizer"):
        return False
    if not steps[0]["individual_digits"] or steps[1]["add_prefix_space"]:
        return False
    content["pre_tokenizer"] = steps[1]
    return True


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


@lru_cache(maxsize=1)
def _numbers() -> NDArray[np.bool_]:
    """Return which code points are numbers: of the categories Nd, Nl and No, as Rust's `is_numeric` has it."""
    table = np.zeros(0x110000, dtype=np.bool_)
    table[:0x20000] = [unicodedata.category(chr(code))[0] == "N" for code in range(0x20000)]
    return table


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _cut_at_numbers(buffer, starts, numbers, cuts) -> int:  # type: ignore[no-untyped-def]
    """Write to `cuts` where pieces begin: at every number character, and at every document; return their count."""
    count = 0
    for document in range(len(starts) - 1):
        at = starts[document]
        while at < starts[document + 1]:
            code, size = _character(buffer, at)
            if numbers[code] or at == starts[document]:
                cuts[count] = at
                count += 1
            at += size
    return count


@njit(cache=True, nogil=True)
def _character(buffer, at):  # type: ignore[no-untyped-def]
    """Return code point and bytes of the character that begins at `at` in valid UTF-8."""
    byte = np.int64(buffer[at])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return ((byte & 0x1F) << 6) | (buffer[at + 1] & 0x3F), 2
    if byte < 0xF0:
        return ((byte & 0x0F) << 12) | ((buffer[at + 1] & 0x3F) << 6) | (buffer[at + 2] & 0x3F), 3
    code = ((byte & 0x07) << 18) | ((buffer[at + 1] & 0x3F) << 12)
    return code | ((buffer[at + 2] & 0x3F) << 6) | (buffer[at + 3] & 0x3F), 4


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
            code, size = _character(buffer, at)
            if doubtful[code]:
                found[document] = True
                break
            at += size
