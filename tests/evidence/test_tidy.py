"""Published scores become a study's tables with the same columns, gains and reasons."""

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.gains import cell_gains, gain_map
from sft_atlas.evidence.tidy import NO_BASE, tidy_tables
from sft_atlas.store.score_index import COLUMNS
from sft_atlas.store.tables import LABELS


def world(num_models: int = 3, num_data: int = 4, num_benchmarks: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.2, 0.8, (num_models, num_data, num_benchmarks))
    return grid_rows(scores, rng.uniform(0.2, 0.8, (num_models, num_benchmarks)), Labels())


def test_tables_have_the_columns_and_types_of_a_store() -> None:
    tables = tidy_tables(world())
    measured = list(COLUMNS)[3:]
    facts = ["cell", "benchmark", "skill", "language", "metric", "in_mean"]
    assert list(tables.scores.columns) == [*facts, *measured, *LABELS, "state"]
    kinds = tables.scores.dtypes.astype(str)
    assert {name: kinds[name] for name in measured} == {name: COLUMNS[name] for name in measured}
    assert list(tables.cells.columns)[:-4] == ["cell", *LABELS]


def test_each_run_is_one_cell_and_each_epoch_another_of_one_trajectory() -> None:
    scores = np.full((2, 3, 1, 1, 4), 0.5)
    tables = grid_tables(scores, np.full((2, 1), 0.4), Labels(epochs=(1, 2, 3, 4)))
    tuned = tables.cells[tables.cells["method"] != "base"]
    assert (len(tuned), tuned["cell"].nunique(), tuned["trajectory"].nunique()) == (24, 24, 6)
    base = tables.cells[tables.cells["method"] == "base"]
    assert (len(base), base["trajectory"].notna().any()) == (2, False)


def test_a_cell_keeps_its_name_whatever_else_is_in_the_table() -> None:
    rows = world()
    some = rows[rows["model"] != "m1"]
    few = tidy_tables(some.iloc[::-1]).cells.set_index("cell")
    many = tidy_tables(rows).cells.set_index("cell")
    assert set(few.index) < set(many.index)
    assert many.loc[few.index, "model"].tolist() == few["model"].tolist()


def test_a_gain_is_the_difference_of_two_independent_scores() -> None:
    rows = world()
    found = tidy_tables(rows).scores
    base = found[found["method"] == "base"].set_index(["model", "benchmark"])
    tuned = found[found["method"] != "base"].set_index(["model", "benchmark"])
    same = base.loc[tuned.index]
    np.testing.assert_allclose(tuned["gain"], tuned["score"] - same["score"])
    squared = tuned["standard_error"] ** 2 + same["standard_error"] ** 2
    np.testing.assert_allclose(tuned["gain_se"] ** 2, squared)
    assert (base["gain"] == 0).all()
    assert (base["gain_se"] == 0).all()


def test_the_error_of_a_share_is_agresti_and_coulls() -> None:
    rows = world(1, 1, 1).assign(score=[0.25, 1.0], num_items=20)
    errors = tidy_tables(rows).scores["standard_error"]
    expected = [np.sqrt(p * (1 - p) / 24) for p in ((5 + 2) / 24, 22 / 24)]
    np.testing.assert_allclose(errors, expected)


def test_no_items_no_error_and_a_stated_error_counts() -> None:
    rows = world(1, 1, 1).assign(num_items=[None, 100], standard_error=[np.nan, 0.125])
    errors = tidy_tables(rows).scores["standard_error"]
    assert np.isnan(errors[0])
    assert errors[1] == 0.125


def test_a_rating_has_no_error_from_its_items_and_stays_a_grade() -> None:
    rows = world(1, 1, 1).assign(metric="rating", score=[1.1, 9.9], standard_error=[0.2, 0.2])
    found = tidy_tables(rows).scores
    assert found["score_low"].tolist() == [1.0, pytest.approx(9.9 - 1.96 * 0.2, abs=1e-4)]
    assert found["score_high"].tolist() == [pytest.approx(1.1 + 1.96 * 0.2, abs=1e-4), 10.0]
    unknown = tidy_tables(rows.assign(standard_error=np.nan)).scores
    assert unknown["standard_error"].isna().all()


def test_without_a_base_there_is_no_gain_and_a_reason() -> None:
    rows = world()
    rows = rows[~((rows["model"] == "m1") & (rows["method"] == "base"))]
    found = tidy_tables(rows).scores
    of_model = found[found["model"] == "m1"]
    assert of_model["gain"].isna().all()
    assert set(of_model["gain_reason"]) == {NO_BASE}
    assert found.loc[found["model"] != "m1", "gain_reason"].isna().all()


def test_a_wrong_base_score_voids_all_gains_of_its_model_and_a_wrong_score_its_own() -> None:
    rows = world()
    is_base = (rows["model"] == "m0") & (rows["method"] == "base") & (rows["benchmark"] == "b0")
    is_one = (rows["model"] == "m2") & (rows["data"] == "d1") & (rows["benchmark"] == "b1")
    rows["base_reason"] = np.where(is_base | is_one, "a copy", None)
    found = tidy_tables(rows).scores
    void = found["gain"].isna()
    assert void.tolist() == (found["gain_reason"] == "a copy").fillna(False).tolist()
    of_base = (found["model"] == "m0") & (found["benchmark"] == "b0")
    own = (found["model"] == "m2") & (found["data"] == "d1") & (found["benchmark"] == "b1")
    assert void.tolist() == (of_base | own).tolist()
    assert found["score"].notna().all()


def test_a_missing_score_says_why_and_has_no_second_reason() -> None:
    rows = world()
    rows.loc[rows["data"] == "d0", "score"] = np.nan
    rows["reason"] = np.where(rows["score"].isna(), "not in the source", None)
    tables = tidy_tables(rows)
    missing = tables.scores[tables.scores["score"].isna()]
    assert set(missing["reason"]) == {"not in the source"}
    assert missing["gain_reason"].isna().all()
    state = tables.cells.set_index("data")["state"]
    assert set(state["d0"]) == {"missing"}
    assert set(state["d1"]) == {"done"}


@pytest.mark.parametrize(
    ("num_models", "num_data", "num_benchmarks"),
    [(1, 4, 2), (3, 1, 2), (3, 4, 1), (1, 1, 1)],
    ids=["one-model", "one-dataset", "one-benchmark", "one-of-all"],
)
def test_the_smallest_grids_have_gains(num_models: int, num_data: int, num_benchmarks: int) -> None:
    tables = tidy_tables(world(num_models, num_data, num_benchmarks))
    gains = cell_gains(tables)
    assert len(gains) == num_models * num_data * num_benchmarks
    assert not gain_map(gains).empty


def test_constant_scores_give_gains_of_nothing_with_an_error() -> None:
    gains = cell_gains(grid_tables(np.full((3, 4, 2), 0.5), np.full((3, 2), 0.5)))
    assert (gains["gain"] == 0).all()
    assert (gains["gain_se"] > 0).all()


def test_a_benchmark_without_any_score_is_there_and_has_no_gain() -> None:
    scores = np.full((2, 2, 2), 0.5)
    scores[:, :, 1] = np.nan
    tables = grid_tables(scores, np.array([[0.4, np.nan], [0.4, np.nan]]))
    assert tables.scores["benchmark"].nunique() == 2
    assert cell_gains(tables)["benchmark"].unique().tolist() == ["b0"]
