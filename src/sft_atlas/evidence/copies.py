"""Do rows hold another row's scores?

In: a wide table. Out: pairs of rows that agree in more columns than chance allows. Two models may
have the same score on a small test, so each agreement is weighed by how crowded the scores are at
that value: the share of other rows that would agree too. Agreement at the end of a scale, or at a
value that a quarter of all rows have, says nothing.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.evidence.denominators import GROUP_STEP, Bools, Floats, written
from sft_atlas.evidence.source import Column, SourceTable

MIN_COLUMNS: Final = 3
MAX_ROWS: Final = 2000
"""Of larger tables only base rows, and rows that are equal throughout, are compared."""
MAX_PAIRS: Final = 300
"""Pairs that are weighed."""

_LOG_CHANCE: Final = np.log(1e-6)
_NEIGHBOURS: Final = 5
_MIN_FILLED: Final = 0.2
_FINEST: Final = 1e-6
_COINCIDENCE: Final = 0.01
_FEW: Final = 5
_COMMON: Final = 0.25
"""A value of more than so many rows, or of more than this share of them, says nothing."""
_POWERS: Final = np.linspace(0.05, 1.0, 20)

Pairing = Literal["base", "models", "tuned", "own base"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The columns in which rows are compared: no totals of other columns, and none nearly empty."""

    columns: tuple[Column, ...]
    values: Floats
    """Shape (row, column); NaN where blank."""
    is_inner: Bools
    """Not at an end of the scale, and not a value that many rows have. Shape (row, column)."""
    grids: Floats
    """Distance of neighbouring scores, shape (column,), in released units."""
    models: NDArray[np.int64]
    """Code of each row's model."""
    is_base: Bools


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Two rows that agree in more columns than chance allows; rows are places in the table."""

    rows: tuple[int, int]
    pairing: Pairing
    """Two base rows; rows of two models; of one model; or a tuned row and its own base."""
    columns: tuple[str, ...]
    """Those in which they agree."""
    maybe_by_chance: tuple[str, ...]
    """Those of them in which one row in a hundred would agree by chance."""
    num_shared: int
    """Columns in which both have a score."""
    log_chance: float
    """Natural logarithm of a bound on the chance of such agreements among all pairs of rows."""


def find_copies(source: SourceTable) -> tuple[Copy, ...]:
    """Compare all pairs of rows.

    Two base rows are suspected from `MIN_COLUMNS` agreements on, rows of different models if they
    agree in half of the columns that both have, and rows of one model if they agree in all.
    """
    scores = _scores(source)
    if len(scores.columns) < MIN_COLUMNS:
        return ()
    rows = _compared(scores)
    num_rows = len(scores.values)
    log_pairs = np.log(max(1, num_rows * (num_rows - 1) / 2))
    found = []
    for first, second in _suspects(scores, rows):
        copy = _judged(source, scores, (first, second), float(log_pairs))
        if copy.log_chance < _LOG_CHANCE:
            found.append(copy)
    return tuple(found)


def _scores(source: SourceTable) -> Scores:
    totals = {column.part_of for column in source.columns}
    columns, inner, grids = [], [], []
    for column in source.columns:
        values = source.values[column.name]
        if column.name in totals or values.notna().mean() < _MIN_FILLED:
            continue
        numbers = written(column, source.texts[column.name], values)
        low, high = numbers.ends
        columns.append(column)
        num_same = values.groupby(values).transform("count")
        is_rare = num_same <= max(_FEW, _COMMON * int(values.notna().sum()))
        inner.append(((values > low) & (values < high) & is_rare).to_numpy())
        grids.append(max(numbers.steps.max(initial=0.0), _own_grid(column) * numbers.full))
    names = [column.name for column in columns]
    codes = source.labels["model"].astype("category").cat.codes
    return Scores(
        columns=tuple(columns),
        values=source.values[names].to_numpy(dtype=np.float64),
        is_inner=np.array(inner, dtype=bool).reshape(len(names), len(source.labels)).T,
        grids=np.array(grids, dtype=np.float64),
        models=np.asarray(codes.to_numpy(), dtype=np.int64),
        is_base=(source.labels["method"] == "base").to_numpy(),
    )


def _own_grid(column: Column) -> float:
    """Distance of neighbouring scores that the number of items or groups allows, of 1."""
    if column.num_groups:
        return GROUP_STEP / column.num_groups
    return 1 / column.num_items if column.num_items else _FINEST


def _compared(scores: Scores) -> NDArray[np.int64]:
    """Rows that are compared with each other."""
    num_rows = len(scores.values)
    if num_rows <= MAX_ROWS:
        return np.arange(num_rows)
    is_equal = pd.DataFrame(scores.values).duplicated(keep=False).to_numpy()
    return np.flatnonzero(scores.is_base | is_equal)[:MAX_ROWS]


def _suspects(scores: Scores, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of rows that agree in enough columns to be weighed, most agreements first."""
    equal = np.zeros((len(rows), len(rows)), dtype=np.int16)
    inner, shared = equal.copy(), equal.copy()
    for place in range(len(scores.columns)):
        values = scores.values[rows, place]
        is_equal = values[:, None] == values[None, :]
        is_known = ~np.isnan(values)
        equal += is_equal
        inner += is_equal & scores.is_inner[rows, place][:, None]
        shared += is_known[:, None] & is_known[None, :]
    is_one_model = scores.models[rows][:, None] == scores.models[rows][None, :]
    is_base = scores.is_base[rows][:, None] & scores.is_base[rows][None, :]
    is_suspect = np.where(is_one_model, equal == shared, is_base | (2 * equal >= shared))
    is_suspect &= inner >= MIN_COLUMNS
    pairs = np.argwhere(np.triu(is_suspect, 1))
    first = np.argsort(-inner[pairs[:, 0], pairs[:, 1]], kind="stable")[:MAX_PAIRS]
    return [(int(rows[i]), int(rows[j])) for i, j in pairs[np.sort(first)]]


