"""Say what became of every cell: done, running, failed and why, or missing.

All of it is read from the store; nothing is remembered elsewhere. A cell is done when its weights,
all its scores and all its measures are published.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_atlas.identity import fingerprint
from sft_atlas.store.store import Store
from sft_atlas.study.measure import CellMeasure
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
    """`diverged`, `oom`, `killed`, `canary`, `damaged`, `disk`, `no-sandbox`, `budget`, `judge` or
    `error`."""
    failure_message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a study wants of one cell."""

    cell: CellSpec
    blocks: tuple[str, ...] = ()
    """Blocks that ask for it; none for a base model."""
    needs: frozenset[str] = frozenset()
    """Jobs that must be done before the cell can be trained."""
    measures: tuple[CellMeasure, ...] = ()
    """What is measured of it."""


def read_states(
    store: Store, wishes: Iterable[Wish], benchmarks: Sequence[BenchmarkSpec]
) -> dict[str, CellState]:
    """Return the state of each wanted cell by its fingerprint."""
    held = store.holders().keys()
    failed = list_names(store.layout.failures)
    found = _Found.read(store, benchmarks)
    states: dict[str, CellState] = {}
    for wish in wishes:
        key = wish.cell.fingerprint
        is_trained = wish.cell.trajectory is None or key in found.trained
        num_scores = found.num_scores(key)
        is_measured = found.is_measured(key, wish.measures)
        jobs = (*job_names(wish.cell), *sorted(wish.needs))
        failure = next((job for job in jobs if job in failed), None)
        name: StateName = "missing"
        if is_trained and num_scores == len(found.benchmarks) and is_measured:
            name, failure = "done", None
        elif any(job in held for job in jobs):
            name, failure = "running", None
        elif failure:
            name = "failed"
        reason = store.read(store.layout.failure(failure)).result if failure else {}
        states[key] = CellState(
            name=name,
            is_trained=is_trained,
            num_scores=num_scores,
            failure_kind=reason.get("kind"),
            failure_message=reason.get("message"),
        )
    return states


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Names of published results."""

    store: Store
    trained: set[str]
    scored: set[str]
    measured: set[str]
    benchmarks: set[str]

    @staticmethod
    def read(store: Store, benchmarks: Sequence[BenchmarkSpec]) -> "_Found":
        return _Found(
            store=store,
            trained=list_names(store.layout.cells),
            scored=list_names(store.layout.scores),
            measured=list_names(store.layout.measures),
            benchmarks={benchmark.fingerprint for benchmark in benchmarks},
        )

    def num_scores(self, cell: str) -> int:
        if cell not in self.scored:
            return 0
        return len(self.benchmarks & list_names(self.store.layout.scores / cell))

    def is_measured(self, cell: str, measures: Sequence[CellMeasure]) -> bool:
        if not measures or cell not in self.measured:
            return not measures
        wanted = {measure.fingerprint for measure in measures}
        return wanted <= list_names(self.store.layout.measures / cell)


def job_names(cell: CellSpec) -> tuple[str, ...]:
    """Return the fingerprints of the jobs that can make or score a cell; training comes first."""
    score = tuple(fingerprint([kind, cell.fingerprint]) for kind in ("evaluate", "grade"))
    if cell.trajectory is None:
        return score
    return fingerprint(["train", cell.trajectory.fingerprint]), *score


def list_names(folder: Path) -> set[str]:
    """Return the names in a folder, or none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()
