"""Turn a study's records into tidy tables: one row per cell, score, layer, dataset or step.

Every number that the analysis or the report uses comes from here; column meanings are in
docs/records.md. Cells that are not done have a row and a state; scores that are missing have a row,
null and a reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from sft_atlas.store.measured import (
    FILES,
    datasets_table,
    descriptions_table,
    find_measure,
    forgetting_table,
    similarities_table,
    stack,
    stacked_table,
    updates_table,
)
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.score_index import COLUMNS, Wanted, load_scores
from sft_atlas.store.scored import GROUP_COLUMNS, group_rows, read_scored
from sft_atlas.store.states import CellState, Wish, read_states
from sft_atlas.store.status import wishes
from sft_atlas.store.store import Store
from sft_atlas.store.table_names import TableName
from sft_atlas.store.vectors import Vectors, benchmark_likelihoods, load_vectors
from sft_atlas.study.job import (
    DescribeJob,
    MeasureJob,
    OverlapJob,
    SimilarityJob,
    UpdatesJob,
)
from sft_atlas.study.measure import LikelihoodMeasure
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.spec import (
    BenchmarkDefinition,
    BenchmarkItems,
    BenchmarkSpec,
    CellSpec,
    base_cell,
)
from sft_atlas.study.study import Study

JobT = TypeVar("JobT", MeasureJob, OverlapJob, DescribeJob, SimilarityJob, UpdatesJob)

LABELS = [
    "trajectory",
    "block",
    "model",
    "family",
    "languages",
    "data",
    "data_kind",
    "data_group",
    "samples",
    "num_samples",
    "method",
    "method_kind",
    "schedule",
    "horizon_epochs",
    "epoch",
    "seed",
]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells and benchmarks that tables are made of."""

    cells: Sequence[Wish]
    """Each cell once, base models included."""
    benchmarks: Sequence[BenchmarkSpec]
    measures: Sequence[MeasureJob] = ()
    overlaps: Sequence[OverlapJob] = ()
    descriptions: Sequence[DescribeJob] = ()
    similarities: Sequence[SimilarityJob] = ()
    updates: Sequence[UpdatesJob] = ()


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All tables of a study, as pandas frames; docs/records.md lists the columns."""

    cells: pd.DataFrame
    scores: pd.DataFrame
    drift: pd.DataFrame
    datasets: pd.DataFrame
    curves: pd.DataFrame
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    descriptions: pd.DataFrame = field(default_factory=pd.DataFrame)
    similarities: pd.DataFrame = field(default_factory=pd.DataFrame)
    forgetting: pd.DataFrame = field(default_factory=pd.DataFrame)
    representations: pd.DataFrame = field(default_factory=pd.DataFrame)
    scans: pd.DataFrame = field(default_factory=pd.DataFrame)
    updates: pd.DataFrame = field(default_factory=pd.DataFrame)
    vectors: Vectors | None = None
    """Log-likelihoods of all cells on one text set; None where none was measured."""


def load_table(store: Store, grid: Grid, name: TableName) -> pd.DataFrame:
    """Read one table alone."""
    if name in FILES:
        return stacked_table(store, grid.cells, name)
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "scores": lambda: scores_table(store, grid, cells_table(store, grid)),
        "cells": lambda: cells_table(store, grid),
        "curves": lambda: curves_table(store, cells_table(store, grid)),
        "updates": lambda: updates_table(store, grid.updates),
        "datasets": lambda: datasets_table(store, grid.measures),
        "descriptions": lambda: descriptions_table(store, grid.descriptions),
        "similarities": lambda: similarities_table(store, grid.similarities, _names_by_items(grid)),
        "forgetting": lambda: forgetting_table(store, grid.cells),
        "benchmark_likelihoods": lambda: _benchmark_likelihoods(store, grid),
    }
    return makers[name]()


def grid_of(study: Study) -> Grid:
    """Return everything that a study wants, whether or not the store holds it."""
    planned = make_plan(study)
    return Grid(
        cells=wishes(planned),
        benchmarks=study.benchmark_specs,
        measures=_jobs(planned, MeasureJob),
        overlaps=_jobs(planned, OverlapJob),
        descriptions=_jobs(planned, DescribeJob),
        similarities=_jobs(planned, SimilarityJob),
        updates=_jobs(planned, UpdatesJob),
    )


def load_tables(store: Store, grid: Grid) -> Tables:
    """Read everything that the store holds of a study."""
    cells = cells_table(store, grid)
    return Tables(
        cells=cells,
        scores=scores_table(store, grid, cells),
        curves=curves_table(store, cells),
        drift=load_table(store, grid, "drift"),
        spectra=load_table(store, grid, "spectra"),
        updates=load_table(store, grid, "updates"),
        datasets=load_table(store, grid, "datasets"),
        descriptions=load_table(store, grid, "descriptions"),
        similarities=load_table(store, grid, "similarities"),
        forgetting=load_table(store, grid, "forgetting"),
        representations=load_table(store, grid, "representations"),
        scans=load_table(store, grid, "scans"),
        vectors=likelihood_vectors(store, grid),
    )


def _benchmark_likelihoods(store: Store, grid: Grid) -> pd.DataFrame:
    vectors = likelihood_vectors(store, grid)
    return (
        pd.DataFrame()
        if vectors is None
        else benchmark_likelihoods(vectors, cells_table(store, grid))
    )


def likelihood_vectors(store: Store, grid: Grid) -> Vectors | None:
    """Return the log-likelihoods of all cells that have them, or None."""
    measures = [find_measure(wish.measures, "likelihood") for wish in grid.cells]
    wanted = next((m for m in measures if isinstance(m, LikelihoodMeasure)), None)
    if wanted is None:
        return None
    names = [
        wish.cell.fingerprint
        for wish, measure in zip(grid.cells, measures, strict=True)
        if measure is not None
    ]
    vectors = load_vectors(store, names, wanted)
    return vectors if vectors.cells else None


def _jobs(plan: Plan, kind: type[JobT]) -> list[JobT]:
    return [planned.job for planned in plan.jobs if isinstance(planned.job, kind)]


def _names_by_items(grid: Grid) -> dict[str, Sequence[str]]:
    names: dict[str, list[str]] = {}
    for benchmark in grid.benchmarks:
        if isinstance(benchmark.definition, BenchmarkDefinition):
            items = BenchmarkItems(definition=benchmark.definition, items=benchmark.items)
            names.setdefault(items.fingerprint, []).append(benchmark.name)
    return {key: tuple(found) for key, found in names.items()}


def cells_table(store: Store, grid: Grid) -> pd.DataFrame:
    """Return one row per cell: its labels and what became of it."""
    states = read_states(store, grid.cells, grid.benchmarks)
    rows = [
        {"cell": wish.cell.fingerprint, "block": ";".join(wish.blocks)}
        | labels(wish.cell)
        | _state_columns(states[wish.cell.fingerprint])
        for wish in grid.cells
    ]
    columns = ["cell", *LABELS, "state", "is_trained", "failure_kind", "failure_message"]
    whole = ["samples", "num_samples", "horizon_epochs", "epoch", "seed"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(whole, "Int64"))


def scores_table(store: Store, grid: Grid, cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell and benchmark, whether scored or not, with its gain over the base."""
    bases = {w.cell.fingerprint: base_cell(w.cell.model).fingerprint for w in grid.cells}
    names = {benchmark.fingerprint: benchmark for benchmark in grid.benchmarks}
    wanted = [
        Wanted(cell=cell, base=base, benchmark=benchmark)
        for cell, base in bases.items()
        for benchmark in names
    ]
    wishes = pd.DataFrame(
        [(want.cell, want.benchmark) for want in wanted], columns=["cell", "fingerprint"]
    )
    found = load_scores(store, wanted).rename(columns={"benchmark": "fingerprint"})
    table = wishes.merge(found, on=["cell", "fingerprint"], how="left")
    table = table.merge(cells, on="cell")
    known = pd.DataFrame(
        [(key, b.name, b.skill, b.language, b.definition.metric) for key, b in names.items()],
        columns=["fingerprint", "benchmark", "skill", "language", "metric"],
    )
    table = table.merge(known, on="fingerprint").drop(columns="fingerprint")
    unscored = table["score"].isna() & table["reason"].isna()
    reasons = table["failure_message"].fillna("not evaluated yet")
    table["reason"] = table["reason"].mask(unscored, reasons)
    # The index's columns begin with cell, benchmark and the stamp, which it keeps for itself.
    measured = list(COLUMNS)[3:]
    facts = ["cell", "benchmark", "skill", "language", "metric", "in_mean"]
    return table.assign(in_mean=True)[[*facts, *measured, *LABELS, "state"]]


