"""The plan of a whole recipe: what it foresees, what it measures, what it refuses, each with a way out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import small_run
from onward.artifact import read_manifest
from onward.cli import app
from onward.corpus.preparation import Preparation, plan_preparation
from onward.corpus.prepare import make
from onward.errors import UserError
from onward.model.shape import read_shape
from onward.model.source import ModelSource, describe
from onward.model.tokenizer import read_tokenizer
from onward.pipeline import Run
from onward.plan import Foresight, foresee, plan_run, wanted_tokens
from onward.plan.budget import round_budget
from onward.recipe import Forgetting, Recipe, Training
from onward.recipe.quantities import parse_tokens
from onward.training import hardware as machines
from onward.training.remedies import parts_of

PEAK = 1e11


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the matrix products that are timed on a CPU."""
    monkeypatch.setattr(machines, "measure_matmul_peak", lambda *_: PEAK)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return small_run.write_inputs(tmp_path)


def preparations(recipe: Recipe, place: Path) -> tuple[ModelSource, dict[str, Preparation]]:
    base = describe(place / "model")
    corpora = {"domain": recipe.corpus, "general": recipe.general}
    found = {
        role: plan_preparation(
            corpus,
            tokenizer=read_tokenizer(base.folder),
            sequence_tokens=recipe.training.sequence_tokens,
            wanted_tokens=wanted_tokens(role, corpus, recipe),
            seed=recipe.seed,
            folders=small_run.folders(place),
            label=role,
            model_fingerprint=base.fingerprint,
        )
        for role, corpus in corpora.items()
        if corpus is not None
    }
    return base, found


def foreseen(place: Path, hardware: str | None = None, measure: bool = False, **changes: Any) -> Foresight:
    recipe = small_run.recipe(place, **changes)
    base, found = preparations(recipe, place)
    folders = small_run.folders(place)
    return foresee(recipe, base=base, preparations=found, folders=folders, hardware=hardware, measure=measure)


def test_a_plan_foresees_what_the_run_then_computes(place: Path) -> None:
    before = foreseen(place)
    before.check()
    recipe = small_run.recipe(place)
    base, found = preparations(recipe, place)
    assert all(read_manifest(preparation.folder) is None for preparation in found.values()), "planning prepares nothing"
    domain, general = (make(preparation, None, None) for preparation in found.values())
    plan = plan_run(recipe, before.parameters, before.parameters, {"domain": domain, "general": general})
    after = foreseen(place)
    assert (before.stages, before.steps) == (plan.stages, plan.steps) == (after.stages, after.steps)
    assert [text.basis for text in before.texts] == ["estimated", "estimated"]
    assert [text.basis for text in after.texts] == ["prepared", "prepared"]
    for foresight, tolerance in ((before, 0.05), (after, 1e-9)):
        passes = [text.passes.value for text in foresight.texts]
        assert passes == pytest.approx([plan.domain_repetition, plan.general_repetition], rel=tolerance)
    assert after.disk.corpora == 0
    assert after.disk.checkpoints + after.disk.models == plan.disk_bytes
    assert before.parameters == plan.parameters
    assert base.name == before.model


def test_a_plan_for_this_machine_gives_hours_memory_and_disk(place: Path) -> None:
    found = foreseen(place)
    assert found.machine.here
    assert found.machine.peak_flops == PEAK or found.machine.kind == "cuda"
    assert found.memory is not None
    assert found.memory.chosen is not None
    chosen = found.memory.strategies[found.memory.chosen]
    assert chosen.fits
    assert 0 < chosen.peak_bytes <= found.memory.budget_bytes
    assert found.training is not None
    assert 0 < found.training.seconds.low < found.training.seconds.high
    assert found.training.stage_seconds[-1] == found.training.seconds
    assert found.evaluation.models == 3
    assert found.disk.total > 0
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["name"] == "small"


