"""Blends of a base and what became of it: the line is scored, one blend chosen, told of and written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import Folders, fingerprint, read_manifest, write_json, write_text
from onward.errors import UserError
from onward.model.source import ModelSource, describe
from onward.pipeline.models import HowToScore, find_model, score_source, short_names
from onward.progress import Named, Progress, Silent
from onward.recipe import Evaluation

if TYPE_CHECKING:
    from onward.analysis.blending import Blending, Rule
    from onward.evaluation.scores import Scores
    from onward.pipeline.run import Run


@dataclass(frozen=True)
class ScoredBlend:
    """The scores of a blend and the folder they stand in. share: of the way from the base to the adapted model."""

    share: float
    folder: Path
    scores: "Scores"


@dataclass(frozen=True)
class BlendedModels:
    """What was found on the line, and the files: blend.json, blend.md, blend.svg, the chosen blend's model folder."""

    blending: "Blending"
    json: Path
    markdown: Path
    figure: Path
    model: Path


def shares_of(steps: int) -> tuple[float, ...]:
    """Return so many shares from 0 to 1, evenly: 11 are 0, 0.1, ..., 1."""
    if steps < 2:
        raise UserError("a line has two ends", "--steps", str(steps), "2 or more")
    return tuple(round(step / (steps - 1), 6) for step in range(steps))


def score_blends(
    base: ModelSource,
    adapted: ModelSource,
    shares: Sequence[float],
    *,
    held_out: Mapping[str, Path],
    evaluation: Evaluation,
    place: Path,
    seed: int = 0,
    folders: Folders | None = None,
    progress: Progress | None = None,
    processes: int = 1,
    known: Sequence[Path] = (),
) -> tuple[ScoredBlend, ...]:
    """Score blends on held-out text and tasks, each into an artifact `place/share-SHARE`; done before, it is only read.

    held_out: folder of each corpus artifact by name. Shares 0 and 1 are the two models themselves. A blend is made in
    memory, rounded to the adapted model's stored type, as it would be written. Scores of other inputs stand beside
    (`share-SHARE-FINGERPRINT`). known: folders of scores of the two models, for the ends. Raises UserError when the
    models are not of one network and tokenizer.
    """
    from onward.model.blend import blend_source, open_pair

    open_pair(base, adapted)  # refuses what cannot be blended
    settled = _settled(evaluation, base, adapted)
    scored = []
    for number, share in enumerate(shares, 1):
        named = Named(progress or Silent(), f"share {number} of {len(shares)}")
        how = HowToScore(settled, folders=folders, seed=seed, progress=named, processes=processes)
        model, ends = blend_source(base, adapted, share), known if share in (0, 1) else ()
        folder, scores = score_source(model, held_out, how, place / f"share-{share:g}", ends)
        scored.append(ScoredBlend(share, folder, scores))
    return tuple(scored)


def blend_models(
    models: Sequence[str], how: HowToScore, domain: Sequence[str], general: Sequence[str], steps: int, rule: "Rule"
) -> BlendedModels:
    """Blend a base and its adapted model, found as `score_models` finds them, into `out/blended-BASE-ADAPTED`.

    Where a blend of other text, tasks or settings stands there, the folder is `out/blended-BASE-ADAPTED-FINGERPRINT`.
    domain, general: files of held-out text; without general text only the domain is scored. Raises UserError when one
    of these is not there, or the models do not fit together.
    """
    from onward.analysis.blending import MORE_FILES
    from onward.pipeline.given_text import given_text

    if len(models) != 2:
        raise UserError("a blend is of two models", got=", ".join(models), expected="BASE ADAPTED, or one recipe")
    names = short_names(models)
    base, adapted = (replace(find_model(model), name=name) for model, name in zip(models, names, strict=True))
    progress, folders = how.progress or Silent(), how.folders or Folders.default()
    if not domain:
        raise UserError("there is no text to choose a blend by", "--domain", todo="give held-out text of the domain")
    given = {"domain": domain, "general": general}
    texts = {name: given_text(name, files, folders.cache, progress) for name, files in given.items() if files}
    place = how.out / f"blended-{'-'.join(names)}"
    return _blended(_Line(base, adapted, texts, how, steps, MORE_FILES), place, rule)


def blend_run(run: "Run", how: HowToScore, steps: int, rule: "Rule") -> BlendedModels:
    """Blend the base of a run and the model of its last trained stage into `out`, by its own held-out text.

    Raises UserError when no stage is trained.
    """
    from onward.evaluation.evaluate import base_scores_folder
    from onward.training.stages import stages_of

    stages = stages_of(run.recipe.training, run.recipe.training_seed, run.folder)
    trained = [stage for stage in stages if read_manifest(stage.folder) is not None]
    if not trained:
        raise UserError("no stage of this recipe is trained yet", str(run.folder), todo="`onward run` it first")
    last = trained[-1]
    adapted = replace(describe(last.model), name=last.folder.name)
    texts = {name: path for name, path in run.corpora.paths().items() if name in ("domain", "general")}
    asked = how.evaluation
    own = {name: getattr(run.recipe.evaluation, name) for name in ("held_out_tokens", "resamples", "precision")}
    how = replace(how, evaluation=asked.model_copy(update=own), seed=run.recipe.seed)
    limit = how.evaluation.held_out_tokens
    todo = (
        "a run's text is settled: give it another name with a larger corpus.held_out.share and general.held_out.share"
    )
    todo += "" if limit is None else f", or a larger evaluation.held_out_tokens ({limit:,} now)"
    settled = _settled(how.evaluation, run.base, adapted)
    of_base = base_scores_folder(run.folders, run.base, evaluation=settled, held_out=texts, seed=how.seed)
    known = (of_base, run.folder / "scores" / last.folder.name)
    return _blended(_Line(run.base, adapted, texts, how, steps, todo, known), how.out, rule)


