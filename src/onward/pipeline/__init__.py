"""The step `run`, and each of its parts alone."""

from onward.pipeline.run import Corpora, Run, RunResult

__all__ = ["Corpora", "Run", "RunResult"]
