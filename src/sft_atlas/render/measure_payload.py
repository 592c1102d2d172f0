"""Which numbers do the sections on data, layers, states and forgetting need on the page?

In: the analysis and the page's cells. Out: plain JSON, as `coding` writes it. Points of a scatter
carry raw properties and gains: the page subtracts means where a reader asks for it, by the rule of
`associations`; what is estimated, its intervals and its reasons come from there.
"""

from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.dimension_profile import QUANTITIES
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.layers import NORMS
from sft_atlas.analyze.spectra import SPECTRAL
from sft_atlas.render.coding import Columns, Names, coded, nested, significant

_COUNTS: Final = ("num_trajectories", "num_models", "num_datasets")
_PAIR: Final = ["setting", "method", "model", "data"]
_ASSOCIATIONS: Final = (
    *("setting", "method", "benchmark", "predictor", "variant", "statistic", "estimate"),
    *("low", "high", "p_value", "p_adjusted", "num_rows", "num_models", "num_datasets"),
    "null_reason",
)
_RIVALS: Final = (
    *("setting", "method", "variant", "first", "second", "estimate", "low", "high"),
    *("num_rows", "num_models", "num_datasets"),
)
_LAYER_CURVES: Final = (
    *("position", "change", "change_low", "change_high", "correlation", "low", "high"),
    *("agreement", "agreement_low", "agreement_high"),
)
_DIMENSION_CURVES: Final = (
    *("position", "base", "tuned", "tuned_low", "tuned_high"),
    *("difference", "difference_low", "difference_high", "num_known"),
)


def measure_names(analysis: Analysis) -> Names:
    """Lists of names that only these sections use."""
    reasons = [analysis.associations, analysis.forgetting_associations]
    spectra = analysis.spectra
    return {
        "predictors": [*(item.key for item in analysis.predictors), "log_kl"],
        "null_reasons": sorted({str(r) for table in reasons for r in table["reason"].dropna()}),
        "norms": list(NORMS),
        "poolings": [str(name) for name in analysis.dimensions["pooling"].unique()],
        "quantities": [*QUANTITIES, *SPECTRAL],
        "kinds": [str(kind) for kind in spectra["kind"].unique() if kind],
        "relations": [str(name) for name in analysis.update_groups["relation"].unique()],
    }


def measure_payload(analysis: Analysis, index: dict[str, int], names: Names) -> dict[str, Any]:
    """Return the tables by the names under which the page's scripts read them.

    `index` gives a cell's place among the page's cells.
    """
    layer_keys = ["setting", "method", "norm", "model", *_COUNTS]
    dimension_keys = ["setting", "method", "pooling", "quantity", "model", *_COUNTS]
    scans = analysis.scans.assign(is_tuned=analysis.scans["state"] == "tuned")
    scan_keys = ["setting", "method", "pooling", "model", "position", "is_tuned", *_COUNTS]
    spectrum_keys = ["setting", "method", "kind", "quantity", *_COUNTS]
    return {
        "predictors": [item._asdict() for item in analysis.predictors],
        "points": _points(analysis, names),
        "pairs": _pairs(analysis, names),
        "associations": _associations(analysis.associations, names),
        "rivals": coded(analysis.rivals, _RIVALS, names),
        "layers": nested(analysis.layers, layer_keys, _LAYER_CURVES, names),
        "dimensions": nested(_dimensions(analysis), dimension_keys, _DIMENSION_CURVES, names),
        "scans": nested(scans, scan_keys, ("n1", "gride", "low", "high"), names),
        "forgetting": _forgetting(analysis.forgetting, index),
        "forgetting_associations": _associations(analysis.forgetting_associations, names),
        "spectra": nested(
            analysis.spectra, spectrum_keys, ("position", "value", "low", "high"), names
        ),
        "updates": _updates(analysis.update_pairs, index),
        "update_groups": coded(
            analysis.update_groups,
            ("setting", "relation", "cosine", "low", "high", "num_pairs", "num_models"),
            names,
        ),
    }


def _points(analysis: Analysis, names: Names) -> Columns:
    """Pair, benchmark and gain of every point, and the properties that belong to a benchmark."""
    points = analysis.points
    packed = coded(points, ("benchmark", "gain"), names)
    packed["pair"] = [int(place) for place in points.groupby(_PAIR, sort=False).ngroup()]
    for name in _by_benchmark(analysis):
        packed[name] = [significant(value) for value in points[name]]
    return packed


def _pairs(analysis: Analysis, names: Names) -> Columns:
    """Labels of each pair of model and data, and the properties that all its benchmarks share."""
    shared = set(_by_benchmark(analysis))
    pairs = analysis.points.drop_duplicates(_PAIR)
    packed = coded(pairs, _PAIR, names)
    for item in analysis.predictors:
        if item.key not in shared:
            packed[item.key] = [significant(value, 5) for value in pairs[item.key]]
    return packed


def _by_benchmark(analysis: Analysis) -> list[str]:
    """Properties that differ between the benchmarks of one pair."""
    keys = [item.key for item in analysis.predictors]
    distinct = analysis.points.groupby(_PAIR, sort=False)[keys].nunique(dropna=False).max()
    return [key for key in keys if distinct[key] > 1]


def _associations(table: pd.DataFrame, names: Names) -> Columns:
    # `reason` names why a score is missing elsewhere on the page.
    return coded(table.rename(columns={"reason": "null_reason"}), _ASSOCIATIONS, names)


def _forgetting(points: pd.DataFrame, index: dict[str, int]) -> Columns:
    columns = {"kl": "kl_per_token", "kl_se": "kl_se", "agreement": "agreement_fraction"}
    packed: Columns = {"cell": [index[cell] for cell in points["cell"]]}
    packed["run"] = [int(run) for run in pd.factorize(points["trajectory"])[0]]
    for name, column in (columns | {"gain": "gain", "num_texts": "num_texts"}).items():
        packed[name] = [significant(value) for value in points[column]]
    return packed


def _dimensions(analysis: Analysis) -> pd.DataFrame:
    """Leave out differences of single models: their base is one curve, so the page subtracts it.

    So are the numbers of cells at positions that rest on all of a curve.
    """
    table = analysis.dimensions
    columns = ["difference", "difference_low", "difference_high"]
    thinned = {name: table[name].where(table["model"] == AVERAGE) for name in columns}
    is_fewer = table["num_known"] < table["num_trajectories"]
    return table.assign(**thinned, num_known=table["num_known"].where(is_fewer))


def _updates(pairs: pd.DataFrame, index: dict[str, int]) -> Columns:
    cosines = pairs["cosine"].to_numpy(dtype=np.float64)
    return {
        "a": [index[cell] for cell in pairs["cell_a"]],
        "b": [index[cell] for cell in pairs["cell_b"]],
        "cosine": [significant(value, 3) for value in cosines],
    }
