"""What studies say: fronts, inflections, differences and verdicts, on scores that are known."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from synthetic_texts import a_grid, curve, measured, rated, recipe, text, the_course

from onward.recipe import Recipe
from onward.statistics import Interval
from onward.studies import budgets_compared, pilot, rates, remedies, side_by_side
from onward.studies.inflection import Marginal, inflection, marginal
from onward.studies.outcome import Measured, Outcome
from onward.studies.pareto import on_front, place
from onward.studies.plots import Point, plane_figure
from onward.studies.scored import Text, apart, told


def brute_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    return [not any(x <= p and y <= q and (x, y) != (p, q) for x, y in points) for p, q in points]


def test_the_front_is_that_of_brute_force() -> None:
    chosen = random.Random(3)
    for _ in range(300):
        points = [(chosen.randrange(6) / 5, chosen.randrange(6) / 5) for _ in range(chosen.randrange(1, 12))]
        assert on_front(points) == brute_front(points), points


def test_a_member_is_behind_only_when_a_difference_excludes_zero() -> None:
    rows = (("a", -0.5, 0.1), ("b", -0.3, 0.02), ("far", -0.4, 0.2))
    texts = {name: measured(name, domain, general).texts for name, domain, general in rows}
    # A little worse in the means of three noisy seeds: nobody can tell.
    noisy = {"domain": text(-0.495, noise=0.05, seed=2), "general": text(0.103, noise=0.05, seed=3)}
    for name in ("domain", "general"):
        assert noisy[name].change(500, 0).estimate > texts["a"][name].change(500, 0).estimate
    placed = place({**texts, "noisy": noisy}, 500, 0)
    standings = {name: each.standing for name, each in placed.items()}
    assert standings == {"a": "front", "b": "front", "far": "behind", "noisy": "not distinguishable"}
    assert placed["far"].dominated_by == placed["noisy"].dominated_by == "a"


def test_a_change_has_its_interval_over_seeds_and_documents() -> None:
    one, three = text(-0.2, seeds=1), text(-0.2, seeds=3)
    for found in (one, three):
        change = found.change(500, 0)
        assert change.low < -0.2 < change.high
        assert change.high - change.low < 0.02
    apart_by = text(-0.2, seed=5).beyond(text(-0.25, seed=9), 500, 0)
    assert apart_by.low < 0.05 < apart_by.high
    assert told(apart_by) == "worse"


def test_seeds_that_are_missing_are_left_out_of_a_difference() -> None:
    whole, part = text(-0.2, seeds=3), text(-0.2, seeds=3, seed=4)
    part = type(part)(part.before, part.after[1:], part.bits, part.group, (1, 2))
    got = whole.beyond(part, 500, 0).estimate
    expected = (whole.after[1:].sum() - part.after.sum()) / 2 / part.bits.sum()
    assert got == pytest.approx(expected)


def lone(name: str, domain: float, seed: int, family: str = "") -> Measured:
    """A member of which one seed alone is done."""
    each = measured(name, domain, 0.02, family, seeds=1)
    texts = {corpus: replace(text, numbers=(seed,)) for corpus, text in each.texts.items()}
    return replace(each, runs={seed: Path(name)}, texts=texts)


def test_members_without_a_common_seed_have_no_verdict_and_the_findings_say_so() -> None:
    first, second = lone("none", -0.5, 0), lone("replay-5", -0.2, 1, "replay")
    difference = second.texts["domain"].beyond(first.texts["domain"], 500, 0)
    assert difference.estimate == pytest.approx(0.3, abs=0.01)
    assert np.isnan([difference.low, difference.high]).all()
    assert told(difference) == "no verdict"
    tried = rates.outcome([first, second])
    assert any(said.startswith("No seed is common to") for said in tried.findings)
    for found in (remedies.outcome([first, second]), tried):
        cells = [row[-1] for row in found.table.rows]
        assert any(cell.startswith("no verdict") for cell in cells)
        assert not any(cell.startswith("not distinguishable") for cell in cells)
    said = "No seed is common to none and replay-5: their differences have no interval and no verdict."
    assert said in remedies.outcome([first, second]).findings
    together = remedies.outcome([first, lone("replay-5", -0.2, 0, "replay")])
    assert "is common to" not in " ".join(together.findings)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.2, -0.1, "better"),
        (0.1, 0.2, "worse"),
        (-0.1, 0.1, "not distinguishable"),
        (float("nan"), float("nan"), "no verdict"),
    ],
)
def test_an_interval_that_holds_zero_shows_nothing(low: float, high: float, said: str) -> None:
    assert told(Interval((low + high) / 2, low, high)) == said


def test_skewed_intervals_stay_skewed_in_a_difference() -> None:
    """Two changes of one seed each, whose symmetric half-widths would tell them apart (Zou and Donner 2008)."""
    found = apart(Interval(-0.576, -0.932, -0.341), Interval(-0.942, -1.058, -0.827))
    assert found.low == pytest.approx(0.366 - np.hypot(0.356, 0.115))
    assert found.high == pytest.approx(0.366 + np.hypot(0.235, 0.116))
    assert told(found) == "not distinguishable"


def test_independent_errors_add_in_squares() -> None:
    found = apart(Interval(1.0, 0.7, 1.3), Interval(0.5, 0.1, 0.9))
    assert (found.estimate, found.high - found.estimate) == (0.5, pytest.approx(0.5))


def gains(*values: float) -> list[Marginal]:
    return [Marginal(n, n + 1, Interval(value, value - 0.1, value + 0.1)) for n, value in enumerate(values)]


def test_the_inflection_is_the_first_budget_after_which_the_gain_has_halved() -> None:
    found = inflection(gains(4.0, 3.0, 2.5, 1.95, 0.5))
    assert found is not None
    assert (found.tokens, found.after.end, found.largest.start, found.is_sure) == (3, 4, 0, False)
    sure = inflection(gains(4.0, 3.0, 1.0))
    assert sure is not None
    assert sure.is_sure


def test_warm_up_does_not_move_the_inflection() -> None:
    found = inflection(gains(1.0, 4.0, 3.0, 1.5))
    assert found is not None
    assert (found.tokens, found.largest.start) == (3, 1)


@pytest.mark.parametrize("values", [(4.0, 3.5, 3.0, 2.5), (-1.0, -2.0, -0.5), (1.0,)])
def test_an_inflection_that_is_not_reached_is_none(values: tuple[float, ...]) -> None:
    assert inflection(gains(*values)) is None


def test_a_marginal_gain_is_per_100m_tokens() -> None:
    found = marginal(1_000_000, 3_000_000, Interval(-0.02, -0.03, -0.01))
    assert (found.gain.estimate, found.gain.low, found.gain.high) == pytest.approx((1.0, 0.5, 1.5))


def test_marginal_gains_add_up_to_the_whole() -> None:
    pieces = budgets_compared.pieces_of(curve([-0.1, -0.18, -0.22]))
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 1000), (1000, 2000), (2000, 4000)]
    total = sum(piece.gain.estimate * (piece.end - piece.start) / 1e8 for piece in pieces)
    assert total == pytest.approx(0.22, abs=1e-3)


def test_the_study_of_tokens_says_where_the_gain_halves_and_what_has_not_decayed() -> None:
    found = the_course([-0.1, -0.2, -0.4, -0.42])
    assert "halves after 4k tokens" in found.headline
    assert any("had not come down" in sentence for sentence in found.findings)
    assert [row["decayed"] for row in found.rows] == [False, False, False, True]
    unsure = the_course([-0.1, -0.1499, -0.2])  # 0.0499 after 0.1, give or take 0.0002
    assert "seems to halve after 1k tokens" in unsure.headline
    steady = the_course([-0.1, -0.2, -0.4, -0.8])
    assert "has not halved" in steady.headline
    assert any("is not reached: every piece" in sentence for sentence in steady.findings)
    lost = the_course([0.1, 0.2])
    assert any("nothing to halve" in sentence for sentence in lost.findings)


NUMBER = re.compile(r"[+\N{MINUS SIGN}]\d+\.\d+")


def said_numbers(found: Outcome) -> set[float]:
    text = " ".join((found.headline, *found.findings, *(words for _, words in found.points)))
    return {float(number.replace("\N{MINUS SIGN}", "-")) for number in NUMBER.findall(text)}


def assert_backed(found: Outcome) -> None:
    """Every number of the findings stands in the table of numbers, rounded."""
    known = [value for row in found.rows for value in row.values() if isinstance(value, float)]
    for said in said_numbers(found):
        assert any(abs(said - value) < 0.0051 for value in known), said


def test_findings_on_remedies_keep_what_does_not_help_and_say_no_number_that_is_not_in_the_table() -> None:
    found = remedies.outcome(a_grid())
    ewc, own = (dict(found.points)[name] for name in ("ewc-1", "self-5"))
    assert re.search(r"domain \+0\.0[45]\d* .*?: worse on both$", ewc)
    assert re.search(r"domain .*?: not distinguishable from it on either$", own)
    assert found.findings[-1].endswith("Beside replay-5, the one of replay, in bits per byte:"), "the list follows"
    assert "The control" in " ".join(found.findings)
    standings = {row["member"]: row["standing"] for row in found.rows}
    assert standings["control"] == "control", "it is no remedy, and on no front"
    assert standings["ewc-10"] == "behind"
    assert said_numbers(found), "there are numbers to be checked"
    (pair,) = (pair for pair in found.pairs if {pair["member"], pair["beside"]} == {"none", "replay-5"})
    sign = 1 if pair["member"] == "none" else -1
    assert sign * pair["general"] == pytest.approx(0.08, abs=0.005)
    assert pair["general_low"] < pair["general"] < pair["general_high"]
    assert_backed(found)
    assert [row[0] for row in found.table.rows] == [row["member"] for row in found.rows]


def few(each: Measured) -> Measured:
    """The same of four documents: too few for an interval."""
    texts = {
        name: replace(text, before=text.before[:4], after=text.after[:, :4], bits=text.bits[:4], group=text.group[:4])
        for name, text in each.texts.items()
    }
    return replace(each, texts=texts)


def test_too_few_documents_give_no_verdict_anywhere() -> None:
    tried = rates.outcome([few(rated(1e-4, 1024, -0.1)), few(rated(1e-3, 1024, -0.3))])
    assert [row[-1] for row in tried.table.rows] == ["no verdict", "best"]
    assert "istinguishable from the best" not in " ".join(tried.findings)
    beside = side_by_side.outcome([few(measured("law", -0.2, 0.01)), few(measured("health", -0.4, 0.02))], "domains")
    assert beside.headline == "There is no verdict on any of 2 domains: too few held-out documents."
    assert "no verdict: health and law" in " ".join(beside.findings)
    assert "became harder" not in " ".join(beside.findings)
    mixed = side_by_side.outcome([few(measured("law", -0.2, 0.01)), measured("health", -0.4, 0.02)], "domains")
    assert mixed.headline == "The domain text became easier in 1 of 2 domains: health; 1 without a verdict."
    grid = remedies.outcome([few(each) for each in a_grid()])
    assert {row["standing"] for row in grid.rows} == {"front", "no verdict", "control"}


def test_a_comparison_that_says_something_goes_before_one_that_cannot() -> None:
    """Two members of the front are better in the mean; only one shares a seed with the third."""
    apart_from = measured("a", -0.51, 0.01)
    apart_from = replace(
        apart_from, texts={name: replace(text, numbers=(7, 8, 9)) for name, text in apart_from.texts.items()}
    )
    placed = place(
        {each.variant.name: each.texts for each in (apart_from, measured("b", -0.5, 0.005), measured("m", -0.3, 0.1))},
        500,
        0,
    )
    assert (placed["m"].standing, placed["m"].dominated_by) == ("behind", "b")


def test_names_stay_as_they_are_written() -> None:
    found = remedies.outcome([measured("none", -0.5, 0.1, "none"), measured("EWC 1", -0.6, 0.0, "EWC")])
    assert "On the front of the means: EWC 1; " in " ".join(found.findings)


def test_every_member_is_drawn_and_the_front_is_named() -> None:
    found = remedies.outcome(a_grid())
    assert found.figure is not None
    for each in a_grid():
        assert f">{each.variant.words}</text>" in found.figure.wide
    assert found.figure.wide.count('class="mark ') == len(a_grid())


def test_thirty_members_close_to_each_other_all_have_their_label() -> None:
    chosen = random.Random(4)
    points = []
    for number in range(30):
        gain, loss = (Interval(value, value - 0.01, value + 0.01) for value in (chosen.random() / 20, chosen.random()))
        points.append(Point(f"a member of number {number}", gain, loss, "behind", False))
    far = Point("far away", Interval(1.0, 0.99, 1.01), Interval(0.0, -0.01, 0.01), "front", True)
    drawn = plane_figure([*points, far], "A plane.").wide
    boxes = []
    for x, y, words in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="note[^>]*>([^<]*)</text>', drawn):
        boxes.append((float(x), float(y), len(words) * 6.0))
    assert len(boxes) == 31
    for one, other in combinations(boxes, 2):
        assert abs(one[1] - other[1]) > 12 or abs(one[0] - other[0]) > (one[2] + other[2]) / 2


def sized(name: str, domain: float, parameters: int) -> Measured:
    each = measured(name, domain, 0.02)
    variant = type(each.variant)(name, name, {}, at=float(parameters))
    return Measured(variant, each.recipe, each.runs, each.texts, parameters)


def test_sizes_say_whether_the_gain_persists() -> None:
    fades = side_by_side.outcome([sized("1m", -0.4, 10**6), sized("10m", -0.2, 10**7)], "sizes")
    assert "At the largest size, 10m, the gain persists" in " ".join(fades.findings)
    assert "a worse change than at the smallest, 1m" in " ".join(fades.findings)
    gone = side_by_side.outcome([sized("1m", -0.4, 10**6), sized("10m", 0.0, 10**7)], "sizes")
    assert "cannot be told from none" in " ".join(gone.findings)
    lost = side_by_side.outcome([sized("1m", -0.4, 10**6), sized("10m", 0.3, 10**7)], "sizes")
    assert "there is no gain but a loss" in " ".join(lost.findings)
    alone = side_by_side.outcome([sized("10m", -0.2, 10**7)], "sizes")
    assert "No other size was made" in " ".join(alone.findings)
    assert "the smallest" not in " ".join(alone.findings)
    for found in (fades, gone, lost, alone):
        assert_backed(found)


def test_domains_are_ranked_by_their_gain_per_token_per_parameter() -> None:
    found = side_by_side.outcome([measured("law", -0.2, 0.01), measured("health", -0.4, 0.02)], "domains")
    assert "health 0.4, law 0.2" in found.findings[0], "1M tokens over 1M parameters"
    assert [row["gain_per_token_per_parameter"] for row in found.rows] == pytest.approx([0.2, 0.4], abs=0.002)


def test_changes_on_the_same_documents_are_paired_whatever_the_bases() -> None:
    """Documents that are hard to move make each change uncertain, and not the difference of two."""
    one = text(-0.2, seeds=3, noise=0.1)
    weaker = replace(one, before=one.before * 1.5, after=one.before * 1.5 + (one.after - one.before) + 0.02 * one.bits)
    got = weaker.gained_beyond(one, 500, 0)
    assert (got.low, got.estimate, got.high) == pytest.approx((0.02, 0.02, 0.02))
    assert told(apart(weaker.change(500, 0), one.change(500, 0))) == "not distinguishable"
    others = replace(weaker, bits=weaker.bits * 1.01)
    independent = others.gained_beyond(one, 500, 0)
    assert independent == apart(others.change(500, 0), one.change(500, 0)), "of other documents"


def test_one_domain_is_compared_with_no_other() -> None:
    words = " ".join(side_by_side.outcome([measured("law", -0.2, 0.01)], "domains").findings)
    assert "told apart" not in words
    assert "Of the gains" not in words


def test_the_best_rate_is_set_beside_its_neighbours() -> None:
    members = [rated(rate, batch, -0.3 + 0.05 * abs(n - 1) + batch / 1e5) for batch in (1024, 2048)
               for n, rate in enumerate((1e-4, 1e-3, 1e-2))]  # fmt: skip
    assert [each.variant.name for each in rates.neighbours(members[1], members)] == [
        "rate-0.0001-1024", "rate-0.01-1024", "rate-0.001-2048",
    ]  # fmt: skip
    found = rates.outcome(members)
    assert found.headline.startswith("Best of 6: learning rate 1e\N{MINUS SIGN}3 with batches of 1024")
    assert [name for name, _ in found.points] == [
        f"1e\N{MINUS SIGN}{rate} with batches of {batch}" for rate, batch in ((4, 1024), (2, 1024), (3, 2048))
    ]
    assert found.findings[-1] == "Beside the best, its neighbours in rate and batch, in bits per byte:"
    assert not any("that was tried" in sentence for sentence in found.findings)
    edge = rates.outcome([rated(1e-4, 1024, -0.1), rated(1e-3, 1024, -0.3)])
    assert any("highest that was tried" in sentence for sentence in edge.findings)
    assert_backed(found)


def losses(slope: float, steps: int = 80, noise: float = 0.01) -> list[dict[str, object]]:
    generator = np.random.default_rng(2)
    return [
        {"tokens": 1000 * (n + 1), "loss_nats": 4 + slope * np.log(n + 1) + noise * generator.standard_normal(),
         "applied": True, "tokens_per_second": 500.0}
        for n in range(steps)
    ]  # fmt: skip


def test_a_falling_loss_is_told_from_one_that_stands() -> None:
    falls = pilot.falling(losses(-0.3))
    assert falls is not None
    assert falls.slope.low < -0.3 < falls.slope.high < 0
    stands = pilot.falling(losses(0.0))
    assert stands is not None
    assert stands.slope.low < 0 < stands.slope.high
    assert pilot.falling(losses(-0.3, steps=15)) is None
    assert falls.at(falls.tokens * np.e) == pytest.approx(falls.level + falls.slope.estimate)


@pytest.mark.parametrize(("slope", "verdict"), [(-0.3, "go"), (0.0, "cannot be told"), (0.3, "look first")])
def test_only_a_loss_that_rises_speaks_against_the_whole(slope: float, verdict: str) -> None:
    check = pilot._falling(pilot.falling(losses(slope)))
    assert check.verdict == verdict
    assert "nats per e-fold" in check.value
    assert pilot._falling(None).verdict == "look first"


def test_a_leap_is_measured_from_the_median_before_it() -> None:
    rows = losses(0.0, noise=0.0)
    for number, row in enumerate(rows):
        row["loss_nats"] = 4.0 + number % 2
    rows[40]["loss_nats"] = 7.5
    assert pilot.largest_leap(rows) == pytest.approx(3.0), "the median of as many fours as fives"
    assert pilot.largest_leap(losses(-0.3, noise=0.0)) == 0


def test_the_whole_takes_its_tokens_over_the_pilots_speed() -> None:
    whole: Recipe = recipe()
    assert pilot.projected_seconds(losses(-0.1), whole) == pytest.approx(1_000_000 / 500)


def first_documents(text: Text, documents: int, groups: int) -> Text:
    """The first documents of a text alone, in so many groups."""
    group = np.array([f"group-{n % groups}" for n in range(documents)], dtype=object)
    cut = text.before[:documents], text.after[:, :documents], text.bits[:documents], group
    return Text(*cut, text.numbers)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("documents", "groups", "is_known"), [(7, 7, False), (8, 8, True), (20, 7, False), (8, 1, True), (7, 1, False)]
)
def test_fewer_than_eight_groups_have_no_interval_as_in_a_run(
    seeds: int, documents: int, groups: int, is_known: bool
) -> None:
    one, other = (first_documents(text(change, seeds), documents, groups) for change in (-0.5, -0.1))
    for found in (one.change(200, 0), one.beyond(other, 200, 0)):
        assert (told(found) == "better") == is_known
        assert np.isnan(found.low) == np.isnan(found.high) == (not is_known)
    assert one.change(200, 0).estimate == pytest.approx(-0.5, abs=0.01)
    assert one.beyond(other, 200, 0).estimate == pytest.approx(-0.4, abs=0.01)


def with_few(each: Measured, documents: int, groups: int) -> Measured:
    return replace(each, texts={**each.texts, "domain": first_documents(each.texts["domain"], documents, groups)})


def test_findings_say_how_many_documents_there_are_and_which_text_has_too_few() -> None:
    plenty = remedies.outcome(a_grid())
    assert "Held-out documents: domain text 40 and general text 40." in plenty.findings
    assert not any("no verdict" in sentence for sentence in plenty.findings)
    few = [with_few(each, 20, 5) for each in a_grid()]
    for found in (remedies.outcome(few), side_by_side.outcome(few, "domains")):
        assert "Held-out documents: domain text 20 (5 groups) and general text 40." in found.findings
        assert any("no verdict: domain text." in sentence for sentence in found.findings)
    assert all(row["domain_low"] is None for row in remedies.outcome(few).rows)


def recorded(each: Measured, place: Path, seconds: float) -> Measured:
    """A member with the record of two steps in its run folder."""
    folder = place / each.variant.name
    folder.mkdir()
    row = {"seconds": seconds / 2, "loss_nats": 1.0}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")
    return replace(each, runs=dict.fromkeys(each.runs, folder))


def test_the_time_of_training_stands_beside_that_without_a_remedy(tmp_path: Path) -> None:
    none, replay, ewc, *_, control = a_grid()
    blend = measured("blend-50-of-none", -0.2, 0.05, "blend")
    timed = [recorded(none, tmp_path, 10), recorded(replay, tmp_path, 12), ewc]
    found = remedies.outcome([*timed, replace(blend, runs=timed[0].runs), control])
    times = {row["member"]: row["training_time_beside_none"] for row in found.rows}
    assert times == {"none": 1.0, "replay-1": 1.2, "replay-5": None, "blend-50-of-none": None, "control": None}
    place = found.table.headers.index("time")
    assert {row[0]: row[place] for row in found.table.rows}["replay-1"] == "1.20 x"
    assert len(found.table.numeric) == len(found.table.headers)
    unrecorded = remedies.outcome(a_grid())
    assert "time" not in unrecorded.table.headers
    assert not any("training_time_beside_none" in row for row in unrecorded.rows)


def test_without_plain_replay_there_is_none_to_compare_with() -> None:
    found = remedies.outcome([measured("none", -0.5, 0.1, "none"), measured("self5", -0.4, 0.02, "self replay")])
    assert any("there is none to compare the kinds with" in sentence for sentence in found.findings)


def test_a_pilot_on_too_few_documents_is_no_go() -> None:
    each = measured("pilot", -0.5, 0.0)
    assert [check.verdict for check in pilot._held_out(each)] == ["go", ""]
    check, _ = pilot._held_out(with_few(each, 20, 5))
    assert check.verdict == "look first"
    assert "fewer than 8 documents" in check.value
