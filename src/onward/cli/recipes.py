"""Commands that help to write a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from onward.cli.application import app
from onward.command import (
    user_errors,
)


@app.command()
def init(
    model: Annotated[str, typer.Option(help="Base model: onward/tiny, a folder or a Hub id.")],
    corpus: Annotated[list[str], typer.Option(help="Domain text: file, folder, glob or hf:// path; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    general: Annotated[
        list[str] | None,
        typer.Option(help="General text to replay, or proxy:NAME; without it the base samples its own."),
    ] = None,
) -> None:
    """Write a commented starter recipe."""
    from onward.corpus.reading.sources import find_inputs
    from onward.model.source import local_context_tokens
    from onward.recipe import Source
    from onward.recipe.proxies import PREFIX
    from onward.recipe.starter import write_starter

    with user_errors():
        here = [path for path in [*corpus, *(general or [])] if "://" not in path and not path.startswith(PREFIX)]
        for path in here:
            find_inputs(Source(path=path))  # a mistyped path is best told at once
        write_starter(output, model, corpus, general or [], local_context_tokens(model))
    typer.echo(f"{output}\nnext: onward run {output}")


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    import json

    from onward.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
