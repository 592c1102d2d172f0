"""Is a total the mean of its parts?

In: a wide table in which some columns are stated to be parts of another. Out: the rows whose total
does not follow from their parts, and of which kind of mean the others are. A total may be the plain
mean of the parts or the mean of all that is behind them, which differ where a part lacks a grade.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.denominators import Bools, Floats, written
from sft_atlas.evidence.grades import Total, find_grades, find_totals
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.wording import counted

_MOST: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Totals beside the means of their parts; all of shape (row,), in released units."""

    total: Floats
    plain: Floats
    weighted: Floats
    """By the grades or items behind each part; as `plain` where these are not known."""
    error: Floats
    """Largest difference that rounding explains."""

    @property
    def is_plain(self) -> Bools:
        """Rows whose total is the plain mean, or that lack a total or a part."""
        return ~np.asarray(np.abs(self.total - self.plain) > self.error)

    @property
    def follows(self) -> Bools:
        """Rows whose total is either mean, or that lack a total or a part."""
        return self.is_plain | ~np.asarray(np.abs(self.total - self.weighted) > self.error)


def total_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find rows whose total is no mean of their parts, if that of most other rows is."""
    found = []
    for total in find_totals(source):
        compared = compare(source, total)
        if not compared.follows.all() and compared.follows.mean() > _MOST:
            found.append(_off_total(source, total, compared))
    return tuple(found)


def total_facts(source: SourceTable) -> tuple[str, ...]:
    """Say which totals are the mean of their parts."""
    facts = []
    for total in find_totals(source):
        compared = compare(source, total)
        num_plain, num_following = int(compared.is_plain.sum()), int(compared.follows.sum())
        if num_following > _MOST * len(source.values):
            more = (
                f", and the mean of all that is behind them in {num_following:,}"
                if num_following > num_plain
                else ""
            )
            facts.append(
                f"{total.column.name}: is the plain mean of its {len(total.parts)} parts in "
                f"{num_plain:,} of {len(source.values):,} rows{more}"
            )
    return tuple(facts)


def compare(source: SourceTable, total: Total) -> Comparison:
    """Form the means of a total's parts, from whole grades where their number is known."""
    name, names = total.column.name, [part.name for part in total.parts]
    behind = find_grades(source, total.parts).behind[names].to_numpy(dtype=np.float64)
    parts = source.values[names].to_numpy(dtype=np.float64)
    is_exact = behind > 0
    parts = np.where(is_exact, np.round(parts * behind) / np.maximum(behind, 1), parts)
    items = np.array([part.num_items or 0 for part in total.parts], dtype=np.float64)
    weights = np.broadcast_to(items if items.all() else np.ones(len(items)), parts.shape)
    weights = np.where(is_exact.all(axis=1, keepdims=True), behind, weights)
    steps = [
        written(part, source.texts[part.name], source.values[part.name]).steps
        for part in total.parts
    ]
    part_step = min((float(found.max()) for found in steps if found.size), default=0.0)
    own = written(total.column, source.texts[name], source.values[name]).steps.max(initial=0.0)
    error = (own + np.where(is_exact.all(axis=1), 0.0, part_step)) / 2
    return Comparison(
        total=source.values[name].to_numpy(dtype=np.float64),
        plain=np.asarray(parts.mean(axis=1)),
        weighted=np.asarray((parts * weights).sum(axis=1) / weights.sum(axis=1)),
        error=np.asarray(error * (1 + 1e-9) + 1e-9 / total.column.scale),
    )


def _off_total(source: SourceTable, total: Total, compared: Comparison) -> Defect:
    is_off = ~compared.follows
    lines = source.labels["line"].to_numpy()[is_off]
    largest = float(np.abs(compared.total - compared.weighted)[is_off].max())
    return Defect(
        kind="total differs from its parts",
        columns=(total.column.name,),
        rows=tuple(int(line) for line in lines),
        where=f"{total.column.name}: {counted(len(lines), 'row')}",
        evidence=(
            f"In {(~is_off).sum():,} rows the total is the mean of its {len(total.parts)} parts, "
            f"or of all that is behind them. Here it is off by up to {largest:.2g}, more than "
            f"rounding explains."
        ),
        effect="Total and parts of these rows were not formed from the same results.",
        treatment="note",
        what_is_done="Scores stay as released: the table does not tell which of them is right.",
    )
