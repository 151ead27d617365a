"""What every section of a recipe is."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Problem:
    """What is wrong between values. key: the one to change, from the section that finds it on; "": the section."""

    key: str
    what: str
    todo: str | None = None


class Problems(ValueError):
    """Several problems of one section: `recipe.loading` tells of each alone, with its key and what to do."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.what for problem in problems))


def require_none(problems: Sequence[Problem]) -> None:
    """Raise all problems that there are at once."""
    if problems:
        raise Problems(problems)


class Section(BaseModel):
    """Strict and frozen: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True)
