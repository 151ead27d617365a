"""Measures of a task from the rows of its items, with lm-eval's formulas and standard errors."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onward.evaluation.scores import ItemRow, Measure
from onward.statistics import mean_stderr, pooled_sample_stderr
from onward.tasks import Item, TaskItems

_RESAMPLES = 100_000
_PER_SEED = 1000
"""lm-eval's bootstrap: so many resamples, a thousand of them drawn with each of the seeds 0, 1, 2..."""
_DRAWN = 1 << 18
"""Items drawn at one time: 2 MB."""


def right_answers(
    measures: Sequence[str],
    item: Item,
    logprobs: Sequence[float],
    greedy: Sequence[bool],
    unconditional: Sequence[float],
) -> dict[str, bool]:
    """Say by each accuracy whether an item was answered rightly (`ConfigurableTask.process_results`).

    The first of equally likely choices is taken. `acc_norm` divides by characters, `acc_bytes` by UTF-8 bytes, of the
    choice as the task writes it; `acc_mutual_info` and OLMES's `acc_pmi` subtract the log-likelihood of the choice
    without the question. `exact_match`: the right choice is what the model would write greedily.
    """
    if not item.choices:
        return {"acc": greedy[0]} if "acc" in measures else {}
    found = np.array(logprobs)
    values = {
        "acc": found,
        "acc_norm": found / np.array([float(len(choice)) for choice in item.choices]),
        "acc_bytes": found / np.array([float(len(_bytes(choice))) for choice in item.choices]),
    }
    if unconditional:
        values["acc_mutual_info"] = values["acc_pmi"] = found - np.array(unconditional)
    good = (item.gold, *item.also_right)
    right = {name: int(np.argmax(values[name])) in good for name in measures if name in values}
    if "exact_match" in measures:
        right["exact_match"] = any(greedy[one] for one in good)
    return right


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def measures_of(items: TaskItems, rows: Sequence[ItemRow]) -> tuple[Measure, ...]:
    """Return the measures of a task over these rows."""
    subjects = [row.subject for row in rows]
    return tuple(_measure(name, rows, subjects) for name in items.measures)


def _measure(name: str, rows: Sequence[ItemRow], subjects: Sequence[str | None]) -> Measure:
    if name in _OF_TEXTS:
        nats, of = _OF_TEXTS[name]
        sizes = sum(size for row in rows if (size := nats(row)) is not None)
        return Measure(name, of(math.fsum(row.nats or 0.0 for row in rows), sizes), None, higher_is_better=False)
    if name == "perplexity":
        logprobs = np.array([-row.nats for row in rows if row.nats is not None])
        return Measure(name, math.exp(-logprobs.mean()), perplexity_error(logprobs), higher_is_better=False)
    right = np.array([row.right[name] for row in rows if row.right is not None], dtype=np.float64)
    return Measure(name, float(right.mean()), standard_error(right, subjects))


_Size = Callable[[ItemRow], int | None]
_OF_TEXTS: dict[str, tuple[_Size, Callable[[float, int], float]]] = {
    "word_perplexity": (lambda row: row.words, lambda nats, words: math.exp(nats / words)),
    "byte_perplexity": (lambda row: row.bytes, lambda nats, size: math.exp(nats / size)),
    "bits_per_byte": (lambda row: row.bytes, lambda nats, size: nats / size / math.log(2)),
}
"""Measures over whole texts: what of a row is counted, and the measure from all nats and all of that."""


def standard_error(correct: NDArray[np.float64], subjects: Sequence[str | None]) -> float:
    """Return the standard error of the mean of `correct` [items], within subjects where a task has them, as lm-eval's.

    nan where no subject has two items.
    """
    labels = np.array([subject or "" for subject in subjects])
    parts = [correct[labels == name] for name in sorted(set(labels.tolist()))]
    if len(parts) == 1:
        return mean_stderr(correct)
    return pooled_sample_stderr([mean_stderr(part) for part in parts], [len(part) for part in parts])


def perplexity_error(logprobs: NDArray[np.float64]) -> float | None:
    """Return lm-eval's standard error of exp(-mean(logprobs)), None for one item: its bootstrap, draw for draw.

    lm-eval draws with Python's generator, whose Mersenne twister numpy's RandomState repeats when it is seeded with a
    list; 5,153 items take seconds instead of minutes.
    """
    size = len(logprobs)
    if size < 2:
        return None
    step = max(1, min(_PER_SEED, _DRAWN // size))
    means = []
    for seed in range(_RESAMPLES // _PER_SEED):
        generator = np.random.RandomState([seed])
        for start in range(0, _PER_SEED, step):
            drawn = (generator.random_sample((min(step, _PER_SEED - start), size)) * size).astype(np.int64)
            means.append(logprobs[drawn].mean(axis=1))
    return float(np.exp(-np.concatenate(means)).std(ddof=1))
