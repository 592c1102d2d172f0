"""A total that does not follow from its parts is found."""

import numpy as np
import pandas as pd

from planted_release import Shape, Test, release, written_over
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.totals import total_defects, total_facts


def table(size: int = 20) -> SourceTable:
    talk = Test(name="talk", form="grades", size=size, num_parts=4, level=0.4)
    return release(np.random.default_rng(0), Shape(), (talk,))


def test_a_plain_mean_passes() -> None:
    for size in (20, 30):
        assert total_defects(table(size)) == ()
        assert total_facts(table(size)) == (
            "talk: is the plain mean of its 4 parts in 102 of 102 rows",
        )


def test_a_mean_over_all_grades_passes_where_some_are_lost() -> None:
    source = written_over(table(), "talk-0", pd.Series([1 + 7 / 19], index=[20]))
    grades = source.values.iloc[20][["talk-1", "talk-2", "talk-3"]].sum() * 20
    source = written_over(source, "talk", pd.Series([(26 + grades) / 79], index=[20]))
    assert total_defects(source) == ()


def test_rows_that_do_not_follow_are_named() -> None:
    source = table()
    off = source.values["talk"].iloc[[5, 50]] + pd.Series([0.04, -0.3], index=[5, 50])
    (defect,) = total_defects(written_over(source, "talk", off))
    assert defect.kind == "total differs from its parts"
    assert (defect.rows, defect.where) == ((7, 52), "talk: 2 rows")
    assert "In 100 rows the total is the mean of its 4 parts" in defect.evidence
    assert "off by up to 0.3" in defect.evidence


def test_a_total_of_another_kind_is_no_defect() -> None:
    source = table()
    source = written_over(source, "talk", source.values["talk"] + 0.5)
    assert total_defects(source) == () == total_facts(source)


def test_rows_without_a_part_are_not_compared() -> None:
    source = written_over(table(), "talk-0", pd.Series([np.nan], index=[3]))
    assert total_defects(source) == ()