@dataclass(frozen=True)
class _Line:
    """What is blended and scored. todo: what helps against too little text. known: scores of the two models, if any."""

    base: ModelSource
    adapted: ModelSource
    texts: Mapping[str, Path]
    how: HowToScore
    steps: int
    todo: str
    known: Sequence[Path] = ()

    def place(self, wanted: Path) -> Path:
        """Return the folder for these models, texts and settings: beside one of others, which is kept."""
        from onward.evaluation.evaluate import scores_made_from

        settled = _settled(self.how.evaluation, self.base, self.adapted)
        ends = {
            f"share-{share}": fingerprint(
                scores_made_from(model, evaluation=settled, held_out=self.texts, seed=self.how.seed)
            )
            for share, model in enumerate((self.base, self.adapted))
        }
        for name, mine in ends.items():
            manifest = read_manifest(wanted / "scores" / name)
            if manifest is not None and manifest.fingerprint != mine:
                beside = wanted.with_name(f"{wanted.name}-{fingerprint(ends)}")
                told = f"{wanted} holds blends of other models or text or with other settings; these go into {beside}"
                (self.how.progress or Silent()).note(told)
                return beside
        return wanted

    def require_halves(self, place: Path) -> None:
        """Refuse text that cannot be halved before any of it is scored, and say how much there is to score.

        place: of the scores; what is there is not counted, nor what is known of the two models.
        """
        from onward.analysis.blending import require_halves
        from onward.evaluation.heldout import read_front
        from onward.model.tokenizer import read_tokenizer

        tokenizer, limit = read_tokenizer(self.base.folder), self.how.evaluation.held_out_tokens
        each = 0
        for name, folder in self.texts.items():
            front = read_front(folder / "held_out.parquet", tokenizer, limit)
            require_halves(name, front.documents, self.todo)
            each += front.tokens
        tasks = " and the tasks" if self.how.evaluation.tasks else ""
        left = self._unscored(place)
        if left:
            told = f"to score: {left} share{'s' if left > 1 else ''} x {each:,} tokens of text = {left * each:,}{tasks}"
            (self.how.progress or Silent()).note(told)

    def _unscored(self, place: Path) -> int:
        """Count the shares that are still to be scored."""
        from onward.evaluation.evaluate import scores_made_from

        settled = _settled(self.how.evaluation, self.base, self.adapted)
        inputs: dict[str, Any] = {"evaluation": settled, "held_out": self.texts, "seed": self.how.seed}
        there = [place / f"share-{share:g}" for share in shares_of(self.steps)]
        missing = [read_manifest(folder) is None for folder in there]
        manifests = [read_manifest(folder) for folder in self.known]
        for end, model in ((0, self.base), (-1, self.adapted)):
            wanted = fingerprint(scores_made_from(model, **inputs))
            missing[end] &= not any(manifest and manifest.fingerprint == wanted for manifest in manifests)
        return sum(missing)


def _blended(line: _Line, wanted: Path, rule: "Rule") -> BlendedModels:
    from onward.analysis.blending import blending, read_point
    from onward.model.blend import open_pair, write_blend
    from onward.reporting.blends import blend_markdown, blend_picture

    base, adapted, how = line.base, line.adapted, line.how
    if rule.general_loss is not None and "general" not in line.texts:
        raise UserError("what general text loses is not known without it", "--general-loss", todo="add --general FILE")
    pair, shares = open_pair(base, adapted), shares_of(line.steps)
    place = line.place(wanted)
    line.require_halves(place / "scores")
    scored = score_blends(
        base,
        adapted,
        shares,
        held_out=line.texts,
        evaluation=how.evaluation,
        place=place / "scores",
        seed=how.seed,
        folders=how.folders,
        progress=how.progress,
        processes=how.processes,
        known=line.known,
    )
    points = [read_point(blend.share, blend.folder) for blend in scored]
    found = blending((base.name, adapted.name), points, rule, how.evaluation.resamples, how.seed)
    files = (place / "blend.json", place / "blend.md", place / "blend.svg")
    blended = BlendedModels(found, *files, place / "model")
    _tell_of_earlier(blended.json, found, how.progress or Silent())
    half = found.point.texts
    facts = {"chosen_by": rule.told(list(line.texts)), "dev_bits_per_byte": {text.text: text.dev for text in half}}
    write_blend(pair, found.chosen, blended.model, facts)
    write_json(blended.json, found.as_json())
    write_text(blended.markdown, blend_markdown(found))
    write_text(blended.figure, blend_picture(found))
    return blended


def _tell_of_earlier(file: Path, found: "Blending", progress: Progress) -> None:
    """Say that an earlier choice on the same scores, by another rule or among other shares, is replaced."""
    if not file.is_file():
        return
    try:
        earlier = json.loads(file.read_bytes())
        rule, chosen, shares = earlier["rule"], earlier["chosen"], [row["share"] for row in earlier["blends"]]
    except (ValueError, KeyError, TypeError):  # damaged: it is written anew
        return
    if rule != asdict(found.rule) or shares != [point.share for point in found.points]:
        told = f"chosen again on the same text: share {found.chosen:g} replaces {chosen:g}"
        progress.note(f"{told} (an earlier choice) in {file.parent}; --out keeps both")


def _settled(evaluation: Evaluation, base: ModelSource, adapted: ModelSource) -> Evaluation:
    """Settle `precision: auto` for the whole line: bf16 where both ends take it."""
    from onward.evaluation.evaluate import choose_precision

    chosen = {choose_precision(evaluation, model) for model in (base, adapted)}
    precision = "bf16" if chosen == {"bf16"} else "fp32"
    return evaluation.model_copy(update={"precision": precision})
