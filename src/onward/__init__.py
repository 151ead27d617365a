"""Carry a small language model onward into a domain: prepare, train, evaluate, report.

    import onward

    result = onward.run("quickstart")
    print(result.report.html)

Each part alone takes the same arguments: a recipe (a path, a packaged name, or a Recipe) and where to work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onward.artifact import Folders
    from onward.evaluation.scores import Scores
    from onward.pipeline import Corpora, RunResult
    from onward.progress import Progress
    from onward.recipe import Recipe
    from onward.reporting.report import ReportFiles
    from onward.training.stages import Stage

__version__ = "0.1.0"
__all__ = ["evaluate", "prepare", "report", "run", "train"]


def run(
    recipe: "Recipe | str | Path",
    overrides: Sequence[str] = (),
    *,
    folders: "Folders | None" = None,
    progress: "Progress | None" = None,
    workers: int | None = None,
    stream: bool = False,
) -> "RunResult":
    """Do the whole of a recipe, or what is left of it. The keywords are those of `onward.pipeline.Run`.

    stream: train on the blocks of text that are prepared while the rest is (for `training.order: blocks`).
    """
    from onward.pipeline import Run

    return Run(recipe, overrides, folders, progress, workers).all(stream)


def prepare(
    recipe: "Recipe | str | Path",
    overrides: Sequence[str] = (),
    *,
    folders: "Folders | None" = None,
    progress: "Progress | None" = None,
    workers: int | None = None,
) -> "Corpora":
    """Prepare the recipe's corpora: read, filter, deduplicate, hold out, tokenise, pack."""
    from onward.pipeline import Run

    return Run(recipe, overrides, folders, progress, workers).corpora


def train(
    recipe: "Recipe | str | Path",
    overrides: Sequence[str] = (),
    *,
    folders: "Folders | None" = None,
    progress: "Progress | None" = None,
    workers: int | None = None,
) -> "tuple[Stage, ...]":
    """Train all stages of the recipe (preparing the corpora first where that is due)."""
    from onward.pipeline import Run

    return Run(recipe, overrides, folders, progress, workers).train()


def evaluate(
    recipe: "Recipe | str | Path",
    overrides: Sequence[str] = (),
    *,
    folders: "Folders | None" = None,
    progress: "Progress | None" = None,
    workers: int | None = None,
) -> "tuple[Scores, ...]":
    """Score the base and every stage that is trained; the base comes first."""
    from onward.pipeline import Run

    return Run(recipe, overrides, folders, progress, workers).scores()


def report(
    recipe: "Recipe | str | Path",
    overrides: Sequence[str] = (),
    *,
    folders: "Folders | None" = None,
    progress: "Progress | None" = None,
    workers: int | None = None,
) -> "ReportFiles":
    """Write the report of whatever the run has so far."""
    from onward.pipeline import Run

    return Run(recipe, overrides, folders, progress, workers).report()
