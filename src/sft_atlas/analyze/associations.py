"""Which property of the data goes with gain?

In: gains at the final epoch of single-dataset trajectories, and the properties of their data. x is
a property, y the gain. Three questions are kept apart because they have different answers: over all
points (`raw`), between datasets for one model (`within_model`: x and y demeaned by model and
benchmark), and between models for one dataset (`within_data`: demeaned by dataset and benchmark).
Intervals resample models and datasets as clusters; the p-value comes from shuffling which model and
which dataset a property belongs to, both whole, so that clusters stay intact.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.data_properties import Predictor, Properties, attach
from sft_atlas.analyze.gains import AVERAGE, common_benchmarks
from sft_atlas.statistics.clusters import (
    MIN_CLUSTERS,
    Floats,
    Ints,
    codes,
    percentile_interval,
    two_way_weights,
)
from sft_atlas.statistics.correlation import demean, weighted_pearson, weighted_ranks
from sft_atlas.statistics.multiplicity import benjamini_hochberg

POOLED: Final = "*"
"""In the column `benchmark`: every benchmark's gains together, not averaged."""

MIN_POINTS: Final = 5
"""Fewest points that are given a correlation."""

VARIANTS: Final = ("raw", "within_model", "within_data")

_STATISTICS: Final = ("spearman", "pearson")
_POINT_KEYS: Final = ["setting", "method", "model", "data", "benchmark"]
_UNVARIED: Final = {
    "raw": "it does not vary",
    "within_model": "it does not vary between the datasets of a model",
    "within_data": "it does not vary between models for the same dataset",
}


class Points(NamedTuple):
    """Aligned columns of the rows that a correlation rests on."""

    x: Floats
    y: Floats
    models: Ints
    datasets: Ints
    benchmarks: Ints


class Sides(NamedTuple):
    """Resampled rows and what of their gains all properties share."""

    weights: Floats
    """(resamples, rows)"""
    gains: dict[tuple[str, str], Floats]
    """By variant and statistic: demeaned or ranked gains, (resamples, rows) or (rows,)."""


def property_points(
    gains: pd.DataFrame, means: pd.DataFrame, properties: Properties
) -> pd.DataFrame:
    """Join final gains of single-dataset trajectories with the properties of their data.

    Columns: setting, method, model, data, benchmark (`AVERAGE` for the mean over benchmarks), gain
    (seeds averaged), samples, and one per predictor (NaN where not measured). Rows without any
    property are left out.
    """
    names = [predictor.key for predictor in properties.predictors]
    empty = pd.DataFrame(columns=[*_POINT_KEYS, "gain", "samples", *names])
    if gains.empty or not names:
        return empty
    single = pd.concat([gains, means], ignore_index=True)
    single = single[single["is_final"] & (single["data_kind"] == "each")]
    if single.empty:
        return empty
    points = single.groupby(_POINT_KEYS, sort=False, as_index=False).agg(
        gain=("gain", "mean"), samples=("samples", "first")
    )
    known = attach(points, properties, common=common_benchmarks(gains), average=AVERAGE)
    return known[known[names].notna().any(axis=1)].reset_index(drop=True)


