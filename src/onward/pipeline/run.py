"""The step `run`, and each of its parts alone: which stages are due, in order; resuming is asking the artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onward.artifact import Folders, read_manifest, write_json
from onward.corpus.preparation import Preparation
from onward.errors import RankError, UserError
from onward.model.shape import read_shape
from onward.model.source import ModelSource, resolve, weight_files
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.pipeline.by_ranks import first_alone, train_by_ranks
from onward.pipeline.corpora import Corpora, Preparing, is_compared_with_domain
from onward.pipeline.run_folder import RunFolder
from onward.pipeline.scoring import Scoring
from onward.plan import Plan, check_model, check_trainable, plan_run
from onward.progress import Progress, Silent
from onward.recipe import TASKS, Recipe, load_recipe, section_of
from onward.recipe.sections import as_path
from onward.training.launch import find_place
from onward.training.remedies import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from onward.corpus.engine import StartWorkers
    from onward.corpus.examine import Examined, Task
    from onward.evaluation.scores import Scores
    from onward.plan import Foresight
    from onward.reporting.report import ReportFiles
    from onward.training.stages import Stage


@dataclass(frozen=True)
class RunResult:
    """Everything a finished run leaves: the plan, the stages' checkpoints, the scores before and after, the report."""

    folder: Path
    plan: Plan
    stages: "tuple[Stage, ...]"
    base_scores: "Scores"
    stage_scores: "tuple[Scores, ...]"
    report: "ReportFiles"


