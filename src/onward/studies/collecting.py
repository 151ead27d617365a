"""Read what the members have left: which are done, and what their scores say."""

import json
from pathlib import Path

from onward.artifact import Folders, read_manifest
from onward.errors import UserError
from onward.model.source import describe
from onward.pipeline import Run
from onward.pipeline.blend import score_blends
from onward.studies.execution import Execution, base_scores_of, places_of, scores_of
from onward.studies.member import Member, Variant
from onward.studies.outcome import Measured
from onward.studies.plan import StudyPlan
from onward.studies.scored import read_texts
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


def measured(plan: StudyPlan) -> tuple[Measured, ...]:
    """Return every variant of which at least one seed is done, with the scores of those that are."""
    found = []
    for variant in plan.variants:
        of_variant = [member for member in plan.members if member.variant == variant]
        places = {member.seed: done_places(plan, member) for member in of_variant}
        done = [member for member in of_variant if places[member.seed]]
        if done:
            found.append(_measured(plan, variant, done, places))
    return tuple(found)


def _measured(plan: StudyPlan, variant: Variant, done: list[Member], places: dict[int, tuple[Stage, ...]]) -> Measured:
    runs = {member.seed: plan.runs / member.name for member in done}
    base = base_scores_of(runs[done[0].seed])
    by_place = {
        place.tokens: read_texts(base, {seed: scores_of(runs[seed], _at(places[seed], place)) for seed in runs})
        for place in places[done[0].seed]
    }
    last = max(by_place)
    parameters = int(json.loads((runs[done[0].seed] / "plan.json").read_bytes())["parameters"])
    return Measured(variant, done[0].recipe, runs, by_place[last], parameters, by_place)


def _at(places: tuple[Stage, ...], like: Stage) -> Stage:
    return next(place for place in places if place.tokens == like.tokens)


def _opened(plan: StudyPlan, member: Member) -> Run:
    """Open a member without making its folder."""
    return Run(member.recipe, folders=Folders(plan.cache, plan.runs), is_plan=True)


def blended(execution: Execution) -> tuple[Measured, ...]:
    """Score the plan's blends of every seed that is done; return those of which at least one seed could be scored."""
    plan, found = execution.plan, []
    scored: dict[str, dict[int, Path]] = {blend.name: {} for blend in plan.blends}
    for member in plan.members:
        blends = [blend for blend in plan.blends if blend.of == member.variant.name]
        if not blends or not done_places(plan, member):
            continue
        with execution.recorded(f"blends-of-{member.name}"):
            folders = _score(execution, member, [blend.share for blend in blends])
            for blend, folder in zip(blends, folders, strict=True):
                scored[blend.name][member.seed] = folder
    for blend in plan.blends:
        if not scored[blend.name]:
            continue
        of = next(member for member in plan.members if member.variant.name == blend.of)
        base = base_scores_of(plan.runs / of.name)
        variant = Variant(blend.name, blend.words, {}, "blend")
        runs = {seed: plan.runs / f"{blend.of}-seed{seed}" for seed in scored[blend.name]}
        parameters = int(json.loads((next(iter(runs.values())) / "plan.json").read_bytes())["parameters"])
        found.append(Measured(variant, of.recipe, runs, read_texts(base, scored[blend.name]), parameters))
    return tuple(found)


def _score(execution: Execution, member: Member, shares: list[float]) -> list[Path]:
    """Score blends of a member on what it was scored on; return their folders."""
    run = Run(member.recipe, folders=execution.folders, progress=execution.progress)
    place = run.folder / "blends"
    there = sum(1 for _ in place.glob("*/manifest.json"))
    recorded = json.loads((run.folder / "artifacts.json").read_bytes())
    evaluation = member.recipe.evaluation.model_copy(update={"precision": recorded["precision"]})
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
