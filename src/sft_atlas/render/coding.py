"""How are tables written so that a page with a thousand cells stays small?

In: frames and the page's lists of names. Out: columns as arrays, in which a name is its index, a
fraction keeps five decimals, a curve's numbers keep four digits, and what is absent is null.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.associations import POOLED
from sft_atlas.analyze.gains import AVERAGE

Columns = dict[str, list[Any]]
Names = dict[str, list[str]]

NAMED: Final = {
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
    "predictor": "predictors",
    "first": "predictors",
    "second": "predictors",
    "null_reason": "null_reasons",
    "norm": "norms",
    "pooling": "poolings",
    "quantity": "quantities",
    "kind": "kinds",
    "relation": "relations",
}
"""Columns of names, and the page's list that each belongs to."""


def coded(frame: pd.DataFrame, columns: Iterable[str], names: Names) -> Columns:
    """Store columns as arrays; a name becomes its index, -1 is an average or nothing, -2 pooled."""
    packed: Columns = {}
    for column in columns:
        if frame.empty:
            packed[column] = []
        elif column in NAMED:
            place = {name: i for i, name in enumerate(names[NAMED[column]])}
            place |= {AVERAGE: -1} | {POOLED: -2}
            places, distinct = pd.factorize(frame[column].astype(object))
            # The last entry is that of missing values, which `factorize` places at -1.
            found = np.array([*(place[str(value)] for value in distinct), -1])
            packed[column] = found[places].tolist()
        elif frame[column].dtype == bool:
            packed[column] = [int(value) for value in frame[column]]
        else:
            packed[column] = numbers(frame[column], 5)
    return packed


def nested(
    frame: pd.DataFrame, keys: Sequence[str], along: Sequence[str], names: Names
) -> dict[str, Any]:
    """Store curves: `keys` once per curve, and an array per curve for every column of `along`.

    The first of `along` is what a curve runs over; many curves run over the same values, so these
    stand in `grids` and the curves have their places there. An array of which every value is
    absent is null.
    """
    if frame.empty:
        return {"grids": [], "curves": {name: [] for name in (*keys, *along)}}
    curves = [part for _, part in frame.groupby(list(keys), sort=False, dropna=False)]
    heads = pd.concat([curve.iloc[:1] for curve in curves])
    packed = coded(heads, keys, names)
    grids: dict[tuple[Any, ...], int] = {}
    over = [tuple(significant(value) for value in curve[along[0]]) for curve in curves]
    packed[along[0]] = [grids.setdefault(grid, len(grids)) for grid in over]
    for column in along[1:]:
        packed[column] = [
            None if curve[column].isna().all() else [significant(value) for value in curve[column]]
            for curve in curves
        ]
    return {"grids": [list(grid) for grid in grids], "curves": packed}


def numbers(values: "pd.Series[Any]", digits: int) -> list[int | float | None]:
    """The same as `number` for a whole column."""
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    rounded = found.round(digits)
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() else value
        for value in rounded.tolist()
    ]


def number(value: Any, digits: int) -> int | float | None:
    """A JSON number with few digits; NaN, infinity and missing become null."""
    if value is None or value is pd.NA:
        return None
    found = float(value)
    if not math.isfinite(found):
        return None
    return int(found) if found.is_integer() else round(found, digits)


def significant(value: Any, digits: int = 4) -> int | float | None:
    """A JSON number with few significant digits, for values of any size."""
    if value is None or value is pd.NA or not math.isfinite(float(value)):
        return None
    found = float(f"{float(value):.{digits}g}")
    return int(found) if found.is_integer() else found
