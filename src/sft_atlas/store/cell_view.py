"""Gather everything that the store knows of one cell, from the first characters of its
fingerprint.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from sft_atlas.errors import StoreError
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store

_Z: Final = 1.959964
MAX_CURVE_POINTS: Final = 60


@dataclass(frozen=True, kw_only=True)
class CellView:
    """One cell, as plain JSON parts."""

    cell: str
    folder: Path | None
    """Where its weights are; None for a base model."""
    spec: dict[str, Any]
    result: dict[str, Any]
    files: dict[str, int]
    """Bytes by file name."""
    provenance: dict[str, Any]
    training: dict[str, Any]
    """The outcome of its training run; empty for a base model."""
    curve: list[dict[str, float]]
    """Up to 60 steps of the loss curve up to this cell's epoch."""
    scores: list[dict[str, Any]]
    """Per benchmark: score, standard error, 95 % interval, numbers of items."""
    drift: list[dict[str, Any]]
    """Per layer: position in (0, 1), relative and RMS weight change."""


def view_cell(store: Store, prefix: str) -> CellView:
    """Read a cell by its fingerprint or the first characters of it.

    Raises:
        StoreError: if no cell or several begin so.
    """
    key = _complete(store, prefix)
    scores = [_score(store, key, name) for name in sorted(list_names(store.layout.scores / key))]
    record = store.find(store.layout.cell(key))
    if record is None:
        spec = store.read(_any_score(store, key)).spec["cell"]
        return CellView(
            cell=key,
            folder=None,
            spec=spec,
            result={},
            files={},
            provenance={},
            training={},
            curve=[],
            scores=scores,
            drift=[],
        )
    outcome, curve = _training(store, record.result["trajectory"], record.result["epoch"])
    return CellView(
        cell=key,
        folder=store.layout.cell(key),
        spec=record.spec,
        result=record.result,
        files={name: artifact.num_bytes for name, artifact in record.artifacts.items()},
        provenance=record.provenance,
        training=outcome,
        curve=curve,
        scores=scores,
        drift=_drift(store, key),
    )


def wilson_interval(score: float, num_items: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a mean of values in [0, 1].

    Exact enough down to a few items and at 0 and 1, where score +- 2 standard errors is not (Wilson
    1927).
    """
    spread = _Z * math.sqrt(score * (1 - score) / num_items + _Z**2 / (4 * num_items**2))
    scale = 1 + _Z**2 / num_items
    middle = score + _Z**2 / (2 * num_items)
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _complete(store: Store, prefix: str) -> str:
    if len(prefix) < 4:
        raise StoreError(f"cell {prefix!r}: is too short; give at least 4 characters of its name.")
    names = list_names(store.layout.cells) | list_names(store.layout.scores)
    found = sorted(name for name in names if name.startswith(prefix))
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"cell {prefix}: {len(found)} cells begin so; give more characters.")
    raise StoreError(
        f"cell {prefix}: is not among the {len(names)} cells of {store.layout.root}; "
        f"`sft-atlas table STUDY` lists them."
    )


def _any_score(store: Store, key: str) -> Path:
    return store.layout.score(key, min(list_names(store.layout.scores / key)))


def _score(store: Store, cell: str, benchmark: str) -> dict[str, Any]:
    result = store.read(store.layout.score(cell, benchmark)).result
    score, num_scored = result["score"], result["num_scored"]
    interval = None if score is None else wilson_interval(score, num_scored)
    return result | {"interval": interval}


def _training(
    store: Store, trajectory: str, epoch: int
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    folder = longest_outcome(store, trajectory)
    if folder is None:
        return {}, []
    record = store.read(folder)
    metrics = pq.read_table(store.artifact(folder, "metrics.parquet")).to_pylist()
    steps = [row for row in metrics if row["epoch"] <= epoch]
    stride = max(1, math.ceil(len(steps) / MAX_CURVE_POINTS))
    return record.result, steps[::stride]


def _drift(store: Store, key: str) -> list[dict[str, Any]]:
    folder = store.layout.drift(key)
    if not store.has(folder):
        return []
    rows = pq.read_table(store.artifact(folder, "drift.parquet")).to_pylist()
    names = ("layer", "position", "relative", "rms")
    return [{n: row[n] for n in names} for row in rows if row["kind"] == "total"]
