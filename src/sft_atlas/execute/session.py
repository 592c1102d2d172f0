"""Hold what a worker process keeps between jobs, and do one job with it.

A base model and tokenizers stay in memory; whatever a job leaves behind is published in the store.
Beside `modelless` and `measuring` this is the only module that knows the stages.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO, assert_never, final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_atlas.data.batches import TrainingRows
from sft_atlas.data.encoding import load_tokenizer
from sft_atlas.data.prepared import PreparedRows, prepare
from sft_atlas.errors import Error
from sft_atlas.evaluate.canary import Probe, check_cell, check_golden, probe_model
from sft_atlas.evaluate.evaluate import evaluate_cell
from sft_atlas.execute.assignment import Assignment
from sft_atlas.execute.faults import kept, raise_faults
from sft_atlas.execute.measuring import (
    compare_texts,
    hidden_embed,
    lacks_measures,
    measure_base,
    measure_cell,
    modelless_embed,
    refuse_without_base,
)
from sft_atlas.execute.modelless import compare_updates, describe, grade, look_for_overlap
from sft_atlas.execute.placement import Placement, share_of_memory
from sft_atlas.measure.dataset import measure_dataset
from sft_atlas.measure.embed import Embed
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.model.memory import TrainingMemory, free_bytes, runs_that_fit, training_memory
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store
from sft_atlas.study.job import (
    DescribeJob,
    EvaluateJob,
    GradeJob,
    Job,
    MeasureJob,
    OverlapJob,
    PrepareJob,
    SimilarityJob,
    TrainJob,
    UpdatesJob,
)
from sft_atlas.study.measure import CellMeasure
from sft_atlas.study.spec import BenchmarkSpec, CellSpec, DatasetSpec, ModelSpec
from sft_atlas.study.stacking import stack_key
from sft_atlas.train.loop import Entrant, train_together
from sft_atlas.train.placement import Observers, StopRequested, TrainPlacement


@final
@dataclass(kw_only=True)
class Worker:
    """What a worker process holds between jobs."""

    store: Store
    placement: Placement
    events: TextIO
    started: float = field(default_factory=time.time)
    should_stop: bool = False
    base: BaseModel | None = None
    base_probe: Probe = ()
    hidden_embed: Embed | None = None
    """Vectors of the base model's states, which it keeps for the next dataset."""
    base_faults: dict[str, Error] = field(default_factory=dict)
    """By measure: why the base model in memory could not be measured when it was last tried."""
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    rows: dict[str, PreparedRows] = field(default_factory=dict)
    """Mapped samples by prepare job."""
    memories: dict[str, TrainingMemory] = field(default_factory=dict)
    """What the base model in memory needs to be trained, by kind of run."""
    last_progress: dict[str, float] = field(default_factory=dict)
    """When each job's progress was told."""

    def send(self, kind: str, **facts: Any) -> None:
        """Tell the coordinator; a coordinator that is gone ends this process."""
        try:
            self.events.write(json.dumps({"kind": kind, **facts}) + "\n")
            self.events.flush()
        except BrokenPipeError:
            os._exit(0)

    def load_base(self, spec: ModelSpec) -> BaseModel:
        """Return the base model, from memory if it is the one of the last job."""
        if self.base is None or self.base.spec.fingerprint != spec.fingerprint:
            self.base = self.hidden_embed = None
            self.memories.clear()
            self.base = load_base(spec, device=self.placement.device)
            self.base_probe = probe_model(self.base.model)
        return self.base

    def tokenizer(self, spec: ModelSpec) -> PreTrainedTokenizerBase:
        """Return a model's tokenizer, loaded once."""
        if spec.fingerprint not in self.tokenizers:
            self.tokenizers[spec.fingerprint] = load_tokenizer(spec)
        return self.tokenizers[spec.fingerprint]


def is_done(store: Store, job: Job) -> bool:
    """Tell whether all that a job leaves behind is published, by whomever; always False for
    `prepare`.
    """
    if isinstance(job, PrepareJob):
        return False  # its folder is named after the tokenizer, which only `prepare` loads
    if isinstance(job, MeasureJob):
        return store.has(store.layout.dataset(job.fingerprint))
    if isinstance(job, OverlapJob):
        return store.has(store.layout.overlap(job.fingerprint))
    if isinstance(job, DescribeJob):
        return store.has(store.layout.description(job.fingerprint))
    if isinstance(job, SimilarityJob):
        return all(store.has(store.layout.similarity(pair.fingerprint)) for pair in job.pairs)
    if isinstance(job, UpdatesJob):
        return store.has(store.layout.update(job.fingerprint))
    if isinstance(job, GradeJob):
        cell = job.cell.fingerprint
        return all(store.has(store.layout.score(cell, b.fingerprint)) for b in job.benchmarks)
    cells = job.cells if isinstance(job, TrainJob) else (job.cell,)
    if isinstance(job, TrainJob):
        last = outcome_folder(store, job.trajectory.fingerprint, last_epoch=job.keep_epochs[-1])
        trained = [last, *(store.layout.cell(cell.fingerprint) for cell in cells)]
        if not all(store.has(folder) for folder in trained):
            return False
    return all(_is_assessed(store, cell, _wishes(job, cell)) for cell in cells)


