"""Where does each cell lie on a flat map, and where does one that came later?

In: vectors q (or distances between them). Out: two coordinates per cell. Three ways that show
different things: principal components (straight projection, distances only shrink), metric
multidimensional scaling (all distances as well as a plane can), and t-SNE (neighbours). Each can
place a cell on a map that is fixed, looking only at the cells that the map was fitted to: so a new
cell moves no other, and it does not matter which others come with it.

Classical multidimensional scaling of these distances gives the principal components again, since
they are Euclidean; it is where the metric one starts.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]

MIN_TSNE_CELLS: Final = 10
"""With fewer, every cell is every other's neighbour, and t-SNE shows nothing but its start."""
DEFAULT_PERPLEXITY: Final = 30.0

_EXAGGERATED_STEPS: Final = 250
_STEPS: Final = 500
_PLACING_PERPLEXITY: Final = 5.0
_MAX_ROUNDS: Final = 500
_LEAST_PROGRESS: Final = 1e-6
_NUM_NEAREST: Final = 3
_SEAT_ROUNDS: Final = 20
_BETTER: Final = 0.01


def principal_components(q: Floats) -> Floats:
    """Return (K, 2) places on the first two components of centred vectors, in the unit of q.

    A direction without variance is 0 for all cells; the cell furthest out is positive.
    """
    # The cells are fewer than the texts: their inner products are the short way to the same.
    return _largest_two(q @ q.T)


def classical_mds(squared: Floats) -> Floats:
    """Return (K, 2) places from (K, K) squared distances (Torgerson 1952)."""
    centred = squared - squared.mean(axis=0)
    return _largest_two(-0.5 * (centred - centred.mean(axis=1, keepdims=True)))


def _largest_two(inner: Floats) -> Floats:
    """Return the eigenvectors of the two largest eigenvalues, times the roots of those."""
    size = len(inner)
    count = min(2, size)
    values, vectors = eigh(inner, subset_by_index=(size - count, size - 1))
    places = np.zeros((size, 2))
    places[:, :count] = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0))
    furthest = np.abs(places).argmax(axis=0)
    signs = np.sign(places[furthest, np.arange(2)])
    signed: Floats = places * np.where(signs == 0, 1.0, signs)
    return signed


def place_classical(squared: Floats, places: Floats, squared_within: Floats) -> Floats:
    """Return (M, 2) places of other cells on a classical map (Gower 1968).

    `squared` is (M, K) to the map's cells, `squared_within` (K, K) between those.
    """
    sizes = (places**2).sum(axis=0)
    contrast = squared_within.mean(axis=1) - 0.5 * squared_within.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        axes = np.where(sizes > 0, places / sizes, 0.0)
    # Columns of the places sum to 0, so what is constant over the map's cells drops out. Row by
    # row, since the sums of a matrix product may depend on how many rows there are.
    rows = [-0.5 * (row - contrast) @ axes for row in squared]
    return np.stack(rows) if rows else np.zeros((0, 2))


def metric_mds(distances: Floats, start: Floats) -> Floats:
    """Return (K, 2) places whose distances fit (K, K) `distances` best, by least squares.

    Stress majorisation from `start` (SMACOF, de Leeuw 1977), until a round gains less than a
    millionth of the stress. Then each cell that fits better among its nearest ones is put there,
    and the majorisation goes on: a cell that started on the wrong side of others cannot pass them
    by itself. No start is random; the result is a local optimum.
    """
    places = _majorised(distances, start)
    places = _majorised(distances, _reseated(distances, places))
    centred: Floats = places - places.mean(axis=0)
    return centred


def _majorised(distances: Floats, start: Floats) -> Floats:
    places, size, last = start.copy(), len(start), np.inf
    for _ in range(_MAX_ROUNDS):
        shown = cdist(places, places)
        now = float(((shown - distances) ** 2).sum())
        if last - now <= _LEAST_PROGRESS * now:
            break
        last = now
        np.fill_diagonal(shown, 1.0)
        ratio = distances / np.maximum(shown, np.finfo(np.float64).tiny)
        np.fill_diagonal(ratio, 0.0)
        places = (ratio.sum(axis=1)[:, None] * places - ratio @ places) / size
    return places


