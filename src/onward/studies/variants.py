"""What each study tries: its variants of a recipe, and what it refuses at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from onward.errors import UserError
from onward.model.shape import read_shape
from onward.model.source import resolve
from onward.recipe import Recipe, format_share, format_tokens
from onward.studies.budgets import looked_at
from onward.studies.kinds import kind_of, named_words
from onward.studies.member import Variant, one_stage

STUDIES = ("baseline", "pilot", "tokens", "remedies", "domains", "sizes", "rates")
CONTROL = "control"
"""Name and family of the member that is no remedy, and so neither on the front nor blended."""
BLEND = "blend"
"""Family of models between the base and a member."""
_EWC_STRENGTHS = (1, 10, 100)
"""Decades: useful strengths span many (2505.05946)."""
_BLENDS = ("25%", "50%", "75%")
_HALF_DECADES = (0.1, 0.316, 1.0, 3.16, 10.0)
_LONGEST_NAME = 200
"""Most file systems take 255 bytes, and the longest name that is made of a member's has 25 and its seed more."""


@dataclass(frozen=True)
class Blend:
    """A model on the line from the base to a member. share: of the trained model; of: the name of the variant."""

    name: str
    words: str
    of: str
    share: float


def variants_of(study: str, recipe: Recipe, tokens: int, separate: bool = False) -> tuple[Variant, ...]:
    """Return what a study tries. Raises UserError when the recipe lacks what it varies, saying what to write."""
    find = {
        "baseline": _baseline,
        "pilot": _pilot,
        "tokens": _separate if separate else _in_one_run,
        "remedies": _remedies,
        "domains": _domains,
        "sizes": _sizes,
        "rates": _rates,
    }
    return find[study](recipe, tokens)


def blends_of(recipe: Recipe, variants: tuple[Variant, ...]) -> tuple[Blend, ...]:
    """Return the blends of the study of remedies: of the members without a remedy and with 5 % replay.

    Where the recipe names other members: of those of these names, else of its first. Raises UserError for a share that
    is no blend, and for a member that is named like one.
    """
    # A share that is named twice is one blend.
    shares = list(dict.fromkeys(format_share(share) for share in ([] if recipe.study is None else recipe.study.blends)))
    for share in shares:
        if not 0 < _share(share) < 1:
            todo = "leave it out: of nothing it is the base, of all the member itself, and both are in the study"
            raise UserError("this share is no blend", "study.blends", share, "more than 0% and less than 100%", todo)
    names = [variant.name for variant in variants]
    preferred = [name for name in names if name in ("none", "replay-5")]
    of = preferred or [variant.name for variant in variants if variant.family != CONTROL][:1]
    words = {variant.name: variant.words for variant in variants}
    found = tuple(
        Blend(
            f"blend-{share.rstrip('%')}-of-{name}",
            f"blended {share.rstrip('%')} % of {words[name]}",
            name,
            _share(share),
        )
        for name in of
        for share in shares or _BLENDS
    )
    for blend in found:
        if blend.name in names:
            todo = f"give it another name; {blend.of} is blended with the base in any case"
            raise UserError("this name is that of a blend", "study.remedies", blend.name, todo=todo)
    return found


def _share(text: str) -> float:
    return float(text.rstrip("%")) / 100


