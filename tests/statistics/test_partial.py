"""A partial effect is that of a regression with all others in it, and its errors hold clusters."""

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.outliers_influence import variance_inflation_factor

from sft_atlas.statistics.clusters import two_way_weights
from sft_atlas.statistics.partial import Design, _bootstrap, partial_effects

SIZE = (4, 8, 3)


def design(
    seed: int = 0,
    *,
    effects: tuple[float, ...] = (0.5, 0.0, -0.3),
    shared: float = 0.7,
    size: tuple[int, int, int] = SIZE,
    missing: float = 0.0,
) -> Design:
    """Properties of datasets that share a part, and scores whose errors share datasets."""
    rng = np.random.default_rng(seed)
    models, datasets, benchmarks = (code.ravel() for code in np.indices(size))
    common = rng.normal(size=(1, size[1], 1))
    x = np.stack(
        [
            (shared * common + rng.normal(size=(1, size[1], 1)) + 0.1 * rng.normal(size=size))
            for _ in effects
        ],
        axis=-1,
    ).reshape(-1, len(effects))
    taste = rng.normal(size=(1, size[1], 1)) + rng.normal(size=(size[0], 1, size[2]))
    y = x @ np.array(effects) + (taste + rng.normal(size=size)).ravel()
    kept = rng.uniform(size=y.size) >= missing
    return Design(y[kept], x[kept], models[kept], datasets[kept], benchmarks[kept])


def centred(data: Design, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Residuals of a regression on a dummy per model and benchmark."""
    dummies = (data.models * 100 + data.benchmarks)[:, None] == np.unique(
        data.models * 100 + data.benchmarks
    )
    root = np.sqrt(np.ones(len(values)) if weights is None else weights)[:, None]
    values = values.reshape(len(values), -1)
    fit = np.linalg.lstsq(root * dummies, root * values, rcond=None)[0]
    return (values - dummies @ fit).squeeze()


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_effects_are_those_of_least_squares_with_fixed_effects(missing: float) -> None:
    data = design(missing=missing)
    found = partial_effects(data, num_resamples=20, num_permutations=19)
    x, y = centred(data, data.x), centred(data, data.y)
    spread = np.sqrt((x**2).mean(axis=0))
    fit = sm.OLS(y, x).fit()
    assert [item.effect for item in found] == pytest.approx(fit.params * spread)
    assert [item.spread for item in found] == pytest.approx(spread)
    assert found[0].r_squared == pytest.approx(fit.rsquared)
    expected = [variance_inflation_factor(x, j) for j in range(3)]
    assert [item.vif for item in found] == pytest.approx(expected)
    # t / sqrt(t^2 + degrees of freedom): Greene, Econometric Analysis, section 3.4.
    partial = fit.tvalues / np.sqrt(fit.tvalues**2 + fit.df_resid)
    assert [item.partial_correlation for item in found] == pytest.approx(partial)


def test_resamples_are_regressions_with_weighted_rows() -> None:
    data = design(missing=0.1)
    draws = _bootstrap(data, data.y, data.x, num_resamples=12, seed=4)
    weights = two_way_weights(
        *(code.ravel() for code in np.indices(SIZE[:2])), num_resamples=12, seed=4
    ).reshape(12, *SIZE[:2])
    for draw, weight in zip(draws, weights[:, data.models, data.datasets], strict=True):
        used = weight > 0
        part = Design(*(column[used] for column in data))
        x, y = centred(part, part.x, weight[used]), centred(part, part.y, weight[used])
        expected = sm.WLS(y, x, weights=weight[used]).fit().params
        if np.isfinite(draw).all():
            assert draw == pytest.approx(expected, abs=1e-8)
    assert np.isfinite(draws).all(axis=1).sum() >= 6


def test_a_property_that_stands_in_for_another_is_found_out() -> None:
    # x2 shares much with x1, which alone acts. Marginally it is significant far too often.
    alone, beside, trials = 0, 0, 120
    for seed in range(trials):
        data = design(seed, effects=(1.0, 0.0), shared=2.0, size=(4, 12, 2))
        kinds = {"num_resamples": 2, "num_permutations": 99}
        both = partial_effects(data, **kinds)
        single = partial_effects(data._replace(x=data.x[:, 1:]), **kinds)
        beside += both[1].p_value <= 0.05
        alone += single[0].p_value <= 0.05
    assert beside / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert alone / trials > 0.5


def test_a_planted_effect_is_found() -> None:
    found = [
        partial_effects(
            design(seed, effects=(2.0, 0.0), size=(5, 12, 2)),
            num_resamples=200,
            num_permutations=199,
        )[0]
        for seed in range(20)
    ]
    assert np.mean([item.p_value <= 0.05 for item in found]) >= 0.9
    assert np.mean([item.low > 0 for item in found]) >= 0.9


def test_what_the_others_give_exactly_has_a_reason_and_is_still_adjusted_for() -> None:
    data = design()
    twice = data._replace(x=np.column_stack([data.x[:, 0], 2 * data.x[:, 0] + 1, data.x[:, 1]]))
    found = partial_effects(twice, num_resamples=50, num_permutations=19)
    assert [item.reason for item in found] == [
        "the other properties give it exactly",
        "the other properties give it exactly",
        None,
    ]
    once = partial_effects(data._replace(x=data.x[:, :2]), num_resamples=50, num_permutations=19)
    assert found[2].effect == pytest.approx(once[1].effect)
    assert (found[2].low, found[2].high) == pytest.approx((once[1].low, once[1].high))


def test_what_cannot_be_told_has_a_reason() -> None:
    data = design()
    kinds = {"num_resamples": 20, "num_permutations": 19}
    constant = np.column_stack([data.x[:, :1], data.models[:, None].astype(float)])
    found = partial_effects(data._replace(x=constant), **kinds)
    assert found[1].reason == "it does not vary between the datasets of a model"
    assert found[0].reason is None
    flat = partial_effects(data._replace(y=np.full(data.y.size, 0.7)), **kinds)
    assert {item.reason for item in flat} == {
        "the scores do not vary between the datasets of a model"
    }
    few = partial_effects(design(size=(4, 5, 2)), **kinds)
    assert few[0].reason == "5 datasets; a regression on 3 properties takes 6"
    assert all(np.isnan(item.effect) for item in [*few, *flat, found[1]])


def test_two_models_give_an_effect_and_a_test_but_no_interval() -> None:
    (first, *_) = partial_effects(design(size=(2, 9, 2)), num_resamples=20, num_permutations=19)
    assert np.isfinite([first.effect, first.p_value]).all()
    assert np.isnan([first.low, first.high]).all()
