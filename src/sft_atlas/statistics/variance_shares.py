"""How sure are the shares of the variance?

In: a REML fit. Out: intervals of the components, of their sums and of shares of them, from a
parametric bootstrap. Scores are drawn from the fitted model, and each draw is fitted by one scoring
step from the fitted variances. That step is the minimum variance quadratic unbiased estimator at
those variances (Rao 1971), and REML itself where the data are balanced; all draws share one
factorisation.

The decision a reader would ask about: plain percentiles lie too low, because the variance of a few
levels is skewed. What is resampled are therefore expected mean squares, the combinations of
components whose estimates are uncorrelated, and their ratios to the truth are inverted. Sums and
shares then combine the limits of mean squares by the method of variance estimates recovery
(Graybill and Wang 1980; Zou and Donner 2008).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import linalg
from scipy.optimize import brentq

from sft_atlas.statistics.clusters import LEVEL, Floats
from sft_atlas.statistics.mixed_equations import cross_rows, factorise, invert, solve, unscale
from sft_atlas.statistics.reml import RemlFit, floored
from sft_atlas.statistics.restricted_likelihood import (
    average_information,
    expected_squares,
    projections,
)

_CHUNK_VALUES: Final = 4_000_000
_INFORMATION_DRAWS: Final = 200
"""Draws that the expected information is averaged over; it is known to a few percent then."""
_SMALLEST_RATIO: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class MeanSquares:
    """Expected mean squares of a fit, from the residual's to those of coarser factors."""

    estimates: Floats
    low: Floats
    high: Floats
    """Limits of each alone, at the level that was asked for."""
    mixing: Floats
    """Components are `mixing @ mean squares`, (components, mean squares)."""
    num_draws: int


def mean_squares(
    fit: RemlFit, *, num_draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> MeanSquares:
    """Bootstrap the mean squares of a fit; same order of components as its `names`."""
    simulated = _simulate(fit, num_draws, seed)
    covariance = linalg.pinvh(simulated.information)
    centre = floored(fit.variances)
    drawn = centre + 0.5 * (simulated.squares - simulated.expected) @ covariance
    # At a boundary the likelihood's slope says where the estimate would be without it.
    unbounded = fit.variances + covariance @ np.where(fit.variances > 0, 0.0, fit.scores)
    order = np.append(-1, np.argsort([-size for size in fit.design.sizes], kind="stable"))
    root = linalg.cholesky(covariance[np.ix_(order, order)], lower=True)
    mixing = np.empty_like(root)
    mixing[order] = root / np.diag(root)
    truth, found, estimates = (
        np.linalg.solve(mixing, values.T).T for values in (centre, drawn, unbounded)
    )
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    ratios = truth / np.maximum(ends[::-1], _SMALLEST_RATIO * np.abs(truth))
    inverted = np.sort(estimates * ratios, axis=0)
    # Far from balance a combination may not be above 0 as a mean square is: then it is shifted.
    is_square = (truth > 0) & (estimates > 0)
    low, high = np.where(is_square, inverted, estimates + truth - ends[::-1])
    return MeanSquares(estimates=estimates, low=low, high=high, mixing=mixing, num_draws=num_draws)


def sum_interval(squares: MeanSquares, weights: Floats) -> tuple[float, float]:
    """Interval of a weighted sum of components, (components,) weights; bounds are >= 0."""
    low, high = _limits(squares, weights)
    return max(low, 0.0), max(high, 0.0)


def share_interval(squares: MeanSquares, part: Floats, whole: Floats) -> tuple[float, float]:
    """Interval of (part @ components) / (whole @ components), in [0, 1].

    It holds the shares c for which the interval of (part - c whole) @ components holds 0.
    """

    def lower(share: float) -> float:
        return _limits(squares, part - share * whole)[0]

    def upper(share: float) -> float:
        return _limits(squares, part - share * whole)[1]

    low = 0.0 if lower(0.0) <= 0 else 1.0 if lower(1.0) > 0 else brentq(lower, 0.0, 1.0)
    high = 1.0 if upper(1.0) >= 0 else 0.0 if upper(0.0) < 0 else brentq(upper, 0.0, 1.0)
    return float(low), float(high)


def _limits(squares: MeanSquares, weights: Floats) -> tuple[float, float]:
    """Combine the limits of mean squares; signs may differ (Zou and Donner 2008, eq. 4)."""
    parts = weights @ squares.mixing
    estimate = float(parts @ squares.estimates)
    down, up = squares.estimates - squares.low, squares.high - squares.estimates
    below = np.where(parts > 0, parts * down, parts * up)
    above = np.where(parts > 0, parts * up, parts * down)
    return estimate - float(np.linalg.norm(below)), estimate + float(np.linalg.norm(above))


@dataclass(frozen=True, kw_only=True)
class _Simulated:
    squares: Floats
    """y'P V_k P y of each draw, (draws, components)."""
    expected: Floats
    """Their mean, exactly."""
    information: Floats
    """Expected information, averaged over the draws' average information."""


def _simulate(fit: RemlFit, num_draws: int, seed: int) -> _Simulated:
    design, variances = fit.design, floored(fit.variances)
    rng = np.random.default_rng([seed, 0x5E])
    equations = factorise(design, variances[:-1] / variances[-1])
    expected = expected_squares(equations, invert(equations), variances)
    size = max(1, min(_INFORMATION_DRAWS, _CHUNK_VALUES // design.num_rows))
    squares, information = [], np.zeros((variances.size, variances.size))
    num_informed = 0
    for start in range(0, num_draws, size):
        num_columns = min(size, num_draws - start)
        values = rng.normal(size=(design.num_rows, num_columns)) * np.sqrt(variances[-1])
        for levels, count, variance in zip(
            design.levels, design.sizes, variances[:-1], strict=True
        ):
            values += (rng.normal(size=(count, num_columns)) * np.sqrt(variance))[levels]
        right = cross_rows(design, values)
        effects = unscale(equations, solve(equations, right))
        square = (values * values).sum(axis=0)
        working = projections(equations, right, effects, square, float(variances[-1]))
        squares.append(working.squares.T)
        if start < _INFORMATION_DRAWS:
            found = average_information(equations, working, float(variances[-1]))
            information += found.sum(axis=0)
            num_informed += num_columns
    return _Simulated(
        squares=np.concatenate(squares), expected=expected, information=information / num_informed
    )
