"""Several ranks for one run: started by torchrun from here, or started elsewhere and waiting for the first."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onward.artifact import Folders
from onward.progress import Progress
from onward.recipe import Recipe
from onward.training.kept import is_whole
from onward.training.launch import RanksEnded, run_ranks
from onward.training.stages import points_of, stages_of

if TYPE_CHECKING:
    from onward.training.stages import Stage


def train_by_ranks(
    recipe: Recipe,
    folders: Folders,
    processes: int,
    progress: Progress,
    until_stage: int | None,
    until_step: int | None,
) -> "tuple[Stage, ...]":
    """Have torchrun train the recipe that is frozen in the run's folder; return the complete stages.

    Ranks whose memory was full are started again with what they have left to give up. Raises RanksEnded when they do
    not get to the end.
    """
    folder = folders.runs / recipe.name
    stages = stages_of(recipe.training, recipe.training_seed, folder)[:until_stage]
    points = points_of(recipe.training, recipe.evaluation.at, recipe.training_seed, folder)
    due = (*stages, *(point for point in points if point.number <= len(stages)))
    if all(is_whole(place.folder, lambda _: None) for place in due):  # the ranks tell what is damaged
        return stages
    command = ["train", str(folder / "recipe.yaml"), "--until-stage", str(len(stages))]
    command += [] if until_step is None else ["--until-step", str(until_step)]
    command += ["--cache", str(folders.cache), "--runs", str(folders.runs)]
    given_up = folder / "checkpoints" / "retreat.json"
    while True:
        progress.begin("training", processes, "ranks")
        progress.advance(processes)
        before = given_up.read_bytes() if given_up.exists() else None
        ending = run_ranks(command, processes)
        if ending.status == 0:
            return tuple(stage for stage in stages if until_step is None or stage.steps <= until_step)
        if before == (given_up.read_bytes() if given_up.exists() else None):
            raise RanksEnded(ending)
        progress.note("the memory was full; beginning again with what the ranks have left to give up")


def first_alone(action: Callable[[], Any]) -> None:
    """Let the first rank act while the others wait; when it fails, they leave without a word (SystemExit)."""
    from onward.training.ranks import joined

    with joined() as ranks:
        problem: BaseException | None = None
        if ranks.is_first:
            try:
                action()
            except BaseException as error:
                problem = error
        if ranks.agree(problem is not None):
            raise problem if problem is not None else SystemExit(2)
