"""Say what one unit of work is: prepare, train, evaluate, grade, or one of the measures.

A job names what it is about, and what it is about names the job: two coordinators that plan the
same work compete for the same lease. Jobs cross process borders as JSON.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from sft_atlas.identity import fingerprint
from sft_atlas.study.measure import CellMeasure, SimilaritySpec
from sft_atlas.study.spec import (
    BenchmarkItems,
    BenchmarkSpec,
    CellSpec,
    DatasetSpec,
    ModelSpec,
    TrajectorySpec,
)


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Tokenise the first rows of one dataset for one tokenizer and template."""

    kind: Literal["prepare"] = "prepare"
    model: ModelSpec
    """Whose tokenizer."""
    dataset: DatasetSpec
    num_samples: int
    subset_seed: int
    template: str
    max_tokens: int

    @cached_property
    def fingerprint(self) -> str:
        about = [self.model.fingerprint, self.dataset, self.num_samples, self.subset_seed]
        return fingerprint(["prepare", *about, self.template, self.max_tokens])


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train one trajectory; evaluate and measure its kept epochs while their weights are at
    hand.
    """

    kind: Literal["train"] = "train"
    trajectory: TrajectorySpec
    keep_epochs: tuple[int, ...]
    """Epochs whose weights are published, ascending; training ends after the last."""
    benchmarks: tuple[BenchmarkSpec, ...]
    measures: tuple[CellMeasure, ...] = ()
    """Of every kept epoch, and where they apply of the base model."""
    last_measures: tuple[CellMeasure, ...] = ()
    """Of the last kept epoch, beside `measures`."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint, so that a later study can train further."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(["train", self.trajectory.fingerprint])

    @cached_property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cells that this job leaves behind, by epoch."""
        model = self.trajectory.model
        return tuple(
            CellSpec(model=model, trajectory=self.trajectory, epoch=epoch)
            for epoch in self.keep_epochs
        )

    def measures_of(self, cell: CellSpec) -> tuple[CellMeasure, ...]:
        """Return what is measured of one of its cells."""
        is_last = cell.epoch == self.keep_epochs[-1]
        return (*self.measures, *self.last_measures) if is_last else self.measures


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score a base model or a stored cell on benchmarks, and measure it."""

    kind: Literal["evaluate"] = "evaluate"
    cell: CellSpec
    benchmarks: tuple[BenchmarkSpec, ...]
    measures: tuple[CellMeasure, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(["evaluate", self.cell.fingerprint])


@dataclass(frozen=True, kw_only=True)
class MeasureJob:
    """Sum the log-likelihoods of a dataset's samples under a base model."""

    kind: Literal["measure"] = "measure"
    version: int = 2
    model: ModelSpec
    dataset: DatasetSpec
    num_samples: int
    subset_seed: int
    template: str
    max_tokens: int

    @cached_property
    def fingerprint(self) -> str:
        about = [self.model.fingerprint, self.dataset, self.num_samples, self.subset_seed]
        return fingerprint(["measure", *about, self.template, self.max_tokens, self.version])


@dataclass(frozen=True, kw_only=True)
class GradeJob:
    """Score a cell's stored answers without its model: run programs, ask a judge."""

    kind: Literal["grade"] = "grade"
    cell: CellSpec
    benchmarks: tuple[BenchmarkSpec, ...]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(["grade", self.cell.fingerprint])


@dataclass(frozen=True, kw_only=True)
class OverlapJob:
    """Look for a benchmark's items in a dataset's training rows."""

    kind: Literal["overlap"] = "overlap"
    dataset: DatasetSpec
    num_samples: int
    subset_seed: int
    benchmark: BenchmarkItems

    @cached_property
    def fingerprint(self) -> str:
        about = [self.dataset, self.num_samples, self.subset_seed]
        return fingerprint(["overlap", *about, self.benchmark])


@dataclass(frozen=True, kw_only=True)
class DescribeJob:
    """Describe a dataset's training rows as texts: lengths, duplicates, diversity, languages."""

    kind: Literal["describe"] = "describe"
    dataset: DatasetSpec
    num_samples: int
    subset_seed: int
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        about = [self.dataset, self.num_samples, self.subset_seed, self.version]
        return fingerprint(["describe", *about])


@dataclass(frozen=True, kw_only=True)
class SimilarityJob:
    """Compare a dataset's training rows with benchmarks by one embedder."""

    kind: Literal["similarity"] = "similarity"
    pairs: tuple[SimilaritySpec, ...]
    """At least one; all of one dataset, embedder and model."""

    @property
    def model(self) -> ModelSpec | None:
        """Whose hidden states are compared; None where the embedder needs no base model."""
        return self.pairs[0].model

    @property
    def dataset(self) -> DatasetSpec:
        return self.pairs[0].dataset

    @cached_property
    def fingerprint(self) -> str:
        first = self.pairs[0]
        about = [first.dataset, first.num_samples, first.subset_seed, first.embedder, first.model]
        return fingerprint(["similarity", *about])


@dataclass(frozen=True, kw_only=True)
class UpdatesJob:
    """Compare the weight changes of stored cells of one base model with each other."""

    kind: Literal["updates"] = "updates"
    cells: tuple[CellSpec, ...]
    """At least two, of one base model."""
    version: int = 1

    @property
    def model(self) -> ModelSpec:
        return self.cells[0].model

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(["updates", self.version, *sorted(c.fingerprint for c in self.cells)])


Job = (
    PrepareJob
    | TrainJob
    | EvaluateJob
    | MeasureJob
    | GradeJob
    | OverlapJob
    | DescribeJob
    | SimilarityJob
    | UpdatesJob
)


def job_title(job: Job) -> str:
    """Name a job in the study's words."""
    if isinstance(job, TrainJob):
        run = job.trajectory
        epochs = ",".join(map(str, job.keep_epochs))
        return f"train {run.model.name} {run.data.name} {run.method.name} epochs {epochs}"
    if isinstance(job, (EvaluateJob, GradeJob)):
        run_of = job.cell.trajectory
        what = (
            f"{run_of.data.name} {run_of.method.name} epoch {job.cell.epoch}" if run_of else "base"
        )
        return f"{job.kind} {job.cell.model.name} {what}"
    if isinstance(job, OverlapJob):
        return f"overlap of {job.dataset.name} with {job.benchmark.name}"
    if isinstance(job, DescribeJob):
        return f"describe {job.dataset.name}"
    if isinstance(job, SimilarityJob):
        beside = f" of {job.model.name}" if job.model else ""
        return f"similarity of {job.dataset.name} by {job.pairs[0].embedder.name}{beside}"
    if isinstance(job, UpdatesJob):
        return f"updates of {len(job.cells)} cells of {job.model.name}"
    return f"{job.kind} {job.dataset.name} for {job.model.name}"


JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
"""Reads and writes jobs as JSON: `JOB.dump_json(job)`, `JOB.validate_json(text)`."""
