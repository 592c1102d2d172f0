"""Hold a resolved study: every name replaced by the exact thing, every default filled in.

`loader` makes it from a file. Order is the file's order: it decides how tables are laid out, and no
identity.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sft_atlas.catalog.cards import BenchmarkCard, DatasetCard, ModelCard, TextsCard
from sft_atlas.study.benchmark_entry import JudgeEntry
from sft_atlas.study.measure import Measures
from sft_atlas.study.spec import (
    BenchmarkSpec,
    DatasetSpec,
    MethodSpec,
    ModelSpec,
    Precision,
    ScheduleSpec,
)


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A base model with the facts that its cost is estimated from."""

    spec: ModelSpec
    card: ModelCard | None
    """None where neither a card nor a local `config.json` tells the shape."""


@dataclass(frozen=True, kw_only=True)
class StudyDataset:
    """A dataset with the facts that its cost is estimated from."""

    spec: DatasetSpec
    card: DatasetCard | None


@dataclass(frozen=True, kw_only=True)
class StudyBenchmark:
    """A benchmark with the facts that its cost is estimated from."""

    name: str
    spec: BenchmarkSpec | None
    """None: planned and costed, but this version cannot score it."""
    card: BenchmarkCard | None
    shots: int = 0
    limit: int | None = None
    reason: str = ""
    """Why it cannot be scored."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Datasets in proportions; `weights` sum to 1."""

    name: str
    weights: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Cells to leave out: those that agree with every axis that is given here."""

    models: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    samples: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    schedules: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One factorial product of axes, less its exclusions."""

    name: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    data: tuple[str, ...]
    """`each`, `all`, `leave-one-out` (over `datasets`), or names of mixtures."""
    samples: tuple[int, ...]
    """Per dataset; for a mixture the total."""
    methods: tuple[str, ...]
    schedules: tuple[ScheduleSpec, ...]
    epochs: tuple[int, ...]
    """Lengths of the runs."""
    keep: str | tuple[int, ...]
    """`last`, `every`, or the kept epochs."""
    seeds: tuple[int, ...]
    exclude: tuple[Exclusion, ...] = ()

    def kept_epochs(self, epochs: int) -> tuple[int, ...]:
        """Return which epochs of a run of this length are cells, ascending."""
        if self.keep == "last":
            return (epochs,)
        if self.keep == "every":
            return tuple(range(1, epochs + 1))
        return tuple(epoch for epoch in self.keep if isinstance(epoch, int))


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure that others published, beside the plan's estimate."""

    kind: str
    """`train` or `evaluate`."""
    device_hours: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study file, resolved."""

    name: str
    path: Path
    about: str
    template: str
    max_tokens: int
    precision: Precision
    subset_seed: int
    models: tuple[StudyModel, ...]
    datasets: tuple[StudyDataset, ...]
    benchmarks: tuple[StudyBenchmark, ...]
    methods: tuple[MethodSpec, ...]
    mixtures: tuple[Mixture, ...]
    blocks: tuple[Block, ...]
    measures: Measures
    keep_checkpoints: bool
    judge: JudgeEntry | None = None
    """Where the judge is reached, and what it may cost."""
    published: tuple[Published, ...] = ()
    master_precision: Precision = "float32"
    texts: TextsCard | None = None
    """Facts of the neutral texts, for the cost; None for a file of one's own."""

    @cached_property
    def benchmark_specs(self) -> tuple[BenchmarkSpec, ...]:
        """The benchmarks that this version can score."""
        return tuple(b.spec for b in self.benchmarks if b.spec is not None)

    @cached_property
    def model_by_name(self) -> dict[str, StudyModel]:
        return {model.spec.name: model for model in self.models}

    @cached_property
    def dataset_by_name(self) -> dict[str, StudyDataset]:
        return {dataset.spec.name: dataset for dataset in self.datasets}

    @cached_property
    def method_by_name(self) -> dict[str, MethodSpec]:
        return {method.name: method for method in self.methods}


def count_bad_rows(study: Study, count: Callable[[DatasetSpec], int]) -> Study:
    """Return the study with the malformed rows of each `quarantine` dataset in its identity.

    `count` reads a dataset's rows; it is called only for datasets with `on_bad_rows: quarantine`.
    """
    datasets = [
        replace(d, spec=replace(d.spec, num_quarantined=count(d.spec)))
        if d.spec.on_bad_rows == "quarantine"
        else d
        for d in study.datasets
    ]
    return replace(study, datasets=tuple(datasets))
