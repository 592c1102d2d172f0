"""Intervals of variance components and their shares hold the truth as often as they say."""

import numpy as np
import pytest
import scipy.stats

from sft_atlas.statistics.reml import RemlFit, fit_reml
from sft_atlas.statistics.variance_shares import mean_squares, share_interval, sum_interval

TRUTH = np.array([0.05, 0.2, 0.1, 0.05, 0.25, 0.1, 0.15, 0.1])


def drawn(
    sizes: tuple[int, int, int], truth: np.ndarray, *, hole: float, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng([seed, 3])
    axes = [np.arange(size) for size in (*sizes, 2)]
    a, b, c, _ = (part.ravel() for part in np.meshgrid(*axes, indexing="ij"))
    keep = rng.random(a.size) >= hole
    a, b, c = a[keep], b[keep], c[keep]
    ab, ac, bc = a * sizes[1] + b, a * sizes[2] + c, b * sizes[2] + c
    factors = {"a": a, "b": b, "c": c, "ab": ab, "ac": ac, "bc": bc, "abc": ab * sizes[2] + c}
    values = rng.normal(size=a.size) * np.sqrt(truth[-1])
    for levels, variance in zip(factors.values(), truth, strict=False):
        values += (rng.normal(size=levels.max() + 1) * np.sqrt(variance))[levels]
    return values, factors


def covered(truth: np.ndarray, num_worlds: int, num_draws: int, hole: float) -> np.ndarray:
    """Share of worlds in which the interval of each share of the variance holds the truth."""
    shares, every = truth / truth.sum(), np.ones(truth.size)
    hits = []
    for seed in range(num_worlds):
        fit = fit_reml(*drawn((7, 6, 5), truth, hole=hole, seed=seed))
        squares = mean_squares(fit, num_draws=num_draws, seed=seed)
        bounds = np.array([share_interval(squares, part, every) for part in np.eye(truth.size)])
        hits.append((bounds[:, 0] <= shares + 1e-12) & (shares <= bounds[:, 1] + 1e-12))
    return np.mean(hits, axis=0)


def one_way(seed: int = 0, size: int = 12, repeats: int = 6) -> RemlFit:
    rng = np.random.default_rng(seed)
    levels = np.repeat(np.arange(size), repeats)
    values = rng.normal(size=size)[levels] + rng.normal(size=levels.size)
    return fit_reml(values, {"a": levels})


def test_residual_variance_has_the_interval_of_chi_square() -> None:
    fit = one_way()
    low, high = sum_interval(mean_squares(fit, num_draws=20_000), np.array([0.0, 1.0]))
    total = 60 * fit.variances[-1]
    expected = total / scipy.stats.chi2.ppf([0.975, 0.025], 60)
    assert (low, high) == pytest.approx(tuple(expected), rel=0.02)


def test_share_of_two_components_is_near_the_exact_interval() -> None:
    fit = one_way()
    between, noise = fit.variances
    ratio = (6 * between + noise) / noise
    f_low, f_high = ratio / scipy.stats.f.ppf([0.975, 0.025], 11, 60)
    exact = [(value - 1) / (value - 1 + 6) for value in (f_low, f_high)]
    squares = mean_squares(fit, num_draws=20_000)
    found = share_interval(squares, np.array([1.0, 0.0]), np.ones(2))
    # Zou and Donner's limits are close to, not equal to, those from the F distribution.
    assert found == pytest.approx(tuple(exact), abs=0.03)


def test_shares_and_their_complements_mirror_each_other() -> None:
    values, factors = drawn((7, 6, 5), TRUTH, hole=0.2, seed=1)
    squares = mean_squares(fit_reml(values, factors), num_draws=200)
    part, every = np.array([1.0, 0, 1, 0, 1, 0, 0, 0]), np.ones(8)
    low, high = share_interval(squares, part, every)
    other = share_interval(squares, every - part, every)
    assert (1 - high, 1 - low) == pytest.approx(other, abs=1e-9)
    assert 0 <= low < high <= 1
    assert share_interval(squares, every, every) == pytest.approx((1, 1))


def test_same_seed_gives_the_same_interval() -> None:
    fit = one_way()
    first, again, other = (mean_squares(fit, num_draws=50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.low, again.low)
    assert (first.low != other.low).any()


def test_units_of_scores_do_not_change_shares() -> None:
    values, factors = drawn((7, 6, 5), TRUTH, hole=0.2, seed=2)
    part, every = np.eye(8)[4], np.ones(8)
    plain, scaled = (
        share_interval(mean_squares(fit_reml(y, factors), num_draws=100), part, every)
        for y in (values, 1000 * values)
    )
    assert plain == pytest.approx(scaled, rel=1e-4)


def test_share_of_what_is_not_there_begins_at_zero() -> None:
    truth = np.where(np.arange(8) == 5, 0.0, TRUTH)
    starts = []
    for seed in range(6):
        fit = fit_reml(*drawn((7, 6, 5), truth, hole=0.1, seed=seed))
        squares = mean_squares(fit, num_draws=100, seed=seed)
        low, high = share_interval(squares, np.eye(8)[5], np.ones(8))
        assert high < 0.15
        starts.append(low)
    assert sum(low == 0 for low in starts) >= 5


def test_intervals_of_shares_cover_the_truth() -> None:
    assert 0.92 <= covered(TRUTH, num_worlds=30, num_draws=100, hole=0.15).mean() <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("hole", [0.0, 0.25])
def test_intervals_of_shares_cover_the_truth_in_many_worlds(hole: float) -> None:
    found = covered(TRUTH, num_worlds=400, num_draws=400, hole=hole)
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() >= 0.91
    assert found.max() <= 0.99
