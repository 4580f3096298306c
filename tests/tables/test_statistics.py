from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from flexgen_helm.tables.statistics import (
    MCNEMAR,
    RESAMPLES,
    SIGN_FLIP,
    compare_pairs,
    holm,
    interval_of,
    mcnemar,
    resampled_means,
    sign_flips,
)

DIFFERENCES = np.random.default_rng(7).normal(0.02, 0.3, 200)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels(lost, won):
    expected = statsmodels_mcnemar([[5, lost], [won, 9]], exact=True).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_statsmodels(p_values):
    with patch("gc.collect"):  # which statsmodels does for every list: half a minute in all
        expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist())


def test_nothing_to_adjust():
    assert holm([]) == []


def test_the_interval_is_scipys_bootstrap():
    ours = interval_of(resampled_means(DIFFERENCES))
    theirs = stats.bootstrap(
        (DIFFERENCES,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=1
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_the_interval_is_about_the_normal_one():
    mean, error = DIFFERENCES.mean(), DIFFERENCES.std(ddof=1) / np.sqrt(len(DIFFERENCES))
    low, high = interval_of(resampled_means(DIFFERENCES))
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.004)


def test_the_same_differences_give_the_same_interval_and_another_seed_another():
    one, again, other = (resampled_means(DIFFERENCES, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_equal_differences_have_no_width():
    assert interval_of(resampled_means(np.full(30, -0.5))) == (-0.5, -0.5)


def test_sign_flips_are_close_to_a_t_test():
    expected = stats.ttest_1samp(DIFFERENCES, 0).pvalue
    assert sign_flips(DIFFERENCES) == pytest.approx(expected, abs=0.02)


def test_few_sign_flips_are_all_tried():
    # Of the 16 ways to flip signs, the means of 6 are at least as far from 0 as 0.5 / 4.
    assert sign_flips(np.array([0.1, 0.2, 0.3, -0.1])) == pytest.approx(6 / 16)


def test_scores_of_0_and_1_are_tested_by_mcnemar_and_others_by_sign_flips():
    right, wrong = np.array([1.0, 1, 0]), np.array([0.0, 1, 0])
    assert compare_pairs(right, wrong).name == MCNEMAR
    assert compare_pairs(right, wrong / 2).name == SIGN_FLIP


def test_no_difference_is_found_where_there_is_none():
    scores = np.random.default_rng(0).random(500)
    same = np.zeros(500)
    assert compare_pairs(scores, scores).p_value == 1
    assert compare_pairs(same, same) == (MCNEMAR, 1)
    assert interval_of(resampled_means(scores - scores)) == (0, 0)


def test_a_degradation_of_5_percent_is_detected_in_500_instances():
    reference = np.ones(500)
    degraded = reference.copy()
    degraded[:25] = 0
    low, high = interval_of(resampled_means(degraded - reference))
    assert low < -0.05 < high < 0
    assert compare_pairs(reference, degraded).p_value < 1e-6


def test_intervals_contain_the_truth_about_as_often_as_they_say():
    drawn = np.random.default_rng(5).normal(0.1, 1, (200, 80))
    intervals = [interval_of(resampled_means(sample)) for sample in drawn]
    covered = sum(low <= 0.1 <= high for low, high in intervals)
    assert 180 <= covered <= 198  # 190 expected; outside with a probability of 0.5 %
