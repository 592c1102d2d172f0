"""How wide must an interval be to hold for a group that nobody has seen?

In: absolute errors of forecasts, each made without its own group (a model, a dataset), and the
groups. Out: the margin that holds for a share of the values of a new group. Errors of one group
move together, so quantiles over rows are too narrow for a new group (ordinary conformal intervals
take rows for exchangeable). Two rules stand side by side: `guaranteed_margin` holds in finite
samples whatever the groups are, and is wide; `calibrated_margin` takes the level at which groups
were covered by the others, is never wider than the guaranteed one, and is what forecasts use.
"""

import math
from typing import Final

import numpy as np

from sft_atlas.statistics.clusters import Floats, Ints

LEVEL: Final = 0.9
MIN_GROUPS: Final = 4
"""Fewest groups for a calibrated margin: with fewer, the share of left-out values that the rest
cover is too rough to set a level by (see the simulated coverage in the tests)."""

_LEVELS: Final = np.linspace(0.5, 1.0, 101)


def guaranteed_margin(errors: Floats, groups: Ints, *, level: float = LEVEL) -> float:
    """Return the margin of hierarchical conformal prediction; infinite below 1 / (1 - level) - 1
    groups.

    With K groups whose values are exchangeable within and whose groups are exchangeable with the
    new one, a value of the new group lies within the margin with probability `level` at least
    (Lee, Barber and Willett 2023, "Distribution-free inference with hierarchical data", eq. 8): the
    quantile of the mixture that gives each group's errors the weight 1 / (K + 1) and infinity the
    rest. NaN errors are left out.
    """
    values, names, weights = _pooled(errors, groups)
    return _guaranteed(values, weights, int(names.max(initial=-1)) + 1, level)


def calibrated_margin(errors: Floats, groups: Ints, *, level: float = LEVEL) -> float:
    """Return the margin at which each group would have been covered by the others.

    For each group the quantile of the other groups' errors, all groups weighing the same, covers a
    share of its errors; the quantile's level is the smallest at which these shares average `level`.
    It is then applied to all groups. Infinite below `MIN_GROUPS` groups and where even the largest
    error of the others covers too little. Never above `guaranteed_margin`.
    """
    values, names, weights = _pooled(errors, groups)
    num_groups = int(names.max(initial=-1)) + 1
    if num_groups < MIN_GROUPS:
        return math.inf
    shares = np.zeros(_LEVELS.size)
    for name in range(num_groups):
        is_own = names == name
        margins = _quantiles(values[~is_own], weights[~is_own], _LEVELS)
        own = values[is_own]
        shares += np.searchsorted(own, margins, side="right") / own.size / num_groups
    enough = np.flatnonzero(shares >= level - _ROUNDING)
    if enough.size == 0:
        return math.inf
    # Where errors hardly vary within a group, a range of levels covers the same; only its upper
    # end holds when one group more is pooled.
    chosen = np.flatnonzero(shares <= shares[enough[0]] + _ROUNDING)[-1:]
    margin = float(_quantiles(values, weights, _LEVELS[chosen])[0])
    return min(margin, _guaranteed(values, weights, num_groups, level))


def _guaranteed(values: Floats, weights: Floats, num_groups: int, level: float) -> float:
    reached = np.cumsum(weights) / (num_groups + 1)
    place = int(np.searchsorted(reached, level - _ROUNDING))
    return float(values[place]) if place < values.size else math.inf


_ROUNDING: Final = 1e-9


def _pooled(errors: Floats, groups: Ints) -> tuple[Floats, Ints, Floats]:
    """Finite errors in rising order, their groups numbered from 0, weights that add to 1 in each
    group.
    """
    kept = np.isfinite(errors)
    values = errors[kept]
    _, names, sizes = np.unique(groups[kept], return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    names = names[order].astype(np.int64)
    return values[order], names, 1 / sizes[names]


def _quantiles(values: Floats, weights: Floats, levels: Floats) -> Floats:
    """Smallest value at which the weights reach each level."""
    reached = np.cumsum(weights) / weights.sum()
    places = np.searchsorted(reached, levels - _ROUNDING)
    found: Floats = values[np.minimum(places, values.size - 1)]
    return found
