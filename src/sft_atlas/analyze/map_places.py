"""Where does each cell of a store lie, and does the map that is there still hold?

In: log-likelihoods of all cells, steps, and the map so far. Out: that map, the map with cells
added, or a new one. A map is fitted to the cells in the order of their names, so that no order of a
table can turn it, and cells that come later are placed among those of the fit.

The one decision: a map is fitted anew only where the old one would mislead or cannot be used (more
than half of its cells came later, a cell of the fit is gone, fewer texts are whole, t-SNE became
possible), because a reader who knows the old picture must find it again.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.analyze import embedding
from sft_atlas.analyze.likelihood_space import (
    Space,
    make_space,
    part_values,
    per_text,
    squared_distances,
    usable_texts,
)
from sft_atlas.errors import DataError
from sft_atlas.store.maps import MapSteps, Method, StoredMap
from sft_atlas.store.vectors import Vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METHODS: Final[tuple[Method, ...]] = ("tsne", "pca", "mds")
MAX_ADDED_FRACTION: Final = 0.5


def make_map(vectors: Vectors, steps: MapSteps, known: StoredMap | None = None) -> StoredMap:
    """Return the map of these vectors: `known` itself, with cells added, or fitted anew.

    `known` is of the same texts and steps.

    Raises:
        DataError: for fewer than two texts that every cell read whole, or cells that read other
            wordings where the questions count.
    """
    texts_sha256 = vectors.texts_sha256(steps.variant)
    if texts_sha256 is None:
        raise DataError(
            f"map: cells read {len(set(vectors.wordings))} wordings of the same questions; "
            f"expected one. Compare their answers alone."
        )
    left_out = _left_out(vectors, steps, known)
    reason = _refit_reason(vectors, known, left_out)
    if known is None or reason is not None:
        number = 0 if known is None else known.number + 1
        places, clip_value, perplexity = _fit(vectors, steps, left_out)
        return StoredMap(
            measure=vectors.measure,
            steps=steps,
            number=number,
            texts_sha256=texts_sha256,
            texts_left_out=tuple(int(i) for i in left_out),
            clip_value=clip_value,
            perplexity=perplexity,
            reason=str(reason),
            places=places,
        )
    new = sorted(set(vectors.cells) - set(known.cells))
    return _extended(vectors, known, new) if new else known


def _left_out(vectors: Vectors, steps: MapSteps, known: StoredMap | None) -> Ints:
    usable = usable_texts(vectors, steps.variant)
    if known is not None:
        # Cells of another study may be absent now; their cut texts stay left out.
        usable[list(known.texts_left_out)] = False
    return np.flatnonzero(~usable)


def _refit_reason(vectors: Vectors, known: StoredMap | None, left_out: Ints) -> str | None:
    """Say why a map is fitted, or None where the known one can be kept."""
    if known is None:
        return "the first map of these texts"
    fitted = set(known.fitted)
    everyone = set(known.cells) | set(vectors.cells)
    num_added = len(everyone - fitted)
    if len(left_out) != len(known.texts_left_out):
        more = len(left_out) - len(known.texts_left_out)
        return f"fitted anew: a new cell did not read {more} more texts whole"
    gone = len(fitted - set(vectors.cells))
    if gone:
        return f"fitted anew: {gone} of its {len(fitted)} cells have no likelihoods any more"
    if num_added > MAX_ADDED_FRACTION * len(everyone):
        return f"fitted anew: {num_added} of {len(everyone)} cells came after the fit"
    if "tsne" not in known.methods and len(everyone) >= embedding.MIN_TSNE_CELLS:
        return f"fitted anew: {len(everyone)} cells are enough for t-SNE"
    return None


def space_of(vectors: Vectors, steps: MapSteps, left_out: Ints, fitted: Sequence[str]) -> Space:
    """Return the space that these cells span; their order is kept."""
    values = values_of(vectors, steps, left_out)[rows_of(vectors, fitted)]
    return make_space(values, clip_quantile=steps.clip_quantile)


def values_of(vectors: Vectors, steps: MapSteps, left_out: Ints) -> Floats:
    """Return the log-likelihoods of the variant, without the texts that are left out."""
    return np.delete(part_values(vectors, steps.variant), left_out, axis=1)


def rows_of(vectors: Vectors, cells: Sequence[str]) -> list[int]:
    """Return the rows that these cells have."""
    place = {cell: row for row, cell in enumerate(vectors.cells)}
    return [place[cell] for cell in cells]


def _fit(
    vectors: Vectors, steps: MapSteps, left_out: Ints
) -> tuple[pd.DataFrame, float | None, float | None]:
    """Return the places of all cells, the value that was clipped at, and t-SNE's perplexity."""
    cells = sorted(vectors.cells)
    space = space_of(vectors, steps, left_out, cells)
    z = per_text(space.q)
    squared = squared_distances(space.q)
    components = embedding.principal_components(z)
    places = {"pca": components, "mds": embedding.metric_mds(np.sqrt(squared), components)}
    perplexity = None
    if len(cells) >= embedding.MIN_TSNE_CELLS and components.any():
        perplexity = embedding.perplexity_for(len(cells), steps.perplexity)
        places["tsne"] = embedding.tsne(z, components, perplexity=perplexity, seed=steps.seed)
    return _frame(cells, places, is_added=False), space.clip_value, perplexity


def _extended(vectors: Vectors, known: StoredMap, new: Sequence[str]) -> StoredMap:
    """Place new cells among those of the fit, each alone."""
    steps, left_out = known.steps, np.array(known.texts_left_out, dtype=np.int64)
    space = space_of(vectors, steps, left_out, known.fitted)
    others = space.place(values_of(vectors, steps, left_out)[rows_of(vectors, new)])
    old = {method: coordinates(known.places, method, known.fitted) for method in known.methods}
    squared = squared_distances(others, space.q)
    classical = embedding.place_classical(squared, old["pca"], squared_distances(space.q))
    places = {
        "pca": classical,
        "mds": embedding.place_metric(np.sqrt(squared), old["mds"], classical),
    }
    if known.perplexity is not None:
        places["tsne"] = embedding.place_tsne(
            per_text(space.q),
            old["tsne"],
            per_text(others),
            perplexity=known.perplexity,
            seed=steps.seed,
        )
    added = _frame(new, places, is_added=True)
    return StoredMap(
        measure=known.measure,
        steps=steps,
        number=known.number + 1,
        texts_sha256=known.texts_sha256,
        texts_left_out=known.texts_left_out,
        clip_value=known.clip_value,
        perplexity=known.perplexity,
        reason=f"{len(new)} {'cell was' if len(new) == 1 else 'cells were'} added",
        places=pd.concat([known.places, added], ignore_index=True),
    )


def _frame(cells: Sequence[str], places: dict[str, Floats], *, is_added: bool) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "cell": list(cells),
                "method": method,
                "x": places[method][:, 0],
                "y": places[method][:, 1],
                "is_added": is_added,
            }
        )
        for method in METHODS
        if method in places
    ]
    return pd.concat(frames, ignore_index=True)


def coordinates(places: pd.DataFrame, method: str, cells: Sequence[str]) -> Floats:
    """Return (K, 2) places of these cells by one method."""
    rows = places[places["method"] == method].set_index("cell").loc[list(cells)]
    return rows[["x", "y"]].to_numpy(dtype=np.float64)
