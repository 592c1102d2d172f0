"""How many independent directions does a cloud of points have, seen from near and from afar?

In: the distances of each point to its nearest others (`neighbours`), one pass for all estimators.
Out: estimates with 95 % intervals. TwoNN sees the smallest scale, where noise has all dimensions of
the space it is in; Gride asks the same of ever larger neighbourhoods, and its plateau is reported:
the scale around which the estimate changes least. Local MLE averages over 20 neighbours.

Every estimator takes the density to be constant within a neighbourhood. Where it is not, as with
few points or many dimensions, all of them estimate too low: compare clouds of equal size.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np

from sft_atlas.errors import DataError
from sft_atlas.measure.neighbours import (
    Array,
    Neighbours,
    check_finite,
    find_neighbours,
    principal_coordinates,
)

MIN_POINTS: Final = 32
"""Different points below which nothing is estimated: a neighbourhood would be the whole cloud."""

MLE_NEIGHBOURS: Final = 20
ROUNDING: Final = 1e-5
"""Distance, as a share of the norms, that float32 leaves between states of equal texts."""

MAX_NEIGHBOURS: Final = 1024
"""Largest neighbour that Gride's scan looks at."""

_QUANTILE: Final = 1.959963984540054
"""Of the normal distribution, for 95 %."""


@final
class Estimate(NamedTuple):
    """An intrinsic dimension with a 95 % interval."""

    value: float
    low: float
    high: float


@final
class GrideScale(NamedTuple):
    """Gride at one scale: ratios of the distances to neighbours n2 and n1."""

    n1: int
    n2: int
    estimate: Estimate
    num_points: int


@final
class Cloud(NamedTuple):
    """Points that differ, with their neighbours."""

    points: Array
    """Turned to their principal axes where dimensions outnumber them."""
    neighbours: Neighbours
    num_duplicates: int


