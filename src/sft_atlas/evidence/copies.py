"""Do rows hold another row's scores?

In: a wide table. Out: pairs of rows that agree in more columns than chance allows. Two models may
have the same score on a small test, so each agreement is weighed by how crowded the scores are at
that value: the share of other models' rows that would agree too. Agreement at the end of a scale
says nothing. Which of two base rows is the original is told from the models' own tuned rows, and
only where these leave no doubt.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sft_atlas.evidence.defect import Defect, Treatment
from sft_atlas.evidence.denominators import GROUP_STEP, Bools, Floats, written
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import chance, counted, listed

MIN_COLUMNS: Final = 3
MAX_ROWS: Final = 2000
"""Of larger tables only base rows, and rows that are equal throughout, are compared."""

_LOG_CHANCE: Final = np.log(1e-6)
_NEIGHBOURS: Final = 5
_MIN_FILLED: Final = 0.2
_FINEST: Final = 1e-6
_COINCIDENCE: Final = 0.01
_CLEAR: Final = 0.25
"""A score is far from a model's tuned rows if it is so many standard deviations of the column
outside of all of them."""
_MIN_CLEAR: Final = 3
_POWERS: Final = np.linspace(0.05, 1.0, 20)

Pairing = Literal["base", "models", "tuned", "own base"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The columns in which rows are compared: no totals of other columns, and none nearly empty."""

    columns: tuple[Column, ...]
    values: Floats
    """Shape (row, column); NaN where blank."""
    is_inner: Bools
    """Not at an end of the scale. Shape (row, column)."""
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


def copy_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find rows whose scores are another row's."""
    return tuple(_defect(source, copy) for copy in find_copies(source))


def copy_facts(source: SourceTable) -> tuple[str, ...]:
    """Say that rows were compared, and which kinds of pairs hold no copies."""
    found = {copy.pairing for copy in find_copies(source)}
    facts = []
    if not found & {"tuned", "own base"}:
        facts.append("no two rows of one model have the same scores throughout")
    if "models" not in found:
        facts.append("no tuned rows of different models have the same scores in half the columns")
    return tuple(facts) if len(source.values) > 1 else ()


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
        inner.append(((values > low) & (values < high)).to_numpy())
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
    filled = np.nan_to_num(scores.values, nan=-1.0)
    _, group, sizes = np.unique(filled, axis=0, return_inverse=True, return_counts=True)
    is_equal = sizes[group.ravel()] > 1
    return np.flatnonzero(scores.is_base | is_equal)[:MAX_ROWS]


def _suspects(scores: Scores, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of rows that agree in enough columns to be weighed."""
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
    return [(int(rows[i]), int(rows[j])) for i, j in np.argwhere(np.triu(is_suspect, 1))]


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

    Comparable are rows of other models, and of one model its own other rows. The share is the
    larger of those that do have it and of a nearest-neighbour density times the column's grid; of
    two base rows also the share of other base rows that have it.
    """
    first, second = pair
    value = scores.values[first, place]
    others = (scores.models != scores.models[first]) & (scores.models != scores.models[second])
    if scores.models[first] == scores.models[second] or not others.any():
        others = scores.models == scores.models[first]
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


def _defect(source: SourceTable, copy: Copy) -> Defect:
    first, second = copy.rows
    names = [_row_name(source, row) for row in copy.rows]
    chosen, reason = _original(source, copy) if copy.pairing == "base" else ((first, second), "")
    lines = source.labels["line"].to_numpy()
    maybe = (
        f" {listed(copy.maybe_by_chance)} alone could agree by chance."
        if copy.maybe_by_chance and len(copy.columns) < copy.num_shared
        else ""
    )
    left_out = listed([_row_name(source, row) for row in chosen])
    treatments: dict[Pairing, tuple[Treatment, str]] = {
        "base": ("exclude gain", f"No gain is formed with {left_out} in these columns."),
        "models": ("exclude score", "The scores of both rows in these columns are left out."),
        "own base": ("exclude score", "The tuned row's scores are left out."),
        "tuned": ("note", "Both rows stay: which of them is the copy cannot be told."),
    }
    effects = {
        "base": (
            "Gains of one of the models, or of both, are off by the same amount in every row. "
            "Comparisons within a model are not touched, since the base row cancels."
        ),
        "models": "Two models seem to agree where one was never scored.",
        "own base": "The tuned model was perhaps never scored: its gains of 0 are not measured.",
        "tuned": "One result counts as two.",
    }
    treatment, done = treatments[copy.pairing]
    if copy.pairing == "own base":
        chosen = tuple(row for row in chosen if source.labels["method"].iloc[row] != "base")
    return Defect(
        kind="copied row",
        columns=copy.columns,
        rows=tuple(int(lines[row]) for row in chosen),
        where=f"{names[0]} and {names[1]}: {counted(len(copy.columns), 'column')}",
        evidence=(
            f"The rows agree to the last digit in {len(copy.columns)} of the {copy.num_shared} "
            f"columns in which both have a score; the chance is at most "
            f"{chance(copy.log_chance)}, counting all pairs of rows.{maybe}{reason}"
        ),
        effect=effects[copy.pairing],
        treatment=treatment,
        what_is_done=done,
    )


def _original(source: SourceTable, copy: Copy) -> tuple[tuple[int, ...], str]:
    """Return the rows whose gains cannot be trusted, and why, from the models' tuned rows.

    Training moves a score, but seldom past where all of a model's runs are: a base score far
    outside of them is not that model's own.
    """
    names = [_row_name(source, row).removesuffix(" (base)") for row in copy.rows]
    far = [_num_far(source, copy, row) for row in copy.rows]
    text = (
        f" The scores lie far outside of all tuned rows of {names[0]} in "
        f"{counted(far[0], 'column')}, of {names[1]} in {far[1]}"
    )
    for place, other in ((0, 1), (1, 0)):
        if far[place] >= _MIN_CLEAR and not far[other]:
            return (copy.rows[place],), f"{text}: they are those of {names[other]}."
    return copy.rows, f"{text}: this does not tell whose they are."


def _num_far(source: SourceTable, copy: Copy, row: int) -> int:
    """Number of columns in which a base row's score lies far outside of its model's tuned rows."""
    labels = source.labels
    is_own = (labels["model"] == labels["model"].iloc[row]) & (labels["method"] != "base")
    tuned = source.values.loc[is_own.to_numpy(), list(copy.columns)]
    score = source.values[list(copy.columns)].iloc[row]
    beyond = np.maximum(tuned.min() - score, score - tuned.max())
    return int((beyond > _CLEAR * source.values[list(copy.columns)].std()).sum())


def _row_name(source: SourceTable, row: int) -> str:
    """Name a row by what tells it from the others of its model."""
    labels = source.labels.iloc[row]
    if labels["method"] == "base":
        return f"{labels['model']} (base)"
    return f"{labels['model']} ({labels['data']}, {labels['method']}, epoch {labels['epoch']})"
