"""What is left of an effect once other, correlated quantities are held fixed?

In: scores and several predictors of rows that share models, datasets and benchmarks. Out: the
partial effect of each predictor, with an interval that resamples models and datasets and a p-value
that relabels them, whole. The one decision: everything is centred within model and benchmark, under
the same weights as the regression, so that a model that was drawn twice counts twice in both.
"""

from typing import Final, NamedTuple

import numpy as np

from sft_atlas.statistics.clusters import (
    MIN_CLUSTERS,
    Floats,
    Ints,
    percentile_interval,
    two_way_weights,
)

SPARE_DATASETS: Final = 3
"""Datasets beyond the number of predictors that a regression takes."""

_SINGULAR: Final = 1e-9
_UNDETERMINED: Final = 1e-6
"""Smallest eigenvalue of predictors' correlations at which a resample determines them."""
_TINY: Final = 1e-300
_CHUNK_VALUES: Final = 20_000_000
"""Numbers that are held at once, 160 MB."""


class Design(NamedTuple):
    """Rows of one regression: one score per model, dataset and benchmark."""

    y: Floats
    x: Floats
    """(rows, predictors)"""
    models: Ints
    datasets: Ints
    benchmarks: Ints


class Effect(NamedTuple):
    """One predictor beside the others; NaN where `reason` or the number of clusters forbids it."""

    effect: float
    """Change of y for one `spread` of the predictor."""
    low: float
    high: float
    partial_correlation: float
    p_value: float
    spread: float
    """Standard deviation within model and benchmark."""
    vif: float
    """Variance inflation factor: 1 where the others say nothing about it."""
    r_squared: float
    """Of all predictors together, within model and benchmark."""
    reason: str | None


def partial_effects(
    design: Design, *, num_resamples: int, num_permutations: int, seed: int = 0
) -> list[Effect]:
    """Regress y on all predictors, centred within model and benchmark.

    Interval: percentiles of a bootstrap that draws models and datasets independently (Owen 2007),
    widened for few of them (`clusters.percentile_interval`), none below three of each. p-value: the
    absolute partial correlation against that of residuals of the regression without the predictor,
    relabelled by model and by dataset (Freedman and Lane
    1983). A predictor that does not vary, or that the others give exactly, has a reason and no
    effect; the others are still adjusted for it.
    """
    groups = _groups(design)
    x = _centred(design.x, groups)
    y = _centred(design.y[:, None], groups)[:, 0]
    spread = np.sqrt((x**2).mean(axis=0))
    varies = spread > _SINGULAR * np.maximum(np.abs(design.x).max(axis=0), _TINY)
    fewest = min(np.unique(design.models).size, np.unique(design.datasets).size)
    num_datasets, num_varying = np.unique(design.datasets).size, int(varies.sum())
    if num_datasets < num_varying + SPARE_DATASETS:
        reason = (
            f"{num_datasets} datasets; a regression on {num_varying} properties takes "
            f"{num_varying + SPARE_DATASETS}"
        )
        return [_nothing(float(value), reason) for value in spread]
    is_flat = np.sqrt((y**2).mean()) <= _SINGULAR * max(float(np.abs(design.y).max()), _TINY)
    z = np.where(varies, x / np.where(varies, spread, 1.0), 0.0)
    basis = _basis(z)
    r_squared = np.nan if is_flat else float(((basis.T @ y) ** 2).sum() / (y @ y))
    kept = _independent(z)
    draws = _bootstrap(design, y, z[:, kept], num_resamples=num_resamples, seed=seed)
    shuffled = _shuffled(design, groups, num_permutations, seed)
    effects = []
    for j in range(z.shape[1]):
        others = _basis(np.delete(z, j, axis=1))
        own = z[:, j] - others @ (others.T @ z[:, j])
        share = float(own @ own) / y.size
        if not varies[j] or share < _SINGULAR or is_flat:
            why = _NOT_VARIED if not varies[j] else _GIVEN if share < _SINGULAR else _FLAT
            effects.append(_nothing(float(spread[j]), why))
            continue
        rest = y - others @ (others.T @ y)
        partial, p_value = _permutation_test(design, own, others, rest, shuffled)
        column = draws[:, kept.index(j)]
        low, high = percentile_interval(column, num_clusters=fewest) or (np.nan, np.nan)
        effects.append(
            Effect(
                effect=float(own @ y / (own @ own)),
                low=low,
                high=high,
                partial_correlation=partial,
                p_value=p_value,
                spread=float(spread[j]),
                vif=1.0 / share,
                r_squared=r_squared,
                reason=None,
            )
        )
    return effects


