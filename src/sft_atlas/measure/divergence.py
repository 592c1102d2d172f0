"""Do two sets of vectors come from one distribution?

In: two matrices of vectors. Out: the unbiased squared maximum mean discrepancy with a Gaussian
kernel (Gretton et al. 2012, JMLR 13, equation 3), and the p-value of its permutation test. The
bandwidth is the median distance between two vectors of the pooled sets, so it does not depend on
which vector is in which set, and the test is exact at every level whatever the bandwidth.

All permutations share one kernel matrix: for a membership vector z, the sums within and between
sets are the quadratic forms of z and 1 - z.
"""

from typing import Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from sft_atlas.data.subsets import seeded_order

Floats = NDArray[np.float64]

NUM_PERMUTATIONS: Final = 1000
_TOLERANCE: Final = 1e-12
"""Statistics this close, relative to the kernel's largest value of 1, are equal: they are sums in
another order."""


@final
class Divergence(NamedTuple):
    """How far two sets of vectors are apart."""

    mmd2: float
    """Unbiased, so it may be below 0 where the distributions are alike."""
    p_value: float
    """(1 + permutations with an MMD at least as large) / (1 + permutations), in (0, 1]."""
    bandwidth: float | None
    """Standard deviation of the kernel, in the vectors' unit; None where all vectors are equal:
    then the discrepancy is 0 under any bandwidth."""
    num_permutations: int


def measure_divergence(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    seed: int,
    num_permutations: int = NUM_PERMUTATIONS,
) -> Divergence:
    """Compare two sets of at least two vectors each, shapes (m, d) and (n, d)."""
    assert min(len(first), len(second)) >= 2, "the unbiased estimate needs two vectors of each"
    squares = _squared_distances(np.concatenate([first, second]).astype(np.float64))
    upper = squares[np.triu_indices(len(squares), 1)]
    if not upper.any():
        return Divergence(0.0, 1.0, None, num_permutations)
    # Where most vectors are equal, the median of the distances that are not 0.
    distances = np.sqrt(upper)
    bandwidth = float(np.median(distances)) or float(np.median(distances[distances > 0]))
    kernel = np.exp(squares / (-2 * bandwidth**2))
    np.fill_diagonal(kernel, 0)
    observed, *permuted = _statistics(kernel, len(first), seed, num_permutations)
    num_larger = sum(value >= observed - _TOLERANCE for value in permuted)
    p_value = (1 + num_larger) / (1 + num_permutations)
    return Divergence(observed, p_value, bandwidth, num_permutations)


def _squared_distances(vectors: Floats) -> Floats:
    """Return squared Euclidean distances, shape (n, n), exactly symmetric with a zero diagonal."""
    norms = np.einsum("ij,ij->i", vectors, vectors)
    squares: Floats = norms[:, None] + norms[None] - 2 * (vectors @ vectors.T)
    squares = (squares + squares.T) / 2
    # What is left of equal vectors is rounding of their norms.
    squares[squares < 1e-12 * (norms[:, None] + norms[None])] = 0
    np.fill_diagonal(squares, 0)
    return squares


def _statistics(kernel: Floats, size: int, seed: int, num_permutations: int) -> list[float]:
    """Return MMD^2 of the first `size` vectors against the others, and of seeded permutations."""
    total = len(kernel)
    members = np.zeros((total, 1 + num_permutations))
    members[:size, 0] = 1
    for draw in range(num_permutations):
        members[seeded_order(total, (seed, draw))[:size], 1 + draw] = 1
    products = kernel @ members
    within = np.einsum("ij,ij->j", members, products)
    sums = products.sum(axis=0)
    between = sums - within
    others = kernel.sum() - within - 2 * between
    rest = total - size
    values = (
        within / (size * (size - 1)) + others / (rest * (rest - 1)) - 2 * between / (size * rest)
    )
    return [float(value) for value in values]
