"""Base models that fail one form of a test only are found."""

import numpy as np
import pandas as pd

from planted_release import TESTS, Shape, Test, release, written_over
from sft_atlas.evidence.prompt_forms import form_defects
from sft_atlas.evidence.source import SourceTable


def table() -> SourceTable:
    return release(np.random.default_rng(0), Shape(), TESTS)


def test_base_models_that_fail_with_examples_are_named() -> None:
    source = written_over(table(), "choice-5shot", pd.Series([0.0, 0.4, 1.2], index=[0, 1, 4]))
    (defect,) = form_defects(source)
    assert (defect.kind, defect.treatment) == ("format learning", "note")
    assert (defect.columns, defect.rows) == (("choice-5shot",), (2, 3, 6))
    assert defect.where == "choice-5shot: 3 base models of 6 (m0, m1 and m4)"
    assert "These score 0.0 to 1.2 % there" in defect.evidence


def test_a_test_in_one_form_is_not_compared() -> None:
    source = written_over(table(), "sums", pd.Series(0.0, index=range(6)))
    assert form_defects(source) == ()


def test_a_model_whose_tuned_rows_fail_too_does_not_learn_the_form() -> None:
    source = table()
    rows = source.labels.index[source.labels["model"] == "m1"]
    source = written_over(source, "choice-5shot", pd.Series(0.3, index=rows))
    assert form_defects(source) == ()


def test_both_forms_at_the_floor_are_none() -> None:
    tests = [
        Test(name="a_0shot", size=50, level=0.02),
        Test(name="a_4shot", size=50, level=0.05),
    ]
    assert form_defects(release(np.random.default_rng(0), Shape(), tests)) == ()
