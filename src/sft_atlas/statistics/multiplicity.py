"""How sure is one of many tests, when the largest was picked by looking?

In: the p-values of one declared family, or the correlations of many estimates. Out: adjusted
p-values, comparable with 0.05 as they stand, and the multiplier of standard errors that holds for
all estimates at once. Which one: `holm` where a single false claim is one too many, a few planned
comparisons; `benjamini_hochberg` for maps, where some false among many finds are bearable;
`benjamini_yekutieli` where tests may also be dependent against each other.
"""

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, stdtrit

from sft_atlas.statistics.clusters import LEVEL, Floats

_NUM_DRAWS = 20_000
_NUM_STRATA = 500


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return Benjamini and Hochberg's adjusted p-values; NaN stays NaN and counts for nothing."""
    result = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(-p_values[known], kind="stable")]
    ranks = np.arange(order.size, 0, -1)
    steps = p_values[order] * order.size / np.maximum(ranks, 1)
    result[order] = np.minimum(np.minimum.accumulate(steps), 1.0) if order.size else steps
    return result


def benjamini_yekutieli(p_values: Floats) -> Floats:
    """Return p-values whose false discovery rate holds under any dependence of the tests.

    Benjamini and Hochberg's times 1 + 1/2 + ... + 1/m (Benjamini and Yekutieli 2001, theorem 1.3).
    NaN stays NaN and counts for nothing.
    """
    num_tests = int(np.isfinite(p_values).sum())
    factor = float((1.0 / np.arange(1, num_tests + 1)).sum())
    # The product may pass 1 before the running minimum is taken: the minimum is the same.
    return np.minimum(factor * benjamini_hochberg(p_values), 1.0)


def holm(p_values: Floats) -> Floats:
    """Return p-values at which any false claim of the family is rarer than the level.

    Holm 1979: it holds under any dependence of the tests. NaN stays NaN and counts for nothing.
    """
    result = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if order.size else steps
    return result


def simultaneous_quantile(
    correlation: Floats, degrees_of_freedom: float, *, level: float = LEVEL, seed: int = 0
) -> float:
    """Return the multiplier of standard errors at which intervals hold for all estimates at once.

    The `level` point of the largest absolute value of a multivariate t with this correlation,
    shape (k, k) (Hothorn, Bretz and Westfall 2008), by 20,000 seeded draws: good to about 1 %.
    Never below Student's t, which it is for one estimate.
    """
    size = correlation.shape[0]
    single = float(stdtrit(degrees_of_freedom, (1 + level) / 2))
    if size < 2:
        return single
    values, vectors = np.linalg.eigh(correlation)
    half = vectors * np.sqrt(np.maximum(values, 0.0))
    largest = np.abs(_normals(size, seed) @ half.T).max(axis=1)
    largest.sort()
    # The error's own spread is integrated, not drawn: its tail decides where degrees are few.
    middle = (np.arange(_NUM_STRATA) + 0.5) / _NUM_STRATA
    spread = np.sqrt(2 * gammaincinv(degrees_of_freedom / 2, middle) / degrees_of_freedom)

    def excess(multiplier: float) -> float:
        inside = np.searchsorted(largest, multiplier * spread, side="right")
        return float(inside.mean()) / _NUM_DRAWS - level

    # Bonferroni's is never too small.
    upper = float(stdtrit(degrees_of_freedom, 1 - (1 - level) / (2 * size)))
    return float(brentq(excess, single, 1.1 * upper)) if excess(single) < 0 else single


@lru_cache(maxsize=4)
def _normals(size: int, seed: int) -> Floats:
    """Draw what every correlation of one size starts from; callers must not write to it."""
    return np.random.default_rng([seed, 0x51]).standard_normal((_NUM_DRAWS, size))
