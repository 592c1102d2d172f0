"""Figures of forecasts, against loops over problems and pairs."""

from itertools import combinations

import numpy as np
import pytest

from sft_atlas.forecast.figures import add, figures, score_problems
from sft_atlas.statistics.clusters import Floats


def by_hand(truth: Floats, guess: Floats) -> dict[str, float]:
    right, pairs, best, three, regret = 0, 0, [], [], []
    for actual, told in zip(truth, guess, strict=True):
        kept = np.isfinite(actual) & np.isfinite(told)
        actual, told = actual[kept], told[kept]
        for i, j in combinations(range(actual.size), 2):
            if actual[i] != actual[j]:
                pairs += 1
                right += (actual[i] - actual[j]) * (told[i] - told[j]) > 0
        choice = actual[told.argmax()]
        best.append(choice == actual.max())
        three.append((actual > choice).sum() < 3)
        regret.append(actual.max() - choice)
    return {
        "pairwise_accuracy": right / pairs,
        "top1": float(np.mean(best)),
        "top3": float(np.mean(three)),
        "regret": float(np.mean(regret)),
    }


def test_figures_are_those_of_loops_over_pairs() -> None:
    rng = np.random.default_rng(0)
    truth = np.round(rng.uniform(size=(40, 7)), 1)
    guess = truth + rng.normal(size=truth.shape)
    guess[rng.uniform(size=guess.shape) < 0.1] = np.nan
    found = figures(score_problems(truth, guess))
    for name, value in by_hand(truth, guess).items():
        assert found[name] == pytest.approx(value), name
    parts = [score_problems(truth[:15], guess[:15]), score_problems(truth[15:], guess[15:])]
    assert figures(add(parts)) == pytest.approx(found)


def test_a_perfect_forecast_loses_nothing_and_a_tied_one_orders_nothing() -> None:
    truth = np.random.default_rng(1).uniform(size=(10, 6))
    perfect = figures(score_problems(truth, 3 * truth - 1))
    assert (perfect["pairwise_accuracy"], perfect["top1"], perfect["regret"]) == (1.0, 1.0, 0.0)
    assert figures(score_problems(truth, np.zeros_like(truth)))["pairwise_accuracy"] == 0.0


def test_equal_outcomes_count_in_no_pair() -> None:
    found = figures(
        score_problems(np.full((3, 5), 0.4), np.random.default_rng(2).uniform(size=(3, 5)))
    )
    assert found["pairwise_accuracy"] is None
    assert (found["top1"], found["regret"]) == (1.0, 0.0)


def test_known_choices_are_compared_with_forecast_ones_alone() -> None:
    truth = np.array([[0.1, 0.2, 0.3]])
    guess = np.array([[9.0, -9.0, 0.15]])
    known = np.array([[1.0, 1.0, 0.0]])
    found = score_problems(truth, guess, known)
    # The third lies between the known two by its forecast, above both in truth.
    assert (found.num_pairs, found.num_right) == (2, 1)
    assert figures(found)["regret"] == pytest.approx(0.1)


def test_no_problem_has_no_figures() -> None:
    found = figures(score_problems(np.full((2, 3), np.nan), np.zeros((2, 3))))
    assert found["pairwise_accuracy"] is found["top1"] is found["regret"] is None
    assert found["num_problems"] == 0
