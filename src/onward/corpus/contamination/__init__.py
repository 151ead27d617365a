"""Contamination: benchmark items that stand in the training text."""
