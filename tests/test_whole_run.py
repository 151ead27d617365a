"""The main job from end to end, on a model and texts so small that it takes seconds."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import onward
import small_run
from onward.analysis import Comparison
from onward.artifact import file_hash, read_manifest
from onward.cli import app
from onward.corpus.ledger import Count, Ledger, read_ledger
from onward.errors import UserError
from onward.evaluation.scores import read_items, read_scores
from onward.pipeline import Corpora, RunResult
from onward.recipe import Recipe
from onward.training.record import read_rows

STATE = "shard-00001-model-00001-of-00001.safetensors"
"""The state of a small model from one rank lies in one file."""
STAGES = ("tokens-000001920", "tokens-000003840")
REPORT = {"report/index.html", "report/report.md", "report/training.svg", "report/text.svg"} | {
    f"report/lengths-{name}.svg" for name in ("domain", "general")
}


def run(place: Path, **changes: Any) -> RunResult:
    return onward.run(small_run.recipe(place, **changes), folders=small_run.folders(place), workers=1)


def files_of(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def invoke(place: Path, *arguments: str) -> Any:
    runner = CliRunner()
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs")]
    recipe = place / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(yaml.safe_dump(small_run.content(place)), encoding="utf-8")
    return runner.invoke(app, [arguments[0], str(recipe), *places, *arguments[1:]])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A finished run that no test changes."""
    place = small_run.write_inputs(tmp_path_factory.mktemp("whole") / "run")
    return place, run(place)


@pytest.fixture
def copied(finished: tuple[Path, RunResult], tmp_path: Path) -> Iterator[Path]:
    """The finished run's place, put back as it was afterwards: artifacts remember where their inputs lie."""
    place, _ = finished
    shutil.copytree(place, tmp_path / "saved", copy_function=shutil.copy2)
    yield place
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "saved", place, copy_function=shutil.copy2)


def test_a_run_returns_what_it_promises(finished: tuple[Path, RunResult]) -> None:
    place, result = finished
    assert result.folder == place / "runs" / "small"
    assert [stage.folder.name for stage in result.stages] == list(STAGES)
    assert (result.plan.stages, result.plan.steps) == ((1920, 3840), (4, 8))
    assert (result.plan.domain_sequences_needed, result.plan.general_sequences_needed) == (72, 8)
    for scores in (result.base_scores, *result.stage_scores):
        assert [score.corpus for score in scores.held_out] == ["domain", "general"]
        assert all(score.low < score.bits_per_byte < score.high for score in scores.held_out)
    assert [scores.model for scores in result.stage_scores] == [str(stage.model) for stage in result.stages]
    domain = [scores.held_out[0].bits_per_byte for scores in (result.base_scores, *result.stage_scores)]
    assert domain[0] > domain[1] > domain[2], "text of sixteen words is learned by any model that learns"
    assert [finding.tokens for finding in result.report.findings.stages] == [1920, 3840]
    assert all(isinstance(finding.comparison, Comparison) for finding in result.report.findings.stages)


def test_the_files_are_those_of_the_design(finished: tuple[Path, RunResult]) -> None:
    place, result = finished
    state = {"manifest.json", f"state/{STATE}", "state/cursor.json"}
    model = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected = {"recipe.yaml", "environment.json", "plan.json", "artifacts.json", "metrics.jsonl", "events.jsonl"}
    expected |= REPORT
    scores = {"results.json", "items.parquet", "scored_on.json", "manifest.json"}
    for stage in STAGES:
        expected |= {f"checkpoints/{stage}/{name}" for name in state | {f"model/{name}" for name in model}}
        expected |= {f"scores/{stage}/{name}" for name in scores}
    for step in (2, 6):
        expected |= {f"checkpoints/step-{step:08d}/{name}" for name in state}
    assert set(files_of(result.folder)) == expected
    pointers = json.loads((result.folder / "artifacts.json").read_bytes())
    tables = ("documents", "dropped", "duplicates", "contamination")
    corpus = {"tokens-00000.npy", "packing-00000.npz", *(f"{name}-00000.parquet" for name in tables)}
    corpus |= {"held_out.parquet", "seen.npy", "ledger.json", "facts.json", "manifest.json"}
    corpus |= {"tokenizer/tokenizer.json", "tokenizer/ids.json"}
    for folder in pointers["corpora"].values():
        assert set(files_of(Path(folder))) == corpus
    assert set(files_of(Path(pointers["base_scores"]))) == scores
    assert {p.name for p in (place / "cache").iterdir()} == {"corpora", "scores"}
    assert not [name for name in files_of(place / "cache") if "/." in name], "no lock, no part is left"


