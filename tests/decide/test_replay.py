"""Decisions replayed where the truth is known."""

import numpy as np
import pandas as pd
import pytest

from decide.planted import effects, planted
from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.decide.answers import decision_answered
from sft_atlas.decide.replay import COLUMNS, MIXED, OURS, PLAIN, RANDOM, SINGLE, Replay, replay
from sft_atlas.evidence.tidy import tidy_tables


@pytest.fixture(scope="module")
def found() -> Replay:
    return replay(planted(effects(8, 3, size=0.04), noise=0.04, num_models=8))


def _mean(found: Replay, policy: str, step: int, column: str = "regret") -> float:
    frame = found.frame
    rows = frame[(frame["policy"] == policy) & (frame["num_revealed"] == step)]
    return float(rows[column].mean())


def test_there_is_a_row_for_every_policy_step_and_kind_of_weights(found: Replay) -> None:
    assert list(found.frame.columns) == list(COLUMNS)
    assert len(found.frame) == 2 * 3 * 4
    assert set(found.frame["weights"]) == {SINGLE, MIXED}
    assert found.setting == "full, 1,000 samples, cosine, 10 epochs"


def test_regret_falls_as_runs_are_revealed_and_faster_than_in_random_order(found: Replay) -> None:
    regret = [_mean(found, OURS, step) for step in (0, 2, 3, 4)]
    assert regret[0] > regret[1] >= regret[3]
    assert _mean(found, OURS, 4) < _mean(found, RANDOM, 4)


def test_without_families_the_decision_is_the_plain_order(found: Replay) -> None:
    assert found.frame["difference"].where(found.frame["policy"] != RANDOM).abs().max() < 1e-12
    assert _mean(found, OURS, 0) == _mean(found, PLAIN, 0)


def test_the_claimed_probability_is_near_what_held(found: Replay) -> None:
    claimed, held = (_mean(found, OURS, 0, column) for column in ("claimed", "held"))
    assert claimed == pytest.approx(held, abs=0.15)


def test_relatives_that_agree_help() -> None:
    rng = np.random.default_rng(0)
    shared, own = (0.03 * rng.standard_normal((n, 8, 3)) for n in (1, 4))
    scores = 0.5 + shared + np.repeat(own, 2, axis=0) + 0.005 * rng.standard_normal((8, 8, 3))
    families = [f"f{m // 2}" for m in range(8)]
    tables = grid_tables(scores, np.full((8, 3), 0.4), Labels(families=families))
    found = replay(tables, steps=(0,))
    assert _mean(found, OURS, 0) < _mean(found, PLAIN, 0)
    assert found.frame.loc[found.frame["policy"] == OURS, "difference_high"].iloc[0] < 0.05


def test_a_world_without_noise_is_decided_at_once() -> None:
    found = replay(planted(effects(6, 2), noise=0.0), steps=(0,))
    assert _mean(found, OURS, 0) == pytest.approx(0.0, abs=1e-9)
    assert _mean(found, OURS, 0, "top3") == 1.0


def test_the_unit_and_level_of_scores_change_nothing() -> None:
    rng = np.random.default_rng(5)
    scores, base = rng.uniform(0.3, 0.6, (6, 6, 2)), np.full((6, 2), 0.3)
    plain = replay(grid_tables(scores, base), steps=(0, 2)).frame
    shifted = replay(grid_tables(0.2 + 0.5 * scores, 0.2 + 0.5 * base), steps=(0, 2)).frame
    columns = ["regret", "top3"]
    pd.testing.assert_frame_equal(plain[columns], shifted[columns])


def test_full_is_replayed_where_lora_has_as_many_runs() -> None:
    scores = np.random.default_rng(1).uniform(0.3, 0.6, (6, 6, 2, 2))
    labels = Labels(methods=("lora", "full"))
    tables = grid_tables(scores, np.full((6, 2), 0.3), labels)
    assert replay(tables, steps=(0,)).setting.startswith("full,")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 6, 2), "1 model and 6 datasets; it takes 4 models with 5 datasets each"),
        ((6, 1, 2), "all datasets score the same"),
        ((6, 3, 2), "6 models and 3 datasets; it takes 4 models with 5 datasets each"),
    ],
    ids=["one model", "one dataset", "three datasets"],
)
def test_small_grids_give_a_reason(shape: tuple[int, int, int], reason: str) -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, shape)
    tables = grid_tables(scores, np.full((shape[0], shape[2]), 0.3))
    assert replay(tables).reason == reason
    (finding,) = decision_answered(tables).findings
    assert finding.estimate is None
    assert finding.statement == f"Not estimable: {reason}."


def test_constant_scores_give_a_reason() -> None:
    assert replay(grid_tables(np.full((6, 6, 2), 0.5), np.full((6, 2), 0.3))).reason == (
        "all datasets score the same"
    )


def test_no_runs_give_a_reason() -> None:
    rows = grid_rows(np.full((2, 2, 1), 0.5), np.full((2, 1), 0.3))
    tables = tidy_tables(rows[rows["method"] == "base"])
    assert replay(tables).reason == "no run on a single dataset has a score"


def test_answers_say_what_is_given_away_and_compare_with_the_plain_order() -> None:
    found = decision_answered(planted(effects(6, 2), noise=0.03), num_resamples=200)
    assert len(found.findings) == 4
    assert "among the true best three" in found.findings[0].statement
    assert "At no step is it clearly worse than the plain order." in found.findings[2].statement
    for finding in found.findings:
        assert finding.interval is not None
        assert finding.interval[0] <= finding.interval[1]
        assert "nan" not in finding.statement
    assert list(found.tables) == ["replay"]


def test_the_same_seed_gives_the_same_replay() -> None:
    tables = planted(effects(5, 2), noise=0.03, num_models=4)
    first, second = (replay(tables, steps=(0, 2), seed=3).frame for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
