"""What did each dataset do to each benchmark?

In: the tables `cells` and `scores`. Out: gains of single cells, and the gain map: dataset x
benchmark per model and method, and averaged over models. A gain is a cell's score minus its base
model's on the same items, as a fraction of 1. Averages are formed inside one *setting* (samples,
schedule, epochs) and one epoch, because a mean over different amounts of training answers no
question; how many models it rests on stands beside it.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import t_quantile
from sft_atlas.store.scored import SCORE_BOUNDS

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

AVERAGE: Final = ""
"""In the column `model`, `data` or `benchmark`: this row is an average over all of them."""

NORMAL_QUANTILE: Final = 1.959963984540054

SETTING: Final = ("samples", "schedule", "epochs")

_LABELS: Final = (
    "cell",
    "trajectory",
    "model",
    "data",
    "data_kind",
    "data_group",
    "method",
    "method_kind",
    "samples",
    "schedule",
    "epoch",
    "seed",
)


def setting_label(samples: int, schedule: str, epochs: int) -> str:
    """Name a setting as the report shows it.

    >>> setting_label(1000, "cosine", 10)
    '1,000 samples, cosine, 10 epochs'
    """
    plural = "" if epochs == 1 else "s"
    return f"{samples:,} samples, {schedule}, {epochs} epoch{plural}"


def labelled_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of trained or planned cells (no base models) with what places them.

    Adds `epochs` (the last planned epoch of the trajectory), `setting` and `is_final`. A trajectory
    whose last epoch failed has no final cell that is done: its earlier epoch is not passed off as
    the end.
    """
    if cells.empty:
        return pd.DataFrame(columns=[*_LABELS, "epochs", "setting", "is_final"])
    labels = cells.loc[cells["method"] != "base", list(_LABELS)]
    labels = labels.astype(dict.fromkeys(("samples", "epoch", "seed"), int))
    last = labels.groupby("trajectory")["epoch"].transform("max")
    labels = labels.assign(epochs=last, is_final=labels["epoch"] == last)
    keys = zip(labels["samples"], labels["schedule"], labels["epochs"], strict=True)
    return labels.assign(setting=[setting_label(int(n), str(s), int(e)) for n, s, e in keys])


def cell_gains(tables: "Tables") -> pd.DataFrame:
    """Return one row per trained cell and benchmark that has a gain.

    Columns: those of `labelled_cells`, and benchmark, skill, language, in_mean, gain, gain_se,
    gain_low, gain_high (paired over items), num_items. Gains of ratings are fractions of the range
    of grades, so that they can be averaged with others. The error is no smaller than half the
    interval's width over 1.96: it is 0 where all items agree, which is no certainty.
    """
    labels = labelled_cells(tables.cells)
    if labels.empty or tables.scores.empty:
        return pd.DataFrame(columns=[*labels.columns, *_MEASURED])
    scores = tables.scores.loc[tables.scores["gain"].notna(), ["cell", "metric", *_MEASURED]]
    scores = scores.astype({"num_items": "Int64"})
    ranges = {metric: high - low for metric, (low, high) in SCORE_BOUNDS.items()}
    scale = scores.pop("metric").map(ranges).astype(float).fillna(1.0)
    scores[_GAINS] = scores[_GAINS].div(scale, axis=0)
    width = (scores["gain_high"] - scores["gain_low"]) / (2 * NORMAL_QUANTILE)
    scores["gain_se"] = np.fmax(scores["gain_se"], width)
    return labels.merge(scores, on="cell", how="inner", validate="one_to_many")


_GAINS: Final = ["gain", "gain_se", "gain_low", "gain_high"]
_MEASURED: Final = ("benchmark", "skill", "language", "in_mean", *_GAINS, "num_items")


def common_benchmarks(gains: pd.DataFrame) -> list[str]:
    """Benchmarks that a mean is taken over: those scored for at least half of the cells, unless
    their publisher counts them with another (other shots, parts of a total).
    """
    if gains.empty:
        return []
    gains = gains[gains["in_mean"].astype(bool)]
    share = gains.groupby("benchmark", sort=False)["cell"].nunique() / gains["cell"].nunique()
    return [str(name) for name in share.index[share >= 0.5]]


