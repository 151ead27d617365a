"""The commands; each body is a few lines over the Python API."""

from onward.cli import runs, models, studies, corpora, recipes  # isort: skip  (the order of the commands in the help)
from onward.cli.application import app
from onward.cli.entry import main

__all__ = ["app", "corpora", "main", "models", "recipes", "runs", "studies"]
