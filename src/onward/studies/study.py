"""The study of a recipe from end to end: members made or found, results collected, everything written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from onward.artifact import Folders, disk_errors, locked
from onward.errors import UserError
from onward.progress import Progress, Silent
from onward.recipe import Recipe, load_recipe
from onward.studies import baseline, budgets_compared, pilot, rates, remedies, side_by_side
from onward.studies.collecting import blended, measured
from onward.studies.execution import Counts, Execution, Failure, base_scores_of
from onward.studies.outcome import Measured, Outcome
from onward.studies.plan import StudyPlan, plan_study
from onward.studies.variants import STUDIES
from onward.studies.writing import earlier_words, write_study


@dataclass(frozen=True)
class StudyResult:
    """What a study leaves. outcome: None when no member was made. page: the result as one HTML file."""

    folder: Path
    outcome: Outcome | None
    failures: tuple[Failure, ...]
    counts: Counts
    page: Path

    @property
    def code(self) -> int:
        """Exit code: 0; 2 when members failed by what their owner can mend; 1 when one failed otherwise."""
        if not self.failures:
            return 0
        return 2 if all(failure.is_users for failure in self.failures) else 1


def planned(
    study: str,
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    folders: Folders | None = None,
    seeds: int | None = None,
    tokens: int | None = None,
    separate: bool = False,
) -> StudyPlan:
    """Return a study's members, their recipes written; raises UserError when the recipe lacks what it varies.

    A study that has results of another recipe, or of another budget, is refused too, and one that is running.
    """
    if study not in STUDIES:
        raise UserError("there is no such study", got=study, expected=f"one of: {', '.join(STUDIES)}")
    if separate and study != "tokens":
        raise UserError("only the study of tokens has separate budgets", "--separate", got=study)
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    plan = plan_study(study, loaded, folders or Folders.default(), seeds, tokens, separate)
    with _alone(plan):
        return plan


@contextmanager
def _alone(plan: StudyPlan) -> Iterator[None]:
    """Keep others from the study, and its recipes on disk those of the plan; raises UserError when one is at it."""

    def refuse() -> Never:
        todo = "wait for it to end, or give this one another name (--set name=...)"
        raise UserError("another process is running this study", str(plan.folder), todo=todo)

    with locked(plan.folder / "study", refuse):
        plan.check_begun()
        with disk_errors(plan.folder):
            plan.write_recipes()
        yield


def run_study(
    plan: StudyPlan,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
    processes: int = 1,
    keep_states: bool = False,
) -> StudyResult:
    """Make what the plan's members lack, collect them all, and write the study's files.

    workers and processes: as of `pipeline.Run`. keep_states: leave the states of members that are scored. A member that
    fails is recorded and the others go on; a signal ends the study, and the same call goes on. Raises UserError as
    `planned` does when another process has begun the study since.
    """
    execution = Execution(plan, progress or Silent(), workers, processes, keep_states)
    with _alone(plan):  # once more: another may have written its recipes since this was planned
        execution.all()
        outcome = _outcome(plan, execution)
        page = write_study(plan, outcome, execution.failures, execution.counts)
        if outcome is None and (words := earlier_words(plan.folder)) is not None:
            execution.progress.note(words)
    return StudyResult(plan.folder, outcome, tuple(execution.failures), execution.counts, page)


def _outcome(plan: StudyPlan, execution: Execution) -> Outcome | None:
    """Compare the members that are done; None where there is nothing to compare."""
    failed = {failure.member for failure in execution.failures}
    if plan.study == "baseline":
        member = plan.members[0]
        return None if member.name in failed else baseline.outcome(base_scores_of(plan.runs / member.name))
    found: tuple[Measured, ...] = (*measured(execution), *blended(execution))
    if not found:
        return None
    if plan.study == "pilot":
        return pilot.outcome(found, plan.recipe)
    if plan.study == "tokens":
        return budgets_compared.outcome(found, plan.separate)
    if plan.study == "remedies":
        return remedies.outcome(found)
    if plan.study == "rates":
        return rates.outcome(found)
    compared = {each.variant.name for each in found}
    not_made = [variant.words for variant in plan.variants if variant.name not in compared]
    return side_by_side.outcome(found, plan.study, not_made)
