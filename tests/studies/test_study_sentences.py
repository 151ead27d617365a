"""What studies say of odd results: scores below guessing, records that are gone, seeds that are not the same."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_texts import a_grid, measured, rated, recipe

from onward.errors import UserError
from onward.evaluation.scores import HeldOutScore, ItemRow, Measure, Scores, TaskScore, write_scores
from onward.recipe import Recipe
from onward.studies import baseline, pilot, rates, remedies, side_by_side
from onward.studies.member import changed
from onward.studies.outcome import Measured, Outcome, rate_words
from onward.studies.pareto import place
from onward.studies.scored import Text


def yes_or_no(
    yes_right: float, yes_picked: float, accuracy: float, items: int = 400
) -> tuple[TaskScore, list[ItemRow]]:
    """BoolQ, of which so many shares are rightly yes, are answered yes and are answered rightly."""
    gold = round(items * yes_right)
    both = round(items * (accuracy - 1 + yes_right + yes_picked) / 2)
    picked = [1] * both + [0] * (gold - both) + [1] * (round(items * yes_picked) - both)
    picked += [0] * (items - len(picked))
    rows = [
        ItemRow("boolq", None, f"{n}", f"{n}", gold=int(n < gold), predicted=answer, logprobs=(-1.0, -1.0),
                right={"acc": answer == int(n < gold)})
        for n, answer in enumerate(picked)
    ]  # fmt: skip
    share = sum(row.right["acc"] for row in rows if row.right) / items
    measure = Measure("acc", share, (share * (1 - share) / (items - 1)) ** 0.5)
    return TaskScore("boolq", items, items, "hash", 0, 0.5, (measure,), 0), rows


def last_words(nats: list[float]) -> tuple[TaskScore, list[ItemRow]]:
    """LAMBADA, where nothing is chosen: the nats of each last word, of which one is guessed rightly."""
    rows = [ItemRow("lambada_openai", None, f"{n}", f"{n}", right={"acc": not n}, logprobs=(-own,), nats=own, bytes=5)
            for n, own in enumerate(nats)]  # fmt: skip
    measures = (
        Measure("perplexity", 27_000.0, 21_000.0, False),
        Measure("acc", 1 / len(nats), ((1 - 1 / len(nats)) / len(nats) / (len(nats) - 1)) ** 0.5),
    )
    return TaskScore("lambada_openai", len(nats), len(nats), "hash", 0, None, measures, 0), rows


def of_the_base(place: Path, *tasks: tuple[TaskScore, list[ItemRow]]) -> Outcome:
    nan = float("nan")
    text = HeldOutScore("domain", 2, 100, 400, 800.0, 2.89, nan, nan)
    rows = [ItemRow("held_out:domain", None, f"d{n}", f"d{n}", nats=400.0, bytes=200) for n in range(2)]
    scores = Scores("a model", (text,), tuple(task for task, _ in tasks), 1.0)
    place.mkdir(exist_ok=True)
    write_scores(place, scores, [*rows, *(row for _, own in tasks for row in own)])
    return baseline.outcome(place)


@pytest.mark.parametrize(
    ("yes_right", "yes_picked", "accuracy", "said", "guessing"),
    [
        (0.62, 0.9, 0.54, "below chance", "59.6 %"),
        (0.9, 0.2, 0.3, "above chance", "26.0 %"),
        (0.62, 1.0, 0.62, "at chance", "62.0 %"),
        (0.5, 0.5, 0.3, "below chance", "50.0 %"),
    ],
)
def test_the_base_stands_beside_the_guessing_that_a_report_takes(
    tmp_path: Path, yes_right: float, yes_picked: float, accuracy: float, said: str, guessing: str
) -> None:
    """Of always the same answer, and not of a coin: the score of the first is 4 points above a half and below it."""
    found = of_the_base(tmp_path, yes_or_no(yes_right, yes_picked, accuracy))
    row = found.table.rows[-1]
    assert (row[2], row[4], row[-1]) == (f"{100 * accuracy:.1f} %", guessing, said)
    assert (found.rows[-1]["standing"], found.rows[-1]["chance"]) == (said, 0.5)
    words = " ".join(found.findings)
    assert ("0 of 1 measure" if said == "at chance" else "1 of 1 measure") in words
    assert ("Worse than guessing: BoolQ acc." in words) == (said == "below chance")
    assert (f"as the base does: {guessing} on BoolQ acc." in words) == (guessing != "50.0 %")
    assert found.figure is not None
    colour = {"below chance": "lost", "above chance": "gained", "at chance": "not-distinguishable"}[said]
    assert f"mark {colour}" in found.figure.wide


def test_tasks_without_guessing_are_not_told_from_it(tmp_path: Path) -> None:
    words = last_words([6.0, 12.0] * 10)
    alone = of_the_base(tmp_path / "alone", words)
    assert alone.findings[-1] == (
        "No measure of tasks has a score of guessing to be told from: LAMBADA perplexity and LAMBADA acc."
    )
    beside = of_the_base(tmp_path / "beside", words, yes_or_no(0.5, 0.5, 0.9))
    assert beside.findings[1:] == (
        "1 of 1 measure of tasks can be told from guessing.",
        "Without a score of guessing: LAMBADA perplexity and LAMBADA acc.",
    )


def test_a_perplexity_has_no_negative_end_and_is_written_as_elsewhere(tmp_path: Path) -> None:
    found = of_the_base(tmp_path, last_words([6.0, 15.0] * 10))
    perplexity, accuracy = found.rows[-2:]
    assert 0 < perplexity["value_low"] < perplexity["value"] < perplexity["value_high"]
    # Of 1 of 20, and of none.
    assert (accuracy["value_low"], accuracy["value_high"]) == pytest.approx((0.0089, 0.2361), abs=1e-4)
    none = baseline._of_share(0.0, 0.0, 20)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=1e-4)
    written, share = found.table.rows[-2:]
    assert written[2] == "27,000"
    assert "," in written[3]
    assert not any("-" in cell or "\N{MINUS SIGN}" in cell for cell in (*written, *share))
    assert share[2] == "5.0 %"


def steps(slope: float = -0.3, number: int = 50, **same: Any) -> list[dict[str, Any]]:
    generator = np.random.default_rng(2)
    row = {"applied": True, "tokens_per_second": 500.0, "learning_rate": 1e-3, "labelled_tokens": 4096} | same
    return [
        row | {"tokens": 4096 * (n + 1), "loss_nats": 4 + slope * np.log(n + 1) + 0.01 * generator.standard_normal()}
        for n in range(number)
    ]


def a_pilot(place: Path, records: Mapping[int, list[dict[str, Any]]], whole: Recipe, tokens: int = 50_000) -> Measured:
    """A pilot of 50k tokens with the records of its seeds."""
    runs = {}
    for seed, rows in records.items():
        runs[seed] = place / f"pilot-seed{seed}"
        runs[seed].mkdir(parents=True)
        (runs[seed] / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    each = measured("pilot", -0.5, 0.0, seeds=len(records), whole=changed(whole, {"training.stages": [tokens]}))
    return replace(each, runs=runs)


@pytest.mark.parametrize(
    ("last", "schedule", "horizon", "said"),
    [
        (1_000_000, "cosine", "stage", ", and the whole training's will still be at 93 % there."),
        (1_000_000, "wsd", "run", ", and the whole training's will still be at 100 % there."),
        (200_000, "cosine", "stage", "rough guide."),
        (100_000, "cosine", "run", "rough guide."),
        (1_000_000, "constant", "stage", "rough guide."),
    ],
)  # fmt: skip
def test_a_projection_says_of_the_learning_rate_what_is_so(
    tmp_path: Path, last: int, schedule: str, horizon: str, said: str
) -> None:
    whole = changed(recipe(), {"training.stages": [last], "training.schedule": {"kind": schedule, "horizon": horizon}})
    found = pilot.outcome([a_pilot(tmp_path, {0: steps()}, whole)], whole)
    (guide,) = (sentence for sentence in found.findings if "rough guide" in sentence)
    assert guide.endswith(said)
    assert ("come down to 10 % of its peak" in guide) == ("there." in said)


def test_a_stage_that_ends_where_the_projection_does_has_decayed_there(tmp_path: Path) -> None:
    whole = changed(recipe(), {"training.stages": [200_000, 1_000_000]})
    assert "rough guide." in " ".join(pilot.outcome([a_pilot(tmp_path, {0: steps()}, whole)], whole).findings)


def test_a_pilot_is_stable_when_all_its_seeds_are(tmp_path: Path) -> None:
    shaken = steps()
    for row in shaken[:10]:
        row["applied"] = False
    steady = pilot.outcome([a_pilot(tmp_path / "steady", {0: steps(), 1: steps()}, recipe())], recipe())
    assert steady.headline.startswith("Go")
    found = pilot.outcome([a_pilot(tmp_path / "shaken", {0: steps(), 1: shaken}, recipe())], recipe())
    assert found.headline == "Look first: stability."
    assert any("10 updates left out (seed 1), 0 rollbacks" in cell for row in found.table.rows for cell in row)
    leap = steps(slope=0.0)
    leap[30]["loss_nats"] += 2.1
    leapt = pilot.outcome([a_pilot(tmp_path / "leapt", {0: steps(), 1: leap}, recipe())], recipe())
    assert any("the largest leap is 2." in cell for row in leapt.table.rows for cell in row)
    assert leapt.table.caption == "A pilot of 50k tokens, 50 steps with each of 2 seeds"


def test_seeds_of_a_pilot_share_the_slope_and_not_the_level() -> None:
    one, other = steps(), [row | {"loss_nats": row["loss_nats"] + 1} for row in steps()]
    alone, both = pilot.falling(one), pilot.falling(one, other)
    assert alone is not None
    assert both is not None
    assert both.slope.estimate == pytest.approx(alone.slope.estimate)
    assert both.level == pytest.approx(alone.level + 0.5)
    assert both.slope.high - both.slope.low < alone.slope.high - alone.slope.low
    assert pilot.falling(one, steps(number=9)) == alone


@pytest.mark.parametrize("is_there", [True, False])
def test_a_pilot_without_its_record_says_what_to_remove(tmp_path: Path, is_there: bool) -> None:
    each = a_pilot(tmp_path, {0: steps(), 1: []}, recipe())
    if not is_there:
        (each.runs[1] / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="the record of the pilot's steps is gone") as caught:
        pilot.outcome([each], recipe())
    assert caught.value.todo is not None
    assert f"remove {each.runs[1]}" in caught.value.todo


def of_seeds(each: Measured, *seeds: int) -> Measured:
    """A member of which only these seeds could be scored."""
    texts = {name: replace(text, after=text.after[list(seeds)], numbers=seeds) for name, text in each.texts.items()}
    return replace(each, runs={seed: each.runs[seed] for seed in seeds}, texts=texts)


def test_what_is_judged_on_fewer_seeds_than_others_says_so() -> None:
    none, replay, five, ewc, *others = a_grid()
    found = remedies.outcome([of_seeds(none, 0), of_seeds(replay, 0, 1), five, of_seeds(ewc, 1, 2), *others])
    words = " ".join(found.findings)
    assert "of 1 to 3 seeds, over seeds and documents, and over documents alone for what has one seed: none." in words
    assert "documents alone, since one seed" not in words
    assert "Members differ in the seeds that were made: changes and the front are of the means" in words
    fronts = {row[0]: row[-1] for row in found.table.rows}
    assert fronts["ewc-1"] == "behind replay-1 (from 1 seed in common)"
    assert fronts["ewc-10"] == "behind replay-5", "all seeds are those of both"
    assert dict(found.points)["ewc-1"].endswith("(from 2 seeds in common)")
    assert dict(found.points)["self-5"].endswith("on either")
    assert found.figure is not None
    assert "over documents, and seeds where there are several. The" in found.figure.caption
    seeds = {frozenset((pair["member"], pair["beside"])): pair["seeds"] for pair in found.pairs}
    assert (seeds[frozenset(("none", "ewc-1"))], seeds[frozenset(("replay-1", "ewc-1"))]) == (0, 1)


def test_seeds_that_all_members_have_are_not_told_of() -> None:
    for seeds in ((1,), (0, 2)):
        found = remedies.outcome([of_seeds(each, *seeds) for each in a_grid()])
        assert "in common" not in " ".join((*found.findings, *(row[-1] for row in found.table.rows)))
    assert "of 2 seeds, over seeds and documents." in " ".join(found.findings)


def test_a_member_is_not_behind_one_that_it_beats_on_the_seeds_of_both() -> None:
    """The mean of the other is better by a seed that this one lacks."""
    mine, other = measured("mine", -0.5, 0.1), measured("other", -0.6, 0.05)
    text = other.texts["general"]
    nats = text.before + np.array([[0.2], [-0.1], [-0.1]]) * text.bits
    texts = {**other.texts, "general": replace(text, after=nats)}
    assert text.of_seeds()[0] > 0
    placed = place({"mine": of_seeds(mine, 0).texts, "other": texts}, 500, 0)
    assert placed["mine"].dominated_by == "other"
    assert placed["mine"].standing == "not distinguishable"


def test_members_without_a_remedy_are_told_apart() -> None:
    two = [measured("none", -0.5, 0.1, "none"), measured("ewc-0", -0.4, 0.1, "none")]
    said = [sentence for sentence in remedies.outcome(two).findings if sentence.startswith("Without a remedy")]
    assert [sentence.split(" the domain")[0] for sentence in said] == [
        "Without a remedy (none)", "Without a remedy (ewc-0)",
    ]  # fmt: skip
    (alone,) = (each for each in remedies.outcome(two[:1]).findings if each.startswith("Without a remedy"))
    assert alone.startswith("Without a remedy the domain text")


def test_seeds_without_a_record_have_no_part_in_the_time_of_training(tmp_path: Path) -> None:
    def timed(name: str, family: str, seconds: Mapping[int, float]) -> Measured:
        runs = {}
        for seed, took in seconds.items():
            runs[seed] = tmp_path / f"{name}-seed{seed}"
            runs[seed].mkdir()
            if took:
                (runs[seed] / "metrics.jsonl").write_text(json.dumps({"seconds": took}) + "\n", encoding="utf-8")
        return replace(measured(name, -0.5, 0.1, family, seeds=len(seconds)), runs=runs)

    none, replay = timed("none", "none", {0: 10, 1: 0}), timed("replay-1", "replay", {0: 12, 1: 12})
    assert remedies.costs_of([none, replay]) == {"none": 1.0, "replay-1": 1.2}
    gone = timed("ewc-1", "EWC", {0: 0, 1: 0})
    assert remedies.costs_of([none, replay, gone]) == {"none": 1.0, "replay-1": 1.2}
    assert remedies.costs_of([gone, replay]) == {}


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1e-4, "1e-4"), (9.6e-4, "9.6e-4"), (1.25e-3, "1.25e-3"), (0.00104, "1.04e-3"), (3.16e-05, "3.16e-5"),
        (0.1 + 0.2, "3.0000000000000004e-1"), (2, "2e0"), (10.0, "1e1"),
    ],
)  # fmt: skip
def test_a_rate_is_written_as_a_recipe_takes_it(rate: float, said: str) -> None:
    assert rate_words(rate) == said
    assert float(said) == rate
    assert rate_words(rate, is_prose=True) == said.replace("-", "\N{MINUS SIGN}")


def test_rates_that_are_close_are_told_apart() -> None:
    found = rates.outcome([rated(1.02e-3, 1024, -0.2), rated(1.04e-3, 1024, -0.2), rated(1.25e-3, 1024, -0.3)])
    assert [row[0] for row in found.table.rows] == ["1.02e-3", "1.04e-3", "1.25e-3"]
    alike = rates.outcome([rated(1.02e-3, 1024, -0.3), rated(1.04e-3, 1024, -0.2), rated(1.044e-3, 1024, -0.3001)])
    assert "not distinguishable" in [row[-1] for row in alike.table.rows]
    (said,) = (each for each in alike.findings if each.startswith("Not distinguishable from the best"))
    assert said.endswith(": 1.02e\N{MINUS SIGN}3 with batches of 1024.")


def test_a_rate_stays_on_its_line() -> None:
    """Pages break a line at a hyphen: `1e-` and `2 with batches of`."""
    members = [rated(rate, 1024, -0.3 - rate) for rate in (1e-4, 1e-3, 1e-2)]
    members[0] = of_seeds(members[0], 0)
    members[1] = of_seeds(members[1], 1)
    found = rates.outcome(members)
    assert any("No seed is common to 1e\N{MINUS SIGN}4 with batches of 1024 and" in each for each in found.findings)
    prose = " ".join((found.headline, *found.findings, *(f"{name} {words}" for name, words in found.points)))
    assert "e-" not in prose
    assert prose.count("e\N{MINUS SIGN}") >= 4
    assert [row[0] for row in found.table.rows] == ["1e-4", "1e-3", "1e-2"], "as a recipe takes them"


def sized(name: str, millions: int, domain: float = -0.3, tokenizer: float = 1.0) -> Measured:
    """A model whose tokenizer decides which documents are held out: another has others."""
    each = measured(name, domain, 0.02)
    texts = {key: replace(text, bits=text.bits * tokenizer) for key, text in each.texts.items()}
    variant = replace(each.variant, at=float(millions))
    return replace(each, variant=variant, texts=texts, parameters=10**6 * millions)


def test_sizes_say_which_of_them_are_paired() -> None:
    def said(*found: Measured) -> str:
        (words,) = (each for each in side_by_side.outcome(found, "sizes").findings if each.startswith("Intervals"))
        return words

    small, middle, large = sized("1m", 1), sized("10m", 10), sized("100m", 100, tokenizer=1.1)
    assert said(small, middle).endswith("; differences between rows are paired by document and seed.")
    assert said(small, large).endswith("; differences between rows take theirs as independent.")
    assert said(small, middle, large).endswith(
        "rows of 1m and 10m are paired by document and seed, all others take theirs as independent."
    )
    assert said(small) == "Intervals are of 95 %, over seeds and documents."
    assert "over documents alone for what has one seed: 1m; diff" in said(of_seeds(small, 1), middle)


def test_paired_sizes_say_on_which_seeds_they_are() -> None:
    apart = side_by_side.outcome([of_seeds(sized("1m", 1), 0), of_seeds(sized("10m", 10), 1)], "sizes")
    assert any(each.startswith("No seed is common to 1m and 10m") for each in apart.findings)
    part = side_by_side.outcome([of_seeds(sized("1m", 1, -0.5), 0, 1), sized("10m", 10)], "sizes")
    assert "(from 2 seeds in common). A base" in " ".join(part.findings)
    whole = side_by_side.outcome([sized("1m", 1, -0.5), sized("10m", 10)], "sizes")
    assert "common" not in " ".join(whole.findings)


def test_sizes_that_were_not_made_are_named() -> None:
    found = side_by_side.outcome([sized("1m", 1)], "sizes", ["10m"])
    assert found.headline == "The domain text became easier in 1 of 1 sizes: 1m; 10m was not made."
    assert "At the largest size that was made, 1m, the gain persists" in " ".join(found.findings)
    two = side_by_side.outcome([sized("1m", 1, -0.5), sized("10m", 10)], "sizes", ["100m", "1b"])
    assert two.headline.endswith("; 100m and 1b were not made.")
    assert "at the smallest that was made, 1m," in " ".join(two.findings)
    domains = side_by_side.outcome([measured("law", -0.2, 0.01)], "domains", ["health"])
    assert domains.headline.endswith("law; health was not made.")


def test_a_best_rate_without_intervals_is_the_lowest_alone() -> None:
    short = [rated(rate, 1024, -0.3 - rate) for rate in (1e-4, 1e-3)]
    assert rates.outcome(short).headline.startswith("Best of 2: ")

    def cut(each: Measured) -> Measured:
        texts = {
            name: Text(text.before[:3], text.after[:, :3], text.bits[:3], text.group[:3], text.numbers)
            for name, text in each.texts.items()
        }
        return replace(each, texts=texts)

    few = [cut(each) for each in short]
    assert rates.outcome(few).headline.startswith("No verdict; lowest of 2: learning rate 1e\N{MINUS SIGN}3")


def test_batches_say_how_much_more_than_asked_for_their_whole_steps_are() -> None:
    found = rates.outcome([rated(1e-3, 3000, -0.3), rated(1e-3, 3500, -0.2)])
    assert found.table.caption.startswith("Change in bits per byte after 1M tokens (in whole steps 1.001M to 1.002M);")
    assert [row["tokens"] for row in found.rows] == [1_002_000, 1_001_000]
    assert "after 1M tokens;" in rates.outcome([rated(1e-3, 500, -0.3), rated(1e-3, 1000, -0.2)]).table.caption
