"""The application that the commands register with."""

from typing import Annotated

import typer

from onward import __version__

app = typer.Typer(
    name="onward",
    help="Carry a small language model onward into your domain, and know what it gained and what it lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
