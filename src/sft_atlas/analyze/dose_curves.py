"""How do scores move along a choice that has an order: epochs, or samples?

In: the tables `cells` and `scores`. Out: the scores of all runs on one scale, pairs of cells that
differ in one choice, and panels: runs that have a score at every one of the compared doses, so that
a rise is never the arrival of other runs. The one decision: everything here compares scores within
a run or within a model, never gains, because the base model then cancels: a base that is missing or
wrong moves nothing.
"""

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from sft_atlas.analyze.cell_scores import cell_scores
from sft_atlas.analyze.gains import mean_gains
from sft_atlas.statistics.clusters import Floats, Ints, Mean, codes, two_way_mean, within_limit
from sft_atlas.statistics.multiplicity import simultaneous_quantile

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

SERIES: Final = ("method", "data_kind", "samples", "schedule", "horizon_epochs")
"""What the cells of one curve over epochs share."""

_RUN: Final = ("model", "data", "seed")
_OF_BENCHMARK: Final = ("skill", "metric", "in_mean", "range")
_PAIRED: Final = (*_RUN, *SERIES, "epoch", "benchmark")


class Panel(NamedTuple):
    """Scores of runs at the same doses; none is missing."""

    doses: Ints
    """Epochs, or numbers of samples, rising; at least two."""
    values: Floats
    """(runs, doses)"""
    errors: Floats
    """Standard errors over items, (runs, doses)."""
    models: Ints
    datasets: Ints
    data: NDArray[np.str_]
    """Name of each run's dataset."""

    def only(self, data: str) -> "Panel":
        """Keep the runs on one dataset."""
        kept = self.data == data
        return Panel(self.doses, *(part[kept] for part in self[1:]))


def run_scores(tables: "Tables") -> pd.DataFrame:
    """Return one row per trained cell and benchmark that has a score.

    Columns: those of `cell_scores.cell_scores`, and horizon_epochs (0 where the schedule has no
    end). `value_se` is 0 where a source gives none, so that only the spread of runs can tell; it
    stays NaN where a single item was scored and nothing can.
    """
    scores = cell_scores(tables)
    if scores.empty:
        return scores.assign(horizon_epochs=0)
    horizons = tables.cells.drop_duplicates("cell").set_index("cell")["horizon_epochs"]
    horizons = horizons.astype("Int64").fillna(0).astype(int)
    is_single = scores["num_items"].astype("Int64").fillna(2) < 2
    error = scores["value_se"].astype(float)
    return scores.assign(
        horizon_epochs=scores["cell"].map(horizons).astype(int),
        value_se=error.fillna(0.0).mask(error.isna() & is_single),
    )


def benchmark_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: its mean score over the common benchmarks (`gains.mean_gains`).

    Columns: those of `run_scores` that belong to a cell, benchmark (`gains.AVERAGE`), skill,
    metric (both empty), in_mean, value and value_se.
    """
    named = scores.rename(columns={"value": "gain", "value_se": "gain_se"})
    if scores.empty:
        return scores
    means = mean_gains(named).rename(columns={"gain": "value", "gain_se": "value_se"})
    horizons = scores.drop_duplicates("cell").set_index("cell")["horizon_epochs"]
    return means.assign(
        horizon_epochs=means["cell"].map(horizons), metric="", in_mean=True, range=1.0
    )


def epoch_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the plain mean score of each benchmark (row) at each epoch (column), over all rows.

    Not a panel: where runs end early, means of different runs stand beside each other.
    """
    return scores.pivot_table(index="benchmark", columns="epoch", values="value", sort=False)


def standardised(scores: pd.DataFrame) -> pd.DataFrame:
    """Centre each benchmark within its model and scale it to SD 1, so that none dominates a mean.

    `value` is then in standard deviations of what training moves; a benchmark that nothing moves
    is null.
    """
    by_model = scores.groupby(["benchmark", "model"], sort=False)["value"]
    centred = scores["value"] - by_model.transform("mean")
    spread = centred.groupby(scores["benchmark"], sort=False).transform("std")
    return scores.assign(value=centred / spread.where(spread > 0))


