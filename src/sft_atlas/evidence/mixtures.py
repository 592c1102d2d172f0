"""Does one column hold two quantities?

In: a wide table. Out: columns in which some values are plain means over one number of groups and
some over another, and how the one kind follows from the other. If a harness averaged several tests
under one name, the alien number of groups is the sum of the right one and those of other columns:
taking these out again must give scores that are possible in every row. If several ways to take them
out are possible, or none is, the values are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sft_atlas.evidence.counts import are_shares
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import Bools, Floats, find_groups, written
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import listed

_MAX_PARTS: Final = 4
_MAX_CANDIDATES: Final = 20
_MIN_ROWS: Final = 10
"""Fewest alien values from which it can be told what they are made of."""
_FALLS: Final = -0.3
"""A rank correlation below this: what was taken out was never in it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Columns that may have been averaged into another."""

    columns: tuple[tuple[str, int], ...]
    """Names, and the number of groups of each."""
    num_impossible: int
    """Rows in which taking them out leaves a score that cannot be, or that falls as a part rises:
    then all rows."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A column of two definitions."""

    column: Column
    num_groups: int
    """Of the right definition."""
    num_alien: int
    is_right: Bools
    """Per row of the source: only the right definition fits."""
    is_alien: Bools
    is_both: Bools
    """Both definitions fit."""
    tried: tuple[Parts, ...]
    """All ways to form the alien number of groups."""

    @property
    def parts(self) -> Parts | None:
        """The only way that leaves possible scores; None where there is no such, or several."""
        possible = [parts for parts in self.tried if parts.num_impossible == 0]
        enough = int(self.is_alien.sum()) >= _MIN_ROWS
        return possible[0] if enough and len(possible) == 1 else None


def mixture_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find columns whose values are means over different numbers of groups."""
    return tuple(_defect(source, mixture) for mixture in find_mixtures(source))


def unmixed(source: SourceTable, defect: Defect) -> "pd.Series[float]":
    """Return the column of an `unmix` defect with its alien values replaced, in released units.

    Rows as `source.values`; NaN where an alien value cannot be un-mixed because a part is missing.
    """
    name = defect.columns[0]
    values = source.values[name].astype(float).copy()
    for mixture in find_mixtures(source, (name,)):
        if mixture.parts is not None:
            rows = source.labels["line"].isin(defect.rows).to_numpy()
            values[rows] = _taken_out(source, mixture, mixture.parts.columns)[rows]
    return values


def find_mixtures(source: SourceTable, names: tuple[str, ...] | None = None) -> tuple[Mixture, ...]:
    """Find the columns, of `names` or of all, that hold means over two numbers of groups."""
    groups = {column.name: _groups(source, column) for column in source.columns}
    found = []
    for column in source.columns:
        fits = groups[column.name]
        if (names is not None and column.name not in names) or not fits:
            continue
        right, alien = _right_and_alien(column, tuple(fits))
        if alien is None:
            continue
        is_right, is_alien = fits.get(right, np.zeros_like(fits[alien])), fits[alien]
        mixture = Mixture(
            column=column,
            num_groups=right,
            num_alien=alien,
            is_right=is_right & ~is_alien,
            is_alien=is_alien & ~is_right,
            is_both=is_right & is_alien,
            tried=(),
        )
        single = {name: next(iter(nums)) for name, nums in groups.items() if len(nums) == 1}
        single.pop(column.name, None)
        ways = _ways(single, alien - right)
        tried = tuple(_tried(source, mixture, way) for way in ways)
        found.append(replace(mixture, tried=tried))
    return tuple(found)


def _groups(source: SourceTable, column: Column) -> dict[int, Bools]:
    """Map each number of groups that explains a column's values to the rows that fit it."""
    if column.metric == "rating" or are_shares(source, column):
        return {}
    numbers = written(column, source.texts[column.name], source.values[column.name])
    found = {}
    for count in find_groups(numbers):
        rows = np.zeros(len(source.values), dtype=bool)
        rows[numbers.rows[count.is_fit]] = True
        found[count.num_groups] = rows
    return found


def _right_and_alien(column: Column, found: tuple[int, ...]) -> tuple[int, int | None]:
    """Return the right number of groups and the most common other, None if there is no other.

    Right is what the publisher states; without a statement, the smaller of the two most common.
    """
    stated = column.num_groups
    if stated is None:
        return (found[0], None) if len(found) == 1 else (min(found[:2]), max(found[:2]))
    others = [num for num in found if stated % num]
    return stated, others[0] if others else None


