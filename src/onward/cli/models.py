"""Commands over models: score them, compare them."""

from pathlib import Path
from typing import Annotated

import typer

from onward.cli.application import app
from onward.command import (
    AsJson,
    BlendTasks,
    Cache,
    Data,
    DomainTexts,
    GeneralTexts,
    Limit,
    Objective,
    Out,
    Overrides,
    PrecisionOption,
    Runs,
    ScoringGpus,
    ScoringProcesses,
    Tasks,
    Texts,
    TextTokens,
    Work,
    Workers,
    choice_rule,
    how_to_score,
    opened,
    options_named,
    refuse_options,
    user_errors,
    working,
)


@app.command()
def evaluate(
    targets: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models: folders, Hub ids, onward/tiny. Or one recipe.")
    ],
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    tasks: Tasks = None,
    data: Data = None,
    limit: Limit = None,
    text: Texts = None,
    text_tokens: TextTokens = None,
    precision: PrecisionOption = None,
    out: Out = None,
    gpus: ScoringGpus = None,
    processes: ScoringProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Score models on tasks and text; of a recipe its base and every model that is trained."""
    from onward.pipeline.models import recipe_among, score_models
    from onward.terminal import print_scores

    told: dict[str, object] = {
        "--tasks": tasks,
        "--data": data,
        "--limit": limit,
        "--text": text,
        "--text-tokens": text_tokens,
    }
    told |= {"--precision": precision, "--out": out}
    with user_errors():
        recipe = recipe_among(targets)
        refuse_options(recipe, told, {"--set": set_, "--workers": workers, "--runs": runs})
    places: list[Path] = []
    if recipe is not None:
        with opened(recipe, set_, cache, runs, workers, ranks=(gpus, processes)) as opened_run:
            scores = [(score.model, score) for score in opened_run.scores()]
    else:
        with working(cache, runs, (gpus, processes)) as work, options_named():
            how = how_to_score(work, tasks, data, limit, text, text_tokens, precision, out)
            scored = score_models(targets, how)
            scores = [(model.name, model.scores) for model in scored]
            places = [model.folder for model in scored]
    print_scores(scores, as_json)
    for place in () if as_json else places:
        typer.echo(f"scores: {place}")


@app.command()
def compare(
    targets: Annotated[
        list[str], typer.Argument(metavar="BASE MODEL...", help="Models, or folders of scores; the first is the base.")
    ],
    cache: Cache = None,
    tasks: Tasks = None,
    data: Data = None,
    limit: Limit = None,
    text: Texts = None,
    text_tokens: TextTokens = None,
    precision: PrecisionOption = None,
    out: Out = None,
    gpus: ScoringGpus = None,
    processes: ScoringProcesses = None,
    pool: Annotated[bool, typer.Option("--pool", help="The models are seeds of one training: pool them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare models with the first of them, item by item, scoring what is not scored yet."""
    import json

    from onward.pipeline.models import compare_models
    from onward.terminal import print_comparisons

    with working(cache, None, (gpus, processes)) as work, options_named():
        how = how_to_score(work, tasks, data, limit, text, text_tokens, precision, out)
        compared = compare_models(targets, how, pool)
    if as_json:
        typer.echo(json.dumps(compared.comparisons.as_json(), ensure_ascii=False))
        return
    print_comparisons(compared.comparisons)
    typer.echo(f"comparison: {compared.json}\ntable: {compared.markdown}")


@app.command()
def blend(
    models: Annotated[
        list[str],
        typer.Argument(metavar="BASE ADAPTED", help="Two models: folders, Hub ids, onward/tiny. Or one recipe."),
    ],
    domain: DomainTexts = None,
    general: GeneralTexts = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Blends on the line, both ends among them.")] = 11,
    choose: Annotated[
        Objective | None,
        typer.Option("--choose", help="balance: least sum of relative changes; domain. [default: balance]"),
    ] = None,
    general_loss: Annotated[
        str | None,
        typer.Option(
            "--general-loss",
            metavar="SHARE",
            help="Easiest domain, general text up to so much harder.",
        ),
    ] = None,
    set_: Overrides = None,
    cache: Cache = None,
    runs: Runs = None,
    workers: Workers = None,
    tasks: BlendTasks = None,
    data: Data = None,
    limit: Limit = None,
    text_tokens: TextTokens = None,
    precision: PrecisionOption = None,
    out: Out = None,
    gpus: ScoringGpus = None,
    processes: ScoringProcesses = None,
    as_json: AsJson = False,
) -> None:
    """Score blends of a base and its adapted model; write one, chosen on half of the text, told of on the other."""
    import json

    from onward.pipeline.blend import blend_models, blend_run
    from onward.pipeline.models import recipe_among
    from onward.terminal import print_blending

    told: dict[str, object] = {"--domain": domain, "--general": general, "--text-tokens": text_tokens}
    told |= {"--precision": precision}
    with user_errors():
        recipe = recipe_among(models)
        refuse_options(recipe, told, {"--set": set_, "--workers": workers, "--runs": runs})
        rule = choice_rule(choose, general_loss)
    scored = (tasks or "none", data, limit, None, text_tokens, precision)
    if recipe is not None:
        with opened(recipe, set_, cache, runs, workers, ranks=(gpus, processes)) as run:
            work = Work(run.folders, run.progress, run.processes)
            found = blend_run(run, how_to_score(work, *scored, out or run.folder / "blend"), steps, rule)
    else:
        with working(cache, None, (gpus, processes)) as work, options_named():
            found = blend_models(models, how_to_score(work, *scored, out), domain or (), general or (), steps, rule)
    if as_json:
        typer.echo(json.dumps(found.blending.as_json() | {"model": str(found.model)}, ensure_ascii=False))
        return
    print_blending(found.blending)
    typer.echo(f"blends: {found.json}\ntable: {found.markdown}\nfigure: {found.figure}\nmodel: {found.model}")


@app.command(hidden=True)
def score_share(job: Annotated[Path, typer.Argument(help="What `onward evaluate` has written for its ranks.")]) -> None:
    """Score what falls to this rank; started by `onward evaluate`, not by people."""
    from onward.evaluation.evaluate import score_share

    with working(None, None, (None, None), is_rank=True) as work:
        score_share(job, work.progress)