def paired_scores(
    scores: pd.DataFrame, *, factor: str, first: object, second: object
) -> pd.DataFrame:
    """Pair the cells that differ in one choice and agree in all others, their epoch included.

    `factor` is method, samples or schedule (cells of two schedules may differ in their horizon).
    Columns: what the pair shares, cell_first, cell_second, value_first, value_second, difference
    (second less first) and error (its standard error over items, as of independent samples: no
    smaller than the paired one).
    """
    apart = {factor, "horizon_epochs"} if factor == "schedule" else {factor}
    keys = [name for name in _PAIRED if name not in apart]
    values = [*keys, "cell", "value", "value_se"]
    left = scores.loc[scores[factor] == first, [*values, *_OF_BENCHMARK]]
    right = scores.loc[scores[factor] == second, values]
    pairs = left.merge(right, on=keys, suffixes=("_first", "_second"))
    return pairs.assign(
        difference=pairs["value_second"] - pairs["value_first"],
        error=np.hypot(pairs["value_se_first"], pairs["value_se_second"]),
    )


def by_run(pairs: pd.DataFrame) -> pd.DataFrame:
    """Average the pairs of one run over its epochs: these are repeated measures, not more runs.

    Columns: benchmark, model, data, seed, difference and error (their means: the items are the
    same at each epoch, so more epochs make their error no smaller). `pairs` are of one comparison.
    """
    # A missing error must not pass for none: infinity survives the mean.
    known = pairs.assign(error=pairs["error"].fillna(np.inf))
    keys = ["benchmark", *_RUN]
    runs = known.groupby(keys, sort=False, as_index=False)[["difference", "error"]].mean()
    return runs.replace({"error": {np.inf: np.nan}})


def dose_panels(rows: pd.DataFrame, *, dose: str) -> dict[str, Panel]:
    """Form each benchmark's panel: runs that have every dose which at least half of them have.

    `rows` are of one series (for `samples`: of several that differ in their samples). With `dose`
    `epoch` a run is a trajectory; with `samples` it is a model, dataset and seed, and its values
    are averaged over the epochs that all its sizes have. Runs with a single dose do not count. A
    benchmark of which no two doses can be compared has no panel.
    """
    if rows[dose].nunique() < 2:
        return {}
    keys = ["benchmark", *_RUN] if dose == "epoch" else ["benchmark", *_RUN, "epoch"]
    known = rows.assign(value_se=rows["value_se"].fillna(np.inf))
    table = known.groupby([*keys, dose])[["value", "value_se"]].mean()
    # Doses rise from left to right: `unstack` sorts them.
    wide = {name: table[name].unstack(dose) for name in table.columns}
    doses = wide["value"].columns.to_numpy(dtype=np.int64)
    values, errors = (part.to_numpy(dtype=np.float64) for part in wide.values())
    labels = wide["value"].index.to_frame(index=False)
    panels = {}
    for benchmark, places in labels.groupby("benchmark", sort=False).indices.items():
        panel = _panel(doses, values[places], errors[places], labels.iloc[places])
        if panel is not None:
            panels[str(benchmark)] = panel
    return panels


def _panel(doses: Ints, values: Floats, errors: Floats, labels: pd.DataFrame) -> Panel | None:
    """Balance rows of one benchmark; rows of one run, at several epochs, are averaged."""
    exists = np.isfinite(values)
    several = exists.sum(axis=1) > 1
    if not several.any():
        return None
    kept = exists[several].mean(axis=0) >= 0.5
    complete = several & exists[:, kept].all(axis=1)
    if kept.sum() < 2 or not complete.any():
        return None
    values, errors = values[complete][:, kept], errors[complete][:, kept]
    runs = labels.loc[complete, list(_RUN)]
    numbers = runs.groupby(list(_RUN), sort=False).ngroup().to_numpy()
    counts = np.bincount(numbers)[:, None]
    sums = [np.zeros((counts.size, values.shape[1])) for _ in range(2)]
    for total, part in zip(sums, (values, errors), strict=True):
        np.add.at(total, numbers, part)
    first = runs.iloc[np.unique(numbers, return_index=True)[1]]
    return Panel(
        doses=doses[kept],
        values=sums[0] / counts,
        errors=np.where(np.isfinite(sums[1]), sums[1] / counts, np.nan),
        models=codes(first["model"]),
        datasets=codes(first["data"]),
        data=first["data"].to_numpy(dtype=str),
    )


