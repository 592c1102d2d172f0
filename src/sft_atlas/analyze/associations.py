"""Does data that the base model already finds likely help more?

In: gains at the final epoch of single-dataset trajectories, and the table `datasets`. x is log
perplexity of the dataset's answers under the base model (nats per token, end-of-sequence included),
y the gain. Three questions are kept apart because they have different answers: over all points
(`raw`), between datasets for one model (`within_model`: x and y demeaned by model, y also by
benchmark), and between models for one dataset (`within_data`: demeaned by dataset and benchmark).
Intervals resample models and datasets as clusters; the p-value comes from shuffling which model and
which dataset a perplexity belongs to, both whole, so that clusters stay intact.
"""

from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.clusters import (
    MIN_CLUSTERS,
    Floats,
    Ints,
    codes,
    percentile_interval,
    two_way_weights,
)
from sft_atlas.analyze.correlation import demean, weighted_pearson, weighted_ranks
from sft_atlas.analyze.gains import AVERAGE

POOLED: Final = "*"
"""In the column `benchmark`: every benchmark's gains together, not averaged."""

MIN_POINTS: Final = 5
"""Fewest points that are given a correlation."""

VARIANTS: Final = ("raw", "within_model", "within_data")

_STATISTICS: Final = ("spearman", "pearson")


class Points(NamedTuple):
    """Aligned columns of the rows that a correlation rests on."""

    x: Floats
    y: Floats
    models: Ints
    datasets: Ints
    benchmarks: Ints


def perplexity_points(
    gains: pd.DataFrame, means: pd.DataFrame, datasets: pd.DataFrame
) -> pd.DataFrame:
    """Join final gains of single-dataset trajectories with the dataset's measures under their base.

    Columns: setting, method, model, data, benchmark (`AVERAGE` for the mean over benchmarks), cell,
    gain, gain_se, log_perplexity, and per variant of `VARIANTS` x and y as plotted. Seeds are
    averaged. Where a dataset was measured at several sizes, the size of the training set is taken
    if it is there, else the largest.
    """
    empty = pd.DataFrame(columns=[*_POINT_KEYS, "gain", "log_perplexity"])
    if gains.empty or datasets.empty:
        return empty
    single = pd.concat([gains, means], ignore_index=True)
    single = single[single["is_final"] & (single["data_kind"] == "each")]
    measured = datasets[(datasets["answer_tokens"] > 0) & datasets["answer_nll"].notna()]
    measured = measured.assign(log_perplexity=measured["answer_nll"] / measured["answer_tokens"])
    if single.empty or measured.empty:
        return empty
    largest = measured.sort_values("samples").drop_duplicates(["model", "data"], keep="last")
    columns = ["model", "data", "log_perplexity"]
    rows = single.merge(largest[columns], on=["model", "data"])
    exact = measured.drop_duplicates(["model", "data", "samples"], keep="last")
    rows = rows.merge(
        exact[[*columns, "samples"]],
        on=["model", "data", "samples"],
        how="left",
        suffixes=("", "_exact"),
    )
    rows["log_perplexity"] = rows["log_perplexity_exact"].fillna(rows["log_perplexity"])
    points = rows.groupby(_POINT_KEYS, sort=False, as_index=False).agg(
        gain=("gain", "mean"), log_perplexity=("log_perplexity", "first")
    )
    frames = [
        _with_variants(part)
        for _, part in points.groupby(["setting", "method", "benchmark"], sort=False)
    ]
    return pd.concat(frames, ignore_index=True) if frames else empty


_POINT_KEYS: Final = ["setting", "method", "model", "data", "benchmark"]


