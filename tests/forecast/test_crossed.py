"""Crossed random effects: against the textbook formula, and what they are for."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from forecast.planted_effects import Truth, world
from sft_atlas.forecast import crossed
from sft_atlas.forecast.crossed import crossed_effects
from sft_atlas.forecast.outcomes import outcomes
from sft_atlas.forecast.panel import Panel, hide, make_panel, nan_mean, split


def panel_of(truth: Truth) -> Panel:
    return make_panel(outcomes(world(truth)))


def test_the_forecast_is_the_conditional_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditioning all rows of a dataset at once, by scikit-learn's Gaussian process."""
    weights = np.array([0.2, 0.3, 0.1, 0.2, 0.05, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(crossed, "_fit", lambda kernels, values: weights)
    panel = hide(panel_of(Truth(models=5, datasets=3, benchmarks=3)), models=[2])
    effects = split(panel)
    found = crossed_effects(panel, effects, [2])
    rows = np.arange(15)
    target = np.arange(6, 9)
    known = np.setdiff1d(rows, target)
    kernels = crossed._kernels(panel, np.array([2]), rows)
    covariance = np.tensordot(weights, kernels, axes=1)
    process = GaussianProcessRegressor(
        kernel=_Table(covariance), alpha=crossed.NUGGET, optimizer=None
    )
    values = effects.pooled.transpose(0, 2, 1).reshape(15, 3)
    process.fit(known[:, None], values[known])
    mean, left = process.predict(target[:, None], return_cov=True)
    assert found.mean[0] == pytest.approx(mean.T, abs=1e-6)
    for dataset in range(3):
        assert found.covariance[0, dataset] == pytest.approx(left[..., dataset], abs=1e-6)
    multivariate_normal(mean=np.zeros(3), cov=found.covariance[0, 0])


def test_variances_of_simulated_effects_are_found() -> None:
    parts = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        models, datasets, tests = 12, 30, 6
        effect = 0.6 * rng.standard_normal((datasets, 1)) + 0.5 * rng.standard_normal(
            (datasets, tests)
        )
        values = effect + 0.4 * rng.standard_normal((models, datasets, tests))
        table = values.transpose(0, 2, 1).reshape(-1, datasets)
        test = np.arange(models * tests) % tests
        same = (test[:, None] == test) * 1.0
        alone = np.eye(models * tests)
        parts.append(crossed._fit(np.stack([np.ones_like(same), same, alone]), table))
    assert np.mean(parts, axis=0) == pytest.approx([0.36, 0.25, 0.16], rel=0.25)


def test_effects_that_follow_the_base_score_are_foretold_better_than_by_the_mean() -> None:
    missed = {"crossed": 0.0, "mean": 0.0}
    for seed in range(2):
        panel = panel_of(Truth(models=10, along_base=1.0, model_data_benchmark=0.01, seed=seed))
        for model in range(0, 10, 2):
            hidden = hide(panel, models=[model])
            effects = split(hidden)
            truth = split(panel).pooled[model]
            guess = {
                "crossed": crossed_effects(hidden, effects, [model]).mean[0],
                "mean": nan_mean(effects.pooled, axis=0),
            }
            for name, effect in guess.items():
                missed[name] += float(((truth - effect) ** 2).sum())
    assert missed["crossed"] < 0.5 * missed["mean"]


def test_without_any_run_the_forecast_is_nothing_with_a_variance() -> None:
    panel = hide(panel_of(Truth(models=3)), models=[0, 1, 2])
    found = crossed_effects(panel, split(panel), [1])
    assert not found.mean.any()
    assert (found.covariance.diagonal(axis1=2, axis2=3) == 1).all()


def test_models_without_base_scores_are_forecast_too() -> None:
    panel = panel_of(Truth(models=5))
    base = panel.base.copy()
    base[[0, 3]] = np.nan
    bare = hide(Panel(**{**vars(panel), "base": base}), models=[0])
    found = crossed_effects(bare, split(bare), [0])
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.covariance).all()


class _Table(Kernel):
    """A kernel that is looked up: scikit-learn asks for it by row number."""

    def __init__(self, covariance: np.ndarray) -> None:
        self.covariance = covariance

    def __call__(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        left = rows[:, 0].astype(int)
        right = left if columns is None else columns[:, 0].astype(int)
        return self.covariance[np.ix_(left, right)]

    def diag(self, rows: np.ndarray) -> np.ndarray:
        return np.diag(self(rows))

    def is_stationary(self) -> bool:
        return False
