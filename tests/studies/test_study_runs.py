"""Studies that are run, on a model and texts so small that it takes seconds."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import small_run
from onward.artifact import Folders, read_manifest
from onward.cli import app
from onward.errors import UserError
from onward.pipeline import Run
from onward.progress import Silent
from onward.recipe import load_recipe
from onward.signals import Interrupted
from onward.studies import StudyResult, planned, run_study
from onward.studies.states import drop_states
from onward.training.launch import Ending

FILES = {"study.json", "table.csv", "pairs.csv", "table.md", "findings.md", "plot.svg", "index.html"}
GRID = {
    "study": {
        "tokens": 960,
        "seeds": 2,
        "blends": ["50%"],
        "remedies": {"none": {"replay": None}, "replay-10": {"replay": "10%"}, "self-10": {"replay": {"self": "10%"}}},
    }
}
"""`self` keeps nothing here: a random model's samples have a token for every byte, which a rule drops."""


def study(place: Path, name: str, processes: int = 1, **changes: Any) -> StudyResult:
    changes = {"training__stages": [4800], **changes}
    plan = planned(name, small_run.recipe(place, **changes), folders=small_run.folders(place))
    return run_study(plan, workers=1, processes=processes)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult]:
    """A study of remedies with a member that fails; no test changes it."""
    place = small_run.write_inputs(tmp_path_factory.mktemp("study") / "inputs")
    return place, study(place, "remedies", **GRID)


@pytest.fixture
def copied(studied: tuple[Path, StudyResult], tmp_path: Path) -> Iterator[Path]:
    """The finished study's place, put back as it was afterwards: artifacts remember where their inputs lie."""
    place, _ = studied
    shutil.copytree(place, tmp_path / "saved", copy_function=shutil.copy2)
    yield place
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "saved", place, copy_function=shutil.copy2)


