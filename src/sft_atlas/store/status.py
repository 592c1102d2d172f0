"""Say how far a study is: what is done, running, failed and why, or missing, block by block."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_atlas.store.known import plan_for_store
from sft_atlas.store.progress import Progress, read_progress
from sft_atlas.store.states import CellState, Wish, read_states
from sft_atlas.store.store import Store
from sft_atlas.study.job import (
    DescribeJob,
    EvaluateJob,
    MeasureJob,
    OverlapJob,
    SimilarityJob,
    TrainJob,
    UpdatesJob,
    job_title,
)
from sft_atlas.study.measure import CellMeasure
from sft_atlas.study.plan import Plan

_CELLLESS = (MeasureJob, OverlapJob, DescribeJob, SimilarityJob, UpdatesJob)

BASE_BLOCK = "base"
"""Stands for the base models, which belong to no block."""


@dataclass(frozen=True, kw_only=True)
class BlockStatus:
    """How far one block is; base models are in a block of their own, named `base`."""

    block: str
    planned: int
    done: int
    running: int
    failed: dict[str, int]
    """Failed cells by kind of failure."""
    missing: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that could not be made, or something that could not be measured, and why."""

    cell: str
    """Fingerprint; empty for what is measured of no single cell."""
    description: str
    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a study is."""

    study: str
    store: Path
    blocks: tuple[BlockStatus, ...]
    failures: tuple[Failure, ...]
    running: tuple[dict[str, Any], ...]
    """Process id, host and start of each job that is held now."""
    progress: Progress | None = None
    """What training took beside what was expected, and the time that is left."""


def wishes(plan: Plan) -> list[Wish]:
    """Return what a study wants of each of its cells; `plan` must be that of an empty store."""
    needs: dict[str, frozenset[str]] = defaultdict(frozenset)
    measures: dict[str, tuple[CellMeasure, ...]] = {}
    for planned in plan.jobs:
        if isinstance(planned.job, TrainJob):
            for cell in planned.job.cells:
                needs[cell.fingerprint] |= planned.needs
                measures[cell.fingerprint] = planned.job.measures_of(cell)
        elif isinstance(planned.job, EvaluateJob):
            measures[planned.job.cell.fingerprint] = planned.job.measures
    return [
        Wish(
            cell=item.cell,
            blocks=item.blocks,
            needs=needs[item.cell.fingerprint],
            measures=measures.get(item.cell.fingerprint, ()),
        )
        for item in [*plan.bases, *plan.cells]
    ]


def read_status(plan: Plan, store: Store) -> Status:
    """Compare what a study wants with what the store holds; `plan` is that of an empty store."""
    wanted = wishes(plan)
    states = read_states(store, wanted, plan.study.benchmark_specs)
    by_block: dict[str, list[CellState]] = {block.name: [] for block in plan.blocks}
    by_block[BASE_BLOCK] = []
    failures = []
    for wish in wanted:
        state = states[wish.cell.fingerprint]
        for block in wish.blocks or (BASE_BLOCK,):
            by_block[block].append(state)
        if state.name == "failed":
            failures.append(
                Failure(
                    cell=wish.cell.fingerprint,
                    description=wish.cell.description,
                    kind=state.failure_kind or "error",
                    message=state.failure_message or "",
                )
            )
    return Status(
        study=plan.study.name,
        store=store.layout.root,
        blocks=tuple(_block_status(name, found) for name, found in by_block.items()),
        failures=(*failures, *_failed_measures(plan, store)),
        running=tuple(store.holders().values()),
        progress=read_progress(plan_for_store(plan.study, store, draft=plan.draft)),
    )


def _failed_measures(plan: Plan, store: Store) -> list[Failure]:
    failures = []
    for planned in plan.jobs:
        job = planned.job
        record = store.find(store.layout.failure(job.fingerprint))
        if record and isinstance(job, _CELLLESS):
            failures.append(
                Failure(
                    cell="",
                    description=job_title(job),
                    kind=record.result["kind"],
                    message=record.result["message"],
                )
            )
    return failures


def _block_status(name: str, states: list[CellState]) -> BlockStatus:
    counts = Counter(state.name for state in states)
    return BlockStatus(
        block=name,
        planned=len(states),
        done=counts["done"],
        running=counts["running"],
        failed=dict(Counter(s.failure_kind or "error" for s in states if s.name == "failed")),
        missing=counts["missing"],
    )
