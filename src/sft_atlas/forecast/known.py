"""What is known before a run is made?

In: the tables of earlier runs and what the user adds. Out: the panel that a forecast is computed
from: outcomes on the benchmarks that count, usable base scores (of models without runs too), and
measured properties of the data.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.data_properties import attach, data_properties
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.forecast.outcomes import outcomes, score_range
from sft_atlas.forecast.panel import Panel, gain_scale, make_panel
from sft_atlas.store.tables import Tables

KEYS: Final = ("model", "data", "benchmark")


def known_outcomes(
    tables: Tables, *, benchmarks: Sequence[str] = (), only_final: bool = True
) -> pd.DataFrame:
    """Return outcomes on the benchmarks that count in means, and on those named."""
    rows = outcomes(tables, only_final=only_final)
    counts = rows["in_mean"].astype(bool) | rows["benchmark"].isin(list(benchmarks))
    return rows[counts].reset_index(drop=True)


def known_panel(
    tables: Tables,
    rows: pd.DataFrame,
    *,
    new_models: Mapping[str, str] | None = None,
    features: pd.DataFrame | None = None,
    scale: "pd.Series[float] | None" = None,
) -> Panel:
    """Arrange outcomes with everything else that is known.

    `new_models` are models without runs, and their families. `features` has `data`, perhaps
    `model`, `benchmark` and `data_group`, and numeric columns: more properties, or datasets that
    nothing was trained on yet. `scale` is that of the back-test whose margins will be used; a
    benchmark that it lacks has the scale of `rows`.
    """
    given = pd.DataFrame(columns=["data"]) if features is None else features
    groups = given.get("data_group", pd.Series("", index=given.index)).fillna("").astype(str)
    new_data = dict(zip(given["data"].astype(str), groups, strict=True))
    bases = _bases(tables, rows)
    if new_models:
        known = bases.set_index("model")["family"].to_dict()
        named = [
            {
                "model": name,
                "benchmark": "",
                "base": np.nan,
                "family": family or known.get(name, ""),
            }
            for name, family in new_models.items()
        ]
        bases = pd.concat([pd.DataFrame(named), bases], ignore_index=True)
    models = sorted({*rows["model"], *bases["model"]})
    datasets = sorted({*rows["data"], *new_data})
    names = sorted(set(rows["benchmark"]))
    units = gain_scale(rows)
    if scale is not None:
        units = scale.reindex(units.index).fillna(units)
    return make_panel(
        rows,
        bases=bases,
        properties=_properties(tables, rows, given, (models, datasets, names)),
        new_data=new_data,
        scale={str(name): float(value) for name, value in units.items()},
    )


def _bases(tables: Tables, rows: pd.DataFrame) -> pd.DataFrame:
    """Usable base scores as fractions of the range, of models with and without runs."""
    scores = tables.scores
    if scores.empty or "gain" not in scores:
        return pd.DataFrame(columns=["model", "benchmark", "base", "family"])
    found = scores[(scores["method"] == "base") & scores["benchmark"].isin(set(rows["benchmark"]))]
    low, width = score_range(found["metric"])
    usable = found["score"].astype(float).where(found["gain"].notna())
    return found[["model", "benchmark"]].assign(
        base=(usable - low) / width, family=found["family"].fillna("").astype(str)
    )


def _properties(
    tables: Tables,
    rows: pd.DataFrame,
    features: pd.DataFrame,
    names: tuple[list[str], list[str], list[str]],
) -> pd.DataFrame | None:
    """Measured and given properties on the whole grid, or None where there are none."""
    measured = data_properties(tables.datasets, tables.descriptions, tables.similarities)
    own = [
        str(name)
        for name in features.columns
        if name not in (*KEYS, "data_group") and pd.api.types.is_numeric_dtype(features[name])
    ]
    if not measured.predictors and not own:
        return None
    grid = pd.MultiIndex.from_product(names, names=list(KEYS)).to_frame(index=False)
    grid["samples"] = int(rows["samples"].mode().iloc[0])
    if measured.predictors:
        grid = attach(grid, measured, common=names[2], average=AVERAGE)
    if own:
        keys = [key for key in KEYS if key in features]
        known = features.drop_duplicates(keys)
        grid = grid.drop(columns=[name for name in own if name in grid])
        grid = grid.merge(known[[*keys, *own]], on=keys, how="left")
    return grid.drop(columns="samples")
