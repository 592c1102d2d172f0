"""How closely do two things move together, inside groups and under weights?

All functions work on many weightings at once (one per bootstrap resample): weights are (resamples,
rows). Demeaning happens under the same weights as the correlation, so that a model drawn twice
counts twice in both.
"""

import numpy as np

from sft_atlas.statistics.clusters import Floats, Ints

_TINY = 1e-12


def weighted_pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson correlation per row of `weights`; NaN where one side does not vary.

    `x` and `y` are (rows,), (1, rows) or (resamples, rows).
    """
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = x - (weights * x).sum(axis=1, keepdims=True) / total
        dy = y - (weights * y).sum(axis=1, keepdims=True) / total
        scale = np.sqrt((weights * dx * dx).sum(axis=1) * (weights * dy * dy).sum(axis=1))
        result = (weights * dx * dy).sum(axis=1) / scale
    size = np.maximum(np.abs(x).max(initial=0.0) * np.abs(y).max(initial=0.0), _TINY)
    return np.where(scale > _TINY * size * total[:, 0], np.clip(result, -1.0, 1.0), np.nan)


def weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks: the weight below a value plus half of that at it; Pearson's of them is Spearman's.

    `values` is (rows,) or (resamples, rows); a single row of values is sorted once for all
    weightings.
    """
    if values.ndim == 1:
        order = np.argsort(values)
        starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
        tie_weight = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(tie_weight, axis=1) - tie_weight / 2
        sizes = np.diff(starts, append=values.size)
        place = np.empty(values.size, dtype=np.int64)
        place[order] = np.repeat(np.arange(starts.size), sizes)
        fixed: Floats = middle[:, place]
        return fixed
    num_rows, num_values = weights.shape
    flat = np.argsort(values, axis=1) + num_values * np.arange(num_rows)[:, None]
    sorted_values = values.ravel()[flat]
    sorted_weights = weights.ravel()[flat]
    starts_here = np.ones(weights.shape, dtype=bool)
    starts_here[:, 1:] = sorted_values[:, 1:] != sorted_values[:, :-1]
    starts = np.flatnonzero(starts_here)
    tie_weight = np.add.reduceat(sorted_weights.ravel(), starts)
    before = (np.cumsum(sorted_weights, axis=1) - sorted_weights).ravel()[starts]
    ranks = np.empty(weights.size)
    sizes = np.diff(starts, append=weights.size)
    ranks[flat.ravel()] = np.repeat(before + tie_weight / 2, sizes)
    return ranks.reshape(weights.shape)


def demean(values: Floats, groups: Ints, weights: Floats) -> Floats:
    """Subtract each group's weighted mean; result is (resamples, rows). Empty groups stay as they
    are.
    """
    one_hot = np.zeros((groups.size, int(groups.max()) + 1))
    one_hot[np.arange(groups.size), groups] = 1.0
    total = weights @ one_hot
    sums = (weights * values) @ one_hot
    means = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    difference: Floats = values - means[:, groups]
    # Equal values must stay equal, or rounding would give ranks to noise.
    rounded: Floats = np.round(difference, 12)
    return rounded
