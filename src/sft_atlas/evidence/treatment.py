"""What is left of a source's scores once its defects are treated?

In: a wide table and what is wrong with it. Out: one row per model and benchmark, as
`evidence.tidy` takes them, either as released or treated. A treated value is never silently other
than the released one: a score or gain that is left out carries the defect as its reason.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.errors import DataError
from sft_atlas.evidence.completion import implied_labels
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.defects import unmixed
from sft_atlas.evidence.source import LABELS, Column, SourceTable

NOT_IN_SOURCE: Final = "not in the source"

MAX_SCORES: Final = 4_000_000
"""Scores of one source: some 3 GB as tables."""


def source_rows(source: SourceTable, defects: Sequence[Defect] = ()) -> pd.DataFrame:
    """Return the long rows of `evidence.tidy.tidy_tables`, with these defects treated.

    Raises:
        DataError: if the source has more scores than `MAX_SCORES`.
    """
    num_scores = len(source.labels) * len(source.columns)
    if num_scores > MAX_SCORES:
        raise DataError(
            f"{source.origin}: has {len(source.labels):,} rows of {len(source.columns)} scores; "
            f"expected at most {MAX_SCORES:,} scores in all. Import it in parts, or with fewer "
            f"columns."
        )
    values = _unmixed(source, defects)
    frames = []
    for column in source.columns:
        score = values[column.name] * column.scale
        is_blank = source.values[column.name].isna()
        reason = pd.Series(NOT_IN_SOURCE, index=values.index, dtype=object).where(is_blank, None)
        base_reason = pd.Series(None, index=values.index, dtype=object)
        for defect in defects:
            if column.name not in defect.columns:
                continue
            is_row = _rows(source, defect) & ~is_blank
            text = f"{defect.kind}, found on import"
            if defect.treatment == "exclude score":
                reason = reason.mask(is_row, text)
                score = score.mask(is_row)
            elif defect.treatment == "exclude gain":
                base_reason = base_reason.mask(is_row, text)
            elif defect.treatment == "unmix":
                reason = reason.mask(is_row & score.isna(), text)
        frames.append(
            source.labels[list(LABELS)].assign(
                benchmark=column.benchmark,
                skill=column.skill,
                language=column.language,
                metric=column.metric,
                in_mean=column.in_mean,
                score=score,
                reason=reason,
                base_reason=base_reason,
                num_items=_num_items(source, column),
                standard_error=_standard_error(source, column, values),
            )
        )
    rows = pd.concat([*frames, *_implied_rows(source)], ignore_index=True)
    # Pages show methods in the order of the rows; a source's order says nothing.
    is_adapter = rows["method_kind"] == "lora"
    return pd.concat([rows[~is_adapter], rows[is_adapter]], ignore_index=True)


def _implied_rows(source: SourceTable) -> list[pd.DataFrame]:
    """Rows without a score for the runs that the source's own pattern implies."""
    labels = implied_labels(source.labels)
    if labels.empty:
        return []
    return [
        labels.assign(
            benchmark=column.benchmark,
            skill=column.skill,
            language=column.language,
            metric=column.metric,
            in_mean=column.in_mean,
            score=np.nan,
            reason=NOT_IN_SOURCE,
            base_reason=None,
            num_items=column.num_items,
            standard_error=np.nan,
        )
        for column in source.columns
    ]


def _rows(source: SourceTable, defect: Defect) -> "pd.Series[bool]":
    if not defect.rows:
        return pd.Series(True, index=source.labels.index)
    return source.labels["line"].isin(defect.rows)


def _unmixed(source: SourceTable, defects: Sequence[Defect]) -> pd.DataFrame:
    found = [defect for defect in defects if defect.treatment == "unmix"]
    return source.values.assign(**{defect.columns[0]: unmixed(source, defect) for defect in found})


def _num_items(source: SourceTable, column: Column) -> "pd.Series[float]":
    if source.num_items is None:
        return pd.Series(column.num_items, index=source.labels.index, dtype="float64")
    return source.num_items[column.name].fillna(
        np.nan if column.num_items is None else column.num_items
    )


def _standard_error(
    source: SourceTable, column: Column, values: pd.DataFrame
) -> "pd.Series[float]":
    """Error that the source gives, or that of a total of ratings from the spread of its parts.

    An error of 0 is none: it says that all items agree, not that the score is certain.
    """
    if source.errors is not None:
        given = source.errors[column.name] * column.scale
        return given.where(given > 0)
    parts = [part.name for part in source.columns if part.part_of == column.name]
    if column.metric != "rating" or len(parts) < 2:
        return pd.Series(np.nan, index=values.index)
    spread = values[parts].to_numpy(dtype=np.float64).std(axis=1, ddof=1)
    return pd.Series(spread / np.sqrt(len(parts)) * column.scale, index=values.index)
