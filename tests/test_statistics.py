"""Formulas against hand-computed examples and scipy, and simulations that a wrong method would fail."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_1samp
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.inter_rater import cohens_kappa

from onward.statistics import (
    Interval,
    _freedom,
    _resampled,
    above_chance,
    binomial_two_sided,
    bootstrap_mean_difference,
    bootstrap_ratio,
    chance_agreement,
    holm,
    mcnemar_exact,
    mean_stderr,
    paired_bootstrap_ratio,
    pooled_change,
    pooled_sample_stderr,
    sign_flip,
)


def rejects(interval: Interval, truth: float = 0.0) -> bool:
    return not interval.low <= truth <= interval.high


def test_ratio_is_of_sums_not_mean_of_ratios():
    assert bootstrap_ratio(np.array([1.0, 9.0]), np.array([1, 3]), None, 200, 0).estimate == 2.5


def test_equal_ratios_have_an_interval_of_no_width():
    interval = bootstrap_ratio(np.array([2.0, 4.0, 8.0]), np.array([1, 2, 4]), None, 200, 0)
    assert (interval.low, interval.high) == (2.0, 2.0)


def test_interval_of_a_large_sample_is_the_normal_one():
    generator = np.random.default_rng(5)
    bits, size = generator.normal(2.0, 0.3, 4000), np.ones(4000)
    interval = bootstrap_ratio(bits, size, None, 4000, 0)
    half = norm.ppf(0.975) * bits.std(ddof=1) / np.sqrt(len(bits))
    assert interval.low == pytest.approx(bits.mean() - half, abs=half * 0.06)
    assert interval.high == pytest.approx(bits.mean() + half, abs=half * 0.06)


def test_paired_difference_is_the_difference_of_the_ratios_and_its_direction():
    before, after, size = np.array([4.0, 6.0, 5.0]), np.array([2.0, 3.0, 2.0]), np.array([1, 2, 2])
    interval = paired_bootstrap_ratio(before, after, size, None, 500, 0)
    assert interval.estimate == pytest.approx((7 - 15) / 5)
    assert interval.high < 0


def test_a_mean_difference_is_a_ratio_over_ones():
    before, after = np.array([0, 1, 1, 0]), np.array([1, 1, 1, 0])
    assert bootstrap_mean_difference(before, after, None, 200, 0).estimate == 0.25


def test_pairing_cancels_what_makes_items_hard():
    generator = np.random.default_rng(1)
    hardness = generator.normal(0, 5, 300)
    after = hardness - 0.1 + generator.normal(0, 0.1, 300)
    assert bootstrap_mean_difference(hardness, after, None, 1000, 0).high < 0


def test_the_same_seed_draws_the_same_and_chunks_do_not_matter(monkeypatch):
    generator = np.random.default_rng(2)
    # Whole numbers: sums of fractions may differ in the last bit with the size of a matrix product.
    numerators, denominators = generator.integers(0, 99, 50), generator.integers(1, 9, 50)
    whole = bootstrap_ratio(numerators, denominators, None, 333, 7)
    monkeypatch.setattr("onward.statistics._CHUNK_CELLS", 200)
    assert bootstrap_ratio(numerators, denominators, None, 333, 7) == whole
    assert bootstrap_ratio(numerators, denominators, None, 333, 8) != whole


def test_memory_of_a_chunk_is_bounded():
    sums = np.ones((10_000, 2))
    assert max(chunk.size for chunk in _resampled(sums, 500, 0)) <= 100


def test_groups_are_drawn_whole():
    # Each group's mean is 0 or 1 and its items are equal: with groups there are two units, without two hundred.
    values, groups = np.repeat([0.0, 1.0], 100), np.repeat(["a", "b"], 100)
    clustered = bootstrap_ratio(values, np.ones(200), groups, 500, 0)
    single = bootstrap_ratio(values, np.ones(200), None, 500, 0)
    assert (clustered.low, clustered.high) == (0.0, 1.0)
    assert single.high - single.low < 0.2


def test_one_group_falls_back_to_its_items_and_one_item_has_no_interval():
    values = np.arange(20.0)
    assert bootstrap_ratio(values, np.ones(20), np.zeros(20), 300, 0) == bootstrap_ratio(
        values, np.ones(20), None, 300, 0
    )
    alone = bootstrap_ratio(np.array([3.0]), np.array([2]), None, 100, 0)
    assert alone.estimate == 1.5
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)


def test_empty_documents_do_not_spoil_an_interval():
    interval = bootstrap_ratio(np.array([0.0, 2.0, 3.0]), np.array([0, 1, 1]), None, 500, 0)
    assert 2.0 <= interval.low <= interval.high <= 3.0


def test_no_items_is_refused():
    with pytest.raises(AssertionError, match="no items"):
        bootstrap_ratio(np.array([]), np.array([]), None, 100, 0)


@pytest.mark.parametrize("clusters", [8, 40])
def test_interval_covers_the_truth_as_often_as_it_says(clusters):
    generator = np.random.default_rng(11)
    misses = 0
    for seed in range(1500):
        values = generator.normal(0, 1, clusters)
        misses += rejects(bootstrap_ratio(values, np.ones(clusters), None, 400, seed))
    # Nominal 75, sd 8.4; the plain percentile interval of eight groups misses about 165 times.
    assert 50 <= misses <= 105


def test_clustered_interval_keeps_its_level_where_the_plain_one_does_not():
    generator = np.random.default_rng(12)
    groups = np.repeat(np.arange(30), 10)
    clustered = plain = 0
    for seed in range(400):
        shared = np.repeat(generator.normal(0, 1, 30), 10)
        after = shared + generator.normal(0, 1, 300)
        before = np.zeros(300)
        clustered += rejects(bootstrap_mean_difference(before, after, groups, 300, seed))
        plain += rejects(bootstrap_mean_difference(before, after, None, 300, seed))
    assert 7 <= clustered <= 33  # nominal 20, sd 4.4
    assert plain > 100  # pretending that the items are independent is wrong in more than a quarter of the cases


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 10), (3, 10), (5, 10), (10, 10), (12, 40), (500, 1000)])
def test_binomial_agrees_with_scipy(successes, trials):
    ours = binomial_two_sided(successes, trials, 0.5)
    assert ours == pytest.approx(binomtest(successes, trials, 0.5).pvalue, rel=1e-9)


def test_binomial_doubles_the_smaller_tail_when_the_distribution_is_skewed():
    upper = binomtest(40, 100, 0.25, alternative="greater").pvalue
    assert binomial_two_sided(40, 100, 0.25) == pytest.approx(2 * upper, rel=1e-9)


def test_mcnemar_by_hand():
    # 1 right->wrong and 5 wrong->right: p = 2 (1 + 6) / 2^6; unchanged items do not matter.
    before = np.array([True] * 4 + [False] * 5 + [True, False])
    after = np.array([True] * 3 + [False] + [True] * 5 + [True, False])
    p_value, right_to_wrong, wrong_to_right = mcnemar_exact(before, after)
    assert (right_to_wrong, wrong_to_right) == (1, 5)
    assert p_value == pytest.approx(14 / 64)
    assert mcnemar_exact(before, before) == (1.0, 0, 0)


def test_mcnemar_keeps_its_level_and_has_power():
    generator = np.random.default_rng(13)

    def rejections(gain: float) -> int:
        count = 0
        for _ in range(500):
            before = generator.random(400) < 0.4
            flips = generator.random(400)
            after = np.where(before, flips > 0.2 - gain, flips < 0.2 * 0.4 / 0.6 + gain)
            count += mcnemar_exact(before, after)[0] <= 0.05
        return count

    assert rejections(0.0) <= 40  # nominal 25, sd 4.9; the exact test stays below its level
    assert rejections(0.1) > 450


def test_holm_by_hand_and_in_the_given_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


def test_holm_keeps_the_family_wise_error():
    generator = np.random.default_rng(14)
    families = generator.random((2000, 7))
    false = sum(min(holm(list(row))) <= 0.05 for row in families)
    assert 60 <= false <= 140  # nominal 100, sd 9.7; uncorrected it would be 603


def test_standard_errors_by_hand_and_as_lm_evals():
    from lm_eval.api import metrics

    assert mean_stderr(np.array([1, 0, 0, 1])) == pytest.approx(np.sqrt(1 / 3 / 4))
    assert np.isnan(mean_stderr(np.array([1])))
    # Subtasks 1 0 0 1 and 1 1 0: squares about their own means 1 and 2/3, over 7 - 2, over 7.
    parts = [np.array([1, 0, 0, 1]), np.array([1, 1, 0])]
    pooled = pooled_sample_stderr([mean_stderr(part) for part in parts], [4, 3])
    assert pooled == pytest.approx(np.sqrt((1 + 2 / 3) / 5 / 7))
    generator = np.random.default_rng(0)
    parts = [(generator.random(size) < 0.4).astype(float) for size in (20, 100, 57)]
    errors = [mean_stderr(part) for part in parts]
    assert errors == pytest.approx([metrics.mean_stderr(part.tolist()) for part in parts], rel=1e-12)
    expected = metrics.pooled_sample_stderr(errors, [20, 100, 57])
    assert pooled_sample_stderr(errors, [20, 100, 57]) == pytest.approx(expected, rel=1e-12)


def test_a_subtask_of_one_item_adds_no_scatter():
    assert pooled_sample_stderr([0.1, float("nan")], [10, 1]) == pytest.approx(np.sqrt(9 * 0.01 * 10 / 9 / 11))
    assert np.isnan(pooled_sample_stderr([float("nan")] * 2, [1, 1]))


def test_above_chance_is_zero_for_guessing_and_one_for_all_right():
    assert above_chance(0.25, 0.25) == 0
    assert above_chance(1.0, 0.5) == 1
    assert above_chance(0.4375, 0.25) == 0.25
    assert above_chance(0.4, 0.5) == pytest.approx(-0.2)


def test_sign_flips_by_hand():
    # Groups a: +1 +1, b: -1, c: +1: the total is 2; of the eight totals of 2, 1 and 1 six are as far from zero.
    before, after = np.array([0, 0, 1, 0, 1]), np.array([1, 1, 0, 1, 1])
    groups = np.array(["a", "a", "b", "c", "d"])
    assert sign_flip(before, after, groups, 0, 0) == 0.75
    assert sign_flip(before, before, groups, 0, 0) == 1.0
    # What cancels within a group has not changed it: two groups of 2 are left.
    twice, pairs = np.array([0, 0, 0, 0, 0, 1]), np.array([1, 1, 1, 1, 1, 0])
    assert sign_flip(twice, pairs, np.array([1, 1, 2, 2, 3, 3]), 0, 0) == 0.5


def test_drawn_sign_flips_count_what_was_seen_and_are_reproducible():
    zeros, gains = np.zeros(40), np.random.default_rng(0).normal(5, 0.1, 40)
    assert sign_flip(zeros, gains, None, 199, 0) == 1 / 200
    noise = np.random.default_rng(1).normal(0, 1, 40)
    assert sign_flip(zeros, noise, None, 199, 3) == sign_flip(zeros, noise, None, 199, 3)
    assert sign_flip(zeros, noise, None, 999, 3) == pytest.approx(sign_flip(zeros, -noise, None, 999, 4), abs=0.06)


def test_one_group_is_tested_by_its_items():
    before, after = np.array([0] * 6), np.array([1] * 6)
    assert sign_flip(before, after, np.zeros(6), 0, 0) == pytest.approx(1 / 32)


def test_sign_flips_of_a_whole_benchmark_are_quick_and_precise():
    generator = np.random.default_rng(2)
    before, after = generator.random(10_042) < 0.4, generator.random(10_042) < 0.43
    expected = mcnemar_exact(before, after)[0]
    assert expected < 1e-3
    assert sign_flip(before, after, None, 0, 0) == pytest.approx(expected, rel=1e-8)


def test_uneven_groups_leave_fewer_degrees_of_freedom():
    assert _freedom(np.full(10, 7.0)) == pytest.approx(9)
    assert _freedom(np.array([8.0, 4, 4, 4, 4])) == pytest.approx(24**2 / 128 - 1)
    assert _freedom(np.array([60.0, 1, 1])) == 1.0


def test_a_perplexity_is_scaled_before_it_is_subtracted():
    ones = np.ones(4)
    interval = paired_bootstrap_ratio(np.log([2.0, 8, 4, 4]), np.log([4.0, 4, 4, 4]), ones, None, 500, 0, np.exp)
    assert interval.estimate == pytest.approx(0.0)
    assert interval.low < 0 < interval.high
    assert paired_bootstrap_ratio(ones * 0, ones, ones, None, 99, 0, np.exp).high == pytest.approx(np.e - 1)


def test_pooled_change_by_hand():
    # Seeds change by 0.5 and 1.5 on average, items by 1 and 1: all variance is of the seeds, 0.25 with one degree.
    found = pooled_change(np.zeros(2), np.array([[0.0, 1.0], [2.0, 1.0]]), np.ones(2), None)
    assert found.interval.estimate == 1.0
    assert found.interval.high - 1 == pytest.approx(12.7062 * 0.5, rel=1e-5)
    assert found.seed_deviation == pytest.approx(np.sqrt(0.5))
    assert found.p_value == pytest.approx(2 * student.sf(2, 1), rel=1e-6)
    # Seeds that agree: all variance is of the items, as in a t test of 1 2 3.
    same = pooled_change(np.zeros(3), np.array([[1.0, 2, 3]] * 2), np.ones(3), None)
    assert same.p_value == pytest.approx(ttest_1samp([1, 2, 3], 0).pvalue, rel=1e-6)
    assert same.seed_deviation == 0


def test_pooled_change_without_scatter():
    none = pooled_change(np.zeros(3), np.zeros((2, 3)), np.ones(3), None)
    assert (none.p_value, none.interval) == (1.0, Interval(0.0, 0.0, 0.0))
    assert pooled_change(np.zeros(3), np.ones((2, 3)), np.ones(3), None).p_value == pytest.approx(1e-12)
    alone = pooled_change(np.zeros(1), np.ones((2, 1)), np.ones(1), None)
    assert np.isnan(alone.interval.low)
    assert alone.p_value == 1.0
    with pytest.raises(AssertionError, match="one seed"):
        pooled_change(np.zeros(3), np.ones((1, 3)), np.ones(3), None)


def test_agreement_beyond_habit_is_the_test_of_kappa():
    table = np.array([[40, 9], [21, 30]])
    gold, picked = np.repeat([0, 0, 1, 1], table.ravel()), np.repeat([0, 1, 0, 1], table.ravel())
    kappa = cohens_kappa(table)
    expected = 2 * norm.sf(kappa.kappa / kappa.std_kappa0 * np.sqrt(99 / 100))
    assert chance_agreement(gold, picked, 2) == pytest.approx(expected, rel=1e-9)
    assert chance_agreement(gold, np.ones(100, dtype=int), 2) == 1.0
    assert chance_agreement(gold, gold, 2) < 1e-20


def test_agreement_within_subjects_is_the_test_of_mantel_and_haenszel():
    generator = np.random.default_rng(3)
    subjects = np.repeat(["law", "physics", "virology"], [30, 50, 80])
    gold = (generator.random(160) < np.repeat([0.3, 0.5, 0.8], [30, 50, 80])).astype(int)
    picked = np.where(generator.random(160) < 0.2, gold, generator.random(160) < 0.6).astype(int)
    tables = [
        np.histogram2d(gold[subjects == name], picked[subjects == name], bins=2, range=[[0, 1], [0, 1]])[0]
        for name in np.unique(subjects)
    ]
    expected = StratifiedTable(tables).test_null_odds(correction=False).pvalue
    assert chance_agreement(gold, picked, 2, subjects) == pytest.approx(expected, rel=1e-9)


def test_agreement_within_subjects_has_the_moments_of_all_orders_of_the_answers():
    gold, picked = np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 1, 3])
    agreed = np.array([np.sum(np.array(order) == picked) for order in itertools.permutations(gold)])
    expected = 2 * norm.sf((3 - agreed.mean()) / agreed.std())  # three of the five are right
    assert chance_agreement(gold, picked, 4) == pytest.approx(expected, rel=1e-12)
    # Two such subjects have twice the excess and twice the variance.
    twice = chance_agreement(np.tile(gold, 2), np.tile(picked, 2), 4, np.repeat([1, 2], 5))
    assert twice == pytest.approx(2 * norm.sf(2 * (3 - agreed.mean()) / (np.sqrt(2) * agreed.std())), rel=1e-12)


def test_another_letter_in_each_subject_is_habit_however_often_it_is_right():
    subjects = np.repeat(np.arange(4), 50)
    gold = np.where(np.arange(200) % 50 < 20, subjects, (subjects + 1 + np.arange(200) % 3) % 4)
    assert chance_agreement(gold, subjects, 4) < 1e-5  # as one subject it would pass for ability
    assert chance_agreement(gold, subjects, 4, subjects) == 1.0


def test_subjects_of_one_item_are_taken_together():
    gold, picked = np.arange(40) % 4, np.where(np.arange(40) < 30, np.arange(40), 0) % 4
    assert chance_agreement(gold, picked, 4, np.arange(40)) == chance_agreement(gold, picked, 4)
    assert chance_agreement(gold[:1], picked[:1], 4) == 1.0
