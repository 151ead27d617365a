"""Write docs/recipe.md and docs/cli.md from the recipe's sections and from the commands themselves.

    python tools/reference.py           writes both
    python tools/reference.py --check   exits with 1 when one of them is not current

The test suite runs the check, so neither page can fall behind the code.
"""

import argparse
import sys
from collections.abc import Iterator
from fractions import Fraction
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from onward import cli
from onward.recipe import Recipe, format_share, format_tokens
from onward.recipe.forgetting import parse_replay
from onward.recipe.quantities import parse_share, parse_tokens

DOCS = Path(__file__).resolve().parent.parent / "docs"
GENERATED = "<!-- Written by tools/reference.py; change the code and run it again. -->"

RECIPE_HEAD = """\
# Recipe reference

A recipe is a YAML file with one section for each stage of the run. Only `name`, `model.base` and `corpus` (with a
source) must be given, and `general` or `training.forgetting.replay: null`. Everything else has the default shown here.

- **Layers.** Defaults, then the file, then `--set key=value` on the command line. The result is written in full to
  `recipe.yaml` in the run's folder.
- **Tokens** are written `400M`, `128k`, `1.5B` or as a whole number.
- **Shares** are written `5%` or `0.05` and are kept as exact fractions.
- **Off** is `null`, never 0 or -1.
- **Unknown keys are errors** that name the nearest known key. All problems of a recipe are reported at once.
- **Paths** are relative to the working directory; `~` is expanded.

`onward schema` prints the same as a JSON schema, so that an editor can complete and check:

```console
onward schema > recipe.schema.json
```

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""

CLI_HEAD = """\
# Command line reference

`onward COMMAND --help` prints the same. Every command that takes a recipe goes on where the last one stopped, and
returns at once when there is nothing left to do.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a defect of the program; a traceback is printed |
| 2 | something the user can mend; the message says what, where, and what to do |
| 130 | stopped by Ctrl-C; training saves its state first |
| 143 | stopped by SIGTERM; training saves its state first |

Progress goes to standard error and results to standard output. Artifacts that runs share live in `--cache`, else in
`$ONWARD_CACHE`, else in `~/.cache/onward`.
"""


def recipe_page() -> str:
    """The reference of every recipe section, each once, in the order of the file."""
    parts = [GENERATED, RECIPE_HEAD]
    places: dict[type[BaseModel], list[str]] = {}
    for key, section in _sections(Recipe, ""):
        places.setdefault(section, []).append(key)
    for section, keys in places.items():
        names = ", ".join(f"`{key}`" for key in dict.fromkeys(keys)) if keys[0] else "Top level"
        parts.append(f"## {names}\n\n{_paragraph(section.__doc__)}\n\n{_fields(section)}\n")
    return "\n".join(parts)


def _sections(section: type[BaseModel], key: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield key, section
    for name, field in section.model_fields.items():
        inner = _inner_section(field.annotation)
        if inner is not None and get_origin(field.annotation) is not dict:  # what has names stands elsewhere, too
            listed = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _sections(inner, f"{key}.{name}{listed}".lstrip("."))


def _inner_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_section(part)) is not None), None)


def _fields(section: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        kind = _kind(field.annotation, field.metadata, name)
        inner = _inner_section(field.annotation)
        meaning = field.description or (inner.__doc__ if inner is not None else None)
        assert meaning, f"{section.__name__}.{name} has no description"
        default = _default(field.get_default(call_default_factory=True), kind)
        rows.append(f"| `{name}` | {kind} | {default} | {_cell(_paragraph(meaning))} |")
    return "\n".join(rows)


def _kind(annotation: Any, metadata: list[Any], name: str) -> str:
    """Name a field's type with its unit, in the words of a recipe."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], list(arguments[1:]), name)
    readers = [item.func for item in metadata if isinstance(item, BeforeValidator)]
    if parse_tokens in readers:
        return "tokens"
    if parse_share in readers:
        return "share"
    if parse_replay in readers:
        return "share, `self`, or shares by corpus"
    if origin in (Union, UnionType):
        return " or ".join(_kind(part, [], name) for part in arguments)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        kind = _kind(arguments[1], [], name)
        return f"{'sections' if kind == 'section' else kind} by name"
    if origin is tuple and arguments[-1] is Ellipsis:
        kind = _kind(arguments[0], [], name)
        return f"list of {'sections' if kind == 'section' else kind}"
    if origin is tuple:
        return f"{len(arguments)} values: " + ", ".join(_kind(part, [], name) for part in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    plain = {str: "text", bool: "true or false", type(None): "null", int: "whole number", float: "number"}[annotation]
    return f"{plain}{_unit(name)}" if annotation in (int, float) else plain


def _unit(name: str) -> str:
    """The unit that a field's name carries."""
    for ending in ("bytes_per_token", "tokens", "characters", "lines", "sequences"):
        if name.endswith(ending):
            return f", {ending.replace('_', ' ')}"
    return ""


def _default(value: Any, kind: str) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, dict):
        shown = ", ".join(f"{name}: {_value(part, kind)}" for name, part in value.items())
        return f"`{{{shown}}}`" if shown else "none"
    if isinstance(value, tuple):
        return "`[" + ", ".join(_value(part, kind) for part in value) + "]`"
    return f"`{_value(value, kind)}`"


def _value(value: Any, kind: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction):
        return format_share(value)
    if isinstance(value, int) and "tokens" in kind and "whole" not in kind:
        return format_tokens(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def cli_page() -> str:
    """The reference of every command, in the order of `onward --help`."""
    command: Any = typer.main.get_command(cli.app)
    parts = [GENERATED, CLI_HEAD, _command("onward", command)]
    parts += [_command(f"onward {name}", inner) for name, inner in command.commands.items() if not inner.hidden]
    return "\n".join(parts)


def _command(name: str, command: Any) -> str:
    options = [p for p in command.params if p.param_type_name == "option"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = [name, *(p.metavar or p.name.upper() for p in arguments)]
    usage += [f"{p.opts[0]}{_metavar(p)}" for p in options if p.required]
    usage += ["[OPTIONS]"] if any(not p.required for p in options) else []
    usage += ["COMMAND"] if getattr(command, "commands", None) else []
    rows = [(f"`{p.metavar or p.name.upper()}`", p.help) for p in arguments]
    rows += [(f"`{', '.join(p.opts)}{_metavar(p)}`", _option_help(p)) for p in options]
    lines = [f"## `{name}`", "", _paragraph(command.help), "", "```text", " ".join(usage), "```", ""]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {left} | {_cell(right)} |" for left, right in rows), ""]
    return "\n".join(lines)


def _metavar(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    return f" {parameter.metavar or parameter.opts[0].lstrip('-').upper()}"


def _option_help(parameter: Any) -> str:
    default = parameter.default
    known = default not in (None, False) and "[default" not in parameter.help
    ends = [" [required]"] if parameter.required else [f" [default: {default}]"] if known else []
    repeats = parameter.multiple and "repeatable" not in parameter.help
    return "".join([parameter.help, *ends, " May be repeated." if repeats else ""])


def _paragraph(text: str | None) -> str:
    return " ".join(cleandoc(text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for name, page in (("recipe.md", recipe_page()), ("cli.md", cli_page())):
        path = DOCS / name
        if not check:
            path.write_text(page, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != page:
            stale.append(name)
    if stale:
        print(f"not current: {', '.join(stale)}; run python tools/reference.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
