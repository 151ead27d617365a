"""The step `evaluate`: a model and held-out text in, an artifact of scores out."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onward.artifact import Folders, building, find, fingerprint, read_manifest
from onward.errors import UserError
from onward.evaluation.scores import ItemRow, Scores, read_scores, write_scores
from onward.model.source import ModelSource, describe
from onward.progress import Progress, Silent
from onward.recipe import Evaluation
from onward.recipe.sections import as_path
from onward.tasks.questions import item_facts

_METHOD = 1
"""Raised when scores of the same inputs would come out different, so that older ones are not taken for them."""


def evaluate(
    model: ModelSource | Path,
    *,
    evaluation: Evaluation,
    held_out: Mapping[str, Path],
    folder: Path,
    seed: int,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on held-out text and tasks, into the artifact at `folder`; done before, they are only read.

    held_out: folder of the corpus artifact by name (`domain`, `general`); what stands of the tasks' items in these
    corpora is scored with and without. Raises UserError for a model, task, data folder or item that cannot be
    scored, and when `folder` holds scores of something else.
    """
    source = model if isinstance(model, ModelSource) else describe(model)
    made_from = scores_made_from(source, evaluation=evaluation, held_out=held_out, seed=seed)
    if find(folder, made_from) is None:
        with building(folder, "evaluation", made_from) as aside:
            scores, rows = _score(source, evaluation, held_out, seed, progress or Silent())
            write_scores(aside, scores, rows)
    return read_scores(folder)


def scores_made_from(
    model: ModelSource, *, evaluation: Evaluation, held_out: Mapping[str, Path], seed: int
) -> dict[str, Any]:
    """Return all that determines the scores of a model, without loading it or the tasks."""
    data = None if evaluation.data is None else as_path(evaluation.data)
    items = item_facts(evaluation.tasks, data, evaluation.limit)
    return {
        "method": _METHOD,
        "model": model.fingerprint,
        **items,
        "tasks": list(evaluation.tasks),
        "held_out": {name: _corpus_fingerprint(path) for name, path in held_out.items()},
        "held_out_tokens": evaluation.held_out_tokens,
        "resamples": evaluation.resamples,
        "seed": seed,
    }


def touched_items(corpora: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Return what was done with the benchmark items found in these corpora, by task and item id.

    An item that was left in one of them is `report`: it was seen in training, whatever was done elsewhere.
    """
    from onward.corpus.contamination.table import read_touched

    touched: dict[str, dict[str, str]] = {}
    for folder in corpora:
        for (task, item), action in read_touched(folder).items():
            items = touched.setdefault(task, {})
            items[item] = "report" if items.get(item) == "report" else action
    return touched


def base_scores_folder(
    folders: Folders, model: ModelSource, *, evaluation: Evaluation, held_out: Mapping[str, Path], seed: int
) -> Path:
    """Return the folder of the cache where the scores of a base model stand, shared by every run that needs them."""
    made_from = scores_made_from(model, evaluation=evaluation, held_out=held_out, seed=seed)
    return folders.cache / "scores" / fingerprint(made_from)


def _corpus_fingerprint(folder: Path) -> str:
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError("the held-out text is not prepared", str(folder), todo="run `onward prepare` first")
    return manifest.fingerprint


def _score(
    source: ModelSource, evaluation: Evaluation, held_out: Mapping[str, Path], seed: int, progress: Progress
) -> tuple[Scores, list[ItemRow]]:
    import torch

    from onward.evaluation.harness import score_task
    from onward.evaluation.heldout import score_held_out
    from onward.model.load import load_model
    from onward.model.tokenizer import read_tokenizer
    from onward.tasks import load_items

    started = time.monotonic()
    data = None if evaluation.data is None else as_path(evaluation.data)
    # The items come first: a wrong name or file shows before anything is computed.
    items = load_items(evaluation.tasks, data, evaluation.limit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_tokens = 65_536 if device == "cuda" else 4096
    model, tokenizer = load_model(source, device=device), read_tokenizer(source.folder)
    texts, tasks, rows = [], [], []
    for name, folder in held_out.items():
        text, new = score_held_out(
            model,
            tokenizer,
            name,
            folder / "held_out.parquet",
            tokens=evaluation.held_out_tokens,
            batch_tokens=batch_tokens,
            resamples=evaluation.resamples,
            seed=seed,
            progress=progress,
        )
        texts.append(text)
        rows += new
    touched = touched_items(held_out.values())
    for name, task_items in items.items():
        task, new = score_task(
            model, tokenizer, task_items, batch_tokens=batch_tokens, progress=progress, touched=touched.get(name, {})
        )
        tasks.append(task)
        rows += new
    return Scores(source.name, tuple(texts), tuple(tasks), round(time.monotonic() - started, 3)), rows
