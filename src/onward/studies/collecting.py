"""Read what the members have left: which are done, and what their scores say."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onward.artifact import Folders, read_manifest
from onward.errors import UserError
from onward.model.source import describe
from onward.pipeline import Run
from onward.pipeline.blend import score_blends
from onward.pipeline.run_folder import RunFolder
from onward.recipe import Recipe
from onward.studies.execution import Execution, base_scores_of, places_of, scores_name, scores_of
from onward.studies.member import Member, Variant
from onward.studies.outcome import Measured
from onward.studies.plan import StudyPlan
from onward.studies.scored import Text, read_texts
from onward.studies.variants import BLEND
from onward.training.stages import Stage


def done_places(plan: StudyPlan, member: Member) -> tuple[Stage, ...]:
    """Return where a member's models are when all are trained and scored, else nothing."""
    try:
        run = _opened(plan, member)
    except UserError:  # told of when it was to be made
        return ()
    places = places_of(run)
    is_done = all(read_manifest(scores_of(run.folder, place)) is not None for place in places)
    return places if is_done else ()


@dataclass(frozen=True)
class _Gathered:
    """What could be read of a variant's seeds, all against the base's scores of the first; texts by tokens and name."""

    base: Path
    recipe: Recipe
    parameters: int
    runs: Mapping[int, Path]
    points: Mapping[int, Mapping[str, Text]]

    def measured(self, variant: Variant) -> Measured:
        """Return it as what a study compares."""
        last = self.points[max(self.points)]
        return Measured(variant, self.recipe, self.runs, last, self.parameters, self.points)


def _with_seed(found: _Gathered | None, plan: StudyPlan, member: Member, scores: Mapping[int, Path]) -> _Gathered:
    """Add a member to its variant's other seeds; scores: folders by tokens. Raises UserError for what does not fit."""
    run = plan.runs / member.name
    base = base_scores_of(run) if found is None else found.base
    points = {tokens: read_texts(base, folder, member.seed) for tokens, folder in scores.items()}
    if found is None:
        return _Gathered(base, member.recipe, _parameters(run), {member.seed: run}, points)
    joined = {
        tokens: {name: text.joined(points[tokens][name]) for name, text in texts.items()}
        for tokens, texts in found.points.items()
    }
    return replace(found, runs={**found.runs, member.seed: run}, points=joined)


def _parameters(run: Path) -> int:
    """Return how many parameters a member's model has; raises UserError when its plan does not say so."""
    path = run / "plan.json"
    try:
        return int(json.loads(path.read_bytes())["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        todo = "remove it and run again; it will be written anew"
        raise UserError("a member's plan cannot be read", str(path), str(error), todo=todo) from error


def measured(execution: Execution) -> tuple[Measured, ...]:
    """Return every variant of which at least one seed is done, with the scores of those that are and can be read."""
    plan, found = execution.plan, []
    for variant in plan.variants:
        gathered: _Gathered | None = None
        for member in plan.members:
            if member.variant != variant:
                continue
            with execution.recorded(scores_name(member), member.name):
                scores = {
                    place.tokens: scores_of(plan.runs / member.name, place) for place in done_places(plan, member)
                }
                gathered = _with_seed(gathered, plan, member, scores) if scores else gathered
        if gathered is not None:
            found.append(gathered.measured(variant))
    return tuple(found)


def _opened(plan: StudyPlan, member: Member) -> Run:
    """Open a member without making its folder."""
    return Run(member.recipe, folders=Folders(plan.cache, plan.runs), is_plan=True)


def blended(execution: Execution) -> tuple[Measured, ...]:
    """Score the plan's blends of every seed that is done; return those of which at least one seed could be scored."""
    plan = execution.plan
    found: dict[str, _Gathered] = {}
    for member in plan.members:
        blends = [blend for blend in plan.blends if blend.of == member.variant.name]
        if not blends:
            continue
        with execution.recorded(f"blends-of-{member.name}", member.name):
            if not done_places(plan, member):
                continue
            execution.progress.note(f"blends of {member.name} with its base")
            folders = _score(execution, member, [blend.share for blend in blends])
            for blend, folder in zip(blends, folders, strict=True):
                scores = {member.recipe.training.stages[-1]: folder}
                found[blend.name] = _with_seed(found.get(blend.name), plan, member, scores)
    variants = [Variant(blend.name, blend.words, {}, BLEND) for blend in plan.blends]
    return tuple(found[variant.name].measured(variant) for variant in variants if variant.name in found)


def _score(execution: Execution, member: Member, shares: list[float]) -> list[Path]:
    """Score blends of a member on what it was scored on; return their folders."""
    run = Run(member.recipe, folders=execution.folders, progress=execution.progress)
    place = run.folder / "blends"
    there = sum(1 for _ in place.glob("*/manifest.json"))
    precision = RunFolder(run.folder, is_written=False).recorded.get("precision", "auto")
    evaluation = member.recipe.evaluation.model_copy(update={"precision": precision})
    scored = score_blends(
        run.base,
        describe(places_of(run)[-1].model),
        shares,
        held_out=run.corpora.scored(),
        evaluation=evaluation,
        place=place,
        seed=member.recipe.seed,
        folders=execution.folders,
        progress=execution.progress,
        processes=execution.processes,
    )
    made = sum(1 for _ in place.glob("*/manifest.json")) - there
    execution.counts.add("blends", made, len(shares) - made)
    return [blend.folder for blend in scored]
