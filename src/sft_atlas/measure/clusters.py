"""Into how many groups does a cloud of points fall, without being told the number or a scale?

In: each point's neighbours and the cloud's intrinsic dimension. Out: a group per point. This is
Advanced Density Peaks (d'Errico et al. 2021): a group is a peak of the density that stands out from
the saddle to each other peak by more than Z standard errors, so that chance peaks are none. The
density is that of the k nearest neighbours, with the largest k per point over which it is constant
(Rodriguez et al. 2018), in the dimension that the points really have. Nothing is random.
"""

import math
from typing import Any, Final, NamedTuple, final

import numpy as np

from sft_atlas.measure.neighbours import Array, Ints, Neighbours

CLUSTER_NEIGHBOURS: Final = 100
"""Neighbours that are looked at, as in DADApy."""

SIGNIFICANCE: Final = 1.65
"""Z: standard errors that a peak must stand out by; DADApy's default."""

_CONSTANT: Final = 23.92812698
"""Likelihood ratio (chi-squared with 1 degree, p = 1e-6) above which the density of two points
differs."""
_MIN_NEIGHBOURS: Final = 3

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@final
class Density(NamedTuple):
    """The logarithm of the density at each point, but for a constant."""

    logs: Array
    errors: Array
    """Standard errors, 1 / sqrt(k)."""
    num_neighbours: Ints
    """k of each point."""


@final
class _Borders(NamedTuple):
    """Saddles between each two peaks; -inf where the groups do not touch."""

    logs: Array
    errors: Array


def find_clusters(
    neighbours: Neighbours, *, dimension: float, significance: float = SIGNIFICANCE
) -> Ints:
    """Return the group of each of n points, 0 for the one with the highest peak, then 1, ...

    Uses the first `CLUSTER_NEIGHBOURS` of the neighbours, of which each point needs at least 4, at
    distances above 0. `dimension` is the intrinsic one at the scale of a group: too small a one
    flattens peaks, too large a one exaggerates them.
    """
    near = Neighbours(
        neighbours.distances[:, :CLUSTER_NEIGHBOURS], neighbours.indices[:, :CLUSTER_NEIGHBOURS]
    )
    density = estimate_density(near, dimension=dimension)
    heights = density.logs - density.errors
    parents = _find_parents(near, heights, density.num_neighbours)
    labels, peaks = _assign(parents, heights)
    borders = _find_borders(near, density, heights, labels, len(peaks))
    merged = _merge(density, peaks, borders, significance)
    groups = merged[labels]
    first = {group: rank for rank, group in enumerate(dict.fromkeys(merged.tolist()))}
    return np.array([first[group] for group in groups.tolist()], dtype=np.int64)


def estimate_density(near: Neighbours, *, dimension: float) -> Density:
    """Return ln(k / V_k) at each point, where V_k is the ball that holds its k neighbours.

    k grows from 3 until the densities around a point and around its (k+1)-th neighbour differ.
    """
    log_volumes = dimension * np.log(near.distances)
    n, width = log_volumes.shape
    sizes = np.arange(1, width)
    own = log_volumes[:, :-1]
    others = log_volumes[near.indices[:, 1:], np.arange(width - 1)]
    # Of two balls with k points each, against one density for both.
    ratios = -2 * sizes * (own + others - 2 * np.logaddexp(own, others) + math.log(4))
    differs = ratios >= _CONSTANT
    differs[:, : _MIN_NEIGHBOURS - 1] = False
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), width - 1)
    counts = np.maximum(first, _MIN_NEIGHBOURS).astype(np.int64)
    logs = np.log(counts) - log_volumes[np.arange(n), counts - 1]
    return Density(logs, 1 / np.sqrt(counts), counts)


def _find_parents(near: Neighbours, heights: Array, counts: Ints) -> Ints:
    """Return for each point the nearest higher one in its neighbourhood, itself for a peak."""
    n, width = near.indices.shape
    inside = np.arange(width) < counts[:, None]
    higher = (heights[near.indices] > heights[:, None]) & inside
    parents = np.where(higher.any(axis=1), near.indices[np.arange(n), higher.argmax(axis=1)], -1)
    # A peak is none if it lies in the neighbourhood of a higher point; the highest such takes it.
    lower = (heights[near.indices] < heights[:, None]) & inside & (parents[near.indices] < 0)
    rows, columns = np.nonzero(lower)
    for row, column in sorted(zip(rows.tolist(), columns.tolist(), strict=True)):
        peak = near.indices[row, column]
        if parents[peak] < 0 or heights[row] > heights[parents[peak]]:
            parents[peak] = row
    return np.where(parents < 0, np.arange(n), parents)


def _assign(parents: Ints, heights: Array) -> tuple[Ints, list[int]]:
    """Return each point's peak number, and the peaks from the highest down."""
    labels = np.full(len(parents), -1, dtype=np.int64)
    peaks: list[int] = []
    for point in np.argsort(-heights, kind="stable").tolist():
        parent = int(parents[point])
        if parent == point:
            labels[point] = len(peaks)
            peaks.append(point)
        else:
            labels[point] = labels[parent]
    return labels, peaks


def _find_borders(
    near: Neighbours, density: Density, heights: Array, labels: Ints, num_peaks: int
) -> _Borders:
    """Find the saddle of each two groups: the highest of their border points.

    A border point's nearest foreign neighbour has no point of its group that is nearer.
    """
    logs = np.full((num_peaks, num_peaks), -np.inf)
    errors = np.zeros((num_peaks, num_peaks))
    width = near.indices.shape[1]
    of_neighbours = labels[near.indices]
    inside = np.arange(width) < density.num_neighbours[:, None]
    foreign = (of_neighbours != labels[:, None]) & inside
    order = np.argsort(heights, kind="stable")
    for point in order[foreign.any(axis=1)[order]].tolist():
        other = near.indices[point, foreign[point].argmax()]
        own = of_neighbours[other] == labels[point]
        if own.any() and near.indices[other, own.argmax()] == point:
            a, b = labels[point], labels[other]
            # Points come from the lowest up: the last one is the saddle.
            logs[a, b] = logs[b, a] = density.logs[point]
            errors[a, b] = errors[b, a] = density.errors[point]
    return _Borders(logs, errors)


def _merge(density: Density, peaks: list[int], borders: _Borders, significance: float) -> Ints:
    """Return the group that each peak ends in, joining across the highest saddle first."""
    logs, errors = borders.logs.copy(), borders.errors.copy()
    groups = np.arange(len(peaks))
    height, error = density.logs[peaks], density.errors[peaks]
    while True:
        depth = height[:, None] - logs
        is_chance = depth < significance * (error[:, None] + errors)
        joined = (is_chance | is_chance.T) & np.isfinite(logs)
        if not joined.any():
            return groups
        a, b = np.unravel_index(np.argmax(np.where(joined, logs, -np.inf)), logs.shape)
        kept, gone = (a, b) if (height[a] - error[a], -a) >= (height[b] - error[b], -b) else (b, a)
        groups[groups == gone] = kept
        higher = logs[gone] > logs[kept]
        errors[kept] = np.where(higher, errors[gone], errors[kept])
        logs[kept] = np.maximum(logs[kept], logs[gone])
        logs[:, kept], errors[:, kept] = logs[kept], errors[kept]
        logs[gone], logs[:, gone], logs[kept, kept] = -np.inf, -np.inf, -np.inf
