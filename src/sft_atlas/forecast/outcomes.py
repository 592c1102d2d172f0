"""What came of each run that trained on one dataset?

In: the tables `cells` and `scores`. Out: one row per run, kept epoch and benchmark, on one scale:
fractions of the range of scores. `value` needs no base model, so runs of one model can be compared
where its base row is missing or wrong; `gain` exists only where the base may be used. Datasets at
several sizes and kept epochs are different *choices*: data, method, samples, schedule and epoch.
"""

from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import labelled_cells
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.scored import SCORE_BOUNDS
from sft_atlas.store.tables import Tables

CHOICE: Final = ("data", "method", "samples", "schedule", "epoch")
"""What may be chosen for a model; these columns name a choice."""

SETTING: Final = CHOICE[1:]
"""What stays the same when only the dataset is changed."""

QUERY: Final = ("model", *CHOICE, "benchmark")
"""Columns that name one number to forecast."""

OUTCOMES: Final = (
    *QUERY,
    *("data_kind", "data_group", "method_kind", "epochs", "is_final"),
    *("family", "languages", "skill", "language", "in_mean"),
    *("value", "base", "gain", "num_cells"),
)


def outcomes(
    tables: Tables, *, kinds: tuple[str, ...] = ("each",), only_final: bool = True
) -> pd.DataFrame:
    """Return one row per model, choice and benchmark that has a score.

    Columns `OUTCOMES`: the labels; `value`, the score as a fraction of the range of its metric,
    mean over seeds; `base`, the base model's on the same scale or NaN where a gain may not be
    formed with it; `gain` = value - base; `num_cells`, the seeds behind it. `kinds` are the values
    of `data_kind` that count. With `only_final`, only the last planned epoch of a trajectory.
    """
    labels = labelled_cells(tables.cells)
    labels = labels[labels["data_kind"].isin(kinds)]
    if only_final:
        labels = labels[labels["is_final"]]
    if labels.empty or tables.scores.empty:
        return pd.DataFrame(columns=list(OUTCOMES))
    labels = labels.merge(
        tables.cells[["cell", "family", "languages"]].drop_duplicates("cell"), on="cell"
    )
    measured = ["cell", "benchmark", "skill", "language", "in_mean", "metric", "score", "gain"]
    rows = labels.merge(tables.scores.loc[tables.scores["score"].notna(), measured], on="cell")
    low, width = score_range(rows["metric"])
    rows["value"] = (rows["score"].astype(float) - low) / width
    rows["gain"] = rows["gain"].astype(float) / width
    rows["base"] = rows["value"] - rows["gain"]
    texts = ["family", "languages", "data_group", "skill", "language"]
    rows[texts] = rows[texts].astype("string").fillna("").astype(object)
    known = [
        *("data_kind", "data_group", "method_kind", "epochs", "is_final"),
        *("family", "languages", "skill", "language", "in_mean"),
    ]
    groups = rows.groupby(list(QUERY), sort=True, observed=True)
    found = groups[known].first()
    found[["value", "base", "gain"]] = groups[["value", "base", "gain"]].mean()
    found["num_cells"] = groups.size()
    return found.reset_index()[list(OUTCOMES)]


def over_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """Average a dataset's outcomes over methods, sizes, schedules and epochs.

    One row per model, dataset and benchmark, in one setting without a name: for the question which
    dataset is the better one, whatever else is chosen.
    """
    keys = ["model", "data", "benchmark"]
    groups = rows.groupby(keys, sort=True, observed=True)
    labels = [name for name in OUTCOMES if name not in (*QUERY, "value", "base", "gain")]
    found = groups[labels].first()
    found[["value", "base", "gain"]] = groups[["value", "base", "gain"]].mean()
    found["num_cells"] = groups["num_cells"].sum()
    unnamed = found.reset_index().assign(method="", samples=0, schedule="", epoch=0)
    return unnamed[list(OUTCOMES)]


def score_range(metric: "pd.Series[str]") -> tuple[Floats, Floats]:
    """Lowest score of each metric, and the width of its range."""
    bounds = [SCORE_BOUNDS.get(str(name), (0.0, 1.0)) for name in metric]
    array = np.asarray(bounds, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1] - array[:, 0]
