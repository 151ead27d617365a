"""What is found out about each document of a chunk: a pure function, so any process on any machine may run it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import numpy as np

from onward.corpus.documents import Document, Item
from onward.corpus.duplicates.exact import digest, is_held_out, normalise, split_hash
from onward.corpus.quality.paper import quality_reason
from onward.corpus.tokens import TokenIds, token_dtype, token_reason
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Quality

CHUNK_CHARACTERS = 2_000_000
"""Half a second of tokenizing: long against the millisecond that a chunk costs, short against the memory of many."""
CHUNK_ITEMS = 4096
ENCODE_CHARACTERS = 500_000
"""Characters given to the tokenizer at once; it holds some hundred bytes for each token."""

Chunk = tuple[Item, ...]


@dataclass(frozen=True)
class Rules:
    """What a document is examined by. held_out_share: 1 holds everything out, 0 nothing."""

    quality: Quality | None
    held_out_share: Fraction
    tokenizer: LoadedTokenizer
    maximum_unknown: Fraction
    minimum_bytes_per_token: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one document without knowing the others.

    digest: xxh3-128 of the normalised text, split_hash: of the group or the normalised text; both 0 when a quality
    rule speaks against it. num_tokens: with BOS and EOS, 0 unless it may be kept.
    """

    size_bytes: int
    quality_reason: str | None = None
    digest: int = 0
    split_hash: int = 0
    is_held_out: bool = False
    token_reason: str | None = None
    num_tokens: int = 0


@dataclass(frozen=True)
class Examined:
    """Findings in the order of the chunk's items (None for an unreadable one), and the tokens of all one by one."""

    findings: tuple[Finding | None, ...]
    tokens: TokenIds


def chunked(items: Iterable[Item]) -> Iterator[Chunk]:
    """Group items into chunks of about CHUNK_CHARACTERS."""
    chunk: list[Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_ITEMS:
            yield tuple(chunk)
            chunk, characters = [], 0
    if chunk:
        yield tuple(chunk)


def examine(chunk: Chunk, rules: Rules) -> Examined:
    """Apply every rule that needs only the document itself, and tokenize what is left."""
    findings = [_before_tokens(item, rules) if isinstance(item, Document) else None for item in chunk]
    waiting = [n for n, found in enumerate(findings) if found and not found.quality_reason and not found.is_held_out]
    texts = [item.text for n in waiting if isinstance(item := chunk[n], Document)]
    arrays: list[TokenIds] = []
    for n, ids in zip(waiting, _encode(texts, rules.tokenizer), strict=True):
        found = findings[n]
        assert found is not None
        findings[n], array = _with_tokens(found, ids, rules)
        if array is not None:
            arrays.append(array)
    empty = np.empty(0, dtype=token_dtype(rules.tokenizer.vocabulary_size))
    return Examined(tuple(findings), np.concatenate([empty, *arrays]))


def _before_tokens(document: Document, rules: Rules) -> Finding:
    size_bytes = len(document.text) if document.text.isascii() else len(document.text.encode())
    if reason := quality_reason(document.text, rules.quality):
        return Finding(size_bytes, reason)
    normalised = normalise(document.text)
    key = normalised if document.group is None else document.group
    held_out = is_held_out(key, rules.held_out_share)
    return Finding(size_bytes, None, digest(normalised), split_hash(key), held_out)


def _with_tokens(found: Finding, ids: Sequence[int], rules: Rules) -> tuple[Finding, TokenIds | None]:
    tokenizer = rules.tokenizer
    reason = token_reason(
        ids, found.size_bytes, tokenizer.unknown_id, rules.maximum_unknown, rules.minimum_bytes_per_token
    )
    if reason:
        return Finding(found.size_bytes, None, found.digest, found.split_hash, False, reason), None
    first = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    dtype = token_dtype(tokenizer.vocabulary_size)
    array: TokenIds = np.array([*first, *ids, tokenizer.eos_id], dtype=dtype)
    return Finding(found.size_bytes, None, found.digest, found.split_hash, False, None, len(array)), array


def _encode(texts: list[str], tokenizer: LoadedTokenizer) -> Iterator[list[int]]:
    """Encode in the order of the texts, a bounded number of characters at a time."""
    batches: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        if characters + len(text) > ENCODE_CHARACTERS and batches[-1]:
            batches.append([])
            characters = 0
        batches[-1].append(text)
        characters += len(text)
    return chain.from_iterable(tokenizer.encode_batch(batch) for batch in batches)