def test_models_between_the_stages_and_questions_are_part_of_the_plan(place: Path) -> None:
    plain = foreseen(place)
    found = foreseen(place, evaluation__at=[480, 960, 1920, 480], evaluation__cloze=30)
    assert (plain.evaluation.models, found.evaluation.models) == (3, 5), "1,920 tokens are a stage's end"
    questions = found.evaluation.cloze_items
    assert (found.evaluation.between, found.evaluation.cloze_wanted) == (2, 30)
    assert found.evaluation.requests == 4 * questions
    assert questions < 30
    (note,) = (note for note in found.notes if note.startswith("evaluation.cloze"))
    assert "30 questions are asked for" in note
    assert f"at most some {questions}; with fewer than 40 the run would end before training" in note
    assert not any(note.startswith("evaluation.cloze") for note in plain.notes)
    assert found.disk.models == 2 * plain.disk.models
    assert found.disk.checkpoints == plain.disk.checkpoints
    recipe = small_run.recipe(place, evaluation__at=[480, 960, 1920, 480])
    _, preparations_found = preparations(recipe, place)
    domain, general = (make(preparation, None, None) for preparation in preparations_found.values())
    plan = plan_run(recipe, found.parameters, found.parameters, {"domain": domain, "general": general})
    assert plan.disk_bytes == found.disk.checkpoints + found.disk.models


def test_states_are_planned_as_large_as_what_is_trained(place: Path) -> None:
    plain, adapted = foreseen(place), foreseen(place, training__forgetting={"replay": "10%", "lora": {"rank": 2}})
    assert adapted.disk.models == plain.disk.models
    base, _ = preparations(small_run.recipe(place), place)
    trained = parts_of(read_shape(base), Forgetting.model_validate({"lora": {"rank": 2}})).trained
    assert 0 < trained < plain.parameters
    assert adapted.disk.checkpoints == pytest.approx(plain.disk.checkpoints * trained / plain.parameters)
    recipe = small_run.recipe(place, training__forgetting={"replay": "10%", "lora": {"rank": 2}})
    run = Run(recipe, folders=small_run.folders(place), workers=1)
    assert run.plan.disk_bytes == adapted.disk.checkpoints + adapted.disk.models


def test_a_machine_that_is_not_here_can_be_planned_for(place: Path) -> None:
    found = foreseen(place, hardware="8xh100")
    assert (found.machine.count, found.machine.kind, found.machine.here) == (8, "cuda", False)
    assert found.machine.peak_flops == pytest.approx(66.9e12), "the recipe asks for fp32"
    assert found.memory is not None
    assert found.memory.budget_bytes > 60 * 2**30


def test_hardware_that_is_not_known_is_answered_with_the_nearest_name(place: Path) -> None:
    with pytest.raises(UserError) as refused:
        foreseen(place, hardware="h1000")
    assert "h100" in str(refused.value.todo)


def test_only_this_machine_can_be_measured(place: Path) -> None:
    with pytest.raises(UserError, match="only this machine"):
        foreseen(place, hardware="h100", measure=True)


def test_a_few_real_steps_take_the_place_of_the_estimate(place: Path) -> None:
    found = foreseen(place, measure=True)
    assert found.timed is not None
    assert found.training is not None
    assert found.training.basis == "measured"
    assert found.training.seconds.value == pytest.approx(8 * found.timed.step_seconds.value)
    assert found.timed.peak_bytes > 0


def test_all_that_makes_a_run_impossible_is_said_at_once_with_ways_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    found = foreseen(place, training__stages=[1_000_000], training__memory=1_000_000)
    said = [str(problem) for problem in found.problems]
    assert len(said) == 4, said
    with pytest.raises(UserError) as refused:
        found.check()
    for part in ("training.stages, corpus", "training.stages, general", "the disk is too small", "memory"):
        assert part in str(refused.value)
    assert all(problem.todo for problem in found.problems)
    assert found.training is None
    assert found.memory is not None
    assert found.memory.chosen is None
    assert not any(option.fits for option in found.memory.strategies)


def test_the_budget_that_would_work_is_named_and_works(place: Path) -> None:
    (problem,) = foreseen(
        place, general=None, training__forgetting={"replay": None}, training__stages=[1_000_000]
    ).problems
    assert "at most, by a sample" in str(problem.got)
    budget = str(problem.todo).split("end the last stage at ")[1].split(" or less")[0]
    shorter = foreseen(place, general=None, training__forgetting={"replay": None}, training__stages=[budget])
    assert shorter.problems == ()


def test_two_short_texts_name_the_one_budget_that_works_for_both(place: Path) -> None:
    small_run.write_texts(place / "general.jsonl", 2, seed=2)
    changes: dict[str, Any] = {"general__held_out": {"sources": [{"path": str(place / "domain.jsonl")}]}}
    problems = foreseen(place, training__stages=[1920, 1_000_000], **changes).problems
    assert [str(problem.where).split(", ")[1] for problem in problems] == ["corpus", "general"]
    (named,) = {re.search(r"at (\S+) or less \(training.stages: \[(.*?)\]\)", str(p.todo)).groups() for p in problems}  # type: ignore[union-attr]
    assert named[1] == f"1.92k, {named[0]}"
    assert foreseen(place, training__stages=named[1].split(", "), **changes).problems == ()
    assert foreseen(place, training__stages=[1920, parse_tokens(named[0]) + 480], **changes).problems != ()


