"""Do a column's numbers have the unit that is stated?

In: a wide table. Out: scores that cannot be in the stated unit, and columns written so coarsely, or
so small, that they are another quantity than their neighbours. What can be shown is only that a
unit or a rounding is at odds with the number of items; what the numbers are instead cannot.
"""

from typing import Final

import numpy as np

from sft_atlas.evidence.counts import LOG_CHANCE
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import Bools, Written, chance_of_items, fits_items, written
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import counted

_COARSE: Final = 0.005
"""Half a point: a rounding at which scores of large tests become equal."""
_LOST: Final = 2.0
"""Items that one step of the rounding covers, from which on it loses something."""
_FINER: Final = 10
_MOST: Final = 0.75
_MIN_OTHERS: Final = 3
_MIN_DISTINCT: Final = 5


def scale_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find scores outside of their unit, and columns in another unit than stated or usual."""
    numbers = {
        column.name: written(column, source.texts[column.name], source.values[column.name])
        for column in source.columns
    }
    found: list[Defect] = []
    for column in source.columns:
        own = numbers[column.name]
        is_outside = (own.values < own.ends[0] - 1e-9) | (own.values > own.ends[1] + 1e-9)
        if is_outside.any():
            found.append(_impossible(source, column, own, is_outside))
        elif _is_small(column, own):
            found.append(_small(column, own))
        elif _is_coarse(source, column, numbers):
            found.append(_coarse(column, own))
    return tuple(found)


def _impossible(
    source: SourceTable,
    column: Column,
    own: Written,
    is_outside: Bools,
) -> Defect:
    lines = source.labels["line"].to_numpy()[own.rows[is_outside]]
    low, high = own.ends
    worst = own.values[is_outside]
    return Defect(
        kind="impossible score",
        columns=(column.name,),
        rows=tuple(int(line) for line in lines),
        where=f"{column.name}: {counted(len(lines), 'value')} of {len(own.values):,}",
        evidence=(
            f"Scores there can lie between {low:g} and {high:g}; these lie between "
            f"{worst.min():g} and {worst.max():g}."
        ),
        effect="One such value can decide a mean.",
        treatment="exclude score",
        what_is_done="These values are left out.",
    )


def _is_small(column: Column, own: Written) -> bool:
    """Whether percents are all below 1 and no shares of the stated items: fractions read wrong."""
    distinct = own.distinct()
    if column.metric == "rating" or own.full <= 1 or not column.num_items or column.num_groups:
        return False
    if len(distinct.values) < _MIN_DISTINCT or own.values.max() > 1:
        return False
    if fits_items(distinct, column.num_items).all():
        return False
    share = chance_of_items(distinct, column.num_items)
    num_off = int((~fits_items(distinct, column.num_items)).sum())
    return num_off >= (1 - share) * len(distinct.values) / 2


def _small(column: Column, own: Written) -> Defect:
    distinct = own.distinct()
    num_off = int((~fits_items(distinct, column.num_items or 1)).sum())
    return Defect(
        kind="odd scale",
        columns=(column.name,),
        rows=(),
        where=f"{column.name}: all {len(own.values):,} values",
        evidence=(
            f"The unit is said to be percent, and all values lie between {own.values.min():g} and "
            f"{own.values.max():g}. Of {len(distinct.values)} distinct ones {num_off} are no "
            f"percentage of {column.num_items:,} items."
        ),
        effect="If these are fractions, the column is a hundred times too small in every mean.",
        treatment="exclude score",
        what_is_done="The column is left out.",
    )


def _is_coarse(source: SourceTable, column: Column, numbers: dict[str, Written]) -> bool:
    """Whether a column is rounded to less than its items allow, and others are not."""
    step, num_levels = _step(numbers[column.name]), len(numbers[column.name].distinct().values)
    if column.metric == "rating" or not column.num_items or step < _COARSE:
        return False
    # A share of the items has so few decimals by chance once in as many as a step covers.
    if step * column.num_items < _LOST or num_levels < _MIN_DISTINCT:
        return False
    if -num_levels * np.log(step * column.num_items) > LOG_CHANCE:
        return False
    others = [
        _step(numbers[other.name])
        for other in source.columns
        if other.name != column.name
        and other.metric != "rating"
        and numbers[other.name].values.size
    ]
    finer = sum(other * _FINER <= step * (1 + 1e-9) for other in others)
    return len(others) >= _MIN_OTHERS and finer >= _MOST * len(others)


def _step(numbers: Written) -> float:
    """Distance of neighbouring numbers of so many decimals, as a fraction of 1."""
    return float(numbers.steps.max(initial=0.0)) / numbers.full


def _coarse(column: Column, own: Written) -> Defect:
    step, items = _step(own), column.num_items or 1
    num_levels = len(np.unique(own.values))
    low, high = own.values.min(), own.values.max()
    points = f"{100 * step:g} point{'' if step == 0.01 else 's'}"
    return Defect(
        kind="odd scale",
        columns=(column.name,),
        rows=(),
        where=f"{column.name}: all {len(own.values):,} values",
        evidence=(
            f"The values lie between {low:g} and {high:g} in steps of "
            f"{step * own.full:g}, {num_levels} levels in all: one step is {points}, or "
            f"{step * items:.0f} of {items:,} items. The other columns are at least {_FINER} times "
            f"finer. Numbers as coarse as this fit any number of items, so that it is a share of "
            f"items at all cannot be checked."
        ),
        effect=(
            f"Differences below {points} vanish and many rows are tied. In a mean over columns "
            "of another unit it would count for nothing."
        ),
        treatment="note",
        what_is_done=(
            "Scores are brought to fractions of 1. Read no difference of one step; the quantity "
            "may be another than its name says."
        ),
    )
