"""Do a few hidden traits of models explain what data does to them?

In: effects and base scores. Out: the effects on others by completing the matrix of models x
(base scores, effects) with few dimensions: the model's base scores place it among the others.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sft_atlas.forecast.panel import Effects, Panel, nan_mean
from sft_atlas.statistics.clusters import Floats

RANK: Final = 2
NUM_SWEEPS: Final = 15


def low_rank(panel: Panel, effects: Effects, models: Sequence[int]) -> Floats:
    """Return effects on models whose runs are hidden, (target, dataset, benchmark).

    Iterated singular value decomposition (Mazumder, Hastie and Tibshirani 2010, "Spectral
    regularization"): missing entries start at their column's mean over the other models, and are
    replaced by those of the rank-`RANK` approximation whose singular values are lowered by the
    next one.
    """
    num_models, *shape = effects.pooled.shape
    wide = np.hstack([effects.pooled.reshape(num_models, -1), panel.base])
    others = np.setdiff1d(np.arange(num_models), np.asarray(models, dtype=np.int64))
    centre = np.nan_to_num(nan_mean(wide[others], axis=0))
    is_there = np.isfinite(wide)
    table = np.where(is_there, wide - centre, 0.0)
    filled = table
    for _ in range(NUM_SWEEPS):
        left, size, right = np.linalg.svd(filled, full_matrices=False)
        threshold = size[RANK] if size.size > RANK else 0.0
        approximation = (left * np.clip(size - threshold, 0, None)) @ right
        filled = np.where(is_there, table, approximation)
    rows = (filled[list(models)] + centre)[:, : shape[0] * shape[1]]
    found: Floats = rows.reshape(len(models), *shape)
    return found