def test_sampled_text_of_a_fixed_length_that_is_too_short_says_so(place: Path) -> None:
    text = {"self_replay": {"tokens": 960, "document_tokens": 40}, "quality": "none", "held_out": {"share": "20%"}}
    (problem,) = foreseen(place, general=text, training__stages=[40_000]).problems
    assert problem.where == "training.stages, general"
    assert "from 768 to be sampled" in str(problem.got)
    assert str(problem.todo).startswith("leave out general.self_replay.tokens, ")


def test_a_shorter_run_leaves_out_the_stages_that_it_does_not_reach(place: Path) -> None:
    changes: dict[str, Any] = {"general": None, "training__forgetting": {"replay": None}}
    (problem,) = foreseen(place, training__stages=["900k", "1M"], **changes).problems
    named = re.search(r"at (\S+) or less \(training.stages: \[\1\]\)", str(problem.todo))
    assert named is not None, problem.todo


@pytest.mark.parametrize(("tokens", "rounded"), [(2_772_992, 2_770_000), (950_001_664, 950_000_000), (483, 483)])
def test_a_budget_is_rounded_down_to_three_digits(tokens: int, rounded: int) -> None:
    assert round_budget(tokens, Training(sequence_tokens=16, batch_tokens=480)) == rounded


def test_a_budget_of_one_step_stays_a_step() -> None:
    assert round_budget(65_536, Training(sequence_tokens=2048, batch_tokens=65_536)) == 65_536


def command(place: Path, **changes: Any) -> Any:
    (place / "small.yaml").write_text(yaml.safe_dump(small_run.content(place, **changes)))
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]
    return CliRunner().invoke(app, ["plan", str(place / "small.yaml"), *places])


def test_a_plan_that_works_leaves_its_picture_and_one_that_does_not_leaves_nothing(place: Path) -> None:
    result = command(place, training__stages=["1M"])
    assert result.exit_code == 2
    assert "the token budget is larger than the text allows" in result.stderr
    assert "learning" not in result.stdout
    assert not (place / "runs").exists()
    result = command(place, training__sequence_tokens=1000, training__batch_tokens=1000)
    assert result.exit_code == 2
    assert "longer than the model's context" in result.stderr
    assert not (place / "runs").exists()
    result = command(place)
    assert result.exit_code == 0, result.output
    assert [path.name for path in (place / "runs/small").iterdir()] == ["learning-rate.svg"]
    assert "learning-rate.svg" in "".join(result.stdout.split())


def test_a_plan_of_a_run_that_has_begun_is_refused_for_another_recipe(place: Path) -> None:
    (place / "runs/small/scores/base").mkdir(parents=True)
    (place / "runs/small/scores/base/manifest.json").write_text("{}")
    (place / "runs/small/recipe.yaml").write_text(yaml.safe_dump(small_run.content(place, seed=6)))
    result = command(place)
    assert result.exit_code == 2
    assert "was started with another recipe" in result.stderr


def test_months_without_a_gpu_are_said_clearly_and_are_no_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "count_gpus", lambda: 0)
    monkeypatch.setattr(machines, "measure_matmul_peak", lambda *_: 1e3)
    found = foreseen(place)
    assert found.problems == ()
    (note,) = (note for note in found.notes if "no GPU" in note)
    assert "--hardware h100" in note


def test_a_source_that_is_never_reached_is_named(place: Path) -> None:
    small_run.write_texts(place / "more.jsonl", 50, seed=3)
    paths = [{"path": str(place / name)} for name in ("domain.jsonl", "more.jsonl")]
    found = foreseen(place, corpus__sources=paths, corpus__tokens=2000, training__stages=[1920])
    assert any("more.jsonl is not read" in note for note in found.notes)
    assert not any("domain.jsonl is not read" in note for note in found.notes)


def test_a_share_that_holds_nothing_out_is_refused_before_it_is_prepared(place: Path) -> None:
    def said() -> list[str]:
        return [problem.what for problem in foreseen(place).problems if "held out" in problem.what]

    assert not said()
    small_run.write_texts(place / "domain.jsonl", 2, seed=2)
    assert said() == ["no domain text would be held out to score"]
