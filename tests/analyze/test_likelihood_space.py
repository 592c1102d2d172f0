"""Distances between models are divergences, and no step changes more than it says."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import spearmanr

from planted_vectors import vectors_of
from sft_atlas.analyze.likelihood_space import (
    bits_per_byte,
    cosines,
    displacements,
    distinct_variants,
    make_space,
    part_values,
    per_text,
    squared_distances,
    usable_texts,
)
from sft_atlas.errors import DataError


def test_two_models_with_a_known_divergence_are_that_far_apart() -> None:
    """Two distributions over 400 texts: the exact sum is at hand."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=400)
    first = log_softmax(scores)
    second = log_softmax(scores + 0.05 * rng.normal(size=400))
    exact = float((np.exp(first) * (first - second)).sum())
    drawn = rng.choice(400, size=20_000, p=np.exp(first))
    space = make_space(np.stack([first, second])[:, drawn], clip_quantile=None)
    assert squared_distances(space.q)[0, 1] / 2 == pytest.approx(exact, rel=0.05)


def test_a_tilted_model_is_half_the_variance_of_its_tilt_away() -> None:
    """p_t ~ p exp(t f) with a normal f: the divergence is t^2 Var(f) / 2 exactly."""
    values = np.random.default_rng(1).normal(size=200_000)
    tilt = 0.3
    # log p_t - log p = t f - t^2 / 2 for f ~ N(0, 1); the divergence of N(0,1) and N(t,1).
    rows = np.stack([np.zeros_like(values), tilt * values - tilt**2 / 2])
    squared = squared_distances(make_space(rows, clip_quantile=None).q)
    assert squared[0, 1] / 2 == pytest.approx(tilt**2 / 2, rel=0.01)
    assert bits_per_byte(squared, 10.0)[0, 1] == pytest.approx(squared[0, 1] / 20 / np.log(2))


def test_centring_texts_changes_no_distance_and_centring_cells_only_the_level() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(6, 50))
    space = make_space(values, clip_quantile=None)
    np.testing.assert_allclose(space.q.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(space.q.mean(axis=1), 0, atol=1e-12)
    shifted = values + rng.normal(size=50) + rng.normal(size=(6, 1))
    np.testing.assert_allclose(
        squared_distances(make_space(shifted, clip_quantile=None).q), squared_distances(space.q)
    )
    rows = values - values.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(squared_distances(rows), squared_distances(space.q))
    difference = values[0] - values[1]
    assert squared_distances(space.q)[0, 1] == pytest.approx(difference.var())


def test_clipping_raises_only_what_lies_below_the_quantile() -> None:
    values = np.arange(100.0).reshape(4, 25)
    space = make_space(values, clip_quantile=0.1)
    assert space.clip_value == np.quantile(values, 0.1)
    expected = make_space(np.maximum(values, space.clip_value), clip_quantile=None)
    np.testing.assert_array_equal(space.q, expected.q)
    assert make_space(values, clip_quantile=None).clip_value is None


def test_a_cell_that_comes_later_has_the_same_place_as_one_that_was_there() -> None:
    values = np.random.default_rng(3).normal(size=(8, 60)) - 5
    space = make_space(values, clip_quantile=0.05)
    np.testing.assert_allclose(space.place(values), space.q, atol=1e-14)


def test_cells_that_agree_are_exactly_nothing_apart() -> None:
    values = np.random.default_rng(4).normal(size=(3, 500)) * 300
    values[2] = values[0]
    q = make_space(values).q
    assert squared_distances(q)[0, 2] == 0
    assert squared_distances(q, q[:1])[2, 0] == 0
    np.testing.assert_allclose(
        np.linalg.norm(per_text(q)[0] - per_text(q)[1]) ** 2, squared_distances(q)[0, 1]
    )


def test_displacements_start_at_the_base_model() -> None:
    rng = np.random.default_rng(5)
    taught, other = rng.normal(size=(2, 4000))
    bases = rng.normal(size=(2, 4000)) * 5
    values = np.stack([bases[0], bases[0] + taught, bases[1] + taught, bases[1] + other, bases[1]])
    moved = displacements(make_space(values, clip_quantile=None).q, [0, 0, 4, 4, 4])
    angle = cosines(moved)
    assert angle[1, 2] == pytest.approx(1)
    assert abs(angle[1, 3]) < 0.05
    assert np.isnan(angle[0]).all()
    assert (moved[0] == 0).all()


def test_texts_that_any_cell_read_in_part_are_left_out() -> None:
    is_cut = np.zeros((3, 4), dtype=bool)
    is_cut[1, 2] = True
    vectors = vectors_of(np.zeros((3, 4)), np.zeros((3, 4)), is_cut=is_cut)
    assert usable_texts(vectors, "whole").tolist() == [True, True, False, True]
    assert distinct_variants(vectors) == ("whole", "prompt", "answer")
    assert distinct_variants(vectors_of(np.zeros((3, 4)))) == ("whole",)
    assert not usable_texts(vectors_of(np.zeros((3, 4))), "answer").any()


def test_the_whole_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(6)
    prompt, answer = rng.normal(size=(2, 3, 5))
    vectors = vectors_of(prompt, answer)
    np.testing.assert_array_equal(part_values(vectors, "whole"), prompt + answer)
    np.testing.assert_array_equal(part_values(vectors, "answer"), answer)


def test_what_cannot_be_centred_is_refused() -> None:
    with pytest.raises(DataError) as error:
        make_space(np.zeros((3, 1)))
    assert str(error.value) == (
        "map: 3 cells on 1 texts; expected at least one cell and 2 texts. Measure more texts."
    )
    with pytest.raises(DataError, match="is not finite"):
        make_space(np.array([[0.0, np.nan], [1.0, 2.0]]))


def test_distances_get_truer_with_more_texts() -> None:
    """How far all-pairs distances from N texts agree with those from 8,000, by simulation."""
    rng = np.random.default_rng(7)
    family, data = rng.integers(0, 6, 80), rng.integers(0, 8, 80)
    size = 8000
    values = (np.arange(1, 7)[:, None] * rng.normal(size=(6, size)))[family]
    values += (np.linspace(0.5, 3, 8)[:, None] * rng.normal(size=(8, size)))[data]
    values += rng.normal(size=(80, size))
    upper = np.triu_indices(80, 1)
    truth = squared_distances(make_space(values, clip_quantile=None).q)[upper]
    agreement = []
    for count in (50, 200, 1000):
        texts = rng.choice(size, count, replace=False)
        found = squared_distances(make_space(values[:, texts], clip_quantile=None).q)[upper]
        agreement.append(float(spearmanr(truth, found).statistic))
        # A distance is a mean over texts: its relative error falls with their root.
        error = np.abs(found / truth - 1).mean()
        assert error == pytest.approx(np.sqrt(2 / count) * np.sqrt(2 / np.pi), rel=0.25)
    assert agreement == sorted(agreement)
    assert agreement[-1] > 0.95
