"""Scores of invented models: nats of documents under a base and under the models of some seeds."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onward.recipe import Recipe, recipe_from_mapping
from onward.studies import budgets_compared
from onward.studies.member import Variant, changed
from onward.studies.outcome import Measured, Outcome
from onward.studies.scored import Text

DOCUMENTS = 40


def recipe(**sections: object) -> Recipe:
    content = {"name": "x", "model": {"base": "onward/tiny"}, "corpus": {"sources": [{"path": "d.jsonl"}]}}
    general = {"sources": [{"path": "g.jsonl"}]}
    training = {"stages": ["1M"], "sequence_tokens": 500, "batch_tokens": "4k"}
    return recipe_from_mapping({**content, "general": general, "training": training, **sections})


def text(change: float, seeds: int = 3, noise: float = 0.002, seed: int = 0) -> Text:
    """A text of 40 documents of 1,000 bytes that a model makes harder by `change` bits per byte, give or take noise."""
    generator = np.random.default_rng(0)
    bits = np.full(DOCUMENTS, 1000 * np.log(2))
    before = bits * generator.uniform(1.5, 2.5, DOCUMENTS)
    own = np.random.default_rng(seed + 1)
    after = before + bits * (change + noise * own.standard_normal((seeds, DOCUMENTS)))
    groups = np.array([f"document-{n}" for n in range(DOCUMENTS)], dtype=object)
    return Text(before, after, bits, groups, tuple(range(seeds)))


def measured(
    name: str, domain: float, general: float, family: str = "", seeds: int = 3, whole: Recipe | None = None
) -> Measured:
    salt = random.Random(name).randrange(1000)
    texts = {"domain": text(domain, seeds, seed=salt), "general": text(general, seeds, seed=salt + 7)}
    runs = {seed: Path(name) for seed in range(seeds)}
    return Measured(Variant(name, name, {}, family or name), whole or recipe(), runs, texts, 1_000_000)


def curve(changes: Sequence[float], first: int = 1000) -> dict[int, Text]:
    """Texts at budgets that double, changed against the base by so much."""
    return {first * 2**n: text(change, noise=0.0005, seed=n) for n, change in enumerate(changes)}


def the_course(changes: Sequence[float]) -> Outcome:
    """What the study of tokens says of one training, in steps of 500 tokens, that is looked at at `curve(changes)`."""
    points = curve(changes)
    whole = recipe(training={"stages": [max(points)], "sequence_tokens": 500, "batch_tokens": 500})
    one = measured("run", 0, 0)
    by_tokens = {tokens: {"domain": text} for tokens, text in points.items()}
    return budgets_compared.outcome([Measured(one.variant, whole, one.runs, {}, 10, by_tokens)], is_separate=False)


def a_grid() -> list[Measured]:
    rows = (
        ("none", -0.50, 0.10, "none"),
        ("replay-1", -0.50, 0.05, "replay"),
        ("replay-5", -0.495, 0.02, "replay"),
        ("ewc-1", -0.45, 0.09, "EWC"),
        ("ewc-10", -0.30, 0.05, "EWC"),
        ("self-5", -0.495, 0.02, "self replay"),
        ("control", 0.01, -0.02, "control"),
    )
    return [measured(name, domain, general, family) for name, domain, general, family in rows]


def rated(rate: float, batch: int, domain: float) -> Measured:
    whole = changed(recipe(), {"training.optimizer.learning_rate": rate, "training.batch_tokens": batch})
    return measured(f"rate-{rate:g}-{batch}", domain, 0.0, f"{batch}", whole=whole)
