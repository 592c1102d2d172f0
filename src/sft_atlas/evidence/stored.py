"""Which results of others does a store hold, and what do they say?

In: results that were read. Out: a record `evidence/<name>/` that never changes, with the tables
beside it. The one decision: a name stands for one content. Other content needs another name,
because a report that was made of the first must stay true.
"""

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd

from sft_atlas.errors import DamagedError, StoreError
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.imported import IMPORTER, Imported
from sft_atlas.identity import payload
from sft_atlas.store.records import REPAIR, make_provenance
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.store.tables import Tables
from sft_atlas.strict_yaml import did_you_mean

SCHEMA: Final = "evidence/1"

_CELLS: Final = "cells.parquet"
_SCORES: Final = "scores.parquet"
_RELEASED: Final = "scores_released.parquet"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def store_evidence(store: Store, found: Imported) -> bool:
    """Keep imported results; returns False where the store holds them already.

    Raises:
        StoreError: if the name cannot be a folder's, or stands for other content.
    """
    check_name(found.name)
    folder = store.layout.evidence(found.name)
    spec = {"kind": found.kind, "name": found.name, "importer": IMPORTER, "sha256": found.sha256}
    result = _result(found)
    is_new = not store.has(folder)
    if is_new:
        started = time.time()
        store.publish(
            folder,
            schema=SCHEMA,
            spec=spec,
            fill=lambda aside: _fill(aside, found, result),
            provenance=lambda: make_provenance(started, origin=found.origin),
        )
    # Another process may have published other results under this name meanwhile.
    known = store.read(folder)
    if (known.spec, known.result) == (spec, result):
        return is_new
    if (known.spec["kind"], known.spec["sha256"]) == (found.kind, found.sha256):
        why = "was made of the same results by another version of the importer"
    else:
        origin = known.provenance.get("origin", "another source")
        why = f"holds other results, from {origin} (SHA-256 {known.spec['sha256'][:12]})"
    raise StoreError(
        f"{folder}: {why}; expected the same results again. Choose another name with --name."
    )


def load_evidence(store: Store, name: str) -> Imported:
    """Read imported results.

    Raises:
        StoreError: if the store has none of this name, or a file of it was altered.
    """
    names = list_evidence(store)
    if name not in names:
        known = did_you_mean(name, names) if names else "it holds none. See `sft-atlas import`."
        raise StoreError(f"{store.layout.root}: has no imported results {name!r}; {known}")
    folder = store.layout.evidence(name)
    try:
        record = store.read_verified(folder)
    except DamagedError as error:
        # No study makes these results anew.
        mend = f"Remove the folder {folder} and import the results again."
        raise DamagedError(str(error).replace(REPAIR, mend), folder) from error
    cells = pd.read_parquet(folder / _CELLS)
    return Imported(
        name=name,
        kind=record.spec["kind"],
        origin=record.provenance.get("origin", ""),
        sha256=record.spec["sha256"],
        tables=_tables(cells, pd.read_parquet(folder / _SCORES)),
        released=_tables(cells, pd.read_parquet(folder / _RELEASED)),
        defects=tuple(_defect(found) for found in record.result["defects"]),
        checks=tuple(record.result["checks"]),
        notes=tuple(record.result["notes"]),
    )


def list_evidence(store: Store) -> tuple[str, ...]:
    """Return the names of the results that `load_evidence` can read, sorted."""
    names = sorted(list_names(store.layout.evidences))
    return tuple(name for name in names if store.has(store.layout.evidence(name)))


def check_name(name: str) -> None:
    """Raise StoreError where results cannot be kept under a name."""
    if _NAME.fullmatch(name) is None:
        raise StoreError(
            f"name {name!r}: cannot name a folder; expected up to 64 letters, digits, '.', '-' or "
            f"'_', the first a letter or digit. Choose one with --name."
        )


def _result(found: Imported) -> dict[str, Any]:
    """The record's result, as JSON gives it back."""
    said: dict[str, Any] = payload(
        {
            **found.counts(),
            "defects": [asdict(defect) for defect in found.defects],
            "checks": found.checks,
            "notes": found.notes,
        }
    )
    return said


def _fill(aside: Path, found: Imported, result: dict[str, Any]) -> dict[str, Any]:
    found.tables.cells.to_parquet(aside / _CELLS, index=False)
    found.tables.scores.to_parquet(aside / _SCORES, index=False)
    found.released.scores.to_parquet(aside / _RELEASED, index=False)
    return result


def _tables(cells: pd.DataFrame, scores: pd.DataFrame) -> Tables:
    empty = pd.DataFrame()
    return Tables(cells=cells, scores=scores, drift=empty, datasets=empty, curves=empty)


def _defect(found: dict[str, Any]) -> Defect:
    return Defect(**found | {"columns": tuple(found["columns"]), "rows": tuple(found["rows"])})
