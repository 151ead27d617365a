"""Runs that replay more than general text: every corpus by its name, from the recipe to the report."""

import json
from pathlib import Path
from typing import Any

import pytest

import small_run
from onward.artifact import Folders, flatten
from onward.corpus.preparation import Preparation
from onward.pipeline import Run, RunResult
from onward.progress import Silent
from onward.recipe import SelfReplay
from onward.training.record import read_rows
from onward.verification.verify import _Trials

WEB = {"quality": "none", "minimum_bytes_per_token": None}


def recipe_of(place: Path, **changes: Any) -> Any:
    web = {"sources": [{"path": str(place / "web.jsonl")}], **WEB}
    forgetting = {"replay": {"general": "10%", "web": "20%"}}
    return small_run.recipe(place, **({"training__forgetting": forgetting, "corpora": {"web": web}} | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    place = small_run.write_inputs(tmp_path_factory.mktemp("run"))
    small_run.write_texts(place / "web.jsonl", 20, seed=3)
    run = Run(recipe_of(place), folders=small_run.folders(place), workers=1)
    run.foresee().check()
    return place, run.all()


def test_every_corpus_is_planned_recorded_and_reported_by_its_name(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    plan, rows = result.plan, read_rows(result.folder / "metrics.jsonl")
    assert (plan.replay_share, plan.replay) == ("30%", "10% general text and 20% web")
    assert (plan.domain_sequences_needed, plan.general_sequences_needed) == (56, 8)
    assert plan.other_texts["web"].sequences_needed == 16
    assert sum(row["replay_sequences"] for row in rows) == 24
    kept = json.loads((result.folder / "artifacts.json").read_bytes())
    assert [*kept["corpora"]] == ["domain", "general", "web"]
    manifest = json.loads((result.stages[-1].folder / "manifest.json").read_bytes())
    assert manifest["made_from"]["corpora.web"] == Path(kept["corpora"]["web"]).name
    page = result.report.markdown.read_text()
    assert "| replayed sequences | 10% general text and 20% web |" in page
    assert "| passes over web text |" in page
    assert "### web" in page


def test_only_domain_and_general_text_are_scored(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    assert [text.corpus for text in result.base_scores.held_out] == ["domain", "general"]
    wanted = json.loads((result.folder / "artifacts.json").read_bytes())["prepared_for"]
    # 16 sequences of 48 tokens; what is scored is read until its held-out part is long enough.
    assert wanted == {"domain": 10_000, "general": 10_000, "web": 16 * 48}


def test_without_general_text_forgetting_is_said_not_to_be_measured(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    small_run.write_texts(place / "web.jsonl", 20, seed=3)
    alone = recipe_of(place, general=None, training__forgetting={"replay": {"web": "20%"}})
    found = Run(alone, folders=small_run.folders(place), workers=1, is_plan=True).foresee()
    found.check()
    assert [text.role for text in found.texts] == ["domain", "web"]
    assert any("forgetting is not measured" in note for note in found.notes)
    assert found.replay == "20% web"


def test_a_replayed_corpus_needs_no_held_out_text(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    small_run.write_texts(place / "web.jsonl", 20, seed=3)
    web = {"sources": [{"path": str(place / "web.jsonl")}], "held_out": {"share": "0%"}, **WEB}
    notes: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    run = Run(recipe_of(place, corpora={"web": web}), folders=small_run.folders(place), workers=1, progress=Told())
    run.foresee().check()
    assert run.corpora.others["web"].ledger.held_out.documents == 0
    assert not [note for note in notes if "held-out share" in note], "nothing reads it"
    assert [*run.corpora.scored()] == ["domain", "general"]


def test_a_misspelt_source_of_replayed_text_is_found_before_anything_is_made(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    with pytest.raises(Exception, match=r"web\.jsonl"):
        _ = Run(recipe_of(place), folders=small_run.folders(place), workers=1).corpora
    assert not (place / "cache" / "corpora").exists()


def test_a_text_too_short_to_replay_is_named_where_the_recipe_writes_it(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    small_run.write_texts(place / "web.jsonl", 2, seed=3)
    once = recipe_of(place, training__maximum_repetition=1)
    found = Run(once, folders=small_run.folders(place), workers=1, is_plan=True).foresee()
    assert [problem.where for problem in found.problems] == ["training.stages, corpora.web"]


def test_a_verification_stays_with_the_corpora_of_the_run(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    place, _ = finished
    run = Run(recipe_of(place), folders=small_run.folders(place), workers=1)
    trials = _Trials(run, tmp_path, 2, None)  # type: ignore[arg-type]
    again = Run(trials.recipe, folders=Folders(place / "cache", tmp_path / "runs"), workers=1)
    assert again.corpora.paths() == run.corpora.paths()
    assert again.recipe.corpora["web"].tokens == 16 * 48


def test_samples_of_the_base_are_made_to_measure_and_remembered(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    replayed = {"training__forgetting": {"replay": "self"}, "training__stages": ["200k"]}
    run = Run(small_run.recipe(place, general=None, **replayed), folders=small_run.folders(place), is_plan=True)
    found = run.foresee()
    (samples,) = (text for text in found.texts if text.role == "self")
    assert samples.basis == "to be sampled"
    # 417 steps of 10 sequences, 5 % of them of 48 tokens: read once they would be 9,984 tokens; 20,000 are the least.
    assert run._preparing.wanted["self"] == 208 * 48
    assert run._preparing.wanted["self:sampled"] == 20_000


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_samples_are_drawn_where_training_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, device: str
) -> None:
    class Reached(Exception):
        pass

    def load(base: Any, dtype: Any, on: str) -> None:
        raise Reached(on, dtype)

    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("onward.model.generate.sampling_dtype", lambda on: f"dtype of {on}")
    monkeypatch.setattr("onward.model.load.load_model", load)
    run = Run(small_run.recipe(small_run.write_inputs(tmp_path)), folders=small_run.folders(tmp_path))
    with pytest.raises(Reached) as reached:
        next(run._preparing._generate(SelfReplay(tokens=100), 0, 0, 0))
    assert reached.value.args == (device, f"dtype of {device}")


def test_the_seed_of_training_leaves_the_corpora_as_they_are(finished: tuple[Path, RunResult]) -> None:
    place, result = finished
    other = Run(recipe_of(place, name="other", training__seed=9), folders=small_run.folders(place), workers=1)
    kept = json.loads((result.folder / "artifacts.json").read_bytes())
    assert {name: str(path) for name, path in other.corpora.paths().items()} == kept["corpora"]
    stages = other.train()
    manifest = json.loads((stages[-1].folder / "manifest.json").read_bytes())
    assert manifest["made_from"]["seed"] == 9
    first, second = (read_rows(folder / "metrics.jsonl") for folder in (result.folder, other.folder))
    assert [row["batch"] for row in first] != [row["batch"] for row in second]


def test_samples_of_a_version_with_fewer_knobs_are_found(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)

    def planned(**knobs: Any) -> Preparation:
        corpora = {"self": {"self_replay": knobs, "quality": None}}
        recipe = small_run.recipe(place, training__forgetting={"replay": "self"}, corpora=corpora)
        run = Run(recipe, folders=small_run.folders(place), is_plan=True)
        return run._preparing.planned("self", None)

    plain, unused, drawn = planned(), planned(length_spread=3.0), planned(median_tokens=30)
    knobs = {"document_tokens", "temperature", "tokens", "top_p"}
    assert {name.rpartition(".")[2] for name in flatten(plain.made_from) if "self_replay." in name} == knobs
    assert plain.folder == unused.folder != drawn.folder


def test_items_may_be_kept_out_of_the_text_without_being_scored(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    bench = place / "bench" / "piqa"
    bench.mkdir(parents=True)
    goal, right = "cross the river between the old mill and the far road at night", "take a ship and a lamp"
    (bench / "valid.jsonl").write_text(json.dumps({"goal": goal, "sol1": right, "sol2": "take a road"}) + "\n")
    (bench / "valid-labels.lst").write_text("0\n")
    (bench.parent / "SUBSET").touch()
    planted = json.dumps({"id": "planted", "text": f"river mill\n{goal} {right}\nlamp road"})
    (place / "domain.jsonl").write_text(planted + "\n" + (place / "domain.jsonl").read_text())
    data = {"evaluation__data": str(bench.parent)}
    looked_for = small_run.recipe(place, **data, corpus__contamination={"tasks": ["piqa"]})
    corpora = Run(looked_for, folders=small_run.folders(place), workers=1).corpora
    assert corpora.domain.ledger.contaminated.documents == 1
    assert corpora.general is not None
    assert corpora.general.ledger.contaminated.documents == 0
    scored = small_run.recipe(place, **data, evaluation__tasks=["piqa"], name="scored")
    assert Run(scored, folders=small_run.folders(place), workers=1).planned_domain.folder == corpora.domain.path
    with pytest.raises(Exception, match="piqaa"):
        _ = Run(small_run.recipe(place, name="other", corpus__contamination={"tasks": ["piqaa"]}),
                folders=small_run.folders(place), workers=1).corpora  # fmt: skip
