"""Where does every model lie among all others?

In: log-likelihoods of all cells on one text set, the map so far, and the labels of a study's cells.
Out: the places of those cells by each part of the texts and each method, how well a plane shows
their distances, what their places go with, and what is to be stored.

The one decision: where chat templates word the same questions differently, only answers are
compared, because how likely a question is depends on what stands around it.
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
    bits_per_byte,
    displacements,
    distinct_variants,
    part_bytes,
    per_text,
    squared_distances,
    usable_texts,
)
from sft_atlas.analyze.map_groups import displacement_agreement, group_shares
from sft_atlas.analyze.map_places import (
    METHODS,
    coordinates,
    make_map,
    rows_of,
    space_of,
    values_of,
)
from sft_atlas.store.maps import MapSteps, StoredMap
from sft_atlas.store.vectors import Variant, Vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_CELLS: Final = 3
"""Fewer cells lie on a line or a point: there is nothing to see."""

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
    reason: str = ""
    """Why there is no map although likelihoods were measured."""
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
    if vectors is None:
        return MapTables()
    wanted = set(cells["cell"])
    shown = [row for row, cell in enumerate(vectors.cells) if cell in wanted]
    lost = Counter(why for cell, why in vectors.missing.items() if cell in wanted)
    missing = tuple(lost.items())
    if len(shown) < MIN_CELLS:
        number = f"{len(shown)} {'cell has' if len(shown) == 1 else 'cells have'}"
        return MapTables(missing=missing, reason=f"{number} likelihoods; it takes {MIN_CELLS}")
    labels = cells.drop_duplicates("cell").set_index("cell").loc[[vectors.cells[r] for r in shown]]
    parts = []
    for step in steps or default_steps():
        if step.variant not in distinct_variants(vectors):
            continue
        old = next((item for item in known if item.steps == step), None)
        parts.append(_variant_tables(vectors, labels, step, old))
    points = _joined([part.points for part in parts], POINT_COLUMNS)
    quality = _joined([part.quality for part in parts])
    return MapTables(
        points=points,
        quality=quality,
        shares=_joined([part.shares for part in parts]),
        agreement=_joined([part.agreement for part in parts]),
        missing=missing,
        reason="" if len(points) else "; ".join(quality["reason"].unique()),
        fresh=tuple(item for part in parts for item in part.fresh),
    )


def _joined(frames: list[pd.DataFrame], columns: list[str] | None = None) -> pd.DataFrame:
    full = [frame for frame in frames if not frame.empty]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=columns)


def _variant_tables(
    vectors: Vectors, labels: pd.DataFrame, steps: MapSteps, old: StoredMap | None
) -> MapTables:
    """Return the tables of one variant, or its reason for having none."""
    vectors, reason = _comparable(vectors, [str(cell) for cell in labels.index], steps.variant)
    if reason:
        rows = [
            {"variant": steps.variant, "method": method, "reason": reason} for method in METHODS
        ]
        return MapTables(quality=pd.DataFrame(rows))
    made = make_map(vectors, steps, old)
    shown = [str(cell) for cell in labels.index]
    left_out = np.array(made.texts_left_out, dtype=np.int64)
    space = space_of(vectors, steps, left_out, made.fitted)
    q = space.place(values_of(vectors, steps, left_out)[rows_of(vectors, shown)])
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


def _comparable(vectors: Vectors, shown: Sequence[str], variant: Variant) -> tuple[Vectors, str]:
    """Return the vectors that can be compared with the shown cells, and why none can, or ''."""
    if variant != "answer":
        wordings = {vectors.wordings[row] for row in rows_of(vectors, shown)}
        if len(wordings) > 1:
            return vectors, (
                f"chat templates word the questions in {len(wordings)} ways; only answers can be "
                f"compared"
            )
        vectors = vectors.take([r for r, word in enumerate(vectors.wordings) if word in wordings])
    usable = int(usable_texts(vectors, variant).sum())
    if usable < MIN_TEXTS:
        return vectors, f"{usable} texts were read whole by every cell; it takes {MIN_TEXTS}"
    return vectors, ""


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
        places = coordinates(part, method, shown)
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
