"""The number of grades behind a rating is read from its decimals."""

import numpy as np
import pandas as pd

from planted_release import Shape, Test, release, with_column, written_over
from sft_atlas.evidence.grades import find_grades, find_totals, grade_defects, grade_facts
from sft_atlas.evidence.source import SourceTable

PARTS = [f"talk-{place}" for place in range(4)]


def table(size: int = 10, seed: int = 0) -> SourceTable:
    talk = Test(name="talk", form="grades", size=size, num_parts=4, level=0.4)
    return release(np.random.default_rng(seed), Shape(), (talk,))


def test_ratings_of_the_stated_number_are_no_defect() -> None:
    for size in (7, 20, 40):
        assert grade_defects(table(size)) == ()
        assert grade_facts(table(size)) == (f"talk: its 4 parts are means of {size} grades",)


def test_half_the_stated_grades_are_found() -> None:
    source = with_column(table(20), "talk", num_items=160)
    (defect,) = grade_defects(source)
    assert defect.kind == "stated number of items"
    assert defect.columns == ("talk", *PARTS)
    assert defect.evidence.startswith(
        "408 of 408 values of the parts (100 %) are means of 20 grades. Stated are 40 (160 over 4 "
        "parts)."
    )
    assert defect.effect.startswith("An interval from the stated number would be 1.4 times too")


def test_lost_grades_are_counted() -> None:
    source = with_column(table(10), "talk", num_items=80)
    nines = pd.Series([1 + 7 / 9, 3 + 1 / 9, 2 + 2 / 9], index=[10, 11, 12])
    eights = pd.Series([2 + 3 / 8], index=[30])
    source = written_over(source, "talk-1", nines)
    source = written_over(source, "talk-2", eights, decimals=2)
    (total,) = find_totals(source)
    grades = find_grades(source, total.parts)
    assert grades.usual == 10
    assert grades.behind["talk-1"].iloc[10:13].tolist() == [9, 9, 9]
    (defect,) = grade_defects(source)
    assert "404 of 408 values of the parts (99 %) are means of 10 grades; of the rest, 3 of 9 and "
    assert "; of the rest, 3 of 9 and 1 of 8. Stated are 20" in defect.evidence


def test_one_decimal_throughout_does_not_tell_the_number() -> None:
    source = table(10)
    for name in PARTS:
        source = written_over(source, name, source.values[name].round(1), decimals=1)
    source = with_column(source, "talk", num_items=160)
    (total,) = find_totals(source)
    assert source.texts[PARTS].map(lambda text: len(text.split(".")[1]) <= 1).all(axis=None)
    assert find_grades(source, total.parts).usual == 0
    assert grade_defects(source) == ()
