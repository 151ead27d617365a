"""Accuracy on benchmark tasks: lm-eval's items through our scoring engine."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.errors import UserError
from onward.evaluation.scores import ItemRow, TaskScore, WithoutTouched
from onward.model.score import Scored, context_length, encode_requests, score_continuations
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress
from onward.tasks import Item, TaskItems

NOT_TOUCHED: Mapping[str, str] = {}
_CHUNK = 1024
"""Items encoded at one time: MMLU's 56,168 requests at once would hold 400 MB of token ids."""


def score_task(
    model: Any,
    tokenizer: LoadedTokenizer,
    items: TaskItems,
    *,
    batch_tokens: int,
    progress: Progress,
    touched: Mapping[str, str] = NOT_TOUCHED,
) -> tuple[TaskScore, list[ItemRow]]:
    """Score the items of one task; the choice with the highest log-likelihood is the answer.

    acc and acc_norm, their ties and standard errors follow lm-eval (`ConfigurableTask.process_results`). touched:
    what was done with the items that stand in a corpus, by id; the score is given once more without them. Raises
    UserError when a likelihood is not a number, or a choice has no tokens or does not fit the model.
    """
    progress.begin(f"scoring {items.task}", len(items.items), "items")
    normalised = "acc_norm" in items.metrics
    rows: list[ItemRow] = []
    truncated = 0
    for start in range(0, len(items.items), _CHUNK):
        chunk = items.items[start : start + _CHUNK]
        for item, results in zip(chunk, _score(model, tokenizer, chunk, batch_tokens), strict=True):
            rows.append(_row(item, results, normalised, touched.get(item.id)))
            truncated += any(result.truncated for result in results)
        progress.advance(start + len(chunk))
    acc, acc_stderr, acc_norm, acc_norm_stderr = _accuracy(rows)
    score = TaskScore(
        task=items.task,
        items=len(rows),
        items_total=items.items_total,
        items_hash=items.items_hash,
        num_fewshot=items.num_fewshot,
        chance=items.chance,
        acc=acc,
        acc_stderr=acc_stderr,
        acc_norm=acc_norm,
        acc_norm_stderr=acc_norm_stderr,
        truncated=truncated,
        without_touched=without_touched(rows),
    )
    return score, rows


def without_touched(rows: Sequence[ItemRow]) -> WithoutTouched | None:
    """Score a task without the items that stand in a corpus; None when none does."""
    clean = [row for row in rows if row.touched is None]
    if len(clean) == len(rows):
        return None
    seen = sum(row.touched == "report" for row in rows)
    scores = _accuracy(clean) if clean else (None, None, None, None)
    return WithoutTouched(len(rows) - len(clean), seen, len(clean), *scores)


def _accuracy(rows: Sequence[ItemRow]) -> tuple[float, float, float | None, float | None]:
    """Return acc and acc_norm (None where the task has none), each with its standard error."""
    subjects = [row.subject for row in rows]
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    acc, acc_stderr = float(correct.mean()), standard_error(correct, subjects)
    if any(row.correct_norm is None for row in rows):
        return acc, acc_stderr, None, None
    normalised = np.array([row.correct_norm for row in rows], dtype=np.float64)
    return acc, acc_stderr, float(normalised.mean()), standard_error(normalised, subjects)


def standard_error(correct: NDArray[np.float64], subjects: Sequence[str | None]) -> float:
    """Return the standard error of the mean of `correct` [items], within subjects where a task has them.

    One group: sample standard deviation / sqrt(n), lm-eval's `mean_stderr`. Several (MMLU): the pooled variance,
    sum of squared deviations from the subjects' means / (n - subjects), lm-eval's `pooled_sample_stderr`. nan where
    no group has two items.
    """
    labels = np.array([subject or "" for subject in subjects])
    names = sorted(set(labels.tolist()))
    size = len(correct)
    if size <= len(names):
        return math.nan
    squares = sum(float(((correct[labels == name] - correct[labels == name].mean()) ** 2).sum()) for name in names)
    return math.sqrt(squares / (size - len(names)) / size)


def _score(
    model: Any, tokenizer: LoadedTokenizer, items: Sequence[Item], batch_tokens: int
) -> Iterator[tuple[Scored, ...]]:
    """Yield the scored choices of each item."""
    requests = encode_requests(tokenizer, [pair for item in items for pair in item.requests])
    owners = [item for item in items for _ in item.requests]
    limit = context_length(model)
    for item, request in zip(owners, requests, strict=True):
        if not 0 < len(request.continuation) <= limit:
            where, got = f"{item.task}, item {item.id}", f"{len(request.continuation)} tokens"
            raise UserError("a choice cannot be scored", where, got, f"1 to {limit} tokens, the model's context")
    scored = iter(score_continuations(model, requests, batch_tokens))
    for item in items:
        results = tuple(next(scored) for _ in item.requests)
        if not all(math.isfinite(result.logprob) for result in results):
            todo = "the model's weights are damaged or overflow; score an earlier checkpoint"
            got = ", ".join(str(result.logprob) for result in results)
            raise UserError("the model's likelihoods are not numbers", f"{item.task}, item {item.id}", got, todo=todo)
        yield results


def _row(item: Item, results: Sequence[Scored], normalised: bool, touched: str | None) -> ItemRow:
    logprobs = tuple(result.logprob for result in results)
    # argmax takes the first of equals, as lm-eval does; acc_norm divides by characters, not bytes or tokens.
    predicted = int(np.argmax(logprobs))
    lengths = np.array([float(len(choice)) for choice in item.choices])
    predicted_norm = int(np.argmax(np.array(logprobs) / lengths)) if normalised else None
    return ItemRow(
        task=item.task,
        subject=item.subject,
        item=item.id,
        group=item.group,
        gold=item.gold,
        predicted=predicted,
        predicted_norm=predicted_norm,
        correct=predicted == item.gold,
        correct_norm=None if predicted_norm is None else predicted_norm == item.gold,
        logprobs=logprobs,
        touched=touched,
    )
