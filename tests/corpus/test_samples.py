import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard

from onward.artifact import Folders
from onward.corpus.inspection import inspect_corpus
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.corpus.samples import Diversity, diversity, read_samples
from onward.model.sampled import Sampled
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus, SelfReplay
from onward.reporting.samples import sample_rows

LINE = "a young river carries water from stone number {} to the old heron under the house"


def sampler(settings: SelfReplay, seed: int, first: int, made: int) -> Iterator[Sampled]:
    """Nine documents, of which the third is not kept: it is the second again."""
    for number in range(first, 9):
        text = LINE.format(number - (number == 2))
        yield Sampled(number, text, 10 + number, number % 3 == 0, 20.0 + number, 30.0 + number)


def prepare_sampled(settings: dict[str, Any], tokenizer: LoadedTokenizer, folders: Folders) -> PreparedCorpus:
    return prepare(
        Corpus.model_validate(settings),
        tokenizer=tokenizer,
        sequence_tokens=64,
        wanted_tokens=None,
        seed=0,
        folders=folders,
        generate=sampler,
        model_fingerprint="m",
        workers=1,
    )


@pytest.fixture
def prepared(folders: Folders, tiny_tokenizer: LoadedTokenizer) -> PreparedCorpus:
    settings = {
        "self_replay": {"tokens": "1M"},
        "quality": None,
        "duplicates": {"near": None},
        "held_out": {"share": 0},
    }
    return prepare_sampled(settings, tiny_tokenizer, folders)


def test_the_facts_are_those_of_the_documents_kept(prepared: PreparedCorpus) -> None:
    samples = read_samples(prepared.path)
    assert samples is not None
    kept = [sampled for sampled in sampler(SelfReplay(), 0, 0, 0) if sampled.number != 2]
    tokens = sum(sampled.tokens for sampled in kept)
    assert (samples.sampled, samples.kept) == (9, 8)
    assert samples.mean_tokens == tokens / 8
    assert samples.median_tokens == 14.5
    assert samples.by_model == 3 / 8
    nats = sum(sampled.nats for sampled in kept)
    assert samples.nats == pytest.approx(nats / tokens)
    assert samples.entropy == pytest.approx(sum(sampled.entropy for sampled in kept) / tokens)
    assert samples.bits_per_byte == pytest.approx(nats / math.log(2) / sum(len(sampled.text) for sampled in kept))
    assert samples.text == diversity([sampled.text for sampled in kept])
    assert samples.other is None
    assert inspect_corpus(prepared.path).samples == samples
    assert "samples.json" in json.loads((prepared.path / "manifest.json").read_text())["files"]


def test_what_is_shown_has_every_number(prepared: PreparedCorpus) -> None:
    samples = read_samples(prepared.path)
    assert samples is not None
    shown = {name: value for name, value, _ in sample_rows(samples)}
    assert shown["kept, of those sampled"] == "8 of 9 (88.9 %)"
    assert shown["ended by the model"] == "37.5 %"
    assert len(shown) == 12


def test_other_text_is_measured_over_as_much(
    folders: Folders, tiny_tokenizer: LoadedTokenizer, write_records: Callable[..., str]
) -> None:
    path = write_records([{"text": LINE.format("one")} for _ in range(50)])
    settings = {"sources": [{"path": path}], "self_replay": {"tokens": "1M"}, "quality": None, "duplicates": None}
    prepared = prepare_sampled(settings, tiny_tokenizer, folders)
    samples = read_samples(prepared.path)
    assert samples is not None
    assert samples.other is not None
    assert samples.other.bytes == pytest.approx(samples.text.bytes, abs=len(LINE))
    assert samples.other.distinct[3] < samples.text.distinct[3] / 2
    assert samples.other.compression > samples.text.compression


def test_a_corpus_that_was_not_sampled_has_no_facts(folders: Folders) -> None:
    assert read_samples(folders.cache) is None


@pytest.mark.parametrize(
    "texts",
    [
        ["a b a b a b, C d", "b a", "", "one"],
        [LINE.format(n % 3) for n in range(20)],
        ["One two three! One two, three (four) five six seven eight nine one two three four five six seven eight."],
    ],
)
def test_diversity_equals_counting_by_hand(texts: list[str]) -> None:
    words = [["".join(c for c in word.lower() if c.isalnum()) for word in text.split()] for text in texts]

    def share(n: int) -> float:
        grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0

    whole = "\n".join(texts).encode()
    expected = Diversity(
        documents=len(texts),
        words=sum(map(len, words)),
        bytes=len(whole),
        distinct=(share(1), share(2), share(3), share(4)),
        repeated=1 - share(8),
        compression=len(whole) / len(zstandard.ZstdCompressor(level=9).compress(whole)),
    )
    assert diversity(texts) == expected


def test_an_empty_text_is_measured() -> None:
    assert diversity([]) == Diversity(0, 0, 0, (1.0, 1.0, 1.0, 1.0), 0.0, 1.0)
