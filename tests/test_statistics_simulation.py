"""Error rates, coverage and power by simulation: what a test or an interval promises, it keeps.

Every experiment has correlation between before and after, and most have groups that share their fate. A share of
errors is accepted up to what a true rate of 5 % would exceed once in ten thousand runs of the test (binomial), so
that with fixed seeds a failure means a wrong method: 0.070 of 2,000 experiments.
"""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, nct, norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from onward.statistics import (
    Interval,
    binomial_two_sided,
    bootstrap_mean_difference,
    bootstrap_ratio,
    chance_agreement,
    holm,
    mcnemar_exact,
    paired_bootstrap_ratio,
    pooled_change,
    sign_flip,
)

EXPERIMENTS = 2000
LEVEL = 0.05


def at_most_nominal(errors: int, experiments: int = EXPERIMENTS) -> bool:
    return errors <= binom.ppf(1 - 1e-4, experiments, LEVEL)


def near_nominal(errors: int, experiments: int = EXPERIMENTS) -> bool:
    """Also not far below: an interval that is always too wide is no merit."""
    return at_most_nominal(errors, experiments) and errors >= binom.ppf(1e-4, experiments, LEVEL * 0.6)


def misses(interval: Interval, truth: float) -> bool:
    return not interval.low <= truth <= interval.high


# Sizes of groups, by design: passages of BoolQ, subjects of MMLU (scaled down), a handful, one giant among many.
DESIGNS: dict[str, NDArray[np.int64]] = {
    "passages": np.array([1] * 60 + [2] * 30 + [3] * 20 + [5] * 10),
    "subjects": np.round(np.geomspace(6, 60, 57)).astype(int),
    "few": np.array([20, 25, 30, 35, 40, 20, 25, 30, 35, 40]),
    "few uneven": np.array([5, 10, 10, 15, 20, 20, 30, 40, 60, 80]),
    "giant": np.array([150] + [5] * 40),
}


