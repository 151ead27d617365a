"""Bits per byte of held-out text, with an interval over documents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from onward.errors import UserError
from onward.evaluation.scores import HeldOutScore, ItemRow
from onward.model.score import score_documents
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress
from onward.statistics import bootstrap_ratio

_CHUNK = 64
"""Documents read and scored at one time: enough to sort by length, few enough to keep in memory."""


@dataclass(frozen=True)
class _Document:
    id: str
    group: str
    text: str


def score_held_out(
    model: Any,
    tokenizer: LoadedTokenizer,
    corpus: str,
    file: Path,
    *,
    tokens: int | None,
    batch_tokens: int,
    resamples: int,
    seed: int,
    progress: Progress,
) -> tuple[HeldOutScore, list[ItemRow]]:
    """Score held-out documents from the front of `file` until `tokens` are reached (None: all), at least one.

    file: held_out.parquet, in the order of the split's hash, so its front is a stable random sample. The estimate is
    total nats / (ln 2 * total bytes); whole groups are drawn for the interval. Raises UserError when there is no
    text, or a document's likelihood is not a number.
    """
    task = f"held_out:{corpus}"
    progress.begin(f"scoring held-out {corpus} text", tokens, "tokens")
    rows: list[ItemRow] = []
    done = 0
    for documents in _chosen(file, tokenizer, tokens):
        results = score_documents(model, tokenizer, [document.text for document in documents], batch_tokens)
        for document, result in zip(documents, results, strict=True):
            if not math.isfinite(result.nats):
                todo = "the model's weights are damaged or overflow; score an earlier checkpoint"
                where = f"held-out {corpus} text, document {document.id}"
                raise UserError("the model's likelihoods are not numbers", where, str(result.nats), todo=todo)
            name, group = document.id, document.group
            rows.append(ItemRow(task, None, name, group, nats=result.nats, bytes=result.bytes, tokens=result.tokens))
        done += sum(result.tokens for result in results)
        progress.advance(done)
    nats = np.array([row.nats for row in rows], dtype=np.float64)
    sizes = np.array([row.bytes for row in rows], dtype=np.int64)
    if not sizes.sum():
        section = "corpus" if corpus == "domain" else corpus
        todo = f"raise {section}.held_out.share, or give {section}.held_out.sources"
        raise UserError(f"there is no held-out {corpus} text to score", str(file), f"{len(rows)} documents", todo=todo)
    groups = np.array([row.group for row in rows])
    interval = bootstrap_ratio(nats, math.log(2) * sizes, groups, resamples, seed)
    total = float(math.fsum(nats))
    ends = (interval.estimate, interval.low, interval.high)
    return HeldOutScore(corpus, len(rows), done, int(sizes.sum()), total, *ends), rows


def _chosen(file: Path, tokenizer: LoadedTokenizer, tokens: int | None) -> Iterator[list[_Document]]:
    """Yield documents in chunks until `tokens` are reached; the one that reaches them is the last."""
    left = math.inf if tokens is None else tokens
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=_CHUNK, columns=["id", "source", "group", "text"]):
            rows = batch.to_pylist()
            taken = []
            for row, ids in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
                if left <= 0:
                    break
                left -= len(ids)
                taken.append(_Document(row["id"], row["group"] or f"{row['source']} {row['id']}", row["text"]))
            if taken:
                yield taken
            if left <= 0:
                return
