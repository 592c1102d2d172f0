"""Find the jobs that a study lacks: what it implies, less what a store holds already."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sft_atlas.study.cost import CostModel, JobCost
from sft_atlas.study.draft import Draft
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
from sft_atlas.study.measure import CellMeasure, SimilaritySpec
from sft_atlas.study.spec import (
    BenchmarkSpec,
    CellSpec,
    DataPart,
    DatasetSpec,
    ModelSpec,
    TrajectorySpec,
    distinct_items,
)
from sft_atlas.study.study import Study

_MEASURED_SAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a store holds, by fingerprint; the empty one plans everything."""

    cells: frozenset[str] = frozenset()
    """Cells whose weights are published."""
    scores: frozenset[tuple[str, str]] = frozenset()
    """(cell, benchmark) pairs that are scored; base models are cells too."""
    answers: frozenset[tuple[str, str]] = frozenset()
    """(cell, benchmark) pairs whose answers are stored, for benchmarks that are graded later."""
    overlaps: frozenset[str] = frozenset()
    """Overlap jobs that are done."""
    datasets: frozenset[str] = frozenset()
    """Measure jobs that are done."""
    descriptions: frozenset[str] = frozenset()
    """Describe jobs that are done."""
    similarities: frozenset[str] = frozenset()
    """Compared pairs of a dataset and a benchmark."""
    updates: frozenset[str] = frozenset()
    """Updates jobs that are done."""
    measured: frozenset[tuple[str, str]] = frozenset()
    """(cell, measure) pairs that are measured; base models are cells too."""
    outcomes: frozenset[tuple[str, int]] = frozenset()
    """(trajectory, last epoch) of published training runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedJob:
    """A job that is missing, its expected cost, and what must be done before."""

    job: Job
    cost: JobCost
    needs: frozenset[str] = frozenset()
    """Fingerprints of jobs."""


class MissingJobs:
    """Finds the jobs that an inventory lacks."""

    def __init__(self, study: Study, draft: Draft, inventory: Inventory, cost: CostModel) -> None:
        self._study = study
        self._draft = draft
        self._inventory = inventory
        self._cost = cost
        self._prepare = _prepare_jobs(study, draft)
        self._wanted: dict[str, PrepareJob] = {}
        self._needed: dict[tuple[str, str], frozenset[str]] = {}

    def all(self) -> list[PlannedJob]:
        measure = self._measure_jobs()
        train = self._train_jobs()
        evaluate = self._evaluate_jobs()
        grade = self._grade_jobs([planned.job for planned in (*train, *evaluate)])
        overlap = self._overlap_jobs()
        prepare = [self._planned(job) for job in self._wanted.values()]
        describe = self._describe_jobs()
        similarity = self._similarity_jobs()
        updates = self._updates_jobs([planned.job for planned in train])
        texts = [*overlap, *describe, *similarity]
        return [*prepare, *measure, *train, *evaluate, *grade, *texts, *updates]

    def _train_jobs(self) -> list[PlannedJob]:
        found = []
        stored = self._inventory
        longest: dict[str, int] = defaultdict(int)
        for name, epoch in stored.outcomes:
            longest[name] = max(longest[name], epoch)
        for name, trajectory in self._draft.trajectories.items():
            job = TrainJob(
                trajectory=trajectory,
                keep_epochs=tuple(sorted(self._draft.epochs[name])),
                benchmarks=self._study.benchmark_specs,
                measures=self._study.measures.every,
                last_measures=self._study.measures.last,
                keep_checkpoint=self._study.keep_checkpoints,
            )
            is_recorded = longest[name] >= job.keep_epochs[-1]
            if is_recorded and all(cell.fingerprint in stored.cells for cell in job.cells):
                continue
            needs = self._needs_of(trajectory)
            found.append(self._planned(job, needs))
        return found

    def _needs_of(self, trajectory: TrajectorySpec) -> frozenset[str]:
        key = (trajectory.model.fingerprint, trajectory.data.canonical)
        if key not in self._needed:
            parts = trajectory.data.parts
            self._needed[key] = frozenset(
                self._needs(trajectory.model, part.dataset) for part in parts
            )
        return self._needed[key]

    def _evaluate_jobs(self) -> list[PlannedJob]:
        """Score and measure base models, and stored cells that lack something."""
        found = []
        stored, wanted = self._inventory, self._study.measures
        bases = [(cell, wanted.of_base) for cell in self._draft.bases]
        kept = [
            (cell, wanted.of_cell(is_last=self._draft.is_last(cell)))
            for name, cell in self._draft.cells.items()
            if name in stored.cells
        ]
        for cell, measures in (*bases, *kept):
            benchmarks = tuple(
                b
                for b in missing_benchmarks(cell, self._study.benchmark_specs, stored)
                if (cell.fingerprint, b.fingerprint) not in stored.answers
            )
            lacking = missing_measures(cell, measures, stored)
            if benchmarks or lacking:
                job = EvaluateJob(cell=cell, benchmarks=benchmarks, measures=lacking)
                found.append(self._planned(job))
        return found

    def _grade_jobs(self, jobs: Iterable[Job]) -> list[PlannedJob]:
        """Score stored answers, and those that a job of this plan will store."""
        graded = tuple(b for b in self._study.benchmark_specs if b.is_graded)
        if not graded:
            return []
        makers: dict[str, set[str]] = defaultdict(set)
        for job in jobs:
            if isinstance(job, (TrainJob, EvaluateJob)):
                for cell in job.cells if isinstance(job, TrainJob) else (job.cell,):
                    makers[cell.fingerprint].add(job.fingerprint)
        found = []
        for cell in (*self._draft.bases, *self._draft.cells.values()):
            benchmarks = missing_benchmarks(cell, graded, self._inventory)
            if benchmarks:
                job = GradeJob(cell=cell, benchmarks=benchmarks)
                lacks = any(
                    (cell.fingerprint, b.fingerprint) not in self._inventory.answers
                    for b in benchmarks
                )
                needs = frozenset(makers[cell.fingerprint] if lacks else ())
                found.append(self._planned(job, needs))
        return found

    def _overlap_jobs(self) -> list[PlannedJob]:
        if not self._study.measures.overlap:
            return []
        jobs = [
            OverlapJob(
                dataset=prepare.dataset,
                num_samples=prepare.num_samples,
                subset_seed=prepare.subset_seed,
                benchmark=items,
            )
            for prepare in self._largest_uses()
            for items in distinct_items(self._study.benchmark_specs)
        ]
        return [
            self._planned(job) for job in jobs if job.fingerprint not in self._inventory.overlaps
        ]

    def _describe_jobs(self) -> list[PlannedJob]:
        if not self._study.measures.description:
            return []
        jobs = [
            DescribeJob(
                dataset=use.dataset, num_samples=use.num_samples, subset_seed=use.subset_seed
            )
            for use in self._largest_uses()
        ]
        return [
            self._planned(job)
            for job in jobs
            if job.fingerprint not in self._inventory.descriptions
        ]

    def _similarity_jobs(self) -> list[PlannedJob]:
        benchmarks = distinct_items(self._study.benchmark_specs)
        found = []
        for embedder in self._study.measures.embedders:
            is_hidden = embedder.kind == "hidden"
            uses = list(self._prepare.values()) if is_hidden else self._largest_uses()
            for use in uses:
                pairs = tuple(
                    SimilaritySpec(
                        dataset=use.dataset,
                        num_samples=min(use.num_samples, self._num_measured),
                        subset_seed=use.subset_seed,
                        benchmark=items,
                        embedder=embedder,
                        model=use.model if is_hidden else None,
                    )
                    for items in benchmarks
                )
                lacking = tuple(
                    pair for pair in pairs if pair.fingerprint not in self._inventory.similarities
                )
                if lacking:
                    job = SimilarityJob(pairs=lacking)
                    found.append(self._planned(job))
        return found

    def _updates_jobs(self, train: Iterable[Job]) -> list[PlannedJob]:
        """Compare the last kept epochs of each base model, once they are all there."""
        if not self._study.measures.updates:
            return []
        makers = {
            cell.fingerprint: job.fingerprint
            for job in train
            if isinstance(job, TrainJob)
            for cell in job.cells
        }
        by_model: dict[str, list[CellSpec]] = defaultdict(list)
        for cell in self._draft.cells.values():
            if self._draft.is_last(cell):
                by_model[cell.model.fingerprint].append(cell)
        found = []
        for cells in by_model.values():
            job = UpdatesJob(cells=tuple(cells))
            if len(cells) > 1 and job.fingerprint not in self._inventory.updates:
                names = {cell.fingerprint for cell in cells}
                needs = frozenset(makers[name] for name in names & makers.keys())
                found.append(self._planned(job, needs))
        return found

    def _planned(self, job: Job, needs: frozenset[str] = frozenset()) -> PlannedJob:
        return PlannedJob(job=job, cost=self._cost.job(job), needs=needs)

    def _largest_uses(self) -> list[PrepareJob]:
        """Return the largest use of each dataset, under whichever model."""
        largest: dict[str, PrepareJob] = {}
        for prepare in self._prepare.values():
            known = largest.get(prepare.dataset.name)
            if known is None or known.num_samples < prepare.num_samples:
                largest[prepare.dataset.name] = prepare
        return list(largest.values())

    @property
    def _num_measured(self) -> int:
        return self._study.measures.dataset_samples or _MEASURED_SAMPLES

    def _measure_jobs(self) -> list[PlannedJob]:
        return [
            self._planned(job, frozenset([self._needs(job.model, job.dataset)]))
            for job in measure_jobs(self._study, self._draft)
            if job.fingerprint not in self._inventory.datasets
        ]

    def _needs(self, model: ModelSpec, dataset: DatasetSpec) -> str:
        job = self._prepare[model.fingerprint, dataset.name]
        self._wanted.setdefault(job.fingerprint, job)
        return job.fingerprint


def measure_jobs(study: Study, draft: Draft) -> list[MeasureJob]:
    """Return what is measured of each dataset under each base model, also where it is done."""
    if not study.measures.dataset:
        return []
    most = study.measures.dataset_samples or _MEASURED_SAMPLES
    return [
        MeasureJob(
            model=use.model,
            dataset=use.dataset,
            num_samples=min(most, use.num_samples),
            subset_seed=use.subset_seed,
            template=use.template,
            max_tokens=use.max_tokens,
        )
        for use in _prepare_jobs(study, draft).values()
    ]


def missing_benchmarks(
    cell: CellSpec, benchmarks: Iterable[BenchmarkSpec], inventory: Inventory
) -> tuple[BenchmarkSpec, ...]:
    """Return the benchmarks on which a cell has no score yet."""
    name = cell.fingerprint
    return tuple(b for b in benchmarks if (name, b.fingerprint) not in inventory.scores)


def missing_measures(
    cell: CellSpec, measures: Iterable[CellMeasure], inventory: Inventory
) -> tuple[CellMeasure, ...]:
    """Return the measures that a cell lacks."""
    name = cell.fingerprint
    return tuple(m for m in measures if (name, m.fingerprint) not in inventory.measured)


def _prepare_jobs(study: Study, draft: Draft) -> dict[tuple[str, str], PrepareJob]:
    """One job for each base model and dataset, as large as its largest use in the whole study."""
    pairs = {(t.model.fingerprint, id(t.data)): t for t in draft.trajectories.values()}
    uses: dict[tuple[str, str], tuple[ModelSpec, DataPart]] = {}
    for (model, _), trajectory in pairs.items():
        for part in trajectory.data.parts:
            key = (model, part.dataset.name)
            if key not in uses or uses[key][1].num_samples < part.num_samples:
                uses[key] = (trajectory.model, part)
    return {
        key: PrepareJob(
            model=model,
            dataset=part.dataset,
            num_samples=part.num_samples,
            subset_seed=study.subset_seed,
            template=study.template,
            max_tokens=study.max_tokens,
        )
        for key, (model, part) in uses.items()
    }
