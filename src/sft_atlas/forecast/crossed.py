"""What will a dataset do to a model, by what it did to others that resemble it?

In: effects of datasets on models and benchmarks. Out: mean and covariance of the effects on
models whose runs are hidden. Effects are crossed random effects (a Gaussian model): of the dataset,
of dataset x benchmark, of model x dataset, of all three; the last two are shared by models whose
base scores are close, and effects on a benchmark may grow with the base's score there. Variances
are fitted to the products of observed effects by non-negative least squares, which takes
milliseconds and needs no starting values; the forecast is the best linear one (Henderson 1975).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import nnls

from sft_atlas.forecast.panel import Effects, Panel, nan_mean
from sft_atlas.statistics.clusters import Floats, Ints

WIDTHS: Final = (0.5, 1.0)
"""Base scores are close at so many median distances between models."""

MAX_ROWS: Final = 600
"""Most rows (model x benchmark) that a forecast rests on: of more models, those whose base scores
are closest to the targets' are taken."""

NUGGET: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """Effects on some models, before any of their runs is known."""

    mean: Floats
    """(target, dataset, benchmark)."""
    covariance: Floats
    """(target, dataset, benchmark, benchmark); effects of different datasets are independent."""


def crossed_effects(panel: Panel, effects: Effects, models: Sequence[int]) -> Foretold:
    """Forecast the effects of all datasets on models whose runs are hidden."""
    num_datasets, num_benchmarks = effects.pooled.shape[1:]
    targets = np.asarray(models, dtype=np.int64)
    # (model x benchmark, dataset): all rows of one dataset share one covariance matrix.
    values = effects.pooled.transpose(0, 2, 1).reshape(-1, num_datasets)
    known = _closest(panel, targets, np.flatnonzero(np.isfinite(values).any(axis=1)))
    asked = (targets[:, None] * num_benchmarks + np.arange(num_benchmarks)).ravel()
    shape = (targets.size, num_datasets, num_benchmarks)
    mean, covariance = np.zeros(shape), np.zeros((*shape, num_benchmarks))
    if known.size == 0:
        return Foretold(mean=mean, covariance=covariance + np.eye(num_benchmarks))
    kernels = _kernels(panel, targets, np.concatenate([known, asked]))
    size = known.size
    weights = _fit(kernels[:, :size, :size], values[known])
    kernel = np.tensordot(weights, kernels, axes=1)
    is_there = np.isfinite(values[known])
    # Datasets that were seen in the same places share one factorisation.
    patterns, which = np.unique(is_there.T, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, same = np.flatnonzero(pattern), np.flatnonzero(which == number)
        cross = kernel[size:, rows]
        inner = kernel[np.ix_(rows, rows)] + NUGGET * np.eye(rows.size)
        gain = np.linalg.solve(inner, cross.T).T
        found = gain @ values[np.ix_(known[rows], same)]
        left = kernel[size:, size:] - gain @ cross.T
        for place in range(targets.size):
            block = slice(place * num_benchmarks, (place + 1) * num_benchmarks)
            mean[place, same] = found[block].T
            covariance[place, same] = left[block, block]
    return Foretold(mean=mean, covariance=covariance)


def _closest(panel: Panel, targets: Ints, known: Ints) -> Ints:
    """Known rows of no more models than fit into `MAX_ROWS`."""
    num_benchmarks = panel.base.shape[1]
    if known.size <= MAX_ROWS:
        return known
    apart = nan_mean((panel.base[:, None] - panel.base[targets]) ** 2, axis=(1, 2))
    order = np.argsort(np.where(np.isfinite(apart), apart, np.inf), kind="stable")
    nearest = order[np.isin(order, known // num_benchmarks)][: MAX_ROWS // num_benchmarks]
    found: Ints = known[np.isin(known // num_benchmarks, nearest)]
    return found


def _kernels(panel: Panel, targets: Ints, rows: Ints) -> Floats:
    """Covariance of each random effect with unit variance, (effect, row, row).

    Rows are model x benchmark, numbered as in the raveled base scores; all are of one dataset.
    """
    num_models, num_benchmarks = panel.base.shape
    who, test = rows // num_benchmarks, rows % num_benchmarks
    same_test = (test[:, None] == test).astype(np.float64)
    same_model = (who[:, None] == who).astype(np.float64)
    # Centred without the models that are forecast, so that a back-test is one.
    others = np.setdiff1d(np.arange(num_models), targets)
    offset = np.nan_to_num(panel.base - nan_mean(panel.base[others], axis=0)).ravel()[rows]
    parts = [
        *(np.ones_like(same_test), same_test, same_model, same_model * same_test),
        same_test * np.outer(offset, offset),
    ]
    for near in _closeness(panel.base, others):
        close = near[np.ix_(who, who)]
        parts += [close, close * same_test]
    return np.stack(parts)


def _closeness(base: Floats, others: Ints) -> list[Floats]:
    """How alike models' base scores are, in (0, 1], one matrix per width.

    A model without base scores is at the median distance from all.
    """
    difference = base[:, None] - base[None]
    squared = nan_mean(difference**2, axis=2)
    apart = squared[np.ix_(others, others)]
    apart = apart[np.isfinite(apart) & (apart > 0)]
    if apart.size == 0:
        return []
    median = float(np.median(apart))
    squared = np.where(np.isfinite(squared), squared, median)
    np.fill_diagonal(squared, 0.0)
    return [np.exp(-squared / (2 * median * width**2)) for width in WIDTHS]


def _fit(kernels: Floats, values: Floats) -> Floats:
    """Variances whose covariance is closest to the products of observed effects."""
    is_there = np.isfinite(values).astype(np.float64)
    filled = np.nan_to_num(values)
    upper: tuple[Ints, ...] = np.triu_indices(values.shape[0])
    count = (is_there @ is_there.T)[upper]
    products = (filled @ filled.T)[upper]
    design = kernels[:, upper[0], upper[1]]
    weighted = design * count
    size = np.sqrt(np.maximum((weighted * design).sum(axis=1), NUGGET))
    normal = (weighted @ design.T) / np.outer(size, size)
    target = (design @ products) / size
    # Cholesky turns the normal equations into a small least-squares problem.
    root = np.linalg.cholesky(normal + 1e-9 * np.eye(size.size))
    found, _ = nnls(root.T, np.linalg.solve(root, target))
    fitted: Floats = found / size
    return fitted
