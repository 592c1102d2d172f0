"""Offer the verbs of the command line as typed functions that return plain data.

Each verb reads the study file, asks the store, and does its work; nothing is kept in between. The
verbs that need torch (`run` in its workers, `inspect`) import it when they are called, so that
planning and tables do not.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from sft_atlas import machine
from sft_atlas.data.sources import count_quarantined
from sft_atlas.errors import StoreError, StudyError
from sft_atlas.execute.local import Event, Outcome, run_tasks
from sft_atlas.execute.placement import detect_placement
from sft_atlas.execute.schedule import Task
from sft_atlas.execute.tasks import Selection, select_tasks
from sft_atlas.store.inventory import read_inventory, set_damaged_aside
from sft_atlas.store.status import Status, read_status, wishes
from sft_atlas.store.store import Store, open_store
from sft_atlas.study import loader
from sft_atlas.study.budget import check_disk
from sft_atlas.study.job import MeasureJob
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.spec import Source
from sft_atlas.study.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from sft_atlas.data.inspect import Inspection
    from sft_atlas.store.cell_view import CellView
    from sft_atlas.store.tables import Grid, Tables

DEFAULT_STORE: Final = Path("store")

_MINIATURE_NOTICE: Final = (
    "Models and tasks of this study are synthetic and very small: the miniature world. Learning in "
    "it is real, but its figures say nothing about large models."
)

StudyPath = str | os.PathLike[str]

Listener = Callable[[Event], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run did."""

    num_done: int
    num_failed: int
    num_blocked: int
    """Jobs that could not start because one that they need failed."""
    num_left: int
    """Jobs that were not done because the run was interrupted."""
    num_failed_before: int
    """Jobs that failed in an earlier run and were left alone."""
    set_aside: tuple[Path, ...]
    """Damaged results that were moved to quarantine and made anew."""
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Nothing failed, now or earlier, and nothing is left."""
        problems = self.num_failed + self.num_blocked + self.num_left + self.num_failed_before
        return problems == 0


def load_study(path: StudyPath) -> Study:
    """Read a study file; counts the malformed rows of `quarantine` datasets for their identity."""
    return loader.load_study(Path(path), count_quarantined=count_quarantined)


def plan(study: StudyPath, *, store: Path | None = None, device: str | None = None) -> Plan:
    """Plan a study against what a store holds; None: the default one.

    Raises:
        StoreError: if `store` is given and its disk cannot hold what is missing.
    """
    opened = open_store(store or DEFAULT_STORE)
    planned = make_plan(load_study(study), read_inventory(opened), device=device)
    if store is not None:
        _refuse_full_disk(planned, store)
    return planned


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk where a folder is or would be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def run(
    study: StudyPath,
    *,
    store: Path = DEFAULT_STORE,
    workers: int | None = None,
    only: Sequence[str] = (),
    view: Callable[[Sequence[Task]], AbstractContextManager[Listener]] | None = None,
) -> RunResult:
    """Do what is missing of a study on this machine.

    Args:
        study: the study file.
        store: where results are and go.
        workers: processes; None: one per GPU, or per usable core.
        only: terms that select jobs, see `execute.tasks.select_tasks`.
        view: is given the tasks and gives a listener for the run's events.

    Raises:
        StudyError: if the study file is wrong or a benchmark cannot be scored.
        StoreError: if the store is no store or its disk is too small.
    """
    started = time.monotonic()
    loaded = load_study(study)
    _refuse_unscored(loaded)
    opened = open_store(store, create=True)
    opened.sweep()
    set_aside = set_damaged_aside(opened)
    planned = make_plan(loaded, read_inventory(opened))
    _refuse_full_disk(planned, store)
    selection = select_tasks(planned, opened, only)
    outcome = _run_selection(selection, opened, workers, view)
    if outcome.num_done:
        table(study, store=store)  # brings the index of scores up to date
    return RunResult(
        num_done=outcome.num_done,
        num_failed=outcome.num_failed,
        num_blocked=outcome.num_blocked,
        num_left=outcome.num_left,
        num_failed_before=selection.num_failed_before,
        set_aside=tuple(set_aside),
        seconds=time.monotonic() - started,
    )


def select(study: StudyPath, *, store: Path = DEFAULT_STORE, only: Sequence[str] = ()) -> Selection:
    """Return what `run` would do, without doing it."""
    opened = open_store(store)
    return select_tasks(make_plan(load_study(study), read_inventory(opened)), opened, only)


def status(study: StudyPath, *, store: Path = DEFAULT_STORE) -> Status:
    """Say how far a study is, and why cells failed."""
    return read_status(make_plan(load_study(study)), open_store(store))


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


def table(study: StudyPath, *, store: Path = DEFAULT_STORE) -> "pd.DataFrame":
    """Return one row per cell and benchmark: labels, score, gain over the base, and why one is
    missing.
    """
    from sft_atlas.store.tables import cells_table, scores_table

    opened = open_store(store)
    grid = _grid(study)
    return scores_table(opened, grid, cells_table(opened, grid))


def tables(study: StudyPath, *, store: Path = DEFAULT_STORE) -> "Tables":
    """Return all tables of a study: cells, scores, drift, datasets and loss curves."""
    from sft_atlas.store.tables import load_tables

    return load_tables(open_store(store), _grid(study))


def show(cell: str, *, store: Path = DEFAULT_STORE) -> "CellView":
    """Return everything known of one cell, by the first characters of its fingerprint."""
    from sft_atlas.store.cell_view import view_cell

    return view_cell(open_store(store), cell)


def report(study: StudyPath, *, store: Path = DEFAULT_STORE, output: Path | None = None) -> Path:
    """Write the study's report as one HTML file; returns its path."""
    from sft_atlas.render.html import ReportMeta, write_report

    loaded = load_study(study)
    is_miniature = any(_is_bundled(model.spec.source) for model in loaded.models)
    meta = ReportMeta(
        study=loaded.name,
        description=loaded.about,
        notice=_MINIATURE_NOTICE if is_miniature else "",
        study_file=Path(study).read_text(encoding="utf-8"),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        provenance=_provenance(loaded, store),
    )
    path = output or Path(f"report-{loaded.name}.html")
    if not path.absolute().parent.is_dir():
        raise StudyError(f"{path}: its folder does not exist; make it, or use --output.")
    return write_report(tables(study, store=store), meta, path)


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


