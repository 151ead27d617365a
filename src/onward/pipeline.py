"""The step `run`, and each of its parts alone: which stages are due, in order; resuming is asking the artifacts."""

import json
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
from onward.model.source import ModelSource, resolve
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.plan import Plan, check_model, plan_run, wanted_tokens
from onward.progress import Progress, Silent
from onward.recipe import Corpus, Recipe, SelfReplay, load_recipe

if TYPE_CHECKING:
    from onward.evaluation.scores import Scores
    from onward.reporting.report import ReportFiles
    from onward.training.stages import Stage

_MAY_CHANGE = (
    "training.micro_batch_sequences",
    "training.gradient_checkpointing",
    "training.loss_chunk_tokens",
    "training.checkpoint_tokens",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
    "training.tensorboard",
    "training.maximum_repetition",
    "training.stages",
)
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
        """The base model's files."""
        return resolve(self.recipe.model.base, self.recipe.model.revision)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The base model's tokenizer, checked against the model and the recipe."""
        tokenizer = read_tokenizer(self.base.folder)
        check_model(self.recipe, self.base, tokenizer)
        return tokenizer

    @cached_property
    def corpora(self) -> Corpora:
        """Prepared domain and general text."""
        needed_domain, needed_general = plan_batches(self.recipe.training, self.recipe.seed).needed_sequences()
        general = self._sized(self.recipe.general, needed_general)
        corpora = Corpora(
            self._prepare(self.recipe.corpus, needed_domain, "domain"),
            None if general is None else self._prepare(general, needed_general, "general"),
        )
        self._write_pointers(corpora)
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
        self._write_pointers(self.corpora, folder)
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

        return evaluate(
            stage.model,
            evaluation=self.recipe.evaluation,
            held_out=self.corpora.paths(),
            folder=self.folder / "scores" / stage.folder.name,
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

    def _sized(self, general: Corpus | None, needed_sequences: int) -> Corpus | None:
        """Give self-replay its number of tokens where the recipe leaves it open."""
        if general is None or general.self_replay is None or general.self_replay.tokens is not None:
            return general
        training = self.recipe.training
        tokens = ceil(needed_sequences * training.sequence_tokens / training.maximum_repetition)
        if not general.held_out.sources:  # a part of the samples is held out and not replayed
            tokens = ceil(tokens / (1 - general.held_out.share))
        # Short samples leave padding; a tenth more keeps the repetition under its cap.
        replay = general.self_replay.model_copy(update={"tokens": max(ceil(tokens * 1.1), _LEAST_SAMPLED_TOKENS)})
        return general.model_copy(update={"self_replay": replay})

    def _prepare(self, corpus: Corpus, needed_sequences: int, label: str) -> PreparedCorpus:
        return prepare(
            corpus,
            tokenizer=self.tokenizer,
            sequence_tokens=self.recipe.training.sequence_tokens,
            wanted_tokens=wanted_tokens(corpus, needed_sequences, self.recipe),
            seed=self.recipe.seed,
            folders=self.folders,
            generate=self._generate,
            model_fingerprint=self.base.fingerprint,
            workers=self.workers,
            progress=self.progress,
            label=label,
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
        has_results = any(self.folder.glob("checkpoints/*/manifest.json")) or any(
            self.folder.glob("scores/*/manifest.json")
        )
        if has_results and path.exists():
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
        if not (has_results and environment.exists()):
            write_json(environment, describe_environment())

    def _write_pointers(self, corpora: Corpora, base_scores: Path | None = None) -> None:
        """Say in the run's folder where the shared artifacts are, for the report and for people."""
        path = self.folder / "artifacts.json"
        known: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        known["corpora"] = {name: str(folder) for name, folder in corpora.paths().items()}
        known["model"] = {**asdict(self.base), "folder": str(self.base.folder)}
        if base_scores is not None:
            known["base_scores"] = str(base_scores)
        write_json(path, known)


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
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
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
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


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
