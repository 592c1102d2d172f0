"""What is believed of a model's choices before and after its own runs."""

import numpy as np
import pytest

from decide.planted import effects, planted
from sft_atlas.decide.beliefs import standing
from sft_atlas.decide.prior import Beliefs, beliefs, kin_mean, outlook, score_errors
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.store.tables import Tables

EFFECT = effects(6, 2, seed=4)
WEIGHTS = np.array([0.5, 0.5])


def _believed(tables: Tables, *, model: str = "m7", use_own: bool = True) -> Beliefs:
    panel = known_panel(tables, known_outcomes(tables))
    view = outlook(panel, panel.models.index(model), errors=score_errors(tables.scores))
    return beliefs(view, WEIGHTS, use_own=use_own)


def test_relatives_count_twice() -> None:
    values = np.array([[1.0], [4.0], [7.0], [100.0]])
    assert kin_mean(values, ["a", "a", "b", "a"], 3) == pytest.approx([(2 * 1 + 2 * 4 + 7) / 5])
    assert kin_mean(values, ["", "", "", ""], 3) == pytest.approx([4.0])


def test_a_hole_of_a_relative_is_filled_by_the_others() -> None:
    values = np.array([[np.nan, 1.0], [4.0, 3.0], [np.nan, np.nan]])
    assert kin_mean(values, ["a", "b", "a"], 2) == pytest.approx([4.0, 5 / 3])


def test_expected_differences_are_the_planted_ones() -> None:
    found = _believed(planted(EFFECT, noise=0.002), use_own=False)
    expected = EFFECT @ WEIGHTS
    assert found.mean - found.mean.mean() == pytest.approx(expected - expected.mean(), abs=0.005)


def test_the_models_own_scores_are_not_seen_before_they_are_revealed() -> None:
    rng = np.random.default_rng(0)
    tables = planted(EFFECT)
    is_own = (tables.scores["model"] == "m7") & (tables.scores["method"] != "base")
    other = tables.scores.copy()
    other.loc[is_own, "score"] = rng.uniform(0, 1, int(is_own.sum()))
    changed = Tables(**{**vars(tables), "scores": other})
    before, after = _believed(tables, use_own=False), _believed(changed, use_own=False)
    assert after.mean - after.mean.mean() == pytest.approx(before.mean - before.mean.mean())
    assert after.covariance == pytest.approx(before.covariance)


def test_a_run_with_many_items_stands_nearly_as_measured() -> None:
    tables = planted(EFFECT, noise=0.02, hidden=(1, 3))
    found = _believed(tables)
    own = tables.scores[(tables.scores["model"] == "m7") & (tables.scores["data"] == "d0")]
    measured = own.groupby("data")["score"].mean().iloc[0]
    place = int(np.flatnonzero(found.dataset == 0)[0])
    assert found.is_observed.tolist() == [True, False, True, False, True, True]
    assert found.mean[place] == pytest.approx(measured, abs=0.002)
    assert found.covariance[place, place] < 0.1 * found.covariance[1, 1]


def test_known_runs_narrow_what_is_believed_of_the_rest() -> None:
    without, with_some = (
        _believed(planted(EFFECT, hidden=tuple(range(6)))),
        _believed(planted(EFFECT, hidden=(1, 3))),
    )
    assert with_some.covariance[1, 1] < without.covariance[1, 1]


@pytest.mark.parametrize("scale", [0.5])
def test_the_order_of_rows_changes_nothing(scale: float) -> None:
    tables = planted(EFFECT, noise=0.02)
    mixed = tables.scores.sample(frac=1.0, random_state=3).reset_index(drop=True)
    changed = Tables(**{**vars(tables), "scores": mixed})
    before, after = _believed(tables), _believed(changed)
    assert after.mean == pytest.approx(before.mean)
    assert after.covariance == pytest.approx(before.covariance, abs=scale * 1e-9)


def test_probabilities_of_being_best_hold_as_often_as_they_say() -> None:
    claimed: list[float] = []
    held: list[float] = []
    for seed in range(6):
        tables = planted(effects(5, 2, seed=seed, size=0.03), num_models=7, noise=0.03, seed=seed)
        panel = known_panel(tables, known_outcomes(tables))
        for model in range(7):
            # Each model is taken for new while the others are known.
            found = beliefs(outlook(panel, model), WEIGHTS, use_own=False)
            truth = (panel.value[model, 0] * panel.scale) @ WEIGHTS
            chance = standing(found.mean, found.covariance, num_draws=1000).best_probability
            claimed += chance.tolist()
            held += (truth == truth.max()).astype(float).tolist()
    bold = np.array(claimed) > 0.5
    assert np.array(held)[bold].mean() == pytest.approx(np.array(claimed)[bold].mean(), abs=0.15)
    shy = np.array(claimed) < 0.2
    assert np.array(held)[shy].mean() == pytest.approx(np.array(claimed)[shy].mean(), abs=0.06)
