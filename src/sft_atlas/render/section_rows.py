"""How do the rows of a question's tables become what a chart draws and a table shows?

In: frames of fractions. Out: rows in percentage points with fixed names (see `forms`), and tables
with a heading and a format for each column. A column that nobody described is shown too, named and
formatted by its own name: a new column of a question is never lost on its way to the reader.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sft_atlas.analyze.findings import minus, plural
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.render.exhibits import NOTHING, Choice, Column, Kind, Table, is_absent, shown

MEAN: Final = "mean over benchmarks"

_TITLES: Final = {
    "data": "Data",
    "model": "Model",
    "benchmark": "Benchmark",
    "skill": "Skill",
    "method": "Method",
    "setting": "Setting",
    "data_kind": "Kind of data",
    "low": "Low",
    "high": "High",
    "p_value": "p",
    "p_adjusted": "p, adjusted",
    "num_models": "Models",
    "num_datasets": "Datasets",
    "num_benchmarks": "Benchmarks",
    "num_pairs": "Pairs",
    "num_rows": "Rows",
    "num_runs": "Runs",
    "reason": "Why not",
}
_POINTS: Final = (
    *("difference", "effect", "change", "gain", "low", "high", "apparent", "validated"),
    *("optimism", "later_change", "margin", "inner_low", "inner_high"),
)


def has(frame: pd.DataFrame | None, *columns: str) -> bool:
    """Tell whether a frame has rows and all of the columns."""
    return frame is not None and not frame.empty and set(columns) <= set(frame.columns)


def estimates(
    frame: pd.DataFrame,
    value: str,
    bounds: tuple[str, str] = ("low", "high"),
    *,
    scale: float = 100,
    digits: int = 1,
    is_signed: bool = True,
) -> pd.DataFrame:
    """Return estimate, low, high, value_text and is_faded for rows of fractions.

    Faded is what an adjusted p-value, or else the interval, leaves open.
    """
    low, high = (
        frame[name].astype(float) * scale if name in frame else pd.Series(float("nan"), frame.index)
        for name in bounds
    )
    estimate = frame[value].astype(float) * scale
    words = [
        _with_interval(*numbers, form=f"{'+' if is_signed else ''}.{digits}f")
        for numbers in zip(estimate, low, high, strict=True)
    ]
    if "p_adjusted" in frame:
        is_open = frame["p_adjusted"].astype(float).fillna(1.0) > 0.05
    else:
        is_open = ~((low > 0) | (high < 0)) & low.notna()
    return pd.DataFrame(
        {
            "estimate": estimate,
            "low": low,
            "high": high,
            "value_text": words,
            "is_faded": is_open.astype(bool),
        },
        index=frame.index,
    )


def _with_interval(estimate: float, low: float, high: float, *, form: str) -> str:
    if not math.isfinite(estimate):
        return NOTHING
    if not (math.isfinite(low) and math.isfinite(high)):
        return minus(f"{estimate:{form}}")
    return minus(f"{estimate:{form}} [{low:{form}}, {high:{form}}]")


def named(values: "pd.Series[Any]", absent: str = MEAN) -> "pd.Series[Any]":
    """Return names, with the average and what is missing in words."""
    texts = values.astype("string").fillna(AVERAGE)
    return texts.mask(texts == AVERAGE, absent).astype(object)


def table(
    name: str,
    title: str,
    frame: pd.DataFrame,
    described: Mapping[str, tuple[str, Kind, int]] | Sequence[str] = (),
    *,
    caption: str = "",
    is_open: bool = True,
    more: bool = False,
) -> Table:
    """Show the described columns that the frame has; all of them where none is, or with `more`."""
    given = described if isinstance(described, Mapping) else {}
    wanted = [key for key in described if key in frame.columns]
    if more or not wanted:
        wanted += [key for key in frame.columns if key not in wanted]
    columns = []
    for key in wanted:
        if frame[key].isna().all() and key not in given:
            continue
        columns.append(_column(str(key), frame[key], given.get(str(key))))
    reason = _one_reason(frame)
    if reason:
        # The same sentence in every row is said once.
        columns = [column for column in columns if column.key != "reason"]
        caption = f"{caption} {reason[0].upper()}{reason[1:]}.".strip()
    rows = frame[[column.key for column in columns]].reset_index(drop=True)
    for key in ("benchmark", "data"):
        if key in rows:
            rows[key] = named(rows[key], "mean")
    return Table(
        name=name, title=title, columns=columns, rows=rows, caption=caption, is_open=is_open
    )


def _one_reason(frame: pd.DataFrame) -> str:
    if "reason" not in frame or frame.empty or frame["reason"].isna().any():
        return ""
    reasons = {str(reason) for reason in frame["reason"]}
    return reasons.pop().rstrip(".") if len(reasons) == 1 else ""


def _column(
    key: str, values: "pd.Series[Any]", described: tuple[str, Kind, int] | None = None
) -> Column:
    if described:
        title, kind, digits = described
        return Column(key=key, title=title, kind=kind, digits=digits)
    title = _TITLES.get(key, key.removeprefix("num_").replace("_", " ").capitalize())
    known = [value for value in values.tolist() if not is_absent(value)]
    kind, digits = "text", 1
    if known and all(isinstance(value, bool) for value in known):
        kind = "yes"
    elif known and all(isinstance(value, int | float) for value in known):
        kind, digits = _number_kind(key, known)
    return Column(key=key, title=title, kind=kind, digits=digits)


def _number_kind(key: str, known: Sequence[float]) -> tuple[Kind, int]:
    if key.startswith("p_"):
        return "p", 3
    if key in _POINTS:
        return "points", 1
    if key.endswith(("_fraction", "share", "_share")) or key.startswith("share"):
        return "percent", 0
    if key.startswith("num_") or all(float(value).is_integer() for value in known):
        return "count", 0
    return "number", 2


def matrix(drawn: pd.DataFrame, *, value: str, scale: float = 100, digits: int = 1) -> pd.DataFrame:
    """Return rows of a heat map for frames with x and y; ordered by first appearance."""
    is_signed = scale == 100
    texts = estimates(drawn, value, scale=scale, digits=digits, is_signed=is_signed)
    values = texts["estimate"]
    limit = saturation(values)
    brief = Column(
        key=value,
        title="",
        kind="points" if is_signed else "number",
        digits=0 if is_signed and limit >= 9.5 else digits,
    )
    return pd.DataFrame(
        {
            "x": drawn["x"],
            "y": drawn["y"],
            "value": values,
            "low": texts["low"],
            "high": texts["high"],
            "value_text": texts["value_text"],
            "label": [shown(item, brief) for item in drawn[value]],
            "x_order": pd.factorize(drawn["x"])[0],
            "y_order": pd.factorize(drawn["y"])[0],
            "strength": (values.abs() / limit).clip(upper=1),
            "is_faded": texts["is_faded"],
            "is_marked": False,
        },
        index=drawn.index,
    )


def saturation(values: "pd.Series[float]") -> float:
    """Where colours saturate: what all but the largest 2 % of values stay below."""
    known = values.abs().dropna()
    if known.empty:
        return 1.0
    limit = float(known.quantile(0.98))
    return max(round(limit, 0 if limit >= 3 else 2), 0.01)


def ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Number the rows: a chart keeps their order."""
    return rows.assign(order=range(len(rows))).reset_index(drop=True)


