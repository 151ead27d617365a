"""Texts to token ids, a chunk at a time, by the fastest engine that is equal to the reference.

The reference is Hugging Face's tokenizers, the engine gigatoken (some 50 times faster); the ids are the reference's in
every document, whichever engine makes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onward.corpus.gigatoken_engine import Gigatoken
from onward.corpus.tokens import TokenIds as TokenIds
from onward.corpus.tokens import token_dtype
from onward.errors import UserError
from onward.model.difficult_texts import difficult_texts, texts_by_character
from onward.model.tokenizer import LoadedTokenizer

ENCODE_CHARACTERS = 500_000
"""Characters given to the reference at once; it holds some hundred bytes for each token."""
SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 200, 3_000
"""How much of the corpus is compared before an engine is chosen: so many documents, so much of each."""
SPOT_CHARACTERS = 500
"""Length of the passage that is compared in every chunk: a thousandth of the text, a twentieth of the time."""
TOKEN_REASONS = ("tokens: none", "tokens: too many unknown", "tokens: too few bytes per token")
_MOST_EXCEPTIONS = 1_000


@dataclass(frozen=True)
class Encoded:
    """Token ids of documents one after the other, BOS (where the tokenizer has one) and EOS included.

    ids: uint16 or uint32. starts: int64[documents + 1].
    """

    ids: TokenIds
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of every document."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Engine:
    """What makes the ids. reason: why this one. exceptions: characters whose documents the reference encodes."""

    name: Literal["gigatoken", "tokenizers"]
    reason: str
    exceptions: str = ""


def choose_engine(tokenizer: LoadedTokenizer, sample: Sequence[str]) -> Engine:
    """Return gigatoken when its ids are the reference's on difficult texts and on a sample of the corpus.

    The choice is a function of tokenizer, sample and installed versions.
    """
    engine = _checked(tokenizer)
    if engine.name == "gigatoken":
        step = -(-len(sample) // SAMPLE_DOCUMENTS) or 1
        texts = [text[:SAMPLE_CHARACTERS] for text in sample[::step]]
        if (difference := _difference(texts, tokenizer, engine)) is not None:
            return Engine("tokenizers", f"gigatoken {difference}")
    return engine


@lru_cache(maxsize=4)
def _checked(tokenizer: LoadedTokenizer) -> Engine:
    """Choose the engine without knowing the corpus."""
    if (reason := _can_open(tokenizer)) is not None:
        return Engine("tokenizers", reason)
    engine = _with_exceptions(tokenizer)
    if len(engine.exceptions) > _MOST_EXCEPTIONS:
        return Engine("tokenizers", f"gigatoken differs on {len(engine.exceptions):,} characters")
    if (difference := _difference(difficult_texts(), tokenizer, engine)) is not None:
        return Engine("tokenizers", f"gigatoken {difference}")
    return engine


def _with_exceptions(tokenizer: LoadedTokenizer) -> Engine:
    texts = texts_by_character()
    ids, starts = _by_gigatoken(list(texts.values()), tokenizer, Engine("gigatoken", "to be compared"))
    expected, expected_starts = _by_reference(list(texts.values()), tokenizer)
    differing = [
        character
        for character, (a, b), (c, d) in zip(texts, _spans(starts), _spans(expected_starts), strict=True)
        if not np.array_equal(ids[a:b], expected[c:d])
    ]
    reason = "equal to the reference on all texts compared"
    if differing:
        reason += f"; documents with one of {len(differing):,} rare characters are left to the reference"
    return Engine("gigatoken", reason, "".join(differing))


def _spans(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def _difference(texts: Sequence[str], tokenizer: LoadedTokenizer, engine: Engine) -> str | None:
    """Return in words where the engine's ids are not the reference's, None when they are equal."""
    ids, starts = _by_gigatoken(texts, tokenizer, engine)
    expected, expected_starts = _by_reference(texts, tokenizer)
    for text, (a, b), (c, d) in zip(texts, _spans(starts), _spans(expected_starts), strict=True):
        found, wanted = ids[a:b], expected[c:d]
        if not np.array_equal(found, wanted):
            shared = min(len(found), len(wanted))
            at = int(np.argmax(np.append(found[:shared] != wanted[:shared], True)))
            got = f"{found[at : at + 4].tolist()}, the reference {wanted[at : at + 4].tolist()}"
            return f"gives {got}, at token {at} of {text[:80]!r}"
    return None


def encode(texts: Sequence[str], tokenizer: LoadedTokenizer, engine: Engine) -> Encoded:
    """Encode documents, a special token spelt out in one being ordinary text, and put BOS and EOS around each.

    A passage of every batch is compared with the reference; raises UserError when it differs.
    """
    if engine.name == "tokenizers":
        return _with_ends(*_by_reference(texts, tokenizer), tokenizer)
    ids, starts = _by_gigatoken(texts, tokenizer, engine)
    if texts:
        _compare_passage(texts[len(texts) // 2], tokenizer, engine)
    return _with_ends(ids, starts, tokenizer)


def _compare_passage(text: str, tokenizer: LoadedTokenizer, engine: Engine) -> None:
    middle = max(0, (len(text) - SPOT_CHARACTERS) // 2)
    passage = text[middle : middle + SPOT_CHARACTERS]
    if (difference := _difference([passage], tokenizer, engine)) is not None:
        todo = "uninstall gigatoken, so that the slower tokenizers is used, and report the text to its makers"
        raise UserError("gigatoken differs from the reference tokenizer", got=f"it {difference}", todo=todo)


@lru_cache(maxsize=4)
def open_gigatoken(tokenizer_json: str, exceptions: str) -> Gigatoken:
    """Return the live engine of a tokenizer, made once per process."""
    return Gigatoken(tokenizer_json, exceptions)


def open_decoder(tokenizer: LoadedTokenizer) -> Callable[[TokenIds], bytes] | None:
    """Return what turns ids, without BOS and EOS, into the bytes of a text at gigatoken's speed, None without it.

    Whoever calls it compares the bytes with what is known of the text.
    """
    return open_gigatoken(tokenizer.json, "").decode if _can_open(tokenizer) is None else None


def _can_open(tokenizer: LoadedTokenizer) -> str | None:
    """Return why gigatoken cannot be used for this tokenizer, None when it can."""
    try:
        open_gigatoken(tokenizer.json, "")
    except ImportError:
        return "gigatoken is not installed"
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return f"gigatoken cannot read this tokenizer: {str(error).strip().splitlines()[0]}"
    return None


def _by_gigatoken(
    texts: Sequence[str], tokenizer: LoadedTokenizer, engine: Engine
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Encode by gigatoken, and by the reference the documents that gigatoken may see otherwise."""
    live = open_gigatoken(tokenizer.json, engine.exceptions)
    documents = [text.encode() for text in texts]
    rows = live.left_to_reference(documents)
    for row in rows:
        documents[row] = b""
    ids, starts = live.encode(documents)
    rows = sorted({*rows, *live.with_foreign(ids, starts)})
    if not rows:
        return ids, starts
    others, other_starts = _by_reference([texts[row] for row in rows], tokenizer)
    parts, done = [], 0
    for row, (begin, end) in zip(rows, _spans(other_starts), strict=True):
        parts += [ids[done : starts[row]], others[begin:end]]
        done = int(starts[row + 1])
    lengths = np.diff(starts)
    lengths[rows] = np.diff(other_starts)
    return np.concatenate([*parts, ids[done:]]), _starts(lengths)


