"""Where does every model lie among all others?

In: log-likelihoods of all cells on one text set, and the map so far. Out: the map of each variant:
what is stored of it where something is new, the places of a study's cells, and how well a plane
shows their distances. A map is fitted to the cells in the order of their names, so that no order
of a table can turn it, and cells that come later are placed among those of the fit.

The one decision: a map is fitted anew only where the old one would mislead or cannot be used (more
than half of its cells came later, a cell of the fit is gone, other texts are whole, t-SNE became
possible), because a reader who knows the old picture must find it again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.analyze import embedding, map_quality
from sft_atlas.analyze.likelihood_space import (
    MIN_TEXTS,
    Space,
    bits_per_byte,
    displacements,
    distinct_variants,
    make_space,
    part_bytes,
    part_values,
    per_text,
    squared_distances,
    usable_texts,
)
from sft_atlas.analyze.map_groups import displacement_agreement, group_shares
from sft_atlas.store.maps import MapSteps, Method, StoredMap
from sft_atlas.store.vectors import Vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METHODS: Final[tuple[Method, ...]] = ("tsne", "pca", "mds")
MIN_CELLS: Final = 3
"""Fewer cells lie on a line or a point: there is nothing to see."""
MAX_ADDED_FRACTION: Final = 0.5

POINT_COLUMNS: Final = ["cell", "variant", "method", "x", "y", "is_added", "kl_base"]


@dataclass(frozen=True, kw_only=True)
class MapTables:
    """What the report shows of the map; frames are empty without a map."""

    points: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=POINT_COLUMNS))
    """One row per cell, variant and method: x, y, is_added, and `kl_base`, the divergence from
    its base model in bits per byte of text (NaN where the base model has no row)."""
    quality: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row per variant and method: what was done, with how many cells and texts, and
    trustworthiness, stress, rank_correlation, explained (share of the squared distances from the
    middle that the plane holds; principal components alone); `reason` where there is no map."""
    shares: pd.DataFrame = field(default_factory=pd.DataFrame)
    """`map_groups.group_shares` by variant"""
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    """`map_groups.displacement_agreement` by variant"""
    missing: tuple[tuple[str, int], ...] = ()
    """Why cells of the study have no place, and how many."""
    fresh: tuple[StoredMap, ...] = ()
    """Maps that are not in the store yet, for `store.maps.publish_map`."""


def default_steps() -> tuple[MapSteps, ...]:
    """Return the steps of the maps that a report shows."""
    return tuple(MapSteps(variant=variant) for variant in ("whole", "prompt", "answer"))


def map_tables(
    vectors: Vectors | None,
    cells: pd.DataFrame,
    *,
    known: Sequence[StoredMap] = (),
    steps: Sequence[MapSteps] | None = None,
) -> MapTables:
    """Return the map of a study's cells.

    `cells` needs the columns cell, family, model, data, method, samples and epoch. `vectors` may
    hold cells of other studies: they belong to the map and are not shown. Deterministic for given
    vectors and `known` maps.
    """
    wanted = set(cells["cell"])
    shown = [] if vectors is None else [cell for cell in vectors.cells if cell in wanted]
    if vectors is None or len(shown) < MIN_CELLS:
        return MapTables()
    labels = cells.drop_duplicates("cell").set_index("cell").loc[shown]
    parts = []
    for step in steps or default_steps():
        if step.variant not in distinct_variants(vectors):
            continue
        old = next((item for item in known if item.steps == step), None)
        parts.append(_variant_tables(vectors, labels, step, old))
    return MapTables(
        points=_joined([part.points for part in parts], POINT_COLUMNS),
        quality=_joined([part.quality for part in parts]),
        shares=_joined([part.shares for part in parts]),
        agreement=_joined([part.agreement for part in parts]),
        missing=tuple(
            Counter(why for cell, why in vectors.missing.items() if cell in wanted).items()
        ),
        fresh=tuple(item for part in parts for item in part.fresh),
    )


def _joined(frames: list[pd.DataFrame], columns: list[str] | None = None) -> pd.DataFrame:
    full = [frame for frame in frames if not frame.empty]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=columns)