def associations(
    points: pd.DataFrame, *, num_resamples: int = 1000, num_permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlate perplexity with gain for each setting, method, benchmark, variant and statistic.

    Columns: setting, method, benchmark (`AVERAGE`, `POOLED` or a name), variant, statistic
    (`spearman` or `pearson`), estimate, low, high (95 %; NaN below three models or three datasets),
    p_value, num_rows, num_models, num_datasets.
    """
    results: list[dict[str, object]] = []
    for (setting, method), part in points.groupby(["setting", "method"], sort=False):
        groups = {str(name): rows for name, rows in part.groupby("benchmark", sort=False)}
        single = part[part["benchmark"] != AVERAGE]
        if not single.empty:
            groups[POOLED] = single
        for benchmark, rows in groups.items():
            data = _points(rows)
            place = {"setting": setting, "method": method, "benchmark": benchmark}
            clusters = {
                "num_rows": len(rows),
                "num_models": int(np.unique(data.models).size),
                "num_datasets": int(np.unique(data.datasets).size),
            }
            weights = two_way_weights(
                data.models, data.datasets, num_resamples=num_resamples, seed=seed
            )
            shuffled = _shuffled_x(data, num_permutations=num_permutations, seed=seed)
            for variant in VARIANTS:
                for statistic in _STATISTICS:
                    answer = _correlate(
                        data, weights, shuffled, variant=variant, statistic=statistic
                    )
                    kind: dict[str, object] = {"variant": variant, "statistic": statistic}
                    results.append({**place, **kind, **answer, **clusters})
    return pd.DataFrame(results)


def _correlate(
    data: Points, weights: Floats, shuffled: Floats, *, variant: str, statistic: str
) -> dict[str, float]:
    """Estimate, bounds and p-value of one correlation."""
    once = np.ones((1, data.x.size))
    nan = float("nan")
    if data.x.size < MIN_POINTS:
        return {"estimate": nan, "low": nan, "high": nan, "p_value": nan}
    estimate = float(_correlation(data, once, variant=variant, statistic=statistic)[0])
    answer = {"estimate": estimate, "low": nan, "high": nan, "p_value": nan}
    too_few = min(np.unique(data.models).size, np.unique(data.datasets).size) < MIN_CLUSTERS
    if too_few or np.isnan(estimate):
        return answer
    bounds = percentile_interval(_correlation(data, weights, variant=variant, statistic=statistic))
    if bounds is not None:
        answer["low"], answer["high"] = bounds
    present = np.isfinite(shuffled).astype(np.float64)
    null_data = data._replace(x=np.nan_to_num(shuffled))
    null = _correlation(null_data, present, variant=variant, statistic=statistic)
    null = np.abs(null[np.isfinite(null)])
    as_extreme = int((null >= abs(estimate) - 1e-9).sum())
    answer["p_value"] = (1 + as_extreme) / (1 + null.size)
    return answer


def _correlation(data: Points, weights: Floats, *, variant: str, statistic: str) -> Floats:
    x, y = variant_values(data, weights, variant=variant)
    if statistic == "spearman":
        x, y = weighted_ranks(x, weights), weighted_ranks(y, weights)
    return weighted_pearson(x, y, weights)


def variant_values(data: Points, weights: Floats, *, variant: str) -> tuple[Floats, Floats]:
    """Return x and y of a variant, demeaned under the weights.

    Each is (resamples, rows), or as it came in where nothing is subtracted.
    """
    if variant == "raw":
        return data.x, data.y
    group = data.models if variant == "within_model" else data.datasets
    both = group * (int(data.benchmarks.max()) + 1) + data.benchmarks
    return demean(data.x, group, weights), demean(data.y, both, weights)


def _with_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the plotted coordinates of every variant to the points of one benchmark."""
    data = _points(rows)
    once = np.ones((1, len(rows)))
    columns = {}
    for variant in VARIANTS:
        x, y = variant_values(data, once, variant=variant)
        columns[f"x_{variant}"], columns[f"y_{variant}"] = x.ravel(), y.ravel()
    return rows.assign(**columns)


def _points(rows: pd.DataFrame) -> Points:
    return Points(
        x=rows["log_perplexity"].to_numpy(dtype=np.float64),
        y=rows["gain"].to_numpy(dtype=np.float64),
        models=codes(rows["model"]),
        datasets=codes(rows["data"]),
        benchmarks=codes(rows["benchmark"]),
    )


def _shuffled_x(data: Points, *, num_permutations: int, seed: int) -> Floats:
    """x under random relabelling of models and of datasets, (permutations, rows); NaN where not
    measured.
    """
    rng = np.random.default_rng([seed, 0x9E])
    table = np.full((int(data.models.max()) + 1, int(data.datasets.max()) + 1), np.nan)
    table[data.models, data.datasets] = data.x
    rows = []
    for _ in range(num_permutations):
        models = rng.permutation(table.shape[0])[data.models]
        datasets = rng.permutation(table.shape[1])[data.datasets]
        rows.append(table[models, datasets])
    return np.array(rows)
