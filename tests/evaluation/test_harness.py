"""Scores of tasks: lm-eval's own numbers, kept chunk by chunk, from the rows alone."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onward.errors import UserError
from onward.evaluation import harness, measures
from onward.evaluation.harness import rolling_windows, score_task, summarise
from onward.evaluation.measures import perplexity_error, right_answers, standard_error
from onward.evaluation.scores import ItemRow, TaskScore, read_rows, write_rows
from onward.model.load import load_model
from onward.model.score import Request, encode_requests
from onward.model.source import TINY, resolve
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.progress import Silent
from onward.tasks import Item, TaskItems, load_items

OTHERS = ("lambada_openai", "openbookqa", "copa", "mmlu_anatomy_continuation")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> tuple[Any, LoadedTokenizer]:
    source = resolve(TINY)
    return load_model(source), read_tokenizer(source.folder)


def score(tiny: tuple[Any, LoadedTokenizer], items: TaskItems, **more: Any) -> tuple[TaskScore, list[ItemRow]]:
    found, rows = score_task(*tiny, items, batch_tokens=512, progress=Silent(), **more)
    assert found is not None
    return found, rows


@pytest.fixture
def wiki(shared_data: Path, tmp_path: Path) -> Path:
    (tmp_path / "wikitext2_valid.txt.gz").symlink_to(shared_data / "general" / "wikitext2_valid.txt.gz")
    return tmp_path


@pytest.mark.parametrize("context", [1024, 40])
def test_other_tasks_have_the_scores_of_lm_eval(
    shared_data: Path, wiki: Path, tiny: tuple[Any, LoadedTokenizer], context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts to continue, whole texts in windows, other choices; with a context of 40 tokens many are cut."""
    pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from onward.tasks.parts import parts_of

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # its bootstrap would start processes
    model, _ = tiny
    model.config.max_position_embeddings = context
    places = dict.fromkeys(OTHERS, shared_data / "bench") | {"wikitext": wiki}
    count = {"wikitext": 1}
    built = [parts_of(name, data, count.get(name, 6))[0].build() for name, data in places.items()]
    peer = HFLM(model, tokenizer=AutoTokenizer.from_pretrained(resolve(TINY).folder), batch_size=4, max_length=context)
    results = simple_evaluate(
        peer, tasks=built, task_manager=TaskManager(include_defaults=False), log_samples=True, bootstrap_iters=10
    )
    truncated = 0
    for name, data in places.items():
        content = load_items([name], data, count.get(name, 6))[name]
        found, rows = score(tiny, content)
        theirs = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        for row, sample in zip(rows, theirs, strict=True):
            answers = [answer[0] for answer in sample["resps"]]
            expected = [float(answer[0] if isinstance(answer, tuple | list) else answer) for answer in answers]
            got = [-float(row.nats or 0)] if content.kind == "rolling" else row.logprobs
            assert got == pytest.approx(expected, abs=1e-3, rel=1e-6), (name, row.item)
        summary = results["results"][name]
        lm_evals = {key.removesuffix(",none") for key in summary if key.endswith(",none") and "_stderr" not in key}
        assert {measure.name for measure in found.measures} - {"acc_pmi"} == lm_evals
        for measure in found.measures:
            if measure.name != "acc_pmi":
                assert measure.value == pytest.approx(summary[f"{measure.name},none"], rel=1e-5), (name, measure.name)
            if measure.name.startswith("acc") and measure.name != "acc_pmi":
                assert measure.stderr == pytest.approx(summary[f"{measure.name}_stderr,none"])
            if content.kind == "rolling":
                assert summary[f"{measure.name}_stderr,none"] == "N/A"
                assert measure.stderr is None
            assert measure.higher_is_better == measure.name.startswith("acc")
        truncated += found.truncated
    assert (truncated > 0) == (context == 40)


