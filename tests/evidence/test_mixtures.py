"""A column of two quantities is found, and un-mixed where that can be done in one way only."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from planted_release import Shape, Test, release, with_column, written_over
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.mixtures import mixture_defects, unmixed
from sft_atlas.evidence.source import SourceTable

EXAMS = (
    Test(name="exam", form="groups", size=57, level=0.5),
    Test(name="exam-zh", form="groups", size=67, level=0.4),
    Test(name="exam-ja", form="groups", size=57, level=0.3),
    Test(name="other", form="groups", size=40, level=0.3),
    Test(name="sums", size=1319, level=0.3),
)

TUNED = range(6, 70)
"""The tuned rows of four of six models."""


def mixed(
    rows: range, seed: int = 0, parts: tuple[str, ...] = ("exam-zh", "exam-ja")
) -> tuple[SourceTable, SourceTable]:
    """Return a clean table, and it with other tests averaged into `exam` in some rows."""
    clean = release(np.random.default_rng(seed), Shape(), EXAMS)
    sizes = {test.name: test.size for test in EXAMS}
    names = ("exam", *parts)
    total = sum(sizes[name] for name in names)
    mean = sum(sizes[name] * clean.values[name] for name in names) / total
    return clean, written_over(clean, "exam", mean.iloc[list(rows)], decimals=None)


def only(source: SourceTable) -> Defect:
    (defect,) = mixture_defects(source)
    return defect


@pytest.mark.parametrize("seed", range(4))
def test_what_was_averaged_in_is_taken_out_again(seed: int) -> None:
    clean, source = mixed(TUNED, seed)
    defect = only(source)
    assert (defect.kind, defect.treatment, defect.columns) == (
        "mixed definitions",
        "unmix",
        ("exam",),
    )
    assert set(defect.rows) <= set(range(8, 72)) and len(defect.rows) >= 62
    restored = unmixed(source, defect)
    decided = source.labels["line"].isin(defect.rows) | ~source.labels["line"].isin(range(8, 72))
    pd.testing.assert_series_equal(restored[decided], clean.values["exam"][decided])
    assert defect.what_is_done == (
        "Each such value v is replaced by (181 v - 67 exam-zh - 57 exam-ja) / 57."
    )
    assert "181 = 57 + 67 + 57: taking exam-zh and exam-ja out leaves possible" in defect.evidence


def test_the_effect_names_models_whose_base_is_of_the_other_kind() -> None:
    _, source = mixed(range(6, 22))
    assert "The base row of m0 is of one kind and most of its tuned rows of the other" in (
        only(source).effect
    )


def test_an_unknown_second_quantity_is_left_out() -> None:
    clean, source = mixed(TUNED)
    source = written_over(
        source, "exam", clean.values["exam"].iloc[list(TUNED)] * 57 / 173 + 3, decimals=None
    )
    defect = only(source)
    assert defect.treatment == "exclude score"
    assert defect.what_is_done.startswith("These values are left out")


def test_two_possible_ways_are_none() -> None:
    _, source = mixed(TUNED)
    moves = np.random.default_rng(9).integers(-80, 80, len(source.values))
    near = (source.values["exam-ja"] + moves / 5700).clip(lower=0)
    twin = with_column(written_over(source, "other", near, decimals=None), "other", num_groups=57)
    defect = only(twin)
    assert defect.evidence.count("leaves possible scores in all rows") == 2
    assert defect.treatment == "exclude score"


def test_a_column_of_another_number_throughout_is_found() -> None:
    _, source = mixed(range(102), parts=("exam-zh", "exam-ja"))
    defect = only(source)
    assert defect.treatment == "unmix"
    assert "0 values can only be plain means over 57" in defect.evidence


def test_a_missing_part_leaves_the_value_out() -> None:
    _, source = mixed(TUNED)
    holed = written_over(source, "exam-ja", pd.Series([np.nan, np.nan], index=[20, 21]))
    restored = unmixed(holed, only(holed))
    assert restored[[20, 21]].isna().all() and restored.isna().sum() == 2


def test_a_column_of_one_quantity_is_none() -> None:
    clean, _ = mixed(range(0))
    assert mixture_defects(clean) == ()
    assert mixture_defects(with_column(clean, "exam", num_groups=None)) == ()


def test_shares_of_other_items_in_each_row_are_no_mixture() -> None:
    clean, _ = mixed(range(0))
    rng = np.random.default_rng(7)
    items = pd.Series(np.where(np.arange(102) % 2, 300.0, 700.0))
    shares = pd.Series(100 * rng.binomial(items.astype(int), 0.4) / items)
    source = written_over(clean, "exam", shares, decimals=None)
    source = with_column(source, "exam", num_groups=None, num_items=None)
    frame = pd.DataFrame(np.nan, index=clean.values.index, columns=clean.values.columns)
    assert mixture_defects(replace(source, num_items=frame.assign(exam=items))) == ()