def _by_reference(texts: Sequence[str], tokenizer: LoadedTokenizer) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Encode by the reference, a bounded number of characters at a time."""
    parts: list[NDArray[np.uint32]] = []
    lengths: list[int] = []
    for batch in _batches(texts):
        lists = tokenizer.encode_batch(batch)
        lengths += map(len, lists)
        parts += [np.array(ids, dtype=np.uint32) for ids in lists]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *parts]), _starts(np.array(lengths, dtype=np.int64))


def _batches(texts: Sequence[str]) -> list[list[str]]:
    batches: list[list[str]] = []
    characters = 0
    for text in texts:
        if not batches or characters + len(text) > ENCODE_CHARACTERS:
            batches.append([])
            characters = 0
        batches[-1].append(text)
        characters += len(text)
    return batches


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _with_ends(ids: NDArray[np.uint32], starts: NDArray[np.int64], tokenizer: LoadedTokenizer) -> Encoded:
    """Put BOS (where the tokenizer has one) and EOS around every document."""
    added = 1 if tokenizer.bos_id is None else 2
    wide = starts + added * np.arange(len(starts))
    flat = np.empty(int(wide[-1]), dtype=token_dtype(tokenizer.vocabulary_size))
    is_text = np.ones(len(flat), dtype=np.bool_)
    is_text[wide[1:] - 1] = False
    flat[wide[1:] - 1] = tokenizer.eos_id
    if tokenizer.bos_id is not None:
        is_text[wide[:-1]] = False
        flat[wide[:-1]] = tokenizer.bos_id
    flat[is_text] = ids
    return Encoded(flat, wide)


def token_reasons(
    encoded: Encoded,
    sizes: NDArray[np.int64],
    tokenizer: LoadedTokenizer,
    maximum_unknown: Fraction,
    minimum_bytes: float | None,
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return what the tokens of each document speak against it: int8, index into the reasons, -1 for nothing.

    sizes: UTF-8 bytes of the documents. maximum_unknown: share of unknown tokens. minimum_bytes: of text per token
    (None: off). BOS and EOS are not counted.
    """
    found = np.full(len(encoded), -1, dtype=np.int8)
    tokens = encoded.lengths() - (1 if tokenizer.bos_id is None else 2)
    if minimum_bytes is not None:
        found[sizes < minimum_bytes * tokens] = 2
    if tokenizer.unknown_id is not None:
        places = np.flatnonzero(encoded.ids == tokenizer.unknown_id)
        unknown = np.diff(np.searchsorted(places, encoded.starts)) - (tokenizer.unknown_id == tokenizer.bos_id)
        found[unknown * maximum_unknown.denominator > tokens * maximum_unknown.numerator] = 1
    found[tokens == 0] = 0
    return found, TOKEN_REASONS
