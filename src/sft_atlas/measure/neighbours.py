"""Which points are each point's nearest, and how far away are they?

In: points (n, dimension). Out: sorted Euclidean distances and indices of the nearest others. Found
by brute force, because in hundreds of dimensions no tree is faster; products are in float64 and by
blocks of rows, so that memory grows with n, not n^2. Where two points are so close that the
difference of squares has lost its digits, the distance is computed from their difference.
"""

from typing import Any, Final, NamedTuple, final

import numpy as np

from sft_atlas.errors import DataError

Array = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_BLOCK_BYTES: Final = 1 << 26
"""Bound on the squared distances of one block of rows."""

_CANCELLED: Final = 1e-8
"""Share of the squared norms below which a squared distance is computed anew: 8 digits are left
of one that is not."""


_ROUNDED: Final = 1e-12
"""Deviation from the mean, as a share of the largest value, that float64 leaves of equal rows."""


@final
class Neighbours(NamedTuple):
    """The nearest other points of each of n points, nearest first."""

    distances: Array
    """(n, k), Euclidean."""
    indices: Ints
    """(n, k)."""


def find_neighbours(points: np.ndarray[Any, Any], k: int) -> Neighbours:
    """Return the min(k, n - 1) nearest other points of each point (n, dimension), exactly.

    Equal distances come in the order of their indices. Equal points are each other's neighbours at
    distance 0.

    Raises:
        DataError: if a coordinate is not finite, or there are fewer than 2 points.
    """
    n = len(points)
    check_finite(points)
    if n < 2:
        raise DataError(f"{n} points: none has a neighbour; expected at least 2. Add points.")
    # Far from the origin, squares would be large and their difference inexact.
    centred = np.asarray(points, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    k = min(k, n - 1)
    distances, indices = np.empty((n, k)), np.empty((n, k), dtype=np.int64)
    step = max(_BLOCK_BYTES // (8 * n), 1)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        distances[rows], indices[rows] = _block(centred, squares, rows, k)
    return Neighbours(distances, indices)


def principal_coordinates(points: np.ndarray[Any, Any]) -> Array:
    """Return points (n, dimension) centred and turned to their n principal axes, where dimensions
    outnumber points: the same cloud in less room. Others come back as they are, in float64.

    Squared distances keep all but 1e-15 of the largest squared norm. A spread that is but the
    rounding of equal rows becomes none.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.shape[1] <= len(values):
        return values
    centred = values - values.mean(axis=0)
    limit = _ROUNDED * float(np.abs(values).max(initial=0.0))
    if np.abs(centred).max(initial=0.0) <= limit:
        return np.zeros((len(values), len(values)))
    squares, axes = np.linalg.eigh(centred @ centred.T)
    coordinates: Array = axes * np.sqrt(np.maximum(squares, 0.0))
    return coordinates


def check_finite(points: np.ndarray[Any, Any]) -> None:
    """Refuse points (n, dimension) of which a coordinate is no finite number.

    Raises:
        DataError: if there is one; it names the first.
    """
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"point {bad[0]}: has a coordinate that is not finite, as {len(bad)} of {len(points)} "
            f"points do; expected numbers. Leave such points out, or look where they come from."
        )


def _block(centred: Array, squares: Array, rows: slice, k: int) -> tuple[Array, Ints]:
    block = centred[rows] @ centred.T
    block *= -2.0
    block += squares
    block += squares[rows, None]
    own = np.arange(rows.start, rows.stop)
    block[own - rows.start, own] = np.inf
    row, column = np.nonzero(block <= _CANCELLED * (squares[rows, None] + squares))
    # By parts, because the clouds of some layers lie within a hair's breadth.
    part = max(_BLOCK_BYTES // (8 * centred.shape[1]), 1)
    for begin in range(0, len(row), part):
        r, c = row[begin : begin + part], column[begin : begin + part]
        difference = centred[rows.start + r] - centred[c]
        block[r, c] = np.einsum("ij,ij->i", difference, difference)
    if k < block.shape[1] - 1:
        # Sorted before values are: equal distances then come in the order of their indices.
        nearest = np.sort(np.argpartition(block, k - 1, axis=1)[:, :k], axis=1)
    else:
        nearest = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    values = np.take_along_axis(block, nearest, axis=1)
    order = np.argsort(values, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(nearest, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    return np.sqrt(np.maximum(values, 0.0)), nearest
