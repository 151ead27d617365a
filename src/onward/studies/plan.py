"""A study before anything is computed: its members, their recipes on disk, and the commands that run them elsewhere."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from onward.artifact import Folders, flatten, write_text
from onward.errors import UserError
from onward.model.shape import read_shape
from onward.model.source import resolve
from onward.pipeline.run_folder import RunFolder
from onward.recipe import SCORED, Recipe, load_recipe, section_of
from onward.recipe.whole import DOMAIN
from onward.studies.budgets import training_tokens
from onward.studies.member import Member, Variant, members_of
from onward.studies.variants import Blend, blends_of, variants_of
from onward.training.remedies import blocks_frozen
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
        """Raise UserError, naming the keys, when a member has results of another recipe: of another budget, say.

        What was run stands in the member's own folder; the study's copies may be gone, or be of another recipe.
        """
        free = {f"training.{knob}" for knob in COST_KNOBS}
        for member in self.members:
            run = self.runs / member.name
            file = next((path for path in (run / "recipe.yaml", self.recipe_file(member)) if path.exists()), None)
            if file is None or not RunFolder(run, is_written=False).has_results:
                continue
            before, now = (flatten(each.model_dump(mode="json")) for each in (load_recipe(file), member.recipe))
            keys = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free]
            if not keys:
                continue
            got = "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
            other = "give the study another name (--set name=...), or remove its folder"
            sizes = self._own_sizes()
            if set(keys) <= sizes.keys():
                what = (
                    "this study was begun with texts of another size: those of all members are as large as the "
                    "hungriest needs"
                )
                # Of a text that the recipe does not write, the size alone cannot be written either.
                old = ", ".join(f"{key}: {before[key]}" for key in keys)
                keep = f"to keep the texts, write into the recipe {old}; or " if all(map(sizes.get, keys)) else ""
                raise UserError(what, str(file), got, todo=f"{keep}{other}")
            restore = "restore the old values"
            if self.study == "tokens" and "training.stages" in keys:
                restore += " (not of a study that an earlier version began, which trained all stages of the recipe)"
            raise UserError("this study was begun with another recipe", str(file), got, todo=f"{restore}, {other}")

    def _own_sizes(self) -> dict[str, bool]:
        """Return the keys of sizes that the study chose, since the recipe does not; and whether it writes the text."""
        found = {}
        for name in {name for member in self.members for name in member.recipe.texts()}:
            corpus = self.recipe.corpus if name == DOMAIN else self.recipe.replayed_corpus(name)
            if corpus is None or (name == DOMAIN and self.study == "domains"):
                continue
            is_written = name in SCORED or name in self.recipe.corpora
            if corpus.tokens is None:
                found[f"{section_of(name)}.tokens"] = is_written
            if corpus.self_replay is not None and corpus.self_replay.tokens is None:
                found[f"{section_of(name)}.self_replay.tokens"] = is_written
        return found

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
    _check_freezing(study, recipe, members)
    blends = blends_of(recipe, variants) if study == "remedies" else ()
    # The two studies of tokens are there to be compared: neither may overwrite the other's table.
    folder = folders.runs / (f"{recipe.name}-{study}" + ("-separate" if separate else ""))
    return StudyPlan(study, recipe, each, number, separate, variants, members, blends, folders.cache, folder)


def _check_freezing(study: str, recipe: Recipe, members: Sequence[Member]) -> None:
    """Raise UserError when a member is to freeze more blocks than its base has."""
    named = {} if study != "remedies" or recipe.study is None else recipe.study.remedies
    for member in members:
        forgetting, model = member.recipe.training.forgetting, member.recipe.model
        if forgetting.freeze is None:
            continue
        try:
            shape = read_shape(resolve(model.base, model.revision))
            blocks_frozen(forgetting, shape.layers, tied=shape.tied)
        except UserError as error:
            name = member.variant.name
            where = f"study.remedies.{name}.freeze" if name in named else error.where
            raise replace(error, where=where) from error


def emitted(plan: StudyPlan, kind: Emit, collect: Sequence[str], how: Sequence[str] = ()) -> str:
    """Return the commands that prepare, those of every member and the one that collects: lines, or a Slurm array.

    collect: the words of the study's own command, which reads what the members have left. how: options of every other
    command, `--gpus 2` say. A member of `baseline` is only scored, and needs nothing before it.
    """
    places = ["--cache", str(plan.cache), "--runs", str(plan.runs), *how]
    files = [str(plan.recipe_file(member)) for member in plan.members]
    verb = "evaluate" if plan.study == "baseline" else "run"
    before = [] if plan.study == "baseline" else [str(plan.recipe_file(member)) for member in _preparing(plan.members)]
    # Paths in a recipe are relative to where it is run, and part of what texts are known by: every command goes there.
    there = f"cd {shlex.quote(str(Path.cwd()))}"
    prepare = [f"{there} && {shlex.join(['onward', 'evaluate', file, *places])}" for file in before]
    last = f"{there} && {shlex.join(collect)}"
    if kind == "commands":
        lines = [f"{there} && {shlex.join(['onward', verb, file, *places])}" for file in files]
        return "\n".join([*prepare, *lines, last]) + "\n"
    said = [_BEFORE, *(f"#   {line}" for line in prepare)] if prepare else []
    return _SLURM.format(
        name=plan.folder.name,
        last=len(files) - 1,
        before="".join(f"{line}\n" for line in said),
        collect=last,
        there=there,
        members="\n".join(f"  {shlex.quote(file)}" for file in files),
        verb=verb,
        places=shlex.join(places),
    )


def _preparing(members: Sequence[Member]) -> list[Member]:
    """Return the first member of each base and set of texts: those prepare everything that members have in common."""
    found: dict[tuple[object, ...], Member] = {}
    for member in members:
        texts = sorted(member.recipe.texts().items())
        key = (member.recipe.model.model_dump_json(), *((name, corpus.model_dump_json()) for name, corpus in texts))
        found.setdefault(key, member)
    return list(found.values())


_BEFORE = "# Before the array, once and in this order: the texts and the bases' scores, which the members share."


_SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
{before}# After it: what is missing is made, and everything is collected.
#   {collect}
members=(
{members}
)
{there} || exit
exec onward {verb} "${{members[$SLURM_ARRAY_TASK_ID]}}" {places}
"""
