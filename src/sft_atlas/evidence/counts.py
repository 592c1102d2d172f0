"""Is a column the share of as many items as its publisher states?

In: a wide table and what its publisher says about each column. Out: what is wrong with the stated
numbers of items, and what was found right. A share of n items, rounded, lies on the grid k/n. Where
it does not, other n are tried: one that all values fit is the true number; a few below the stated
one mean items that were not scored. An n above the stated one cannot be, so those serve as the
control that tells missing items from coincidence.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import binom

from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import (
    Bools,
    Written,
    chance_of_items,
    fits_groups,
    fits_items,
    written,
)
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import chance, percent

LOG_CHANCE: Final = np.log(1e-6)
"""What is less likely than this, by natural logarithm, is not taken for chance."""

_MAX_OTHER: Final = 5000
_MOST_MISSING: Final = 0.05
_EXPLAINED: Final = 0.9
_NO_POWER: Final = 0.9
_FEW: Final = 0.1
_FIRST: Final = 30
"""Values that are looked at before all of them are."""


Verdict = Literal[
    "agrees", "cannot tell", "other number", "missing items", "off the grid", "no shares"
]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a column's numbers say about its number of items."""

    verdict: Verdict
    num_items: int
    """As stated."""
    num_seen: int
    """The number of items that the values show; of several, the lowest."""
    is_fit: Bools
    """Per value: it is k/`num_items`."""
    share_by_chance: float
    """Share of numbers with as many decimals that fit the stated number."""
    log_chance: float
    """Natural logarithm of the chance that numbers of no grid lead to this verdict."""


def count_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find columns whose values are not shares of the stated number of items."""
    found = []
    for column, numbers in _shares(source):
        reading = read_counts(numbers, column.num_items or 0)
        if reading.verdict == "other number":
            found.append(_other_number(column, numbers, reading))
        elif reading.verdict == "missing items":
            found.append(_missing_items(source, column, numbers, reading))
        elif reading.verdict == "off the grid":
            found.append(_off_the_grid(source, column, numbers, reading))
    return tuple(found)


def count_facts(source: SourceTable) -> tuple[str, ...]:
    """Say which columns agree with their stated items or groups, and which cannot be tested."""
    facts = []
    for column, numbers in _shares(source):
        reading = read_counts(numbers, column.num_items or 0)
        if reading.verdict == "agrees":
            facts.append(
                f"{column.name}: all {len(numbers.values):,} values are k/{reading.num_items:,}, "
                f"where by chance {percent(reading.share_by_chance)} would be"
            )
        elif reading.verdict == "cannot tell" and reading.share_by_chance > _NO_POWER:
            facts.append(
                f"{column.name}: its values do not show whether they are k/{reading.num_items:,}; "
                f"{percent(reading.share_by_chance)} of such numbers are"
            )
    for column in source.columns:
        if column.num_groups is None or column.metric == "rating":
            continue
        numbers = written(column, source.texts[column.name], source.values[column.name])
        is_long = numbers.decimals >= 10
        if is_long.sum() >= 3 and fits_groups(numbers, column.num_groups).all():
            facts.append(
                f"{column.name}: all {len(numbers.values):,} values are plain means over "
                f"{column.num_groups:,} scores of two decimals"
            )
    return tuple(facts)


def _shares(source: SourceTable) -> list[tuple[Column, Written]]:
    """Columns that are stated to be shares of the same items in all rows, with a value at least."""
    return [
        (column, numbers)
        for column in source.columns
        if column.num_items and column.num_groups is None and column.metric != "rating"
        if source.num_items is None or source.num_items[column.name].isna().all()
        if len((numbers := _numbers(source, column)).values)
    ]


def are_shares(source: SourceTable, column: Column) -> bool:
    """Whether a column's values are all k/n of the n that is stated for it, or for each row."""
    numbers = _numbers(source, column)
    if source.num_items is None:
        return bool(column.num_items and fits_items(numbers, column.num_items).all())
    stated = source.num_items[column.name].fillna(column.num_items or np.nan).iloc[numbers.rows]
    return all(
        fits_items(numbers.at(np.flatnonzero(stated == num)), int(num)).all()
        for num in stated.dropna().unique()
    ) and bool(stated.notna().all())


def _numbers(source: SourceTable, column: Column) -> Written:
    return written(column, source.texts[column.name], source.values[column.name])


def read_counts(numbers: Written, num_items: int) -> Reading:
    """Compare values with the grid of a stated number of items.

    Distinct values inside the metric's range are the evidence: 0 fits any grid, and equal values
    count once.
    """
    distinct = numbers.distinct()
    fits = fits_items(distinct, num_items)
    share = chance_of_items(distinct, num_items)

    def reading(verdict: Verdict, log_chance: float, num_seen: int = num_items) -> Reading:
        return Reading(
            verdict=verdict,
            num_items=num_items,
            num_seen=num_seen,
            is_fit=fits_items(numbers, num_items),
            share_by_chance=share,
            log_chance=log_chance,
        )

    if share > _NO_POWER or not len(fits):
        return reading("cannot tell", 0.0)
    tail = float(binom.logsf(fits.sum() - 1, len(fits), share))
    if fits.all():
        coarser, log_chance = _divisor(distinct, num_items)
        if log_chance < LOG_CHANCE:
            return reading("other number", log_chance, coarser)
        return reading("agrees" if tail < LOG_CHANCE else "cannot tell", tail)
    if tail < LOG_CHANCE and fits.mean() > 1 - _FEW:
        return reading("off the grid", tail)
    other, log_chance = _other(distinct)
    if log_chance < LOG_CHANCE:
        return reading("other number", log_chance, other)
    lowest, log_chance = _lowest(numbers, distinct, num_items)
    if log_chance < LOG_CHANCE:
        return reading("missing items", log_chance, lowest)
    return reading("no shares", tail)