_NOT_VARIED: Final = "it does not vary between the datasets of a model"
_GIVEN: Final = "the other properties give it exactly"
_FLAT: Final = "the scores do not vary between the datasets of a model"


def _nothing(spread: float, reason: str) -> Effect:
    nan = float("nan")
    return Effect(nan, nan, nan, nan, nan, spread, nan, nan, reason)


def _groups(design: Design) -> Ints:
    """Number what is held fixed: model and benchmark of each row."""
    pairs = design.models * (int(design.benchmarks.max()) + 1) + design.benchmarks
    numbers: Ints = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
    return numbers


def _centred(columns: Floats, groups: Ints) -> Floats:
    """Subtract each group's mean from the columns, (rows, columns)."""
    counts = np.bincount(groups)
    sums = np.array([np.bincount(groups, column) for column in columns.T])
    centred: Floats = columns - (sums / counts).T[groups]
    return centred


def _basis(columns: Floats) -> Floats:
    """Orthonormal basis of what the columns span, (rows, rank)."""
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    basis: Floats = left[:, values > _SINGULAR * max(float(values.max(initial=0.0)), _TINY)]
    return basis


def _independent(columns: Floats) -> list[int]:
    """Columns of which none is a combination of those before it."""
    kept: list[int] = []
    for j, column in enumerate(columns.T):
        basis = _basis(columns[:, kept])
        own = column - basis @ (basis.T @ column)
        if own @ own > _SINGULAR * column.size:
            kept.append(j)
    return kept


