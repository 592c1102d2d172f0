"""Scores of all metrics stand on one scale, with the labels of their cell."""

import numpy as np
import pytest

from analyze.planted import World, make_tables
from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.cell_scores import cell_scores
from sft_atlas.evidence.tidy import tidy_tables


def test_ratings_are_fractions_of_their_range() -> None:
    rows = grid_rows(np.full((1, 2, 2), 0.5), np.full((1, 2), 0.4))
    is_rating = rows["benchmark"] == "b1"
    rows["metric"] = rows["metric"].mask(is_rating, "rating")
    rows["score"] = rows["score"].mask(is_rating, 5.5)
    rows["standard_error"] = rows["standard_error"].mask(is_rating, 0.18)
    found = cell_scores(tidy_tables(rows)).set_index(["benchmark", "data"])
    assert found.loc["b1", "value"].tolist() == [0.5, 0.5]
    assert found.loc["b1", "range"].tolist() == [9.0, 9.0]
    assert found.loc["b1", "value_se"].to_numpy() == pytest.approx(0.02)
    assert found.loc["b0", "value"].tolist() == [0.5, 0.5]


def test_base_models_and_missing_scores_have_no_row() -> None:
    scores = np.full((2, 3, 2), 0.5)
    scores[0, 0, 0] = np.nan
    labels = Labels(families=("a", "b"), languages=("en", "ja;en"))
    found = cell_scores(grid_tables(scores, np.full((2, 2), 0.4), labels))
    assert len(found) == 11
    assert "base" not in set(found["method"])
    assert set(zip(found["family"], found["languages"], strict=True)) == {
        ("a", "en"),
        ("b", "ja;en"),
    }


def test_a_study_without_a_score_has_the_same_columns() -> None:
    full = cell_scores(make_tables(World(num_models=1, num_datasets=2)))
    none = cell_scores(make_tables(World(num_models=1, num_datasets=2, num_failed=4)))
    assert none.empty and list(none.columns) == list(full.columns)
