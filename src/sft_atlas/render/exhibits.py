"""What is a section of evidence made of: which charts, which tables, under which answer?

Out: plain data, made once, from which the page and the folder of exported figures are both written.
A chart's rows are exactly what it draws, so that its exported data are too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pandas as pd

from sft_atlas.analyze.findings import Finding, minus

Kind = Literal["text", "points", "percent", "number", "count", "p", "yes"]
"""How a column of a table is shown: fractions as signed `points` or as `percent`."""

Frames = Mapping[str, pd.DataFrame]
"""The tables of an answered question, by name."""

NOTHING: Final = "\N{EM DASH}"
MAX_SHOWN: Final = 200
"""Rows of a table that stand on the page."""
MAX_ANSWERS: Final = 5
"""Answers of a section that are not folded."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A column of a chart's rows by which a reader chooses what is drawn."""

    column: str
    label: str
    first: str = ""
    """Value that is drawn first; empty: that of the first row."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart: a form, the rows that it draws, and what a reader may choose."""

    name: str
    """Its place on the page, and the name of its files."""
    title: str
    caption: str
    form: Mapping[str, Any]
    """Vega-Lite without data; draws the data source `rows`. `usermeta` says how its size follows
    the rows: see `forms`."""
    rows: pd.DataFrame
    choices: Sequence[Choice] = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table: which values, under which heading, shown how."""

    key: str
    title: str
    kind: Kind = "text"
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: all rows are exported, the first `MAX_SHOWN` stand on the page."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: pd.DataFrame
    caption: str = ""
    is_open: bool = True
    """Else it is folded, because a chart shows the same."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The answer to one question with its evidence."""

    name: str
    title: str
    short: str
    """For the list of sections."""
    lead: str
    """How the evidence is read, in one or two sentences."""
    findings: Sequence[Finding] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def is_absent(value: Any) -> bool:
    """Tell what must never be shown as a number: null, NaN and infinity."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return isinstance(value, float) and not math.isfinite(value)


def shown(value: Any, column: Column) -> str:
    """Return a value as the page shows it; what is absent or no number is a dash.

    >>> shown(0.0123, Column(key="a", title="A", kind="points"))
    '+1.2'
    >>> shown(float("nan"), Column(key="a", title="A", kind="number")) == NOTHING
    True
    """
    if is_absent(value):
        return NOTHING
    if column.kind == "yes":
        return "yes" if value else "no"
    if column.kind == "text":
        return str(value)
    number = float(value)
    if column.kind == "count":
        return minus(f"{number:,.0f}")
    if column.kind == "p":
        return "< 0.001" if number < 0.001 else f"{number:.3f}"
    if column.kind == "percent":
        return minus(f"{100 * number:.{column.digits}f}")
    sign, scale = ("+", 100) if column.kind == "points" else ("", 1)
    text = f"{scale * number:{sign}.{column.digits}f}"
    # A rounded zero has no sign.
    return minus(text) if float(text) else text.lstrip("+-")
