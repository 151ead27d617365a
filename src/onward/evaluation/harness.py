"""Scores on benchmark tasks: lm-eval's items through our scoring engine."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onward.errors import UserError
from onward.evaluation.measures import measures_of, right_answers
from onward.evaluation.partial import require_model
from onward.evaluation.scores import ItemRow, TaskScore, WithoutTouched
from onward.model.score import Request, Scored, context_length, encode_requests, score_continuations
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress
from onward.tasks import Item, TaskItems

NOT_TOUCHED: Mapping[str, str] = {}
_CHUNK = 1024
"""Items encoded at one time: neighbours share prefixes, and MMLU's 56,168 requests at once would hold 400 MB of ids."""
_TEXTS = 16
"""Whole texts in a chunk: one of WikiText's has 4,000 words."""


def score_task(
    model: Any,
    tokenizer: LoadedTokenizer,
    items: TaskItems,
    *,
    batch_tokens: int | None,
    progress: Progress,
    touched: Mapping[str, str] = NOT_TOUCHED,
    done: Sequence[ItemRow] = (),
    keep: Callable[[Sequence[ItemRow]], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[TaskScore | None, list[ItemRow]]:
    """Score the items of one task, chunk by chunk.

    touched: what was done with the items that stand in a corpus, by id; the score is given once more without them.
    done: rows of items that need not be scored again. keep: gets the rows of each new chunk at once. share: (rank,
    ranks): only every so-manyth chunk is scored, and there is no score, only the rows; `summarise` joins them. model:
    None where every row is in `done`. Raises UserError when a likelihood is not a number, a choice has no tokens or
    does not fit the model, or a row is missing without a model.
    """
    if items.left_out:
        progress.note(f"{items.task}: lm-eval's {', '.join(items.left_out)} of this task is not computed here")
    if items.split is not None:
        progress.note(
            f"{items.task}: the {items.split} split is scored, for lack of the test file; published numbers are of the "
            "test split"
        )
    progress.begin(f"scoring {items.task}", len(items.items), "items")
    rank, ranks = share
    size = _TEXTS if items.kind == "rolling" else _CHUNK
    known = {row.item: row for row in done}
    rows: list[ItemRow] = []
    for number, start in enumerate(range(0, len(items.items), size)):
        chunk = items.items[start : start + size]
        if number % ranks == rank:
            missing = [item for item in chunk if item.id not in known]
            if missing:
                require_model(model, items.task, len(missing))
            new = _rows(model, tokenizer, items, missing, batch_tokens, touched) if missing else []
            if new and keep is not None:
                keep(new)
            known |= {row.item: row for row in new}
            rows += [known[item.id] for item in chunk]
        progress.advance(start + len(chunk))
    return (summarise(items, rows, touched) if ranks == 1 else None), rows


def summarise(items: TaskItems, rows: Sequence[ItemRow], touched: Mapping[str, str] = NOT_TOUCHED) -> TaskScore:
    """Return what all rows of a task say; they may come in any order."""
    by_id = {row.item: row for row in rows}
    assert len(by_id) == len(rows) == len(items.items), "a row for each item"
    ordered = [by_id[item.id] for item in items.items]
    ordered = [row if row.touched else replace(row, touched=touched.get(row.item)) for row in ordered]
    return TaskScore(
        task=items.task,
        items=len(ordered),
        items_total=items.items_total,
        items_hash=items.items_hash,
        num_fewshot=items.num_fewshot,
        chance=items.chance,
        measures=measures_of(items, ordered),
        truncated=sum(row.truncated for row in ordered),
        without_touched=without_touched(items, ordered),
    )


def without_touched(items: TaskItems, rows: Sequence[ItemRow]) -> WithoutTouched | None:
    """Score a task without the items that stand in a corpus; None when none does."""
    clean = [row for row in rows if row.touched is None]
    if len(clean) == len(rows):
        return None
    seen = sum(row.touched == "report" for row in rows)
    return WithoutTouched(len(rows) - len(clean), seen, len(clean), measures_of(items, clean) if clean else ())


def _rows(
    model: Any,
    tokenizer: LoadedTokenizer,
    items: TaskItems,
    chunk: Sequence[Item],
    batch_tokens: int | None,
    touched: Mapping[str, str],
) -> list[ItemRow]:
    if items.kind == "rolling":
        rows = _text_rows(model, tokenizer, chunk, batch_tokens)
    else:
        rows = _question_rows(model, tokenizer, items, chunk, batch_tokens)
    return [replace(row, touched=touched.get(row.item)) for row in rows]


def _question_rows(
    model: Any, tokenizer: LoadedTokenizer, items: TaskItems, chunk: Sequence[Item], batch_tokens: int | None
) -> Iterator[ItemRow]:
    """Yield the row of each item."""
    pairs = [pair for item in chunk for pair in (*item.requests, *item.unconditional)]
    requests = encode_requests(tokenizer, pairs)
    owners = [item for item in chunk for _ in (*item.requests, *item.unconditional)]
    limit = context_length(model)
    for item, request in zip(owners, requests, strict=True):
        if not 0 < len(request.continuation) <= limit:
            where, got = f"{item.task}, item {item.id}", f"{len(request.continuation)} tokens"
            raise UserError("a choice cannot be scored", where, got, f"1 to {limit} tokens, the model's context")
    scored = iter(score_continuations(model, requests, batch_tokens))
    for item in chunk:
        own = [next(scored) for _ in range(len(item.requests) + len(item.unconditional))]
        _require_numbers(item, [result.logprob for result in own])
        row = _answered(items, item, own[: len(item.requests)], [one.logprob for one in own[len(item.requests) :]])
        yield replace(row, truncated=any(result.truncated for result in own))


def _answered(items: TaskItems, item: Item, own: Sequence[Scored], unconditional: Sequence[float]) -> ItemRow:
    row = ItemRow(item.task, item.subject, item.id, item.group, logprobs=tuple(result.logprob for result in own))
    assert row.logprobs is not None
    greedy = tuple(result.greedy for result in own)
    right = right_answers(items.measures, item, row.logprobs, greedy, unconditional)
    if items.kind == "loglikelihood":
        size = len(item.requests[0][1].encode("utf-8", errors="surrogatepass"))
        return replace(row, right=right, nats=-row.logprobs[0], bytes=size)
    # argmax takes the first of equals, as lm-eval does.
    return replace(row, gold=item.gold, predicted=int(np.argmax(row.logprobs)), right=right)


def _text_rows(
    model: Any, tokenizer: LoadedTokenizer, chunk: Sequence[Item], batch_tokens: int | None
) -> Iterator[ItemRow]:
    """Yield the row of each whole text, scored in windows as lm-eval's `loglikelihood_rolling`."""
    limit = context_length(model)
    windows = [rolling_windows(tokenizer, str(item.text), limit) for item in chunk]
    scored = iter(score_continuations(model, [one for text in windows for one in text], batch_tokens, limit))
    for item, text in zip(chunk, windows, strict=True):
        nats = -math.fsum(next(scored).logprob for _ in text)
        _require_numbers(item, [nats])
        tokens = sum(len(window.continuation) for window in text)
        row = ItemRow(item.task, item.subject, item.id, item.group, nats=nats)
        yield replace(row, bytes=item.bytes, tokens=tokens, words=item.words)


def rolling_windows(tokenizer: LoadedTokenizer, text: str, limit: int) -> list[Request]:
    """Cut a text into windows of `limit` input tokens, every token scored once, as lm-eval's `hf` model does.

    The first window begins with the prefix token; the last reaches back, so that it is as long as the others
    (`get_rolling_token_windows` with a context of one token). A BOS that the tokenizer itself adds is part of the
    text and is scored.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    (ids,) = tokenizer.encode_batch([text], reads_special=True)
    opens = text.startswith(str(tokenizer.fast().id_to_token(tokenizer.prefix_id)))
    if tokenizer.bos_id is not None and not opens:
        ids = [tokenizer.bos_id, *ids]
    pairs = map(make_disjoint_window, get_rolling_token_windows(ids, tokenizer.prefix_id, limit, context_len=1))
    return [Request(tuple(context), tuple(continuation)) for context, continuation in pairs]


def _require_numbers(item: Item, values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        todo = "the model's weights are damaged or overflow; score an earlier checkpoint"
        got = ", ".join(map(str, values))
        raise UserError("the model's likelihoods are not numbers", f"{item.task}, item {item.id}", got, todo=todo)
