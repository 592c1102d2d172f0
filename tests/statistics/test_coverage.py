"""Intervals that say 95 % hold the truth in about 95 % of simulated studies.

The fast tests allow for their own Monte Carlo error (three standard errors); `-m slow` repeats them
on thousands of studies. Where an interval does not hold 93 to 97 %, the test says what it holds.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sft_atlas.statistics.clusters import (
    percentile_interval,
    two_way_mean,
    two_way_weights,
)
from sft_atlas.statistics.correlation import demean, weighted_pearson
from sft_atlas.statistics.partial import Design, partial_effects
from sft_atlas.store.estimate import estimate, paired_difference

Draw = Callable[[np.random.Generator], bool]


def coverage(draw: Draw, *, trials: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    return sum(draw(rng) for _ in range(trials)) / trials


def assert_holds(rate: float, trials: int, *, low: float = 0.93, high: float = 0.97) -> None:
    """Compare with the wanted range, three standard errors of the simulation wider."""
    slack = 3 * np.sqrt(0.05 * 0.95 / trials)
    assert low - slack <= rate <= high + slack


def graded_items(num_items: int) -> Draw:
    """Scores between 0 and 1, as a judge or an overlap gives them; their mean is 0.4."""

    def draw(rng: np.random.Generator) -> bool:
        interval = estimate(rng.beta(2, 3, size=num_items)).interval
        return interval is not None and interval[0] <= 0.4 <= interval[1]

    return draw


def clustered_items(num_clusters: int, size: int) -> Draw:
    """Right-or-wrong items of which each cluster shares a rate; the mean rate is 0.5."""
    names = [str(number // size) for number in range(num_clusters * size)]

    def draw(rng: np.random.Generator) -> bool:
        rates = np.repeat(rng.beta(2, 2, size=num_clusters), size)
        found = estimate(rng.uniform(size=rates.size) < rates, clusters=names).interval
        return found is not None and found[0] <= 0.5 <= found[1]

    return draw


def paired_items(num_items: int) -> Draw:
    """Right-or-wrong items that two models share: 20 % won, 10 % lost."""

    def draw(rng: np.random.Generator) -> bool:
        kind = rng.choice(4, p=[0.2, 0.1, 0.3, 0.4], size=num_items)
        ours, base = (kind == 0) | (kind == 2), (kind == 1) | (kind == 2)
        found = paired_difference(ours, base).interval
        return found is not None and found[0] <= 0.1 <= found[1]

    return draw


ITEMS = {
    "20 graded": graded_items(20),
    "80 graded": graded_items(80),
    "20 clusters of 5": clustered_items(20, 5),
    "60 clusters of 4": clustered_items(60, 4),
    "80 paired": paired_items(80),
    "500 paired": paired_items(500),
}


@pytest.mark.parametrize("name", ITEMS)
def test_means_over_items_and_clusters_of_items(name: str) -> None:
    assert_holds(coverage(ITEMS[name], trials=600, seed=1), 600)


@pytest.mark.slow
@pytest.mark.parametrize("name", ITEMS)
def test_means_over_items_in_5000_draws(name: str) -> None:
    assert_holds(coverage(ITEMS[name], trials=5000, seed=2), 5000)


def grid_mean(num_models: int, num_datasets: int, spreads: tuple[float, ...], degrees: str) -> Draw:
    """A mean of 0 over crossed models and datasets; standard deviations of models, datasets and
    runs.
    """
    models, datasets = np.divmod(np.arange(num_models * num_datasets), num_datasets)

    def draw(rng: np.random.Generator) -> bool:
        values = spreads[0] * rng.normal(size=num_models)[models]
        values = values + spreads[1] * rng.normal(size=num_datasets)[datasets]
        values = values + spreads[2] * rng.normal(size=models.size)
        mean = two_way_mean(values, models=models, datasets=datasets, degrees=degrees)
        return bool(mean.low <= 0 <= mean.high)

    return draw


GRIDS = {
    f"{models} x {datasets}, {name}": (models, datasets, spreads)
    for models, datasets in ((3, 10), (4, 7), (5, 20), (10, 10), (11, 10))
    for name, spreads in {
        "models": (1.0, 0.0, 1.0),
        "datasets": (0.0, 1.0, 1.0),
        "both": (1.0, 1.0, 1.0),
        "hardly runs": (1.0, 1.0, 0.1),
    }.items()
}


@pytest.mark.parametrize("name", GRIDS)
def test_means_over_few_models_and_datasets(name: str) -> None:
    draw = grid_mean(*GRIDS[name], degrees="effective")
    # Measured in 3,000 studies each: 93.6 to 96.6 %.
    assert_holds(coverage(draw, trials=300, seed=3), 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_means_over_few_models_and_datasets_in_5000_studies(name: str) -> None:
    draw = grid_mean(*GRIDS[name], degrees="effective")
    assert_holds(coverage(draw, trials=5000, seed=4), 5000, high=0.975)


def test_grids_without_effects_of_models_or_datasets_are_covered_too_often() -> None:
    # The error is never below that of either factor, which without their effects is too large:
    # measured 97 to 99 %, and 98 % in 3 x 3, the smallest grid. Degrees of freedom of the smaller
    # factor (`fewest`) make 3 x 10 cover 96 to 100 %.
    for size in ((3, 10), (10, 10)):
        draw = grid_mean(*size, (0.0, 0.0, 1.0), "effective")
        assert coverage(draw, trials=400, seed=5) >= 0.96
    assert coverage(grid_mean(3, 3, (1.0, 1.0, 1.0), "effective"), trials=400, seed=6) >= 0.96
    assert coverage(grid_mean(3, 10, (0.0, 1.0, 1.0), "fewest"), trials=400, seed=7) >= 0.97


def between_datasets(num_models: int, num_datasets: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Models and datasets of rows, weights of 300 resamples, and one row of ones."""
    models, datasets = np.divmod(np.arange(num_models * num_datasets), num_datasets)
    yield models, datasets
    yield two_way_weights(models, datasets, num_resamples=300, seed=0), np.ones((1, models.size))


