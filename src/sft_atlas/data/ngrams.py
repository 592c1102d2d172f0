"""Which texts hold how many of an item's n-grams?

In: items and texts as lists of words. Out: for each text and item the share of the item's n-grams
that the text holds. The items are indexed, since they are few; texts pass by. Words that no item
has cannot be part of a match, so the vocabulary is the items', whatever the texts bring.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class NgramIndex:
    """Inverted index of the n-grams of a fixed list of items."""

    vocabulary: dict[str, int]
    """Number of each word, from 1."""
    length: int
    """Words per n-gram."""
    hashes: Hashes
    """Ascending, each n-gram once."""
    starts: Ints
    """The items that have hashes[i] are members[starts[i]:starts[i + 1]]."""
    members: Ints
    totals: Ints
    """Indexed n-grams of each item, at least 1."""
    is_common: NDArray[np.bool_]
    """Items without an n-gram of their own; they are indexed by their rarest one."""


def build_index(items: Sequence[Sequence[str]], *, length: int, max_items: int) -> NgramIndex:
    """Index the n-grams that at most `max_items` items have.

    Every item has at least `length` words.
    """
    vocabulary = _number_words(items)
    hashes, owners = hash_sets(items, length=length, vocabulary=vocabulary)
    _, inverse, num_items = np.unique(hashes, return_inverse=True, return_counts=True)
    frequency = num_items[inverse]
    is_kept = frequency <= max_items
    totals = np.bincount(owners[is_kept], minlength=len(items))
    by_owner = np.lexsort((frequency, owners))
    is_common = totals == 0
    is_kept[by_owner[np.searchsorted(owners[by_owner], np.flatnonzero(is_common))]] = True
    hashes, firsts = np.unique(hashes[is_kept], return_index=True)
    return NgramIndex(
        vocabulary=vocabulary,
        length=length,
        hashes=hashes,
        starts=np.append(firsts, np.count_nonzero(is_kept)),
        members=owners[is_kept],
        totals=np.maximum(totals, 1),
        is_common=is_common,
    )


def find_shares(
    index: NgramIndex, texts: Sequence[Sequence[str]], *, min_share: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (text, item, share) by text and item, where the share is `min_share` or more.

    Shares are over indexed n-grams; each counts once, however often text or item repeat it.
    """
    ids, starts = _encode(texts, index.vocabulary)
    hashes, positions = _hash_ngrams(ids, index.length)
    slots = np.minimum(np.searchsorted(index.hashes, hashes), len(index.hashes) - 1)
    is_hit = index.hashes[slots] == hashes
    rows = np.searchsorted(starts, positions[is_hit], side="right") - 1
    rows, slots = np.divmod(np.unique(rows * len(index.hashes) + slots[is_hit]), len(index.hashes))
    counts = index.starts[slots + 1] - index.starts[slots]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    members = index.members[np.repeat(index.starts[slots], counts) + within]
    pairs = np.repeat(rows, counts) * len(index.totals) + members
    pairs, num_matches = np.unique(pairs, return_counts=True)
    rows, members = np.divmod(pairs, len(index.totals))
    shares = num_matches / index.totals[members]
    found = shares >= min_share
    yield from zip(
        rows[found].tolist(), members[found].tolist(), shares[found].tolist(), strict=True
    )


def hash_sets(
    texts: Sequence[Sequence[str]], *, length: int, vocabulary: dict[str, int] | None = None
) -> tuple[Hashes, Ints]:
    """Return (hash, text) of each text's distinct n-grams, by hash and then by text.

    N-grams with a word that `vocabulary` lacks are left out; without one, all words are known.
    """
    known = _number_words(texts) if vocabulary is None else vocabulary
    ids, starts = _encode(texts, known)
    hashes, positions = _hash_ngrams(ids, length)
    return _distinct_pairs(hashes, np.searchsorted(starts, positions, side="right") - 1)


def _number_words(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for word in chain.from_iterable(texts):
        vocabulary.setdefault(word, len(vocabulary) + 1)
    return vocabulary


def _encode(texts: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> tuple[Ints, Ints]:
    """Return words as numbers, end to end, and where each text starts; 0 is unknown or an end."""
    ids: list[int] = []
    starts = []
    for words in texts:
        starts.append(len(ids))
        ids.extend(map(vocabulary.get, words, repeat(0)))
        ids.append(0)
    return np.array(ids, np.int64), np.array(starts, np.int64)


def _hash_ngrams(ids: Ints, length: int) -> tuple[Hashes, Ints]:
    """Return hash and position of each n-gram that has no 0 in it.

    The hash is a polynomial modulo 2 ** 64 over mixed words. Between a million n-grams of items and
    a billion of texts, some two are taken for the same by mistake once in about 20,000 times.
    """
    num = max(len(ids) - length + 1, 0)
    values = _mix(ids)
    hashes = np.zeros(num, np.uint64)
    is_whole = np.ones(num, np.bool_)
    for offset in range(length):
        hashes = hashes * _MULTIPLIER + values[offset : offset + num]
        is_whole &= ids[offset : offset + num] != 0
    return hashes[is_whole], np.flatnonzero(is_whole)


_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)


def _mix(ids: Ints) -> Hashes:
    """Spread numbers over 64 bits as SplitMix64 does (Steele, Lea and Flood 2014)."""
    values = (ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _distinct_pairs(hashes: Hashes, owners: Ints) -> tuple[Hashes, Ints]:
    """Return each pair once, by hash and then by owner."""
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    is_new = np.ones(len(hashes), np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[is_new], owners[is_new]
