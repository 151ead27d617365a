"""The command that runs a study of a recipe."""

from enum import StrEnum
from typing import Annotated

import typer

from onward.cli.application import app
from onward.command import Cache, Gpus, Overrides, Processes, RecipeName, Runs, Workers, working


class StudyName(StrEnum):
    """The studies."""

    BASELINE = "baseline"
    PILOT = "pilot"
    TOKENS = "tokens"
    REMEDIES = "remedies"
    DOMAINS = "domains"
    SIZES = "sizes"
    RATES = "rates"


class Emitted(StrEnum):
    """What is printed instead of running the members here."""

    COMMANDS = "commands"
    SLURM = "slurm"


_NAMES = "What is studied: " + ", ".join(name.value for name in StudyName) + "."


@app.command()
def study(
    name: Annotated[StudyName, typer.Argument(metavar="NAME", help=_NAMES)],
    recipe: RecipeName,
    set_: Overrides = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Trainings of each member. [default: study.seeds]")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Length of each training. [default: study.tokens]")
    ] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="tokens: train each budget by itself, to the end of its decay.")
    ] = False,
    keep_states: Annotated[
        bool, typer.Option("--keep-states", help="Keep the optimizer states of members that are scored.")
    ] = False,
    emit: Annotated[
        Emitted | None, typer.Option("--emit", help="Print the members' commands, or a Slurm array, and run nothing.")
    ] = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    gpus: Gpus = None,
    processes: Processes = None,
) -> None:
    """Train a recipe's variants one after the other, and say in one table and one plot what they show."""
    from onward.terminal import print_study

    # GPUs are counted where the members run: a login node has none. Both at once are refused here too.
    here = emit is None or processes is not None
    with working(cache, runs, (gpus, processes) if here else (None, None)) as work:
        from onward.studies import emitted, planned, run_study

        each = None if tokens is None else _tokens(tokens)
        plan = planned(
            name.value, recipe, set_ or (), folders=work.folders, seeds=seeds, tokens=each, separate=separate
        )
        if emit is not None:
            again = _again(name, recipe, set_, seeds, tokens, separate, keep_states)
            places = ["--cache", str(work.folders.cache), "--runs", str(work.folders.runs)]
            given = {"--workers": workers, "--gpus": gpus, "--processes": processes}
            how = [word for option, value in given.items() if value is not None for word in (option, str(value))]
            typer.echo(emitted(plan, emit.value, [*again, *places, *how], how), nl=False)
            return
        result = run_study(
            plan, progress=work.progress, workers=workers, processes=work.processes, keep_states=keep_states
        )
    print_study(result)
    if result.code:
        raise typer.Exit(result.code)


def _tokens(text: str) -> int:
    from onward.errors import UserError
    from onward.recipe.quantities import parse_tokens

    try:
        return parse_tokens(text)
    except ValueError as error:
        raise UserError("not a number of tokens", "--tokens", text, str(error).removeprefix("expected ")) from None


def _again(
    name: StudyName,
    recipe: str,
    overrides: list[str] | None,
    seeds: int | None,
    tokens: str | None,
    separate: bool,
    keep_states: bool,
) -> list[str]:
    """The words of this command without --emit."""
    words = ["onward", "study", name.value, recipe]
    words += [part for override in overrides or () for part in ("--set", override)]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    words += [] if tokens is None else ["--tokens", tokens]
    words += ["--separate"] if separate else []
    return words + (["--keep-states"] if keep_states else [])
