"""Intrinsic dimension: equal to scikit-dimension, and right on manifolds of known dimension."""

import re
import warnings

import numpy as np
import pytest

from sft_atlas.errors import DataError
from sft_atlas.measure.dimension import (
    MIN_POINTS,
    Estimate,
    GrideScale,
    find_distinct,
    find_plateau,
    gride,
    gride_scan,
    local_mle,
    subsample_curve,
    two_nn,
    two_nn_fit,
)
from sft_atlas.measure.neighbours import find_neighbours


def embed(points: np.ndarray, dimension: int, seed: int = 1) -> np.ndarray:
    """Rotate points into a larger space."""
    axes = np.random.default_rng(seed).standard_normal((dimension, points.shape[1]))
    return points @ np.linalg.qr(axes)[0].T


def draw_sphere(num_points: int, dimension: int, seed: int = 0) -> np.ndarray:
    """The surface of a ball: dimension - 1."""
    points = np.random.default_rng(seed).standard_normal((num_points, dimension))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def draw_torus(num_points: int, dimension: int, seed: int = 0) -> np.ndarray:
    """A flat cube without an edge, so that no neighbourhood is cut."""
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, (num_points, dimension))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def distances_of(points: np.ndarray, k: int = 128) -> np.ndarray:
    return find_neighbours(points, k).distances


@pytest.mark.parametrize(("dimension", "space"), [(3, 8), (7, 64)])
def test_estimates_equal_those_of_scikit_dimension(dimension: int, space: int) -> None:
    from skdim.id import GRIDE, MLE, TwoNN

    rng = np.random.default_rng(dimension)
    points = embed(rng.standard_normal((500, dimension)), space)
    distances = distances_of(points)
    with warnings.catch_warnings():
        # It takes the logarithm of 0 for a plot.
        warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning)
        maximum = TwoNN(method="mle", discard_fraction=0.0).fit(points).dimension_
        line = TwoNN(method="linear", discard_fraction=0.1).fit(points).dimension_
        local = MLE(unbiased=False).fit(points, n_neighbors=20, comb="mle").dimension_
        scales = GRIDE(multiscale=True, range_max=128).fit(points)
    assert two_nn(distances).value == pytest.approx(maximum, rel=1e-10)
    assert two_nn_fit(distances) == pytest.approx(line, rel=1e-10)
    assert local_mle(distances) == pytest.approx(local, rel=1e-10)
    # scikit-dimension leaves extreme ratios out, of which n1 = 1 has some.
    ours = gride_scan(distances)
    assert [scale.n1 for scale in ours] == scales.scales_.tolist() == [1, 2, 4, 8, 16, 32, 64]
    for scale, value, error in zip(
        ours[1:], scales.dimension_scales_[1:], scales.error_scales_[1:], strict=True
    ):
        assert scale.estimate.value == pytest.approx(value, rel=1e-10)
        assert scale.estimate.high - scale.estimate.low == pytest.approx(
            2 * 1.959963984540054 * error, rel=1e-10
        )


def test_gride_at_the_first_scale_is_two_nn() -> None:
    distances = distances_of(draw_torus(300, 4))
    assert gride(distances, 1, 2).value == pytest.approx(two_nn(distances).value, rel=1e-12)


@pytest.mark.parametrize(("n1", "n2"), [(1, 2), (4, 8), (32, 64), (3, 5)])
@pytest.mark.parametrize("dimension", [0.7, 12.0])
def test_planted_ratios_give_their_dimension_within_the_interval(
    n1: int, n2: int, dimension: float
) -> None:
    """mu^-d is beta(n1, n2 - n1) where the density is constant (Denti et al. 2022)."""
    rng = np.random.default_rng(n1)
    estimates = []
    for _ in range(300):
        distances = np.ones((200, n2))
        distances[:, n2 - 1] = rng.beta(n1, n2 - n1, 200) ** (-1 / dimension)
        estimates.append(gride(distances, n1, n2))
        if n2 == 2:
            assert two_nn(distances).value == pytest.approx(estimates[-1].value, rel=1e-11)
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(dimension, abs=4 * values.std() / 300**0.5)
    covered = [estimate.low <= dimension <= estimate.high for estimate in estimates]
    # Three standard errors of a share of 0.95 among 300.
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 300) ** 0.5)


def test_the_two_nn_interval_covers_planted_ratios() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        distances = np.ones((40, 2))
        distances[:, 1] = np.exp(rng.exponential(1 / 5.0, 40))
        estimate = two_nn(distances)
        covered.append(estimate.low <= 5.0 <= estimate.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 1000) ** 0.5)


@pytest.mark.parametrize(
    ("points", "dimension"),
    [
        (embed(draw_torus(2000, 2), 50), 2),
        (embed(draw_torus(2000, 3), 50), 3),
        (embed(draw_sphere(2000, 4), 50), 3),
        (embed(np.random.default_rng(0).standard_normal((2000, 2)), 50), 2),
        (embed(np.random.default_rng(0).uniform(size=(2000, 3)), 50), 3),
    ],
    ids=["torus-2", "torus-3", "sphere-3", "gaussian-2", "cube-3"],
)
def test_all_estimators_find_a_manifolds_dimension(points: np.ndarray, dimension: int) -> None:
    distances = distances_of(points)
    plateau = find_plateau(gride_scan(distances)).estimate.value
    for value in (two_nn(distances).value, two_nn_fit(distances), local_mle(distances), plateau):
        assert value == pytest.approx(dimension, rel=0.08)


