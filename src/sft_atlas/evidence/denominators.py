"""How many things is a released number a mean over?

In: numbers with the decimals that they were written with. Out: which of them can be k/n of n items,
or a plain mean over g groups, and how many would be by chance. A share of n items lies on a grid of
n + 1 numbers, and a mean over g groups whose own scores have two decimals lies on one of g times as
many: how a number was rounded tells what it was computed from. A grid that every number fits says
nothing, so each answer comes with the share of numbers that fit by chance.
"""

import re
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom

from sft_atlas.evidence.source import Column

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LONG: Final = 10
"""From so many decimals on, a number was not rounded."""
MAX_GROUPS: Final = 1000
GROUP_STEP: Final = 1e-4
"""Scores of groups are taken as rounded to hundredths of a percent."""

_SLACK: Final = 1e-6
"""Share of a grid's step that floating point may lose in a sum over `MAX_GROUPS` scores."""
_MAX_DISTINCT: Final = 5000
_MIN_FITTING: Final = 3
_NEARLY: Final = 0.9
_MOST_SHORT: Final = 0.8
"""With more unrounded numbers than the rest, short ones are not rounded either: 0.5 is 1/2."""
_LOG_CHANCE: Final = np.log(1e-9)
_DECIMALS = re.compile(r"[.,](\d+)\D*$")


@dataclass(frozen=True, kw_only=True)
class Written:
    """The numbers of one column that are not blank."""

    values: Floats
    """In released units."""
    decimals: NDArray[np.int64]
    """Per value, the most that any of its kind has, for trailing zeros are often left out. Rounded
    and unrounded numbers are kinds; a column with a fifth of unrounded ones has no others."""
    rows: NDArray[np.int64]
    """Position of each value in the table."""
    full: float
    """The released number that one whole item adds to the sum: 100 for percent, 1 for grades."""
    ends: tuple[float, float]
    """Lowest and highest number that the metric can have."""

    @property
    def steps(self) -> Floats:
        """Distance of neighbouring numbers of so many decimals; 0 for those that were not rounded.

        Shape (value,), in released units.
        """
        steps = 10.0 ** -self.decimals.astype(np.float64)
        return np.where(self.decimals >= LONG, 0.0, steps)

    def distinct(self) -> "Written":
        """Keep one of equal values, and none at the metric's ends, which fit every grid."""
        low, high = self.ends
        inner = np.flatnonzero((self.values > low) & (self.values < high))
        _, first = np.unique(self.values[inner], return_index=True)
        return self.at(inner[first])

    def at(self, places: NDArray[np.int64]) -> "Written":
        """Keep these values."""
        return replace(
            self,
            values=self.values[places],
            decimals=self.decimals[places],
            rows=self.rows[places],
        )


@dataclass(frozen=True, kw_only=True)
class GroupCount:
    """One number of groups that explains many values of a column."""

    num_groups: int
    is_fit: Bools
    """Per value of the `Written`."""


def written(column: Column, texts: "pd.Series[str]", values: "pd.Series[float]") -> Written:
    """Read a column's numbers with their decimals; `texts` and `values` as in a `SourceTable`."""
    rows = np.flatnonzero(values.notna().to_numpy())
    places, found = pd.factorize(texts.iloc[rows])
    decimals = np.array([_num_decimals(str(text)) for text in found], dtype=np.int64)[places]
    is_short = decimals < LONG
    if rows.size and is_short.mean() <= _MOST_SHORT:
        decimals = np.full_like(decimals, decimals.max(initial=0))
    elif is_short.any():
        decimals = np.where(is_short, decimals[is_short].max(), decimals)
    numbers = np.asarray(values.to_numpy(dtype=np.float64)[rows], dtype=np.float64)
    full = 1 / column.scale
    ends = (1.0, 10.0) if column.metric == "rating" else (0.0, full)
    return Written(values=numbers, decimals=decimals, rows=rows, full=full, ends=ends)


def _num_decimals(text: str) -> int:
    """Count digits after the decimal mark; a number with an exponent counts as not rounded.

    >>> _num_decimals("12.50"), _num_decimals("7"), _num_decimals("1e-05")
    (2, 0, 10)
    """
    if "e" in text.lower():
        return LONG
    found = _DECIMALS.search(text)
    return len(found[1]) if found else 0


