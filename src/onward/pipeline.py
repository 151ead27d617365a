"""The step `run`, and each of its parts alone: which stages are due, in order; resuming is asking the artifacts."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from onward.artifact import Folders, flatten, read_manifest, write_json, write_text
from onward.batches import plan_batches
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.errors import UserError
from onward.model.source import ModelSource, describe, resolve
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.plan import Plan, check_domain, check_model, plan_run, wanted_tokens
from onward.progress import Progress, Silent
from onward.recipe import TASKS, Corpus, Recipe, SelfReplay, load_recipe
from onward.recipe.sections import as_path
from onward.training.stages import COST_KNOBS

if TYPE_CHECKING:
    from onward.evaluation.scores import Scores
    from onward.reporting.report import ReportFiles
    from onward.training.stages import Stage

_MAY_CHANGE = (*(f"training.{knob}" for knob in COST_KNOBS), "training.stages")
"""Knobs that a run may change between two starts: they alter its cost or its length, not what is computed."""
_LEAST_SAMPLED_TOKENS = 20_000
"""Self-replay samples at least so much: fewer documents would measure nothing when a part is held out."""


@dataclass(frozen=True)
class Corpora:
    """The prepared domain text and, where the recipe has it, general text."""

    domain: PreparedCorpus
    general: PreparedCorpus | None

    def paths(self) -> dict[str, Path]:
        """Return the artifact folder of each corpus by its name."""
        paths = {"domain": self.domain.path}
        return paths if self.general is None else paths | {"general": self.general.path}


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

    folders: where artifacts live (None: the defaults). workers: processes that prepare text (None: one per core).
    """

    def __init__(
        self,
        recipe: Recipe | str | Path,
        overrides: Sequence[str] = (),
        folders: Folders | None = None,
        progress: Progress | None = None,
        workers: int | None = None,
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        self.folders = folders or Folders.default()
        self.progress = progress or Silent()
        self.workers = workers
        self.folder = self.folders.runs / self.recipe.name
        self._freeze()

    @cached_property
    def base(self) -> ModelSource:
        """The base model's files; a run that has results stays with the commit it began with."""
        began_with = self._recorded.get("model", {}).get("revision") if self._has_results else None
        return resolve(self.recipe.model.base, self.recipe.model.revision or began_with)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The base model's tokenizer, checked against the model and the recipe."""
        tokenizer = read_tokenizer(self.base.folder)
        check_model(self.recipe, self.base, tokenizer)
        return tokenizer

    @cached_property
    def corpora(self) -> Corpora:
        """Prepared domain and general text."""
        self._check_evaluation()
        needed_domain, needed_general = plan_batches(self.recipe.training, self.recipe.seed).needed_sequences()
        domain, general = self.recipe.corpus, self.recipe.general
        wanted = {"domain": wanted_tokens(domain, needed_domain, self.recipe)}
        if general is not None:
            wanted["general"] = wanted_tokens(general, needed_general, self.recipe)
            wanted["sampled"] = self._sampled_tokens(general, needed_general)
        if self._has_results:  # a stage more repeats this text within its cap; more text would be another corpus
            wanted |= self._recorded.get("prepared_for", {})
        if general is not None and general.self_replay is not None:
            sized = general.self_replay.model_copy(update={"tokens": wanted["sampled"]})
            general = general.model_copy(update={"self_replay": sized})
        prepared = self._prepare(domain, wanted["domain"], "domain")
        if general is not None and general.self_replay is not None:
            check_domain(self.recipe, prepared)
        corpora = Corpora(prepared, None if general is None else self._prepare(general, wanted["general"], "general"))
        self._record(corpora={name: str(folder) for name, folder in corpora.paths().items()}, prepared_for=wanted)
        return corpora

    @cached_property
    def plan(self) -> Plan:
        """Steps, repetition and size of the run, from what was prepared; raises UserError when it cannot work."""
        plan = plan_run(self.recipe, _parameters(self.base), self.corpora.domain, self.corpora.general)
        write_json(self.folder / "plan.json", asdict(plan))
        return plan

    def score_base(self) -> "Scores":
        """Score the base model; the result is shared by every run that starts from it on the same text."""
        from onward.evaluation.evaluate import base_scores_folder, evaluate

        evaluation, held_out, seed = self.recipe.evaluation, self.corpora.paths(), self.recipe.seed
        folder = base_scores_folder(self.folders, self.base, evaluation=evaluation, held_out=held_out, seed=seed)
        self._record(base_scores=str(folder))
        return evaluate(
            self.base, evaluation=evaluation, held_out=held_out, folder=folder, seed=seed, progress=self.progress
        )

    def train(self, until_stage: int | None = None) -> "tuple[Stage, ...]":
        """Train to the end of a stage (None: all), going on from the newest checkpoint."""
        from onward.training.train import train

        assert self.plan  # the plan refuses what cannot work
        return train(
            self.recipe.training,
            base=self.base,
            domain=self.corpora.domain.path,
            general=None if self.corpora.general is None else self.corpora.general.path,
            seed=self.recipe.seed,
            run_folder=self.folder,
            until_stage=until_stage,
            progress=self.progress,
        )

    def score_stage(self, stage: "Stage") -> "Scores":
        """Score the checkpoint at a stage's end."""
        from onward.evaluation.evaluate import evaluate

        folder = self.folder / "scores" / stage.folder.name
        scored, model = read_manifest(folder), describe(stage.model)
        if scored is not None and scored.made_from.get("model") != model.fingerprint:
            shutil.rmtree(folder)  # the checkpoint was made anew, and not to the same bits: another device, say
        return evaluate(
            model,
            evaluation=self.recipe.evaluation,
            held_out=self.corpora.paths(),
            folder=folder,
            seed=self.recipe.seed,
            progress=self.progress,
        )

    def scores(self) -> "tuple[Scores, ...]":
        """Score the base and every stage whose checkpoint is complete, the base first."""
        from onward.training.stages import stages_of

        stages = stages_of(self.recipe.training, self.recipe.seed, self.folder)
        trained = [stage for stage in stages if read_manifest(stage.folder) is not None]
        return (self.score_base(), *(self.score_stage(stage) for stage in trained))

    def report(self) -> "ReportFiles":
        """Write the report from whatever the run has so far."""
        from onward.reporting.report import report

        return report(self.folder, progress=self.progress)

    def all(self) -> RunResult:
        """Prepare, plan, score the base, train and score every stage, report."""
        plan = self.plan
        base_scores = self.score_base()
        scores = []
        stages: tuple[Stage, ...] = ()
        for number in range(1, len(self.recipe.training.stages) + 1):
            stages = self.train(until_stage=number)
            scores.append(self.score_stage(stages[-1]))
        return RunResult(self.folder, plan, stages, base_scores, tuple(scores), self.report())

    def _sampled_tokens(self, general: Corpus, needed_sequences: int) -> int:
        """How many tokens self-replay samples: the recipe's number, or what the stages need of it."""
        if general.self_replay is None:
            return 0
        if general.self_replay.tokens is not None:
            return general.self_replay.tokens
        training = self.recipe.training
        tokens = needed_sequences * training.sequence_tokens / training.maximum_repetition
        if not general.held_out.sources:  # a part of the samples is held out and not replayed
            tokens /= 1 - float(general.held_out.share)
        # Short samples leave padding; a tenth more keeps the repetition under its cap.
        return max(ceil(tokens * 1.1), _LEAST_SAMPLED_TOKENS)

    def _check_evaluation(self) -> None:
        """Find a misspelt task or a missing data folder before hours are spent; raises UserError."""
        evaluation = self.recipe.evaluation
        if evaluation.tasks and evaluation.data is not None:
            from onward.tasks.local import data_fingerprints

            data_fingerprints(evaluation.tasks, as_path(evaluation.data))
        others = [task for task in evaluation.tasks if task not in TASKS]
        if others:
            from onward.tasks.harness import definitions

            for task in others:
                definitions(task)

    def _prepare(self, corpus: Corpus, wanted: int, label: str) -> PreparedCorpus:
        recorded = self._recorded.get("corpora", {}).get(label) if self._has_results else None
        return prepare(
            corpus,
            tokenizer=self.tokenizer,
            sequence_tokens=self.recipe.training.sequence_tokens,
            wanted_tokens=wanted,
            seed=self.recipe.seed,
            folders=self.folders,
            generate=self._generate,
            model_fingerprint=self.base.fingerprint,
            workers=self.workers,
            progress=self.progress,
            label=label,
            only=None if recorded is None else Path(recorded),
        )

    def _generate(self, settings: SelfReplay, seed: int) -> Iterator[str]:
        from onward.model.generate import sample_documents
        from onward.model.load import load_model

        yield from sample_documents(load_model(self.base), self.tokenizer, settings, seed)

    def _freeze(self) -> None:
        """Write the full recipe into the run; raises UserError, naming the keys, when the run has results of another.

        A run without results (its recipe was refused, or it was killed early) takes the new recipe.
        """
        path = self.folder / "recipe.yaml"
        content = self.recipe.model_dump(mode="json")
        if self._has_results and path.exists():
            # Read as a recipe, so that a knob which is new since then has its default and is no difference.
            before, now = flatten(load_recipe(path).model_dump(mode="json")), flatten(content)
            # With one decay over the whole run its length is part of the mathematics.
            free = _MAY_CHANGE if self.recipe.training.schedule.horizon == "stage" else _MAY_CHANGE[:-1]
            changed = [k for k in sorted(before | now) if before.get(k) != now.get(k) and k not in free]
            if changed:
                raise UserError(
                    f"the run `{self.recipe.name}` was started with another recipe",
                    str(path),
                    "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in changed),
                    todo="restore the old values, give this run another name (--set name=...), or remove its folder",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        environment = self.folder / "environment.json"
        if not (self._has_results and environment.exists()):
            write_json(environment, describe_environment())

    @property
    def _has_results(self) -> bool:
        """Whether something was computed that must stay comparable."""
        kinds = ("checkpoints", "scores")
        return any(any(self.folder.glob(f"{kind}/*/manifest.json")) for kind in kinds)

    @property
    def _recorded(self) -> dict[str, Any]:
        path = self.folder / "artifacts.json"
        content: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return content

    def _record(self, **pointers: Any) -> None:
        """Say in the run's folder where the shared artifacts are, for the report and for people."""
        model = {**asdict(self.base), "folder": str(self.base.folder)}
        write_json(self.folder / "artifacts.json", {**self._recorded, "model": model, **pointers})


def describe_environment() -> dict[str, Any]:
    """Return what the run ran on: versions, hardware, the command."""
    import os
    import platform
    from datetime import UTC, datetime
    from importlib.metadata import version

    import psutil

    from onward import __version__

    return {
        "onward": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": _accelerator(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    """The first NVIDIA GPU's name as its driver tells it; torch, which would know too, takes seconds to import."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), path.parent.name)
    return None


def _parameters(base: ModelSource) -> int:
    """Count the parameters from the safetensors headers or the state dict, tied ones once, without loading them."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    total = 0
    for path in base.folder.glob("*.safetensors"):
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
