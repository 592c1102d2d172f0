"""Scores in another unit than stated are found."""

import numpy as np
import pandas as pd

from planted_release import TESTS, Shape, Test, release, with_column, written_over
from sft_atlas.evidence.scales import scale_defects
from sft_atlas.evidence.source import SourceTable


def table(*tests: Test) -> SourceTable:
    return release(np.random.default_rng(0), Shape(), (*TESTS, *tests))


def test_a_fraction_of_two_decimals_among_percents_is_coarse() -> None:
    source = table(Test(name="odd", form="fraction", size=817, level=0.08))
    source = written_over(source, "odd", source.values["odd"].round(2))
    (defect,) = scale_defects(source)
    assert (defect.kind, defect.columns, defect.treatment) == ("odd scale", ("odd",), "note")
    assert "one step is 1 point, or 8 of 817 items" in defect.evidence
    assert "steps of 0.01" in defect.evidence


def test_fractions_of_two_decimals_throughout_are_not_odd() -> None:
    tests = [Test(name=f"t{i}", form="fraction", size=800, level=0.3) for i in range(6)]
    source = release(np.random.default_rng(0), Shape(), tests)
    for test in tests:
        source = written_over(source, test.name, source.values[test.name].round(2))
    assert scale_defects(source) == ()


def test_a_few_shares_that_happen_to_be_short_are_not_coarse() -> None:
    source = table(Test(name="odd", form="fraction", size=300, level=0.01))
    short = pd.Series(np.arange(102) % 6 / 100)
    assert scale_defects(written_over(source, "odd", short)) == ()


def test_a_small_test_of_few_decimals_loses_nothing() -> None:
    source = table(Test(name="small", form="fraction", size=100, level=0.3))
    assert scale_defects(source) == ()


def test_fractions_read_as_percent_are_found() -> None:
    source = table(Test(name="odd", size=817, level=0.3))
    source = written_over(source, "odd", source.values["odd"] / 100, decimals=4)
    (defect,) = scale_defects(source)
    assert (defect.kind, defect.treatment) == ("odd scale", "exclude score")
    assert "are no percentage of 817 items." in defect.evidence


def test_a_hard_test_in_percent_is_not_taken_for_fractions() -> None:
    assert scale_defects(table(Test(name="hard2", size=817, level=0.003))) == ()


def test_scores_outside_of_their_unit_are_left_out() -> None:
    source = written_over(table(), "code", pd.Series([-1.0, 120.0], index=[4, 9]))
    (defect,) = scale_defects(source)
    assert (defect.kind, defect.treatment) == ("impossible score", "exclude score")
    assert (defect.rows, defect.where) == ((6, 11), "code: 2 values of 102")
    assert defect.evidence == (
        "Scores there can lie between 0 and 100; these lie between -1 and 120."
    )


def test_percents_read_as_fractions_and_grades_out_of_range_are_found() -> None:
    (defect,) = scale_defects(with_column(table(), "sums", scale=1.0))
    assert defect.kind == "impossible score" and defect.columns == ("sums",)
    (defect,) = scale_defects(written_over(table(), "talk-0", pd.Series([0.0], index=[9])))
    assert "between 1 and 10" in defect.evidence