def choices(frame: pd.DataFrame, names: Sequence[str]) -> tuple[Choice, ...]:
    """Offer what the rows differ in."""
    return tuple(
        Choice(column=name, label=name.replace("_", " ").capitalize())
        for name in names
        if name in frame and frame[name].nunique(dropna=False) > 1
    )


def with_choices(rows: pd.DataFrame, frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Add to the rows of a chart the labels by which they are chosen."""
    more = {
        name: named(frame[name]) if name == "benchmark" else frame[name].astype(str)
        for name in names
        if name in frame and name not in rows
    }
    return rows.assign(**more).reset_index(drop=True)


def joined(frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[Any]":
    """Name each row by several of its labels."""
    texts = zip(*(frame[name].astype(str) for name in names), strict=True)
    return pd.Series([", ".join(row) for row in texts], index=frame.index, dtype=object)


def rests(frame: pd.DataFrame) -> "pd.Series[str]":
    """Say what rows rest on, from the counts that they have."""
    nouns = {
        "num_models": "model",
        "num_datasets": "dataset",
        "num_pairs": "pair",
        "num_runs": "run",
    }
    parts = [name for name in nouns if name in frame]
    texts = [
        ", ".join(
            plural(int(count), nouns[name])
            for name, count in zip(parts, row, strict=True)
            if pd.notna(count)
        )
        for row in frame[parts].to_numpy()
    ]
    return pd.Series(texts, index=frame.index, dtype=object)
