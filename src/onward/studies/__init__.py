"""Studies of a recipe: its members as recipes of their own, run one by one, and what they say together."""

from onward.studies.plan import StudyPlan, emitted
from onward.studies.study import StudyResult, planned, run_study
from onward.studies.variants import STUDIES

__all__ = ["STUDIES", "StudyPlan", "StudyResult", "emitted", "planned", "run_study"]
