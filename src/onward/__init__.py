"""Carry a small language model onward into a domain: prepare, train, evaluate, report.

    import onward

    result = onward.run("quickstart")
    print(result.report.html)

Each part alone takes the same arguments: a recipe (a path, a packaged name, or a Recipe) and where to work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.evaluation.scores import Scores
    from onward.pipeline import Corpora, RunResult
    from onward.recipe import Recipe
    from onward.reporting.report import ReportFiles
    from onward.training.stages import Stage

__version__ = "0.1.0"
__all__ = ["evaluate", "prepare", "report", "run", "train"]


def run(recipe: "Recipe | str | Path", overrides: Sequence[str] = (), **places: Any) -> "RunResult":
    """Do the whole of a recipe, or what is left of it. places: folders, progress, workers of `onward.pipeline.Run`."""
    from onward.pipeline import Run

    return Run(recipe, overrides, **places).all()


def prepare(recipe: "Recipe | str | Path", overrides: Sequence[str] = (), **places: Any) -> "Corpora":
    """Prepare the recipe's corpora: read, filter, deduplicate, hold out, tokenise, pack."""
    from onward.pipeline import Run

    return Run(recipe, overrides, **places).corpora


def train(recipe: "Recipe | str | Path", overrides: Sequence[str] = (), **places: Any) -> "tuple[Stage, ...]":
    """Train all stages of the recipe (preparing the corpora first where that is due)."""
    from onward.pipeline import Run

    return Run(recipe, overrides, **places).train()


def evaluate(recipe: "Recipe | str | Path", overrides: Sequence[str] = (), **places: Any) -> "tuple[Scores, ...]":
    """Score the base and every stage that is trained; the base comes first."""
    from onward.pipeline import Run

    return Run(recipe, overrides, **places).scores()


def report(recipe: "Recipe | str | Path", overrides: Sequence[str] = (), **places: Any) -> "ReportFiles":
    """Write the report of whatever the run has so far."""
    from onward.pipeline import Run

    return Run(recipe, overrides, **places).report()
