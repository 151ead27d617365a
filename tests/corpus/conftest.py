"""A real tokenizer without transformers, folders in a temporary place, and files of records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onward.artifact import Folders
from onward.model.tokenizer import LoadedTokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(repository: Path) -> LoadedTokenizer:
    text = (repository / "src/onward/model/tiny/tokenizer.json").read_text(encoding="utf-8")
    return LoadedTokenizer(text, 0, None, 0, None, 8192, "tiny")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "cache", tmp_path / "runs")


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., str]:
    """Write records as JSON lines; return the path."""

    def write(records: list[dict[str, object]], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return write
