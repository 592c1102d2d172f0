"""Grids whose truth is known, for forecasts."""

from dataclasses import dataclass

import numpy as np

from planted_grid import Labels, grid_tables
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Standard deviations of what a score is made of, in fractions."""

    data: float = 0.0
    data_benchmark: float = 0.05
    model_data_benchmark: float = 0.02
    along_base: float = 0.0
    """Slope of a dataset's effect on a benchmark along the base's score there."""
    own: float = 0.0
    """Added where the data was made for the benchmark's skill."""
    models: int = 8
    datasets: int = 6
    benchmarks: int = 5
    has_groups: bool = False
    seed: int = 0


def scores(truth: Truth) -> tuple[Floats, Floats]:
    """Scores (model, dataset, benchmark) and base scores (model, benchmark)."""
    rng = np.random.default_rng([truth.seed, 0xF0])
    size = (truth.models, truth.datasets, truth.benchmarks)
    base = rng.uniform(0.25, 0.55, size=(size[0], size[2]))
    slope = truth.along_base * rng.standard_normal(size[1:])
    effect = truth.data * rng.standard_normal((size[1], 1))
    effect = effect + truth.data_benchmark * rng.standard_normal(size[1:])
    effect = effect + truth.own * (np.array(groups(truth))[:, None] == np.array(skills(truth)))
    value = base[:, None] + 0.03 + effect + slope * (base[:, None] - 0.4)
    return value + truth.model_data_benchmark * rng.standard_normal(size), base


def skills(truth: Truth) -> list[str]:
    return [f"skill {i}" for i in range(truth.benchmarks)]


def groups(truth: Truth) -> list[str]:
    return [f"skill {i % truth.benchmarks}" for i in range(truth.datasets)]


def world(truth: Truth = Truth()) -> Tables:
    labels = Labels(
        data_groups=groups(truth) if truth.has_groups else (),
        skills=skills(truth) if truth.has_groups else (),
    )
    return grid_tables(*scores(truth), labels)
