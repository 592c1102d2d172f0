"""Recommendations on tables whose best data is known, and on those that can tell nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decide.planted import effects, planted
from planted_grid import Labels, grid_tables
from sft_atlas.decide.recommend import NO_BASE, NO_LIFT, Recommendation, recommend
from sft_atlas.errors import DataError
from sft_atlas.store.tables import Tables

EFFECT = effects(5, 3, seed=1)
WEIGHTS = {"b0": 2.0, "b1": 1.0}
BEST = f"d{int(np.argmax(EFFECT[:, :2] @ [2, 1]))}"


@pytest.fixture(scope="module")
def tables() -> Tables:
    return planted(EFFECT, noise=0.005, hidden=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def found(tables: Tables) -> Recommendation:
    return recommend(tables, model="m7", weights=WEIGHTS)


def test_the_planted_best_data_is_recommended(found: Recommendation) -> None:
    top = found.choices.iloc[0]
    assert top["data"] == BEST
    assert top["best_probability"] > 0.9
    assert top["regret"] < 0.003
    assert found.by_factor.iloc[0]["value"] == BEST
    assert found.weights == {"b0": pytest.approx(2 / 3), "b1": pytest.approx(1 / 3)}


def test_expected_gains_are_near_the_planted_ones_and_inside_their_intervals(
    found: Recommendation,
) -> None:
    expected = {f"d{n}": 0.1 + EFFECT[n, :2] @ np.array([2, 1]) / 3 for n in range(5)}
    for row in found.choices.to_dict("records"):
        assert row["gain"] == pytest.approx(expected[row["data"]], abs=0.02)
        assert row["low"] < row["gain"] < row["high"]
        assert row["low"] - 0.01 < expected[row["data"]] < row["high"] + 0.01


def test_the_mix_is_the_weighted_mean_of_its_benchmarks(found: Recommendation) -> None:
    parts = found.by_benchmark[found.by_benchmark["rank"] == 1]
    mixed = (parts["gain"] * parts["weight"]).sum()
    assert mixed == pytest.approx(found.choices["gain"].iloc[0], abs=1e-9)


def test_probabilities_add_to_one(found: Recommendation) -> None:
    assert found.choices["best_probability"].sum() == pytest.approx(1.0)
    by_factor = found.by_factor.groupby("factor")["best_probability"].sum()
    assert by_factor.to_numpy() == pytest.approx(np.ones(len(by_factor)))


def test_no_table_holds_an_infinity(found: Recommendation) -> None:
    for frame in (found.choices, found.by_benchmark, found.by_factor, found.next_runs):
        numbers = frame.select_dtypes("number").to_numpy(dtype=float)
        assert not np.isinf(numbers).any()


def test_the_budget_ranks_what_fits_first(tables: Tables) -> None:
    named = Tables(**{**vars(tables), **_renamed(tables, "m7", "base-7b")})
    free = recommend(named, model="base-7b", weights=WEIGHTS)
    hours = float(free.choices["gpu_hours"].iloc[0])
    assert hours > 0
    tight = recommend(named, model="base-7b", weights=WEIGHTS, budget_gpu_hours=hours / 100)
    assert not tight.choices["fits_budget"].any()
    assert any("no choice fits the budget" in note for note in tight.notes)
    wide = recommend(named, model="base-7b", weights=WEIGHTS, budget_gpu_hours=2 * hours)
    assert wide.choices["fits_budget"].iloc[0]


def _renamed(tables: Tables, old: str, new: str) -> dict[str, pd.DataFrame]:
    return {
        name: getattr(tables, name).replace({"model": {old: new}}) for name in ("cells", "scores")
    }


def test_a_model_without_a_size_has_no_cost(found: Recommendation) -> None:
    assert found.choices["gpu_hours"].isna().all()
    assert found.cost_basis.startswith("not known")


def test_a_model_that_the_evidence_lacks_is_new_and_has_effects_only(tables: Tables) -> None:
    found = recommend(tables, model="somebody", weights=WEIGHTS)
    assert found.is_new_model
    assert found.choices["data"].iloc[0] == BEST
    assert found.choices["gain"].isna().all()
    assert found.choices["effect"].notna().all()
    assert found.why_no_gain == NO_BASE
    assert found.notes[0].startswith("somebody is not in the evidence and is taken for a new model")


def test_the_case_of_a_name_does_not_make_a_model_new(tables: Tables) -> None:
    assert recommend(tables, model="M7", weights=WEIGHTS).model == "m7"


def test_weights_at_which_another_choice_is_ahead_are_named() -> None:
    effect = np.array([[0.1, 0.0], [0.0, 0.1], [0.0, 0.0], [-0.05, -0.05]])
    tables = planted(effect, noise=0.004, hidden=(0, 1, 2, 3))
    found = recommend(tables, model="m7", weights={"b0": 3, "b1": 1})
    assert found.choices["data"].iloc[0] == "d0"
    row = found.flips[found.flips["benchmark"] == "b1"].iloc[0]
    assert row["flips_at"] == pytest.approx(0.5, abs=0.05)
    assert row["becomes"].startswith("d1")


def test_what_would_be_learned_is_more_where_less_is_known() -> None:
    noisy = planted(EFFECT, noise=0.06, hidden=(0, 1, 2, 3, 4))
    sure = planted(EFFECT, noise=0.001, hidden=(0, 1, 2, 3, 4))
    many, none = (recommend(one, model="m7", weights=WEIGHTS) for one in (noisy, sure))
    assert len(many.next_runs) > len(none.next_runs) == 0
    assert none.next_stopped.startswith("the decision is stable")


def test_a_measured_run_has_the_error_of_its_items() -> None:
    tables = planted(EFFECT, noise=0.02, labels=Labels(num_items=400))
    found = recommend(tables, model="m7", weights={"b0": 1})
    width = found.choices["high"] - found.choices["low"]
    assert found.choices["is_observed"].all()
    # 1.645 standard errors of a share of 400 items near 1/2 on either side, or a little less.
    assert width.between(0.02, 2 * 1.645 * 0.025).all()


def test_scores_without_an_error_count_as_exact_and_the_answer_says_so() -> None:
    tables = planted(EFFECT, labels=Labels(num_items=None))
    found = recommend(tables, model="m7", weights={"b0": 1})
    assert found.notes == ("the error of scores on b0 is not known: they count as exact",)
    assert found.choices["is_observed"].all() and found.choices["low"].isna().all()


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 4, 2)], ids=["one model", "two models"])
def test_too_few_models_give_a_reason(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    tables = grid_tables(rng.uniform(0.2, 0.8, shape), np.full((shape[0], shape[2]), 0.3))
    found = recommend(tables, model="m0", weights={"b0": 1})
    assert found.choices.empty
    assert found.reason.startswith("the evidence has runs on one dataset each for")


def test_one_dataset_gives_a_reason() -> None:
    tables = planted(effects(1, 2))
    found = recommend(tables, model="m7", weights={"b0": 1})
    assert found.reason.startswith("fewer than two choices")


def test_a_benchmark_without_scores_gives_a_reason() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (6, 5, 2))
    scores[:, :, 1] = np.nan
    tables = grid_tables(scores, np.full((6, 2), 0.3))
    found = recommend(tables, model="m0", weights={"b0": 1, "b1": 1})
    assert found.choices.empty
    assert found.reason == "no run on one dataset has a score on b1"


def test_constant_scores_make_all_choices_alike() -> None:
    tables = grid_tables(np.full((6, 4, 2), 0.5), np.full((6, 2), 0.3))
    found = recommend(tables, model="new", weights={"b0": 1})
    assert found.choices["best_probability"].to_numpy() == pytest.approx([0.25] * 4, abs=0.05)


def test_a_benchmark_that_nobody_was_scored_on_is_refused(tables: Tables) -> None:
    with pytest.raises(DataError, match="benchmark 'x': not in the evidence"):
        recommend(tables, model="m7", weights={"x": 1})


def test_a_model_needs_a_name(tables: Tables) -> None:
    with pytest.raises(DataError, match="model: no name"):
        recommend(tables, model=" ", weights={"b0": 1})


def test_the_order_of_rows_changes_nothing(tables: Tables, found: Recommendation) -> None:
    mixed = {
        name: getattr(tables, name).sample(frac=1.0, random_state=1).reset_index(drop=True)
        for name in ("cells", "scores")
    }
    again = recommend(Tables(**{**vars(tables), **mixed}), model="m7", weights=WEIGHTS)
    pd.testing.assert_frame_equal(again.choices, found.choices)


def test_intervals_hold_for_new_models() -> None:
    covered = []
    for seed in range(6):
        effect = effects(5, 2, seed=seed, size=0.03)
        full = planted(effect, num_models=9, noise=0.03, seed=seed)
        own = full.scores[(full.scores["model"] == "m8") & (full.scores["method"] != "base")]
        truth = own.groupby("data")["gain"].mean()
        gone = full.scores.index.isin(own.index)
        tables = Tables(**{**vars(full), "scores": full.scores[~gone].reset_index(drop=True)})
        found = recommend(tables, model="m8", weights={"b0": 1, "b1": 1})
        rows = found.choices.set_index("data").loc[truth.index]
        covered += ((rows["low"] <= truth) & (truth <= rows["high"])).tolist()
    assert 0.82 <= np.mean(covered) <= 1.0


def _without_bases(tables: Tables, models: set[str]) -> Tables:
    scores = tables.scores.copy()
    is_one = scores["model"].isin(models)
    scores.loc[is_one, ["gain", "base_score"]] = np.nan
    return replace(tables, scores=scores[~(is_one & (scores["method"] == "base"))])


def test_a_base_score_without_any_lift_gives_no_gain(tables: Tables) -> None:
    found = recommend(
        _without_bases(tables, {f"m{m}" for m in range(7)}), model="m7", weights=WEIGHTS
    )
    assert found.why_no_gain == NO_LIFT
    assert found.choices[["gain", "low", "high"]].isna().all(axis=None)
    assert found.choices["data"].iloc[0] == BEST
    assert found.choices["effect"].iloc[0] > 0


def test_runs_that_are_known_are_not_favoured_where_no_base_tells_the_level() -> None:
    tables = planted(EFFECT, noise=0.03, hidden=(0, 2, 4), seed=2)
    found, bare = (
        recommend(one, model="m7", weights=WEIGHTS)
        for one in (tables, _without_bases(tables, {f"m{m}" for m in range(8)}))
    )
    rows, bare_rows = (one.choices.set_index("data").sort_index() for one in (found, bare))
    apart = rows["effect"] - bare_rows["effect"]
    assert apart.abs().max() < 0.01


@pytest.mark.parametrize("budget", [0.0, -3.0, float("nan"), float("inf")])
def test_a_budget_is_a_number_above_zero(tables: Tables, budget: float) -> None:
    with pytest.raises(DataError, match=r"GPU-hours; expected a number above 0\. Correct it\."):
        recommend(tables, model="m7", weights=WEIGHTS, budget_gpu_hours=budget)


def test_where_no_cost_is_known_no_budget_limits_the_next_runs() -> None:
    tables = planted(effects(5, 2, size=0.01), noise=0.02, hidden=(0, 1, 2, 3, 4))
    found = recommend(tables, model="m7", weights={"b0": 1}, budget_gpu_hours=0.01)
    assert len(found.next_runs) > 0
    assert "no cost is known: choices are ranked without the budget" in found.notes
