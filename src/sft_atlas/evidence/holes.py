"""Which scores are not there, and is that chance?

In: a wide table. Out: columns that are hardly filled or always the same, rows that are the same
throughout, and holes that fall on one arm of a comparison. Scores that are missing at random cost
only precision; a whole method of one model that is missing turns a comparison of methods into one
of models. The test is exact: how likely so many of all holes would fall on one arm if every row
were as likely to have one.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import Bools
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import chance, counted, listed

ARMS: Final[tuple[tuple[str, ...], ...]] = (
    ("model", "method"),
    ("model", "method", "data_kind"),
    ("model",),
    ("method",),
    ("data",),
    ("model", "data"),
    ("data", "method"),
    ("schedule",),
    ("samples",),
)
"""Labels whose combinations are the arms of comparisons."""

_LOG_CHANCE: Final = np.log(1e-3)
_MAX_ARMS: Final = 3
_MIN_EXCESS: Final = 3.0
"""Standard deviations above the mean; nearer, no number of holes is as unlikely as asked for."""
_STUB: Final = 0.2
_FULL: Final = 0.8
_MIN_VALUES: Final = 10
_MIN_COLUMNS: Final = 5
_LOG_SAME: Final = np.log(1e-6)


_WORDS: Final = {"data_kind": "kind of data", "samples": "number of samples"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A part of the rows with many holes."""

    labels: tuple[str, ...]
    """What the rows have in common."""
    is_in: Bools
    """Per row of the table."""
    log_chance: float
    """Natural logarithm of the chance of so many holes in it."""


def hole_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find hardly filled and constant columns, uniform rows, and holes on one arm."""
    stubs = tuple(column for column in source.columns if is_stub(source, column))
    found = [_stub(source, column) for column in stubs]
    rest = tuple(column for column in source.columns if column not in stubs)
    found += [_constant(source, column) for column in rest if _is_constant(source, column)]
    uniform = _uniform_rows(source, rest)
    if uniform.any():
        found.append(_uniform(source, rest, uniform))
    return (*found, *_holes(source, rest))


def is_stub(source: SourceTable, column: Column) -> bool:
    """Whether a column is nearly empty while the table is not."""
    filled = source.values.notna().mean()
    return len(filled) > 1 and filled[column.name] < _STUB and float(filled.median()) > _FULL


def _stub(source: SourceTable, column: Column) -> Defect:
    values = source.values[column.name].dropna()
    most = values.value_counts()
    same = f"; {most.iloc[0]:,} of these are {most.index[0]:g}" if len(values) > most.size else ""
    return Defect(
        kind="stub column",
        columns=(column.name,),
        rows=(),
        where=f"{column.name}: all rows",
        evidence=f"Of {len(source.values):,} rows {len(values):,} have a score{same}.",
        effect="A mean over this column is one over a few rows that nobody chose for it.",
        treatment="exclude score",
        what_is_done="The column is left out.",
    )


def _is_constant(source: SourceTable, column: Column) -> bool:
    """Whether ten or more scores inside the scale are all the same."""
    values = source.values[column.name].dropna().to_numpy(dtype=np.float64)
    if len(values) < _MIN_VALUES or np.ptp(values) > 0:
        return False
    low, high = (1.0, 10.0) if column.metric == "rating" else (0.0, 1.0)
    return bool(low < values[0] * column.scale < high)


def _constant(source: SourceTable, column: Column) -> Defect:
    values = source.values[column.name].dropna()
    return Defect(
        kind="constant column",
        columns=(column.name,),
        rows=(),
        where=f"{column.name}: all {len(values):,} values",
        evidence=f"Every score is {values.iloc[0]:g}, base models' too.",
        effect="The column shows no difference, and pulls every mean of differences to 0.",
        treatment="exclude score",
        what_is_done="The column is left out.",
    )


def _uniform_rows(source: SourceTable, columns: tuple[Column, ...]) -> Bools:
    """Return the rows that have one value in all columns that others differ in.

    Only where that cannot be chance: the product over columns of the share of rows with that value.
    Ratings count at their own lowest grade.
    """
    names = [column.name for column in columns]
    lowest = np.array([column.metric == "rating" for column in columns], dtype=np.float64)
    values = source.values[names].to_numpy(dtype=np.float64)
    scores = (values - lowest) * [column.scale for column in columns]
    with np.errstate(invalid="ignore"):
        is_known = ~np.isnan(scores)
        low = np.where(is_known, scores, np.inf).min(axis=1, initial=np.inf)
        high = np.where(is_known, scores, -np.inf).max(axis=1, initial=-np.inf)
    is_uniform = (low == high) & (is_known.sum(axis=1) >= _MIN_COLUMNS)
    found = np.zeros(len(scores), dtype=bool)
    for value in np.unique(low[is_uniform]):
        rows = is_uniform & (low == value)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log((scores == value).sum(axis=0) / is_known.sum(axis=0))
        chances = (is_known[rows] @ np.nan_to_num(logs, neginf=0.0)) + np.log(len(scores))
        found[np.flatnonzero(rows)[chances < _LOG_SAME]] = True
    return found


def _uniform(source: SourceTable, columns: tuple[Column, ...], rows: Bools) -> Defect:
    labels = source.labels[rows]
    texts = [f"{row.model} ({row.data}, {row.method})" for row in labels.itertuples()]
    return Defect(
        kind="uniform row",
        columns=tuple(column.name for column in columns),
        rows=tuple(int(line) for line in labels["line"]),
        where=f"{counted(len(labels), 'row')}: {listed(texts, most=6)}",
        evidence="All scores of such a row are one and the same number, where other rows differ.",
        effect="The model gave no usable output, or these are placeholders and no measurements.",
        treatment="note",
        what_is_done="Scores stay as released, since a broken model is a result too.",
    )


def _holes(source: SourceTable, columns: tuple[Column, ...]) -> tuple[Defect, ...]:
    """Find arms with more holes than chance explains, for each set of rows that is missing."""
    patterns: dict[bytes, list[str]] = {}
    for column in columns:
        is_hole = source.values[column.name].isna().to_numpy()
        if is_hole.any() and not is_hole.all():
            patterns.setdefault(is_hole.tobytes(), []).append(column.name)
    if not patterns:
        return ()
    codes = {labels: _codes(source, labels) for labels in ARMS}
    log_tests = float(np.log(len(patterns) * sum(int(found.max()) + 1 for found in codes.values())))
    found = []
    for pattern, names in patterns.items():
        is_hole = np.frombuffer(pattern, dtype=bool)
        is_left = np.ones(len(is_hole), dtype=bool)
        for _ in range(_MAX_ARMS):
            arm = _heaviest(is_hole, is_left, codes)
            if arm is None or arm.log_chance + log_tests > _LOG_CHANCE:
                break
            found.append(_hole(source, tuple(names), is_hole, arm, arm.log_chance + log_tests))
            is_left = is_left & ~arm.is_in
    return tuple(found)


def _codes(source: SourceTable, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Number the combinations of some labels; shape (row,)."""
    groups = source.labels[list(labels)].groupby(list(labels), dropna=False, sort=False)
    return np.asarray(groups.ngroup().to_numpy(), dtype=np.int64)


