"""A benchmark from the user's own held-out text: a rare, telling term is taken out, the model picks it from four."""

from onward.evaluation.cloze.artifact import TASK, load_cloze
from onward.evaluation.cloze.making import cloze_made_from, make_cloze

__all__ = ["TASK", "cloze_made_from", "load_cloze", "make_cloze"]
