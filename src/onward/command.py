"""What the commands share: options, a recipe opened as a run, errors turned into messages and exit codes."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onward.analysis.blending import Rule
    from onward.artifact import Folders
    from onward.corpus.engine import StartWorkers
    from onward.errors import UserError
    from onward.pipeline import Run
    from onward.pipeline.models import HowToScore
    from onward.progress import Progress


class EngineName(StrEnum):
    """What runs the chunks of a corpus."""

    LOCAL = "local"
    RAY = "ray"


class Objective(StrEnum):
    """What a blend is chosen by."""

    BALANCE = "balance"
    DOMAIN = "domain"


class Precision(StrEnum):
    """What a model computes in while it is scored."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or `quickstart`.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Shared artifacts. [default: ~/.cache/onward]")]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of the runs. [default: ./runs]")]
CorpusName = Annotated[
    str, typer.Argument(metavar="CORPUS", help="A prepared corpus, or the folder or the recipe of a run.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes for text. [default: the cores]")]
Engine = Annotated[EngineName, typer.Option("--engine", help="What prepares text: this machine, or a Ray cluster.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray: auto or HOST:PORT. [default: one started here]")]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, help="Train on so many GPUs, by torchrun. [default: one]")]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Train in so many CPU processes instead. [default: one]")
]
Tasks = Annotated[
    str | None,
    typer.Option("--tasks", metavar="A,B", help="lm-eval's task names; none: text alone. [default: the seven]"),
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="FOLDER", help="The benchmarks' original files. [default: the Hub]")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="So many items of each task. [default: all]")]
Texts = Annotated[
    list[str] | None, typer.Option("--text", metavar="FILE", help="Held-out text: jsonl, parquet, txt; repeatable.")
]
DomainTexts = Annotated[
    list[str] | None, typer.Option("--domain", metavar="FILE", help="Held-out text of the domain; repeatable.")
]
GeneralTexts = Annotated[
    list[str] | None, typer.Option("--general", metavar="FILE", help="Held-out general text; repeatable.")
]
BlendTasks = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Score every blend on these too. [default: text alone]")
]
TextTokens = Annotated[
    str | None,
    typer.Option("--text-tokens", metavar="TOKENS", help="So many of each text, or all. [default: 1M]"),
]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="auto: bf16 on a GPU for weights stored so. [default: auto]")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the scores. [default: ./scores]")]
ScoringGpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Share the items among so many GPUs. [default: one]")
]
ScoringProcesses = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Share them among so many CPU processes. [default: one]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Stream = Annotated[bool, typer.Option("--stream", help="Train on finished blocks while the rest is prepared.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """Print what a user can mend and leave with exit code 2; leave with 128 + signal after an interruption."""
    from onward.errors import RankError, UserError
    from onward.signals import Terminated
    from onward.training.launch import RanksEnded, find_place, tell_words

    try:
        yield
    except UserError as error:
        from onward.terminal import print_error

        tell_words(str(error))
        if find_place().is_first or isinstance(error, RankError):  # else the first rank says it too
            print_error(error)
        raise typer.Exit(2) from None
    except RanksEnded as ended:
        raise typer.Exit(ended.status) from None
    except Terminated:
        if find_place().is_first:
            typer.echo("stopped by SIGTERM; nothing finished is lost, run the same command to go on", err=True)
        raise
    except KeyboardInterrupt:
        typer.echo("stopped; nothing finished is lost, run the same command to go on", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


@dataclass(frozen=True)
class Work:
    """Where a command works and what it tells: folders, progress, and how many ranks were asked for."""

    folders: "Folders"
    progress: "Progress"
    processes: int


@contextmanager
def working(
    cache: Path | None, runs: Path | None, ranks: tuple[int | None, int | None], is_rank: bool = False
) -> Iterator[Work]:
    """Give a command its folders and its display, and turn its errors into messages.

    ranks: GPUs and CPU processes asked for. is_rank: the command may be one of several ranks.
    """
    with user_errors():
        from onward.artifact import Folders, disk_errors
        from onward.errors import UserError
        from onward.progress import Silent
        from onward.signals import Interrupted
        from onward.terminal import Terminal
        from onward.training.launch import find_place, processes_asked_for

        place = find_place()
        if place.world > 1 and not is_rank:
            todo = "start `onward train` by torchrun or srun, every other command by hand"
            raise UserError(f"this command is one process, not {place.world} ranks", todo=todo)
        terminal, folders = Terminal(), Folders.default(cache, runs)
        processes = processes_asked_for(*ranks)
        try:
            with disk_errors(folders.runs):
                yield Work(folders, terminal if place.is_first else Silent(), processes)
        except Interrupted as stopped:
            terminal.end()
            if place.is_first:
                typer.echo(str(stopped), err=True)
            raise typer.Exit(stopped.code) from None
        finally:
            terminal.end()


@contextmanager
def opened(
    recipe: str,
    overrides: list[str] | None,
    cache: Path | None,
    runs: Path | None,
    workers: int | None,
    engine: EngineName = EngineName.LOCAL,
    address: str | None = None,
    ranks: tuple[int | None, int | None] = (None, None),
    is_rank: bool = False,
    is_plan: bool = False,
) -> "Iterator[Run]":
    """Open a recipe as a Run that shows its progress, and turn its errors into messages.

    ranks and is_rank: as for `working`; is_plan: as for `Run`.
    """
    with working(cache, runs, ranks, is_rank) as work:
        from onward.pipeline import Run

        start = _engine(engine, address)
        yield Run(recipe, overrides or (), work.folders, work.progress, workers, start, work.processes, is_plan)


def how_to_score(
    work: Work,
    tasks: str | None,
    data: str | None,
    limit: int | None,
    texts: list[str] | None,
    text_tokens: str | None,
    precision: Precision | None,
    out: Path | None,
) -> "HowToScore":
    """Put together what models are scored on, as the options of a command say it."""
    from onward.errors import UserError
    from onward.pipeline.models import HowToScore
    from onward.recipe import Evaluation
    from onward.recipe.quantities import parse_tokens

    # Only what was said: beside a folder of scores the rest is as there.
    given: dict[str, Any] = {"precision": (precision or Precision.AUTO).value}
    given |= {name: value for name, value in (("data", data), ("limit", limit)) if value is not None}
    if tasks is not None:
        given["tasks"] = tuple(name for part in tasks.split(",") if (name := part.strip()) and name != "none")
        if not given["tasks"]:  # they say nothing of text, whose scores may be there
            given.pop("limit", None)
            given.pop("data", None)
    if text_tokens is not None:
        try:
            given["held_out_tokens"] = None if text_tokens == "all" else parse_tokens(text_tokens)
        except ValueError as error:
            expected = str(error).removeprefix("expected ")
            raise UserError("not a number of tokens", "--text-tokens", text_tokens, expected) from None
        if given["held_out_tokens"] == 0:
            raise UserError("there is nothing to score", "--text-tokens", text_tokens, "1 or more, or all")
    evaluation = Evaluation.model_validate(given)
    return HowToScore(
        evaluation,
        tuple(texts or ()),
        out=_writable(out or Path("scores")),
        folders=work.folders,
        progress=work.progress,
        processes=work.processes,
    )


def _writable(out: Path) -> Path:
    """Return the folder of the scores, made; raises UserError where that cannot be, before anything is scored."""
    from onward.errors import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        todo = "name another folder, or make this one"
        raise UserError("the folder of the scores cannot be made", "--out", f"{out} ({error})", todo=todo) from error
    return out


@contextmanager
def options_named() -> Iterator[None]:
    """Name the option where an error names the key of a recipe, to someone who has written none."""
    from onward.errors import UserError

    try:
        yield
    except UserError as error:
        raise _by_options(error) from error


_OPTIONS = {"data": "--data", "tasks": "--tasks", "limit": "--limit", "held_out_tokens": "--text-tokens"}
_KEY = rf"evaluation\.({'|'.join(_OPTIONS)})\b"


def _by_options(error: "UserError") -> "UserError":
    from onward.errors import UserErrors

    if isinstance(error, UserErrors):
        return UserErrors(error.what, [_by_options(problem) for problem in error.problems])

    def option(text: str | None) -> str | None:
        if text is None:
            return None
        text = re.sub(rf"set {_KEY} to null", lambda found: f"leave {_OPTIONS[found[1]]} out", text)
        text = re.sub(rf"set {_KEY} to", lambda found: f"give {_OPTIONS[found[1]]}", text)
        return re.sub(_KEY, lambda found: _OPTIONS[found[1]], text)

    texts = (option(text) for text in (error.where, error.got, error.expected, error.todo))
    return type(error)(option(error.what) or "", *texts)


def choice_rule(objective: Objective | None, general_loss: str | None) -> "Rule":
    """Return what a blend is chosen by; raises UserError when it cannot be read."""
    from onward.analysis.blending import Rule
    from onward.errors import UserError
    from onward.recipe.quantities import parse_share

    if general_loss is None:
        return Rule("balance" if objective is None else objective.value)
    try:
        limit = float(parse_share(general_loss))
    except ValueError as error:
        expected = str(error).removeprefix("expected ")
        raise UserError("not a share", "--general-loss", general_loss, expected) from None
    return Rule("domain" if objective is None else objective.value, limit)


_IN_RECIPES = {
    "--tasks": "evaluation.tasks=[piqa]",
    "--data": "evaluation.data=FOLDER",
    "--limit": "evaluation.limit=100",
    "--text-tokens": "evaluation.held_out_tokens=1M",
    "--precision": "evaluation.precision=bf16",
}
"""How a recipe says what an option says of models."""


def refuse_options(recipe: str | None, of_models: dict[str, object], of_recipes: dict[str, object]) -> None:
    """Raise UserError for an option that says nothing of what is scored: of models beside a recipe, or the reverse."""
    from onward.errors import UserError

    given = [name for name, value in (of_recipes if recipe is None else of_models).items() if value is not None]
    if not given:
        return
    if recipe is None:
        raise UserError("these options are for a recipe", got=", ".join(given), todo="leave them out for models")
    keys = [_IN_RECIPES[name] for name in given if name in _IN_RECIPES]
    todo = "; ".join(["leave them out", *([f"--set {keys[0]} and the like change the recipe"] if keys else [])])
    raise UserError("the recipe itself says what is scored", got=", ".join(given), todo=todo)


def _engine(engine: EngineName, address: str | None) -> "StartWorkers[Any, Any] | None":
    """Return what starts the workers of another engine than this machine's processes."""
    from onward.errors import UserError

    if engine is EngineName.RAY:
        from onward.corpus.ray_engine import ray_workers

        return ray_workers(address)
    if address is not None:
        raise UserError("only Ray has an address", "--address", address, todo="add --engine ray")
    return None
