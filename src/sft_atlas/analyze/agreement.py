"""Do models agree on which data moves a layer, and at which depth most?

In: the weight change of each cell at common positions. Out: per position the Pearson correlation of
two models' changes over the datasets that both were trained on, averaged over all pairs of models.
Models have different shapes, so what is compared is not weights but which data moved them more.
"""

from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, Ints, percentile_interval

MIN_SHARED: Final = 3
"""Fewest datasets that two models must share to be a pair."""

Bools = NDArray[np.bool_]


class Agreement(NamedTuple):
    """Mean correlation over pairs of models per position, with pointwise 95 % bounds."""

    estimate: Floats
    low: Floats
    high: Floats
    num_pairs: int


def agreement(
    rows: pd.DataFrame, matrix: Floats, *, num_resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Average the correlation of all pairs of models, at each position.

    `rows` has model and data, `matrix` (rows, positions) their changes; cells of the same model and
    data are averaged first. Resamples draw models and datasets; two draws of one model are no pair.
    NaN without a pair; no bounds below three models or three datasets.
    """
    num_positions = matrix.shape[1]
    nothing = np.full(num_positions, np.nan)
    table, is_known = _by_model_and_data(rows, matrix)
    num_models, num_datasets = is_known.shape
    pairs = [
        (i, j)
        for i, j in combinations(range(num_models), 2)
        if (is_known[i] & is_known[j]).sum() >= MIN_SHARED
    ]
    if not pairs:
        return Agreement(nothing, nothing.copy(), nothing.copy(), 0)
    rng = np.random.default_rng([seed, 0xA9])
    drawn = [
        rng.multinomial(size, np.full(size, 1 / size), size=num_resamples).astype(np.float64)
        for size in (num_models, num_datasets)
    ]
    once = [np.ones((1, size)) for size in (num_models, num_datasets)]
    estimate = _mean_over_pairs(table, is_known, pairs, *once)[0]
    low, high = nothing.copy(), nothing.copy()
    if min(num_models, num_datasets) >= MIN_CLUSTERS:
        draws = _mean_over_pairs(table, is_known, pairs, *drawn)
        for index in range(num_positions):
            bounds = percentile_interval(draws[:, index])
            if bounds is not None and np.isfinite(estimate[index]):
                low[index], high[index] = bounds
    return Agreement(estimate, low, high, len(pairs))


def _by_model_and_data(rows: pd.DataFrame, matrix: Floats) -> tuple[Floats, Bools]:
    """Mean change by model and data, (models, datasets, positions), and which are known."""
    models, num_models = _numbered(rows["model"])
    datasets, num_datasets = _numbered(rows["data"])
    table = np.zeros((num_models, num_datasets, matrix.shape[1]))
    counts = np.zeros((num_models, num_datasets))
    np.add.at(table, (models, datasets), matrix)
    np.add.at(counts, (models, datasets), 1.0)
    return table / np.maximum(counts, 1.0)[:, :, None], counts > 0


def _numbered(labels: "pd.Series[str]") -> tuple[Ints, int]:
    names, codes = np.unique(labels.to_numpy(dtype=str), return_inverse=True)
    return codes.astype(np.int64), names.size


def _mean_over_pairs(
    table: Floats,
    is_known: Bools,
    pairs: list[tuple[int, int]],
    model_weights: Floats,
    data_weights: Floats,
) -> Floats:
    """Weighted mean of the pairs' correlations, (resamples, positions); NaN where none is defined.

    A pair counts as often as both its models were drawn, where its correlation is defined.
    """
    total = np.zeros((data_weights.shape[0], table.shape[2]))
    weight = np.zeros_like(total)
    for first, second in pairs:
        shared = is_known[first] & is_known[second]
        found = _pair_correlation(
            table[first, shared], table[second, shared], data_weights[:, shared]
        )
        share = (model_weights[:, first] * model_weights[:, second])[:, None]
        is_defined = np.isfinite(found)
        total += np.where(is_defined, share * np.nan_to_num(found), 0.0)
        weight += np.where(is_defined, share, 0.0)
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _pair_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted Pearson correlation over datasets for every resample and position.

    `x` and `y` are (datasets, positions), `weights` (resamples, datasets).
    """
    size = weights.sum(axis=1, keepdims=True)
    magnitude = _rms(x) * _rms(y)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = weights @ x / size, weights @ y / size
        var_x = weights @ (x * x) / size - mean_x**2
        var_y = weights @ (y * y) / size - mean_y**2
        scale = np.sqrt(np.maximum(var_x, 0.0) * np.maximum(var_y, 0.0))
        result = (weights @ (x * y) / size - mean_x * mean_y) / scale
    # Rounding is no variation: of equal changes, nor of a single dataset that was drawn every time.
    floor = np.maximum(1e-20 * magnitude, 1e-9 * _rms(x) * _rms(y))
    return np.where(scale > floor, np.clip(result, -1.0, 1.0), np.nan)


def _rms(values: Floats) -> Floats:
    root: Floats = np.sqrt((values * values).mean(axis=0))
    return root
