"""How alike are all pairs of things, and are those that share a label more alike?

In: one vector per thing (model, dataset or benchmark), cut into the clusters that are resampled.
Out: Pearson correlations of all pairs with intervals, an order in which alike things stand
together, and a test of a label. The test gives the labels to other things at random: n things make
n (n - 1) / 2 pairs, which are not so many independent observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, Ints, codes, percentile_interval

NUM_PERMUTATIONS: Final = 2000
_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairCorrelations:
    """Correlations of all pairs of n things; matrices are (n, n), NaN where one does not vary."""

    estimates: Floats
    low: Floats
    high: Floats
    """95 %, clusters resampled; NaN where they were not."""
    mean: float | None
    """Over pairs of different things; None without one."""
    mean_interval: tuple[float, float] | None
    """Things and clusters resampled."""


@dataclass(frozen=True, kw_only=True)
class LabelTest:
    """Mean correlation of pairs with the same label against that of the others."""

    same: float
    different: float
    num_same: int
    num_different: int
    interval: tuple[float, float] | None
    """95 % of the difference, things resampled."""
    p_value: float
    """Two-sided, labels permuted over things."""


def pair_correlations(
    values: Floats,
    weights: Floats | None = None,
    *,
    seed: int = 0,
) -> PairCorrelations:
    """Correlate things of `values` (things, clusters, entries), all entries together.

    `weights` (resamples, clusters) say how often each cluster was drawn; None: nothing is
    resampled.
    """
    num_things, num_clusters = values.shape[:2]
    sums = values.sum(axis=2)
    once = np.ones((1, num_clusters))
    rows = [_row(values, sums, once, i)[0] for i in range(num_things)]
    estimates = np.array(rows).reshape(num_things, num_things)
    np.fill_diagonal(estimates, np.where(np.isnan(np.diag(estimates)), np.nan, 1.0))
    low, high = np.full((2, num_things, num_things), np.nan)
    pairs = estimates[np.triu_indices(num_things, 1)]
    mean = float(np.nanmean(pairs)) if np.isfinite(pairs).any() else None
    interval = None
    if weights is not None and mean is not None:
        things = _draws_of_things(num_things, weights.shape[0], seed)
        total, size = np.zeros((2, weights.shape[0]))
        for i in range(num_things):
            drawn = _row(values, sums, weights, i)
            low[i], high[i] = _quantiles(drawn)
            # A thing that is drawn twice makes no pair with itself.
            share = things[:, [i]] * things * np.isfinite(drawn)
            share[:, i] = 0.0
            total += (share * np.nan_to_num(drawn)).sum(axis=1)
            size += share.sum(axis=1)
        if num_things >= MIN_CLUSTERS:
            means = np.divide(total, size, out=np.full(size.size, np.nan), where=size > 0)
            interval = percentile_interval(means)
    return PairCorrelations(
        estimates=estimates, low=low, high=high, mean=mean, mean_interval=interval
    )


def label_test(
    correlations: Floats,
    labels: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> LabelTest | None:
    """Compare pairs with the same label to the others; None where there is not one of each.

    Things without a label ("") are left out, and so are pairs without a correlation.
    """
    named = np.array([bool(label) for label in labels], dtype=bool)
    matrix = correlations[np.ix_(named, named)]
    groups = codes([label for label in labels if label])
    if groups.size < MIN_CLUSTERS:
        return None
    exists = np.isfinite(matrix) & ~np.eye(groups.size, dtype=bool)
    values = np.where(exists, matrix, 0.0)
    base = exists.astype(np.float64)
    same, different = _means(values, base, groups)
    if not (np.isfinite(same) and np.isfinite(different)):
        return None
    rng = np.random.default_rng([seed, 0x1A])
    shuffled = [_difference(values, base, rng.permutation(groups)) for _ in range(NUM_PERMUTATIONS)]
    reached = np.abs(np.array(shuffled)) >= abs(same - different) - 1e-12
    counts = _draws_of_things(groups.size, num_resamples, seed)
    drawn = [_difference(values * np.outer(c, c), base * np.outer(c, c), groups) for c in counts]
    is_same = groups[:, None] == groups
    return LabelTest(
        same=float(same),
        different=float(different),
        num_same=int((exists & is_same).sum()) // 2,
        num_different=int((exists & ~is_same).sum()) // 2,
        interval=percentile_interval(np.array(drawn)),
        p_value=float((reached.sum() + 1) / (NUM_PERMUTATIONS + 1)),
    )


def cluster_order(correlations: Floats) -> Ints:
    """Return each thing's place in an order that puts alike things together.

    Average linkage on 1 - r, leaves ordered so that neighbours are close (Bar-Joseph et al. 2001).
    """
    size = correlations.shape[0]
    if size < 3:
        return np.arange(size)
    distances = 1.0 - np.nan_to_num(correlations)
    np.fill_diagonal(distances, 0.0)
    flat = squareform((distances + distances.T) / 2, checks=False).clip(min=0.0)
    leaves = leaves_list(linkage(flat, method="average", optimal_ordering=True))
    places = np.empty(size, dtype=np.int64)
    places[leaves] = np.arange(size)
    return places


def _row(values: Floats, sums: Floats, weights: Floats, place: int) -> Floats:
    """Weighted correlations of one thing with all, (resamples, things)."""
    if not values.size:
        return np.full((weights.shape[0], values.shape[0]), np.nan)
    products = np.einsum("cr,jcr->cj", values[place], values)
    squares = np.einsum("jcr,jcr->cj", values, values)
    size = weights.sum(axis=1, keepdims=True) * values.shape[2]
    means = weights @ sums.T / size
    variances = weights @ squares / size - means**2
    covariance = weights @ products / size - means * means[:, [place]]
    floor = _TINY * np.maximum((values**2).mean(), _TINY)
    exists = (variances > floor) & (variances[:, [place]] > floor)
    scale = np.sqrt(np.where(exists, variances * variances[:, [place]], 1.0))
    return np.where(exists, np.clip(covariance / scale, -1.0, 1.0), np.nan)


def _draws_of_things(num_things: int, num_resamples: int, seed: int) -> Floats:
    rng = np.random.default_rng([seed, 0x1B])
    draws = rng.multinomial(num_things, np.full(num_things, 1 / num_things), size=num_resamples)
    return draws.astype(np.float64)


def _quantiles(draws: Floats) -> tuple[Floats, Floats]:
    """95 % bounds per column; NaN where fewer than two thirds of the draws exist."""
    enough = np.isfinite(draws).sum(axis=0) >= 2 * draws.shape[0] / 3
    low, high = np.full((2, draws.shape[1]), np.nan)
    if enough.any():
        low[enough], high[enough] = np.nanquantile(draws[:, enough], [0.025, 0.975], axis=0)
    return low, high


def _means(values: Floats, base: Floats, groups: Ints) -> tuple[float, float]:
    """Weighted mean correlation of pairs in the same group and of the others; NaN without any."""
    is_same: NDArray[np.bool_] = groups[:, None] == groups
    totals = float(values[is_same].sum()), float(values.sum())
    sizes = float(base[is_same].sum()), float(base.sum())
    same = totals[0] / sizes[0] if sizes[0] > 0 else np.nan
    others = sizes[1] - sizes[0]
    different = (totals[1] - totals[0]) / others if others > 0 else np.nan
    return same, different


def _difference(values: Floats, base: Floats, groups: Ints) -> float:
    same, different = _means(values, base, groups)
    return same - different
