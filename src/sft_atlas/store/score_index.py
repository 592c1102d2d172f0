"""Keep a derived table of all scores and paired gains, so that 1,000 cells are read in a blink.

One row per cell and benchmark, made from the published records and items; the row remembers the
time stamp and size of the record that it came from and is made again when they differ. The index
may be deleted at any time.
"""

import contextlib
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas import files
from sft_atlas.store.records import RECORD_NAME, check_artifact
from sft_atlas.store.store import Store

COLUMNS = {
    "cell": "string",
    "benchmark": "string",
    "stamp": "string",
    "score": "float64",
    "standard_error": "float64",
    "num_items": "Int64",
    "num_scored": "Int64",
    "reason": "string",
    "base_score": "float64",
    "gain": "float64",
    "gain_se": "float64",
    "num_paired": "Int64",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A score to look up, and the base model's score that it is compared with."""

    cell: str
    base: str
    benchmark: str


def load_scores(store: Store, wanted: Iterable[Wanted]) -> pd.DataFrame:
    """Return one row per wanted score that is published, with gain over the base on shared items.

    `gain` is the mean difference over items that both models were scored on (`num_paired`),
    `gain_se` the standard deviation of these differences / sqrt(num_paired); both are null where
    the base has no score.
    """
    index = _read_index(store)
    known = {(row["cell"], row["benchmark"]): row for row in index.to_dict("records")}
    rows: list[dict[Hashable, Any]] = []
    is_stale = False
    bases = _Bases(store)
    for want in wanted:
        stamp = _stamp(store, want.cell, want.benchmark)
        if stamp is None:
            continue
        stamp = f"{stamp} {bases.stamp(want.base, want.benchmark)}"
        row = known.get((want.cell, want.benchmark))
        if row is None or row["stamp"] != stamp:
            is_stale = True
            row = _make_row(store, bases, want) | {"stamp": stamp}
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    if is_stale:
        _write_index(store, index, table)
    return table.drop(columns="stamp")


class _Scored(NamedTuple):
    """What a model scored on a benchmark."""

    result: dict[str, Any]
    items: list[str]
    scores: NDArray[np.float64]
    """One per item; NaN where it could not be scored."""


class _Bases:
    """Reads what models scored, and keeps that of base models: every cell is paired with one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[tuple[str, str], _Scored | None] = {}
        self._stamps: dict[tuple[str, str], str | None] = {}

    def stamp(self, cell: str, benchmark: str) -> str | None:
        """Return the time stamp and size of a base model's record, or None where it has none."""
        key = (cell, benchmark)
        if key not in self._stamps:
            self._stamps[key] = _stamp(self._store, *key)
        return self._stamps[key]

    def get(self, cell: str, benchmark: str) -> _Scored | None:
        """Return a base model's scores, or None where it has none."""
        key = (cell, benchmark)
        if key not in self._kept:
            is_there = self._store.has(self._store.layout.score(*key))
            self._kept[key] = _read_scored(self._store, *key) if is_there else None
        return self._kept[key]


def _read_scored(store: Store, cell: str, benchmark: str) -> _Scored:
    folder = store.layout.score(cell, benchmark)
    record = store.read(folder)
    path = check_artifact(folder, record, "items.parquet")
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["item", "score"], use_threads=False)
    scores = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    return _Scored(record.result, table["item"].to_pylist(), scores)


def _make_row(store: Store, bases: _Bases, want: Wanted) -> dict[Hashable, Any]:
    base = bases.get(want.base, want.benchmark)
    ours = base if want.cell == want.base else _read_scored(store, want.cell, want.benchmark)
    assert ours is not None, "its record is there"
    names = ("score", "standard_error", "num_items", "num_scored", "reason")
    row: dict[Hashable, Any] = {name: ours.result[name] for name in names}
    row |= {"cell": want.cell, "benchmark": want.benchmark}
    if base is None:
        return row
    row["base_score"] = base.result["score"]
    if want.cell == want.base:
        return row
    difference = _differences(ours, base)
    row["num_paired"] = len(difference)
    if len(difference):
        row["gain"] = float(difference.mean())
    if len(difference) > 1:
        row["gain_se"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return row


def _differences(ours: _Scored, base: _Scored) -> NDArray[np.float64]:
    """Return our score minus the base's for each item that both were scored on."""
    if ours.items == base.items:
        theirs = base.scores
    else:
        by_item = dict(zip(base.items, base.scores, strict=True))
        theirs = np.array([by_item.get(item, np.nan) for item in ours.items])
    difference = ours.scores - theirs
    return difference[~np.isnan(difference)]


def _stamp(store: Store, cell: str, benchmark: str) -> str | None:
    try:
        # Text, since a path object would cost more than the question does.
        facts = os.stat(f"{store.layout.score(cell, benchmark)}/{RECORD_NAME}")  # noqa: PTH116
    except FileNotFoundError:
        return None
    return f"{facts.st_mtime_ns}.{facts.st_size}"


def _path(store: Store) -> Path:
    return store.layout.root / "index" / "scores.parquet"


def _read_index(store: Store) -> pd.DataFrame:
    path = _path(store)
    try:
        return pd.read_parquet(path)
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        # Derived data: an index that cannot be read is as good as none.
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def _write_index(store: Store, old: pd.DataFrame, new: pd.DataFrame) -> None:
    table = pd.concat([old, new]).drop_duplicates(["cell", "benchmark"], keep="last")
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), buffer)
    # A store that cannot be written to can still be read: the index only saves time.
    with contextlib.suppress(OSError):
        files.write_atomic(_path(store), buffer.getvalue().to_pybytes())