def _ways(groups: dict[str, int], missing: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield sets of other columns whose numbers of groups sum to what the right one lacks."""
    names = [name for name, num in groups.items() if num <= missing][:_MAX_CANDIDATES]
    for size in range(1, _MAX_PARTS + 1):
        for chosen in combinations(names, size):
            if sum(groups[name] for name in chosen) == missing:
                yield tuple((name, groups[name]) for name in chosen)


def _taken_out(source: SourceTable, mixture: Mixture, parts: tuple[tuple[str, int], ...]) -> Floats:
    """Return what is left of each value without these parts. Shape (row,), in released units."""
    rest = mixture.num_alien * source.values[mixture.column.name].to_numpy(dtype=np.float64)
    for name, num in parts:
        rest = rest - num * source.values[name].to_numpy(dtype=np.float64)
    step = 1e-8 / mixture.column.scale
    return np.round(rest / mixture.num_groups / step) * step


def _is_possible(mixture: Mixture, values: Floats) -> Bools:
    return np.asarray((values >= 0) & (values <= 1 / mixture.column.scale))


def _tried(source: SourceTable, mixture: Mixture, way: tuple[tuple[str, int], ...]) -> Parts:
    """Take these parts out and see whether the rest can be scores."""
    left = _taken_out(source, mixture, way)
    is_known = mixture.is_alien & ~np.isnan(left)
    impossible = int((is_known & ~_is_possible(mixture, left)).sum())
    for name, _ in way:
        part = source.values[name].to_numpy(dtype=np.float64)[is_known]
        varies = len(part) >= _MIN_ROWS and np.ptp(part) > 0 and np.ptp(left[is_known]) > 0
        if not impossible and varies and spearmanr(left[is_known], part).statistic < _FALLS:
            impossible = int(is_known.sum())
    if not is_known.any():
        return Parts(columns=way, num_impossible=int(mixture.is_alien.sum()), low=0.0, high=0.0)
    found = left[is_known]
    return Parts(
        columns=way,
        num_impossible=impossible,
        low=float(found.min()),
        high=float(found.max()),
    )


def _defect(source: SourceTable, mixture: Mixture) -> Defect:
    name, parts = mixture.column.name, mixture.parts
    rows = mixture.is_alien.copy()
    if parts is not None:
        left = _taken_out(source, mixture, parts.columns)
        is_tuned = (source.labels["method"] != "base").to_numpy()
        is_likely = mixture.is_both & is_tuned & _mostly_alien(source, mixture)
        rows |= is_likely & _is_possible(mixture, left)
    num_alien = int(mixture.is_alien.sum())
    few = 0.9 * mixture.num_groups <= mixture.num_alien < mixture.num_groups
    return Defect(
        kind="mixed definitions",
        columns=(name,),
        rows=tuple(int(line) for line in source.labels["line"].to_numpy()[rows]),
        where=f"{name}: {num_alien:,} of {source.values[name].notna().sum():,} values",
        evidence=_evidence(source, mixture),
        effect=_effect(source, mixture),
        treatment="unmix" if parts is not None else "note" if few else "exclude score",
        what_is_done=(
            f"Each such value v is replaced by {_rule(mixture, parts)}."
            if parts is not None
            else "Scores stay as released: nearly all groups are in them."
            if few
            else "These values are left out: what they are made of cannot be told."
        ),
    )


def _evidence(source: SourceTable, mixture: Mixture) -> str:
    text = (
        f"{mixture.is_right.sum():,} values can only be plain means over {mixture.num_groups} "
        f"scores of two decimals, {mixture.is_alien.sum():,} only over {mixture.num_alien}; "
        f"{mixture.is_both.sum():,} fit both."
    )
    for parts in mixture.tried:
        sums = " + ".join(str(num) for num in (mixture.num_groups, *(n for _, n in parts.columns)))
        names = listed([name for name, _ in parts.columns])
        scale = 100 * mixture.column.scale
        text += f" {mixture.num_alien} = {sums}: taking {names} out " + (
            f"leaves impossible scores in {parts.num_impossible:,} rows."
            if parts.num_impossible
            else f"leaves possible scores in all rows, {scale * parts.low:.2f} to "
            f"{scale * parts.high:.2f} %."
        )
    if not mixture.tried:
        text += " No other columns have as many groups as the difference."
    return text


def _rule(mixture: Mixture, parts: Parts) -> str:
    taken = "".join(f" - {num} {name}" for name, num in parts.columns)
    return f"({mixture.num_alien} v{taken}) / {mixture.num_groups}"


def _mostly_alien(source: SourceTable, mixture: Mixture) -> Bools:
    """Return the rows of models that have more alien values than right ones. Shape (row,)."""
    models = source.labels["model"]
    balance = pd.Series(mixture.is_alien.astype(int) - mixture.is_right.astype(int), models.index)
    return np.asarray(balance.groupby(models).transform("sum") > 0)


def _effect(source: SourceTable, mixture: Mixture) -> str:
    """Name the models whose gains compare one definition with the other."""
    is_base = (source.labels["method"] == "base").to_numpy()
    models = source.labels["model"].to_numpy()
    alien_of_tuned = _mostly_alien(source, mixture)
    is_crossed = is_base & (
        (mixture.is_right & alien_of_tuned) | (mixture.is_alien & ~alien_of_tuned)
    )
    text = "Values of two quantities are compared as if they were one."
    if is_crossed.any():
        names = listed(sorted(set(models[is_crossed])))
        text += (
            f" The base row of {names} is of one kind and most of its tuned rows of the other: "
            "gains there mean nothing."
        )
    return text
