"""List what a store holds, for the planner; and find what was damaged since it was published."""

import os
from collections.abc import Iterator
from pathlib import Path

from sft_atlas.errors import DamagedError, StoreError
from sft_atlas.store.records import RECORD_NAME, check_artifact
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.study.missing import Inventory

_PUBLISHED = (
    "prepared",
    "requests",
    "trajectories",
    "cells",
    "probes",
    "answers",
    "scores",
    "measures",
    "descriptions",
    "similarities",
    "updates",
    "maps",
    "datasets",
    "overlap",
    "extensions",
    "profiles",
    "failures",
)


def read_inventory(store: Store) -> Inventory:
    """Return the fingerprints of all published results; a folder that is there is complete."""
    return Inventory(
        cells=frozenset(list_names(store.layout.cells)),
        scores=_pairs(store.layout.scores),
        answers=_pairs(store.layout.root / "answers"),
        overlaps=frozenset(list_names(store.layout.root / "overlap")),
        measured=_pairs(store.layout.measures),
        descriptions=frozenset(list_names(store.layout.descriptions)),
        similarities=frozenset(list_names(store.layout.similarities)),
        updates=frozenset(list_names(store.layout.updates)),
        datasets=frozenset(list_names(store.layout.root / "datasets")),
        outcomes=frozenset(
            (trajectory, int(last_epoch))
            for trajectory in list_names(store.layout.root / "trajectories")
            for last_epoch in list_names(store.layout.trajectory(trajectory))
        ),
    )


def _pairs(folder: Path) -> frozenset[tuple[str, str]]:
    """Return the (cell, benchmark) pairs that stand as folders below a folder."""
    return frozenset(
        (cell, benchmark) for cell in list_names(folder) for benchmark in list_names(folder / cell)
    )


def set_damaged_aside(store: Store) -> list[Path]:
    """Check every published folder against its digests and move damaged ones to quarantine.

    Weights are checked by size alone: reading terabytes before each run would cost more than it
    finds, and their bytes are checked when they are loaded. What another version published is whole
    and stays. Returns the folders that were moved away.
    """
    damaged = []
    for folder in _published(store.layout.root):
        try:
            record = store.read(folder)
            for name, artifact in record.artifacts.items():
                if not name.endswith(".safetensors"):
                    check_artifact(folder, record, name)
                elif (folder / name).stat().st_size != artifact.num_bytes:
                    raise DamagedError(f"{folder / name}: has another size than published.", folder)
        except (DamagedError, FileNotFoundError):
            store.set_aside(folder)
            damaged.append(folder)
        except StoreError:
            continue  # of another version, or gone since it was listed
    return damaged


def _published(root: Path) -> Iterator[Path]:
    for top in _PUBLISHED:
        for folder, names, files in os.walk(root / top):
            if RECORD_NAME in files:
                names.clear()
                yield Path(folder)
