"""Which numbers does the page carry, and in which form?

In: tables and their analysis. Out: one JSON value that is embedded once and that every chart, table
and download of the page reads. Columns are stored as arrays and repeated names as indices into
`names`, which keeps a thousand cells on twelve benchmarks below three megabytes. Fractions keep
five decimals; what is absent is null, never 0.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.associations import POOLED
from sft_atlas.analyze.gains import AVERAGE, labelled_cells
from sft_atlas.analyze.likelihood_map import MapTables
from sft_atlas.render.map_payload import map_payload
from sft_atlas.render.trust import RATING

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

MAX_CURVE_POINTS: Final = 60
"""Loss curves are averaged down to this many points each."""

Columns = dict[str, list[Any]]
Names = dict[str, list[str]]


def make_payload(
    tables: "Tables", analysis: Analysis, drawn_map: MapTables | None = None
) -> dict[str, Any]:
    """Return everything that the page's scripts read, as plain JSON."""
    cells = _ordered_cells(tables.cells)
    names = _names(tables, cells)
    index = {cell: i for i, cell in enumerate(cells["cell"])}
    return {
        "names": names,
        "main_setting": analysis.main_setting,
        "common_benchmarks": list(analysis.common_benchmarks),
        "cells": _cells(cells, names),
        "scores": _scores(tables.scores, index, names),
        "map": _coded(analysis.gain_map, _MAP, names),
        "model_map": map_payload(drawn_map, cells, index),
        "points": _coded(analysis.points, _POINTS, names),
        "associations": _coded(analysis.associations, _ASSOCIATIONS, names),
        "layers": _coded(analysis.layers, _LAYERS, names),
        "epochs": _coded(analysis.epochs, _EPOCHS, names),
        "curves": _curves(tables.curves, cells, names),
        "findings": [[index[cell] for cell in item.rows] for item in analysis.findings],
        "finding_benchmarks": [list(item.benchmarks) for item in analysis.findings],
    }


