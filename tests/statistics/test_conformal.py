"""Margins that hold for groups nobody has seen: against their definitions, and by simulation."""

import math

import numpy as np
import pytest

from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.statistics.conformal import MIN_GROUPS, calibrated_margin, guaranteed_margin


def grouped(num_groups: int, size: int, share: float, seed: int) -> tuple[Floats, Ints]:
    """Absolute errors of which `share` of the variance belongs to the group."""
    rng = np.random.default_rng(seed)
    own = math.sqrt(share) * rng.standard_normal((num_groups, 1))
    errors = own + math.sqrt(1 - share) * rng.standard_normal((num_groups, size))
    return np.abs(errors).ravel(), np.repeat(np.arange(num_groups), size)


def test_one_error_per_group_is_split_conformal() -> None:
    errors = np.random.default_rng(0).exponential(size=19)
    rank = math.ceil(20 * 0.9)
    assert guaranteed_margin(errors, np.arange(19)) == np.sort(errors)[rank - 1]


def test_the_guaranteed_margin_is_the_quantile_of_the_mixture() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, size=12)
    groups = np.repeat(np.arange(12), sizes)
    errors = rng.exponential(size=groups.size)
    margin = guaranteed_margin(errors, groups, level=0.8)
    share = [np.mean(errors[groups == g] <= margin) for g in range(12)]
    below = [np.mean(errors[groups == g] < margin) for g in range(12)]
    assert sum(share) / 13 >= 0.8 > sum(below) / 13


@pytest.mark.parametrize("num_groups", [0, 1, 3, 8])
def test_below_nine_groups_nothing_can_be_guaranteed_at_90_percent(num_groups: int) -> None:
    errors, groups = grouped(num_groups, 30, 0.3, seed=2)
    assert guaranteed_margin(errors, groups) == math.inf
    assert math.isfinite(guaranteed_margin(*grouped(9, 30, 0.3, seed=2)))


def test_too_few_groups_have_no_calibrated_margin() -> None:
    assert calibrated_margin(*grouped(MIN_GROUPS - 1, 50, 0.1, seed=3)) == math.inf
    assert math.isfinite(calibrated_margin(*grouped(MIN_GROUPS, 50, 0.1, seed=3)))


def test_groups_too_different_to_cover_each_other_have_no_margin() -> None:
    errors, groups = grouped(5, 20, 1.0, seed=4)
    assert calibrated_margin(errors, groups) == math.inf


def test_the_calibrated_margin_never_exceeds_the_guaranteed_one() -> None:
    for seed in range(20):
        errors, groups = grouped(11, 15, 0.8, seed=seed)
        assert calibrated_margin(errors, groups) <= guaranteed_margin(errors, groups)


def test_margins_follow_units_and_ignore_order_names_and_missing_errors() -> None:
    errors, groups = grouped(10, 12, 0.4, seed=5)
    order = np.random.default_rng(6).permutation(errors.size)
    for rule in (calibrated_margin, guaranteed_margin):
        margin = rule(errors, groups)
        assert rule(errors[order], groups[order]) == margin
        assert rule(errors, 100 - 7 * groups) == margin
        assert rule(3 * errors, groups) == 3 * margin
        assert rule(np.append(errors, np.nan), np.append(groups, 99)) == margin


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_groups", [10, 20])
def test_a_new_group_is_covered(num_groups: int, share: float) -> None:
    covered, guaranteed = [], []
    for seed in range(150):
        errors, groups = grouped(num_groups + 1, 25, share, seed=seed)
        is_new = groups == num_groups
        margin = calibrated_margin(errors[~is_new], groups[~is_new])
        covered.append(np.mean(errors[is_new] <= margin))
        margin = guaranteed_margin(errors[~is_new], groups[~is_new])
        guaranteed.append(np.mean(errors[is_new] <= margin))
    # Two standard errors of 150 draws: 0.01 to 0.04, by how alike a group's errors are.
    slack = 2 * np.std(covered) / math.sqrt(len(covered))
    assert np.mean(covered) >= 0.9 - slack
    assert np.mean(guaranteed) >= 0.9 - slack


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_few_groups_are_covered_where_there_is_a_margin(share: float) -> None:
    covered = []
    for seed in range(400):
        errors, groups = grouped(MIN_GROUPS + 1, 40, share, seed=seed)
        is_new = groups == MIN_GROUPS
        margin = calibrated_margin(errors[~is_new], groups[~is_new])
        if math.isfinite(margin):
            covered.append(np.mean(errors[is_new] <= margin))
    assert len(covered) > 300
    assert np.mean(covered) >= 0.88


def test_a_group_with_many_rows_does_not_speak_for_all() -> None:
    errors, groups = grouped(10, 20, 0.2, seed=7)
    many = np.full(5000, 0.01)
    with_large = np.append(errors, many), np.append(groups, np.full(5000, 10))
    assert np.quantile(with_large[0], 0.9) == 0.01
    assert calibrated_margin(*with_large) > np.quantile(errors, 0.85)
