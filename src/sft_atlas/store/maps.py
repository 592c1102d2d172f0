"""Where do cells lie on the map of all models, and did they lie there before?

A map is fitted once and then kept: a record holds the places of its cells, and a later one of the
same steps adds cells and moves none. The records of one map are numbered, the highest counts; each
holds all places. When too many cells came after the fit, the map is fitted anew, and the record
says so. The one decision: a map belongs to a text set and to steps, not to a study, so that
studies that share a store share their maps.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas.identity import canonical_json, fingerprint, fingerprint_text, payload
from sft_atlas.store.records import make_provenance
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.store.vectors import Variant, Vectors, read_vectors

Method = Literal["tsne", "pca", "mds"]

SCHEMA: Final = "map/1"
MAP_NAME: Final = "map.parquet"

_COLUMNS: Final = pa.schema(
    [
        ("cell", pa.string()),
        ("method", pa.string()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("is_added", pa.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class MapSteps:
    """What is done from log-likelihoods to places, in this order."""

    variant: Variant = "whole"
    clip_quantile: float | None = 0.02
    """Log-likelihoods below this quantile of all are raised to it; None: none is."""
    perplexity: float | None = None
    """Of t-SNE; None: 30, or a third of the cells where that is less."""
    seed: int = 0
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class StoredMap:
    """Places of cells by one text set and steps."""

    measure: str
    """Fingerprint of the likelihood measure."""
    steps: MapSteps
    number: int
    """0 for the first record of these steps."""
    texts_sha256: str
    """`Vectors.texts_sha256` of the variant."""
    texts_left_out: tuple[int, ...]
    """Places in the set of the texts that a cell did not read whole, or that lack the part."""
    clip_value: float | None
    perplexity: float | None
    """What t-SNE used; None where there are too few cells for it."""
    reason: str
    """Why this record was made, in words."""
    places: pd.DataFrame
    """cell, method, x, y, is_added (whether the cell came after the fit)."""

    @property
    def fitted(self) -> tuple[str, ...]:
        """Cells that the map was fitted to, in the order of the fit."""
        rows = self.places[~self.places["is_added"].astype(bool)]
        return tuple(rows["cell"].unique())

    @property
    def cells(self) -> tuple[str, ...]:
        return tuple(self.places["cell"].unique())

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.places["method"].unique())


def map_folder(store: Store, measure: str, texts_sha256: str, steps: MapSteps) -> Path:
    """Return the folder that the numbered records of a map lie in."""
    spec = {"measure": measure, "texts_sha256": texts_sha256, "steps": payload(steps)}
    return store.layout.map(fingerprint(spec))


def read_map(store: Store, vectors: Vectors, steps: MapSteps) -> StoredMap | None:
    """Return the newest map of the texts of these vectors, or None where there is none."""
    texts_sha256 = vectors.texts_sha256(steps.variant)
    if texts_sha256 is None:
        return None
    folder = map_folder(store, vectors.measure, texts_sha256, steps)
    numbers = sorted((int(name) for name in list_names(folder) if name.isdecimal()), reverse=True)
    number = next((n for n in numbers if store.has(folder / str(n))), None)
    if number is None:
        return None
    result = store.read(folder / str(number)).result
    places = pq.read_table(store.artifact(folder / str(number), MAP_NAME)).to_pandas()
    return StoredMap(
        measure=vectors.measure,
        steps=steps,
        number=number,
        texts_sha256=texts_sha256,
        texts_left_out=tuple(result["texts_left_out"]),
        clip_value=result["clip_value"],
        perplexity=result["perplexity"],
        reason=result["reason"],
        places=places,
    )


def load_mapped(
    store: Store, vectors: Vectors, steps: Sequence[MapSteps]
) -> tuple[Vectors, tuple[StoredMap, ...]]:
    """Return what a map of these cells needs: the maps so far, and the vectors of all their cells.

    Behind the given cells come those of the maps, which may be another study's: a new cell finds
    its place among them.
    """
    maps = [read_map(store, vectors, step) for step in steps]
    known = tuple(found for found in maps if found is not None)
    own = (*vectors.cells, *vectors.missing)
    others = {cell for found in known for cell in found.cells} - set(own)
    if others:
        vectors = read_vectors(store, [*own, *sorted(others)], vectors.measure)
    return vectors, known


def publish_map(store: Store, made: StoredMap) -> bool:
    """Publish a map under its number; tell whether it is there now.

    It is not where the store cannot be written to, or another process published this number first:
    the report then shows what it computed, and the next one reads what is published.
    """
    started = time.time()
    folder = map_folder(store, made.measure, made.texts_sha256, made.steps) / str(made.number)
    num_added = int(made.places.drop_duplicates("cell")["is_added"].sum())
    result: dict[str, Any] = {
        "variant": made.steps.variant,
        "texts_sha256": made.texts_sha256,
        "texts_left_out": list(made.texts_left_out),
        "clip_value": made.clip_value,
        "perplexity": made.perplexity,
        "num_cells": len(made.cells),
        "num_added": num_added,
        "methods": list(made.methods),
        "reason": made.reason,
    }

    def fill(aside: Path) -> dict[str, Any]:
        table = pa.Table.from_pandas(made.places, schema=_COLUMNS, preserve_index=False)
        pq.write_table(table.replace_schema_metadata(None), aside / MAP_NAME)
        return result

    with contextlib.suppress(OSError):
        record = store.publish(
            folder,
            schema=SCHEMA,
            spec={"measure": made.measure, "steps": payload(made.steps), "number": made.number},
            fill=fill,
            provenance=lambda: make_provenance(started),
        )
        return record.result == result
    return False