def fits_items(numbers: Written, num_items: int) -> Bools:
    """Return which values are k/`num_items`, rounded or, where all fit so, cut to their decimals.

    Shape (value,).
    """
    grid = numbers.full / num_items
    slack = 1e-12 * numbers.full
    nearest = np.round(numbers.values / grid) * grid
    is_rounded = np.abs(nearest - numbers.values) <= numbers.steps / 2 + slack
    above = np.ceil((numbers.values - slack) / grid) * grid - numbers.values
    is_cut = above <= np.maximum(numbers.steps - slack, slack)
    return is_cut if is_cut.all() and not is_rounded.all() else is_rounded


def chance_of_items(numbers: Written, num_items: int) -> float:
    """Return the mean share of numbers with these decimals that fit k/`num_items`, at most 1."""
    if not numbers.values.size:
        return 1.0
    return float(np.minimum(1.0, numbers.steps * num_items / numbers.full).mean())


def fits_groups(numbers: Written, num_groups: int) -> Bools:
    """Return which values are plain means over `num_groups` scores with steps of `GROUP_STEP`.

    Shape (value,). A number of few decimals is taken as exact.
    """
    scaled = numbers.values * num_groups / (GROUP_STEP * numbers.full)
    return np.asarray(np.abs(scaled - np.round(scaled)) <= _tolerance(numbers, num_groups))


def _tolerance(numbers: Written, num_groups: int) -> Floats:
    """Largest distance from the grid that floating point explains, in steps of the grid.

    A number of few decimals is taken as exact: a mean of 21.46 is written so.
    """
    step = 10.0 ** -np.maximum(numbers.decimals, LONG).astype(np.float64)
    return num_groups * step / 2 / (GROUP_STEP * numbers.full) + _SLACK


def find_groups(numbers: Written, *, most: int = 3) -> tuple[GroupCount, ...]:
    """Return the numbers of groups that explain the column's unrounded values, most common first.

    The smallest number that fits most values is taken, then that which fits most of the rest, while
    chance is excluded (a binomial tail below 1e-9 over all numbers that were tried). Values that
    fit several are in all of them. Empty where no value was written unrounded.
    """
    sample = numbers.distinct()
    sample = _some(sample, np.flatnonzero(sample.decimals >= LONG))
    if len(sample.values) < _MIN_FITTING:
        return ()
    is_left = np.ones(len(sample.values), dtype=bool)
    found: list[GroupCount] = []
    tried = np.arange(2, MAX_GROUPS + 1)
    fits = np.array([fits_groups(sample, int(num)) for num in tried], dtype=bool)
    while len(found) < most and is_left.sum() >= _MIN_FITTING:
        counts = fits[:, is_left].sum(axis=1)
        best = _smallest(counts, tried)
        share = 2 * float(_tolerance(sample, int(tried[best])).mean())
        tail = binom.logsf(counts[best] - 1, int(is_left.sum()), min(1.0, share))
        if counts[best] < _MIN_FITTING or tail + np.log(len(tried)) > _LOG_CHANCE:
            break
        num_groups = int(tried[best])
        found.append(GroupCount(num_groups=num_groups, is_fit=fits_groups(numbers, num_groups)))
        is_left &= ~fits[best]
    return tuple(found)


def _smallest(counts: NDArray[np.int64], tried: NDArray[np.int64]) -> int:
    """Return the place of the smallest divisor that fits nearly as many values as the best number.

    Multiples of the true number fit all that it fits, and a few others by coincidence.
    """
    best = int(counts.argmax())
    is_near = (tried[best] % tried == 0) & (counts >= _NEARLY * counts[best])
    return int(np.flatnonzero(is_near)[0])


def _some(numbers: Written, places: NDArray[np.int64]) -> Written:
    """Keep at most `_MAX_DISTINCT` of these places, evenly spread over them."""
    return numbers.at(places[:: -(-len(places) // _MAX_DISTINCT) or 1])
