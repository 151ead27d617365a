"""Read what a run left on disk; every part but the recipe may be missing, as in a run that has not ended."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from onward.artifact import read_manifest
from onward.corpus.inspected import Inspection
from onward.corpus.inspection import can_be_inspected, inspect_corpus
from onward.corpus.ledger import Ledger, read_ledger
from onward.errors import UserError
from onward.recipe import Recipe, load_recipe
from onward.training.record import read_rows


@dataclass(frozen=True)
class Environment:
    """environment.json: versions and hardware of the process that started the run; None where not recorded."""

    onward: str | None = None
    python: str | None = None
    torch: str | None = None
    transformers: str | None = None
    platform: str | None = None
    processor: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    accelerator: str | None = None
    command: str | None = None
    started: str | None = None


@dataclass(frozen=True)
class PlanFacts:
    """plan.json: what was to be done; steps and stages are cumulative, per stage.

    replay: in words. other_texts: facts of the corpora beside domain and general text, `repetition` among them.
    """

    sequences_per_step: int | None = None
    step_tokens: int | None = None
    sequence_tokens: int | None = None
    steps: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    replay_share: str | None = None
    domain_repetition: float | None = None
    general_repetition: float | None = None
    replay: str | None = None
    other_texts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parameters: int | None = None


@dataclass(frozen=True)
class BaseFacts:
    """The model the run started from, as far as the run recorded it."""

    name: str
    revision: str | None = None
    license: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class CorpusFacts:
    """A corpus artifact: its role in the run (`domain`, `general`), its fingerprint, ledger, and what is in it.

    inspection: None where only the ledger is left, or the corpus is of an older version.
    """

    role: str
    fingerprint: str
    ledger: Ledger
    inspection: Inspection | None


@dataclass(frozen=True)
class CheckpointFacts:
    """A complete checkpoint; path relative to the run. releasable: it holds a plain Hugging Face folder."""

    path: str
    step: int
    tokens: int | None
    releasable: bool
    bytes: int
    fingerprint: str


@dataclass(frozen=True)
class RunFiles:
    """All that the report reads. base_scores and stage_scores: folders, in the order of tokens."""

    folder: Path
    recipe: Recipe
    recipe_text: str
    environment: Environment
    plan: PlanFacts
    base: BaseFacts
    corpora: tuple[CorpusFacts, ...]
    base_scores: Path | None
    stage_scores: tuple[tuple[int, Path], ...]
    checkpoints: tuple[CheckpointFacts, ...]
    metrics: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; raises UserError when it holds no recipe.yaml or a file of it is damaged."""
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.is_file():
        expected = "a folder that `onward run` or `onward train` made, with recipe.yaml in it"
        raise UserError("this is not the folder of a run", str(folder), expected=expected)
    recipe = load_recipe(recipe_path)
    plan = _filled(PlanFacts, _json(folder / "plan.json"))
    artifacts = _json(folder / "artifacts.json")
    checkpoints = _checkpoints(folder, plan.step_tokens)
    base_scores = folder / artifacts["base_scores"] if artifacts.get("base_scores") else None
    return RunFiles(
        folder,
        recipe,
        recipe_path.read_text(encoding="utf-8"),
        _filled(Environment, _json(folder / "environment.json")),
        plan,
        _base(recipe, artifacts.get("model") or {}, folder),
        _corpora(folder, artifacts.get("corpora") or {}),
        base_scores if base_scores is not None and (base_scores / "manifest.json").is_file() else None,
        _stage_scores(folder),
        checkpoints,
        tuple(read_rows(folder / "metrics.jsonl")),
        tuple(read_rows(folder / "events.jsonl")),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            "a file of the run is damaged", str(path), str(error), "JSON", "run again to restore it"
        ) from None
    assert isinstance(content, dict), path
    return content


Facts = TypeVar("Facts", Environment, PlanFacts)


def _filled(kind: type[Facts], content: Mapping[str, Any]) -> Facts:
    """Fill a record of facts from JSON; missing ones keep their default, others are not for the report."""
    known = {each.name for each in fields(kind)}
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known}
    return kind(**found)


def _base(recipe: Recipe, recorded: Mapping[str, Any], folder: Path) -> BaseFacts:
    """Describe the base from artifacts.json; an unrecorded fingerprint is in the manifest of any checkpoint."""
    fingerprint = recorded.get("fingerprint")
    for path in sorted(folder.glob("checkpoints/*/manifest.json")) if fingerprint is None else ():
        manifest = read_manifest(path.parent)
        fingerprint = manifest.made_from.get("base") if manifest is not None else None
    name = recorded.get("name") or recipe.model.base
    return BaseFacts(name, recorded.get("revision") or recipe.model.revision, recorded.get("license"), fingerprint)


def _corpora(folder: Path, places: Mapping[str, str | None]) -> tuple[CorpusFacts, ...]:
    present = {role: folder / place for role, place in places.items() if place}
    return tuple(
        CorpusFacts(role, place.name, read_ledger(place), inspect_corpus(place) if can_be_inspected(place) else None)
        for role, place in present.items()
        if (place / "ledger.json").is_file()
    )


def _checkpoints(folder: Path, step_tokens: int | None) -> tuple[CheckpointFacts, ...]:
    facts = []
    for path in folder.glob("checkpoints/*/manifest.json"):
        place = path.parent
        manifest = read_manifest(place)
        if manifest is None or place.name.startswith("."):
            continue
        step = int(manifest.made_from.get("step", 0))
        tokens = _json(place / "state" / "cursor.json").get("tokens", step * step_tokens if step_tokens else None)
        size = sum(int(file["bytes"]) for file in manifest.files.values())
        releasable = (place / "model").is_dir()
        facts.append(CheckpointFacts(f"checkpoints/{place.name}", step, tokens, releasable, size, manifest.fingerprint))
    return tuple(sorted(facts, key=lambda c: (c.step, not c.releasable)))


def _stage_scores(folder: Path) -> tuple[tuple[int, Path], ...]:
    """Find scores/tokens-000400M and the like; the number in a name is exact."""
    found = []
    for path in folder.glob("scores/tokens-*/manifest.json"):
        name = path.parent.name.removeprefix("tokens-")
        digits = name.removesuffix("M")
        if digits.isdigit():
            found.append((int(digits) * (10**6 if name.endswith("M") else 1), path.parent))
    return tuple(sorted(found))
