"""Neighbours equal a sort of all distances, also of points that nearly coincide."""

import re

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from sft_atlas.errors import DataError
from sft_atlas.measure import neighbours
from sft_atlas.measure.neighbours import find_neighbours, principal_coordinates


def draw(num_points: int, dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_points, dimension))


@pytest.mark.parametrize(("n", "dimension", "k"), [(300, 5, 20), (150, 200, 149), (40, 3, 1000)])
def test_neighbours_equal_those_of_sklearn(n: int, dimension: int, k: int) -> None:
    points = draw(n, dimension)
    found = find_neighbours(points, k)
    reference = NearestNeighbors(n_neighbors=min(k, n - 1), algorithm="kd_tree").fit(points)
    distances, indices = reference.kneighbors()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    np.testing.assert_array_equal(found.indices, indices)


def test_blocks_change_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    points = draw(200, 30)
    whole = find_neighbours(points, 10)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 8 * 200 * 7)
    parts = find_neighbours(points, 10)
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-12)
    np.testing.assert_array_equal(parts.indices, whole.indices)


def test_distances_keep_their_digits_where_squares_cancel() -> None:
    rng = np.random.default_rng(0)
    centres = 1e6 + 1e3 * rng.standard_normal((50, 64))
    points = np.concatenate([centres, centres + 1e-6 * rng.standard_normal((50, 64))])
    found = find_neighbours(points, 1)
    np.testing.assert_array_equal(found.indices[:, 0], (np.arange(100) + 50) % 100)
    exact = np.linalg.norm(points[:50] - points[50:], axis=1)
    np.testing.assert_allclose(found.distances[:50, 0], exact, rtol=1e-3)
    # A point's neighbour is as far from it as it is from its neighbour.
    np.testing.assert_array_equal(found.distances[:50], found.distances[50:])


def test_equal_points_are_at_distance_zero() -> None:
    points = draw(20, 4)
    points[[3, 7, 11]] = points[3]
    found = find_neighbours(points, 3)
    assert found.distances[[3, 7, 11], :2].max() == 0 < found.distances[[3, 7, 11], 2].min()
    assert found.indices[7, :2].tolist() == [3, 11]


def test_a_point_that_is_no_number_is_named() -> None:
    points = draw(10, 3)
    points[4, 1], points[6, 0] = np.nan, np.inf
    message = (
        "point 4: has a coordinate that is not finite, as 2 of 10 points do; expected numbers. "
        "Leave such points out, or look where they come from."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        find_neighbours(points, 2)


def test_a_single_point_has_no_neighbour() -> None:
    with pytest.raises(DataError, match=r"^1 points: none has a neighbour; expected at least 2."):
        find_neighbours(draw(1, 3), 2)


def test_principal_coordinates_keep_every_distance() -> None:
    points = 50 + draw(30, 400)
    turned = principal_coordinates(points)
    assert turned.shape == (30, 30)
    expected = find_neighbours(points, 29)
    found = find_neighbours(turned, 29)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-12)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(principal_coordinates(points.T), points.T)


def test_equal_rows_have_no_principal_axis() -> None:
    assert not principal_coordinates(np.full((5, 70), 0.1)).any()
