"""Recipes: every knob of a run, typed and strict, with units."""

from onward.recipe.forgetting import Ewc, Forgetting, Freeze, Lora, remedy_words, replay_words
from onward.recipe.loading import load_recipe, recipe_from_mapping
from onward.recipe.quality import PaperRules, Quality
from onward.recipe.quantities import format_seconds, format_share, format_tokens
from onward.recipe.sections import (
    TASKS,
    Contamination,
    Corpus,
    Duplicates,
    Evaluation,
    HeldOut,
    Model,
    NearDuplicates,
    SelfReplay,
    Source,
)
from onward.recipe.study import Study
from onward.recipe.training import Guard, Optimizer, Schedule, Training
from onward.recipe.whole import SCORED, Recipe, section_of

__all__ = [
    "SCORED",
    "TASKS",
    "Contamination",
    "Corpus",
    "Duplicates",
    "Evaluation",
    "Ewc",
    "Forgetting",
    "Freeze",
    "Guard",
    "HeldOut",
    "Lora",
    "Model",
    "NearDuplicates",
    "Optimizer",
    "PaperRules",
    "Quality",
    "Recipe",
    "Schedule",
    "SelfReplay",
    "Source",
    "Study",
    "Training",
    "format_seconds",
    "format_share",
    "format_tokens",
    "load_recipe",
    "recipe_from_mapping",
    "remedy_words",
    "replay_words",
    "section_of",
]
