"""Gather everything that the store knows of one cell, from the first characters of its
fingerprint.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow.parquet as pq

from sft_atlas.errors import StoreError
from sft_atlas.identity import fingerprint
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.records import Record
from sft_atlas.store.score_index import Wanted, load_scores
from sft_atlas.store.score_items import ITEMS_NAME
from sft_atlas.store.scored import group_rows, read_scored
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store

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
    """Per benchmark: the record's result, and `interval` (95 %, of the score), `gain`,
    `gain_interval`, `gain_reason`, `num_paired`, `flags`, `unscored` (items by reason) and `groups`
    (scores of subjects or categories). Whether other cells gave the same answers is only known of
    the base model: the report compares all cells of a study."""
    drift: list[dict[str, Any]]
    """Per layer: position in (0, 1), relative and RMS weight change."""
    measures: dict[str, dict[str, Any]]
    """By kind: what else was measured of it. Where a kind was measured in several ways, the first
    characters of the measure's fingerprint are added."""


def view_cell(store: Store, prefix: str) -> CellView:
    """Read a cell by its fingerprint or the first characters of it.

    Raises:
        StoreError: if no cell or several begin so.
    """
    key = _complete(store, prefix)
    names = sorted(list_names(store.layout.scores / key))
    record = store.find(store.layout.cell(key))
    if record is None:
        folders = [
            *(store.layout.score(key, name) for name in names),
            *_measure_folders(store, key),
        ]
        spec = store.read(folders[0]).spec["cell"]
        scores = _scores(store, key, names, spec)
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
            measures=_measures(store, key),
        )
    scores = _scores(store, key, names, record.spec)
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
        measures=_measures(store, key),
    )


def _complete(store: Store, prefix: str) -> str:
    if len(prefix) < 4:
        raise StoreError(f"cell {prefix!r}: is too short; give at least 4 characters of its name.")
    layout = store.layout
    places = (layout.cells, layout.scores, layout.measures)
    names = {name for place in places for name in list_names(place)}
    found = sorted(name for name in names if name.startswith(prefix))
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"cell {prefix}: {len(found)} cells begin so; give more characters.")
    raise StoreError(
        f"cell {prefix}: is not among the {len(names)} cells of {store.layout.root}; "
        f"`sft-atlas table STUDY` lists them."
    )


def _scores(
    store: Store, cell: str, benchmarks: Sequence[str], spec: Mapping[str, Any]
) -> list[dict[str, Any]]:
    base = fingerprint({"epoch": 0, "model": spec["model"]})
    wanted = [
        Wanted(cell=name, base=base, benchmark=benchmark)
        for name in dict.fromkeys((base, cell))
        for benchmark in benchmarks
    ]
    table = load_scores(store, wanted)
    rows = table[table["cell"] == cell].to_dict("records")
    scores = [_score(store, row) for row in rows]
    return sorted(scores, key=lambda score: (score["benchmark"], score["num_items"]))


def _score(store: Store, row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return a benchmark's result as its record has it, with what was found out about it."""
    folder = store.layout.score(row["cell"], row["benchmark"])
    items = pq.read_table(store.artifact(folder, ITEMS_NAME), columns=["score", "reason"])
    absent = [item["reason"] for item in items.to_pylist() if item["score"] is None]
    known = {name: None if pd.isna(value) else value for name, value in row.items()}
    return store.read(folder).result | {
        "interval": _interval(known["score_low"], known["score_high"]),
        "gain": known["gain"],
        "gain_interval": _interval(known["gain_low"], known["gain_high"]),
        "gain_reason": known["gain_reason"],
        "num_paired": known["num_paired"],
        "flags": [flag for flag in row["flags"].split(";") if flag],
        "unscored": dict(Counter(reason or "no reason was recorded" for reason in absent)),
        "groups": group_rows(read_scored(store, row["cell"], row["benchmark"])),
    }


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


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
    folders = [folder for folder, record in _records(store, key) if _kind(record) == "drift"]
    if not folders:
        return []
    rows = pq.read_table(store.artifact(folders[-1], "drift.parquet")).to_pylist()
    names = ("layer", "position", "relative", "rms")
    is_layer = [row["kind"] == "total" for row in rows]
    return [{n: row[n] for n in names} for row, total in zip(rows, is_layer, strict=True) if total]


def _measures(store: Store, key: str) -> dict[str, dict[str, Any]]:
    records = _records(store, key)
    counts = Counter(_kind(record) for _, record in records)
    return {
        kind if counts[kind := _kind(record)] == 1 else f"{kind} {folder.name[:8]}": record.result
        for folder, record in records
    }


def _measure_folders(store: Store, key: str) -> list[Path]:
    names = sorted(list_names(store.layout.measures / key))
    return [store.layout.measure(key, name) for name in names]


def _records(store: Store, key: str) -> list[tuple[Path, Record]]:
    records = [(folder, store.read(folder)) for folder in _measure_folders(store, key)]
    return sorted(records, key=lambda pair: (pair[1].schema, str(pair[0])))


def _kind(record: Record) -> str:
    return record.schema.partition("/")[0]
