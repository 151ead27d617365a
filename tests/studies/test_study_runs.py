"""Studies that are run, on a model and texts so small that it takes seconds."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from small_study import Heard, study

import small_run
from onward.artifact import locked, read_manifest
from onward.errors import UserError
from onward.pipeline import Run
from onward.reporting.markdown import plain
from onward.signals import Interrupted
from onward.studies import StudyResult, collecting, planned, run_study
from onward.studies.scored import read_texts
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


def test_where_nothing_can_be_read_the_earlier_tables_stay_and_the_page_says_whose_they_are(
    copied: Path, studied: tuple[Path, StudyResult]
) -> None:
    folder, (_, first) = copied / "runs" / "small-remedies", studied
    tables = ("table.csv", "pairs.csv", "table.md", "plot.svg")
    before = {name: (folder / name).read_bytes() for name in tables}
    shutil.rmtree(copied / "cache")
    (copied / "domain.jsonl").rename(copied / "elsewhere.jsonl")
    for _ in range(2):  # the second call knows what the first found of an earlier one
        heard = Heard()
        result = study(copied, "remedies", progress=heard, **GRID)
        assert (result.outcome, result.code) == (None, 2)
        told = [failure.member for failure in result.failures]
        assert len(told) == len(set(told)) == 8, "each member once, its scores not again"
        assert not any(name.startswith(("scores-of", "blends-of")) for name in told)
        assert {name: (folder / name).read_bytes() for name in tables} == before
        words = "Nothing could be read this time; table.csv, pairs.csv, table.md and plot.svg are of an earlier run."
        assert heard.notes[-1] == words
        page = (folder / "findings.md").read_text(encoding="utf-8")
        assert first.outcome is not None
        for text in ("**No member could be read.**", words, first.outcome.headline, first.outcome.findings[0]):
            assert plain(text.strip("*")) in page
        written = json.loads((folder / "study.json").read_bytes())
        assert (written["headline"], written["rows"]) == (None, [])
        assert written["earlier"]["rows"] == [dict(row) for row in first.outcome.rows]
    (copied / "elsewhere.jsonl").rename(copied / "domain.jsonl")
    mended = study(copied, "remedies", **GRID)
    assert mended.outcome is not None
    assert mended.outcome.headline == first.outcome.headline
    assert "earlier run" not in (folder / "findings.md").read_text(encoding="utf-8")
    assert json.loads((folder / "study.json").read_bytes())["earlier"] is None


def test_where_nothing_was_ever_compared_the_page_says_that_no_member_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")

    def broken(run: Run) -> Any:
        raise UserError("no base")

    monkeypatch.setattr(Run, "score_base", broken)
    result = study(place, "remedies", **GRID)
    assert "No member was made." in (result.folder / "findings.md").read_text(encoding="utf-8")
    assert result.outcome is None
    written = {path.name for path in result.folder.iterdir() if path.is_file()}
    assert written == FILES - {"table.csv", "pairs.csv", "table.md", "plot.svg"}


def test_what_another_process_makes_in_the_cache_is_waited_for(copied: Path) -> None:
    shared = [path for kind in ("corpora", "scores") for path in (copied / "cache" / kind).iterdir()]
    held = {path: ExitStack() for path in shared}
    for path, lock in held.items():
        lock.enter_context(locked(path))
        path.rename(copied / f"{path.name} of the other")

    def ended(text: str) -> None:
        if "waiting for it" not in text:
            return
        # What is waited for is the next that is missing: domain, general text, the base's scores.
        for path, lock in held.items():
            (copied / f"{path.name} of the other").rename(path)
            lock.close()
        held.clear()

    heard = Heard(ended)
    again = study(copied, "remedies", progress=heard, **GRID)
    assert [note for note in heard.notes if "another process" in note] == [
        "another process prepares the same text (corpus): waiting for it"
    ]
    assert {failure.member for failure in again.failures} == {"self-10-seed0", "self-10-seed1"}, "as before"


def test_the_scores_of_a_base_are_waited_for_and_those_of_a_run_are_not(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    heard = Heard(lambda text: held.close() if "waiting for it" in text else None)
    run = Run(small_run.recipe(place), folders=small_run.folders(place), progress=heard, workers=1)
    run.score_base()
    (scores,) = (place / "cache" / "scores").iterdir()
    shutil.rmtree(scores)
    held = ExitStack()
    held.enter_context(locked(scores))
    run.score_base()
    assert heard.notes[-1] == "another process scores the same model on the same: waiting for it"
    assert read_manifest(scores) is not None, "the other had left nothing"
    (stage,) = run.train(until_stage=1)
    with (
        locked(run.folder / "scores" / stage.folder.name),
        pytest.raises(UserError, match="another process is making this"),
    ):
        run.score_stage(stage)


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


@pytest.mark.parametrize("content", ['{"model": "half', "[]"], ids=["cut", "no-record"])
def test_a_damaged_record_of_a_member_says_what_to_remove_and_that_helps(copied: Path, content: str) -> None:
    record = copied / "runs" / "small-remedies" / "members" / "none-seed1" / "artifacts.json"
    whole = json.loads(record.read_bytes())
    record.write_text(content, encoding="utf-8")
    result = study(copied, "remedies", **GRID)
    assert result.code == 2
    (failure,) = (each for each in result.failures if "none-seed1" in each.member)
    assert "what the run says of its shared artifacts is damaged" in failure.message
    assert f"remove {record} and run again" in failure.message
    assert result.outcome is not None
    assert {row["member"]: row["seeds"] for row in result.outcome.rows}["none"] == 2, "its scores are there"
    record.unlink()
    again = study(copied, "remedies", **GRID)
    assert {failure.member for failure in again.failures} == {"self-10-seed0", "self-10-seed1"}
    assert json.loads(record.read_bytes()) == whole
    assert again.counts.made["trained members"] == 0


def test_what_cannot_be_read_of_a_failed_member_is_told_once_and_defects_all_the_same(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run) -> Any:
        raise UserError("no base")

    members = copied / "runs" / "small-remedies" / "members"
    (members / "none-seed0" / "plan.json").unlink()
    (members / "none-seed1" / "artifacts.json").unlink()
    monkeypatch.setattr(Run, "score_base", broken)
    result = study(copied, "remedies", **GRID)
    assert len(result.failures) == 8
    assert not any(failure.member.startswith("scores-of") for failure in result.failures)
    assert result.outcome is not None, "what there is of the others is compared"
    assert {row["member"] for row in result.outcome.rows} == {"replay-10", "control"}
    monkeypatch.setattr(collecting, "read_texts", lambda *_: 1 / 0)
    told = {failure.member for failure in study(copied, "remedies", **GRID).failures if not failure.is_users}
    assert {"scores-of-none-seed0", "scores-of-control-seed1"} <= told


def test_scores_that_are_gone_are_missed_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the base's scores are missing") as caught:
        read_texts(tmp_path / "base", tmp_path / "scores", 0)
    assert caught.value.where == str(tmp_path / "base")


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
    heard = Heard()
    notes = heard.notes
    run_study(plan, progress=heard, workers=1)
    assert notes[0] == "4 trainings of 960 tokens each, one after the other"
    told = [note for note in notes if re.fullmatch(r"about \d+ .*for the other 3 trainings.*", note)]
    assert len(told) == 1
    assert notes.index(told[0]) < next(n for n, note in enumerate(notes) if note.startswith("member 2 of 4"))
    notes.clear()
    run_study(plan, progress=heard, workers=1)
    assert not any("about" in note for note in notes), "nothing is left to train"
