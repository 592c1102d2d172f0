"""Do base models fail one form of a prompt only?

In: a wide table in which some test was given with several numbers of examples. Out: the columns in
which base models score next to nothing while they can do the same test in another form, and their
tuned rows can do this one. What training adds there is the form of an answer, not what the test is
named after.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pandas as pd

from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wording import counted, listed

_SHOTS = re.compile(r"[-_ ]*\d+[-_ ]*shots?$", re.IGNORECASE)
_MUCH_LESS: Final = 0.1
_CAN: Final = 0.1
_REGAINED: Final = 0.25
_MIN_TUNED: Final = 3
_ERRORS: Final = 4.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A base model that fails one form; scores are fractions of 1."""

    model: str
    line: int
    score: float
    other: float
    """Its score in the form in which it does best."""
    tuned: float
    """Median of its tuned rows in the form that it fails."""


def form_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find columns in which base models fail the form of the prompt."""
    found = []
    for column, others in _forms(source):
        failures = _failures(source, column, others)
        if failures:
            found.append(_defect(source, column, others, failures))
    return tuple(found)


def _forms(source: SourceTable) -> Iterator[tuple[Column, tuple[Column, ...]]]:
    """Yield each column with those of the same test in other forms: names that differ in shots."""
    families: dict[str, list[Column]] = {}
    for column in source.columns:
        if column.metric != "rating":
            families.setdefault(_SHOTS.sub("", column.name), []).append(column)
    for family in families.values():
        for column in family:
            others = tuple(other for other in family if other is not column)
            if others:
                yield column, others


def _failures(
    source: SourceTable, column: Column, others: tuple[Column, ...]
) -> tuple[Failure, ...]:
    """List base models that score a tenth of another form at most, and whose tuned rows regain a
    quarter of the difference.
    """
    labels = source.labels.reset_index(drop=True)
    scores = source.values.reset_index(drop=True)
    own = scores[column.name] * column.scale
    best = pd.concat([scores[other.name] * other.scale for other in others], axis=1).max(axis=1)
    is_base = labels["method"] == "base"
    medians = own[~is_base].groupby(labels["model"]).median()
    counts = own[~is_base].groupby(labels["model"]).count()
    error = (0.25 / column.num_items) ** 0.5 if column.num_items else 0.0
    failures = []
    for row in labels.index[is_base & own.notna() & best.notna()]:
        model = labels["model"].iloc[row]
        score, other = float(own.iloc[row]), float(best.iloc[row])
        if counts.get(model, 0) < _MIN_TUNED or other < max(_CAN, score + _ERRORS * error):
            continue
        tuned = float(medians[model])
        if score <= _MUCH_LESS * other and tuned >= score + _REGAINED * (other - score):
            line = int(labels["line"].iloc[row])
            failures.append(Failure(model=model, line=line, score=score, other=other, tuned=tuned))
    return tuple(failures)


def _defect(
    source: SourceTable,
    column: Column,
    others: tuple[Column, ...],
    failures: tuple[Failure, ...],
) -> Defect:
    num_base = int((source.labels["method"] == "base").sum())

    def span(numbers: list[float]) -> str:
        low, high = 100 * min(numbers), 100 * max(numbers)
        return f"{low:.1f} %" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f} %"

    return Defect(
        kind="format learning",
        columns=(column.name,),
        rows=tuple(failure.line for failure in failures),
        where=(
            f"{column.name}: {counted(len(failures), 'base model')} of {num_base} "
            f"({listed([failure.model for failure in failures])})"
        ),
        evidence=(
            f"These score {span([failure.score for failure in failures])} there, but "
            f"{span([failure.other for failure in failures])} in "
            f"{listed([other.name for other in others])}, the same test with other examples. "
            f"The median of their tuned rows is {span([failure.tuned for failure in failures])}."
        ),
        effect=(
            "The base models can do the test but not in this form. A gain here is mostly the form "
            "of the answer, and larger than any gain in what the test measures."
        ),
        treatment="note",
        what_is_done=(
            "Scores and gains stay as released. Compare training sets with each other here, and "
            "read no gain over the base as knowledge."
        ),
    )
