"""The step `evaluate`: a model, held-out text and tasks in, an artifact of scores out."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import Folders, building, find, fingerprint, locked, read_manifest, write_json
from onward.errors import RankError, UserError
from onward.evaluation.partial import Partial
from onward.evaluation.scored_on import ScoredOn
from onward.evaluation.scores import HeldOutScore, ItemRow, Scores, TaskScore, read_scores, write_scores
from onward.model.source import Between, ModelSource, describe
from onward.progress import Named, Progress, Silent
from onward.recipe import Evaluation
from onward.recipe.sections import as_path
from onward.tasks.questions import item_facts
from onward.training.launch import RanksEnded, count_gpus, find_place, run_ranks

if TYPE_CHECKING:
    from onward.model.tokenizer import LoadedTokenizer
    from onward.tasks import TaskItems

_METHOD = 2
"""Raised when scores of the same inputs would come out different, so that older ones are not taken for them."""
_OWN_CHARACTERS, _CHARACTERS_PER_TOKEN = 2000, 4
"""Of a prompt: what is longer is mostly examples, which other questions have too. Of English."""
_JOB = "job.json"
RANK_COMMAND = "score-share"
"""The command, hidden from people, that a rank of an evaluation runs (`score_share`)."""


def evaluate(
    model: ModelSource | Path,
    *,
    evaluation: Evaluation,
    held_out: Mapping[str, Path],
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    processes: int = 1,
    cloze: Path | None = None,
    prompts: Path | None = None,
    waits: bool = False,
) -> Scores:
    """Score a model on held-out text and tasks, into the artifact at `folder`; done before, they are only read.

    held_out: folder of the corpus artifact by name (`domain`, `general`); what stands of the tasks' items in these
    corpora is scored with and without. processes: ranks that share the items, one per GPU, started by torchrun. cloze:
    an artifact of questions made from the domain's text. prompts: a folder where the tasks' prompts are kept between
    evaluations. waits: for another process that scores into the same folder, and reads what that has made; else it is
    refused. Killed, it goes on after the last chunk of items, which it says; the seconds are those of all its lives.

    Raises UserError for a model, task, data folder or item that cannot be scored, and when `folder` holds scores of
    something else; RanksEnded when a rank has failed.
    """
    source = model if isinstance(model, ModelSource) else describe(model)
    made_from = scores_made_from(source, evaluation=evaluation, held_out=held_out, seed=seed, cloze=cloze)
    progress = progress or Silent()

    def wait() -> None:
        progress.note("another process scores the same model on the same: waiting for it")

    if find(folder, made_from) is not None:
        return read_scores(folder)
    with locked(folder, wait if waits else None):
        if find(folder, made_from) is not None:
            return read_scores(folder)
        with building(folder, "evaluation", made_from, keep_partial=True, is_locked=True) as aside:
            partial = Partial.open(aside, made_from)
            settled = evaluation.model_copy(update={"precision": made_from["precision"]})
            job = _Job(
                source,
                settled,
                dict(held_out),
                cloze,
                prompts,
                seed,
                progress.name if isinstance(progress, Named) else None,
                aside,
                partial.life,
                partial.began,
                partial.files(),
            )
            if processes > 1:
                if prompts is None:  # the ranks would each build them, which takes a minute for the seven tasks
                    job = replace(job, prompts=aside / "rows" / "prompts")
                job = _shared_out(job, partial, processes, progress)
            texts, tasks, rows = _Scoring(job, partial, progress).all()
            scores = Scores(source.name, tuple(texts), tuple(tasks), round(partial.lived(), 3))
            write_scores(aside, scores, rows)
            ScoredOn.of(evaluation, held_out, cloze).write(aside)
            partial.remove()
    return read_scores(folder)


def scores_made_from(
    model: ModelSource, *, evaluation: Evaluation, held_out: Mapping[str, Path], seed: int, cloze: Path | None = None
) -> dict[str, Any]:
    """Return all that determines the scores of a model, without loading it or the tasks."""
    data = None if evaluation.data is None else as_path(evaluation.data)
    items = item_facts(evaluation.tasks, data, evaluation.limit)
    return {
        "method": _METHOD,
        "model": model.fingerprint,
        **items,
        "tasks": list(evaluation.tasks),
        "held_out": {name: _fingerprint_of(path) for name, path in held_out.items()},
        "held_out_tokens": evaluation.held_out_tokens,
        "cloze": None if cloze is None else _fingerprint_of(cloze),
        "resamples": evaluation.resamples,
        "precision": choose_precision(evaluation, model),
        "seed": seed,
    }


def choose_precision(evaluation: Evaluation, model: ModelSource) -> str:
    """Return what `precision: auto` means for a model on this machine: `fp32` or `bf16`.

    lm-eval's default (`HFLM(dtype="auto")`) computes in the type in which the weights are stored. So does this for
    bf16 on a GPU; on a CPU it is faster only where the processor has matrix units for it, and scores should not depend
    on that. Weights in fp16 are computed in fp32, where nothing overflows.
    """
    if evaluation.precision != "auto":
        return evaluation.precision
    config = json.loads((model.folder / "config.json").read_bytes())
    text = config.get("text_config") or {}
    named = [part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype")]
    stored = next((name for name in named if name is not None), None)
    return "bf16" if stored == "bfloat16" and count_gpus() > 0 else "fp32"


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
    folders: Folders,
    model: ModelSource,
    *,
    evaluation: Evaluation,
    held_out: Mapping[str, Path],
    seed: int,
    cloze: Path | None = None,
) -> Path:
    """Return the folder of the cache where the scores of a base model stand, shared by every run that needs them."""
    made_from = scores_made_from(model, evaluation=evaluation, held_out=held_out, seed=seed, cloze=cloze)
    return folders.cache / "scores" / fingerprint(made_from)


def score_share(job: Path, progress: Progress | None = None) -> None:
    """Score what falls to this rank of an evaluation that another process has begun (`evaluate(processes=...)`)."""
    place, own = find_place(), _Job.read(job)
    partial = Partial.join(own.aside, own.life, own.began, place.is_first)
    told = progress or Silent()
    told = told if own.name is None else Named(told, own.name)
    try:
        _Scoring(own, partial, told, (place.rank, place.world)).all()
    except UserError as error:
        if place.is_first or isinstance(error, RankError):
            raise
        # Its own items are at fault: nobody else tells of them.
        raise RankError(error.what, error.where, error.got, error.expected, error.todo) from error


@dataclass(frozen=True)
class _Job:
    """All that a process needs to score its share.

    name: of the model among several, as ranks tell it. done: the files of rows that were there when this life began;
    is_scored: there is nothing left to score.
    """

    model: ModelSource
    evaluation: Evaluation
    held_out: dict[str, Path]
    cloze: Path | None
    prompts: Path | None
    seed: int
    name: str | None
    aside: Path
    life: int
    began: float
    done: tuple[str, ...]
    is_scored: bool = False

    def write(self, path: Path) -> None:
        """Write the job where the ranks read it."""
        write_json(path, {**asdict(self), "evaluation": self.evaluation.model_dump(mode="json")})

    @classmethod
    def read(cls, path: Path) -> "_Job":
        """Read what `write` wrote."""
        content = json.loads(path.read_bytes())
        model = content["model"] | {"folder": Path(content["model"]["folder"])}
        if (between := model["between"]) is not None:
            model["between"] = Between(Path(between["base"]), between["share"])
        places = {name: None if content[name] is None else Path(content[name]) for name in ("cloze", "prompts")}
        return cls(
            **content
            | places
            | {
                "model": ModelSource(**model),
                "evaluation": Evaluation.model_validate(content["evaluation"]),
                "held_out": {name: Path(folder) for name, folder in content["held_out"].items()},
                "aside": Path(content["aside"]),
                "done": tuple(content["done"]),
            }
        )


def _shared_out(job: _Job, partial: Partial, processes: int, progress: Progress) -> _Job:
    """Have several ranks score; return the job of the one who joins what they wrote. Raises RanksEnded."""
    from onward.tasks import load_items

    evaluation = job.evaluation
    # The first to build the prompts does it for all; a wrong name or file is told once.
    load_items(evaluation.tasks, _data(evaluation), evaluation.limit, cache=job.prompts)
    path = job.aside / "rows" / _JOB
    job.write(path)
    progress.begin("scoring", processes, "ranks")
    progress.advance(processes)
    ending = run_ranks([RANK_COMMAND, str(path)], processes)
    if ending.status:
        raise RanksEnded(ending)
    return replace(job, done=partial.files(), is_scored=True)


def _tokens_about(tasks: "Iterable[TaskItems]") -> int:
    """Return about how many tokens the requests of tasks have; examples that questions share are not counted."""
    items = [item for task in tasks for item in task.items]
    longest = [max((len(context) for context, _ in item.requests), default=0) for item in items]
    rest = sum(len(continuation) for item in items for _, continuation in item.requests)
    texts = sum(len(item.text or "") for item in items)
    return (sum(min(_OWN_CHARACTERS, length) for length in longest) + rest + texts) // _CHARACTERS_PER_TOKEN


def _held_out_tokens(evaluation: Evaluation) -> int:
    return 10**6 if evaluation.held_out_tokens is None else int(evaluation.held_out_tokens)


def _data(evaluation: Evaluation) -> Path | None:
    return None if evaluation.data is None else as_path(evaluation.data)


def _fingerprint_of(folder: Path) -> str:
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError("the held-out text is not prepared", str(folder), todo="run `onward prepare` first")
    return manifest.fingerprint


class _Scoring:
    """Scores a job, or a rank's share of it; the model is loaded when something is left to score."""

    def __init__(self, job: _Job, partial: Partial, progress: Progress, share: tuple[int, int] = (0, 1)) -> None:
        self.job, self.partial, self.progress, self.share = job, partial, progress, share
        self.done = partial.rows(job.done)

    def all(self) -> tuple[list[HeldOutScore], list[TaskScore], list[ItemRow]]:
        """Score texts, then tasks; a rank of several gets no scores, only its rows."""
        # The items come first: a wrong name or file shows before anything is computed.
        items = self._items
        if self.job.done and not self.job.is_scored:
            self.progress.note(self._going_on())
        texts: list[HeldOutScore] = []
        tasks: list[TaskScore] = []
        rows: list[ItemRow] = []
        for name, folder in self.job.held_out.items():
            text, new = self._text(name, folder)
            texts += [] if text is None else [text]
            rows += new
        touched = touched_items(self.job.held_out.values())
        for name, task_items in items.items():
            task, new = self._task(task_items, touched.get(name, {}))
            tasks += [] if task is None else [task]
            rows += new
        return texts, tasks, rows

    def _going_on(self) -> str:
        """Say how much an earlier life has scored already."""
        done = {name: len(rows) for name, rows in self.done.items()}
        documents = sum(count for name, count in done.items() if name not in self._items)
        parts = [f"{documents:,} documents"] if documents else []
        if total := sum(len(task.items) for task in self._items.values()):
            parts.append(f"{sum(done.values()) - documents:,} of {total:,} items")
        return f"going on after {' and '.join(parts)}, which are scored already"

    @cached_property
    def _tokenizer(self) -> "LoadedTokenizer":
        from onward.model.tokenizer import read_tokenizer

        return read_tokenizer(self.job.model.folder)

    @cached_property
    def _tokens(self) -> int:
        """About how many the whole evaluation scores, whatever is done and whoever shares it."""
        texts = len(self.job.held_out) * _held_out_tokens(self.job.evaluation)
        return _tokens_about(self._items.values()) + texts

    @cached_property
    def _model(self) -> Any:
        """The model on its device; None where nothing is left to score."""
        if self.job.is_scored:
            return None
        import torch

        from onward.model.heap import keep_freed_memory
        from onward.model.load import load_model
        from onward.model.score import compile_to_score
        from onward.training.ranks import choose_device

        dtype = torch.bfloat16 if self.job.evaluation.precision == "bf16" else torch.float32
        device = choose_device(find_place())
        model = load_model(self.job.model, dtype, str(device))
        if device.type == "cpu":
            keep_freed_memory()
            # By the size of the whole evaluation: a resumed one, and each rank, computes as one process at once would.
            compile_to_score(model, self._tokens)
        return model

    @cached_property
    def _items(self) -> "dict[str, TaskItems]":
        from onward.tasks import load_items

        evaluation = self.job.evaluation
        items = load_items(evaluation.tasks, _data(evaluation), evaluation.limit, cache=self.job.prompts)
        if self.job.cloze is not None:
            from onward.evaluation.cloze import load_cloze

            made = load_cloze(self.job.cloze)
            items[made.task] = made
        return items

    def _text(self, name: str, folder: Path) -> tuple[HeldOutScore | None, list[ItemRow]]:
        from onward.evaluation.heldout import score_held_out

        evaluation = self.job.evaluation
        return score_held_out(
            self._model,
            self._tokenizer,
            name,
            folder / "held_out.parquet",
            tokens=evaluation.held_out_tokens,
            batch_tokens=None,
            resamples=evaluation.resamples,
            seed=self.job.seed,
            progress=self.progress,
            done=self.done.get(f"held_out:{name}", ()),
            keep=self.partial.keep,
            share=self.share,
        )

    def _task(self, items: "TaskItems", touched: Mapping[str, str]) -> tuple[TaskScore | None, list[ItemRow]]:
        from onward.evaluation.harness import score_task

        return score_task(
            self._model,
            self._tokenizer,
            items,
            batch_tokens=None,
            progress=self.progress,
            touched=touched,
            done=self.done.get(items.task, ()),
            keep=self.partial.keep,
            share=self.share,
        )
