"""Benchmark tasks as items: lm-evaluation-harness's definitions over the Hub's data or local original files."""

from onward.tasks.items import Item, TaskItems, load_items
from onward.tasks.local import data_fingerprints
from onward.tasks.questions import Question, item_facts, load_questions

__all__ = ["Item", "Question", "TaskItems", "data_fingerprints", "item_facts", "load_items", "load_questions"]
