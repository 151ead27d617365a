"""Read a recipe: defaults < YAML file < `--set`, every problem reported at once."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from onward.errors import UserError, UserErrors, nearest
from onward.recipe.section import Problem, Problems
from onward.recipe.whole import Recipe

PACKAGED = ("quickstart",)
"""Recipes inside the package, named without a path: `onward run quickstart`."""


_BRANCHES = ("int", "bool", "float", "str", "constrained-int", "constrained-float", "constrained-str")
"""What pydantic adds to the key of a value that may be of several types, beside names with brackets."""
_TYPES = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true, false",
    "bool_type": "true, false",
}
"""What a value should have been, by the error that says it is not."""


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
    overridden = [_override(content, override) for override in overrides]
    return recipe_from_mapping(content, where, overridden)


def recipe_from_mapping(content: Mapping[str, Any], where: str = "recipe", overridden: Sequence[str] = ()) -> Recipe:
    """Validate a mapping; raises UserErrors listing every problem with its key and the nearest known name.

    overridden: keys whose values come from the command line.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A value that fits none of several types is told of once for each: one problem, since there is one value.
        by_key: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        problems = []
        for item in error.errors():
            key, cause = _location(item["loc"]), item.get("ctx", {}).get("error")
            if isinstance(cause, Problems):
                problems += [_told(each, key, content, where, overridden) for each in cause.problems]
            else:
                by_key.setdefault(key, []).append(dict(item))
        problems += [_explain(key, items, _place(key, where, overridden)) for key, items in by_key.items()]
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


def _override(content: dict[str, Any], override: str) -> str:
    """Apply one `a.b=value` in place and return its key; the value is read as YAML."""
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
    return key.strip()


def _location(parts: Sequence[str | int]) -> tuple[str, ...]:
    """Return a key's parts without the names that pydantic gives to the branches of a union."""
    return tuple(str(part) for part in parts if str(part) not in _BRANCHES and "[" not in str(part))


def _place(location: Sequence[str], where: str, overridden: Sequence[str]) -> str:
    """Say where a value stands: in the file, or in an override on the command line."""
    key = ".".join(location)
    above = [name for name in overridden if f"{key}.".startswith(f"{name}.")]
    if above:
        within = ".".join(name for name in key.removeprefix(above[-1]).split(".") if name and not name.isdigit())
        return f"--set {above[-1]}" + (f": {within}" if within else "")
    inside = ", ".join(sorted({f"--set {name}" for name in overridden if name.startswith(f"{key}.")}))
    beside = f" (with {inside})" if inside else ""
    return f"{where}, {key}{beside}" if key else where


def _told(
    problem: Problem, section: Sequence[str], content: Mapping[str, Any], where: str, overridden: Sequence[str]
) -> UserError:
    """Place what a section finds wrong between its values at the value to change."""
    location = (*section, *filter(None, problem.key.split(".")))
    value: Any = content
    for name in location:
        value = value.get(name) if isinstance(value, Mapping) else None
    got = repr(value) if isinstance(value, str | int | float) else None
    return UserError(problem.what, _place(location, where, overridden), got, todo=problem.todo)


def _explain(location: tuple[str, ...], items: Sequence[dict[str, Any]], place: str) -> UserError:
    """Turn what pydantic says of one value into what, where, got, expected, what to do."""
    choices = [name for item in items if item["type"] == "literal_error" for name in _quoted(item["ctx"]["expected"])]
    item = next((item for item in items if item["type"] != "literal_error"), items[0])
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = nearest(location[-1], known)
        todo = None if near is None else f"did you mean `{near}`?"
        expected = None if near or not known else f"one of: {', '.join(known)}"
        return UserError(f"unknown key `{location[-1]}`", place, expected=expected, todo=todo)
    if item["type"] == "missing":
        return UserError(f"missing key `{location[-1]}`", place)
    value = item["input"]
    is_whole = isinstance(value, BaseModel) or (isinstance(value, dict) and _known_keys(location))
    shown = None if is_whole else repr(value)
    if choices and item["type"] in ("literal_error", *_TYPES):
        possible = [*filter(None, [_TYPES.get(item["type"])]), *choices]
        near = nearest(value, choices) if isinstance(value, str) else None
        todo = None if near is None else f"did you mean {near}?"
        return UserError(f"unknown value of `{location[-1]}`", place, shown, _either(possible), todo)
    if choices and item["type"] != "value_error":
        expected = f"{item['msg'].removeprefix('Input should be ')}, or {_either(choices)}"
        return UserError(f"`{location[-1]}` cannot have this value", place, shown, expected)
    message = item["msg"].removeprefix("Value error, ")
    return UserError(message[0].lower() + message[1:], place, shown)


def _quoted(choices: str) -> list[str]:
    """Read the names in `'auto', 'none' or 'all'`."""
    return re.findall("'([^']*)'", choices)


def _either(choices: Sequence[str]) -> str:
    """Write a choice: `auto, none or all`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


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
