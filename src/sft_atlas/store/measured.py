"""Read what was measured: one table per kind, whatever the study asked for.

In: the cells with what is measured of each, and the jobs about texts and weights. Out: frames,
empty where nothing was measured. What a record's files hold per row is stacked under its cell; what
its result says becomes one row. docs/records.md lists the columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas.store.states import Wish
from sft_atlas.store.store import Store
from sft_atlas.study.job import DescribeJob, MeasureJob, SimilarityJob, UpdatesJob
from sft_atlas.study.measure import CellMeasure

FILES: Final = {
    "drift": ("drift", "drift.parquet"),
    "spectra": ("spectrum", "spectrum.parquet"),
    "likelihoods": ("likelihood", "likelihood.parquet"),
    "representations": ("representation", "representation.parquet"),
    "scans": ("representation", "scan.parquet"),
}
"""(kind of measure, file) of each table that has rows below its cells."""


def stacked_table(store: Store, wishes: Iterable[Wish], name: str) -> pd.DataFrame:
    """Return the rows of one of `FILES` for every cell that has them, the cell in front."""
    kind, file = FILES[name]
    folders = {cell: folder for cell, _, folder in _measured(store, wishes, kind)}
    return stack(store, folders, file, "cell")


def forgetting_table(store: Store, wishes: Iterable[Wish]) -> pd.DataFrame:
    """Return one row per cell: how far its distributions on neutral text moved from the base's."""
    rows = [
        {"cell": wish.cell.fingerprint} | store.read(folder).result
        for _, wish, folder in _measured(store, wishes, "forgetting")
        if wish.cell.trajectory is not None
    ]
    return pd.DataFrame(rows)


def datasets_table(store: Store, jobs: Iterable[MeasureJob]) -> pd.DataFrame:
    """Return one row per base model and dataset: sums of negative log-likelihoods and lengths."""
    return _results(
        store,
        [(job, store.layout.dataset(job.fingerprint)) for job in jobs],
        lambda job: {
            "model": job.model.name,
            "data": job.dataset.name,
            "samples": job.num_samples,
            "data_group": job.dataset.group,
        },
    )


def descriptions_table(store: Store, jobs: Iterable[DescribeJob]) -> pd.DataFrame:
    """Return one row per dataset: what its rows are like as texts."""
    return _results(
        store,
        [(job, store.layout.description(job.fingerprint)) for job in jobs],
        lambda job: {
            "data": job.dataset.name,
            "samples": job.num_samples,
            "data_group": job.dataset.group,
        },
    )


def similarities_table(
    store: Store, jobs: Iterable[SimilarityJob], benchmarks: dict[str, Sequence[str]]
) -> pd.DataFrame:
    """Return one row per dataset, benchmark and embedder.

    `benchmarks` gives the names of the benchmarks that ask an item set, by its fingerprint: two
    that ask the same items in different ways are equally similar.
    """
    pairs = [
        (pair, name, store.layout.similarity(pair.fingerprint))
        for job in jobs
        for pair in job.pairs
        for name in benchmarks.get(pair.benchmark.fingerprint, ())
    ]
    rows = [
        {
            "data": pair.dataset.name,
            "samples": pair.num_samples,
            "benchmark": name,
            "embedder": pair.embedder.name,
            "model": pair.model.name if pair.model else "",
        }
        | store.read(folder).result
        for pair, name, folder in pairs
        if store.has(folder)
    ]
    return pd.DataFrame(rows)


def updates_table(store: Store, jobs: Iterable[UpdatesJob]) -> pd.DataFrame:
    """Return one row per pair of cells and scope: how alike their weight changes are."""
    folders = {job.model.name: store.layout.update(job.fingerprint) for job in jobs}
    return stack(store, folders, "updates.parquet", "model")


def stack(store: Store, folders: dict[str, Path], file: str, key: str) -> pd.DataFrame:
    """Return the rows of a file below several folders, each folder's name in the column `key`."""
    tables = []
    for name, folder in folders.items():
        if store.has(folder):
            table = pq.read_table(store.artifact(folder, file))
            names = pa.repeat(pa.scalar(name), table.num_rows)
            tables.append(table.add_column(0, key, names))
    return pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame()


def _measured(store: Store, wishes: Iterable[Wish], kind: str) -> Iterator[tuple[str, Wish, Path]]:
    for wish in wishes:
        measure = find_measure(wish.measures, kind)
        if measure is not None:
            folder = store.layout.measure(wish.cell.fingerprint, measure.fingerprint)
            if store.has(folder):
                yield wish.cell.fingerprint, wish, folder


def find_measure(measures: Iterable[CellMeasure], kind: str) -> CellMeasure | None:
    """Return the measure of a kind among those of a cell; a study asks for one of each at most."""
    return next((measure for measure in measures if measure.kind == kind), None)


def _results(
    store: Store, found: Iterable[tuple[Any, Path]], labels: Callable[[Any], dict[str, Any]]
) -> pd.DataFrame:
    rows = [labels(job) | store.read(folder).result for job, folder in found if store.has(folder)]
    return pd.DataFrame(rows)
