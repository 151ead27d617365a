"""Killed with -9 while it prepares, the next call goes on from the last finished block, to the same artifact."""

import multiprocessing
import random
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from onward.artifact import Folders, building_place, file_hash, locked
from onward.corpus.blocks import read_states
from onward.corpus.making import Making
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.corpus.reading import pieces
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress, Silent
from onward.recipe import Corpus

KILLS = 50
CHUNK_BYTES = 60_000
TEXT = "domain/education/openstax_principles-*.jsonl.zst"


def contents(prepared: PreparedCorpus) -> dict[str, str]:
    files = (path for path in prepared.path.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(prepared.path).as_posix(): file_hash(path) for path in files}


def whole(
    data: str, place: Path, tokenizer: LoadedTokenizer, progress: Progress | None = None, **fields: Any
) -> PreparedCorpus:
    settings = {"held_out": {"share": "5%"}, "block_tokens": 60_000, "quality": ["gopher", "fineweb"], **fields}
    corpus = Corpus.model_validate({"sources": [{"path": data}], **settings})
    options: dict[str, Any] = {"tokenizer": tokenizer, "folders": Folders(place, place), "workers": 1}
    options["progress"] = progress or Silent()
    return prepare(corpus, sequence_tokens=100, wanted_tokens=None, seed=0, **options)


def in_a_child(data: str, place: Path, tokenizer: LoadedTokenizer) -> None:
    pieces.CHUNK_BYTES = CHUNK_BYTES
    whole(data, place, tokenizer)


def test_killed_fifty_times_it_goes_on_and_the_artifact_is_the_same(
    shared_data: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills come at seeded moments, over several corpora where fewer are enough to finish one."""
    monkeypatch.setattr(pieces, "CHUNK_BYTES", CHUNK_BYTES)
    data = str(shared_data / TEXT)
    expected = contents(whole(data, tmp_path / "whole", tiny_tokenizer))
    started = time.perf_counter()
    whole(data, tmp_path / "again", tiny_tokenizer)
    length = time.perf_counter() - started
    context = multiprocessing.get_context("fork")  # everything is loaded, so a child is at work at once
    chance = random.Random(5)
    kills = finished = gone_on = 0
    while kills < KILLS:
        place = tmp_path / f"killed-{finished}"
        child = context.Process(target=in_a_child, args=(data, place, tiny_tokenizer))
        child.start()
        child.join(chance.uniform(0, 0.8 * length))
        if child.is_alive():
            child.kill()
            child.join()
            kills += 1
            aside = next((place / "corpora").glob(".*.building"), None) if place.exists() else None
            gone_on += aside is not None and len(read_states(aside)) > 0
            visible = list((place / "corpora").glob("[0-9a-f]*"))
            assert all((folder / "manifest.json").exists() for folder in visible), "what appears is whole"
            continue
        assert child.exitcode == 0
        assert contents(whole(data, place, tiny_tokenizer)) == expected
        shutil.rmtree(place)
        finished += 1
    place = tmp_path / f"killed-{finished}"
    again = whole(data, place, tiny_tokenizer)
    assert contents(again) == expected
    assert [path.name for path in again.path.parent.iterdir()] == [again.fingerprint]
    assert gone_on > 10, "most starts had finished blocks to go on from"


def test_finished_blocks_are_not_read_again(
    shared_data: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its third block, the next call opens only the chunks behind it."""
    from onward.corpus import examine, sorting

    monkeypatch.setattr(pieces, "CHUNK_BYTES", CHUNK_BYTES)
    data = str(shared_data / TEXT)
    opened: list[int] = []
    original = examine.items_in

    def counted(chunk: Any, fields: Any) -> Any:
        opened.append(1)
        return original(chunk, fields)

    monkeypatch.setattr(examine, "items_in", counted)
    expected = contents(whole(data, tmp_path / "whole", tiny_tokenizer))
    in_all = len(opened)
    finish = sorting.Sorter.finish_block

    def stop_after_three(sorter: sorting.Sorter) -> None:
        finish(sorter)
        if sorter.number_of_blocks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sorting.Sorter, "finish_block", stop_after_three)
    opened.clear()
    with pytest.raises(KeyboardInterrupt):
        whole(data, tmp_path / "stopped", tiny_tokenizer)
    before = len(opened)
    assert 0 < before < in_all
    monkeypatch.setattr(sorting.Sorter, "finish_block", finish)
    opened.clear()
    assert contents(whole(data, tmp_path / "stopped", tiny_tokenizer)) == expected
    assert len(opened) == in_all - before


def test_a_corpus_that_another_process_makes_is_waited_for_and_found(
    tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "x.txt"
    data.write_text("One line.\nAnother line.\nAnd here is a third line, the longest of them all.")
    first = whole(str(data), tmp_path, tiny_tokenizer, quality="none")
    notes, held = list[str](), ExitStack()
    held.enter_context(locked(first.path))
    first.path.rename(tmp_path / "of the other")

    class Heard(Silent):
        def note(self, text: str) -> None:
            notes.append(text)
            (tmp_path / "of the other").rename(first.path)
            held.close()

    def refuse(making: Making) -> None:
        raise AssertionError("the other has made it")

    monkeypatch.setattr(Making, "all", refuse)
    again = whole(str(data), tmp_path, tiny_tokenizer, progress=Heard(), quality="none")
    assert notes == ["another process prepares the same text (corpus): waiting for it"]
    assert again == first
    assert not building_place(first.path).exists()
