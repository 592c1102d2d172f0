"""Offer the verbs of the command line as typed functions that return plain data.

Each verb reads the study file, asks the store, and does its work; nothing is kept in between. The
verbs that need torch (`run` in its workers, `inspect`) import it when they are called, so that
planning and tables do not.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, Unpack

from sft_atlas import machine
from sft_atlas.data.sources import count_quarantined
from sft_atlas.errors import StudyError
from sft_atlas.execute.disk import free_bytes as free_bytes
from sft_atlas.execute.disk import refuse_full_disk
from sft_atlas.execute.placement import NO_WISHES, TrainingWishes
from sft_atlas.execute.tasks import Selection, select_tasks
from sft_atlas.results import (
    Results,
    answer,
    is_study_file,
    results_of_others,
    results_of_study,
)
from sft_atlas.store.known import plan_for_store
from sft_atlas.store.status import Status, read_status
from sft_atlas.store.store import Store, open_store
from sft_atlas.study import loader
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from sft_atlas.analyze.analysis import Analysis
    from sft_atlas.data.inspect import Inspection
    from sft_atlas.decide.proposal import Proposal
    from sft_atlas.decide.recommend import Recommendation
    from sft_atlas.deciding import Wishes
    from sft_atlas.evidence.imported import Imported
    from sft_atlas.execute.rounds import RunResult, View
    from sft_atlas.measure.spectrum import SpectrumRow
    from sft_atlas.measure.weight_pair import PairDrift
    from sft_atlas.store.cell_view import CellView
    from sft_atlas.store.table_names import TableName
    from sft_atlas.store.tables import Tables
    from sft_atlas.study.listed import ListedBenchmark
    from sft_atlas.study.subset import Subset

DEFAULT_STORE: Final = Path("store")

StudyPath = str | os.PathLike[str]

T = TypeVar("T")


def load_study(path: StudyPath) -> Study:
    """Read a study file; counts the malformed rows of `quarantine` datasets for their identity."""
    return loader.load_study(Path(path), count_quarantined=count_quarantined)


def plan(study: StudyPath, *, store: Path | None = None, device: str | None = None) -> Plan:
    """Plan a study against what a store holds; None: the default one.

    Times rest on what was measured in that store: this machine's profile (`doctor`), lengths of
    samples, finished runs. With `device`, the name of a card, they rest on the card alone.

    Raises:
        StoreError: if `store` is given and its disk cannot hold what is missing.
    """
    opened = open_store(store or DEFAULT_STORE)
    loaded = _open_study(study, opened)
    planned = plan_for_store(loaded, opened, device=device)
    if store is not None:
        refuse_full_disk(planned, opened)
    return planned


def subsets(study: Study) -> "dict[str, Subset]":
    """Return which items each benchmark of a plan's study asks, where they are on this machine."""
    from sft_atlas.execute.rounds import find_subsets

    return find_subsets(study)


def run(
    study: StudyPath,
    *,
    store: Path = DEFAULT_STORE,
    workers: int | None = None,
    only: Sequence[str] = (),
    until_se: float | None = None,
    training: TrainingWishes = NO_WISHES,
    view: "View | None" = None,
) -> "RunResult":
    """Do what is missing of a study on this machine.

    Args:
        study: the study file.
        store: where results are and go.
        workers: processes; None: one per GPU, or per usable core.
        only: terms that select jobs, see `execute.tasks.select_tasks`.
        until_se: raise the benchmarks' limits, for all cells alike, until no gain's standard error
            is above so many points (hundredths of a score's range).
        training: how training runs are placed: how many in one model, in how much memory.
        view: is given the tasks of each round and gives a listener for its events.

    Raises:
        StudyError: if the study file is wrong or a benchmark cannot be scored.
        StoreError: if the store is no store or its disk is too small.
    """
    from sft_atlas.execute.rounds import RunOptions, run_study

    options = RunOptions(
        workers=workers, only=only, until_se=until_se, training=training, view=view
    )
    return run_study(load_study(study), open_store(store, create=True), options)


def select(study: StudyPath, *, store: Path = DEFAULT_STORE, only: Sequence[str] = ()) -> Selection:
    """Return what `run` would do, without doing it."""
    opened = open_store(store)
    planned = plan_for_store(_open_study(study, opened), opened)
    return select_tasks(planned, opened, only)


def status(study: StudyPath, *, store: Path = DEFAULT_STORE) -> Status:
    """Say how far a study is, why cells failed, and what time it takes beside what was expected."""
    opened = open_store(store)
    return read_status(make_plan(_open_study(study, opened)), opened)