def make_map(vectors: Vectors, steps: MapSteps, known: StoredMap | None = None) -> StoredMap:
    """Return the map of these vectors: `known` itself, with cells added, or fitted anew.

    Raises:
        DataError: for fewer than two texts that every cell read whole.
    """
    left_out = _left_out(vectors, steps, known)
    reason = "the first map of these texts" if known is None else _refit_reason(
        vectors, known, left_out
    )  # fmt: skip
    if known is None or reason is not None:
        number = 0 if known is None else known.number + 1
        return _fitted(vectors, steps, left_out, number=number, reason=str(reason))
    new = sorted(set(vectors.cells) - set(known.cells))
    return _extended(vectors, known, new) if new else known


def _left_out(vectors: Vectors, steps: MapSteps, known: StoredMap | None) -> Ints:
    usable = usable_texts(vectors, steps.variant)
    if known is not None:
        # Cells of another study may be absent now; their cut texts stay left out.
        usable[list(known.texts_left_out)] = False
    return np.flatnonzero(~usable)


def _refit_reason(vectors: Vectors, known: StoredMap, left_out: Ints) -> str | None:
    """Say why the known map cannot be kept, or None where it can."""
    fitted = set(known.fitted)
    everyone = set(known.cells) | set(vectors.cells)
    num_added = len(everyone - fitted)
    if known.texts_sha256 != vectors.texts_sha256:
        return "fitted anew: the texts changed"
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


def _space(vectors: Vectors, steps: MapSteps, left_out: Ints, fitted: Sequence[str]) -> Space:
    """Return the space that these cells span; their order is kept."""
    rows = _rows(vectors, fitted)
    return make_space(
        _values(vectors, steps, left_out)[rows],
        clip_quantile=steps.clip_quantile,
    )


def _values(vectors: Vectors, steps: MapSteps, left_out: Ints) -> Floats:
    return np.delete(part_values(vectors, steps.variant), left_out, axis=1)


def _rows(vectors: Vectors, cells: Sequence[str]) -> list[int]:
    place = {cell: row for row, cell in enumerate(vectors.cells)}
    return [place[cell] for cell in cells]


def _fitted(
    vectors: Vectors, steps: MapSteps, left_out: Ints, *, number: int, reason: str
) -> StoredMap:
    cells = sorted(vectors.cells)
    space = _space(vectors, steps, left_out, cells)
    z = per_text(space.q)
    squared = squared_distances(space.q)
    components = embedding.principal_components(z)
    places = {"pca": components, "mds": embedding.metric_mds(np.sqrt(squared), components)}
    perplexity = None
    if len(cells) >= embedding.MIN_TSNE_CELLS and components.any():
        perplexity = steps.perplexity or embedding.perplexity_for(len(cells))
        places["tsne"] = embedding.tsne(z, components, perplexity=perplexity, seed=steps.seed)
    return StoredMap(
        measure=vectors.measure,
        steps=steps,
        number=number,
        texts_sha256=vectors.texts_sha256,
        texts_left_out=tuple(int(i) for i in left_out),
        clip_value=space.clip_value,
        perplexity=perplexity,
        reason=reason,
        places=_frame(cells, places, is_added=False),
    )


def _extended(vectors: Vectors, known: StoredMap, new: Sequence[str]) -> StoredMap:
    """Place new cells among those of the fit, each alone."""
    steps, left_out = known.steps, np.array(known.texts_left_out, dtype=np.int64)
    space = _space(vectors, steps, left_out, known.fitted)
    others = space.place(_values(vectors, steps, left_out)[_rows(vectors, new)])
    old = {method: _coordinates(known.places, method, known.fitted) for method in known.methods}
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


def _coordinates(places: pd.DataFrame, method: str, cells: Sequence[str]) -> Floats:
    rows = places[places["method"] == method].set_index("cell").loc[list(cells)]
    return rows[["x", "y"]].to_numpy(dtype=np.float64)


