"""How sure is one of many tests, when the largest was picked by looking?

In: the p-values of one declared family. Out: adjusted ones, comparable with 0.05 as they stand.
"""

import numpy as np

from sft_atlas.statistics.clusters import Floats


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return Benjamini and Hochberg's adjusted p-values; NaN stays NaN and counts for nothing."""
    result = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(-p_values[known], kind="stable")]
    ranks = np.arange(order.size, 0, -1)
    steps = p_values[order] * order.size / np.maximum(ranks, 1)
    result[order] = np.minimum(np.minimum.accumulate(steps), 1.0) if order.size else steps
    return result