def inspect(study: StudyPath, *, dataset: str, model: str, num_examples: int = 3) -> "Inspection":
    """Show what a model is taught by a dataset: decoded examples, what is supervised, what is
    dropped.
    """
    from sft_atlas.data.inspect import inspect_dataset

    loaded = load_study(study)
    return inspect_dataset(
        _find(dataset, {d.spec.name: d.spec for d in loaded.datasets}, study, "dataset"),
        _find(model, {m.spec.name: m.spec for m in loaded.models}, study, "model"),
        template=loaded.template,
        max_tokens=loaded.max_tokens,
        num_examples=num_examples,
        subset_seed=loaded.subset_seed,
    )


def table(
    study: StudyPath, *, store: Path = DEFAULT_STORE, of: "TableName" = "scores"
) -> "pd.DataFrame":
    """Return one tidy table of a study, or of imported results by their name.

    `scores` has one row per cell and benchmark: labels, score, gain over the base, and why one is
    missing. The others are named after what was measured (docs/records.md).
    """
    from sft_atlas.store.tables import grid_of, load_table

    opened = open_store(store)
    if not is_study_file(Path(study)):
        return _imported_table(results_of_others(str(study), opened), of)
    return load_table(opened, grid_of(_open_study(study, opened)), of)


def _imported_table(found: Results, name: "TableName") -> "pd.DataFrame":
    if name not in ("scores", "cells"):
        raise StudyError(
            f"{found.name}: imported results have no table {name!r}; expected scores or cells."
        )
    return found.tables.scores if name == "scores" else found.tables.cells


def tables(study: StudyPath, *, store: Path = DEFAULT_STORE) -> "Tables":
    """Return all tables of a study, or of imported results: cells, scores, loss curves and
    everything measured.
    """
    return _results(study, open_store(store)).tables


def answers(study: StudyPath, *, store: Path = DEFAULT_STORE) -> "Analysis":
    """Answer a study's questions, or those that imported results can answer.

    Findings have an estimate, its 95 % interval, n, unit, method and the cells behind them.
    """
    return answered(study, store=store)[0]


def answered(
    study: StudyPath, *, store: Path = DEFAULT_STORE
) -> "tuple[Analysis, Imported | None]":
    """Return the answers with the imported results that they rest on, if any."""
    found = _results(study, open_store(store))
    return answer(found), found.imported


def recommend(
    model: str,
    weights: Mapping[str, float],
    *,
    evidence: Sequence[StudyPath] = (),
    store: Path = DEFAULT_STORE,
    **options: Unpack["Wishes"],
) -> "Recommendation":
    """Rank what a model could be trained with, for a weighted mix of benchmarks.

    `evidence` are study files and names of imported results; without any, all that the store holds.
    Options are `budget_gpu_hours`, `family` and `device`. Raises `StoreError` where there is no
    evidence, and as `decide.recommend.recommend`.
    """
    from sft_atlas.deciding import recommend_from

    opened = open_store(store)
    found = _evidence(evidence, opened)
    return recommend_from(found, model=model, weights=weights, **options)


def next_cells(
    study: StudyPath,
    weights: Mapping[str, float],
    *,
    budget_gpu_hours: float,
    evidence: Sequence[StudyPath] = (),
    store: Path = DEFAULT_STORE,
    device: str | None = None,
) -> "Proposal":
    """Propose the missing runs of a study that reduce the regret of its decisions most per
    GPU-hour; `evidence` as in `recommend`, and what the study itself has measured always counts.
    """
    from sft_atlas.deciding import propose_from

    opened = open_store(store)
    planned = plan_for_store(_open_study(study, opened), opened, device=device)
    found = [results_of_study(planned.study, opened)]
    found += _evidence(evidence, opened, is_needed=False)
    return propose_from(found, planned, weights=weights, budget_gpu_hours=budget_gpu_hours)


def show(cell: str, *, store: Path = DEFAULT_STORE) -> "CellView":
    """Return everything known of one cell, by the first characters of its fingerprint."""
    from sft_atlas.store.cell_view import view_cell

    return view_cell(open_store(store), cell)


