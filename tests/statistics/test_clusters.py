"""Intervals cover what they should when rows share models and datasets."""

import numpy as np
import pytest
import scipy.stats

from sft_atlas.statistics.clusters import (
    codes,
    percentile_interval,
    simultaneous_band,
    t_quantile,
    two_way_mean,
    two_way_weights,
)


def crossed(num_models: int, num_datasets: int) -> tuple[np.ndarray, np.ndarray]:
    models, datasets = np.meshgrid(np.arange(num_models), np.arange(num_datasets), indexing="ij")
    return models.ravel(), datasets.ravel()


@pytest.mark.parametrize("num_clusters", [2, 4, 11])
def test_t_quantile_agrees_with_scipy(num_clusters: int) -> None:
    assert t_quantile(num_clusters) == pytest.approx(scipy.stats.t.ppf(0.975, num_clusters - 1))


def test_one_way_interval_is_the_t_interval_of_model_means() -> None:
    rng = np.random.default_rng(0)
    models, _ = crossed(5, 4)
    values = rng.normal(size=5)[models] + rng.normal(size=20)
    mean = two_way_mean(values, models=models, datasets=0 * models)
    means = values.reshape(5, 4).mean(axis=1)
    expected = scipy.stats.t.interval(0.95, 4, means.mean(), means.std(ddof=1) / np.sqrt(5))
    assert mean.interval == pytest.approx(expected)


@pytest.mark.parametrize(("model_sd", "data_sd"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mean_interval_covers_the_truth(model_sd: float, data_sd: float) -> None:
    rng = np.random.default_rng(1)
    models, datasets = crossed(4, 7)
    covered = 0
    for _ in range(400):
        values = model_sd * rng.normal(size=4)[models] + data_sd * rng.normal(size=7)[datasets]
        mean = two_way_mean(values + rng.normal(size=28), models=models, datasets=datasets)
        covered += mean.low <= 0 <= mean.high
    assert covered / 400 >= 0.92


def test_rows_taken_as_independent_would_not_cover() -> None:
    rng = np.random.default_rng(2)
    models, _ = crossed(4, 7)
    naive = 0
    for _ in range(300):
        values = rng.normal(size=4)[models] + 0.3 * rng.normal(size=28)
        margin = 1.96 * values.std(ddof=1) / np.sqrt(28)
        naive += abs(values.mean()) <= margin
    assert naive / 300 < 0.7


def test_a_single_row_has_no_interval() -> None:
    zero = np.zeros(1, dtype=np.int64)
    assert two_way_mean(np.array([0.3]), models=zero, datasets=zero).interval is None


def test_rows_that_agree_by_chance_are_no_certainty() -> None:
    models, datasets = crossed(1, 2)
    same, errors = np.array([0.025, 0.025]), np.array([0.05, 0.05])
    mean = two_way_mean(same, models=models, datasets=datasets, item_errors=errors)
    assert mean.standard_error == pytest.approx(0.05 / np.sqrt(2))
    assert mean.low < 0 < mean.high


def test_one_unknown_item_error_leaves_no_interval() -> None:
    models, datasets = crossed(2, 2)
    values, errors = np.array([0.1, 0.2, 0.3, 0.4]), np.full(4, 0.05)
    known = two_way_mean(values, models=models, datasets=datasets, item_errors=errors)
    assert known.interval is not None
    for missing in (np.nan, np.inf):
        errors[2] = missing
        mean = two_way_mean(values, models=models, datasets=datasets, item_errors=errors)
        assert mean.estimate == known.estimate
        assert np.isnan(mean.standard_error)
        assert mean.interval is None


def test_weights_resample_whole_models_and_datasets() -> None:
    models, datasets = crossed(4, 7)
    weights = two_way_weights(models, datasets, num_resamples=50, seed=3).reshape(50, 4, 7)
    for draw in weights:
        assert np.linalg.matrix_rank(draw) == 1
        assert draw.sum() == 28
    again = two_way_weights(models, datasets, num_resamples=50, seed=3).reshape(50, 4, 7)
    assert (weights == again).all()


def test_undefined_resamples_are_left_out_or_refused() -> None:
    draws = np.linspace(0, 1, 100)
    draws[:20] = np.nan
    assert percentile_interval(draws) is not None
    draws[:40] = np.nan
    assert percentile_interval(draws) is None


def test_simultaneous_band_is_wider_than_single_intervals() -> None:
    rng = np.random.default_rng(4)
    draws = np.tanh(rng.normal(scale=0.3, size=(2000, 10)))
    low, high = simultaneous_band(np.zeros(10), draws)
    single = np.quantile(draws[:, 0], [0.025, 0.975])
    assert (low < single[0]).all() and (high > single[1]).all()
    inside = ((draws > low) & (draws < high)).all(axis=1)
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_codes_number_labels_in_sorted_order() -> None:
    assert codes(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_an_interval_ends_where_no_mean_can_lie() -> None:
    models, datasets = crossed(2, 3)
    values = np.array([0.9, 0.8, 0.9, 0.2, 0.3, 0.3])
    free = two_way_mean(values, models=models, datasets=datasets)
    assert free.low < -1 and free.high > 1
    nothing = two_way_mean(values, models=models, datasets=datasets, limit=1.0)
    assert nothing.interval is None and nothing.standard_error == free.standard_error
    cut = two_way_mean(0.1 * values + 0.85, models=models, datasets=datasets, limit=1.0)
    assert cut.low > -1 and cut.high == 1.0
