"""`onward evaluate MODEL...` and `onward compare A B`: any models, on tasks and on text from any files."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import small_run
from onward.artifact import read_manifest
from onward.cli import app
from onward.evaluation.scores import read_items, read_scores
from synthetic import write_model

Invoke = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them as in a checkpoint, and texts in three formats."""
    place = tmp_path_factory.mktemp("made")
    write_model(place / "first", seed=1)
    write_model(place / "checkpoints" / "tokens-000001000" / "model", seed=2)
    small_run.write_texts(place / "stories.jsonl", 20, seed=1)
    (place / "note.txt").write_text("The children watched the water turn the wheel of the mill.\n" * 9)
    rows = [{"text": f"Evening {n} came and nobody had lit the lamp. " * (n + 1)} for n in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), place / "evenings.parquet")
    return place


@pytest.fixture
def invoke(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments] + ["--cache", str(made / "cache")])

    return call


def test_models_are_scored_on_texts_of_any_format_and_scores_are_reused(invoke: Invoke, made: Path) -> None:
    texts = [part for name in ("stories.jsonl", "note.txt", "evenings.parquet") for part in ("--text", made / name)]
    checkpoint = made / "checkpoints/tokens-000001000"
    arguments = ("evaluate", made / "first", checkpoint, "--tasks", "none", *texts)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("bits per byte") == 6
    assert "scores: scores/first\n" in result.stdout
    names = {path.name for path in Path("scores").iterdir()}
    assert names == {"first", "tokens-000001000"}
    scores = read_scores(Path("scores/first"))
    assert [text.corpus for text in scores.held_out] == ["stories", "note", "evenings"]
    assert [text.documents for text in scores.held_out] == [20, 1, 10]
    assert scores.held_out[1].bytes == len((made / "note.txt").read_bytes())
    times = {path: path.stat().st_mtime_ns for path in Path("scores").glob("*/*")}
    again = invoke(*arguments, "--json")
    assert times == {path: path.stat().st_mtime_ns for path in Path("scores").glob("*/*")}
    printed = json.loads(again.stdout)
    assert list(printed) == ["first", "tokens-000001000"]
    assert printed["first"]["held_out"][0]["nats"] == scores.held_out[0].nats
    other = invoke(*arguments[:3], "--tasks", "none", "--text", made / "note.txt")
    assert other.exit_code == 0, other.output
    (beside,) = Path("scores").glob("first-*")
    assert [text.corpus for text in read_scores(beside).held_out] == ["note"]
    assert read_scores(Path("scores/first")) == scores, "other scores of a model stand beside the first"


def test_tasks_options_and_precision(invoke: Invoke, made: Path, shared_data: Path) -> None:
    bench = ("--data", shared_data / "bench", "--tasks", "piqa,arc_easy", "--limit", 6)
    assert invoke("evaluate", "onward/tiny", *bench, "--out", "a").exit_code == 0
    scores = read_scores(Path("a/tiny"))
    assert [(task.task, task.items) for task in scores.tasks] == [("piqa", 6), ("arc_easy", 6)]
    coarse = invoke("evaluate", "onward/tiny", *bench, "--out", "b", "--precision", "bf16")
    assert coarse.exit_code == 0, coarse.output
    fine, rounded = (read_items(Path(f"{out}/tiny")).to_pylist() for out in "ab")
    assert fine != rounded
    for row, other in zip(fine, rounded, strict=True):
        assert row["logprobs"] == pytest.approx(other["logprobs"], rel=0.1)
    assert " ± " in coarse.stdout
    limited = invoke(
        "evaluate", "onward/tiny", "--tasks", "none", "--text", made / "stories.jsonl", "--text-tokens", 99
    )
    assert limited.exit_code == 0, limited.output
    assert read_scores(Path("scores/tiny")).held_out[0].documents < 20


def test_compare_scores_what_is_not_scored_and_stores_the_table(invoke: Invoke, made: Path) -> None:
    second = made / "checkpoints/tokens-000001000"
    options = ("--tasks", "none", "--text", made / "stories.jsonl")
    result = invoke("compare", made / "first", second, *options)
    assert result.exit_code == 0, result.output
    assert "before" in result.stdout
    (place,) = Path("scores").glob("compared-*")
    assert place.name == "compared-first-tokens-000001000"
    stored = json.loads((place / "comparison.json").read_bytes())
    (difference,) = stored["comparisons"][0]["differences"]
    first, other = (read_scores(Path("scores") / name).held_out[0] for name in ("first", "tokens-000001000"))
    assert (difference["before"], difference["after"]) == pytest.approx((first.bits_per_byte, other.bits_per_byte))
    table = (place / "comparison.md").read_text()
    assert "| stories" in table
    times = {path: path.stat().st_mtime_ns for path in Path("scores").glob("*/results.json")}
    third = invoke("compare", "scores/first", second, made / "first", *options, "--json")
    assert third.exit_code == 0, third.output
    assert [c["differences"][0]["delta"] for c in json.loads(third.stdout)["comparisons"]][1] == 0
    assert times == {path: path.stat().st_mtime_ns for path in Path("scores").glob("*/results.json")}


