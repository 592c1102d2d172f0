"""Of studies in which nothing is to be found, few find something.

Each study is a null model: scores with effects of models and datasets, and properties, sizes or
benchmarks that mean nothing. A family that is held at 5 % makes any false claim in at most 5 % of
them. The fast tests draw 50 to 200 studies and allow for the error of that; `-m slow` draws 1,000.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.associations import VARIANTS, associations
from sft_atlas.analyze.data_properties import Predictor
from sft_atlas.analyze.dose_curves import p_of
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import two_way_mean
from sft_atlas.statistics.multiplicity import benjamini_hochberg, benjamini_yekutieli, holm
from sft_atlas.statistics.partial import Design, partial_effects

LEVEL = 0.05
BENCHMARKS = 12
PREDICTORS = tuple(
    Predictor(name, name, name, False, True) for name in ("perplexity", "length", "similarity")
)

Family = Callable[[np.random.Generator], bool]


def false_families(family: Family, *, trials: int, seed: int) -> float:
    """Share of null studies in which at least one test of the family rejects."""
    rng = np.random.default_rng(seed)
    return sum(family(rng) for _ in range(trials)) / trials


def assert_at_most_nominal(rate: float, trials: int) -> None:
    """Refuse a rate that a true 5 % would give in less than 1 of 700 draws of this many studies."""
    assert rate <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / trials)


def null_points(rng: np.random.Generator, num_models: int, num_datasets: int) -> pd.DataFrame:
    """Gains that models and datasets move, and properties of datasets that do not."""
    size = (num_models, num_datasets)
    models, datasets = (code.ravel() for code in np.indices(size))
    gain = rng.normal(size=(num_models, 1)) + rng.normal(size=(1, num_datasets))
    labels = {
        "setting": "s",
        "method": "full",
        "benchmark": AVERAGE,
        "model": models.astype(str),
        "data": datasets.astype(str),
        "gain": (gain + rng.normal(size=size)).ravel(),
    }
    for predictor in PREDICTORS:
        own = rng.normal(size=(1, num_datasets)) + 0.3 * rng.normal(size=size)
        labels[predictor.key] = own.ravel()
    return pd.DataFrame(labels)


def associations_claim(variant: str) -> Family:
    """Benjamini and Hochberg over the properties of one comparison, as declared."""

    def claim(rng: np.random.Generator) -> bool:
        points = null_points(rng, 4, 8)
        table = associations(points, PREDICTORS, num_resamples=2, num_permutations=99)
        rows = table[(table["variant"] == variant) & (table["statistic"] == "spearman")]
        return bool((rows["p_adjusted"] <= LEVEL).any())

    return claim


@pytest.mark.parametrize("variant", ["within_model"])
def test_properties_without_meaning_are_seldom_found(variant: str) -> None:
    rate = false_families(associations_claim(variant), trials=50, seed=1)
    assert_at_most_nominal(rate, 50)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_properties_without_meaning_are_seldom_found_in_1000_studies(variant: str) -> None:
    rate = false_families(associations_claim(variant), trials=1000, seed=2)
    assert_at_most_nominal(rate, 1000)


def partial_effects_claim(rng: np.random.Generator) -> bool:
    """Holm over all properties of one regression; the properties share a part."""
    models, datasets, benchmarks = (code.ravel() for code in np.indices((4, 10, 2)))
    x = 0.7 * rng.normal(size=(10, 1)) + rng.normal(size=(10, 3))
    y = rng.normal(size=4)[models] + rng.normal(size=10)[datasets] + rng.normal(size=models.size)
    design = Design(y, x[datasets], models, datasets, benchmarks)
    found = partial_effects(design, num_resamples=1, num_permutations=199)
    return bool((holm(np.array([effect.p_value for effect in found])) <= LEVEL).any())


def test_partial_effects_without_meaning_are_seldom_found() -> None:
    rate = false_families(partial_effects_claim, trials=200, seed=3)
    assert_at_most_nominal(rate, 200)


@pytest.mark.slow
def test_partial_effects_without_meaning_are_seldom_found_in_1000_studies() -> None:
    rate = false_families(partial_effects_claim, trials=1000, seed=4)
    assert_at_most_nominal(rate, 1000)


def differences(rng: np.random.Generator, size: tuple[int, int], effects: np.ndarray) -> np.ndarray:
    """p-values of the mean difference of each benchmark; models and datasets move benchmarks in
    part together.
    """
    models, datasets = (code.ravel() for code in np.indices(size))
    p_values = []
    shared = rng.normal(size=size[0])[models] + rng.normal(size=size[1])[datasets]
    for effect in effects:
        own = rng.normal(size=size[0])[models] + rng.normal(size=size[1])[datasets]
        values = effect + 0.5 * shared + own + rng.normal(size=models.size)
        mean = two_way_mean(values, models=models, datasets=datasets, degrees="effective")
        p_values.append(p_of(mean))
    return np.array(p_values)


def sizes_claim(num_models: int) -> Family:
    """Holm over the benchmarks of one comparison, as `size_differences` declares."""

    def claim(rng: np.random.Generator) -> bool:
        p_values = differences(rng, (num_models, 9), np.zeros(BENCHMARKS))
        return bool((holm(p_values) <= LEVEL).any())

    return claim


@pytest.mark.parametrize("num_models", [3, 8])
def test_sizes_that_do_not_differ_are_seldom_told_apart(num_models: int) -> None:
    rate = false_families(sizes_claim(num_models), trials=200, seed=5)
    assert_at_most_nominal(rate, 200)


@pytest.mark.slow
@pytest.mark.parametrize("num_models", [3, 8, 11])
def test_sizes_that_do_not_differ_are_seldom_told_apart_in_1000_studies(num_models: int) -> None:
    rate = false_families(sizes_claim(num_models), trials=1000, seed=6)
    assert_at_most_nominal(rate, 1000)


@pytest.mark.parametrize(
    "adjust", [benjamini_hochberg, benjamini_yekutieli], ids=["hochberg", "yekutieli"]
)
def test_of_what_is_claimed_little_is_false(
    adjust: Callable[[np.ndarray], np.ndarray],
) -> None:
    # A third of the benchmarks differ; the others move together with them.
    rng = np.random.default_rng(7)
    effects = np.repeat([4.0, 0.0], [4, 8])
    shares, found = [], 0
    for _ in range(200):
        claimed = adjust(differences(rng, (8, 9), effects)) <= LEVEL
        shares.append(claimed[4:].sum() / max(claimed.sum(), 1))
        found += int(claimed[:4].sum())
    assert np.mean(shares) <= LEVEL + 3 * np.std(shares) / np.sqrt(200)
    assert found / 800 > 0.9
