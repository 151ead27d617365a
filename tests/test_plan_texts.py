"""What a plan says of the text: read off a prepared corpus, estimated from a sample of any other."""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from known_corpus import tiny_tokenizer
from onward.artifact import Folders
from onward.corpus.preparation import Preparation, plan_preparation
from onward.corpus.prepare import make
from onward.corpus.reading import pieces
from onward.corpus.reading.chunks import read_chunks
from onward.corpus.reading.sources import find_inputs
from onward.plan import sample as sampling
from onward.plan.foresight import Range, TextForesight
from onward.plan.sample import SourceSample, pairs_per_token
from onward.plan.texts import _filled_up, foresee_text
from onward.progress import Silent
from onward.recipe import Corpus, Source

LENGTH = 64
WORDS = [f"{a}{b}{c}" for a in ("ri", "mo", "ta", "le") for b in ("ver", "ll", "stone") for c in ("", "s", "ing", "ed")]


def documents(number: int, seed: int, words: int = 60) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    texts = (
        "\n".join(" ".join(chance.choices(WORDS, k=12)) + "." for _ in range(chance.randint(2, words // 6)))
        for _ in range(number)
    )
    return [{"id": f"{seed}-{n}", "text": text} for n, text in enumerate(texts)]


def lines(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_table(path: Path, records: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=200)


@pytest.fixture
def prepared_by(repository: Path, tmp_path: Path) -> Any:
    """Plan the preparation of sources, with rules that are not made for random words."""

    def prepared_by(*paths: str, wanted: int | None = None, **changes: Any) -> Preparation:
        settings = {"quality": "none", "minimum_bytes_per_token": None, "held_out": {"share": "5%"}, **changes}
        corpus = Corpus.model_validate({"sources": [{"path": path} for path in paths], **settings})
        return plan_preparation(
            corpus,
            tokenizer=tiny_tokenizer(repository),
            sequence_tokens=LENGTH,
            wanted_tokens=wanted,
            seed=0,
            folders=Folders(tmp_path / "cache", tmp_path / "runs"),
        )

    return prepared_by


def looked_at(preparation: Preparation, needed: int = 100) -> TextForesight:
    text, problems = foresee_text(preparation, "domain", needed, 1, Silent())
    assert problems == []
    return text


def test_a_text_that_is_read_whole_is_foreseen_exactly(tmp_path: Path, prepared_by: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([*documents(200, 1), *documents(50, 1), *documents(100, 2)]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(documents(80, 3))))
    preparation = prepared_by(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz"))
    before = looked_at(preparation)
    ledger = make(preparation, None, None).ledger
    assert ledger.duplicate.documents == 50
    assert before.basis == "estimated"
    assert before.tokens == Range.exactly(ledger.kept_tokens)
    assert before.documents == Range.exactly(ledger.kept.documents)
    assert before.sequences.value == pytest.approx(ledger.sequences)
    after = looked_at(preparation)
    assert after.basis == "prepared"
    assert (after.tokens, after.documents, after.sequences) == (
        before.tokens,
        before.documents,
        Range.exactly(ledger.sequences),
    )
    assert after.pairs_per_token == pytest.approx(before.pairs_per_token)
    assert after.passes.value == 100 / ledger.sequences
    assert after.held_out_tokens == pytest.approx(before.held_out_tokens)
    of_sources = [(source.documents.value, source.tokens.value) for source in before.sources]
    assert [(source.documents.value, source.tokens.value) for source in after.sources] == of_sources
    size = sum(path.stat().st_size for path in preparation.folder.rglob("*"))
    assert before.disk_bytes == pytest.approx(size, rel=0.5)
    assert after.disk_bytes == 0


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "parquet"])
def test_a_sample_tells_the_whole_within_its_range(
    kind: str, tmp_path: Path, prepared_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 50_000)
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 900_000)
    suffix = {"plain": "jsonl", "gzip": "jsonl.gz", "zstd": "jsonl.zst", "parquet": "parquet"}[kind]
    for number in range(9):
        records = documents(900, number)
        path = tmp_path / f"{number}.{suffix}"
        if kind == "parquet":
            write_table(path, records)
        else:
            pack = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[kind]
            path.write_bytes(pack(lines(records)))
    preparation = prepared_by(str(tmp_path / f"*.{suffix}"))
    text = looked_at(preparation)
    ledger = make(preparation, None, None).ledger
    assert text.sampled_documents < ledger.read.documents / 3
    assert text.tokens.low < text.tokens.value < text.tokens.high
    assert text.tokens.low <= ledger.kept_tokens <= text.tokens.high
    assert text.documents.low <= ledger.kept.documents <= text.documents.high
    assert text.tokens.high < 1.4 * text.tokens.low
    assert text.pairs_per_token == pytest.approx(looked_at(preparation).pairs_per_token, rel=0.1)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_the_stored_share_of_a_compressed_file_is_counted(kind: str, tmp_path: Path) -> None:
    content = lines(documents(4000, 0))
    path = tmp_path / ("a.jsonl.gz" if kind == "gzip" else "a.jsonl.zst")
    path.write_bytes(gzip.compress(content) if kind == "gzip" else zstandard.compress(content))
    inputs = find_inputs(Source(path=str(path)))
    _, position = next(read_chunks(inputs))
    half = sampling._stored(inputs.files[0], len(content) // 2, position)
    assert half == pytest.approx(path.stat().st_size / 2, rel=0.05)


def test_reading_stops_at_the_wanted_tokens_and_what_comes_after_is_named(tmp_path: Path, prepared_by: Any) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(documents(100, number)))
    paths = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
    each = looked_at(prepared_by(*paths)).sources
    wanted = round(each[0].tokens.value * 1.5)
    text = looked_at(prepared_by(*paths, wanted=wanted))
    assert text.tokens == Range.exactly(wanted)
    read = [source.read_tokens.value for source in text.sources]
    assert read == [each[0].tokens.value, wanted - each[0].tokens.value, 0]


def test_the_errors_of_two_sources_add_up_in_what_is_read_of_the_second() -> None:
    inputs = find_inputs(Source(path="builtin:general-text"))
    first = SourceSample(inputs, 1, False, 1, Range(1, 1, 1), Range(1, 1, 1), Range(80, 100, 120))
    second = SourceSample(inputs, 1, False, 1, Range(1, 1, 1), Range(1, 1, 1), Range(300, 400, 500))
    taken = [source.read_tokens for source in _filled_up((first, second), 150)]
    assert taken == [Range(80, 100, 120), Range(30, 50, 70)]


def test_sampled_text_is_foreseen_by_the_numbers_of_the_recipe(repository: Path, tmp_path: Path) -> None:
    corpus = Corpus.model_validate(
        {"self_replay": {"tokens": "64k", "document_tokens": 31}, "quality": "none", "held_out": {"share": "25%"}}
    )
    preparation = plan_preparation(
        corpus,
        tokenizer=tiny_tokenizer(repository),
        sequence_tokens=LENGTH,
        wanted_tokens=None,
        seed=0,
        folders=Folders(tmp_path, tmp_path),
        model_fingerprint="m",
        label="general",
    )
    text, problems = foresee_text(preparation, "general", 1500, 1, Silent())
    assert problems == []
    assert (text.basis, text.tokens.value, text.sequences.value, text.passes.value) == ("to be sampled", 48_000, 750, 2)
    assert (text.pairs_per_token, text.held_out_tokens, text.kept_share) == (16, 16_000, 0.75)
    text, _ = foresee_text(replace(preparation, wanted_tokens=32_000), "general", 1500, 1, Silent())
    assert (text.tokens.value, text.passes.value) == (32_000, 3), "sampling ends with what is wanted"


def test_a_text_of_which_nothing_is_kept_is_a_problem_with_a_way_out(tmp_path: Path, prepared_by: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents(30, 1)))
    _, problems = foresee_text(prepared_by(str(tmp_path / "a.jsonl"), quality="gopher"), "domain", 10, 1, Silent())
    assert len(problems) == 1
    assert "no document" in problems[0].what
    assert "corpus.quality" in str(problems[0].todo)


def test_records_without_the_field_are_a_problem_that_names_the_fields_there_are(
    tmp_path: Path, prepared_by: Any
) -> None:
    records = [{"id": str(n), "content": "A text."} for n in range(20)]
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    _, problems = foresee_text(prepared_by(str(tmp_path / "a.jsonl")), "domain", 10, 1, Silent())
    assert len(problems) == 1
    assert "content" in str(problems[0].todo)
    assert str(problems[0].got).startswith("20 of the first 20")


def test_pairs_per_token_is_the_mean_reach_of_a_position() -> None:
    import numpy as np

    assert pairs_per_token(np.array([1, 1, 1], dtype=np.int64)) == 1
    assert pairs_per_token(np.array([3, 5], dtype=np.int64)) == (6 + 15) / 8
