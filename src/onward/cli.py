"""The commands; each body is a few lines over the Python API."""

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from onward import __version__
from onward.command import (
    Address,
    AsJson,
    Cache,
    CorpusName,
    Data,
    Engine,
    EngineName,
    Gpus,
    Limit,
    Out,
    Overrides,
    PrecisionOption,
    Processes,
    RecipeName,
    Runs,
    ScoringGpus,
    ScoringProcesses,
    Stream,
    Tasks,
    Texts,
    TextTokens,
    Workers,
    how_to_score,
    opened,
    refuse_options,
    user_errors,
    working,
)

_FORMATS = "jsonl, parquet, or tokens: a Hugging Face data set, packed."


class ExportFormat(StrEnum):
    """What a corpus is exported as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    TOKENS = "tokens"


app = typer.Typer(
    name="onward",
    help="Carry a small language model onward into your domain, and know what it gained and what it lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    print_ledger("domain", corpora.domain.ledger)
    typer.echo(f"domain:  {corpora.domain.path}")
    if corpora.general is not None:
        print_ledger("general", corpora.general.ledger)
        typer.echo(f"general: {corpora.general.path}")


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
        with working(cache, runs, (gpus, processes)) as work:
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

    with working(cache, None, (gpus, processes)) as work:
        how = how_to_score(work, tasks, data, limit, text, text_tokens, precision, out)
        compared = compare_models(targets, how, pool)
    if as_json:
        typer.echo(json.dumps(compared.comparisons.as_json(), ensure_ascii=False))
        return
    print_comparisons(compared.comparisons)
    typer.echo(f"comparison: {compared.json}\ntable: {compared.markdown}")


@app.command(hidden=True)
def score_share(job: Annotated[Path, typer.Argument(help="What `onward evaluate` has written for its ranks.")]) -> None:
    """Score what falls to this rank; started by `onward evaluate`, not by people."""
    from onward.evaluation.evaluate import score_share

    with working(None, None, (None, None), is_rank=True) as work:
        score_share(job, work.progress)


@app.command()
def report(recipe: RecipeName, set_: Overrides = None, cache: Cache = None, runs: Runs = None) -> None:
    """Write the report of what the run has so far."""
    with opened(recipe, set_, cache, runs, None) as opened_run:
        files = opened_run.report()
    typer.echo(f"report: {files.html}")


@app.command()
def inspect(
    corpus: CorpusName,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Examples of each kind.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, by the name of the corpus.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Show a prepared corpus: ledger, lengths, rules, sources, duplicates, contamination, samples of every end."""
    import json

    from onward.artifact import Folders
    from onward.corpus.inspection import find_corpora, inspect_corpus
    from onward.terminal import print_inspection

    with user_errors():
        folders = find_corpora(corpus, Folders.default(None, runs).runs)
        found = {name: inspect_corpus(folder, samples) for name, folder in folders.items()}
    if as_json:
        typer.echo(json.dumps({name: inspection.as_json() for name, inspection in found.items()}, ensure_ascii=False))
        return
    for name, inspection in found.items():
        print_inspection(name, inspection)


@app.command()
def export(
    corpus: CorpusName,
    to: Annotated[Path, typer.Option("--to", help="A .jsonl or .jsonl.zst file; for parquet and tokens a folder.")],
    format_: Annotated[ExportFormat, typer.Option("--format", metavar="KIND", help=_FORMATS)],
    runs: Runs = None,
) -> None:
    """Write a prepared corpus for other trainers: its clean text, or its packed tokens."""
    from onward.artifact import Folders
    from onward.corpus.export import export_text, export_tokens
    from onward.corpus.inspection import find_corpus
    from onward.model.tokenizer import read_saved_tokenizer

    with user_errors():
        folder = find_corpus(corpus, Folders.default(None, runs).runs)
        if format_ is ExportFormat.TOKENS:
            outcome = export_tokens(folder, to).outcome("sequences")
        else:
            tokenizer = read_saved_tokenizer(folder / "tokenizer")
            kind: Literal["jsonl", "parquet"] = "jsonl" if format_ is ExportFormat.JSONL else "parquet"
            outcome = export_text(folder, to, kind, tokenizer).outcome("documents")
    typer.echo(outcome)


@app.command()
def init(
    model: Annotated[str, typer.Option(help="Base model: onward/tiny, a folder or a Hub id.")],
    corpus: Annotated[list[str], typer.Option(help="Domain text: file, folder, glob or hf:// path; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    general: Annotated[
        list[str] | None, typer.Option(help="General text to replay; without it the base samples its own.")
    ] = None,
) -> None:
    """Write a commented starter recipe."""
    from onward.corpus.reading.sources import find_inputs
    from onward.model.source import local_context_tokens
    from onward.recipe import Source
    from onward.recipe.starter import write_starter

    with user_errors():
        for path in (path for path in [*corpus, *(general or [])] if "://" not in path):
            find_inputs(Source(path=path))  # a mistyped path is best told at once
        write_starter(output, model, corpus, general or [], local_context_tokens(model))
    typer.echo(f"{output}\nnext: onward run {output}")


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    import json

    from onward.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _terminated(number: int, frame: FrameType | None) -> None:
    """Outside the training loop there is nothing to save: artifacts are complete or absent."""
    sys.exit(128 + number)


def main() -> None:
    """Entry point of the `onward` command."""
    # A run has one display and one voice: its own. Set before transformers is imported, which reads them once.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # OpenMP's waiting threads spin briefly: beside another computing process a small
    # model trains 2.7 times as fast, on an idle machine 13 % slower (docs/decisions.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    signal.signal(signal.SIGTERM, _terminated)
    from onward.training.launch import find_place

    if find_place().world == 1:
        app()
    else:
        _run_as_rank()


def _run_as_rank() -> None:
    """Run the command as one of several ranks, and end this process for certain."""
    import time
    import traceback

    from onward.training.launch import find_place, tell_status

    status = 1
    try:
        returned = app(standalone_mode=False)
        status = returned if isinstance(returned, int) else 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    tell_status(status)
    if status > 1 and not find_place().is_first:
        time.sleep(5)  # torchrun ends all ranks with the first that goes, and the first rank may still be speaking
    from onward.training.ranks import leave

    leave(status)
