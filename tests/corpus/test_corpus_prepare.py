import random
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from onward.artifact import Folders, file_hash
from onward.corpus.duplicates.exact import is_held_out, split_hash
from onward.corpus.ledger import read_ledger
from onward.corpus.preparation import Items
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.corpus.reading import pieces
from onward.corpus.sorting import SPLIT_TWIN
from onward.corpus.store import open_corpus
from onward.model.sampled import Sampled
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus, Duplicates, HeldOut, SelfReplay, Source
from onward.tasks.questions import Question

WORDS = "the a river stone goes under over old young heron carries water light to from house and then again"
Write = Callable[..., str]


def normalise(text: str) -> str:
    return " ".join(text.lower().split())


def sentences(number: int) -> str:
    """Four lines of a document that no other number has."""
    chance = random.Random(number)
    return "\n".join(f"{number} " + " ".join(chance.choices(WORDS.split(), k=12)) for _ in range(4))


def records(count: int, first: int = 0) -> list[dict[str, object]]:
    return [{"id": f"d{n}", "text": sentences(n), "book": f"book {n // 10}"} for n in range(first, first + count)]


@pytest.fixture
def run(tiny_tokenizer: LoadedTokenizer, folders: Folders) -> Callable[..., PreparedCorpus]:
    def run(corpus: Corpus, **options: Any) -> PreparedCorpus:
        options = {"wanted_tokens": None, "seed": 0, "workers": 1, "folders": folders, **options}
        return prepare(corpus, tokenizer=tiny_tokenizer, sequence_tokens=64, **options)

    return run


def corpus_of(*paths: str, **fields: Any) -> Corpus:
    return Corpus.model_validate({"sources": [{"path": path} for path in paths], **fields})


def held_out_ids(prepared: PreparedCorpus) -> list[str]:
    ids: list[str] = parquet.read_table(prepared.path / "held_out.parquet")["id"].to_pylist()
    return ids


def kept_texts(prepared: PreparedCorpus, tokenizer: LoadedTokenizer) -> dict[str, str]:
    opened = open_corpus(prepared.path)
    rows = [row for path in sorted(prepared.path.glob("documents-*")) for row in parquet.read_table(path).to_pylist()]
    return {row["id"]: tokenizer.decode(opened.read(row["offset"], row["length"]).tolist()) for row in rows}


def test_every_document_comes_back_from_the_store(
    run: Callable[..., PreparedCorpus], write_records: Write, tiny_tokenizer: LoadedTokenizer
) -> None:
    prepared = run(corpus_of(write_records(records(300)), held_out={"share": "5%"}))
    kept = kept_texts(prepared, tiny_tokenizer)
    held_out = parquet.read_table(prepared.path / "held_out.parquet").to_pylist()
    texts = kept | {row["id"]: row["text"] for row in held_out}
    assert texts == {str(record["id"]): record["text"] for record in records(300)}
    assert set(kept) & {row["id"] for row in held_out} == set()
    assert {row["id"] for row in held_out} == {
        str(record["id"]) for record in records(300) if is_held_out(normalise(str(record["text"])), 0.05)
    }
    hashes = [split_hash(normalise(row["text"])) for row in held_out]
    assert hashes == sorted(hashes)
    assert len(hashes) > 3
    opened = open_corpus(prepared.path)
    ends = sum(int(opened.packing.sequence(n)[2].sum()) for n in range(opened.packing.num_sequences))
    assert ends == len(kept)
    assert opened.total_tokens == opened.ledger.kept_tokens == prepared.ledger.packed_tokens


