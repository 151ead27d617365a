"""Bits per byte of held-out text and of each of its sources, with intervals over documents."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from onward.errors import UserError
from onward.evaluation.partial import require_model
from onward.evaluation.scores import HeldOutScore, ItemRow, SourceScore
from onward.model.score import score_documents
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress
from onward.statistics import bootstrap_ratio

_CHUNK = 64
"""Documents read and scored at one time: enough to sort by length, few enough to keep in memory."""
_AT_ONCE = 4_000_000
"""Up to so many tokens (some 20 MB of text) the documents are chosen before they are scored, so the total is known."""
_MOST_SOURCES = 100
"""More sources (a folder of small files, say) are no sources to tell apart; the largest are."""


@dataclass(frozen=True)
class _Document:
    id: str
    source: str
    group: str
    text: str

    @property
    def key(self) -> tuple[str, str | None, int]:
        """What its row is found by; an id is unique within a source, in good data."""
        return self.id, self.source, len(self.text.encode("utf-8", errors="surrogatepass"))


@dataclass(frozen=True)
class Front:
    """What of a held-out text is scored. documents: group, source, id and bytes of each, in the order of the file."""

    tokens: int
    documents: tuple[tuple[str, str, str, int], ...]


def read_front(file: Path, tokenizer: LoadedTokenizer, tokens: int | None) -> Front:
    """Return what `score_held_out` scores of a text, without a model."""
    size, documents = 0, []
    for chosen, lengths in _chosen(file, tokenizer, tokens):
        size += sum(lengths)
        documents += [(each.group, each.source, each.id, each.key[-1]) for each in chosen]
    return Front(size, tuple(documents))


def score_held_out(
    model: Any,
    tokenizer: LoadedTokenizer,
    corpus: str,
    file: Path,
    *,
    tokens: int | None,
    batch_tokens: int | None,
    resamples: int,
    seed: int,
    progress: Progress,
    done: Sequence[ItemRow] = (),
    keep: Callable[[Sequence[ItemRow]], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[HeldOutScore | None, list[ItemRow]]:
    """Score held-out documents from the front of `file` until `tokens` are reached (None: all), at least one.

    file: held_out.parquet, in the order of the split's hash, so its front is a stable random sample. The estimate is
    total nats / (ln 2 * total bytes); whole groups are drawn for the interval. done: rows of a killed run, which are
    not scored again (with all of them there the model may be None). keep: is given the rows of each chunk at once.
    share: rank and world; only chunks i with i % world == rank are scored, and there is no score but for one process.
    Raises UserError when there is no text, a document's likelihood is not a number, or a row is missing and no model is
    there.
    """
    task = f"held_out:{corpus}"
    chosen: Iterable[tuple[list[_Document], list[int]]] = _chosen(file, tokenizer, tokens)
    total = None
    if tokens is not None:
        chosen = list(chosen) if tokens <= _AT_ONCE else chosen
        total = sum(sum(lengths) for _, lengths in chosen) if isinstance(chosen, list) else tokens
    progress.begin(f"scoring held-out {corpus} text", total, "tokens")
    known: dict[tuple[str, str | None, int], list[ItemRow]] = {}
    for row in done:
        known.setdefault((row.item, row.source, row.bytes or 0), []).append(row)
    rank, world = share
    rows: list[ItemRow] = []
    passed = 0
    for number, (documents, lengths) in enumerate(chosen):
        there = [known[document.key].pop(0) if known.get(document.key) else None for document in documents]
        missing = [document for document, row in zip(documents, there, strict=True) if row is None]
        new = []
        if missing and number % world == rank:
            require_model(model, f"held-out {corpus} text", len(missing))
            new = _scored(model, tokenizer, task, missing, batch_tokens)
            if keep is not None:
                keep(new)
        fresh = iter(new)
        rows += [row or next(fresh) for row in there if row is not None or new]
        passed += sum(lengths)
        progress.advance(passed)
    if world > 1:
        return None, rows
    return _summary(corpus, file, rows, resamples, seed), rows


def _scored(
    model: Any, tokenizer: LoadedTokenizer, task: str, documents: Sequence[_Document], batch_tokens: int | None
) -> list[ItemRow]:
    rows = []
    results = score_documents(model, tokenizer, [document.text for document in documents], batch_tokens)
    for document, result in zip(documents, results, strict=True):
        if not math.isfinite(result.nats):
            todo = "the model's weights are damaged or overflow; score an earlier checkpoint"
            where = f"{task.replace('held_out:', 'held-out ')} text, document {document.id}"
            raise UserError("the model's likelihoods are not numbers", where, str(result.nats), todo=todo)
        row = ItemRow(task, None, document.id, document.group, document.source)
        rows.append(replace(row, nats=result.nats, bytes=result.bytes, tokens=result.tokens))
    return rows


def _summary(corpus: str, file: Path, rows: Sequence[ItemRow], resamples: int, seed: int) -> HeldOutScore:
    size = sum(row.bytes or 0 for row in rows)
    if not size:
        section = "corpus" if corpus == "domain" else corpus
        todo = f"raise {section}.held_out.share, or give {section}.held_out.sources"
        raise UserError(f"there is no held-out {corpus} text to score", str(file), f"{len(rows)} documents", todo=todo)
    sources: dict[str, list[ItemRow]] = {}
    for row in rows:
        sources.setdefault(row.source or "", []).append(row)
    sized = [(source, rows_of) for source, rows_of in sources.items() if any(row.bytes for row in rows_of)]
    several = sized if 1 < len(sized) <= _MOST_SOURCES else []
    return HeldOutScore(
        corpus,
        len(rows),
        sum(row.tokens or 0 for row in rows),
        size,
        math.fsum(row.nats or 0.0 for row in rows),
        *_bits_per_byte(rows, resamples, seed),
        sources=tuple(
            SourceScore(
                source,
                len(own),
                sum(row.tokens or 0 for row in own),
                sum(row.bytes or 0 for row in own),
                *_bits_per_byte(own, resamples, seed),
            )
            for source, own in sorted(several)
        ),
    )


def _bits_per_byte(rows: Sequence[ItemRow], resamples: int, seed: int) -> tuple[float, float, float]:
    """Return bits per byte over all documents and its interval, in which whole groups are drawn."""
    nats = np.array([row.nats for row in rows], dtype=np.float64)
    sizes = np.array([row.bytes for row in rows], dtype=np.int64)
    interval = bootstrap_ratio(nats, math.log(2) * sizes, np.array([row.group for row in rows]), resamples, seed)
    return interval.estimate, interval.low, interval.high


def _chosen(file: Path, tokenizer: LoadedTokenizer, tokens: int | None) -> Iterator[tuple[list[_Document], list[int]]]:
    """Yield documents and their tokens in chunks until `tokens` are reached; the one that reaches them is the last."""
    left = math.inf if tokens is None else tokens
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=_CHUNK, columns=["id", "source", "group", "text"]):
            rows = batch.to_pylist()
            taken: list[_Document] = []
            lengths: list[int] = []
            for row, ids in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
                if left <= 0:
                    break
                left -= len(ids)
                group = row["group"] or f"{row['source']} {row['id']}"
                taken.append(_Document(row["id"], row["source"], group, row["text"]))
                lengths.append(len(ids))
            if taken:
                yield taken, lengths
            if left <= 0:
                return
