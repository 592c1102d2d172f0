"""Say what became of every cell: done, running, failed and why, or missing.

All of it is read from the store; nothing is remembered elsewhere. A cell is done when its weights
and all its scores are published.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_atlas.identity import fingerprint
from sft_atlas.store.store import Store
from sft_atlas.study.spec import BenchmarkSpec, CellSpec

StateName = Literal["done", "running", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class CellState:
    """What the store knows of one cell."""

    name: StateName
    is_trained: bool
    num_scores: int
    """Published scores among the study's benchmarks."""
    failure_kind: str | None = None
    """`diverged`, `oom`, `killed`, `canary`, `damaged` or `error`."""
    failure_message: str | None = None


def read_states(
    store: Store, cells: Iterable[CellSpec], benchmarks: Sequence[BenchmarkSpec]
) -> dict[str, CellState]:
    """Return the state of each cell by its fingerprint."""
    trained = list_names(store.layout.cells)
    failed = list_names(store.layout.failures)
    held = store.holders().keys()
    wanted = {benchmark.fingerprint for benchmark in benchmarks}
    scored = list_names(store.layout.scores)
    states: dict[str, CellState] = {}
    for cell in cells:
        key = cell.fingerprint
        if key in states:
            continue
        scores = wanted & list_names(store.layout.scores / key) if key in scored else set()
        is_trained = cell.trajectory is None or key in trained
        jobs = job_names(cell)
        failure = next((job for job in jobs if job in failed), None)
        name: StateName = "missing"
        if is_trained and len(scores) == len(wanted):
            name, failure = "done", None
        elif any(job in held for job in jobs):
            name, failure = "running", None
        elif failure:
            name = "failed"
        reason = store.read(store.layout.failure(failure)).result if failure else {}
        states[key] = CellState(
            name=name,
            is_trained=is_trained,
            num_scores=len(scores),
            failure_kind=reason.get("kind"),
            failure_message=reason.get("message"),
        )
    return states


def job_names(cell: CellSpec) -> tuple[str, ...]:
    """Return the fingerprints of the jobs that can make or score a cell."""
    evaluate = fingerprint(["evaluate", cell.fingerprint])
    if cell.trajectory is None:
        return (evaluate,)
    return fingerprint(["train", cell.trajectory.fingerprint]), evaluate


def list_names(folder: Path) -> set[str]:
    """Return the names in a folder, or none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()