def _reseated(distances: Floats, places: Floats) -> Floats:
    """Move each cell, one after another, to where it settles among its nearest, if it fits better.

    A cell is fitted to the others alone.
    """
    found, spread = places.copy(), float(np.abs(places).max(initial=0.0))
    others = ~np.eye(len(places), dtype=bool)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, 1 : 1 + _NUM_NEAREST]
    for cell, wanted in enumerate(others):
        rest, away = found[wanted], distances[cell][wanted]
        start = found[nearest[cell]].mean(axis=0)
        seat = _settled(away, rest, start, spread=spread, max_rounds=_SEAT_ROUNDS)
        if _misfit(away, rest, seat) < (1 - _BETTER) * _misfit(away, rest, found[cell]):
            found[cell] = seat
    return found


def _misfit(distances: Floats, places: Floats, place: Floats) -> float:
    shown = np.sqrt(((place - places) ** 2).sum(axis=1))
    return float(((shown - distances) ** 2).sum())


def place_metric(distances: Floats, places: Floats, start: Floats) -> Floats:
    """Return (M, 2) places of other cells on a metric map whose own places stay.

    `distances` is (M, K) to the map's cells. Each cell alone, by the same majorisation.
    """
    spread = float(np.abs(places).max(initial=0.0))
    rows = [
        _settled(row, places, place, spread=spread)
        for row, place in zip(distances, start, strict=True)
    ]
    return np.stack(rows) if rows else np.zeros((0, 2))


def _settled(
    distances: Floats,
    places: Floats,
    start: Floats,
    *,
    spread: float,
    max_rounds: int = _MAX_ROUNDS,
) -> Floats:
    middle, place = places.mean(axis=0), start
    for _ in range(max_rounds):
        away = place - places
        shown = np.maximum(np.sqrt((away**2).sum(axis=1)), np.finfo(np.float64).tiny)
        moved = middle + (away * (distances / shown)[:, None]).mean(axis=0)
        step = float(np.abs(moved - place).max())
        place = moved
        if step <= _LEAST_PROGRESS * spread:
            break
    return place


def perplexity_for(num_cells: int, wanted: float | None = None) -> float:
    """Return the perplexity of t-SNE: 30 or the wanted one, but at most a third of the others."""
    return min(wanted or DEFAULT_PERPLEXITY, (num_cells - 1) / 3)


def tsne(q: Floats, start: Floats, *, perplexity: float, seed: int) -> Floats:
    """Return (K, 2) places by t-SNE (openTSNE: exact neighbours, Barnes-Hut gradient).

    `start` is scaled to a spread of 1e-4, which keeps the coarse layout of the principal
    components (Kobak and Berens 2019). One thread and one seed: the same input gives the same
    bytes. The middle of the map's box is 0, as openTSNE wants it when cells are placed later.
    """
    from openTSNE import TSNEEmbedding, initialization

    embedding = TSNEEmbedding(
        initialization.rescale(start),
        _affinities(q, perplexity, seed),
        negative_gradient_method="bh",
        n_jobs=1,
        random_state=seed,
    )
    embedding.optimize(_EXAGGERATED_STEPS, exaggeration=12, momentum=0.5, inplace=True)
    embedding.optimize(_STEPS, momentum=0.8, inplace=True)
    places = np.array(embedding, dtype=np.float64)
    middled: Floats = places - (places.max(axis=0) + places.min(axis=0)) / 2
    return middled


def place_tsne(
    q: Floats, places: Floats, others: Floats, *, perplexity: float, seed: int
) -> Floats:
    """Return (M, 2) places of other cells on a t-SNE map whose own places stay.

    `q` (K, N) and `places` (K, 2) are those of the map, `others` is (M, N). The embedding is built
    from its places, without a step, and openTSNE moves each new cell among them alone.
    """
    from openTSNE import TSNEEmbedding

    embedding = TSNEEmbedding(
        places.copy(),
        _affinities(q, perplexity, seed),
        negative_gradient_method="bh",
        n_jobs=1,
        random_state=seed,
    )
    added = embedding.transform(others, perplexity=min(_PLACING_PERPLEXITY, perplexity))
    return np.array(added, dtype=np.float64)


def _affinities(q: Floats, perplexity: float, seed: int) -> object:
    from openTSNE.affinity import PerplexityBasedNN

    return PerplexityBasedNN(
        q, perplexity=perplexity, method="exact", metric="euclidean", n_jobs=1, random_state=seed
    )