def change(panel: Panel, first: int, second: int) -> Mean:
    """Mean change between two columns of a panel, with its two-way interval."""
    return two_way_mean(
        panel.values[:, second] - panel.values[:, first],
        models=panel.models,
        datasets=panel.datasets,
        item_errors=np.hypot(panel.errors[:, first], panel.errors[:, second]),
        degrees="effective",
        limit=limit_of(panel.values),
    )


def limit_of(values: Floats) -> float:
    """Return what no mean change can exceed: 1 for fractions, nothing for values in other units."""
    return 1.0 if values.min(initial=0.0) >= 0 and values.max(initial=0.0) <= 1 else math.inf


def fewest_degrees(mean: Mean) -> int:
    """Smaller number of resampled models or datasets, less one; 0 where nothing is resampled."""
    return min((n for n in (mean.num_models, mean.num_datasets) if n > 1), default=1) - 1


def p_of(mean: Mean) -> float:
    """Two-sided p-value that a mean is 0; NaN where nothing could be resampled.

    Student's t with the fewest degrees of freedom, not those of the interval: adjusted tests need
    the far tail, which Satterthwaite's approximation does not hold for few clusters (12 benchmarks
    adjusted after Holm, 3 models x 9 datasets: a false claim in 10 to 20 % of null studies with his
    degrees, in at most 1 % with these; with 8 models 4 to 5 % and 2 to 5 %).
    """
    if not mean.standard_error > 0:
        return math.nan
    return float(2 * stdtr(fewest_degrees(mean), -abs(mean.estimate) / mean.standard_error))


class Band(NamedTuple):
    """Changes and bounds that hold for all of them at once; NaN where nothing was resampled."""

    estimates: Floats
    low: Floats
    high: Floats


def simultaneous_changes(panel: Panel, pairs: list[tuple[int, int]], *, seed: int = 0) -> Band:
    """Changes between pairs of columns with one 95 % band for all of them.

    Each change keeps its own two-way error; the multiplier is that of a multivariate t
    (`multiplicity.simultaneous_quantile`) with the fewest degrees of freedom (`p_of` says why) and
    the correlation of the changes' sums over models and over datasets.
    """
    means = [change(panel, first, second) for first, second in pairs]
    estimates, errors = np.array([[m.estimate, m.standard_error] for m in means]).T
    freedom = fewest_degrees(means[0])
    if not np.isfinite(errors).all() or not (errors > 0).any():
        nothing = np.full(len(pairs), np.nan)
        return Band(estimates, nothing, nothing)
    first, second = np.array(pairs).T
    changes = panel.values[:, second] - panel.values[:, first]
    correlation = _cluster_correlation(changes - estimates, panel.models, panel.datasets)
    margin = simultaneous_quantile(correlation, freedom, seed=seed) * errors
    bounds = zip(estimates - margin, estimates + margin, strict=True)
    low, high = np.array([within_limit(*pair, limit_of(panel.values)) for pair in bounds]).T
    return Band(estimates, low, high)


def _cluster_correlation(residuals: Floats, models: Ints, datasets: Ints) -> Floats:
    """Correlation of the columns' means over resampled models and datasets, (columns, columns)."""
    covariance = np.zeros((residuals.shape[1], residuals.shape[1]))
    for clusters in (models, datasets):
        num_clusters = np.unique(clusters).size
        if num_clusters > 1:
            sums = np.zeros((int(clusters.max()) + 1, residuals.shape[1]))
            np.add.at(sums, clusters, residuals)
            covariance += num_clusters / (num_clusters - 1) * sums.T @ sums
    scale = np.sqrt(np.diag(covariance))
    scale[scale == 0] = 1.0
    correlation: Floats = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    return correlation