def answers(
    design: NDArray[np.int64], shared: float, rates: tuple[float, float], seed: int, experiments: int = EXPERIMENTS
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield right and wrong before and after. Half of what decides an answer is the item's own hardness, the same on
    both sides; `shared` is of the group and the model together, so that changes cluster; the rest is chance."""
    generator = np.random.default_rng(seed)
    index = np.repeat(np.arange(len(design)), design)
    bounds = norm.ppf(rates)
    for _ in range(experiments):
        hardness = np.sqrt(0.5) * generator.standard_normal(len(index))
        groups = np.sqrt(shared) * generator.standard_normal((2, len(design)))[:, index]
        chance = np.sqrt(0.5 - shared) * generator.standard_normal((2, len(index)))
        before, after = hardness + groups + chance < bounds[:, None]
        yield before, after


def labels(design: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(design)), design)


def test_mcnemar_keeps_its_level_where_items_stand_alone():
    design = np.ones(300, dtype=int)
    errors = sum(mcnemar_exact(*sides)[0] <= LEVEL for sides in answers(design, 0.0, (0.4, 0.4), 1))
    assert at_most_nominal(errors)
    assert errors >= 0.5 * LEVEL * EXPERIMENTS  # exact, so below its level, but not idle


@pytest.mark.parametrize("design", DESIGNS)
def test_the_test_over_groups_keeps_its_level(design):
    sizes = DESIGNS[design]
    groups = labels(sizes)
    over_groups = over_items = 0
    for sides in answers(sizes, 0.25, (0.4, 0.4), 2):
        over_groups += sign_flip(*sides, groups, 0, 0) <= LEVEL
        over_items += mcnemar_exact(*sides)[0] <= LEVEL
    assert at_most_nominal(over_groups)
    assert over_groups >= 0.5 * LEVEL * EXPERIMENTS
    # What McNemar's test does that takes all items for independent: the reason for the other.
    assert over_items > (1.3 if design == "passages" else 4) * LEVEL * EXPERIMENTS


def test_the_test_over_groups_loses_no_power_where_groups_share_nothing():
    sizes = DESIGNS["subjects"]
    groups = labels(sizes)
    found = [
        (sign_flip(*sides, groups, 0, 0) <= LEVEL, mcnemar_exact(*sides)[0] <= LEVEL)
        for sides in answers(sizes, 0.0, (0.4, 0.44), 3)
    ]
    over_groups, over_items = np.mean(found, axis=0)
    assert over_items > 0.6
    assert over_groups > over_items - 0.06


@pytest.mark.parametrize(("lost", "won"), [(0.10, 0.15), (0.05, 0.12), (0.02, 0.05)])
def test_the_power_of_mcnemar_is_the_one_of_theory(lost, won):
    items = 400
    generator = np.random.default_rng(4)
    drawn = generator.random((EXPERIMENTS, items))
    before = generator.random((EXPERIMENTS, items)) < 0.5  # where nothing changes, both sides are this
    to_wrong, to_right = drawn < lost, (drawn >= lost) & (drawn < lost + won)
    first, second = (before | to_wrong) & ~to_right, (before & ~to_wrong) | to_right
    power = np.mean([mcnemar_exact(*sides)[0] <= LEVEL for sides in zip(first, second, strict=True)])
    # Exactly: the number of changed items is binomial, and so is the part of them that was lost.
    changed = np.arange(items + 1)
    share = lost / (lost + won)
    weights = binom.pmf(changed, items, lost + won)
    rejected = np.zeros(items + 1)
    for count in changed[weights > 1e-9]:
        either = np.arange(count + 1)
        p_values = np.minimum(1, 2 * np.minimum(binom.cdf(either, count, 0.5), binom.sf(either - 1, count, 0.5)))
        rejected[count] = binom.pmf(either, count, share)[p_values <= LEVEL].sum()
    exact = float(weights @ rejected)
    assert power == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / EXPERIMENTS))
    # And by the formula of Connor (1987) without the correction for continuity, which the exact test stays below.
    both, apart = lost + won, won - lost
    formula = norm.cdf((apart * np.sqrt(items) - norm.ppf(0.975) * np.sqrt(both)) / np.sqrt(both - apart**2))
    assert formula - 0.12 < exact < formula + 0.01


def test_the_power_of_the_test_over_groups_is_that_of_the_t_test():
    groups, items, gain = 40, 4, 0.35
    generator = np.random.default_rng(5)
    index = np.repeat(np.arange(groups), items)
    change = gain + generator.normal(0, 0.7, (EXPERIMENTS, groups))[:, index]
    change = change + generator.normal(0, 1, (EXPERIMENTS, groups * items))
    zeros = np.zeros(groups * items)
    power = np.mean([sign_flip(zeros, one, index, 399, seed) <= LEVEL for seed, one in enumerate(change)])
    shift = gain / np.sqrt((0.7**2 + 1 / items) / groups)
    bound = t.ppf(0.975, groups - 1)
    theory = nct.sf(bound, groups - 1, shift) + nct.cdf(-bound, groups - 1, shift)
    assert power == pytest.approx(theory, abs=0.04)


def documents(groups: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sizes in bytes, over a hundredfold range as on the web, and the groups they are of, two or three to each."""
    index = np.repeat(np.arange(groups), generator.integers(2, 4, groups))
    return index, np.exp(generator.normal(7.5, 0.8, len(index)))


@pytest.mark.parametrize("groups", [10, 40, 150])
def test_text_keeps_its_level_and_covers(groups):
    generator = np.random.default_rng(groups)
    errors = covered_not = 0
    for seed in range(EXPERIMENTS):
        index, size = documents(groups, generator)
        hardness = generator.normal(2, 0.4, len(size))
        change = generator.normal(0, 0.05, groups)[index] + generator.normal(0, 0.05, len(size))
        before, after = hardness * size, (hardness + change) * size
        errors += sign_flip(before, after, index, 199, seed) <= LEVEL
        covered_not += misses(paired_bootstrap_ratio(before, after, size, index, 300, seed), 0.0)
    assert near_nominal(errors)
    assert near_nominal(covered_not)


def test_perplexity_is_covered():
    generator = np.random.default_rng(6)
    errors = 0
    truth = np.exp(3.1) - np.exp(3.0)
    ones = np.ones(60)
    for seed in range(EXPERIMENTS):
        before = generator.normal(3.0, 0.8, 60)
        after = before + 0.1 + generator.normal(0, 0.3, 60)
        errors += misses(paired_bootstrap_ratio(before, after, ones, None, 300, seed, np.exp), truth)
    assert near_nominal(errors)


@pytest.mark.parametrize("design", DESIGNS)
def test_the_paired_interval_covers_a_true_change(design):
    sizes = DESIGNS[design]
    groups = labels(sizes)
    errors = sum(
        misses(bootstrap_mean_difference(*sides, groups, 300, seed), 0.05)
        for seed, sides in enumerate(answers(sizes, 0.25, (0.40, 0.45), 7))
    )
    assert at_most_nominal(errors)


def test_the_interval_of_one_score_covers():
    sizes = DESIGNS["subjects"]
    groups, ones = labels(sizes), np.ones(sizes.sum())
    errors = sum(
        misses(bootstrap_ratio(before, ones, groups, 300, seed), 0.4)
        for seed, (before, _) in enumerate(answers(sizes, 0.25, (0.4, 0.4), 8))
    )
    assert near_nominal(errors)


def seed_changes(
    seeds: int, of_seed: float, shared: float, truth: float, number: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Yield changes [seeds, items] in 40 groups of three: of the seed, the group, the item, and of seed and item."""
    generator = np.random.default_rng(number)
    index = np.repeat(np.arange(40), 3)
    for _ in range(EXPERIMENTS):
        rows = generator.normal(truth, of_seed, (seeds, 1)) + generator.normal(0, 1, (seeds, 120))
        yield rows + generator.normal(0, shared, 40)[index] + generator.normal(0, 0.5, 120), index


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("of_seed", "shared"), [(0.0, 0.0), (0.0, 0.7), (0.2, 0.0), (0.4, 0.7), (1.0, 0.0)])
def test_pooled_seeds_keep_their_level_and_cover(seeds, of_seed, shared):
    errors = not_covered = 0
    before, weights = np.full(120, 0.2), np.ones(120)
    for changes, index in seed_changes(seeds, of_seed, shared, 0.2, seeds):
        found = pooled_change(before, changes, weights, index)
        not_covered += misses(found.interval, 0.0)
        errors += found.p_value <= LEVEL
    assert at_most_nominal(not_covered)
    assert errors == not_covered  # the test and the interval are one statement


def test_a_bootstrap_of_three_seeds_would_not_cover():
    """The reason for `pooled_change`: drawing seeds and groups anew (Owen 2007) sees too little of how seeds differ."""
    generator = np.random.default_rng(9)
    errors = 0
    for changes, _ in seed_changes(3, 1.0, 0.0, 0.2, 9):
        table = changes.reshape(3, 40, 3).mean(axis=2)
        of_seeds = generator.multinomial(3, [1 / 3] * 3, 200) / 3
        of_groups = generator.multinomial(40, [1 / 40] * 40, 200) / 40
        draws = ((of_seeds @ table) * of_groups).sum(axis=1)
        errors += misses(Interval(0.0, *np.quantile(draws, [0.025, 0.975])), 0.2)
    assert errors > 3 * LEVEL * EXPERIMENTS


def test_pooled_right_and_wrong_keep_their_level():
    """Three seeds of a model that is no better: answers flip at random, and each seed has its own luck of 0.02."""
    generator = np.random.default_rng(10)
    errors = 0
    for _ in range(EXPERIMENTS):
        bound = norm.ppf(0.4) + generator.normal(0, 0.05, 4)[:, None]
        right = np.sqrt(0.6) * generator.normal(size=400) + np.sqrt(0.4) * generator.normal(size=(4, 400)) < bound
        # The base is one of the same kind, whose luck is not the pooled seeds': compare them with its own level.
        luck = norm.cdf(bound[0, 0]) - 0.4
        changes = right[1:] - right[0].astype(float)
        errors += pooled_change(np.full(400, -luck), changes, np.ones(400), None).p_value <= LEVEL
    assert at_most_nominal(errors)


@pytest.mark.parametrize(("chance", "items"), [(0.25, 100), (0.25, 1172), (0.5, 57), (0.5, 3270)])
def test_guessing_is_taken_for_ability_no_more_often_than_said(chance, items):
    right = np.arange(items + 1)
    p_values = np.array([binomial_two_sided(int(count), items, chance) for count in right])
    assert binom.pmf(right, items, chance)[p_values <= LEVEL].sum() <= LEVEL  # over all outcomes, not a sample


@pytest.mark.parametrize("items", [50, 300, 3000])
@pytest.mark.parametrize(
    ("gold", "habit"),
    [((0.23, 0.25, 0.25, 0.27), (0.7, 0.1, 0.1, 0.1)), ((0.25,) * 4, (0.25,) * 4), ((0.38, 0.62), (0.2, 0.8))],
)
def test_a_habit_of_letters_is_taken_for_ability_no_more_often_than_said(gold, habit, items):
    generator = np.random.default_rng(13)
    pairs = (generator.choice(len(gold), (2000, items), p=share) for share in (gold, habit))
    errors = sum(chance_agreement(*pair, len(gold)) <= LEVEL for pair in zip(*pairs, strict=True))
    assert near_nominal(errors)


HABITS: dict[str, float | None] = {"one letter in each subject": None, "strong": 0.3, "mild": 2.0, "none": 1e6}
"""Concentration of the shares of letters that a model picks in a subject (Dirichlet)."""


def synthetic_gold(generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right letters of 57 subjects of 5 to 110 items, and the subjects; the letters' shares differ as in small ones."""
    index = labels(np.round(np.geomspace(5, 110, 57)).astype(int))
    return letters_by(generator.dirichlet([5.0] * 4, 57), index, generator), index


def letters_by(
    shares: NDArray[np.float64], index: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a letter for each item by the shares [subjects, letters] of its subject."""
    bounds = shares.cumsum(axis=1)[:, :3].T[:, index]
    return (generator.random(len(index)) > bounds).sum(axis=0)


def blind(
    index: NDArray[np.int64], habit: float | None, generator: np.random.Generator, experiments: int
) -> Iterator[NDArray[np.int64]]:
    """Yield what models answer that do not look at the question, each with a habit of its own in each subject."""
    subjects = int(index.max()) + 1
    for _ in range(experiments):
        if habit is None:
            yield generator.integers(4, size=subjects)[index]
        else:
            yield letters_by(generator.dirichlet([habit] * 4, subjects), index, generator)


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_of_each_subject_is_taken_for_ability_no_more_often_than_said(habit):
    generator = np.random.default_rng(14)
    gold, index = synthetic_gold(generator)
    errors = of_one = 0
    for picked in blind(index, HABITS[habit], generator, EXPERIMENTS):
        errors += chance_agreement(gold, picked, 4, index) <= LEVEL
        of_one += chance_agreement(gold, picked, 4) <= LEVEL
    if HABITS[habit] is None:
        assert errors == 0
    else:
        assert near_nominal(errors)
    if habit in ("one letter in each subject", "strong"):
        assert of_one > 1.5 * LEVEL * EXPERIMENTS  # with all subjects as one, which is the reason for the other


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_of_each_subject_of_mmlu_is_not_taken_for_ability(habit, shared_data: Path):
    files = sorted((shared_data / "bench/mmlu/test").glob("*_test.csv"))
    assert len(files) == 57
    letters = [[row[5] for row in csv.reader(io.StringIO(path.read_text("utf-8")))] for path in files]
    gold = np.array(["ABCD".index(letter) for subject in letters for letter in subject])
    index = labels(np.array([len(subject) for subject in letters]))
    assert len(gold) == 14_042
    generator, experiments = np.random.default_rng(15), 400
    errors = of_one = 0
    for picked in blind(index, HABITS[habit], generator, experiments):
        errors += chance_agreement(gold, picked, 4, index) <= LEVEL
        of_one += chance_agreement(gold, picked, 4) <= LEVEL
    if HABITS[habit] is None:
        assert errors == 0
        assert of_one > 0.2 * experiments  # with all subjects as one: 28 %
    else:
        assert near_nominal(errors, experiments)


def test_ability_is_found_whatever_the_habits_of_the_subjects():
    """Of 1,962 items 4 % are known, all else is habit: by theory found in 87 % of experiments."""
    generator = np.random.default_rng(16)
    gold, index = synthetic_gold(generator)
    found = {}
    for habit in ("none", "mild"):
        answered = blind(index, HABITS[habit], generator, 500)
        knowing = (np.where(generator.random(len(gold)) < 0.04, gold, picked) for picked in answered)
        found[habit] = np.mean([chance_agreement(gold, picked, 4, index) <= LEVEL for picked in knowing])
    shift = 0.04 * 0.75 * np.sqrt(len(gold) / (0.75 * 0.25))
    assert found["none"] == pytest.approx(norm.sf(1.96 - shift), abs=0.05)
    assert found["mild"] > 0.75 * found["none"]


@pytest.mark.parametrize("false", [0, 2])
def test_holm_over_seven_tasks_keeps_the_family_wise_error(false):
    """Seven tasks, two of them in groups; `false`: so many do change, and finding those is no error."""
    alone, grouped = np.ones(200, dtype=int), DESIGNS["passages"]
    designs = [alone] * 5 + [grouped] * 2
    tasks = [
        answers(design, 0.25, (0.4, 0.6 if place < false else 0.4), 20 + place) for place, design in enumerate(designs)
    ]
    marks = [None if len(set(design)) == 1 else labels(design) for design in designs]
    errors = found = 0
    for sides in zip(*tasks, strict=True):
        adjusted = holm([sign_flip(*pair, mark, 0, 0) for pair, mark in zip(sides, marks, strict=True)])
        errors += min(adjusted[false:]) <= LEVEL
        found += sum(p <= LEVEL for p in adjusted[:false])
    assert at_most_nominal(errors)
    assert found >= 0.8 * false * EXPERIMENTS


def tables() -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    generator = np.random.default_rng(11)
    for _ in range(60):
        items = int(generator.integers(1, 400))
        yield generator.random(items) < generator.random(), generator.random(items) < generator.random()


def test_mcnemar_agrees_with_statsmodels():
    for before, after in tables():
        table = np.histogram2d(before, after, bins=2, range=[[0, 1], [0, 1]])[0].astype(int)
        assert mcnemar_exact(before, after)[0] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)


def test_without_groups_the_test_over_groups_is_mcnemar():
    for before, after in tables():
        expected = mcnemar_exact(before, after)[0]
        assert sign_flip(before, after, None, 0, 0) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_the_binomial_test_agrees_with_scipy_where_it_is_symmetric():
    for trials in (1, 2, 9, 40, 501):
        for successes in range(0, trials + 1, max(1, trials // 7)):
            expected = binomtest(successes, trials).pvalue
            assert binomial_two_sided(successes, trials, 0.5) == pytest.approx(expected, rel=1e-9)


def test_holm_agrees_with_statsmodels():
    generator = np.random.default_rng(12)
    for size in (1, 2, 7, 40):
        p_values = generator.random(size) ** 3
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


def by_enumeration(sums: NDArray[np.float64]) -> float:
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    return float(np.mean(np.abs(sums @ signs) >= abs(sums.sum()) - 1e-9))


@pytest.mark.parametrize("draw", [lambda g: g.integers(-6, 7, 10).astype(float), lambda g: g.normal(0.4, 1, 10)])
def test_sign_flips_agree_with_all_patterns(draw: Callable[[np.random.Generator], NDArray[np.float64]]):
    for seed in range(20):
        sums = draw(np.random.default_rng(seed))
        found = sign_flip(np.zeros(10), sums, None, 40_000, seed)
        assert found == pytest.approx(by_enumeration(sums), abs=0.012 if sums[0] % 1 else 1e-12)
