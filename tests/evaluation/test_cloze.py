"""The cloze benchmark as a step: from held-out text to an artifact that is scored like any task."""

import io
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from invented import invented_texts
from onward.artifact import locked, read_manifest
from onward.errors import UserError
from onward.evaluation.cloze import TASK, checks, cloze_made_from, load_cloze, make_cloze, making
from onward.evaluation.cloze.artifact import ClozeItem, read_cloze
from onward.evaluation.cloze.checks import require_between
from onward.evaluation.cloze.distractors import stems
from onward.evaluation.cloze.selection import PER_DOCUMENT
from onward.evaluation.harness import score_task
from onward.model.load import load_model
from onward.model.source import TINY, ModelSource, describe, resolve
from onward.model.tokenizer import read_tokenizer
from onward.progress import Silent
from onward.statistics import Interval
from synthetic import write_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_held_out(path: Path, texts: list[str]) -> Path:
    rows = [{"id": f"d{n}", "source": "s", "group": f"g{n // 2}", "text": text} for n, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_held_out(tmp_path_factory.mktemp("text") / "held_out.parquet", invented_texts(120))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """The tiny base, which knows nothing of invented things and is not asked."""
    monkeypatch.setattr(making, "check", lambda *arguments: {})
    return resolve(TINY)


def require_sound(items: list[ClozeItem], texts: dict[str, str]) -> None:
    """Hold every item to what the method promises."""
    for item in items:
        text = " ".join(texts[item.document].split())
        answer = item.choices[item.gold]
        assert " ".join(f"{item.context} {answer}{item.rest}".split()) in text
        shown = f"{item.context} {item.rest}".lower()
        assert len(set(item.choices)) == 4
        for choice in item.choices:
            assert not any(stem in shown for stem in stems(choice)), "no choice can be copied"
            assert choice == answer or choice not in text
            assert choice[0].isupper() == answer[0].isupper()
            assert len(choice.split()) == len(answer.split())
    assert max(Counter(item.document for item in items).values()) <= PER_DOCUMENT
    sentences = [(item.context.split("\n")[-1].rpartition(". ")[2], item.rest) for item in items]
    assert len(set(sentences)) == len(items)
    ranks = Counter(sum(score > item.ngram[item.gold] for score in item.ngram) for item in items)
    assert set(ranks.values()) == {len(items) // 4}


def test_items_of_invented_text_are_sound_and_the_same_each_time(
    held_out: Path, unchecked: ModelSource, tmp_path: Path
) -> None:
    one, two = (make_cloze(held_out, base=unchecked, items=100, seed=3, folder=tmp_path / name) for name in "ab")
    items = read_cloze(one)
    assert len(items) == 100
    require_sound(items, {row["id"]: row["text"] for row in pq.read_table(held_out).to_pylist()})
    manifests = [read_manifest(folder) for folder in (one, two)]
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert manifests[0].files == manifests[1].files
    other = make_cloze(held_out, base=unchecked, items=100, seed=4, folder=tmp_path / "c")
    assert load_cloze(other).items_hash != load_cloze(one).items_hash
    facts = json.loads((one / "facts.json").read_bytes())
    assert facts["items"] == 100
    assert facts["held_out_documents"] == 120
    assert sum(facts["kinds"].values()) == 100


def test_a_made_artifact_is_left_alone_and_another_request_is_refused(
    held_out: Path, unchecked: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"base": unchecked, "items": 60, "folder": tmp_path / "cloze"}
    folder = make_cloze(held_out, seed=0, **wanted)
    monkeypatch.setattr(making, "_make", lambda *arguments: pytest.fail("made again"))
    assert make_cloze(held_out, seed=0, **wanted) == folder
    with pytest.raises(UserError, match="made from something else"):
        make_cloze(held_out, seed=1, **wanted)
    assert make_cloze(held_out.parent, seed=0, **wanted) == folder  # the folder stands for its held_out.parquet


def test_questions_that_another_process_makes_are_waited_for_and_found(
    held_out: Path, unchecked: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"base": unchecked, "items": 40, "seed": 0, "folder": tmp_path / "cloze"}
    folder, notes, held = make_cloze(held_out, **wanted), list[str](), ExitStack()
    held.enter_context(locked(folder))
    folder.rename(tmp_path / "of the other")

    class Heard(Silent):
        def note(self, text: str) -> None:
            notes.append(text)
            (tmp_path / "of the other").rename(folder)
            held.close()

    monkeypatch.setattr(making, "_make", lambda *arguments: pytest.fail("made again"))
    assert make_cloze(held_out, **wanted, progress=Heard()) == folder
    assert notes == ["another process makes the same cloze questions: waiting for it"]


def test_the_items_are_a_task(held_out: Path, unchecked: ModelSource, tmp_path: Path) -> None:
    folder = make_cloze(held_out, base=unchecked, items=40, seed=0, folder=tmp_path / "cloze")
    task = load_cloze(folder)
    assert (task.task, task.kind, task.chance, task.measures) == (TASK, "multiple_choice", 0.25, ("acc",))
    assert {item.group for item in task.items} <= {f"g{n}" for n in range(60)}
    model, tokenizer = load_model(unchecked, device="cpu"), read_tokenizer(unchecked.folder)
    score, rows = score_task(model, tokenizer, task, batch_tokens=4096, progress=Silent())
    assert score is not None
    assert score.items == len(rows) == 40
    accuracy = score.find("acc")
    assert accuracy is not None
    assert accuracy.value == np.mean([row.predicted == row.gold for row in rows])


def test_a_base_that_knows_nothing_is_refused(held_out: Path, tmp_path: Path) -> None:
    base = describe(write_model(tmp_path / "model"))
    with pytest.raises(UserError, match="no better than by guessing") as caught:
        make_cloze(held_out, base=base, items=40, seed=0, folder=tmp_path / "cloze")
    said = str(caught.value)
    for part in ("before training", "of 40 questions right", "25%, which is guessing among 4", "corpus.held_out.share"):
        assert part in said
    assert "evaluation.cloze: null" in said
    assert not (tmp_path / "cloze").exists()


@pytest.mark.parametrize(
    ("interval", "problem"),
    [
        (Interval(0.27, 0.24, 0.30), "by guessing"),
        (Interval(0.96, 0.94, 0.98), "solves the cloze items"),
        (Interval(0.30, 0.26, 0.34), None),
        (Interval(0.94, 0.91, 0.97), None),
        (Interval(0.40, float("nan"), float("nan")), "by guessing"),
    ],
)
def test_the_base_must_have_room_on_both_sides(interval: Interval, problem: str | None) -> None:
    if problem is None:
        require_between(interval, resolve(TINY), Path("held_out.parquet"), 400)
    else:
        with pytest.raises(UserError, match=problem):
            require_between(interval, resolve(TINY), Path("held_out.parquet"), 400)


@pytest.mark.parametrize(
    "texts", [[], ["Too short."], ["これは日本語の文章です。" * 300] * 3, ["x = 1; y = 2\n" * 500] * 30]
)
def test_text_that_gives_too_few_items(texts: list[str], unchecked: ModelSource, tmp_path: Path) -> None:
    path = tmp_path / "held_out.parquet"
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "group", "text")])
    rows = [{"id": str(n), "source": "s", "group": str(n), "text": text} for n, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    with pytest.raises(UserError, match="cloze items") as caught:
        make_cloze(path, base=unchecked, items=100, seed=0, folder=tmp_path / "cloze")
    assert caught.value.todo is not None


def test_held_out_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out text"):
        cloze_made_from(tmp_path / "nothing.parquet", base=resolve(TINY), items=10, seed=0)
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks a column"):
        make_cloze(tmp_path / "other.parquet", base=resolve(TINY), items=10, seed=0, folder=tmp_path / "cloze")
    with pytest.raises(UserError, match="holds no cloze items"):
        load_cloze(tmp_path)


def test_the_facts_tell_what_the_base_knows(held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(items: list[ClozeItem], *arguments: Any) -> tuple[list[list[float]], list[list[float]]]:
        """Right in every second item, and without the context wherever the first choice is right."""
        right = [[float(choice == (item.gold + n % 2) % 4) for choice in range(4)] for n, item in enumerate(items)]
        return right, [[1.0, 0.0, 0.0, 0.0] for _ in items]

    monkeypatch.setattr(checks, "_score_base", score)
    folder = make_cloze(held_out, base=resolve(TINY), items=100, seed=0, folder=tmp_path / "cloze")
    facts = json.loads((folder / "facts.json").read_bytes())
    items = read_cloze(folder)
    assert facts["ngram"]["accuracy"] == facts["chance"] == 0.25
    assert facts["base_accuracy"]["accuracy"] == 0.5
    assert 0.35 < facts["base_accuracy"]["low"] < 0.5 < facts["base_accuracy"]["high"] < 0.65
    assert facts["base_accuracy_without_context"]["accuracy"] == sum(item.gold == 0 for item in items) / 100
    assert facts["items"] == 100
    assert facts["held_out_documents"] == 120
    assert facts["base"] == TINY


def test_real_text(shared_data: Path, unchecked: ModelSource, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    file = shared_data / "domain" / "education" / "openstax_us-history.jsonl.zst"
    with open(file, "rb") as packed:
        lines = list(io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8"))
    texts = [json.loads(line)["text"] for line in lines]
    path = write_held_out(tmp_path / "held_out.parquet", texts)
    items = read_cloze(make_cloze(path, base=unchecked, items=120, seed=0, folder=tmp_path / "cloze"))
    assert len(items) == 120
    require_sound(items, {f"d{n}": text for n, text in enumerate(texts)})
