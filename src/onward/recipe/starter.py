"""`onward init`: a commented starter recipe, every field with its default, its unit and its purpose."""

from inspect import cleandoc
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from onward.errors import UserError
from onward.recipe.loading import recipe_from_mapping
from onward.recipe.proxies import PREFIX, PROXIES, proxy_for
from onward.recipe.quantities import format_tokens
from onward.recipe.training import Training

_SAMPLED = {"self_replay": {}, "quality": "none", "held_out": {"share": "10%"}}
"""General text when none is given: the base's own samples, without rules made for web pages."""


def write_starter(
    path: Path, model: str, corpus: list[str], general: list[str], context_tokens: int | None = None
) -> None:
    """Write a recipe for `model` and `corpus`; raises UserError when the file exists or nothing was given.

    context_tokens: the model's context where it is known; sequences are not longer.
    """
    if path.exists():
        raise UserError("the recipe exists already", str(path), todo="choose another name with --output")
    given: dict[str, Any] = {
        "name": path.stem,
        "model": {"base": model},
        "corpus": {"sources": [{"path": source} for source in corpus]},
        "general": {"sources": [{"path": s} for s in general]} if general else _SAMPLED,
    }
    if context_tokens is not None and context_tokens < Training().sequence_tokens:  # type: ignore[call-arg]
        given["training"] = {"sequence_tokens": context_tokens}
    recipe = recipe_from_mapping(given)
    lines = [f"# onward run {path}", "# Every field is shown with its default; delete what you do not change."]
    lines += [] if general else _other_text(model)
    lines.append("")
    lines += _section(recipe, indent=0)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _other_text(model: str) -> list[str]:
    """Say which public text could stand for what a known base was trained on, in the place of its samples."""
    name = proxy_for(model)
    if name is None:
        return []
    proxy = PROXIES[name]
    return [
        "# `general` is sampled from the base. Public text that is much like what this base was trained on:",
        f"#   general: {{sources: [{{path: {PREFIX}{name}}}]}}",
        f"# {proxy.what}; licence {proxy.license}; needs the network.",
    ]


def _section(section: BaseModel, indent: int) -> list[str]:
    """Lines of one section: each field's docstring as a comment above it."""
    pad, lines = "  " * indent, []
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if indent == 0:
            lines.append("")
        lines += [f"{pad}# {row}" for row in cleandoc(field.description or "").splitlines() if row]
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:", *_section(value, indent + 1)]
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            lines.append(f"{pad}{name}:")
            for item in value:
                shown = {k: v for k, v in item.model_dump(mode="json").items() if v is not None}
                lines.append(f"{pad}  - {yaml.safe_dump(shown, default_flow_style=True, width=1000).strip()}")
        else:
            shown = _with_units(name, dumped[name])
            text = yaml.safe_dump(shown, default_flow_style=True, width=1000).strip()
            lines.append(f"{pad}{name}: {text.removesuffix('...').strip()}")
    return lines


def _with_units(name: str, value: Any) -> Any:
    """Write budgets as people do: 400M instead of 400000000."""
    if isinstance(value, list):
        return [_with_units(name, inner) for inner in value]
    is_budget = name.endswith("tokens") or name == "stages"
    return format_tokens(value) if is_budget and isinstance(value, int) and value >= 100_000 else value
