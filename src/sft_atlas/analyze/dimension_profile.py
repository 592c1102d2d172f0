"""What did training do to the shape of the hidden states, layer by layer?

In: the tables `representations` and `scans`, and the labels of cells. Out: on one axis of position
(0 = embeddings, 1 = output of the last layer) the intrinsic dimension of base models and of final
cells, their difference, and how far the states moved from the base's (CKA, Procrustes). Differences
are paired: each cell with its own base model. Bands are pointwise and resample models and datasets;
what has no value at a position counts nowhere there.
"""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import AVERAGE, labelled_cells
from sft_atlas.analyze.positions import clusters_of, column_means, counts_of, read_off
from sft_atlas.statistics.clusters import Floats

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUANTITIES: Final = (
    "gride",
    "two_nn",
    "cka",
    "procrustes",
    "num_clusters",
    "within_dimension",
)
"""What is drawn over the depth. CKA and Procrustes distance compare a cell with its base: there is
no base value and no difference."""

SCAN_PLACES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Depths whose scan over scales is kept: of each cell the layer that lies nearest."""

TURN: Final = 0.6
"""Where the study of Harada et al. (2025) saw the dimension of tuned models turn upwards."""

_OF_PAIRS: Final = ("cka", "procrustes")
_LEAST: Final = {"num_clusters": 1.0}
_MOST: Final = {"cka": 1.0, "procrustes": 1.0}
"""Where a band ends because nothing lies beyond; every quantity but CKA is at least 0."""
_PLACE: Final = ["setting", "method", "pooling"]
_COLUMNS: Final = (
    *_PLACE,
    *("quantity", "model", "position", "base", "tuned", "tuned_low", "tuned_high"),
    *("difference", "difference_low", "difference_high"),
    *("num_known", "num_trajectories", "num_models", "num_datasets"),
)
_SCAN_COLUMNS: Final = (
    *_PLACE,
    *("model", "position", "n1", "state", "gride", "low", "high"),
    *("num_trajectories", "num_models", "num_datasets"),
)


def measured_cells(tables: "Tables", measured: pd.DataFrame) -> pd.DataFrame:
    """Return the final cells that have a row in `measured`, with `base`: their base model's cell,
    null where that has none.
    """
    columns = ["cell", "setting", "method", "model", "data", "base"]
    cells = tables.cells
    if cells.empty or measured.empty:
        return pd.DataFrame(columns=columns)
    known = measured["cell"].unique()
    is_base = (cells["method"] == "base") & cells["cell"].isin(known)
    bases = cells[is_base].drop_duplicates("model").set_index("model")["cell"]
    rows = labelled_cells(cells)
    rows = rows[rows["is_final"] & rows["cell"].isin(known)]
    return rows.assign(base=rows["model"].map(bases))[columns].reset_index(drop=True)


def dimension_profile(tables: "Tables") -> pd.DataFrame:
    """Return each of `QUANTITIES` over position, per setting, method, pooling and model.

    Columns: setting, method, pooling, quantity, model (`AVERAGE` over all), position, base, tuned,
    tuned_low, tuned_high, difference (tuned - base, paired), difference_low, difference_high,
    num_known (cells with a value at that position), num_trajectories, num_models, num_datasets (of
    the whole curve). At a position where any base has a value, tuned, base and difference rest on
    the same cells. Bounds of one model resample its datasets alone.
    """
    states = tables.representations
    final = measured_cells(tables, states)
    frames = []
    for (setting, method), rows in final.groupby(["setting", "method"], sort=False):
        chosen = states[states["cell"].isin([*rows["cell"], *rows["base"].dropna()])]
        for pooling, curves in chosen.groupby("pooling", sort=False):
            place = {"setting": str(setting), "method": str(method), "pooling": str(pooling)}
            frames += [pd.DataFrame(place | columns) for columns in _profiles(rows, curves)]
    empty = pd.DataFrame(columns=list(_COLUMNS))
    table = pd.concat(frames, ignore_index=True) if frames else empty
    return table.reindex(columns=list(_COLUMNS))


def _profiles(rows: pd.DataFrame, curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Columns of each quantity and model of one setting, method and pooling."""
    depth = int(curves["num_layers"].min())
    at = np.arange(depth + 1) / max(depth, 1)
    columns: list[dict[str, Any]] = []
    for quantity in QUANTITIES:
        if curves[quantity].isna().all():
            continue
        tuned = read_off(curves, rows["cell"], quantity, at)
        base = read_off(curves, rows["base"], quantity, at)
        if quantity in _OF_PAIRS:
            base = np.full_like(base, np.nan)
        for model in _models_of(rows):
            chosen = ((rows["model"] == model) | (model == AVERAGE)).to_numpy()
            profile = _profile(rows[chosen], tuned[chosen], base[chosen])
            for name in ("tuned_low", "tuned_high"):
                profile[name] = np.clip(profile[name], *_range_of(quantity))
            columns.append({"quantity": quantity, "model": model, "position": at} | profile)
    return columns


def _models_of(rows: pd.DataFrame) -> list[str]:
    return [*(str(name) for name in rows["model"].unique()), AVERAGE]


def _range_of(quantity: str) -> tuple[float, float]:
    least = -np.inf if quantity == "cka" else _LEAST.get(quantity, 0.0)
    return least, _MOST.get(quantity, np.inf)