def _bootstrap(design: Design, y: Floats, z: Floats, *, num_resamples: int, seed: int) -> Floats:
    """Coefficients in every resample, (resamples, predictors); NaN where they are not determined.

    Within a model and benchmark a resample weighs datasets alone, so that sums per dataset and
    group are enough: no weight per row is formed.
    """
    num_models, num_datasets = int(design.models.max()) + 1, int(design.datasets.max()) + 1
    size = z.shape[1]
    if min(num_models, num_datasets) < MIN_CLUSTERS or not size:
        return np.full((num_resamples, size), np.nan)
    models, datasets = np.divmod(np.arange(num_models * num_datasets), num_datasets)
    grid = two_way_weights(models, datasets, num_resamples=num_resamples, seed=seed)
    grid = grid.reshape(num_resamples, num_models, num_datasets)
    of_models, of_datasets = grid.sum(axis=2) / num_datasets, grid.sum(axis=1) / num_models
    groups = _groups(design)
    first = np.unique(groups, return_index=True)[1]
    v = np.column_stack([y, z])
    left, right = np.triu_indices(size + 1)
    moments = np.column_stack([np.ones(y.size), v, v[:, left] * v[:, right]])
    table = np.zeros((num_datasets, first.size, moments.shape[1]))
    np.add.at(table, (design.datasets, groups), moments)
    result = np.full((num_resamples, size), np.nan)
    step = max(1, _CHUNK_VALUES // table[0].size)
    for start in range(0, num_resamples, step):
        chosen = slice(start, start + step)
        sums = np.tensordot(of_datasets[chosen], table, axes=1)
        total = np.maximum(sums[..., 0], _TINY)
        means = sums[..., 1 : size + 2] / total[..., None]
        scatter = sums[..., size + 2 :] - total[..., None] * means[..., left] * means[..., right]
        pooled = np.einsum("rg,rgq->rq", of_models[chosen][:, design.models[first]], scatter)
        result[chosen] = _coefficients(pooled, size)
    return result


def _coefficients(pooled: Floats, size: int) -> Floats:
    """Solve for the coefficients of y on its predictors from the upper triangles of scatters."""
    matrix = np.zeros((pooled.shape[0], size + 1, size + 1))
    left, right = np.triu_indices(size + 1)
    matrix[:, left, right] = matrix[:, right, left] = pooled
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", matrix[:, 1:, 1:]), _TINY))
    normal = matrix[:, 1:, 1:] / (scale[:, :, None] * scale[:, None, :])
    is_determined = np.linalg.eigvalsh(normal)[:, 0] > _UNDETERMINED
    result = np.full((pooled.shape[0], size), np.nan)
    target = matrix[:, 1:, 0] / scale
    solved = np.linalg.solve(normal[is_determined], target[is_determined][..., None])[..., 0]
    result[is_determined] = solved / scale[is_determined]
    return result


class _Shuffled(NamedTuple):
    """Rows in the order of their groups, and where each row's residual comes from."""

    order: Ints
    starts: Ints
    """First row of each group, in that order."""
    models: Ints
    datasets: Ints
    """New labels, (permutations, labels)."""


def _shuffled(design: Design, groups: Ints, num_permutations: int, seed: int) -> _Shuffled:
    rng = np.random.default_rng([seed, 0xF1])
    order = np.argsort(groups, kind="stable")
    labels = [
        rng.permuted(np.tile(np.arange(int(code.max()) + 1), (num_permutations, 1)), axis=1)
        for code in (design.models, design.datasets)
    ]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return _Shuffled(order, starts, labels[0], labels[1])


def _permutation_test(
    design: Design, own: Floats, others: Floats, rest: Floats, shuffled: _Shuffled
) -> tuple[float, float]:
    """Partial correlation of `rest` with `own`, and its p-value.

    Both are what the other predictors, with basis `others`, leave. What the regression without
    `own` fits lies in that basis, so that relabelled residuals alone make the partial correlation.
    A place whose source was not measured holds the mean of its group.
    """
    order, starts, *labels = shuffled
    shape = [int(code.max()) + 1 for code in design[2:]]
    table = np.full(shape, np.nan)
    table[design.models, design.datasets, design.benchmarks] = rest
    is_complete = bool(np.isfinite(table).all())
    length = float(np.sqrt(own @ own))
    lengths = max(length * float(np.sqrt(rest @ rest)), _TINY)
    partial = float(np.clip(own @ rest / lengths, -1.0, 1.0))
    own, others = own[order], others[order]
    models, datasets, benchmarks = (code[order] for code in design[2:])
    as_extreme, step = 0, max(1, _CHUNK_VALUES // rest.size)
    for start in range(0, labels[0].shape[0], step):
        new_models, new_datasets = (part[start : start + step] for part in labels)
        places = new_models[:, models] * shape[1] + new_datasets[:, datasets]
        drawn = table.ravel()[places * shape[2] + benchmarks]
        if not is_complete:
            drawn = _recentred(drawn, starts)
        left = (drawn**2).sum(axis=1) - ((drawn @ others) ** 2).sum(axis=1)
        null = drawn @ own / (length * np.sqrt(np.maximum(left, _TINY)))
        as_extreme += int((np.abs(null) >= abs(partial) - 1e-9).sum())
    return partial, (1 + as_extreme) / (1 + labels[0].shape[0])


def _recentred(drawn: Floats, starts: Ints) -> Floats:
    """Centre each group on what is known of it; what is not known becomes 0."""
    is_known = np.isfinite(drawn)
    drawn = np.where(is_known, drawn, 0.0)
    known = np.maximum(np.add.reduceat(is_known, starts, axis=1, dtype=np.int64), 1)
    means = np.add.reduceat(drawn, starts, axis=1) / known
    counts = np.diff(starts, append=drawn.shape[1])
    centred: Floats = np.where(is_known, drawn - np.repeat(means, counts, axis=1), 0.0)
    return centred