def mean_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: its mean gain over the common benchmarks.

    A cell that lacks one of them is left out, so that every mean has the same n. The standard error
    treats benchmarks as independent: their items are different. It is NaN where one of them is.
    """
    names = common_benchmarks(gains)
    kept = gains[gains["benchmark"].isin(names)]
    keys = [*_LABELS, "epochs", "setting", "is_final"]
    # A missing error must not pass for none: infinity survives the sum.
    squared = (kept["gain_se"] ** 2).fillna(np.inf)
    groups = kept.assign(squared=squared).groupby("cell", sort=False)
    means = groups.agg(mean=("gain", "mean"), size=("gain", "size"), squared=("squared", "sum"))
    means["gain_se"] = (np.sqrt(means["squared"]) / means["size"]).replace(np.inf, np.nan)
    complete = means[means["size"] == len(names)].rename(columns={"mean": "gain"})
    labels = kept.drop_duplicates("cell")[keys]
    result = labels.merge(complete[["gain", "gain_se"]], left_on="cell", right_index=True)
    return result.assign(benchmark=AVERAGE, skill="").reset_index(drop=True)


def gain_map(gains: pd.DataFrame) -> pd.DataFrame:
    """Return the map's cells: setting x method x epoch x model x data x benchmark.

    `model` is `AVERAGE` for the mean over models (each model's seeds are averaged first); those
    rows exist only where the study has several models. Columns besides the keys: gain, se, low,
    high (95 %), `unit` (what the interval resamples: items, trajectories or models), num_models,
    num_trajectories, num_items (smallest per trajectory), is_own (the data's group is the
    benchmark's skill), is_partial (fewer models or trajectories than the fullest entry of the same
    map).

    The interval of one trajectory is the paired one over items: it says nothing about
    another seed. Several trajectories or models give s / sqrt(k) with Student's t, and no less than
    what item sampling alone would give.
    """
    if gains.empty:
        return pd.DataFrame(columns=[*_MAP_KEYS, *_MAP_VALUES])
    per_model = _average(gains, keys=_MAP_KEYS, unit="trajectories")
    frames = [per_model]
    if gains["model"].nunique() > 1:
        keys = [key for key in _MAP_KEYS if key != "model"]
        averaged = _average(per_model, keys=keys, unit="models").assign(model=AVERAGE)
        frames.append(averaged)
    result = pd.concat(frames, ignore_index=True)
    result["is_own"] = (result["data_group"] == result["skill"]) & (result["skill"] != "")
    size = result["num_models"] * 1000 + result["num_trajectories"]
    same_map = [result[key] for key in ("setting", "method", "epoch", "model")]
    result["is_partial"] = size < size.groupby(same_map).transform("max")
    return result[[*_MAP_KEYS, *_MAP_VALUES]]


_MAP_KEYS: Final = [
    "setting",
    "samples",
    "schedule",
    "epochs",
    "epoch",
    "method",
    "method_kind",
    "model",
    "data",
    "data_kind",
    "data_group",
    "benchmark",
    "skill",
]
_MAP_VALUES: Final = [
    "gain",
    "se",
    "low",
    "high",
    "unit",
    "num_models",
    "num_trajectories",
    "num_items",
    "is_own",
    "is_partial",
]


def _average(rows: pd.DataFrame, *, keys: list[str], unit: str) -> pd.DataFrame:
    """Average rows of equal keys; `rows` are trajectories, or models that were averaged before."""
    error = "gain_se" if unit == "trajectories" else "se_items"
    # A missing error must not pass for none: infinity survives the sum.
    work = rows.assign(squared=(rows[error] ** 2).fillna(np.inf))
    groups = work.groupby(keys, sort=False, dropna=False, observed=True)
    result = groups.agg(
        gain=("gain", "mean"),
        spread=("gain", "std"),
        size=("gain", "size"),
        squared=("squared", "sum"),
        num_items=("num_items", "min"),
    ).reset_index()
    size = result["size"].to_numpy()
    several = size > 1
    between = result["spread"].fillna(0.0).to_numpy() / np.sqrt(size)
    result["se_items"] = np.sqrt(result["squared"].to_numpy()) / size
    result["se"] = np.fmax(between, result["se_items"].to_numpy())
    quantiles = {1: NORMAL_QUANTILE} | {int(k): t_quantile(int(k)) for k in set(size) if k > 1}
    result["margin"] = result["se"] * np.array([quantiles[int(k)] for k in size])
    if unit == "trajectories":
        result["num_models"] = 1
        result["num_trajectories"] = size
        result["unit"] = np.where(several, "trajectories", "items")
    else:
        first = groups.agg(se=("se", "first"), unit=("unit", "first"))
        result["num_models"] = size
        result["num_trajectories"] = groups["num_trajectories"].sum().to_numpy()
        result["unit"] = np.where(several, "models", first["unit"].to_numpy())
        result["se"] = np.where(several, result["se"], first["se"].to_numpy())
    result = result.replace({"se": {np.inf: np.nan}, "margin": {np.inf: np.nan}})
    # A single trajectory or model keeps the interval that its own items or seeds gave.
    alone = ("gain_low", "gain_high") if unit == "trajectories" else ("low", "high")
    own = groups[list(alone)].first(skipna=False).to_numpy(dtype=np.float64)
    own = np.where(result[["se"]].isna(), np.nan, own)
    result["low"] = np.where(several, result["gain"] - result["margin"], own[:, 0])
    result["high"] = np.where(several, result["gain"] + result["margin"], own[:, 1])
    return result