def do_job(worker: Worker, job: Job) -> None:
    """Do what is missing of a job; raises what the stages raise.

    Of a train job it is what its cells lack once `train_group` has trained its run.
    """
    if isinstance(job, PrepareJob):
        prepare(worker.store, job)
    elif isinstance(job, MeasureJob):
        _measure(worker, job)
    elif isinstance(job, TrainJob):
        _assess_cells(worker, job)
    elif isinstance(job, EvaluateJob):
        _evaluate(worker, job)
    elif isinstance(job, GradeJob):
        grade(worker.store, job, worker.placement)
    elif isinstance(job, OverlapJob):
        look_for_overlap(worker.store, job)
    elif isinstance(job, DescribeJob):
        describe(worker.store, job)
    elif isinstance(job, SimilarityJob):
        _compare(worker, job)
    elif isinstance(job, UpdatesJob):
        compare_updates(worker.store, job)
    else:
        assert_never(job)


def _measure(worker: Worker, job: MeasureJob) -> None:
    base = worker.load_base(job.model)
    base.reset()
    measure_dataset(
        worker.store,
        job,
        model=base.model,
        tokenizer=worker.tokenizer(job.model),
        rows=_rows(worker, job, job.dataset, job.num_samples),
    )


def _compare(worker: Worker, job: SimilarityJob) -> None:
    embedder = job.pairs[0].embedder
    if job.model is None:
        compare_texts(worker.store, job, modelless_embed(embedder))
        return
    base = worker.load_base(job.model)
    base.reset()
    if worker.hidden_embed is None:
        tokenizer = worker.tokenizer(job.model)
        worker.hidden_embed = hidden_embed(embedder, base.model, tokenizer)
    compare_texts(worker.store, job, worker.hidden_embed)


def open_entrant(worker: Worker, job: TrainJob) -> Entrant:
    """Return a run with its samples, ready to be trained; raises what `prepare` raises."""
    if worker.should_stop:
        raise StopRequested("stopped before its first step")
    parts = job.trajectory.data.parts
    rows = [_rows(worker, job, part.dataset, part.num_samples) for part in parts]

    def on_epoch(cell: CellSpec, model: PreTrainedModel) -> None:
        # A benchmark or measure that fails does not end the training: it is tried again later.
        _assess(worker, cell, model, _wishes(job, cell))

    def on_step(done: int, total: int) -> None:
        _report_progress(worker, job, done / total)

    observers = Observers(
        on_epoch=on_epoch, on_step=on_step, should_stop=lambda: worker.should_stop
    )
    return Entrant(job=job, rows=TrainingRows(rows), observers=observers)


def train_group(
    worker: Worker,
    entrants: Sequence[Entrant],
    assignment: Assignment,
    on_end: Callable[[TrainJob, Exception | None], None],
) -> list[TrainJob]:
    """Train runs of one base model, together where that was asked for.

    `on_end` is told of each run that is done for good as soon as it is. Returns the others: those
    that were trained, and whose cells still lack something.

    Args:
        worker: what is in memory.
        entrants: at least one; what they measure is measured of the base model first.
        assignment: how many train at the same time, in passes of how many tokens.
        on_end: is told what went wrong, or None.
    """
    jobs = [entrant.job for entrant in entrants]
    base = worker.load_base(jobs[0].trajectory.model)
    measures = {m.fingerprint: m for job in jobs for m in (*job.measures, *job.last_measures)}
    _measure_base(worker, tuple(measures.values()))
    lacking: list[TrainJob] = []

    def end(job: TrainJob, outcome: Record | Exception) -> None:
        if isinstance(outcome, Exception):
            on_end(job, outcome)
        elif is_done(worker.store, job):
            on_end(job, None)
        else:
            lacking.append(job)

    train_together(
        entrants,
        store=worker.store,
        base=base,
        placement=_train_placement(worker, entrants, assignment),
        on_end=end,
    )
    return lacking


def _train_placement(
    worker: Worker, entrants: Sequence[Entrant], assignment: Assignment
) -> TrainPlacement:
    """Return how runs train: as many at a time and in such passes as memory will hold."""
    assert worker.base is not None, "the base model is loaded"
    placement, run = worker.placement, entrants[0].job.trajectory
    key = stack_key(run) or run.fingerprint
    if key not in worker.memories:
        worker.memories[key] = training_memory(
            worker.base,
            run.method.lora,
            precision=run.precision,
            master_precision=run.master_precision,
            recomputes=placement.activation_checkpointing,
        )
    budget = placement.memory_bytes
    if budget is None and placement.device == "cuda":
        budget = free_bytes(worker.base.model)
    # A device has its part of what is always there, and all of what a pass of its own needs.
    num_devices = placement.devices_per_run
    pass_tokens = assignment.micro_batch_tokens or placement.pass_tokens
    fit = runs_that_fit(
        worker.memories[key],
        num_devices * (budget or share_of_memory(num_devices * placement.num_workers)),
        most=min(assignment.stack_runs, len(entrants)),
        pass_tokens=num_devices * pass_tokens,
        longest=max(int(entrant.rows.lengths.max()) for entrant in entrants),
    )
    return TrainPlacement(
        micro_batch_tokens=fit.pass_tokens // num_devices,
        checkpoint_seconds=placement.checkpoint_seconds,
        stack_runs=fit.num_runs,
        devices_per_run=num_devices,
        activation_checkpointing=placement.activation_checkpointing,
        compile=placement.compile,
    )


