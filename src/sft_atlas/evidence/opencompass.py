"""What does a summary table of OpenCompass say?

In: the `summary_*.csv` that its summarizer writes: dataset, version, metric, mode, then one column
per model, numbers of 0 to 100 and `-` for none. Out: one row per model, one column per dataset and
metric. The one decision: OpenCompass lists the metric that matters first, so the first row of a
dataset counts; and rows that a group's average is taken over do not count beside it.
"""

import re
from pathlib import Path
from typing import Final

import pandas as pd

from sft_atlas.errors import DataError
from sft_atlas.evidence.csv_table import TextTable, read_numbers, read_text_table
from sft_atlas.evidence.run_labels import RunLabels
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wide import LooseScore, digest_files, make_column, wide_table

_KEYS: Final = ("dataset", "version", "metric", "mode")
_AVERAGES: Final = ("naive_average", "weighted_average", "harmonic_mean")
_NO_SCORES: Final = ("standard_deviation", "sum")


def read_opencompass(path: Path, known: RunLabels) -> SourceTable:
    """Read a summary of any number of models.

    Raises:
        DataError: with file and line, if it is no summary, or holds what is no number.
        StudyError: if the labels do not fit the models.
    """
    table = read_text_table(path)
    header = list(map(str, table.fields))
    if tuple(header[: len(_KEYS)]) != _KEYS or len(header) == len(_KEYS):
        raise DataError(
            f"{path}:1: begins with {', '.join(header[:5])}; expected the columns "
            f"{', '.join(_KEYS)} and one for each model, as OpenCompass writes its summary."
        )
    models = [name for name in header[len(_KEYS) :] if known.is_kept(name)]
    texts, values = read_numbers(table, models)
    names = _row_names(table.fields)
    scales = [known.benchmark(str(name)).unit for name in table.fields["dataset"]]
    is_empty = values.isna().all(axis=1)
    is_rating = pd.Series([scale == "rating" for scale in scales])
    is_outside = (values.lt(0) | values.gt(100)).any(axis=1) & ~is_rating
    is_outside |= table.fields["metric"].isin(_NO_SCORES)
    scores, columns = [], []
    for row in range(len(values)):
        if is_empty[row] or is_outside[row]:
            continue
        columns.append(_column(table.fields, row, names, known))
        for model in models:
            if pd.notna(values[model].iloc[row]):
                scores.append(
                    LooseScore(
                        model=model,
                        column=names[row],
                        text=str(texts[model].iloc[row]),
                        value=float(values[model].iloc[row]),
                        where=table.where(row),
                    )
                )
    digested = [path, *([known.lines.path] if known.lines is not None else [])]
    return wide_table(
        scores,
        columns,
        known,
        origin=path,
        sha256=digest_files(digested, path.parent),
        notes=_notes(names, is_empty & ~_is_heading(table), is_outside & ~is_empty),
    )


def _is_heading(table: TextTable) -> "pd.Series[bool]":
    """Rows that only divide the table, such as `--------- Exam ---------`."""
    return table.fields["dataset"].str.startswith("--")


def _row_names(fields: pd.DataFrame) -> list[str]:
    """Name each row by its dataset, and where one has several rows all but the first in full."""
    names: list[str] = []
    for dataset, version, metric, mode in fields[list(_KEYS)].itertuples(index=False, name=None):
        full = (dataset, f"{dataset}:{metric}", f"{dataset}:{metric}:{mode}")
        candidates = (*full, f"{dataset}:{metric}:{mode}:{version}")
        free = [name for name in candidates if name not in names]
        names.append(free[0] if free else f"{candidates[-1]}:{len(names) + 1}")
    return names


def _column(fields: pd.DataFrame, row: int, names: list[str], known: RunLabels) -> Column:
    dataset, metric = str(fields["dataset"].iloc[row]), str(fields["metric"].iloc[row])
    return make_column(
        names[row],
        known.benchmark(dataset),
        unit=known.benchmark(dataset).unit or "percent",
        metric=metric,
        in_mean=names[row] == dataset and not _is_part(dataset, fields),
    )


def _is_part(dataset: str, fields: pd.DataFrame) -> bool:
    """Tell whether a group's average has this dataset in it, by its name: OpenCompass names the
    parts of `mmlu` as `lukaemon_mmlu_anatomy` or `mmlu-stem`.
    """
    groups = set(fields.loc[fields["metric"].isin(_AVERAGES), "dataset"]) - {dataset}
    return any(re.search(rf"(^|[-_]){re.escape(str(group))}([-_]|$)", dataset) for group in groups)


def _notes(
    names: list[str], is_empty: "pd.Series[bool]", is_outside: "pd.Series[bool]"
) -> list[str]:
    reasons = {"no model has a score": is_empty, "not of 0 to 100": is_outside}
    notes = []
    for reason, is_out in reasons.items():
        left_out = [name for name, is_it in zip(names, is_out, strict=True) if is_it]
        if left_out:
            notes.append(f"rows left out, {reason}: {', '.join(left_out)}")
    return notes
