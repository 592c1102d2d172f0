"""All choices of one model at once: against the conditional normal distribution."""

import numpy as np
import pytest

from sft_atlas.forecast.levels import Levels
from sft_atlas.forecast.posterior import UNKNOWN_LEVEL, Places, condition, joint_covariance


def test_conditioning_is_that_of_a_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance, mean = root @ root.T + np.eye(6), rng.normal(size=6)
    known, rest = np.array([1, 4]), np.array([0, 2, 3, 5])
    values = rng.normal(size=2)
    found, left = condition(mean, covariance, known, values)
    # By the precision matrix: an independent way to the same.
    precision = np.linalg.inv(covariance)
    block = np.linalg.inv(precision[np.ix_(rest, rest)])
    expected = mean[rest] - block @ precision[np.ix_(rest, known)] @ (values - mean[known])
    assert found[rest] == pytest.approx(expected, abs=1e-4)
    assert left[np.ix_(rest, rest)] == pytest.approx(block, abs=1e-4)
    assert found[known] == pytest.approx(values, abs=1e-4)
    assert left[np.ix_(known, known)] == pytest.approx(np.zeros((2, 2)), abs=1e-4)


def test_nothing_known_changes_nothing() -> None:
    mean, covariance = np.arange(3.0), np.eye(3)
    found, left = condition(mean, covariance, np.empty(0, dtype=np.int64), np.empty(0))
    assert (found == mean).all()
    assert (left == covariance).all()


def test_what_choices_share_is_in_their_covariance() -> None:
    grid = np.argwhere(np.ones((2, 2, 2), dtype=bool))
    places = Places(setting=grid[:, 0], dataset=grid[:, 1], benchmark=grid[:, 2])
    levels = Levels(
        lift=np.zeros((1, 2)), shift=np.zeros((2, 2)), lift_variance=0.5, shift_variance=0.1
    )
    effects = np.array([[[0.3, 0.2], [0.2, 0.4]], [[0.6, 0.0], [0.0, 0.7]]])
    common, differing = joint_covariance(
        places, effects=effects, levels=levels, has_base=np.array([1.0, 0.0]), special_variance=0.01
    )
    where = {tuple(place): number for number, place in enumerate(grid.tolist())}
    at = lambda a, b: (where[a], where[b])  # noqa: E731
    assert common[at((0, 0, 0), (1, 1, 0))] == pytest.approx(0.5)
    assert common[at((0, 0, 1), (0, 0, 1))] == pytest.approx(UNKNOWN_LEVEL)
    assert common[at((0, 0, 0), (0, 0, 1))] == 0
    assert differing[at((0, 0, 0), (0, 0, 0))] == pytest.approx(0.1 + 0.3 + 0.01)
    assert differing[at((0, 0, 0), (0, 1, 0))] == pytest.approx(0.1)
    assert differing[at((0, 0, 0), (1, 0, 0))] == pytest.approx(0.3)
    assert differing[at((0, 0, 0), (1, 0, 1))] == pytest.approx(0.2)
    assert differing[at((0, 1, 0), (1, 1, 1))] == 0
    assert np.linalg.eigvalsh(common + differing).min() > -1e-12
