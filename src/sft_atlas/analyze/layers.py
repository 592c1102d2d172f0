"""At which depth do weights move, and at which depth does moving go with gaining?

In: the table `drift` and the mean gain of each final cell. Out: per method, position and model the
relative change of a layer, sqrt(sum ||dW||_F^2) / sqrt(sum ||W||_F^2) over its weights, and its
Pearson correlation with the mean gain over trajectories. Both are demeaned by model before they are
correlated, because models differ in both for reasons that are no training's doing. Models of
different depth are read off at the positions of the shallowest, so that no resolution is made up.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.clusters import (
    MIN_CLUSTERS,
    Floats,
    codes,
    simultaneous_band,
    two_way_mean,
    two_way_weights,
)
from sft_atlas.analyze.correlation import demean, weighted_pearson
from sft_atlas.analyze.gains import AVERAGE

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

_COLUMNS: Final = (
    "setting",
    "method",
    "model",
    "position",
    "change",
    "change_low",
    "change_high",
    "correlation",
    "low",
    "high",
    "num_trajectories",
    "num_models",
    "num_datasets",
)
_TOTAL: Final = "total"
"""Kind of the drift rows that sum all weights of a layer."""


class LayerProfile(NamedTuple):
    """The profile and what is known about the place of its peak."""

    table: pd.DataFrame
    peaks: dict[tuple[str, str], Floats]
    """(setting, method) to the bootstrap draws of the position with the largest correlation."""


def layer_changes(tables: "Tables") -> pd.DataFrame:
    """Return cell, position in (0, 1), num_layers and the relative change of each layer."""
    drift = tables.drift
    if drift.empty:
        return pd.DataFrame(columns=["cell", "position", "num_layers", "change"])
    rows = drift[(drift["kind"] == _TOTAL) & drift["position"].notna() & drift["relative"].notna()]
    columns = ["cell", "position", "num_layers"]
    return rows[columns].assign(change=rows["relative"])


def layer_profile(
    tables: "Tables", means: pd.DataFrame, *, num_resamples: int = 1000, seed: int = 0
) -> LayerProfile:
    """Return change and correlation with gain over position, per setting, method and model.

    Rows with `model == AVERAGE` rest on all models; their bands resample models and datasets.
    Correlations need at least three datasets, and their bands (which hold at all positions at once)
    at least three models too; NaN otherwise.
    """
    changes = layer_changes(tables)
    final = means[means["is_final"]] if not means.empty else means
    if changes.empty or final.empty:
        return LayerProfile(pd.DataFrame(columns=list(_COLUMNS)), {})
    frames, peaks = [], {}
    for (setting, method), part in final.groupby(["setting", "method"], sort=False):
        depths = changes.loc[changes["cell"].isin(part["cell"]), "num_layers"]
        if depths.empty:
            continue
        depth = int(depths.min())
        positions = (np.arange(depth) + 0.5) / depth
        rows, matrix = _change_matrix(changes, part, positions)
        for model in _models_of(rows):
            chosen = np.ones(len(rows), dtype=bool) if model == AVERAGE else rows["model"] == model
            profile = _change_profile(rows[chosen], matrix[np.asarray(chosen)], positions)
            frames.append(profile.assign(model=model, setting=str(setting), method=str(method)))
        bands, draws = _correlation_profile(rows, matrix, num_resamples=num_resamples, seed=seed)
        for name, values in bands.items():
            frames[-1][name] = values
        peaks[(str(setting), str(method))] = _peak_positions(draws, positions)
    result = (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_COLUMNS))
    )
    return LayerProfile(result.reindex(columns=list(_COLUMNS)), peaks)


def _models_of(rows: pd.DataFrame) -> list[str]:
    """Single models first and the average last, which carries the correlation."""
    models = [str(name) for name in rows["model"].unique()]
    return [*models, AVERAGE] if len(models) > 1 else [AVERAGE]


def _change_matrix(
    changes: pd.DataFrame, final: pd.DataFrame, positions: Floats
) -> tuple[pd.DataFrame, Floats]:
    """Cells with a profile, and their change at the common positions, (cells, positions)."""
    ordered = changes.sort_values("position", kind="stable")
    indices = ordered.groupby("cell", sort=False).indices
    rows = final[final["cell"].isin(indices.keys())]
    place, change = ordered["position"].to_numpy(), ordered["change"].to_numpy()
    chosen = [np.asarray(indices[cell]) for cell in rows["cell"]]
    matrix = [np.interp(positions, place[index], change[index]) for index in chosen]
    return rows, np.array(matrix)


def _change_profile(rows: pd.DataFrame, matrix: Floats, positions: Floats) -> pd.DataFrame:
    """Mean change per position with its band."""
    models, datasets = codes(rows["model"]), codes(rows["data"])
    means = [two_way_mean(column, models=models, datasets=datasets) for column in matrix.T]
    return pd.DataFrame(
        {
            "position": positions,
            "change": [mean.estimate for mean in means],
            "change_low": [max(mean.low, 0.0) for mean in means],
            "change_high": [mean.high for mean in means],
            "num_trajectories": len(rows),
            "num_models": rows["model"].nunique(),
            "num_datasets": rows["data"].nunique(),
        }
    )


def _correlation_profile(
    rows: pd.DataFrame, matrix: Floats, *, num_resamples: int, seed: int
) -> tuple[dict[str, Floats], Floats]:
    """Correlation per position with its band, and the draws, (resamples, positions)."""
    models, datasets = codes(rows["model"]), codes(rows["data"])
    num_positions = matrix.shape[1]
    nan = np.full(num_positions, np.nan)
    bands = {"correlation": nan.copy(), "low": nan.copy(), "high": nan.copy()}
    draws = np.full((num_resamples, num_positions), np.nan)
    if np.unique(datasets).size < MIN_CLUSTERS:
        return bands, draws
    once = np.ones((1, len(rows)))
    weights = two_way_weights(models, datasets, num_resamples=num_resamples, seed=seed)
    gain = rows["gain"].to_numpy(dtype=np.float64)
    gain_once, gain_drawn = demean(gain, models, once), demean(gain, models, weights)
    for index in range(num_positions):
        change = matrix[:, index]
        bands["correlation"][index] = weighted_pearson(
            demean(change, models, once), gain_once, once
        )[0]
        drawn = demean(change, models, weights)
        draws[:, index] = weighted_pearson(drawn, gain_drawn, weights)
    if np.unique(models).size >= MIN_CLUSTERS:
        bands["low"], bands["high"] = simultaneous_band(bands["correlation"], draws)
    return bands, draws


def _peak_positions(draws: Floats, positions: Floats) -> Floats:
    """Position of the largest correlation in every resample that has one."""
    kept = draws[np.isfinite(draws).all(axis=1)]
    peaks: Floats = positions[kept.argmax(axis=1)] if kept.size else np.array([])
    return peaks
