"""The scores of a run: of its base, of its stages' ends and of the models between them, all with the same settings."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import Folders, fingerprint, read_manifest
from onward.model.source import ModelSource, describe
from onward.pipeline.run_folder import RunFolder
from onward.progress import Progress
from onward.recipe import Evaluation, Recipe

if TYPE_CHECKING:
    from onward.evaluation.scores import Scores
    from onward.training.stages import Stage


@dataclass(frozen=True)
class Scoring:
    """Scores the models of a run; what is scored already is only read.

    held_out: the artifact of each corpus. processes: ranks that share the items.
    """

    recipe: Recipe
    base: ModelSource
    held_out: Mapping[str, Path]
    folders: Folders
    kept: RunFolder
    progress: Progress
    processes: int

    def score_base(self) -> "Scores":
        """Score the base model; the result is shared by every run that starts from it on the same text.

        Where another run is scoring it, that is waited for.
        """
        from onward.evaluation.evaluate import base_scores_folder

        inputs: dict[str, Any] = {"held_out": self.held_out, "seed": self.recipe.seed, "cloze": self.cloze}
        folder = base_scores_folder(self.folders, self.base, evaluation=self.evaluation, **inputs)
        self.kept.record(self.base, base_scores=str(folder), precision=self.evaluation.precision)
        return self._evaluate(self.base, folder, waits=True)

    def score_stage(self, stage: "Stage") -> "Scores":
        """Score the model at a stage's end, or of a token count between."""
        folder = self.kept.folder / "scores" / stage.folder.name
        scored, model = read_manifest(folder), describe(stage.model)
        if scored is not None and scored.made_from.get("model") != model.fingerprint:
            shutil.rmtree(folder)  # the checkpoint was made anew, and not to the same bits: another device, say
        return self._evaluate(model, folder)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The recipe's settings, `precision: auto` settled: a run stays with what its first scores were computed in."""
        from onward.evaluation.evaluate import choose_precision

        asked = self.recipe.evaluation
        began_with = self.kept.recorded.get("precision") if self.kept.has_results else None
        precision = began_with or choose_precision(asked, self.base)
        return asked.model_copy(update={"precision": precision})

    @cached_property
    def cloze(self) -> Path | None:
        """Questions made from the domain's held-out text with the base model's help; shared as its scores are."""
        items = self.recipe.evaluation.cloze
        if items is None:
            return None
        from onward.evaluation.cloze import cloze_made_from, make_cloze

        facts: dict[str, Any] = {"base": self.base, "items": items, "seed": self.recipe.seed}
        text = self.held_out["domain"]
        folder = self.folders.cache / "cloze" / fingerprint(cloze_made_from(text, **facts))
        return make_cloze(text, **facts, folder=folder, progress=self.progress)

    def _evaluate(self, model: ModelSource, folder: Path, waits: bool = False) -> "Scores":
        from onward.evaluation.evaluate import evaluate

        return evaluate(
            model,
            evaluation=self.evaluation,
            held_out=self.held_out,
            folder=folder,
            seed=self.recipe.seed,
            progress=self.progress,
            processes=self.processes,
            cloze=self.cloze,
            prompts=self.folders.cache / "prompts",
            waits=waits,
        )
