import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onward.artifact import Folders
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus

TEXT = (
    "A heron stood in the shallow water and waited for a fish.\n"
    "Nobody on the bridge had ever seen it move its head.\n"
    "Then, one evening in spring, it flew off without a sound."
)


@pytest.fixture
def attempt(tiny_tokenizer: LoadedTokenizer, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepare `data.jsonl` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def attempt(content: bytes, label: str = "domain", name: str = "data.jsonl", **fields: Any) -> PreparedCorpus:
        Path(name).write_bytes(content)
        corpus = Corpus.model_validate({"sources": [{"path": name}], "held_out": {"share": "0%"}, **fields})
        return prepare(
            corpus,
            tokenizer=tiny_tokenizer,
            sequence_tokens=32,
            wanted_tokens=None,
            seed=0,
            folders=folders,
            label=label,
        )

    return attempt


def good(count: int) -> list[bytes]:
    return [json.dumps({"text": f"{TEXT} {n * 7919}"}).encode() for n in range(count)]


def test_a_few_bad_lines_are_counted_with_their_place(attempt: Callable[..., PreparedCorpus]) -> None:
    prepared = attempt(b"\n".join([*good(150), b'{"text": "cut', *good(50)]))
    assert prepared.ledger.unreadable == ("data.jsonl:151: unreadable: broken JSON",)
    assert prepared.ledger.dropped["unreadable: broken JSON"].documents == 1
    assert prepared.ledger.read.documents == 201
    assert (prepared.ledger.kept.documents, prepared.ledger.duplicate.documents) == (150, 50)


def test_more_bad_lines_than_allowed_are_an_error(attempt: Callable[..., PreparedCorpus]) -> None:
    with pytest.raises(UserError) as error:
        attempt(b"\n".join([*good(98), b'{"text": "\xff"}', b"{"]), label="general")
    assert str(error.value) == (
        "too many records cannot be read\n"
        "  where     data.jsonl:99: unreadable: not UTF-8; data.jsonl:100: unreadable: broken JSON\n"
        "  got       2 of 100 (2%)\n"
        "  expected  at most 1%\n"
        "  do        mend or remove them, or raise general.maximum_unreadable; fewer are counted and passed over"
    )
    assert attempt(b"\n".join([*good(98), b"}", b"{"]), maximum_unreadable="2%").ledger.kept.documents == 98


def test_a_misnamed_field_is_answered_with_the_fields_that_exist(attempt: Callable[..., PreparedCorpus]) -> None:
    line = json.dumps({"url": "x", "texts": TEXT}).encode()
    with pytest.raises(UserError) as error:
        attempt(b"\n".join([line] * 3))
    assert str(error.value) == (
        "no record has the field `text`\n"
        "  where     data.jsonl:1\n"
        "  got       fields: url, texts\n"
        "  do        name the field that holds the document: `text: texts`"
    )


def test_a_hopeless_corpus_is_not_read_to_its_end(
    attempt: Callable[..., PreparedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onward.corpus.examine.CHUNK_ITEMS", 100)
    with pytest.raises(UserError, match="no record has the field `text`"):
        attempt(b'{"body": "x"}\n' * 5000)
    with pytest.raises(UserError) as error:
        attempt(b'{"text": 1}\n' * 5000)
    assert error.value.got == "1,000 of 1,000 (100%)"


def test_empty_texts_are_counted_but_are_no_reading_errors(attempt: Callable[..., PreparedCorpus]) -> None:
    prepared = attempt(b"\n".join([*good(2), b'{"text": ""}', b'{"text": "\\n"}']))
    assert prepared.ledger.dropped["unreadable: empty text"].documents == 2
    assert prepared.ledger.unreadable == ()


def test_nothing_left_says_what_dropped_it(attempt: Callable[..., PreparedCorpus], folders: Folders) -> None:
    with pytest.raises(UserError) as error:
        attempt(b'{"text": "short"}\n{"text": "brief"}\n{"text": ""}')
    assert str(error.value) == (
        "no document is left to train on\n"
        "  where     corpus.sources: data.jsonl\n"
        "  got       quality: too few lines: 2 of 3; unreadable: empty text: 1 of 3\n"
        "  do        loosen what dropped them, e.g. corpus.quality: none"
    )
    with pytest.raises(UserError, match="no document is left to train on"):
        attempt(b"")
    assert not [path for path in (folders.cache / "corpora").iterdir() if not path.name.startswith(".")]


def test_a_single_long_line_is_prepared_in_parts(attempt: Callable[..., PreparedCorpus]) -> None:
    text = " ".join(f"word{n}" for n in range(900_000))
    prepared = attempt(json.dumps({"text": text}).encode(), quality="none")
    assert prepared.ledger.read.documents == prepared.ledger.kept.documents == 3
    assert prepared.ledger.read.bytes == len(text)


def test_a_truncated_file_is_counted(attempt: Callable[..., PreparedCorpus], tmp_path: Path) -> None:
    import gzip

    whole = gzip.compress(b"\n".join(good(3000)))
    prepared = attempt(whole[:-300], name="data.jsonl.gz")
    (place,) = prepared.ledger.unreadable
    assert place.endswith(": unreadable: truncated file")
    assert int(place.split(":")[1]) == prepared.ledger.read.documents
    assert prepared.ledger.kept.documents == prepared.ledger.read.documents - 1 > 1000
