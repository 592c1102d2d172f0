"""Outcomes as arrays, and how they split into levels and effects."""

import numpy as np
import pytest

from planted_grid import Labels, grid_tables
from sft_atlas.forecast.outcomes import outcomes
from sft_atlas.forecast.panel import hide, make_panel, nan_mean, own_skill, split


def test_values_stand_where_their_labels_say() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.6, (3, 4, 2, 2))
    base = np.random.default_rng(1).uniform(0.1, 0.3, (3, 2))
    panel = make_panel(outcomes(grid_tables(scores, base, Labels(methods=("full", "lora")))))
    assert panel.value * panel.scale == pytest.approx(scores.transpose(0, 3, 1, 2))
    assert panel.base * panel.scale == pytest.approx(base)
    gains = scores - base[:, None, :, None]
    assert panel.scale == pytest.approx([gains[:, :, b].std(ddof=1) for b in range(2)])


def test_levels_and_effects_of_an_additive_grid_are_found_with_holes() -> None:
    rng = np.random.default_rng(2)
    level, effect = rng.normal(size=(6, 3, 4)), rng.normal(size=(5, 4))
    effect -= effect.mean(axis=0)
    value = level[:, :, None] + effect
    value[rng.uniform(size=value.shape[:3]) < 0.15] = np.nan
    panel = make_panel(outcomes(grid_tables(np.ones((1, 1, 1)), np.zeros((1, 1)))))
    parts = split(panel.__class__(**{**vars(panel), "value": value}))
    there = np.isfinite(value)
    # Alternating means close in on the least-squares split: a thousandth is left after 12.
    assert parts.level == pytest.approx(level, abs=2e-2)
    assert parts.effect[there] == pytest.approx(
        np.broadcast_to(effect, value.shape)[there], abs=2e-2
    )


def test_what_is_hidden_is_gone_and_the_rest_is_not() -> None:
    panel = make_panel(outcomes(grid_tables(np.ones((3, 4, 2)) / 2, np.zeros((3, 2)))))
    hidden = hide(panel, models=[1], datasets=[0, 3])
    there = np.isfinite(hidden.value[:, 0, :, 0])
    assert there.tolist() == [[False, True, True, False], [False] * 4, [False, True, True, False]]
    assert np.isfinite(panel.value).all()


def test_a_constant_benchmark_has_a_unit() -> None:
    panel = make_panel(outcomes(grid_tables(np.full((3, 4, 2), 0.4), np.full((3, 2), 0.4))))
    assert panel.scale.tolist() == [1.0, 1.0]


def test_own_skill_needs_a_name() -> None:
    labels = Labels(data_groups=("math", "", "code"), skills=("math", ""))
    panel = make_panel(outcomes(grid_tables(np.ones((2, 3, 2)) / 2, np.zeros((2, 2)), labels)))
    assert own_skill(panel).tolist() == [[1, 0], [0, 0], [0, 0]]


def test_the_mean_of_nothing_is_nan_without_a_warning() -> None:
    assert nan_mean(np.array([[1.0, np.nan], [3.0, np.nan]]), axis=0).tolist()[0] == 2.0
    assert np.isnan(nan_mean(np.full((2, 2), np.nan), axis=0)).all()
