"""Are ratings means of as many grades as stated?

In: a wide table with totals of ratings and their parts. Out: the number of grades behind each
value, and where it is not the stated one. Grades are whole numbers, so a mean of ten has one
decimal and a mean of nine has others. The parts of one total are read together, for a column alone
may happen to need no second decimal.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import binom

from sft_atlas.evidence.counts import LOG_CHANCE
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import Written, fits_items, written
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import chance, listed, percent

_MOST: Final = 0.9
_MAX_SHARE: Final = 0.5
_FEWEST: Final = 0.5
"""A mean of fewer than this share of the usual number of grades is not looked for."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """A column and the columns that it is stated to be the mean of."""

    column: Column
    parts: tuple[Column, ...]


@dataclass(frozen=True, kw_only=True)
class Grades:
    """How many grades are behind the parts of a total."""

    usual: int
    """Behind most values; 0 where the numbers do not tell."""
    behind: pd.DataFrame
    """Per value, rows as the source, a column per part; 0 where no number was found."""
    log_chance: float
    """Natural logarithm of the chance that numbers of as many decimals are of that form."""


def find_totals(source: SourceTable) -> tuple[Total, ...]:
    """List the totals of a table with at least two parts."""
    totals = []
    for column in source.columns:
        parts = tuple(part for part in source.columns if part.part_of == column.name)
        if len(parts) > 1:
            totals.append(Total(column=column, parts=parts))
    return tuple(totals)


def grade_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find ratings that are means of another number of grades than stated."""
    found: list[Defect] = []
    for total in find_totals(source):
        grades = find_grades(source, total.parts)
        stated = _stated(total)
        if grades.usual and stated and grades.usual != stated:
            found.append(_other_number(source, total, grades, stated))
    return tuple(found)


def grade_facts(source: SourceTable) -> tuple[str, ...]:
    """Say how many grades are behind the parts of each total."""
    facts = []
    for total in find_totals(source):
        grades = find_grades(source, total.parts)
        if grades.usual:
            facts.append(
                f"{total.column.name}: its {len(total.parts)} parts are means of {grades.usual} "
                "grades"
            )
    return tuple(facts)


def _stated(total: Total) -> int | None:
    """Return the number of grades behind one part, as the publisher states it."""
    own = {part.num_items for part in total.parts}
    if len(own) == 1 and None not in own:
        return own.pop()
    return total.column.num_items // len(total.parts) if total.column.num_items else None


def find_grades(source: SourceTable, parts: tuple[Column, ...]) -> Grades:
    """Find the number of grades that most values of the parts are means of, and those of the rest.

    The smallest number that fits nine in ten values is taken if chance is excluded; the rest are
    means of the largest smaller number that fits.
    """
    columns = {
        part.name: written(part, source.texts[part.name], source.values[part.name])
        for part in parts
        if part.metric == "rating"
    }
    nothing = pd.DataFrame(0, index=source.values.index, columns=[part.name for part in parts])
    if not columns or not any(len(numbers.values) for numbers in columns.values()):
        return Grades(usual=0, behind=nothing, log_chance=0.0)
    most = max(int(numbers.decimals.max(initial=0)) for numbers in columns.values())
    columns = {name: _with_decimals(numbers, most) for name, numbers in columns.items()}
    usual, log_chance = _usual(list(columns.values()), 10.0**-most)
    behind = nothing.to_numpy().copy()
    for num in range(usual, int(_FEWEST * usual), -1):
        for place, part in enumerate(parts):
            if part.name in columns:
                rows = columns[part.name].rows
                is_new = fits_items(columns[part.name], num) & (behind[rows, place] == 0)
                behind[rows[is_new], place] = num
    found = pd.DataFrame(behind, index=nothing.index, columns=nothing.columns)
    return Grades(usual=usual, behind=found, log_chance=log_chance)


def _with_decimals(numbers: Written, most: int) -> Written:
    """Take all parts as rounded alike: a column of 2.1 and 3.4 alone may be of 2.10 and 3.40."""
    return Written(
        values=numbers.values,
        decimals=np.full_like(numbers.decimals, most),
        rows=numbers.rows,
        full=numbers.full,
        ends=numbers.ends,
    )


def _usual(columns: list[Written], step: float) -> tuple[int, float]:
    """Return the smallest number of grades that fits most values, and the chance of that."""
    values = sum(len(numbers.values) for numbers in columns)
    distinct = [numbers.distinct() for numbers in columns]
    num_distinct = sum(len(numbers.values) for numbers in distinct)
    for num in range(1, int(_MAX_SHARE / step) + 1):
        if sum(int(fits_items(numbers, num).sum()) for numbers in columns) < _MOST * values:
            continue
        fitting = sum(int(fits_items(numbers, num).sum()) for numbers in distinct)
        tail = float(binom.logsf(fitting - 1, num_distinct, num * step)) + float(np.log(num))
        return (num, tail) if tail < LOG_CHANCE else (0, 0.0)
    return 0, 0.0


def _other_number(source: SourceTable, total: Total, grades: Grades, stated: int) -> Defect:
    names = tuple(part.name for part in total.parts)
    behind = grades.behind.to_numpy()[source.values[list(names)].notna().to_numpy()]
    is_usual = behind == grades.usual
    others = [
        f"{(behind == num).sum():,} of {num}"
        for num in range(grades.usual - 1, 0, -1)
        if (behind == num).any()
    ]
    rest = f"; of the rest, {listed(others)}" if others else ""
    if (behind == 0).any():
        rest += f"; {(behind == 0).sum():,} of another number"
    of_all = (
        f" ({total.column.num_items:,} over {len(names)} parts)" if total.column.num_items else ""
    )
    ratio = (stated / grades.usual) ** 0.5
    wrong = f"{ratio:.2g} times too narrow" if ratio > 1 else f"{1 / ratio:.2g} times too wide"
    return Defect(
        kind="stated number of items",
        columns=(total.column.name, *names),
        rows=(),
        where=f"{total.column.name} and its {len(names)} parts",
        evidence=(
            f"{is_usual.sum():,} of {len(behind):,} values of the parts ({percent(is_usual.mean())}"
            f") are means of {grades.usual} grades{rest}. Stated are {stated}{of_all}. The chance "
            f"that other numbers look so is {chance(grades.log_chance)}."
        ),
        effect=(
            f"An interval from the stated number would be {wrong}. Where a part has fewer grades "
            "than the others, some answers got none."
        ),
        treatment="note",
        what_is_done=(
            "Scores stay as released; the error of the total comes from the spread of its parts."
        ),
    )