class Run:
    """One recipe in its folder; every method makes what is missing and returns at once when nothing is.

    folders: where artifacts live (None: the defaults). workers: processes that prepare text (None: one per core);
    start_workers: another engine for them (`corpus.ray_engine`). processes: ranks that train and score, one per GPU;
    they are started by torchrun. Started by torchrun or srun itself, every rank opens the run and calls `train`.
    is_plan: only `foresee` will be called; a run that has nothing yet then gets no folder.
    """

    def __init__(
        self,
        recipe: Recipe | str | Path,
        overrides: Sequence[str] = (),
        folders: Folders | None = None,
        progress: Progress | None = None,
        workers: int | None = None,
        start_workers: "StartWorkers[Task, tuple[Examined, ...]] | None" = None,
        processes: int = 1,
        is_plan: bool = False,
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        self.folders = folders or Folders.default()
        self.progress = progress or Silent()
        self.workers = workers
        self.start_workers = start_workers
        self.processes = processes
        self.place = find_place()
        self.folder = self.folders.runs / self.recipe.name
        self._kept = RunFolder(self.folder, self.place.is_first)
        if self._kept.has_results or not is_plan:
            self._kept.freeze(self.recipe)

    @cached_property
    def base(self) -> ModelSource:
        """The base model's files; a run that has results stays with the commit it began with."""
        began_with = self._kept.recorded.get("model", {}).get("revision") if self._kept.has_results else None
        return resolve(self.recipe.model.base, self.recipe.model.revision or began_with)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The base model's tokenizer, checked against the model and the recipe."""
        tokenizer = read_tokenizer(self.base.folder)
        check_model(self.recipe, self.base, tokenizer)
        return tokenizer

    @cached_property
    def corpora(self) -> Corpora:
        """The prepared texts: of the domain, general text, and what else is replayed."""
        return self._preparing.all(self.planned_domain)

    @cached_property
    def planned_domain(self) -> Preparation:
        """The domain text as it will be prepared: where it will stand, and what from."""
        self._check_evaluation()
        return self._preparing.planned("domain", None)

    @cached_property
    def _preparing(self) -> Preparing:
        inputs = (self.recipe, self.base, self.tokenizer, self.folders, self._kept, self.progress)
        return Preparing(*inputs, self.workers, self.start_workers)

    @cached_property
    def plan(self) -> Plan:
        """Steps, repetition and size of the run, from what was prepared; raises UserError when it cannot work."""
        trained = parts_of(read_shape(self.base), self.recipe.training.forgetting).trained
        plan = plan_run(self.recipe, _parameters(self.base), trained, self.corpora.by_name())
        if self.place.is_first:
            write_json(self.folder / "plan.json", asdict(plan))
        return plan

    def score_base(self) -> "Scores":
        """Score the base model; the result is shared by every run that starts from it on the same text."""
        return self._scoring.score_base()

    def train(self, until_stage: int | None = None, until_step: int | None = None) -> "tuple[Stage, ...]":
        """Train to the end of a stage (None: all), going on from the newest checkpoint; return the complete stages.

        until_step: stop when so many steps of the run are done, their state saved.
        """
        check_trainable(self.base)
        if self.place.world > 1:
            first_alone(lambda: self.plan)
            if read_manifest(self.planned_domain.folder) is None:
                todo = "put --cache and --runs on a file system that all machines share"
                where = str(self.planned_domain.folder)
                raise RankError("what the first rank has prepared is not here", where, todo=todo)
        _ = self.plan  # it refuses what cannot work
        return self._train(until_stage, self.corpora.paths(), None, until_step)

    def foresee(self, hardware: str | None = None, measure: bool = False) -> "Foresight":
        """Return what the run will need, from what is prepared already or from a sample of its text.

        hardware: plan for a machine that is not here (`8xh100`); measure: time a few steps on this one. Its problems
        are not raised (`Foresight.check` does).
        """
        from onward.plan import foresee

        return foresee(
            self.recipe,
            base=self.base,
            preparations=self._preparing.all_planned(self.planned_domain),
            folders=self.folders,
            hardware=hardware,
            devices=self.processes,
            measure=measure,
            workers=self.workers,
            progress=self.progress,
        )

    def score_stage(self, stage: "Stage") -> "Scores":
        """Score the checkpoint at a stage's end, or the model of a token count between (`evaluation.at`)."""
        return self._scoring.score_stage(stage)

    def scores(self) -> "tuple[Scores, ...]":
        """Score the base and every model whose training is done, by its tokens, the base first."""
        from onward.training.stages import stages_of

        stages = stages_of(self.recipe.training, self.recipe.training_seed, self.folder)
        places = sorted((*stages, *self._points()), key=lambda place: place.tokens)
        trained = [place for place in places if read_manifest(place.folder) is not None]
        return (self.score_base(), *(self.score_stage(place) for place in trained))

    def _points(self, stage: int | None = None) -> "tuple[Stage, ...]":
        """The models between the stages' ends; stage: those that lie in it."""
        from onward.training.stages import points_of

        points = points_of(self.recipe.training, self.recipe.evaluation.at, self.recipe.training_seed, self.folder)
        return tuple(point for point in points if stage in (None, point.number))

    @cached_property
    def _scoring(self) -> Scoring:
        inputs = (self.recipe, self.base, self.corpora.scored(), self.folders, self._kept)
        return Scoring(*inputs, self.progress, self.processes)

    def report(self) -> "ReportFiles":
        """Write the report from whatever the run has so far."""
        from onward.reporting.report import report

        return report(self.folder, progress=self.progress)

    def all(self, stream: bool = False) -> RunResult:
        """Prepare, plan, score the base, train and score every stage, report.

        stream: train on the blocks that are prepared while the rest is being prepared (for `training.order: blocks`);
        the first stage is then trained before the base is scored, and everything comes out the same.
        """
        check_trainable(self.base)
        if stream:
            self._train_while_preparing()
        plan = self.plan
        base_scores = self.score_base()
        scores = []
        stages: tuple[Stage, ...] = ()
        for number in range(1, len(self.recipe.training.stages) + 1):
            stages = self.train(until_stage=number)
            for point in self._points(number):
                self.score_stage(point)
            scores.append(self.score_stage(stages[-1]))
        return RunResult(self.folder, plan, stages, base_scores, tuple(scores), self.report())

    def _check_evaluation(self) -> None:
        """Find a misspelt task or a missing data folder before hours are spent; raises UserError."""
        evaluation, tasks = self.recipe.evaluation, self.recipe.tasks()
        if tasks and evaluation.data is not None:
            from onward.tasks.local import data_fingerprints

            data_fingerprints(tasks, as_path(evaluation.data))
        others = [task for task in tasks if task not in TASKS]
        if others:
            from onward.tasks.harness import require_tasks

            require_tasks(others)

    def _train_while_preparing(self) -> None:
        """Train the first stage on a domain that another process prepares meanwhile."""
        if self.recipe.training.order != "blocks":
            todo = "write `training.order: blocks` into the recipe, or add --set training.order=blocks"
            got, expected = self.recipe.training.order, "blocks: their order does not depend on later text"
            raise UserError("only blocks can be streamed", "training.order", got, expected, todo)
        if self.start_workers is not None:
            todo = "prepare with the other engine first (`onward prepare`), or leave --stream out"
            raise UserError("a streamed corpus is prepared by the processes of this machine", "--engine", todo=todo)
        if self.processes > 1:
            todo = "prepare first (`onward prepare`), or train in one process"
            raise UserError("several ranks cannot train on text that is still being prepared", "--stream", todo=todo)
        if read_manifest(self.planned_domain.folder) is not None:
            return
        from onward.corpus.background import Background

        preparing = self._preparing
        for name, corpus in preparing.beside_domain.items():
            if is_compared_with_domain(corpus):
                todo = f"run without --stream, or remove `domain` from {section_of(name)}.duplicates.against"
                raise UserError(f"{name} text that is compared with the domain cannot come before it", todo=todo)
        beside = preparing.beside(None)
        # A kill may leave checkpoints before the corpora are there.
        self._kept.record(self.base, prepared_for=preparing.wanted)
        background = Background(self.planned_domain, self.workers)
        self.progress.note("the domain is prepared beside the training, which begins on its first finished block")
        try:
            paths = {name: corpus.path for name, corpus in beside.items()}
            self._train(1, {"domain": self.planned_domain.folder, **paths}, background.check)
            prepared = background.result()
            kept, tokens = prepared.ledger.kept.documents, prepared.ledger.kept_tokens
            self.progress.note(f"the domain is prepared: {kept:,} documents kept, {tokens:,} tokens")
        finally:
            background.stop()
        self.corpora = preparing.recorded(prepared, beside)

    def _train(
        self,
        until_stage: int | None,
        corpora: Mapping[str, Path],
        while_waiting: "Callable[[], None] | None",
        until_step: int | None = None,
    ) -> "tuple[Stage, ...]":
        if self.processes > 1 and self.place.world == 1:
            assert while_waiting is None, "refused by `_train_while_preparing`"
            return train_by_ranks(self.recipe, self.folders, self.processes, self.progress, until_stage, until_step)
        from onward.training.train import train

        return train(
            self.recipe.training,
            base=self.base,
            corpora=corpora,
            seed=self.recipe.training_seed,
            run_folder=self.folder,
            cache=self.folders.cache,
            until_stage=until_stage,
            until_step=until_step,
            at=self.recipe.evaluation.at,
            progress=self.progress,
            while_waiting=while_waiting,
        )


def _parameters(base: ModelSource) -> int:
    """Count the parameters from the safetensors headers or the state dict, tied ones once, without loading them."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    total = 0
    for path in (path for path in weight_files(base.folder) if path.suffix == ".safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            todo = "restore or download the file again"
            raise UserError("the model's weights are damaged", str(path), str(error), todo=todo) from error
    if total == 0:
        from onward.model.load import load_model

        total = sum(p.numel() for p in load_model(base).parameters())
    return total
