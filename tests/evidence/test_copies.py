"""Rows that agree beyond chance are found, and ties by chance are not."""

import time

import numpy as np
import pandas as pd
import pytest

from planted_release import TESTS, Shape, Test, copied, release, written_over
from sft_atlas.evidence import copies
from sft_atlas.evidence.copies import find_copies
from sft_atlas.evidence.source import SourceTable

SHAPE = Shape(num_models=6, num_datasets=6)


def table(seed: int = 0) -> SourceTable:
    return release(np.random.default_rng(seed), SHAPE, TESTS)


def test_small_tests_that_many_models_fail_are_no_copies() -> None:
    tests = [Test(name=f"t{size}", size=size, level=0.04) for size in (10, 12, 15, 20, 25, 30)]
    for seed in range(5):
        assert find_copies(release(np.random.default_rng(seed), SHAPE, tests)) == ()


def test_rows_at_the_end_of_every_scale_are_no_copies() -> None:
    source = table()
    for name in ("choice-0shot", "choice-5shot", "code", "hard", "sums", "wins"):
        source = written_over(source, name, pd.Series([0.0, 0.0], index=[0, 3]))
    assert find_copies(source) == ()


def test_large_tables_compare_base_rows_and_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_ROWS", 20)
    source = table()
    source = copied(source, 0, 3)
    source = copied(source, 7, 10)
    assert [copy.rows for copy in find_copies(source)] == [(0, 3), (7, 10)]


def test_a_table_of_equal_rows_is_no_set_of_copies_and_takes_no_time() -> None:
    source = release(np.random.default_rng(0), Shape(num_models=10, num_datasets=20), TESTS)
    for column in source.columns:
        same = pd.Series(column.scale * 0 + 2.5, index=source.labels.index)
        source = written_over(source, column.name, same)
    start = time.process_time()
    assert find_copies(source) == ()
    assert time.process_time() - start < 5


def test_what_a_quarter_of_all_rows_have_is_no_evidence() -> None:
    source = table()
    rows = pd.Series(41.7, index=range(0, len(source.values), 3))
    for name in ("choice-0shot", "choice-5shot", "sums", "wins", "code"):
        source = written_over(source, name, rows)
    assert find_copies(source) == ()
