"""Agreement with lm-evaluation-harness, which runs itself: its `hf` model against onward, item by item.

Three ways to the same numbers: lm-eval's `hf` model in lm-eval's evaluator; our engine in lm-eval's evaluator
(`OnwardLM`); onward's own path (`load_items` and `score_task`). All read the same documents.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onward.evaluation.harness import score_task
from onward.evaluation.language_model import OnwardLM
from onward.model.load import load_model
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.progress import Silent
from onward.tasks import TaskItems, load_items
from onward.tasks.parts import parts_of

TOLERANCE_NATS = 1e-3
_ONE_BOOTSTRAP = 1
"""Standard errors of accuracies need no bootstrap; lm-eval only asks whether the number is above 0."""


@dataclass(frozen=True)
class Side:
    """What one way says of a task: log-likelihoods of every item's choices, in nats; (value, stderr) by measure."""

    logprobs: tuple[tuple[float, ...], ...]
    measures: dict[str, tuple[float, Any]]

    @property
    def printed(self) -> dict[str, str]:
        """The measures as lm-eval prints them, to four digits."""
        return {name: f"{value:.4f} ± {_digits(error)}" for name, (value, error) in self.measures.items()}


def _digits(error: Any) -> str:
    """A single item has no standard error: `N/A` in lm-eval, None or not a number here."""
    return f"{error:.4f}" if isinstance(error, float) and math.isfinite(error) else "none"


@dataclass(frozen=True)
class Agreement:
    """One task by the three ways.

    inside_nats, own_nats: largest difference of a log-likelihood from lm-eval's `hf` model, by `OnwardLM` and onward.
    close: items whose two likeliest choices lie within twice the larger of them, so that rounding picks the answer.
    """

    task: str
    hf: Side
    inside: Side
    own: Side

    @property
    def inside_nats(self) -> float:
        return _largest(self.hf, self.inside)

    @property
    def own_nats(self) -> float:
        return _largest(self.hf, self.own)

    @property
    def requests(self) -> int:
        return sum(map(len, self.hf.logprobs))

    @property
    def close(self) -> int:
        within = 2 * max(self.inside_nats, self.own_nats)
        best = (sorted(choices)[-2:] for choices in self.hf.logprobs)
        return sum(high - low <= within for low, high in best)

    @property
    def agrees(self) -> bool:
        """Whether log-likelihoods are within the tolerance and all measures the same to the last digit printed."""
        near = max(self.inside_nats, self.own_nats) <= TOLERANCE_NATS
        return near and self.hf.printed == self.inside.printed == self.own.printed


def _largest(one: Side, other: Side) -> float:
    pairs = zip(one.logprobs, other.logprobs, strict=True)
    return max(abs(left - right) for ours, theirs in pairs for left, right in zip(ours, theirs, strict=True))


def agreements(
    base: Path,
    tasks: Sequence[str],
    data: Path,
    batch_size: int = 8,
    batch_tokens: int | None = None,
    device: str = "cpu",
) -> Iterator[Agreement]:
    """Yield the agreement of each task in fp32. base: model folder; data: the benchmarks' original files."""
    peer = open_peer(base, batch_size, "float32", device)
    model, tokenizer = load_model(base, torch.float32, device), read_tokenizer(base)
    for task in tasks:
        built, items = load_both(task, data)
        yield agreement(built, items, peer, model, tokenizer, batch_tokens)


def load_both(task: str, data: Path, subjects: Sequence[str] | None = None) -> tuple[list[Any], TaskItems]:
    """Return lm-eval's task objects over the documents, and the items that onward scores; subjects: of MMLU."""
    parts = [part for part in parts_of(task, data, None) if part.count]
    chosen = [part for part in parts if subjects is None or part.definition.subject in subjects]
    items = load_items([task], data, None)[task]
    kept = tuple(item for item in items.items if subjects is None or item.subject in subjects)
    return [part.build() for part in chosen], replace(items, items=kept, items_total=len(kept))


def agreement(
    built: Sequence[Any],
    items: TaskItems,
    peer: Any,
    model: Any,
    tokenizer: LoadedTokenizer,
    batch_tokens: int | None = None,
) -> Agreement:
    """Score one task by the three ways. built: lm-eval's task objects; items: the same documents as onward's items."""
    hf, inside = (by_lm_eval(lm, items.task, built) for lm in (peer, OnwardLM(model, tokenizer, batch_tokens)))
    score, rows = score_task(model, tokenizer, items, batch_tokens=batch_tokens, progress=Silent())
    assert score is not None, "all items were scored"
    # Onward has measures of its own beside lm-eval's (`acc_pmi`).
    theirs = (measure for measure in score.measures if measure.name in hf.measures)
    own = Side(
        tuple(row.logprobs for row in rows), {measure.name: (measure.value, measure.stderr) for measure in theirs}
    )
    return Agreement(items.task, hf, inside, own)


def open_peer(base: Path, batch_size: int, dtype: str, device: str = "cpu") -> Any:
    """Return lm-eval's `hf` model, opened by itself from the folder."""
    from lm_eval.models.huggingface import HFLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every request that is cut
    return HFLM(pretrained=str(base), dtype=dtype, batch_size=batch_size, device=device)


def by_lm_eval(lm: Any, task: str, built: Sequence[Any]) -> Side:
    """Run lm-eval's evaluator on task objects; several are MMLU's subjects, pooled as its group pools them."""
    from lm_eval import simple_evaluate
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig
    from lm_eval.tasks import TaskManager

    wanted: list[Any] = list(built)
    if len(built) > 1:
        pooled = [AggMetricConfig(name, weight_by_size=True) for name in built[0].aggregation()]
        group = Group(task, aggregate_metric_list=pooled)
        for one in built:
            group.add(one)
        wanted = [group]
    found = simple_evaluate(
        model=lm,
        tasks=wanted,
        task_manager=TaskManager(include_defaults=False),  # its scan of 14,000 files takes 13 s
        bootstrap_iters=_ONE_BOOTSTRAP,
    )
    samples = [sample for one in built for sample in found["samples"][one.task_name]]
    scores = found["results"][task if len(built) > 1 else built[0].task_name]
    measures = {
        name.partition(",")[0]: (value, scores[name.replace(",", "_stderr,")])
        for name, value in scores.items()
        if name.endswith(",none") and "_stderr" not in name
    }
    logprobs = tuple(tuple(nats for nats, _ in sample["filtered_resps"]) for sample in samples)
    return Side(logprobs, measures)


def print_agreement(found: Agreement) -> None:
    """Print a row for each measure of a task."""
    for name, hf in found.hf.printed.items():
        inside, own = found.inside.printed[name], found.own.printed.get(name, "none")
        same = "same" if hf == inside == own else f"{inside}, {own}"
        print(
            f"{found.task:<14} {len(found.hf.logprobs):>6,} {found.requests:>7,} {found.inside_nats:>9.1e} "
            f"{found.own_nats:>9.1e} {found.close:>5} {name:<9} {hf:>18} {same}",
            flush=True,
        )


HEADER = (
    f"{'task':<14} {'items':>6} {'reqs':>7} {'OnwardLM':>9} {'onward':>9} {'close':>5} {'measure':<9} "
    f"{'lm-eval, hf':>18} OnwardLM, onward"
)