def test_models_beside_scores_are_scored_on_the_same(invoke: Invoke, made: Path, shared_data: Path) -> None:
    base = ("--tasks", "copa", "--data", shared_data / "bench", "--limit", 6)
    other_model = made / "checkpoints/tokens-000001000"
    text = ("--text", made / "stories.jsonl", "--text-tokens", 900)
    assert invoke("evaluate", made / "first", *base, *text, "--out", "base").exit_code == 0
    result = invoke("compare", "base/first", other_model)
    assert result.exit_code == 0, result.output
    said = (
        f"as the scores in base/first: tasks copa; 6 items of each task; data {shared_data / 'bench'}; text stories\n"
    )
    assert said in result.stderr
    scores = read_scores(Path("scores/tokens-000001000"))
    assert [(task.task, task.items) for task in scores.tasks] == [("copa", 6)]
    assert scores.held_out[0].documents == read_scores(Path("base/first")).held_out[0].documents < 20
    other = invoke("compare", "base/first", other_model, "--limit", 5, "--text", made / "note.txt")
    assert other.exit_code == 2
    assert "as the scores in base/first: tasks copa; data" in other.stderr
    assert "not scored on the same items" in other.stderr
    (changed,) = Path("scores").glob("tokens-000001000-*")
    assert [text.corpus for text in read_scores(changed).held_out] == ["note"]
    facts = json.loads(Path("base/first/scored_on.json").read_text())
    Path("base/first/scored_on.json").write_text(json.dumps(facts | {"held_out": {"stories": "/gone"}}))
    gone = invoke("compare", "base/first", other_model)
    assert gone.exit_code == 2
    assert "not there any more" in gone.stderr
    Path("base/first/scored_on.json").write_text("{}")
    assert "scored_on.json" in invoke("compare", "base/first", other_model).stderr
    Path("base/first/scored_on.json").unlink()  # of an earlier version: as if nothing were known
    whole = invoke("compare", "base/first", other_model, *base, *text)
    assert whole.exit_code == 0, whole.output
    assert "as the scores" not in whole.stderr


def test_every_line_names_its_model_where_there_are_several(invoke: Invoke, made: Path) -> None:
    options = ("--tasks", "none", "--text", made / "note.txt", "--out", "named")
    assert "scoring held-out" in invoke("evaluate", made / "first", *options).stderr
    result = invoke("evaluate", "onward/tiny", made / "checkpoints/tokens-000001000", *options)
    lines = [line.split(" note text")[0] for line in result.stderr.splitlines() if "scoring" in line]
    assert lines == ["tiny: scoring held-out", "tokens-000001000: scoring held-out"]


