"""Commands over a recipe: run it, or one of its steps."""

from typing import Annotated

import typer

from onward.cli.application import app
from onward.command import (
    Address,
    Cache,
    Engine,
    EngineName,
    Gpus,
    Overrides,
    Processes,
    RecipeName,
    Runs,
    Stream,
    Workers,
    opened,
    user_errors,
)


@app.command()
def run(
    recipe: RecipeName,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    stream: Stream = False,
    gpus: Gpus = None,
    processes: Processes = None,
) -> None:
    """Prepare, score the base, train and score every stage, report; run again to go on where it stopped."""
    from onward.terminal import print_summary

    with opened(recipe, set_, cache, runs, workers, engine, address, ranks=(gpus, processes)) as opened_run:
        result = opened_run.all(stream)
    for stage in result.report.summary:
        print_summary(stage.rows, stage.title)
    typer.echo(f"report: {result.report.html}")


@app.command()
def prepare(
    recipe: RecipeName,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
) -> None:
    """Read, filter, deduplicate, hold out, tokenise and pack the recipe's corpora."""
    from onward.terminal import print_ledger

    with opened(recipe, set_, cache, runs, workers, engine, address) as opened_run:
        corpora = opened_run.corpora
    for name, corpus in corpora.by_name().items():
        print_ledger(name, corpus.ledger)
        typer.echo(f"{name + ':':8} {corpus.path}")


@app.command()
def train(
    recipe: RecipeName,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    gpus: Gpus = None,
    processes: Processes = None,
    until_stage: Annotated[int | None, typer.Option("--until-stage", min=1, help="Stop after this stage.")] = None,
    until_step: Annotated[
        int | None, typer.Option("--until-step", min=1, help="Stop after so many steps of the run, saved.")
    ] = None,
) -> None:
    """Train every stage, going on from the newest checkpoint; under torchrun or srun as one of the ranks."""
    with opened(recipe, set_, cache, runs, workers, ranks=(gpus, processes), is_rank=True) as opened_run:
        stages = opened_run.train(until_stage, until_step)
        talks = opened_run.place.is_first and opened_run.place.world == 1
    for stage in stages if talks else ():
        if stage.model.exists():  # `--until-step` may end before
            typer.echo(f"stage {stage.number}: {stage.model}")


@app.command()
def plan(
    recipe: RecipeName,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    gpus: Gpus = None,
    processes: Processes = None,
    hardware: Annotated[
        str | None,
        typer.Option("--hardware", help="A machine that is not here: h100, 8xa100-80gb. [default: this one]"),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time a few training steps on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a run will need before anything is spent: text, steps, memory, hours, disk; refuse what cannot work."""
    import json

    from onward.plan.figure import write_figure
    from onward.terminal import print_plan

    with opened(recipe, set_, cache, runs, workers, ranks=(gpus, processes), is_plan=True) as opened_run:
        foresight = opened_run.foresee(hardware, measure)
        figure = None if foresight.problems else write_figure(foresight, opened_run.folder)
    if as_json:
        typer.echo(json.dumps(foresight.as_json(), ensure_ascii=False))
    else:
        print_plan(foresight)
        if figure is not None:
            typer.echo(f"learning-rate curve: {figure}")
    with user_errors():
        foresight.check()


@app.command()
def verify_resume(
    recipe: RecipeName,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Steps to train twice. [default: 12]")] = None,
    kills: Annotated[int, typer.Option("--kills", min=0, help="How often to kill the second training.")] = 3,
    ranks: Annotated[
        str | None, typer.Option("--ranks", help="Processes of one start after the other, in turns. [default: 1,2,1]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the moments of the kills.")] = 0,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Nats that losses may differ by. [default: by precision]")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both trainings in the run's folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Train some steps twice, the second time with kills, restarts and other ranks; exit 1 if they differ."""
    import json

    from onward.errors import UserError
    from onward.terminal import print_verification
    from onward.verification import verify_resume

    with opened(recipe, set_, cache, runs, workers) as opened_run:
        parts = None if ranks is None else ranks.split(",")
        if parts is not None and not all(part.strip().isdigit() for part in parts):
            raise UserError("ranks are counted from one", "--ranks", ranks, "1,2,1, say")
        numbers = None if parts is None else [int(part) for part in parts]
        found = verify_resume(
            opened_run, steps=steps, kills=kills, ranks=numbers, seed=seed, tolerance_nats=tolerance, keep=keep
        )
    if as_json:
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        print_verification(found)
    if not found.agrees:
        raise typer.Exit(1)


@app.command()
def report(recipe: RecipeName, set_: Overrides = None, cache: Cache = None, runs: Runs = None) -> None:
    """Write the report of what the run has so far."""
    with opened(recipe, set_, cache, runs, None) as opened_run:
        files = opened_run.report()
    typer.echo(f"report: {files.html}")