def test_a_failing_member_does_not_lose_the_others(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    assert [failure.member for failure in result.failures] == ["self-10-seed0", "self-10-seed1"]
    assert all(failure.is_users for failure in result.failures)
    assert result.code == 2
    assert "no document is left to train on" in result.failures[0].message
    assert "Traceback" in result.failures[0].traceback.read_text()
    assert result.outcome is not None
    members = {row["member"]: row["seeds"] for row in result.outcome.rows}
    assert members == {"none": 2, "replay-10": 2, "control": 2, "blend-50-of-none": 2}


def test_the_files_say_the_same_as_the_result(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    assert result.outcome is not None
    assert {path.name for path in result.folder.iterdir() if path.is_file()} == FILES
    told = json.loads((result.folder / "study.json").read_bytes())
    assert told["rows"] == [dict(row) for row in result.outcome.rows]
    states = {row["member"]: row["state"] for row in told["members"]}
    assert states["none-seed1"] == "done"
    assert states["self-10-seed0"] == "failed"
    failed = next(row for row in told["members"] if row["state"] == "failed")
    assert (result.folder / failed["traceback"]).is_file()
    assert all((result.folder / row["recipe"]).is_file() for row in told["members"])
    with open(result.folder / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == [row["member"] for row in result.outcome.rows]
    with open(result.folder / "pairs.csv", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    members = len(result.outcome.rows)
    assert len(pairs) == members * (members - 1) // 2
    page = (result.folder / "index.html").read_text(encoding="utf-8")
    for text in (
        *result.outcome.findings,
        *(words for _, words in result.outcome.points),
        result.outcome.table.headers[-1],
    ):
        assert text.split("(")[0] in page
    assert result.outcome.points, "other kinds are set beside replay"
    findings = (result.folder / "findings.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("- ") for line in findings) >= len(result.outcome.points)
    assert told["points"] == [list(point) for point in result.outcome.points]
    assert "self-10-seed0" in page
    assert "td:first-child { white-space: nowrap; }" in page, "names of members are not broken at their hyphens"
    assert not re.search(r"<script|<link|src=|https?://(?!www\.w3\.org)", page), "one file, nothing loaded"


def test_shared_artifacts_are_made_once(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    made, reused = result.counts.made, result.counts.reused
    assert (made["corpora"], reused["corpora"]) == (2, 10), "domain and general of six members that were prepared"
    assert (made["base scores"], reused["base scores"]) == (1, 5)
    assert (made["trained members"], made["scores"], made["blends"]) == (6, 6, 2)
    assert "corpora: 2 made, 10 reused; base scores: 1 made, 5 reused" in result.counts.words()


def test_seeds_read_the_text_in_another_order_and_are_scored_on_the_same(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    first, second = (result.folder / "members" / f"none-seed{seed}" for seed in (0, 1))
    batches = [[row["batch"] for row in read(folder)] for folder in (first, second)]
    assert batches[0] != batches[1]
    pointers = [json.loads((folder / "artifacts.json").read_bytes()) for folder in (first, second)]
    assert pointers[0]["base_scores"] == pointers[1]["base_scores"]


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scored_members_keep_their_model_and_no_state(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    for folder in (result.folder / "members").glob("none-seed*"):
        (end,) = (folder / "checkpoints").glob("tokens-*")
        assert (end / "model" / "model.safetensors").is_file()
        assert not (end / "state").exists()
        assert not list((folder / "checkpoints").glob("step-*"))
        manifest = read_manifest(end)
        assert manifest is not None
        assert {name.partition("/")[0] for name in manifest.files} == {"model"}


def test_run_again_nothing_is_made(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("everything is done")

    folder = copied / "runs" / "small-remedies"
    before = {name: (folder / name).read_bytes() for name in FILES - {"study.json"}}
    monkeypatch.setattr("onward.training.learner.load_model", refuse)
    again = study(copied, "remedies", **GRID)
    assert {kind: made for kind, made in again.counts.made.items() if made} == {}
    assert again.counts.reused["trained members"] == again.counts.reused["scores"] == 6
    assert again.counts.reused["blends"] == 2
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_another_budget_is_refused_before_anything_is_touched(studied: tuple[Path, StudyResult]) -> None:
    place, result = studied
    file = result.folder / "recipes" / "none-seed0.yaml"
    before = file.read_bytes()
    with pytest.raises(UserError) as caught:
        study(place, "remedies", study={**GRID["study"], "tokens": 1440})
    assert caught.value.what == "this study was begun with another recipe"
    assert caught.value.got == "training.stages: was [960], is [1440]"
    assert file.read_bytes() == before


def test_killed_it_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    short = {"study": {**GRID["study"], "remedies": {"none": {"replay": None}, "replay-10": {"replay": "10%"}}}}
    train = Run.train
    begun = []

    def killed(run: Run, *rest: Any) -> Any:
        begun.append(run.recipe.name)
        if len(begun) == 3:
            train(run, None, 1)  # one step of the third training is made
            raise Interrupted(15, 1)
        return train(run, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "train", killed)
        with pytest.raises(Interrupted):
            study(place, "remedies", **short)
    assert begun == ["none-seed0", "none-seed1", "replay-10-seed0"]
    result = study(place, "remedies", **short)
    assert (result.counts.made["trained members"], result.counts.reused["trained members"]) == (4, 2)
    assert (result.counts.made["corpora"], result.counts.made["base scores"]) == (0, 0)
    assert result.code == 0
    assert not (result.folder / "failed").exists()
    assert [row["step"] for row in read(result.folder / "members" / "replay-10-seed0")] == [0, 1]


def test_a_defect_in_a_member_gives_code_1_and_is_gone_when_it_is_mended(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "runs" / "small-remedies" / "members" / "replay-10-seed1")
    with monkeypatch.context() as patched:

        def broken(run: Run) -> Any:
            raise ZeroDivisionError("a defect")

        patched.setattr(Run, "train", broken)
        result = study(copied, "remedies", **GRID)
    assert result.code == 1
    assert "replay-10-seed1" in {failure.member for failure in result.failures if not failure.is_users}


@pytest.mark.parametrize(("status", "code"), [(2, 2), (1, 1)])
def test_ranks_that_end_by_what_the_user_can_mend_are_the_users(
    copied: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: int
) -> None:
    shutil.rmtree(copied / "runs" / "small-remedies" / "members" / "replay-10-seed1")
    monkeypatch.setattr("onward.pipeline.by_ranks.run_ranks", lambda *_: Ending(status, "too few"))
    result = study(copied, "remedies", processes=2, **GRID)
    whose = {failure.member: failure.is_users for failure in result.failures}
    assert whose == {"replay-10-seed1": code == 2, "self-10-seed0": True, "self-10-seed1": True}
    told = {row["name"]: row["message"] for row in json.loads((result.folder / "study.json").read_bytes())["failures"]}
    assert told["replay-10-seed1"] == "too few", "not only that they have ended"
    assert result.code == code


def test_what_an_earlier_run_wrote_does_not_stay_beside_a_page_that_denies_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied / "runs" / "small-remedies"
    shutil.rmtree(folder / "members")

    def broken(run: Run) -> Any:
        raise UserError("no base")

    monkeypatch.setattr(Run, "score_base", broken)
    result = study(copied, "remedies", **GRID)
    assert "No member was made." in (folder / "findings.md").read_text(encoding="utf-8")
    assert result.outcome is None
    written = {path.name for path in folder.iterdir() if path.is_file()}
    assert written == FILES - {"table.csv", "pairs.csv", "table.md", "plot.svg"}


def test_a_damaged_score_leaves_its_seed_out_and_the_study_goes_on(copied: Path) -> None:
    members = copied / "runs" / "small-remedies" / "members"
    for place in (members / "none-seed1" / "scores", members / "none-seed0" / "blends"):
        (items,) = place.glob("*/items.parquet")
        items.write_bytes(bytes(items.stat().st_size))
    result = study(copied, "remedies", **GRID)
    failed = {failure.member for failure in result.failures}
    assert failed == {"self-10-seed0", "self-10-seed1", "scores-of-none-seed1", "blends-of-none-seed0"}
    assert result.outcome is not None
    seeds = {row["member"]: row["seeds"] for row in result.outcome.rows}
    assert seeds == {"none": 1, "replay-10": 2, "control": 2, "blend-50-of-none": 1}
    assert "No seed is common to none and blended 50 % of none" in " ".join(result.outcome.findings)
    written = json.loads((result.folder / "study.json").read_bytes())
    assert {row["member"]: row["state"] for row in written["members"]}["none-seed1"] == "failed"
    assert {row["name"] for row in written["failures"]} == failed
    assert all("Traceback" in (result.folder / row["traceback"]).read_text() for row in written["failures"])
    told = {row["name"]: (row["message"], row["is_users"]) for row in written["failures"]}
    assert told == {failure.member: (failure.message, failure.is_users) for failure in result.failures}


def test_blends_are_compared_with_the_base_of_a_seed_that_is_done(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "runs" / "small-remedies" / "members" / "none-seed0")
    score = Run.score_base

    def broken(run: Run) -> Any:
        if run.recipe.name == "none-seed0":
            raise UserError("no base")
        return score(run)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "score_base", broken)
        result = study(copied, "remedies", **GRID)
    assert "none-seed0" in {failure.member for failure in result.failures}
    assert result.outcome is not None
    assert {row["member"]: row["seeds"] for row in result.outcome.rows}["blend-50-of-none"] == 1


def test_the_time_of_the_other_trainings_is_told_after_the_first(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    given = {"tokens": 960, "learning_rates": [1e-3, 1e-2], "batch_tokens": [480]}
    plan = planned("rates", small_run.recipe(place, study=given), folders=small_run.folders(place), seeds=2)
    notes: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    run_study(plan, progress=Heard(), workers=1)
    assert notes[0] == "4 trainings of 960 tokens each, one after the other"
    told = [note for note in notes if re.fullmatch(r"about \d+ .*for the other 3 trainings.*", note)]
    assert len(told) == 1
    assert notes.index(told[0]) < next(n for n, note in enumerate(notes) if note.startswith("member 2 of 4"))
    notes.clear()
    run_study(plan, progress=Heard(), workers=1)
    assert not any("about" in note for note in notes), "nothing is left to train"


def test_states_that_are_kept_are_kept(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_run.content(place, training__stages=[4800])), encoding="utf-8")
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]
    result = CliRunner().invoke(app, ["study", "pilot", str(recipe), "--tokens", "960", "--keep-states", *places])
    assert result.exit_code == 0, result.output
    folder = place / "runs" / "small-pilot"
    assert (folder / "members/pilot-seed0/checkpoints/tokens-000000960/state").is_dir()
    assert "A pilot of 960 tokens, 2 steps" in result.stdout
    assert "corpora: 2 made, 0 reused" in result.stdout
    assert str(folder / "index.html") in " ".join(result.stdout.split())
    # The same member by itself: its recipe is whole, and everything is there.
    alone = Run(load_recipe(folder / "recipes/pilot-seed0.yaml"), folders=Folders(place / "cache", folder / "members"))
    assert alone.train()[0].model.is_dir()
    assert drop_states(alone.folder) > 0
    assert drop_states(alone.folder) == 0
    assert [stage.tokens for stage in alone.train()] == [960], "it is still done"


def test_the_study_of_tokens_scores_models_between(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    result = study(place, "tokens", study={"budgets": [960, 1920, 4800]})
    assert result.outcome is not None
    assert [(row["tokens"], row["decayed"]) for row in result.outcome.rows] == [
        (960, False), (1920, False), (4800, True),
    ]  # fmt: skip
    assert (result.counts.made["trained members"], result.counts.made["scores"]) == (1, 3)
    # The gains by hand, from the changes beside them.
    before = [{"tokens": 0, "domain": 0.0}, *result.outcome.rows]
    gains = [
        1e8 * (first["domain"] - second["domain"]) / (second["tokens"] - first["tokens"])
        for first, second in pairwise(before)
    ]
    assert [row["gain_per_100M"] for row in result.outcome.rows] == pytest.approx(gains, rel=1e-4)
    assert gains[1] >= gains[0] / 2
    assert gains[2] < max(gains[:2]) / 2, "the last piece is the first that has halved"
    assert result.outcome.headline.startswith("4.8k tokens change the domain by −")
    assert result.outcome.headline.endswith("; the gain per token halves after 1.92k tokens.")


def test_the_baseline_is_the_base_on_everything(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    result = study(place, "baseline")
    assert result.outcome is not None
    assert [row["name"] for row in result.outcome.rows] == ["domain", "general"]
    assert result.outcome.rows[0]["value_low"] < result.outcome.rows[0]["value"] < result.outcome.rows[0]["value_high"]
    cut = {"name": "few", "training__stages": [4800], "evaluation__held_out_tokens": 500}
    few = run_study(planned("baseline", small_run.recipe(place, **cut), folders=small_run.folders(place)), workers=1)
    assert few.outcome is not None
    assert 1 < few.outcome.rows[0]["items"] < 8
    assert few.outcome.rows[0]["value_low"] is few.outcome.rows[0]["value_high"] is None, "as few as give no verdict"
    assert "(unknown)" in few.outcome.findings[0]
    assert result.counts.made["trained members"] == 0
    # What the recipe's own run needs is what was made here.
    run = Run(small_run.recipe(place, training__stages=[4800]), folders=small_run.folders(place), workers=1)
    before = set((place / "cache").rglob("manifest.json"))
    run.score_base()
    assert set((place / "cache").rglob("manifest.json")) == before


def test_domains_and_sizes_stand_side_by_side(tmp_path: Path) -> None:
    from synthetic import llama_config, write_model

    place = small_run.write_inputs(tmp_path / "inputs")
    write_model(place / "wide", llama_config(hidden_size=48), seed=1)
    small_run.write_texts(place / "other.jsonl", 60, seed=9)
    text = small_run.content(place)["corpus"]
    given = {
        "tokens": 960,
        "domains": {"first": text, "second": {**text, "sources": [{"path": str(place / "other.jsonl")}]}},
        "models": {"narrow": {"base": str(place / "model")}, "wide": {"base": str(place / "wide")}},
    }
    domains = study(place, "domains", study=given)
    assert domains.outcome is not None
    assert [row["member"] for row in domains.outcome.rows] == ["first", "second"]
    assert (domains.counts.made["corpora"], domains.counts.reused["corpora"]) == (3, 1), "general text is shared"
    sizes = study(place, "sizes", study=given)
    assert sizes.outcome is not None
    small, large = (row["parameters"] for row in sizes.outcome.rows)
    assert small < large
    assert sizes.counts.made["corpora"] == 0, "one tokenizer, so the corpora are those of the study before"
    assert sizes.counts.made["base scores"] == 1
