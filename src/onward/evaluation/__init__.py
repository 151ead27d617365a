"""Scores of a model: held-out bits per byte and benchmark tasks."""
