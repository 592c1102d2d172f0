"""Probabilities, regrets and the worth of runs under one Gaussian."""

import numpy as np
import pytest
from scipy import stats

from sft_atlas.decide.beliefs import begin, standing, take, worth


def test_two_choices_follow_the_normal_distribution() -> None:
    mean, covariance = np.array([0.1, 0.0]), np.diag([0.02, 0.01])
    found = standing(mean, covariance, num_draws=40_000)
    spread = np.sqrt(0.03)
    expected = stats.norm.cdf(0.1 / spread)
    assert found.best_probability == pytest.approx([expected, 1 - expected], abs=0.01)
    # E[max(X, 0)] for X ~ N(-0.1, spread^2): what choosing the first gives away.
    loss = spread * stats.norm.pdf(0.1 / spread) - 0.1 * stats.norm.cdf(-0.1 / spread)
    assert found.regret[0] == pytest.approx(loss, rel=0.03)


def test_equal_choices_share_the_probability() -> None:
    found = standing(np.zeros(4), np.zeros((4, 4)))
    assert found.best_probability == pytest.approx([0.25] * 4)
    assert found.regret == pytest.approx([0.0] * 4)


def test_what_all_choices_share_changes_nothing() -> None:
    mean, covariance = np.array([0.3, 0.2, 0.1]), 0.01 * np.eye(3)
    plain, shifted = standing(mean, covariance), standing(mean + 5, covariance + 100)
    assert shifted.best_probability == pytest.approx(plain.best_probability, abs=0.02)
    assert shifted.regret == pytest.approx(plain.regret, abs=0.005)


def test_the_worth_of_a_run_is_the_knowledge_gradient() -> None:
    mean, covariance = np.array([0.1, 0.0]), np.diag([0.0, 0.04])
    gains = worth(begin(mean, covariance), np.array([0, 1])).gains
    z = -0.1 / 0.2
    assert gains[0] == 0.0
    assert gains[1] == pytest.approx(0.2 * (stats.norm.pdf(z) + z * stats.norm.cdf(z)), rel=0.02)


def test_a_run_that_tells_the_same_is_worth_nothing_more() -> None:
    covariance = np.array([[0.0, 0.0, 0.0], [0.0, 0.04, 0.04], [0.0, 0.04, 0.04]])
    state = begin(np.array([0.1, 0.0, 0.0]), covariance)
    before = worth(state, np.array([1, 2])).gains
    after = worth(take(state, 1), np.array([1, 2])).gains
    assert before.min() > 0.01
    assert after == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_worth_does_not_depend_on_the_order_of_choices() -> None:
    rng = np.random.default_rng(3)
    root = rng.standard_normal((5, 5)) / 10
    mean, covariance = rng.standard_normal(5) / 10, root @ root.T
    order = rng.permutation(5)
    gains = worth(begin(mean, covariance), np.arange(5)).gains
    mixed = worth(begin(mean[order], covariance[np.ix_(order, order)]), np.arange(5)).gains
    assert mixed == pytest.approx(gains[order])