def _divisor(distinct: Written, num_items: int) -> tuple[int, float]:
    """Return the smallest divisor whose grid holds all values, and the chance of that."""
    for num in range(1, num_items // 2 + 1):
        if num_items % num == 0 and fits_items(distinct, num).all():
            share = max(num / num_items, chance_of_items(distinct, num))
            return num, len(distinct.values) * float(np.log(share))
    return num_items, 0.0


def _other(distinct: Written) -> tuple[int, float]:
    """Return the smallest number of items that all values fit, and the chance of finding one."""
    few = distinct.at(np.arange(min(_FIRST, len(distinct.values))))
    for num in range(2, _MAX_OTHER):
        share = chance_of_items(few, num)
        if share > _NO_POWER:
            break
        if fits_items(few, num).all() and fits_items(distinct, num).all():
            log_chance = np.log(num) + len(distinct.values) * np.log(max(share, 1e-12))
            return num, float(log_chance)
    return 0, 0.0


def _lowest(numbers: Written, distinct: Written, num_items: int) -> tuple[int, float]:
    """Return the lowest number of items that is needed to explain most values, and its chance.

    The chance is that of an exact sign test: distinct values that fit only some n up to the stated
    one, against those that fit only one of as many n above it.
    """
    explained = np.zeros(len(numbers.values), dtype=bool)
    below = np.zeros(len(distinct.values), dtype=bool)
    above = below.copy()
    for width in range(1, max(2, int(_MOST_MISSING * num_items)) + 1):
        explained |= fits_items(numbers, num_items - width + 1)
        below |= fits_items(distinct, num_items - width + 1)
        above |= fits_items(distinct, num_items + width)
        if explained.mean() >= _EXPLAINED:
            num_below, num_above = int((below & ~above).sum()), int((above & ~below).sum())
            if num_below + num_above == 0:
                break
            tail = binom.logsf(num_below - 1, num_below + num_above, 0.5)
            return num_items - width + 1, float(tail)
    return num_items, 0.0


def _other_number(column: Column, numbers: Written, reading: Reading) -> Defect:
    ratio = (reading.num_items / reading.num_seen) ** 0.5
    wrong = f"{ratio:.2g} times too narrow" if ratio > 1 else f"{1 / ratio:.2g} times too wide"
    return Defect(
        kind="stated number of items",
        columns=(column.name,),
        rows=(),
        where=f"{column.name}: all {len(numbers.values):,} values",
        evidence=(
            f"Every value is k/{reading.num_seen:,}; {percent(reading.is_fit.mean())} are "
            f"k/{reading.num_items:,}, the stated number. The chance of that is "
            f"{chance(reading.log_chance)}."
        ),
        effect=f"An interval from the stated number of items is {wrong}.",
        treatment="note",
        what_is_done="Scores stay as released. Do not compare them with scores of all the items.",
    )


def _missing_items(
    source: SourceTable, column: Column, numbers: Written, reading: Reading
) -> Defect:
    num, low = reading.num_items, reading.num_seen
    width = num - low + 1
    below = np.any([fits_items(numbers, low + i) for i in range(width)], axis=0)
    above = np.any([fits_items(numbers, num + 1 + i) for i in range(width)], axis=0)
    shift = numbers.values.max() * column.scale * (num / low - 1) * 100
    return Defect(
        kind="missing items",
        columns=(column.name,),
        rows=_lines(source, numbers, ~reading.is_fit),
        where=f"{column.name}: {(~reading.is_fit).sum():,} of {len(numbers.values):,} values",
        evidence=(
            f"{percent(reading.is_fit.mean())} of the values are k/{num:,}, as stated, where "
            f"{percent(reading.share_by_chance)} would be by chance. {percent(below.mean())} are "
            f"k/n of some n from {low:,} to {num:,}, and {percent(above.mean())} of some n from "
            f"{num + 1:,} to {num + width:,}, which cannot be: by chance these would be as many "
            f"(chance {chance(reading.log_chance)}). So the values are plain counts of items, not "
            "weighted or adjusted ones, and some items have no result."
        ),
        effect=(
            "Rows are means over different items. Those that a judge or a parser gave no result "
            f"for are no random draw; leaving {width - 1} out moves a score by up to "
            f"{shift:.1g} points by the number alone."
        ),
        treatment="note",
        what_is_done="Scores stay as released: the table does not tell which items are missing.",
    )


def _off_the_grid(
    source: SourceTable, column: Column, numbers: Written, reading: Reading
) -> Defect:
    is_off = ~reading.is_fit
    return Defect(
        kind="missing items",
        columns=(column.name,),
        rows=_lines(source, numbers, is_off),
        where=f"{column.name}: {is_off.sum():,} of {len(numbers.values):,} values",
        evidence=(
            f"All other values are k/{reading.num_items:,}, as stated; by chance "
            f"{percent(reading.share_by_chance)} would be (chance {chance(reading.log_chance)})."
        ),
        effect="These rows were scored on other items than the rest, or by another rule.",
        treatment="note",
        what_is_done="Scores stay as released: the table does not tell which items are missing.",
    )


def _lines(source: SourceTable, numbers: Written, chosen: Bools) -> tuple[int, ...]:
    """Places in the source of the chosen values."""
    lines = source.labels["line"].to_numpy()[numbers.rows[chosen]]
    return tuple(int(line) for line in lines)