def test_each_rule_counts_what_it_drops(run: Callable[..., PreparedCorpus], write_records: Write) -> None:
    spelled_out = "\n".join("".join(chr(0x4E00 + 37 * line + n) for n in range(40)) for line in range(9))
    texts = [sentences(1), sentences(1).upper(), "one line", spelled_out, "", *(sentences(n) for n in range(2, 200))]
    prepared = run(corpus_of(write_records([{"text": text} for text in texts]), held_out={"share": "0%"}))
    ledger = prepared.ledger
    assert {name: count.documents for name, count in ledger.dropped.items()} == {
        "quality: too few lines": 1,
        "tokens: too few bytes per token": 1,
        "unreadable: empty text": 1,
    }
    assert ledger.duplicate.documents == 1
    assert ledger.kept.documents == 199
    assert ledger.read.documents == 203
    assert ledger.read.bytes == sum(len(text.encode()) for text in texts)
    assert ledger == read_ledger(prepared.path)
    dropped = parquet.read_table(prepared.path / "dropped-00000.parquet").to_pylist()
    assert {(row["number"], row["reason"], row["excerpt"][:8]) for row in dropped} == {
        (2, "quality: too few lines", "one line"),
        (3, "tokens: too few bytes per token", spelled_out[:8]),
        (-1, "unreadable: empty text", ""),
    }
    duplicates = parquet.read_table(prepared.path / "duplicates-00000.parquet").to_pylist()
    found = [(row["number"], row["kind"], row["of"], row["excerpt"][:8]) for row in duplicates]
    assert found == [(1, "same text", 0, sentences(1).upper()[:8])]