def test_seeds_are_pooled_beside_their_own_tables(invoke: Invoke, made: Path) -> None:
    write_model(made / "third", seed=3)
    seeds = (made / "checkpoints/tokens-000001000", made / "third")
    options = ("--tasks", "none", "--text", made / "stories.jsonl")
    result = invoke("compare", made / "first", *seeds, "--pool", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("(before) and") == 3
    assert "first (before) and 2 seeds, pooled (after)" in result.stdout
    (place,) = Path("scores").glob("compared-*")
    stored = json.loads((place / "comparison.json").read_bytes())
    (pooled,) = stored["pooled"]["differences"]
    alone = [comparison["differences"][0] for comparison in stored["comparisons"]]
    assert pooled["seeds"] == pytest.approx([row["after"] for row in alone])
    assert pooled["delta"] == pytest.approx(sum(row["delta"] for row in alone) / 2)
    table = (place / "comparison.md").read_text()
    assert "## first to 2 seeds, pooled" in table
    assert table.count("| stories") == 3
    printed = json.loads(invoke("compare", made / "first", *seeds, *options, "--json").stdout)
    assert printed["pooled"] is None


def test_models_are_compared_in_one_precision(invoke: Invoke, made: Path) -> None:
    options = ("--tasks", "none", "--text", made / "note.txt")
    assert invoke("evaluate", made / "first", *options, "--precision", "bf16").exit_code == 0
    follows = invoke("compare", "scores/first", made / "checkpoints/tokens-000001000", *options)
    assert follows.exit_code == 0, follows.output
    (other,) = (read_manifest(folder) for folder in Path("scores").glob("tokens-*"))
    assert other is not None
    assert other.made_from["precision"] == "bf16"
    refused = invoke("compare", "scores/first", "onward/tiny", *options, "--precision", "fp32")
    assert refused.exit_code == 2
    assert "scored in different precision" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "quickstart", "onward/tiny"), "a recipe is scored alone"),
        (("evaluate", "quickstart", "mine.yaml"), "a recipe is scored alone"),
        (("evaluate", "quickstart", "--limit", "3"), "the recipe itself says what is scored"),
        (("evaluate", "onward/tiny", "--set", "seed=1"), "these options are for a recipe"),
        (("evaluate", "onward/tiny", "./onward/tiny", "--tasks", "none"), "onward/tiny, ./onward/tiny"),
        (("evaluate", "onward/tiny", "--tasks", "none"), "there is nothing to score"),
        (("evaluate", "onward/tiny", "--text", "missing.txt"), "there is no such file"),
        (("evaluate", "onward/tiny", "--text-tokens", "many"), "  expected  a quantity such as"),
        (("evaluate", "onward/tiny", "--tasks", "piqa", "--data", "none"), "  where     --data\n"),
        (("evaluate", "onward/tiny", "--tasks", "piqa", "--data", "none"), "or leave --data out for the Hub's"),
        (("evaluate", "onward/tiny", "--tasks", "piqo,arc_esy", "--data", "."), "2 of the tasks cannot be scored"),
        (("evaluate", "onward/tiny", "--tasks", "piqo,arc_esy", "--data", "."), "    where     --tasks\n"),
        (
            ("evaluate", "onward/tiny", "--tasks", "sciq", "--data", "."),
            "leave --data out to take its data from the Hub",
        ),
        (("evaluate", "onward/tiny", "--out", "run/recipe.yaml"), "the folder of the scores cannot be made"),
        (
            ("compare", "onward/tiny", "absent", "--out", "run/recipe.yaml/in"),
            "the folder of the scores cannot be made",
        ),
        (("compare", "onward/tiny", "absent", "--out", "/proc/nowhere"), "the folder of the scores cannot be made"),
        (("evaluate", "quickstrat"), "onward/tiny, a model's folder, or a Hub id"),
        (("evaluate", "onward/tiny", "--tasks", "piqua", "--data", "."), "piqa"),
        (("compare", "onward/tiny"), "nothing to compare with"),
        (("compare", "onward/tiny", "absent", "--pool"), "pooling needs several seeds"),
        (("compare", "onward/tiny", "--pool"), "pooling needs several seeds"),
        (("compare", "onward/tiny", "run"), "the folder of a run"),
    ],
)
def test_wrong_requests_are_answered_with_code_2(invoke: Invoke, arguments: tuple[str, ...], said: str) -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("name: run\n")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(Path("scores").glob("[!.]*"))


def test_text_that_cannot_be_read_is_refused(invoke: Invoke) -> None:
    Path("broken.jsonl").write_text('{"text": "whole"}\n{"text": "cut\n')
    Path("empty.jsonl").write_text('{"text": ""}\n')
    result = invoke("evaluate", "onward/tiny", "--tasks", "none", "--text", "broken.jsonl")
    assert result.exit_code == 2
    assert "broken.jsonl:2" in result.stderr
    empty = invoke("evaluate", "onward/tiny", "--tasks", "none", "--text", "empty.jsonl")
    assert empty.exit_code == 2
    assert "there is no text to score" in empty.stderr


def test_scores_are_json_and_damaged_ones_are_named(invoke: Invoke, made: Path) -> None:
    arguments = ("evaluate", made / "first", "--tasks", "none", "--text", made / "note.txt")
    printed = invoke(*arguments, "--json")
    text = json.loads(printed.stdout, parse_constant=pytest.fail)["first"]["held_out"][0]
    assert (text["documents"], text["low"]) == (1, None)
    assert math.isnan(read_scores(Path("scores/first")).held_out[0].low)
    assert "one document has no interval" in invoke(*arguments).stdout
    shutil.copytree("scores/first", "scores/second")
    for name in ("results.json", "items.parquet"):
        damaged = Path("scores/second") / name
        content = damaged.read_bytes()
        damaged.write_bytes(content[:30])
        result = invoke("compare", "scores/first", "scores/second")
        assert result.exit_code == 2, result.output
        assert name in result.stderr
        damaged.write_bytes(content)


def test_examples_and_cut_contexts_are_told(invoke: Invoke, shared_data: Path) -> None:
    bench = ("--data", shared_data / "bench", "--limit", 57)
    result = invoke("evaluate", "onward/tiny", "--tasks", "mmlu@5", *bench)
    assert "with a context too long for the model" in result.stdout
    assert "nan" not in result.stdout
    many = invoke("evaluate", "onward/tiny", "--tasks", "mmlu@99", *bench)
    assert many.exit_code == 2
    assert "there are not so many examples" in many.stderr
    assert invoke("evaluate", "onward/tiny", "--tasks", "ai2_arc", *bench).exit_code == 0
    assert invoke("evaluate", "onward/tiny", "--tasks", "none", "--text-tokens", 0).exit_code == 2
