"""What a run's folder keeps of it: the frozen recipe, the environment, where its shared artifacts are."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from onward.artifact import MANIFEST, flatten, read_manifest, write_json, write_text
from onward.batches import plan_batches
from onward.environment import describe_environment
from onward.errors import UserError
from onward.model.source import ModelSource
from onward.recipe import Recipe, load_recipe
from onward.training.stages import COST_KNOBS

_MAY_CHANGE = (*(f"training.{knob}" for knob in COST_KNOBS), "training.stages")
"""Knobs that a run may change between two starts: they alter its cost or its length, not what is computed."""


class RunFolder:
    """The folder of a run; only the first of several ranks writes to it."""

    def __init__(self, folder: Path, is_written: bool) -> None:
        self.folder = folder
        self._is_written = is_written

    def freeze(self, recipe: Recipe) -> None:
        """Write the full recipe into the run; raises UserError, naming the keys, when the run has results of another.

        A run without results (its recipe was refused, or it was killed early) takes the new recipe.
        """
        if not self._is_written:
            return
        path = self.folder / "recipe.yaml"
        content = recipe.model_dump(mode="json")
        if self.has_results and path.exists():
            # Read as a recipe, so that a knob which is new since then has its default and is no difference.
            before, now = flatten(load_recipe(path).model_dump(mode="json")), flatten(content)
            # With one decay over the whole run its length is part of the mathematics.
            free = _MAY_CHANGE if recipe.training.schedule.horizon == "stage" else _MAY_CHANGE[:-1]
            if not self._has_stages_of(recipe):
                free = tuple(knob for knob in free if knob != "training.stages")
            changed = [k for k in sorted(before | now) if before.get(k) != now.get(k) and k not in free]
            if changed:
                raise UserError(
                    f"the run `{recipe.name}` was started with another recipe",
                    str(path),
                    "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in changed),
                    todo="restore the old values, give this run another name (--set name=...), or remove its folder",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        environment = self.folder / "environment.json"
        if not (self.has_results and environment.exists()):
            write_json(environment, describe_environment())

    def _has_stages_of(self, recipe: Recipe) -> bool:
        """Whether the stages that are begun here end where the recipe's do; later ones may be added or left out."""
        steps = list(plan_batches(recipe.training, recipe.training_seed).stage_steps)
        for path in self.folder.glob(f"checkpoints/*/{MANIFEST}"):
            with suppress(UserError):  # damaged: whoever reads this checkpoint says so
                manifest = read_manifest(path.parent)
                ends = [] if manifest is None else list(manifest.made_from.get("stage_ends") or ())
                if ends != steps[: len(ends)]:
                    return False
        return True

    @property
    def has_results(self) -> bool:
        """Whether something was computed that must stay comparable."""
        kinds = ("checkpoints", "scores")
        return any(any(self.folder.glob(f"{kind}/*/manifest.json")) for kind in kinds)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the run's folder says of its shared artifacts; raises UserError when that is damaged."""
        path = self.folder / "artifacts.json"
        try:
            content = json.loads(path.read_bytes()) if path.exists() else {}
        except ValueError as error:  # no JSON, or no UTF-8
            raise _damaged(path, str(error)) from None
        if not isinstance(content, dict):
            raise _damaged(path, type(content).__name__)
        return content

    def record(self, base: ModelSource, **pointers: Any) -> None:
        """Say in the run's folder where the shared artifacts are, for the report and for people."""
        if not self._is_written:
            return
        model = {**asdict(base), "folder": str(base.folder)}
        write_json(self.folder / "artifacts.json", {**self.recorded, "model": model, **pointers})


def _damaged(path: Path, got: str) -> UserError:
    todo = (
        f"restore it from a copy; without one remove {path} and run again: it is written anew, unless stages were "
        "added since the run began"
    )
    return UserError("what the run says of its shared artifacts is damaged", str(path), got, "a JSON object", todo)
