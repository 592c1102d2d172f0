"""At which depth do weights move, and at which depth does moving go with gaining?

In: the table `drift` and the mean gain of each final cell. Out: per method, position and model the
change of a layer and its Pearson correlation with the mean gain over trajectories. The change is
relative, sqrt(sum ||dW||_F^2) / sqrt(sum ||W||_F^2) over a layer's weights, or RMS, the root mean
square of what was added to a weight. Over several models both sides are demeaned by model before
they are correlated, because models differ in both for reasons that are no training's doing.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.agreement import agreement
from sft_atlas.analyze.associations import MIN_POINTS
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.positions import clusters_of, column_means, counts_of, read_off
from sft_atlas.statistics.clusters import (
    MIN_CLUSTERS,
    Floats,
    simultaneous_band,
    two_way_weights,
)
from sft_atlas.statistics.correlation import demean, weighted_pearson

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

NORMS: Final = ("relative", "rms")

_COLUMNS: Final = (
    *("setting", "method", "norm", "model", "position"),
    *("change", "change_low", "change_high", "correlation", "low", "high"),
    *("agreement", "agreement_low", "agreement_high"),
    *("num_trajectories", "num_models", "num_datasets"),
)
_TOTAL: Final = "total"
"""Kind of the drift rows that sum all weights of a layer."""


class LayerProfile(NamedTuple):
    """The profile and what is known about the place of its peak."""

    table: pd.DataFrame
    peaks: dict[tuple[str, str], Floats]
    """(setting, method) to the bootstrap draws of the position where the relative change
    correlates most strongly, in either direction."""


def layer_changes(tables: "Tables") -> pd.DataFrame:
    """Return cell, position in (0, 1), num_layers and each norm of the change of each layer."""
    drift, columns = tables.drift, ["cell", "position", "num_layers", *NORMS]
    if drift.empty:
        return pd.DataFrame(columns=columns)
    is_layer = (drift["kind"] == _TOTAL) & drift["position"].notna()
    return drift.loc[is_layer & drift["relative"].notna(), columns]


def layer_profile(
    tables: "Tables", means: pd.DataFrame, *, num_resamples: int = 1000, seed: int = 0
) -> LayerProfile:
    """Return change and correlation with gain over position, per setting, method, norm and model.

    Rows with `model == AVERAGE` rest on all models: their bands resample models and datasets, and
    that of the correlation (none below three of each) holds at all positions at once. They have
    the agreement between models too. Rows of one model resample its datasets alone; their
    correlation has a band from five datasets on. No correlation below three datasets.
    """
    changes = layer_changes(tables)
    final = means[means["is_final"]] if not means.empty else means
    if changes.empty or final.empty:
        return LayerProfile(pd.DataFrame(columns=list(_COLUMNS)), {})
    frames, peaks = [], {}
    for (setting, method), part in final.groupby(["setting", "method"], sort=False):
        rows = part[part["cell"].isin(changes["cell"])]
        if rows.empty:
            continue
        own = changes[changes["cell"].isin(rows["cell"])]
        depth = int(own["num_layers"].min())
        positions = (np.arange(depth) + 0.5) / depth
        place = {"setting": str(setting), "method": str(method)}
        for norm in NORMS:
            matrix = read_off(own, rows["cell"], norm, positions)
            profiles, draws = _profiles(rows, matrix, num_resamples=num_resamples, seed=seed)
            frames.append(profiles.assign(norm=norm, **place))
            if norm == NORMS[0]:
                peaks[(str(setting), str(method))] = _peak_positions(draws, positions)
            frames[-1]["position"] = np.resize(positions, len(profiles))
    empty = pd.DataFrame(columns=list(_COLUMNS))
    table = pd.concat(frames, ignore_index=True) if frames else empty
    return LayerProfile(table.reindex(columns=list(_COLUMNS)), peaks)


def _profiles(
    rows: pd.DataFrame, matrix: Floats, *, num_resamples: int, seed: int
) -> tuple[pd.DataFrame, Floats]:
    """Profiles of each model and of all, and the draws of the correlation over all."""
    names = [str(name) for name in rows["model"].unique()]
    frames = []
    for model in names:
        chosen = (rows["model"] == model).to_numpy()
        profile, _ = _profile(
            rows[chosen], matrix[chosen], num_resamples=num_resamples, seed=seed, is_single=True
        )
        frames.append(profile.assign(model=model))
    profile, draws = _profile(rows, matrix, num_resamples=num_resamples, seed=seed, is_single=False)
    shared = agreement(rows, matrix, num_resamples=num_resamples, seed=seed)
    frames.append(
        profile.assign(
            model=AVERAGE,
            agreement=shared.estimate,
            agreement_low=shared.low,
            agreement_high=shared.high,
        )
    )
    return pd.concat(frames, ignore_index=True), draws


def _profile(
    rows: pd.DataFrame, matrix: Floats, *, num_resamples: int, seed: int, is_single: bool
) -> tuple[pd.DataFrame, Floats]:
    """Mean change and correlation per position with their bands, and the correlation's draws."""
    models, datasets = clusters_of(rows)
    means = column_means(matrix, models, datasets)
    columns: dict[str, object] = {
        "change": [mean.estimate for mean in means],
        "change_low": [max(mean.low, 0.0) for mean in means],
        "change_high": [mean.high for mean in means],
    }
    shape = matrix.shape[1]
    nan = np.full(shape, np.nan)
    draws = np.full((num_resamples, shape), np.nan)
    columns |= {"correlation": nan, "low": nan, "high": nan}
    num_models, num_datasets = (np.unique(codes).size for codes in (models, datasets))
    if num_datasets >= MIN_CLUSTERS:
        estimate, draws = _correlations(rows, matrix, num_resamples=num_resamples, seed=seed)
        columns["correlation"] = estimate
        fewest = num_datasets >= MIN_POINTS if is_single else num_models >= MIN_CLUSTERS
        if fewest:
            columns["low"], columns["high"] = simultaneous_band(estimate, draws)
    return pd.DataFrame(columns).assign(**counts_of(rows)), draws


def _correlations(
    rows: pd.DataFrame, matrix: Floats, *, num_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Correlation per position, and in each resample, (resamples, positions)."""
    models, datasets = clusters_of(rows)
    once = np.ones((1, len(rows)))
    weights = two_way_weights(models, datasets, num_resamples=num_resamples, seed=seed)
    gain = rows["gain"].to_numpy(dtype=np.float64)
    gain_once, gain_drawn = demean(gain, models, once), demean(gain, models, weights)
    estimate, draws = [], []
    for change in matrix.T:
        change_once, change_drawn = demean(change, models, once), demean(change, models, weights)
        estimate.append(weighted_pearson(change_once, gain_once, once)[0])
        draws.append(weighted_pearson(change_drawn, gain_drawn, weights))
    return np.array(estimate), np.array(draws).T


def _peak_positions(draws: Floats, positions: Floats) -> Floats:
    """Position of the strongest correlation in every resample that has one.

    A layer that moved in no cell has no correlation in any resample and is no candidate.
    """
    exists = np.isfinite(draws).any(axis=0)
    kept = draws[:, exists]
    kept = kept[np.isfinite(kept).all(axis=1)]
    peaks: Floats = positions[exists][np.abs(kept).argmax(axis=1)] if kept.size else np.array([])
    return peaks
