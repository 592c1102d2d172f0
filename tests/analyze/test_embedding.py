"""A plane shows what it can, adds cells without moving any, and says how much it shows."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from sft_atlas.analyze import embedding, map_quality
from sft_atlas.analyze.likelihood_space import squared_distances

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def clusters() -> Floats:
    """Ninety cells in six clusters, in 40 dimensions, centred."""
    rng = np.random.default_rng(0)
    rows = 6 * rng.normal(size=(6, 40))[np.arange(90) % 6] + rng.normal(size=(90, 40))
    return rows - rows.mean(axis=0)


@pytest.fixture(scope="module")
def tsne_places(clusters: Floats) -> Floats:
    start = embedding.principal_components(clusters)
    return embedding.tsne(clusters, start, perplexity=15, seed=0)


def distances_of(q: Floats) -> Floats:
    return squareform(pdist(q))


def test_classical_scaling_of_these_distances_is_the_principal_components(
    clusters: Floats,
) -> None:
    components = embedding.principal_components(clusters)
    classical = embedding.classical_mds(squareform(pdist(clusters, "sqeuclidean")))
    np.testing.assert_allclose(classical, components, atol=1e-9)
    _, _, directions = np.linalg.svd(clusters, full_matrices=False)
    np.testing.assert_allclose(np.abs(components), np.abs(clusters @ directions[:2].T), atol=1e-9)


def test_a_cell_on_a_classical_map_is_placed_where_the_projection_has_it(clusters: Floats) -> None:
    places = embedding.principal_components(clusters)
    _, _, directions = np.linalg.svd(clusters, full_matrices=False)
    other = clusters[:3] + np.random.default_rng(1).normal(size=(3, 40))
    squared = ((other[:, None] - clusters[None]) ** 2).sum(axis=2)
    found = embedding.place_classical(squared, places, squareform(pdist(clusters, "sqeuclidean")))
    signs = np.sign((clusters @ directions[:2].T * places).sum(axis=0))
    np.testing.assert_allclose(found, other @ directions[:2].T * signs, atol=1e-9)


def test_metric_scaling_finds_a_plane_again_and_beats_its_start(clusters: Floats) -> None:
    flat = np.random.default_rng(2).normal(size=(30, 2)) * [5, 1]
    turned = embedding.metric_mds(distances_of(flat), embedding.classical_mds(distances_of(flat)))
    assert map_quality.stress(distances_of(flat), turned) < 0.01
    start = embedding.principal_components(clusters)
    truth = distances_of(clusters)
    better = embedding.metric_mds(truth, start)
    assert map_quality.stress(truth, better) < map_quality.stress(truth, start)


def test_metric_scaling_is_no_worse_than_scikit_learns(clusters: Floats) -> None:
    from sklearn.manifold import smacof

    truth = distances_of(clusters)
    start = embedding.principal_components(clusters)
    theirs, _ = smacof(truth, init=start, n_init=1, max_iter=500, eps=1e-7, normalized_stress=False)
    ours = embedding.metric_mds(truth, start)
    assert map_quality.stress(truth, ours) <= map_quality.stress(truth, theirs) + 1e-3


def test_a_cell_is_placed_on_a_metric_map_where_its_distances_say() -> None:
    places = np.random.default_rng(3).normal(size=(20, 2))
    other = np.array([[0.3, -0.4], [1.5, 1.0]])
    distances = np.sqrt(((other[:, None] - places[None]) ** 2).sum(axis=2))
    found = embedding.place_metric(distances, places, other + 0.2)
    np.testing.assert_allclose(found, other, atol=1e-4)


def test_tsne_shows_planted_clusters_as_well_as_scikit_learn(
    clusters: Floats, tsne_places: Floats
) -> None:
    from sklearn.manifold import TSNE, trustworthiness

    start = embedding.principal_components(clusters)
    theirs = TSNE(perplexity=15, init=start / start.std() * 1e-4, random_state=0).fit_transform(
        clusters
    )
    ours = trustworthiness(clusters, tsne_places, n_neighbors=10)
    assert ours > 0.9
    assert ours >= trustworthiness(clusters, theirs, n_neighbors=10) - 0.02


def test_tsne_gives_the_same_bytes_again(clusters: Floats, tsne_places: Floats) -> None:
    start = embedding.principal_components(clusters)
    again = embedding.tsne(clusters, start, perplexity=15, seed=0)
    assert again.tobytes() == tsne_places.tobytes()


def test_a_map_rebuilt_from_its_places_adds_cells_as_the_first_one_does(
    clusters: Floats,
) -> None:
    from openTSNE import TSNEEmbedding, affinity, initialization

    start = embedding.principal_components(clusters)
    near = affinity.PerplexityBasedNN(
        clusters, perplexity=15, method="exact", n_jobs=1, random_state=0
    )
    original = TSNEEmbedding(
        initialization.rescale(start),
        near,
        negative_gradient_method="bh",
        n_jobs=1,
        random_state=0,
    )
    original.optimize(250, exaggeration=12, momentum=0.5, inplace=True)
    original.optimize(500, momentum=0.8, inplace=True)
    other = clusters[:4] + 0.3 * np.random.default_rng(4).normal(size=(4, 40))
    expected = np.asarray(original.transform(other, perplexity=5))
    ours = embedding.tsne(clusters, start, perplexity=15, seed=0)
    np.testing.assert_allclose(ours, np.asarray(original), atol=1e-12)
    found = embedding.place_tsne(clusters, ours, other, perplexity=15, seed=0)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_added_cells_lie_with_their_like_and_do_not_move_each_other(
    clusters: Floats, tsne_places: Floats
) -> None:
    other = clusters[:6] + 0.2 * np.random.default_rng(5).normal(size=(6, 40))
    together = embedding.place_tsne(clusters, tsne_places, other, perplexity=15, seed=0)
    alone = embedding.place_tsne(clusters, tsne_places, other[:1], perplexity=15, seed=0)
    np.testing.assert_array_equal(alone[0], together[0])
    middles = np.stack([tsne_places[i::6].mean(axis=0) for i in range(6)])
    nearest = ((together[:, None] - middles[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert nearest.tolist() == [0, 1, 2, 3, 4, 5]


def test_cells_that_are_all_the_same_lie_on_one_point() -> None:
    q = np.zeros((12, 5))
    assert not embedding.principal_components(q).any()
    assert not embedding.metric_mds(distances_of(q), np.zeros((12, 2))).any()


def test_trustworthiness_is_scikit_learns(clusters: Floats, tsne_places: Floats) -> None:
    from sklearn.manifold import trustworthiness

    truth = distances_of(clusters)
    for count in (1, 7, 20):
        ours = map_quality.trustworthiness(truth, tsne_places, num_neighbours=count)
        assert ours == pytest.approx(trustworthiness(clusters, tsne_places, n_neighbors=count))
    with pytest.raises(ValueError, match="45 neighbours of 90 cells; expected less than half"):
        map_quality.trustworthiness(truth, tsne_places, num_neighbours=45)


def test_a_perfect_map_has_no_stress_whatever_its_scale() -> None:
    flat = np.random.default_rng(6).normal(size=(15, 2))
    truth = distances_of(flat)
    assert map_quality.stress(truth, 7 * flat) == pytest.approx(0, abs=1e-12)
    assert map_quality.rank_correlation(truth, 7 * flat) == pytest.approx(1)
    assert np.isnan(map_quality.stress(truth, np.zeros((15, 2))))
    noise = np.random.default_rng(7).normal(size=(15, 2))
    expected = spearmanr(truth[np.triu_indices(15, 1)], pdist(noise)).statistic
    assert map_quality.rank_correlation(truth, noise) == pytest.approx(expected)
    assert map_quality.stress(truth, noise) > 0.3


def test_few_cells_have_fewer_neighbours() -> None:
    assert [map_quality.neighbours_for(size) for size in (3, 10, 31, 1000)] == [1, 4, 15, 15]
    assert embedding.perplexity_for(1000) == 30
    assert embedding.perplexity_for(10) == 3
    assert squared_distances(np.eye(2)).tolist() == [[0, 1], [1, 0]]