def correlation_is_held(num_models: int, num_datasets: int, truth: float) -> tuple[Draw, Draw]:
    """A property of datasets correlates with gain; without and with the widening for few."""
    (models, datasets), (weights, _) = between_datasets(num_models, num_datasets)
    fewest = min(num_models, num_datasets)
    # Runs add noise to the gains of datasets, so that the rows correlate less.
    true = truth / np.sqrt(1.25)

    def draws(rng: np.random.Generator) -> np.ndarray:
        x = rng.normal(size=num_datasets)
        y = truth * x + np.sqrt(1 - truth**2) * rng.normal(size=num_datasets)
        gain = y[datasets] + 0.5 * rng.normal(size=models.size)
        return weighted_pearson(
            demean(x[datasets], models, weights), demean(gain, models, weights), weights
        )

    def plain(rng: np.random.Generator) -> bool:
        low, high = percentile_interval(draws(rng)) or (1.0, -1.0)
        return low <= true <= high

    def widened(rng: np.random.Generator) -> bool:
        low, high = percentile_interval(draws(rng), num_clusters=fewest) or (1.0, -1.0)
        return low <= true <= high

    return plain, widened


CORRELATIONS = {
    f"{size[0]} x {size[1]}, r = {truth}": (*size, truth)
    for size in ((3, 10), (5, 8), (10, 10))
    for truth in (0.0, 0.6)
}


@pytest.mark.parametrize("name", ["5 x 8, r = 0.0", "10 x 10, r = 0.6"])
def test_bootstrap_of_a_correlation_between_datasets(name: str) -> None:
    _, widened = correlation_is_held(*CORRELATIONS[name])
    assert_holds(coverage(widened, trials=150, seed=8), 150, high=0.98)


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRELATIONS)
def test_bootstrap_of_a_correlation_in_2000_studies(name: str) -> None:
    plain, widened = correlation_is_held(*CORRELATIONS[name])
    # Percentiles of few clusters reach too little far out; 300 resamples cost half a percent.
    assert_holds(coverage(plain, trials=2000, seed=9), 2000, low=0.92, high=0.95)
    assert_holds(coverage(widened, trials=2000, seed=9), 2000, high=0.985)


def partial_is_held(num_models: int, num_datasets: int) -> Draw:
    """Two correlated properties of datasets, of which both act on the score."""
    models, datasets, benchmarks = (
        code.ravel() for code in np.indices((num_models, num_datasets, 2))
    )
    truth = np.array([0.5, -0.3])

    def draw(rng: np.random.Generator) -> bool:
        shared = rng.normal(size=(num_datasets, 1))
        x = 0.7 * shared + rng.normal(size=(num_datasets, 2))
        taste = rng.normal(size=num_datasets)
        y = (x @ truth + taste)[datasets] + rng.normal(size=models.size)
        design = Design(y, x[datasets], models, datasets, benchmarks)
        (first, _) = partial_effects(design, num_resamples=300, num_permutations=1)
        return bool(first.low <= truth[0] * first.spread <= first.high)

    return draw


def test_bootstrap_of_a_partial_effect() -> None:
    assert_holds(coverage(partial_is_held(5, 12), trials=200, seed=10), 200)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 10), (5, 12), (10, 10)], ids=str)
def test_bootstrap_of_a_partial_effect_in_2000_studies(size: tuple[int, int]) -> None:
    # Measured: 99, 97 and 97 %; the fewest models widen most.
    rate = coverage(partial_is_held(*size), trials=2000, seed=11)
    assert_holds(rate, 2000, high=0.99)
