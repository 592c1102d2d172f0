"""No candidate may see what it forecasts, and each finds what it is made for."""

import numpy as np
import pytest

from forecast.planted_effects import Truth, world
from sft_atlas.forecast.candidates import (
    AVERAGE_DATA,
    BLIND,
    CROSSED,
    FOR_DATA,
    FOR_MODELS,
    LOW_RANK,
    OTHERS,
    RIDGE,
    SAME_SKILL,
    TREES,
    effects_of_data,
)
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.forecast.panel import Panel, hide, nan_mean, split
from sft_atlas.forecast.told import tell_models
from sft_atlas.statistics.clusters import Floats


def panel_of(truth: Truth) -> Panel:
    tables = world(truth)
    return known_panel(tables, known_outcomes(tables))


def with_value(panel: Panel, value: Floats) -> Panel:
    return Panel(**{**vars(panel), "value": value})


def test_every_candidate_is_blind_to_hidden_models() -> None:
    panel = panel_of(Truth(models=6))
    other = panel.value.copy()
    other[[1, 4]] = np.random.default_rng(0).normal(size=other[[1, 4]].shape)
    first, second = (tell_models(p, [1, 4]) for p in (panel, with_value(panel, other)))
    assert set(first.effects) == set(FOR_MODELS)
    for name, effects in first.effects.items():
        assert np.isfinite(effects).all(), name
        assert (effects == second.effects[name]).all(), name
    assert (first.crossed.covariance == second.crossed.covariance).all()
    assert np.array_equal(first.levels.lift, second.levels.lift)


def test_every_candidate_is_blind_to_hidden_datasets() -> None:
    panel = panel_of(Truth(has_groups=True, datasets=8, own=0.1))
    other = panel.value.copy()
    other[:, :, [2]] = np.random.default_rng(0).normal(size=other[:, :, [2]].shape)
    found = []
    for version in (panel, with_value(panel, other)):
        hidden = hide(version, datasets=[2])
        found.append(effects_of_data(hidden, split(hidden), [2]))
    assert set(found[0]) == set(FOR_DATA)
    for name, effects in found[0].items():
        assert np.isfinite(effects).all(), name
        assert (effects == found[1][name]).all(), name


def test_the_plain_candidates_are_means() -> None:
    panel = panel_of(Truth(models=5))
    told = tell_models(panel, [3])
    effect = split(hide(panel, models=[3])).effect
    others = nan_mean(effect, axis=0)
    assert told.effects[OTHERS][0] == pytest.approx(others)
    blind = np.repeat(others.mean(axis=2, keepdims=True), others.shape[2], axis=2)
    assert told.effects[BLIND][0] == pytest.approx(blind)


@pytest.mark.parametrize("name", [OTHERS, CROSSED, RIDGE, TREES, LOW_RANK])
def test_effects_that_all_models_share_are_foretold(name: str) -> None:
    panel = panel_of(Truth(models=10, datasets=8, model_data_benchmark=0.01))
    truth = split(panel).pooled[0]
    guess = tell_models(panel, [0]).effects[name][0, 0]
    assert np.corrcoef(truth.ravel(), guess.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", [RIDGE, TREES])
def test_data_of_a_skill_is_foretold_to_help_it(name: str) -> None:
    panel = panel_of(
        Truth(has_groups=True, own=0.2, data_benchmark=0.02, models=8, datasets=10, benchmarks=5)
    )
    hidden = hide(panel, datasets=[3])
    found = effects_of_data(hidden, split(hidden), [3])
    mean = found[name].mean(axis=(0, 1, 2))
    assert mean.argmax() == 3
    assert mean[3] > 2 * abs(np.delete(mean, 3)).max()
    assert not found[AVERAGE_DATA].any()


def test_a_dataset_is_foretold_by_the_others_of_its_group() -> None:
    panel = panel_of(Truth(has_groups=True, own=0.2, data_benchmark=0.0, datasets=10))
    hidden = hide(panel, datasets=[1])
    effects = split(hidden)
    found = effects_of_data(hidden, effects, [1])[SAME_SKILL][0, 0, 0]
    # Dataset 6 is the only other one of the group: 1 / (1 + 2) of its effect.
    assert found == pytest.approx(nan_mean(effects.pooled, axis=0)[6] / 3)


def test_low_rank_places_a_model_by_its_base_scores() -> None:
    rng = np.random.default_rng(3)
    trait = rng.normal(size=8)
    panel = panel_of(Truth(models=8, datasets=6, benchmarks=5))
    pattern, base = rng.normal(size=(6, 5)), rng.normal(size=5)
    pattern -= pattern.mean(axis=0)
    value = trait[:, None, None, None] * pattern + 0.0
    planted = Panel(**{**vars(panel), "value": value, "base": np.outer(trait, base)})
    guess = tell_models(planted, [2]).effects[LOW_RANK][0, 0]
    assert np.corrcoef(guess.ravel(), (trait[2] * pattern).ravel())[0, 1] > 0.95
