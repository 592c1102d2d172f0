"""At which weights another choice is ahead."""

import numpy as np
import pytest

from sft_atlas.decide.sensitivity import flips


def test_the_share_at_which_two_choices_change_places_is_exact() -> None:
    # First: 0.6 and 0.2, second: 0.3 and 0.5. Equal where s x 0.3 = (1 - s) x 0.3: s = 0.5.
    table = np.array([[0.6, 0.2], [0.3, 0.5]])
    found = flips(
        table,
        ["a", "b"],
        {"a": 0.8, "b": 0.2},
        ["first", "second"],
        leader=0,
        is_possible=np.ones(2, dtype=np.bool_),
    )
    assert found["flips_at"].tolist() == pytest.approx([0.5, 0.5])
    assert found["becomes"].tolist() == ["second", "second"]


def test_a_choice_that_is_best_everywhere_never_changes() -> None:
    table = np.array([[0.6, 0.6], [0.3, 0.5]])
    found = flips(
        table,
        ["a", "b"],
        {"a": 0.5, "b": 0.5},
        ["x", "y"],
        leader=0,
        is_possible=np.ones(2, dtype=np.bool_),
    )
    assert found.empty


def test_what_the_budget_forbids_is_not_named() -> None:
    table = np.array([[0.6, 0.2], [0.3, 0.5]])
    found = flips(
        table,
        ["a", "b"],
        {"a": 0.8, "b": 0.2},
        ["x", "y"],
        leader=0,
        is_possible=np.array([True, False]),
    )
    assert found.empty


def test_one_benchmark_alone_has_no_weight_to_change() -> None:
    found = flips(
        np.array([[0.6], [0.7]]),
        ["a"],
        {"a": 1.0},
        ["x", "y"],
        leader=1,
        is_possible=np.ones(2, dtype=np.bool_),
    )
    assert found.empty
