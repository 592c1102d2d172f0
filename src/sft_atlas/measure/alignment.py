"""How far do two models hold the same picture of the same texts?

In: the states (texts, dimension) of two models, row by row of the same texts. Out: linear CKA and
Procrustes distance. Both are blind to rotation, mirroring, shift and a common scale of either side.
CKA weighs directions by their variance squared, Procrustes by their standard deviation, so that
CKA hardly sees small directions. The debiased CKA is the one to report: the plain one is far above
0 for unrelated states where dimensions outnumber texts.
"""

import math
from typing import Any

import numpy as np

from sft_atlas.errors import DataError
from sft_atlas.measure.neighbours import Array, principal_coordinates

Points = np.ndarray[Any, Any]

MIN_TEXTS = 4
"""The debiased estimator divides by n - 3."""

_ROUNDED = 1e-12
"""Share of the terms of a sum that float64 leaves where they cancel out."""


def linear_cka(a: Points, b: Points) -> float:
    """Return plain linear CKA in [0, 1]: ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred
    (Kornblith et al. 2019).

    Raises:
        DataError: if a side has no spread, the rows differ in number or a state is not finite.
    """
    x, y = _centred(a, b)
    return _squared_cross(x, y) / math.sqrt(_squared_cross(x, x) * _squared_cross(y, y))


def debiased_cka(a: Points, b: Points) -> float:
    """Return linear CKA from the unbiased HSIC of Song et al. 2012 (eq. 5): 1 for equal states,
    around 0 and also below it for unrelated ones, whatever the number of dimensions.

    Raises:
        DataError: as `linear_cka`, for fewer than 4 texts, or if a side's own HSIC is not positive.
    """
    x, y = _centred(a, b)
    if len(x) < MIN_TEXTS:
        raise DataError(
            f"debiased CKA: {len(x)} texts; expected at least {MIN_TEXTS}. Add texts to the set."
        )
    own_a, own_b = _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    if min(own_a / _biased_hsic(x), own_b / _biased_hsic(y)) <= _ROUNDED:
        raise DataError(
            f"debiased CKA: {len(x)} texts are too few for the spread of their states; expected "
            f"states that differ in more than a few texts. Add texts to the set."
        )
    return _unbiased_hsic(x, y) / math.sqrt(own_a * own_b)


def procrustes_distance(a: Points, b: Points) -> float:
    """Return 1 - ||X^T Y||_* in [0, 1], columns centred and each side of Frobenius norm 1.

    It is half of min over orthogonal R of ||X - Y R||_F^2 (Schoenemann 1966); scipy's disparity,
    which scales as well, is 1 - (1 - distance)^2. Sides may differ in dimension: the smaller one
    then has zeros in what it lacks.

    Raises:
        DataError: as `linear_cka`.
    """
    x, y = _centred(a, b)
    # X^T Y = Q_x (R_x R_y^T) Q_y^T: with fewer texts than dimensions the small product is enough.
    cross = x.T @ y
    nuclear = float(np.linalg.svd(cross, compute_uv=False).sum())
    return min(max(1.0 - nuclear, 0.0), 1.0)


def _centred(a: Points, b: Points) -> tuple[Array, Array]:
    """Return both sides centred, with Frobenius norm 1."""
    if len(a) != len(b):
        raise DataError(
            f"states: {len(a)} texts on one side and {len(b)} on the other; expected the same "
            f"texts. Measure both models on one set."
        )
    return _normalised(a), _normalised(b)


def _normalised(states: Points) -> Array:
    if not np.isfinite(states).all():
        raise DataError("states: not all are finite; expected numbers. Look where they come from.")
    values = principal_coordinates(states)
    largest = np.abs(values).max(initial=0.0)
    centred: Array = values - values.mean(axis=0)
    norm = float(np.linalg.norm(centred))
    # What rounding leaves of equal rows is no spread.
    if norm <= _ROUNDED * largest * math.sqrt(values.size):
        raise DataError(
            f"states: all {len(values)} texts have the same one; expected states that differ. "
            f"Choose another layer or pooling."
        )
    return centred / norm


def _squared_cross(x: Array, y: Array) -> float:
    """Return ||X^T Y||_F^2 = tr(X X^T Y Y^T) by the smaller products."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return float(np.square(x.T @ y).sum())
    return float(((x @ x.T) * (y @ y.T)).sum())


def _biased_hsic(x: Array) -> float:
    """Return what the estimator would be if nothing were taken off: the scale of its rounding."""
    return _squared_cross(x, x) / (len(x) * (len(x) - 3))


def _unbiased_hsic(x: Array, y: Array) -> float:
    """Return Song et al.'s estimator for K = X X^T, L = Y Y^T with their diagonals set to 0.

    The kernels themselves, n x n, are only made where they are smaller than X^T Y.
    """
    n = len(x)
    diagonal_k, diagonal_l = (x * x).sum(axis=1), (y * y).sum(axis=1)
    # The columns of x and y add up to 0, so the rows of K and L do too.
    rows_k, rows_l = -diagonal_k, -diagonal_l
    trace = _squared_cross(x, y) - float(diagonal_k @ diagonal_l)
    sums = float(rows_k.sum() * rows_l.sum()) / ((n - 1) * (n - 2))
    return (trace + sums - 2.0 * float(rows_k @ rows_l) / (n - 2)) / (n * (n - 3))
