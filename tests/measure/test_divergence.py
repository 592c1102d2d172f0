"""MMD equals its definition by scikit-learn's kernel; its test holds its level and has power."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from sft_atlas.measure.divergence import measure_divergence


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def direct_mmd2(first: np.ndarray, second: np.ndarray, bandwidth: float) -> float:
    """Equation 3 of Gretton et al. 2012, sum by sum."""
    gamma = 1 / (2 * bandwidth**2)
    m, n = len(first), len(second)
    xx, yy = rbf_kernel(first, gamma=gamma), rbf_kernel(second, gamma=gamma)
    xy = rbf_kernel(first, second, gamma=gamma)
    return (
        (xx.sum() - np.trace(xx)) / (m * (m - 1))
        + (yy.sum() - np.trace(yy)) / (n * (n - 1))
        - 2 * xy.mean()
    )


def test_the_statistic_equals_its_definition() -> None:
    first, second = draw(0, 30, 5), 0.7 * draw(1, 50, 5) + 0.3
    found = measure_divergence(first, second, seed=0, num_permutations=20)
    pooled = euclidean_distances(np.concatenate([first, second]))
    assert found.bandwidth == pytest.approx(np.median(pooled[np.triu_indices(80, 1)]), rel=1e-12)
    assert found.mmd2 == pytest.approx(direct_mmd2(first, second, found.bandwidth), rel=1e-9)


def test_the_statistic_is_symmetric() -> None:
    first, second = draw(0, 20, 4), draw(1, 35, 4)
    one = measure_divergence(first, second, seed=0, num_permutations=5)
    other = measure_divergence(second, first, seed=0, num_permutations=5)
    assert one.mmd2 == pytest.approx(other.mmd2, rel=1e-9)
    assert one.bandwidth == pytest.approx(other.bandwidth, rel=1e-12)


def test_p_values_tend_to_those_of_all_permutations() -> None:
    first, second = draw(2, 4, 2), draw(3, 5, 2) + 2
    pooled = np.concatenate([first, second])
    found = measure_divergence(first, second, seed=0, num_permutations=6_000)
    splits = [
        direct_mmd2(
            pooled[list(chosen)], np.delete(pooled, list(chosen), axis=0), found.bandwidth or 0
        )
        for chosen in itertools.combinations(range(9), 4)
    ]
    exact = np.mean([value >= found.mmd2 - 1e-12 for value in splits])
    assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 6_000))
    assert 0.01 < exact < 0.5


def test_equal_distributions_have_uniform_p_values() -> None:
    p_values = [
        measure_divergence(
            draw(2 * i, 9, 3), draw(2 * i + 1, 16, 3), seed=i, num_permutations=49
        ).p_value
        for i in range(200)
    ]
    # Values lie on a grid of 0.02: spread within its steps they are uniform, if the test is exact.
    spread = np.array(p_values) - np.random.default_rng(0).random(200) / 50
    assert kstest(spread, "uniform").pvalue > 0.01


def test_a_shift_and_a_change_of_spread_are_found() -> None:
    first = draw(0, 40, 3)
    for second in (draw(1, 40, 3) + 1, 3 * draw(1, 40, 3)):
        found = measure_divergence(first, second, seed=0, num_permutations=199)
        assert found.p_value == 1 / 200
        assert found.mmd2 > 0.05


def test_a_shift_of_all_vectors_together_changes_nothing() -> None:
    first, second = draw(0, 20, 3), draw(1, 30, 3) + 0.5
    here = measure_divergence(first, second, seed=0, num_permutations=50)
    there = measure_divergence(first + 7, second + 7, seed=0, num_permutations=50)
    assert there.mmd2 == pytest.approx(here.mmd2, rel=1e-9)
    assert there.p_value == here.p_value


def test_equal_vectors_have_no_bandwidth_and_no_divergence() -> None:
    same = np.ones((4, 3)) / 3
    found = measure_divergence(same, same[:3], seed=0, num_permutations=10)
    assert found == (0.0, 1.0, None, 10)


def test_mostly_equal_vectors_take_the_median_of_the_other_distances() -> None:
    first = np.zeros((9, 2))
    second = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert measure_divergence(first, second, seed=0, num_permutations=10).bandwidth == 5.0
