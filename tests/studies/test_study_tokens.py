"""The study of tokens: budgets in whole steps, one training of one stage, and what is said of where gains halve."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_texts import measured, recipe, text, the_course

import small_run
from onward.artifact import Folders
from onward.errors import UserError
from onward.recipe import Recipe
from onward.statistics import Interval
from onward.studies import budgets_compared, planned, side_by_side
from onward.studies.budgets import budget_words, looked_at, trained_tokens, training_tokens
from onward.studies.inflection import Marginal, inflection
from onward.studies.outcome import Measured, Outcome
from onward.training.stages import points_of, stages_of

SMALL = {"sequence_tokens": 48, "batch_tokens": 500}
"""Steps of 480 tokens, since they hold whole sequences alone."""


def whole(stages: list[Any], budgets: list[Any] | None = None, **training: Any) -> Recipe:
    study = {} if budgets is None else {"study": {"budgets": budgets}}
    return recipe(training={**SMALL, "stages": stages, **training}, **study)


def one_training(changes: dict[int, float], **training: Any) -> Outcome:
    points = {tokens: {"domain": text(change, noise=0.0005, seed=tokens)} for tokens, change in changes.items()}
    own = whole([max(changes)], **training)
    each = measured("run", 0, 0)
    return budgets_compared.outcome([Measured(each.variant, own, each.runs, {}, 10, points)], is_separate=False)


def separate(changes: dict[int, float], **training: Any) -> Outcome:
    found = []
    for tokens, change in changes.items():
        texts = {"domain": text(change, noise=0.0005, seed=tokens)}
        each = measured(f"tokens-{tokens}", 0, 0)
        own = whole([tokens], **training)
        found.append(Measured(each.variant, own, each.runs, texts, 10, {tokens: texts}))
    return budgets_compared.outcome(found, is_separate=True)


def test_what_is_trained_for_a_budget_is_what_its_steps_hold(tmp_path: Path) -> None:
    training = whole([960, 4801]).training
    places = (*stages_of(training, 0, tmp_path), *points_of(training, [1, 970, 1440], 0, tmp_path))
    assert {place.tokens: place.steps * 480 for place in places} == {
        place.tokens: trained_tokens(training, place.tokens) for place in places
    }
    assert trained_tokens(training, 970) == 1440


@pytest.mark.parametrize("study", [one_training, separate])
def test_gains_are_per_token_trained(study: Any) -> None:
    found = study({960: -0.2, 970: -0.3, 4800: -0.4})
    assert [(row["tokens"], row["asked_tokens"]) for row in found.rows] == [(960, 960), (1440, 970), (4800, 4800)]
    gains = [row["gain_per_100M"] for row in found.rows]
    assert gains == pytest.approx([1e8 * 0.2 / 960, 1e8 * 0.1 / 480, 1e8 * 0.1 / 3360], rel=0.02)
    assert [row[0] for row in found.table.rows] == ["960", "1.44k", "4.8k"], "what was trained"
    assert "after 1.44k tokens" in found.headline
    assert "970" not in " ".join([found.headline, *found.findings])


def test_domains_and_sizes_count_the_tokens_trained() -> None:
    each = measured("law", -0.2, 0.01)
    found = side_by_side.outcome([Measured(each.variant, whole([970]), each.runs, each.texts, 1440)], "domains")
    (row,) = found.rows
    assert row["tokens"] == 1440
    assert row["gain_per_1M_tokens"] == pytest.approx(1e6 * 0.2 / 1440, rel=0.01)
    assert row["gain_per_token_per_parameter"] == pytest.approx(0.2, rel=0.01)
    assert found.table.rows[0][2] == "1", "a token for each parameter"
    assert "after 1.44k tokens" in found.table.caption


REFUSALS = [
    ([100, 4800], "a budget is shorter than a step", ("100", "480 or more tokens")),
    ([970, 1000, 1100, 4800], "two budgets end at the same step", ("970 and 1k; 1k and 1.1k", "480 tokens")),
    ([960, 4790], "two budgets end at the same step", ("4.79k and 4.8k", "the training ends at 4.8k")),
]


@pytest.mark.parametrize(("budgets", "what", "said"), REFUSALS)
@pytest.mark.parametrize("is_separate", [False, True])
def test_budgets_that_steps_cannot_tell_apart_are_refused_at_once(
    tmp_path: Path, budgets: list[int], what: str, said: tuple[str, ...], is_separate: bool
) -> None:
    folders = Folders(tmp_path / "cache", tmp_path / "runs")
    with pytest.raises(UserError, match=what) as caught:
        planned("tokens", whole([4800], budgets), folders=folders, separate=is_separate)
    assert caught.value.where == "study.budgets"
    for words in said:
        assert words in str(caught.value)
    assert looked_at(whole([4800], [960, 970]), 4800) == (960, 970, 4800), "these are two steps and three"


def test_the_recipes_stages_are_one_in_the_study_of_tokens(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    two = small_run.recipe(place, training__stages=[24_000, 48_000])
    (one,) = planned("tokens", two, folders=small_run.folders(place)).members
    assert one.recipe.training.stages == (48_000,)
    assert one.recipe.evaluation.at == (3000, 6000, 12_000, 24_000), "where a stage ends it is looked at all the same"
    said = " ".join(the_course([-0.1, -0.2, -0.4, -0.42]).findings)
    assert "One training of a single stage takes the place of the recipe's stages" in said
    assert "The models of 1k, 2k and 4k tokens were taken from it" in said
    assert "may be better or worse. With --separate each is trained to its end." in said


def gains(*values: float) -> list[Marginal]:
    return [Marginal(n, n + 1, Interval(value, value - 0.1, value + 0.1)) for n, value in enumerate(values)]


def test_an_inflection_is_not_sure_when_a_later_piece_gains_half_again() -> None:
    pieces = gains(4.0, 1.0, 0.5, 3.0, 0.2)
    found = inflection(pieces)
    assert found is not None
    assert (found.tokens, found.after, found.again) == (1, pieces[1], pieces[3])
    assert found.is_below_half
    assert not found.is_sure
    below = inflection(gains(4.0, 1.0, 1.9, 1.8))
    assert below is not None
    assert (below.again, below.is_sure) == (None, True), "more than the piece before, and below half all the same"


def test_the_page_says_where_the_gain_comes_back() -> None:
    found = the_course([-0.2, -0.25, -0.3, -0.9])  # from 4k to 8k as much per token as three quarters of the first
    assert "seems to halve after 1k tokens" in found.headline
    said = " ".join(found.findings)
    assert "The piece from 4k to 8k tokens gains +15" in said
    assert "where it halves is not sure" in said
    steady = " ".join(the_course([-0.2, -0.25, -0.3, -0.4]).findings)
    assert "whole interval" in steady
    assert "not sure" not in steady


CONSTANT = {"schedule": {"kind": "constant"}}


def test_no_training_with_a_constant_learning_rate_has_decayed() -> None:
    one, apart = (study({960: -0.2, 4800: -0.3}, **CONSTANT) for study in (one_training, separate))
    for found in (one, apart):
        assert [row["decayed"] for row in found.rows] == [False, False]
        assert [row[-1] for row in found.table.rows] == ["no", "no"]
        assert "has come down" not in " ".join(found.findings)
    assert "comes down in none of them" in " ".join(apart.findings)
    said = " ".join(one.findings)
    assert "differs from one that goes on in its warm-up at most" in said
    assert "better" not in said


@pytest.mark.parametrize("kind", ["cosine", "wsd", "infinite"])
def test_trainings_whose_learning_rate_comes_down_have_decayed_at_their_end(kind: str) -> None:
    schedule = {"schedule": {"kind": kind}}
    one, apart = (study({2400: -0.2, 4800: -0.3}, **schedule) for study in (one_training, separate))
    assert [row["decayed"] for row in one.rows] == [False, True]
    assert [row["decayed"] for row in apart.rows] == [True, True]
    assert "whose learning rate has come down at its end." in " ".join(apart.findings)


def test_a_training_too_short_for_its_cooldown_is_told_apart() -> None:
    found = separate({960: -0.2, 4800: -0.3}, schedule={"kind": "wsd"})  # a fifth of two steps is none
    assert [row["decayed"] for row in found.rows] == [False, True]
    assert "come down at its end, but for 960 tokens." in " ".join(found.findings)


def test_one_budget_alone_is_compared_with_none() -> None:
    found = separate({4800: -0.3})
    assert len(found.rows) == 1
    said = " ".join([found.headline, *found.findings])
    assert "no other budget was made to compare their gain with" in found.headline
    assert "whether the gain halves cannot be told" in said
    for words in ("every piece", "last piece", "has not halved"):
        assert words not in said


def test_the_facts_say_from_where_to_where_budgets_go_and_never_a_share_of_nothing() -> None:
    named = whole([19_200], [2400, 4800])
    assert budget_words("tokens", named, 19_200) == (
        "budgets of 2.4k to 19.2k tokens, up to 100% of the recipe's last stage"
    )
    long = whole(["100M"])
    assert budget_words("pilot", long, 960) == "960 tokens each, under 0.1% of the recipe's last stage"
    assert budget_words("pilot", long, 100_320) == "100.32k tokens each, 0.1% of the recipe's last stage"
    assert budget_words("domains", whole([9600]), 970).startswith("970 tokens each (in whole steps 1.44k), 10.1% of")
    assert "whole steps" not in budget_words("rates", whole([9600]), 970), "their batches differ"


@pytest.mark.parametrize("study", [None, {"tokens": 960}])
def test_a_training_of_no_tokens_is_refused(study: dict[str, int] | None) -> None:
    own = recipe(training={**SMALL, "stages": [4800]}, **({} if study is None else {"study": study}))
    with pytest.raises(UserError, match="shorter than a step") as caught:
        training_tokens("pilot", own, 0)
    assert caught.value.where == "--tokens"
