"""What the studies of a recipe vary (`onward study NAME RECIPE`)."""

from pydantic import Field, field_validator

from onward.recipe.forgetting import Forgetting
from onward.recipe.quantities import Share, Tokens
from onward.recipe.section import Section
from onward.recipe.sections import Corpus, Model


class Study(Section):
    """What the studies vary, and how long each of their trainings is."""

    tokens: Tokens | None = None
    """Budget of each training; null: the study's own share of the last stage (docs/studies.md)."""
    seeds: int = Field(1, ge=1)
    """Trainings of each member, with other orders of the text; `--seeds` overrides."""
    remedies: dict[str, Forgetting] = Field(default_factory=dict)
    """`remedies`: members by name, each a `training.forgetting`, beside the control; empty: the built-in grid."""
    blends: tuple[Share, ...] = ()
    """`remedies`: blends with the base, by the trained model's share; empty: a quarter, a half, three quarters."""
    domains: dict[str, Corpus] = Field(default_factory=dict)
    """`domains`: corpora by name, each in the place of `corpus`."""
    models: dict[str, Model] = Field(default_factory=dict)
    """`sizes`: base models by name, each in the place of `model`."""
    budgets: tuple[Tokens, ...] = ()
    """`tokens`: cumulative tokens at which the model is scored; empty: up to
    eight, each twice the one before, up to the last stage."""
    learning_rates: tuple[float, ...] = ()
    """`rates`: peak learning rates; empty: half decades around the recipe's."""
    batch_tokens: tuple[Tokens, ...] = ()
    """`rates`: batch sizes; empty: half, once and twice the recipe's."""

    @field_validator("learning_rates")
    @classmethod
    def _positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate <= 0 for rate in rates):
            raise ValueError("learning rates are above 0")
        return rates