def _judged(source: SourceTable, scores: Scores, pair: tuple[int, int], log_pairs: float) -> Copy:
    """Weigh the agreements of two rows."""
    first, second = pair
    is_one_model = scores.models[first] == scores.models[second]
    num_base = int(scores.is_base[first]) + int(scores.is_base[second])
    left, right = scores.values[first], scores.values[second]
    is_shared = ~np.isnan(left) & ~np.isnan(right)
    is_equal = left == right
    weighed = np.flatnonzero(is_shared & (scores.is_inner[first] | scores.is_inner[second]))
    shares = np.array([_share_that_agrees(scores, pair, int(place)) for place in weighed])
    pairing: Pairing = "models"
    if is_one_model:
        pairing = "own base" if num_base else "tuned"
    elif num_base == 2:
        pairing = "base"
    is_whole = bool(is_equal[is_shared].all())
    names = [
        column.name
        for column in source.columns
        if source.values[column.name].iloc[first] == source.values[column.name].iloc[second]
        and (is_whole or not _is_weightless(scores, column, first))
    ]
    by_chance = [
        scores.columns[place].name
        for place, share in zip(weighed, shares, strict=True)
        if is_equal[place] and share > _COINCIDENCE
    ]
    return Copy(
        rows=pair,
        pairing=pairing,
        columns=tuple(names),
        maybe_by_chance=tuple(by_chance),
        num_shared=int(sum(source.values.iloc[list(pair)].notna().all())),
        log_chance=_log_tail(shares, is_equal[weighed]) + log_pairs,
    )


def _is_weightless(scores: Scores, column: Column, row: int) -> bool:
    """Whether a row's score is at an end of the column's scale."""
    names = [compared.name for compared in scores.columns]
    return column.name in names and not scores.is_inner[row, names.index(column.name)]


def _share_that_agrees(scores: Scores, pair: tuple[int, int], place: int) -> float:
    """Share of comparable rows that would have the first row's score, by how crowded it is there.

    Comparable are rows of other models, and of one model its own other rows, without those that
    are equal throughout: a copy is no witness for another. The share is the
    larger of those that do have it and of a nearest-neighbour density times the column's grid; of
    two base rows also the share of other base rows that have it.
    """
    first, second = pair
    value = scores.values[first, place]
    others = (scores.models != scores.models[first]) & (scores.models != scores.models[second])
    if scores.models[first] == scores.models[second] or not others.any():
        others = (scores.models == scores.models[first]) & ~_same(scores, first)
    others[[first, second]] = False
    known = scores.values[:, place]
    found = np.abs(known[others & ~np.isnan(known)] - value)
    if not found.size:
        return 1.0
    num_near = min(_NEIGHBOURS, len(found))
    radius = float(np.partition(found, num_near - 1)[num_near - 1])
    grid = float(scores.grids[place])
    density = num_near / len(found) * min(1.0, grid / (2 * radius + grid))
    share = max(density, float((found == 0).mean()))
    bases = known[others & scores.is_base & ~np.isnan(known)]
    if scores.is_base[first] and scores.is_base[second] and bases.size:
        share = max(share, float((bases == value).mean()))
    return share


def _same(scores: Scores, row: int) -> Bools:
    """Return the rows that have a row's scores wherever both have one. Shape (row,)."""
    left = scores.values[row]
    is_equal = (scores.values == left) | np.isnan(scores.values) | np.isnan(left)
    return np.asarray(is_equal.all(axis=1))


def _log_tail(shares: Floats, is_equal: Bools) -> float:
    """Bound the chance of agreements as unlikely as these; natural logarithm.

    `shares` is each column's chance. Agreement is weighed by -log of that, so that one to the last
    of many digits counts for more, and the sum of weights is bounded as Chernoff (1952) does:
    P(sum >= s) <= min over t of E exp(t (sum - s)), columns taken as independent.
    """
    logs = np.log(shares)
    bounds = [
        float(np.log1p(shares * np.expm1(-t * logs)).sum() + t * logs[is_equal].sum())
        for t in _POWERS
    ]
    return min(0.0, *bounds)
