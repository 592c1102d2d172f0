"""Keep a derived table of all scores and paired gains, so that 1,000 cells are read in a blink.

One row per cell and benchmark, made from the published records and items; the row remembers the
time stamp and size of the record that it came from and is made again when they differ. The index
may be deleted at any time.
"""

import contextlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas import files
from sft_atlas.store.records import RECORD_NAME
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
    items = _Items(store)
    for want in wanted:
        stamp = _stamp(store, want.cell, want.benchmark)
        if stamp is None:
            continue
        stamp = f"{stamp} {_stamp(store, want.base, want.benchmark)}"
        row = known.get((want.cell, want.benchmark))
        if row is None or row["stamp"] != stamp:
            is_stale = True
            row = _make_row(store, items, want) | {"stamp": stamp}
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    if is_stale:
        _write_index(store, index, table)
    return table.drop(columns="stamp")


class _Items:
    """Per-item scores, with those of base models kept in memory: every cell is paired with one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[tuple[str, str], pd.Series[float]] = {}

    def read(self, cell: str, benchmark: str) -> "pd.Series[float]":
        path = self._store.artifact(self._store.layout.score(cell, benchmark), "items.parquet")
        table = pq.read_table(path, columns=["item", "score"])
        scores = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        return pd.Series(scores, index=table["item"].to_pylist())

    def base(self, cell: str, benchmark: str) -> "pd.Series[float]":
        key = (cell, benchmark)
        if key not in self._kept:
            self._kept[key] = self.read(cell, benchmark)
        return self._kept[key]


def _make_row(store: Store, items: _Items, want: Wanted) -> dict[Hashable, Any]:
    result = store.read(store.layout.score(want.cell, want.benchmark)).result
    names = ("score", "standard_error", "num_items", "num_scored", "reason")
    row: dict[Hashable, Any] = {name: result[name] for name in names}
    row |= {"cell": want.cell, "benchmark": want.benchmark}
    base = store.find(store.layout.score(want.base, want.benchmark))
    if base is None:
        return row
    row["base_score"] = base.result["score"]
    if want.cell == want.base:
        return row
    ours = items.read(want.cell, want.benchmark)
    difference = (ours - items.base(want.base, want.benchmark).reindex(ours.index)).dropna()
    row["num_paired"] = len(difference)
    if len(difference):
        row["gain"] = float(difference.mean())
    if len(difference) > 1:
        row["gain_se"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return row


def _stamp(store: Store, cell: str, benchmark: str) -> str | None:
    try:
        facts = (store.layout.score(cell, benchmark) / RECORD_NAME).stat()
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
