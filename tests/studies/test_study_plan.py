"""A study before anything is computed: its members' recipes, what they share, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_texts import recipe

import small_run
from onward.artifact import Folders
from onward.cli.studies import StudyName
from onward.errors import UserError
from onward.pipeline import Run
from onward.recipe import Recipe, load_recipe
from onward.signals import Interrupted
from onward.studies import STUDIES, StudyPlan, collecting, planned, run_study
from onward.studies.budgets import looked_at, training_tokens
from onward.studies.execution import Execution
from onward.studies.kinds import kind_of
from onward.studies.member import members_of, sharing
from onward.studies.variants import variants_of


def plan_of(place: Path, study: str, whole: Recipe | None = None, **how: Any) -> StudyPlan:
    folders = Folders(place / "cache", place / "runs")
    return planned(study, whole or small_run.recipe(place, training__stages=[48_000]), folders=folders, **how)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_inputs(tmp_path_factory.mktemp("plans") / "inputs")


def test_the_command_knows_every_study() -> None:
    assert tuple(name.value for name in StudyName) == STUDIES


@pytest.mark.parametrize("study", ["pilot", "tokens", "remedies", "rates"])
def test_every_member_is_a_recipe_that_loads_and_says_what_it_is(place: Path, study: str) -> None:
    plan = plan_of(place, study, seeds=2)
    names = [member.name for member in plan.members]
    assert len(set(names)) == len(names) == 2 * len(plan.variants)
    for member in plan.members:
        assert load_recipe(plan.recipe_file(member)) == member.recipe
        assert member.name == f"{member.variant.name}-seed{member.seed}"
        assert member.recipe.training.seed == 5 + member.seed, "the recipe's seed is 5"
        assert member.recipe.seed == 5, "the same held-out text, the same bootstrap"
        assert member.recipe.evaluation.tasks == ()


def test_no_text_of_a_member_holds_items_that_the_recipe_scores(place: Path) -> None:
    scored = small_run.recipe(place, training__stages=[48_000], evaluation__tasks=["piqa"])
    own = {"tasks": ["arc_easy"]}
    named = small_run.recipe(place, training__stages=[48_000], evaluation__tasks=["piqa"], general__contamination=own)
    for whole, general in ((scored, ("piqa",)), (named, ("arc_easy",))):
        for member in plan_of(place, "remedies", whole).members:
            for name, corpus in member.recipe.texts().items():
                assert corpus.contamination is not None
                assert corpus.contamination.tasks == (general if name == "general" else ("piqa",)), name


def test_the_grid_of_remedies_holds_every_remedy_and_its_controls(place: Path) -> None:
    plan = plan_of(place, "remedies")
    by_name = {member.variant.name: member.recipe.training for member in plan.members}
    assert len(by_name) >= 12
    assert by_name["none"].forgetting.replay is None
    shares = {name: dict(training.forgetting.replayed) for name, training in by_name.items()}
    for percent in (1, 5, 10):
        assert {corpus: 100 * share for corpus, share in shares[f"replay-{percent}"].items()} == {"general": percent}
        assert {corpus: 100 * share for corpus, share in shares[f"self-{percent}"].items()} == {"self": percent}
    strengths = [by_name[name].forgetting.ewc.strength for name in by_name if name.startswith("ewc-")]  # type: ignore[union-attr]
    assert len(strengths) >= 2
    assert all(shares[name] == {} for name in by_name if name.startswith(("ewc", "l2-sp", "freeze", "lora")))
    assert by_name["l2-sp-10"].forgetting.l2_sp == 10
    assert by_name["kl-1-replay-5"].forgetting.kl == 1
    assert by_name["freeze-half"].forgetting.freeze.model_dump() == {"embeddings": True, "blocks": 1}  # type: ignore[union-attr]
    assert by_name["lora"].forgetting.lora.learning_rate_ratio == 10  # type: ignore[union-attr]
    assert by_name["slow-embeddings"].optimizer.embedding_learning_rate == pytest.approx(1e-3)
    assert (by_name["control"].text, by_name["control"].forgetting.replay) == ("general", None)
    assert {(blend.of, blend.share) for blend in plan.blends} == {
        (of, share) for of in ("none", "replay-5") for share in (0.25, 0.5, 0.75)
    }


def test_members_of_one_text_want_the_same_of_it(place: Path) -> None:
    plan = plan_of(place, "remedies")
    texts = [member.recipe.texts() for member in plan.members]
    for name in ("domain", "general"):
        assert len({text[name].model_dump_json() for text in texts}) == 1, name
    samples = [text["self"] for text in texts if "self" in text]
    assert len(samples) == 3
    assert len({text.model_dump_json() for text in samples}) == 1
    assert samples[0].self_replay is not None
    assert samples[0].self_replay.tokens is not None
    assert plan_of(place, "rates").members[0].recipe.corpus.tokens is not None


def test_text_whose_recipe_says_how_much_keeps_it_and_other_text_has_its_own_size() -> None:
    unscored = {"held_out_tokens": None}
    short, long = recipe(evaluation=unscored), recipe(training={"stages": ["9M"]}, evaluation=unscored)
    first, second = sharing([short, long], ())
    assert first.corpus.tokens == second.corpus.tokens
    assert sharing([long, short], ()) == [second, first]
    assert first.corpus.tokens is not None
    assert first.corpus.tokens > 8_000_000
    fixed = recipe(corpus={"sources": [{"path": "d.jsonl"}], "tokens": "7M"})
    apart, other = sharing([fixed, long], ())
    assert (apart.corpus.tokens, other.corpus.tokens) == (7_000_000, second.corpus.tokens)


def test_budgets_are_those_asked_for_then_the_recipes_then_a_share_of_the_last_stage() -> None:
    whole = recipe(training={"stages": ["10M", "100M"], "sequence_tokens": 512, "batch_tokens": 4096})
    assert training_tokens("pilot", whole, None) == 5_000_000
    assert training_tokens("remedies", whole, None) == 7_000_000
    assert training_tokens("tokens", whole, None) == 100_000_000
    assert training_tokens("pilot", whole, 4096) == 4096
    short = recipe(training={"stages": ["1M"], "sequence_tokens": 512, "batch_tokens": 4096}, study={"tokens": "300k"})
    assert training_tokens("pilot", short, None) == 300_000
    bare = short.model_copy(update={"study": None})
    assert training_tokens("pilot", bare, None) == 50 * 4096, "five per cent would be 12 steps"
    assert training_tokens("rates", bare, None) == 40 * 4096
    with pytest.raises(UserError, match="shorter than a step"):
        training_tokens("pilot", bare, 4095)


def test_budgets_of_the_study_of_tokens_double() -> None:
    whole = recipe(training={"stages": ["1M"], "sequence_tokens": 512, "batch_tokens": 4096})
    assert looked_at(whole, 1_000_000) == (31_250, 62_500, 125_000, 250_000, 500_000, 1_000_000)
    named = recipe(training={"stages": ["1M"]}, study={"budgets": ["800k", "400k"]})
    assert looked_at(named, 1_000_000) == (400_000, 800_000, 1_000_000)


def test_one_training_is_looked_at_between_and_separate_ones_decay_each(place: Path) -> None:
    whole = small_run.recipe(place, training__stages=[9600, 48_000], study={"budgets": [4800, 9600, 24_000]})
    (one,) = plan_of(place, "tokens", whole).members
    assert (one.recipe.training.stages, one.recipe.evaluation.at) == ((48_000,), (4800, 9600, 24_000))
    apart = plan_of(place, "tokens", whole, separate=True)
    assert (apart.folder.name, plan_of(place, "tokens", whole).folder.name) == ("small-tokens-separate", "small-tokens")
    several = apart.members
    assert [member.recipe.training.stages for member in several] == [(4800,), (9600,), (24_000,), (48_000,)]
    assert {member.recipe.evaluation.held_out_tokens for member in (one, *several)} == {2000}, "compared on the same"


def test_scoring_a_short_training_costs_less_than_it() -> None:
    whole = recipe(training={"stages": ["100M"], "sequence_tokens": 512, "batch_tokens": 4096})
    scored = [dict(variants_of("pilot", whole, tokens)[0].changes)["evaluation.held_out_tokens"]
              for tokens in (20_000, 300_000, 9_000_000)]  # fmt: skip
    assert scored == [75_000, 150_000, 1_000_000], "the recipe's is 1M"


REFUSALS = [
    ("remedies", {"general": None, "training__forgetting": {"replay": None}}, "write `general:`"),
    ("domains", {}, "write `study: {domains:"),
    ("sizes", {}, "write `study: {models:"),
    ("sizes", {"study": {"models": {"a": {"base": "onward/tiny"}}}}, "two base models"),
    ("sizes", {"study": {"models": {"a": {"base": "onward/tiny"}, "b": {"base": "./none"}}}}, "study.models.b.base"),
    ("tokens", {"study": {"budgets": ["1M", "2k"]}}, "study.budgets"),
    ("tokens", {"training__stages": [960]}, "lengthen the last stage"),
    ("pilot", {"study": {"tokens": 100}}, "shorter than a step"),
    ("rates", {"study": {"batch_tokens": [24, 480, 99_000]}}, "got       24, 99,000"),
    ("remedies", {"study": {"remedies": {"frozen": {"freeze": 99}}}}, "where     study.remedies.frozen.freeze"),
    ("pilot", {"training__forgetting": {"freeze": 99}}, "where     training.forgetting.freeze"),
    ("remedies", {"study": {"remedies": {"a/b": {}}}}, "a member cannot have this name"),
    ("rates", {"study": {"batch_tokens": [24]}}, "where     study.batch_tokens"),
    ("rates", {"study": {"batch_tokens": [960, 480, "960"]}}, "got       960"),
    ("rates", {"study": {"learning_rates": [1e-3, 3e-3, 0.001]}}, "got       0.001"),
    ("remedies", {"study": {"remedies": {"a" * 201: {}}}}, "at most 200 letters"),
    ("remedies", {"study": {"blends": ["25%", "100%"]}}, "got       100%"),
    ("remedies", {"study": {"blends": [0]}}, "got       0%"),
    ("remedies", {"study": {"remedies": {"none": {}, "blend-50-of-none": {}}}}, "this name is that of a blend"),
]


@pytest.mark.parametrize(("study", "changes", "told"), REFUSALS)
def test_a_recipe_that_lacks_what_a_study_varies_is_refused(
    place: Path, study: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(place, study, small_run.recipe(place, **changes))
    assert told in str(caught.value)
    assert not (place / "runs" / f"small-{study}" / "members").exists()


def finished(plan: StudyPlan, member: int = 0, recipe: Recipe | None = None) -> Path:
    """Leave what a member leaves that was trained and scored; return its folder."""
    folder = plan.runs / plan.members[member].name
    scored = folder / "scores" / "tokens-000000960" / "manifest.json"
    scored.parent.mkdir(parents=True)
    scored.write_text("{}", encoding="utf-8")
    content = (recipe or plan.members[member].recipe).model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("left", ["nothing", "another"])
def test_what_was_run_is_told_by_the_members_though_the_recipes_of_the_study_are_gone(place: Path, left: str) -> None:
    def again(tokens: int) -> StudyPlan:
        return plan_of(place, "pilot", small_run.recipe(place, name=left, training__stages=[48_000]), tokens=tokens)

    plan = again(4800)
    folder, copies = finished(plan), plan.folder / "recipes"
    if left == "nothing":
        shutil.rmtree(copies)
    else:  # as older versions left them after a call with another recipe
        copy = plan.recipe_file(plan.members[0])
        copy.write_text(copy.read_text(encoding="utf-8").replace("4800", "9600"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        again(9600)
    assert "training.stages: was [4800], is [9600]" in str(caught.value.got)
    assert caught.value.where == str(folder / "recipe.yaml")
    assert again(4800).recipe_file(plan.members[0]).exists(), "written anew"


def test_the_longest_name_that_a_member_may_have_is_one_that_a_file_may_have(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Run, "score_base", broken)
    monkeypatch.setattr(collecting, "done_places", broken)
    study = {"tokens": 960, "remedies": {"a" * 200: {"replay": None}}}
    plan = plan_of(place, "remedies", small_run.recipe(place, name="long", training__stages=[48_000], study=study))
    result = run_study(plan, workers=1)
    assert f"blends-of-{'a' * 200}-seed0" in {failure.member for failure in result.failures}
    assert all(failure.traceback.exists() and failure.message == "a defect" for failure in result.failures)


def test_a_member_that_needs_more_text_than_a_begun_study_is_told_why(place: Path) -> None:
    study: dict[str, Any] = {"tokens": 24_000, "remedies": {"none": {"replay": None}, "some": {"replay": "9%"}}}
    changes: dict[str, Any] = {"name": "grown", "training__stages": [48_000]}
    begun = plan_of(place, "remedies", small_run.recipe(place, **changes, study=study))
    size = begun.members[0].recipe.general.tokens  # type: ignore[union-attr]
    scored = begun.runs / "none-seed0" / "scores" / "tokens-000024000" / "manifest.json"
    scored.parent.mkdir(parents=True)
    scored.write_text("{}", encoding="utf-8")
    study["remedies"]["ewc"] = {"replay": None, "ewc": {"strength": 1, "tokens": "90k"}}  # the control reads 24k
    with pytest.raises(UserError) as caught:
        plan_of(place, "remedies", small_run.recipe(place, **changes, study=study, evaluation__held_out_tokens=100))
    assert "evaluation.held_out_tokens" in str(caught.value), "another recipe is told of as before"
    with pytest.raises(UserError) as caught:
        plan_of(place, "remedies", small_run.recipe(place, **changes, study=study))
    assert "as large as the hungriest needs" in str(caught.value)
    assert f"general.tokens: {size}" in str(caught.value.todo)
    # What the message says to do is enough.
    kept = small_run.recipe(place, **changes, study=study, general__tokens=size)
    assert plan_of(place, "remedies", kept).members[-2].name == "ewc-seed0"


def test_a_study_under_way_keeps_its_recipes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_run.recipe(place, name="alone", training__stages=[48_000])
    plan = plan_of(place, "pilot", whole, tokens=4800)
    file = plan.recipe_file(plan.members[0])
    plan_of(place, "pilot", whole, tokens=9600)  # nothing was computed that it could contradict

    def under_way(execution: Execution) -> None:
        assert load_recipe(file) == plan.members[0].recipe, "what is run is what is written"
        with pytest.raises(UserError, match="another process is running this study") as caught:
            plan_of(place, "pilot", whole, tokens=9600)
        assert caught.value.where == str(plan.folder)
        assert load_recipe(file) == plan.members[0].recipe
        raise Interrupted(15, 1)

    monkeypatch.setattr(Execution, "all", under_way)
    for _ in range(2):  # the first has let go of it
        with pytest.raises(Interrupted):
            run_study(plan)


def test_what_is_separate_and_what_is_no_study_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="separate budgets"):
        plan_of(place, "pilot", separate=True)
    with pytest.raises(UserError, match="no such study"):
        plan_of(place, "pilots")


def test_the_rates_around_a_rate_hold_it_as_it_is_written(place: Path) -> None:
    recipe = small_run.recipe(place, training__optimizer={"learning_rate": 1.25e-4})
    plan = plan_of(place, "rates", recipe)
    rates = {each.at for each in plan.variants}
    assert len(rates) == 5
    assert 1.25e-4 in rates


def test_rates_that_differ_late_have_names_of_their_own(place: Path) -> None:
    study = {"learning_rates": [0.00100000001, 1e-3, 1e-5, 1], "batch_tokens": [480]}
    plan = plan_of(place, "rates", small_run.recipe(place, training__stages=[48_000], study=study))
    assert [(each.name, each.words) for each in plan.variants] == [
        (f"rate-{rate}-batch-480", f"{rate}, 480") for rate in ("1e-05", "0.001", "0.00100000001", "1")
    ]
    assert [member.recipe.training.optimizer.learning_rate for member in plan.members] == sorted(
        study["learning_rates"]
    )


def test_named_remedies_take_the_place_of_the_grid(place: Path) -> None:
    study = {"remedies": {"none": {"replay": None}, "mine-1": {"replay": "7%"}}, "blends": ["40%"]}
    plan = plan_of(place, "remedies", small_run.recipe(place, study=study))
    assert [(each.name, each.family) for each in plan.variants] == [
        ("none", "none"), ("mine-1", "replay"), ("control", "control"),
    ]  # fmt: skip
    assert plan.members[-1].recipe.training.text == "general"
    assert [(blend.of, blend.share) for blend in plan.blends] == [("none", 0.4)]
    study["blends"] = ["50%", 0.5, 0.25]
    doubled = plan_of(place, "remedies", small_run.recipe(place, study=study))
    assert [blend.name for blend in doubled.blends] == ["blend-50-of-none", "blend-25-of-none"]
    study["remedies"] = {"control": {"replay": None}, "mine": {"replay": "7%"}}
    with pytest.raises(UserError, match="this name is that of the control"):  # it would be told of as the control
        plan_of(place, "remedies", small_run.recipe(place, study=study))


KINDS = [
    ({"replay": None}, "none", "x"),
    ({"replay": None, "ewc": 0, "l2_sp": 0, "freeze": 0}, "none", "x"),
    ({}, "replay", "x (replay 5 %)"),
    ({"replay": "self"}, "self replay", "x (self replay 5 %)"),
    ({"replay": None, "ewc": 5}, "EWC", "x"),
    ({"ewc": 5}, "EWC and replay", "x (replay 5 %)"),
    ({"replay": {"self": "2%", "general": "1.5%"}, "kl": 1}, "KL, self replay and replay",
     "x (self replay 2 % and replay 1.5 %)"),
    ({"replay": None, "l2_sp": 1, "freeze": "embeddings"}, "L2-SP and freezing", "x"),
    ({"replay": None, "freeze": 1, "lora": {}}, "freezing and LoRA", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("forgetting", "kind", "words"), KINDS)
def test_the_kind_of_a_named_remedy_is_told_from_what_it_holds(
    place: Path, forgetting: dict[str, Any], kind: str, words: str
) -> None:
    plan = plan_of(place, "remedies", small_run.recipe(place, study={"remedies": {"x": forgetting}}))
    assert (plan.variants[0].family, plan.variants[0].words) == (kind, words)


def test_the_grid_has_the_kinds_of_what_its_members_hold(place: Path) -> None:
    plan = plan_of(place, "remedies")
    for member in plan.members:
        if member.variant.name not in ("slow-embeddings", "control"):
            assert member.variant.family == kind_of(member.recipe.training.forgetting), member.name


def test_a_member_whose_changes_contradict_is_told_of() -> None:
    whole = recipe()
    (pilot,) = variants_of("pilot", whole, 100_000)
    broken = type(pilot)(pilot.name, pilot.words, {**pilot.changes, "training.forgetting": {"replay": None, "kl": 1.0}})
    with pytest.raises(UserError, match="kl is measured on replayed text"):
        members_of(whole, [broken], 1)