def associations(
    points: pd.DataFrame,
    predictors: Sequence[Predictor],
    *,
    num_resamples: int = 1000,
    num_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate properties with gain for each setting, method, benchmark, variant and statistic.

    Columns: setting, method, benchmark (`AVERAGE`, `POOLED` or a name), predictor, variant,
    statistic (`spearman` or `pearson`), estimate, low, high (95 %; NaN below three models or three
    datasets), p_value, p_adjusted (Benjamini and Hochberg 1995, over the predictors of the same
    comparison), num_rows, num_models, num_datasets, reason (why there is no estimate, else None).
    """
    results: list[dict[str, object]] = []
    for (setting, method), part in points.groupby(["setting", "method"], sort=False):
        for benchmark, rows in _by_benchmark(part).items():
            place = {"setting": setting, "method": method, "benchmark": benchmark}
            shared: dict[bytes, tuple[Sides, Ints]] = {}
            for predictor in predictors:
                if not predictor.is_main and benchmark != AVERAGE:
                    continue
                known = rows[predictor.key].notna().to_numpy()
                if not known.any():
                    continue
                data = points_of(rows[known], predictor.key)
                key = known.tobytes()
                if key not in shared:
                    sides = gain_sides(data, num_resamples=num_resamples, seed=seed)
                    shared[key] = sides, _shuffles(data, num_permutations, seed)
                sides, places = shared[key]
                results += [
                    {**place, "predictor": predictor.key, **answer}
                    for answer in _answers(data, sides, _shuffled_x(data, places))
                ]
    return _with_adjusted(pd.DataFrame(results, columns=list(_COLUMNS)))


_COLUMNS: Final = (
    *("setting", "method", "benchmark", "predictor", "variant", "statistic"),
    *("estimate", "low", "high", "p_value", "p_adjusted"),
    *("num_rows", "num_models", "num_datasets", "reason"),
)


def _by_benchmark(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    groups = {str(name): rows for name, rows in part.groupby("benchmark", sort=False)}
    single = part[part["benchmark"] != AVERAGE]
    return groups | ({} if single.empty else {POOLED: single})


def _answers(data: Points, sides: Sides, shuffled: Floats) -> list[dict[str, object]]:
    facts = {
        "num_rows": data.x.size,
        "num_models": int(np.unique(data.models).size),
        "num_datasets": int(np.unique(data.datasets).size),
    }
    return [
        {"variant": variant, "statistic": statistic}
        | _correlate(data, sides, shuffled, variant=variant, statistic=statistic)
        | facts
        for variant in VARIANTS
        for statistic in _STATISTICS
    ]


def _correlate(
    data: Points, sides: Sides, shuffled: Floats, *, variant: str, statistic: str
) -> dict[str, object]:
    """Estimate, bounds, p-value and reason of one correlation."""
    nan = float("nan")
    answer: dict[str, object] = {"estimate": nan, "low": nan, "high": nan, "p_value": nan}
    if data.x.size < MIN_POINTS:
        return answer | {"reason": f"{data.x.size} points; it takes {MIN_POINTS}"}
    once = np.ones((1, data.x.size))
    estimate = float(correlation(data, once, variant=variant, statistic=statistic)[0])
    if np.isnan(estimate):
        return answer | {"reason": _UNVARIED[variant]}
    answer |= {"estimate": estimate, "reason": None}
    if min(np.unique(data.models).size, np.unique(data.datasets).size) < MIN_CLUSTERS:
        return answer
    draws = correlation_draws(data, sides, variant=variant, statistic=statistic)
    bounds = percentile_interval(draws)
    if bounds is not None:
        answer["low"], answer["high"] = bounds
    is_complete = bool(np.isfinite(shuffled).all())
    present = once if is_complete else np.isfinite(shuffled).astype(np.float64)
    null_data = data._replace(x=np.nan_to_num(shuffled))
    null = np.abs(correlation(null_data, present, variant=variant, statistic=statistic))
    null = null[np.isfinite(null)]
    as_extreme = int((null >= abs(estimate) - 1e-9).sum())
    answer["p_value"] = (1 + as_extreme) / (1 + null.size)
    return answer


def gain_sides(data: Points, *, num_resamples: int, seed: int) -> Sides:
    """Resample models and datasets, and demean and rank the gains under each resample."""
    weights = two_way_weights(data.models, data.datasets, num_resamples=num_resamples, seed=seed)
    gains = {}
    for variant in VARIANTS:
        values = _demeaned(data.y, data, weights, variant)
        gains[variant, "pearson"] = values
        gains[variant, "spearman"] = weighted_ranks(values, weights)
    return Sides(weights, gains)


def correlation_draws(data: Points, sides: Sides, *, variant: str, statistic: str) -> Floats:
    """Return the correlation in every resample, NaN where a side does not vary."""
    x = _demeaned(data.x, data, sides.weights, variant)
    if statistic == "spearman":
        x = weighted_ranks(x, sides.weights)
    return weighted_pearson(x, sides.gains[variant, statistic], sides.weights)


def correlation(data: Points, weights: Floats, *, variant: str, statistic: str) -> Floats:
    """Correlate x (rows,) or (resamples, rows) with y under weights that broadcast with it."""
    x = _demeaned(data.x, data, weights, variant)
    y = _demeaned(data.y, data, weights, variant)
    if statistic == "spearman":
        x = weighted_ranks(x, weights if x.ndim == 1 else np.broadcast_to(weights, x.shape))
        y = weighted_ranks(y, weights)
    return weighted_pearson(x, y, weights)


def points_of(rows: pd.DataFrame, column: str) -> Points:
    """Align a property with the gains of its rows."""
    return Points(
        x=rows[column].to_numpy(dtype=np.float64),
        y=rows["gain"].to_numpy(dtype=np.float64),
        models=codes(rows["model"]),
        datasets=codes(rows["data"]),
        benchmarks=codes(rows["benchmark"]),
    )


def _demeaned(values: Floats, data: Points, weights: Floats, variant: str) -> Floats:
    """Subtract what a variant holds fixed; as it came in where that is nothing."""
    if variant == "raw":
        return values
    group = data.models if variant == "within_model" else data.datasets
    return demean(values, group * (int(data.benchmarks.max()) + 1) + data.benchmarks, weights)


def _shape(data: Points) -> tuple[int, int, int]:
    models, datasets, benchmarks = (
        int(code.max()) + 1 for code in (data.models, data.datasets, data.benchmarks)
    )
    return models, datasets, benchmarks


def _shuffles(data: Points, num_permutations: int, seed: int) -> Ints:
    """Place of each row's property in a table (models, datasets, benchmarks) under random
    relabelling of models and of datasets, (permutations, rows). Benchmarks keep their labels.
    """
    rng = np.random.default_rng([seed, 0x9E])
    num_models, num_datasets, num_benchmarks = _shape(data)
    places = np.empty((num_permutations, data.x.size), dtype=np.int64)
    for number in range(num_permutations):
        models = rng.permutation(num_models)[data.models]
        datasets = rng.permutation(num_datasets)[data.datasets]
        places[number] = (models * num_datasets + datasets) * num_benchmarks + data.benchmarks
    return places


def _shuffled_x(data: Points, places: Ints) -> Floats:
    """x under random relabelling, (permutations, rows); NaN where not measured."""
    table = np.full(_shape(data), np.nan)
    table[data.models, data.datasets, data.benchmarks] = data.x
    shuffled: Floats = table.ravel()[places]
    return shuffled


def _with_adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """Adjust p-values for the number of predictors that were looked at."""
    keys = ["setting", "method", "benchmark", "variant", "statistic"]
    adjusted = table.groupby(keys, sort=False)["p_value"].transform(
        lambda p: pd.Series(benjamini_hochberg(p.to_numpy(dtype=np.float64)), index=p.index)
    )
    return table.assign(p_adjusted=adjusted)
