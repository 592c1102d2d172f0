"""Weighted correlations equal the textbook ones on rows repeated as often as they weigh."""

import numpy as np
import pytest
import scipy.stats

from sft_atlas.statistics.correlation import demean, weighted_pearson, weighted_ranks


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=30), 1)
    y = np.round(x + rng.normal(size=30), 1)
    return x, y, rng.integers(0, 4, size=(8, 30)).astype(float)


def test_pearson_equals_scipy_on_repeated_rows(case: tuple[np.ndarray, ...]) -> None:
    x, y, weights = case
    for row, found in zip(weights, weighted_pearson(x, y, weights), strict=True):
        index = np.repeat(np.arange(30), row.astype(int))
        assert found == pytest.approx(scipy.stats.pearsonr(x[index], y[index]).statistic)


@pytest.mark.parametrize("is_shared", [True, False])
def test_spearman_equals_scipy_with_ties(case: tuple[np.ndarray, ...], is_shared: bool) -> None:
    x, y, weights = case
    shape = (lambda v: v) if is_shared else (lambda v: np.tile(v, (8, 1)))
    ranks = weighted_ranks(shape(x), weights), weighted_ranks(shape(y), weights)
    for row, found in zip(weights, weighted_pearson(*ranks, weights), strict=True):
        index = np.repeat(np.arange(30), row.astype(int))
        assert found == pytest.approx(scipy.stats.spearmanr(x[index], y[index]).statistic)


def test_what_does_not_vary_has_no_correlation() -> None:
    weights = np.ones((1, 5))
    assert np.isnan(weighted_pearson(np.full(5, 0.1), np.arange(5.0), weights)[0])
    ranks = weighted_ranks(np.full(5, 0.1), weights)
    assert np.isnan(weighted_pearson(ranks, np.arange(5.0), weights)[0])


def test_demeaning_uses_the_weights_and_keeps_equal_values_equal() -> None:
    groups = np.array([0, 0, 0, 1, 1])
    values = np.array([0.1, 0.1, 0.4, 2.0, 3.0])
    result = demean(values, groups, np.array([[1.0, 1.0, 1.0, 1.0, 3.0]]))
    assert result[0] == pytest.approx([-0.1, -0.1, 0.2, -0.75, 0.25])
    assert result[0, 0] == result[0, 1]
