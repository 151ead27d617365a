"""A study before anything is computed: its members, their recipes on disk, and the commands that run them elsewhere."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from onward.artifact import Folders, flatten, write_text
from onward.errors import UserError
from onward.pipeline.run_folder import RunFolder
from onward.recipe import Recipe, load_recipe
from onward.studies.budgets import training_tokens
from onward.studies.member import Member, Variant, members_of
from onward.studies.variants import Blend, blends_of, variants_of
from onward.training.stages import COST_KNOBS

Emit = Literal["commands", "slurm"]


@dataclass(frozen=True)
class StudyPlan:
    """A study of a recipe. tokens: of each training; separate: the budgets of `tokens` are trainings of their own."""

    study: str
    recipe: Recipe
    tokens: int
    seeds: int
    separate: bool
    variants: tuple[Variant, ...]
    members: tuple[Member, ...]
    blends: tuple[Blend, ...]
    cache: Path
    folder: Path

    @property
    def runs(self) -> Path:
        """Folder of the members' runs."""
        return self.folder / "members"

    def recipe_file(self, member: Member) -> Path:
        """Return where a member's recipe stands."""
        return self.folder / "recipes" / f"{member.name}.yaml"

    def check_begun(self) -> None:
        """Raise UserError, naming the keys, when a member has results of another recipe: of another budget, say."""
        free = {f"training.{knob}" for knob in COST_KNOBS}
        for member in self.members:
            file = self.recipe_file(member)
            if not (file.exists() and RunFolder(self.runs / member.name, False).has_results):
                continue
            before, now = (flatten(each.model_dump(mode="json")) for each in (load_recipe(file), member.recipe))
            keys = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free]
            if keys:
                got = "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
                todo = "restore the old values, give the study another name (--set name=...), or remove its folder"
                raise UserError("this study was begun with another recipe", str(file), got, todo=todo)

    def write_recipes(self) -> None:
        """Write every member's recipe; each runs alone: `onward run FILE --runs .../members`."""
        (self.folder / "recipes").mkdir(parents=True, exist_ok=True)
        for member in self.members:
            content = yaml.safe_dump(member.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_text(self.recipe_file(member), content)


def plan_study(
    study: str,
    recipe: Recipe,
    folders: Folders,
    seeds: int | None = None,
    tokens: int | None = None,
    separate: bool = False,
) -> StudyPlan:
    """Return the members of a study; raises UserError when the recipe lacks what the study varies.

    seeds, tokens: None takes those of the recipe's `study`, else one seed and the study's own budget.
    """
    each = training_tokens(study, recipe, tokens)
    variants = variants_of(study, recipe, each, separate)
    number = 1 if study == "baseline" else seeds or (1 if recipe.study is None else recipe.study.seeds)
    members = members_of(recipe, variants, number)
    blends = blends_of(recipe, variants) if study == "remedies" else ()
    folder = folders.runs / f"{recipe.name}-{study}"
    return StudyPlan(study, recipe, each, number, separate, variants, members, blends, folders.cache, folder)


def emitted(plan: StudyPlan, kind: Emit, collect: Sequence[str]) -> str:
    """Return the commands of every member and the one that collects, as lines or as a Slurm array script.

    collect: the words of the study's own command, which reads what the members have left.
    """
    places = ["--cache", str(plan.cache), "--runs", str(plan.runs)]
    files = [str(plan.recipe_file(member)) for member in plan.members]
    if kind == "commands":
        lines = [shlex.join(["onward", "run", file, *places]) for file in files]
        return "\n".join([*lines, shlex.join(collect)]) + "\n"
    first = shlex.join(["onward", "evaluate", files[0], *places])
    return _SLURM.format(
        name=plan.folder.name,
        last=len(files) - 1,
        first=first,
        collect=shlex.join(collect),
        members="\n".join(f"  {shlex.quote(file)}" for file in files),
        places=shlex.join(places),
    )


_SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
# Before the array, once: the text and the base's scores, which the members share.
#   {first}
# After it: what is missing is made, and everything is collected.
#   {collect}
members=(
{members}
)
exec onward run "${{members[$SLURM_ARRAY_TASK_ID]}}" {places}
"""
