"""How small a difference could each benchmark show, and which training data holds its items?

In: the table of scores, and that of overlaps. Out: plain rows for the page. Nothing is assumed, all
is read off the stored items.

Standard errors here are half an interval's width over 1.96: the usual ones are 0 where all items
agree, and 20 wrong answers of 20 are no certainty.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import pandas as pd

from sft_atlas.study.resolution import ALPHA, POWER

RATING: Final = "rating"
"""The metric whose scores are grades from 1 to 10, and no fractions."""

_Z: Final = NormalDist().inv_cdf(1 - ALPHA / 2)
_NOTICED: Final = _Z + NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """How small a difference one benchmark could show, as text; errors are medians over cells."""

    benchmark: str
    num_items: str
    score_error: str
    gain_error: str
    noticed: str
    """Smallest true gain that a two-sided test at 5 % notices 4 times of 5."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Training data that holds items of a benchmark."""

    data: str
    benchmark: str
    num_cells: int
    num_rows: int
    num_rows_overlapping: int
    num_items: int
    num_items_exact: int
    num_items_near: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What is known of training rows that hold a test's items."""

    found: tuple[Leak, ...]
    """The largest share of items first."""
    num_clean: int
    """Training sets that were searched for a benchmark's items and hold none."""
    unknown: tuple[tuple[str, int], ...]
    """(reason, training sets and benchmarks) of what was not searched."""


def sharpness(scores: pd.DataFrame) -> list[Sharpness]:
    """Return one row per scored benchmark."""
    scored = scores if scores.empty else scores[scores["score"].notna()]
    rows = []
    for benchmark in scored["benchmark"].unique() if len(scored) else ():
        part = scored[scored["benchmark"] == benchmark]
        show = _grade if part["metric"].iloc[0] == RATING else _points
        gain_error = _typical_error(part[part["method"] != "base"], "gain")
        rows.append(
            Sharpness(
                benchmark=str(benchmark),
                num_items=_span(part["num_scored"]),
                score_error=show(_typical_error(part, "score")),
                gain_error=show(gain_error),
                noticed=show(None if gain_error is None else _NOTICED * gain_error),
            )
        )
    return rows


def find_leaks(overlaps: pd.DataFrame, cells: pd.DataFrame) -> Leaks:
    """Return overlaps by data, number of rows and benchmark: cells that share them count once."""
    rows = cells.loc[cells["method"] != "base", ["cell", "data"]].merge(overlaps, on="cell")
    found, num_clean = [], 0
    keys = ["data", "num_rows", "benchmark"]
    counts = ("num_rows_overlapping", "num_items", "num_items_exact", "num_items_near")
    for (data, _, benchmark), part in rows[rows["reason"].isna()].groupby(keys, sort=False):
        numbers = {name: int(part[name].iloc[0]) for name in counts}
        if numbers["num_items_exact"] + numbers["num_items_near"] == 0:
            num_clean += 1
            continue
        found.append(
            Leak(
                data=str(data),
                benchmark=str(benchmark),
                num_cells=len(part),
                num_rows=int(part["num_rows"].iloc[0]),
                percent=100 * float(part["overlap_fraction"].iloc[0]),
                **numbers,
            )
        )
    absent = rows[rows["reason"].notna()].drop_duplicates(["data", "benchmark"])
    return Leaks(
        found=tuple(sorted(found, key=lambda leak: -leak.percent)),
        num_clean=num_clean,
        unknown=tuple((str(why), int(n)) for why, n in absent["reason"].value_counts().items()),
    )


def share_text(percent: float) -> str:
    """Write a share in percent; one that is not 0 is not shown as 0.

    >>> [share_text(share) for share in (100.0, 8.54, 0.0214)]
    ['100', '8.5', '0.02']
    """
    if percent >= 10:
        return f"{percent:.0f}"
    return f"{percent:.1f}" if percent >= 1 else f"{percent:.1g}"


def _typical_error(part: pd.DataFrame, name: str) -> float | None:
    """Return the median standard error over cells, or None where no cell has an interval."""
    widths = (part[f"{name}_high"] - part[f"{name}_low"]).dropna()
    return None if widths.empty else float(widths.median()) / (2 * _Z)


def _points(value: float | None) -> str:
    return "\N{EM DASH}" if value is None else f"{100 * value:.1f}"


def _grade(value: float | None) -> str:
    return "\N{EM DASH}" if value is None else f"{value:.2f} of 10"


def _span(counts: "pd.Series[Any]") -> str:
    known = counts.dropna()
    if known.empty:
        return "\N{EM DASH}"
    low, high = int(known.min()), int(known.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