def test_the_record_and_the_frozen_recipe_tell_what_was_done(finished: tuple[Path, RunResult]) -> None:
    place, result = finished
    rows = read_rows(result.folder / "metrics.jsonl")
    assert [(row["step"], row["tokens"]) for row in rows] == [(n, 480 * (n + 1)) for n in range(8)]
    assert sum(row["replay_sequences"] for row in rows) == 8, "10 % of 80 sequences"
    frozen = yaml.safe_load((result.folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert Recipe.model_validate(frozen) == small_run.recipe(place)
    environment = json.loads((result.folder / "environment.json").read_bytes())
    assert environment["onward"] == onward.__version__
    for stage in result.stages:
        state, exported = load_file(stage.folder / "state" / STATE), stage.model / "model.safetensors"
        assert all((state[f"weights.{name}"] == tensor).all() for name, tensor in load_file(exported).items())


def test_the_ledger_is_exact_to_the_document(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    texts = [json.loads(line)["text"] for line in (place / "domain.jsonl").read_text().splitlines()]
    doubled, empty = [texts[3], f" {texts[4].upper()} "], ["", " \n"]
    rows = [*texts, *doubled, *empty]
    broken = '{"text": "cut'
    (place / "domain.jsonl").write_text("\n".join([*(json.dumps({"text": text}) for text in rows), broken]))
    changes = {"corpus__tokens": "1M", "corpus__maximum_unreadable": "2%", "general__quality": "paper"}
    corpora = onward.prepare(small_run.recipe(place, **changes), folders=small_run.folders(place), workers=1)
    assert isinstance(corpora, Corpora)
    assert corpora.general is not None
    ledger = corpora.domain.ledger
    assert isinstance(ledger, Ledger)
    assert ledger == read_ledger(corpora.domain.path)
    ledger.check()
    size = sum(len(text.encode()) for text in texts)
    assert ledger.read == Count(65, size + sum(len(text) for text in doubled))
    assert ledger.duplicate == Count(2, sum(len(text) for text in doubled))
    assert ledger.kept + ledger.held_out == Count(60, size)
    assert {rule: count.documents for rule, count in ledger.dropped.items()} == {
        "unreadable: broken JSON": 1,
        "unreadable: empty text": 2,
    }
    assert ledger.unreadable == (f"{place / 'domain.jsonl'}:65: unreadable: broken JSON",)
    assert ledger.kept_tokens == ledger.kept.bytes + ledger.kept.documents, "a token a byte, and an end each"
    corpora.general.ledger.check()


def test_a_second_run_changes_nothing(finished: tuple[Path, RunResult]) -> None:
    place, first = finished
    before = files_of(place)
    again = run(place)
    assert (again.plan, again.stages, again.stage_scores) == (first.plan, first.stages, first.stage_scores)
    after = files_of(place)
    assert after.keys() == before.keys()
    changed = {name.removeprefix("runs/small/") for name in after if after[name] != before[name]}
    assert changed <= REPORT, "the report is made from what is there, by whatever version runs"


def test_a_finished_run_is_seen_without_model_tasks_or_text(
    finished: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, first = finished

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("everything is done")

    for name in ("onward.model.load.load_model", "onward.tasks.load_items", "onward.corpus.making.in_order"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("onward.training.learner.load_model", refuse)
    assert run(place).stage_scores == first.stage_scores


def test_a_finished_run_needs_neither_torch_nor_transformers(finished: tuple[Path, RunResult]) -> None:
    place, _ = finished
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nimport onward, small_run\nplace = Path(sys.argv[2])\n"
        "onward.run(small_run.recipe(place), folders=small_run.folders(place), workers=1)\n"
        "sys.exit(', '.join({'torch', 'transformers', 'lm_eval'} & set(sys.modules)))\n"
    )
    here = str(Path(__file__).parent)
    child = subprocess.run([sys.executable, "-c", code, here, str(place)], check=False, capture_output=True, text=True)
    assert child.stderr.strip() == ""


def test_without_its_manifest_the_last_checkpoint_is_made_anew_and_nothing_else(copied: Path) -> None:
    folder = copied / "runs/small/checkpoints" / STAGES[1]
    before, hashes = files_of(copied), {p.name: small_run.content_hash(p) for p in folder.rglob("*.safetensors")}
    (folder / "manifest.json").unlink()
    run(copied)
    after = files_of(copied)
    assert after.keys() == before.keys()
    assert {p.name: small_run.content_hash(p) for p in folder.rglob("*.safetensors")} == hashes
    changed = {name.removeprefix("runs/small/") for name in after if after[name] != before[name]}
    redone = {name for name in changed if name.startswith(f"checkpoints/{STAGES[1]}/")}
    assert redone
    # The same weights again, so the scores of the stage stand.
    assert changed - redone - REPORT == {"metrics.jsonl", "events.jsonl"}
    events = [row["event"] for row in read_rows(copied / "runs/small/events.jsonl")]
    assert events.count("start") == 1
    assert [row["step"] for row in read_rows(copied / "runs/small/metrics.jsonl")] == list(range(8))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__optimizer": {"learning_rate": 2e-2}}, "training.optimizer.learning_rate: was 0.01, is 0.02"),
        ({"seed": 6}, "seed: was 5, is 6"),
        ({"training__forgetting": {"replay": "20%"}}, "training.forgetting.replay: was '10%', is '20%'"),
    ],
)
def test_a_changed_field_is_refused_by_name(
    finished: tuple[Path, RunResult], changes: dict[str, Any], named: str
) -> None:
    place, _ = finished
    before = files_of(place)
    with pytest.raises(UserError) as caught:
        run(place, **changes)
    assert caught.value.got == named
    assert "another name" in str(caught.value.todo)
    assert files_of(place) == before


def test_what_changes_cost_only_may_change(copied: Path) -> None:
    weights = copied / "runs/small/checkpoints" / STAGES[1] / "state" / STATE
    before = weights.stat().st_mtime_ns
    run(copied, training__micro_batch_sequences=1, training__keep_checkpoints=5)
    assert weights.stat().st_mtime_ns == before


def test_a_stage_can_be_added_when_the_first_ones_are_done(copied: Path) -> None:
    before = files_of(copied)
    result = run(copied, training__stages=[1920, 3840, 5760])
    assert [stage.folder.name for stage in result.stages] == [*STAGES, "tokens-000005760"]
    assert len(result.stage_scores) == 3
    after = files_of(copied)
    for stage in STAGES:
        for name in (f"runs/small/checkpoints/{stage}/manifest.json", f"runs/small/scores/{stage}/manifest.json"):
            assert after[name] == before[name]
    steps = [row["step"] for row in read_rows(result.folder / "metrics.jsonl")]
    assert steps == list(range(12))


def test_a_stage_more_repeats_the_text_that_the_run_began_with(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    # Little is held out, so the training need decides how much is read: a stage more would want more of it.
    little = {"evaluation": {"tasks": [], "held_out_tokens": 100, "resamples": 100}, "training__stages": [4800]}
    little |= {"general": None, "training__forgetting": {"replay": None}}
    first = run(place, **little)
    wanted = first.plan.domain_sequences_available
    again = run(place, **(little | {"training__stages": [4800, 14400]}))
    assert again.plan.domain_sequences_available == wanted < again.plan.domain_sequences_needed
    assert again.stages[0] == first.stages[0]
    assert len(list((place / "cache/corpora").glob("[!.]*"))) == 1


def test_too_large_a_budget_is_refused_before_text_is_sampled_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = small_run.write_inputs(tmp_path)
    monkeypatch.setattr("onward.model.generate.sample_documents", None)
    with pytest.raises(UserError, match="larger than the text allows"):
        run(place, general={"self_replay": {}, "quality": None}, training__stages=["50M"])


def test_text_that_changed_under_a_run_is_refused_before_anything_is_made(copied: Path) -> None:
    path = copied / "domain.jsonl"
    text = path.read_text()
    before = files_of(copied / "cache")
    try:
        small_run.write_texts(path, 61, seed=1)
        with pytest.raises(UserError, match="this corpus was made from something else"):
            run(copied)
    finally:
        path.write_text(text)
    assert files_of(copied / "cache") == before


def test_a_misspelt_task_is_found_before_the_text_is_read(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    with pytest.raises(UserError, match="unknown task"):
        run(place, evaluation__tasks=["hellaswagg"])
    assert not (place / "cache" / "corpora").exists()


def test_two_runs_from_one_base_share_text_and_base_scores(copied: Path) -> None:
    before = {name: time for name, time in files_of(copied).items() if name.startswith("cache/")}
    other = run(copied, name="other", training__optimizer={"learning_rate": 1e-3})
    after = {name: time for name, time in files_of(copied).items() if name.startswith("cache/")}
    assert after == before
    assert other.base_scores == read_scores(next((copied / "cache/scores").glob("[!.]*")))


def test_the_base_can_replay_itself(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    general = {"self_replay": {"tokens": "2k", "document_tokens": 60}, "quality": None, "held_out": {"share": "20%"}}
    general |= {"minimum_bytes_per_token": None}
    changes = {"general": general, "training__stages": [960]}
    result = run(place, **changes)
    assert [score.corpus for score in result.base_scores.held_out] == ["domain", "general"]
    sampled = Path(json.loads((result.folder / "artifacts.json").read_bytes())["corpora"]["general"])
    assert read_ledger(sampled).kept_tokens > 1000
    made = (sampled / "manifest.json").stat().st_mtime_ns
    run(place, **changes)
    assert (sampled / "manifest.json").stat().st_mtime_ns == made


def write_bench(folder: Path) -> Path:
    """Two benchmarks of six questions each, in the layout of their original files."""
    (folder / "piqa").mkdir(parents=True)
    (folder / "arc").mkdir()
    goals = [{"goal": f"cross river {n}", "sol1": "take the road ship", "sol2": "take a lamp"} for n in range(6)]
    (folder / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in goals))
    (folder / "piqa/valid-labels.lst").write_text("0\n1\n0\n1\n1\n0\n")
    letters = [{"text": text, "label": label} for text, label in zip(("bird", "stone", "mill"), "ABC", strict=True)]
    asked = [
        {"id": f"q{n}", "question": {"stem": f"What flies {n}?", "choices": letters}, "answerKey": "ABC"[n % 3]}
        for n in range(6)
    ]
    (folder / "arc/ARC-Easy-Test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "SUBSET").touch()  # they are fewer than were published
    return folder


def test_tasks_are_scored_before_and_after_on_the_same_items(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    bench = write_bench(place / "bench")
    changes = {"evaluation__tasks": ["piqa", "arc_easy"], "evaluation__data": str(bench), "evaluation__limit": 5}
    result = run(place, **changes, training__stages=[960])
    base, (after,) = result.base_scores.tasks, (scores.tasks for scores in result.stage_scores)
    assert [(task.task, task.items, task.items_total) for task in base] == [("piqa", 5, 6), ("arc_easy", 5, 6)]
    assert [task.items_hash for task in base] == [task.items_hash for task in after]
    assert [task.chance for task in base] == pytest.approx([1 / 2, 1 / 3])
    items = read_items(result.folder / "scores/tokens-000000960").to_pylist()
    asked = [row for row in items if row["task"] == "arc_easy"]
    assert [row["gold"] for row in asked] == [0, 1, 2, 0, 1]
    assert all(len(row["logprobs"]) == 3 for row in asked)
    assert (result.folder / "report/tasks.svg").is_file()
    measures = [row.measure for row in result.report.summary[0].rows]
    assert {"Domain text", "General text"} < set(measures)
    assert len(measures) > 4


def test_the_parts_alone_make_the_same_run(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    place, whole = finished
    recipe = small_run.recipe(place)
    places: dict[str, Any] = {"folders": small_run.folders(tmp_path), "workers": 1}
    corpora = onward.prepare(recipe, **places)
    assert onward.report(recipe, **places).summary == ()
    (base,) = onward.evaluate(recipe, **places)
    stages = onward.train(recipe, **places)
    scores = onward.evaluate(recipe, **places)
    report = onward.report(recipe, **places)
    assert [stage.tokens for stage in stages] == [1920, 3840]
    assert scores[0] == base
    assert [s.held_out for s in scores] == [s.held_out for s in (whole.base_scores, *whole.stage_scores)]
    assert report.summary == whole.report.summary
    assert corpora.domain.ledger == read_ledger(whole_corpus(whole, "domain"))
    for mine, other in zip(stages, whole.stages, strict=True):
        assert file_hash(mine.model / "model.safetensors") == file_hash(other.model / "model.safetensors")
        manifests = read_manifest(mine.folder), read_manifest(other.folder)
        assert None not in manifests
        assert manifests[0].fingerprint == manifests[1].fingerprint  # type: ignore[union-attr]


def whole_corpus(result: RunResult, name: str) -> Path:
    return Path(json.loads((result.folder / "artifacts.json").read_bytes())["corpora"][name])


def test_the_command_line_prints_the_table_and_the_place_of_the_report(finished: tuple[Path, RunResult]) -> None:
    place, result = finished
    done = invoke(place, "run")
    assert done.exit_code == 0, done.output
    html = result.folder / "report" / "index.html"
    assert f"report: {html}" in done.stdout
    assert "After 3.84k tokens, compared with the base" in done.stdout
    assert "Domain text, bits per byte" in done.stdout
    assert "gained" in done.stdout
    page, markdown = html.read_text(encoding="utf-8"), html.with_name("report.md").read_text(encoding="utf-8")
    for words in ("gained", "Domain text", result.report.findings.headline):
        assert words in markdown
    assert "gained" in page
    assert page.count("<svg") >= 2
    assert "http://" not in page.replace("http://www.w3.org/", "")
    (place / "recipe.yaml").unlink()


def test_every_part_has_its_command(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    prepared = invoke(place, "prepare", "--workers", "1")
    assert prepared.exit_code == 0, prepared.output
    assert "domain corpus" in prepared.stdout
    assert "general: " in prepared.stdout
    trained = invoke(place, "train", "--workers", "1")
    assert trained.exit_code == 0, trained.output
    models = [Path(line.partition(": ")[2]) for line in trained.stdout.splitlines()]
    assert len(models) == 2
    assert all((model / "model.safetensors").is_file() for model in models)
    scored = invoke(place, "evaluate")
    assert scored.exit_code == 0, scored.output
    assert scored.stdout.count("bits per byte") == 6
    reported = invoke(place, "report")
    assert reported.exit_code == 0, reported.output
    assert Path(reported.stdout.strip().removeprefix("report: ")).is_file()


def test_a_plan_is_written_for_the_report_with_all_its_fields(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    written = json.loads((result.folder / "plan.json").read_bytes())
    assert set(written) == {field.name for field in fields(result.plan)}
    assert np.isclose(written["domain_repetition"], result.plan.domain_repetition)