def groups_table(store: Store, grid: Grid, cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell, benchmark and group of items, for benchmarks whose items have one.

    `test` is the benchmark's family, or its name. Every item of those benchmarks is read: that
    takes seconds to minutes for a thousand cells.
    """
    rows = []
    for benchmark in grid.benchmarks:
        # Only an lm-eval task can have groups that its definition does not name: its subtasks.
        if benchmark.definition.group is None and benchmark.definition.kind != "lm-eval":
            continue
        for cell in cells["cell"]:
            if store.has(store.layout.score(cell, benchmark.fingerprint)):
                scored = read_scored(store, cell, benchmark.fingerprint)
                facts = {"cell": cell, "benchmark": benchmark.name}
                facts |= {"test": benchmark.family or benchmark.name}
                facts |= {"skill": benchmark.skill, "language": benchmark.language}
                rows += [facts | group for group in group_rows(scored)]
    names = ["cell", "benchmark", "test", "skill", "language", *GROUP_COLUMNS]
    table = pd.DataFrame(rows, columns=names)
    return table.merge(cells[["cell", *LABELS]], on="cell")


def curves_table(store: Store, cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per trajectory and optimizer step."""
    trajectories = cells[cells["epoch"] > 0]["trajectory"].unique()
    outcomes = {key: longest_outcome(store, key) for key in trajectories}
    folders = {key: folder for key, folder in outcomes.items() if folder}
    return stack(store, folders, "metrics.parquet", "trajectory")


def labels(cell: CellSpec) -> dict[str, Any]:
    """Return a cell's coordinates in words, as table columns."""
    model, trajectory = cell.model, cell.trajectory
    row: dict[str, Any] = {
        "model": model.name,
        "family": model.family,
        "languages": ";".join(model.languages),
        "epoch": cell.epoch,
    }
    if trajectory is None:
        return row | {"data": "base", "method": "base", "data_kind": "base", "method_kind": "base"}
    data = trajectory.data
    groups = {part.dataset.group for part in data.parts}
    return row | {
        "trajectory": trajectory.fingerprint,
        "data": data.name,
        "data_kind": data.kind,
        "data_group": groups.pop() if len(groups) == 1 else "mixed",
        "samples": data.samples,
        "num_samples": data.num_samples,
        "method": trajectory.method.name,
        "method_kind": "lora" if trajectory.method.lora else "full",
        "schedule": trajectory.schedule.kind,
        "horizon_epochs": trajectory.horizon_epochs,
        "seed": trajectory.seed,
    }


def _state_columns(state: CellState) -> dict[str, Any]:
    return {
        "state": state.name,
        "is_trained": state.is_trained,
        "failure_kind": state.failure_kind,
        "failure_message": state.failure_message,
    }