def find_distinct(points: np.ndarray[Any, Any], k: int, *, rounding: float = ROUNDING) -> Cloud:
    """Keep the first of points that are equal but for rounding; return the k nearest of each.

    Equal are those whose distance is at most `rounding` times the root mean square norm. A pair of
    them would have a ratio of distances as large as rounding makes it, and no manifold has two
    points in one place.

    A cloud of one point has no neighbours: arrays (1, 0).

    Raises:
        DataError: if a coordinate is not finite.
    """
    check_finite(points)
    # Adding 0 makes -0 and 0, which are one number, the same bits.
    rows = np.ascontiguousarray(points + 0.0)
    first: dict[bytes, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(row.tobytes(), i)
    different = points[list(first.values())]
    squares = np.square(different, dtype=np.float64).sum(axis=1)
    limit = rounding * math.sqrt(float(squares.mean()))
    kept = principal_coordinates(different)
    while len(kept) > 1:
        neighbours = find_neighbours(kept, k)
        near = np.flatnonzero(neighbours.distances[:, 0] <= limit)
        if not len(near):
            return Cloud(kept, neighbours, len(points) - len(kept))
        stays = np.ones(len(kept), dtype=np.bool_)
        for i, j in zip(near.tolist(), neighbours.indices[near, 0].tolist(), strict=True):
            if stays[i] and stays[j]:
                stays[max(i, j)] = False
        kept = kept[stays]
    none = np.empty((len(kept), 0))
    return Cloud(kept, Neighbours(none, none.astype(np.int64)), len(points) - len(kept))


def scan_depth(num_points: int) -> int:
    """Return the farthest neighbour that the scan of so many points looks at: no neighbourhood
    holds more than half of the cloud."""
    return min(MAX_NEIGHBOURS, num_points // 2)


def two_nn(distances: Array) -> Estimate:
    """Estimate from the ratio of each point's second to its first distance (n, >= 2).

    The maximum likelihood (n - 1) / sum ln(r2 / r1), unbiased for independent ratios (Facco et al.
    2017; Denti et al. 2022). 2 d sum ln(r2 / r1) has 2 n degrees of freedom of chi-squared.

    Raises:
        DataError: as `gride`.
    """
    from scipy.special import chdtri

    logs = _log_ratios(distances, 1, 2)
    total = logs.sum()
    freedom = 2 * len(logs)
    return Estimate(
        float((len(logs) - 1) / total),
        float(chdtri(freedom, 0.975) / (2 * total)),
        float(chdtri(freedom, 0.025) / (2 * total)),
    )


def two_nn_fit(distances: Array, *, discarded_fraction: float = 0.1) -> float:
    """Estimate by the straight line of Facco et al. 2017: -ln(1 - F) against ln(r2 / r1).

    The line goes through the origin; the largest ratios are left out, which tames outliers and
    costs some efficiency.

    Raises:
        DataError: as `gride`.
    """
    logs = np.sort(_log_ratios(distances, 1, 2))
    kept = logs[: int(len(logs) * (1 - discarded_fraction))]
    heights = -np.log1p(-np.arange(1, len(kept) + 1) / len(logs))
    return float(kept @ heights / (kept @ kept))


def local_mle(distances: Array, *, k: int = MLE_NEIGHBOURS) -> float:
    """Average Levina & Bickel's (2004) estimate of each point as MacKay & Ghahramani (2005) do:
    the inverse of the mean of inverses.

    A point's estimate is (k - 1) / sum_{j<k} ln(r_k / r_j), which is not corrected to k - 2.

    Raises:
        DataError: if there are fewer than k distances, or as `gride`.
    """
    if distances.shape[1] < k:
        raise DataError(
            f"local MLE: {len(distances)} points give {distances.shape[1]} distances; expected at "
            f"least {k}. Add points."
        )
    _check_distances(distances[:, :k], 1)
    logs = np.log(distances[:, k - 1 : k] / distances[:, : k - 1])
    return float((k - 1) / logs.sum(axis=1).mean())


def gride(distances: Array, n1: int, n2: int) -> Estimate:
    """Estimate from the ratio of each point's distances to neighbours n2 > n1 (n, >= n2).

    Denti et al. 2022: the ratios mu have the density
    d (mu^d - 1)^(n2-n1-1) / (mu^((n2-1)d+1) B(n2-n1, n1)), whose score falls in d, so that there is
    one root. As in DADApy, (n - 1) ln d stands for n ln d, which makes n1 = 1, n2 = 2 TwoNN; no
    ratio is left out. The interval is the normal one of the observed information. It takes ratios
    to be independent, which neighbourhoods that overlap are not: simulated estimates spread 1.0 to
    1.8 times as wide up to n1 = 8, and up to 3.5 times from n1 = 32 on.

    Raises:
        DataError: if points are equal, all ratios are 1, or there are too few points.
    """
    from scipy.optimize import brentq

    if n2 > distances.shape[1]:
        raise DataError(
            f"gride({n1}, {n2}): {len(distances)} points give {distances.shape[1]} distances; "
            f"expected at least {n2}. Add points, or use a smaller scale."
        )
    logs = _log_ratios(distances, n1, n2)
    n, gap, total = len(logs), n2 - n1 - 1, float(logs.sum())

    def score(log_d: float) -> float:
        d = math.exp(log_d)
        # d ln(mu) / (1 - mu^-d) is 1 where mu is 1.
        powers = d * logs
        inner = np.divide(powers, -np.expm1(-powers), out=np.ones_like(powers), where=powers > 0)
        return float((n - 1) + gap * inner.sum() - (n2 - 1) * d * total)

    # The moment estimate, from which the root is never far.
    start = math.log(n * sum(1 / j for j in range(n1, n2)) / total)
    low, high = start - 0.5, start + 0.5
    while score(low) < 0:
        low -= 1.0
    while score(high) > 0:
        high += 1.0
    d = math.exp(brentq(score, low, high, xtol=1e-13, rtol=1e-13))
    half = np.minimum(d * logs / 2, 300.0)
    curved = np.divide(half, np.sinh(half), out=np.ones_like(half), where=half > 0)
    error = d / math.sqrt(n + gap * float((curved**2).sum()))
    return Estimate(d, max(d - _QUANTILE * error, 0.0), d + _QUANTILE * error)


def gride_scan(distances: Array) -> list[GrideScale]:
    """Estimate at n1 = 1, 2, 4, ... with n2 = 2 n1, as far as the distances reach.

    Raises:
        DataError: as `gride`.
    """
    scales = []
    n1 = 1
    while 2 * n1 <= distances.shape[1]:
        scales.append(GrideScale(n1, 2 * n1, gride(distances, n1, 2 * n1), len(distances)))
        n1 *= 2
    return scales


def find_plateau(scan: Sequence[GrideScale]) -> GrideScale:
    """Return the scale around which the estimate changes least: |ln d(2 n1) - ln d(n1 / 2)|.

    Only scales of which n2 neighbours are at most an eighth of the points count, because larger
    ones see the cloud's end, or the distances between groups. Of those, neither the first, where
    noise is seen, nor the last is chosen unless there is no other; of equal ones the smallest is.
    With two scales it is the second. Two clouds may have their plateau at different scales, which
    adds chance to their difference: the scan has both at each.
    """
    counted = [scale for scale in scan if 8 * scale.n2 <= scale.num_points] or list(scan[:1])
    if len(counted) < 3:
        return counted[-1]
    logs = [math.log(scale.estimate.value) for scale in counted]
    changes = [abs(logs[i + 1] - logs[i - 1]) for i in range(1, len(logs) - 1)]
    return counted[1 + int(np.argmin(changes))]


def subsample_curve(points: np.ndarray[Any, Any], *, seed: int) -> list[tuple[int, Estimate]]:
    """Estimate TwoNN from all of the points, from halves and from quarters of them.

    Returns (points per part, estimate). The parts of one size are disjoint and in a seeded random
    order, and their ratios are pooled, so each estimate rests on all points (Facco et al. 2017).
    An estimate that rises with n has not converged. Sizes below `MIN_POINTS` are left out.

    Raises:
        DataError: if points are equal or too few.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    curve = []
    for num_parts in (1, 2, 4):
        size = len(points) // num_parts
        if size < MIN_POINTS:
            break
        parts = [order[i * size : (i + 1) * size] for i in range(num_parts)]
        distances = [find_neighbours(points[np.sort(part)], 2).distances for part in parts]
        curve.append((size, two_nn(np.concatenate(distances))))
    return curve


def _log_ratios(distances: Array, n1: int, n2: int) -> Array:
    _check_distances(distances, n1)
    logs: Array = np.log(distances[:, n2 - 1] / distances[:, n1 - 1])
    if not logs.sum() > 0:
        raise DataError(
            f"{len(distances)} points: each one's neighbours {n1} and {n2} are equally far away, "
            f"so no dimension can be told; expected points in general position."
        )
    return logs


def _check_distances(distances: Array, n1: int) -> None:
    if len(distances) < 2:
        raise DataError(f"{len(distances)} points: expected at least 2. Add points.")
    equal = int((distances[:, n1 - 1] == 0).sum())
    if equal:
        raise DataError(
            f"{equal} of {len(distances)} points have {n1} others in the same place; expected "
            f"different points. Leave duplicates out."
        )
