"""What every section of a recipe is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Strict and frozen: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True)
