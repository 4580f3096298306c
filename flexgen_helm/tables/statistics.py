"""Statistics of paired scores: the same instances, answered under two settings.

Everything is drawn from fixed seeds, so that the same runs give the same tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of the intervals."""

RESAMPLES = 10_000
"""Of a bootstrap, and of a permutation test that cannot go through all permutations."""

NUMBERS_AT_ONCE = 1 << 22
"""Resampled numbers in memory at a time."""

MCNEMAR = "McNemar"
SIGN_FLIP = "sign flips"


class Interval(NamedTuple):
    """Where a mean probably is."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """Whether two settings differ."""

    name: str
    """`MCNEMAR` or `SIGN_FLIP`."""

    p_value: float
    """Probability of a difference at least this large if there were none."""


def resampled_means(differences: Scores, *, seed: int = 0) -> Scores:
    """Return the means of bootstrap samples of some differences [n], as [`RESAMPLES`]."""
    if len(set(differences.tolist())) == 1:
        return np.full(RESAMPLES, differences[0])
    drawn = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // len(differences)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    means: Scores = drawn.bootstrap_distribution
    return means


def interval_of(means: Scores) -> Interval:
    """Return the percentile interval of means of bootstrap samples."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def compare_pairs(reference: Scores, other: Scores) -> PairedTest:
    """Test whether paired scores [n] differ: by McNemar's exact test where all are 0 or 1.

    Other scores are tested by flipping the signs of their differences, each way equally likely if
    the settings were alike.
    """
    differences = other - reference
    if np.isin(np.concatenate([reference, other]), (0, 1)).all():
        return PairedTest(
            MCNEMAR, mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
        )
    return PairedTest(SIGN_FLIP, sign_flips(differences))


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p-value of so many instances only one of two settings got right."""
    if lost + won == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + won).pvalue)


def sign_flips(differences: Scores) -> float:
    """Return the two-sided p-value of a permutation test of paired differences [n]."""
    if not differences.any():
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES - 1,
        batch=max(1, NUMBERS_AT_ONCE // len(differences)),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several, by Holm's step-down method."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()
