"""Read a recipe: defaults < YAML file < `--set`, every problem reported at once."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from onward.errors import UserError, UserErrors, nearest
from onward.recipe.sections import Recipe

PACKAGED = ("quickstart",)
"""Recipes inside the package, named without a path: `onward run quickstart`."""


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `recipe` (a YAML file, or the name of a packaged recipe) with `key.sub=value` overrides on top.

    Raises UserError for a missing file or broken YAML, UserErrors with all the problems of the content.
    """
    where, text = _read_text(recipe)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark is not None else where
        raise UserError("the recipe is not valid YAML", line, str(getattr(error, "problem", error))) from None
    if not isinstance(content, dict):
        raise UserError("a recipe is a mapping of sections", where, type(content).__name__, "name:, model:, corpus:")
    for override in overrides:
        _override(content, override)
    return recipe_from_mapping(content, where)


def recipe_from_mapping(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping; raises UserErrors listing every problem with its key and the nearest known name."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_explain(dict(item), where) for item in error.errors()]
        plural = "problem" if len(problems) == 1 else "problems"
        raise UserErrors(f"{where}: {len(problems)} {plural}", problems) from None


def _read_text(recipe: str | Path) -> tuple[str, str]:
    if str(recipe) in PACKAGED:
        file = resources.files("onward") / "recipe" / "packaged" / f"{recipe}.yaml"
        return str(recipe), file.read_text(encoding="utf-8")
    path = Path(recipe).expanduser()
    try:
        return str(path), path.read_text(encoding="utf-8")
    except OSError as error:
        todo = f"give a YAML file, or one of the packaged recipes: {', '.join(PACKAGED)}; `onward init` writes one"
        raise UserError("the recipe cannot be read", str(path), error.strerror, todo=todo) from None
    except UnicodeDecodeError as error:
        raise UserError("the recipe is not UTF-8 text", str(path), str(error)) from None


def _override(content: dict[str, Any], override: str) -> None:
    """Apply one `a.b=value` in place; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError("an override is written key=value", "--set", override, "training.stages=[10M]")
    *parents, last = key.strip().split(".")
    place: Any = content
    for name in parents:
        if isinstance(place, dict):
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
        elif isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        else:
            raise UserError("an override points into a value that has no parts", "--set", override)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError("the value of an override is not valid YAML", "--set", override) from None
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise UserError("an override points into a value that has no parts", "--set", override)


def _explain(item: dict[str, Any], where: str) -> UserError:
    """Turn one pydantic error into what, where, got, expected."""
    location = [str(part) for part in item["loc"] if not str(part).startswith(("literal[", "function-", "int"))]
    key = ".".join(location)
    place = f"{where}, {key}" if key else where
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = nearest(location[-1], known)
        hint = f"did you mean `{near}`?" if near else f"one of: {', '.join(known)}"
        return UserError(f"unknown key `{location[-1]}`", place, expected=hint)
    if item["type"] == "missing":
        return UserError(f"missing key `{location[-1]}`", place)
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    shown = None if isinstance(value, dict | BaseModel) else repr(value)
    return UserError(message[0].lower() + message[1:], place, shown)


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys that the section at `location` knows."""
    section: type[BaseModel] = Recipe
    for name in location:
        if name.isdigit():
            continue
        field = section.model_fields.get(name)
        inner = None if field is None else _section_of(field.annotation)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Find the section inside `Section | None`, `tuple[Section, ...]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple):
        return next((s for part in get_args(annotation) if (s := _section_of(part)) is not None), None)
    return None
