"""Do a few hidden traits of models explain what data does to them?

In: effects and base scores. Out: the effects on other models by completing the matrix of models x
(base scores, effects) with few dimensions: a model's base scores place it among the others. The
traits are found without the models that are forecast, which would otherwise have one of their own.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sft_atlas.forecast.panel import Effects, Panel, nan_mean
from sft_atlas.statistics.clusters import Floats

MAX_RANK: Final = 3
MAX_LEFT_OUT: Final = 12
"""Most models that are left out to choose the number of traits."""

NUM_SWEEPS: Final = 8
"""Missing effects of the other models are filled in by the traits so many times."""

NUGGET: Final = 1e-6


def low_rank(panel: Panel, effects: Effects, models: Sequence[int]) -> Floats:
    """Return effects on models whose runs are hidden, (target, dataset, benchmark).

    Probabilistic principal components (Tipping and Bishop 1999): traits are leading right singular
    vectors of the other models, entries that are missing filled in by iteration; a target's traits
    are their expectation given its base scores. The number of traits, up to `MAX_RANK`, is the one
    by which the other models' effects are best forecast from each other.
    """
    num_models, *shape = effects.pooled.shape
    wide = np.hstack([effects.pooled.reshape(num_models, -1), panel.base])
    targets = np.asarray(models, dtype=np.int64)
    others = wide[np.setdiff1d(np.arange(num_models), targets)]
    others = others[np.isfinite(others).any(axis=1)]
    num_effects = shape[0] * shape[1]
    guess = _forecast(others, wide[targets], _best_rank(others, num_effects))
    found: Floats = guess[:, :num_effects].reshape(targets.size, *shape)
    return found


def _best_rank(rows: Floats, num_effects: int) -> int:
    """Leave each row's effects out in turn, and compare ranks."""
    ranks = range(min(MAX_RANK, rows.shape[0] - 2) + 1)
    errors = np.zeros(max(len(ranks), 1))
    step = -(-rows.shape[0] // MAX_LEFT_OUT)
    for place in range(0, rows.shape[0], step):
        target = rows[[place]].copy()
        target[:, :num_effects] = np.nan
        for rank in ranks:
            missed = rows[place] - _forecast(np.delete(rows, place, axis=0), target, rank)[0]
            errors[rank] += np.nansum(missed[:num_effects] ** 2)
    return int(errors.argmin())


def _forecast(others: Floats, asked: Floats, rank: int) -> Floats:
    """Fill in rows by the traits of others."""
    centre = np.nan_to_num(nan_mean(others, axis=0))
    guess = np.broadcast_to(centre, asked.shape).copy()
    if rank > 0:
        traits, variance, noise = _traits(others - centre, rank)
        for place, row in enumerate(asked - centre):
            known = np.isfinite(row)
            part = traits[known]
            inner = part.T @ part + np.diag(noise / variance)
            guess[place] += traits @ np.linalg.solve(inner, part.T @ row[known])
    return guess


def _traits(table: Floats, rank: int) -> tuple[Floats, Floats, float]:
    """Loadings (column, trait), the variance of each trait and that of the noise."""
    is_there = np.isfinite(table)
    known = np.where(is_there, table, 0.0)
    filled = known
    for _ in range(1 if is_there.all() else NUM_SWEEPS):
        left, size, right = np.linalg.svd(filled, full_matrices=False)
        left, right = left[:, :rank], right[:rank]
        filled = np.where(is_there, known, (left * size[:rank]) @ right)
    num_rows, num_columns = table.shape
    free = max((num_rows - 1 - rank) * (num_columns - rank), 1)
    noise = float((size[rank:] ** 2).sum()) / free + NUGGET
    return right.T, size[:rank] ** 2 / num_rows + NUGGET, noise