def downsample(steps: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Columns:
    """Average a curve in runs of equal length, at most `MAX_CURVE_POINTS` of them.

    Each point stands at the last step of its run, so that the first and the last loss are of a
    mean, not of a single batch.
    """
    runs = np.array_split(np.arange(steps.size), min(steps.size, MAX_CURVE_POINTS))
    return {
        "step": [int(steps[run[-1]]) for run in runs],
        "loss": [_number(float(values[run].mean()), 4) for run in runs],
    }


_NAMED: Final = {
    "setting": "settings",
    "method": "methods",
    "model": "models",
    "data": "data",
    "benchmark": "benchmarks",
    "unit": "units",
    "variant": "variants",
    "statistic": "statistics",
    "state": "states",
    "schedule": "schedules",
    "block": "blocks",
    "reason": "reasons",
    "gain_reason": "reasons",
    "flags": "flags",
}
_KEYS: Final = ("setting", "method", "model", "data", "benchmark")
_SCORES: Final = (
    *("benchmark", "reason", "score", "standard_error", "score_low", "score_high", "base_score"),
    *("gain", "gain_se", "gain_low", "gain_high", "gain_reason", "flags"),
    *("num_items", "num_scored", "num_truncated", "num_cut", "num_unfollowed"),
)
_MAP: Final = (
    *_KEYS,
    *("epoch", "gain", "low", "high", "unit", "num_models", "num_trajectories"),
    *("is_own", "is_partial"),
)
_POINTS: Final = (
    *_KEYS,
    *("x_raw", "y_raw", "x_within_model", "y_within_model", "x_within_data", "y_within_data"),
)
_ASSOCIATIONS: Final = (
    *("setting", "method", "benchmark", "variant", "statistic", "estimate", "low", "high"),
    *("p_value", "num_rows", "num_models", "num_datasets"),
)
_LAYERS: Final = (
    *("setting", "method", "model", "position", "change", "change_low", "change_high"),
    *("correlation", "low", "high", "num_trajectories", "num_models", "num_datasets"),
)
_EPOCHS: Final = (
    *("setting", "method", "data", "benchmark", "epoch", "gain", "low", "high"),
    *("num_trajectories", "num_models", "num_datasets"),
)


def _ordered_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """All cells with their setting; base models have none."""
    if cells.empty:
        return cells.assign(cell=[], setting=[], is_final=[])
    labels = labelled_cells(cells)[["cell", "setting", "is_final"]]
    return cells.merge(labels, on="cell", how="left")


def _names(tables: "Tables", cells: pd.DataFrame) -> Names:
    """Distinct names in the order that the page shows them."""
    if cells.empty:
        return {plural: [] for plural in (*_NAMED.values(), "ratings")}
    trained = cells[cells["method"] != "base"]
    groups = _distinct(trained["data_group"])
    data = trained.drop_duplicates("data")
    kinds = {kind: i for i, kind in enumerate(_distinct(data["data_kind"]))}
    data = data.assign(
        rank=data["data_kind"].map(kinds) * 1000 + data["data_group"].map(groups.index)
    )
    names = {
        "settings": _distinct(trained["setting"]),
        "methods": [*_distinct(trained["method"]), "base"],
        "models": _distinct(cells["model"]),
        "data": [*_distinct(data.sort_values("rank", kind="stable")["data"]), "base"],
        "benchmarks": _benchmark_order(tables.scores, groups),
        "units": ["items", "trajectories", "models"],
        "variants": ["raw", "within_model", "within_data"],
        "statistics": ["spearman", "pearson"],
        "states": ["done", "running", "failed", "missing"],
        "schedules": _distinct(trained["schedule"]),
        "blocks": _distinct(cells["block"]),
        "reasons": [],
        "flags": [],
        "ratings": [],
    }
    if not tables.scores.empty:
        scores = tables.scores
        names["reasons"] = _distinct(pd.concat([scores["reason"], scores["gain_reason"]]))
        names["flags"] = _distinct(scores["flags"][scores["flags"] != ""])
        names["ratings"] = _distinct(scores.loc[scores["metric"] == RATING, "benchmark"])
    return names


def _benchmark_order(scores: pd.DataFrame, groups: list[str]) -> list[str]:
    """Benchmarks in the order of the data groups of their skill, so that own pairs line up."""
    if scores.empty:
        return []
    first = scores.drop_duplicates("benchmark")
    rank = [groups.index(s) if s in groups else len(groups) for s in first["skill"]]
    return _distinct(first.assign(rank=rank).sort_values("rank", kind="stable")["benchmark"])


def _cells(cells: pd.DataFrame, names: Names) -> Columns:
    columns = ("setting", "method", "model", "data", "schedule", "block", "state")
    packed = _coded(cells, (*columns, "samples", "epoch", "seed", "is_final"), names)
    packed["cell"] = [str(cell) for cell in cells["cell"]]
    return packed


def _scores(scores: pd.DataFrame, index: dict[str, int], names: Names) -> Columns:
    packed = _coded(scores, _SCORES, names)
    packed["cell"] = [] if scores.empty else [index[cell] for cell in scores["cell"]]
    return packed


def _coded(frame: pd.DataFrame, columns: Iterable[str], names: Names) -> Columns:
    """Store columns as arrays; a name becomes its index, -1 is an average or nothing, -2 pooled."""
    packed: Columns = {}
    for column in columns:
        if frame.empty:
            packed[column] = []
        elif column in _NAMED:
            place = {name: i for i, name in enumerate(names[_NAMED[column]])}
            place |= {AVERAGE: -1} | {POOLED: -2}
            values = frame[column].astype(object).where(frame[column].notna(), AVERAGE)
            packed[column] = [place[str(value)] for value in values]
        elif frame[column].dtype == bool:
            packed[column] = [int(value) for value in frame[column]]
        else:
            packed[column] = [_number(value, 5) for value in frame[column]]
    return packed


def _curves(curves: pd.DataFrame, cells: pd.DataFrame, names: Names) -> Columns:
    """One entry per trajectory: its labels and two arrays."""
    columns = ("setting", "method", "model", "data", "seed")
    if curves.empty:
        return {name: [] for name in (*columns, "step", "loss")}
    labels = cells.drop_duplicates("trajectory").set_index("trajectory", drop=False)
    groups = dict(iter(curves.groupby("trajectory", sort=False)))
    kept = [key for key in groups if key in labels.index]
    packed = _coded(labels.loc[kept], columns, names)
    drawn = [
        downsample(groups[key]["step"].to_numpy(), groups[key]["loss"].to_numpy()) for key in kept
    ]
    return packed | {name: [curve[name] for curve in drawn] for name in ("step", "loss")}


def _number(value: Any, digits: int) -> int | float | None:
    """A JSON number with few digits; NaN, infinity and missing become null."""
    if value is None or value is pd.NA:
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else round(number, digits)


def _distinct(values: "pd.Series[Any]") -> list[str]:
    return [str(value) for value in values.dropna().unique()]
