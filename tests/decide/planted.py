"""Make tables in which the best data is known."""

import numpy as np

from planted_grid import Labels, grid_tables
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.tables import Tables


def effects(num_datasets: int, num_benchmarks: int, *, seed: int = 0, size: float = 0.05) -> Floats:
    """What each dataset adds to each benchmark, (dataset, benchmark)."""
    rng = np.random.default_rng(seed)
    return size * rng.standard_normal((num_datasets, num_benchmarks))


def planted(
    effect: Floats,
    *,
    num_models: int = 8,
    noise: float = 0.01,
    seed: int = 0,
    hidden: tuple[int, ...] = (),
    labels: Labels | None = None,
) -> Tables:
    """Scores = base of the model + lift + effect of the dataset + noise.

    The datasets `hidden` of the last model are missing.
    """
    rng = np.random.default_rng([seed, 1])
    num_datasets, num_benchmarks = effect.shape
    base = 0.4 + 0.05 * rng.standard_normal((num_models, num_benchmarks))
    rest = noise * rng.standard_normal((num_models, num_datasets, num_benchmarks))
    scores = np.clip(base[:, None] + 0.1 + effect + rest, 0.01, 0.99)
    scores[-1, list(hidden)] = np.nan
    return grid_tables(scores, base, labels or Labels(num_items=100_000))
