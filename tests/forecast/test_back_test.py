"""Back-tests: honest in worlds without any relation, sharp where there is one."""

import numpy as np
import pandas as pd
import pytest

from forecast.planted_effects import Truth, scores, world
from planted_grid import grid_rows
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.forecast.back_test import (
    CHOSEN,
    COLUMNS,
    HOLES,
    NEW_DATA,
    NEW_MODEL,
    BackTest,
    new_data_reason,
)
from sft_atlas.forecast.candidates import BLIND, FOR_DATA, FOR_MODELS, OTHERS
from sft_atlas.forecast.forecast import back_test


def row(test: BackTest, scheme: str, candidate: str = CHOSEN) -> "pd.Series[float]":
    frame = test.frame
    return frame[(frame["scheme"] == scheme) & (frame["candidate"] == candidate)].iloc[0]


@pytest.fixture(scope="module")
def lasting() -> BackTest:
    """Effects that last over models and follow the skill that data was made for."""
    return back_test(world(Truth(has_groups=True, own=0.2, datasets=8, benchmarks=4, models=6)))


def test_effects_that_last_over_models_are_told(lasting: BackTest) -> None:
    assert list(lasting.frame.columns) == list(COLUMNS)
    assert row(lasting, NEW_MODEL)["pairwise_accuracy"] > 0.8
    assert row(lasting, NEW_MODEL)["regret"] < 0.3 * row(lasting, NEW_MODEL)["random_regret"]
    assert row(lasting, HOLES)["pairwise_accuracy"] > 0.8
    assert row(lasting, NEW_MODEL, BLIND)["pairwise_accuracy"] < 0.8


def test_every_candidate_has_a_row_in_every_scheme(lasting: BackTest) -> None:
    found = lasting.frame.groupby("scheme")["candidate"].agg(set).to_dict()
    assert found[NEW_MODEL] == found[HOLES] == {*FOR_MODELS, CHOSEN}
    assert found[NEW_DATA] == {*FOR_DATA, CHOSEN}
    picked = lasting.frame[lasting.frame["is_chosen"]].set_index("scheme")["candidate"]
    assert picked.to_dict() == lasting.chosen


def test_what_is_known_about_data_tells_of_a_new_dataset(lasting: BackTest) -> None:
    plain = row(lasting, NEW_DATA, "an average dataset")["pairwise_accuracy"]
    assert row(lasting, NEW_DATA)["pairwise_accuracy"] > plain + 0.1
    assert new_data_reason(lasting) == ""


def test_the_choice_is_made_without_the_group_it_is_used_for(lasting: BackTest) -> None:
    """The nested choice is never better than the best candidate chosen with hindsight."""
    for scheme in (NEW_MODEL, HOLES, NEW_DATA):
        rows = lasting.frame[lasting.frame["scheme"] == scheme].set_index("candidate")
        best = rows["pairwise_accuracy"].drop(CHOSEN).max()
        assert rows.loc[CHOSEN, "pairwise_accuracy"] <= best + 1e-12


def test_nothing_is_told_where_models_share_nothing() -> None:
    accuracy = []
    for seed in range(3):
        truth = Truth(data_benchmark=0.0, models=4, datasets=6, benchmarks=8, seed=seed)
        accuracy.append(row(back_test(world(truth)), NEW_MODEL)["pairwise_accuracy"])
    # 3 x 480 pairs, of which those of one model and benchmark go together.
    assert np.mean(accuracy) == pytest.approx(0.5, abs=0.04)


def test_intervals_hold_for_models_that_did_not_set_them() -> None:
    covered = []
    for seed in range(2):
        truth = Truth(models=8, datasets=4, benchmarks=3, model_data_benchmark=0.04, seed=seed)
        covered.append(row(back_test(world(truth)), NEW_MODEL)["coverage"])
    assert np.mean(covered) >= 0.88


def test_the_back_test_ignores_the_order_of_rows_and_the_names_of_models() -> None:
    truth = Truth(models=4, datasets=3, benchmarks=3)
    rows = grid_rows(*scores(truth))
    first = back_test(tidy_tables(rows), seed=3)
    shuffled = back_test(tidy_tables(rows.sample(frac=1, random_state=0)), seed=3)
    pd.testing.assert_frame_equal(first.frame, shuffled.frame)
    renamed = back_test(tidy_tables(rows.assign(model="x" + rows["model"])), seed=3)
    names = ["worst_group"]
    pd.testing.assert_frame_equal(
        first.frame.drop(columns=names), renamed.frame.drop(columns=names)
    )


def test_units_of_a_benchmark_change_nothing_but_its_unit() -> None:
    values, base = scores(Truth(models=4, datasets=3, benchmarks=3))
    first = back_test(tidy_tables(grid_rows(values, base)))
    factor = np.array([1.0, 0.5, 0.1])
    second = back_test(tidy_tables(grid_rows(values * factor, base * factor)))
    pd.testing.assert_frame_equal(first.frame, second.frame, rtol=1e-6)


def test_many_models_are_tested_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_atlas.forecast.back_test.MAX_TESTED", 4)
    test = back_test(world(Truth(models=6, datasets=3, benchmarks=2)))
    assert row(test, NEW_MODEL)["num_groups"] == 4


def test_missing_gains_leave_the_order_and_take_the_intervals() -> None:
    values, base = scores(Truth(models=5, datasets=5, benchmarks=3))
    test = back_test(tidy_tables(grid_rows(values, np.full_like(base, np.nan))))
    assert row(test, NEW_MODEL, OTHERS)["pairwise_accuracy"] > 0.7
    assert pd.isna(row(test, NEW_MODEL)["coverage"])
    assert test.margins[NEW_MODEL] == np.inf


@pytest.mark.parametrize(
    ("models", "datasets", "reason"),
    [
        (2, 4, "2 models and 4 datasets; a back-test takes 3 models and 2 datasets"),
        (5, 1, "5 models and 1 dataset; a back-test takes 3 models and 2 datasets"),
    ],
    ids=["two-models", "one-dataset"],
)
def test_too_few_models_or_datasets_give_a_reason(models: int, datasets: int, reason: str) -> None:
    test = back_test(world(Truth(models=models, datasets=datasets)))
    assert test.reasons[NEW_MODEL] == test.reasons[HOLES] == reason
    assert NEW_MODEL not in test.chosen


def test_data_of_which_nothing_is_known_is_not_told() -> None:
    test = back_test(world(Truth(models=3, datasets=5, benchmarks=2)))
    why = "nothing is known about the data: no group, no measured property"
    assert test.reasons[NEW_DATA] == new_data_reason(test) == why


@pytest.mark.slow
def test_intervals_of_90_percent_cover_90_percent_over_many_worlds() -> None:
    covered = []
    for seed in range(40):
        truth = Truth(
            models=10,
            datasets=6,
            benchmarks=5,
            model_data_benchmark=0.04,
            along_base=0.3,
            seed=seed,
        )
        covered.append(row(back_test(world(truth)), NEW_MODEL)["coverage"])
    assert 0.88 <= np.mean(covered) <= 0.95