def test_gride_sees_through_noise_that_fools_two_nn() -> None:
    points = embed(draw_torus(2500, 2), 50)
    noisy = points + 0.01 * np.random.default_rng(5).standard_normal(points.shape)
    distances = distances_of(noisy, 256)
    scan = gride_scan(distances)
    assert two_nn(distances).value > 5
    assert local_mle(distances) > 2.5
    plateau = find_plateau(scan)
    assert plateau.n1 >= 32
    assert plateau.estimate.value == pytest.approx(2, rel=0.1)


def test_the_error_falls_with_the_number_of_points() -> None:
    errors = []
    for n in (50, 200, 800):
        values = [two_nn(distances_of(draw_torus(n, 3, seed), 2)).value for seed in range(20)]
        errors.append(np.sqrt(np.mean(np.square(np.array(values) - 3))))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]


def test_too_many_dimensions_for_the_points_are_seen_in_the_subsampling_curve() -> None:
    points = np.random.default_rng(0).uniform(size=(800, 30))
    sizes, estimates = zip(*subsample_curve(points, seed=0), strict=True)
    assert sizes == (800, 400, 200)
    values = [estimate.value for estimate in estimates]
    assert 30 > values[0] > values[1] > values[2]
    assert values[0] == pytest.approx(two_nn(distances_of(points)).value, rel=1e-12)


def test_the_subsampling_curve_is_that_of_its_seed_and_ends_where_points_are_few() -> None:
    points = draw_torus(2 * MIN_POINTS + 1, 2)
    curve = subsample_curve(points, seed=3)
    assert [size for size, _ in curve] == [65, 32]
    assert curve == subsample_curve(points, seed=3) != subsample_curve(points, seed=4)


def test_shift_rotation_scale_and_order_change_no_estimate() -> None:
    points = embed(draw_torus(400, 3), 20)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((20, 20)))[0]
    order = np.random.default_rng(3).permutation(400)

    def describe(cloud: np.ndarray) -> list[float]:
        distances = distances_of(cloud)
        scan = [scale.estimate.value for scale in gride_scan(distances)]
        return [*scan, two_nn(distances).value, two_nn_fit(distances), local_mle(distances)]

    reference = describe(points)
    for other in (points + 100, points @ rotation, 1e-3 * points, points[order]):
        np.testing.assert_allclose(describe(other), reference, rtol=1e-9)


def test_equal_points_are_counted_and_left_out_but_for_one() -> None:
    points = draw_torus(100, 2).astype(np.float32)
    again = points[:10] * np.float32(1 + 3e-7)
    cloud = find_distinct(np.concatenate([points, points[:30], again]), 5)
    assert cloud.num_duplicates == 40
    np.testing.assert_array_equal(cloud.points, points)
    np.testing.assert_array_equal(cloud.neighbours.distances, distances_of(points, 5))


def test_rounding_of_equal_texts_would_have_ruined_the_estimate() -> None:
    points = draw_torus(200, 2).astype(np.float32)
    again = np.concatenate([points, points[:5] * np.float32(1 + 3e-7)])
    truth = two_nn(distances_of(points)).value
    assert two_nn(distances_of(again)).value < 0.7 * truth
    assert two_nn(find_distinct(again, 5).neighbours.distances).value == truth


def test_points_that_are_all_equal_are_one_point() -> None:
    cloud = find_distinct(np.ones((40, 3)), 5)
    assert (len(cloud.points), cloud.num_duplicates) == (1, 39)
    assert cloud.neighbours.distances.shape == (1, 0)


def test_zero_has_one_sign() -> None:
    assert find_distinct(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]]), 1).num_duplicates == 1


def scan_of(values: list[float], num_points: int) -> list[GrideScale]:
    return [
        GrideScale(2**i, 2 ** (i + 1), Estimate(value, value, value), num_points)
        for i, value in enumerate(values)
    ]


def test_the_plateau_is_where_the_estimate_changes_least() -> None:
    assert find_plateau(scan_of([20, 12, 8, 5.1, 5, 4.9, 4, 2], 10_000)).n1 == 16
    assert find_plateau(scan_of([5, 4.9, 4.8, 4, 3], 10_000)).n1 == 2


def test_the_plateau_is_not_where_neighbourhoods_hold_much_of_the_cloud() -> None:
    values = [20.0, 12, 8, 5.1, 5, 4.9, 1, 1, 1]
    assert find_plateau(scan_of(values, 10_000)).n1 == 128
    assert find_plateau(scan_of(values, 600)).n1 == 16
    assert find_plateau(scan_of(values, 32)).n1 == 2


def test_errors_name_the_number_of_points_and_the_need() -> None:
    distances = distances_of(draw_torus(15, 2))
    message = (
        "gride(8, 16): 15 points give 14 distances; expected at least 16. Add points, or use a "
        "smaller scale."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        gride(distances, 8, 16)
    message = "local MLE: 15 points give 14 distances; expected at least 20. Add points."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        local_mle(distances)


def test_points_without_a_dimension_get_no_number() -> None:
    with pytest.raises(DataError, match=r"^40 points: each one's neighbours 1 and 2 are equally"):
        two_nn(distances_of(np.eye(40)))
    twice = np.repeat(draw_torus(20, 2), 2, axis=0)
    with pytest.raises(DataError, match=r"^40 of 40 points have 1 others in the same place"):
        two_nn(distances_of(twice))
    with pytest.raises(DataError, match="not finite"):
        find_distinct(np.full((40, 2), np.nan), 5)