def _variant_tables(
    vectors: Vectors, labels: pd.DataFrame, steps: MapSteps, old: StoredMap | None
) -> MapTables:
    """Return the tables of one variant, or its reason for having none."""
    usable = int(usable_texts(vectors, steps.variant).sum())
    if usable < MIN_TEXTS:
        reason = f"{usable} texts were read whole by every cell; it takes {MIN_TEXTS}"
        rows = [
            {"variant": steps.variant, "method": method, "reason": reason} for method in METHODS
        ]
        return MapTables(quality=pd.DataFrame(rows))
    made = make_map(vectors, steps, old)
    shown = [str(cell) for cell in labels.index]
    left_out = np.array(made.texts_left_out, dtype=np.int64)
    space = _space(vectors, steps, left_out, made.fitted)
    q = space.place(_values(vectors, steps, left_out)[_rows(vectors, shown)])
    mean_bytes = float(np.delete(part_bytes(vectors, steps.variant), left_out).mean())
    bases = base_rows(labels)
    known = bases >= 0
    from_base = np.full(len(shown), np.nan)
    squared_moves = (displacements(q, np.maximum(bases, 0))[known] ** 2).mean(axis=1)
    from_base[known] = bits_per_byte(squared_moves, mean_bytes)
    points = made.places[made.places["cell"].isin(shown)].assign(variant=steps.variant)
    points["kl_base"] = points["cell"].map(dict(zip(shown, from_base, strict=True)))
    return MapTables(
        points=points[POINT_COLUMNS],
        quality=_quality(made, q, shown),
        shares=group_shares(q, labels).assign(variant=steps.variant),
        agreement=displacement_agreement(q, bases, labels).assign(variant=steps.variant),
        fresh=() if made is old else (made,),
    )


def base_rows(labels: pd.DataFrame) -> Ints:
    """Return for each row of the labels the row of its base model, or -1 where there is none."""
    models = labels["model"].astype(str).to_numpy()
    is_base = (labels["epoch"] == 0).fillna(False).to_numpy(dtype=bool)
    place = {models[row]: row for row in np.flatnonzero(is_base)}
    return np.array([place.get(model, -1) for model in models], dtype=np.int64)


def _quality(made: StoredMap, q: Floats, shown: Sequence[str]) -> pd.DataFrame:
    """One row per method: steps, sizes, and what a reader may conclude."""
    squared = squared_distances(q)
    distances = np.sqrt(squared)
    z = per_text(q - q.mean(axis=0))
    total = float((z**2).sum())
    neighbours = map_quality.neighbours_for(len(shown))
    facts: dict[str, Any] = {
        "variant": made.steps.variant,
        "num_cells": len(shown),
        "num_fitted": len(made.fitted),
        "num_texts": q.shape[1],
        "num_left_out": len(made.texts_left_out),
        "clip_quantile": made.steps.clip_quantile,
        "clip_value": made.clip_value,
        "seed": made.steps.seed,
        "map_number": made.number,
        "map_reason": made.reason,
        "dimensions_90": _dimensions(z, 0.9),
    }
    rows = []
    for method in METHODS:
        row = facts | {"method": method, "reason": None}
        if method not in made.methods:
            least = embedding.MIN_TSNE_CELLS
            row["reason"] = f"t-SNE needs {least} cells that are not all the same"
            rows.append(row)
            continue
        part = made.places[made.places["method"] == method]
        places = _coordinates(part, method, shown)
        added = part.set_index("cell").loc[list(shown), "is_added"]
        middled = places - places.mean(axis=0)
        row |= {
            "num_added": int(added.sum()),
            "perplexity": made.perplexity if method == "tsne" else None,
            "trustworthiness": map_quality.trustworthiness(
                distances, places, num_neighbours=neighbours
            ),
            "num_neighbours": neighbours,
            "stress": map_quality.stress(distances, places),
            "rank_correlation": map_quality.rank_correlation(distances, places),
        }
        if method == "pca" and total:
            row["explained"] = float((middled**2).sum()) / total
        rows.append(row)
    return pd.DataFrame(rows)


def _dimensions(z: Floats, fraction: float) -> int | None:
    """Count the principal components that hold this fraction of the variance."""
    sizes = np.maximum(np.linalg.eigvalsh(z @ z.T)[::-1], 0)
    if not sizes.any():
        return None
    return int(np.searchsorted(np.cumsum(sizes) / sizes.sum(), fraction) + 1)