@given(
    st.lists(
        st.one_of(st.integers(0, 12).map(sentences), st.sampled_from(["x", "", "a\nb\nc"])), min_size=1, max_size=30
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ledger_is_exact_on_any_input(
    run: Callable[..., PreparedCorpus], write_records: Write, tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    place = tmp_path_factory.mktemp("any")
    path = write_records([{"text": text} for text in [*texts, sentences(99)]])
    prepared = run(corpus_of(path, held_out={"share": "0%"}), folders=Folders(place, place))
    prepared.ledger.check()  # raises when anything is missing
    assert prepared.ledger.read.documents == len(texts) + 1
    assert prepared.ledger.read.bytes == sum(map(len, [*texts, sentences(99)]))
    good = [text for text in texts if text.count(" ") > 20]
    assert prepared.ledger.kept.documents == len({*good, sentences(99)})
    assert prepared.ledger.duplicate.documents == len(good) - len(set(good))


def test_real_text_is_accounted_for_whatever_the_number_of_workers(
    run: Callable[..., PreparedCorpus], shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 100_000)
    source = str(shared_data / "domain/education/openstax_principles-[fm]*.jsonl.zst")
    corpus = corpus_of(source, held_out={"share": "3%"}, quality=["gopher", "fineweb"], block_tokens=100_000)
    alone, together = (
        run(corpus, folders=Folders(tmp_path / str(workers), tmp_path), workers=workers) for workers in (1, 2)
    )
    assert alone.fingerprint == together.fingerprint
    assert alone.ledger == together.ledger
    assert alone.ledger.read.bytes > 1_500_000
    assert len(alone.ledger.dropped) > 0
    files = [path for path in alone.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
    names = sorted(path.relative_to(alone.path).as_posix() for path in files)
    assert len([name for name in names if name.startswith("tokens-")]) > 3
    assert [file_hash(alone.path / name) for name in names] == [file_hash(together.path / name) for name in names]


def test_reading_stops_at_the_wanted_tokens(run: Callable[..., PreparedCorpus], write_records: Write) -> None:
    path = write_records(records(500))
    whole, part = run(corpus_of(path)), run(corpus_of(path), wanted_tokens=2000)
    assert 2000 <= part.ledger.kept_tokens < 2000 + 150
    assert part.ledger.read.documents < 60 < whole.ledger.read.documents
    assert run(corpus_of(path, tokens=3000), wanted_tokens=2000).ledger.kept_tokens >= 3000
    assert run(corpus_of(path), wanted_tokens=10**9).ledger == whole.ledger


def test_where_reading_stops_does_not_depend_on_the_workers(
    run: Callable[..., PreparedCorpus], write_records: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 4000)
    corpus = corpus_of(write_records(records(500)), held_out={"share": "5%"})
    alone, together = (
        run(corpus, wanted_tokens=9000, folders=Folders(tmp_path / str(workers), tmp_path), workers=workers)
        for workers in (1, 2)
    )
    assert alone.ledger == together.ledger
    assert 9000 <= alone.ledger.kept_tokens < 9200


def test_the_split_is_stable_when_the_corpus_grows(run: Callable[..., PreparedCorpus], write_records: Write) -> None:
    split: dict[str, Any] = {"held_out": {"share": "10%"}}
    small = held_out_ids(run(corpus_of(write_records(records(200)), **split)))
    large = held_out_ids(run(corpus_of(write_records(records(200, 200) + records(200), "grown.jsonl"), **split)))
    assert [name for name in large if name in set(small)] == small
    assert {name for name in large if int(name[1:]) < 200} == set(small)


def test_a_group_stays_on_one_side(run: Callable[..., PreparedCorpus], write_records: Write) -> None:
    source = Source(path=write_records(records(400)), group="book")
    prepared = run(Corpus(sources=(source,), held_out=HeldOut.model_validate({"share": "20%"})))
    held_out = parquet.read_table(prepared.path / "held_out.parquet").to_pylist()
    books = {row["group"] for row in held_out}
    assert books == {f"book {n}" for n in range(40) if is_held_out(f"book {n}", 0.2)}
    assert len(held_out) == 10 * len(books) > 0
    # Scoring takes a prefix: it must draw from many groups, not read one book after the other.
    assert len({row["group"] for row in held_out[:10]}) >= min(4, len(books))


def test_held_out_text_from_elsewhere_is_not_trained_on(
    run: Callable[..., PreparedCorpus], write_records: Write, tiny_tokenizer: LoadedTokenizer
) -> None:
    elsewhere = write_records([*records(3), {"id": "brief", "text": "one line"}], "scored.jsonl")
    source = write_records([*records(50), {"id": "brief", "text": "one line"}])
    for exact in (True, False):
        fields: dict[str, Any] = {
            "held_out": {"sources": [{"path": elsewhere}]},
            "duplicates": {"exact": exact, "near": None},
        }
        prepared = run(corpus_of(source, **fields))
        assert sorted(held_out_ids(prepared)) == ["brief", "d0", "d1", "d2"]  # no quality rule for text that is scored
        assert set(kept_texts(prepared, tiny_tokenizer)) == {f"d{n}" for n in range(3, 50)}
        assert prepared.ledger.duplicate.documents == (3 if exact else 0)
        assert (SPLIT_TWIN in prepared.ledger.dropped) == (not exact)


def test_kept_duplicates_never_stand_on_both_sides(run: Callable[..., PreparedCorpus], write_records: Write) -> None:
    twins = [{**record, "id": f"t{n}", "book": f"other {n}"} for n, record in enumerate(records(200))]
    source = Source(path=write_records(records(200) + twins), group="book")
    split = HeldOut.model_validate({"share": "30%"})
    prepared = run(Corpus(sources=(source,), held_out=split, duplicates=Duplicates(exact=False, near=None)))
    held_out = {name[1:] for name in held_out_ids(prepared)}
    rows = parquet.read_table(next(prepared.path.glob("documents-*"))).to_pylist()
    assert held_out & {row["id"][1:] for row in rows} == set()
    assert prepared.ledger.dropped[SPLIT_TWIN].documents > 30
    assert prepared.ledger.kept.documents > 200


def test_preparing_again_reads_nothing(
    run: Callable[..., PreparedCorpus], write_records: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(write_records(records(50)))
    first = run(corpus)
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr("onward.corpus.prepare.Making", None)
    assert run(corpus) == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp


def test_whatever_decides_the_content_changes_the_fingerprint(
    run: Callable[..., PreparedCorpus], write_records: Write
) -> None:
    path = write_records(records(50))
    changed = [
        run(corpus_of(path)),
        run(corpus_of(path, quality="none")),
        run(corpus_of(path), wanted_tokens=500),
        run(corpus_of(write_records(records(51), "data.jsonl"))),
        run(
            corpus_of(path, held_out={"sources": [{"path": path}], "share": "1%"}, self_replay={"tokens": 500}),
            generate=sampler,
            model_fingerprint="m",
        ),
    ]
    assert len({prepared.fingerprint for prepared in changed}) == len(changed)


def sampler(settings: SelfReplay, seed: int, first: int, made: int) -> Iterator[Sampled]:
    for number in count(first):
        yield Sampled(number, sentences(10**6 + 1000 * seed + number), 50, False, 100.0, 100.0)


def test_self_replay_samples_until_its_tokens_are_there(run: Callable[..., PreparedCorpus]) -> None:
    corpus = Corpus.model_validate({"self_replay": {"tokens": 4000}})
    first = run(corpus, generate=sampler, model_fingerprint="m", label="general")
    rows = parquet.read_table(next(first.path.glob("documents-*"))).to_pylist()
    assert rows[0]["id"] == "self-00001"
    assert rows[0]["source"] == "self-replay"
    assert 3500 < first.ledger.kept_tokens < 4500
    other = run(corpus, generate=sampler, model_fingerprint="m", label="general", seed=1)
    assert other.fingerprint != first.fingerprint


def test_a_large_vocabulary_gets_wide_tokens_and_bos_comes_first(
    tiny_tokenizer: LoadedTokenizer, write_records: Write, folders: Folders
) -> None:
    wide = LoadedTokenizer(tiny_tokenizer.json, 0, 1, 1, None, 100_000, "wide")
    corpus = corpus_of(write_records(records(40)))
    prepared = prepare(corpus, tokenizer=wide, sequence_tokens=64, wanted_tokens=None, seed=0, folders=folders)
    tokens = open_corpus(prepared.path)
    assert tokens.read(0, 1).dtype == np.uint32
    for row in parquet.read_table(next(prepared.path.glob("documents-*"))).to_pylist():
        ids = tokens.read(row["offset"], row["length"])
        assert (ids[0], ids[-1]) == (1, 0)


def content_of(prepared: PreparedCorpus) -> dict[str, str]:
    files = (path for path in prepared.path.iterdir() if path.is_file() and path.name != "manifest.json")
    return {path.name: file_hash(path) for path in files}


def test_what_was_sampled_before_a_stop_is_not_sampled_again(
    run: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    """Stopped while sampling, once with the log's last line cut: the corpus is the one of a run that went through."""
    corpus = Corpus.model_validate({"self_replay": {"tokens": 4000}})
    stopped = Folders(tmp_path / "stopped", tmp_path / "stopped")
    asked: list[tuple[int, int]] = []

    def stopping(settings: SelfReplay, seed: int, first: int, made: int) -> Iterator[Sampled]:
        asked.append((first, made))
        yield from islice(sampler(settings, seed, first, made), 7 if len(asked) < 3 else None)
        if len(asked) < 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(corpus, generate=stopping, model_fingerprint="m", folders=stopped)
        (log,) = stopped.cache.rglob("samples.jsonl")
        log.write_bytes(log.read_bytes()[:-5])
    again = run(corpus, generate=stopping, model_fingerprint="m", folders=stopped)
    assert asked == [(0, 0), (6, 6 * 51), (12, 12 * 51)]
    through = run(corpus, generate=sampler, model_fingerprint="m")
    assert content_of(again) == content_of(through)
    assert again.ledger == through.ledger


def test_sampled_documents_go_through_every_step(run: Callable[..., PreparedCorpus]) -> None:
    """A benchmark item, a repetition, a near-duplicate, text without words: each is dropped under its own reason."""
    asked = "which of these rivers carries the most water to the sea in a year of little rain and why is it so"
    first = sentences(1)
    texts = [first, f"{sentences(2)}\n{asked}", first, first.replace("\n", "\nand ", 1), "#" * 200 + "..."]

    def emitting(settings: SelfReplay, seed: int, start: int, made: int) -> Iterator[Sampled]:
        for number, text in enumerate([*texts, *(sentences(n) for n in range(10, 60))]):
            yield Sampled(number, text, 40, False, 80.0, 80.0)

    corpus = Corpus.model_validate({"self_replay": {"tokens": "1M"}})
    items = Items({"made": 1}, lambda: {"asked": (Question("asked", "0", (asked,)),)})
    prepared = run(corpus, generate=emitting, model_fingerprint="m", items=items)
    ledger = prepared.ledger
    assert (ledger.contaminated.documents, ledger.duplicate.documents, ledger.near_duplicate.documents) == (1, 1, 1)
    assert {rule: count.documents for rule, count in ledger.dropped.items()} == {"quality: too few lines": 1}
    assert ledger.read.documents == 55
    rows = parquet.read_table(next(prepared.path.glob("contamination-*"))).to_pylist()
    assert [(row["task"], row["id"], row["source"]) for row in rows] == [("asked", "self-00002", "self-replay")]
