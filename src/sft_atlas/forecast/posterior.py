"""What is known of all choices for one model at once?

In: what other models say about it, and its own runs that are known. Out: mean and covariance of
the rest. Choices of one model err together: two settings of one dataset, two benchmarks under one
dataset, all datasets through the level of the model; known runs therefore tell about the others
(conditioning of a Gaussian).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sft_atlas.forecast.levels import Levels
from sft_atlas.statistics.clusters import Floats, Ints

UNKNOWN_LEVEL: Final = 100.0
"""Variance of a model's level where its base score is not known: next to no opinion."""

MAX_ENTRIES: Final = 800
"""Most known entries that a forecast of one model is conditioned on: a dense matrix of them."""

NUGGET: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Places:
    """Numbers of setting, dataset and benchmark of each entry, same length."""

    setting: Ints
    dataset: Ints
    benchmark: Ints


def joint_covariance(
    places: Places,
    *,
    effects: Floats,
    levels: Levels,
    has_base: Floats,
    special_variance: float,
) -> tuple[Floats, Floats]:
    """Covariance of what is common to all choices of a benchmark, and of what differs.

    `effects` is (dataset, benchmark, benchmark), `has_base` (benchmark,) is 1 where the model's
    base score is known, `special_variance` that of one run about everything else. Both results are
    (entry, entry).
    """
    setting, dataset, test = places.setting, places.dataset, places.benchmark
    same_test = test[:, None] == test
    same_setting = setting[:, None] == setting
    same_data = dataset[:, None] == dataset
    lift = np.where(has_base[test] > 0, levels.lift_variance, UNKNOWN_LEVEL)
    common = same_test * np.sqrt(np.outer(lift, lift))
    differing = levels.shift_variance * (same_test & same_setting)
    differing = differing + same_data * effects[dataset[:, None], test[:, None], test]
    alone = same_data & same_setting & same_test
    return common, differing + special_variance * alone


def condition(
    mean: Floats, covariance: Floats, known: Ints, values: Floats
) -> tuple[Floats, Floats]:
    """Return mean and covariance of all entries given the values of some; those keep (nearly) no
    variance.
    """
    if known.size == 0:
        return mean, covariance
    inner = covariance[np.ix_(known, known)]
    inner = inner + NUGGET * max(float(np.trace(inner)) / known.size, 1.0) * np.eye(known.size)
    gain = np.linalg.solve(inner, covariance[known]).T
    left = covariance - gain @ covariance[known]
    return mean + gain @ (values - mean[known]), (left + left.T) / 2