def _profile(rows: pd.DataFrame, tuned: Floats, base: Floats) -> dict[str, Any]:
    """Means and bounds per position."""
    models, datasets = clusters_of(rows)
    paired = np.isfinite(base).any(axis=0)
    both = np.isfinite(base) & np.isfinite(tuned)
    tuned = np.where(both | ~paired, tuned, np.nan)
    base = np.where(both, base, np.nan)
    after = column_means(tuned, models, datasets)
    change = column_means(tuned - base, models, datasets)
    return {
        "base": _mean_of_bases(base),
        "tuned": [mean.estimate for mean in after],
        "tuned_low": [mean.low for mean in after],
        "tuned_high": [mean.high for mean in after],
        "difference": [mean.estimate for mean in change],
        "difference_low": [mean.low for mean in change],
        "difference_high": [mean.high for mean in change],
        "num_known": [mean.num_rows for mean in after],
        **counts_of(rows),
    }


def _mean_of_bases(base: Floats) -> Floats:
    """Mean of the bases, each as often as it was trained, so that tuned minus base is their
    difference.
    """
    known = np.isfinite(base)
    sums = np.where(known, base, 0.0).sum(axis=0)
    counts = known.sum(axis=0)
    mean: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return mean


def dimension_rises(tables: "Tables", *, quantity: str, pooling: str) -> pd.DataFrame:
    """Return the change of a dimension below and above `TURN`, one row per final cell.

    Columns: cell, setting, method, model, data, lower and upper (mean of tuned - base over the
    cell's own positions there; NaN without one). A layer at which a cell of the same method and
    model has no value is left out for all of them, so that a mean is over the same layers; a cell
    without any value is left out.
    """
    states = tables.representations
    columns = ["cell", "setting", "method", "model", "data", "lower", "upper"]
    final = measured_cells(tables, states)
    final = final[final["base"].notna()]
    if final.empty:
        return pd.DataFrame(columns=columns)
    curves = states.loc[states["pooling"] == pooling, ["cell", "layer", "position", quantity]]
    tuned = final.merge(curves, on="cell")
    pairs = tuned.merge(
        curves.drop(columns="position"),
        left_on=["base", "layer"],
        right_on=["cell", "layer"],
        suffixes=("", "_base"),
    )
    change = pairs[quantity].astype(float) - pairs[f"{quantity}_base"].astype(float)
    pairs = pairs.assign(change=change)
    pairs = pairs[pairs["change"].notna().groupby(pairs["cell"]).transform("any")]
    layers = [pairs[name] for name in ("setting", "method", "model", "layer")]
    pairs = pairs[pairs["change"].notna().groupby(layers).transform("all")]
    parts = {"lower": pairs["position"] < TURN, "upper": pairs["position"] >= TURN}
    for name, chosen in parts.items():
        means = pairs[chosen].groupby("cell")["change"].mean()
        final = final.assign(**{name: final["cell"].map(means).astype(float)})
    return final[columns]


def scan_profile(tables: "Tables") -> pd.DataFrame:
    """Return the dimension against the scale it is measured at, near each of `SCAN_PLACES`.

    Columns: setting, method, pooling, model (`AVERAGE` over all), position (of `SCAN_PLACES`), n1
    (rank of the nearer neighbour; the farther one's is twice that), state (`base` or `tuned`),
    gride, low, high (95 %), num_trajectories, num_models, num_datasets. A scale that some cell
    lacks, because it has too few points, is left out for all.
    """
    scans = tables.scans
    final = measured_cells(tables, scans)
    frames = []
    for (setting, method), rows in final.groupby(["setting", "method"], sort=False):
        paired = rows[rows["base"].notna()]
        if paired.empty:
            continue
        near = _near_places(scans[scans["cell"].isin([*paired["cell"], *paired["base"]])])
        wide = near.pivot(index="cell", columns=["pooling", "place", "n1"], values="gride")
        for part in _scales(paired, wide):
            frames.append(part.assign(setting=str(setting), method=str(method)))
    empty = pd.DataFrame(columns=list(_SCAN_COLUMNS))
    table = pd.concat(frames, ignore_index=True) if frames else empty
    return table.reindex(columns=list(_SCAN_COLUMNS))


def _near_places(scans: pd.DataFrame) -> pd.DataFrame:
    """Keep of each cell and pooling the layers nearest to the places, with the place."""
    layers = scans.drop_duplicates(["cell", "pooling", "layer"])
    frames = []
    for place in SCAN_PLACES:
        distance = (layers["position"] - place).abs()
        nearest = distance.groupby([layers["cell"], layers["pooling"]], sort=False).idxmin()
        keys = layers.loc[nearest.to_numpy(), ["cell", "pooling", "layer"]]
        frames.append(scans.merge(keys, on=["cell", "pooling", "layer"]).assign(place=place))
    return pd.concat(frames, ignore_index=True)


def _scales(rows: pd.DataFrame, wide: pd.DataFrame) -> list[pd.DataFrame]:
    """Mean over cells at each scale that all of them have, base and tuned, per model and over all.

    `wide` has one row per cell and one column per pooling, place and n1.
    """
    found = {state: wide.reindex(rows[column]) for state, column in _STATES.items()}
    whole = [
        np.isfinite(values.to_numpy(dtype=np.float64)).all(axis=0) for values in found.values()
    ]
    kept = np.logical_and(*whole)
    frames = []
    for model in _models_of(rows):
        chosen = ((rows["model"] == model) | (model == AVERAGE)).to_numpy()
        models, datasets = clusters_of(rows[chosen])
        for state, values in found.items():
            matrix = values.to_numpy(dtype=np.float64)[chosen][:, kept]
            means = column_means(matrix, models, datasets)
            frame = wide.columns[kept].to_frame(index=False).rename(columns={"place": "position"})
            frames.append(
                frame.assign(
                    model=model,
                    state=state,
                    gride=[mean.estimate for mean in means],
                    low=[mean.low for mean in means],
                    high=[mean.high for mean in means],
                    **counts_of(rows[chosen]),
                )
            )
    return frames


_STATES: Final = {"base": "base", "tuned": "cell"}
