"""The project's own general text: the held-out English of the offline quickstart."""

import json
import re
from importlib import resources
from itertools import pairwise

import pytest


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    lines = (
        (resources.files("onward") / "corpus" / "reading" / "general_text.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_pieces_are_numbered_titled_and_of_the_stated_size(records: list[dict[str, str]]) -> None:
    assert [record["id"] for record in records] == [f"general-text/{n:03d}" for n in range(1, len(records) + 1)]
    assert len({record["title"] for record in records}) == len(records) == 60
    assert all(set(record) == {"id", "title", "text"} for record in records)
    assert all(130 <= len(record["text"].split()) <= 260 for record in records)
    assert 60_000 <= sum(len(record["text"].encode()) for record in records) <= 75_000


def test_pieces_are_plain_paragraphs(records: list[dict[str, str]]) -> None:
    for record in records:
        text = record["text"]
        assert text.isascii(), record["id"]
        assert text == text.strip()
        paragraphs = text.split("\n\n")
        assert len(paragraphs) >= 3, record["id"]  # the paper's filter drops documents of fewer lines
        assert all(paragraph and "\n" not in paragraph for paragraph in paragraphs), record["id"]
        assert text.count('"') % 2 == 0, record["id"]


def test_no_two_pieces_share_a_phrase(records: list[dict[str, str]]) -> None:
    """Eight words in a row occur in one piece only, and no piece repeats a paragraph."""
    owner: dict[tuple[str, ...], str] = {}
    for record in records:
        tokens = words(record["text"])
        for start in range(len(tokens) - 7):
            phrase = tuple(tokens[start : start + 8])
            assert owner.setdefault(phrase, record["id"]) == record["id"], " ".join(phrase)
        paragraphs = sorted(record["text"].split("\n\n"))
        assert all(left != right for left, right in pairwise(paragraphs))


def test_no_piece_is_dropped_by_the_quality_rules(records: list[dict[str, str]]) -> None:
    from onward.corpus.quality.judge import judge
    from onward.corpus.text.batch import batch_of
    from onward.corpus.text.words import split_words
    from onward.recipe.quality import PAPER

    batch = batch_of([record["text"] for record in records])
    judgement = judge(batch, split_words(batch), PAPER)
    dropped = [(record["id"], code) for record, code in zip(records, judgement.reason, strict=True) if code >= 0]
    assert (dropped, len(judgement.reasons) > 3) == ([], True)
