"""Advanced density peaks: planted groups are found, and chance peaks are none."""

import numpy as np
import pytest

from sft_atlas.measure.clusters import CLUSTER_NEIGHBOURS, estimate_density, find_clusters
from sft_atlas.measure.dimension import gride
from sft_atlas.measure.neighbours import Neighbours, find_neighbours


def draw_groups(
    num_groups: int, num_points: int, dimension: int, *, gap: float = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian groups whose centres are `gap` apart from the next, in 64 dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_groups, size=num_points)
    points = rng.standard_normal((num_points, dimension))
    points[:, 0] += gap * labels
    axes = np.linalg.qr(rng.standard_normal((64, dimension)))[0]
    return points @ axes.T, labels


def cluster(points: np.ndarray, dimension: float) -> np.ndarray:
    return find_clusters(find_neighbours(points, CLUSTER_NEIGHBOURS), dimension=dimension)


@pytest.mark.parametrize("num_groups", [2, 4])
@pytest.mark.parametrize(("num_points", "dimension"), [(200, 2), (200, 10), (800, 5)])
def test_planted_groups_are_found(num_groups: int, num_points: int, dimension: int) -> None:
    points, labels = draw_groups(num_groups, num_points, dimension)
    found = cluster(points, dimension)
    pairs = set(zip(found.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == num_groups == found.max() + 1


@pytest.mark.parametrize(("num_points", "dimension"), [(200, 2), (200, 10), (1000, 5)])
@pytest.mark.parametrize("shape", ["standard_normal", "random"])
def test_one_group_is_one(shape: str, num_points: int, dimension: int) -> None:
    for seed in range(5):
        points = getattr(np.random.default_rng(seed), shape)((num_points, dimension))
        neighbours = find_neighbours(points, CLUSTER_NEIGHBOURS)
        estimate = gride(neighbours.distances, 2, 4).value
        assert find_clusters(neighbours, dimension=estimate).max() == 0


def test_a_ring_is_one_group_and_what_it_encloses_another() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(9, 11, (400, 1))
    inside = rng.standard_normal((200, 2))
    assert cluster(ring, 2).max() == 0
    found = cluster(np.concatenate([ring, inside]), 2)
    assert {*found[:400]} | {*found[400:]} == {0, 1}
    assert len({*found[:400]}) == len({*found[400:]}) == 1


def test_groups_of_unequal_size_and_spread_are_found() -> None:
    rng = np.random.default_rng(0)
    dense, sparse = 0.1 * rng.standard_normal((60, 3)), 3 * rng.standard_normal((240, 3)) + 25
    found = cluster(np.concatenate([dense, sparse]), 3)
    assert set(found[:60]) == {0}
    assert set(found[60:]) == {1}


def test_groups_merge_as_they_come_closer() -> None:
    numbers = [cluster(draw_groups(2, 600, 2, gap=gap)[0], 2).max() + 1 for gap in (8, 4, 1)]
    assert numbers == [2, 2, 1]


def test_a_higher_significance_never_finds_more_groups() -> None:
    points = np.random.default_rng(1).uniform(size=(500, 2))
    neighbours = find_neighbours(points, CLUSTER_NEIGHBOURS)
    numbers = [
        find_clusters(neighbours, dimension=2, significance=z).max() + 1 for z in (0, 1, 2, 3)
    ]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1] == 1


def test_order_rotation_and_scale_change_no_group() -> None:
    points, _ = draw_groups(3, 300, 4, gap=6)
    reference = cluster(points, 4)
    order = np.random.default_rng(2).permutation(300)
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 64)))[0]
    np.testing.assert_array_equal(cluster(points[order], 4), reference[order])
    np.testing.assert_array_equal(cluster(1e-3 * points @ rotation, 4), reference)


def slow_counts(near: Neighbours, dimension: float) -> list[int]:
    """Rodriguez et al. 2018, as a loop: the largest k over which the density is constant."""
    n, width = near.distances.shape
    counts = []
    for i in range(n):
        k = 3
        while True:
            own = dimension * np.log(near.distances[i, k - 1])
            other = dimension * np.log(near.distances[near.indices[i, k], k - 1])
            both = np.logaddexp(own, other)
            if -2 * k * (own + other - 2 * both + np.log(4)) >= 23.92812698:
                counts.append(max(k - 1, 3))
                break
            if k == width - 1:
                counts.append(k)
                break
            k += 1
    return counts


def test_densities_rest_on_the_largest_neighbourhood_of_constant_density() -> None:
    points = np.random.default_rng(0).standard_normal((300, 3))
    near = find_neighbours(points, 60)
    density = estimate_density(near, dimension=3)
    counts = density.num_neighbours
    assert 3 <= counts.min() < counts.max() <= 59
    assert counts.tolist() == slow_counts(near, 3)
    np.testing.assert_allclose(density.errors, counts**-0.5)


def test_densities_follow_the_true_one() -> None:
    points = np.random.default_rng(0).standard_normal((2000, 2))
    density = estimate_density(find_neighbours(points, 100), dimension=2)
    truth = -np.square(points).sum(axis=1) / 2
    assert np.corrcoef(density.logs, truth)[0, 1] > 0.97
