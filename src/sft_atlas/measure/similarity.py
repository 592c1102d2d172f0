"""How close are a dataset's training rows to a benchmark's items?

In: texts of rows and of items, and a function that embeds them. Out: numbers from their vectors
(cosine of the means, nearest neighbours both ways, maximum mean discrepancy) and from their words.
Sides larger than 2,000 texts are compared by their first 2,000, which are a seeded sample, because
rows come in the subset's order and items in their frozen one; both counts are in the result.

Cosines are given twice. As they are, they mix closeness with what all vectors of an embedder share
(`common_cosine`, near 1 for hidden states). Centred, the mean of the two sides' means is taken off
first, so that only what tells texts of these two sets apart is left. Nothing depends on the order
of the texts that are compared.
"""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas.data.words import normalise
from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.divergence import measure_divergence
from sft_atlas.measure.embed import Embed, digest_texts, mean_cosine
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import SimilaritySpec

Floats = NDArray[np.float64]

NEAREST_NAME: Final = "nearest.parquet"
MAX_TEXTS: Final = 2000


@final
class _Side(NamedTuple):
    """Texts of one side, in the order of their words, with their names."""

    names: list[str]
    texts: list[str]


def measure_similarity(
    store: Store,
    spec: SimilaritySpec,
    *,
    rows: Sequence[tuple[int, str]],
    items: Sequence[tuple[str, str]],
    embed: Embed,
) -> Record:
    """Publish how close training rows (place and text) are to items (id and text).

    Returns the record that is there if it was measured before.

    Raises:
        DataError: for fewer than two rows or items, or a text that has no vector.
    """
    folder = store.layout.similarity(spec.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    _check_counts(spec, len(rows), len(items))
    row_side = _take([(str(place), text) for place, text in rows])
    item_side = _take(items)
    row_vectors = embed(row_side.texts).astype(np.float64)
    item_vectors = embed(item_side.texts).astype(np.float64)
    cosines = item_vectors @ row_vectors.T

    def fill(aside: Path) -> dict[str, Any]:
        table = _nearest(cosines, row_side.names, item_side.names)
        pq.write_table(table, aside / NEAREST_NAME, compression="zstd")
        return {
            "num_rows": len(row_side.texts),
            "num_items": len(item_side.texts),
            "num_rows_given": len(rows),
            "num_items_given": len(items),
            "rows_sha256": digest_texts(row_side.texts),
            "items_sha256": digest_texts(item_side.texts),
            "dimension": row_vectors.shape[1],
            **_closeness(row_vectors, item_vectors, cosines),
            **_discrepancy(row_vectors, item_vectors, spec.seed),
            **_shared_words(row_side.texts, item_side.texts),
        }

    return store.publish(
        folder,
        schema="similarity/1",
        spec=payload(spec),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _check_counts(spec: SimilaritySpec, num_rows: int, num_items: int) -> None:
    for what, name, kind, number in (
        ("dataset", spec.dataset.name, "rows", num_rows),
        ("benchmark", spec.benchmark.name, "items", num_items),
    ):
        if number < 2:
            raise DataError(
                f"{what} {name}: has {number} {kind}; expected at least 2, since one text has no "
                f"distribution that could be compared. Leave it out, or raise its limit."
            )


def _take(texts: Sequence[tuple[str, str]]) -> _Side:
    taken = sorted(texts[:MAX_TEXTS], key=lambda pair: (pair[1], pair[0]))
    return _Side([name for name, _ in taken], [text for _, text in taken])


def _nearest(cosines: Floats, rows: Sequence[str], items: Sequence[str]) -> pa.Table:
    """Return for every text the nearest of the other side and their cosine."""
    of_items, of_rows = cosines.argmax(axis=1), cosines.argmax(axis=0)
    return pa.table(
        {
            "side": ["item"] * len(items) + ["row"] * len(rows),
            "text": [*items, *rows],
            "nearest": [*(rows[i] for i in of_items), *(items[i] for i in of_rows)],
            "cosine": np.concatenate([cosines.max(axis=1), cosines.max(axis=0)]),
        }
    )


def _closeness(rows: Floats, items: Floats, cosines: Floats) -> dict[str, float | None]:
    """Return cosine of the means and coverage both ways, as they are and centred."""
    row_mean, item_mean = rows.mean(axis=0), items.mean(axis=0)
    centre = (row_mean + item_mean) / 2
    centred_rows, centred_items = _unit(rows - centre), _unit(items - centre)
    centred = (
        None if centred_rows is None or centred_items is None else centred_items @ centred_rows.T
    )
    return {
        "mean_cosine": _cosine(row_mean, item_mean),
        "item_coverage": float(cosines.max(axis=1).mean()),
        "row_coverage": float(cosines.max(axis=0).mean()),
        "item_coverage_centred": None if centred is None else float(centred.max(axis=1).mean()),
        "row_coverage_centred": None if centred is None else float(centred.max(axis=0).mean()),
        "common_cosine": mean_cosine(np.concatenate([rows, items])),
    }


def _unit(vectors: Floats) -> Floats | None:
    """Return vectors of length 1; None where one has no direction, because it is the centre."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Vectors come in float32: what is shorter is rounding.
    return None if (norms < 1e-6).any() else vectors / norms


def _cosine(first: Floats, second: Floats) -> float | None:
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length else None


def _discrepancy(rows: Floats, items: Floats, seed: int) -> dict[str, float | None]:
    found = measure_divergence(rows, items, seed=seed)
    return {
        "mmd2": found.mmd2,
        "mmd_p": found.p_value,
        "bandwidth": found.bandwidth,
        "num_permutations": found.num_permutations,
    }


def _shared_words(rows: Sequence[str], items: Sequence[str]) -> dict[str, float | None]:
    """Return how much of the items' wording stands in the rows."""
    row_words, item_words = [normalise(text) for text in rows], [normalise(text) for text in items]
    vocabulary = {word for words in row_words for word in words}
    counts = Counter(word for words in item_words for word in words)
    pairs = {pair for words in row_words for pair in pairwise(words)}
    item_pairs = Counter(pair for words in item_words for pair in pairwise(words))
    union = vocabulary | counts.keys()
    return {
        "vocabulary_jaccard": len(vocabulary & counts.keys()) / len(union) if union else None,
        "item_word_coverage": _share(counts, vocabulary),
        "item_bigram_coverage": _share(item_pairs, pairs),
    }


def _share(counts: Counter[Any], known: set[Any]) -> float | None:
    """Return the share of occurrences that are known; None where nothing occurs."""
    total = counts.total()
    return sum(n for key, n in counts.items() if key in known) / total if total else None
