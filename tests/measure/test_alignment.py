"""CKA and Procrustes distance: equal to their definitions, blind to what they should not see."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes

from sft_atlas.errors import DataError
from sft_atlas.measure.alignment import debiased_cka, linear_cka, procrustes_distance

SHAPES = [(60, 8), (20, 50), (30, 30)]
MEASURES = [linear_cka, debiased_cka, procrustes_distance]


def draw(shape: tuple[int, int], seed: int) -> np.ndarray:
    scales = np.linspace(0.1, 3, shape[1])
    return 5 + np.random.default_rng(seed).standard_normal(shape) * scales


def draw_pair(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    a = draw(shape, 0)
    return a, a @ draw((shape[1], shape[1]), 1) + 2 * draw(shape, 2)


def draw_rotation(dimension: int, seed: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))[0]


def kernels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a @ a.T, b @ b.T


def reference_unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    ones = np.ones(n)
    trace = np.trace(k @ m)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float((trace + sums - 2 * (ones @ k @ m @ ones) / (n - 2)) / (n * (n - 3)))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_cka_is_the_normalised_hsic_of_centred_kernels(shape: tuple[int, int]) -> None:
    a, b = draw_pair(shape)
    n = shape[0]
    centring = np.eye(n) - 1 / n
    k, m = (centring @ kernel @ centring for kernel in kernels(a, b))
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_debiased_cka_is_the_ratio_of_unbiased_estimators(shape: tuple[int, int]) -> None:
    a, b = draw_pair(shape)
    k, m = kernels(a, b)
    expected = reference_unbiased_hsic(k, m) / np.sqrt(
        reference_unbiased_hsic(k, k) * reference_unbiased_hsic(m, m)
    )
    assert debiased_cka(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_procrustes_distance_is_what_the_best_rotation_leaves(shape: tuple[int, int]) -> None:
    a, b = draw_pair(shape)
    x, y = (side - side.mean(axis=0) for side in (a, b))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = orthogonal_procrustes(y, x)
    left = np.linalg.norm(x - y @ rotation) ** 2
    assert procrustes_distance(a, b) == pytest.approx(left / 2, rel=1e-10)
    disparity = procrustes(a, b)[2]
    assert 1 - (1 - procrustes_distance(a, b)) ** 2 == pytest.approx(disparity, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_shift_scale_and_order_are_not_seen(measure, shape: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    a, b = draw_pair(shape)
    reference = measure(a, b)
    order = np.random.default_rng(4).permutation(shape[0])
    others = [
        measure(a @ draw_rotation(shape[1]), b),
        measure(a, 1e3 * b - 7),
        measure(a[order], b[order]),
        measure(b, a),
    ]
    assert others == pytest.approx([reference] * 4, rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_rotation_is_no_difference(shape: tuple[int, int]) -> None:
    a = draw(shape, 0)
    b = 0.3 * a @ draw_rotation(shape[1]) + 2
    assert linear_cka(a, b) == pytest.approx(1, abs=1e-12)
    assert debiased_cka(a, b) == pytest.approx(1, abs=1e-12)
    assert procrustes_distance(a, b) == pytest.approx(0, abs=1e-12)
    assert debiased_cka(a, a) == 1
    assert procrustes_distance(a, a) == pytest.approx(0, abs=1e-14)


def test_only_the_debiased_cka_of_unrelated_states_is_zero() -> None:
    pairs = [(draw((40, 300), 2 * i), draw((40, 300), 2 * i + 1)) for i in range(30)]
    debiased = [debiased_cka(a, b) for a, b in pairs]
    assert np.mean(debiased) == pytest.approx(0, abs=3 * np.std(debiased) / 30**0.5)
    assert abs(np.mean(debiased)) < 0.02
    assert min(linear_cka(a, b) for a, b in pairs) > 0.75


def test_more_noise_is_less_likeness() -> None:
    a = draw((100, 20), 0)
    noise = draw((100, 20), 1)
    likeness = [debiased_cka(a, a + size * noise) for size in (0, 0.1, 0.5, 2)]
    distance = [procrustes_distance(a, a + size * noise) for size in (0, 0.1, 0.5, 2)]
    assert likeness == sorted(likeness, reverse=True)
    assert distance == sorted(distance)


def test_sides_of_different_dimension_compare() -> None:
    a = draw((50, 6), 0)
    b = np.concatenate([a, np.ones((50, 3))], axis=1)
    assert debiased_cka(a, b) == pytest.approx(1, abs=1e-12)
    assert procrustes_distance(a, b) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_states_that_cannot_be_compared_get_no_number(measure) -> None:  # type: ignore[no-untyped-def]
    a = draw((20, 5), 0).astype(np.float32)
    with pytest.raises(DataError, match=r"^states: all 20 texts have the same one; expected"):
        measure(a, np.full((20, 5), 0.1, dtype=np.float32))
    with pytest.raises(DataError, match=r"^states: 20 texts on one side and 19 on the other;"):
        measure(a, a[1:])
    with pytest.raises(DataError, match=r"^states: not all are finite; expected numbers."):
        measure(a, np.where(a > 0, a, np.nan))


def test_too_few_texts_have_no_debiased_cka() -> None:
    a = draw((3, 5), 0)
    with pytest.raises(DataError, match=r"^debiased CKA: 3 texts; expected at least 4."):
        debiased_cka(a, a)


@pytest.mark.parametrize("states", [np.eye(20), np.eye(20)[:, :1]], ids=["simplex", "outlier"])
def test_states_of_which_chance_explains_all_have_no_debiased_cka(states: np.ndarray) -> None:
    # The estimator is 0 / 0 there, of which rounding would make any number.
    rotated = states @ draw_rotation(states.shape[1])
    for other in (states, rotated, draw((20, 5), 0)):
        for pair in ((states, other), (other, states)):
            with pytest.raises(DataError, match=r"^debiased CKA: 20 texts are too few"):
                debiased_cka(*pair)
