"""Any models, also ones not made by onward: scored each on the same, and compared item by item."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import Folders, disk_errors, fingerprint, read_manifest, write_json, write_text
from onward.errors import UserError
from onward.evaluation.scores import RESULTS
from onward.model.source import ModelSource, resolve
from onward.progress import Named, Progress, Silent
from onward.recipe import Evaluation
from onward.recipe.loading import PACKAGED

if TYPE_CHECKING:
    from onward.analysis import Comparisons
    from onward.evaluation.scores import Scores


@dataclass(frozen=True)
class ScoredModel:
    """The scores of a model and the folder they stand in; name: what it is called beside others."""

    name: str
    folder: Path
    scores: "Scores"


@dataclass(frozen=True)
class ComparedModels:
    """What the comparison of models with the first of them says, and where it is written."""

    comparisons: "Comparisons"
    json: Path
    markdown: Path


@dataclass(frozen=True)
class HowToScore:
    """What models are scored on and where.

    texts: files with held-out text. prepared: artifacts with such text by name; cloze: one of made questions. out: the
    folder of the scores.
    """

    evaluation: Evaluation
    texts: tuple[str, ...] = ()
    prepared: Mapping[str, Path] = field(default_factory=dict)
    cloze: Path | None = None
    out: Path = Path("scores")
    folders: Folders | None = None
    seed: int = 0
    progress: Progress | None = None
    processes: int = 1


def is_recipe(target: str) -> bool:
    """Whether an argument names a recipe: a YAML file or a packaged name; all else is a model."""
    return target in PACKAGED or target.lower().endswith((".yaml", ".yml"))


def recipe_among(targets: Sequence[str]) -> str | None:
    """Return the recipe when it is all that was asked for, None when all are models; raises UserError for a mixture."""
    recipes = [target for target in targets if is_recipe(target)]
    if not recipes:
        return None
    if len(targets) > 1:
        todo = "one command for the recipe, which scores its base and its stages, and one for the models"
        raise UserError("a recipe is scored alone", got=", ".join(targets), expected="models, or one recipe", todo=todo)
    return recipes[0]


def score_models(models: Sequence[str], how: HowToScore) -> tuple[ScoredModel, ...]:
    """Score each model, a folder, a Hub id or `onward/tiny`, into `out/NAME`; what is scored already is only read.

    Where other scores of that name stand, of other tasks say, the folder is `out/NAME-FINGERPRINT`. Raises UserError
    when a model is not there or cannot be scored.
    """
    from onward.pipeline.given_text import given_texts

    progress, folders = how.progress or Silent(), how.folders or Folders.default()
    names = short_names(models)
    sources = [find_model(model) for model in models]  # a mistyped one is told before another is scored
    if not (how.texts or how.prepared or how.cloze or how.evaluation.tasks):
        raise UserError("there is nothing to score", "--tasks, --text", todo="name tasks, or give text with --text")
    texts = {**how.prepared, **given_texts(how.texts, folders.cache, progress)}
    scored = []
    for name, source in zip(names, sources, strict=True):
        told = replace(how, progress=Named(progress, name)) if len(names) > 1 else how
        folder, scores = score_source(source, texts, told, how.out / name)
        scored.append(ScoredModel(name, folder, scores))
    return tuple(scored)


def score_source(
    source: ModelSource, texts: Mapping[str, Path], how: HowToScore, place: Path, known: Sequence[Path] = ()
) -> "tuple[Path, Scores]":
    """Score a model on artifacts of text, by name, and on tasks, into `place`; return its folder and the scores.

    Where other scores stand there, the folder is `place-FINGERPRINT`; what is scored already is only read. known:
    folders of scores elsewhere, which are copied where they are of the same model and inputs.
    """
    from onward.evaluation.evaluate import evaluate, scores_made_from

    inputs: dict[str, Any] = {"evaluation": how.evaluation, "held_out": texts, "seed": how.seed, "cloze": how.cloze}
    made_from = scores_made_from(source, **inputs)
    folder = _place(place, made_from)
    _take_over(folder, fingerprint(made_from), known)
    prompts = (how.folders or Folders.default()).cache / "prompts"
    ranks: dict[str, Any] = {"progress": how.progress, "processes": how.processes}
    return folder, evaluate(source, **inputs, folder=folder, prompts=prompts, **ranks)


def compare_models(targets: Sequence[str], how: HowToScore, pool: bool = False) -> ComparedModels:
    """Compare models, or folders of scores, with the first of them; those not yet scored are scored before.

    Beside a folder of scores models are scored on the same, as far as `how` leaves it open, which is said.
    pool: the others are seeds of one training, and their mean is compared with the first as well. Writes
    comparison.json and comparison.md into `out/compared-A-B`. Raises UserError as `score_models` does, when two were
    not scored on the same items or in the same precision, and for fewer than two seeds.
    """
    from onward.analysis import compare_all, pooled, require_seeds

    if pool:
        require_seeds(len(targets) - 1)
    if len(targets) < 2:
        raise UserError("there is nothing to compare with", got=", ".join(targets), expected="two models or more")
    models = [target for target in targets if not _is_scores(target)]
    how = _as_scored(targets, how) if models else how
    scored = iter(score_models(models, _in_one_precision(targets, how)) if models else ())
    folders = [Path(target) if _is_scores(target) else next(scored).folder for target in targets]
    names = short_names(targets)
    comparisons = compare_all(folders, names, how.evaluation.resamples, how.seed)
    if pool:
        mean = pooled(folders[0], folders[1:], f"{len(folders) - 1} seeds, pooled", names[0])
        comparisons = replace(comparisons, pooled=mean)
    place = how.out / f"compared-{'-'.join(folder.resolve().name for folder in folders)}"
    place.mkdir(parents=True, exist_ok=True)
    compared = ComparedModels(comparisons, place / "comparison.json", place / "comparison.md")
    write_json(compared.json, comparisons.as_json())
    write_text(compared.markdown, comparison_markdown(comparisons))
    return compared


def _as_scored(targets: Sequence[str], how: HowToScore) -> HowToScore:
    """Take from the first folder of scores what is not said: tasks, data, limit and text; say what was taken."""
    from onward.evaluation.scored_on import ScoredOn

    folder = next((Path(target).expanduser() for target in targets if _is_scores(target)), None)
    same = None if folder is None else ScoredOn.read(folder)
    if same is None:
        return how
    unsaid = {"tasks", "data", "limit", "held_out_tokens"} - how.evaluation.model_fields_set
    evaluation = how.evaluation.model_copy(update={name: getattr(same.evaluation, name) for name in unsaid})
    prepared = {} if how.texts else same.held_out
    if gone := [name for name, place in prepared.items() if read_manifest(place) is None]:
        todo = "give its files with --text"
        raise UserError("the text that these scores are of is not there any more", str(prepared[gone[0]]), todo=todo)
    taken = [
        ("tasks" in unsaid and evaluation.tasks, f"tasks {', '.join(evaluation.tasks)}"),
        ("limit" in unsaid and evaluation.tasks and evaluation.limit, f"{evaluation.limit} items of each task"),
        ("data" in unsaid and evaluation.tasks and evaluation.data, f"data {evaluation.data}"),
        (prepared, f"text {', '.join(prepared)}"),
        (same.cloze, "the cloze questions"),
    ]
    if facts := "; ".join(fact for is_taken, fact in taken if is_taken):
        (how.progress or Silent()).note(f"as the scores in {folder}: {facts}")
    return replace(how, evaluation=evaluation, prepared=prepared, cloze=same.cloze)


def _in_one_precision(targets: Sequence[str], how: HowToScore) -> HowToScore:
    """Settle `precision: auto` for all models at once: as the scores that are given, else fp32 unless all take bf16."""
    from onward.analysis import scored_precision
    from onward.evaluation.evaluate import choose_precision

    if how.evaluation.precision != "auto":
        return how
    given = {scored_precision(Path(target).expanduser()) for target in targets if _is_scores(target)} - {None}
    sources = [find_model(target) for target in targets if not _is_scores(target)]
    chosen = given or {choose_precision(how.evaluation, source) for source in sources}
    precision = "bf16" if chosen == {"bf16"} else "fp32"
    return replace(how, evaluation=how.evaluation.model_copy(update={"precision": precision}))


def comparison_markdown(comparisons: "Comparisons") -> str:
    """Return the paired tables as GitHub-flavoured Markdown, each with its findings in words."""
    from onward.reporting.details import Labelled, detail_tables
    from onward.reporting.markdown import plain, table_markdown
    from onward.reporting.summary import summary_rows

    parts = [f"# {plain(comparisons.base)} compared"]
    for comparison in comparisons.tables:
        heads = ("", "before", "after", "change", "95 % interval", "p (Holm)", "items", "gained / lost", "")
        lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 2)}---|"]
        for row in summary_rows(comparison):
            cells = (row.name, row.before, row.after, row.change, row.interval, row.p_value, row.items, row.flips)
            lines.append(f"| {' | '.join(map(plain, (*cells, row.verdict)))} |")
        parts += [f"## {plain(comparison.before)} to {plain(comparison.after)}", "\n".join(lines)]
        parts.append("\n".join(f"- {plain(sentence)}" for sentence in comparison.summary))
        details = detail_tables([Labelled(comparison.after, comparison)], comparison.before)
        parts += [table_markdown(table) for table in details]
    return "\n\n".join(parts) + "\n"


def _place(folder: Path, made_from: Mapping[str, Any]) -> Path:
    """Return where scores of these inputs stand or are to be written: beside others of the same name."""
    manifest = read_manifest(folder)
    mine = fingerprint(made_from)
    return folder if manifest is None or manifest.fingerprint == mine else folder.with_name(f"{folder.name}-{mine}")


def _take_over(folder: Path, wanted: str, known: Sequence[Path]) -> None:
    """Copy finished scores of this fingerprint into a folder that is not there yet."""
    for other in known:
        manifest = read_manifest(other)
        if manifest is not None and manifest.fingerprint == wanted and not folder.exists():
            aside = folder.with_name(f".{folder.name}.copied")
            shutil.rmtree(aside, ignore_errors=True)
            with disk_errors(folder):
                aside.mkdir(parents=True)
                for path in other.rglob("*"):  # copytree would hide why a file could not be written
                    _copy(path, aside / path.relative_to(other))
                aside.rename(folder)


def _copy(path: Path, to: Path) -> None:
    if path.is_dir():
        to.mkdir(exist_ok=True)
    else:
        shutil.copyfile(path, to)


def _is_scores(target: str) -> bool:
    return (Path(target).expanduser() / RESULTS).is_file()


def find_model(model: str) -> ModelSource:
    """Find a model; the folder of a checkpoint stands for the model in it."""
    place = Path(model).expanduser()
    if not (place / "config.json").is_file():
        if (place / "model" / "config.json").is_file():
            return replace(resolve(str(place / "model")), name=model)
        if (place / "recipe.yaml").is_file():
            todo = f"give its recipe, {place / 'recipe.yaml'}, or one of its models in checkpoints/"
            raise UserError("this is the folder of a run, not of a model", model, todo=todo)
        manifest = read_manifest(place) if place.is_dir() else None
        if manifest is not None:
            raise UserError("this folder holds no model", model, manifest.kind, "config.json, weights and tokenizer")
    try:
        return resolve(model)
    except UserError as error:
        if error.where != "model.base":
            raise
        expected = "a recipe (a .yaml file, quickstart), onward/tiny, a model's folder, or a Hub id (org/name)"
        raise replace(error, where=None, expected=expected) from error


def short_names(targets: Sequence[str]) -> list[str]:
    """Name each target by the last parts of its path: as many as tell all of them apart, `model` not being a name."""
    places = [Path(target).expanduser() for target in targets]
    whole = [place.resolve() if place.is_dir() else place for place in places]
    paths = [[part for part in place.parts if part not in ("/", "model")] for place in whole]
    longest = max(map(len, paths), default=0)
    names: list[str] = []
    for count in range(1, longest + 1):
        names = ["--".join(parts[-count:]) or "model" for parts in paths]
        if len(set(names)) == len(names):
            break
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        got = ", ".join(target for target, name in zip(targets, names, strict=True) if name == twice)
        raise UserError("a model is named twice", got=got, expected="different models")
    return names
