"""One row per run, epoch and benchmark, on one scale."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.forecast.outcomes import OUTCOMES, outcomes, over_settings


def test_value_base_and_gain_are_fractions_of_the_range() -> None:
    rows = grid_rows(np.array([[[4.0, 0.5]]]), np.array([[2.2, 0.3]]))
    rows.loc[rows["benchmark"] == "b0", "metric"] = "rating"
    found = outcomes(tidy_tables(rows)).set_index("benchmark")
    assert found["value"].to_dict() == pytest.approx({"b0": 3 / 9, "b1": 0.5})
    assert found["base"].to_dict() == pytest.approx({"b0": 1.2 / 9, "b1": 0.3})
    assert found["gain"].to_dict() == pytest.approx({"b0": 1.8 / 9, "b1": 0.2})
    assert list(outcomes(tidy_tables(rows)).columns) == list(OUTCOMES)


def test_a_score_without_a_usable_base_has_a_value_and_no_gain() -> None:
    found = outcomes(grid_tables(np.array([[[0.5]], [[0.6]]]), np.array([[np.nan], [0.2]])))
    assert found["value"].tolist() == [0.5, 0.6]
    assert found["gain"].isna().tolist() == [True, False]
    assert found["base"].isna().tolist() == [True, False]


def test_seeds_are_averaged_and_kept_epochs_are_choices_of_their_own() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.6, (2, 3, 2, 1, 2))
    labels = Labels(epochs=(1, 3))
    first = grid_rows(scores, np.full((2, 2), 0.3), labels)
    second = grid_rows(scores + 0.1, np.full((2, 2), 0.3), labels)
    is_base = second["method"] == "base"
    tables = tidy_tables(pd.concat([first, second[~is_base].assign(seed=1)], ignore_index=True))
    every = outcomes(tables, only_final=False)
    final = outcomes(tables)
    assert set(every["epoch"]) == {1, 3}
    assert set(final["epoch"]) == {3}
    assert set(final["num_cells"]) == {2}
    assert final["value"].to_numpy() == pytest.approx((scores[..., 0, 1] + 0.05).ravel())


def test_over_settings_averages_a_dataset() -> None:
    scores = np.random.default_rng(1).uniform(0.2, 0.6, (2, 3, 2, 2))
    tables = grid_tables(scores, np.full((2, 2), 0.3), Labels(methods=("full", "lora")))
    found = over_settings(outcomes(tables))
    assert found["value"].to_numpy() == pytest.approx(scores.mean(axis=3).ravel())
    assert set(found["num_cells"]) == {2}
    assert len(set(found["method"])) == 1


def test_no_cells_make_no_rows() -> None:
    tables = grid_tables(np.full((1, 1, 1), 0.4), np.full((1, 1), 0.3))
    bare = dataclasses.replace(tables, cells=tables.cells[:0], scores=tables.scores[:0])
    assert outcomes(bare).empty
    assert list(outcomes(bare).columns) == list(OUTCOMES)
