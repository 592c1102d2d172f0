"""Holes that fall on one arm are found, holes by chance are not."""

import numpy as np
import pandas as pd
import pytest

from planted_release import TESTS, Shape, release, written_over
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.holes import hole_defects
from sft_atlas.evidence.source import SourceTable


def table(seed: int = 0, holes: float = 0.0) -> SourceTable:
    return release(np.random.default_rng(seed), Shape(holes=holes), TESTS)


def blanked(source: SourceTable, name: str, rows: "pd.Series[bool]") -> SourceTable:
    return written_over(source, name, pd.Series(np.nan, index=rows.index[rows]))


def kinds(source: SourceTable) -> list[str]:
    return [defect.kind for defect in hole_defects(source)]


def arm(source: SourceTable, **labels: str) -> "pd.Series[bool]":
    return pd.concat([source.labels[name] == text for name, text in labels.items()], axis=1).all(
        axis=1
    )


def test_a_method_that_one_model_lacks_is_one_defect_of_all_its_columns() -> None:
    source = table()
    rows = arm(source, model="m2", method="lora")
    for name in ("code", "exam"):
        source = blanked(source, name, rows)
    (defect,) = hole_defects(source)
    assert (defect.kind, defect.treatment) == ("holes on one arm", "note")
    assert defect.columns == ("code", "exam")
    assert defect.rows == tuple(source.labels["line"][rows])
    assert defect.where == "m2 · lora: 2 columns (code and exam)"
    assert defect.evidence.startswith(
        "8 of the 8 rows of this model and method have no score there, and 0 of the 94 others."
    )
    assert defect.evidence.endswith("Of the 8 rows of m2 with another method 8 have one.")


def test_a_whole_method_and_a_dataset_are_arms_too() -> None:
    source = table()
    (defect,) = hole_defects(blanked(source, "code", arm(source, method="lora")))
    assert defect.where == "lora: 1 column (code)"
    (defect,) = hole_defects(blanked(source, "code", arm(source, data="d3")))
    assert defect.where == "d3: 1 column (code)"


def test_two_arms_are_two_defects() -> None:
    source = table()
    rows = arm(source, model="m2", method="lora") | arm(source, model="m4", method="full")
    found = hole_defects(blanked(source, "code", rows))
    assert sorted(defect.where for defect in found) == [
        "m2 · lora: 1 column (code)",
        "m4 · full: 1 column (code)",
    ]


def test_an_arm_is_found_among_ordinary_holes() -> None:
    source = table(holes=0.03)
    source = blanked(source, "code", arm(source, model="m2", method="lora"))
    (defect,) = hole_defects(source)
    assert defect.where == "m2 · lora: 1 column (code)"


@pytest.mark.parametrize("holes", [0.01, 0.1, 0.4])
def test_holes_at_random_are_none(holes: float) -> None:
    assert all(hole_defects(table(seed, holes)) == () for seed in range(4))


def test_a_nearly_empty_column_is_a_stub_and_no_arm() -> None:
    source = table()
    source = written_over(source, "code", pd.Series(0.0, index=range(10, 16)))
    rows = ~source.labels.index.isin(range(10, 16))
    (defect,) = hole_defects(blanked(source, "code", pd.Series(rows)))
    assert (defect.kind, defect.treatment, defect.rows) == ("stub column", "exclude score", ())
    assert defect.evidence == "Of 102 rows 6 have a score; 6 of these are 0."


def test_an_empty_column_is_a_stub() -> None:
    source = table()
    (defect,) = hole_defects(blanked(source, "code", pd.Series(True, index=source.labels.index)))
    assert defect.evidence == "Of 102 rows 0 have a score."


def test_a_constant_column_is_left_out_but_not_one_at_its_floor() -> None:
    source = table()
    same = pd.Series(12.5, index=source.labels.index)
    (defect,) = hole_defects(written_over(source, "code", same))
    assert (defect.kind, defect.treatment) == ("constant column", "exclude score")
    assert hole_defects(written_over(source, "code", 0 * same)) == ()


def test_a_row_of_one_number_is_noted() -> None:
    def planted(value: float) -> Defect:
        source = table()
        for column in source.columns:
            low = 1.0 if column.metric == "rating" else 0.0
            score = pd.Series([low + value / column.scale], index=[40])
            source = written_over(source, column.name, score)
        (defect,) = hole_defects(source)
        return defect

    assert (planted(0.0).kind, planted(0.0).rows) == ("uniform row", (42,))
    assert planted(0.25).where == "1 row: m2 (d1, full)"
