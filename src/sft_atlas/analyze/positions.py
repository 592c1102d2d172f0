"""How are models of different depth compared?

In: per cell a value at each of its own positions along the depth. Out: the values at common
positions, those of the shallowest model, so that no resolution is made up; between two positions of
a deeper model values are interpolated.
"""

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Floats, Ints, Mean, codes, two_way_mean


def read_off(curves: pd.DataFrame, cells: "pd.Series[str]", column: str, at: Floats) -> Floats:
    """Return `column` of each of `cells` at the positions `at`, (cells, positions).

    `curves` has cell, position and the column; a cell without any row, and a position beside a
    value that is null, is NaN.
    """
    ordered = curves.sort_values("position", kind="stable")
    indices = ordered.groupby("cell", sort=False).indices
    place = ordered["position"].to_numpy(dtype=np.float64)
    values = ordered[column].to_numpy(dtype=np.float64)
    result = np.full((len(cells), at.size), np.nan)
    for row, cell in enumerate(cells):
        if cell in indices:
            chosen = indices[cell]
            result[row] = np.interp(at, place[chosen], values[chosen])
    return result


def column_means(matrix: Floats, models: Ints, datasets: Ints) -> list[Mean]:
    """Mean of each column over the rows that have a value there, with its two-way interval."""
    means = []
    for column in matrix.T:
        known = np.isfinite(column)
        means.append(two_way_mean(column[known], models=models[known], datasets=datasets[known]))
    return means


def clusters_of(rows: pd.DataFrame) -> tuple[Ints, Ints]:
    """Number the models and the datasets of rows."""
    return codes(rows["model"]), codes(rows["data"])


def counts_of(rows: pd.DataFrame) -> dict[str, int]:
    """Say what an average over rows rests on."""
    return {
        "num_trajectories": len(rows),
        "num_models": int(rows["model"].nunique()),
        "num_datasets": int(rows["data"].nunique()),
    }