def _assess_cells(worker: Worker, job: TrainJob) -> None:
    """Assess cells that were published before this job began, or were not assessed in full."""
    faults: list[Error] = []
    for cell in job.cells:
        with kept(faults):
            faults += _assess_stored(worker, cell, _wishes(job, cell))
    raise_faults(faults)


def _evaluate(worker: Worker, job: EvaluateJob) -> None:
    worker.load_base(job.cell.model)
    if job.cell.trajectory is not None:
        _measure_base(worker, job.measures)
    raise_faults(_assess_stored(worker, job.cell, _wishes(job, job.cell)))


def _measure_base(worker: Worker, measures: tuple[CellMeasure, ...]) -> None:
    """Measure the base model in memory; what cannot be measured costs what is compared with it."""
    assert worker.base is not None, "the base model is loaded"
    tokenizer = worker.tokenizer(worker.base.spec)
    worker.base_faults = measure_base(worker.store, worker.base, measures, tokenizer)


@final
class _Wishes(NamedTuple):
    """What is asked of one cell."""

    benchmarks: tuple[BenchmarkSpec, ...]
    measures: tuple[CellMeasure, ...]


def _wishes(job: TrainJob | EvaluateJob, cell: CellSpec) -> _Wishes:
    measures = job.measures_of(cell) if isinstance(job, TrainJob) else job.measures
    return _Wishes(job.benchmarks, measures)


def _assess_stored(worker: Worker, cell: CellSpec, wishes: _Wishes) -> list[Error]:
    """Load a published cell and assess it, if it lacks anything; returns what went wrong."""
    if _is_assessed(worker.store, cell, wishes):
        return []
    assert worker.base is not None, "the base model is loaded"
    try:
        model = load_cell(worker.base, cell, store=worker.store)
        return _assess(worker, cell, model, wishes)
    finally:
        worker.base.reset()


def _is_assessed(store: Store, cell: CellSpec, wishes: _Wishes) -> bool:
    key, layout = cell.fingerprint, store.layout
    if lacks_measures(store, cell, wishes.measures):
        return False
    return all(
        store.has(layout.score(key, benchmark.fingerprint))
        or (benchmark.is_graded and store.has(layout.answers(key, benchmark.fingerprint)))
        for benchmark in wishes.benchmarks
    )


def _assess(worker: Worker, cell: CellSpec, model: PreTrainedModel, wishes: _Wishes) -> list[Error]:
    """Check that the weights are the cell's, then score and measure what is not yet published.

    Returns what went wrong with one benchmark or measure alone.
    """
    assert worker.base is not None, "the base model is loaded"
    probe = probe_model(model)
    check_cell(cell, base_probe=worker.base_probe, cell_probe=probe)
    check_golden(worker.store, cell, probe, device=model.device.type)
    tokenizer = worker.tokenizer(cell.model)
    faults: list[Error] = []
    for benchmark in wishes.benchmarks:
        if worker.should_stop:
            raise StopRequested(f"stopped before benchmark {benchmark.name}")
        with kept(faults):
            evaluate_cell(
                worker.store, cell=cell, benchmark=benchmark, model=model, tokenizer=tokenizer
            )
    for measure in wishes.measures:
        if worker.should_stop:
            raise StopRequested(f"stopped before measure {measure.kind}")
        with kept(faults):
            refuse_without_base(cell, measure, worker.base_faults)
            measure_cell(
                worker.store, cell, measure, base=worker.base, model=model, tokenizer=tokenizer
            )
    return faults


def _rows(
    worker: Worker, job: TrainJob | MeasureJob, dataset: DatasetSpec, num_samples: int
) -> PreparedRows:
    about = job.trajectory if isinstance(job, TrainJob) else job
    subset_seed = job.trajectory.data.subset_seed if isinstance(job, TrainJob) else job.subset_seed
    wish = PrepareJob(
        model=about.model,
        dataset=dataset,
        num_samples=num_samples,
        subset_seed=subset_seed,
        template=about.template,
        max_tokens=about.max_tokens,
    )
    if wish.fingerprint not in worker.rows:
        worker.rows[wish.fingerprint] = prepare(worker.store, wish)
    return worker.rows[wish.fingerprint]


def _report_progress(worker: Worker, job: TrainJob, fraction: float) -> None:
    now, key = time.monotonic(), job.fingerprint
    if now - worker.last_progress.get(key, 0.0) > 0.5:
        worker.last_progress[key] = now
        worker.send("progress", job=key, fraction=round(fraction, 4))
