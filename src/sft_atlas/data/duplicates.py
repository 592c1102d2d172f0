"""Which texts are nearly the same?

In: texts as lists of words (`words.normalise`). Out: a group for each. Two texts are near
duplicates if the sets of their runs of 5 words have a Jaccard index of 0.8 or more (the sizes of
Lee et al. 2022, arXiv 2107.06499), and a group is what such pairs connect, so it depends on no
order. A text of fewer than 5 words is a near duplicate only of its equals.

All such pairs are found, not most of them as by MinHash: two sets with Jaccard index t share an
element among their s - ceil(t s) + 1 rarest ones (Chaudhuri et al. 2006, Bayardo et al. 2007), and
whoever shares one is compared exactly. Only two runs with the same 64-bit hash could be mistaken.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sft_atlas.data.ngrams import Ints, hash_sets

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NGRAM_WORDS: Final = 5
MIN_JACCARD: Final = 0.8

_ROWS: Final = 256
"""Texts whose partners are looked for at a time."""
_PAIRS: Final = 1 << 16
"""Pairs that are compared at a time."""
_PAD: Final = "\n"
"""Stands for the words that a short text lacks; no word is a line break."""


def near_duplicate_groups(texts: Sequence[Sequence[str]]) -> Ints:
    """Return for each text the position of the first text of its group, shape (n,)."""
    firsts: dict[tuple[str, ...], int] = {}
    distinct = [firsts.setdefault(tuple(words), i) for i, words in enumerate(texts)]
    positions = np.array(list(firsts.values()), np.int64)
    groups = np.arange(len(texts), dtype=np.int64)
    if len(positions):
        found = _connect([[*w, *[_PAD] * (NGRAM_WORDS - len(w))] for w in firsts])
        _, leaders = np.unique(found, return_index=True)
        groups[positions] = positions[leaders[found]]
    return groups[np.array(distinct, np.int64)] if len(texts) else groups


def _connect(texts: Sequence[Sequence[str]]) -> Ints:
    """Return a group's number for each distinct text."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    hashes, owners = hash_sets(texts, length=NGRAM_WORDS)
    _, columns, frequencies = np.unique(hashes, return_inverse=True, return_counts=True)
    shape = (len(texts), len(frequencies))
    sets = csr_array((np.ones(len(owners), np.int32), (owners, columns)), shape=shape)
    sizes = np.diff(sets.indptr).astype(np.int64)
    edges = np.empty((0, 2), np.int64)
    groups = np.arange(len(texts))
    for pairs in _iter_candidates(_rarest(sets, frequencies), sizes):
        for start in range(0, len(pairs), _PAIRS):
            part = pairs[start : start + _PAIRS]
            # What is connected already needs no proof: many copies of one text cost little.
            part = part[groups[part[:, 0]] != groups[part[:, 1]]]
            found = part[_jaccard(sets, sizes, part) >= MIN_JACCARD - 1e-12]
            if len(found):
                edges = np.concatenate([edges, found])
                graph = csr_array(
                    (np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])),
                    shape=(len(texts), len(texts)),
                )
                _, groups = connected_components(graph, directed=False)
    return groups.astype(np.int64)


def _rarest(sets: "csr_array", frequencies: NDArray[Any]) -> "csr_array":
    """Return each set's rarest members, one of which a near duplicate must have too."""
    from scipy.sparse import csr_array

    owners, columns = sets.nonzero()
    order = np.lexsort((columns, frequencies[columns], owners))
    owners, columns = owners[order], columns[order]
    sizes = np.diff(sets.indptr)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_kept = (within < _num_rarest(sizes)[owners]) & (frequencies[columns] > 1)
    owners, columns = owners[is_kept], columns[is_kept]
    return csr_array((np.ones(len(owners), np.int32), (owners, columns)), shape=sets.shape)


def _num_rarest(sizes: Ints) -> Ints:
    needed: Ints = np.ceil(MIN_JACCARD * sizes - 1e-9).astype(np.int64)
    return sizes - needed + 1


def _iter_candidates(rarest: "csr_array", sizes: Ints) -> Iterator[NDArray[np.int64]]:
    """Yield pairs (first, second) that share rare members, and enough of them for their sizes.

    Of two sets, all rarest members of the one come before the others of the other. So they share at
    most what their rarest members share, and the others of one of them (Xiao et al. 2008).
    """
    transposed = rarest.T.tocsr()
    others = sizes - _num_rarest(sizes)
    for start in range(0, rarest.shape[0], _ROWS):
        shared = (rarest[start : start + _ROWS] @ transposed).tocoo()
        first, second = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        most = shared.data + np.maximum(others[first], others[second])
        least = MIN_JACCARD / (1 + MIN_JACCARD) * (sizes[first] + sizes[second])
        is_kept = (second > first) & (most >= least - 1e-9)
        yield np.stack([first[is_kept], second[is_kept]], axis=1)


def _jaccard(sets: "csr_array", sizes: Ints, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    if not len(pairs):
        return np.empty(0)
    first, second = pairs[:, 0], pairs[:, 1]
    shared = np.asarray(sets[first].multiply(sets[second]).sum(axis=1)).ravel()
    jaccard: NDArray[np.float64] = shared / (sizes[first] + sizes[second] - shared)
    return jaccard