def doctor(*, store: Path = DEFAULT_STORE) -> list[machine.Check]:
    """Look at what this machine can do, and what is missing for what."""
    return machine.examine(store)


def _grid(study: StudyPath) -> "Grid":
    from sft_atlas.store.tables import Grid

    planned = make_plan(load_study(study))
    return Grid(
        cells=wishes(planned),
        benchmarks=planned.study.benchmark_specs,
        measures=[p.job for p in planned.jobs if isinstance(p.job, MeasureJob)],
    )


def _run_selection(
    selection: Selection,
    store: Store,
    workers: int | None,
    view: Callable[[Sequence[Task]], AbstractContextManager[Listener]] | None,
) -> Outcome:
    if not selection.tasks:
        return Outcome(num_done=0, num_failed=0, num_blocked=0, num_left=0)
    show = view(selection.tasks) if view else nullcontext(lambda _event: None)
    log = store.layout.log / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with show as listener, log.open("a", encoding="utf-8") as stream:

        def listen(event: Event) -> None:
            if event.kind != "progress":
                facts = {"kind": event.kind, "job": event.job, "text": event.text}
                line = facts | {"seconds": event.seconds, "time": round(time.time(), 3)}
                stream.write(json.dumps(line) + "\n")
                stream.flush()
            listener(event)

        return run_tasks(
            selection.tasks, store=store, placement=detect_placement(workers), listen=listen
        )


def _provenance(study: Study, store: Path) -> list[tuple[str, str]]:
    models = [(f"model {m.spec.name}", _source_text(m.spec.source)) for m in study.models]
    datasets = [(f"dataset {d.spec.name}", _source_text(d.spec.source)) for d in study.datasets]
    versions = [
        (name, metadata.version(name)) for name in ("sft-atlas", "torch", "transformers", "numpy")
    ]
    return [*versions, ("store", str(store)), *models, *datasets]


def _is_bundled(source: Source) -> bool:
    return source.path is not None and Path(__file__).parent in source.path.parents


def _source_text(source: Source) -> str:
    if source.hub:
        return f"{source.hub} at {source.revision or 'its main branch'}"
    return f"SHA-256 {source.sha256}"


def _refuse_full_disk(planned: Plan, store: Path) -> None:
    refusal = check_disk(planned.cost, free_bytes(store))
    if refusal:
        raise StoreError(f"{store}: {refusal}")


def _refuse_unscored(study: Study) -> None:
    for benchmark in study.benchmarks:
        if benchmark.spec is None:
            raise StudyError(f"{study.path}: benchmark {benchmark.name} {benchmark.reason}")


def _find(name: str, known: dict[str, T], study: StudyPath, kind: str) -> T:
    if name not in known:
        raise StudyError(f"{study}: has no {kind} {name!r}; expected one of {', '.join(known)}.")
    return known[name]