def _heaviest(
    is_hole: Bools, is_left: Bools, codes: dict[tuple[str, ...], NDArray[np.int64]]
) -> Arm | None:
    """Return the arm with the least likely number of holes among the rows that are left."""
    num_left, num_holes = int(is_left.sum()), int((is_hole & is_left).sum())
    if not 0 < num_holes < num_left:
        return None
    best: tuple[float, int] | None = None
    found = None
    for labels, numbers in codes.items():
        sizes = np.bincount(numbers[is_left])
        holes = np.bincount(numbers[is_left & is_hole], minlength=len(sizes))
        share = num_holes / num_left
        excess = (holes - sizes * share) / np.sqrt(np.maximum(sizes, 1) * share * (1 - share))
        levels = np.flatnonzero((holes > 1) & (sizes < num_left) & (excess > _MIN_EXCESS))
        if not len(levels):
            continue
        tails = hypergeom.logsf(holes[levels] - 1, num_left, num_holes, sizes[levels])
        place = int(tails.argmin())
        key = (float(tails[place]), -int(sizes[levels[place]]))
        if best is None or key < best:
            best = key
            is_in = (numbers == levels[place]) & is_left
            found = Arm(labels=labels, is_in=is_in, log_chance=key[0])
    return found


def _hole(
    source: SourceTable, names: tuple[str, ...], is_hole: Bools, arm: Arm, log_chance: float
) -> Defect:
    missing = is_hole & arm.is_in
    num_in, num_missing = int(arm.is_in.sum()), int(missing.sum())
    row = source.labels.iloc[int(np.flatnonzero(arm.is_in)[0])]
    name = " · ".join(str(row[label]) for label in arm.labels)
    common = " and ".join(_WORDS.get(label, label) for label in arm.labels)
    elsewhere = int((is_hole & ~arm.is_in).sum())
    return Defect(
        kind="holes on one arm",
        columns=names,
        rows=tuple(int(line) for line in source.labels["line"].to_numpy()[missing]),
        where=f"{name}: {counted(len(names), 'column')} ({listed(names)})",
        evidence=(
            f"{num_missing:,} of the {num_in:,} rows of this {common} have no score there, and "
            f"{elsewhere:,} of the {len(is_hole) - num_in:,} others. The chance of that is "
            f"{chance(log_chance)}, counting all arms."
            f"{_other_arm(source, is_hole, arm)}"
        ),
        effect=(
            "A mean over what is there compares other models, methods or data than it names. "
            "Runs that gave no score are often those that went wrong."
        ),
        treatment="note",
        what_is_done=(
            "The scores stay missing: comparisons use pairs of rows that both have a score, and "
            "say how many."
        ),
    )


def _other_arm(source: SourceTable, is_hole: Bools, arm: Arm) -> str:
    """Say how complete the same model is with the other methods, where the arm is a method."""
    if not {"model", "method"} <= set(arm.labels):
        return ""
    labels = source.labels
    row = labels.iloc[int(np.flatnonzero(arm.is_in)[0])]
    is_other = (labels["model"] == row["model"]) & ~labels["method"].isin((row["method"], "base"))
    num_others = int(is_other.sum())
    if not num_others:
        return ""
    filled = int((is_other.to_numpy() & ~is_hole).sum())
    return f" Of the {num_others:,} rows of {row['model']} with another method {filled:,} have one."
