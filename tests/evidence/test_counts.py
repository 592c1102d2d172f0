"""A column that is no share of the stated items is found, and one that is passes."""

import numpy as np
import pandas as pd
import pytest

from planted_release import Shape, Test, release, with_column, written_over
from sft_atlas.evidence.counts import count_defects, count_facts, read_counts
from sft_atlas.evidence.denominators import written
from sft_atlas.evidence.source import SourceTable

ONE = (Test(name="test", size=500, level=0.4),)


def table(seed: int = 0, size: int = 700, level: float = 0.4) -> SourceTable:
    return release(
        np.random.default_rng(seed), Shape(), (Test(name="test", size=size, level=level),)
    )


def verdict(source: SourceTable) -> str:
    column = source.columns[0]
    numbers = written(column, source.texts["test"], source.values["test"])
    return read_counts(numbers, column.num_items or 0).verdict


def test_a_wrong_stated_number_is_found_with_the_right_one() -> None:
    (defect,) = count_defects(with_column(table(size=257), "test", num_items=500))
    assert defect.kind == "stated number of items"
    assert defect.evidence.startswith("Every value is k/257; ")
    assert "k/500, the stated number" in defect.evidence
    assert defect.effect == "An interval from the stated number of items is 1.4 times too narrow."
    assert (defect.treatment, defect.columns, defect.rows) == ("note", ("test",), ())


def test_items_that_count_twice_are_found() -> None:
    (defect,) = count_defects(with_column(table(size=80), "test", num_items=160))
    assert defect.evidence.startswith("Every value is k/80; 100 % are k/160, the stated number.")


@pytest.mark.parametrize("seed", range(3))
def test_missing_items_are_told_from_coincidence_by_numbers_that_cannot_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = release(rng, Shape(num_models=10, num_datasets=10), ONE)
    source = with_column(source, "test", num_items=805)
    kept = 805 - rng.integers(0, 8, len(source.values))
    shares = pd.Series(100 * rng.binomial(kept, 0.04 + 0.06 * rng.random(len(kept))) / kept)
    source = written_over(source, "test", shares)
    (defect,) = count_defects(source)
    assert defect.kind == "missing items"
    assert "k/805, as stated, where 8 % would be by chance." in defect.evidence
    assert "some items have no result" in defect.evidence
    fits = set(source.labels["line"][kept == 805])
    assert not fits & set(defect.rows)
    assert verdict(source) == "missing items"


def test_a_few_rows_of_other_items_are_named() -> None:
    source = table()
    source = written_over(source, "test", pd.Series([40.33, 41.11], index=[20, 30]))
    (defect,) = count_defects(source)
    assert defect.rows == (22, 32)
    assert defect.where == "test: 2 of 102 values"


def test_numbers_that_are_no_shares_are_no_defect() -> None:
    source = table()
    values = pd.Series(np.random.default_rng(5).uniform(0, 100, len(source.values)))
    source = written_over(source, "test", values)
    assert verdict(source) == "no shares"
    assert count_defects(source) == () == count_facts(source)


def test_what_fits_is_said_with_what_chance_would_do() -> None:
    assert count_facts(table()) == ("test: all 102 values are k/700, where by chance 7 % would be",)
    assert count_facts(table(size=10042)) == (
        "test: its values do not show whether they are k/10,042; 100 % of such numbers are",
    )


def test_a_handful_of_values_proves_nothing() -> None:
    source = release(np.random.default_rng(0), Shape(num_models=1, num_datasets=1), ONE)
    assert count_facts(source) == ()
    assert verdict(source) == "cannot tell"


def test_group_means_are_said_to_fit_their_groups() -> None:
    exam = Test(name="exam", form="groups", size=57)
    source = release(np.random.default_rng(0), Shape(), (exam,))
    assert count_facts(source) == (
        "exam: all 102 values are plain means over 57 scores of two decimals",
    )
