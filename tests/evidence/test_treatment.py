"""Defects are treated as they say, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from released_form import base_row, tuned_row, write_released
from sft_atlas.errors import DataError
from sft_atlas.evidence import treatment
from sft_atlas.evidence.defect import Defect, Treatment
from sft_atlas.evidence.massive_sft import read_massive_sft
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.treatment import NOT_IN_SOURCE, source_rows

PARTS = ("mtbench-total", "mtbench-math", "mtbench-stem")


def source(folder: Path) -> SourceTable:
    rows = [
        base_row("m", 40, 2.0, 1.0, 3.0),
        tuned_row("m", "lima", 50, 3.0, 2.0, 4.0),
        tuned_row("m", "math", "", 4.0, "", 4.0),
    ]
    return read_massive_sft(write_released(folder / "t.csv", ["gsm8k-0shot", *PARTS], rows))


def defect(what: Treatment, *columns: str, rows: tuple[int, ...] = ()) -> Defect:
    return Defect(
        kind="planted",
        columns=columns,
        rows=rows,
        where="",
        evidence="",
        effect="",
        treatment=what,
        what_is_done="",
    )


def column(rows: pd.DataFrame, benchmark: str, name: str) -> list[object]:
    found = rows.loc[rows["benchmark"] == benchmark, name]
    return [None if pd.isna(value) else value for value in found]


def test_released_scores_are_in_units_of_a_study(tmp_path: Path) -> None:
    rows = source_rows(source(tmp_path))
    assert column(rows, "gsm8k-0shot", "score") == [0.4, 0.5, None]
    assert column(rows, "gsm8k-0shot", "reason") == [None, None, NOT_IN_SOURCE]
    assert column(rows, "mtbench-total", "score") == [2.0, 3.0, 4.0]
    assert column(rows, "gsm8k-0shot", "num_items") == [1319, 1319, 1319]


def test_the_error_of_a_total_comes_from_the_spread_of_its_parts(tmp_path: Path) -> None:
    rows = source_rows(source(tmp_path))
    expected = np.std([1.0, 3.0], ddof=1) / np.sqrt(2)
    assert column(rows, "mtbench-total", "standard_error") == [expected, expected, None]
    assert column(rows, "mtbench-math", "standard_error") == [None, None, None]


def test_a_note_changes_nothing(tmp_path: Path) -> None:
    table = source(tmp_path)
    pd.testing.assert_frame_equal(
        source_rows(table, [defect("note", "gsm8k-0shot")]), source_rows(table)
    )


def test_a_score_is_left_out_with_its_reason(tmp_path: Path) -> None:
    rows = source_rows(source(tmp_path), [defect("exclude score", "gsm8k-0shot", rows=(3, 4))])
    assert column(rows, "gsm8k-0shot", "score") == [0.4, None, None]
    assert column(rows, "gsm8k-0shot", "reason") == [
        None,
        "planted, found on import",
        NOT_IN_SOURCE,
    ]
    assert column(rows, "mtbench-total", "score") == [2.0, 3.0, 4.0]


def test_without_rows_a_whole_column_is_touched(tmp_path: Path) -> None:
    rows = source_rows(source(tmp_path), [defect("exclude score", *PARTS)])
    for name in PARTS:
        assert column(rows, name, "score") == [None, None, None]


def test_a_gain_is_left_out_and_the_score_kept(tmp_path: Path) -> None:
    rows = source_rows(source(tmp_path), [defect("exclude gain", "gsm8k-0shot", rows=(2,))])
    assert column(rows, "gsm8k-0shot", "score") == [0.4, 0.5, None]
    assert column(rows, "gsm8k-0shot", "base_reason") == ["planted, found on import", None, None]


def test_unmixed_values_replace_the_released_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = source(tmp_path)

    def halved(found: SourceTable, _: Defect) -> "pd.Series[float]":
        return (found.values["gsm8k-0shot"] / 2).where(found.labels["line"] != 3)

    monkeypatch.setattr(treatment, "unmixed", halved)
    rows = source_rows(table, [defect("unmix", "gsm8k-0shot", rows=(2, 3))])
    assert column(rows, "gsm8k-0shot", "score") == [0.2, None, None]
    reasons = [None, "planted, found on import", NOT_IN_SOURCE]
    assert column(rows, "gsm8k-0shot", "reason") == reasons
    assert table.values["gsm8k-0shot"].tolist()[:2] == [40.0, 50.0]


def test_stated_errors_and_items_count_and_an_error_of_nothing_does_not(tmp_path: Path) -> None:
    table = source(tmp_path)
    errors = table.values * 0 + 2.0
    errors.loc[0, "gsm8k-0shot"] = 0.0
    items = table.values * 0 + 100
    items.loc[1, "gsm8k-0shot"] = np.nan
    rows = source_rows(replace(table, errors=errors, num_items=items))
    assert column(rows, "gsm8k-0shot", "standard_error") == [None, 0.02, None]
    assert column(rows, "gsm8k-0shot", "num_items") == [100, 1319, 1319]


def test_a_table_that_does_not_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(treatment, "MAX_SCORES", 10)
    with pytest.raises(DataError) as error:
        source_rows(source(tmp_path))
    assert str(error.value) == (
        f"{tmp_path / 't.csv'}: has 3 rows of 4 scores; expected at most 10 scores in all. Import "
        f"it in parts, or with fewer columns."
    )