def test_the_bootstrap_of_perplexity_is_that_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.metrics import _bootstrap_internal_no_mp, perplexity, sample_stddev

    logprobs = np.random.default_rng(3).normal(-4.0, 2.0, size=37)
    monkeypatch.setattr(measures, "_RESAMPLES", 3000)
    expected = sample_stddev(_bootstrap_internal_no_mp(perplexity, logprobs.tolist(), 3000))
    assert perplexity_error(logprobs) == pytest.approx(expected, rel=1e-9)
    assert perplexity_error(logprobs[:1]) is None


def test_standard_errors_are_those_of_lm_eval() -> None:
    from lm_eval.api.metrics import mean_stderr, pooled_sample_stderr

    generator = np.random.default_rng(0)
    parts = [generator.integers(2, size=size).astype(float) for size in (7, 12, 5)]
    whole, subjects = np.concatenate(parts), [str(n) for n, part in enumerate(parts) for _ in part]
    expected = pooled_sample_stderr([mean_stderr(part.tolist()) for part in parts], [len(part) for part in parts])
    assert standard_error(whole, subjects) == pytest.approx(expected)
    assert standard_error(parts[0], [None] * 7) == pytest.approx(mean_stderr(parts[0].tolist()))
    assert math.isnan(standard_error(parts[0][:2], ["a", "b"]))


QUESTION = Item("t", None, "0", "0", (("q", " ab"), ("q", " é"), ("q", " abcd")), ("ab", "é", "abcd"), 1, (2,))


def test_accuracies_by_hand() -> None:
    names = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_pmi", "exact_match")
    right = right_answers(names, QUESTION, [-2.0, -1.5, -6.0], [True, False, False], [-2.0, -1.0, -7.0])
    # By characters -1, -1.5, -1.5; by bytes -1, -0.75, -1.5; less the unconditional 0, -0.5, 1.
    expected = {"acc": True, "acc_norm": False, "acc_bytes": True, "acc_mutual_info": True, "acc_pmi": True}
    assert right == expected | {"exact_match": False}
    equal = right_answers(("acc", "exact_match"), replace(QUESTION, gold=0, also_right=()), [-1.0] * 3, [True] * 3, ())
    assert equal == {"acc": True, "exact_match": True}, "the first of equals, as numpy's argmax"
    assert right_answers(("perplexity", "acc"), replace(QUESTION, choices=()), [-1.0], [True], ()) == {"acc": True}


