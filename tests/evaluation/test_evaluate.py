"""The step from end to end on the packaged tiny model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onward.artifact import Folders, building
from onward.corpus.contamination.table import CONTAMINATION
from onward.errors import UserError
from onward.evaluation import evaluate as step
from onward.evaluation.evaluate import base_scores_folder, evaluate, touched_items
from onward.evaluation.harness import score_task
from onward.evaluation.heldout import read_front, score_held_out
from onward.evaluation.scores import (
    ItemRow,
    Scores,
    TaskScore,
    WithoutTouched,
    read_items,
    read_scores,
    write_scores,
)
from onward.model.load import load_model
from onward.model.source import TINY, resolve
from onward.model.tokenizer import read_tokenizer
from onward.progress import Silent
from onward.recipe import Evaluation
from onward.tasks import load_items

TEXTS = [
    "The river ran past the mill, and the children watched the water turn the wheel.",
    "It was late in the evening when the letter came, and nobody dared to open it.",
    "Ein kurzer Satz mit Umlauten: äöü.",
    "She said that she would come again in the morning. " * 60,
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "corpora" / "abc"
    with building(folder, "corpus", {"source": "test"}) as aside:
        rows = [
            {"id": f"d{n}", "source": "s", "group": f"g{n // 2}", "text": text, "bytes": len(text.encode())}
            for n, text in enumerate(TEXTS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), aside / "held_out.parquet")
    return folder


@pytest.fixture
def settings(shared_data: Path) -> Evaluation:
    bench = str(shared_data / "bench")
    return Evaluation(tasks=("piqa", "mmlu"), data=bench, limit=12, held_out_tokens=None, resamples=200)  # type: ignore[call-arg]


def test_scores_and_reruns_without_the_model(
    corpus: Path, settings: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"evaluation": settings, "held_out": {"domain": corpus}, "seed": 0}
    folder = base_scores_folder(Folders(tmp_path / "cache", tmp_path), resolve(TINY), **inputs)
    assert folder.parent == tmp_path / "cache" / "scores"
    scores = evaluate(resolve(TINY), folder=folder, **inputs)
    assert scores == read_scores(folder)
    (text,) = scores.held_out
    assert (text.documents, text.bytes) == (4, sum(len(t.encode()) for t in TEXTS))
    assert text.low <= text.bits_per_byte <= text.high
    assert text.bits_per_byte == pytest.approx(text.nats / math.log(2) / text.bytes)
    table = read_items(folder).to_pylist()
    documents = [row for row in table if row["task"] == "held_out:domain"]
    assert sum(row["nats"] for row in documents) == pytest.approx(text.nats)
    assert [row["group"] for row in documents] == ["g0", "g0", "g1", "g1"]
    for task in scores.tasks:
        rows = [row for row in table if row["task"] == task.task]
        assert len(rows) == task.items == 12
        names = [measure.name for measure in task.measures]
        assert names == (["acc"] if task.task == "mmlu" else ["acc", "acc_norm"])
        for measure in task.measures:
            assert np.mean([dict(row["right"])[measure.name] for row in rows]) == measure.value
        assert all(row["predicted"] == int(np.argmax(row["logprobs"])) for row in rows)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished evaluation needs no model and no items")

    monkeypatch.setattr("onward.model.load.load_model", refuse)
    monkeypatch.setattr("onward.tasks.load_items", refuse)
    assert evaluate(resolve(TINY).folder, folder=folder, **inputs) == scores
    other = inputs | {"evaluation": settings.model_copy(update={"limit": 13})}
    with pytest.raises(UserError, match="limit: was 12, is 13"):
        evaluate(resolve(TINY), folder=folder, **other)


def touch(folder: Path, *items: tuple[str, str, str]) -> Path:
    """A prepared corpus, without held-out text, in which items were found."""
    with building(folder, "corpus", {"source": folder.name}) as aside:
        columns = {field.name: [""] * len(items) for field in CONTAMINATION if field.name != "score"}
        columns |= dict(zip(("task", "item", "action"), map(list, zip(*items, strict=True)), strict=True))
        rows = pa.table(columns | {"score": [1.0] * len(items)}, schema=CONTAMINATION)
        pq.write_table(rows, aside / "contamination-00003.parquet")
    return folder


def test_scores_with_and_without_touched_items(shared_data: Path, tmp_path: Path) -> None:
    one = touch(tmp_path / "one", ("piqa", "0", "drop"), ("piqa", "3", "report"), ("mmlu", "anatomy/0", "cut"))
    two = touch(tmp_path / "two", ("piqa", "0", "report"), ("piqa", "9", "drop"), ("piqa", "3", "drop"))
    touched = touched_items([one, two, tmp_path / "none"])
    assert touched["piqa"] == {"0": "report", "3": "report", "9": "drop"}
    source = resolve(TINY)
    model, tokenizer = load_model(source), read_tokenizer(source.folder)
    items = load_items(["piqa", "mmlu"], shared_data / "bench", 12)

    def score(task: str, touched: dict[str, str]) -> tuple[TaskScore, list[ItemRow]]:
        found, rows = score_task(model, tokenizer, items[task], batch_tokens=512, progress=Silent(), touched=touched)
        assert found is not None
        return found, rows

    plain, rows = score("piqa", {})
    assert plain.without_touched is None
    whole, touched_rows = score("piqa", touched["piqa"] | {"700": "drop"})
    assert replace(whole, without_touched=None) == plain
    assert [replace(row, touched=None) for row in touched_rows] == rows
    clean = [row for row in rows if row.item not in touched["piqa"]]
    without = whole.without_touched
    assert without is not None
    assert (without.touched, without.seen, without.items) == (3, 2, 9)
    for measure in without.measures:
        right = np.array([(row.right or {})[measure.name] for row in clean], dtype=float)
        assert measure.value == right.mean()
        assert measure.stderr == pytest.approx(right.std(ddof=1) / 3)
    nothing = score("mmlu", {item.id: "drop" for item in items["mmlu"].items})[0].without_touched
    assert nothing == WithoutTouched(12, 0, 0, ())
    write_scores(tmp_path, Scores("m", (), (whole, plain), 1.0), touched_rows)
    assert read_scores(tmp_path).tasks == (whole, plain)
    assert read_items(tmp_path).column("touched").to_pylist()[:4] == ["report", None, None, "report"]


def test_evaluate_asks_the_corpora_for_touched_items(
    corpus: Path, settings: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        step, "touched_items", lambda corpora: {"piqa": {str(list(corpora) == [corpus]): "x", "2": "cut"}}
    )
    inputs = {"evaluation": settings.model_copy(update={"tasks": ("piqa",)}), "held_out": {"domain": corpus}, "seed": 0}
    (task,) = evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs).tasks
    assert task.without_touched is not None
    assert (task.without_touched.touched, task.without_touched.items) == (1, 11)
    assert read_items(tmp_path / "scores").column("touched").null_count == len(TEXTS) + 11


def test_a_kill_leaves_nothing_and_the_next_run_all(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"evaluation": Evaluation(tasks=()), "held_out": {"general": corpus}, "seed": 0}  # type: ignore[call-arg]
    with monkeypatch.context() as patched:

        def killed(*args: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(step, "write_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert not (tmp_path / "scores").exists()
    assert evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs).held_out[0].corpus == "general"


def test_held_out_stops_at_the_token_budget(corpus: Path) -> None:
    source = resolve(TINY)
    model, tokenizer = load_model(source), read_tokenizer(source.folder)
    lengths = [len(ids) for ids in tokenizer.encode_batch(TEXTS)]

    def score(tokens: int | None) -> tuple[int, int]:
        facts = {"batch_tokens": 512, "resamples": 100, "seed": 0, "progress": Silent()}
        text, _ = score_held_out(model, tokenizer, "domain", corpus / "held_out.parquet", tokens=tokens, **facts)
        assert text is not None
        return text.documents, text.tokens

    assert score(1) == (1, lengths[0])
    assert score(lengths[0]) == (1, lengths[0])
    assert score(lengths[0] + 1) == (2, sum(lengths[:2]))
    assert score(None) == (4, sum(lengths))


@pytest.mark.parametrize(("limit", "documents"), [(1, 1), (10**6, 4), (10**9, 4)])
def test_progress_goes_to_what_is_scored(corpus: Path, limit: int, documents: int) -> None:
    source = resolve(TINY)
    model, tokenizer = load_model(source), read_tokenizer(source.folder)
    scored = sum(len(ids) for ids in tokenizer.encode_batch(TEXTS)[:documents])
    totals: list[int | None] = []

    class Told(Silent):
        def begin(self, title: str, total: int | None, unit: str) -> None:
            totals.append(total)

    facts = {"batch_tokens": 512, "resamples": 100, "seed": 0, "progress": Told()}
    file = corpus / "held_out.parquet"
    text, _ = score_held_out(model, tokenizer, "domain", file, tokens=limit, **facts)
    # Beyond what is chosen at once the total stays the limit.
    assert totals == [scored if limit <= 10**6 else limit]
    front = read_front(file, tokenizer, limit)
    assert text is not None
    assert (front.tokens, len(front.documents)) == (text.tokens, text.documents)
    assert sum(size for *_, size in front.documents) == text.bytes


def test_errors_say_where(corpus: Path, shared_data: Path, tmp_path: Path) -> None:
    none = Evaluation(tasks=())  # type: ignore[call-arg]
    with pytest.raises(UserError, match="not prepared"):
        evaluate(resolve(TINY), evaluation=none, held_out={"domain": tmp_path}, folder=tmp_path / "s", seed=0)
    source = resolve(TINY)
    model, tokenizer = load_model(source), read_tokenizer(source.folder)
    items = load_items(["piqa"], shared_data / "bench", 2)["piqa"]
    empty = replace(items.items[1], requests=(("a", ""), ("a", " b")))
    score: Callable[..., object] = score_task
    with pytest.raises(UserError, match=r"piqa, item 1[\s\S]*0 tokens"):
        score(model, tokenizer, replace(items, items=(items.items[0], empty)), batch_tokens=512, progress=Silent())
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match="piqa, item 0"):
        score(model, tokenizer, items, batch_tokens=512, progress=Silent())
    facts = {"tokens": None, "batch_tokens": 512, "resamples": 100, "seed": 0, "progress": Silent()}
    with pytest.raises(UserError, match="document d0"):
        score_held_out(model, tokenizer, "domain", corpus / "held_out.parquet", **facts)