def report(
    study: StudyPath,
    *,
    store: Path = DEFAULT_STORE,
    output: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Write the report of a study, or of imported results, as one HTML file; returns its path.

    With `figures`, a folder, every chart and table is also written as files (extra `figures`).
    """
    from sft_atlas.reporting import write_results_report

    opened = open_store(store)
    return write_results_report(
        _results(study, opened), opened, study_file=Path(study), output=output, figures=figures
    )


def import_results(
    kind: str,
    source: str | Path,
    *,
    store: Path = DEFAULT_STORE,
    name: str | None = None,
    labels: Path | None = None,
) -> "Imported":
    """Read results that somebody else measured, test them, and keep them under a name.

    Args:
        kind: what wrote them: massive-sft, lm-eval, opencompass or eval-results.
        source: a file or folder, or an http(s) address of a file.
        store: where they are kept.
        name: what to call them; None: the source's own name.
        labels: a YAML file that says what each model was trained on (docs/evidence.md).

    Raises:
        DataError: if the source cannot be read.
        StudyError: for a wrong file of labels.
        StoreError: if the name stands for other results.
    """
    from sft_atlas.evidence.fetched import fetched
    from sft_atlas.evidence.imported import import_results as read
    from sft_atlas.evidence.stored import check_name, store_evidence

    if name is not None:
        check_name(name)
    # A folder that is no store is refused before anything is read, and made after all was.
    open_store(store)
    with fetched(str(source)) as path:
        found = read(kind, path, name=name, labels=labels, origin=str(source))
    store_evidence(open_store(store, create=True), found)
    return found


def drift(base: Path, tuned: Path) -> "PairDrift":
    """Measure how far a tuned model, or an adapter, lies from its base: two folders on this disk.

    Raises:
        StoreError: if they are not two states of one model.
        DataError: if a weight is NaN or infinite.
    """
    from sft_atlas.measure.weight_pair import measure_pair

    return measure_pair(base, tuned)


def spectra(base: Path, tuned: Path) -> "list[SpectrumRow]":
    """Return the spectrum of each matrix's change with its intruders; raises as `drift`."""
    from sft_atlas.measure.spectrum import folder_spectra

    return list(folder_spectra(base, tuned))


def build_miniature(
    out: Path, *, only: Sequence[str] | None = None, report: Callable[[str], None] = print
) -> list[Path]:
    """Make the miniature world anew; returns the folders of its base models."""
    from sft_atlas.miniature.build import build

    return build(out, only=only, report=report)


def new(name: str, *, folder: Path = Path()) -> Path:
    """Write a commented starter study `NAME.yaml`; an existing file is never replaced."""
    path = folder / f"{name}.yaml"
    text = resources.files("sft_atlas.cli").joinpath("starter.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text.format(name=name))
    except FileExistsError as error:
        raise StudyError(f"{path}: exists already; choose another name.") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be written ({error}); choose another folder.") from error
    try:
        loader.load_study(path)
    except StudyError:
        path.unlink()
        raise
    return path


def benchmarks(name: str | None = None) -> "list[ListedBenchmark]":
    """Return the benchmarks of the catalog with their cards and definitions, or the one named."""
    from sft_atlas.study.listed import find_listed, list_benchmarks

    return list_benchmarks() if name is None else [find_listed(name)]


def doctor(
    study: StudyPath | None = None, *, store: Path = DEFAULT_STORE, measure: bool = False
) -> list[machine.Check]:
    """Look at what this machine can do, and what is missing for what.

    With `measure` its device is timed, and those base models of a study that are on this machine;
    the store keeps it, and plans rest on it. Raises StudyError for a study without `measure`.
    """
    from sft_atlas.execute.examination import examine, measure_device

    if measure:
        loaded = None if study is None else load_study(study)
        measure_device(loaded, open_store(store, create=True))
    elif study is not None:
        raise StudyError(f"{study}: is read to measure its base models; add --measure.")
    return examine(store)


def _results(study: StudyPath, store: Store) -> Results:
    """Read a study file's results, or imported ones by their name."""
    if is_study_file(Path(study)):
        return results_of_study(_open_study(study, store), store)
    return results_of_others(str(study), store)


def _evidence(named: Sequence[StudyPath], store: Store, *, is_needed: bool = True) -> list[Results]:
    from sft_atlas.deciding import named_evidence

    names = named_evidence(named, store, is_needed=is_needed)
    return [_results(name, store) for name in names]


def _open_study(study: StudyPath, store: Store) -> Study:
    """Read a study with the limits that were raised for it while it ran in this store."""
    from sft_atlas.execute.extend import apply_extensions

    return apply_extensions(load_study(study), store)


def _find(name: str, known: dict[str, T], study: StudyPath, kind: str) -> T:
    if name not in known:
        raise StudyError(f"{study}: has no {kind} {name!r}; expected one of {', '.join(known)}.")
    return known[name]