def test_accuracies_are_those_of_lm_eval(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `process_results` on the same random log-likelihoods, with one right answer and with several."""
    from onward.tasks import harness as definitions_of
    from onward.tasks.parts import parts_of

    names = ["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"]
    (definition,) = definitions_of.definitions("openbookqa")
    generator = np.random.default_rng(1)
    for config in ({}, {"doc_to_target": lambda document: [0, 2], "metric_list": None}):
        listed = [{"metric": name} for name in names if config == {} or name != "acc_mutual_info"]
        other = replace(definition, config={**definition.config, **config, "metric_list": listed})
        monkeypatch.setattr(definitions_of, "definitions", lambda name, other=other: [other])
        content = load_items(["openbookqa"], shared_data / "bench", 40)["openbookqa"]
        built = parts_of("openbookqa", shared_data / "bench", 40)[0].build()
        for item, document in zip(content.items, built.task_docs, strict=True):
            known = [name for name in content.measures if name != "acc_pmi"]
            size = len(item.choices) * (2 if "acc_mutual_info" in known else 1)
            logprobs, greedy = generator.normal(-9, 3, size=size), generator.random(size) < 0.5
            theirs = built.process_results(document, list(zip(logprobs.tolist(), greedy.tolist(), strict=True)))
            few = len(item.choices)
            unconditional = logprobs[few:].tolist() or [0.0] * few
            ours = right_answers(known, item, logprobs[:few].tolist(), greedy.tolist(), unconditional)
            assert ours == {name: bool(value) for name, value in theirs.items()}


def row(item: str, nats: float, size: int, words: int) -> ItemRow:
    return ItemRow("w", None, item, item, nats=nats, bytes=size, words=words, tokens=9)


def test_measures_of_whole_texts_by_hand() -> None:
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    made = tuple(Item("w", None, str(n), str(n), (), (), 0, text="t", words=1, bytes=1) for n in range(2))
    content = TaskItems("w", "rolling", made, 62, "hash", 0, None, names)
    found = summarise(content, [row("1", 30.0, 20, 4), row("0", 10.0, 40, 6)])
    assert [measure.value for measure in found.measures] == pytest.approx(
        [math.exp(4), math.exp(40 / 60), 40 / 60 / math.log(2)]
    )
    assert (found.items, found.items_total, found.chance, found.truncated) == (2, 62, None, 0)
    without = summarise(content, [row("1", 30.0, 20, 4), row("0", 10.0, 40, 6)], {"1": "report"}).without_touched
    assert without is not None
    assert (without.touched, without.seen, without.items) == (1, 1, 1)
    assert without.measures[0].value == pytest.approx(math.exp(10 / 6))
    assert without.measures[0].stderr is None


def test_another_split_than_the_published_one_is_said(tiny: tuple[Any, LoadedTokenizer]) -> None:
    class Notes(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    made = (Item("w", None, "0", "0", (), (), 0, text="A text.", words=2, bytes=7),)
    content = TaskItems("w", "rolling", made, 1, "hash", 0, None, ("bits_per_byte",))
    score_task(*tiny, content, batch_tokens=512, progress=Notes())
    assert said == []
    score_task(*tiny, replace(content, split="validation"), batch_tokens=512, progress=Notes())
    (note,) = said
    assert note.startswith("w: the validation split is scored")
    assert "published numbers are of the test split" in note


def test_rows_may_come_in_any_order() -> None:
    made = tuple(Item("l", None, str(n), str(n), (("a", " b"),), (), 0) for n in range(9))
    content = TaskItems("l", "loglikelihood", made, 9, "hash", 0, None, ("perplexity", "acc"))
    rows = [ItemRow("l", None, str(n), str(n), right={"acc": n > 4}, nats=float(n)) for n in range(9)]
    found = summarise(content, rows)
    assert found.measures[0].value == pytest.approx(math.exp(4))
    assert (found.measures[0].higher_is_better, found.measures[1].value) == (False, pytest.approx(4 / 9))
    assert summarise(content, rows[::-1]) == found, "the bootstrap draws by place"


def test_windows_score_every_token_once(tiny: tuple[Any, LoadedTokenizer]) -> None:
    _, tokenizer = tiny
    text = "The river ran past the mill, and the children watched. " * 12
    (ids,) = tokenizer.encode_batch([text])
    windows = rolling_windows(tokenizer, text, 16)
    assert [token for window in windows for token in window.continuation] == ids
    assert windows[0].context == (tokenizer.prefix_id,)
    assert all(len(window.context) + len(window.continuation) == 17 for window in windows)
    assert [len(window.context) for window in windows[1:-1]] == [1] * (len(windows) - 2)
    assert rolling_windows(tokenizer, "", 16) == []
    adding = replace(tokenizer, bos_id=5, prefix_id=5)
    assert rolling_windows(adding, "The", 16) == [Request((5,), (5, *tokenizer.encode_batch(["The"])[0]))]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_CHUNK", 4)


@pytest.mark.usefixtures("small_chunks")
def test_what_is_done_is_not_scored_again(
    shared_data: Path, tiny: tuple[Any, LoadedTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = load_items(["arc_challenge"], shared_data / "bench", 10)["arc_challenge"]
    kept: list[list[ItemRow]] = []
    touched = {"3": "drop", "8": "report"}
    whole, rows = score(tiny, items, touched=touched, keep=lambda new: kept.append(list(new)))
    assert [len(new) for new in kept] == [4, 4, 2]
    assert [row for new in kept for row in new] == rows
    assert [measure.name for measure in whole.measures] == ["acc", "acc_norm", "acc_pmi"]
    write_rows(tmp_path / "rows", kept[0] + kept[2][:1])
    asked: list[int] = []

    def count(model: Any, requests: Sequence[Request], *more: Any) -> Any:
        asked.append(len(requests))
        return plain(model, requests, *more)

    plain = harness.score_continuations
    monkeypatch.setattr(harness, "score_continuations", count)
    kept.clear()
    again = score(
        tiny, items, touched=touched, done=read_rows(tmp_path / "rows"), keep=lambda new: kept.append(list(new))
    )
    assert [[row.item for row in new] for new in kept] == [["4", "5", "6", "7"], ["9"]]
    assert sum(asked) == sum(2 * len(item.choices) for item in (*items.items[4:8], items.items[9]))
    assert_same(again[1], rows)
    assert [measure.value for measure in again[0].measures] == [measure.value for measure in whole.measures]
    # With every row at hand neither model nor tokenizer is needed.
    assert score_task(None, tiny[1], items, batch_tokens=1, progress=Silent(), done=rows, touched=touched)[0] == whole


def assert_same(found: Sequence[ItemRow], expected: Sequence[ItemRow]) -> None:
    """Rows are the same but for the last bits of sums, which depend on what was scored together."""
    assert [replace(row, logprobs=None) for row in found] == [replace(row, logprobs=None) for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.usefixtures("small_chunks")
def test_ranks_share_the_chunks(shared_data: Path, tiny: tuple[Any, LoadedTokenizer]) -> None:
    items = load_items(["mmlu_anatomy"], shared_data / "bench", 14)["mmlu_anatomy"]
    whole, rows = score(tiny, items)
    shares = [score_task(*tiny, items, batch_tokens=512, progress=Silent(), share=(rank, 3)) for rank in range(3)]
    assert [found for found, _ in shares] == [None] * 3
    assert [len(found) for _, found in shares] == [6, 4, 4]
    together = [row for _, found in reversed(shares) for row in found]
    assert summarise(items, together) == whole
    assert_same(sorted(together, key=lambda row: row.item), sorted(rows, key=lambda row: row.item))


def test_cut_contexts_are_counted(shared_data: Path, tiny: tuple[Any, LoadedTokenizer]) -> None:
    model, _ = tiny
    items = load_items(["boolq"], shared_data / "bench", 5)["boolq"]
    assert score(tiny, items)[0].truncated == 0
    model.config.max_position_embeddings = 60
    found, rows = score(tiny, items)
    assert found.truncated == sum(row.truncated for row in rows) > 0
    assert summarise(items, rows).truncated == found.truncated
    requests = encode_requests(tiny[1], list(items.items[0].requests))
    # The last token is only predicted: a model of n tokens takes a request of n + 1.
    needed = max(len(request.context) + len(request.continuation) for request in requests) - 1
    one = replace(items, items=items.items[:1])
    for context, cut in ((needed, False), (needed - 1, True)):
        model.config.max_position_embeddings = context
        found, (row,) = score(tiny, one)
        assert (found.truncated, row.truncated) == (cut, cut)


def test_what_cannot_be_scored_is_said_with_its_place(shared_data: Path, tiny: tuple[Any, LoadedTokenizer]) -> None:
    model, _ = tiny
    items = load_items(["piqa"], shared_data / "bench", 2)["piqa"]
    for continuation, says in (("", "0 tokens"), (" long" * 2000, r"1 to 1024 tokens, the model's context")):
        broken = replace(items.items[1], requests=(("a", continuation), ("a", " b")))
        with pytest.raises(UserError, match=rf"piqa, item 1[\s\S]*{says}"):
            score(tiny, replace(items, items=(items.items[0], broken)))
    text = Item("w", None, "7", "7", (), (), 0, text="A few words.", words=3, bytes=12)
    texts = TaskItems("w", "rolling", (text,), 1, "hash", 0, None, ("bits_per_byte",))
    assert score(tiny, texts)[0].measures[0].name == "bits_per_byte"
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match=r"not numbers[\s\S]*piqa, item 0"):
        score(tiny, items)
    with pytest.raises(UserError, match=r"not numbers[\s\S]*w, item 7"):
        score(tiny, texts)