def _baseline(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    return (Variant("base", "the base model", {}),)


def _pilot(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    return (Variant("pilot", f"{format_tokens(tokens)} tokens", one_stage(recipe, tokens), at=tokens),)


def _in_one_run(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    """One training of one stage, looked at between.

    The recipe's stages are left: with them, models whose learning rate has come down, at their ends, would stand
    between others that have just been warmed up again, and gains between the two say nothing of further tokens. Their
    ends are looked at when `study.budgets` names them.
    """
    at = [budget for budget in looked_at(recipe, tokens) if budget != tokens]
    changes = {**one_stage(recipe, tokens), "evaluation.at": at, **_all_held_out(recipe)}
    return (Variant("run", "one training", changes, at=tokens),)


def _separate(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"tokens-{b}", f"{format_tokens(b)} tokens", {**one_stage(recipe, b), **_all_held_out(recipe)}, at=b)
        for b in looked_at(recipe, tokens)
    )


def _all_held_out(recipe: Recipe) -> dict[str, Any]:
    """Budgets are compared with each other, so all are scored on the same, as the recipe says."""
    return {"evaluation.held_out_tokens": recipe.evaluation.held_out_tokens}


def _remedies(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    if recipe.general is None:
        todo = "write `general:` with sources of general text, a part of which is held out"
        raise UserError("forgetting is measured on general text, and the recipe has none", "general", todo=todo)
    short = one_stage(recipe, tokens)
    named = {} if recipe.study is None else recipe.study.remedies
    if named:
        _check_names("remedies", named)
        if CONTROL in named:
            todo = "give it another name; the control, general text alone on the same schedule, is trained in any case"
            raise UserError("this name is that of the control", "study.remedies", CONTROL, todo=todo)
        entries: list[_Entry] = [
            (name, named_words(name, remedy), kind_of(remedy), remedy.model_dump(mode="json"), {})
            for name, remedy in named.items()
        ]
        # Without it nothing tells what the schedule alone does.
        entries.append(_CONTROL)
    else:
        entries = _grid(recipe)
    return tuple(
        Variant(name, words, {**short, "training.forgetting": forgetting, **more}, family)
        for name, words, family, forgetting, more in entries
    )


def _check_names(section: str, names: Iterable[str]) -> None:
    """Raise UserError for a name of a member that cannot be the name of a recipe, and so of a folder."""
    for name in names:
        if len(name) > _LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            expected = f"at most {_LONGEST_NAME} letters, digits, `.`, `_` and `-`, the first a letter or digit"
            todo = "files and folders are named after the member: give it another name"
            raise UserError("a member cannot have this name", f"study.{section}", name, expected, todo)


_Entry = tuple[str, str, str, Mapping[str, Any], Mapping[str, Any]]
_CONTROL: _Entry = (CONTROL, "control on general text", CONTROL, {"replay": None}, {"training.text": "general"})


def _grid(recipe: Recipe) -> list[_Entry]:
    """The built-in grid: name, words, family, `training.forgetting`, and other keys."""
    half = read_shape(resolve(recipe.model.base, recipe.model.revision)).layers // 2
    rate = recipe.training.optimizer.learning_rate
    alone: dict[str, Any] = {"replay": None}
    general = "samples" if recipe.general is not None and recipe.general.self_replay is not None else "replay"
    entries: list[_Entry] = [("none", "no remedy", "none", alone, {})]
    shares = (1, 5, 10)
    entries += [(f"replay-{n}", f"{general} {n} %", "replay", {"replay": {"general": f"{n}%"}}, {}) for n in shares]
    entries += [(f"self-{n}", f"self replay {n} %", "self replay", {"replay": {"self": f"{n}%"}}, {}) for n in shares]
    entries += [(f"ewc-{n}", f"EWC {n}", "EWC", {**alone, "ewc": n}, {}) for n in _EWC_STRENGTHS]
    entries += [
        ("l2-sp-10", "L2-SP 10", "L2-SP", {**alone, "l2_sp": 10.0}, {}),
        ("kl-1-replay-5", "KL 1 with replay 5 %", "KL and replay", {"replay": {"general": "5%"}, "kl": 1.0}, {}),
        (
            "freeze-half",
            f"frozen embeddings and {half} {'block' if half == 1 else 'blocks'}",
            "freezing",
            {**alone, "freeze": {"embeddings": True, "blocks": half}},
            {},
        ),
        ("lora", "LoRA", "LoRA", {**alone, "lora": {"learning_rate_ratio": 10.0}}, {}),
        (
            "slow-embeddings",
            "embeddings at a tenth of the rate",
            "slow embeddings",
            alone,
            {"training.optimizer.embedding_learning_rate": rate / 10},
        ),
        _CONTROL,
    ]
    return entries


def _domains(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    domains = {} if recipe.study is None else recipe.study.domains
    if len(domains) < 2:
        todo = "write `study: {domains: {legal: {sources: [...]}, medical: {sources: [...]}}}`: two corpora or more"
        got = ", ".join(domains) or "none"
        raise UserError("there are no domains to compare", "study.domains", got, todo=todo)
    _check_names("domains", domains)
    short = one_stage(recipe, tokens)
    return tuple(
        Variant(name, name, {**short, "corpus": corpus.model_dump(mode="json")}) for name, corpus in domains.items()
    )


def _sizes(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    models = {} if recipe.study is None else recipe.study.models
    if len(models) < 2:
        todo = "write `study: {models: {small: {base: ...}, large: {base: ...}}}`: two base models or more"
        raise UserError("there are no sizes to compare", "study.models", ", ".join(models) or "none", todo=todo)
    _check_names("models", models)
    short = one_stage(recipe, tokens)
    found = []
    for name, model in models.items():
        try:
            size = read_shape(resolve(model.base, model.revision)).parameters
        except UserError as error:
            raise replace(error, where=f"study.models.{name}.base") from error
        found.append(Variant(name, name, {**short, "model": model.model_dump(mode="json")}, at=size))
    return tuple(found)


def _around(peak: float) -> list[float]:
    """Return half decades around a rate, which is itself among them as it is written."""
    return [peak if factor == 1 else float(f"{peak * factor:.2g}") for factor in _HALF_DECADES]


def _written(rate: float) -> str:
    """Return a rate exactly, as short as it can be: 0.001, 0.00100000001."""
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


def _check_once(key: str, values: Sequence[str]) -> None:
    """Raise UserError when a recipe lists a value twice."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        todo = "name it once; --seeds N trains each N times"
        raise UserError("a value is named twice", f"study.{key}", ", ".join(twice), todo=todo)


def _rates(recipe: Recipe, tokens: int) -> tuple[Variant, ...]:
    study, training = recipe.study, recipe.training
    peak, batch = training.optimizer.learning_rate, training.batch_tokens
    rates = sorted(study.learning_rates if study else ()) or _around(peak)
    named = sorted(study.batch_tokens if study else ())
    _check_once("learning_rates", [_written(rate) for rate in rates])
    _check_once("batch_tokens", [format_tokens(size) for size in named])
    # Half and twice the recipe's batch are tried where they are possible; a size that was asked for has to be.
    batches = [size for size in named or (batch // 2, batch, 2 * batch) if training.sequence_tokens <= size <= tokens]
    refused = [size for size in named if size not in batches]
    if refused:
        got, expected = ", ".join(f"{size:,}" for size in refused), f"{training.sequence_tokens:,} to {tokens:,} tokens"
        todo = (
            "a batch holds a sequence or more, and a training a batch or more: name other sizes, or lengthen --tokens"
        )
        raise UserError("these batches cannot be trained on", "study.batch_tokens", got, expected, todo)
    return tuple(
        Variant(
            f"rate-{_written(rate)}-batch-{size}",
            f"{_written(rate)}, {format_tokens(size)}",
            {**one_stage(recipe, tokens), "training.optimizer.learning_rate": rate, "training.batch_tokens": size},
            family=format_tokens(size),
            at=rate,
        )
        for size, rate in product(batches, rates)
    )
