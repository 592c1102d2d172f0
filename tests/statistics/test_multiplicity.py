"""Adjusted p-values agree with other implementations, and bands hold all at once."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from sft_atlas.statistics.multiplicity import (
    benjamini_hochberg,
    benjamini_yekutieli,
    holm,
    simultaneous_quantile,
)

Adjustment = Callable[[np.ndarray], np.ndarray]
METHODS = {"holm": holm, "fdr_bh": benjamini_hochberg, "fdr_by": benjamini_yekutieli}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, 2, 17])
def test_adjusted_values_agree_with_statsmodels(name: str, size: int) -> None:
    p_values = np.random.default_rng(size).uniform(size=size) ** 3
    p_values[-1] = p_values[0]
    expected = multipletests(p_values, method=name)[1]
    assert METHODS[name](p_values) == pytest.approx(expected)


@pytest.mark.parametrize("adjust", METHODS.values(), ids=METHODS)
def test_a_test_that_was_not_made_counts_for_nothing(adjust: Adjustment) -> None:
    p_values = np.array([0.01, np.nan, 0.2, 0.03])
    found = adjust(p_values)
    assert np.isnan(found[1])
    assert found[[0, 2, 3]] == pytest.approx(adjust(p_values[[0, 2, 3]]))
    assert np.isnan(adjust(np.full(2, np.nan))).all()
    assert adjust(np.array([])).size == 0


def test_holm_is_between_no_adjustment_and_bonferroni() -> None:
    p_values = np.array([0.001, 0.02, 0.04, 0.5])
    assert holm(p_values) == pytest.approx([0.004, 0.06, 0.08, 0.5])


@pytest.mark.parametrize("freedom", [2, 9, 200])
def test_the_multiplier_of_one_estimate_is_students(freedom: int) -> None:
    expected = scipy.stats.t.ppf(0.975, freedom)
    assert simultaneous_quantile(np.ones((1, 1)), freedom) == pytest.approx(expected)
    # Estimates that are the same one need no more.
    assert simultaneous_quantile(np.ones((4, 4)), freedom) == pytest.approx(expected, rel=0.03)


def test_independent_estimates_with_known_errors_take_sidaks_multiplier() -> None:
    expected = scipy.stats.norm.ppf((1 + 0.95 ** (1 / 8)) / 2)
    assert simultaneous_quantile(np.eye(8), 1e6) == pytest.approx(expected, rel=0.01)


def test_two_estimates_agree_with_the_bivariate_t_distribution() -> None:
    correlation = np.array([[1.0, 0.6], [0.6, 1.0]])
    q = simultaneous_quantile(correlation, 5)
    t = scipy.stats.multivariate_t(shape=correlation, df=5, seed=0)
    inside = t.cdf([q, q], lower_limit=[-q, -q], maxpts=20_000)
    assert inside == pytest.approx(0.95, abs=0.003)
