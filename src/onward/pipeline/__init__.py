"""The step `run`, and each of its parts alone."""

from onward.pipeline.corpora import Corpora
from onward.pipeline.run import Run, RunResult

__all__ = ["Corpora", "Run", "RunResult"]
