"""How does each model answer to each dataset, on one scale for all benchmarks?

In: the tables of a study. Out: final scores of runs on one dataset, and the *profile* of a model:
its score after each dataset on each benchmark, less its own mean over datasets, in standard
deviations of that benchmark. Subtracting the model's own mean also takes out its base model, so
that a base that nobody scored, or scored wrongly, changes nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import AVERAGE, labelled_cells
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.scored import SCORE_BOUNDS

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

_ONE_RUN: Final = ["setting", "method", "model", "data", "benchmark"]
_LABELS: Final = ["family", "languages", "data_group", "skill", "language"]
_RUN: Final = ["samples", "schedule", "epochs"]
_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Models, datasets and benchmarks without a hole between them."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    benchmarks: tuple[str, ...]
    values: Floats
    """Standardised scores, (model, dataset, benchmark); each (model, benchmark) has mean 0."""
    left_out: tuple[str, ...]
    """Models, datasets and benchmarks that were left out, each with its reason."""


def final_scores(tables: "Tables") -> pd.DataFrame:
    """Return final scores of runs on one dataset, over benchmarks that count in means.

    One row per cell and benchmark. Columns: setting, method, model, data, benchmark, score
    (fraction of 1; ratings as a fraction of their range), gain (the same less the base's; null
    where that cannot be formed), family, languages, data_group, skill, language, samples, schedule,
    epochs, cell.
    """
    columns = [*_ONE_RUN, "score", "gain", *_LABELS, *_RUN, "cell"]
    labels = labelled_cells(tables.cells)
    if labels.empty or tables.scores.empty:
        return pd.DataFrame(columns=columns)
    scores = tables.scores
    wanted = ["cell", "benchmark", "skill", "language", "metric", "score", "gain"]
    kept = scores.loc[scores["in_mean"].astype(bool) & scores["score"].notna(), wanted]
    labels = labels[labels["is_final"] & (labels["data_kind"] == "each")]
    names = tables.cells[["cell", "family", "languages"]]
    rows = labels.merge(names, on="cell").merge(kept, on="cell")
    bounds = rows["metric"].map(lambda metric: SCORE_BOUNDS.get(metric, (0.0, 1.0)))
    low, high = (bounds.str[place].astype(float) for place in (0, 1))
    rows["score"] = (rows["score"].astype(float) - low) / (high - low)
    rows["gain"] = rows["gain"].astype(float) / (high - low)
    return rows[columns]


def single_runs(tables: "Tables") -> pd.DataFrame:
    """Return the rows of `final_scores` with seeds averaged; `cells` are their fingerprints."""
    first = dict.fromkeys([*_LABELS, *_RUN], "first")
    rows = final_scores(tables).groupby(_ONE_RUN, sort=False, as_index=False)
    found = rows.agg({"score": "mean", "gain": "mean", **first, "cell": tuple})
    return found.rename(columns={"cell": "cells"})


def main_slices(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return (setting, method, rows) of the setting with the most model x data pairs, by method."""
    if rows.empty:
        return []
    pairs = rows.drop_duplicates(["setting", "model", "data"]).groupby("setting", sort=False)
    main = str(pairs.size().idxmax())
    inside = rows[rows["setting"] == main]
    return [(main, str(name), part) for name, part in inside.groupby("method", sort=False)]


def standardised(rows: pd.DataFrame) -> pd.DataFrame:
    """Add `effect` and `z`: score less the model's mean over datasets, plain and over its SD.

    The standard deviation is that of `effect` over all rows of the benchmark; where it is 0, z is
    0. Rows are of one setting and method.
    """
    mean = rows.groupby(["model", "benchmark"], sort=False)["score"].transform("mean")
    effect = rows["score"] - mean
    spread = effect.groupby(rows["benchmark"]).transform(_root_mean_square)
    z = (effect / spread.where(spread > _TINY)).fillna(0.0)
    return rows.assign(effect=effect, z=z)


def profiles(rows: pd.DataFrame) -> Profiles:
    """Keep the models, datasets and benchmarks between which every score exists.

    While one is missing, the model, dataset or benchmark that lacks the largest share is left out
    (at a tie a model before a dataset before a benchmark). Scales are those of all rows.
    """
    table = standardised(rows).pivot_table(
        index="model", columns=["data", "benchmark"], values="z", sort=False
    )
    names = [list(dict.fromkeys(rows[key])) for key in ("model", "data", "benchmark")]
    wide = table.reindex(
        index=names[0], columns=pd.MultiIndex.from_product(names[1:], names=["data", "benchmark"])
    )
    values = wide.to_numpy(dtype=np.float64).reshape([len(part) for part in names])
    left_out = []
    while np.isnan(values).any():
        holes = np.isnan(values)
        shares = [holes.mean(axis=other) for other in ((1, 2), (0, 2), (0, 1))]
        axis = int(np.argmax([share.max() for share in shares]))
        place = int(np.argmax(shares[axis]))
        missing = int(np.take(holes, place, axis=axis).sum())
        left_out.append(f"{names[axis].pop(place)} (lacks {missing} scores)")
        values = np.delete(values, place, axis=axis)
    if values.size:
        # A dataset that was left out counts no longer in a model's mean.
        values = values - values.mean(axis=1, keepdims=True)
    return Profiles(
        models=tuple(names[0]),
        datasets=tuple(names[1]),
        benchmarks=tuple(names[2]),
        values=values,
        left_out=tuple(left_out),
    )


def mean_effects(tables: "Tables") -> pd.DataFrame:
    """Return what each dataset does on average over models, by benchmark and over all of them.

    One row per setting, method, data and benchmark (`AVERAGE` for the mean over benchmarks), of the
    main setting. Columns: effect (score less the model's mean over datasets, fraction of 1),
    effect_sd (the same in SD of the benchmark), gain (mean gain; null without a usable base),
    gain_sd (gain less the mean of all gains on the benchmark, in their SD), num_models, num_gains
    (models of which a gain is known).
    """
    columns = ["setting", "method", "data", "benchmark", "effect", "effect_sd"]
    columns += ["gain", "gain_sd", "num_models", "num_gains"]
    frames = []
    for setting, method, part in main_slices(single_runs(tables)):
        rows = standardised(part)
        by_benchmark = rows.groupby("benchmark", sort=False)["gain"]
        spread = by_benchmark.transform("std", ddof=1)
        spread = spread.where(spread > _TINY)
        rows["gained"] = rows["model"].where(rows["gain"].notna())
        rows["gain_z"] = (rows["gain"] - by_benchmark.transform("mean")) / spread
        wanted = {
            "effect": ("effect", "mean"),
            "effect_sd": ("z", "mean"),
            "gain": ("gain", "mean"),
            "gain_sd": ("gain_z", "mean"),
            "num_models": ("model", "nunique"),
            "num_gains": ("gained", "nunique"),
        }
        single = rows.groupby(["data", "benchmark"], sort=False, as_index=False).agg(**wanted)
        over = rows.groupby("data", sort=False, as_index=False).agg(**wanted)
        both = pd.concat([single, over.assign(benchmark=AVERAGE)], ignore_index=True)
        frames.append(both.assign(setting=setting, method=method)[columns])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _root_mean_square(values: "pd.Series[float]") -> float:
    return float(np.sqrt((values**2).mean()))
