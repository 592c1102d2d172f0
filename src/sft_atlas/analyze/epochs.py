"""How does the gain change while training goes on?

In: gains of all kept epochs. Out: the mean gain per epoch over a balanced panel: only trajectories
that have a score at each of the panel's epochs, so that a rise is never the arrival of other
trajectories.
"""

from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import Mean, codes, two_way_mean

_COLUMNS: Final = (
    "setting",
    "method",
    "data",
    "benchmark",
    "epoch",
    "gain",
    "low",
    "high",
    "num_trajectories",
    "num_models",
    "num_datasets",
)


def epoch_panel(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the trajectories that have every epoch which at least half of the multi-epoch ones have.

    `rows` holds one row per trajectory and epoch, of one setting, method and benchmark; the result
    is empty where no two epochs can be compared.
    """
    counts = rows.groupby("trajectory", sort=False)["epoch"].transform("nunique")
    several = rows[counts > 1]
    if several.empty:
        return several
    share = several.groupby("epoch")["trajectory"].nunique() / several["trajectory"].nunique()
    panel_epochs = share.index[share >= 0.5]
    kept = several[several["epoch"].isin(panel_epochs)]
    sizes = kept.groupby("trajectory", sort=False)["epoch"].transform("nunique")
    return kept[sizes == len(panel_epochs)]


def epoch_curves(gains: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Return the mean gain per epoch for each setting, method, data and benchmark.

    `data == AVERAGE` averages all data, with a 95 % interval over models and datasets; `benchmark
    == AVERAGE` is the mean over the common benchmarks. Bounds of a single dataset's line resample
    models.
    """
    both = pd.concat([means, gains], ignore_index=True) if not gains.empty else gains
    if both.empty:
        return pd.DataFrame(columns=list(_COLUMNS))
    lines: list[dict[str, object]] = []
    for (setting, method, benchmark), rows in both.groupby(
        ["setting", "method", "benchmark"], sort=False
    ):
        panel = epoch_panel(rows)
        if not panel.empty:
            place = {"setting": setting, "method": method, "benchmark": benchmark}
            lines += [place | line for line in _curves(panel)]
    return pd.DataFrame(lines, columns=list(_COLUMNS))


def last_against_first(rows: pd.DataFrame) -> tuple[int, int, Mean] | None:
    """Return first and last epoch of the panel and the mean change of the gain between them."""
    panel = epoch_panel(rows)
    if panel.empty:
        return None
    wide, errors = _by_epoch(panel, "gain"), _by_epoch(panel, "gain_se")
    first, last = int(wide.columns.min()), int(wide.columns.max())
    change = (wide[last] - wide[first]).to_numpy(dtype=np.float64)
    models = codes(wide.index.get_level_values("model"))
    datasets = codes(wide.index.get_level_values("data"))
    item_errors = np.hypot(*errors[[first, last]].to_numpy(dtype=np.float64).T)
    mean = two_way_mean(change, models=models, datasets=datasets, item_errors=item_errors)
    return first, last, mean


def _by_epoch(panel: pd.DataFrame, values: str) -> pd.DataFrame:
    return panel.pivot(index=["model", "data", "trajectory"], columns="epoch", values=values)


def _curves(panel: pd.DataFrame) -> list[dict[str, object]]:
    """Points of the line over all data, then of each dataset's."""
    wide, errors = _by_epoch(panel, "gain"), _by_epoch(panel, "gain_se")
    values, item_errors = (frame.to_numpy(dtype=np.float64) for frame in (wide, errors))
    data = wide.index.get_level_values("data")
    models, datasets = codes(wide.index.get_level_values("model")), codes(data)
    names = {int(code): str(name) for code, name in zip(datasets, data, strict=True)}
    groups = {AVERAGE: np.ones(len(wide), dtype=bool)}
    groups |= {name: datasets == code for code, name in names.items()}
    lines: list[dict[str, object]] = []
    for name, chosen in groups.items():
        for index, epoch in enumerate(wide.columns):
            mean = two_way_mean(
                values[chosen, index],
                models=models[chosen],
                datasets=datasets[chosen],
                item_errors=item_errors[chosen, index],
            )
            lines.append(
                {
                    "data": name,
                    "epoch": int(epoch),
                    "gain": mean.estimate,
                    "low": mean.low,
                    "high": mean.high,
                    "num_trajectories": mean.num_rows,
                    "num_models": mean.num_models,
                    "num_datasets": mean.num_datasets,
                }
            )
    return lines
