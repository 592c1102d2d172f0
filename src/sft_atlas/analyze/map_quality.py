"""How much of the truth does a flat map show?

In: distances between K cells in the space of all texts, and on the map. Out: numbers that say what
a reader may conclude: whether neighbours on the map are neighbours (trustworthiness), and whether
far is far (stress, rank correlation). No flat map has both, so both stand under each.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

Floats = NDArray[np.float64]

NUM_NEIGHBOURS: Final = 15
MIN_CELLS: Final = 5


def trustworthiness(distances: Floats, places: Floats, *, num_neighbours: int) -> float:
    """Return how many neighbours on the map are neighbours in truth, in [0, 1].

    1 minus the mean excess of true ranks over `num_neighbours`, scaled (Venna and Kaski 2001,
    equation 1; the same number as scikit-learn's). `distances` is (K, K), `places` (K, 2).

    Raises:
        ValueError: if `num_neighbours` is not below half of the cells.
    """
    size = len(places)
    if not 1 <= num_neighbours < size / 2:
        raise ValueError(f"{num_neighbours} neighbours of {size} cells; expected less than half.")
    apart = distances.copy()
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(apart, axis=1, kind="stable")
    ranks = np.empty((size, size), dtype=np.int64)
    np.put_along_axis(ranks, order, np.arange(1, size + 1)[None, :], axis=1)
    shown = ((places[:, None, :] - places[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(shown, np.inf)
    neighbours = np.argsort(shown, axis=1, kind="stable")[:, :num_neighbours]
    excess = np.take_along_axis(ranks, neighbours, axis=1) - num_neighbours
    penalty = 2 / (size * num_neighbours * (2 * size - 3 * num_neighbours - 1))
    return float(1 - penalty * excess[excess > 0].sum())


def neighbours_for(size: int) -> int:
    """Return how many neighbours trustworthiness looks at: 15, less where that is too many."""
    return min(NUM_NEIGHBOURS, (size - 1) // 2)


def stress(distances: Floats, places: Floats) -> float:
    """Return Kruskal's stress-1 of the map, 0 for a perfect one.

    sqrt(sum (d - b delta)^2 / sum d^2) over pairs, with d on the map and b the scale that fits
    best, since the scale of a t-SNE map means nothing. NaN where all places are one.
    """
    truth = distances[np.triu_indices(len(places), 1)]
    shown = pdist(places)
    if not shown.any() or not truth.any():
        return float("nan")
    scale = float(shown @ truth) / float(truth @ truth)
    return float(np.sqrt(((shown - scale * truth) ** 2).sum() / (shown**2).sum()))


def rank_correlation(distances: Floats, places: Floats) -> float:
    """Return Spearman's correlation of true and shown distances; NaN where either is constant."""
    truth = rankdata(distances[np.triu_indices(len(places), 1)])
    shown = rankdata(pdist(places))
    truth, shown = truth - truth.mean(), shown - shown.mean()
    norm = float(np.sqrt((truth @ truth) * (shown @ shown)))
    return float(truth @ shown) / norm if norm else float("nan")
