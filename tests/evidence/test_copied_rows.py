"""Rows that hold another row's scores are said to, and left out where that is clear."""

import numpy as np
import pandas as pd
import pytest

from planted_release import TESTS, Shape, copied, release, written_over
from sft_atlas.evidence.copied_rows import copy_defects, copy_facts
from sft_atlas.evidence.source import SourceTable

SHAPE = Shape(num_models=6, num_datasets=6)


def table(seed: int = 0) -> SourceTable:
    return release(np.random.default_rng(seed), SHAPE, TESTS)


@pytest.mark.parametrize("seed", range(3))
def test_a_copied_base_row_is_found_in_all_columns(seed: int) -> None:
    source = table(seed)
    (defect,) = copy_defects(copied(source, 0, 3))
    assert (defect.kind, defect.treatment) == ("copied row", "exclude gain")
    assert set(defect.columns) == set(source.texts.columns)
    assert defect.where == f"m0 (base) and m3 (base): {len(defect.columns)} columns"


def test_a_partly_copied_base_row_touches_those_columns_alone() -> None:
    source = table()
    names = ["choice-0shot", "code", "sums", "exam", "exam-ja"]
    (defect,) = copy_defects(copied(source, 1, 4, names))
    assert set(defect.columns) == set(names)
    assert "agree to the last digit in 5 of the 15 columns" in defect.evidence


def test_both_gains_are_left_out_where_the_original_is_not_clear() -> None:
    source = table()
    (defect,) = copy_defects(copied(source, 1, 4, ["sums", "exam", "exam-ja", "exam-zh"]))
    assert defect.rows == (3, 6)
    assert "this does not tell whose they are" in defect.evidence


def test_the_copy_is_told_where_tuned_rows_are_far_from_it() -> None:
    source = table()
    names = ["choice-0shot", "sums", "exam", "exam-ja", "exam-zh"]
    is_far = (source.labels["model"] == "m4") & (source.labels["method"] != "base")
    for name in names:
        top = source.values[name].max()
        low = source.values.loc[is_far.to_numpy(), name] / 20
        source = written_over(source, name, low, decimals=2)
        own = source.values.loc[(source.labels["model"] == "m1").to_numpy(), name]
        source = written_over(source, name, pd.Series([own.median()], index=[1]), decimals=None)
        assert top > 0
    (defect,) = [d for d in copy_defects(copied(source, 1, 4, names)) if d.rows]
    assert defect.rows == (6,)
    assert "of m1 in 0 columns, of m4 in 5: they are those of m1." in defect.evidence
    assert defect.what_is_done == "No gain is formed with m4 (base) in these columns."


def test_a_tuned_row_that_is_its_base_is_found() -> None:
    source = table()
    (defect,) = copy_defects(copied(source, 0, 10))
    assert (defect.treatment, defect.rows) == ("exclude score", (12,))
    assert "never scored" in defect.effect


def test_equal_tuned_rows_of_one_model_are_noted() -> None:
    source = table()
    (defect,) = copy_defects(copied(source, 7, 10))
    assert (defect.treatment, defect.rows) == ("note", (9, 12))


def test_tuned_rows_of_two_models_that_agree_are_left_out() -> None:
    source = table()
    (defect,) = copy_defects(copied(source, 7, 60))
    assert (defect.treatment, defect.rows) == ("exclude score", (9, 62))


def test_what_was_compared_is_said() -> None:
    assert copy_facts(table()) == (
        "no two rows of one model have the same scores throughout",
        "no tuned rows of different models have the same scores in half the columns",
    )


def test_adapters_that_were_never_applied_are_one_defect() -> None:
    source = table()
    is_lora = (source.labels["model"] == "m0") & (source.labels["method"] == "lora")
    rows = np.flatnonzero(is_lora)
    for row in rows:
        source = copied(source, 0, int(row))
    (defect,) = copy_defects(source)
    assert defect.rows == tuple(source.labels["line"].iloc[rows])
    assert defect.evidence.startswith("6 pairs of rows. Of one: The rows agree")
    assert defect.where.startswith("m0 (base) and m0 (d0, lora, epoch 10); ")
    assert "; ...: " in defect.where


def test_names_of_models_are_kept_as_they_are() -> None:
    source = copied(table(), 0, 3)
    names = source.labels["model"].replace({"m0": "{0} %s <script>", "m3": "=cmd|' /C'"})
    source.labels["model"] = names
    (defect,) = copy_defects(source)
    assert defect.where.startswith("{0} %s <script> (base) and =cmd|' /C' (base): ")
