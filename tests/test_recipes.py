"""The recipes that people start from: each loads, and says in its first line how it is run."""

from importlib import resources
from pathlib import Path

import pytest

from onward.recipe import load_recipe
from onward.recipe.loading import PACKAGED

RECIPES = ("domains", "education", "paper", "quickstart", "sizes")
STUDIES = ("domains", "sizes")
"""Recipes that are made for the study of their name."""


def test_no_recipe_is_forgotten(repository: Path) -> None:
    assert sorted(path.name for path in (repository / "recipes").iterdir()) == [f"{name}.yaml" for name in RECIPES]
    packaged = resources.files("onward") / "recipe" / "packaged"
    assert sorted(entry.name for entry in packaged.iterdir()) == [f"{name}.yaml" for name in PACKAGED]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_opens_with_the_command_that_runs_it(repository: Path, name: str) -> None:
    path = repository / "recipes" / f"{name}.yaml"
    command = f"study {name}" if name in STUDIES else "run"
    assert path.read_text(encoding="utf-8").splitlines()[:2] == [f"# onward {command} recipes/{name}.yaml", "#"]
    assert load_recipe(path).name == name


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_recipe_differs_from_its_copy_in_the_command_only(repository: Path, name: str) -> None:
    entry = resources.files("onward") / "recipe" / "packaged" / f"{name}.yaml"
    packaged = entry.read_text(encoding="utf-8").splitlines()
    copy = (repository / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert packaged[0] == f"# onward run {name}"
    assert packaged[1:] == copy[1:]
    assert load_recipe(name) == load_recipe(repository / "recipes" / f"{name}.yaml")
