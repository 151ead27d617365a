"""A member of a study: one training with one seed, as a complete recipe that runs alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onward.errors import UserErrors
from onward.plan import sampled_tokens, wanted_tokens
from onward.recipe import Corpus, Recipe, recipe_from_mapping

LEAST_HELD_OUT_TOKENS = 75_000
"""So much of each text is scored at least, where the recipe scores as much: of long documents fewer tokens are
less than eight groups, which give no verdict."""


@dataclass(frozen=True)
class Variant:
    """What a study tries: its name in file names, its words in tables, and the keys of the recipe that it changes.

    family: variants that are compared as one kind of remedy. at: tokens of its x axis, where the study has one.
    """

    name: str
    words: str
    changes: Mapping[str, Any]
    family: str = ""
    at: float | None = None


@dataclass(frozen=True)
class Member:
    """A variant with a seed. seed: number of the seed, from 0; recipe: of its own, named after variant and seed."""

    variant: Variant
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of the member's recipe, folder and command."""
        return self.recipe.name


def members_of(recipe: Recipe, variants: Sequence[Variant], seeds: int) -> tuple[Member, ...]:
    """Return every variant with every seed; the seeds of training count up from the recipe's.

    All members read the same text: see `sharing`. Raises UserErrors when a changed recipe is refused.
    """
    first = recipe.seed if recipe.training.seed is None else recipe.training.seed
    found = []
    for variant in variants:
        for seed in range(seeds):
            own = {"name": f"{variant.name}-seed{seed}", "training.seed": first + seed, "study": None}
            found.append(Member(variant, seed, changed(recipe, {**variant.changes, **own})))
    shared = sharing([member.recipe for member in found], recipe.evaluation.tasks)
    return tuple(replace(member, recipe=each) for member, each in zip(found, shared, strict=True))


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values at dotted keys; raises UserErrors when it then contradicts itself."""
    content = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    try:
        return recipe_from_mapping(content, where=f"the member {content['name']}")
    except UserErrors as error:
        raise UserErrors(error.what, error.problems) from None


def one_stage(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """Return the changes that make a training of one stage, scored at its end on held-out text alone.

    Tasks are left out: a short training moves them by less than they can tell, and they cost more than it. Of each text
    no more is scored than half the training's tokens, which costs a third of it. A state is saved every half hour
    only, since a member that is killed has lost little.
    """
    scored = recipe.evaluation.held_out_tokens
    most = max(LEAST_HELD_OUT_TOKENS, tokens // 2)
    return {
        "training.stages": [tokens],
        "training.checkpoint_tokens": tokens,
        "training.keep_checkpoints": 1,
        "evaluation.at": [],
        "evaluation.tasks": [],
        "evaluation.held_out_tokens": most if scored is None else min(scored, most),
        "evaluation.cloze": None,
    }


def sharing(recipes: Sequence[Recipe], tasks: tuple[str, ...]) -> list[Recipe]:
    """Give corpora that members have in common one size, the largest that any needs, so that each is made once.

    A corpus whose recipe says how many tokens it has keeps them. tasks: those that the studied recipe scores; the text
    of members holds none of their items either, and is the text of the recipe's own run where that has this size.
    """
    largest: dict[tuple[str, str], tuple[int, int]] = {}
    for recipe in recipes:
        for name, corpus in recipe.texts().items():
            kept, sampled = largest.get(_key(name, corpus), (0, 0))
            needed = wanted_tokens(name, corpus, recipe), sampled_tokens(name, corpus, recipe) or 0
            largest[_key(name, corpus)] = max(kept, needed[0]), max(sampled, needed[1])
    return [_sized(recipe, largest, tasks) for recipe in recipes]


def _key(name: str, corpus: Corpus) -> tuple[str, str]:
    return name, corpus.model_dump_json()


def _sized(recipe: Recipe, largest: Mapping[tuple[str, str], tuple[int, int]], tasks: tuple[str, ...]) -> Recipe:
    """Write sizes and tasks into a recipe; samples that it replays without a word stand in it then."""
    sized = {}
    for name, corpus in recipe.texts().items():
        kept, sampled = largest[_key(name, corpus)]
        update: dict[str, Any] = {"tokens": corpus.tokens or kept}
        if corpus.self_replay is not None:
            tokens = corpus.self_replay.tokens or sampled
            update["self_replay"] = corpus.self_replay.model_copy(update={"tokens": tokens})
        if corpus.contamination is not None and corpus.contamination.tasks is None:
            update["contamination"] = corpus.contamination.model_copy(update={"tasks": tasks})
        sized[name] = corpus.model_copy(update=update)
    changes: dict[str, Any] = {"corpus": sized.pop("domain", recipe.corpus)}
    changes["general"] = sized.pop("general", recipe.general)
    return recipe.model_copy(update={**changes, "corpora": {**recipe.corpora, **sized}})
