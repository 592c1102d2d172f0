"""Which numbers does the page carry, and in which form?

In: tables and their analysis. Out: one JSON value that is embedded once and that every chart, table
and download of the page reads. Columns are stored as arrays and repeated names as indices into
`names`, which keeps a thousand cells on twelve benchmarks below three megabytes. Fractions keep
five decimals; what is absent is null, never 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.gains import labelled_cells
from sft_atlas.analyze.likelihood_map import MapTables
from sft_atlas.render.coding import NAMED, Columns, Names, coded, number
from sft_atlas.render.map_payload import map_payload
from sft_atlas.render.measure_payload import measure_names, measure_payload
from sft_atlas.render.trust import RATING

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

MAX_CURVE_POINTS: Final = 60
"""Loss curves are averaged down to this many points each."""


def make_payload(
    tables: "Tables",
    analysis: Analysis,
    drawn_map: MapTables | None = None,
    *,
    findings: Sequence[Finding] | None = None,
) -> dict[str, Any]:
    """Return what the page's scripts read, as plain JSON; `findings` in the page's order."""
    findings = analysis.findings if findings is None else findings
    cells = _ordered_cells(tables.cells)
    names = _names(tables, cells) | measure_names(analysis)
    index = {cell: i for i, cell in enumerate(cells["cell"])}
    return {
        "names": names,
        "main_setting": analysis.main_setting,
        "common_benchmarks": list(analysis.common_benchmarks),
        "cells": _cells(cells, names),
        "scores": _scores(tables.scores, index, names),
        "map": coded(analysis.gain_map, _MAP, names),
        "model_map": map_payload(drawn_map, cells, index),
        "curves": _curves(tables.curves, cells, names),
        **measure_payload(analysis, index, names),
        "findings": [[index[cell] for cell in item.rows if cell in index] for item in findings],
        "finding_benchmarks": [list(item.benchmarks) for item in findings],
    }


def downsample(steps: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Columns:
    """Average a curve in runs of equal length, at most `MAX_CURVE_POINTS` of them.

    Each point stands at the last step of its run, so that the first and the last loss are of a
    mean, not of a single batch.
    """
    runs = np.array_split(np.arange(steps.size), min(steps.size, MAX_CURVE_POINTS))
    return {
        "step": [int(steps[run[-1]]) for run in runs],
        "loss": [number(float(values[run].mean()), 4) for run in runs],
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


def _ordered_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """All cells with their setting; base models have none."""
    if cells.empty:
        return cells.assign(cell=[], setting=[], is_final=[])
    labels = labelled_cells(cells)[["cell", "setting", "is_final"]]
    return cells.merge(labels, on="cell", how="left")


def _names(tables: "Tables", cells: pd.DataFrame) -> Names:
    """Distinct names in the order that the page shows them."""
    if cells.empty:
        return {plural: [] for plural in (*NAMED.values(), "ratings")}
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
    packed = coded(cells, (*columns, "samples", "epoch", "seed", "is_final"), names)
    packed["cell"] = [str(cell) for cell in cells["cell"]]
    return packed


def _scores(scores: pd.DataFrame, index: dict[str, int], names: Names) -> Columns:
    packed = coded(scores, _SCORES, names)
    packed["cell"] = [] if scores.empty else [index[cell] for cell in scores["cell"]]
    return packed


def _curves(curves: pd.DataFrame, cells: pd.DataFrame, names: Names) -> Columns:
    """One entry per trajectory: its labels and two arrays."""
    columns = ("setting", "method", "model", "data", "seed")
    if curves.empty:
        return {name: [] for name in (*columns, "step", "loss")}
    labels = cells.drop_duplicates("trajectory").set_index("trajectory", drop=False)
    groups = dict(iter(curves.groupby("trajectory", sort=False)))
    kept = [key for key in groups if key in labels.index]
    packed = coded(labels.loc[kept], columns, names)
    drawn = [
        downsample(groups[key]["step"].to_numpy(), groups[key]["loss"].to_numpy()) for key in kept
    ]
    return packed | {name: [curve[name] for curve in drawn] for name in ("step", "loss")}


def _distinct(values: "pd.Series[Any]") -> list[str]:
    return [str(value) for value in values.dropna().unique()]
